//! Overload, and what single statements may do.

use std::time::Duration;

/// What holds for the servers while there is too much to do, or while they are away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload {
    /// Connections being opened to one server.
    pub opening_max: usize,
    /// Failures in a row until a server counts as unreachable.
    pub breaker_after: usize,
    /// Clients do not wait for an unreachable server.
    pub fail_fast: bool,
}

/// What holds for statements that all of its conditions fit.
#[derive(Clone, Debug, PartialEq)]
pub struct StatementRule {
    pub queryid: Option<String>,
    /// A pattern of `LIKE` for the text without constants.
    pub query: Option<String>,
    pub user: Option<String>,
    pub database: Option<String>,
    pub application_name: Option<String>,
    /// In place of `timeouts.query_timeout`; zero is no limit.
    pub query_timeout: Option<Duration>,
    /// Whether it may run again, where that is decided here.
    pub retry: Option<bool>,
}
