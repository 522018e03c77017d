//! What may be told to a client, and how: SQLSTATE, severity, message, DETAIL and HINT.
//!
//! Every error type of this crate that can reach a client implements [`UserFacing`] with an exhaustive `match` beside
//! its definition, so that this module imports nobody and a new variant does not compile until it is mapped.
//! Messages follow PostgreSQL's style: lower case, no full stop, no secrets; DETAIL for facts, HINT for the remedy.

use std::borrow::Cow;

/// A five-character SQLSTATE (PostgreSQL documentation, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    pub const SUCCESSFUL_COMPLETION: Self = Self(*b"00000");
    pub const CONNECTION_DOES_NOT_EXIST: Self = Self(*b"08003");
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    pub const SQLSERVER_REJECTED: Self = Self(*b"08004");
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self(*b"08007");
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    pub const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    pub const ACTIVE_SQL_TRANSACTION: Self = Self(*b"25001");
    pub const READ_ONLY_SQL_TRANSACTION: Self = Self(*b"25006");
    pub const IN_FAILED_SQL_TRANSACTION: Self = Self(*b"25P02");
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self(*b"25P03");
    pub const TRANSACTION_TIMEOUT: Self = Self(*b"25P04");
    pub const INVALID_SQL_STATEMENT_NAME: Self = Self(*b"26000");
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    pub const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    pub const STATEMENT_COMPLETION_UNKNOWN: Self = Self(*b"40003");
    pub const DEADLOCK_DETECTED: Self = Self(*b"40P01");
    pub const DUPLICATE_PREPARED_STATEMENT: Self = Self(*b"42P05");
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    pub const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// The code as text; a code that came from a server and is not ASCII is shown as `XX000`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

/// How bad it is. `Fatal` only if the connection is closed afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
    Warning,
    Notice,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
        }
    }
}

/// Whose fault it was: the label of the error counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The client broke the protocol or asked for what it may not have.
    Client,
    /// The server or the way to it failed.
    Server,
    /// A limit or timeout of pgweir's configuration was reached.
    Limit,
    /// An operator's doing: shutdown, `KILL`, `PAUSE`.
    Operator,
    /// pgweir's own failure.
    Internal,
}

impl ErrorKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Limit => "limit",
            Self::Operator => "operator",
            Self::Internal => "internal",
        }
    }
}

/// An error, warning or notice as a client is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub severity: Severity,
    pub code: SqlState,
    pub message: Cow<'static, str>,
    pub detail: Option<Cow<'static, str>>,
    pub hint: Option<Cow<'static, str>>,
}

impl Report {
    pub fn new(severity: Severity, code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity,
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub fn error(code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    pub fn fatal(code: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// An error that has a wording for clients. Implementing it is the allow-list: nothing else reaches a client.
pub trait UserFacing: std::error::Error {
    /// What the client is told.
    fn report(&self) -> Report;
    /// Whose fault it was.
    fn kind(&self) -> ErrorKind;
}
