//! The open connections of a pool, as the console and the metrics see them.
//!
//! Written when a connection joins the pool and when it ends, never while one is used. What a connection does at the
//! moment is not here: that is known from where it is (idle in the pool) and from who runs on it (the registry).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::backend::connection::{Backend, Identity};
use crate::session::mirror::Outside;

/// What is known of an open connection from its beginning to its end.
#[derive(Debug)]
pub struct LiveBackend {
    pub id: u64,
    pub identity: Arc<Identity>,
    pub opened: Instant,
    /// Which `RECONNECT` it is younger than.
    pub generation: u64,
    /// It listens for sessions, and runs no statements of theirs.
    pub listens: bool,
    /// Version and cipher; `None` without TLS.
    pub tls: Option<Box<str>>,
    /// What it has now.
    pub outside: Arc<Outside>,
    /// `None` on a Unix socket.
    pub local: Option<SocketAddr>,
    /// `None` on a Unix socket.
    pub peer: Option<SocketAddr>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Live {
    backends: Mutex<HashMap<u64, Arc<LiveBackend>>>,
}

/// A connection's line in the list, until dropped.
#[derive(Debug)]
pub struct Listed {
    live: Arc<Live>,
    id: u64,
}

impl Live {
    /// Adds a connection of the pool, or one that counts among its own.
    pub fn list(self: &Arc<Self>, backend: &Backend) -> Listed {
        self.add(backend, false)
    }

    /// The same for one that listens for sessions.
    pub fn list_listener(self: &Arc<Self>, backend: &Backend) -> Listed {
        self.add(backend, true)
    }

    fn add(self: &Arc<Self>, backend: &Backend, listens: bool) -> Listed {
        let live = LiveBackend {
            id: backend.id,
            identity: Arc::clone(&backend.identity),
            opened: backend.opened,
            generation: backend.generation,
            listens,
            tls: backend.stream.tls_description(),
            outside: Arc::clone(backend.mirror.outside()),
            local: backend.stream.local_addr(),
            peer: backend.stream.peer_addr(),
        };
        self.backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(backend.id, Arc::new(live));
        Listed {
            live: Arc::clone(self),
            id: backend.id,
        }
    }

    /// Every open connection, oldest first.
    pub fn all(&self) -> Vec<Arc<LiveBackend>> {
        let mut all: Vec<_> = self
            .backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        all.sort_unstable_by_key(|backend| backend.id);
        all
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.live
            .backends
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}
