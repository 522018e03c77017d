//! Connections of a pool that are closed though nothing is wrong with them.

use std::sync::atomic::Ordering;

use deadpool::managed::{Object, RetainResult};

use super::manager::Pooled;
use super::pool::Pool;

impl Pool {
    /// Closes idle connections for which `keep` is false.
    pub fn retain_idle(&self, mut keep: impl FnMut(&Pooled) -> bool) -> usize {
        let mut closed = self.aside.remove(&mut keep);
        let count = closed.len();
        closed
            .drain(..)
            .for_each(|object| drop(Object::take(object)));
        let RetainResult { removed, .. } = self.objects.retain(|pooled, _| keep(pooled));
        removed.len() + count
    }

    /// Closes the idle connections, and has the others closed when they are given back.
    pub(super) fn vacate(&self) {
        self.vacated.fetch_add(1, Ordering::SeqCst);
        self.retain_idle(|_| false);
    }

    /// How often it was vacated.
    pub(super) fn vacated(&self) -> u64 {
        self.vacated.load(Ordering::SeqCst)
    }

    /// Ids of the idle connections.
    pub fn idle_ids(&self) -> Vec<u64> {
        let mut ids = Vec::new();
        self.retain_idle(|pooled| {
            ids.push(pooled.backend.id);
            true
        });
        ids
    }

    /// Whether connections from before the last `RECONNECT` are still open.
    pub fn has_outdated(&self) -> bool {
        let generation = self.generation();
        self.live
            .all()
            .iter()
            .any(|backend| backend.generation < generation)
    }

    /// `RECONNECT`: every connection is replaced when it is next free.
    pub fn reconnect(&self) {
        self.objects
            .manager()
            .generation
            .fetch_add(1, Ordering::SeqCst);
        self.retain_idle(|_| false);
        self.limits.changed.notify_one();
    }
}
