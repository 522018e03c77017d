//! What a client has asked for since it was last at rest outside a transaction, kept to be run again; of a transaction
//! also a hash of the answers that the client has seen.
//!
//! # Invariants
//! - Bounded: what is longer than the bound is not kept, and then nothing of it is.
//! - The bytes are the client's own frames, whole and in order, from the first one behind the last rest.
//! - What was seen is counted and hashed byte for byte, in the order in which it went to the client.

use sha2::{Digest as _, Sha256};

use super::policy::Doubt;
pub use crate::sql::repeat::BlockEnd;
use crate::wire::frame::Header;
use crate::wire::frontend as f;

/// Whether the requests can still be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Kept,
    /// Some of it is missing, or the client has seen something of the answers.
    Over,
}

/// The most that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub bytes: usize,
    pub exchanges: usize,
}

/// Answers that the client has seen: their bytes, and the SHA-256 of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    pub bytes: u64,
    pub digest: [u8; 32],
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
    /// Names of statements that the exchanges prepare, unnamed ones aside, and how many bytes stand before each.
    names: Vec<(usize, Box<[u8]>)>,
    unnamed: Unnamed,
    /// The exchanges that were answered to their end, and their bytes.
    exchanges_answered: usize,
    answered: usize,
    /// What the client had seen at the end of each of them: at most one for each exchange that is kept.
    ends: Vec<Answers>,
    /// Bytes of answers that the client has seen, and their hash.
    seen: u64,
    hash: Sha256,
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

    /// The statement that was noted last may do more than its text shows.
    pub fn worsen(&mut self, doubt: Doubt) {
        self.doubt = self.doubt.max(Some(doubt));
    }

    /// A statement gets this name by a Parse.
    pub fn note_name(&mut self, name: &[u8]) {
        if self.stage == Stage::Kept {
            self.names.push((self.bytes.len(), name.into()));
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
    /// than `bounds`, returns the storage that is not needed any more.
    #[must_use]
    pub fn keep(
        &mut self,
        frame: &[u8],
        ends_exchange: bool,
        bounds: Bounds,
        storage: impl FnOnce() -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        if self.stage == Stage::Over {
            return None;
        }
        // A query inside an extended exchange may have no answer of its own.
        let is_odd = frame.first() == Some(&f::QUERY) && !self.bytes.is_empty() && !self.is_whole;
        if is_odd
            || self.bytes.len() + frame.len() > bounds.bytes
            || self.exchanges >= bounds.exchanges
        {
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
        self.ends = Vec::new();
        std::mem::take(&mut self.bytes)
    }

    /// Nothing is under way any more. Returns the storage.
    #[must_use]
    pub fn rest(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        self.stage = Stage::Kept;
        (self.exchanges, self.is_whole) = (0, false);
        self.doubt = None;
        self.end = End::Open;
        self.has_completed = false;
        self.names = Vec::new();
        self.unnamed = Unnamed::None;
        (self.exchanges_answered, self.answered) = (0, 0);
        self.ends = Vec::new();
        if self.seen > 0 {
            self.seen = 0;
            self.hash = Sha256::new();
        }
        bytes
    }

    /// Whether it is as new.
    pub fn is_new(&self) -> bool {
        let Self {
            stage,
            bytes,
            exchanges,
            is_whole,
            doubt,
            end,
            has_completed,
            names,
            unnamed,
            exchanges_answered,
            answered,
            ends,
            seen,
            // Of nothing, as long as nothing was seen.
            hash: _,
        } = self;
        *stage == Stage::Kept
            && (bytes.capacity(), names.capacity(), ends.capacity()) == (0, 0, 0)
            && (*exchanges, *exchanges_answered, *answered) == (0, 0, 0)
            && doubt.is_none()
            && *end == End::Open
            && *unnamed == Unnamed::None
            && !*is_whole
            && !*has_completed
            && *seen == 0
    }

    /// The client sees these bytes of the answers.
    pub fn record(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        self.hash.update(bytes);
    }

    /// The exchange in front was answered to its end, and the client is about to see that: [`Self::end_seen`] follows once
    /// the answer is recorded.
    pub fn answer_front(&mut self) {
        self.has_completed = false;
        self.exchanges_answered += 1;
        while let Some(rest) = self.bytes.get(self.answered..)
            && let Ok(Some(header)) = Header::peek(rest, usize::MAX)
        {
            self.answered += header.len;
            if matches!(header.tag, f::QUERY | f::SYNC | f::FUNCTION_CALL) {
                break;
            }
        }
    }

    /// What was recorded so far ends with the end of an exchange.
    pub fn end_seen(&mut self) {
        let seen = self.answers();
        self.ends.push(seen);
    }

    /// Whether the end of one exchange, and of no more, is still to come.
    pub fn awaits_one(&self) -> bool {
        self.is_whole && self.exchanges == self.exchanges_answered + 1
    }

    /// Bytes of the exchanges that were answered to their end.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Bytes of answers that the client has seen.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// All that the client has seen.
    pub fn answers(&self) -> Answers {
        Answers {
            bytes: self.seen,
            digest: self.hash.clone().finalize().into(),
        }
    }

    /// What the client had seen at the end of each exchange that was answered.
    pub fn ends(&self) -> &[Answers] {
        &self.ends
    }

    /// Part of an answer was seen whose end is still to come.
    pub fn has_seen_part(&self) -> bool {
        self.seen != self.ends.last().map_or(0, |end| end.bytes)
    }

    /// A statement is prepared under a name by the exchange under way.
    pub fn prepares_now(&self) -> bool {
        self.names
            .last()
            .is_some_and(|(at, _)| *at >= self.answered)
    }

    /// Whether all that was asked for is here, and nothing of the answers has been seen.
    pub fn is_kept(&self) -> bool {
        self.stage == Stage::Kept
    }

    /// Whether the last exchange was sent to its end.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Names that are prepared, and how many bytes stand before each.
    pub fn names(&self) -> &[(usize, Box<[u8]>)] {
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
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        bytes: 14,
        exchanges: 3,
    };

    #[test]
    fn what_is_longer_than_the_bounds_is_not_kept_at_all() {
        let mut journal = Journal::default();
        assert_eq!(journal.keep(b"abc", false, BOUNDS, Vec::new), None);
        assert_eq!(journal.keep(b"de", true, BOUNDS, Vec::new), None);
        assert!(journal.is_kept() && journal.awaits_one());
        assert_eq!(journal.bytes(), b"abcde");
        let given = journal.keep(b"0123456789", true, BOUNDS, Vec::new);
        assert_eq!(given, Some(b"abcde".to_vec()));
        assert!(!journal.is_kept() && journal.is_empty());
        assert_eq!(journal.keep(b"g", true, BOUNDS, Vec::new), None);
        assert!(journal.is_empty());
        let _ = journal.rest();
        assert!(journal.is_kept());
        for _ in 0..3 {
            assert_eq!(journal.keep(b"x", true, BOUNDS, Vec::new), None);
        }
        assert!(journal.keep(b"x", true, BOUNDS, Vec::new).is_some());
    }

    #[test]
    fn a_query_within_an_extended_exchange_ends_the_journal() {
        let mut journal = Journal::default();
        assert_eq!(journal.keep(b"Q1", true, BOUNDS, Vec::new), None);
        assert_eq!(journal.keep(b"P1", false, BOUNDS, Vec::new), None);
        assert!(journal.keep(b"Q1", true, BOUNDS, Vec::new).is_some());
    }

    proptest! {
        #[test]
        fn what_is_seen_hashes_the_same_however_it_is_cut(
            answers in prop::collection::vec(any::<u8>(), 1..200),
            cuts in prop::collection::vec(0..200_usize, 0..6),
            flipped in 0..200_usize,
        ) {
            let mut whole = Journal::default();
            whole.record(&answers);
            let mut parts = Journal::default();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % answers.len()).collect();
            cuts.sort_unstable();
            let mut at = 0;
            for cut in cuts.into_iter().chain([answers.len()]) {
                parts.record(&answers[at..cut]);
                at = cut;
            }
            prop_assert_eq!(whole.answers(), parts.answers());
            let mut other = answers.clone();
            let place = flipped % other.len();
            other[place] ^= 1;
            let mut different = Journal::default();
            different.record(&other);
            prop_assert_ne!(whole.answers().digest, different.answers().digest);
        }

        #[test]
        fn exchanges_are_answered_one_by_one(
            exchanges in prop::collection::vec((0..4_usize, 0..9_usize, any::<bool>()), 1..20),
        ) {
            let mut journal = Journal::default();
            let bounds = Bounds { bytes: 1 << 20, exchanges: 1000 };
            let mut ends = Vec::new();
            let frame = |tag: u8, len: usize| {
                let size = u32::try_from(len + 4).unwrap();
                [&[tag], &size.to_be_bytes()[..], &vec![b'Q'; len]].concat()
            };
            for (steps, len, is_simple) in exchanges {
                if is_simple {
                    prop_assert_eq!(journal.keep(&frame(b'Q', len), true, bounds, Vec::new), None);
                } else {
                    for _ in 0..steps {
                        prop_assert_eq!(journal.keep(&frame(b'B', len), false, bounds, Vec::new), None);
                    }
                    prop_assert_eq!(journal.keep(&frame(b'S', 0), true, bounds, Vec::new), None);
                }
                ends.push(journal.bytes().len());
            }
            for end in ends {
                journal.record(b"answer");
                prop_assert!(journal.has_seen_part());
                prop_assert_eq!(journal.awaits_one(), end == journal.bytes().len());
                journal.answer_front();
                journal.end_seen();
                prop_assert_eq!(journal.answered(), end);
                prop_assert!(!journal.has_seen_part());
            }
        }
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
