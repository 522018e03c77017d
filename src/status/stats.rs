//! Totals by database, and their averages over the last period.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::pool::Pools;
use crate::pool::pool::Counters;

/// Length of a period: PgBouncer's `stats_period`.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Counts since the start, or in a period. Times are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub server_assignments: u64,
    pub transactions: u64,
    pub queries: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub transaction_time: u64,
    pub query_time: u64,
    pub wait_time: u64,
    pub client_parses: u64,
    pub server_parses: u64,
    pub binds: u64,
}

impl Totals {
    /// The totals of one pool.
    pub fn of(counters: &Counters) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            server_assignments: read(&counters.assignments),
            transactions: read(&counters.transactions),
            queries: read(&counters.queries),
            received_bytes: read(&counters.received_bytes),
            sent_bytes: read(&counters.sent_bytes),
            transaction_time: read(&counters.transaction_micros),
            query_time: read(&counters.query_micros),
            wait_time: read(&counters.wait_micros),
            client_parses: read(&counters.parses_client),
            server_parses: read(&counters.parses_server),
            binds: read(&counters.binds),
        }
    }

    /// In the order of PgBouncer's columns.
    pub fn columns(&self) -> [u64; 11] {
        [
            self.server_assignments,
            self.transactions,
            self.queries,
            self.received_bytes,
            self.sent_bytes,
            self.transaction_time,
            self.query_time,
            self.wait_time,
            self.client_parses,
            self.server_parses,
            self.binds,
        ]
    }

    fn from_columns(columns: [u64; 11]) -> Self {
        let mut totals = Self::default();
        for (field, value) in totals.fields_mut().into_iter().zip(columns) {
            *field = value;
        }
        totals
    }

    /// In the order of [`Self::columns`].
    fn fields_mut(&mut self) -> [&mut u64; 11] {
        [
            &mut self.server_assignments,
            &mut self.transactions,
            &mut self.queries,
            &mut self.received_bytes,
            &mut self.sent_bytes,
            &mut self.transaction_time,
            &mut self.query_time,
            &mut self.wait_time,
            &mut self.client_parses,
            &mut self.server_parses,
            &mut self.binds,
        ]
    }

    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    fn with(&self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        let (mut own, other) = (self.columns(), other.columns());
        for (own, other) in own.iter_mut().zip(other) {
            *own = combine(*own, other);
        }
        Self::from_columns(own)
    }

    /// Averages as PgBouncer makes them: counts a second; times for each transaction, query and assignment.
    #[must_use]
    pub fn average(&self, over: Duration) -> Self {
        let micros = over.as_micros().max(1);
        let a_second =
            |count: u64| u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX);
        let each = |time: u64, count: u64| time.checked_div(count).unwrap_or(0);
        let mut average = Self::from_columns(self.columns().map(a_second));
        average.transaction_time = each(self.transaction_time, self.transactions);
        average.query_time = each(self.query_time, self.queries);
        average.wait_time = each(self.wait_time, self.server_assignments);
        average
    }
}

/// Totals and averages of one database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseStats {
    pub total: Totals,
    pub average: Totals,
    /// What `average` is made from: the counts of a period, and its length.
    pub counted: Totals,
    pub over: Duration,
}

#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    totals: BTreeMap<Arc<str>, Totals>,
}

#[derive(Debug)]
struct Periods {
    older: Sample,
    newer: Option<Sample>,
}

/// The ends of the last two periods.
#[derive(Debug)]
pub struct History {
    periods: Mutex<Periods>,
}

impl Default for History {
    fn default() -> Self {
        let older = Sample {
            at: Instant::now(),
            totals: BTreeMap::new(),
        };
        Self {
            periods: Mutex::new(Periods { older, newer: None }),
        }
    }
}

impl History {
    /// Ends a period every [`PERIOD`]; runs until dropped.
    pub async fn keep(&self, pools: &Pools) {
        let mut ticks = tokio::time::interval_at(Instant::now() + PERIOD, PERIOD);
        loop {
            ticks.tick().await;
            self.end_period(totals(pools), Instant::now());
        }
    }

