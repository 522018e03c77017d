//! The configuration of one pool: what the database says, with the user's differences laid over it.

use std::sync::Arc;

use crate::config::model::{
    Config, Node, Overload, PoolSettings, Retry, Routing, Secret, Timeouts,
};

/// What users weigh that are given no priority.
const WEIGHT: usize = 100;

/// What a pool of one user and database goes by. Replaced as a whole at reload.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// The server that connections go to: in a pool of a replica, that one.
    pub primary: Node,
    /// Connections are only of use to a server that takes writes.
    pub must_take_writes: bool,
    /// The configured servers, where there are several; empty where there is one. Names their cluster.
    pub servers: Arc<str>,
    pub routing: Routing,
    /// Name of the database on the server.
    pub dbname: String,
    /// Whom server connections log in as.
    pub login_user: String,
    /// Set where the configuration forces the login user's password.
    pub login_password: Option<Secret>,
    pub pool: PoolSettings,
    pub timeouts: Timeouts,
    pub retry: Retry,
    pub overload: Overload,
    /// What the pool weighs under caps that it shares.
    pub weight: usize,
    /// Settings every server connection starts with.
    pub startup: Vec<(String, String)>,
    /// The database came from the fallback entry `*`.
    pub is_fallback: bool,
}

impl Effective {
    /// The same for a connection of pgweir's own, with startup parameters that go before those of clients.
    #[must_use]
    pub fn with_startup<const N: usize>(&self, own: [(&str, &str); N]) -> Self {
        let mut effective = self.clone();
        effective
            .startup
            .retain(|(name, _)| own.iter().all(|(one, _)| name != one));
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        effective.startup.extend(own);
        effective
    }

    /// Whether `database` is configured, by its name or by the fallback.
    pub fn exists(config: &Config, database: &str) -> bool {
        config.databases.contains_key(database) || config.databases.contains_key("*")
    }

    /// The same for connections to a replica.
    #[must_use]
    pub fn for_replica(&self, replica: &Node) -> Self {
        Self {
            primary: replica.clone(),
            must_take_writes: false,
            ..self.clone()
        }
    }

    /// `None` where no database of that name is configured and there is no fallback.
    pub fn of(config: &Config, database: &str, user: &str) -> Option<Self> {
        let named = config.databases.get(database);
        let entry = named.or_else(|| config.databases.get("*"))?;
        let mut pool = entry.pool.clone();
        let mut timeouts = entry.timeouts.clone();
        let mut routing = entry.routing;
        let mut retry = entry.retry.clone();
        let mut weight = WEIGHT;
        if let Some(user) = config.users.get(user) {
            weight = user.priority.unwrap_or(weight);
            routing.reads = user.reads.unwrap_or(routing.reads);
            routing.consistency = user.consistency.unwrap_or(routing.consistency);
            routing.replica_wait = user.replica_wait.or(routing.replica_wait);
            pool.pool_mode = user.pool_mode.unwrap_or(pool.pool_mode);
            pool.max_size = user.max_size.unwrap_or(pool.max_size);
            pool.reserve_size = user.reserve_size.unwrap_or(pool.reserve_size);
            pool.max_user_connections = user.max_user_connections.or(pool.max_user_connections);
            pool.max_user_client_connections = user
                .max_user_client_connections
                .or(pool.max_user_client_connections);
            timeouts.query_timeout = user.query_timeout.or(timeouts.query_timeout);
            timeouts.query_wait_timeout = user.query_wait_timeout.or(timeouts.query_wait_timeout);
            timeouts.idle_transaction_timeout = user
                .idle_transaction_timeout
                .or(timeouts.idle_transaction_timeout);
            timeouts.transaction_timeout =
                user.transaction_timeout.or(timeouts.transaction_timeout);
            timeouts.client_idle_timeout =
                user.client_idle_timeout.or(timeouts.client_idle_timeout);
            timeouts.pin_idle_timeout = user.pin_idle_timeout.or(timeouts.pin_idle_timeout);
            pool.max_pinned = user.max_pinned.unwrap_or(pool.max_pinned);
            retry.statements = user.retry_statements.unwrap_or(retry.statements);
            retry.replay = user.retry_replay.unwrap_or(retry.replay);
            retry.settle_commit = user.retry_settle_commit.unwrap_or(retry.settle_commit);
            retry.attempts = user.retry_attempts.unwrap_or(retry.attempts);
            retry.deadline = user.retry_deadline.unwrap_or(retry.deadline);
        }
        Some(Self {
            primary: entry.primary.clone(),
            must_take_writes: !entry.replicas.is_empty(),
            servers: servers(&entry.primary, &entry.replicas),
            routing,
            dbname: entry.dbname.clone().unwrap_or_else(|| database.to_owned()),
            login_user: entry.user.clone().unwrap_or_else(|| user.to_owned()),
            login_password: entry.user.as_ref().and(entry.password.clone()),
            pool,
            timeouts,
            retry,
            overload: config.overload,
            weight,
            startup: entry
                .startup
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            is_fallback: named.is_none(),
        })
    }
}

/// What tells one list of servers from another; empty for a single server.
pub fn servers(primary: &Node, replicas: &[Node]) -> Arc<str> {
    if replicas.is_empty() {
        return Arc::default();
    }
    let nodes = std::iter::once(primary).chain(replicas);
    let addresses: Vec<String> = nodes.map(Node::address).collect();
    addresses.join(",").into()
}
