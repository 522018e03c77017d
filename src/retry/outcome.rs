//! What became of a transaction whose COMMIT was not answered, by what the server says of its id.
//!
//! # Why the server's word for "committed" is not enough
//! A server that crashes forgets the ids whose WAL it had not flushed, and gives them out again: the transaction that it
//! calls committed may be another one. The same holds for a replica that took over. So the word counts only from the
//! server that had the transaction, if it has not crashed since: no checkpoint was made in between, and recovery ends with
//! one.
//!
//! That all WAL was seen flushed while the transaction was open proves nothing: the id may have been given out long before
//! anything in the WAL has it (`txid_current()`, a write to a temporary or unlogged table).
//!
//! "Aborted" needs no such proof: had the transaction committed for good, its id would be known and never given out again.
//! And an id that the server has not given out yet is that of a transaction which it does not have. Only a server on an
//! older timeline than that of the transaction proves nothing by it: it is not the one that took over.

use crate::session::mirror::Incarnation;

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
pub fn outcome(then: &Incarnation, now: &Incarnation, word: Word) -> Outcome {
    if then.system != now.system {
        return Outcome::Unknown;
    }
    let is_same = then.timeline == now.timeline && then.checkpoint == now.checkpoint;
    match word {
        Word::Committed if is_same => Outcome::Committed,
        Word::Aborted | Word::Future if now.timeline >= then.timeline => Outcome::Aborted,
        Word::InProgress => Outcome::Open,
        Word::Committed | Word::Aborted | Word::Future | Word::None => Outcome::Unknown,
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
        assert_eq!(outcome(&then, &then, Word::Committed), Outcome::Committed);
        for now in [&crashed, &promoted] {
            assert_eq!(outcome(&then, now, Word::Committed), Outcome::Unknown);
        }
        for now in [&then, &crashed, &promoted] {
            assert_eq!(outcome(&then, now, Word::Aborted), Outcome::Aborted);
            assert_eq!(outcome(&then, now, Word::Future), Outcome::Aborted);
            assert_eq!(outcome(&then, now, Word::InProgress), Outcome::Open);
            assert_eq!(outcome(&then, now, Word::None), Outcome::Unknown);
        }
        // A primary of yesterday.
        for word in [Word::Committed, Word::Aborted, Word::Future] {
            assert_eq!(outcome(&promoted, &then, word), Outcome::Unknown);
        }
        for word in [
            Word::Committed,
            Word::Aborted,
            Word::InProgress,
            Word::Future,
            Word::None,
        ] {
            assert_eq!(outcome(&then, &other, word), Outcome::Unknown);
        }
    }
}
