//! From settings of the right types to the [`Config`]: ranges, and what must hold between keys.
//!
//! A [`Config`] comes out in any case, so that every problem is found in one pass; the caller throws it away if there
//! was one.

use std::collections::BTreeSet;
use std::time::Duration;

use super::decode::{Reader, Setting};
use super::model::{Config, General, PoolSettings, Retry, Routing, Timeouts, User};
use super::raw;
use super::read::Raw;
use super::validate_auth::{auth, auth_needs, client_tls, server_tls};
use super::validate_http::http;
use super::validate_limits::{overload, statement_rules};
use super::validate_seeing::{log, log_rules, metrics, query_log, slow_log, traces};
use super::validate_servers::{cluster, databases};

/// The console's names: no database can have them.
pub(super) const CONSOLE_NAMES: [&str; 2] = ["pgweir", "pgbouncer"];

/// PostgreSQL itself takes at most this much in one message.
const LARGEST_PACKET: u64 = 2_147_483_647;
/// A startup packet may be this long.
const SMALLEST_PACKET: u64 = 10_000;
const MOST_WORKERS: usize = 1024;
const LARGEST_POOL: usize = 100_000;
/// As many as a pool has places for.
const LANES_MAX: usize = 8;
/// A weight relative to others; the default is 100.
const LARGEST_PRIORITY: usize = 1000;
const MOST_ATTEMPTS: usize = 1000;
/// Each client may hold one.
const LARGEST_JOURNAL: u64 = 16 * 1024 * 1024;

pub(super) fn validate(raw: &Raw, reader: &mut Reader<'_>) -> Config {
    let general = general(&raw.general, reader);
    let http = http(&raw.http, &raw.general, reader);
    let cluster = cluster(&raw.cluster, reader);
    let pool = pool(&raw.pool, "pool", reader);
    let timeouts = timeouts(&raw.timeouts, "timeouts", reader);
    let routing = routing(&raw.routing);
    let retry = retry(&raw.retry, "retry", reader);
    let databases = databases(raw, &cluster, (routing, &pool, &timeouts, &retry), reader);
    let auth = auth(&raw.auth, reader);
    let client_tls = client_tls(&raw.client_tls, reader);
    let config = Config {
        server_tls: server_tls(&raw.server_tls, reader),
        users: raw
            .users
            .iter()
            .map(|(name, (path, raw))| (name.clone(), user(raw, path, reader)))
            .collect(),
        overload: overload(&raw.overload, reader),
        statement_rules: statement_rules(&raw.statement_rules, reader),
        metrics: metrics(&raw.metrics, reader),
        slow_log: slow_log(&raw.slow_log),
        query_log: query_log(&raw.query_log),
        log_rules: log_rules(&raw.log_rules, reader),
        traces: traces(&raw.traces),
        log: log(&raw.log, reader),
        general,
        http,
        cluster,
        auth,
        client_tls,
        routing,
        pool,
        timeouts,
        retry,
        databases,
    };
    auth_needs(&raw.auth, &config, reader);
    config
}

fn general(raw: &raw::General, reader: &mut Reader<'_>) -> General {
    within(&raw.workers, "general.workers", 1, MOST_WORKERS, reader);
    at_least_one(&raw.max_client_conn, "general.max_client_conn", reader);
    let packet = raw.max_packet_size.value.0;
    if !(SMALLEST_PACKET..=LARGEST_PACKET).contains(&packet) {
        reader.problem(
            raw.max_packet_size.at.as_ref(),
            "general.max_packet_size",
            format!("must be between {SMALLEST_PACKET}B and {LARGEST_PACKET}B"),
        );
    }
    if let Some(folder) = &raw.unix_socket_dir.value
        && !folder.is_dir()
    {
        let message = format!("{} is not a folder", folder.display());
        reader.problem(
            raw.unix_socket_dir.at.as_ref(),
            "general.unix_socket_dir",
            message,
        );
    }
    listeners(raw, reader);
    General {
        listen: raw
            .listen
            .value
            .iter()
            .map(|address| address.0.clone())
            .collect(),
        unix_socket_dir: raw.unix_socket_dir.value.clone(),
        unix_socket_mode: raw.unix_socket_mode.value.0,
        http: raw.http.value.0,
        workers: raw.workers.value,
        max_client_conn: raw.max_client_conn.value,
        max_packet_size: usize::try_from(packet).unwrap_or(usize::MAX),
        shutdown_timeout: raw.shutdown_timeout.value,
        admin_users: raw.admin_users.value.clone(),
        stats_users: raw.stats_users.value.clone(),
        tcp_keepalive: raw.tcp_keepalive.value,
        tcp_keepidle: raw.tcp_keepidle.value.0,
        tcp_keepintvl: raw.tcp_keepintvl.value.0,
        tcp_keepcnt: raw
            .tcp_keepcnt
            .value
            .0
            .and_then(|count| u32::try_from(count).ok()),
        tcp_user_timeout: raw.tcp_user_timeout.value.0,
    }
}

