//! Statements: the list, and one by itself.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::{milliseconds, seconds};
use crate::http::access::Role;
use crate::meter::{QueryId, QuerySample, Times};
use crate::status::Snapshot;
use crate::status::trends::{Column, STEP, Trends};

/// Statements listed, those with the most time first.
const LISTED_MAX: usize = 200;

/// Characters of a text in the list.
const TEXT_MAX: usize = 300;

/// Statements with the most time.
#[derive(Debug, Serialize)]
pub(in crate::http) struct Queries<'a> {
    /// Statements with a record, found or not.
    known: usize,
    /// Those that were found but are not listed.
    left_out: usize,
    /// Time of all statements there ever were, by which shares are reckoned.
    total_time: f64,
    listed: Vec<Listed<'a>>,
    /// What ran and has no record of its own.
    other: Listed<'a>,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    id: String,
    /// None for those who may not see it.
    text: Option<&'a str>,
    calls: u64,
    errors: u64,
    retries: u64,
    rows: u64,
    total_time: f64,
    mean_time: f64,
    p95: f64,
    calls_a_second: f64,
    errors_a_second: f64,
    concurrency: f64,
}

/// At most `max` characters.
fn shortened(text: &str, max: usize) -> &str {
    text.char_indices()
        .nth(max)
        .map_or(text, |(end, _)| &text[..end])
}

impl<'a> Listed<'a> {
    fn new(query: &'a QuerySample, trends: &Trends, role: Role) -> Self {
        let load = trends.load(query.id);
        Self {
            id: query.id.to_string(),
            text: visible(query, role).map(|text| shortened(text, TEXT_MAX)),
            calls: query.calls,
            errors: query.errors,
            retries: query.retries,
            rows: query.rows,
            total_time: seconds(query.total.sum),
            mean_time: seconds(query.total.mean(query.calls)),
            p95: seconds(query.time_at(0.95)),
            calls_a_second: load.calls_a_second,
            errors_a_second: load.errors_a_second,
            concurrency: load.concurrency,
        }
    }
}

fn visible(query: &QuerySample, role: Role) -> Option<&str> {
    match role {
        Role::Admin => Some(&query.text),
        Role::Stats => None,
    }
}

impl<'a> Queries<'a> {
    /// Those whose text or number contains `search`, whatever its case. Texts are searched only for those who see them.
    pub(in crate::http) fn new(
        snapshot: &'a Snapshot,
        trends: &Trends,
        role: Role,
        search: &str,
    ) -> Self {
        let wanted = search.to_lowercase();
        let sample = &snapshot.queries;
        let is_found = |query: &&QuerySample| {
            wanted.is_empty()
                || query.id.to_string().contains(&wanted)
                || visible(query, role).is_some_and(|text| text.to_lowercase().contains(&wanted))
        };
        let found: Vec<_> = sample.queries.iter().filter(is_found).collect();
        let all = sample.queries.iter().chain([&sample.other]);
        Self {
            known: sample.queries.len(),
            left_out: found.len().saturating_sub(LISTED_MAX),
            total_time: all.map(|query| seconds(query.total.sum)).sum(),
            listed: found
                .into_iter()
                .take(LISTED_MAX)
                .map(|query| Listed::new(query, trends, role))
                .collect(),
            other: Listed::new(&sample.other, trends, role),
        }
    }
}

/// Times of one kind.
#[derive(Debug, Serialize)]
struct TimesView {
    sum: f64,
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

impl TimesView {
    fn of(times: &Times, calls: u64) -> Self {
        let quantile = |q| seconds(times.distribution.quantile(q));
        Self {
            sum: seconds(times.sum),
            mean: seconds(times.mean(calls)),
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

/// Everything about one statement.
#[derive(Debug, Serialize)]
pub(in crate::http) struct OneQuery<'a> {
    id: String,
    text: Option<&'a str>,
    calls: u64,
    rows: u64,
    errors: u64,
    sqlstates: Vec<(String, u64)>,
    retries: u64,
    pins: u64,
    cache_hits: u64,
    received: u64,
    sent: u64,
    min: f64,
    max: f64,
    total: TimesView,
    first: TimesView,
    queue: TimesView,
    users: Vec<&'a str>,
    databases: Vec<&'a str>,
    applications: Vec<&'a str>,
    nodes: Vec<&'a str>,
    first_seen: u64,
    last_seen: u64,
    time: u64,
    /// Seconds from one column to the next.
    step: f64,
    /// None if it is not among those tracked.
    columns: Option<Vec<ColumnView<'a>>>,
}

/// What it did in one step.
#[derive(Debug, Serialize)]
struct ColumnView<'a> {
    calls: u64,
    errors: u64,
    time: f64,
    p50: Option<f32>,
    p95: Option<f32>,
    /// Pairs of an exponent of two, in nanoseconds, and the calls that took at least that and less than twice that.
    octaves: &'a [(u8, u64)],
}

impl<'a> ColumnView<'a> {
    fn of(column: &'a Column) -> Self {
        Self {
            calls: column.calls,
            errors: column.errors,
            time: seconds(column.time),
            p50: column.latency.map(|latency| latency.p50),
            p95: column.latency.map(|latency| latency.p95),
            octaves: &column.octaves,
        }
    }
}

fn names(of: &[Arc<str>]) -> Vec<&str> {
    of.iter().map(|name| &**name).collect()
}

impl<'a> OneQuery<'a> {
    pub(in crate::http) fn new(
        snapshot: &'a Snapshot,
        trends: &'a Trends,
        role: Role,
        id: QueryId,
    ) -> Option<Self> {
        let sample = &snapshot.queries;
        let mut all = sample.queries.iter().chain([&sample.other]);
        let query = all.find(|query| query.id == id)?;
        let columns = trends.of(id).map(|columns| columns.map(ColumnView::of));
        Some(Self {
            id: query.id.to_string(),
            text: visible(query, role),
            calls: query.calls,
            rows: query.rows,
            errors: query.errors,
            sqlstates: query
                .sqlstates
                .iter()
                .map(|(code, count)| (code.as_str().to_owned(), *count))
                .collect(),
            retries: query.retries,
            pins: query.pins,
            cache_hits: query.cache_hits,
            received: query.received,
            sent: query.sent,
            min: seconds(query.min),
            max: seconds(query.max),
            total: TimesView {
                p50: seconds(query.time_at(0.5)),
                p95: seconds(query.time_at(0.95)),
                p99: seconds(query.time_at(0.99)),
                ..TimesView::of(&query.total, query.calls)
            },
            first: TimesView::of(&query.first, query.calls),
            queue: TimesView::of(&query.queue, query.calls),
            users: names(&query.users),
            databases: names(&query.databases),
            applications: names(&query.applications),
            nodes: names(&query.nodes),
            first_seen: milliseconds(query.first_seen),
            last_seen: milliseconds(query.last_seen),
            time: milliseconds(SystemTime::now()),
            step: seconds(STEP),
            columns: columns.map(Iterator::collect),
        })
    }
}
