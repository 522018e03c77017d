//! The validated configuration: what the rest of the crate reads.
//!
//! Made by `config::load` from TOML, flags and environment; every value here is already checked. It travels as an
//! `Arc<Config>` snapshot taken per transaction, so that a reload never changes a statement under way.

mod limits;
mod seeing;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use self::limits::{Overload, StatementRule};
pub use self::seeing::{HttpUrl, Log, LogFormat, LogRule, Metrics, QueryLog, SlowLog, Traces};

/// Everything. `databases` and `users` hold only what differs from the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub general: General,
    pub http: Http,
    pub cluster: Cluster,
    pub auth: Auth,
    pub client_tls: ClientTls,
    pub server_tls: ServerTls,
    /// Defaults for every database and user.
    pub routing: Routing,
    /// Defaults for every pool.
    pub pool: PoolSettings,
    /// Defaults for every pool, user and database.
    pub timeouts: Timeouts,
    /// Defaults for every database.
    pub retry: Retry,
    /// Keyed by the name clients ask for. The key `*` is the fallback; it always exists when `cluster.primary` is set.
    pub databases: BTreeMap<String, Database>,
    pub users: BTreeMap<String, User>,
    pub overload: Overload,
    /// By name.
    pub statement_rules: BTreeMap<String, StatementRule>,
    pub metrics: Metrics,
    pub slow_log: SlowLog,
    pub query_log: QueryLog,
    /// By name.
    pub log_rules: BTreeMap<String, LogRule>,
    pub traces: Traces,
    pub log: Log,
}

/// Listeners, process-wide limits, and who may use the console.
#[derive(Clone, Debug, PartialEq)]
pub struct General {
    /// TCP addresses to listen on (`HOST:PORT`, port 0 picks a free one).
    pub listen: Vec<String>,
    /// Folder for a Unix socket `.s.PGSQL.<port of the first TCP address>`.
    pub unix_socket_dir: Option<PathBuf>,
    /// Permissions of that socket.
    pub unix_socket_mode: u32,
    /// HTTP listener for the live page, `/metrics`, `/live`, `/ready`; `None` switches it off.
    pub http: Option<SocketAddr>,
    /// Worker threads; 1 runs everything on one thread.
    pub workers: usize,
    /// Clients allowed at once, logins under way included.
    pub max_client_conn: usize,
    /// Largest message accepted from a client, in bytes.
    pub max_packet_size: usize,
    /// How long SIGTERM waits for transactions to finish.
    pub shutdown_timeout: Duration,
    pub admin_users: Vec<String>,
    pub stats_users: Vec<String>,
    pub tcp_keepalive: bool,
    /// Idle time before the first keepalive probe; `None` leaves the system's.
    pub tcp_keepidle: Option<Duration>,
    pub tcp_keepintvl: Option<Duration>,
    pub tcp_keepcnt: Option<u32>,
    /// `TCP_USER_TIMEOUT`; `None` leaves the system's.
    pub tcp_user_timeout: Option<Duration>,
}

/// How much of what is served over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HttpScope {
    /// `/live` and `/ready`.
    Health,
    /// And `/metrics`.
    Metrics,
    All,
}

/// Who may read what over HTTP, and TLS there.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    pub admin_token: Option<Secret>,
    pub stats_token: Option<Secret>,
    pub without_token: HttpScope,
    /// Names under which browsers may ask without a token, in lower case.
    pub hosts: Vec<String>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// The PostgreSQL servers behind the fallback database and behind every database that names none itself.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Cluster {
    pub primary: Option<Node>,
    pub replicas: Vec<Node>,
    /// Where pgweir itself runs; replicas of the same zone are preferred.
    pub zone: Option<String>,
    pub probe: Probe,
}

/// How the servers of a cluster are asked what they are.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Probe {
    /// Time between two probes of a server nobody is waiting for news of.
    pub interval: Duration,
    /// Shortest time between two probes of a server while reads wait for its news.
    pub sample_interval: Duration,
    /// For connecting, and for each answer.
    pub timeout: Duration,
    /// Failures in a row after which a server is down.
    pub down_after: usize,
    /// A replica that is further behind serves nobody.
    pub replica_lag_max: Option<Duration>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub dbname: Option<String>,
}

/// Which servers a read may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reads {
    #[default]
    Replicas,
    Primary,
}

