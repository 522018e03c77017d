//! Caps on server connections shared by several pools: per database, per user, per server, in total.
//!
//! Bound: one counter for each database, user and server that has a connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::circuit::Circuits;
use super::pool::PoolKey;
use crate::config::model::{Node, PoolSettings};

/// The counters.
#[derive(Debug, Default)]
pub struct Limits {
    counts: Mutex<Counts>,
    /// Something changed that may let a waiting client be served: a connection ended, a client queued.
    pub changed: Notify,
    /// Which servers are asked for connections.
    pub circuits: Arc<Circuits>,
    /// Clients waiting in all pools.
    pub waiting: AtomicUsize,
    /// See [`Cleaning`].
    cleaning: AtomicUsize,
    /// Whether `starved` holds anything: keeps the lock off the path of every checkin.
    has_starved: AtomicBool,
    starved: Mutex<Vec<Starved>>,
}

/// A pool that a shared cap keeps from opening the connection its clients wait for.
#[derive(Clone, Debug)]
pub struct Starved {
    pub key: PoolKey,
    /// The address of its server.
    pub server: String,
    pub cap: Cap,
    /// Since when the first of its clients waits.
    pub since: Instant,
    /// The connections it has, and its weight.
    pub share: (usize, usize),
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_database: HashMap<Arc<str>, usize>,
    by_user: HashMap<Arc<str>, usize>,
    by_node: HashMap<Arc<str>, usize>,
}

/// Which cap stands in the way of one more connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    Total,
    Database,
    User,
    Node,
}

impl Cap {
    /// Whether connections of pools `a` and `b` count together under this cap; each comes with its server's address.
    pub fn is_shared_by(
        self,
        (a, server_a): (&PoolKey, impl FnOnce() -> String),
        (b, server_b): (&PoolKey, impl FnOnce() -> String),
    ) -> bool {
        match self {
            Self::Total => true,
            Self::Database => a.database == b.database,
            Self::User => a.user == b.user,
            Self::Node => server_a() == server_b(),
        }
    }

    /// The setting's name.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Total => "max_server_connections",
            Self::Database => "max_db_connections",
            Self::User => "max_user_connections",
            Self::Node => "max_connections of the server",
        }
    }
}

/// A connection is being cleaned, or what runs on it cancelled, for a client that may be gone; until dropped.
#[derive(Debug)]
pub(super) struct Cleaning(Arc<Limits>);

