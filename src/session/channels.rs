//! The channels a session listens on, and what its open transaction has done to them.
//!
//! `LISTEN` and `UNLISTEN` take effect when their transaction commits, in the order in which they ran; what is rolled
//! back, by a savepoint or as a whole, never happened. [`Channels`] is told which statements the server has completed,
//! in their order, and how each exchange ended.
//!
//! # Why savepoints are only noted behind a LISTEN or UNLISTEN
//! One set before has nothing of the kind inside that going back to it would keep: an unknown savepoint is older than all
//! that is noted, so `ROLLBACK TO` it undoes everything, and `RELEASE` of it forgets every savepoint that is noted.
//!
//! Bound: [`CHANNELS_MAX`] channels and [`PENDING_MAX`] statements of one transaction.

use std::collections::BTreeSet;

use crate::sql::classify::{DiscardTarget, Statement, StatementKind};
use crate::sql::name::Name;
use crate::sql::state::Effect;
use crate::wire::backend::TransactionStatus;

/// Channels that one session may have carried for it; with more, it keeps its server connection.
pub const CHANNELS_MAX: usize = 1000;

/// Statements noted of one transaction; a session that runs more is ended. Each statement of a session that listens looks
/// through all of them.
pub const PENDING_MAX: usize = 5_000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Listen {
        name: Name,
        /// The shared listener is to hear it, not the session's own backend.
        carried: bool,
    },
    Unlisten(Name),
    UnlistenAll,
    /// So many of one name, with nothing between them: drivers set one before each statement.
    Savepoint(Name, usize),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    committed: BTreeSet<Name>,
    /// Of the open transaction, oldest first.
    pending: Vec<Step>,
    /// The server has reported an error since it last said that it is ready.
    failed: bool,
}

/// What the end of a transaction has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of it was undone.
    Committed,
    RolledBack,
}

impl Channels {
    /// What the session listens on.
    pub fn committed(&self) -> &BTreeSet<Name> {
        &self.committed
    }

    /// Whether the session listens on `channel`, given as the server names it.
    pub fn listens_on(&self, channel: &[u8]) -> bool {
        self.committed.iter().any(|name| name.as_bytes() == channel)
    }

    /// Whether the open transaction has listened or unlistened.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether the open transaction has noted more than may be.
    pub fn is_overfull(&self) -> bool {
        self.pending.len() > PENDING_MAX
    }

    /// Nothing is listened on, and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.pending.is_empty()
    }

    /// What the session listens on if everything noted commits.
    pub fn prospective(&self) -> BTreeSet<Name> {
        let mut next = self.committed.clone();
        apply(&mut next, &self.pending);
        next
    }

    /// What the open transaction has listened on to be carried, once each.
    pub fn heard_of(&self) -> BTreeSet<Name> {
        let listens = self.pending.iter().filter_map(|step| match step {
            Step::Listen {
                name,
                carried: true,
            } => Some(name.clone()),
            _ => None,
        });
        listens.collect()
    }

    /// The server has completed `statement`, which is `carried` or not, with this tag (without its NUL). Tells whether its
    /// transaction is over.
    pub fn complete(
        &mut self,
        statement: &Statement,
        carried: bool,
        tag: &[u8],
    ) -> Option<Outcome> {
        match &statement.kind {
            StatementKind::Commit { .. } | StatementKind::Rollback { .. } => {
                let outcome = if tag == b"COMMIT" {
                    Outcome::Committed
                } else {
                    Outcome::RolledBack
                };
                self.end(outcome);
                return Some(outcome);
            }
            StatementKind::Discard(DiscardTarget::All) => {
                self.forget_all();
                return Some(Outcome::Committed);
            }
            StatementKind::Savepoint(name) if self.is_pending() => match self.pending.last_mut() {
                Some(Step::Savepoint(last, count)) if last == name => *count += 1,
                _ => self.pending.push(Step::Savepoint(name.clone(), 1)),
            },
            StatementKind::RollbackTo(name) => match self.savepoint(name) {
                Some(at) => self.pending.truncate(at + 1),
                None => self.pending.clear(),
            },
            StatementKind::Release(name) => self.release(name),
            _ => {}
        }
        for effect in &statement.effects {
            match effect {
                Effect::Listen(name) => self.pending.push(Step::Listen {
                    name: name.clone(),
                    carried,
                }),
                Effect::Unlisten(Some(name)) => self.pending.push(Step::Unlisten(name.clone())),
                Effect::Unlisten(None) => self.pending.push(Step::UnlistenAll),
                _ => {}
            }
        }
        None
    }

    /// Forgets the innermost savepoint of that name, and those set since.
    fn release(&mut self, name: &Name) {
        let released = self.savepoint(name);
        let mut at = 0;
        self.pending.retain_mut(|step| {
            at += 1;
            match step {
                Step::Savepoint(_, count) if released == Some(at - 1) => {
                    *count -= 1;
                    *count > 0
                }
                Step::Savepoint(..) => released.is_some_and(|released| at <= released),
                _ => true,
            }
        });
    }

    /// The innermost savepoint of that name.
    fn savepoint(&self, name: &Name) -> Option<usize> {
        self.pending
            .iter()
            .rposition(|step| matches!(step, Step::Savepoint(other, _) if other == name))
    }

    /// The server has reported an error.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// What was under way runs again: what it has done is undone, and its errors are nobody's.
    pub fn take_back(&mut self) {
        self.pending.clear();
        self.failed = false;
    }

    /// The server is ready. A transaction that nobody began has ended with the exchange.
    pub fn ready(&mut self, status: TransactionStatus) -> Option<Outcome> {
        let failed = std::mem::take(&mut self.failed);
        if status != TransactionStatus::Idle || self.pending.is_empty() {
            return None;
        }
        let outcome = if failed {
            Outcome::RolledBack
        } else {
            Outcome::Committed
        };
        self.end(outcome);
        Some(outcome)
    }

    fn end(&mut self, outcome: Outcome) {
        let pending = std::mem::take(&mut self.pending);
        if outcome == Outcome::Committed {
            apply(&mut self.committed, &pending);
        }
    }

    /// The session listens on nothing any more (`DISCARD ALL`).
    pub fn forget_all(&mut self) {
        self.committed.clear();
        self.pending.clear();
    }

    /// What is listened on elsewhere is none of the channels carried.
    pub fn keep_only(&mut self, kept: &BTreeSet<Name>) {
        self.committed.retain(|name| kept.contains(name));
    }
}

