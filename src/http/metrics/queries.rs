//! The metrics of statements: of all of them, and of those with the most time one by one.
//!
//! Bound: `metrics.max_query_series` statements, each with [`QUERY_SERIES`] series and one for each SQLSTATE it failed
//! with; the rest together is the statement `other`, which has as many SQLSTATEs as [`Exports::cap`] leaves it.
//!
//! # Why
//! The histograms' bounds are powers of two nanoseconds: there the records' own buckets divide exactly, so a bucket's
//! count is a count and no estimate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Page, Wanted};
use crate::meter::{Distribution, Exemplar, Exports, QuerySample, Times};
use crate::status::Snapshot;

/// Bounds of histograms, as powers of two in nanoseconds: 131 µs to 34 s, each twice the one before.
const FINE: std::ops::RangeInclusive<u32> = 17..=35;
/// Every other one.
const STEP: usize = 2;

/// Series of one statement, those for its SQLSTATEs aside.
#[cfg(test)]
const QUERY_SERIES: usize = 7 + (19 + 3) + 2 * (10 + 3) + 1;

/// How a statement is named in the labels where it stands for all others.
const OTHER: &str = "other";

/// Appends everything.
pub(super) fn put(page: &mut Page, snapshot: &Snapshot, exports: &Exports, wanted: Wanted) {
    let max = snapshot.config.metrics.max_query_series;
    let (own, mut other) = exports.select(&snapshot.queries, max);
    exports.cap(&mut other);
    let shown: Vec<(String, &QuerySample)> = own
        .iter()
        .map(|query| (query.id.to_string(), query))
        .chain(std::iter::once((OTHER.to_owned(), &other)))
        .collect();
    put_all(page, snapshot, exports);
    put_counters(page, &shown);
    put_errors(page, &shown);
    put_histograms(page, &shown, wanted.open);
    if wanted.texts {
        put_texts(page, &own);
    }
}

/// What all statements come to.
fn put_all(page: &mut Page, snapshot: &Snapshot, exports: &Exports) {
    let queries = &snapshot.queries;
    let mut all = queries
        .queries
        .iter()
        .fold(queries.other.clone(), |sum, query| sum.plus(query));
    exports.cap(&mut all);
    page.family(
        "pgweir_statement_duration_seconds",
        "histogram",
        "Time from sending a statement to its last answer.",
    );
    histogram(
        page,
        "pgweir_statement_duration_seconds",
        &[],
        &all.total,
        1,
    );
    page.family(
        "pgweir_statement_queue_seconds",
        "histogram",
        "Time a statement's client waited for a server connection.",
    );
    histogram(page, "pgweir_statement_queue_seconds", &[], &all.queue, 1);
    page.family(
        "pgweir_statement_errors_total",
        "counter",
        "Statements that failed, by SQLSTATE.",
    );
    errors(page, "pgweir_statement_errors_total", None, &all);
    page.gauge(
        "pgweir_query_records",
        "Statements with a record of their own.",
        queries.queries.len() + queries.unfinished.len(),
    );
    page.gauge(
        "pgweir_query_records_max",
        "The limit metrics.max_queries.",
        snapshot.config.metrics.max_queries,
    );
    page.family(
        "pgweir_query_evictions_total",
        "counter",
        "Records that made room for others.",
    );
    page.sample("pgweir_query_evictions_total", &[], queries.evictions);
    put_notes(page, snapshot);
    let waits = snapshot.recent.waits.waits.iter();
    let locks = waits.filter(|wait| !wait.blockers.is_empty()).count();
    page.gauge(
        "pgweir_lock_waits",
        "Statements that wait for a lock another session holds, among those that have run for metrics.lock_wait_after.",
        locks,
    );
}

