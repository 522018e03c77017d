//! The latest of what deserves a look: slow statements, failed ones, waits for locks.
//!
//! Bound: [`KEPT`] of each. No literal, parameter or message of the server is kept: a message may quote data.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::histogram::nanos;
use super::sample::QueryId;
use crate::error::SqlState;

/// Entries kept of each kind.
pub const KEPT: usize = 256;

/// Whose statement it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What the client was told as its process id.
    pub pid: u32,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub application: Box<str>,
    /// `address:port`, or `unix`.
    pub peer: Box<str>,
}

/// A statement that took long, or failed.
#[derive(Clone, Debug)]
pub struct Incident {
    pub at: SystemTime,
    pub client: Client,
    pub query: QueryId,
    /// The text without constants.
    pub text: Arc<str>,
    pub node: Arc<str>,
    /// Waiting for a server connection.
    pub queued: Duration,
    /// The server's time: from sending to the last answer, without `blocked`.
    pub server: Duration,
    /// Waiting for the client to take the answer.
    pub blocked: Duration,
    pub rows: u64,
    pub sent: u64,
    pub error: Option<SqlState>,
}

impl Incident {
    /// How long the client waited in all.
    pub fn total(&self) -> Duration {
        self.queued + self.server + self.blocked
    }
}

/// A statement that waits for something on its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    pub client: Client,
    pub query: QueryId,
    /// Process id of its backend.
    pub backend: u32,
    /// How long the statement has been running.
    pub running: Duration,
    /// In `pg_stat_activity`'s words; empty if it does not wait, or may not be told.
    pub event_type: Box<str>,
    pub event: Box<str>,
    /// The lock it waits for, in `pg_locks`' words; empty if it waits for none.
    pub lock_type: Box<str>,
    pub lock_mode: Box<str>,
    pub relation: Box<str>,
    pub blockers: Vec<Blocker>,
}

/// Who stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// Process id of its backend.
    pub backend: u32,
    /// Its state in `pg_stat_activity`'s words; empty if that may not be told.
    pub state: Box<str>,
    /// The client of pgweir that runs on it, and its statement, if it is one of pgweir's.
    pub client: Option<(Client, QueryId)>,
}

/// What a look at the servers found.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    pub taken: Option<SystemTime>,
    pub waits: Vec<Wait>,
}

#[derive(Debug)]
struct Ring<T>(Mutex<VecDeque<Arc<T>>>);

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Ring<T> {
    fn push(&self, entry: T) {
        let entry = Arc::new(entry);
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// Latest first.
    fn all(&self) -> Vec<Arc<T>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().rev().cloned().collect()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Recent {
    slow: Ring<Incident>,
    failed: Ring<Incident>,
    waits: Mutex<Arc<Waits>>,
    threshold: AtomicU64,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            slow: Ring::default(),
            failed: Ring::default(),
            waits: Mutex::default(),
            threshold: AtomicU64::new(u64::MAX),
        }
    }
}

impl Recent {
    /// Statements that take this long are slow; none are without it.
    pub fn set_threshold(&self, threshold: Option<Duration>) {
        let nanos = threshold.map_or(u64::MAX, nanos);
        self.threshold.store(nanos, Ordering::Relaxed);
    }

    /// Whether a statement that took `total` is slow.
    pub fn is_slow(&self, total: Duration) -> bool {
        nanos(total) >= self.threshold.load(Ordering::Relaxed)
    }

    /// Keeps a slow statement.
    pub fn slow(&self, incident: Incident) {
        self.slow.push(incident);
    }

    /// Keeps a failed one.
    pub fn failed(&self, incident: Incident) {
        self.failed.push(incident);
    }

    /// Replaces what waits.
    pub fn set_waits(&self, waits: Waits) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(waits);
    }

    /// Copies everything.
    pub fn sample(&self) -> RecentSample {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        RecentSample {
            slow: self.slow.all(),
            failed: self.failed.all(),
            waits: Arc::clone(&waits),
        }
    }
}

/// A copy, latest first.
#[derive(Clone, Debug)]
pub struct RecentSample {
    pub slow: Vec<Arc<Incident>>,
    pub failed: Vec<Arc<Incident>>,
    pub waits: Arc<Waits>,
}
