//! The rows of each `SHOW`, from one snapshot.
//!
//! What pgweir does not know is NULL, and what it does not have (DNS cache, peers) is an empty table; nothing is made
//! up to fill a column.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::command::Role;
use super::queries::Seen;
use super::show::{PARAMETERS, Show, TOTALS};
use super::table::{Row, Value};
use crate::config;
use crate::config::model::PoolMode;
use crate::registry::ClientState;
use crate::status::stats::{DatabaseStats, Totals};
use crate::status::{ClientStatus, DatabaseStatus, PoolStatus, ServerStatus, Snapshot};
use crate::telemetry::clock::utc;

/// The PgBouncer whose console this one stands in for.
pub const PGBOUNCER_VERSION: &str = "1.25.0";

/// Columns of `SHOW SOCKETS` after those of `SHOW CLIENTS`: positions in buffers that pgweir does not have.
const BUFFER_COLUMNS: usize = 7;

/// What rows are made from.
#[derive(Debug)]
pub struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub stats: &'a BTreeMap<Arc<str>, DatabaseStats>,
    pub role: Role,
}

impl View<'_> {
    /// The rows of `show`; each has as many values as [`Show::columns`].
    pub fn rows(&self, show: Show) -> Vec<Row> {
        let snapshot = self.snapshot;
        let seen = Seen {
            snapshot,
            role: self.role,
        };
        match show {
            Show::Queries => seen.queries(),
            Show::Slow => seen.slow(),
            Show::Errors => seen.errors(),
            Show::Waits => seen.waits(),
            Show::Locks => seen.locks(),
            Show::Pins => seen.pins(),
            Show::Pools => snapshot.pools.iter().map(pool).collect(),
            Show::Clients => self.clients().collect(),
            Show::Servers => snapshot.servers.iter().map(server).collect(),
            Show::Sockets => self.sockets(|_| true),
            Show::ActiveSockets => self
                .sockets(|row| matches!(&row[4], Value::Text(state) if state.ends_with("active"))),
            Show::Retries => snapshot.pools.iter().map(super::retries::row).collect(),
            Show::Routes => snapshot.routes.iter().map(super::nodes::route).collect(),
            Show::Nodes => snapshot.nodes.iter().map(super::nodes::row).collect(),
            Show::Databases => snapshot.databases.iter().map(database).collect(),
            Show::Users => self.users(),
            Show::Stats => self.each_database(|stats| {
                let requests = stats.total.queries;
                let (total, average) = (stats.total.columns(), stats.average.columns());
                [&total[..], &average[..], &[requests]].concat()
            }),
            Show::StatsTotals => self.each_database(|stats| stats.total.columns().to_vec()),
            Show::StatsAverages => self.each_database(|stats| stats.average.columns().to_vec()),
            Show::Totals => self.totals(),
            Show::Lists => self.lists(),
            Show::Config => settings(snapshot),
            Show::State => self.state(),
            Show::Mem => memory().into_iter().collect(),
            Show::Version => vec![vec![version().into()]],
            Show::One => vec![vec![Value::Number(1)]],
            Show::Parameter(place) => PARAMETERS
                .get(place)
                .map(|(_, value)| vec![(*value).into()])
                .into_iter()
                .collect(),
            Show::DnsHosts | Show::DnsZones | Show::Peers | Show::PeerPools => Vec::new(),
            Show::Fds | Show::Help => Vec::new(),
        }
    }

    fn clients(&self) -> impl Iterator<Item = Row> {
        let logged_in = |client: &&ClientStatus| client.state != ClientState::Login;
        self.snapshot.clients.iter().filter(logged_in).map(client)
    }

    /// Clients, then servers, with PgBouncer's prefixes on their states.
    fn sockets(&self, shown: impl Fn(&Row) -> bool) -> Vec<Row> {
        let clients = self.snapshot.clients.iter().map(|of| ("cl_", client(of)));
        let servers = self.snapshot.servers.iter().map(|of| ("sv_", server(of)));
        let mut rows = Vec::new();
        for (prefix, mut row) in clients.chain(servers) {
            if let Value::Text(state) = &mut row[4] {
                state.insert_str(0, prefix);
            }
            row.extend(std::iter::repeat_n(Value::Null, BUFFER_COLUMNS));
            if shown(&row) {
                rows.push(row);
            }
        }
        rows
    }

    fn users(&self) -> Vec<Row> {
        let config = &self.snapshot.config;
        let row = |user: &crate::status::UserStatus| {
            let own = config.users.get(&*user.name).cloned().unwrap_or_default();
            let number = |size: Option<usize>| size.map_or(String::new(), |size| size.to_string());
            let limit = |own: Option<usize>, all: Option<usize>| own.or(all).unwrap_or(0);
            vec![
                (&*user.name).into(),
                number(own.max_size).into(),
                number(own.reserve_size).into(),
                own.pool_mode.map(PoolMode::as_str).into(),
                limit(own.max_user_connections, config.pool.max_user_connections).into(),
                user.connections.into(),
                limit(
                    own.max_user_client_connections,
                    config.pool.max_user_client_connections,
                )
                .into(),
                user.clients.into(),
            ]
        };
        self.snapshot.users.iter().map(row).collect()
    }

    fn each_database(&self, columns: impl Fn(&DatabaseStats) -> Vec<u64>) -> Vec<Row> {
        let row = |(name, stats): (&Arc<str>, &DatabaseStats)| {
            let numbers = columns(stats).into_iter().map(Value::Number);
            std::iter::once((&**name).into()).chain(numbers).collect()
        };
        self.stats.iter().map(row).collect()
    }

    fn totals(&self) -> Vec<Row> {
        let (mut total, mut counted) = (Totals::default(), Totals::default());
        let mut over = Duration::ZERO;
        for stats in self.stats.values() {
            total = total.plus(&stats.total);
            counted = counted.plus(&stats.counted);
            over = over.max(stats.over);
        }
        // Averages of averages would weigh an idle database like a busy one.
        let average = counted.average(over);
        let rows = |prefix: &'static str, columns: [u64; 11]| {
            TOTALS
                .into_iter()
                .zip(columns)
                .map(move |(name, value)| vec![format!("{prefix}{name}").into(), value.into()])
        };
        rows("total_", total.columns())
            .chain(rows("avg_", average.columns()))
            .collect()
    }

    fn lists(&self) -> Vec<Row> {
        let snapshot = self.snapshot;
        let opening: usize = snapshot.pools.iter().map(|pool| pool.sv_login).sum();
        let lists: [(&str, usize); 14] = [
            ("databases", snapshot.databases.len()),
            ("users", snapshot.users.len()),
            ("peers", 0),
            ("pools", snapshot.pools.len()),
            ("peer_pools", 0),
            ("free_clients", 0),
            ("used_clients", snapshot.clients.len()),
            ("login_clients", snapshot.logging_in),
            ("free_servers", 0),
            ("used_servers", snapshot.servers.len() + opening),
            ("dns_names", 0),
            ("dns_zones", 0),
            ("dns_queries", 0),
            ("dns_pending", 0),
        ];
        lists
            .into_iter()
            .map(|(name, items)| vec![name.into(), items.into()])
            .collect()
    }

    fn state(&self) -> Vec<Row> {
        let paused = self.snapshot.paused;
        [
            ("active", !paused),
            ("paused", paused),
            ("suspended", false),
        ]
        .into_iter()
        .map(|(key, holds)| vec![key.into(), if holds { "yes" } else { "no" }.into()])
        .collect()
    }
}

