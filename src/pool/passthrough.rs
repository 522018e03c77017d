//! What a pool has learnt of its user's password by trying it on the server.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::pool::Pool;
use crate::auth::scram::Verifier;

/// What is known.
#[derive(Clone, Debug)]
pub enum Learnt {
    /// The server lets the user in without one.
    NoPassword,
    /// Whoever fits this has shown the password the server accepted.
    Verifier(Arc<Verifier>),
}

/// Clients of one pool that try their passwords on the server at the same time.
const TRIES_MAX: usize = 2;

/// Bounds the logins that only prove a password: a stampede of clients must not use up the server's connections.
#[derive(Debug)]
pub(super) struct Tries(Semaphore);

impl Default for Tries {
    fn default() -> Self {
        Self(Semaphore::new(TRIES_MAX))
    }
}

/// The right to try, until dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    /// `None` only if the semaphore were closed, which nobody does.
    _permit: Option<SemaphorePermit<'a>>,
}

impl Pool {
    /// Waits for its turn to log in to the server on a client's behalf. Cancel safe.
    pub async fn turn_to_try(&self) -> Turn<'_> {
        Turn {
            _permit: self.tries.0.acquire().await.ok(),
        }
    }

    /// What was learnt less than `ttl` ago.
    pub fn learnt(&self, ttl: Duration) -> Option<Learnt> {
        let learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        learnt
            .as_ref()
            .filter(|(at, _)| at.elapsed() < ttl)
            .map(|(_, learnt)| learnt.clone())
    }

    pub fn learn(&self, learnt: Learnt, at: Instant) {
        *self.learnt.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, learnt));
    }

    /// The server refused the user: what was learnt is not true any more.
    pub(super) fn unlearn(&self) {
        *self.learnt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