/// What was written down of statements, and what was lost on the way.
fn put_notes(page: &mut Page, snapshot: &Snapshot) {
    let notes = &snapshot.notes;
    let counters: [(&str, &str, u64); 3] = [
        (
            "pgweir_slow_statements_total",
            "Statements that were slow by slow_log.threshold or a rule.",
            snapshot.recent.slow_count,
        ),
        (
            "pgweir_traces_exported_total",
            "Statements whose spans a collector has taken.",
            notes.traces_exported,
        ),
        (
            "pgweir_traces_dropped_total",
            "Statements whose spans found no room in the queue or that no collector took.",
            notes.traces_dropped,
        ),
    ];
    for (name, help, value) in counters {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    let name = "pgweir_log_entries_total";
    page.family(
        name,
        "counter",
        "Entries written to the slow log and the query log.",
    );
    for (log, written, _) in &notes.logs {
        page.sample(name, &[("log", log.as_str())], written);
    }
    let name = "pgweir_log_entries_dropped_total";
    page.family(
        name,
        "counter",
        "Entries of these logs that found no room in the queue or could not be written.",
    );
    for (log, _, dropped) in &notes.logs {
        page.sample(name, &[("log", log.as_str())], dropped);
    }
}

type Counter = (&'static str, &'static str, fn(&QuerySample) -> u64);

const COUNTERS: [Counter; 7] = [
    (
        "pgweir_query_calls_total",
        "Executions of a statement, failed ones included.",
        |query| query.calls,
    ),
    (
        "pgweir_query_rows_total",
        "Rows a statement returned or changed.",
        |query| query.rows,
    ),
    (
        "pgweir_query_received_bytes_total",
        "Bytes received from clients for a statement.",
        |query| query.received,
    ),
    (
        "pgweir_query_sent_bytes_total",
        "Bytes sent to clients for a statement.",
        |query| query.sent,
    ),
    (
        "pgweir_query_retries_total",
        "Times a statement was run again in place of a failed attempt.",
        |query| query.retries,
    ),
    (
        "pgweir_query_pins_total",
        "Times a statement made a session keep its server connection.",
        |query| query.pins,
    ),
    (
        "pgweir_query_cache_hits_total",
        "Times a statement was answered from the cache.",
        |query| query.cache_hits,
    ),
];

fn put_counters(page: &mut Page, shown: &[(String, &QuerySample)]) {
    for (name, help, count) in COUNTERS {
        page.family(name, "counter", help);
        for (id, query) in shown {
            page.sample(name, &[("queryid", id)], count(query));
        }
    }
}

fn put_errors(page: &mut Page, shown: &[(String, &QuerySample)]) {
    let name = "pgweir_query_errors_total";
    page.family(
        name,
        "counter",
        "Executions of a statement that failed, by SQLSTATE.",
    );
    for (id, query) in shown {
        errors(page, name, Some(id), query);
    }
}

fn errors(page: &mut Page, name: &str, id: Option<&str>, query: &QuerySample) {
    let mut rest = query.errors;
    let labels = |code| {
        let id = id.map(|id| ("queryid", id));
        id.into_iter()
            .chain(std::iter::once(("sqlstate", code)))
            .collect::<Vec<_>>()
    };
    for (code, count) in &query.sqlstates {
        rest = rest.saturating_sub(*count);
        page.sample(name, &labels(code.as_str()), count);
    }
    if rest > 0 {
        page.sample(name, &labels(OTHER), rest);
    }
}

type Kind = (
    &'static str,
    &'static str,
    fn(&QuerySample) -> &Times,
    usize,
);

const HISTOGRAMS: [Kind; 3] = [
    (
        "pgweir_query_duration_seconds",
        "Time from sending a statement to its last answer.",
        |query| &query.total,
        1,
    ),
    (
        "pgweir_query_first_byte_seconds",
        "Time from sending a statement to its first answer.",
        |query| &query.first,
        STEP,
    ),
    (
        "pgweir_query_queue_seconds",
        "Time a statement's client waited for a server connection.",
        |query| &query.queue,
        STEP,
    ),
];

/// `exemplars` are for the OpenMetrics format only.
fn put_histograms(page: &mut Page, shown: &[(String, &QuerySample)], exemplars: bool) {
    for (name, help, times, step) in HISTOGRAMS {
        page.family(name, "histogram", help);
        for (id, query) in shown {
            let from = page.text.len();
            histogram(page, name, &[("queryid", id)], times(query), step);
            if let Some(exemplar) = query.exemplar.filter(|_| exemplars && step == 1) {
                put_exemplar(page, from, exemplar);
            }
        }
    }
}

/// Puts `exemplar` behind the bucket it falls into, of the histogram whose text begins at `from`.
fn put_exemplar(page: &mut Page, from: usize, exemplar: Exemplar) {
    let nanos = exemplar.took.as_nanos();
    let bucket = FINE.take_while(|bits| nanos > 1 << bits).count();
    let mut ends = page.text[from..].match_indices('\n');
    let Some((end, _)) = ends.nth(bucket) else {
        return;
    };
    let at = exemplar.at.duration_since(SystemTime::UNIX_EPOCH);
    let text = format!(
        " # {{trace_id=\"{}\"}} {} {:.3}",
        exemplar.trace,
        exemplar.took.as_secs_f64(),
        at.unwrap_or_default().as_secs_f64()
    );
    page.text.insert_str(from + end, &text);
}

/// The samples of one histogram, with every `step`th bound.
fn histogram(
    page: &mut Page,
    name: &str,
    labels: &[(&'static str, &str)],
    times: &Times,
    step: usize,
) {
    let bucket = format!("{name}_bucket");
    let distribution: &Distribution = &times.distribution;
    for bits in FINE.step_by(step) {
        let bound = Duration::from_nanos(1 << bits);
        let le = bound.as_secs_f64().to_string();
        page.sample(&bucket, &with_le(labels, &le), distribution.below(bound));
    }
    let count = distribution.count();
    page.sample(&bucket, &with_le(labels, "+Inf"), count);
    let sum = times.sum;
    let sum = format!("{}.{:09}", sum.as_secs(), sum.subsec_nanos());
    page.sample(&format!("{name}_sum"), labels, sum);
    page.sample(&format!("{name}_count"), labels, count);
}

fn with_le<'a>(labels: &[(&'static str, &'a str)], le: &'a str) -> Vec<(&'static str, &'a str)> {
    let labels = labels.iter().copied();
    labels.chain(std::iter::once(("le", le))).collect()
}

/// Longest text in a label.
const TEXT_MAX: usize = 200;

fn put_texts(page: &mut Page, own: &[QuerySample]) {
    let name = "pgweir_query_info";
    page.family(
        name,
        "gauge",
        "The text of a statement without its constants, to be joined by queryid.",
    );
    for query in own {
        let text: Arc<str> = match query.text.char_indices().nth(TEXT_MAX) {
            Some((end, _)) => query.text[..end].into(),
            None => Arc::clone(&query.text),
        };
        page.sample(
            name,
            &[("queryid", &query.id.to_string()), ("query", &text)],
            1,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{Execution, Histogram, Queries, QueryId};

    #[test]
    fn names_follow_the_conventions() {
        for (name, help, _) in COUNTERS {
            assert!(
                name.starts_with("pgweir_query_") && name.ends_with("_total"),
                "{name}"
            );
            assert!(help.ends_with('.'), "{name}");
        }
        for (name, help, ..) in HISTOGRAMS {
            assert!(name.ends_with("_seconds") && help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn a_statement_has_as_many_series_as_is_said() {
        let queries = Queries::default();
        let execution = Execution::that_took(Duration::from_millis(1));
        let query = queries.record(QueryId(7), || "SELECT $1".into());
        queries.count(&query, &execution);
        let mut page = Page::default();
        let sample = queries.sample();
        let (own, _) = Exports::default().select(&sample, 10);
        let shown: Vec<_> = own
            .iter()
            .map(|query| (query.id.to_string(), query))
            .collect();
        put_counters(&mut page, &shown);
        put_errors(&mut page, &shown);
        put_histograms(&mut page, &shown, false);
        put_texts(&mut page, &own);
        let series = page.text.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(series.count(), QUERY_SERIES);
    }

    #[test]
    fn buckets_count_what_is_below_their_bound() {
        let times = Histogram::default();
        for micros in [100, 200, 5_000_000] {
            times.record(micros * 1000);
        }
        let times = Times {
            sum: Duration::from_micros(5_000_300),
            distribution: times.sample(),
        };
        let mut page = Page::default();
        histogram(&mut page, "t", &[("a", "b")], &times, 1);
        let has = |line: &str| page.text.lines().any(|own| own == line);
        assert!(
            has("t_bucket{a=\"b\",le=\"0.000131072\"} 1"),
            "{}",
            page.text
        );
        assert!(has("t_bucket{a=\"b\",le=\"0.000262144\"} 2"));
        assert!(has("t_bucket{a=\"b\",le=\"4.294967296\"} 2"));
        assert!(has("t_bucket{a=\"b\",le=\"8.589934592\"} 3"));
        assert!(has("t_bucket{a=\"b\",le=\"+Inf\"} 3"));
        assert!(has("t_sum{a=\"b\"} 5.000300000") && has("t_count{a=\"b\"} 3"));
    }
}
