//! Connections set aside: idle ones that the session which used them last is to get again, unless somebody else needs them.
//!
//! For whoever looks on they are idle like others; a client that would have to wait gets the oldest of them where no
//! connection may be opened for it, or takes long to open.
//!
//! Bound: one for each session, and for no longer than it was set aside for and a look of the steward's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::Object;
use tokio::time::Instant;

use super::lease::Lease;
use super::manager::{Manager, Pooled};
use super::pool::Pool;

/// How long clients wait for a connection that is being opened. It may be a server's that does not answer.
const SLOW: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Entry {
    session: u64,
    until: Instant,
    object: Object<Manager>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Oldest first.
    held: Mutex<VecDeque<Entry>>,
    len: AtomicUsize,
}

impl Aside {
    fn with<R>(&self, change: impl FnOnce(&mut VecDeque<Entry>) -> R) -> R {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut held);
        self.len.store(held.len(), Ordering::SeqCst);
        result
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Takes out those that are `meant`, oldest first.
    fn take(&self, mut meant: impl FnMut(&Entry) -> bool) -> Vec<Object<Manager>> {
        if self.len() == 0 {
            return Vec::new();
        }
        let taken: VecDeque<Entry> = self.with(|held| {
            let (taken, left) = std::mem::take(held)
                .into_iter()
                .partition(|entry| meant(entry));
            *held = left;
            taken
        });
        taken.into_iter().map(|entry| entry.object).collect()
    }

    /// Takes out those for which `keep` is false.
    pub(super) fn remove(&self, mut keep: impl FnMut(&Pooled) -> bool) -> Vec<Object<Manager>> {
        self.take(|entry| !keep(&entry.object))
    }
}

impl Pool {
    /// Sets an idle connection aside for `session`, for no longer than `limit`.
    pub(super) fn put_aside(
        self: &Arc<Self>,
        session: u64,
        limit: Duration,
        object: Object<Manager>,
    ) {
        self.leave_aside(session);
        let entry = Entry {
            session,
            until: Instant::now() + limit,
            object,
        };
        self.aside.with(|held| held.push_back(entry));
        // One may have begun to wait meanwhile.
        self.open_or_serve_from_aside();
    }

    /// The steward opens connections for those who wait, and gives them what is set aside where it can't; they get it at
    /// once where the pool is full.
    pub(super) fn open_or_serve_from_aside(self: &Arc<Self>) {
        let needs = self.needs_connection();
        if !needs || self.open() >= self.effective.load().pool.max_size {
            self.serve_from_aside();
        }
        if needs {
            self.limits.changed.notify_one();
        }
    }

    /// The connection that is set aside for `session`, if it may have one at all now.
    pub fn take_aside(self: &Arc<Self>, session: u64) -> Option<Lease> {
        let own = self.aside.take(|entry| entry.session == session);
        if own.is_empty() {
            return None;
        }
        // Back to the idle ones, whose last is looked at and taken first.
        drop(own);
        if self.waiting() > 0 {
            self.serve();
        }
        self.try_checkout()
    }

    /// `session` does not need what is set aside for it.
    pub fn leave_aside(self: &Arc<Self>, session: u64) {
        if self.aside.len() > 0 {
            self.give_aside(|entry| entry.session == session);
        }
    }

    /// Nothing is set aside for longer than it should.
    pub(super) fn look_at_aside(self: &Arc<Self>, now: Instant) {
        self.give_aside(|entry| now >= entry.until);
    }

    /// Those who wait get what is set aside, where no connection is about to be opened for them.
    pub(super) fn serve_from_aside(self: &Arc<Self>) {
        if self.aside.len() == 0 || self.is_held() {
            return;
        }
        let is_slow = self.oldest_wait().is_some_and(|it| it.elapsed() >= SLOW);
        let opening = if is_slow { 0 } else { self.opening() };
        let mut needed = self.waiting().saturating_sub(opening);
        self.give_aside(|_| {
            let is_needed = needed > 0;
            needed = needed.saturating_sub(1);
            is_needed
        });
    }

    fn give_aside(self: &Arc<Self>, meant: impl FnMut(&Entry) -> bool) {
        let taken = self.aside.take(meant);
        if !taken.is_empty() {
            drop(taken);
            self.serve();
        }
    }
}
