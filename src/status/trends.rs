//! How single statements fared over the last quarter of an hour: what the charts of one statement are drawn from.
//!
//! Records only ever grow, so every [`STEP`] a copy of them is compared with the one before. A statement is tracked
//! once it has run; where there is no room, those with the least time over the quarter of an hour make it.
//!
//! Bound: [`QUERIES_MAX`] statements with [`COLUMNS`] columns of the few doublings that their times spread over, and a
//! copy of their histograms: 20 kB each, 4 MB in all. Of all others, two numbers are kept.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::timeline::Quantiles;
use crate::meter::{Distribution, QueryId, QuerySample};

/// Statements tracked.
pub const QUERIES_MAX: usize = 200;

/// Time from one column to the next.
pub const STEP: Duration = Duration::from_secs(15);

/// Columns kept: a quarter of an hour.
pub const COLUMNS: usize = 60;

/// Columns that a statement's load is the mean of: a minute.
const RECENT: usize = 4;

/// What a statement did in one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column {
    pub calls: u64,
    pub errors: u64,
    /// Sum of its times.
    pub time: Duration,
    pub latency: Option<Quantiles>,
    /// Calls by doubling of time; see [`Distribution::octaves`].
    pub octaves: Box<[(u8, u64)]>,
}

#[derive(Debug, Default)]
struct Trend {
    /// Up to the newest; shorter than [`COLUMNS`] for those tracked since lately.
    columns: VecDeque<Column>,
    /// What was counted up to the newest column.
    times: Distribution,
    sum: Duration,
    errors: u64,
    /// Sum of the columns' times.
    time: Duration,
}

/// What was counted of a statement the last time.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    calls: u64,
    time: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Trends {
    tracked: HashMap<QueryId, Trend>,
    last: HashMap<QueryId, Last>,
    /// Columns so far, those forgotten included.
    count: u64,
}

/// A statement's load over the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    pub calls_a_second: f64,
    pub errors_a_second: f64,
    /// Mean number of executions under way.
    pub concurrency: f64,
}

impl Trends {
    /// Takes a column of every statement in `queries`.
    pub fn record(&mut self, queries: &[QuerySample]) {
        self.count += 1;
        let before = std::mem::take(&mut self.last);
        for query in queries {
            let now = Last {
                calls: query.calls,
                time: query.total.sum,
            };
            let then = before.get(&query.id).copied();
            self.last.insert(query.id, now);
            let ran = then.unwrap_or_default().calls != now.calls;
            if !self.tracked.contains_key(&query.id) && ran {
                self.track(query, then);
            }
            if let Some(trend) = self.tracked.get_mut(&query.id) {
                trend.push(query);
            }
        }
        // A statement without a record has made room there and starts anew when it comes back.
        self.tracked.retain(|id, _| self.last.contains_key(id));
    }

    /// Begins to track a statement that has run, if it has more time than the least of those tracked.
    fn track(&mut self, query: &QuerySample, then: Option<Last>) {
        if self.tracked.len() >= QUERIES_MAX {
            let least = self
                .tracked
                .iter()
                .min_by_key(|(id, trend)| (trend.time, **id));
            let Some((&id, least)) = least.map(|(id, trend)| (id, trend.time)) else {
                return;
            };
            let time = query
                .total
                .sum
                .saturating_sub(then.unwrap_or_default().time);
            if time <= least {
                return;
            }
            self.tracked.remove(&id);
        }
        let trend = match then {
            // It is new: all of it happened in this step.
            None => Trend::default(),
            // It ran before, nobody knows when: only what comes is known.
            Some(_) => Trend {
                times: query.total.distribution.clone(),
                sum: query.total.sum,
                errors: query.errors,
                ..Trend::default()
            },
        };
        self.tracked.insert(query.id, trend);
    }

    /// The columns of a statement, oldest first.
    pub fn of(&self, id: QueryId) -> Option<impl ExactSizeIterator<Item = &Column>> {
        self.tracked.get(&id).map(|trend| trend.columns.iter())
    }

    /// Number of the newest column.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What a statement has done lately; nothing if it is not tracked.
    #[allow(clippy::cast_precision_loss, reason = "for show")]
    pub fn load(&self, id: QueryId) -> Load {
        let Some(trend) = self.tracked.get(&id) else {
            return Load::default();
        };
        let columns = trend.columns.iter().rev().take(RECENT);
        let over = STEP.as_secs_f64() * columns.len().max(1) as f64;
        let (mut calls, mut errors, mut time) = (0, 0, 0.0);
        for column in columns {
            calls += column.calls;
            errors += column.errors;
            time += column.time.as_secs_f64();
        }
        Load {
            calls_a_second: calls as f64 / over,
            errors_a_second: errors as f64 / over,
            concurrency: time / over,
        }
    }
}