    fn end_period(&self, totals: BTreeMap<Arc<str>, Totals>, at: Instant) {
        let sample = Sample { at, totals };
        let mut periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newer) = periods.newer.replace(sample) {
            periods.older = newer;
        }
    }

    /// By database, over the last whole period; before there was one, since the start.
    pub fn stats(&self, pools: &Pools) -> BTreeMap<Arc<str>, DatabaseStats> {
        self.compare(totals(pools), Instant::now())
    }

    fn compare(
        &self,
        totals: BTreeMap<Arc<str>, Totals>,
        now: Instant,
    ) -> BTreeMap<Arc<str>, DatabaseStats> {
        let periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        let (newer, at) = match &periods.newer {
            Some(newer) => (Some(&newer.totals), newer.at),
            None => (None, now),
        };
        let over = at.saturating_duration_since(periods.older.at);
        let of = |sample: &BTreeMap<Arc<str>, Totals>, name: &str| {
            sample.get(name).copied().unwrap_or_default()
        };
        totals
            .into_iter()
            .map(|(name, total)| {
                let end = newer.map_or(total, |newer| of(newer, &name));
                let counted = end.minus(&of(&periods.older.totals, &name));
                let average = counted.average(over);
                let stats = DatabaseStats {
                    total,
                    average,
                    counted,
                    over,
                };
                (name, stats)
            })
            .collect()
    }
}

fn totals(pools: &Pools) -> BTreeMap<Arc<str>, Totals> {
    let mut totals: BTreeMap<Arc<str>, Totals> = BTreeMap::new();
    pools.each_counters(|database, counters| {
        let sum = totals.entry(Arc::clone(database)).or_default();
        *sum = sum.plus(&Totals::of(counters));
    });
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(transactions: u64) -> BTreeMap<Arc<str>, Totals> {
        let totals = Totals {
            transactions,
            transaction_time: transactions * 500,
            ..Totals::default()
        };
        [("app".into(), totals)].into()
    }

    #[test]
    fn averages_are_of_the_last_whole_period() {
        let history = History::default();
        let start = history.periods.lock().unwrap().older.at;
        let at = |seconds| start + Duration::from_secs(seconds);
        let stats = history.compare(after(100), at(10))["app"];
        assert_eq!(stats.average.transactions, 10, "since the start");
        history.end_period(after(600), at(60));
        history.end_period(after(6600), at(120));
        let stats = history.compare(after(7000), at(150))["app"];
        assert_eq!(
            (stats.total.transactions, stats.average.transactions),
            (7000, 100)
        );
        assert_eq!(stats.average.transaction_time, 500);
    }

    #[test]
    fn columns_read_back_in_their_order() {
        let columns = std::array::from_fn(|place| place as u64);
        assert_eq!(Totals::from_columns(columns).columns(), columns);
    }

    #[test]
    fn a_pool_that_is_dropped_leaves_its_counts_with_its_database() {
        let mut overrides = crate::config::Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        let config = crate::config::load(None, &overrides, &|_| None);
        let config = config.unwrap().config;
        let pools = Pools::new(Arc::new(crate::backend::connect::Dialer::plain()));
        let count = |user, queries| {
            let pool = pools.get(&config, "app", user).unwrap();
            pool.counters.queries.fetch_add(queries, Ordering::Relaxed);
            pool.counters.wait_micros.fetch_add(9, Ordering::Relaxed);
        };
        count("bob", 7);
        count("eve", 5);
        let before = totals(&pools)["app"];
        pools.forget_unused();
        assert!(pools.all().is_empty());
        assert_eq!(totals(&pools)["app"], before);
        count("bob", 1);
        pools.forget_unused();
        let after = totals(&pools)["app"];
        assert_eq!((after.queries, after.wait_time), (13, 27));
    }

    #[test]
    fn an_average_of_nothing_is_nothing() {
        assert_eq!(Totals::default().average(Duration::ZERO), Totals::default());
    }
}
