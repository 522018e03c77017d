//! The keys about what is counted, logged and traced. The table of `raw` goes on here.

use std::path::PathBuf;
use std::time::Duration;

use super::decode::{Reader, Setting, Value};
use super::document::Table;
use super::model::{HttpUrl, LogFormat};
use super::raw::{Effect, Key, SectionDocs, limit, tables};
use super::types::Limit;

tables! {
    /// What is counted of statements and shown of it.
    Metrics = "metrics" {
        /// Statements with a record of their own; those with the least time are counted as `other`.
        max_queries: usize = 1000, Live;
        /// Statements with series of their own in `/metrics`, at most; 0 for none. The rest is exported as `other`.
        max_query_series: usize = 100, Live;
        /// A statement that runs this long is looked at from a side connection: what it waits for (`SHOW WAITS`) and who
        /// stands in its way (`SHOW LOCKS`); `"0"` for none.
        lock_wait_after: Limit = limit(1), Live;
    }

    /// Slow statements.
    SlowLog = "slow_log" {
        /// A statement is slow if its client waits this long for it, the wait for a server connection included; `"0"`
        /// for none. `SHOW SLOW` has the latest 256.
        threshold: Limit = limit(1), Live;
        /// One in so many slow executions of a statement is written to the log; 0 writes none.
        sample: usize = 1, Live;
        /// File that slow statements are appended to; default: the log. It may be moved away or cut off at any time.
        file: Option<PathBuf> = None, Live;
        /// How lines of `file` are written: `text`, or one JSON object a line.
        format: LogFormat = LogFormat::Text, Live;
        /// Whether the server is asked for the plan of slow statements: `EXPLAIN` without `ANALYZE`, on a side
        /// connection, for parameters of any value.
        explain: bool = false, Live;
        /// How often a statement's plan is asked for, at most.
        explain_interval: Duration = Duration::from_secs(600), Live;
    }

    /// Statements that a rule asks to be written down, each execution: who, when, what, how many rows, how long.
    QueryLog = "query_log" {
        /// File that they are appended to; default: the log. It may be moved away or cut off at any time.
        file: Option<PathBuf> = None, Live;
        /// How lines of `file` are written: `text`, or one JSON object a line.
        format: LogFormat = LogFormat::Json, Live;
    }

    /// What holds for statements that fit all that is given of `queryid`, `query`, `user`, `database` and
    /// `application_name`. Rules are asked in the order of their names; there may be 32.
    LogRule = "log_rules.NAME" {
        /// The number that `SHOW QUERIES` gives a statement.
        queryid: Option<String> = None, Live;
        /// A pattern of `LIKE`, in any case, for the text that `SHOW QUERIES` shows.
        query: Option<String> = None, Live;
        /// User of the client.
        user: Option<String> = None, Live;
        /// Database as the client names it.
        database: Option<String> = None, Live;
        /// What the client calls itself.
        application_name: Option<String> = None, Live;
        /// As in `[slow_log]`; the first rule that has one decides. `"0"` for never.
        slow_threshold: Option<Duration> = None, Live;
        /// As in `[slow_log]`.
        sample: Option<usize> = None, Live;
        /// Whether each execution is written to the query log.
        log: bool = false, Live;
    }

    /// Traces for OpenTelemetry. A statement that carries a sqlcommenter `traceparent` continues its caller's trace.
    Traces = "traces" {
        /// Where they are sent, as OTLP in JSON over HTTP: `http://HOST:4318/v1/traces`. Without it there are none.
        endpoint: Option<HttpUrl> = None, Live;
        /// One in so many statements without `traceparent` begins a trace of its own; 0 for none.
        sample: usize = 0, Live;
        /// What pgweir calls itself in them.
        service_name: String = "pgweir".to_owned(), Live;
    }

    /// The log, written to standard error.
    Log = "log" {
        /// `error`, `warn`, `info`, `debug`, `trace`, or a directive such as `pgweir::pool=debug,info`.
        level: String = "info".to_owned(), Live;
        /// `text`, or one JSON object a line.
        format: LogFormat = LogFormat::Text, Restart;
        /// A line for each login.
        log_connections: bool = true, Live;
        /// A line for each client that goes.
        log_disconnections: bool = true, Live;
        /// A line for each error that pgweir itself gives a client.
        log_pooler_errors: bool = true, Live;
    }
}
