//! Texts that end a failed transaction and go on: `ROLLBACK; EXECUTE q`.
//!
//! What has to be sent ahead of a text the server refuses in a failed transaction. So where a text needs something of the
//! kind, its transaction is ended ahead of it: rolled back, with another one like it in its place, or back to the
//! savepoint. The text finds a transaction that has done nothing, and ends that. Not so where the server may run nothing of
//! the text: one that pgweir refuses, or does not understand.

use std::ops::Range;

use super::session::Session;
use super::sql_prepare::quoted;
use crate::error::SqlState;
use crate::net::buffer::Gather;
use crate::sql::classify::StatementKind as Kind;
use crate::sql::known::Known;
use crate::sql::lexer::{LexOptions, Lexer, TokenKind};
use crate::sql::prepared::PreparedUse;
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

/// Marks the way back to a savepoint among pgweir's own statements.
pub(super) const TO_SAVEPOINT: u64 = u64::MAX - 2;

/// There is no such savepoint.
const NO_SAVEPOINT: SqlState = SqlState(*b"3B001");

/// Whether `error` is the answer to `owed` that the client's own statement will get again.
pub(super) fn comes_again(owed: Owed, code: Option<SqlState>) -> bool {
    owed.statement == TO_SAVEPOINT && code == Some(NO_SAVEPOINT)
}

/// How to end a failed transaction as a text does that is `known` and goes on behind that.
fn ending(known: &Known) -> Option<Vec<u8>> {
    let [first, _, ..] = known.class.statements.as_slice() else {
        return None;
    };
    match &first.kind {
        Kind::Commit { .. } | Kind::Rollback { .. } | Kind::PrepareTransaction => {
            Some(b"ROLLBACK AND CHAIN".to_vec())
        }
        Kind::RollbackTo(name) => {
            Some([&b"ROLLBACK TO SAVEPOINT "[..], &quoted(name.as_bytes())].concat())
        }
        _ => None,
    }
}

/// What takes the place of what would commit, had the transaction not failed.
pub(super) fn without_commit(
    known: &Known,
    text: &[u8],
    options: LexOptions,
) -> Option<(Range<usize>, &'static [u8])> {
    let instead: &[u8] = match &known.class.statements.first()?.kind {
        Kind::Commit { chain: true } => b"ROLLBACK AND CHAIN",
        Kind::Commit { chain: false } | Kind::PrepareTransaction => b"ROLLBACK",
        _ => return None,
    };
    let mut tokens = Lexer::new(text, options).filter(|token| !token.kind.is_trivia());
    let start = tokens
        .find(|token| token.kind != TokenKind::Semicolon)?
        .start;
    let end = tokens
        .find(|token| token.kind == TokenKind::Semicolon)?
        .start;
    Some((start..end, instead))
}

impl Session {
    /// Ends the failed transaction that a text ends, if the text needs something that can't be had in it. True if the text
    /// must wait for answers.
    pub(super) fn revives(&mut self, known: &Known, text: &[u8], gather: &mut Gather) -> bool {
        let Some(ending) = ending(known).filter(|_| self.needs_success(known, text)) else {
            return false;
        };
        if !self.is_answered() {
            return self.waits(gather);
        }
        let Some(lease) = self
            .lease
            .as_mut()
            .filter(|lease| lease.status == TransactionStatus::Failed && !lease.expect.is_open())
        else {
            return false;
        };
        if !lease.expect.awaits_more() {
            return self.waits(gather);
        }
        if self.prepared.is_revived {
            // There is no such savepoint, as the text will be told.
            return false;
        }
        self.prepared.is_revived = true;
        lease.mirror.unnamed = None;
        gather.own(|out| f::put_query(out, &ending));
        self.give_up_rerun();
        self.owe(Owed {
            statement: TO_SAVEPOINT,
            ..Owed::new(Request::Query, For::Plan)
        });
        self.entry.set_running_soon();
        self.waits(gather)
    }

    fn needs_success(&self, known: &Known, text: &[u8]) -> bool {
        let is_understood = !known.class.is_unclassifiable();
        is_understood
            && (known.prepared != PreparedUse::None
                || self.may_run_by_name(text, known)
                || self.may_read_foreign(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::known::KnownStatements;

    #[test]
    fn what_would_commit_is_replaced_whole() {
        let all = KnownStatements::default();
        for (text, expected) in [
            ("COMMIT; SELECT 1", Some("ROLLBACK; SELECT 1")),
            (
                ";/* ; */END AND CHAIN /**/; SELECT 1",
                Some(";/* ; */ROLLBACK AND CHAIN; SELECT 1"),
            ),
            (
                "PREPARE TRANSACTION ';'; SELECT 1",
                Some("ROLLBACK; SELECT 1"),
            ),
            ("ROLLBACK; SELECT 1", None),
            ("SELECT 1; COMMIT", None),
        ] {
            let options = LexOptions::default();
            let known = all.lookup(text.as_bytes(), options);
            let replaced = without_commit(&known, text.as_bytes(), options);
            let replaced = replaced.map(|(range, instead)| {
                let mut text = text.to_owned();
                text.replace_range(range, str::from_utf8(instead).unwrap());
                text
            });
            assert_eq!(replaced.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn only_a_text_that_goes_on_is_of_concern() {
        let all = KnownStatements::default();
        for (text, expected) in [
            ("ROLLBACK", None),
            ("SELECT 1; ROLLBACK", None),
            ("BEGIN; SELECT 1", None),
            ("END; SELECT 1", Some("ROLLBACK AND CHAIN")),
            ("ROLLBACK TO a\"b; SELECT 1", None),
            (
                "ROLLBACK TO \"A\"\"b\"; SELECT 1",
                Some("ROLLBACK TO SAVEPOINT \"A\"\"b\""),
            ),
        ] {
            let known = all.lookup(text.as_bytes(), LexOptions::default());
            let ending = ending(&known).map(|text| String::from_utf8(text).unwrap());
            assert_eq!(ending.as_deref(), expected, "{text}");
        }
    }
}
