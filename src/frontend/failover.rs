//! Telling sessions that the server they are on is not what it was.
//!
//! A server that is frozen or cut off says nothing, so a session that waits for its answer would wait for as long as the
//! network does. When a cluster changes, what runs on a server that is out is marked as lost (`Identity::lose`), and
//! every session is woken to look whether its own is.

use std::sync::Arc;

use crate::shared::Shared;

/// Runs until the process ends.
pub async fn watch(shared: Arc<Shared>) {
    loop {
        shared.clusters.changed().notified().await;
        for client in shared.registry.all() {
            client.wake();
        }
    }
}
