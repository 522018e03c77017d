//! Statements that take more time than they should, fail, or wait for each other.

use std::sync::Arc;
use std::time::Duration;

use super::{Advice, Subject, Urgency, errors, plural, spoken};
use crate::meter::QueryId;

/// Calls below which nothing is said of a statement.
const CALLS_MIN: u64 = 20;

/// Most rows a call may return to count as one that looks for a few.
const FEW_ROWS: f64 = 20.0;

/// Time by which even the fastest half of the calls must be above the fastest statement there is, which is about a
/// round trip to the server.
const EXCESS_MIN: Duration = Duration::from_millis(2);

/// Executions under way, on average, below which an index would not be noticed.
const LOAD_MIN: f64 = 0.002;

/// Share of the time of all statements above which one is worth a look whatever it does.
const SHARE_LARGE: f64 = 0.4;

/// Executions under way, on average, below which a server is at rest and shares mean nothing.
const BUSY: f64 = 0.5;

/// Pieces about slow statements, and about failing ones.
const EACH_MAX: usize = 5;

/// A statement, as far as advice depends on it.
#[derive(Clone, Debug)]
pub struct Statement {
    pub id: QueryId,
    pub text: Arc<str>,
    pub calls: u64,
    pub rows: u64,
    pub min: Duration,
    pub p50: Duration,
    pub mean: Duration,
    /// Mean number of executions under way in the last minute.
    pub concurrency: f64,
    pub errors: u64,
    pub errors_lately: f64,
    /// The most frequent SQLSTATE among its errors.
    pub sqlstate: Option<String>,
}

/// A statement that waits for a lock.
#[derive(Clone, Debug)]
pub struct LockWait {
    pub query: QueryId,
    pub running: Duration,
    pub relation: Box<str>,
    /// In `pg_stat_activity`'s words, of the first who stands in the way.
    pub blocker_state: Box<str>,
    /// Process id of its backend.
    pub blocker: u32,
}

/// Slow ones first, then failing ones.
pub fn on_statements(statements: &[Statement]) -> Vec<Advice> {
    let all: f64 = statements
        .iter()
        .map(|statement| statement.concurrency)
        .sum();
    let often = |statement: &&Statement| statement.calls >= CALLS_MIN;
    let fastest = statements
        .iter()
        .filter(often)
        .map(|statement| statement.min);
    let round_trip = fastest.min().unwrap_or_default();
    let mut by_load: Vec<&Statement> = statements.iter().collect();
    by_load.sort_by(|a, b| b.concurrency.total_cmp(&a.concurrency));
    let slow = by_load
        .iter()
        .filter_map(|statement| index(statement, round_trip).or_else(|| heavy(statement, all)))
        .take(EACH_MAX);
    let mut by_errors: Vec<&Statement> = statements.iter().collect();
    by_errors.sort_by(|a, b| b.errors_lately.total_cmp(&a.errors_lately));
    let failing = by_errors
        .iter()
        .filter_map(|statement| failing(statement))
        .take(EACH_MAX);
    slow.chain(failing).collect()
}

