//! `/metrics` in Prometheus's text format: what can be read off a snapshot, then the counters of events.
//!
//! # Why
//! Pools come and go and their counters are their own. Rendered from the snapshot, a series ends with its pool, the
//! numbers are those of the console, and a scrape is the only time any of it costs anything. Counters in seconds need
//! fractions, which the `metrics` crate's counters don't have.

mod nodes;
mod overload;
mod queries;

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::meter::Exports;
use crate::shared::Shared;
use crate::status::stats::Totals;
use crate::status::{DatabaseStatus, PoolStatus, Snapshot};

/// How the page is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// With texts of statements.
    pub texts: bool,
    /// In the OpenMetrics format.
    pub open: bool,
}

/// The whole page.
pub(super) fn render(
    shared: &Shared,
    events: &PrometheusHandle,
    exports: &Exports,
    wanted: Wanted,
) -> String {
    let connections = shared.connections.load(Ordering::SeqCst);
    let snapshot = Snapshot::of(shared);
    let mut page = Page::default();
    let process = Process {
        uptime: shared.started.elapsed().as_secs_f64(),
        ready: shared.ready.load(Ordering::SeqCst),
        connections,
    };
    put_process(&mut page, &process, &snapshot);
    put_pools(&mut page, &snapshot.pools);
    put_totals(&mut page, &snapshot.pools);
    put_retries(&mut page, &snapshot.pools);
    put_lanes(&mut page, &snapshot.pools);
    overload::put(&mut page, &snapshot.pools, shared);
    put_databases(&mut page, &snapshot);
    if !snapshot.nodes.is_empty() {
        nodes::put(&mut page, &snapshot);
    }
    queries::put(&mut page, &snapshot, exports, wanted);
    let text = page.text + &events.render();
    if wanted.open { open(&text) } else { text }
}

/// The page in the OpenMetrics format, which names a counter's family without its `_total` and ends with a mark.
fn open(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for line in text.lines().filter(|line| !line.is_empty()) {
        let described = line
            .strip_prefix("# HELP ")
            .or(line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) => {
                let family = name.strip_suffix("_total").unwrap_or(name);
                let _ = writeln!(out, "{} {family} {rest}", &line[..6]);
            }
            None => {
                let _ = writeln!(out, "{line}");
            }
        }
    }
    out.push_str("# EOF\n");
    out
}

#[derive(Debug)]
struct Process {
    uptime: f64,
    ready: bool,
    connections: usize,
}

/// A page under way.
#[derive(Debug, Default)]
struct Page {
    text: String,
}

type Labels<'a> = &'a [(&'static str, &'a str)];

impl Page {
    /// Begins a family; its samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail, here and below.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{}\"", escape(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }
}

/// A label's value as the format wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn put_process(page: &mut Page, process: &Process, snapshot: &Snapshot) {
    let general = &snapshot.config.general;
    page.family("pgweir_build_info", "gauge", "The version that runs.");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.sample("pgweir_build_info", &version, 1);
    page.gauge(
        "pgweir_uptime_seconds",
        "Time since the start.",
        process.uptime,
    );
    page.gauge(
        "pgweir_ready",
        "1 while clients are let in.",
        u8::from(process.ready),
    );
    page.gauge(
        "pgweir_paused",
        "1 while everything is paused.",
        u8::from(snapshot.paused),
    );
    page.gauge(
        "pgweir_client_connections",
        "Client connections, logins under way included.",
        process.connections,
    );
    page.gauge(
        "pgweir_client_connections_max",
        "The limit general.max_client_conn.",
        general.max_client_conn,
    );
    page.gauge(
        "pgweir_client_logins",
        "Client connections that have not logged in.",
        snapshot.logging_in,
    );
}

fn put_pools(page: &mut Page, pools: &[PoolStatus]) {
    page.family(
        "pgweir_pool_clients",
        "gauge",
        "Clients by state: active ones have a server connection or are idle, waiting ones are in the queue.",
    );
    put_states(page, "pgweir_pool_clients", pools, |pool| {
        vec![("active", pool.cl_active), ("waiting", pool.cl_waiting)]
    });
    page.family(
        "pgweir_pool_servers",
        "gauge",
        "Server connections by state.",
    );
    put_states(page, "pgweir_pool_servers", pools, |pool| {
        vec![
            ("active", pool.sv_active),
            ("idle", pool.sv_idle),
            ("login", pool.sv_login),
            ("tested", pool.sv_tested),
            ("listening", pool.sv_listening),
            ("being_canceled", pool.sv_being_canceled),
        ]
    });
    put_each(
        page,
        pools,
        "pgweir_pool_servers_max",
        "The limit pool.max_size, for each server that the pool has connections to.",
        |pool| pool.connections_max,
    );
    put_each(
        page,
        pools,
        "pgweir_pool_pinned",
        "Server connections that sessions keep to themselves.",
        |pool| pool.pool.pins.len(),
    );
    put_each(
        page,
        pools,
        "pgweir_pool_longest_wait_seconds",
        "How long the first client in the queue has waited.",
        |pool| pool.maxwait.as_secs_f64(),
    );
}

