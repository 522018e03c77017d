//! What a pool has learnt of its user's password by trying it on the server.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

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

impl Pool {
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