/// What a read on a replica must have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Anything.
    Eventual,
    /// What its own session has written.
    #[default]
    Session,
    /// What any session has written through this process.
    Cluster,
    /// Everything that is older than this.
    Bounded(Duration),
}

/// Where reads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Routing {
    pub reads: Reads,
    pub consistency: Consistency,
    /// How long a read waits for a replica that has seen enough before the primary serves it.
    pub replica_wait: Option<Duration>,
}

/// One PostgreSQL server, from a `postgres://` URL.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Node {
    /// Host name, IP address, or the folder of a Unix socket (starts with `/`).
    pub host: String,
    pub port: u16,
    /// What pgweir itself logs in as, for probes and `auth_query`; never used for clients unless a database forces it.
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub dbname: Option<String>,
    /// Its share of the reads beside other replicas'; `None` is 1.
    pub weight: Option<u16>,
    pub zone: Option<String>,
    /// Server connections of all pools there.
    pub max_connections: Option<usize>,
}

impl Node {
    /// The server alone, without a login.
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            ..Self::default()
        }
    }

    /// `HOST:PORT`, by which operators name it.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn is_same_server(&self, other: &Self) -> bool {
        self.port == other.port && self.host == other.host
    }
}

/// A secret that does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The secret itself; the name makes uses easy to find.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("********")
    }
}

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// The client's password is tried on the server.
    Passthrough,
    /// SCRAM-SHA-256 against a verifier from the userlist or `auth_query`.
    ScramSha256,
    Md5,
    /// Everyone is let in under the name they give.
    Trust,
    /// A TLS client certificate whose common name is the user.
    Cert,
    /// The operating-system user on the other end of a Unix socket.
    Peer,
    /// Rules of `hba_file` decide.
    Hba,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Auth {
    pub method: AuthMethod,
    /// PgBouncer's userlist: lines of `"user" "password | md5… | SCRAM-SHA-256$…"`.
    pub userlist: Option<PathBuf>,
    /// Query with `$1` for the user, returning user and verifier; run as `auth_user`.
    pub auth_query: Option<String>,
    /// Who runs `auth_query`; default: the primary URL's user.
    pub auth_user: Option<String>,
    pub auth_password: Option<Secret>,
    /// Database for `auth_query`; default: the one the client asks for.
    pub auth_dbname: Option<String>,
    pub hba_file: Option<PathBuf>,
    pub ident_file: Option<PathBuf>,
    /// How long a verifier learned by `passthrough` or `auth_query` is believed.
    pub cache_ttl: Duration,
}

/// libpq's `sslmode` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientTls {
    pub sslmode: SslMode,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Authorities for client certificates.
    pub ca_file: Option<PathBuf>,
}

/// TLS towards servers.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTls {
    pub sslmode: SslMode,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// `sslnegotiation=direct`: TLS from the first byte, ALPN `postgresql` (PostgreSQL 17 and later).
    pub direct: bool,
}

/// When a server connection goes back to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    Session,
    Transaction,
    Statement,
}

impl PoolMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

/// What happens to a client that uses session state which can't be carried between backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSessionState {
    /// It keeps its backend until the state is gone.
    Pin,
    /// The statement is refused with 0A000.
    Reject,
}

/// A share of something, in percent: at most 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

impl Percent {
    /// The share of `whole`, rounded up.
    pub fn of(self, whole: usize) -> usize {
        whole.saturating_mul(usize::from(self.0)).div_ceil(100)
    }
}

/// Sizes and rules of a pool. A limit of `None` is unlimited.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    pub pool_mode: PoolMode,
    /// Server connections per (user, database).
    pub max_size: usize,
    /// Kept open while the pool has a client.
    pub min_idle: usize,
    /// Extra connections once a client has waited `reserve_timeout`.
    pub reserve_size: usize,
    pub reserve_timeout: Duration,
    /// Server connections per database, over all users.
    pub max_db_connections: Option<usize>,
    /// Server connections per user, over all databases.
    pub max_user_connections: Option<usize>,
    /// Server connections in total.
    pub max_server_connections: Option<usize>,
    pub max_db_client_connections: Option<usize>,
    pub max_user_client_connections: Option<usize>,
    /// Prepared statements kept on one server connection (least recently used goes first).
    pub max_prepared_statements: usize,
    /// Server connections that run short reads of many clients back to back.
    pub lanes: usize,
    pub on_session_state: OnSessionState,
    /// What texts run unseen is looked through for what may stay in a session.
    pub hidden_state: bool,
    /// Clients that may wait.
    pub max_waiting: Option<usize>,
    /// Clients that could not be served in time are told so at once.
    pub shed: bool,
    /// One connection for each database listens for all of its sessions.
    pub shared_listener: bool,
    /// Share of `max_size` that pinned sessions may hold.
    pub max_pinned: Percent,
    /// Run once on each new server connection.
    pub connect_query: Option<String>,
}

