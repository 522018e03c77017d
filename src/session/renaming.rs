//! A text with names replaced, and what a place in it was in the client's own.

use std::ops::Range;

/// Replacements in a text, first to last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits(Vec<Edit>);

/// In characters, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edit {
    /// Where it begins in the client's text.
    start: usize,
    old: usize,
    new: usize,
}

impl Edits {
    /// The place in the client's text (characters, from 1) of a `place` in the new one.
    pub fn original(&self, place: usize) -> usize {
        let mut at = place.saturating_sub(1);
        for edit in self.0.iter().rev() {
            // Where it begins in the new text.
            let before = self.0.iter().filter(|other| other.start < edit.start);
            let start = before.fold(edit.start, |at, other| (at + other.new) - other.old);
            if at >= start + edit.new {
                return 1 + edit.start + edit.old + (at - start - edit.new);
            }
            if at >= start {
                at = edit.start;
                return 1 + at;
            }
        }
        1 + at
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A text being rewritten.
#[derive(Debug)]
pub struct Renaming<'a> {
    text: &'a [u8],
    /// The encoding is one whose characters may have several bytes, which are told as those of UTF-8.
    is_utf8: bool,
    out: Vec<u8>,
    /// Up to where the text was copied.
    copied: usize,
    edits: Edits,
}

impl<'a> Renaming<'a> {
    pub fn new(text: &'a [u8], is_utf8: bool) -> Self {
        Self {
            text,
            is_utf8,
            out: Vec::with_capacity(text.len() + 16),
            copied: 0,
            edits: Edits::default(),
        }
    }

    fn characters(&self, bytes: &[u8]) -> usize {
        let continues = |byte: &&u8| self.is_utf8 && **byte & 0xc0 == 0x80;
        bytes.len() - bytes.iter().filter(continues).count()
    }

    /// Puts `new` in place of `range`, which is behind those replaced before.
    pub fn replace(&mut self, range: Range<usize>, new: &[u8]) {
        let (before, old) = (&self.text[..range.start], &self.text[range.clone()]);
        self.edits.0.push(Edit {
            start: self.characters(before),
            old: self.characters(old),
            new: self.characters(new),
        });
        self.out
            .extend_from_slice(&self.text[self.copied..range.start]);
        self.out.extend_from_slice(new);
        self.copied = range.end;
    }

    /// The new text and what was replaced.
    pub fn finish(mut self) -> (Vec<u8>, Edits) {
        self.out.extend_from_slice(&self.text[self.copied..]);
        (self.out, self.edits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_clients_text() {
        let text = "EXECUTE käse(1); EXECUTE b(x)".as_bytes();
        let mut renaming = Renaming::new(text, true);
        renaming.replace(8..13, b"pgweir_1");
        renaming.replace(26..27, b"pgweir_22");
        let (new, edits) = renaming.finish();
        assert_eq!(new, b"EXECUTE pgweir_1(1); EXECUTE pgweir_22(x)");
        let place = |needle: &[u8]| memchr::memmem::find(&new, needle).unwrap() + 1;
        assert_eq!(edits.original(1), 1);
        assert_eq!(edits.original(place(b"pgweir_1(")), 9);
        assert_eq!(edits.original(place(b"r_1(")), 9);
        assert_eq!(edits.original(place(b"(1)")), 13);
        assert_eq!(edits.original(place(b"pgweir_22")), 26);
        assert_eq!(edits.original(place(b"x)")), 28);
    }

    #[test]
    fn without_replacements_nothing_moves() {
        let (text, edits) = Renaming::new(b"SELECT 1", false).finish();
        assert!(edits.is_empty());
        assert_eq!((text.as_slice(), edits.original(8)), (&b"SELECT 1"[..], 8));
    }
}
