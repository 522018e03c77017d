//! All pools, made on demand.
//!
//! Bound: one pool for each (user, database) that has logged in, and one for each of them and each replica; those
//! without clients and connections are dropped.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;

use super::catalogue::Catalogues;
use super::effective::Effective;
use super::forgotten::Forgotten;
use super::limits::Limits;
use super::listener::Listeners;
use super::orders::OrderBook;
use super::pool::{ClientPlace, Counters, Pool, PoolKey};
use super::targets::Targets;
use crate::backend::connect::Dialer;
use crate::config::model::Config;

/// See the module.
#[derive(Debug)]
pub struct Pools {
    pub(super) by_key: RwLock<HashMap<PoolKey, Arc<Pool>>>,
    pub(super) limits: Arc<Limits>,
    pub dialer: ArcSwap<Dialer>,
    /// The connections that listen for sessions.
    pub listeners: Listeners,
    pub(super) targets: Targets,
    /// By servers and database.
    pub(super) catalogues: Mutex<Catalogues>,
    /// What the console ordered; taken before `pools`.
    pub(super) orders: Mutex<OrderBook>,
    /// Changed only while `by_key` is held for writing.
    forgotten: Forgotten,
    /// Held while the pools' settings are replaced, so that of two replacements the later one stands.
    pub(super) replacing: Mutex<()>,
    /// Held while clients are counted and one is added, so that two can't take the last place.
    admitting: Mutex<()>,
}

/// A limit on clients that is reached: the setting and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPlace {
    pub setting: &'static str,
    pub limit: usize,
}

impl Pools {
    pub fn new(dialer: Arc<Dialer>) -> Arc<Self> {
        Arc::new(Self {
            by_key: RwLock::default(),
            limits: Arc::default(),
            dialer: ArcSwap::new(dialer),
            listeners: Listeners::default(),
            targets: Targets::default(),
            catalogues: Mutex::default(),
            admitting: Mutex::default(),
            replacing: Mutex::default(),
            forgotten: Forgotten::default(),
            orders: Mutex::default(),
        })
    }

    /// The pool for `database` and `user`; `None` where `config` has no such database and no fallback.
    pub fn get(&self, config: &Config, database: &str, user: &str) -> Option<Arc<Pool>> {
        if !Effective::exists(config, database) {
            return None;
        }
        let key = PoolKey {
            database: database.into(),
            user: user.into(),
            node: None,
        };
        if let Some(pool) = self
            .by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
        {
            return Some(Arc::clone(pool));
        }
        let mut effective = Effective::of(config, database, user)?;
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pools = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.entry(key.clone()).or_insert_with(|| {
            let is_held = self.targets.apply(&mut effective);
            let pool = Pool::new(key, effective, Arc::clone(&self.limits));
            pool.set_headless(is_held);
            orders.give(&pool);
            pool
        });
        Some(Arc::clone(pool))
    }

    /// The settings of `database` and `user`, with the present primary.
    pub fn effective(&self, config: &Config, database: &str, user: &str) -> Option<Effective> {
        let mut effective = Effective::of(config, database, user)?;
        self.targets.apply(&mut effective);
        Some(effective)
    }

    /// A place for one more client of `pool`, within the limits on clients of its database and its user.
    pub fn take_place(&self, pool: &Arc<Pool>) -> Result<ClientPlace, NoPlace> {
        let settings = pool.effective.load();
        let _turn = self
            .admitting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let clients = |counts: &dyn Fn(&PoolKey) -> bool| -> usize {
            let pools = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
            pools
                .values()
                .filter(|other| counts(&other.key))
                .map(|other| other.clients.load(Ordering::SeqCst))
                .sum()
        };
        if let Some(limit) = settings.pool.max_db_client_connections
            && clients(&|other| other.database == pool.key.database) >= limit
        {
            return Err(NoPlace {
                setting: "max_db_client_connections",
                limit,
            });
        }
        if let Some(limit) = settings.pool.max_user_client_connections
            && clients(&|other| other.user == pool.key.user) >= limit
        {
            return Err(NoPlace {
                setting: "max_user_client_connections",
                limit,
            });
        }
        Ok(ClientPlace::new(pool))
    }

    /// Every pool.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        self.by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Closes the idle connections to the databases that `text` names, and to the one that is copied where none is named.
    /// The server waits some seconds for their processes to end.
    pub fn vacate(&self, text: &str) {
        let is_named = |name: &str| {
            text.split(|it: char| !(it.is_alphanumeric() || "_$-".contains(it)))
                .any(|word| word.eq_ignore_ascii_case(name))
                || text.contains(&format!("\"{}\"", name.replace('"', "\"\"")))
        };
        for pool in self.all() {
            let dbname = &pool.effective.load().dbname;
            if dbname == "template1" || is_named(dbname) {
                pool.retain_idle(|_| false);
            }
        }
    }

    /// Counters and caps shared by the pools.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Takes over a new configuration. A pool whose server, login or startup settings changed replaces its
    /// connections; one whose database is gone serves the clients it has, and [`Self::get`] finds it for no new one.
    pub fn reload(&self, config: &Config) {
        let _turn = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for pool in self.all() {
            let Some(mut next) = Effective::of(config, &pool.key.database, &pool.key.user) else {
                continue;
            };
            let before = pool.effective.load_full();
            if pool.key.node.is_none() {
                pool.set_headless(self.targets.apply(&mut next));
            } else {
                next = next.for_replica(&before.primary);
            }
            let moved = !before.primary.is_same_server(&next.primary)
                || before.dbname != next.dbname
                || before.login_user != next.login_user
                || before.login_password != next.login_password
                || before.startup != next.startup
                || before.pool.connect_query != next.pool.connect_query;
            if before.login_password != next.login_password
                && let Some(password) = &next.login_password
            {
                pool.set_credentials(crate::backend::login::Credentials::Password(
                    password.clone(),
                ));
            }
            pool.effective.store(Arc::new(next));
            if moved {
                pool.reconnect();
            }
        }
        self.limits.changed.notify_one();
    }

    /// Visits what each pool has counted, by database, and what those had that are dropped; each once.
    pub fn each_counters(&self, mut visit: impl FnMut(&Arc<str>, &Counters)) {
        let pools = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        for pool in pools.values() {
            visit(&pool.key.database, &pool.counters);
        }
        self.forgotten.each(visit);
    }

    /// Drops pools nobody uses.
    pub fn forget_unused(&self) {
        let mut pools = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| {
            let is_used = pool.clients.load(Ordering::SeqCst) > 0
                || pool.open() > 0
                || pool.is_held()
                || pool.orders.disabled.load(Ordering::Relaxed)
                || Arc::strong_count(pool) > 1;
            if !is_used {
                self.forgotten.take(pool);
            }
            is_used
        });
    }
}
