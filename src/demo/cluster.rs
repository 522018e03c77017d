//! A throw-away primary with streaming replicas, for the demo and for the tests.
//!
//! Everything here blocks, like `server`, whose types it re-exports.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::DemoError;
use super::scratch::Folder;

pub use super::binaries::{PG_BIN_VARIABLE, binaries};
pub use super::options::{ServerOptions, StopMode};
pub use super::scratch::Guardian;
pub use super::server::{SUPERUSER, Server};

/// Longest wait for replicas to stream or to catch up.
const REPLICATION_LIMIT: Duration = Duration::from_secs(60);

/// Pause between two looks at the state of replication.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a cluster is to be like.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// For the primary; replicas inherit all of it.
    pub server: ServerOptions,
    /// How many replicas to start with.
    pub replicas: usize,
    /// Leave the folder behind, with the servers stopped.
    pub keep: bool,
}

impl ClusterOptions {
    /// Starts the primary, then the replicas, and waits until all of them stream.
    pub fn start(&self) -> Result<Cluster, DemoError> {
        let folder = Arc::new(Folder::create(self.keep)?);
        let primary = Server::create(&folder, "primary", &self.server)?;
        let mut cluster = Cluster {
            primary,
            replicas: Vec::new(),
            folder,
            keep: self.keep,
        };
        cluster.add_replicas(self.replicas)?;
        Ok(cluster)
    }
}

/// Servers that share a folder: `primary`, then `replica_1`, `replica_2` and so on. The fields are open, so that a
/// test can kill, pause or promote any of them; they keep their places when roles change.
#[derive(Debug)]
pub struct Cluster {
    pub primary: Server,
    pub replicas: Vec<Server>,
    folder: Arc<Folder>,
    keep: bool,
}

impl Cluster {
    /// A primary with that many streaming replicas.
    pub fn start(replicas: usize) -> Result<Self, DemoError> {
        ClusterOptions {
            replicas,
            ..ClusterOptions::default()
        }
        .start()
    }

    /// The folder that holds the servers' folders and the Unix sockets.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Clones the primary `count` times, side by side, and waits until every replica streams.
    pub fn add_replicas(&mut self, count: usize) -> Result<(), DemoError> {
        let first = self.replicas.len() + 1;
        let primary = &self.primary;
        let added: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (first..first + count)
                .map(|number| format!("replica_{number}"))
                .map(|name| scope.spawn(move || Server::replicate(primary, &name)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| DemoError::Interrupted))
                .collect()
        });
        for server in added {
            self.replicas.push(server??);
        }
        self.wait_until_streaming()
    }

    /// Waits until the primary streams to every replica.
    pub fn wait_until_streaming(&self) -> Result<(), DemoError> {
        let query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let all = self.replicas.len().to_string();
        wait_until("the replicas to stream", || {
            Ok(self.primary.sql("postgres", query)? == all)
        })
    }

    /// Waits until every replica has replayed what the primary has flushed by now.
    pub fn wait_until_caught_up(&self) -> Result<(), DemoError> {
        let lsn = self
            .primary
            .sql("postgres", "SELECT pg_current_wal_flush_lsn()")?;
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
        for replica in &self.replicas {
            wait_until("a replica to catch up", || {
                Ok(replica.sql("postgres", &query)? == "t")
            })?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            // A kept cluster is to start without recovery, so the replicas get the primary's last record first. A
            // failure leaves a cluster that recovers when it is started.
            let _ = self.primary.stop(StopMode::Fast);
            for replica in &mut self.replicas {
                let _ = replica.stop(StopMode::Fast);
            }
        }
    }
}

fn wait_until(
    what: &'static str,
    mut done: impl FnMut() -> Result<bool, DemoError>,
) -> Result<(), DemoError> {
    let deadline = Instant::now() + REPLICATION_LIMIT;
    while !done()? {
        if Instant::now() > deadline {
            return Err(DemoError::TooLong {
                what,
                seconds: REPLICATION_LIMIT.as_secs(),
            });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
