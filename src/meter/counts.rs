//! What is counted of one statement, or of all that have no record of their own.
//!
//! Counts that nobody holds any more are added to those of all others, so that none is lost: whoever has begun to count in a
//! record that is taken away meanwhile holds it to the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::histogram::{Histogram, nanos};
use super::names::{NameSet, Names};
use super::query::Execution;
use super::sample::{Exemplar, QueryId, QuerySample, Times};
use crate::error::SqlState;

/// SQLSTATEs told apart in one record, and in that of all others; further ones count among its errors only.
const SQLSTATES_MAX: usize = 16;
pub(super) const OTHER_SQLSTATES_MAX: usize = 128;

/// See the module. Times are in nanoseconds.
#[derive(Debug)]
pub(super) struct Counts {
    /// Those of all others; none for these themselves.
    others: Option<Arc<Counts>>,
    /// Times up to the last answer, of statements whose answer came at once.
    at_once: Histogram,
    /// Times up to first and last answer of the rest: few, so that most records need no space for them.
    first: Lazy,
    last: Lazy,
    queue: Lazy,
    time: AtomicU64,
    /// Time between first and last answer.
    time_after_first: AtomicU64,
    queue_time: AtomicU64,
    time_min: AtomicU64,
    time_max: AtomicU64,
    rows: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    errors: AtomicU64,
    sqlstates: Mutex<Vec<(SqlState, u64)>>,
    sqlstates_max: usize,
    retries: AtomicU64,
    pins: AtomicU64,
    cache_hits: AtomicU64,
    /// The clock that `last_seen` counts from.
    epoch: Instant,
    first_seen: SystemTime,
    last_seen: AtomicU64,
    users: NameSet,
    databases: NameSet,
    applications: NameSet,
    nodes: NameSet,
    exemplar: Mutex<Option<Exemplar>>,
}

type Lazy = std::sync::OnceLock<Box<Histogram>>;

fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn sample(histogram: &Lazy) -> super::Distribution {
    histogram
        .get()
        .map(|histogram| histogram.sample())
        .unwrap_or_default()
}

impl Counts {
    /// Of one statement, or of all others if there are no `others`.
    pub(super) fn new(epoch: Instant, others: Option<Arc<Self>>) -> Self {
        let sqlstates_max = match others {
            Some(_) => SQLSTATES_MAX,
            None => OTHER_SQLSTATES_MAX,
        };
        Self {
            others,
            at_once: Histogram::default(),
            first: Lazy::new(),
            last: Lazy::new(),
            queue: Lazy::new(),
            time: AtomicU64::new(0),
            time_after_first: AtomicU64::new(0),
            queue_time: AtomicU64::new(0),
            time_min: AtomicU64::new(u64::MAX),
            time_max: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            sqlstates: Mutex::default(),
            sqlstates_max,
            retries: AtomicU64::new(0),
            pins: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
            epoch,
            first_seen: SystemTime::now(),
            last_seen: AtomicU64::new(nanos(epoch.elapsed())),
            users: NameSet::default(),
            databases: NameSet::default(),
            applications: NameSet::default(),
            nodes: NameSet::default(),
            exemplar: Mutex::default(),
        }
    }

    pub(super) fn finished(&self, execution: &Execution) {
        let took = nanos(execution.took);
        if execution.continues {
            // The call's first answer came with the rows before these.
            add(&self.time_after_first, took);
        } else {
            self.count(took, nanos(execution.first), nanos(execution.queued));
        }
        add(&self.time, took);
        add(&self.rows, execution.rows);
        add(&self.received, execution.received);
        add(&self.sent, execution.sent);
        let seen = execution.at.saturating_duration_since(self.epoch);
        self.last_seen.store(nanos(seen), Ordering::Relaxed);
        self.users.add(execution.origin.user);
        self.databases.add(execution.origin.database);
        self.applications.add(execution.origin.application);
        self.nodes.add(execution.node);
        if let Some(code) = execution.error {
            self.failed(code, 1);
        }
    }

    fn count(&self, took: u64, first: u64, queued: u64) {
        if first >= took {
            self.at_once.record(took);
        } else {
            self.first.get_or_init(Box::default).record(first);
            self.last.get_or_init(Box::default).record(took);
            add(&self.time_after_first, took - first);
        }
        if queued > 0 {
            self.queue.get_or_init(Box::default).record(queued);
            add(&self.queue_time, queued);
        }
        self.widen(took, took);
    }

    fn widen(&self, least: u64, most: u64) {
        if least < read(&self.time_min) {
            self.time_min.fetch_min(least, Ordering::Relaxed);
        }
        if most > read(&self.time_max) {
            self.time_max.fetch_max(most, Ordering::Relaxed);
        }
    }

