//! Users' secrets, asked of the server with `auth_query`.
//!
//! Bound: one connection for each database asked for, until it has been idle for `server_idle_timeout`, and one answer for each user, believed for `auth.cache_ttl`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::time::Instant;

use super::effective::Effective;
use super::open::{self, OpenError};
use super::pools::Pools;
use crate::auth::secrets::{Lookup, LookupError, SecretSource, UserSecret};
use crate::backend::connection::Backend;
use crate::backend::login::{Credentials, LoginError};
use crate::backend::query::{self, QueryError, Row};
use crate::config::model::Config;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};

/// How often the ages of connections are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Answers kept; when there are more the table starts anew.
const ANSWERS_MAX: usize = 10_000;

type Answer = (Instant, Option<UserSecret>);
type Connection = Arc<tokio::sync::Mutex<Option<Kept>>>;

/// `auth_query` and whom it is about.
#[derive(Clone, Copy, Debug)]
struct Question<'a> {
    text: &'a str,
    user: &'a str,
}

/// A connection for the next question.
#[derive(Debug)]
struct Kept {
    backend: Backend,
    idle_timeout: Option<Duration>,
    lifetime: Option<Duration>,
}

impl Kept {
    /// Not cancel safe: a caller that gives up must drop the connection.
    async fn ask(&mut self, question: Question<'_>, limit: Duration) -> Result<Vec<Row>, AskError> {
        let Question { text, user } = question;
        let asking = query::with_parameter(&mut self.backend, text.as_bytes(), user.as_bytes());
        let answered = tokio::time::timeout(limit, asking).await;
        let rows = answered.map_err(|_| AskError::Silence(limit))??;
        self.backend.released = Instant::now();
        Ok(rows)
    }

    /// Idle for too long, or too old: it may have been dropped on the way without a word.
    fn is_over(&self) -> bool {
        let is_over = |since: Instant, limit: Option<Duration>| {
            limit.is_some_and(|limit| since.elapsed() >= limit)
        };
        is_over(self.backend.released, self.idle_timeout)
            || is_over(self.backend.opened, self.lifetime)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.backend.say_goodbye();
    }
}

/// See the module.
#[derive(Debug)]
pub struct AuthQuery {
    config: Arc<ArcSwap<Config>>,
    pools: Arc<Pools>,
    answers: Mutex<HashMap<(String, String), Answer>>,
    connections: Mutex<HashMap<String, Connection>>,
}

impl AuthQuery {
    pub fn new(config: Arc<ArcSwap<Config>>, pools: Arc<Pools>) -> Self {
        Self {
            config,
            pools,
            answers: Mutex::default(),
            connections: Mutex::default(),
        }
    }

