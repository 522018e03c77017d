//! A shared listener whose task panics goes on in another task: its sessions would wait for ever.

use std::sync::Arc;
use std::time::Duration;

use super::{Listener, task};
use crate::pool::Pools;
use crate::tasks;

/// Pause after a panic.
const PAUSE: Duration = Duration::from_secs(1);

struct Again {
    pools: Arc<Pools>,
    listener: Arc<Listener>,
}

/// Serves `listener` in a task of its own, after a `pause` if a task before it has panicked.
pub(super) fn start(pools: Arc<Pools>, listener: Arc<Listener>, pause: Option<Duration>) {
    let again = Again { pools, listener };
    tasks::spawn("listener", async move {
        let again = again;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let (pools, listener) = (Arc::clone(&again.pools), Arc::clone(&again.listener));
        task::run(pools, listener, pause.is_some()).await;
    });
}

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.listener.give_up();
            let (pools, listener) = (Arc::clone(&self.pools), Arc::clone(&self.listener));
            start(pools, listener, Some(PAUSE));
        }
    }
}
