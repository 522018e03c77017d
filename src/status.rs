//! One read-only picture of everything: what the console shows and the metrics export.
//!
//! It is put together from the pools, the registry and the configuration when somebody asks, so nothing is counted
//! twice on the way of a statement, and two views of one snapshot can't disagree. The parts are read one after the
//! other, not at one instant: a client may have moved on between two of them.

pub mod advice;
pub mod evidence;
pub mod nodes;
pub mod pins;
pub mod stats;
pub mod timeline;
pub mod trends;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use self::nodes::{ClusterStatus, NodeStatus, RouteStatus};
use self::pins::PinStatus;
use crate::cluster::Clusters;
use crate::config::model::{Config, PoolMode};
use crate::journal::Log;
use crate::meter::{Doing, Queries, QueriesSample, QueryId, Recent, RecentSample};
use crate::pool::effective::Effective;
use crate::pool::live::LiveBackend;
use crate::pool::{Pool, Pools};
use crate::registry::{ClientEntry, ClientState, Registry, Replication};
use crate::shared::Shared;

/// What a server connection is doing, in PgBouncer's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// A client runs on it.
    Active,
    Idle,
    /// Being made ready: at a login, or cleaned after a client.
    Tested,
    /// Listens for sessions, of several pools perhaps, and runs no statements of theirs.
    Listening,
    /// Free, but a cancel request to it is still under way.
    BeingCanceled,
}

impl ServerState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Tested => "tested",
            Self::Listening => "listening",
            Self::BeingCanceled => "being_canceled",
        }
    }
}

/// An open server connection.
#[derive(Clone, Debug)]
pub struct ServerStatus {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub state: ServerState,
    pub backend: Arc<LiveBackend>,
    /// It is closed when it is next free.
    pub close_needed: bool,
    /// Process id of the client that runs on it.
    pub client: Option<u32>,
    /// When a client's statement was last sent to it; of several in a row, when the first was.
    pub last_request: Option<Instant>,
    pub replication: Replication,
}

/// A client.
#[derive(Clone, Debug)]
pub struct ClientStatus {
    pub entry: Arc<ClientEntry>,
    pub state: ClientState,
    /// How long it has waited for a server connection.
    pub waiting: Duration,
    /// Id of the server connection it runs on.
    pub server: Option<u64>,
    /// The statement under way.
    pub running: Option<Doing>,
    /// Number and text of the last one, if it had no record when it began.
    pub without_record: Option<(QueryId, Arc<str>)>,
    /// When its last statement began.
    pub last_began: Option<Instant>,
}

/// The pool of one database and user, those of its replicas included, in the columns of `SHOW POOLS`.
#[derive(Clone, Debug)]
pub struct PoolStatus {
    pub pool: Arc<Pool>,
    /// Logged in and not waiting, idle ones included.
    pub cl_active: usize,
    pub cl_waiting: usize,
    pub cl_active_cancel_req: usize,
    pub sv_active: usize,
    pub sv_being_canceled: usize,
    pub sv_idle: usize,
    pub sv_tested: usize,
    /// Listening for sessions; these take no place of those that run statements.
    pub sv_listening: usize,
    pub sv_login: usize,
    /// Server connections in any state.
    pub connections: usize,
    /// The limit `pool.max_size`, for each server that the pool has connections to.
    pub connections_max: usize,
    /// How long the first in the queue has waited.
    pub maxwait: Duration,
    pub pool_mode: PoolMode,
}

/// A database as clients name it.
#[derive(Clone, Debug)]
pub struct DatabaseStatus {
    pub name: Arc<str>,
    pub effective: Effective,
    pub forced_user: Option<String>,
    pub connections: usize,
    pub clients: usize,
    pub paused: bool,
    pub disabled: bool,
}

/// A user that is configured or has a pool.
#[derive(Clone, Debug)]
pub struct UserStatus {
    pub name: Arc<str>,
    pub connections: usize,
    pub clients: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Snapshot {
    pub config: Arc<Config>,
    pub pools: Vec<PoolStatus>,
    pub clients: Vec<ClientStatus>,
    pub servers: Vec<ServerStatus>,
    pub pins: Vec<PinStatus>,
    pub nodes: Vec<NodeStatus>,
    pub clusters: Vec<ClusterStatus>,
    pub routes: Vec<RouteStatus>,
    pub databases: Vec<DatabaseStatus>,
    pub users: Vec<UserStatus>,
    /// Statements, those with the most time first.
    pub queries: QueriesSample,
    /// The latest slow and failed statements, and what waits for locks.
    pub recent: RecentSample,
    /// What was written of statements and sent, and what could not be.
    pub notes: Notes,
    /// Connections that have not logged in.
    pub logging_in: usize,
    /// Everything is paused.
    pub paused: bool,
}

/// Entries of the slow log and the query log, and statements sent as traces.
#[derive(Clone, Copy, Debug)]
pub struct Notes {
    /// Each log with its entries written and dropped.
    pub logs: [(Log, u64, u64); 2],
    pub traces_exported: u64,
    pub traces_dropped: u64,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            logs: Log::ALL.map(|log| (log, 0, 0)),
            traces_exported: 0,
            traces_dropped: 0,
        }
    }
}