/// Whether the text begins with one of `words`.
fn begins_with(text: &str, words: &[&str]) -> bool {
    let first = text
        .trim_start()
        .split(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    words.iter().any(|word| first.eq_ignore_ascii_case(word))
}

/// A statement that looks for a few rows, and takes its time to find them every time, may lack an index.
#[allow(clippy::cast_precision_loss, reason = "a mean")]
fn index(statement: &Statement, round_trip: Duration) -> Option<Advice> {
    let text = statement.text.to_ascii_lowercase();
    let filters = begins_with(&text, &["select", "update", "delete"]) && text.contains(" where ");
    // Sleeping and waiting for locks are not looking.
    let waits =
        text.contains("pg_sleep") || text.contains("for update") || text.contains("for share");
    let groups = text.contains("group by");
    let rows = statement.rows as f64 / statement.calls.max(1) as f64;
    let excess = statement.p50.saturating_sub(round_trip);
    let is_slow = excess >= EXCESS_MIN && statement.min >= round_trip + EXCESS_MIN / 2;
    let counts = statement.calls >= CALLS_MIN && statement.concurrency >= LOAD_MIN;
    if !filters || waits || groups || !is_slow || !counts || rows > FEW_ROWS {
        return None;
    }
    Some(Advice {
        urgency: Urgency::Hint,
        subject: Subject::Statement(statement.id),
        what: format!(
            "Half of its {} calls take more than {}, and none less than {}, to find {rows:.1} rows each.",
            statement.calls,
            spoken(statement.p50),
            spoken(statement.min)
        ),
        action: "An index may be missing: look at EXPLAIN (ANALYZE, BUFFERS). A Seq Scan whose Filter removes most rows \
                 asks for an index on the columns of its WHERE."
            .to_owned(),
        setting: None,
    })
}

/// A statement that most of the time goes to.
fn heavy(statement: &Statement, all: f64) -> Option<Advice> {
    let share = statement.concurrency / all.max(f64::MIN_POSITIVE);
    if all < BUSY || share < SHARE_LARGE || statement.calls < CALLS_MIN {
        return None;
    }
    Some(Advice {
        urgency: Urgency::Hint,
        subject: Subject::Statement(statement.id),
        what: format!(
            "{:.0} % of the time of all statements in the last minute, {} a call.",
            share * 100.0,
            spoken(statement.mean)
        ),
        action: "Making this one faster, or running it less often, helps the most: look at its plan and at who calls it."
            .to_owned(),
        setting: None,
    })
}

/// A statement that fails again and again.
fn failing(statement: &Statement) -> Option<Advice> {
    if statement.errors_lately <= 0.0 || statement.errors < 3 {
        return None;
    }
    let sqlstate = statement.sqlstate.as_deref()?;
    let (name, action) = errors::about(sqlstate)?;
    Some(Advice {
        urgency: Urgency::Hint,
        subject: Subject::Statement(statement.id),
        what: format!(
            "{} of {} failed, most often with {sqlstate} ({name}).",
            statement.errors,
            plural(
                usize::try_from(statement.calls).unwrap_or(usize::MAX),
                "call"
            )
        ),
        action: action.to_owned(),
        setting: None,
    })
}

/// Statements that wait for locks now: one piece for each who stands in the way.
pub fn on_locks(waits: &[LockWait]) -> Vec<Advice> {
    let mut blockers: Vec<u32> = waits.iter().map(|wait| wait.blocker).collect();
    blockers.sort_unstable();
    blockers.dedup();
    blockers
        .into_iter()
        .filter_map(|blocker| {
            let blocked = || waits.iter().filter(|wait| wait.blocker == blocker);
            let longest = blocked().max_by_key(|wait| wait.running)?;
            Some(on_blocker(longest, blocked().count()))
        })
        .collect()
}

fn on_blocker(longest: &LockWait, count: usize) -> Advice {
    let on = match &*longest.relation {
        "" => String::new(),
        relation => format!(" on {relation}"),
    };
    let idle = longest.blocker_state.starts_with("idle in transaction");
    let action = if idle {
        "The transaction that holds it has nothing running: the application has left it open. COMMIT sooner, or let \
         timeouts.idle_transaction_timeout end such transactions."
    } else {
        "The transaction that holds it still works: make it shorter, and take locks as late in it as possible."
    };
    Advice {
        urgency: if longest.running >= Duration::from_secs(5) {
            Urgency::Now
        } else {
            Urgency::Soon
        },
        subject: Subject::Statement(longest.query),
        what: format!(
            "{} for a lock{on} that server process {} holds, the longest for {}.",
            if count == 1 {
                "1 statement waits".to_owned()
            } else {
                format!("{count} statements wait")
            },
            longest.blocker,
            spoken(longest.running)
        ),
        action: action.to_owned(),
        setting: idle.then(|| "timeouts.idle_transaction_timeout".to_owned()),
    }
}
