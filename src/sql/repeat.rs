//! Whether a text may be run again after the server has rolled it back.

use super::classify::{Class, Statement, StatementKind as Kind};
use super::lexer::{LexOptions, Lexer, TokenKind};
use super::state::Effect;

/// The most doubtful statement of a text counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// Proved to change nothing.
    Read,
    /// All it does is undone by a rollback.
    Write,
    /// It may do what a rollback does not undo, or leaves something in the session.
    Unrepeatable,
}

impl Doubt {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Unrepeatable];

    /// The word of the table in `docs/retries.md`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Unrepeatable => "unrepeatable",
        }
    }
}

/// How a text may end a transaction block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEnd {
    Rollback,
    Commit,
}

/// How a text of this class may end a transaction block; the worst counts.
pub fn block_end(class: &Class) -> Option<BlockEnd> {
    let end = |statement: &Statement| match statement.kind {
        Kind::Rollback { .. } => Some(BlockEnd::Rollback),
        Kind::Commit { .. } | Kind::PrepareTransaction | Kind::Unknown => Some(BlockEnd::Commit),
        _ => None,
    };
    let ends: Vec<BlockEnd> = class.statements.iter().filter_map(end).collect();
    match ends.as_slice() {
        [] => None,
        // Behind its end something may commit by itself.
        [BlockEnd::Rollback] if class.statements.len() == 1 => Some(BlockEnd::Rollback),
        _ => Some(BlockEnd::Commit),
    }
}

/// The doubt about a text of which `class` is the class.
pub fn doubt(text: &[u8], options: LexOptions, class: &Class) -> Doubt {
    let transaction = class.transaction;
    let controls = transaction.begins() || transaction.ends() || transaction.savepoints();
    if !class.pins.is_empty() || (controls && !transaction.is_alone()) {
        return Doubt::Unrepeatable;
    }
    let worst = class.statements.iter().map(of).max();
    match worst.unwrap_or(Doubt::Read) {
        Doubt::Write if class.is_proved_read() => Doubt::Read,
        // It commits in its midst, whatever the object is.
        Doubt::Write if mentions(text, options, b"concurrently") => Doubt::Unrepeatable,
        worst => worst,
    }
}

fn of(statement: &Statement) -> Doubt {
    let lasts = |effect: &Effect| {
        !matches!(
            effect,
            Effect::Setting { .. }
                | Effect::ResetSetting(_)
                | Effect::ResetAll
                | Effect::Notify
                | Effect::SequenceAdvanced
                | Effect::OpaqueCode
        )
    };
    if statement.effects.iter().any(lasts) {
        return Doubt::Unrepeatable;
    }
    of_kind(&statement.kind)
}

fn of_kind(kind: &Kind) -> Doubt {
    match kind {
        // A guard, not a branch in an arm of its own: that arm rustc 1.95 with LLVM 22 merges with the next one at
        // `opt-level` 2, and every BEGIN is unrepeatable.
        Kind::SetTransaction(modes) | Kind::SetSessionCharacteristics(modes) if modes.snapshot => {
            Doubt::Unrepeatable
        }
        Kind::SetTransaction(_)
        | Kind::SetSessionCharacteristics(_)
        | Kind::Begin(_)
        | Kind::Set
        | Kind::SetLocal
        | Kind::Reset
        | Kind::Show(_) => Doubt::Read,
        Kind::Select
        | Kind::Values
        | Kind::Table
        | Kind::Insert
        | Kind::Update
        | Kind::Delete
        | Kind::Merge
        | Kind::Commit { .. }
        | Kind::Rollback { .. }
        | Kind::Savepoint(_)
        | Kind::Release(_)
        | Kind::RollbackTo(_)
        | Kind::SetConstraints
        | Kind::Notify
        | Kind::Lock
        | Kind::Analyze
        | Kind::Truncate
        | Kind::Grant
        | Kind::Revoke
        | Kind::Comment
        | Kind::Import
        | Kind::SecurityLabel
        | Kind::Refresh
        | Kind::Reassign => Doubt::Write,
        Kind::Explain { inner, .. } => of_kind(inner).max(Doubt::Write),
        Kind::Ddl { object, temp, .. } => match *object {
            "database" | "tablespace" | "subscription" | "system" => Doubt::Unrepeatable,
            _ if *temp => Doubt::Unrepeatable,
            _ => Doubt::Write,
        },
        Kind::PrepareTransaction
        | Kind::CommitPrepared
        | Kind::RollbackPrepared
        | Kind::Discard(_)
        | Kind::Prepare
        | Kind::Execute
        | Kind::Deallocate
        | Kind::Listen
        | Kind::Unlisten
        | Kind::Copy { .. }
        | Kind::Do
        | Kind::Call
        | Kind::Declare { .. }
        | Kind::Fetch
        | Kind::Move
        | Kind::Close
        | Kind::Load
        | Kind::Vacuum
        | Kind::Cluster
        | Kind::Reindex
        | Kind::Checkpoint
        | Kind::Unknown => Doubt::Unrepeatable,
    }
}

