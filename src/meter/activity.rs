//! What a client is doing now, for others to look at: written by its session without locks.
//!
//! The parts are written one after the other; who looks in between may see the time of one statement with the number
//! of the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::histogram::nanos;
use super::query::Query;
use super::sample::QueryId;

/// Since when something holds, and which statement it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doing {
    pub query: QueryId,
    pub since: Instant,
}

/// See the module. Times are nanoseconds since `epoch`.
#[derive(Debug)]
pub struct Activity {
    epoch: Instant,
    query: AtomicU64,
    /// The same statement, if it has no record where its text could be found.
    without_record: ArcSwapOption<Query>,
    has_no_record: AtomicBool,
    /// It has ended.
    rests: AtomicBool,
    since: AtomicU64,
}

impl Activity {
    pub fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            query: AtomicU64::new(0),
            without_record: ArcSwapOption::empty(),
            has_no_record: AtomicBool::new(false),
            rests: AtomicBool::new(true),
            since: AtomicU64::new(0),
        }
    }

    /// What times are counted from.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    fn stamp(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.epoch))
    }

    /// The statement `query` runs from `at` on.
    pub fn runs(&self, query: &Arc<Query>, at: Instant) {
        let has_no_record = !query.is_kept();
        if has_no_record || self.has_no_record.load(Ordering::Relaxed) {
            self.without_record
                .store(has_no_record.then(|| Arc::clone(query)));
            self.has_no_record.store(has_no_record, Ordering::Relaxed);
        }
        self.since.store(self.stamp(at), Ordering::Relaxed);
        self.query.store(query.id.0, Ordering::Relaxed);
        self.rests.store(false, Ordering::Relaxed);
    }

    /// Nothing runs any more; what ran last stays to be seen.
    pub fn rests(&self) {
        self.rests.store(true, Ordering::Relaxed);
    }

    /// Number and text of the statement that runs or ran last, if it had no record when it began.
    pub fn without_record(&self) -> Option<(QueryId, Arc<str>)> {
        let query = self.without_record.load();
        query.as_ref().map(|it| (it.id, Arc::clone(&it.text)))
    }

    /// The statement that runs.
    pub fn running(&self) -> Option<Doing> {
        let doing = self.last();
        doing.filter(|_| !self.rests.load(Ordering::Relaxed))
    }

    /// The statement that runs or ran last; `None` before the first.
    pub fn last(&self) -> Option<Doing> {
        let query = QueryId(self.query.load(Ordering::Relaxed));
        (query != QueryId::default()).then(|| Doing {
            query,
            since: self.at(&self.since),
        })
    }

    /// When the last statement began; `None` before the first.
    pub fn last_began(&self) -> Option<Instant> {
        (self.since.load(Ordering::Relaxed) > 0).then(|| self.at(&self.since))
    }

    fn at(&self, stamp: &AtomicU64) -> Instant {
        self.epoch + Duration::from_nanos(stamp.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_see_what_runs_and_since_when() {
        let epoch = Instant::now();
        let activity = Activity::new(epoch);
        assert_eq!(activity.running(), None);
        assert_eq!(activity.last_began(), None);
        let at = epoch + Duration::from_millis(5);
        let query = Arc::new(Query::alone(QueryId(7), "SELECT $1"));
        activity.runs(&query, at);
        let named = Some((QueryId(7), "SELECT $1".into()));
        assert_eq!(activity.without_record(), named);
        let doing = Doing {
            query: QueryId(7),
            since: at,
        };
        assert_eq!(activity.running(), Some(doing));
        activity.rests();
        assert_eq!(activity.running(), None);
        assert_eq!(activity.last(), Some(doing));
        assert_eq!(activity.last_began(), Some(at));
        query.keep();
        activity.runs(&query, at);
        assert_eq!(activity.without_record(), None);
    }
}