/// What sessions write down of statements.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    pub queries: &'a Queries,
    pub recent: &'a Recent,
}

impl Snapshot {
    /// Everything now.
    pub fn of(shared: &Shared) -> Self {
        let notes = Notes {
            logs: Log::ALL.map(|log| {
                let journal = &shared.journal;
                (log, journal.written_count(log), journal.dropped_count(log))
            }),
            traces_exported: shared.tracer.exported_count(),
            traces_dropped: shared.tracer.dropped_count(),
        };
        let mut snapshot = Self::take(
            shared.config.load_full(),
            (&shared.pools, &shared.clusters),
            &shared.registry,
            Counted {
                queries: &shared.known.queries,
                recent: &shared.recent,
            },
            shared.connections.load(Ordering::SeqCst),
        );
        snapshot.notes = notes;
        snapshot.routes = nodes::routes(shared);
        snapshot
    }

    /// `connections` counts those accepted and not ended.
    pub fn take(
        config: Arc<Config>,
        (pools, clusters): (&Pools, &Clusters),
        registry: &Registry,
        counted: Counted<'_>,
        connections: usize,
    ) -> Self {
        let mut all = pools.all();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        let mut clients = clients(registry);
        let servers = servers(&all, &mut clients);
        let pins = pins::pins(&all, &clients);
        let pool_rows = pool_rows(all, &clients, &servers);
        Self {
            databases: databases(&config, pools, &pool_rows),
            users: users(&config, &pool_rows),
            queries: counted.queries.sample(),
            recent: counted.recent.sample(),
            notes: Notes::default(),
            logging_in: connections.saturating_sub(clients.len()),
            paused: pools.is_paused(),
            nodes: nodes::nodes(clusters, &servers),
            clusters: nodes::clusters(clusters),
            routes: Vec::new(),
            pools: pool_rows,
            config,
            clients,
            servers,
            pins,
        }
    }
}

impl Snapshot {
    /// The text of a statement that has a record, that a client runs, or that has pinned one; empty for others.
    pub fn text(&self, id: QueryId) -> &str {
        let queries = &self.queries;
        let recorded = queries.queries.iter().chain(&queries.unfinished);
        let recorded = recorded.map(|query| (query.id, &query.text));
        let run = self.clients.iter().flat_map(|it| &it.without_record);
        let run = run.map(|(id, text)| (*id, text));
        let pinned = self.pins.iter().map(|it| (it.pin.query, &it.pin.text));
        let mut all = recorded.chain(run).chain(pinned);
        all.find(|(other, _)| *other == id)
            .map_or("", |(_, text)| text)
    }
}

fn clients(registry: &Registry) -> Vec<ClientStatus> {
    let mut clients: Vec<_> = registry
        .all()
        .into_iter()
        .map(|entry| ClientStatus {
            state: entry.state(),
            waiting: entry
                .waiter
                .since()
                .map_or(Duration::ZERO, |since| since.elapsed()),
            server: None,
            running: entry.activity.running(),
            without_record: entry.activity.without_record(),
            last_began: entry.activity.last_began(),
            entry,
        })
        .collect();
    clients.sort_by_key(|client| (client.entry.connected(), client.entry.pid.0));
    clients
}

/// The open connections of `pools`; fills in which client runs on which.
fn servers(pools: &[Arc<Pool>], clients: &mut [ClientStatus]) -> Vec<ServerStatus> {
    let mut running: HashMap<usize, &mut ClientStatus> = clients
        .iter_mut()
        .filter_map(|client| {
            let identity = client.entry.running()?;
            Some((Arc::as_ptr(&identity).addr(), client))
        })
        .collect();
    let mut servers = Vec::new();
    for pool in pools {
        let idle: BTreeSet<u64> = pool.idle_ids().into_iter().collect();
        let generation = pool.generation();
        for backend in pool.live.all() {
            let client = running.get_mut(&Arc::as_ptr(&backend.identity).addr());
            let state = match &client {
                Some(_) => ServerState::Active,
                None if backend.listens => ServerState::Listening,
                None if idle.contains(&backend.id) => ServerState::Idle,
                None if backend.identity.is_being_cancelled() => ServerState::BeingCanceled,
                None => ServerState::Tested,
            };
            let replication = client.as_ref().map(|client| client.entry.replication);
            let mut last_request = backend.identity.last_used();
            let client = client.map(|client| {
                client.server = Some(backend.id);
                last_request = last_request.max(client.last_began);
                client.entry.pid.0
            });
            servers.push(ServerStatus {
                user: Arc::clone(&pool.key.user),
                database: Arc::clone(&pool.key.database),
                state,
                close_needed: backend.generation < generation,
                client,
                last_request,
                replication: replication.unwrap_or_default(),
                backend,
            });
        }
    }
    servers
}

