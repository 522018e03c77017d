//! The keys of the configuration file: name, type, default, meaning, and when a change takes effect.
//!
//! This, `raw_limits` and `raw_seeing` are the only lists of them. The `tables!` macro below makes the structs that reading fills, the
//! [reference](super::reference) and the effects that a reload reports; a key that is not in it is refused.
//!
//! # Why
//! A table rather than serde structs: a reference, a default and an effect that are written beside the key can't
//! drift from what the code reads, and every wrong value can be reported in one go.

use std::path::PathBuf;
use std::time::Duration;

use super::decode::{Reader, Setting, Value};
use super::document::Table;
use super::model::{
    AuthMethod, Consistency, HttpScope, Node, OnSessionState, Percent, PoolMode, Reads, Secret,
    SslMode,
};
use super::types::{Address, Cap, FileMode, HttpAddress, Limit, Size};

/// When a changed key takes effect after a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// For every client, from its next transaction.
    Live,
    /// For client or server connections made afterwards.
    NewConnections,
    /// Not before a restart.
    Restart,
}

impl Effect {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NewConnections => "new connections",
            Self::Restart => "restart",
        }
    }
}

/// A key as the reference shows it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: String,
    /// As TOML; `None` if the key is not set by default.
    pub(super) default: Option<String>,
    pub(super) effect: Effect,
    pub(super) docs: &'static [&'static str],
}

/// A group of keys.
pub(super) struct SectionDocs {
    /// The table's name in the file.
    pub(super) path: &'static str,
    pub(super) docs: &'static [&'static str],
    pub(super) keys: Vec<Key>,
}

