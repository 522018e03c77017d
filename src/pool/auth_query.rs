//! Users' secrets, asked of the server with `auth_query`.
//!
//! Bound: one connection for each database asked for, and one answer for each user, believed for `auth.cache_ttl`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::session::literal::put_literal;

/// Answers kept; when there are more the table starts anew.
const ANSWERS_MAX: usize = 10_000;

type Answer = (Instant, Option<UserSecret>);
type Connection = Arc<tokio::sync::Mutex<Option<Backend>>>;

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
        let rows = self.run(&config, database, &statement(text, user)).await?;
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

    /// Runs the query in `database`, or where the server has none of that name in the URL's: who may log in is told
    /// before what exists.
    async fn run(
        &self,
        config: &Config,
        database: &str,
        text: &[u8],
    ) -> Result<Vec<Row>, LookupError> {
        let Some(mut effective) = self.pools.effective(config, database, "") else {
            return Err(failed(&OpenError::NoDatabase(database.to_owned())));
        };
        match self.run_in(&effective, config, text).await {
            Err(AskError::Open(error)) if is_missing_database(&error) => {
                let named = effective.primary.dbname.clone();
                effective.dbname = named.unwrap_or_else(|| "postgres".to_owned());
                self.run_in(&effective, config, text).await
            }
            outcome => outcome,
        }
        .map_err(|error| match error {
            AskError::Open(error) => failed(&error),
            AskError::Query(error) => query_failed(&error),
        })
    }

    /// Runs the query on the kept connection, and on a new one if that one was lost.
    async fn run_in(
        &self,
        effective: &Effective,
        config: &Config,
        text: &[u8],
    ) -> Result<Vec<Row>, AskError> {
        let node = &effective.primary;
        let key = format!("{}:{}/{}", node.host, node.port, effective.dbname);
        let connection = Arc::clone(self.lock_connections().entry(key.clone()).or_default());
        let mut kept = connection.lock().await;
        if let Some(mut backend) = kept.take()
            && let Ok(rows) = query::on_backend(&mut backend, text).await
        {
            *kept = Some(backend);
            return Ok(rows);
        }
        let opened = self.open(effective.clone(), config).await;
        let mut backend = opened.inspect_err(|_| {
            // Names that clients make up leave nothing behind.
            self.lock_connections().remove(&key);
        })?;
        let rows = query::on_backend(&mut backend, text).await?;
        *kept = Some(backend);
        Ok(rows)
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
}

fn is_missing_database(error: &OpenError) -> bool {
    matches!(error, OpenError::Login(LoginError::Server(error)) if error.code == SqlState::INVALID_CATALOG_NAME)
}

impl SecretSource for AuthQuery {
    fn lookup<'a>(&'a self, user: &'a str, database: &'a str) -> Lookup<'a> {
        Box::pin(self.ask(user, database))
    }
}

/// The query with the user in place of `$1`.
fn statement(text: &str, user: &str) -> Vec<u8> {
    let mut literal = Vec::new();
    put_literal(&mut literal, user.as_bytes());
    let mut parts = text.split("$1");
    let mut statement = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        statement.extend_from_slice(&literal);
        statement.extend_from_slice(part.as_bytes());
    }
    statement
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

fn query_failed(error: &QueryError) -> LookupError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_quoted_wherever_it_stands() {
        let text = statement("SELECT usename FROM f($1) WHERE u = $1", "o'neil");
        assert_eq!(
            text,
            b"SELECT usename FROM f('o''neil') WHERE u = 'o''neil'"
        );
    }
}
