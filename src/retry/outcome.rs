//! What became of a transaction whose COMMIT was not answered, by what the server says of its id.
//!
//! # Why the server's word for "committed" is not enough
//! A server that crashes forgets the ids whose WAL it had not flushed, and gives them out again: the transaction that it
//! calls committed may be another one. The same holds for a replica that took over. So the word counts only
//! - from the server that had the transaction, if it has not crashed since: no checkpoint was made in between, and
//!   recovery ends with one;
//! - or from one on the same timeline, if what the transaction had written was flushed while it was open: then its id was
//!   known to every recovery.
//!
//! "Aborted" needs no such proof: had the transaction committed for good, its id would be known and never given out again.
//! And an id that the server has not given out yet is that of a transaction which it does not have.

use crate::session::mirror::Incarnation;

/// A transaction as the server told of it while it was open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xact {
    /// `xid8`.
    pub id: u64,
    /// The WAL up to here (an LSN) has the first that it wrote.
    pub written: u64,
    /// That was flushed.
    pub is_durable: bool,
}

impl Xact {
    /// From the columns id, insert LSN and flush LSN; `before` is what an earlier answer said. `None` if it has no id.
    pub fn read(columns: &[Option<&[u8]>], before: Option<Self>) -> Option<Self> {
        let [id, inserted, flushed] = columns else {
            return before;
        };
        let id = (*id).and_then(number)?;
        let (inserted, flushed) = ((*inserted).and_then(lsn)?, (*flushed).and_then(lsn)?);
        let written = match before {
            Some(before) if before.id == id => before.written,
            _ => inserted,
        };
        Some(Self {
            id,
            written,
            is_durable: flushed >= written,
        })
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// An LSN as PostgreSQL writes it: two halves in hexadecimal.
fn lsn(text: &[u8]) -> Option<u64> {
    let (high, low) = std::str::from_utf8(text).ok()?.split_once('/')?;
    let half = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
    Some(half(high)? << 32 | half(low)?)
}

/// What the server that is primary now says of the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Committed,
    Aborted,
    InProgress,
    /// It has not given out such an id.
    Future,
    /// Nothing that means anything here: it has forgotten the id, or would not answer.
    None,
}

/// What is known of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
    /// Ask again.
    Open,
    Unknown,
}

/// See the module. `then` is the server that had the transaction, `now` the one that was asked.
pub fn outcome(xact: Xact, then: &Incarnation, now: &Incarnation, word: Word) -> Outcome {
    if then.system != now.system {
        return Outcome::Unknown;
    }
    let is_on = then.timeline == now.timeline;
    match word {
        Word::Committed if is_on && (xact.is_durable || then.checkpoint == now.checkpoint) => {
            Outcome::Committed
        }
        Word::Aborted | Word::Future => Outcome::Aborted,
        Word::InProgress => Outcome::Open,
        Word::Committed | Word::None => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incarnation(system: &str, timeline: &str, checkpoint: &str) -> Incarnation {
        Incarnation {
            system: system.as_bytes().into(),
            timeline: timeline.as_bytes().into(),
            checkpoint: checkpoint.as_bytes().into(),
        }
    }

    #[test]
    fn committed_is_believed_only_of_an_id_that_was_not_given_out_twice() {
        let then = incarnation("7", "00000001", "0/10");
        let crashed = incarnation("7", "00000001", "0/20");
        // A replica that took over may have made the checkpoint that the primary made.
        let promoted = incarnation("7", "00000002", "0/10");
        let other = incarnation("8", "00000001", "0/10");
        let found = |is_durable, now: &Incarnation, word| {
            let xact = Xact {
                id: 1,
                written: 2,
                is_durable,
            };
            outcome(xact, &then, now, word)
        };
        for is_durable in [false, true] {
            let committed = found(is_durable, &then, Word::Committed);
            assert_eq!(committed, Outcome::Committed);
            let committed = found(is_durable, &promoted, Word::Committed);
            assert_eq!(committed, Outcome::Unknown);
            for now in [&then, &crashed, &promoted] {
                assert_eq!(found(is_durable, now, Word::Aborted), Outcome::Aborted);
                assert_eq!(found(is_durable, now, Word::Future), Outcome::Aborted);
                assert_eq!(found(is_durable, now, Word::InProgress), Outcome::Open);
                assert_eq!(found(is_durable, now, Word::None), Outcome::Unknown);
            }
            for word in [
                Word::Committed,
                Word::Aborted,
                Word::InProgress,
                Word::Future,
                Word::None,
            ] {
                assert_eq!(found(is_durable, &other, word), Outcome::Unknown);
            }
        }
        assert_eq!(found(false, &crashed, Word::Committed), Outcome::Unknown);
        assert_eq!(found(true, &crashed, Word::Committed), Outcome::Committed);
    }

    #[test]
    fn what_was_written_is_durable_once_it_was_flushed() {
        let read = |id: &str, inserted: &str, flushed: &str, before| {
            let columns = [id, inserted, flushed].map(|text| Some(text.as_bytes()));
            Xact::read(&columns, before)
        };
        let first = read("4294967301", "1/A0", "1/9F", None).unwrap();
        assert_eq!(first.id, (1 << 32) + 5);
        assert_eq!(first.written, (1 << 32) + 0xA0);
        assert!(!first.is_durable);
        // It has written more since; what counts is the first.
        let later = read("4294967301", "1/F0", "1/A0", Some(first)).unwrap();
        assert_eq!((later.written, later.is_durable), (first.written, true));
        assert_eq!(Xact::read(&[None, Some(b"0/1"), Some(b"0/1")], None), None);
        assert_eq!(read("x", "0/1", "0/1", None), None);
        assert_eq!(read("1", "0", "0/1", None), None);
    }
}