/// Zero in the file means "no limit", which is `None` here.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// Longest wait for a server connection.
    pub query_wait_timeout: Option<Duration>,
    /// A NOTICE to the client once it has waited this long.
    pub query_wait_notify: Option<Duration>,
    /// TCP connect, TLS and login to a server.
    pub server_connect_timeout: Duration,
    /// Pause after a failed connect before the next one; clients that wait meanwhile are told the error.
    pub server_login_retry: Duration,
    /// TCP accept to the end of login of a client.
    pub client_login_timeout: Duration,
    pub idle_transaction_timeout: Option<Duration>,
    pub transaction_timeout: Option<Duration>,
    pub query_timeout: Option<Duration>,
    pub client_idle_timeout: Option<Duration>,
    /// Longest time a pinned session may be idle outside a transaction.
    pub pin_idle_timeout: Option<Duration>,
    /// A client that does not take its reply for this long is cut off.
    pub client_write_timeout: Option<Duration>,
    /// Unused server connections are closed after this long (STYLE: `idle_timeout`).
    pub server_idle_timeout: Option<Duration>,
    /// Server connections are replaced at this age, with up to 10 % of jitter.
    pub server_lifetime: Option<Duration>,
    /// How long a cancel request may take, and how long its statement's end is awaited.
    pub cancel_wait_timeout: Duration,
}

/// What is run again after a failure that is not the application's, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Statements outside a transaction.
    pub statements: bool,
    /// Transactions.
    pub replay: bool,
    /// A COMMIT whose answer was lost is looked up.
    pub settle_commit: bool,
    /// Runs after the first one.
    pub attempts: u32,
    /// No further run begins this long after the first failure.
    pub deadline: Duration,
    /// The pause before a run is a random part of this, doubled with each run.
    pub backoff: Duration,
    pub backoff_max: Duration,
    /// Reruns allowed for each 100 transactions of the pool.
    pub budget: u32,
    /// Reruns allowed for each second besides.
    pub budget_min: u32,
    /// Bytes of requests kept of one transaction.
    pub journal_size: usize,
    /// Exchanges kept of one transaction.
    pub journal_statements: usize,
}

/// A database as clients name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    pub primary: Node,
    pub replicas: Vec<Node>,
    /// Name on the server; `None` is the name the client gave.
    pub dbname: Option<String>,
    /// Every client's server connections log in as this user.
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub routing: Routing,
    pub pool: PoolSettings,
    pub timeouts: Timeouts,
    pub retry: Retry,
    /// Settings every server connection of this database starts with (`client_encoding`, `datestyle`, `timezone`,
    /// `application_name`).
    pub startup: BTreeMap<String, String>,
}

/// What differs for one user. `None` means: as the database says.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct User {
    pub reads: Option<Reads>,
    pub consistency: Option<Consistency>,
    pub replica_wait: Option<Duration>,
    pub pool_mode: Option<PoolMode>,
    pub max_size: Option<usize>,
    pub reserve_size: Option<usize>,
    pub max_user_connections: Option<usize>,
    pub max_user_client_connections: Option<usize>,
    pub query_timeout: Option<Duration>,
    pub query_wait_timeout: Option<Duration>,
    pub idle_transaction_timeout: Option<Duration>,
    pub transaction_timeout: Option<Duration>,
    pub client_idle_timeout: Option<Duration>,
    /// Weight of the user under caps that pools share.
    pub priority: Option<usize>,
    pub max_pinned: Option<Percent>,
    pub pin_idle_timeout: Option<Duration>,
    pub retry_statements: Option<bool>,
    pub retry_replay: Option<bool>,
    pub retry_settle_commit: Option<bool>,
    pub retry_attempts: Option<u32>,
    pub retry_deadline: Option<Duration>,
}