    /// Forgets all answers and connections: the configuration changed.
    pub fn clear(&self) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.lock_connections().clear();
    }

    /// Forgets what is known of `user`: a proof failed, and the password may have been changed since it was asked for.
    pub fn forget(&self, user: &str) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(_, other), _| other != user);
    }

    fn remembered(&self, user: &str, database: &str, config: &Config) -> Option<Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, secret) = answers.get(&(database.to_owned(), user.to_owned()))?;
        (at.elapsed() < config.auth.cache_ttl).then(|| (*at, secret.clone()))
    }

    async fn ask(&self, user: &str, database: &str) -> Result<Option<UserSecret>, LookupError> {
        let config = self.config.load_full();
        // Databases may be on different servers, with different users of the same name.
        let asked_for = database.to_owned();
        if let Some((_, secret)) = self.remembered(user, database, &config) {
            return Ok(secret);
        }
        let Some(text) = &config.auth.auth_query else {
            return Ok(None);
        };
        let database = config.auth.auth_dbname.as_deref().unwrap_or(database);
        let rows = self.run(&config, database, Question { text, user }).await?;
        let secret = rows.into_iter().next().and_then(|row| {
            let secret = row.into_iter().nth(1)??;
            String::from_utf8(secret)
                .ok()
                .map(|secret| UserSecret::parse(&secret))
        });
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert(
            (asked_for, user.to_owned()),
            (Instant::now(), secret.clone()),
        );
        Ok(secret)
    }

    /// Asks in `database`, anew if its primary moves meanwhile: a server that is away answers late or never.
    async fn run(
        &self,
        config: &Config,
        database: &str,
        question: Question<'_>,
    ) -> Result<Vec<Row>, LookupError> {
        loop {
            let Some(effective) = self.pools.effective(config, database, "") else {
                return Err(failed(&OpenError::NoDatabase(database.to_owned())));
            };
            let asked = effective.primary.clone();
            tokio::select! {
                rows = self.run_somewhere(effective, config, question) => {
                    return rows.map_err(|error| match error {
                        AskError::Open(error) => failed(&error),
                        error => query_failed(&error),
                    });
                }
                () = self.pools.left(&asked, config, database) => {}
            }
        }
    }

    /// Asks in the database, or where the server has none of that name in the URL's: who may log in is told before what
    /// exists.
    async fn run_somewhere(
        &self,
        mut effective: Effective,
        config: &Config,
        question: Question<'_>,
    ) -> Result<Vec<Row>, AskError> {
        match self.run_in(&effective, config, question).await {
            Err(AskError::Open(error)) if is_missing_database(&error) => {
                let named = effective.primary.dbname.clone();
                effective.dbname = named.unwrap_or_else(|| "postgres".to_owned());
                self.run_in(&effective, config, question).await
            }
            outcome => outcome,
        }
    }

    /// Asks on the kept connection, and on a new one if that one was lost.
    async fn run_in(
        &self,
        effective: &Effective,
        config: &Config,
        question: Question<'_>,
    ) -> Result<Vec<Row>, AskError> {
        let node = &effective.primary;
        let key = format!("{}:{}/{}", node.host, node.port, effective.dbname);
        let connection = Arc::clone(self.lock_connections().entry(key.clone()).or_default());
        let limit = effective.timeouts.server_connect_timeout;
        let mut place = connection.lock().await;
        if let Some(mut kept) = place.take().filter(|kept| !kept.is_over())
            && let Ok(rows) = kept.ask(question, limit).await
        {
            *place = Some(kept);
            return Ok(rows);
        }
        let opened = self.open(effective.clone(), config).await;
        let backend = opened.inspect_err(|_| {
            // Names that clients make up leave nothing behind.
            self.lock_connections().remove(&key);
        })?;
        let mut fresh = Kept {
            backend,
            idle_timeout: effective.timeouts.server_idle_timeout,
            lifetime: effective.timeouts.server_lifetime,
        };
        let rows = fresh.ask(question, limit).await?;
        *place = Some(fresh);
        Ok(rows)
    }

    /// Closes connections that nobody has needed for long, and old ones, until the process ends.
    pub async fn keep_house(&self) {
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            self.lock_connections().retain(|_, connection| {
                // One that is locked is in use.
                let Ok(mut place) = connection.try_lock() else {
                    return true;
                };
                *place = place.take().filter(|kept| !kept.is_over());
                place.is_some()
            });
        }
    }

    fn lock_connections(&self) -> std::sync::MutexGuard<'_, HashMap<String, Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, mut effective: Effective, config: &Config) -> Result<Backend, OpenError> {
        let auth = &config.auth;
        let node = &effective.primary;
        let is_nodes_own = auth
            .auth_user
            .as_ref()
            .is_none_or(|user| Some(user) == node.user.as_ref());
        let nodes_own = node.password.clone().filter(|_| is_nodes_own);
        let password = auth.auth_password.clone().or(nodes_own);
        let credentials = password.map_or(Credentials::None, Credentials::Password);
        effective.login_user = auth
            .auth_user
            .clone()
            .or_else(|| node.user.clone())
            .unwrap_or_else(|| "postgres".to_owned());
        // Names are compared byte by byte, as in a login: nothing is converted, whatever the role or the database say.
        effective
            .startup
            .retain(|(name, _)| name != "client_encoding");
        let raw = ("client_encoding".to_owned(), "SQL_ASCII".to_owned());
        effective.startup.push(raw);
        let dialer = self.pools.dialer.load_full();
        Ok(open::open(&effective, &credentials, &dialer, 0)
            .await?
            .backend)
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
enum AskError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Query(#[from] QueryError),
    #[error("no answer within {0:?} (server_connect_timeout)")]
    Silence(Duration),
}

fn is_missing_database(error: &OpenError) -> bool {
    matches!(error, OpenError::Login(LoginError::Server(error)) if error.code == SqlState::INVALID_CATALOG_NAME)
}

impl SecretSource for AuthQuery {
    fn lookup<'a>(&'a self, user: &'a str, database: &'a str) -> Lookup<'a> {
        Box::pin(self.ask(user, database))
    }
}

fn failed(error: &OpenError) -> LookupError {
    tracing::error!(%error, "auth_query could not be asked");
    LookupError {
        report: Report {
            message: "could not look up the user's password".into(),
            ..error.report()
        },
        kind: error.kind(),
    }
}

fn query_failed(error: &AskError) -> LookupError {
    tracing::error!(%error, "auth_query failed");
    let report = Report::fatal(
        SqlState::INTERNAL_ERROR,
        "could not look up the user's password",
    );
    LookupError {
        report,
        kind: ErrorKind::Server,
    }
}