/// Appends `LISTEN` or `UNLISTEN` of one channel, with a semicolon.
pub fn put_statement(out: &mut Vec<u8>, verb: &[u8], channel: &[u8]) {
    out.extend_from_slice(verb);
    out.extend_from_slice(b" \"");
    for &byte in channel {
        if byte == b'"' {
            out.push(byte);
        }
        out.push(byte);
    }
    out.extend_from_slice(b"\";");
}

fn apply(channels: &mut BTreeSet<Name>, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Listen { name, .. } => {
                channels.insert(name.clone());
            }
            Step::Unlisten(name) => {
                channels.remove(name);
            }
            Step::UnlistenAll => channels.clear(),
            Step::Savepoint(..) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::LexOptions;
    use crate::sql::classify::classify;
    use proptest::prelude::*;

    /// Runs each statement as a simple query of its own that succeeds, in a transaction.
    fn run(channels: &mut Channels, sql: &str) {
        for statement in classify(sql.as_bytes(), LexOptions::default()).statements {
            let tag: &[u8] = match &statement.kind {
                StatementKind::Commit { .. } => b"COMMIT",
                StatementKind::Rollback { .. } | StatementKind::RollbackTo(_) => b"ROLLBACK",
                _ => b"",
            };
            channels.complete(&statement, true, tag);
        }
    }

    fn listens(channels: &Channels) -> String {
        let names: Vec<String> = channels.committed().iter().map(Name::to_string).collect();
        names.join(",")
    }

    #[track_caller]
    fn leaves(sql: &str, expected: &str) {
        let mut channels = Channels::default();
        run(&mut channels, sql);
        assert_eq!(listens(&channels), expected, "{sql}");
        assert!(!channels.is_pending(), "{sql}");
    }

    #[test]
    fn what_a_savepoint_undoes_never_happened() {
        leaves("LISTEN a; COMMIT", "a");
        leaves("LISTEN a; ROLLBACK", "");
        leaves("SAVEPOINT s; LISTEN a; ROLLBACK TO s; COMMIT", "");
        leaves(
            "LISTEN a; SAVEPOINT s; LISTEN b; ROLLBACK TO s; COMMIT",
            "a",
        );
        leaves(
            "LISTEN a; SAVEPOINT s; LISTEN b; RELEASE s; ROLLBACK; LISTEN c; COMMIT",
            "c",
        );
        leaves(
            "LISTEN a; SAVEPOINT s; LISTEN b; SAVEPOINT s; LISTEN c; ROLLBACK TO s; RELEASE s; ROLLBACK TO s; COMMIT",
            "a",
        );
        leaves("LISTEN a; LISTEN b; UNLISTEN a; COMMIT", "b");
        leaves("LISTEN a; COMMIT; UNLISTEN *; LISTEN b; COMMIT", "b");
        leaves(
            "LISTEN a; COMMIT; SAVEPOINT s; UNLISTEN a; ROLLBACK TO s; COMMIT",
            "a",
        );
    }

    #[test]
    fn a_transaction_that_failed_leaves_nothing() {
        let mut channels = Channels::default();
        let class = classify(b"LISTEN a", LexOptions::default());
        channels.complete(&class.statements[0], true, b"LISTEN");
        channels.fail();
        assert_eq!(
            channels.ready(TransactionStatus::Idle),
            Some(Outcome::RolledBack)
        );
        assert!(channels.is_empty());
        // In a block the error leaves it to the ROLLBACK.
        channels.complete(&class.statements[0], true, b"LISTEN");
        channels.fail();
        assert_eq!(channels.ready(TransactionStatus::Failed), None);
        assert!(channels.is_pending());
        let commit = classify(b"COMMIT", LexOptions::default());
        let outcome = channels.complete(&commit.statements[0], true, b"ROLLBACK");
        assert_eq!(outcome, Some(Outcome::RolledBack));
        assert!(channels.is_empty());
    }

    #[test]
    fn what_is_not_carried_is_listened_on_and_not_subscribed_to() {
        let mut channels = Channels::default();
        let class = classify(b"LISTEN own", LexOptions::default());
        channels.complete(&class.statements[0], false, b"LISTEN");
        run(&mut channels, "LISTEN a");
        assert_eq!(channels.heard_of(), BTreeSet::from([Name::from("a")]));
        run(&mut channels, "COMMIT");
        assert_eq!(listens(&channels), "a,own");
    }

    #[test]
    fn a_savepoint_before_each_statement_takes_no_room() {
        let mut channels = Channels::default();
        run(&mut channels, "LISTEN a");
        for _ in 0..2 * PENDING_MAX {
            run(&mut channels, "SAVEPOINT s");
        }
        run(&mut channels, "LISTEN b; RELEASE s; ROLLBACK TO s");
        assert_eq!(channels.pending.len(), 2);
        run(&mut channels, "LISTEN c; COMMIT");
        assert_eq!(listens(&channels), "a,c");
    }

    #[test]
    fn what_runs_again_has_not_run() {
        let mut channels = Channels::default();
        run(&mut channels, "LISTEN a; COMMIT; LISTEN b; UNLISTEN a");
        channels.fail();
        channels.take_back();
        assert!(!channels.is_pending());
        run(&mut channels, "LISTEN c");
        assert_eq!(
            channels.ready(TransactionStatus::Idle),
            Some(Outcome::Committed)
        );
        assert_eq!(listens(&channels), "a,c");
    }

    /// A transaction as a stack of whole copies, which is what savepoints mean.
    #[derive(Default)]
    struct Copies {
        now: BTreeSet<Name>,
        begun: BTreeSet<Name>,
        saved: Vec<(String, BTreeSet<Name>)>,
    }

    impl Copies {
        fn run(&mut self, verb: u8, name: &str) -> String {
            let at = self.saved.iter().rposition(|(saved, _)| saved == name);
            match (verb, at) {
                (0..=2, _) => {
                    self.now.insert(Name::from(name));
                    format!("LISTEN {name}")
                }
                (3, _) => {
                    self.now.remove(&Name::from(name));
                    format!("UNLISTEN {name}")
                }
                (4, _) => {
                    self.now.clear();
                    "UNLISTEN *".to_owned()
                }
                (5 | 6, _) => {
                    self.saved.push((name.to_owned(), self.now.clone()));
                    format!("SAVEPOINT {name}")
                }
                (7, Some(at)) => {
                    self.saved.truncate(at + 1);
                    self.now = self.saved[at].1.clone();
                    format!("ROLLBACK TO {name}")
                }
                (8, Some(at)) => {
                    self.saved.truncate(at);
                    format!("RELEASE {name}")
                }
                (9, _) => {
                    self.saved.clear();
                    self.begun = self.now.clone();
                    "COMMIT".to_owned()
                }
                (10, _) => {
                    self.saved.clear();
                    self.now = self.begun.clone();
                    "ROLLBACK".to_owned()
                }
                _ => "SELECT 1".to_owned(),
            }
        }
    }

    proptest! {
        #[test]
        fn any_order_of_statements_leaves_what_whole_copies_leave(
            steps in proptest::collection::vec((0u8..11, 0usize..3), 0..60)
        ) {
            let (mut channels, mut copies) = (Channels::default(), Copies::default());
            for (verb, name) in steps {
                let sql = copies.run(verb, ["a", "b", "c"][name]);
                run(&mut channels, &sql);
                prop_assert_eq!(&channels.prospective(), &copies.now, "after {}", sql);
                prop_assert_eq!(channels.committed(), &copies.begun, "after {}", sql);
            }
        }
    }
}
