//! Transaction control.

use super::TransactionEffect;
use super::kind::{Isolation, StatementKind, TransactionModes};
use super::statement::Classifier;
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::TokenKind as T;

/// What a statement of this kind does to its transaction.
pub(super) fn effect(kind: &StatementKind) -> u8 {
    match kind {
        StatementKind::Begin(_) => TransactionEffect::BEGINS,
        StatementKind::Commit { chain } | StatementKind::Rollback { chain } if *chain => {
            TransactionEffect::ENDS | TransactionEffect::CHAINS
        }
        StatementKind::Commit { .. }
        | StatementKind::Rollback { .. }
        | StatementKind::PrepareTransaction => TransactionEffect::ENDS,
        StatementKind::Savepoint(_) | StatementKind::Release(_) | StatementKind::RollbackTo(_) => {
            TransactionEffect::SAVEPOINTS
        }
        _ => 0,
    }
}

impl Classifier<'_> {
    /// A statement that begins with one of the words of transaction control.
    pub(super) fn transaction(&mut self, word: K) -> StatementKind {
        self.cursor.advance();
        match word {
            K::Begin => {
                self.work();
                StatementKind::Begin(self.transaction_modes())
            }
            K::Start if self.cursor.eat(K::Transaction) => {
                StatementKind::Begin(self.transaction_modes())
            }
            K::Commit if self.prepared_transaction() => StatementKind::CommitPrepared,
            K::Commit | K::End => {
                self.work();
                StatementKind::Commit {
                    chain: self.chain(),
                }
            }
            K::Rollback if self.prepared_transaction() => StatementKind::RollbackPrepared,
            K::Rollback | K::Abort => {
                self.work();
                if self.cursor.eat(K::To) {
                    return self.savepoint(StatementKind::RollbackTo);
                }
                StatementKind::Rollback {
                    chain: self.chain(),
                }
            }
            K::Release => self.savepoint(StatementKind::Release),
            K::Savepoint => match self.cursor.eat_name() {
                Some(name) => StatementKind::Savepoint(name),
                None => self.unknown().0,
            },
            _ => self.unknown().0,
        }
    }

    fn prepared_transaction(&mut self) -> bool {
        self.cursor.next().kind.is_constant() && self.cursor.eat(K::Prepared)
    }

    fn work(&mut self) {
        if !self.cursor.eat(K::Work) {
            self.cursor.eat(K::Transaction);
        }
    }

    fn chain(&mut self) -> bool {
        self.cursor.eat_all(&[K::And, K::Chain])
    }

    /// `[SAVEPOINT] name`; a savepoint may itself be named so.
    fn savepoint(
        &mut self,
        kind: impl FnOnce(crate::sql::name::Name) -> StatementKind,
    ) -> StatementKind {
        if self.cursor.next().kind.is_name() {
            self.cursor.eat(K::Savepoint);
        }
        match self.cursor.eat_name() {
            Some(name) => kind(name),
            None => self.unknown().0,
        }
    }

    /// The modes behind `BEGIN` and `SET TRANSACTION`; the last of a kind holds, as on the server.
    pub(super) fn transaction_modes(&mut self) -> TransactionModes {
        let mut modes = TransactionModes::default();
        loop {
            let cursor = &mut self.cursor;
            if cursor.eat_all(&[K::Isolation, K::Level]) {
                modes.isolation = if cursor.eat(K::Serializable) {
                    Some(Isolation::Serializable)
                } else if cursor.eat_all(&[K::Repeatable, K::Read]) {
                    Some(Isolation::RepeatableRead)
                } else if cursor.eat_all(&[K::Read, K::Committed]) {
                    Some(Isolation::ReadCommitted)
                } else if cursor.eat_all(&[K::Read, K::Uncommitted]) {
                    Some(Isolation::ReadUncommitted)
                } else {
                    return modes;
                };
            } else if cursor.eat_all(&[K::Read, K::Only]) {
                modes.read_only = Some(true);
            } else if cursor.eat_all(&[K::Read, K::Write]) {
                modes.read_only = Some(false);
            } else if cursor.eat_all(&[K::Not, K::Deferrable]) {
                modes.deferrable = Some(false);
            } else if cursor.eat(K::Deferrable) {
                modes.deferrable = Some(true);
            } else if cursor.at(T::Comma) {
                cursor.advance();
            } else {
                return modes;
            }
        }
    }
}
