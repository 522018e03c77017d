//! Pools of replicas: for each pool of a primary, one for each replica that its clients read from.
//!
//! They are made by the first read and have no clients of their own. What they log in with, and what their connections
//! must report, is the primary's pool's.
//!
//! # Why a replica with other settings is not used
//! Where `postgresql.conf` differs (`TimeZone`, `DateStyle`), the same read has another answer there, and the client
//! would be told of a change it did not make. What a fresh connection reports is compared once for each connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::open::{Gate, OpenError};
use super::pool::{Pool, PoolKey};
use super::pools::Pools;
use crate::backend::connection::Backend;
use crate::backend::login::Credentials;
use crate::config::model::Node;

/// What a server is bound to report differently from others.
const OF_THE_SERVER: [&[u8]; 2] = [b"in_hot_standby", b"server_version"];

/// How a pool and those of its replicas know of each other.
#[derive(Debug, Default)]
pub struct Kin {
    /// The primary's pool, in one of a replica.
    pub(super) primary: Option<Weak<Pool>>,
    /// Those of replicas, in a primary's.
    replicas: ArcSwap<Vec<Arc<Pool>>>,
    /// Reads that went elsewhere since connections were last opened, because none was idle here.
    demand: AtomicUsize,
}

impl Kin {
    fn of(primary: &Arc<Pool>) -> Self {
        Self {
            primary: Some(Arc::downgrade(primary)),
            ..Self::default()
        }
    }
}

impl Pools {
    /// The pool of `primary`'s clients on the replica `node`, called `name`.
    pub fn replica(&self, primary: &Arc<Pool>, name: &Arc<str>, node: &Node) -> Arc<Pool> {
        let is_it = |pool: &&Arc<Pool>| pool.key.node.as_ref() == Some(name);
        if let Some(pool) = primary.kin.replicas.load().iter().find(is_it) {
            return Arc::clone(pool);
        }
        let key = PoolKey {
            node: Some(Arc::clone(name)),
            ..primary.key.clone()
        };
        let effective = primary.effective.load().for_replica(node);
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pools = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.entry(key.clone()).or_insert_with(|| {
            let pool = Pool::with_kin(key, effective, Arc::clone(&self.limits), Kin::of(primary));
            orders.give(&pool);
            pool
        });
        primary.kin.replicas.rcu(|known| {
            let mut next = Vec::clone(known);
            if !next.iter().any(|other| Arc::ptr_eq(other, pool)) {
                next.retain(|other| other.key != pool.key);
                next.push(Arc::clone(pool));
            }
            next
        });
        Arc::clone(pool)
    }
}

impl Pool {
    pub fn is_of_replica(&self) -> bool {
        self.kin.primary.is_some()
    }

    /// How server connections of this pool log in now: those of replicas as the primary's do.
    pub(super) fn login_credentials(&self) -> Credentials {
        match self.kin.primary.as_ref().and_then(Weak::upgrade) {
            Some(primary) => primary.credentials(),
            None => self.credentials(),
        }
    }

    /// Whether the last attempt to open a connection failed so recently that there is no other yet.
    pub fn is_resting(&self) -> bool {
        self.with_gate(|gate: &mut Gate| gate.retry_at.is_some_and(|at| at > Instant::now()))
    }

    /// Whether all the connections it may have are open and in use.
    pub fn is_saturated(&self) -> bool {
        self.open() >= self.effective.load().pool.max_size && self.opening() == 0
    }

    /// Has a connection opened for the reads to come: this one goes elsewhere.
    pub fn warm_up(&self) {
        self.kin.demand.fetch_add(1, Ordering::SeqCst);
        self.limits.changed.notify_one();
    }

    pub(super) fn take_demand(&self) -> usize {
        self.kin.demand.swap(0, Ordering::SeqCst)
    }

    /// Whether a fresh connection to a replica reports what one to the primary does; and has it say what a client may
    /// be told.
    pub(super) fn compare(&self, backend: &mut Backend) -> Result<(), OpenError> {
        let Some(primary) = &self.kin.primary else {
            return Ok(());
        };
        let Some(expected) = primary.upgrade().and_then(|primary| primary.baseline()) else {
            return Err(OpenError::NoPrimary);
        };
        for (name, value) in expected.iter() {
            let reported = backend.mirror.reported.get(name);
            if OF_THE_SERVER.contains(&name) {
                backend.mirror.report(name, value);
            } else if reported.is_some_and(|reported| reported != value) {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return Err(OpenError::Differs {
                    setting: text(name),
                    here: text(reported.unwrap_or_default()),
                    primary: text(value),
                });
            }
        }
        Ok(())
    }
}
