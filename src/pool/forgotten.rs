//! What pools had counted that are dropped: a database's totals must not shrink because nobody uses one of its pools.
//!
//! Bound: [`DATABASES_MAX`] databases by the names clients gave; a pool of a further one takes its counts along.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::pool::{Counters, Pool};

/// Databases whose dropped pools are remembered.
const DATABASES_MAX: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    by_database: Mutex<BTreeMap<Arc<str>, Counters>>,
}

impl Forgotten {
    /// Takes over the totals of a pool that nobody has any more.
    pub(super) fn take(&self, pool: &Pool) {
        if pool.counters.is_zero() {
            return;
        }
        let mut all = self
            .by_database
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if all.len() < DATABASES_MAX || all.contains_key(&pool.key.database) {
            let sum = all.entry(Arc::clone(&pool.key.database)).or_default();
            sum.add(&pool.counters);
        }
    }

    pub(super) fn each(&self, mut visit: impl FnMut(&Arc<str>, &Counters)) {
        let all = self
            .by_database
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .for_each(|(database, counters)| visit(database, counters));
    }
}

impl Counters {
    /// What `SHOW STATS` shows.
    fn totals(&self) -> [&std::sync::atomic::AtomicU64; 11] {
        [
            &self.transactions,
            &self.queries,
            &self.received_bytes,
            &self.sent_bytes,
            &self.transaction_micros,
            &self.query_micros,
            &self.wait_micros,
            &self.parses_client,
            &self.parses_server,
            &self.binds,
            &self.assignments,
        ]
    }

    fn is_zero(&self) -> bool {
        let mut totals = self.totals().into_iter();
        totals.all(|total| total.load(Ordering::Relaxed) == 0)
    }

    fn add(&self, other: &Self) {
        for (own, other) in self.totals().into_iter().zip(other.totals()) {
            own.fetch_add(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