fn mentions(text: &[u8], options: LexOptions, word: &[u8]) -> bool {
    Lexer::new(text, options).any(|token| {
        token.kind == TokenKind::Ident && text[token.range()].eq_ignore_ascii_case(word)
    })
}

#[cfg(test)]
mod tests {
    use super::super::classify::classify;
    use super::*;

    #[test]
    fn what_may_commit_is_told_from_a_rollback() {
        let of = |text: &str| block_end(&classify(text.as_bytes(), LexOptions::default()));
        for text in ["SELECT 1", "BEGIN", "SAVEPOINT a", "ROLLBACK TO a", ""] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(of("ROLLBACK"), Some(BlockEnd::Rollback));
        assert_eq!(of("ABORT"), Some(BlockEnd::Rollback));
        for text in [
            "COMMIT",
            "END",
            "COMMIT AND CHAIN",
            "ROLLBACK; SELECT f()",
            "BLAH",
            "PREPARE TRANSACTION 'x'",
        ] {
            assert_eq!(of(text), Some(BlockEnd::Commit), "{text}");
        }
    }

    #[test]
    fn what_commits_in_its_midst_or_stays_in_the_session_is_unrepeatable() {
        let of = |text: &str| {
            let options = LexOptions::default();
            let class = classify(text.as_bytes(), options);
            doubt(text.as_bytes(), options, &class)
        };
        for read in [
            "SELECT a FROM t",
            "",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "SET work_mem = '1MB'",
            "SELECT now()",
        ] {
            assert_eq!(of(read), Doubt::Read, "{read}");
        }
        for write in [
            "UPDATE t SET a = 1",
            "SELECT a FROM t FOR UPDATE",
            "INSERT INTO t VALUES (1); UPDATE t SET a = 2",
            "SELECT transfer(1, 2)",
            "COMMIT",
            "CREATE TABLE t (a int)",
            "CREATE INDEX i ON t (a)",
            "NOTIFY c",
            "SELECT nextval('s')",
            "SAVEPOINT a",
        ] {
            assert_eq!(of(write), Doubt::Write, "{write}");
        }
        for never in [
            "CALL p()",
            "DO $$ BEGIN COMMIT; END $$",
            "INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2)",
            "BEGIN; INSERT INTO t VALUES (1)",
            "CREATE INDEX CONCURRENTLY i ON t (a)",
            "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
            "CREATE TEMP TABLE x (a int)",
            "CREATE DATABASE d",
            "VACUUM t",
            "COPY t FROM STDIN",
            "DECLARE c CURSOR FOR SELECT 1",
            "LISTEN c",
            "SELECT pg_advisory_lock(1)",
            "SELECT dblink_exec('c', 'INSERT INTO t VALUES (1)')",
            "PREPARE TRANSACTION 'x'",
            "EXPLAIN ANALYZE CALL p()",
            "SET TRANSACTION SNAPSHOT '1'",
            "SELECT lo_open(1, 262144)",
            "BLAH",
        ] {
            assert_eq!(of(never), Doubt::Unrepeatable, "{never}");
        }
    }
}
