//! `SHOW RETRIES`: what ran again in each pool, and what became of COMMITs whose answer was lost.

use std::sync::atomic::Ordering;

use super::table::{Column, Row, int8, text};
use crate::status::PoolStatus;

pub(super) const RETRIES: [Column; 14] = [
    text("database"),
    text("user"),
    int8("stale"),
    int8("serialization"),
    int8("deadlock"),
    int8("terminated"),
    int8("lost"),
    int8("replays_same"),
    int8("replays_different"),
    int8("over_budget"),
    int8("commits_committed"),
    int8("commits_rolled_back"),
    int8("commits_unknown"),
    int8("outcomes_unknown"),
];

/// The row of one pool.
pub(super) fn row(status: &PoolStatus) -> Row {
    let pool = &status.pool;
    let retries = &pool.retries;
    let again = retries.again().map(|(_, count)| count);
    let others = [
        &retries.replayed,
        &retries.differed,
        &retries.over_budget,
        &retries.committed,
        &retries.rolled_back,
        &retries.unsettled,
        &retries.unknown,
    ];
    let counts = again.chain(others.map(|count| count.load(Ordering::Relaxed)));
    let mut row: Row = vec![(&*pool.key.database).into(), (&*pool.key.user).into()];
    row.extend(counts.map(Into::into));
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::policy::Failure;

    #[test]
    fn failures_have_their_columns() {
        let names = RETRIES[2..].iter().map(|column| column.name);
        let failures = Failure::ALL.map(Failure::as_str);
        assert!(names.take(failures.len()).eq(failures));
    }
}