/// What `SHOW VERSION` says: tools read PgBouncer's version out of it to know which columns to expect.
pub fn version() -> String {
    format!(
        "PgBouncer {PGBOUNCER_VERSION} (pgweir {})",
        env!("CARGO_PKG_VERSION")
    )
}

fn micros(duration: Duration) -> [Value; 2] {
    [
        duration.as_secs().into(),
        u64::from(duration.subsec_micros()).into(),
    ]
}

fn pool(row: &PoolStatus) -> Row {
    let [maxwait, maxwait_us] = micros(row.maxwait);
    vec![
        (&*row.pool.key.database).into(),
        (&*row.pool.key.user).into(),
        row.cl_active.into(),
        row.cl_waiting.into(),
        row.cl_active_cancel_req.into(),
        Value::Number(0),
        row.sv_active.into(),
        row.cl_active_cancel_req.into(),
        row.sv_being_canceled.into(),
        row.sv_idle.into(),
        Value::Number(0),
        row.sv_tested.into(),
        row.sv_login.into(),
        maxwait,
        maxwait_us,
        row.pool_mode.as_str().into(),
        Value::Null,
    ]
}

/// Stands for PgBouncer's pointers, which only have to differ.
fn client_pointer(pid: u32) -> String {
    format!("{:#x}", 1 << 40 | u64::from(pid))
}

