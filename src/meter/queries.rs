//! All records.
//!
//! A statement has one from when it is met, while there is room. Once there is none it counts among all others, until that
//! comes to as much time as the record with the least has: then it takes its place, and what that held goes to the others.
//! So a statement that takes long has a record from its first execution on, and one that is run once and never again costs
//! no more than a look at a number.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hashbrown::HashTable;
use tokio::time::Instant;

use super::names::{NameId, Names};
use super::query::{Execution, Origin, Query};
use super::sample::{QueryId, QuerySample};

/// Records kept unless [`Queries::set_max`] says otherwise.
const DEFAULT_MAX: usize = 1000;

/// Times all is copied while statements go on counting; then they wait for it.
const TRIES: usize = 3;

/// How long after a record has made room somebody may still count in it: a few instructions, unless the processor is taken
/// away between them. What comes later stays there until the statement has a record again, or is forgotten.
const FADES: Duration = Duration::from_secs(1);

/// The text that stands for all others.
const OTHER: &str = "<other>";

/// See the module.
#[derive(Debug)]
pub struct Queries {
    table: Mutex<Table>,
    other: Arc<Query>,
    max: AtomicUsize,
    /// The time of the record with the least, in nanoseconds, as of when it was last looked for; 0 while there is room.
    least: AtomicU64,
    /// Names of users, databases and servers.
    pub names: Names,
    /// What clients call themselves: a table of its own, since anyone can fill it.
    applications: Names,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct Table {
    records: HashTable<Arc<Query>>,
    /// Those with the least time, the least last, with their ranks as of when they were looked for.
    least: Vec<((u64, u64), Arc<Query>)>,
    /// Those that have made room lately, and when: somebody may still have counted in them.
    retired: VecDeque<(Instant, Weak<Query>)>,
    evictions: u64,
}

/// Every record, those with the most time first.
#[derive(Clone, Debug)]
pub struct QueriesSample {
    pub queries: Vec<QuerySample>,
    /// Statements of which no execution has ended.
    pub unfinished: Vec<QuerySample>,
    /// All statements without a record of their own.
    pub other: QuerySample,
    /// Records that have made room.
    pub evictions: u64,
}

impl Default for Queries {
    fn default() -> Self {
        let epoch = Instant::now();
        Self {
            table: Mutex::default(),
            other: Arc::new(Query::other(OTHER.into(), epoch)),
            max: AtomicUsize::new(DEFAULT_MAX),
            least: AtomicU64::new(0),
            names: Names::default(),
            applications: Names::default(),
            epoch,
        }
    }
}

impl Queries {
    /// Keeps at most `max` records, from the next new one on.
    pub fn set_max(&self, max: usize) {
        self.max.store(max.max(1), Ordering::Relaxed);
        self.least.store(0, Ordering::Relaxed);
    }

    /// The numbers of a session's names.
    pub fn origin(&self, user: &str, database: &str, application: &str) -> Origin {
        Origin {
            user: self.names.id(user),
            database: self.names.id(database),
            application: self.application(application),
        }
    }

    /// The number of what a client calls itself.
    pub fn application(&self, name: &str) -> NameId {
        self.applications.id(name)
    }

    /// What a client with this number calls itself; `whole` is asked where it found no room among the names.
    pub fn application_of(&self, id: NameId, whole: impl FnOnce() -> Arc<str>) -> Arc<str> {
        self.applications.name_or(id, whole)
    }

    /// The number of a server's name.
    pub fn node(&self, name: &str) -> NameId {
        self.names.id(name)
    }