fn listeners(raw: &raw::General, reader: &mut Reader<'_>) {
    let at = raw.listen.at.as_ref();
    if raw.listen.value.is_empty() {
        reader.problem(at, "general.listen", "must name at least one address");
    }
    let mut seen = BTreeSet::new();
    for address in &raw.listen.value {
        let free_port = address.0.ends_with(":0");
        if !free_port && !seen.insert(address.0.to_ascii_lowercase()) {
            reader.problem(
                at,
                "general.listen",
                format!("{} is given twice", address.0),
            );
        }
    }
    if let Some(http) = raw.http.value.0
        && http.port() != 0
        && seen.contains(&http.to_string())
    {
        let at = raw.http.at.as_ref().or(at);
        reader.problem(
            at,
            "general.http",
            format!("{http} is an address of general.listen too"),
        );
    }
}

pub(super) fn routing(raw: &raw::Routing) -> Routing {
    Routing {
        reads: raw.reads.value,
        consistency: raw.consistency.value,
        replica_wait: raw.replica_wait.value.0,
    }
}

pub(super) fn pool(raw: &raw::Pool, path: &str, reader: &mut Reader<'_>) -> PoolSettings {
    let key = |name: &str| format!("{path}.{name}");
    within(&raw.max_size, &key("max_size"), 1, LARGEST_POOL, reader);
    within(
        &raw.reserve_size,
        &key("reserve_size"),
        0,
        LARGEST_POOL,
        reader,
    );
    within(
        &raw.max_prepared_statements,
        &key("max_prepared_statements"),
        1,
        LARGEST_POOL,
        reader,
    );
    within(&raw.lanes, &key("lanes"), 0, LANES_MAX, reader);
    let (max_size, min_idle) = (raw.max_size.value, raw.min_idle.value);
    if min_idle > max_size {
        // Named by the key that is given here: in a database the other one may be inherited.
        if raw.max_size.is_given() {
            let message = format!("must be at least min_idle ({min_idle}), got {max_size}");
            reader.problem(raw.max_size.at.as_ref(), &key("max_size"), message);
        } else if raw.min_idle.is_given() {
            let message = format!("must be at most max_size ({max_size}), got {min_idle}");
            reader.problem(raw.min_idle.at.as_ref(), &key("min_idle"), message);
        }
    }
    PoolSettings {
        pool_mode: raw.pool_mode.value,
        max_size,
        min_idle,
        reserve_size: raw.reserve_size.value,
        reserve_timeout: raw.reserve_timeout.value,
        max_db_connections: raw.max_db_connections.value.0,
        max_user_connections: raw.max_user_connections.value.0,
        max_server_connections: raw.max_server_connections.value.0,
        max_db_client_connections: raw.max_db_client_connections.value.0,
        max_user_client_connections: raw.max_user_client_connections.value.0,
        max_waiting: raw.max_waiting.value.0,
        shed: raw.shed.value,
        max_prepared_statements: raw.max_prepared_statements.value,
        lanes: raw.lanes.value,
        on_session_state: raw.on_session_state.value,
        hidden_state: raw.hidden_state.value,
        shared_listener: raw.shared_listener.value,
        max_pinned: raw.max_pinned.value,
        connect_query: raw
            .connect_query
            .value
            .clone()
            .filter(|query| !query.is_empty()),
    }
}

pub(super) fn timeouts(raw: &raw::Timeouts, path: &str, reader: &mut Reader<'_>) -> Timeouts {
    let key = |name: &str| format!("{path}.{name}");
    for (setting, name) in [
        (&raw.server_connect_timeout, "server_connect_timeout"),
        (&raw.client_login_timeout, "client_login_timeout"),
        (&raw.cancel_wait_timeout, "cancel_wait_timeout"),
    ] {
        if setting.is_given() && setting.value.is_zero() {
            reader.problem(setting.at.as_ref(), &key(name), "must be more than 0");
        }
    }
    Timeouts {
        query_wait_timeout: raw.query_wait_timeout.value.0,
        query_wait_notify: raw.query_wait_notify.value.0,
        server_connect_timeout: raw.server_connect_timeout.value,
        server_login_retry: raw.server_login_retry.value,
        client_login_timeout: raw.client_login_timeout.value,
        idle_transaction_timeout: raw.idle_transaction_timeout.value.0,
        transaction_timeout: raw.transaction_timeout.value.0,
        query_timeout: raw.query_timeout.value.0,
        client_idle_timeout: raw.client_idle_timeout.value.0,
        pin_idle_timeout: raw.pin_idle_timeout.value.0,
        client_write_timeout: raw.client_write_timeout.value.0,
        server_idle_timeout: raw.server_idle_timeout.value.0,
        server_lifetime: raw.server_lifetime.value.0,
        cancel_wait_timeout: raw.cancel_wait_timeout.value,
    }
}

