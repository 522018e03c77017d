//! Where the connections of pools go whose cluster has more than one server: to its primary, whoever that is.
//!
//! Written by `cluster`, which finds out; read when a pool's settings are made.
//!
//! Bound: one entry for each list of servers in the configuration.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::effective::Effective;
use super::pool::Pool;
use super::pools::Pools;
use crate::config::model::{Config, Node};

/// The primary of one list of servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The last one known; `None` before there was one.
    pub node: Option<Node>,
    /// It takes no statements at the moment: clients wait.
    pub is_held: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Targets {
    by_servers: RwLock<HashMap<Arc<str>, Target>>,
}

impl Targets {
    /// Puts the present primary into `effective`; tells whether clients have to wait for one.
    pub(super) fn apply(&self, effective: &mut Effective) -> bool {
        let targets = self
            .by_servers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(target) = targets.get(&effective.servers) else {
            return false;
        };
        if let Some(node) = &target.node {
            effective.primary = node.clone();
        }
        target.is_held
    }

    fn set(&self, servers: &Arc<str>, target: Option<Target>) {
        let mut targets = self
            .by_servers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match target {
            Some(target) => {
                targets.insert(Arc::clone(servers), target);
            }
            None => {
                targets.remove(servers);
            }
        }
    }
}

impl Pools {
    /// Points the pools of these servers at their primary; `None` forgets the servers, whose pools then go by the
    /// configuration.
    ///
    /// A pool made meanwhile reads its settings under the lock that [`Pools::all`] takes, so it is either found here or
    /// has seen the new target.
    pub fn point(&self, servers: &Arc<str>, target: Option<Target>) {
        let _turn = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.targets.set(servers, target);
        for pool in self.of_servers(servers) {
            if pool.key.node.is_none() {
                self.retarget(&pool);
            }
        }
        self.moved.notify_waiters();
        self.limits.changed.notify_one();
    }

    /// Waits until the primary of `database` is another one than `server`. Cancel safe.
    pub(super) async fn left(&self, server: &Node, config: &Config, database: &str) {
        loop {
            // Before the settings are read: a move is either heard of or in them.
            let moved = self.moved.notified();
            let effective = self.effective(config, database, "");
            if !effective.is_some_and(|effective| effective.primary.is_same_server(server)) {
                return;
            }
            moved.await;
        }
    }

    fn retarget(&self, pool: &Arc<Pool>) {
        let before = pool.effective.load_full();
        let mut next = Effective::clone(&before);
        let is_headless = self.targets.apply(&mut next);
        // A pool that held its clients back lets them go only once no connection to the old primary can be had.
        if is_headless {
            pool.set_headless(true);
        }
        if !before.primary.is_same_server(&next.primary) {
            pool.effective.store(Arc::new(next));
            pool.forget_failures();
            pool.reconnect();
            pool.moved.notify_waiters();
        }
        pool.set_headless(is_headless);
        pool.serve();
    }

    /// Every pool of these servers.
    fn of_servers(&self, servers: &str) -> Vec<Arc<Pool>> {
        let mut pools = self.all();
        pools.retain(|pool| *pool.effective.load().servers == *servers);
        pools
    }

    /// Gives up whatever is under way on the primaries' connections to servers other than `primary`: nothing they say
    /// counts any more. Sessions find out when they are next woken.
    pub fn abandon_all_but(&self, servers: &str, primary: &Node) {
        for pool in self.of_servers(servers) {
            if pool.key.node.is_none() {
                pool.abandon(|node| !node.is_same_server(primary));
            }
        }
    }

    /// Gives up whatever is under way on the primary's connections, which are replaced: it is not what it was.
    pub fn abandon_primary(&self, servers: &str) {
        for pool in self.of_servers(servers) {
            if pool.key.node.is_none() {
                pool.reconnect();
                pool.moved.notify_waiters();
                pool.abandon(|_| true);
            }
        }
    }

    /// Gives up whatever is under way on the primaries' connections to `node`, which are replaced: what is written there
    /// is lost to the cluster.
    pub fn abandon_outdated(&self, servers: &str, node: &Node) {
        for pool in self.of_servers(servers) {
            if pool.key.node.is_none() {
                pool.reconnect();
                pool.moved.notify_waiters();
                pool.abandon(|it| it.is_same_server(node));
            }
        }
    }

    /// The name of `node` leads elsewhere now: connections to it are replaced when they are next free.
    pub fn readdress(&self, servers: &str, node: &Node) {
        for pool in self.of_servers(servers) {
            if pool.effective.load().primary.is_same_server(node) {
                pool.reconnect();
                pool.moved.notify_waiters();
            }
        }
    }

    /// A replica serves nobody any more: clients that wait for it go elsewhere, and what is under way there is given up.
    pub fn give_up(&self, servers: &str, node: &str) {
        for pool in self.of_servers(servers) {
            if pool.key.node.as_deref() == Some(node) {
                pool.reconnect();
                pool.turn_away();
                pool.abandon(|_| true);
            }
        }
    }
}