pub(super) fn server_pointer(id: u64) -> String {
    format!("{:#x}", 2 << 40 | id)
}

fn address(address: Option<SocketAddr>) -> [Value; 2] {
    match address {
        Some(address) => [
            address.ip().to_string().into(),
            u64::from(address.port()).into(),
        ],
        None => ["unix".into(), Value::Number(0)],
    }
}

fn client(client: &ClientStatus) -> Row {
    let entry = &client.entry;
    let [address, port] = address(entry.peer.tcp());
    let [local_address, local_port] = self::address(entry.local.as_deref().copied());
    let [wait, wait_us] = micros(client.waiting);
    vec![
        "C".into(),
        (&*entry.user).into(),
        (&*entry.database).into(),
        entry.replication.as_str().into(),
        client.state.as_str().into(),
        address,
        port,
        local_address,
        local_port,
        time_of(entry.connected()).into(),
        client.last_began.map(time_of).into(),
        wait,
        wait_us,
        Value::Number(0),
        client_pointer(entry.pid.0).into(),
        client
            .server
            .map_or_else(String::new, server_pointer)
            .into(),
        Value::Number(0),
        entry.tls.as_deref().unwrap_or_default().into(),
        (&*entry.application()).into(),
        entry.prepared.load(Ordering::Relaxed).into(),
        u64::from(entry.pid.0).into(),
    ]
}

fn server(server: &ServerStatus) -> Row {
    let backend = &server.backend;
    let [address, port] = address(backend.peer);
    let [local_address, local_port] = self::address(backend.local);
    vec![
        "S".into(),
        (&*server.user).into(),
        (&*server.database).into(),
        server.replication.as_str().into(),
        server.state.as_str().into(),
        address,
        port,
        local_address,
        local_port,
        time_of(backend.opened).into(),
        server.last_request.map(time_of).into(),
        Value::Number(0),
        Value::Number(0),
        server.close_needed.into(),
        server_pointer(backend.id).into(),
        server
            .client
            .map_or_else(String::new, client_pointer)
            .into(),
        u64::from(backend.identity.pid).into(),
        backend.tls.as_deref().unwrap_or_default().into(),
        backend.outside.application().map(String::from).into(),
        backend.outside.prepared().into(),
        backend.id.into(),
    ]
}

fn database(database: &DatabaseStatus) -> Row {
    let effective = &database.effective;
    let pool = &effective.pool;
    let lifetime = effective.timeouts.server_lifetime;
    vec![
        (&*database.name).into(),
        effective.primary.host.as_str().into(),
        u64::from(effective.primary.port).into(),
        effective.dbname.as_str().into(),
        database.forced_user.clone().into(),
        pool.max_size.into(),
        pool.min_idle.into(),
        pool.reserve_size.into(),
        lifetime.map_or(0, |lifetime| lifetime.as_secs()).into(),
        pool.pool_mode.as_str().into(),
        Value::Null,
        pool.max_db_connections.unwrap_or(0).into(),
        database.connections.into(),
        pool.max_db_client_connections.unwrap_or(0).into(),
        database.clients.into(),
        database.paused.into(),
        database.disabled.into(),
        pool.reserve_size.into(),
    ]
}

fn settings(snapshot: &Snapshot) -> Vec<Row> {
    let row = |setting: config::Setting| {
        let changeable = setting.effect != config::Effect::Restart;
        vec![
            setting.key.into(),
            setting.value.into(),
            setting.default.into(),
            if changeable { "yes" } else { "no" }.into(),
        ]
    };
    let own = config::show(&snapshot.config);
    let pgbouncers = config::import::console::shown(&own);
    own.into_iter().chain(pgbouncers).map(row).collect()
}

/// The process's resident memory, in pages; none where the system does not tell.
fn memory() -> Option<Row> {
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(vec![
        "resident".into(),
        PAGE.into(),
        pages.into(),
        Value::Number(0),
        (pages * PAGE).into(),
    ])
}

