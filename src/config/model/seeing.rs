//! What is counted, logged and traced of statements, and the log.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What is counted of statements and shown of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Statements with a record of their own.
    pub max_queries: usize,
    /// Statements with series of their own in `/metrics`.
    pub max_query_series: usize,
    /// How long a statement runs before it is looked at what it waits for.
    pub lock_wait_after: Option<Duration>,
}

/// Slow statements.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowLog {
    /// How long a client waits for a statement that is slow.
    pub threshold: Option<Duration>,
    /// One of so many is written; 0 for none.
    pub sample: usize,
    /// `None` is pgweir's own log.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
    /// Whether the server is asked for the plan.
    pub explain: bool,
    /// How often for one statement, at most.
    pub explain_interval: Duration,
}

/// Where statements are written that a rule asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryLog {
    /// `None` is pgweir's own log.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
}

/// What holds for statements that all of its conditions fit.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRule {
    pub queryid: Option<String>,
    /// A pattern of `LIKE` for the text without constants.
    pub query: Option<String>,
    pub user: Option<String>,
    pub database: Option<String>,
    pub application_name: Option<String>,
    /// In place of the slow log's; zero is "never".
    pub slow_threshold: Option<Duration>,
    /// In place of the slow log's.
    pub sample: Option<usize>,
    /// Each execution is written to the query log.
    pub log: bool,
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    pub endpoint: Option<HttpUrl>,
    /// One statement in so many begins a trace of its own; 0 for none.
    pub sample: usize,
    pub service_name: String,
}

/// `http://HOST:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl {
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl HttpUrl {
    /// What a request's `Host` says.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// An `EnvFilter` directive, such as `info` or `pgweir=debug`.
    pub level: String,
    pub format: LogFormat,
    pub log_connections: bool,
    pub log_disconnections: bool,
    /// A line for each error pgweir itself gives a client.
    pub log_pooler_errors: bool,
}
