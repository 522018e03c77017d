//! What a pool may run again, and what it has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::config::model::Retry;
use crate::retry::budget::{Budget, Rate};
use crate::retry::policy::Failure;

/// See the module. Totals are since the pool was made.
#[derive(Debug)]
pub struct Retries {
    budget: Mutex<Budget>,
    /// The budget's clock starts here.
    made: Instant,
    /// Runs after the first, in the order of [`Failure::ALL`].
    again: [AtomicU64; Failure::ALL.len()],
    /// Failures passed on because the budget was spent.
    pub over_budget: AtomicU64,
    /// Transactions whose client was answered as before, and those whose client was not: those were given up.
    pub replayed: AtomicU64,
    pub differed: AtomicU64,
    /// Clients told that an outcome is unknown (08007).
    pub unknown: AtomicU64,
    /// COMMITs without an answer that turned out to have committed, and to be rolled back.
    pub committed: AtomicU64,
    pub rolled_back: AtomicU64,
    /// Those of which it could not be found out.
    pub unsettled: AtomicU64,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            budget: Mutex::default(),
            made: Instant::now(),
            again: Default::default(),
            over_budget: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
            differed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            rolled_back: AtomicU64::new(0),
            unsettled: AtomicU64::new(0),
        }
    }
}

impl Retries {
    /// Takes one run from the pool's budget, if there is one. `transactions` is the pool's total.
    pub fn may_run(&self, retry: &Retry, transactions: u64, now: Instant) -> bool {
        let rate = Rate {
            percent: retry.budget,
            per_second: retry.budget_min,
        };
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let may = budget.take(rate, transactions, now.duration_since(self.made));
        if !may {
            self.over_budget.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    pub fn count_again(&self, failure: Failure) {
        self.again[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What became of a COMMIT without an answer was found out.
    pub fn count_settled(&self, has_committed: bool) {
        let count = if has_committed {
            &self.committed
        } else {
            &self.rolled_back
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs after the first, by what they were for.
    pub fn again(&self) -> impl Iterator<Item = (Failure, u64)> {
        let count = |failure: Failure| self.again[failure as usize].load(Ordering::Relaxed);
        Failure::ALL
            .map(|failure| (failure, count(failure)))
            .into_iter()
    }
}
