//! The kinds of statement there are, as far as anyone here tells them apart.

use std::fmt;

use crate::sql::name::Name;

/// What a statement is. A query with a WITH is what its main verb says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatementKind {
    Select,
    Values,
    Table,
    Insert,
    Update,
    Delete,
    Merge,
    /// `BEGIN`, `START TRANSACTION`
    Begin(TransactionModes),
    /// `COMMIT`, `END`
    Commit {
        chain: bool,
    },
    /// `ROLLBACK`, `ABORT`
    Rollback {
        chain: bool,
    },
    Savepoint(Name),
    Release(Name),
    RollbackTo(Name),
    PrepareTransaction,
    CommitPrepared,
    RollbackPrepared,
    SetTransaction(TransactionModes),
    SetConstraints,
    SetSessionCharacteristics(TransactionModes),
    Set,
    SetLocal,
    Reset,
    Show(Name),
    Discard(DiscardTarget),
    Prepare,
    Execute,
    Deallocate,
    Listen,
    Unlisten,
    Notify,
    Copy {
        direction: CopyDirection,
        peer: CopyPeer,
    },
    Explain {
        /// The statement is executed.
        analyze: bool,
        inner: Box<StatementKind>,
    },
    Do,
    Call,
    Lock,
    Declare {
        hold: bool,
    },
    Fetch,
    Move,
    Close,
    Load,
    Vacuum,
    Analyze,
    Cluster,
    Reindex,
    Checkpoint,
    Ddl {
        verb: DdlVerb,
        /// What is created, altered or dropped, in lower case: `table`, `materialized view`, `database`.
        object: &'static str,
        /// A temporary object.
        temp: bool,
    },
    Truncate,
    Grant,
    Revoke,
    Comment,
    /// `IMPORT FOREIGN SCHEMA`
    Import,
    SecurityLabel,
    /// `REFRESH MATERIALIZED VIEW`
    Refresh,
    /// `REASSIGN OWNED`
    Reassign,
    Unknown,
}

impl StatementKind {
    /// Statements that only control the transaction.
    pub fn is_transaction_control(&self) -> bool {
        matches!(
            self,
            Self::Begin(_)
                | Self::Commit { .. }
                | Self::Rollback { .. }
                | Self::Savepoint(_)
                | Self::Release(_)
                | Self::RollbackTo(_)
                | Self::PrepareTransaction
                | Self::CommitPrepared
                | Self::RollbackPrepared
        )
    }
}

/// Modes named in `BEGIN`, `SET TRANSACTION` or `SET SESSION CHARACTERISTICS`; `None` where not named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionModes {
    pub read_only: Option<bool>,
    pub isolation: Option<Isolation>,
    pub deferrable: Option<bool>,
    /// `SET TRANSACTION SNAPSHOT`: an exported snapshot is known to one server only.
    pub snapshot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardTarget {
    All,
    Plans,
    Sequences,
    Temp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// Into the table.
    From,
    /// Out of the table or query.
    To,
}

/// The other end of a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyPeer {
    /// `STDIN`, `STDOUT`: the client.
    Client,
    /// A file of the server's.
    File,
    Program,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DdlVerb {
    Create,
    Alter,
    Drop,
}

impl fmt::Display for StatementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Begin(modes) => return write!(f, "begin{modes}"),
            Self::SetTransaction(modes) => return write!(f, "set transaction{modes}"),
            Self::SetSessionCharacteristics(modes) => {
                return write!(f, "set session characteristics{modes}");
            }
            Self::Savepoint(name) => return write!(f, "savepoint {name}"),
            Self::Release(name) => return write!(f, "release {name}"),
            Self::RollbackTo(name) => return write!(f, "rollback to {name}"),
            Self::Show(name) => return write!(f, "show {name}"),
            Self::Copy { direction, peer } => return write!(f, "copy {direction:?} {peer:?}"),
            Self::Explain { analyze, inner } => {
                let analyze = if *analyze { " analyze" } else { "" };
                return write!(f, "explain{analyze} {inner}");
            }
            Self::Ddl { verb, object, temp } => {
                let temp = if *temp { " temp" } else { "" };
                return write!(f, "{verb:?}{temp} {object}");
            }
            other => other.word(),
        };
        f.write_str(word)
    }
}

impl StatementKind {
    /// The kind in a word or two, without its particulars.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Values => "values",
            Self::Table => "table",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Merge => "merge",
            Self::Begin(_) => "begin",
            Self::Commit { chain: false } => "commit",
            Self::Commit { chain: true } => "commit and chain",
            Self::Rollback { chain: false } => "rollback",
            Self::Rollback { chain: true } => "rollback and chain",
            Self::Savepoint(_) => "savepoint",
            Self::Release(_) => "release",
            Self::RollbackTo(_) => "rollback to",
            Self::PrepareTransaction => "prepare transaction",
            Self::CommitPrepared => "commit prepared",
            Self::RollbackPrepared => "rollback prepared",
            Self::SetTransaction(_) => "set transaction",
            Self::SetConstraints => "set constraints",
            Self::SetSessionCharacteristics(_) => "set session characteristics",
            Self::Set => "set",
            Self::SetLocal => "set local",
            Self::Reset => "reset",
            Self::Show(_) => "show",
            Self::Discard(DiscardTarget::All) => "discard all",
            Self::Discard(DiscardTarget::Plans) => "discard plans",
            Self::Discard(DiscardTarget::Sequences) => "discard sequences",
            Self::Discard(DiscardTarget::Temp) => "discard temp",
            Self::Prepare => "prepare",
            Self::Execute => "execute",
            Self::Deallocate => "deallocate",
            Self::Listen => "listen",
            Self::Unlisten => "unlisten",
            Self::Notify => "notify",
            Self::Copy { .. } => "copy",
            Self::Explain { .. } => "explain",
            Self::Do => "do",
            Self::Call => "call",
            Self::Lock => "lock",
            Self::Declare { hold: false } => "declare",
            Self::Declare { hold: true } => "declare with hold",
            Self::Fetch => "fetch",
            Self::Move => "move",
            Self::Close => "close",
            Self::Load => "load",
            Self::Vacuum => "vacuum",
            Self::Analyze => "analyze",
            Self::Cluster => "cluster",
            Self::Reindex => "reindex",
            Self::Checkpoint => "checkpoint",
            Self::Ddl { .. } => "ddl",
            Self::Truncate => "truncate",
            Self::Grant => "grant",
            Self::Revoke => "revoke",
            Self::Comment => "comment",
            Self::Import => "import",
            Self::SecurityLabel => "security label",
            Self::Refresh => "refresh",
            Self::Reassign => "reassign",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for TransactionModes {
    /// The modes named, each with a blank before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(isolation) = self.isolation {
            write!(f, " {isolation:?}")?;
        }
        if let Some(read_only) = self.read_only {
            f.write_str(if read_only {
                " read only"
            } else {
                " read write"
            })?;
        }
        if let Some(deferrable) = self.deferrable {
            f.write_str(if deferrable {
                " deferrable"
            } else {
                " not deferrable"
            })?;
        }
        if self.snapshot {
            f.write_str(" snapshot")?;
        }
        Ok(())
    }
}
