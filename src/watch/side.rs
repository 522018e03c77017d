//! Connections of pgweir's own to the servers, one for each, for questions about what runs there.
//!
//! They log in as the pool they are asked for, so they need no right that a client does not have, and are not counted
//! among its connections. A connection that fails is dropped and not tried again for `PAUSE`.
//!
//! Bound: `CONNECTIONS_MAX` connections, each closed once unused for `KEEP`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use crate::backend::connection::Backend;
use crate::backend::query::{self, QueryError, Row};
use crate::pool::open::{self, OpenError};
use crate::pool::{Pool, Pools};

/// What they call themselves.
const APPLICATION: &str = "pgweir watch";
/// Servers looked at.
const CONNECTIONS_MAX: usize = 16;
/// How long an unused connection is kept.
const KEEP: Duration = Duration::from_secs(30);
/// How long a server that could not be asked is left alone.
const PAUSE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum SideError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Query(#[from] QueryError),
    #[error("no answer within {LIMIT:?}")]
    Timeout,
    #[error("it could not be asked a moment ago")]
    Paused,
}

#[derive(Debug)]
struct Side {
    backend: Option<Backend>,
    used: Instant,
    paused_until: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Sides {
    by_server: HashMap<String, Side>,
}

impl Sides {
    /// Runs `text` on the server of `pool`, in its database if `in_database`.
    pub async fn ask(
        &mut self,
        pools: &Pools,
        pool: &Arc<Pool>,
        in_database: bool,
        text: &[u8],
    ) -> Result<Vec<Row>, SideError> {
        let (generation, effective) = pool.opens_with();
        let node = &effective.primary;
        let mut key = format!("{}:{}", node.host, node.port);
        if in_database {
            key = format!("{key}/{}/{}", effective.dbname, effective.login_user);
        }
        self.close_unused();
        let now = Instant::now();
        let side = self.by_server.entry(key).or_insert_with(|| Side {
            backend: None,
            used: now,
            paused_until: None,
        });
        side.used = now;
        if side.paused_until.is_some_and(|until| until > now) {
            return Err(SideError::Paused);
        }
        let kept = side.backend.take();
        let asked = async {
            let mut backend = if let Some(backend) = kept {
                backend
            } else {
                let dialer = pools.dialer.load_full();
                let credentials = pool.credentials();
                let effective = effective.with_startup([("application_name", APPLICATION)]);
                open::open(&effective, &credentials, &dialer, generation)
                    .await?
                    .backend
            };
            let rows = query::on_backend(&mut backend, text).await;
            // An error may leave a transaction open: then the connection is closed.
            Ok((backend, rows?))
        };
        match tokio::time::timeout(LIMIT, Box::pin(asked)).await {
            Ok(Ok((backend, rows))) => {
                side.backend = Some(backend);
                side.paused_until = None;
                Ok(rows)
            }
            // The server has answered, if not as was hoped.
            Ok(Err(error @ SideError::Query(QueryError::Server { .. }))) => Err(error),
            Ok(Err(error)) => {
                side.paused_until = Some(now + PAUSE);
                Err(error)
            }
            Err(_) => {
                side.paused_until = Some(now + PAUSE);
                Err(SideError::Timeout)
            }
        }
    }

    /// Closes connections that nobody has used for a while, and the longest unused if there are too many.
    pub fn close_unused(&mut self) {
        let now = Instant::now();
        self.by_server
            .retain(|_, side| now.saturating_duration_since(side.used) < KEEP);
        while self.by_server.len() >= CONNECTIONS_MAX {
            let oldest = self.by_server.iter().min_by_key(|(_, side)| side.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.by_server.remove(&key);
        }
    }
}
