//! Who keeps a server connection to itself, why, and since when.

use std::sync::Arc;

use crate::pool::Pool;
use crate::pool::pins::Pin;
use crate::registry::{ClientEntry, FrontendPid, Registry};

/// A session that keeps its server connection.
#[derive(Clone, Debug)]
pub struct PinStatus {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub pin: Pin,
    /// `None` if it has just gone.
    pub entry: Option<Arc<ClientEntry>>,
}

/// Those of `pools`, pool by pool, the longest first.
pub(super) fn pins(pools: &[Arc<Pool>], registry: &Registry) -> Vec<PinStatus> {
    let mut pins = Vec::new();
    for pool in pools {
        pins.extend(pool.pins.all().into_iter().map(|pin| PinStatus {
            user: Arc::clone(&pool.key.user),
            database: Arc::clone(&pool.key.database),
            entry: registry.get(FrontendPid(pin.client)),
            pin,
        }));
    }
    pins
}
