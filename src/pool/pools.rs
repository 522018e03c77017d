//! All pools, made on demand.
//!
//! Bound: one pool for each (user, database) that has logged in, and one for each of them and each replica; those
//! without clients and connections are dropped.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;
use hashbrown::{Equivalent, HashMap};
use tokio::sync::Notify;

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
    pub(super) by_key: RwLock<HashMap<PoolKey, Arc<Pool>, foldhash::quality::RandomState>>,
    pub(super) limits: Arc<Limits>,
    pub dialer: ArcSwap<Dialer>,
    /// The connections that listen for sessions.
    pub listeners: Listeners,
    pub(super) targets: Targets,
    /// Told whenever a primary may have become another.
    pub(super) moved: Notify,
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

/// A [`PoolKey`] to look for, which hashes like it.
#[derive(Hash)]
struct Wanted<'a> {
    database: &'a str,
    user: &'a str,
    node: Option<&'a str>,
}

impl Equivalent<PoolKey> for Wanted<'_> {
    fn equivalent(&self, key: &PoolKey) -> bool {
        (self.database, self.user, self.node) == (&*key.database, &*key.user, key.node.as_deref())
    }
}

impl Pools {
    pub fn new(dialer: Arc<Dialer>) -> Arc<Self> {
        Arc::new(Self {
            by_key: RwLock::default(),
            limits: Arc::default(),
            dialer: ArcSwap::new(dialer),
            listeners: Listeners::default(),
            targets: Targets::default(),
            moved: Notify::new(),
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
        let wanted = Wanted {
            database,
            user,
            node: None,
        };
        if let Some(pool) = self
            .by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&wanted)
        {
            return Some(Arc::clone(pool));
        }
        let mut effective = Effective::of(config, database, user)?;
        let key = PoolKey {
            database: database.into(),
            user: user.into(),
            node: None,
        };
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

    /// Closes the connections to the databases that `text` names, and to the one that is copied where none is named: idle
    /// ones now, others when they are given back, such as those that are being cleaned. The server waits some seconds for
    /// their processes to end.
    pub fn vacate(&self, text: &str) {
        let is_named = |name: &str| {
            text.split(|it: char| !(it.is_alphanumeric() || "_$-".contains(it)))
                .any(|word| word.eq_ignore_ascii_case(name))
                || text.contains(&format!("\"{}\"", name.replace('"', "\"\"")))
        };
        for pool in self.all() {
            let dbname = &pool.effective.load().dbname;
            if dbname == "template1" || is_named(dbname) {
                pool.vacate();
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
            let is_elsewhere =
                !before.primary.is_same_server(&next.primary) || before.dbname != next.dbname;
            // Another server may know the user by another password.
            if is_elsewhere {
                pool.unlearn();
            }
            let moved = is_elsewhere
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

    /// Drops pools nobody uses. [`Self::get`] makes them as they were: what was ordered, and whether there is a primary, is
    /// kept elsewhere. So names that clients make up leave nothing behind while pools are held, either.
    pub fn forget_unused(&self) {
        let mut pools = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| {
            let is_used = pool.clients.load(Ordering::SeqCst) > 0
                || pool.open() > 0
                || Arc::strong_count(pool) > 1;
            if !is_used {
                self.forgotten.take(pool);
            }
            is_used
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::config::{Overrides, load};
    use crate::pool::orders::Scope;
    use crate::pool::passthrough::Learnt;
    use crate::pool::targets::Target;

    fn config(primary: &str) -> Config {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", primary);
        load(None, &overrides, &|_| None).unwrap().config
    }

    #[test]
    fn names_that_are_made_up_leave_nothing_behind_while_everything_is_held() {
        let config = config("postgres://db1");
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let app = Arc::from("app");
        pools.pause(&Scope::All);
        pools.set_disabled(&app, true);
        let held = Target {
            node: None,
            is_held: true,
        };
        pools.point(&Arc::default(), Some(held));
        for number in 0..100 {
            let pool = pools.get(&config, "app", &format!("user{number}"));
            assert!(pool.unwrap().is_headless());
        }
        assert_eq!(pools.all().len(), 100);
        pools.forget_unused();
        assert!(pools.all().is_empty());
        let pool = pools.get(&config, "app", "user1").unwrap();
        let orders = &pool.orders;
        assert!(pool.is_headless());
        assert!(orders.paused.load(Ordering::SeqCst));
        assert!(orders.disabled.load(Ordering::SeqCst));
    }

    #[test]
    fn another_server_may_know_a_user_by_another_password() {
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config("postgres://db1"), "app", "bob").unwrap();
        let is_known = |pool: &Pool| pool.learnt(Duration::from_secs(60)).is_some();
        pool.learn(Learnt::NoPassword, Instant::now());
        pools.reload(&config("postgres://db1"));
        assert!(is_known(&pool));
        pools.reload(&config("postgres://db2"));
        assert!(!is_known(&pool));
    }
}
