//! A connection checked out by one client.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::Object;
use tokio::time::Instant;

use super::manager::Manager;
use super::pool::Pool;
use crate::backend::connection::Backend;

/// Holds a connection. [`Lease::checkin`] gives it back if it is clean; dropping a lease closes the connection, so a
/// panic, an error or a vanished client can't put a dirty one into the pool.
#[derive(Debug)]
pub struct Lease {
    object: Option<Object<Manager>>,
    pool: Arc<Pool>,
    /// How often the pool was vacated before.
    vacated: u64,
}

impl Lease {
    pub(super) fn new(object: Object<Manager>, pool: Arc<Pool>) -> Self {
        Self {
            object: Some(object),
            vacated: pool.vacated(),
            pool,
        }
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Gives the connection back. One that is not clean, or that a cancel request is under way to, is not given back
    /// here: see [`super::reset::give_back`].
    pub fn checkin(mut self) {
        let now = Instant::now();
        // In this order: a request that ends in doubt says so before it lets go.
        if self.identity.is_being_cancelled()
            || !self.is_clean()
            || self.pool.objects.manager().is_outdated(&self, now)
            || self.is_unwanted()
        {
            return;
        }
        if self.pool.must_yield() {
            return;
        }
        self.released = now;
        drop(self.object.take());
        if self.is_unwanted() {
            self.pool.retain_idle(|_| false);
        }
        self.pool.serve();
    }

    /// The pool was vacated meanwhile.
    fn is_unwanted(&self) -> bool {
        self.pool.vacated() != self.vacated
    }

    /// Gives the connection back, to be had again by `session` while nobody else needs it, for no longer than `limit`.
    pub fn set_aside(mut self, session: u64, limit: Duration) {
        let now = Instant::now();
        if self.identity.is_being_cancelled()
            || !self.is_clean()
            || self.pool.objects.manager().is_outdated(&self, now)
            || self.is_unwanted()
            || self.pool.is_held()
        {
            return self.checkin();
        }
        if self.pool.must_yield() {
            return;
        }
        self.released = now;
        if let Some(object) = self.object.take() {
            let pool = Arc::clone(&self.pool);
            pool.put_aside(session, limit, object);
        }
    }

    /// Gives a connection back that was only looked at.
    pub(super) fn put_back(mut self) {
        drop(self.object.take());
    }
}

impl Deref for Lease {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        // `object` is only taken by `checkin` and `drop`, which own the lease.
        &self
            .object
            .as_ref()
            .expect("a lease holds its connection until its end")
            .backend
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Backend {
        // As above.
        &mut self
            .object
            .as_mut()
            .expect("a lease holds its connection until its end")
            .backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            // Taken out of deadpool for good: dropping what comes out closes the socket and frees the slot.
            drop(Object::take(object));
        }
    }
}