impl Trend {
    fn push(&mut self, query: &QuerySample) {
        if query.calls < self.times.count() {
            // Its record has made room since, and what it holds now is all new.
            (self.times, self.sum, self.errors) = Default::default();
        }
        let times = query.total.distribution.minus(&self.times);
        let column = Column {
            calls: times.count(),
            errors: query.errors.saturating_sub(self.errors),
            time: query.total.sum.saturating_sub(self.sum),
            latency: Quantiles::of(&times),
            octaves: times.octaves().into(),
        };
        self.times.clone_from(&query.total.distribution);
        (self.sum, self.errors) = (query.total.sum, query.errors);
        self.time += column.time;
        if self.columns.len() == COLUMNS
            && let Some(gone) = self.columns.pop_front()
        {
            self.time = self.time.saturating_sub(gone.time);
        }
        self.columns.push_back(column);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{Execution, Queries};

    /// Runs the statement `id` some times.
    fn run(queries: &Queries, id: u64, times: usize, took: Duration) {
        let query = queries.record(QueryId(id), || "SELECT 1".into());
        for _ in 0..times {
            queries.count(&query, &Execution::that_took(took));
        }
    }

    const MS: Duration = Duration::from_millis(1);

    fn calls(trends: &Trends, id: u64) -> Option<Vec<u64>> {
        let columns = trends.of(QueryId(id))?;
        Some(columns.map(|column| column.calls).collect())
    }

    #[test]
    fn a_column_is_what_a_statement_did_in_its_step() {
        let (queries, mut trends) = (Queries::default(), Trends::default());
        run(&queries, 1, 30, 8 * MS);
        trends.record(&queries.sample().queries);
        run(&queries, 1, 60, 2 * MS);
        trends.record(&queries.sample().queries);
        trends.record(&queries.sample().queries);
        assert_eq!(calls(&trends, 1), Some(vec![30, 60, 0]));
        let columns: Vec<&Column> = trends.of(QueryId(1)).unwrap().collect();
        assert_eq!(columns[0].octaves, [(22, 30)].into());
        assert_eq!(columns[1].time, 120 * MS);
        assert!((columns[1].latency.unwrap().p50 - 0.002).abs() < 0.000_04);
        assert_eq!(
            (&columns[2].octaves[..], columns[2].latency),
            (&[][..], None)
        );
        let load = trends.load(QueryId(1));
        assert!((load.calls_a_second - 2.0).abs() < 1e-9, "{load:?}");
        assert!((load.concurrency - 0.36 / 45.0).abs() < 1e-9, "{load:?}");
        assert_eq!((trends.count(), calls(&trends, 2)), (3, None));
        assert_eq!(trends.load(QueryId(2)), Load::default());
    }

    #[test]
    fn columns_and_statements_are_bounded_and_the_least_make_room() {
        let (queries, mut trends) = (Queries::default(), Trends::default());
        let most = QUERIES_MAX as u64;
        for id in 1..=most {
            run(&queries, id, 1, MS * u32::try_from(id).unwrap());
        }
        trends.record(&queries.sample().queries);
        assert_eq!(trends.tracked.len(), QUERIES_MAX);
        run(&queries, most + 1, 1, MS / 2);
        trends.record(&queries.sample().queries);
        assert_eq!(calls(&trends, most + 1), None, "less time than all others");
        run(&queries, most + 2, 5, MS);
        trends.record(&queries.sample().queries);
        assert_eq!(calls(&trends, most + 2), Some(vec![5]));
        assert_eq!(
            (calls(&trends, 1), trends.tracked.len()),
            (None, QUERIES_MAX)
        );
        // One that comes late begins with what it does then: when the rest happened is not known.
        run(&queries, 1, 40, MS);
        trends.record(&queries.sample().queries);
        assert_eq!(calls(&trends, 1), Some(vec![0]));
        for _ in 0..COLUMNS + 5 {
            trends.record(&queries.sample().queries);
        }
        assert_eq!(trends.of(QueryId(most)).unwrap().len(), COLUMNS);
        assert_eq!(trends.tracked[&QueryId(most)].time, Duration::ZERO);
        trends.record(&[]);
        assert!(trends.tracked.is_empty() && trends.last.is_empty());
    }

    #[test]
    fn a_record_that_began_anew_is_not_taken_for_the_old_one() {
        let mut trends = Trends::default();
        let queries = Queries::default();
        run(&queries, 1, 50, MS);
        trends.record(&queries.sample().queries);
        let anew = Queries::default();
        run(&anew, 1, 7, MS);
        trends.record(&anew.sample().queries);
        assert_eq!(calls(&trends, 1), Some(vec![50, 7]));
    }
}
