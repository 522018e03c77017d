//! How much work reruns may add to a pool: a token bucket.
//!
//! Each transaction of the pool puts a share of a token in, and so does time; each rerun takes one out. While the server
//! does its work that is plenty, and when everything fails the pool's load is what it was plus the least rate.
//!
//! # Why
//! The deposits are read off a counter that is kept anyway, so a statement that needs no rerun pays nothing.

use std::time::Duration;

/// The bucket holds what would gather in this time by itself, and at least [`LEAST_HELD`].
const HELD_SECONDS: f64 = 10.0;
const LEAST_HELD: f64 = 10.0;

/// What fills the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens for each 100 transactions.
    pub percent: u32,
    /// Tokens each second.
    pub per_second: u32,
}

/// The bucket.
#[derive(Debug, Default)]
pub struct Budget {
    /// `None` until the first withdrawal, which finds it full.
    filled: Option<Filled>,
}

#[derive(Clone, Copy, Debug)]
struct Filled {
    tokens: f64,
    /// The pool's transactions at the last withdrawal, and when that was.
    transactions: u64,
    at: Duration,
}

impl Budget {
    /// Takes a token if there is one. `transactions` is the pool's total, `now` the time on any clock that does not go
    /// back.
    pub fn take(&mut self, rate: Rate, transactions: u64, now: Duration) -> bool {
        let per_second = f64::from(rate.per_second);
        let per_transaction = f64::from(rate.percent) / 100.0;
        let most = if rate.percent == 0 && rate.per_second == 0 {
            0.0
        } else {
            (per_second * HELD_SECONDS).max(LEAST_HELD)
        };
        let tokens = match self.filled {
            None => most,
            Some(filled) => {
                let passed = now.saturating_sub(filled.at).as_secs_f64();
                let done = transactions.saturating_sub(filled.transactions);
                // More than a bucketful needs no exact number.
                let done = f64::from(u32::try_from(done).unwrap_or(u32::MAX));
                (filled.tokens + passed * per_second + done * per_transaction).min(most)
            }
        };
        let may = tokens >= 1.0;
        self.filled = Some(Filled {
            tokens: if may { tokens - 1.0 } else { tokens },
            transactions,
            at: now,
        });
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &mut Budget, rate: Rate, transactions: u64, at: u64) -> usize {
        let now = Duration::from_secs(at);
        (0..100_000)
            .take_while(|_| budget.take(rate, transactions, now))
            .count()
    }

    #[test]
    fn an_outage_gets_a_bucketful_and_then_the_least_rate() {
        let rate = Rate {
            percent: 50,
            per_second: 20,
        };
        let mut budget = Budget::default();
        assert_eq!(taken(&mut budget, rate, 0, 0), 200);
        assert_eq!(taken(&mut budget, rate, 0, 1), 20);
        assert_eq!(taken(&mut budget, rate, 0, 3), 40);
    }

    #[test]
    fn work_done_pays_for_its_reruns() {
        let rate = Rate {
            percent: 50,
            per_second: 0,
        };
        let mut budget = Budget::default();
        assert_eq!(taken(&mut budget, rate, 0, 0), 10);
        assert_eq!(taken(&mut budget, rate, 10, 0), 5);
        assert_eq!(taken(&mut budget, rate, 1_000_000, 0), 10);
    }

    #[test]
    fn no_budget_is_no_rerun() {
        let rate = Rate {
            percent: 0,
            per_second: 0,
        };
        assert_eq!(taken(&mut Budget::default(), rate, 0, 0), 0);
    }
}
