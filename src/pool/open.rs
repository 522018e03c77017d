//! Opening a server connection: dial, log in, run `connect_query`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::circuit::{Attempt, Opening};
use super::effective::Effective;
use super::limits::Slot;
use super::manager::Pooled;
use super::pool::Pool;
use crate::backend::connect::{ConnectError, Dialer, Login, ReachError};
use crate::backend::connection::Backend;
use crate::backend::login::{Credentials, LoggedIn, LoginError};
use crate::backend::query;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};

/// The first pause after a failed attempt; it doubles up to `server_login_retry`.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(20);

/// Why a server connection could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("could not connect to the server: {0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Login(#[from] LoginError),
    #[error("database \"{0}\" does not exist")]
    NoDatabase(String),
    #[error("connect_query failed: {0}")]
    ConnectQuery(#[from] query::QueryError),
    #[error("opening a server connection took longer than {limit:?} (server_connect_timeout)")]
    Timeout {
        limit: Duration,
        /// The server had begun to answer: it is what it does for this user and database that takes long.
        was_heard: bool,
    },
    /// What others have found out who tried just now.
    #[error("{0}")]
    Known(Arc<OpenError>),
    #[error("there has been no connection to the primary to compare the replica with")]
    NoPrimary,
    #[error("the replica is not used: its {setting} is \"{here}\", the primary's is \"{primary}\"")]
    Differs {
        setting: String,
        here: String,
        primary: String,
    },
    #[error("server {0} is in recovery: it is not the primary")]
    InRecovery(String),
}

impl From<ReachError> for OpenError {
    fn from(error: ReachError) -> Self {
        match error {
            ReachError::Connect(error) => Self::Connect(error),
            ReachError::Login(error) => Self::Login(error),
        }
    }
}

impl OpenError {
    /// Whether trying again may help: the server is away, starting, stopping or full. Everything else it says of this
    /// user and database is final for the clients that wait.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Known(error) => error.is_passing(),
            Self::Connect(_)
            | Self::Timeout { .. }
            | Self::InRecovery(_)
            | Self::NoPrimary
            | Self::Differs { .. } => true,
            Self::Login(LoginError::Server(refusal)) => {
                matches!(
                    &refusal.code.0,
                    b"57P01" | b"57P02" | b"57P03" | b"53300" | b"08006"
                )
            }
            Self::Login(LoginError::Io(_) | LoginError::Closed) => true,
            Self::Login(_) => false,
            Self::ConnectQuery(error) => error.is_io(),
            Self::NoDatabase(_) => false,
        }
    }
}

impl UserFacing for OpenError {
    fn report(&self) -> Report {
        match self {
            Self::Known(error) => error.report(),
            Self::Login(error) => error.report(),
            Self::Connect(_) | Self::Timeout { .. } => {
                Report::fatal(SqlState::CONNECTION_FAILURE, self.to_string())
            }
            Self::ConnectQuery(error) => Report::fatal(error.code(), self.to_string()),
            Self::NoDatabase(_) => Report::fatal(SqlState::INVALID_CATALOG_NAME, self.to_string()),
            Self::InRecovery(_) | Self::NoPrimary | Self::Differs { .. } => {
                Report::fatal(SqlState::CANNOT_CONNECT_NOW, self.to_string())
            }
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Server
    }
}

/// How a pool logs in, and when it may try again.
#[derive(Debug)]
pub struct Gate {
    pub credentials: Credentials,
    pub last_error: Option<Arc<OpenError>>,
    /// No attempt before this.
    pub retry_at: Option<Instant>,
    pause: Duration,
}

impl Gate {
    pub fn new(effective: &Effective) -> Self {
        let credentials = match &effective.login_password {
            Some(password) => Credentials::Password(password.clone()),
            None => Credentials::None,
        };
        Self {
            credentials,
            last_error: None,
            retry_at: None,
            pause: Duration::ZERO,
        }
    }

    /// The next attempt is to another server.
    pub(super) fn forget_failures(&mut self) {
        self.succeeded();
    }

    fn succeeded(&mut self) {
        self.last_error = None;
        self.retry_at = None;
        self.pause = Duration::ZERO;
    }

