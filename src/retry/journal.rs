//! What a client has asked for since it was last at rest outside a transaction, kept to be run again.
//!
//! # Invariants
//! - Bounded: what is longer than the bound is not kept, and then nothing of it is.
//! - The bytes are the client's own frames, whole and in order, from the first one behind the last rest.

use super::policy::Doubt;
pub use crate::sql::repeat::BlockEnd;

/// Whether the requests can still be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Kept,
    /// Some of it is missing, or the client has seen something of the answers.
    Over,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Journal {
    stage: Stage,
    bytes: Vec<u8>,
    /// Whole exchanges: simple queries, or extended ones up to their Sync.
    exchanges: usize,
    /// The last frame ended its exchange.
    is_whole: bool,
    doubt: Option<Doubt>,
    end: End,
    /// A statement of the exchange in front was completed, which in an extended exchange is before it is committed.
    has_completed: bool,
    /// Names of statements that the exchanges prepare, unnamed ones aside.
    names: Vec<Box<[u8]>>,
    unnamed: Unnamed,
}

/// How far the requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum End {
    #[default]
    Open,
    /// Up to the end of a transaction block, which is a rollback.
    RolledBack,
    /// A COMMIT was sent, or something behind an end that commits by itself.
    Committed,
}

/// Which unnamed statement the requests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Unnamed {
    #[default]
    None,
    /// One from before: it has to be the same at another run.
    Earlier,
    /// One that they make themselves.
    Own,
}

impl Journal {
    /// A statement is sent about which there is this doubt, and which may end the transaction block like this.
    pub fn note(&mut self, doubt: Doubt, end: Option<BlockEnd>) {
        // What follows the end is another transaction, and its failure says nothing about this one.
        let is_behind = self.has_ended();
        let doubt = if is_behind {
            Doubt::Unrepeatable
        } else {
            doubt
        };
        self.doubt = self.doubt.max(Some(doubt));
        self.end = match end {
            _ if is_behind => End::Committed,
            None => End::Open,
            Some(BlockEnd::Rollback) => End::RolledBack,
            Some(BlockEnd::Commit) => End::Committed,
        };
    }

    /// A statement gets this name by a Parse.
    pub fn note_name(&mut self, name: &[u8]) {
        if self.stage == Stage::Kept {
            self.names.push(name.into());
        }
    }

    /// The unnamed statement is used.
    pub fn use_unnamed(&mut self) {
        if self.unnamed == Unnamed::None {
            self.unnamed = Unnamed::Earlier;
        }
    }

    /// The unnamed statement is made or destroyed. Where one from before was used, another run would use the wrong one:
    /// returns the storage then.
    #[must_use]
    pub fn replace_unnamed(&mut self) -> Option<Vec<u8>> {
        if self.unnamed == Unnamed::Earlier {
            return Some(self.give_up());
        }
        self.unnamed = Unnamed::Own;
        None
    }

    /// Keeps a whole frame; `ends_exchange` if the server answers it with `ReadyForQuery`. Where the journal gets longer
    /// than `bytes_max`, returns the storage that is not needed any more.
    #[must_use]
    pub fn keep(
        &mut self,
        frame: &[u8],
        ends_exchange: bool,
        bytes_max: usize,
        storage: impl FnOnce() -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        if self.stage == Stage::Over {
            return None;
        }
        if self.bytes.len() + frame.len() > bytes_max {
            return Some(self.give_up());
        }
        if self.bytes.capacity() == 0 {
            self.bytes = storage();
        }
        self.bytes.extend_from_slice(frame);
        self.exchanges += usize::from(ends_exchange);
        self.is_whole = ends_exchange;
        None
    }

    /// From here on nothing can be run again. Returns the storage.
    #[must_use]
    pub fn give_up(&mut self) -> Vec<u8> {
        self.stage = Stage::Over;
        self.names = Vec::new();
        std::mem::take(&mut self.bytes)
    }

    /// Nothing is under way any more. Returns the storage.
    #[must_use]
    pub fn rest(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        *self = Self::default();
        bytes
    }

    /// Whether all that was asked for is here, and nothing of the answers has been seen.
    pub fn is_kept(&self) -> bool {
        self.stage == Stage::Kept
    }

    /// Whether what was asked for is one exchange, sent to its end.
    pub fn is_one_exchange(&self) -> bool {
        self.exchanges == 1 && self.is_whole
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn names(&self) -> &[Box<[u8]>] {
        &self.names
    }

    /// The most doubtful statement of all counts.
    pub fn doubt(&self) -> Doubt {
        self.doubt.unwrap_or(Doubt::Read)
    }

    /// An end of a transaction block was sent.
    pub fn has_ended(&self) -> bool {
        self.end != End::Open
    }

    /// A COMMIT was sent, or something behind an end of a transaction block that commits by itself.
    pub fn may_have_committed(&self) -> bool {
        self.end == End::Committed
    }

    pub fn note_completed(&mut self) {
        self.has_completed = true;
    }

    pub fn has_completed(&self) -> bool {
        self.has_completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_the_bound_is_not_kept_at_all() {
        let mut journal = Journal::default();
        assert_eq!(journal.keep(b"abc", false, 5, Vec::new), None);
        assert_eq!(journal.keep(b"de", true, 5, Vec::new), None);
        assert!(journal.is_kept() && journal.is_one_exchange());
        assert_eq!(journal.bytes(), b"abcde");
        assert_eq!(
            journal.keep(b"f", true, 5, Vec::new),
            Some(b"abcde".to_vec())
        );
        assert!(!journal.is_kept() && journal.is_empty());
        assert_eq!(journal.keep(b"g", true, 5, Vec::new), None);
        assert!(journal.is_empty());
        let _ = journal.rest();
        assert!(journal.is_kept());
    }

    #[test]
    fn what_follows_the_end_of_a_transaction_is_unrepeatable() {
        for end in [BlockEnd::Commit, BlockEnd::Rollback] {
            let mut journal = Journal::default();
            assert_eq!(journal.doubt(), Doubt::Read);
            journal.note(Doubt::Write, None);
            journal.note(Doubt::Read, None);
            assert_eq!(journal.doubt(), Doubt::Write);
            journal.note(Doubt::Write, Some(end));
            assert_eq!(journal.doubt(), Doubt::Write);
            assert_eq!(journal.may_have_committed(), end == BlockEnd::Commit);
            journal.note(Doubt::Read, None);
            assert_eq!(journal.doubt(), Doubt::Unrepeatable);
            assert!(journal.may_have_committed());
        }
    }

    #[test]
    fn requests_that_use_an_earlier_unnamed_statement_do_not_outlive_it() {
        let mut journal = Journal::default();
        assert_eq!(journal.replace_unnamed(), None);
        journal.use_unnamed();
        assert_eq!(journal.replace_unnamed(), None);
        let _ = journal.rest();
        journal.use_unnamed();
        assert_eq!(journal.replace_unnamed(), Some(Vec::new()));
        assert!(!journal.is_kept());
    }
}
