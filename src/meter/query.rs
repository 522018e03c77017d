//! One statement, as far as it is counted.
//!
//! It has counts of its own while it has a record (see [`Queries`](super::Queries)); otherwise it counts among all others.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use super::counts::{Counts, OTHER_SQLSTATES_MAX, SQLSTATES_MAX};
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

/// See the module.
#[derive(Debug)]
pub struct Query {
    pub id: QueryId,
    /// The text without constants.
    pub text: Arc<str>,
    /// All others, where what it holds goes in the end; none for that itself.
    other: Option<Arc<Query>>,
    /// Its own counts, from its first record on.
    own: OnceLock<Box<Counts>>,
    /// It has a record: its own counts are in use. Changed under the lock of all records.
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
    /// One that counts among `other`.
    pub(super) fn new(id: QueryId, text: Arc<str>, epoch: Instant, other: Arc<Self>) -> Self {
        Self::with(id, text, epoch, Some(other))
    }

    /// One that nobody counts.
    #[cfg(test)]
    pub(super) fn alone(id: QueryId, text: &str) -> Self {
        Self::with(id, text.into(), Instant::now(), None)
    }

    /// All others.
    pub(super) fn other(text: Arc<str>, epoch: Instant) -> Self {
        let other = Self::with(QueryId::default(), text, epoch, None);
        other.keep();
        other
    }

    fn with(id: QueryId, text: Arc<str>, epoch: Instant, other: Option<Arc<Self>>) -> Self {
        Self {
            id,
            text,
            other,
            own: OnceLock::new(),
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
        self.is_kept.load(Ordering::Acquire)
    }

    /// It gets a record.
    pub(super) fn keep(&self) {
        let counts = self.own();
        if let Some(other) = self.counts_of_others() {
            // What was on its way here when it last lost its record.
            counts.drain_into(other);
        }
        self.is_kept.store(true, Ordering::Release);
    }

    /// It loses its record.
    pub(super) fn retire(&self) {
        self.is_kept.store(false, Ordering::Release);
        self.start_over();
        self.hand_over();
    }

    /// Moves what it holds to all others.
    pub(super) fn hand_over(&self) {
        if let (Some(own), Some(other)) = (self.own.get(), self.counts_of_others()) {
            own.drain_into(other);
        }
    }

    pub(super) fn own(&self) -> &Counts {
        let most = match self.other {
            Some(_) => SQLSTATES_MAX,
            None => OTHER_SQLSTATES_MAX,
        };
        let make = || Box::new(Counts::new(self.epoch, most));
        self.own.get_or_init(make)
    }

    /// `None` for all others themselves.
    fn counts_of_others(&self) -> Option<&Counts> {
        self.other.as_deref().map(Self::own)
    }

    /// Where it is counted.
    fn counts(&self) -> &Counts {
        match self.counts_of_others() {
            Some(others) if !self.is_kept() => others,
            _ => self.own(),
        }
    }

    /// Time counted among all others since it last lost a record, in nanoseconds, with what took `took`.
    pub(super) fn spent_with(&self, took: Duration) -> u64 {
        self.spent
            .load(Ordering::Relaxed)
            .saturating_add(nanos(took))
    }

    /// What was spent counts for nothing any more.
    pub(super) fn start_over(&self) {
        self.spent.store(0, Ordering::Relaxed);
    }

    /// Counts an execution that has ended.
    pub(super) fn finished(&self, execution: &Execution) {
        if !self.is_kept() {
            let took = nanos(execution.took);
            self.spent.fetch_add(took, Ordering::Relaxed);
        }
        self.counts().finished(execution);
    }

    /// The transaction that its last execution ended with could not be committed: an error, and no execution more.
    pub fn failed_at_end(&self, code: SqlState) {
        self.counts().failed(code, 1);
    }

    /// It was sent again, in place of an attempt that failed or behind one.
    pub fn retried(&self) {
        self.counts().retried();
    }

    /// It made a session keep its server connection.
    pub fn pinned(&self) {
        self.counts().pinned();
    }

    /// Its answer came from the cache.
    pub fn answered_from_cache(&self) {
        self.counts().answered_from_cache();
    }

    /// An execution was part of a trace.
    pub fn traced(&self, exemplar: Exemplar) {
        self.counts().traced(exemplar);
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
    /// last used.
    pub(super) fn rank(&self) -> (u64, u64) {
        let (time, last_seen) = self.own().rank();
        let spent = self.spent.load(Ordering::Relaxed);
        (time.saturating_add(spent), last_seen)
    }

    /// A copy of what was counted so far in its record.
    pub(super) fn sample(&self, names: &Names, applications: &Names) -> QuerySample {
        let named = (self.id, &self.text);
        self.own().sample(named, names, applications)
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        self.hand_over();
    }
}