fn pool_rows(
    pools: Vec<Arc<Pool>>,
    clients: &[ClientStatus],
    servers: &[ServerStatus],
) -> Vec<PoolStatus> {
    // Those of replicas belong to the row of their database and user.
    let (of_replicas, pools): (Vec<_>, Vec<_>) =
        pools.into_iter().partition(|pool| pool.key.node.is_some());
    let mut rows: Vec<PoolStatus> = pools.into_iter().map(empty_row).collect();
    let places: HashMap<(Arc<str>, Arc<str>), usize> = rows
        .iter()
        .enumerate()
        .map(|(place, row)| {
            let key = &row.pool.key;
            ((Arc::clone(&key.database), Arc::clone(&key.user)), place)
        })
        .collect();
    let place = |database: &Arc<str>, user: &Arc<str>| {
        places
            .get(&(Arc::clone(database), Arc::clone(user)))
            .copied()
    };
    for pool in of_replicas {
        if let Some(place) = place(&pool.key.database, &pool.key.user) {
            rows[place].sv_login += pool.opening();
            let waited = pool.oldest_wait().map(|since| since.elapsed());
            rows[place].maxwait = rows[place].maxwait.max(waited.unwrap_or_default());
            rows[place].connections += pool.open();
            rows[place].connections_max += pool.effective.load().pool.max_size;
        }
    }
    for client in clients {
        // The console's clients have no pool.
        let Some(place) = place(&client.entry.database, &client.entry.user) else {
            continue;
        };
        match client.state {
            ClientState::Idle | ClientState::Active => rows[place].cl_active += 1,
            ClientState::Waiting => rows[place].cl_waiting += 1,
            ClientState::Login => {}
        }
    }
    for server in servers {
        let Some(place) = place(&server.database, &server.user) else {
            continue;
        };
        let row = &mut rows[place];
        row.cl_active_cancel_req += usize::from(server.backend.identity.is_being_cancelled());
        match server.state {
            ServerState::Active => row.sv_active += 1,
            ServerState::Idle => row.sv_idle += 1,
            ServerState::Tested => row.sv_tested += 1,
            ServerState::Listening => row.sv_listening += 1,
            ServerState::BeingCanceled => row.sv_being_canceled += 1,
        }
    }
    rows
}

fn empty_row(pool: Arc<Pool>) -> PoolStatus {
    PoolStatus {
        cl_active: 0,
        cl_waiting: 0,
        cl_active_cancel_req: 0,
        sv_active: 0,
        sv_being_canceled: 0,
        sv_idle: 0,
        sv_tested: 0,
        sv_listening: 0,
        sv_login: pool.opening(),
        connections: pool.open(),
        connections_max: pool.effective.load().pool.max_size,
        maxwait: pool
            .oldest_wait()
            .map_or(Duration::ZERO, |since| since.elapsed()),
        pool_mode: pool.effective.load().pool.pool_mode,
        pool,
    }
}

fn databases(config: &Config, pools: &Pools, rows: &[PoolStatus]) -> Vec<DatabaseStatus> {
    let configured = config.databases.keys().filter(|name| *name != "*");
    let used = rows.iter().map(|row| &*row.pool.key.database);
    let names: BTreeSet<&str> = configured.map(String::as_str).chain(used).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let own = |row: &&PoolStatus| *row.pool.key.database == *name;
            let (paused, disabled) = pools.standing(name);
            let entry = config.databases.get(name).or(config.databases.get("*"));
            Some(DatabaseStatus {
                name: name.into(),
                effective: pools.effective(config, name, "")?,
                forced_user: entry.and_then(|entry| entry.user.clone()),
                connections: rows
                    .iter()
                    .filter(own)
                    .map(PoolStatus::server_connections)
                    .sum(),
                clients: rows.iter().filter(own).map(PoolStatus::clients).sum(),
                paused,
                disabled,
            })
        })
        .collect()
}

fn users(config: &Config, rows: &[PoolStatus]) -> Vec<UserStatus> {
    let used = rows.iter().map(|row| &*row.pool.key.user);
    let names: BTreeSet<&str> = config
        .users
        .keys()
        .map(String::as_str)
        .chain(used)
        .collect();
    names
        .into_iter()
        .map(|name| {
            let own = |row: &&PoolStatus| *row.pool.key.user == *name;
            UserStatus {
                name: name.into(),
                connections: rows
                    .iter()
                    .filter(own)
                    .map(PoolStatus::server_connections)
                    .sum(),
                clients: rows.iter().filter(own).map(PoolStatus::clients).sum(),
            }
        })
        .collect()
}

impl PoolStatus {
    /// Those that run statements, and those that listen.
    fn server_connections(&self) -> usize {
        self.connections + self.sv_listening
    }

    fn clients(&self) -> usize {
        self.cl_active + self.cl_waiting
    }
}