    pub(super) fn failed(&self, code: SqlState, count: u64) {
        let mut codes = self.codes();
        // Under the lock, so that who moves all of it has both or neither.
        self.errors.fetch_add(count, Ordering::Relaxed);
        if let Some((_, known)) = codes.iter_mut().find(|(known, _)| *known == code) {
            *known += count;
        } else if codes.len() < self.sqlstates_max {
            codes.push((code, count));
        }
    }

    fn codes(&self) -> MutexGuard<'_, Vec<(SqlState, u64)>> {
        self.sqlstates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All errors and those of them that are told apart, which are none of its own any more.
    fn take_errors(&self) -> (u64, Vec<(SqlState, u64)>) {
        let mut codes = self.codes();
        let errors = self.errors.swap(0, Ordering::Relaxed);
        (errors, std::mem::take(&mut codes))
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pinned(&self) {
        self.pins.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered_from_cache(&self) {
        self.cache_hits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn traced(&self, exemplar: Exemplar) {
        let mut latest = self.exemplar.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(exemplar);
    }

    /// By what records are ranked: their time, then when they were last used.
    pub(super) fn rank(&self) -> (u64, u64) {
        (read(&self.time), read(&self.last_seen))
    }

    /// Moves everything counted into `other`.
    pub(super) fn drain_into(&self, other: &Self) {
        let histograms = [
            (&self.first, &other.first),
            (&self.last, &other.last),
            (&self.queue, &other.queue),
        ];
        for (own, other) in histograms {
            if let Some(own) = own.get() {
                own.drain_into(other.get_or_init(Box::default));
            }
        }
        self.at_once.drain_into(&other.at_once);
        for (own, other) in self.counters().into_iter().zip(other.counters()) {
            add(other, own.swap(0, Ordering::Relaxed));
        }
        let (errors, codes) = self.take_errors();
        let mut named = 0;
        for (code, count) in codes {
            named += count;
            other.failed(code, count);
        }
        add(&other.errors, errors.saturating_sub(named));
        other.widen(
            self.time_min.swap(u64::MAX, Ordering::Relaxed),
            self.time_max.swap(0, Ordering::Relaxed),
        );
        let seen = read(&self.last_seen);
        other.last_seen.fetch_max(seen, Ordering::Relaxed);
        other.users.add_all(&self.users);
        other.databases.add_all(&self.databases);
        other.applications.add_all(&self.applications);
        other.nodes.add_all(&self.nodes);
    }

    fn counters(&self) -> [&AtomicU64; 9] {
        [
            &self.time,
            &self.time_after_first,
            &self.queue_time,
            &self.rows,
            &self.received,
            &self.sent,
            &self.retries,
            &self.pins,
            &self.cache_hits,
        ]
    }

    /// A copy of what was counted so far, of the statement `id`.
    pub(super) fn sample(
        &self,
        (id, text): (QueryId, &Arc<str>),
        names: &Names,
        applications: &Names,
    ) -> QuerySample {
        let at_once = self.at_once.sample();
        let total = at_once.plus(&sample(&self.last));
        let calls = total.count();
        let queue = sample(&self.queue);
        let queue = queue.plus_zeros(calls.saturating_sub(queue.count()));
        let time = read(&self.time);
        let first_time = time.saturating_sub(read(&self.time_after_first));
        let time_min = read(&self.time_min);
        let since_epoch = |nanos| self.epoch + Duration::from_nanos(nanos);
        let last_seen = since_epoch(read(&self.last_seen));
        let codes = self.codes();
        QuerySample {
            id,
            text: Arc::clone(text),
            calls,
            total: Times::new(time, total),
            min: Duration::from_nanos(if time_min == u64::MAX { 0 } else { time_min }),
            max: Duration::from_nanos(read(&self.time_max)),
            first: Times::new(first_time, at_once.plus(&sample(&self.first))),
            queue: Times::new(read(&self.queue_time), queue),
            rows: read(&self.rows),
            received: read(&self.received),
            sent: read(&self.sent),
            errors: read(&self.errors),
            sqlstates: codes.clone(),
            retries: read(&self.retries),
            pins: read(&self.pins),
            cache_hits: read(&self.cache_hits),
            first_seen: self.first_seen,
            last_seen: SystemTime::now()
                .checked_sub(last_seen.elapsed())
                .unwrap_or(self.first_seen),
            users: names.of(&self.users),
            databases: names.of(&self.databases),
            applications: applications.of(&self.applications),
            nodes: names.of(&self.nodes),
            exemplar: *self.exemplar.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        if let Some(others) = self.others.take() {
            self.drain_into(&others);
        }
    }
}
