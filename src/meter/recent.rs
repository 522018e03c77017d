//! The latest of what deserves a look: slow statements, failed ones, waits for locks.
//!
//! Bound: [`KEPT`] of each. No literal, parameter or message of the server is kept: a message may quote data.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::sample::{QueryId, TraceId};
use crate::error::SqlState;

/// Entries kept of each kind.
pub const KEPT: usize = 256;

/// Where a client is: put into words only where somebody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix,
}

impl Address {
    /// `None` on a Unix socket.
    pub fn tcp(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix => None,
        }
    }
}

/// `address:port`, or `unix`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Whose statement it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What the client was told as its process id.
    pub pid: u32,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub application: Box<str>,
    pub peer: Address,
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
    /// The trace it was part of.
    pub trace: Option<TraceId>,
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
    fn push(&self, entry: Arc<T>) {
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
#[derive(Debug, Default)]
pub struct Recent {
    slow: Ring<Incident>,
    failed: Ring<Incident>,
    waits: Mutex<Arc<Waits>>,
    plans: Mutex<VecDeque<(QueryId, Arc<str>)>>,
    slow_count: AtomicU64,
}

impl Recent {
    /// Keeps a slow statement.
    pub fn slow(&self, incident: Arc<Incident>) {
        self.slow_count.fetch_add(1, Ordering::Relaxed);
        self.slow.push(incident);
    }

    /// Keeps a failed one.
    pub fn failed(&self, incident: Arc<Incident>) {
        self.failed.push(incident);
    }

    /// Keeps a statement's plan in place of an older one.
    pub fn plan(&self, query: QueryId, plan: Arc<str>) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(known, _)| *known != query);
        if plans.len() >= KEPT {
            plans.pop_front();
        }
        plans.push_back((query, plan));
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
            plans: self
                .plans
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .cloned()
                .collect(),
            slow_count: self.slow_count.load(Ordering::Relaxed),
        }
    }
}

/// A copy, latest first.
#[derive(Clone, Debug)]
pub struct RecentSample {
    pub slow: Vec<Arc<Incident>>,
    pub failed: Vec<Arc<Incident>>,
    pub waits: Arc<Waits>,
    /// Plans of slow statements, as their server explained them.
    pub plans: HashMap<QueryId, Arc<str>>,
    /// Slow statements since the start.
    pub slow_count: u64,
}