fn put_each<T: std::fmt::Display>(
    page: &mut Page,
    pools: &[PoolStatus],
    name: &str,
    help: &str,
    value: impl Fn(&PoolStatus) -> T,
) {
    page.family(name, "gauge", help);
    for pool in pools {
        page.sample(name, &labels(pool), value(pool));
    }
}

fn labels(pool: &PoolStatus) -> [(&'static str, &str); 2] {
    let key = &pool.pool.key;
    [("database", &*key.database), ("user", &*key.user)]
}

fn put_states(
    page: &mut Page,
    name: &str,
    pools: &[PoolStatus],
    states: impl Fn(&PoolStatus) -> Vec<(&'static str, usize)>,
) {
    for pool in pools {
        let [database, user] = labels(pool);
        for (state, count) in states(pool) {
            page.sample(name, &[database, user, ("state", state)], count);
        }
    }
}

/// A counter: name, help, what it counts, and whether that is in microseconds.
type Counter = (&'static str, &'static str, fn(&Totals) -> u64, bool);

const COUNTERS: [Counter; 11] = [
    (
        "pgweir_server_assignments_total",
        "Times a server connection was given to a client.",
        |totals| totals.server_assignments,
        false,
    ),
    (
        "pgweir_transactions_total",
        "Transactions.",
        |totals| totals.transactions,
        false,
    ),
    (
        "pgweir_queries_total",
        "Statements that have ended; one that was run again counts once.",
        |totals| totals.queries,
        false,
    ),
    (
        "pgweir_received_bytes_total",
        "Bytes received from clients.",
        |totals| totals.received_bytes,
        false,
    ),
    (
        "pgweir_sent_bytes_total",
        "Bytes sent to clients.",
        |totals| totals.sent_bytes,
        false,
    ),
    (
        "pgweir_transaction_seconds_total",
        "Time in transactions.",
        |totals| totals.transaction_time,
        true,
    ),
    (
        "pgweir_query_seconds_total",
        "Time in statements.",
        |totals| totals.query_time,
        true,
    ),
    (
        "pgweir_wait_seconds_total",
        "Time clients waited for a server connection.",
        |totals| totals.wait_time,
        true,
    ),
    (
        "pgweir_client_parses_total",
        "Prepared statements made by clients.",
        |totals| totals.client_parses,
        false,
    ),
    (
        "pgweir_server_parses_total",
        "Prepared statements made on server connections.",
        |totals| totals.server_parses,
        false,
    ),
    (
        "pgweir_binds_total",
        "Prepared statements bound by clients.",
        |totals| totals.binds,
        false,
    ),
];

fn put_totals(page: &mut Page, pools: &[PoolStatus]) {
    let totals: Vec<Totals> = pools
        .iter()
        .map(|pool| Totals::of(&pool.pool.counters))
        .collect();
    for (name, help, count, in_micros) in COUNTERS {
        page.family(name, "counter", help);
        for (pool, totals) in pools.iter().zip(&totals) {
            let count = count(totals);
            if in_micros {
                let (seconds, micros) = (count / 1_000_000, count % 1_000_000);
                page.sample(name, &labels(pool), format_args!("{seconds}.{micros:06}"));
            } else {
                page.sample(name, &labels(pool), count);
            }
        }
    }
}

/// What ran again, and what could not.
fn put_retries(page: &mut Page, pools: &[PoolStatus]) {
    let name = "pgweir_retries_total";
    page.family(name, "counter", "Requests run again, by what had failed.");
    for pool in pools {
        let [database, user] = labels(pool);
        for (failure, count) in pool.pool.retries.again() {
            let labels = [database, user, ("failure", failure.as_str())];
            page.sample(name, &labels, count);
        }
    }
    let name = "pgweir_replays_total";
    page.family(
        name,
        "counter",
        "Transactions run again to where they had failed, by whether their answers were the same.",
    );
    for pool in pools {
        let [database, user] = labels(pool);
        let retries = &pool.pool.retries;
        let outcomes = [
            ("same", &retries.replayed),
            ("different", &retries.differed),
        ];
        for (answers, count) in outcomes {
            let labels = [database, user, ("answers", answers)];
            page.sample(name, &labels, count.load(Ordering::Relaxed));
        }
    }
    let name = "pgweir_retries_over_budget_total";
    let help = "Failures passed on because the budget for retries was spent.";
    page.family(name, "counter", help);
    for pool in pools {
        let count = pool.pool.retries.over_budget.load(Ordering::Relaxed);
        page.sample(name, &labels(pool), count);
    }
    put_settled(page, pools);
    let name = "pgweir_outcomes_unknown_total";
    let help = "Clients told that the outcome of a statement is unknown (08007).";
    page.family(name, "counter", help);
    for pool in pools {
        let count = pool.pool.retries.unknown.load(Ordering::Relaxed);
        page.sample(name, &labels(pool), count);
    }
}

fn put_settled(page: &mut Page, pools: &[PoolStatus]) {
    let name = "pgweir_commits_settled_total";
    let help = "COMMITs whose answer was lost where retry.settle_commit is on, by what had become of them.";
    page.family(name, "counter", help);
    for pool in pools {
        let [database, user] = labels(pool);
        let retries = &pool.pool.retries;
        let outcomes = [
            ("committed", &retries.committed),
            ("rolled back", &retries.rolled_back),
            ("unknown", &retries.unsettled),
        ];
        for (outcome, count) in outcomes {
            let labels = [database, user, ("outcome", outcome)];
            page.sample(name, &labels, count.load(Ordering::Relaxed));
        }
    }
}

/// What the lanes of a pool did.
fn put_lanes(page: &mut Page, pools: &[PoolStatus]) {
    let name = "pgweir_lane_statements_total";
    let help = "Statements that boarded a lane, by whether it answered them.";
    page.family(name, "counter", help);
    for pool in pools {
        let counters = &pool.pool.lanes.counters;
        let outcomes = [
            ("answered", &counters.answered),
            ("elsewhere", &counters.elsewhere),
        ];
        for (outcome, count) in outcomes {
            let [database, user] = labels(pool);
            let labels = [database, user, ("outcome", outcome)];
            page.sample(name, &labels, count.load(Ordering::Relaxed));
        }
    }
}

/// A gauge of a database: name, help, value.
type DatabaseGauge = (&'static str, &'static str, fn(&DatabaseStatus) -> usize);

fn put_databases(page: &mut Page, snapshot: &Snapshot) {
    let families: [DatabaseGauge; 4] = [
        (
            "pgweir_database_servers",
            "Server connections of a database, over all users.",
            |database| database.connections,
        ),
        (
            "pgweir_database_clients",
            "Clients of a database, over all users.",
            |database| database.clients,
        ),
        (
            "pgweir_database_paused",
            "1 while a database is paused.",
            |database| usize::from(database.paused),
        ),
        (
            "pgweir_database_disabled",
            "1 while a database lets no new clients in.",
            |database| usize::from(database.disabled),
        ),
    ];
    for (name, help, value) in families {
        page.family(name, "gauge", help);
        for database in &snapshot.databases {
            page.sample(name, &[("database", &database.name)], value(database));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_can_hold_anything() {
        let mut page = Page::default();
        page.family("f", "gauge", "Help.");
        page.sample("f", &[("a", "x\"y\\z\n"), ("b", "")], 1.5);
        page.sample("f", &[], 2);
        assert_eq!(
            page.text,
            "# HELP f Help.\n# TYPE f gauge\nf{a=\"x\\\"y\\\\z\\n\",b=\"\"} 1.5\nf 2\n"
        );
    }

    #[test]
    fn openmetrics_names_counters_without_total() {
        let text = "# HELP a_total Help.\n# TYPE a_total counter\na_total 1\n\n# HELP b Help.\n# TYPE b gauge\nb 2\n";
        assert_eq!(
            open(text),
            "# HELP a Help.\n# TYPE a counter\na_total 1\n# HELP b Help.\n# TYPE b gauge\nb 2\n# EOF\n"
        );
    }

    #[test]
    fn names_follow_the_conventions() {
        for (name, help, _, in_micros) in COUNTERS {
            assert!(
                name.starts_with("pgweir_") && name.ends_with("_total"),
                "{name}"
            );
            assert_eq!(name.contains("_seconds_"), in_micros, "{name}");
            assert!(help.ends_with('.'), "{name}");
        }
    }
}
