//! The keys about overload and about what single statements may do. The table of `raw` goes on here.

use std::time::Duration;

use super::decode::{Reader, Setting, Value};
use super::document::Table;
use super::raw::{Effect, Key, SectionDocs, tables};

tables! {
    /// What holds for the servers while there is too much to do, or while they are away. See docs/overload.md.
    Overload = "overload" {
        /// Server connections that are being opened to one server at the same time, over all pools. After an outage it
        /// begins with one and grows by one with each that succeeds.
        opening_max: usize = 8, Live;
        /// Attempts to connect to a server that fail in a row until it counts as unreachable: from then on one
        /// connection at a time tries it, for all pools.
        breaker_after: usize = 3, Live;
        /// Whether clients that need an unreachable server are told so at once (57P03) rather than once they have waited
        /// for `query_wait_timeout`.
        fail_fast: bool = false, Live;
    }

    /// What holds for statements that fit all that is given of `queryid`, `query`, `user`, `database` and
    /// `application_name`. Rules are asked in the order of their names; there may be 32.
    StatementRule = "statement_rules.NAME" {
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
        /// In place of `timeouts.query_timeout`; the first rule that has one decides. `"0"` for no limit.
        query_timeout: Option<Duration> = None, Live;
        /// `false`: it is never run again, whatever `[retry]` says, nor is a transaction that it was sent in; the first
        /// rule that has one decides.
        retry: Option<bool> = None, Live;
    }
}