macro_rules! tables {
    ($(
        $(#[doc = $about:literal])*
        $name:ident = $path:literal {
            $( $(#[doc = $docs:literal])* $key:ident: $type:ty = $default:expr, $effect:ident; )*
        }
    )*) => {
        $(
            $(#[doc = $about])*
            #[allow(clippy::struct_field_names, reason = "keys are called what PgBouncer calls them")]
            #[derive(Clone, Debug)]
            pub(super) struct $name {
                $( $(#[doc = $docs])* pub(super) $key: Setting<$type>, )*
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { $( $key: Setting::<$type>::default_value($default), )* }
                }
            }

            impl $name {
                /// Takes this section's keys out of `table`; `base` is what holds for those that are not there.
                pub(super) fn read(table: &mut Table, base: &Self, reader: &mut Reader<'_>) -> Self {
                    Self { $( $key: reader.take(table, stringify!($key), &base.$key), )* }
                }

                pub(super) fn docs() -> SectionDocs {
                    let keys = vec![$(
                        Key {
                            name: stringify!($key),
                            kind: <$type>::kind(),
                            default: Value::show(&Self::default().$key.value),
                            effect: Effect::$effect,
                            docs: &[$($docs),*],
                        },
                    )*];
                    SectionDocs { path: $path, docs: &[$($about),*], keys }
                }
            }
        )*

        /// Every section of this table with its keys.
        pub(super) fn own_sections() -> Vec<SectionDocs> {
            vec![$($name::docs()),*]
        }
    };
}
pub(super) use tables;

/// Every section with its keys, in the order of the reference.
pub(super) fn sections() -> Vec<SectionDocs> {
    let mut all = own_sections();
    all.extend(super::raw_limits::own_sections());
    all.extend(super::raw_seeing::own_sections());
    all
}

/// PgBouncer 1.25's own: the password of a login role, unless its `VALID UNTIL` is over.
const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END \
     FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

pub(super) const fn limit(seconds: u64) -> Limit {
    Limit(Some(Duration::from_secs(seconds)))
}

const NO_LIMIT: Limit = Limit(None);

tables! {
    /// Listeners, limits of the whole process, and who may use the console.
    General = "general" {
        /// TCP addresses to listen on; port 0 picks a free one.
        listen: Vec<Address> = vec![Address("127.0.0.1:6432".to_owned())], Restart;
        /// Folder for a Unix socket `.s.PGSQL.<port of the first TCP address>`; without it there is none.
        unix_socket_dir: Option<PathBuf> = None, Restart;
        /// Permissions of that socket.
        unix_socket_mode: FileMode = FileMode(0o777), Restart;
        /// Address of the live page, `/metrics`, `/live` and `/ready`, or `"off"`. Who may read what there is said in
        /// `[http]`.
        http: HttpAddress = HttpAddress(Some(([127, 0, 0, 1], 9930).into())), Restart;
        /// Worker threads; 1 runs everything on one thread, the shape of a sidecar.
        workers: usize = 1, Restart;
        /// Clients allowed at once, logins under way included; further ones are told 53300.
        max_client_conn: usize = 10_000, Live;
        /// Largest message accepted from a client.
        max_packet_size: Size = Size(2_147_483_647), NewConnections;
        /// How long SIGTERM waits for transactions to finish.
        shutdown_timeout: Duration = Duration::from_secs(30), Live;
        /// Users who may do everything in the console.
        admin_users: Vec<String> = Vec::new(), NewConnections;
        /// Users who may look at the console's `SHOW` tables.
        stats_users: Vec<String> = Vec::new(), NewConnections;
        /// Whether TCP connections, to clients and to servers, send keepalive probes.
        tcp_keepalive: bool = true, NewConnections;
        /// Idle time before the first probe; `"0"` leaves the operating system's.
        tcp_keepidle: Limit = NO_LIMIT, NewConnections;
        /// Time between probes; `"0"` leaves the operating system's.
        tcp_keepintvl: Limit = NO_LIMIT, NewConnections;
        /// Unanswered probes before a connection is given up; 0 leaves the operating system's.
        tcp_keepcnt: Cap = Cap(None), NewConnections;
        /// How long sent data may stay unacknowledged (`TCP_USER_TIMEOUT`); `"0"` leaves the operating system's.
        tcp_user_timeout: Limit = NO_LIMIT, NewConnections;
    }

    /// Who may read what over HTTP. `/live` and `/ready` answer everyone. A token is sent as
    /// `Authorization: Bearer TOKEN`, or typed as the password that a browser asks for, beside any user name.
    Http = "http" {
        /// Token, of at least 16 characters, of those who may see everything, texts of statements and errors included.
        admin_token: Option<Secret> = None, Live;
        /// File with that token.
        admin_token_file: Option<PathBuf> = None, Live;
        /// Token of those who may see everything but texts of statements and errors and addresses of clients.
        stats_token: Option<Secret> = None, Live;
        /// File with that token.
        stats_token_file: Option<PathBuf> = None, Live;
        /// What is read without a token: `health` (`/live` and `/ready`), `metrics` (also `/metrics`), or `all`.
        /// Default: `all` on a loopback address as long as no token is set, else `health`. An address that other
        /// machines reach needs a token or this key.
        without_token: Option<HttpScope> = None, Live;
        /// Names, besides IP addresses and `localhost`, under which browsers may ask without a token, such as that of a
        /// reverse proxy. Others are refused, so that no web page can reach this one under a name of its own.
        hosts: Vec<String> = Vec::new(), Live;
        /// Certificate chain, PEM; with it, HTTP is spoken over TLS only.
        cert_file: Option<PathBuf> = None, NewConnections;
        /// Private key of the certificate, PEM.
        key_file: Option<PathBuf> = None, NewConnections;
    }

    /// The PostgreSQL servers behind every database that names none itself. With `primary` alone, every database and
    /// user the server knows is accepted: the database `*` then exists without being written down.
    Cluster = "cluster" {
        /// The primary, `postgres://USER:PASSWORD@HOST:PORT/DBNAME`; everything but the host may be left out. User,
        /// password and database are what pgweir itself logs in with for probes and `auth_query`; clients bring
        /// their own. A Unix socket's folder is written `postgres:///?host=/run/postgresql`.
        primary: Option<Node> = None, NewConnections;
        /// The other servers of the cluster; user, password and database default to the primary's. The order does
        /// not matter: once there are replicas, who is the primary is found by asking. Parameters of a URL:
        /// `weight=N`, its share of the reads (default: 1); `zone=NAME`; `max_connections=N`, over all pools.
        replicas: Vec<Node> = Vec::new(), NewConnections;
        /// The zone pgweir runs in: replicas of the same `zone` are preferred.
        zone: Option<String> = None, Live;
        /// Time between two probes of a server while nobody waits for its news. Servers are probed where there are
        /// replicas.
        probe_interval: Duration = Duration::from_secs(1), Live;
        /// Shortest time between two probes while reads wait for a replica to catch up with what they must see.
        sample_interval: Duration = Duration::from_millis(20), Live;
        /// How long a probe may take, connecting and each answer.
        probe_timeout: Duration = Duration::from_secs(1), Live;
        /// Probes that fail in a row until a server counts as down. A primary that is down is given no statement, and
        /// clients wait for the next one, for `query_wait_timeout` at most.
        down_after: usize = 3, Live;
        /// A replica that is further behind serves nobody, whatever the consistency.
        replica_lag_max: Limit = limit(60), Live;
        /// Who probes; default: the user in the server's URL, then `auth_user`, then `postgres`. No privilege is
        /// needed, but without `pg_monitor` a replica is used a little later after a failover.
        probe_user: Option<String> = None, NewConnections;
        /// Password of `probe_user`.
        probe_password: Option<Secret> = None, NewConnections;
        /// File with the password of `probe_user`.
        probe_password_file: Option<PathBuf> = None, NewConnections;
        /// Database that probes log in to; default: the one in the server's URL, or else `postgres`.
        probe_dbname: Option<String> = None, NewConnections;
        /// File with the password of the user in `primary`, when the URL has none.
        password_file: Option<PathBuf> = None, NewConnections;
    }

    /// How clients prove who they are.
    Auth = "auth" {
        /// `passthrough`: the client's password is tried on the server; whoever the server asks for none, when pgweir
        /// connects, is let in without (`trust`, or `cert` with `tls.server.cert_file`). `scram-sha-256` (or `scram`)
        /// and `md5`: against verifiers from `userlist` or `auth_query`. `cert`: a TLS client certificate whose common name is
        /// the user. `peer`: the operating-system user on a Unix socket. `trust`: everyone, under any name. `hba`:
        /// the rules of `hba_file`.
        method: AuthMethod = AuthMethod::Passthrough, NewConnections;
        /// PgBouncer's userlist: lines of `"user" "password"`, where the password is plain, `md5…` or
        /// `SCRAM-SHA-256$…`.
        userlist: Option<PathBuf> = None, NewConnections;
        /// Query for users that are not in the userlist; `$1` is the user, the result the name and the verifier.
        /// The default is PgBouncer 1.25's: it reads `pg_authid`, which takes a superuser, and finds no password
        /// once `VALID UNTIL` is over. `""` switches it off.
        auth_query: String = AUTH_QUERY.to_owned(), NewConnections;
        /// Who runs `auth_query`; default: the user in the primary's URL.
        auth_user: Option<String> = None, NewConnections;
        /// Password of `auth_user`.
        auth_password: Option<Secret> = None, NewConnections;
        /// File with the password of `auth_user`.
        auth_password_file: Option<PathBuf> = None, NewConnections;
        /// Database that `auth_query` runs in; default: the one the client asks for.
        auth_dbname: Option<String> = None, NewConnections;
        /// Rules in the format of `pg_hba.conf`, for method `hba`.
        hba_file: Option<PathBuf> = None, NewConnections;
        /// User name maps in the format of `pg_ident.conf`, for methods `cert` and `peer` in rules.
        ident_file: Option<PathBuf> = None, NewConnections;
        /// How long a verifier learned by `passthrough` or `auth_query` is believed; a changed password may still be
        /// refused, and a revoked one accepted, for this long.
        cache_ttl: Duration = Duration::from_secs(300), Live;
    }

    /// TLS towards clients.
    ClientTls = "tls.client" {
        /// libpq's words: `disable`; `allow` and `prefer` leave the choice to the client; `require` refuses clients
        /// without TLS; `verify-ca` and `verify-full` also ask for a client certificate. Default: `"disable"`, or
        /// `"prefer"` once `cert_file` is set.
        sslmode: Option<SslMode> = None, NewConnections;
        /// Certificate chain, PEM.
        cert_file: Option<PathBuf> = None, NewConnections;
        /// Private key of the certificate, PEM.
        key_file: Option<PathBuf> = None, NewConnections;
        /// Authorities that client certificates are checked against, PEM.
        ca_file: Option<PathBuf> = None, NewConnections;
    }

    /// TLS towards servers.
    ServerTls = "tls.server" {
        /// libpq's words.
        sslmode: SslMode = SslMode::Prefer, NewConnections;
        /// Authorities that the server's certificate is checked against, PEM; needed for `verify-ca` and
        /// `verify-full`.
        ca_file: Option<PathBuf> = None, NewConnections;
        /// Client certificate chain, PEM.
        cert_file: Option<PathBuf> = None, NewConnections;
        /// Private key of the client certificate, PEM.
        key_file: Option<PathBuf> = None, NewConnections;
        /// TLS from the first byte (`sslnegotiation=direct`), which PostgreSQL 17 and later understand.
        direct: bool = false, NewConnections;
    }

    /// Where reads go, if there are replicas. Every key may stand in a database or a user too.
    Routing = "routing" {
        /// `replicas`: statements that are proved to only read, and read-only transactions, go to replicas.
        /// `primary`: only those that ask for one by the comment `/* pgweir: replica */`.
        reads: Reads = Reads::Replicas, Live;
        /// What a read on a replica must have seen: `eventual`, nothing in particular; `session`, what its own session
        /// has written; `cluster`, what any session has written through this process; `bounded:DURATION`, all that is
        /// older than that. A session may choose by `SET pgweir.consistency`.
        consistency: Consistency = Consistency::Session, Live;
        /// How long a read waits for a replica that has seen enough before the primary serves it.
        replica_wait: Limit = NO_LIMIT, Live;
    }

    /// Sizes and rules of the pools. There is one pool for each pair of user and database.
    Pool = "pool" {
        /// When a server connection goes back to the pool. In `transaction` mode session state follows the client.
        pool_mode: PoolMode = PoolMode::Transaction, NewConnections;
        /// Server connections per pool.
        max_size: usize = 20, Live;
        /// Server connections kept open while the pool has a client.
        min_idle: usize = 0, Live;
        /// Extra server connections once a client has waited `reserve_timeout`.
        reserve_size: usize = 0, Live;
        /// Wait after which the reserve is used.
        reserve_timeout: Duration = Duration::from_secs(5), Live;
        /// Server connections per database, over all users.
        max_db_connections: Cap = Cap(None), Live;
        /// Server connections per user, over all databases.
        max_user_connections: Cap = Cap(None), Live;
        /// Server connections in total; only in `[pool]`. Those for probes and for `auth_query` (one for each database
        /// asked for) do not count.
        max_server_connections: Cap = Cap(None), Live;
        /// Clients per database.
        max_db_client_connections: Cap = Cap(None), Live;
        /// Clients per user.
        max_user_client_connections: Cap = Cap(None), Live;
        /// Clients of a pool that may wait for a server connection; a further one is told 53300 at once.
        max_waiting: Cap = Cap(None), Live;
        /// Whether a client is told 53300 at once when it would wait longer than `query_wait_timeout`, as fast as the pool
        /// serves those before it. See docs/overload.md.
        shed: bool = true, Live;
        /// Prepared statements kept on one server connection; the least recently used goes first.
        max_prepared_statements: usize = 200, Live;
        /// Server connections on which short reads of many clients run back to back while several are under way; 0 gives
        /// each statement a server connection to itself.
        lanes: usize = 2, Live;
        /// What happens to a client that uses session state which can't follow it: `pin` lets it keep its server
        /// connection until the state is gone, `reject` refuses the statement with 0A000. What functions do unseen pins
        /// in either case.
        on_session_state: OnSessionState = OnSessionState::Pin, NewConnections;
        /// Whether what triggers, rules, defaults, views and policies call is looked through for what may stay in a session
        /// (`set_config`, temporary tables, advisory locks, SQL put together at run time). Where something may, the server is
        /// asked what is left before another client gets the connection. Read each minute, on a short connection named
        /// `pgweir catalogue`.
        hidden_state: bool = true, Live;
        /// `LISTEN` takes no server connection of the session's own: one connection for each database listens for all of
        /// its sessions. Off, it pins.
        shared_listener: bool = true, Live;
        /// Share of `max_size` that sessions may hold that keep their server connection (`SHOW PINS`), rounded up; a
        /// statement that would need one more is refused with 53300.
        max_pinned: Percent = Percent(100), Live;
        /// Statements run on each new server connection, and again where what they have set was changed or reset by a
        /// client: they must be able to run twice.
        connect_query: Option<String> = None, NewConnections;
    }

    /// Timeouts. An error names the setting whose limit was reached.
    Timeouts = "timeouts" {
        /// Longest wait for a server connection.
        query_wait_timeout: Limit = limit(120), Live;
        /// A client that has waited this long is sent a NOTICE.
        query_wait_notify: Limit = limit(5), Live;
        /// TCP connect, TLS and login to a server, together.
        server_connect_timeout: Duration = Duration::from_secs(15), NewConnections;
        /// Pause after a failed connect; clients that wait meanwhile are told the error.
        server_login_retry: Duration = Duration::from_secs(1), Live;
        /// From a client's connect to the end of its login; only in `[timeouts]`.
        client_login_timeout: Duration = Duration::from_secs(60), NewConnections;
        /// Longest time in a transaction without a statement.
        idle_transaction_timeout: Limit = NO_LIMIT, Live;
        /// Longest transaction.
        transaction_timeout: Limit = NO_LIMIT, Live;
        /// Longest statement. Of several in one extended exchange without Flush, which the server answers together, it
        /// is the limit of all of them.
        query_timeout: Limit = NO_LIMIT, Live;
        /// Longest time a client may be idle outside a transaction.
        client_idle_timeout: Limit = NO_LIMIT, Live;
        /// The same for one whose session keeps its server connection (`SHOW PINS`).
        pin_idle_timeout: Limit = NO_LIMIT, Live;
        /// A client that does not take its reply for this long is cut off.
        client_write_timeout: Limit = NO_LIMIT, Live;
        /// Unused server connections are closed after this long.
        server_idle_timeout: Limit = limit(600), Live;
        /// Server connections are replaced at this age, with up to 10 % of jitter.
        server_lifetime: Limit = limit(3600), NewConnections;
        /// How long a cancel request may take, and how long the end of its statement is awaited.
        cancel_wait_timeout: Duration = Duration::from_secs(10), Live;
    }

    /// What pgweir runs again by itself after a failure that is not the application's: see docs/retries.md. The keys may
    /// stand in `[databases.NAME.retry]` too.
    Retry = "retry" {
        /// Statements outside a transaction: those the server rolled back (40001, 40P01), and those lost with their
        /// connection where that can do no harm.
        statements: bool = true, Live;
        /// Transactions on a deadlock, a serialization failure or the loss of the server: their statements are run again
        /// and must be answered as before, byte for byte.
        replay: bool = false, Live;
        /// What became of a COMMIT whose answer was lost is asked of the server that is primary then (`pg_xact_status`).
        /// Costs a small question in each transaction that writes, behind its statements, and one in ten seconds on each
        /// server connection.
        settle_commit: bool = false, Live;
        /// Runs of one request after the first.
        attempts: usize = 10, Live;
        /// No further run begins this long after the first failure.
        deadline: Duration = Duration::from_secs(30), Live;
        /// The pause before a run is a random part of this, doubled with each run.
        backoff: Duration = Duration::from_millis(4), Live;
        /// The longest of these pauses.
        backoff_max: Duration = Duration::from_secs(1), Live;
        /// Runs that a pool may add for each 100 of its transactions.
        budget: usize = 100, Live;
        /// Runs that a pool may add each second besides.
        budget_min: usize = 100, Live;
        /// Requests kept of one transaction for its replay; a longer one is not replayed.
        journal_size: Size = Size(64 * 1024), Live;
        /// The same as a number of exchanges: simple queries, or extended ones up to their Sync.
        journal_statements: usize = 1000, Live;
    }

    /// A database as clients name it; `databases."*"` is any that is not named. Every key of `[routing]`, `[pool]` and
    /// `[timeouts]` may stand here too and then holds for this database.
    Database = "databases.NAME" {
        /// The primary's URL, as in `[cluster]`; default: the cluster's servers. Its database is the default of
        /// `dbname`.
        primary: Option<Node> = None, NewConnections;
        /// Replicas of `primary`.
        replicas: Vec<Node> = Vec::new(), NewConnections;
        /// Instead of `primary`: host name, IP address, or the folder of a Unix socket.
        host: Option<String> = None, NewConnections;
        /// Port on `host`; default: 5432.
        port: Option<u16> = None, NewConnections;
        /// Name of the database on the server; default: the one in the URL, or else the name the client gave.
        dbname: Option<String> = None, NewConnections;
        /// Server connections of every client log in as this user; default: the client's own.
        user: Option<String> = None, NewConnections;
        /// Password of `user`.
        password: Option<Secret> = None, NewConnections;
        /// File with the password of `user`.
        password_file: Option<PathBuf> = None, NewConnections;
        /// `client_encoding` that server connections start with.
        client_encoding: Option<String> = None, NewConnections;
        /// `DateStyle` that server connections start with.
        datestyle: Option<String> = None, NewConnections;
        /// `TimeZone` that server connections start with.
        timezone: Option<String> = None, NewConnections;
        /// `application_name` that server connections start with.
        application_name: Option<String> = None, NewConnections;
    }

    /// What differs for one user, over what the database says.
    User = "users.NAME" {
        /// As in `[routing]`.
        reads: Option<Reads> = None, Live;
        /// As in `[routing]`.
        consistency: Option<Consistency> = None, Live;
        /// As in `[routing]`.
        replica_wait: Option<Duration> = None, Live;
        /// As in `[pool]`.
        pool_mode: Option<PoolMode> = None, NewConnections;
        /// As in `[pool]`.
        max_size: Option<usize> = None, Live;
        /// As in `[pool]`.
        reserve_size: Option<usize> = None, Live;
        /// As in `[pool]`.
        max_user_connections: Option<usize> = None, Live;
        /// As in `[pool]`.
        max_user_client_connections: Option<usize> = None, Live;
        /// As in `[timeouts]`.
        query_timeout: Option<Duration> = None, Live;
        /// As in `[timeouts]`.
        query_wait_timeout: Option<Duration> = None, Live;
        /// As in `[timeouts]`.
        idle_transaction_timeout: Option<Duration> = None, Live;
        /// As in `[timeouts]`.
        transaction_timeout: Option<Duration> = None, Live;
        /// As in `[timeouts]`.
        client_idle_timeout: Option<Duration> = None, Live;
        /// Weight under a cap that pools share, 1 to 1000; default: 100. While they compete, a user of weight 200 gets twice
        /// the server connections of one of 100.
        priority: Option<usize> = None, Live;
        /// As in `[pool]`.
        max_pinned: Option<Percent> = None, Live;
        /// As in `[timeouts]`.
        pin_idle_timeout: Option<Duration> = None, Live;
        /// As `statements` in `[retry]`.
        retry_statements: Option<bool> = None, Live;
        /// As `replay` in `[retry]`.
        retry_replay: Option<bool> = None, Live;
        /// As `settle_commit` in `[retry]`.
        retry_settle_commit: Option<bool> = None, Live;
        /// As `attempts` in `[retry]`.
        retry_attempts: Option<usize> = None, Live;
        /// As `deadline` in `[retry]`.
        retry_deadline: Option<Duration> = None, Live;
    }
}
