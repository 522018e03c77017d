//! Overload and limits of single statements: ranges, and forms of values.

use std::collections::BTreeMap;

use super::decode::Reader;
use super::document::dotted;
use super::model::{Overload, StatementRule};
use super::raw_limits as raw;
use super::validate::within;
use super::validate_seeing::{RULES_MAX, conditions};

const OPENING_MAX_MAX: usize = 1000;
const BREAKER_AFTER_MAX: usize = 1000;

pub(super) fn overload(raw: &raw::Overload, reader: &mut Reader<'_>) -> Overload {
    let (opening, breaker) = (&raw.opening_max, &raw.breaker_after);
    within(opening, "overload.opening_max", 1, OPENING_MAX_MAX, reader);
    within(
        breaker,
        "overload.breaker_after",
        1,
        BREAKER_AFTER_MAX,
        reader,
    );
    Overload {
        opening_max: opening.value,
        breaker_after: breaker.value,
        fail_fast: raw.fail_fast.value,
    }
}

pub(super) fn statement_rules(
    raw: &BTreeMap<String, raw::StatementRule>,
    reader: &mut Reader<'_>,
) -> BTreeMap<String, StatementRule> {
    if raw.len() > RULES_MAX {
        let message = format!("at most {RULES_MAX} rules, got {}", raw.len());
        reader.problem(None, "statement_rules", message);
    }
    let rule = |(name, rule): (&String, &raw::StatementRule)| {
        let path = dotted("statement_rules", name);
        (name.clone(), statement_rule(&path, rule, reader))
    };
    raw.iter().map(rule).collect()
}

fn statement_rule(path: &str, raw: &raw::StatementRule, reader: &mut Reader<'_>) -> StatementRule {
    conditions(path, &raw.queryid, &raw.query, reader);
    StatementRule {
        queryid: raw.queryid.value.clone(),
        query: raw.query.value.clone(),
        user: raw.user.value.clone(),
        database: raw.database.value.clone(),
        application_name: raw.application_name.value.clone(),
        query_timeout: raw.query_timeout.value,
        retry: raw.retry.value,
    }
}
