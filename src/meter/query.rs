//! One statement, as far as it is counted.
//!
//! It has counts of its own while it has a record (see [`Queries`](super::Queries)); otherwise it counts among all others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::counts::Counts;
use super::histogram::nanos;
use super::names::{NameId, Names};
use super::sample::{Exemplar, QueryId, QuerySample};
use crate::error::SqlState;

/// Who runs statements: what a session looks up once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub user: NameId,
    pub database: NameId,
    pub application: NameId,
}

/// What an execution came to.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    pub origin: Origin,
    /// The server it ran on.
    pub node: NameId,
    /// When it ended.
    pub at: Instant,
    /// How long its client had waited for a server connection.
    pub queued: Duration,
    /// From sending it, or from the end of the one before it in a pipeline, to its last answer.
    pub took: Duration,
    /// To its first answer; not more than `took`.
    pub first: Duration,
    pub rows: u64,
    /// Bytes from the client, and to it.
    pub received: u64,
    pub sent: u64,
    pub error: Option<SqlState>,
    /// It goes on with a portal whose first rows were counted as a call.
    pub continues: bool,
}

#[cfg(test)]
impl Execution {
    /// One that took so long, of nobody.
    pub fn that_took(took: Duration) -> Self {
        Self {
            origin: Origin::default(),
            node: NameId::NONE,
            at: Instant::now(),
            queued: Duration::ZERO,
            took,
            first: took,
            rows: 1,
            received: 1,
            sent: 1,
            error: None,
            continues: false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Query {
    pub id: QueryId,
    /// The text without constants.
    pub text: Arc<str>,
    /// All others; none for these themselves.
    others: Option<Arc<Counts>>,
    /// Its own counts while it has a record. Changed under the lock of all records.
    own: ArcSwapOption<Counts>,
    /// Whether there are any: a cheaper look, for who needs no more.
    is_kept: AtomicBool,
    /// Time that was counted among all others since it last lost a record, in nanoseconds. It stays when it gets one, or the
    /// next would take its place at once.
    spent: AtomicU64,
    /// Which rules its text fits, and of which set; see `rules`.
    pub(super) rules: AtomicU64,
    /// The same for the rules that limit its time; see `limits`.
    pub(super) limits: AtomicU64,
    /// Slow executions, for sampling.
    slow: AtomicU64,
    /// The clock that `explained` counts from.
    epoch: Instant,
    /// When its plan was last asked for, in nanoseconds since `epoch`; 0 for never.
    explained: AtomicU64,
}

impl Query {
    /// One that counts among all `others`.
    pub(super) fn new(id: QueryId, text: Arc<str>, epoch: Instant, others: &Arc<Counts>) -> Self {
        Self::with(id, text, epoch, Some(Arc::clone(others)))
    }

    /// What stands for all others, with their counts.
    pub(super) fn all_others(text: Arc<str>, epoch: Instant, counts: &Arc<Counts>) -> Self {
        let others = Self::with(QueryId::default(), text, epoch, None);
        others.set_own(Some(Arc::clone(counts)));
        others
    }

    /// One that nobody counts.
    #[cfg(test)]
    pub(super) fn alone(id: QueryId, text: &str) -> Self {
        Self::with(id, text.into(), Instant::now(), None)
    }

    fn with(id: QueryId, text: Arc<str>, epoch: Instant, others: Option<Arc<Counts>>) -> Self {
        Self {
            id,
            text,
            others,
            own: ArcSwapOption::empty(),
            is_kept: AtomicBool::new(false),
            spent: AtomicU64::new(0),
            rules: AtomicU64::new(0),
            limits: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            epoch,
            explained: AtomicU64::new(0),
        }
    }

    /// Whether it has a record.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }

    fn set_own(&self, own: Option<Arc<Counts>>) -> Option<Arc<Counts>> {
        self.is_kept.store(own.is_some(), Ordering::Relaxed);
        self.own.swap(own)
    }

    /// It gets a record.
    pub(super) fn keep(&self) {
        let counts = Counts::new(self.epoch, self.others.clone());
        self.set_own(Some(Arc::new(counts)));
    }

    /// It gets the record of `before`, which is the same statement, met before that was forgotten.
    pub(super) fn take_over(&self, before: &Self) {
        self.spent
            .store(before.spent.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        self.set_own(before.set_own(None));
    }

    /// It loses its record, which goes to all others.
    pub(super) fn retire(&self) {
        self.spent.store(0, Ordering::Relaxed);
        if let (Some(own), Some(others)) = (self.set_own(None), &self.others) {
            // What somebody counts in it yet follows when that is done.
            own.drain_into(others);
        }
    }

    /// Where it is counted.
    fn count(&self, count: impl FnOnce(&Counts)) {
        match (&*self.own.load(), &self.others) {
            (Some(own), _) => count(own),
            (None, Some(others)) => count(others),
            (None, None) => {}
        }
    }

    /// Time counted among all others since it last lost a record, in nanoseconds, with what took `took`.
    pub(super) fn spent_with(&self, took: Duration) -> u64 {
        let spent = self.spent.load(Ordering::Relaxed);
        spent.saturating_add(nanos(took))
    }

    /// Counts an execution that has ended in its record. False if it has none.
    pub(super) fn finished_in_record(&self, execution: &Execution) -> bool {
        let own = self.own.load();
        if let Some(own) = &*own {
            own.finished(execution);
        }
        own.is_some()
    }

    /// Counts an execution that has ended among all others.
    pub(super) fn finished_among_others(&self, execution: &Execution) {
        let took = nanos(execution.took);
        self.spent.fetch_add(took, Ordering::Relaxed);
        if let Some(others) = &self.others {
            others.finished(execution);
        }
    }

    /// The transaction that its last execution ended with could not be committed: an error, and no execution more.
    pub fn failed_at_end(&self, code: SqlState) {
        self.count(|counts| counts.failed(code, 1));
    }

    /// It was sent again, in place of an attempt that failed or behind one.
    pub fn retried(&self) {
        self.count(Counts::retried);
    }

    /// It made a session keep its server connection.
    pub fn pinned(&self) {
        self.count(Counts::pinned);
    }

    /// Its answer came from the cache.
    pub fn answered_from_cache(&self) {
        self.count(Counts::answered_from_cache);
    }

    /// An execution was part of a trace.
    pub fn traced(&self, exemplar: Exemplar) {
        self.count(|counts| counts.traced(exemplar));
    }

    /// An execution was slow: whether it is the one in `every` that is written; none of 0.
    pub fn is_sampled(&self, every: u64) -> bool {
        every > 0
            && self
                .slow
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(every)
    }

    /// Whether its plan may be asked for again, as it may once in `interval`. Says so to one who asks.
    pub fn is_to_be_explained(&self, interval: Duration) -> bool {
        let now = nanos(self.epoch.elapsed()).max(1);
        let last = self.explained.load(Ordering::Relaxed);
        let is_due = last == 0 || now.saturating_sub(last) >= nanos(interval);
        let exchange = || {
            self.explained
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
        };
        is_due && exchange().is_ok()
    }

    /// By what records are ranked: their time and what was spent before they were made, in nanoseconds, then when they were
    /// last used. `None` without a record.
    pub(super) fn rank(&self) -> Option<(u64, u64)> {
        let (time, last_seen) = self.own.load().as_ref()?.rank();
        let spent = self.spent.load(Ordering::Relaxed);
        Some((time.saturating_add(spent), last_seen))
    }

    /// A copy of what was counted so far in its record, if it has one.
    pub(super) fn sample(&self, names: &Names, applications: &Names) -> Option<QuerySample> {
        let own = self.own.load();
        let own = own.as_ref()?;
        Some(own.sample((self.id, &self.text), names, applications))
    }

    /// Its own counts, as one holds them who counts.
    #[cfg(test)]
    pub(super) fn own(&self) -> Option<Arc<Counts>> {
        self.own.load_full()
    }
}