    /// Notes a failure; the next attempt comes after a pause with full jitter.
    fn failed(&mut self, error: Arc<OpenError>, longest: Duration) {
        self.pause = (self.pause * 2).clamp(RETRY_FIRST, longest.max(RETRY_FIRST));
        self.retry_at = Some(Instant::now() + self.pause.mul_f64(rand::random_range(0.5..1.0)));
        self.last_error = Some(error);
    }
}

/// A login that also tells how the server wanted it proved.
#[derive(Debug)]
pub struct Opened {
    pub backend: Backend,
    pub logged_in: LoggedIn,
}

/// Opens a connection with `credentials`. Not bound to any pool's state: also used to check a client's password.
pub async fn open(
    effective: &Effective,
    credentials: &Credentials,
    dialer: &Dialer,
    generation: u64,
) -> Result<Opened, OpenError> {
    let limit = effective.timeouts.server_connect_timeout;
    let mut startup: Vec<(&[u8], &[u8])> = vec![
        (b"user", effective.login_user.as_bytes()),
        (b"database", effective.dbname.as_bytes()),
    ];
    startup.extend(
        effective
            .startup
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    );
    let heard = AtomicBool::default();
    let login = Login {
        node: &effective.primary,
        startup: &startup,
        credentials,
        max_prepared: effective.pool.max_prepared_statements,
        generation,
        heard: &heard,
        until: Instant::now() + limit,
    };
    let attempt = Box::pin(async {
        let (mut backend, logged_in) = dialer.log_in(login).await?;
        if effective.must_take_writes && is_in_recovery(&mut backend).await? {
            return Err(OpenError::InRecovery(effective.primary.address()));
        }
        if let Some(text) = &effective.pool.connect_query {
            query::on_backend(&mut backend, text.as_bytes()).await?;
        }
        Ok(Opened { backend, logged_in })
    });
    tokio::time::timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| {
            let was_heard = heard.load(Ordering::Relaxed);
            Err(OpenError::Timeout { limit, was_heard })
        })
}

/// Whether the server is a standby. It can't become one without closing the connection, so asking once will do.
async fn is_in_recovery(backend: &mut Backend) -> Result<bool, OpenError> {
    // PostgreSQL 14 and later say so unasked.
    if let Some(reported) = backend.mirror.reported.get(b"in_hot_standby") {
        return Ok(reported == b"on");
    }
    let rows = query::on_backend(backend, b"SELECT pg_catalog.pg_is_in_recovery()").await?;
    let answer = rows.first().and_then(|row| row.first()?.as_deref());
    Ok(answer == Some(&b"t"[..]))
}

impl Pool {
    /// Which `RECONNECT` a connection opened now is younger than, and the settings to open it with. In this order: a
    /// reload in between leaves a connection with settings newer than its generation, which is replaced for nothing,
    /// and never one with older settings, which would be kept.
    pub fn opens_with(&self) -> (u64, Arc<Effective>) {
        let generation = self.generation();
        (generation, self.effective.load_full())
    }

    /// Opens a connection that is not yet the pool's, when the server may be asked for one more; while it can't be
    /// reached, that is an error at once. Cancel safe.
    pub async fn open_in_turn(
        &self,
        effective: &Effective,
        credentials: &Credentials,
        dialer: &Dialer,
        generation: u64,
    ) -> Result<Opened, OpenError> {
        let server = effective.primary.address();
        let circuits = &self.limits.circuits;
        let opening = circuits.turn(&server, effective.overload).await?;
        let longest = effective.timeouts.server_login_retry;
        match open(effective, credentials, dialer, generation).await {
            Err(error) if Attempt::of(Err(&error)) != Attempt::Reached => {
                let error = Arc::new(error);
                opening.end(Err(&error), longest);
                Err(OpenError::Known(error))
            }
            outcome => {
                opening.end(Ok(()), longest);
                outcome
            }
        }
    }

