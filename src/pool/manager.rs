//! deadpool's side of a pool: keeping idle connections and judging whether one may be used again.
//!
//! # Why connections are not made in `create`
//! deadpool makes a connection inside `get`, on the time of the client that asked, while that client could be served
//! by a connection another client gives back meanwhile. So the steward opens connections in the background and leaves
//! them in `ready`; `create` only takes one from there, and `get` never waits.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use arc_swap::ArcSwap;
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use thiserror::Error;

use super::effective::Effective;
use super::limits::Slot;
use super::live::Listed;
use crate::backend::connection::Backend;
use tokio::time::Instant;

/// A connection and its place under the limits.
#[derive(Debug)]
pub struct Pooled {
    pub backend: Backend,
    /// Given back when the connection is dropped; nothing reads it.
    pub slot: Slot,
    /// Its line in the pool's list, gone with it.
    pub listed: Listed,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.backend.say_goodbye();
    }
}

/// No connection stands ready; one has to be opened.
#[derive(Debug, Error)]
#[error("no connection is ready")]
pub struct NotReady;

/// What deadpool asks about the connections of one pool.
#[derive(Debug)]
pub struct Manager {
    #[allow(clippy::vec_box, reason = "the boxes go on to deadpool as they are")]
    ready: Mutex<Vec<Box<Pooled>>>,
    pub effective: Arc<ArcSwap<Effective>>,
    /// Raised by `RECONNECT`; older connections are not used again.
    pub generation: AtomicU64,
}

impl Manager {
    pub fn new(effective: Arc<ArcSwap<Effective>>) -> Self {
        Self {
            ready: Mutex::default(),
            effective,
            generation: AtomicU64::new(0),
        }
    }

    /// Leaves a new connection for the next `create`.
    pub fn put_ready(&self, pooled: Box<Pooled>) {
        self.ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pooled);
    }

    pub fn has_ready(&self) -> bool {
        !self
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    fn take_ready(&self) -> Option<Box<Pooled>> {
        self.ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    fn is_before_reconnect(&self, backend: &Backend) -> bool {
        backend.generation < self.generation.load(Ordering::Relaxed)
    }

    /// Whether a connection is too old or from before a `RECONNECT`. The lifetime is shortened by up to a tenth,
    /// each connection by its own share, so that those opened together do not end together.
    pub fn is_outdated(&self, backend: &Backend, now: Instant) -> bool {
        if self.is_before_reconnect(backend) {
            return true;
        }
        let Some(lifetime) = self.effective.load().timeouts.server_lifetime else {
            return false;
        };
        let share = u32::try_from(backend.id.wrapping_mul(2_654_435_761) % 100).unwrap_or(0);
        now.duration_since(backend.opened) >= lifetime.saturating_sub(lifetime / 1000 * share)
    }
}

impl managed::Manager for Manager {
    type Type = Box<Pooled>;
    type Error = NotReady;

    async fn create(&self) -> Result<Self::Type, Self::Error> {
        // A RECONNECT may have come since it was opened.
        let mut ready = std::iter::from_fn(|| self.take_ready());
        ready
            .find(|pooled| !self.is_before_reconnect(&pooled.backend))
            .ok_or(NotReady)
    }

    async fn recycle(&self, pooled: &mut Self::Type, _: &Metrics) -> RecycleResult<Self::Error> {
        let backend = &mut pooled.backend;
        if !backend.is_clean() {
            return Err(RecycleError::message("not clean"));
        }
        // Age is looked at when a connection is given back and by the steward: once a second will do for an idle one.
        if self.is_before_reconnect(backend) {
            return Err(RecycleError::message("outdated"));
        }
        if poll_fn(|cx| Poll::Ready(backend.poll_quiet(cx))).await {
            Ok(())
        } else {
            Err(RecycleError::message("closed by the server"))
        }
    }
}
