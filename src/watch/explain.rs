//! Plans of slow statements: how their server would run them for parameters of any value, without running them.
//!
//! PostgreSQL 16 and later explain a text with parameters (`EXPLAIN (GENERIC_PLAN)`); from 12 on a prepared statement
//! does the same under `plan_cache_mode = force_generic_plan`. Only the text without constants is sent, so a plan shows
//! none; a text whose parameters' types can't be told without them has no plan.
//!
//! Bound: one at a time, from a queue of [`crate::shared::PLANS_MAX`]; each statement once in
//! `slow_log.explain_interval`; a plan of `PLAN_MAX` bytes; `TIME_MAX` of the server's time.
//!
//! # Invariants
//! - A text with a semicolon in it is not sent: whatever else its reading may come to, it is one statement.
//! - It is sent in a transaction that reads only and is rolled back.

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use super::side::Sides;
use crate::backend::query::Row;
use crate::journal::Entry;
use crate::meter::Query;
use crate::shared::{PlanRequest, Shared};

/// Bytes of a plan that are kept.
const PLAN_MAX: usize = 16 * 1024;

/// How long planning may take, as PostgreSQL writes it.
const TIME_MAX: &str = "2s";

/// The first version with `GENERIC_PLAN`.
const GENERIC_PLAN: u32 = 16;

/// The mark of a text that was cut.
const CUT: char = '…';

/// Asks for plans until dropped.
pub async fn explain(shared: Arc<Shared>, mut requests: Receiver<PlanRequest>) {
    let mut sides = Sides::default();
    while let Some(PlanRequest { pool, query }) = requests.recv().await {
        let version = pool.baseline().and_then(|reported| {
            let version = reported.get(b"server_version")?;
            major(std::str::from_utf8(version).ok()?)
        });
        let Some(text) = question(&query, version.unwrap_or(0)) else {
            continue;
        };
        match sides.ask(&shared.pools, &pool, true, text.as_bytes()).await {
            Ok(rows) => {
                let plan: Arc<str> = plan(&rows).into();
                shared.recent.plan(query.id, Arc::clone(&plan));
                shared.journal.put(Entry::Plan {
                    query: query.id,
                    text: Arc::clone(&query.text),
                    plan,
                });
            }
            Err(error) => {
                tracing::debug!(queryid = %query.id, %error, "no plan of a slow statement");
            }
        }
        sides.close_unused();
    }
}

/// `15` of `15.4 (Debian 15.4-1)`.
fn major(version: &str) -> Option<u32> {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// What is sent; `None` for a text that can't be.
fn question(query: &Query, version: u32) -> Option<String> {
    let text = &query.text;
    if text.contains([';', CUT, '\0']) {
        return None;
    }
    let explain = if version >= GENERIC_PLAN {
        format!("EXPLAIN (GENERIC_PLAN) {text}")
    } else {
        let nulls = vec!["NULL"; parameters(text)].join(", ");
        let nulls = if nulls.is_empty() {
            nulls
        } else {
            format!("({nulls})")
        };
        format!(
            "SET LOCAL plan_cache_mode = force_generic_plan; DEALLOCATE ALL; PREPARE pgweir_plan AS {text}; \
             EXPLAIN EXECUTE pgweir_plan{nulls}; DEALLOCATE ALL"
        )
    };
    Some(format!(
        "BEGIN READ ONLY; SET LOCAL statement_timeout = '{TIME_MAX}'; {explain}; ROLLBACK"
    ))
}

/// The highest `$n` of a text without constants.
fn parameters(text: &str) -> usize {
    let numbers = text.split('$').skip(1);
    numbers
        .filter_map(|rest| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        })
        .filter(|number| *number <= 1000)
        .max()
        .unwrap_or(0)
}

fn plan(rows: &[Row]) -> String {
    let mut plan = String::new();
    for row in rows {
        let line = row.first().and_then(Option::as_deref).unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        if plan.len() + line.len() >= PLAN_MAX {
            plan.push(CUT);
            break;
        }
        if !plan.is_empty() {
            plan.push('\n');
        }
        plan.push_str(&line);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{Queries, QueryId};

    fn asked(text: &str, version: u32) -> Option<String> {
        let queries = Queries::default();
        question(&queries.record(QueryId(7), || text.into()), version)
    }

    #[test]
    fn the_way_to_ask_depends_on_the_version() {
        assert_eq!(
            asked("SELECT $1", 17).unwrap(),
            "BEGIN READ ONLY; SET LOCAL statement_timeout = '2s'; EXPLAIN (GENERIC_PLAN) SELECT $1; ROLLBACK"
        );
        let old = asked("SELECT $2 + $1", 15).unwrap();
        assert!(old.contains(
            "PREPARE pgweir_plan AS SELECT $2 + $1; EXPLAIN EXECUTE pgweir_plan(NULL, NULL); "
        ));
        assert!(
            asked("SELECT now()", 15)
                .unwrap()
                .contains("EXECUTE pgweir_plan; ")
        );
    }

    #[test]
    fn what_may_be_more_or_less_than_one_statement_is_not_asked() {
        assert_eq!(asked("SELECT 1; DROP TABLE t", 17), None);
        assert_eq!(asked("SELECT \"a;b\"", 17), None);
        assert_eq!(asked("SELECT …", 17), None);
    }

    #[test]
    fn versions_and_parameters_are_read() {
        assert_eq!(major("15.4 (Debian 15.4-1)"), Some(15));
        assert_eq!(major("18beta1"), Some(18));
        assert_eq!(major(""), None);
        assert_eq!(parameters("SELECT $1, a$b, $12 FROM t"), 12);
        assert_eq!(parameters("SELECT $99999999999999999999"), 0);
    }
}
