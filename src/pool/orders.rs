//! What an operator ordered, kept by database: pools are made on demand, and one made later obeys as well.
//!
//! # Invariants
//! - A pool's flags are only written under the book's lock, from the book.
//! - `PAUSE` of everything and `PAUSE` of one database are two orders, as in PgBouncer: each has its own `RESUME`.
//!
//! Bound: one entry for each database that was named in an order still in force.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::pool::Pool;
use super::pools::Pools;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standing {
    paused: bool,
    disabled: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct OrderBook {
    all_paused: bool,
    databases: HashMap<Arc<str>, Standing>,
}

/// The databases an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Database(Arc<str>),
}

impl Scope {
    pub fn covers(&self, database: &str) -> bool {
        match self {
            Self::All => true,
            Self::Database(name) => **name == *database,
        }
    }
}

impl OrderBook {
    fn of(&self, database: &str) -> Standing {
        let own = self.databases.get(database).copied().unwrap_or_default();
        Standing {
            paused: own.paused || self.all_paused,
            ..own
        }
    }

    /// Makes `pool` do as ordered.
    pub(super) fn give(&self, pool: &Pool) {
        let standing = self.of(&pool.key.database);
        pool.orders.paused.store(standing.paused, Ordering::SeqCst);
        pool.orders
            .disabled
            .store(standing.disabled, Ordering::SeqCst);
    }

    /// Changes one database's orders; false if they were so already.
    fn change(&mut self, database: &Arc<str>, change: impl FnOnce(&mut Standing)) -> bool {
        let before = self.databases.get(database).copied().unwrap_or_default();
        let mut after = before;
        change(&mut after);
        if after == Standing::default() {
            self.databases.remove(database);
        } else {
            self.databases.insert(Arc::clone(database), after);
        }
        before != after
    }

    fn pause(&mut self, scope: &Scope, paused: bool) -> bool {
        match scope {
            Scope::All => std::mem::replace(&mut self.all_paused, paused) != paused,
            Scope::Database(name) => self.change(name, |standing| standing.paused = paused),
        }
    }
}

impl Pools {
    fn order(&self, scope: &Scope, change: impl FnOnce(&mut OrderBook) -> bool) -> bool {
        let mut book = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut book);
        for pool in self.within(scope) {
            book.give(&pool);
        }
        changed
    }

    /// The pools of these databases.
    pub fn within(&self, scope: &Scope) -> Vec<Arc<Pool>> {
        let mut pools = self.all();
        pools.retain(|pool| scope.covers(&pool.key.database));
        pools
    }

    /// `PAUSE`, `KILL`: no connection is given out until [`Self::resume`]. False if that was so already.
    pub fn pause(&self, scope: &Scope) -> bool {
        self.order(scope, |book| book.pause(scope, true))
    }

    /// `RESUME`: clients that waited are served. False if nothing was paused.
    pub fn resume(&self, scope: &Scope) -> bool {
        let changed = self.order(scope, |book| book.pause(scope, false));
        for pool in self.within(scope) {
            pool.serve();
        }
        self.limits.changed.notify_one();
        changed
    }

    /// `DISABLE` and `ENABLE`: whether new clients are let in.
    pub fn set_disabled(&self, database: &Arc<str>, disabled: bool) {
        self.order(&Scope::Database(Arc::clone(database)), |book| {
            book.change(database, |standing| standing.disabled = disabled)
        });
    }

    /// Whether everything is paused.
    pub fn is_paused(&self) -> bool {
        self.orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .all_paused
    }

    /// Whether a pause of exactly this scope, or of everything, is in force.
    pub fn is_paused_within(&self, scope: &Scope) -> bool {
        match scope {
            Scope::All => self.is_paused(),
            Scope::Database(name) => self.standing(name).0,
        }
    }

    /// Whether a database is paused, by itself or with all others, and whether it is disabled.
    pub fn standing(&self, database: &str) -> (bool, bool) {
        let book = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = book.of(database);
        (standing.paused, standing.disabled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_of_one_database_outlives_the_resume_of_all() {
        let mut book = OrderBook::default();
        let app: Arc<str> = "app".into();
        let one = Scope::Database(Arc::clone(&app));
        assert!(book.pause(&one, true));
        assert!(!book.pause(&one, true));
        assert!(book.pause(&Scope::All, true));
        assert!(book.of("other").paused);
        assert!(book.pause(&Scope::All, false));
        assert!(book.of("app").paused && !book.of("other").paused);
        assert!(book.pause(&one, false));
        assert!(book.databases.is_empty(), "an order that is over is kept");
    }

    #[test]
    fn disabling_says_nothing_of_pausing() {
        let mut book = OrderBook::default();
        let app: Arc<str> = "app".into();
        book.change(&app, |standing| standing.disabled = true);
        assert_eq!(
            book.of("app"),
            Standing {
                paused: false,
                disabled: true
            }
        );
        book.pause(&Scope::Database(Arc::clone(&app)), true);
        book.change(&app, |standing| standing.disabled = false);
        assert!(book.of("app").paused);
    }
}