/// When `instant` was, as PgBouncer writes it.
pub(super) fn time_of(instant: Instant) -> String {
    let at = SystemTime::now().checked_sub(instant.elapsed());
    utc(at.unwrap_or(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::connect::Dialer;
    use crate::cluster::Clusters;
    use crate::config::{Overrides, load};
    use crate::meter::{Address, Queries, Recent};
    use crate::pool::Pools;
    use crate::registry::{NewClient, Registry, Replication};
    use crate::status::Counted;

    /// A pool with one client and no server, as snapshot and stats.
    fn with_view(check: impl FnOnce(&View<'_>)) {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        overrides.set("--set", "users.bob.max_size", "3");
        let config = Arc::new(load(None, &overrides, &|_| None).unwrap().config);
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config, "app", "bob").unwrap();
        pool.counters.queries.store(7, Ordering::Relaxed);
        let registry = Arc::new(Registry::default());
        let entry = registry.register(NewClient {
            key_len: 4,
            user: "bob".into(),
            database: "app".into(),
            peer: Address::Tcp(([127, 0, 0, 1], 5000).into()),
            tls: None,
            application_name: "test".into(),
            replication: Replication::None,
            local: None,
        });
        entry.set_state(ClientState::Idle);
        let history = crate::status::stats::History::default();
        let stats = history.stats(&pools);
        let (queries, recent) = (Queries::default(), Recent::default());
        let counted = Counted {
            queries: &queries,
            recent: &recent,
        };
        let clusters = Clusters::new(&pools);
        let snapshot = Snapshot::take(config, (&pools, &clusters), &registry, counted, 3);
        check(&View {
            snapshot: &snapshot,
            stats: &stats,
            role: Role::Admin,
        });
    }

    fn line(row: &Row) -> String {
        let value = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            other => other.shown(),
        };
        row.iter().map(value).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn every_row_has_its_tables_columns() {
        with_view(|view| {
            let names = [
                "active_sockets",
                "clients",
                "config",
                "databases",
                "lists",
                "mem",
                "pins",
                "pools",
                "servers",
                "sockets",
                "state",
                "stats",
                "stats_averages",
                "stats_totals",
                "totals",
                "users",
                "version",
                "timezone",
                "peers",
                "peer_pools",
                "dns_hosts",
                "dns_zones",
            ];
            for name in names {
                let show = Show::named(name).unwrap();
                for row in view.rows(show) {
                    assert_eq!(row.len(), show.columns().len(), "{name}: {row:?}");
                }
            }
        });
    }

    #[test]
    fn averages_of_all_databases_are_no_sums_of_averages() {
        let stats = |queries, query_time| {
            let counted = Totals {
                queries,
                query_time,
                ..Totals::default()
            };
            let over = Duration::from_secs(10);
            DatabaseStats {
                total: counted,
                average: counted.average(over),
                counted,
                over,
            }
        };
        with_view(|view| {
            let stats = [
                ("a".into(), stats(100, 100_000)),
                ("b".into(), stats(300, 900_000)),
            ];
            let view = View {
                stats: &BTreeMap::from(stats),
                ..*view
            };
            let lines: Vec<_> = view.rows(Show::Totals).iter().map(line).collect();
            for expected in [
                "total_query_count|400",
                "avg_query_count|40",
                "avg_query_time|2500",
            ] {
                assert!(
                    lines.contains(&expected.to_owned()),
                    "{expected}: {lines:?}"
                );
            }
        });
    }

    #[test]
    fn rows_say_what_is() {
        with_view(|view| {
            let lines = |show| view.rows(show).iter().map(line).collect::<Vec<_>>();
            assert_eq!(
                lines(Show::Pools),
                ["app|bob|1|0|0|0|0|0|0|0|0|0|0|0|0|transaction|-"]
            );
            assert_eq!(
                lines(Show::Databases),
                ["app|db1|5432|app|-|20|0|0|3600|transaction|-|0|0|0|1|0|0|0"]
            );
            assert_eq!(lines(Show::Users), ["bob|3||-|0|0|0|1"]);
            assert_eq!(
                lines(Show::State),
                ["active|yes", "paused|no", "suspended|no"]
            );
            assert!(lines(Show::Stats)[0].starts_with("app|0|0|7|0|0|"));
            assert!(lines(Show::Totals).contains(&"total_query_count|7".to_owned()));
            let lists = lines(Show::Lists);
            assert!(lists.contains(&"used_clients|1".to_owned()), "{lists:?}");
            assert!(lists.contains(&"login_clients|2".to_owned()), "{lists:?}");
            let clients = lines(Show::Clients);
            assert!(
                clients[0].starts_with("C|bob|app|none|idle|127.0.0.1|5000|unix|0|20"),
                "{clients:?}"
            );
            assert!(lines(Show::Sockets)[0].starts_with("C|bob|app|none|cl_idle|"));
        });
    }
}