    /// Opens one connection into the pool, for whoever waits.
    pub(super) async fn open_one(
        self: Arc<Self>,
        slot: Slot,
        opening: Opening,
        dialer: Arc<Dialer>,
    ) {
        // Before the settings are read: a move is either heard of or in them.
        let moved = self.moved.notified();
        let (generation, effective) = self.opens_with();
        let credentials = self.login_credentials();
        let opened = open(&effective, &credentials, &dialer, generation);
        let mut outcome = tokio::select! {
            opened = opened => opened,
            () = moved => {
                // A server that is away answers late or never, and what was asked of it is asked of another now.
                self.opening.fetch_sub(1, Ordering::SeqCst);
                drop((opening, slot));
                self.limits.changed.notify_one();
                return;
            }
        };
        if let Ok(opened) = &mut outcome
            && let Err(error) = self.compare(&mut opened.backend)
        {
            outcome = Err(error);
        }
        self.opening.fetch_sub(1, Ordering::SeqCst);
        let outcome = outcome.map_err(Arc::new);
        let longest = effective.timeouts.server_login_retry;
        opening.end(outcome.as_ref().map(|_| ()), longest);
        // There may be room for the next one.
        self.limits.changed.notify_one();
        match outcome {
            Ok(opened) => self.adopt(opened.backend, slot),
            Err(error) => {
                tracing::warn!(pool = %self.key, %error, "could not open a server connection");
                self.with_gate(|gate| {
                    gate.failed(Arc::clone(&error), longest);
                });
                if self.is_of_replica() {
                    self.turn_away();
                } else if !error.is_passing() {
                    self.set_baseline(None);
                    self.unlearn();
                    self.fail_waiters(&error);
                }
                drop(slot);
            }
        }
    }

    /// Puts a new connection among the idle ones.
    pub fn adopt(self: &Arc<Self>, backend: Backend, slot: Slot) {
        self.with_gate(Gate::succeeded);
        self.set_baseline(Some(Arc::clone(&backend.mirror.reported)));
        self.objects.manager().put_ready(Box::new(Pooled {
            listed: self.live.list(&backend),
            backend,
            slot,
        }));
        self.settle_ready();
        self.serve();
    }

    /// Whether the pool's last attempt failed because the server could not be reached, and for nothing of the pool's own.
    pub(super) fn failed_to_reach(&self) -> bool {
        let error = self.with_gate(|gate| gate.last_error.clone());
        error.is_some_and(|error| Attempt::of(Err(&error)) == Attempt::Unreachable)
    }

    /// What the server said when it last refused a connection, if nothing came of it since.
    pub fn last_refusal(&self) -> Option<Arc<OpenError>> {
        self.with_gate(|gate| gate.last_error.clone())
            .filter(|error| matches!(**error, OpenError::Login(LoginError::Server(_))))
    }

    /// How server connections of this pool log in.
    pub fn credentials(&self) -> Credentials {
        self.with_gate(|gate| gate.credentials.clone())
    }

    /// How server connections of this pool log in from now on. What failed with others may be tried again at once.
    pub fn set_credentials(&self, credentials: Credentials) {
        self.with_gate(|gate| {
            if gate.credentials != credentials {
                gate.credentials = credentials;
                gate.retry_at = None;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Secret;
    use crate::config::{Overrides, load};
    use crate::pool::Pools;

    #[test]
    fn a_login_that_shows_nothing_new_does_not_end_the_pause_after_a_failure() {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config, "app", "bob").unwrap();
        let password = |text: &str| Credentials::Password(Secret::new(text.to_owned()));
        let rests = |text: &str| {
            pool.set_credentials(password(text));
            pool.is_resting()
        };
        assert!(!rests("old"));
        let error = Arc::new(OpenError::NoPrimary);
        pool.with_gate(|gate| gate.failed(error, Duration::from_secs(60)));
        pool.with_gate(|gate| gate.retry_at = Some(Instant::now() + Duration::from_secs(60)));
        assert!(rests("old"));
        assert!(!rests("new"));
    }

    #[test]
    fn a_connection_is_never_younger_than_its_settings() {
        const RELOADS: u64 = 3_000;
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        let mut config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config, "app", "bob").unwrap();
        // Each reload replaces the connections, so there are as many generations as values.
        let mut reload = move |number: u64| {
            let database = config.databases.get_mut("*").unwrap();
            let value = number.to_string();
            database
                .startup
                .insert("application_name".to_owned(), value);
            pools.reload(&config);
        };
        std::thread::scope(|scope| {
            scope.spawn(move || (1..=RELOADS).for_each(&mut reload));
            loop {
                let (generation, effective) = pool.opens_with();
                let settings: u64 = effective
                    .startup
                    .first()
                    .map_or(0, |(_, value)| value.parse().unwrap());
                assert!(settings >= generation, "{settings} < {generation}");
                if generation == RELOADS {
                    break;
                }
            }
        });
    }
}
