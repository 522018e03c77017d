//! All records.
//!
//! A statement has one from when it is met, while there is room. Once there is none it counts among all others, until that
//! comes to as much time as the record with the least has: then it takes its place, and what that held goes to the others.
//! So a statement that takes long has a record from the end of its first execution on, and what is run once and never again
//! drives nothing out.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use tokio::time::Instant;

use super::counts::Counts;
use super::names::{NameId, Names};
use super::query::{Execution, Origin, Query};
use super::sample::{QueryId, QuerySample};

/// Records kept unless [`Queries::set_max`] says otherwise.
const DEFAULT_MAX: usize = 1000;

/// Times all is copied while statements go on counting; then they wait for it.
const TRIES: usize = 3;

/// Records taken away at once where the bound was lowered.
const TAKEN_MAX: usize = 1000;

/// The text that stands for all others.
const OTHER: &str = "<other>";

/// See the module.
#[derive(Debug)]
pub struct Queries {
    table: Mutex<Table>,
    other: Arc<Query>,
    /// Its counts.
    others: Arc<Counts>,
    max: AtomicUsize,
    /// The time of the record with the least, in nanoseconds, as of when it was last looked for; 0 while there is room.
    least: AtomicU64,
    /// Names of users, databases and servers.
    pub names: Names,
    /// What clients call themselves: a table of its own, since anyone can fill it.
    applications: Names,
    epoch: Instant,
}

/// See [`Query::rank`].
type Rank = (u64, u64);

#[derive(Debug, Default)]
struct Table {
    records: HashTable<Arc<Query>>,
    /// Those with the least time, the least last, with their ranks as of when they were looked for.
    least: Vec<(Rank, Arc<Query>)>,
    /// Records taken away since then.
    taken: usize,
    evictions: u64,
    /// How often counts went from one record to another.
    moves: u64,
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
        let others = Arc::new(Counts::new(epoch, None));
        Self {
            table: Mutex::default(),
            other: Arc::new(Query::all_others(OTHER.into(), epoch, &others)),
            others,
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
        let _table = self.lock();
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
        let query = Arc::new(Query::new(id, text(), self.epoch, &self.others));
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
        if query.finished_in_record(execution) {
            return;
        }
        let spent = query.spent_with(execution.took);
        let is_enough = spent >= self.least.load(Ordering::Relaxed);
        if !(is_enough && self.admit(query, spent) && query.finished_in_record(execution)) {
            query.finished_among_others(execution);
        }
    }

    /// Gives `query`, which has taken the time `spent`, the place of the record with the least, if that has not more. Whether
    /// it has a record now.
    fn admit(&self, query: &Arc<Query>, spent: u64) -> bool {
        let mut table = self.lock();
        if query.is_kept() || table.take_over(query) {
            return true;
        }
        let max = self.max.load(Ordering::Relaxed);
        for _ in 0..TAKEN_MAX {
            // More only where the bound was lowered.
            if table.records.len() <= max || table.retire_least(u64::MAX, max).is_err() {
                break;
            }
        }
        if table.records.len() > max {
            // The next one goes on with it.
            self.least.store(0, Ordering::Relaxed);
            return false;
        }
        if table.records.len() == max {
            let retired = table.retire_least(spent, max);
            let (Ok(least) | Err(least)) = retired;
            self.least.store(least, Ordering::Relaxed);
            if retired.is_err() {
                return false;
            }
        }
        table.keep(query);
        true
    }

    /// Copies everything.
    pub fn sample(&self) -> QueriesSample {
        for _ in 0..TRIES {
            let (records, moves) = self.records();
            let copies = self.copies(&records);
            let table = self.lock();
            // What has made room after it was copied would be there twice, among the others as well.
            if table.moves == moves {
                return self.sorted(copies, table.evictions);
            }
        }
        let table = self.lock();
        let records: Vec<Arc<Query>> = table.records.iter().cloned().collect();
        self.sorted(self.copies(&records), table.evictions)
    }

    /// Every record, and how often counts have gone from one to another so far.
    fn records(&self) -> (Vec<Arc<Query>>, u64) {
        let table = self.lock();
        (table.records.iter().cloned().collect(), table.moves)
    }

    fn copies(&self, records: &[Arc<Query>]) -> Vec<QuerySample> {
        let copy = |query: &Arc<Query>| query.sample(&self.names, &self.applications);
        records.iter().filter_map(copy).collect()
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
            other: self.others.sample(
                (self.other.id, &self.other.text),
                &self.names,
                &self.applications,
            ),
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

    /// Gives `query` the record of the same statement, if there is one: it was met anew while a session held what had been
    /// forgotten.
    fn take_over(&mut self, query: &Arc<Query>) -> bool {
        let same = |other: &Arc<Query>| other.id == query.id;
        let Ok(mut entry) = self.records.find_entry(query.id.0, same) else {
            return false;
        };
        let before = std::mem::replace(entry.get_mut(), Arc::clone(query));
        query.take_over(&before);
        self.moves += 1;
        true
    }

    /// Takes out the record with the least time, and gives that; if it has more than `most`, it stays, and its time is the
    /// error.
    fn retire_least(&mut self, most: u64, max: usize) -> Result<u64, u64> {
        let mut least = self.take_least();
        // Those that have come since the last search are not among them.
        let is_old = self.taken > max / 64;
        if least
            .as_ref()
            .is_none_or(|(rank, _)| rank.0 > most && is_old)
        {
            self.search(max);
            // It may have grown this moment, as all may have; it is the least all the same.
            least = self.least.pop();
        }
        let Some((rank, query)) = least else {
            // There is none.
            return Err(0);
        };
        if rank.0 > most {
            self.least.push((rank, query));
            return Err(rank.0);
        }
        let same = |other: &Arc<Query>| Arc::ptr_eq(other, &query);
        if let Ok(entry) = self.records.find_entry(query.id.0, same) {
            entry.remove();
        }
        query.retire();
        self.taken += 1;
        self.evictions += 1;
        self.moves += 1;
        Ok(rank.0)
    }

    /// The record with the least time of those that were looked for.
    fn take_least(&mut self) -> Option<(Rank, Arc<Query>)> {
        while let Some((rank, query)) = self.least.pop() {
            // It may have grown since.
            if query.rank() == Some(rank) {
                return Some((rank, query));
            }
        }
        None
    }

    /// Looks for those with the least time: an eighth, or what there is above `max`, so that it is rarely done.
    fn search(&mut self, max: usize) {
        let rank = |query: &Arc<Query>| Some((query.rank()?, Arc::clone(query)));
        let mut ranks: Vec<_> = self.records.iter().filter_map(rank).collect();
        let by_rank = |it: &(Rank, Arc<Query>)| it.0;
        let excess = ranks.len().saturating_sub(max);
        let some = (max / 8 + 1).max(excess).min(ranks.len());
        if let Some(last) = some.checked_sub(1) {
            ranks.select_nth_unstable_by_key(last, by_rank);
        }
        ranks.truncate(some);
        ranks.sort_unstable_by_key(|it| std::cmp::Reverse(by_rank(it)));
        self.least = ranks;
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests;