    /// The record of all statements that have none of their own.
    pub fn other(&self) -> Arc<Query> {
        Arc::clone(&self.other)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The statement `id`, whose text is asked for if it has no record.
    pub fn record(&self, id: QueryId, text: impl FnOnce() -> Arc<str>) -> Arc<Query> {
        if let Some(query) = self.lock().find(id) {
            return Arc::clone(query);
        }
        // Not under the lock: making the text takes a while.
        let query = Arc::new(Query::new(id, text(), self.epoch, self.other()));
        let mut table = self.lock();
        if let Some(first) = table.find(id) {
            return Arc::clone(first);
        }
        if table.records.len() < self.max.load(Ordering::Relaxed) {
            table.keep(&query);
        }
        query
    }

    /// Counts an execution of `query`.
    pub fn count(&self, query: &Arc<Query>, execution: &Execution) {
        if !query.is_kept() {
            let spent = query.spent_with(execution.took);
            if spent >= self.least.load(Ordering::Relaxed) {
                self.admit(query, spent);
            }
        }
        query.finished(execution);
    }

    /// Gives `query`, which has taken the time `spent`, the place of the record with the least, if that has not more.
    fn admit(&self, query: &Arc<Query>, spent: u64) {
        let mut table = self.lock();
        if query.is_kept() {
            return;
        }
        if table.find(query.id).is_some() {
            // It was forgotten while a session held it, and met anew.
            query.start_over();
            return;
        }
        let max = self.max.load(Ordering::Relaxed);
        // More only where the bound was lowered.
        while table.records.len() > max && table.retire_least(u64::MAX, max).is_ok() {}
        if table.records.len() >= max {
            let retired = table.retire_least(spent, max);
            let (Ok(least) | Err(least)) = retired;
            self.least.store(least, Ordering::Relaxed);
            if retired.is_err() {
                return;
            }
        }
        table.keep(query);
    }

    /// The text of the statement `id`, if it has a record.
    pub fn text(&self, id: QueryId) -> Option<Arc<str>> {
        let table = self.lock();
        table.find(id).map(|query| Arc::clone(&query.text))
    }

    /// Copies everything.
    pub fn sample(&self) -> QueriesSample {
        for _ in 0..TRIES {
            let (records, evictions) = self.records();
            let copies = self.copies(&records);
            let table = self.lock();
            // What has made room after it was copied would be there twice, among the others as well.
            if table.evictions == evictions {
                return self.sorted(copies, evictions);
            }
        }
        let table = self.lock();
        let records: Vec<Arc<Query>> = table.records.iter().cloned().collect();
        self.sorted(self.copies(&records), table.evictions)
    }

    /// Every record, and how many have made room so far.
    fn records(&self) -> (Vec<Arc<Query>>, u64) {
        let mut table = self.lock();
        table.hand_over();
        (table.records.iter().cloned().collect(), table.evictions)
    }

    fn copies(&self, records: &[Arc<Query>]) -> Vec<QuerySample> {
        let copy = |query: &Arc<Query>| query.sample(&self.names, &self.applications);
        records.iter().map(copy).collect()
    }

    /// `copies` with that of the others, which is made here.
    fn sorted(&self, copies: Vec<QuerySample>, evictions: u64) -> QueriesSample {
        let (mut queries, unfinished): (Vec<_>, Vec<_>) = copies
            .into_iter()
            .partition(|query| query.calls > 0 || query.pins > 0);
        queries.sort_by(|a, b| (b.total.sum, a.id).cmp(&(a.total.sum, b.id)));
        QueriesSample {
            queries,
            unfinished,
            other: self.other.sample(&self.names, &self.applications),
            evictions,
        }
    }
}

impl Table {
    fn find(&self, id: QueryId) -> Option<&Arc<Query>> {
        self.records.find(id.0, |query| query.id == id)
    }

    fn keep(&mut self, query: &Arc<Query>) {
        query.keep();
        self.records
            .insert_unique(query.id.0, Arc::clone(query), |query| query.id.0);
    }

    /// Takes out the record with the least time, and gives that; if it has more than `most`, it stays, and its time is the
    /// error.
    fn retire_least(&mut self, most: u64, max: usize) -> Result<u64, u64> {
        let Some((rank, query)) = self.take_least(max) else {
            return Err(u64::MAX);
        };
        let (time, _) = rank;
        if time > most {
            self.least.push((rank, query));
            return Err(time);
        }
        if let Ok(entry) = self
            .records
            .find_entry(query.id.0, |other| Arc::ptr_eq(other, &query))
        {
            entry.remove();
        }
        query.retire();
        self.evictions += 1;
        self.retired
            .push_back((Instant::now(), Arc::downgrade(&query)));
        self.fade();
        Ok(time)
    }

    /// The record with the least time. An eighth of them, or what there is above `max`, is looked for at once, so that the
    /// search is rare.
    fn take_least(&mut self, max: usize) -> Option<((u64, u64), Arc<Query>)> {
        while let Some((rank, query)) = self.least.pop() {
            // It may have grown since.
            if query.is_kept() && query.rank() == rank {
                return Some((rank, query));
            }
        }
        let ranks = self.records.iter().map(|query| (query.rank(), query));
        let mut ranks: Vec<_> = ranks.collect();
        let by_rank = |it: &((u64, u64), &Arc<Query>)| it.0;
        let excess = ranks.len().saturating_sub(max);
        let some = (max / 8 + 1).max(excess).min(ranks.len());
        if let Some(last) = some.checked_sub(1) {
            ranks.select_nth_unstable_by_key(last, by_rank);
        }
        ranks.truncate(some);
        ranks.sort_unstable_by_key(|it| std::cmp::Reverse(by_rank(it)));
        self.least = ranks
            .into_iter()
            .map(|(rank, query)| (rank, Arc::clone(query)))
            .collect();
        self.least.pop()
    }

    /// Those that have made room long enough ago hand over what was still counted in them, and are done with.
    fn fade(&mut self) {
        let now = Instant::now();
        let is_over = |it: &(Instant, _)| now.duration_since(it.0) >= FADES;
        while self.retired.front().is_some_and(is_over) {
            let query = self.retired.pop_front().and_then(|it| it.1.upgrade());
            if let Some(query) = query.filter(|query| !query.is_kept()) {
                query.hand_over();
            }
        }
    }

    /// All that have made room lately hand over what was still counted in them.
    fn hand_over(&mut self) {
        self.fade();
        for (_, query) in &self.retired {
            if let Some(query) = query.upgrade().filter(|query| !query.is_kept()) {
                query.hand_over();
            }
        }
    }
}

#[cfg(test)]
mod tests;
