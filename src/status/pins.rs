//! Who keeps a server connection to itself, why, and since when.

use std::collections::HashMap;
use std::sync::Arc;

use super::ClientStatus;
use crate::pool::Pool;
use crate::pool::pins::Pin;
use crate::registry::ClientEntry;

/// A session that keeps its server connection.
#[derive(Clone, Debug)]
pub struct PinStatus {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub pin: Pin,
    /// Id of the server connection.
    pub server: Option<u64>,
    /// `None` if it has just gone.
    pub entry: Option<Arc<ClientEntry>>,
}

/// Those of `pools`, pool by pool, the longest first.
pub(super) fn pins(pools: &[Arc<Pool>], clients: &[ClientStatus]) -> Vec<PinStatus> {
    let by_pid: HashMap<u32, &ClientStatus> = clients
        .iter()
        .map(|client| (client.entry.pid.0, client))
        .collect();
    let mut pins = Vec::new();
    for pool in pools {
        pins.extend(pool.pins.all().into_iter().map(|pin| {
            PinStatus {
                user: Arc::clone(&pool.key.user),
                database: Arc::clone(&pool.key.database),
                server: by_pid.get(&pin.client).and_then(|client| client.server),
                entry: by_pid
                    .get(&pin.client)
                    .map(|client| Arc::clone(&client.entry)),
                pin,
            }
        }));
    }
    pins
}
