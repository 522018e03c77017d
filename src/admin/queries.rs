//! The tables about statements: `SHOW QUERIES`, `SLOW`, `ERRORS`, `WAITS`, `LOCKS`.
//!
//! Columns are named after `pg_stat_statements`, `pg_stat_activity` and `pg_locks` where they mean the same; times are
//! in milliseconds. Texts hold no constants, and are still shown to admin users only.

use std::sync::Arc;

use super::command::Role;
use super::table::{Column, Row, Value, float8, int4, int8, text};
use crate::meter::{Blocker, Client, Incident, QueryId, QuerySample, Wait};
use crate::status::Snapshot;
use crate::telemetry::clock::utc;

/// What `pg_stat_statements` shows in place of a text that is not for everybody.
const HIDDEN: &str = "<insufficient privilege>";

pub(super) const QUERIES: [Column; 33] = [
    text("queryid"),
    text("query"),
    text("users"),
    text("databases"),
    text("application_names"),
    text("nodes"),
    int8("calls"),
    float8("total_time"),
    float8("mean_time"),
    float8("min_time"),
    float8("max_time"),
    float8("p50_time"),
    float8("p95_time"),
    float8("p99_time"),
    int8("rows"),
    int8("errors"),
    text("sqlstates"),
    float8("queue_time"),
    float8("p50_queue_time"),
    float8("p95_queue_time"),
    float8("p99_queue_time"),
    float8("first_byte_time"),
    float8("p50_first_byte_time"),
    float8("p95_first_byte_time"),
    float8("p99_first_byte_time"),
    int8("bytes_received"),
    int8("bytes_sent"),
    int8("bytes"),
    int8("retries"),
    int8("pins"),
    int8("cache_hits"),
    text("first_seen"),
    text("last_seen"),
];

pub(super) const INCIDENTS: [Column; 18] = [
    text("time"),
    int4("pid"),
    text("user"),
    text("database"),
    text("application_name"),
    text("addr"),
    text("node"),
    text("queryid"),
    text("query"),
    float8("total_time"),
    float8("queue_time"),
    float8("server_time"),
    float8("client_time"),
    int8("rows"),
    int8("bytes_sent"),
    text("sqlstate"),
    text("trace_id"),
    text("plan"),
];

pub(super) const WAITS: [Column; 13] = [
    int4("pid"),
    text("user"),
    text("database"),
    text("application_name"),
    text("addr"),
    int4("server_pid"),
    text("queryid"),
    text("query"),
    float8("running_time"),
    text("wait_event_type"),
    text("wait_event"),
    text("blocked_by"),
    text("sampled"),
];

pub(super) const LOCKS: [Column; 15] = [
    int4("pid"),
    text("user"),
    text("database"),
    int4("server_pid"),
    text("queryid"),
    text("query"),
    float8("running_time"),
    text("locktype"),
    text("mode"),
    text("relation"),
    int4("blocking_server_pid"),
    text("blocking_state"),
    int4("blocking_pid"),
    text("blocking_queryid"),
    text("blocking_query"),
];

/// What the tables are made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub snapshot: &'a Snapshot,
    pub role: Role,
}