impl Drop for Cleaning {
    fn drop(&mut self) {
        self.0.cleaning.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The right to one server connection.
#[derive(Debug)]
pub struct Slot {
    limits: Arc<Limits>,
    database: Arc<str>,
    user: Arc<str>,
    node: Arc<str>,
    /// The pool's own count.
    open: Arc<AtomicUsize>,
}

impl Limits {
    /// Takes a slot for a connection to `node` of the pool whose count is `open`.
    pub fn reserve(
        self: &Arc<Self>,
        key: &PoolKey,
        node: &Node,
        open: &Arc<AtomicUsize>,
        settings: &PoolSettings,
    ) -> Result<Slot, Cap> {
        let (database, user) = (&key.database, &key.user);
        let address: Arc<str> = node.address().into();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = |count: usize, cap: Option<usize>| cap.is_some_and(|cap| count >= cap);
        if reached(counts.total, settings.max_server_connections) {
            return Err(Cap::Total);
        }
        if reached(
            counts.by_database.get(database).copied().unwrap_or(0),
            settings.max_db_connections,
        ) {
            return Err(Cap::Database);
        }
        if reached(
            counts.by_user.get(user).copied().unwrap_or(0),
            settings.max_user_connections,
        ) {
            return Err(Cap::User);
        }
        if reached(
            counts.by_node.get(&address).copied().unwrap_or(0),
            node.max_connections,
        ) {
            return Err(Cap::Node);
        }
        counts.total += 1;
        *counts.by_database.entry(Arc::clone(database)).or_default() += 1;
        *counts.by_user.entry(Arc::clone(user)).or_default() += 1;
        *counts.by_node.entry(Arc::clone(&address)).or_default() += 1;
        open.fetch_add(1, Ordering::SeqCst);
        Ok(Slot {
            limits: Arc::clone(self),
            database: Arc::clone(database),
            user: Arc::clone(user),
            node: address,
            open: Arc::clone(open),
        })
    }

    /// Whether some starved pool is as `is_it` wants it.
    pub fn is_starved(&self, is_it: impl FnMut(&Starved) -> bool) -> bool {
        self.has_starved.load(Ordering::Relaxed)
            && self
                .starved
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(is_it)
    }

    /// A connection is given up for a starved pool: nobody gives up another before the steward has looked again. False
    /// if somebody else was faster.
    pub(super) fn gives_up(&self) -> bool {
        self.has_starved.swap(false, Ordering::Relaxed)
    }

    /// The steward's finding for [`Self::is_starved`].
    pub(super) fn set_starved(&self, starved: Vec<Starved>) {
        self.has_starved
            .store(!starved.is_empty(), Ordering::Relaxed);
        *self.starved.lock().unwrap_or_else(PoisonError::into_inner) = starved;
    }

    pub(super) fn cleaning(self: &Arc<Self>) -> Cleaning {
        self.cleaning.fetch_add(1, Ordering::SeqCst);
        Cleaning(Arc::clone(self))
    }

    /// Whether a server may still run what nobody waits for any more.
    pub fn is_cleaning(&self) -> bool {
        self.cleaning.load(Ordering::SeqCst) > 0
    }

    /// Server connections of all pools.
    pub fn total(&self) -> usize {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .total
    }

    /// Server connections of one database.
    pub fn of_database(&self, database: &str) -> usize {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.by_database.get(database).copied().unwrap_or(0)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self
            .limits
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *counts;
        counts.total -= 1;
        for (map, key) in [
            (&mut counts.by_database, &self.database),
            (&mut counts.by_user, &self.user),
            (&mut counts.by_node, &self.node),
        ] {
            if let Some(count) = map.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    map.remove(key);
                }
            }
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.limits.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cap_is_named_and_a_dropped_slot_is_free_again() {
        let limits = Arc::new(Limits::default());
        let open = Arc::new(AtomicUsize::new(0));
        let mut settings = crate::pool::pool::tests::settings();
        settings.max_db_connections = Some(1);
        let key = |database: &str, node: Option<&str>| PoolKey {
            database: database.into(),
            user: "u".into(),
            node: node.map(Into::into),
        };
        let mut node = Node::at("db1", 5432);
        let reserve = |database: &str, node: &Node, settings: &PoolSettings| {
            limits.reserve(&key(database, None), node, &open, settings)
        };
        let slot = reserve("app", &node, &settings).unwrap();
        assert_eq!(reserve("app", &node, &settings).unwrap_err(), Cap::Database);
        node.max_connections = Some(1);
        assert_eq!(reserve("other", &node, &settings).unwrap_err(), Cap::Node);
        let elsewhere = Node::at("db2", 5432);
        drop(reserve("other", &elsewhere, &settings).unwrap());
        settings.max_user_connections = Some(1);
        assert_eq!(reserve("other", &node, &settings).unwrap_err(), Cap::User);
        settings.max_server_connections = Some(1);
        assert_eq!(reserve("other", &node, &settings).unwrap_err(), Cap::Total);
        assert_eq!((limits.total(), open.load(Ordering::SeqCst)), (1, 1));
        drop(slot);
        assert_eq!((limits.total(), open.load(Ordering::SeqCst)), (0, 0));
        assert!(reserve("app", &node, &settings).is_ok());
    }

    #[test]
    fn the_cap_of_a_server_is_shared_by_all_pools_of_its_address() {
        let key = |database: &str, node: Option<&str>| PoolKey {
            database: database.into(),
            user: "u".into(),
            node: node.map(Into::into),
        };
        let is_shared = |a: (&PoolKey, &str), b: (&PoolKey, &str)| {
            let (at_a, at_b) = (a.1.to_owned(), b.1.to_owned());
            Cap::Node.is_shared_by((a.0, || at_a), (b.0, || at_b))
        };
        let (primary, other) = (key("a", None), key("b", None));
        let replica = key("b", Some("r"));
        assert!(is_shared((&primary, "db1:5432"), (&other, "db1:5432")));
        assert!(is_shared((&primary, "db1:5432"), (&replica, "db1:5432")));
        // Two primaries are two servers.
        assert!(!is_shared((&primary, "db1:5432"), (&other, "db2:5432")));
        assert!(!is_shared((&replica, "db1:5432"), (&replica, "db2:5432")));
    }
}
