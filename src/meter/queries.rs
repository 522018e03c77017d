//! All records.
//!
//! When there are more than the bound, those with the least time make room, an eighth at once so that the search
//! for them is rare. One that is run again is taken up again; what it held before stays with the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hashbrown::HashTable;
use tokio::time::Instant;

use super::names::{NameId, Names};
use super::query::{Origin, Query};
use super::sample::{QueryId, QuerySample};

/// Records kept unless [`Queries::set_max`] says otherwise.
const DEFAULT_MAX: usize = 1000;

/// Times all is copied while statements go on counting; then they wait for it.
const TRIES: usize = 3;

/// The text that stands for all others.
const OTHER: &str = "<other>";

/// See the module.
#[derive(Debug)]
pub struct Queries {
    table: Mutex<Table>,
    other: Arc<Query>,
    max: AtomicUsize,
    /// Names of users, databases and servers.
    pub names: Names,
    /// What clients call themselves: a table of its own, since anyone can fill it.
    applications: Names,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct Table {
    records: HashTable<Arc<Query>>,
    /// Those that made room while somebody still counted in them.
    retired: HashMap<QueryId, Weak<Query>>,
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
            other: Arc::new(Query::new(QueryId::default(), OTHER.into(), epoch, None)),
            max: AtomicUsize::new(DEFAULT_MAX),
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

    /// The record of the statement `id`, whose text is asked for if it is new.
    pub fn record(&self, id: QueryId, text: impl FnOnce() -> Arc<str>) -> Arc<Query> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(query) = table.records.find(id.0, |query| query.id == id) {
            return Arc::clone(query);
        }
        // Where somebody still holds the one that has made room, two would count the same statement.
        let held = table.retired.get(&id).and_then(Weak::upgrade);
        if let Some(query) = held {
            self.take_up(&mut table, &query);
            return query;
        }
        let other = Some(self.other());
        let query = Arc::new(Query::new(id, text(), self.epoch, other));
        self.insert(&mut table, &query);
        query
    }

    /// The text of the statement `id`, if it has a record.
    pub fn text(&self, id: QueryId) -> Option<Arc<str>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let query = table.records.find(id.0, |query| query.id == id)?;
        Some(Arc::clone(&query.text))
    }

    /// `query` is about to be run: takes it up again if it has made room.
    pub fn touch(&self, query: &Arc<Query>) {
        if !query.is_retired() {
            return;
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if query.is_retired() {
            self.take_up(&mut table, query);
        }
    }

    /// Puts a record back that has made room.
    fn take_up(&self, table: &mut Table, query: &Arc<Query>) {
        table.retired.remove(&query.id);
        query.drain_into(&self.other);
        query.retired.store(false, Ordering::Relaxed);
        self.insert(table, query);
    }

    fn insert(&self, table: &mut Table, query: &Arc<Query>) {
        let max = self.max.load(Ordering::Relaxed);
        if table.records.len() >= max + max / 8 {
            self.make_room(table, max.saturating_sub(1));
        }
        table
            .records
            .insert_unique(query.id.0, Arc::clone(query), |query| query.id.0);
    }

    /// Takes records out, the least first, until `left` are left.
    fn make_room(&self, table: &mut Table, left: usize) {
        let mut ranks: Vec<_> = table.records.iter().map(|query| query.rank()).collect();
        let Some(excess) = ranks.len().checked_sub(left).filter(|excess| *excess > 0) else {
            return;
        };
        let (_, limit, _) = ranks.select_nth_unstable(excess - 1);
        let limit = *limit;
        let mut gone = Vec::with_capacity(excess);
        table.records.retain(|query| {
            // Ranks may have grown since.
            let stays = query.rank() > limit || gone.len() == excess;
            if !stays {
                gone.push(Arc::clone(query));
            }
            stays
        });
        for query in gone {
            query.retired.store(true, Ordering::Relaxed);
            query.drain_into(&self.other);
            table.evictions += 1;
            if Arc::strong_count(&query) > 1 {
                table.retired.insert(query.id, Arc::downgrade(&query));
            }
        }
        table.retired.retain(|_, query| query.strong_count() > 0);
    }

    /// Copies everything.
    pub fn sample(&self) -> QueriesSample {
        for _ in 0..TRIES {
            let (records, evictions) = self.records();
            let copies = self.copies(&records);
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            // What has made room after it was copied would be there twice, among the others as well.
            if table.evictions == evictions {
                return self.sorted(copies, evictions);
            }
        }
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let records: Vec<Arc<Query>> = table.records.iter().cloned().collect();
        self.sorted(self.copies(&records), table.evictions)
    }

    /// Every record, and how many have made room so far.
    fn records(&self) -> (Vec<Arc<Query>>, u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retired.retain(|_, query| {
            let held = query.upgrade();
            held.inspect(|query| query.drain_into(&self.other))
                .is_some()
        });
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

#[cfg(test)]
mod tests;