pub(super) fn retry(raw: &raw::Retry, path: &str, reader: &mut Reader<'_>) -> Retry {
    let key = |name: &str| format!("{path}.{name}");
    within(&raw.attempts, &key("attempts"), 0, MOST_ATTEMPTS, reader);
    within(&raw.budget, &key("budget"), 0, LARGEST_POOL, reader);
    within(&raw.budget_min, &key("budget_min"), 0, LARGEST_POOL, reader);
    within(
        &raw.journal_statements,
        &key("journal_statements"),
        1,
        LARGEST_POOL,
        reader,
    );
    if raw.journal_size.value.0 > LARGEST_JOURNAL {
        let message = format!("must be at most {LARGEST_JOURNAL}B");
        reader.problem(raw.journal_size.at.as_ref(), &key("journal_size"), message);
    }
    let number = |setting: &Setting<usize>| u32::try_from(setting.value).unwrap_or(u32::MAX);
    Retry {
        statements: raw.statements.value,
        replay: raw.replay.value,
        settle_commit: raw.settle_commit.value,
        attempts: number(&raw.attempts),
        deadline: raw.deadline.value,
        backoff: raw.backoff.value,
        backoff_max: raw.backoff_max.value,
        budget: number(&raw.budget),
        budget_min: number(&raw.budget_min),
        journal_size: usize::try_from(raw.journal_size.value.0).unwrap_or(usize::MAX),
        journal_statements: raw.journal_statements.value,
    }
}

/// A user's limits only ever narrow or widen the database's: "none at all" has no place here.
fn user(raw: &raw::User, path: &str, reader: &mut Reader<'_>) -> User {
    const ZERO: &str = "must be more than 0; leave it out to keep the database's limit";
    for (setting, name) in [
        (&raw.max_size, "max_size"),
        (&raw.max_user_connections, "max_user_connections"),
        (
            &raw.max_user_client_connections,
            "max_user_client_connections",
        ),
    ] {
        if setting.value == Some(0) {
            reader.problem(setting.at.as_ref(), &format!("{path}.{name}"), ZERO);
        }
    }
    for (setting, name) in [
        (&raw.max_size, "max_size"),
        (&raw.reserve_size, "reserve_size"),
    ] {
        if setting.value.is_some_and(|size| size > LARGEST_POOL) {
            let message = format!("must be at most {LARGEST_POOL}");
            reader.problem(setting.at.as_ref(), &format!("{path}.{name}"), message);
        }
    }
    for (setting, name) in [
        (&raw.query_timeout, "query_timeout"),
        (&raw.query_wait_timeout, "query_wait_timeout"),
        (&raw.idle_transaction_timeout, "idle_transaction_timeout"),
        (&raw.transaction_timeout, "transaction_timeout"),
        (&raw.client_idle_timeout, "client_idle_timeout"),
        (&raw.pin_idle_timeout, "pin_idle_timeout"),
    ] {
        if setting.value == Some(Duration::ZERO) {
            reader.problem(setting.at.as_ref(), &format!("{path}.{name}"), ZERO);
        }
    }
    if let Some(priority) = raw.priority.value
        && !(1..=LARGEST_PRIORITY).contains(&priority)
    {
        let message = format!("must be between 1 and {LARGEST_PRIORITY}, got {priority}");
        let key = format!("{path}.priority");
        reader.problem(raw.priority.at.as_ref(), &key, message);
    }
    User {
        reads: raw.reads.value,
        consistency: raw.consistency.value,
        replica_wait: raw.replica_wait.value,
        pool_mode: raw.pool_mode.value,
        max_size: raw.max_size.value,
        reserve_size: raw.reserve_size.value,
        max_user_connections: raw.max_user_connections.value,
        max_user_client_connections: raw.max_user_client_connections.value,
        query_timeout: raw.query_timeout.value,
        query_wait_timeout: raw.query_wait_timeout.value,
        idle_transaction_timeout: raw.idle_transaction_timeout.value,
        transaction_timeout: raw.transaction_timeout.value,
        client_idle_timeout: raw.client_idle_timeout.value,
        priority: raw.priority.value,
        max_pinned: raw.max_pinned.value,
        pin_idle_timeout: raw.pin_idle_timeout.value,
        retry_statements: raw.retry_statements.value,
        retry_replay: raw.retry_replay.value,
        retry_settle_commit: raw.retry_settle_commit.value,
        retry_attempts: raw
            .retry_attempts
            .value
            .map(|attempts| u32::try_from(attempts).unwrap_or(u32::MAX)),
        retry_deadline: raw.retry_deadline.value,
    }
}

fn at_least_one(setting: &Setting<usize>, key: &str, reader: &mut Reader<'_>) {
    if setting.value == 0 {
        reader.problem(setting.at.as_ref(), key, "must be at least 1, got 0");
    }
}

/// Only what is given here is checked; an inherited value was checked where it stands.
pub(super) fn within(
    setting: &Setting<usize>,
    key: &str,
    least: usize,
    most: usize,
    reader: &mut Reader<'_>,
) {
    let value = setting.value;
    if setting.is_given() && !(least..=most).contains(&value) {
        let message = format!("must be between {least} and {most}, got {value}");
        reader.problem(setting.at.as_ref(), key, message);
    }
}
