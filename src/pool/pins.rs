//! The sessions that keep a connection of a pool: who they are, why, since when, and how many there may be.
//!
//! Written when a session is pinned, unpinned, or pinned for one more reason; never for a statement of a session whose
//! reasons stay as they are.
//!
//! Bound: one entry for each pinned session.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::pool::Pool;
use crate::meter::QueryId;
use crate::sql::state::{PinReason, PinSet};

/// A pinned session.
#[derive(Clone, Debug)]
pub struct Pin {
    /// Process id the client was told.
    pub client: u32,
    /// Process id of the connection's backend.
    pub backend: u32,
    pub reasons: PinSet,
    /// The statement that pinned first; none where the reason was found in the session afterwards.
    pub query: QueryId,
    /// Its text without constants.
    pub text: Arc<str>,
    pub since: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pins {
    held: Mutex<BTreeMap<u32, Pin>>,
}

/// A session's entry, until dropped.
#[derive(Debug)]
pub struct Pinned {
    pool: Arc<Pool>,
    client: u32,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Pin>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every pinned session, the longest first.
    pub fn all(&self) -> Vec<Pin> {
        let mut all: Vec<Pin> = self.lock().values().cloned().collect();
        all.sort_by_key(|pin| (pin.since, pin.client));
        all
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are and why, for a DETAIL: `3 held by pinned sessions (temp_table 2, listen 1)`.
    pub fn summary(&self) -> Option<String> {
        let held = self.lock();
        if held.is_empty() {
            return None;
        }
        let mut reasons = String::new();
        for reason in PinReason::ALL {
            let count = held
                .values()
                .filter(|pin| pin.reasons.contains(reason))
                .count();
            if count > 0 {
                let comma = if reasons.is_empty() { "" } else { ", " };
                // Writing to a string does not fail.
                let _ = write!(reasons, "{comma}{} {count}", reason.as_str());
            }
        }
        Some(format!(
            "{} held by pinned sessions ({reasons})",
            held.len()
        ))
    }
}

impl Pool {
    /// Enters `pin`, unless there are `limit` others.
    pub fn pin(self: &Arc<Self>, pin: Pin, limit: usize) -> Option<Pinned> {
        let mut held = self.pins.lock();
        if held.len() >= limit {
            return None;
        }
        let client = pin.client;
        held.insert(client, pin);
        drop(held);
        Some(Pinned {
            pool: Arc::clone(self),
            client,
        })
    }
}

impl Pinned {
    /// The reasons have changed.
    pub fn change(&self, reasons: PinSet) {
        if let Some(pin) = self.pool.pins.lock().get_mut(&self.client) {
            pin.reasons = reasons;
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pool.pins.lock().remove(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::connect::Dialer;
    use crate::config::{Overrides, load};
    use crate::pool::Pools;

    fn pin(client: u32, reasons: &[PinReason]) -> Pin {
        Pin {
            client,
            backend: client + 1000,
            reasons: reasons.iter().copied().collect(),
            query: QueryId::default(),
            text: Arc::default(),
            since: Instant::now(),
        }
    }

    #[test]
    fn pins_are_bounded_summed_up_and_gone_with_their_session() {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config, "app", "bob").unwrap();
        assert_eq!(pool.pins.summary(), None);
        let first = pool.pin(pin(1, &[PinReason::Load]), 2).unwrap();
        let second = pool.pin(pin(2, &[PinReason::TempTable]), 2).unwrap();
        assert!(pool.pin(pin(3, &[PinReason::Load]), 2).is_none());
        first.change(
            [PinReason::Load, PinReason::TempTable]
                .into_iter()
                .collect(),
        );
        assert_eq!(
            pool.pins.summary().unwrap(),
            "2 held by pinned sessions (temp_table 2, load 1)"
        );
        drop(second);
        assert_eq!(pool.pins.all().len(), 1);
        assert_eq!(pool.pins.all()[0].client, 1);
        drop(first);
        assert!(pool.pins.is_empty());
    }
}
