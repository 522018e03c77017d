//! What is known at each depth of parentheses, in constant space.

/// Deeper than this nothing is tracked; the statement counts as not understood.
const MAX_DEPTH: usize = 128;

/// A query has begun here: FROM is its clause and not an argument's (`extract(… FROM …)`).
pub(super) const QUERY: u8 = 1;
/// Inside FROM: a comma is followed by another table.
pub(super) const FROM: u8 = 2;
/// Inside the list of a WITH, before the query it belongs to.
pub(super) const WITH: u8 = 4;
/// The query is a DELETE or MERGE: USING is its FROM.
pub(super) const USING: u8 = 8;
/// The parenthesis of DISTINCT ON or of OPERATOR: behind it an expression begins.
pub(super) const BEFORE_OPERAND: u8 = 16;

#[derive(Clone, Debug)]
pub(super) struct Scope {
    flags: [u8; MAX_DEPTH],
    depth: usize,
    /// Parentheses did not match, or were too deep.
    broken: bool,
}

impl Scope {
    pub(super) fn new() -> Self {
        Self {
            flags: [0; MAX_DEPTH],
            depth: 0,
            broken: false,
        }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(super) fn open(&mut self, flags: u8) {
        self.depth += 1;
        match self.flags.get_mut(self.depth) {
            Some(here) => *here = flags,
            None => self.broken = true,
        }
    }

    /// Closes a parenthesis and gives what was set inside it.
    pub(super) fn close(&mut self) -> u8 {
        let inside = self.flags.get(self.depth).copied().unwrap_or(0);
        match self.depth.checked_sub(1) {
            Some(depth) => self.depth = depth,
            None => self.broken = true,
        }
        inside
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags
            .get(self.depth)
            .is_some_and(|here| here & flag != 0)
    }

    pub(super) fn set(&mut self, flags: u8) {
        if let Some(here) = self.flags.get_mut(self.depth) {
            *here |= flags;
        }
    }

    pub(super) fn clear(&mut self, flags: u8) {
        if let Some(here) = self.flags.get_mut(self.depth) {
            *here &= !flags;
        }
    }
}
