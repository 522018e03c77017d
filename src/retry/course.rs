//! Whether a transaction that runs again is answered as it was: the part of a replay that needs no I/O.
//!
//! # Invariants
//! - An exchange counts as answered as before only at its end, by the number of bytes and the hash up to there.
//! - Nothing behind an answer that differs is looked at.

use super::journal::{Answers, Journal};

/// The answers that a client has seen of a transaction: at the end of each exchange, and in all. At most
/// `retry.journal_statements` ends of 40 bytes.
#[derive(Debug)]
pub struct Course {
    ends: Vec<Answers>,
    seen: Answers,
}

/// What a comparison has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The same so far; there is more to come.
    On,
    /// All that was seen has been answered again; what is behind this many bytes is new.
    There(usize),
    Differs,
}

impl Course {
    pub fn of(journal: &Journal) -> Self {
        Self {
            ends: journal.ends().to_vec(),
            seen: journal.answers(),
        }
    }

    /// Compares `new` answers, in which exchanges end at `ends`, with those that were seen; `journal` is that of the new
    /// run, and takes up what is the same.
    pub fn compare(&self, journal: &mut Journal, new: &[u8], ends: &[usize]) -> Step {
        let mut at = 0;
        let mut ends = ends.iter();
        let under_way = loop {
            let Some(expected) = self.ends.get(journal.ends().len()) else {
                break self.seen;
            };
            let Some(&end) = ends.next() else {
                break *expected;
            };
            journal.record(&new[at..end]);
            at = end;
            if journal.answers() != *expected {
                return Step::Differs;
            }
            journal.end_seen();
            if self.is_all(journal) {
                return Step::There(at);
            }
        };
        let due = under_way.bytes.saturating_sub(journal.seen());
        let due = usize::try_from(due).unwrap_or(usize::MAX);
        let rest = &new[at..];
        let until = at + due.min(rest.len());
        journal.record(&new[at..until]);
        if ends.next().is_some_and(|end| *end <= until) {
            // An end that was not seen.
            return Step::Differs;
        }
        if rest.len() < due {
            return Step::On;
        }
        if self.is_all(journal) {
            return Step::There(until);
        }
        // All that was seen of this exchange is there, and it is not at its end, or it is something else.
        Step::Differs
    }

    fn is_all(&self, journal: &Journal) -> bool {
        journal.ends().len() == self.ends.len() && journal.answers() == self.seen
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The journal of exchanges that were answered so, and of an answer that was seen in part.
    fn journal(answers: &[Vec<u8>], part: &[u8]) -> Journal {
        let mut journal = Journal::default();
        for answer in answers {
            journal.record(answer);
            journal.end_seen();
        }
        journal.record(part);
        journal
    }

    /// Feeds `all`, in which exchanges end at `ends`, in pieces of `size` bytes; where it was there, or that it differs.
    fn feed(course: &Course, all: &[u8], ends: &[usize], size: usize) -> Result<usize, bool> {
        let mut again = Journal::default();
        let mut from = 0;
        for piece in all.chunks(size) {
            let until = from + piece.len();
            let inside: Vec<usize> = ends
                .iter()
                .filter(|end| (from + 1..=until).contains(end))
                .map(|end| end - from)
                .collect();
            match course.compare(&mut again, piece, &inside) {
                Step::On => {}
                Step::There(at) => return Ok(from + at),
                Step::Differs => return Err(true),
            }
            from = until;
        }
        Err(false)
    }

    fn ends_of(answers: &[Vec<u8>]) -> Vec<usize> {
        let lengths = answers.iter().map(Vec::len);
        lengths
            .scan(0, |sum, length| {
                *sum += length;
                Some(*sum)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn the_same_answers_are_there_where_the_client_was(
            answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..9), 1..6),
            part in prop::collection::vec(any::<u8>(), 0..5),
            size in 1..40_usize,
        ) {
            let course = Course::of(&journal(&answers, &part));
            let seen = [answers.concat(), part].concat();
            // What was seen in part goes on, and ends behind.
            let all = [seen.clone(), b"new".to_vec()].concat();
            prop_assert_eq!(feed(&course, &all, &ends_of(&answers), size), Ok(seen.len()));
        }

        #[test]
        fn an_answer_that_differs_is_found_by_its_end(
            answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..9), 1..6),
            part in prop::collection::vec(any::<u8>(), 0..5),
            size in 1..40_usize,
            which in any::<prop::sample::Index>(),
            (cuts, grows) in (any::<bool>(), any::<bool>()),
        ) {
            let course = Course::of(&journal(&answers, &part));
            let which = which.index(answers.len());
            let mut others = answers.clone();
            match (cuts, grows) {
                (true, _) if others[which].len() > 1 => drop(others[which].pop()),
                (_, true) => others[which].push(7),
                _ => others[which][0] ^= 1,
            }
            // Nothing is sent behind the exchange that differs.
            others.truncate(which + 1);
            let found = feed(&course, &others.concat(), &ends_of(&others), size);
            prop_assert_eq!(found, Err(true));
        }

        #[test]
        fn an_answer_that_ends_before_what_was_seen_of_it_differs(
            answer in prop::collection::vec(any::<u8>(), 1..9),
            part in prop::collection::vec(any::<u8>(), 1..9),
            cut in any::<prop::sample::Index>(),
            size in 1..40_usize,
        ) {
            let course = Course::of(&journal(std::slice::from_ref(&answer), &part));
            let short = 1 + cut.index(part.len());
            let all = [answer.clone(), part[..short].to_vec()].concat();
            let ends = [answer.len(), all.len()];
            prop_assert_eq!(feed(&course, &all, &ends, size), Err(true));
        }
    }
}
