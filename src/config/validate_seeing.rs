//! What is counted, logged and traced: ranges, and forms of values.

use std::collections::BTreeMap;

use super::decode::{Reader, Setting};
use super::document::dotted;
use super::model::{Log, LogRule, Metrics, QueryLog, SlowLog, Traces};
use super::raw_seeing as raw;
use super::validate::within;

/// Each record takes some kilobytes.
const MAX_QUERIES_MAX: usize = 1_000_000;

/// Rules are asked of each statement; a number has so many bits.
pub(super) const RULES_MAX: usize = 32;

/// Longest pattern: what fitting costs grows with pattern and text.
const PATTERN_MAX: usize = 1000;

pub(super) fn slow_log(raw: &raw::SlowLog) -> SlowLog {
    SlowLog {
        threshold: raw.threshold.value.0,
        sample: raw.sample.value,
        file: raw.file.value.clone(),
        format: raw.format.value,
        explain: raw.explain.value,
        explain_interval: raw.explain_interval.value,
    }
}

pub(super) fn query_log(raw: &raw::QueryLog) -> QueryLog {
    QueryLog {
        file: raw.file.value.clone(),
        format: raw.format.value,
    }
}

pub(super) fn log_rules(
    raw: &BTreeMap<String, raw::LogRule>,
    reader: &mut Reader<'_>,
) -> BTreeMap<String, LogRule> {
    if raw.len() > RULES_MAX {
        let message = format!("at most {RULES_MAX} rules, got {}", raw.len());
        reader.problem(None, "log_rules", message);
    }
    let rule = |(name, rule): (&String, &raw::LogRule)| {
        (
            name.clone(),
            log_rule(&dotted("log_rules", name), rule, reader),
        )
    };
    raw.iter().map(rule).collect()
}

/// What a rule says of the statements that it is about.
pub(super) fn conditions(
    path: &str,
    queryid: &Setting<Option<String>>,
    query: &Setting<Option<String>>,
    reader: &mut Reader<'_>,
) {
    if let Some(id) = &queryid.value
        && (id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        let key = format!("{path}.queryid");
        let message = "expected 16 hexadecimal digits, as SHOW QUERIES shows them";
        reader.problem(queryid.at.as_ref(), &key, message);
    }
    if query
        .value
        .as_ref()
        .is_some_and(|pattern| pattern.len() > PATTERN_MAX)
    {
        let message = format!("must be at most {PATTERN_MAX} bytes");
        reader.problem(query.at.as_ref(), &format!("{path}.query"), message);
    }
}

fn log_rule(path: &str, raw: &raw::LogRule, reader: &mut Reader<'_>) -> LogRule {
    conditions(path, &raw.queryid, &raw.query, reader);
    LogRule {
        queryid: raw.queryid.value.clone(),
        query: raw.query.value.clone(),
        user: raw.user.value.clone(),
        database: raw.database.value.clone(),
        application_name: raw.application_name.value.clone(),
        slow_threshold: raw.slow_threshold.value,
        sample: raw.sample.value,
        log: raw.log.value,
    }
}

pub(super) fn traces(raw: &raw::Traces) -> Traces {
    Traces {
        endpoint: raw.endpoint.value.clone(),
        sample: raw.sample.value,
        service_name: raw.service_name.value.clone(),
    }
}

pub(super) fn metrics(raw: &raw::Metrics, reader: &mut Reader<'_>) -> Metrics {
    within(
        &raw.max_queries,
        "metrics.max_queries",
        1,
        MAX_QUERIES_MAX,
        reader,
    );
    within(
        &raw.max_query_series,
        "metrics.max_query_series",
        0,
        MAX_QUERIES_MAX,
        reader,
    );
    Metrics {
        max_queries: raw.max_queries.value,
        max_query_series: raw.max_query_series.value,
        lock_wait_after: raw.lock_wait_after.value.0,
    }
}

pub(super) fn log(raw: &raw::Log, reader: &mut Reader<'_>) -> Log {
    let level = &raw.level.value;
    if !is_filter(level) {
        let message = "expected error, warn, info, debug, trace, or a directive such as \"pgweir::pool=debug,info\"";
        reader.problem(raw.level.at.as_ref(), "log.level", message);
    }
    Log {
        level: level.clone(),
        format: raw.format.value,
        log_connections: raw.log_connections.value,
        log_disconnections: raw.log_disconnections.value,
        log_pooler_errors: raw.log_pooler_errors.value,
    }
}

/// Whether it is a filter that lets something through on purpose: to `EnvFilter` a misspelt level is the name of a
/// module, and the log would be silent.
fn is_filter(level: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level_word = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let directive = |part: &str| match part.rsplit_once('=') {
        Some((_, level)) => level_word(level),
        None => level_word(part),
    };
    level.split(',').all(|part| directive(part.trim()))
        && tracing_subscriber::EnvFilter::builder()
            .parse(level)
            .is_ok()
}