impl Seen<'_> {
    fn text(self, text: &str) -> Value {
        match self.role {
            Role::Admin => text.into(),
            Role::Stats => HIDDEN.into(),
        }
    }

    /// Number and text of a statement.
    pub(super) fn query(self, id: QueryId) -> [Value; 2] {
        if id == QueryId::default() {
            return [Value::Null, Value::Null];
        }
        let text = self.snapshot.text(id);
        [id.to_string().into(), self.text(text)]
    }

    /// Statements with the most time first, those without a record of their own last.
    pub(super) fn queries(self) -> Vec<Row> {
        let queries = &self.snapshot.queries;
        let other = Some(&queries.other).filter(|other| other.calls > 0);
        let all = queries.queries.iter().chain(other);
        all.map(|query| self.statement(query)).collect()
    }

    fn statement(self, query: &QuerySample) -> Row {
        let list = |names: &[Arc<str>]| Value::from(names.join(","));
        let at = |times: &crate::meter::Times, q| Value::Time(times.distribution.quantile(q));
        let (total, queue, first) = (&query.total, &query.queue, &query.first);
        vec![
            query.id.to_string().into(),
            if query.is_other() {
                (&*query.text).into()
            } else {
                self.text(&query.text)
            },
            list(&query.users),
            list(&query.databases),
            list(&query.applications),
            list(&query.nodes),
            query.calls.into(),
            total.sum.into(),
            total.mean(query.calls).into(),
            query.min.into(),
            query.max.into(),
            Value::Time(query.time_at(0.5)),
            Value::Time(query.time_at(0.95)),
            Value::Time(query.time_at(0.99)),
            query.rows.into(),
            query.errors.into(),
            sqlstates(query).into(),
            queue.sum.into(),
            at(queue, 0.5),
            at(queue, 0.95),
            at(queue, 0.99),
            first.sum.into(),
            at(first, 0.5),
            at(first, 0.95),
            at(first, 0.99),
            query.received.into(),
            query.sent.into(),
            (query.received + query.sent).into(),
            query.retries.into(),
            query.pins.into(),
            query.cache_hits.into(),
            utc(query.first_seen).into(),
            utc(query.last_seen).into(),
        ]
    }

    pub(super) fn slow(self) -> Vec<Row> {
        self.incidents(&self.snapshot.recent.slow)
    }

    pub(super) fn errors(self) -> Vec<Row> {
        self.incidents(&self.snapshot.recent.failed)
    }

    fn incidents(self, incidents: &[Arc<Incident>]) -> Vec<Row> {
        let row = |incident: &Arc<Incident>| {
            let [pid, user, database, application, address] = client(&incident.client);
            vec![
                utc(incident.at).into(),
                pid,
                user,
                database,
                application,
                address,
                (&*incident.node).into(),
                incident.query.to_string().into(),
                self.text(&incident.text),
                incident.total().into(),
                incident.queued.into(),
                incident.server.into(),
                incident.blocked.into(),
                incident.rows.into(),
                incident.sent.into(),
                incident.error.map(|code| code.as_str().to_owned()).into(),
                incident.trace.map(|trace| trace.to_string()).into(),
                match self.snapshot.recent.plans.get(&incident.query) {
                    Some(plan) => self.text(plan),
                    None => Value::Null,
                },
            ]
        };
        incidents.iter().map(row).collect()
    }

    pub(super) fn waits(self) -> Vec<Row> {
        let waits = &self.snapshot.recent.waits;
        let row = |wait: &Wait| {
            let [pid, user, database, application, address] = client(&wait.client);
            let [id, text] = self.query(wait.query);
            let blockers = wait.blockers.iter();
            let blockers: Vec<_> = blockers.map(|by| by.backend.to_string()).collect();
            vec![
                pid,
                user,
                database,
                application,
                address,
                u64::from(wait.backend).into(),
                id,
                text,
                wait.running.into(),
                known(&wait.event_type),
                known(&wait.event),
                blockers.join(",").into(),
                waits.taken.map(utc).into(),
            ]
        };
        waits.waits.iter().map(row).collect()
    }

    /// A row for each statement and each backend that stands in its way.
    pub(super) fn locks(self) -> Vec<Row> {
        let waits = self.snapshot.recent.waits.waits.iter();
        waits
            .flat_map(|wait| wait.blockers.iter().map(move |blocker| (wait, blocker)))
            .map(|(wait, blocker)| self.lock(wait, blocker))
            .collect()
    }

    fn lock(self, wait: &Wait, blocker: &Blocker) -> Row {
        let [pid, user, database, _, _] = client(&wait.client);
        let [id, text] = self.query(wait.query);
        let (blocking_pid, [blocking_id, blocking_text]) = match &blocker.client {
            Some((client, query)) => (u64::from(client.pid).into(), self.query(*query)),
            None => (Value::Null, [Value::Null, Value::Null]),
        };
        vec![
            pid,
            user,
            database,
            u64::from(wait.backend).into(),
            id,
            text,
            wait.running.into(),
            known(&wait.lock_type),
            known(&wait.lock_mode),
            known(&wait.relation),
            u64::from(blocker.backend).into(),
            known(&blocker.state),
            blocking_pid,
            blocking_id,
            blocking_text,
        ]
    }
}

/// `40001:3,57014:1`, the most frequent first.
fn sqlstates(query: &QuerySample) -> String {
    let mut codes = query.sqlstates.clone();
    codes.sort_by_key(|(code, count)| (std::cmp::Reverse(*count), code.0));
    let codes = codes.iter();
    let codes: Vec<_> = codes
        .map(|(code, count)| format!("{}:{count}", code.as_str()))
        .collect();
    codes.join(",")
}

fn client(client: &Client) -> [Value; 5] {
    [
        u64::from(client.pid).into(),
        (&*client.user).into(),
        (&*client.database).into(),
        (&*client.application).into(),
        client.peer.to_string().into(),
    ]
}

fn known(text: &str) -> Value {
    Some(text).filter(|text| !text.is_empty()).into()
}
