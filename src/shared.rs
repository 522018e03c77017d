//! What all sessions of the process share.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::auth::hba::Hba;
use crate::auth::ident::IdentMaps;
use crate::auth::scram::MockSecret;
use crate::auth::userlist::Userlist;
use crate::cluster::Clusters;
use crate::config::model::{Auth, Config};
use crate::journal::Journal;
use crate::meter::{Limits, Query, Recent, Rules};
use crate::net::https::HttpsContext;
use crate::net::tls::ClientTlsContext;
use crate::pool::auth_query::AuthQuery;
use crate::pool::{Pool, Pools};
use crate::registry::Registry;
use crate::routing::reason::Decisions;
use crate::session::sequences::Applications;
use crate::session::statements::{Global, Statement};
use crate::sql::known::{Known, KnownStatements};
use crate::traces::Tracer;

/// A prepared statement with what is known of its text.
pub type Prepared = Statement<Arc<Known>>;

/// Who may connect, from files of their own.
#[derive(Debug, Default)]
pub struct Access {
    pub userlist: Userlist,
    pub hba: Hba,
    pub ident: IdentMaps,
}

/// A file of [`Access`] that can't be used.
#[derive(Debug, Error)]
#[error("{path}: {problems}")]
pub struct AccessError {
    path: String,
    problems: String,
}

impl Access {
    /// Reads the files `auth` names.
    pub fn load(auth: &Auth) -> Result<Self, AccessError> {
        Ok(Self {
            userlist: read(auth.userlist.as_deref(), Userlist::load)?,
            hba: read(auth.hba_file.as_deref(), Hba::load)?,
            ident: read(auth.ident_file.as_deref(), IdentMaps::load)?,
        })
    }
}

/// A file's outcome: that of reading it, and of understanding it.
type Loading<T, P> = std::io::Result<Result<T, Vec<P>>>;

fn read<T: Default, P: Display>(
    path: Option<&Path>,
    load: fn(&Path) -> Loading<T, P>,
) -> Result<T, AccessError> {
    let Some(path) = path else {
        return Ok(T::default());
    };
    let problem = |problems| AccessError {
        path: path.display().to_string(),
        problems,
    };
    match load(path) {
        Ok(Ok(loaded)) => Ok(loaded),
        Ok(Err(problems)) => Err(problem(
            problems
                .iter()
                .map(P::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        )),
        Err(error) => Err(problem(error.to_string())),
    }
}

/// A slow statement whose plan is wanted.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// Where it ran.
    pub pool: Arc<Pool>,
    pub query: Arc<Query>,
}

/// Plans asked for at once; more are not asked for.
pub const PLANS_MAX: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Shared {
    pub config: Arc<ArcSwap<Config>>,
    pub pools: Arc<Pools>,
    pub clusters: Clusters,
    /// Where statements went, and why.
    pub routes: Decisions,
    pub access: ArcSwap<Access>,
    /// `None` where clients are offered no TLS.
    pub client_tls: ArcSwap<Option<ClientTlsContext>>,
    /// `None` where HTTP is spoken in clear text.
    pub https: ArcSwap<Option<HttpsContext>>,
    pub secrets: AuthQuery,
    pub mock: MockSecret,
    /// Connections accepted and not ended, logins included.
    pub connections: AtomicUsize,
    /// Places taken under `max_client_conn`: connections that asked for a session.
    pub places: AtomicUsize,
    /// SIGTERM was received: sessions end when they are outside a transaction.
    pub draining: AtomicBool,
    /// All listeners are open, and the process is not stopping.
    pub ready: AtomicBool,
    /// `SHUTDOWN` on the console.
    pub stop: Notify,
    pub started: Instant,
    pub registry: Arc<Registry>,
    pub statements: Global<Arc<Known>>,
    pub known: KnownStatements,
    /// Which applications read the numbers of sequences.
    pub applications: Applications,
    /// Slow and failed statements, waits for locks.
    pub recent: Recent,
    /// What is slow, and what is logged.
    pub rules: Rules,
    /// How long single statements may take.
    pub limits: Limits,
    pub journal: Arc<Journal>,
    pub tracer: Arc<Tracer>,
    /// Whose plans are to be asked for.
    pub plans: mpsc::Sender<PlanRequest>,
}

/// The console's database and PgBouncer's name for it.
pub fn is_console(database: &str) -> bool {
    matches!(database, "pgweir" | "pgbouncer")
}
