//! What `SHOW` can show: names and columns. Which columns a table has does not depend on what is in it, so that
//! Describe can be answered before anything is run.

use super::nodes::{NODES, ROUTES};
use super::pins::PINS;
use super::queries;
use super::retries::RETRIES;
use super::table::{Column, int4, int8, numeric, text};

/// One `SHOW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    ActiveSockets,
    Clients,
    Config,
    Databases,
    DnsHosts,
    DnsZones,
    /// The latest failed statements.
    Errors,
    Fds,
    Help,
    Lists,
    Locks,
    Mem,
    Nodes,
    Peers,
    PeerPools,
    Pins,
    Pools,
    Queries,
    Retries,
    Routes,
    Servers,
    /// The latest slow statements.
    Slow,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Totals,
    Users,
    Version,
    Waits,
    /// `SELECT 1`.
    One,
    /// A server parameter that drivers ask for; its place in [`PARAMETERS`].
    Parameter(usize),
}

const NAMES: [(&str, Show); 31] = [
    ("active_sockets", Show::ActiveSockets),
    ("clients", Show::Clients),
    ("config", Show::Config),
    ("databases", Show::Databases),
    ("dns_hosts", Show::DnsHosts),
    ("dns_zones", Show::DnsZones),
    ("errors", Show::Errors),
    ("fds", Show::Fds),
    ("help", Show::Help),
    ("lists", Show::Lists),
    ("locks", Show::Locks),
    ("mem", Show::Mem),
    ("nodes", Show::Nodes),
    ("peer_pools", Show::PeerPools),
    ("peers", Show::Peers),
    ("pins", Show::Pins),
    ("pools", Show::Pools),
    ("queries", Show::Queries),
    ("retries", Show::Retries),
    ("routes", Show::Routes),
    ("servers", Show::Servers),
    ("slow", Show::Slow),
    ("sockets", Show::Sockets),
    ("state", Show::State),
    ("stats", Show::Stats),
    ("stats_averages", Show::StatsAverages),
    ("stats_totals", Show::StatsTotals),
    ("totals", Show::Totals),
    ("users", Show::Users),
    ("version", Show::Version),
    ("waits", Show::Waits),
];

/// Parameters the console claims to have, as PgBouncer's does: some drivers ask for them, or set them, unconditionally.
pub const PARAMETERS: [(Column, &str); 8] = [
    (text("client_encoding"), "UTF8"),
    (text("default_transaction_isolation"), "read committed"),
    (text("transaction_isolation"), "read committed"),
    (text("standard_conforming_strings"), "on"),
    (text("datestyle"), "ISO"),
    (text("timezone"), "GMT"),
    (text("extra_float_digits"), "2"),
    (text("application_name"), ""),
];

const SOCKETS: [Column; 28] = [
    text("type"),
    text("user"),
    text("database"),
    text("replication"),
    text("state"),
    text("addr"),
    int4("port"),
    text("local_addr"),
    int4("local_port"),
    text("connect_time"),
    text("request_time"),
    int4("wait"),
    int4("wait_us"),
    int4("close_needed"),
    text("ptr"),
    text("link"),
    int4("remote_pid"),
    text("tls"),
    text("application_name"),
    int4("prepared_statements"),
    int4("id"),
    int4("recv_pos"),
    int4("pkt_pos"),
    int4("pkt_remain"),
    int4("send_pos"),
    int4("send_remain"),
    int4("pkt_avail"),
    int4("send_avail"),
];

/// Columns of `SHOW CLIENTS` and `SHOW SERVERS`; `SHOW SOCKETS` has more.
const CONNECTION_COLUMNS: usize = 21;

const DATABASES: [Column; 18] = [
    text("name"),
    text("host"),
    int4("port"),
    text("database"),
    text("force_user"),
    int4("pool_size"),
    int4("min_pool_size"),
    int4("reserve_pool_size"),
    int4("server_lifetime"),
    text("pool_mode"),
    text("load_balance_hosts"),
    int4("max_connections"),
    int4("current_connections"),
    int4("max_client_connections"),
    int4("current_client_connections"),
    int4("paused"),
    int4("disabled"),
    // PgBouncer's name before 1.24, which Debian's prometheus-pgbouncer-exporter reads.
    int4("reserve_pool"),
];

const PEERS: [Column; 4] = [
    int4("peer_id"),
    text("host"),
    int4("port"),
    int4("pool_size"),
];

const POOLS: [Column; 17] = [
    text("database"),
    text("user"),
    int4("cl_active"),
    int4("cl_waiting"),
    int4("cl_active_cancel_req"),
    int4("cl_waiting_cancel_req"),
    int4("sv_active"),
    int4("sv_active_cancel"),
    int4("sv_being_canceled"),
    int4("sv_idle"),
    int4("sv_used"),
    int4("sv_tested"),
    int4("sv_login"),
    int4("maxwait"),
    int4("maxwait_us"),
    text("pool_mode"),
    text("load_balance_hosts"),
];

const STATS: [Column; 24] = [
    text("database"),
    numeric("total_server_assignment_count"),
    numeric("total_xact_count"),
    numeric("total_query_count"),
    numeric("total_received"),
    numeric("total_sent"),
    numeric("total_xact_time"),
    numeric("total_query_time"),
    numeric("total_wait_time"),
    numeric("total_client_parse_count"),
    numeric("total_server_parse_count"),
    numeric("total_bind_count"),
    numeric("avg_server_assignment_count"),
    numeric("avg_xact_count"),
    numeric("avg_query_count"),
    numeric("avg_recv"),
    numeric("avg_sent"),
    numeric("avg_xact_time"),
    numeric("avg_query_time"),
    numeric("avg_wait_time"),
    numeric("avg_client_parse_count"),
    numeric("avg_server_parse_count"),
    numeric("avg_bind_count"),
    // PgBouncer's name before 1.8, which Debian's prometheus-pgbouncer-exporter reads.
    numeric("total_requests"),
];

const STATS_TOTALS: [Column; 12] = [
    text("database"),
    numeric("server_assignment_count"),
    numeric("xact_count"),
    numeric("query_count"),
    numeric("bytes_received"),
    numeric("bytes_sent"),
    numeric("xact_time"),
    numeric("query_time"),
    numeric("wait_time"),
    numeric("client_parse_count"),
    numeric("server_parse_count"),
    numeric("bind_count"),
];

const STATS_AVERAGES: [Column; 12] = [
    text("database"),
    numeric("server_assignment_count"),
    numeric("xact_count"),
    numeric("query_count"),
    numeric("bytes_received"),
    numeric("bytes_sent"),
    numeric("xact_time"),
    numeric("query_time"),
    numeric("wait_time"),
    numeric("avg_client_parse_count"),
    numeric("avg_server_parse_count"),
    numeric("avg_bind_count"),
];

/// Names of the rows of `SHOW TOTALS`, after `total_` and `avg_`.
pub(super) const TOTALS: [&str; 11] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
];

const USERS: [Column; 8] = [
    text("name"),
    text("pool_size"),
    text("reserve_pool_size"),
    text("pool_mode"),
    int4("max_user_connections"),
    int4("current_connections"),
    int4("max_user_client_connections"),
    int4("current_client_connections"),
];

const PARAMETER_COLUMNS: [[Column; 1]; PARAMETERS.len()] = {
    let mut columns = [[text("")]; PARAMETERS.len()];
    let mut place = 0;
    while place < PARAMETERS.len() {
        columns[place] = [PARAMETERS[place].0];
        place += 1;
    }
    columns
};

impl Show {
    /// What a word after `SHOW` means.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let parameter = || {
            PARAMETERS
                .iter()
                .position(|(column, _)| column.name == name)
        };
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, show)| *show)
            .or_else(|| parameter().map(Self::Parameter))
    }

    /// The table's columns; none where the answer is a notice or an error.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::ActiveSockets | Self::Sockets => &SOCKETS,
            Self::Clients | Self::Servers => &SOCKETS[..CONNECTION_COLUMNS],
            Self::Config => {
                const {
                    &[
                        text("key"),
                        text("value"),
                        text("default"),
                        text("changeable"),
                    ]
                }
            }
            Self::Databases => &DATABASES,
            Self::DnsHosts => const { &[text("hostname"), int8("ttl"), text("addrs")] },
            Self::DnsZones => const { &[text("zonename"), int8("serial"), int4("count")] },
            Self::Fds | Self::Help => &[],
            Self::Lists => const { &[text("list"), int4("items")] },
            Self::Mem => {
                const {
                    &[
                        text("name"),
                        int4("size"),
                        int4("used"),
                        int4("free"),
                        int4("memtotal"),
                    ]
                }
            }
            Self::Nodes => &NODES,
            Self::Routes => &ROUTES,
            Self::Peers => &PEERS,
            Self::PeerPools => {
                const {
                    &[
                        int4("peer_id"),
                        int4("cl_active_cancel_req"),
                        int4("cl_waiting_cancel_req"),
                        int4("sv_active_cancel"),
                        int4("sv_login"),
                    ]
                }
            }
            Self::Pools => &POOLS,
            Self::Queries => &queries::QUERIES,
            Self::Slow | Self::Errors => &queries::INCIDENTS,
            Self::Waits => &queries::WAITS,
            Self::Locks => &queries::LOCKS,
            Self::Pins => &PINS,
            Self::Retries => &RETRIES,
            Self::State => const { &[text("key"), text("value")] },
            Self::Stats => &STATS,
            Self::StatsAverages => &STATS_AVERAGES,
            Self::StatsTotals => &STATS_TOTALS,
            Self::Totals => const { &[text("name"), numeric("value")] },
            Self::Users => &USERS,
            Self::Version => const { &[text("version")] },
            Self::One => const { &[int4("?column?")] },
            Self::Parameter(place) => match PARAMETER_COLUMNS.get(place) {
                Some(columns) => columns,
                None => &[],
            },
        }
    }
}

/// DETAIL of the notice that `SHOW HELP` answers with.
pub const HELP: &str = "\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE\n\
    \tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW PEERS|PEER_POOLS|DNS_HOSTS|DNS_ZONES\n\
    \tSHOW QUERIES|SLOW|ERRORS|WAITS|LOCKS|PINS\n\
    \tSHOW ... [LIKE '<pattern>'] [WHERE <column> <operator> <value> [AND ...]]\n\
    \t         [ORDER BY <column> [DESC], ...] [LIMIT <count>]\n\
    \tSHOW NODES|ROUTES|RETRIES\n\
    \tSET key = value\n\
    \tRELOAD\n\
    \tPAUSE [<db>]\n\
    \tRESUME [<db>]\n\
    \tDISABLE <db>\n\
    \tENABLE <db>\n\
    \tRECONNECT [<db>]\n\
    \tKILL [<db>]\n\
    \tKILL_CLIENT <client_id>\n\
    \tDRAIN <node>\n\
    \tUNDRAIN <node>\n\
    \tSHUTDOWN\n\
    \tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS\n\
    \tWAIT_CLOSE [<db>]";

#[cfg(test)]
mod tests {
    use super::super::table::Kind;
    use super::*;

    fn header(show: Show) -> String {
        let column = |column: &Column| {
            let kind = match column.kind {
                Kind::Text => 's',
                Kind::Int4 => 'i',
                Kind::Int8 => 'q',
                Kind::Float8 => 'd',
                Kind::Numeric => 'N',
            };
            format!("{}:{kind}", column.name)
        };
        let columns: Vec<String> = show.columns().iter().map(column).collect();
        columns.join(" ")
    }

    #[test]
    fn every_name_is_found_and_helped_with() {
        for (name, show) in NAMES {
            assert_eq!(Show::named(&name.to_uppercase()), Some(show));
            let is_shown = HELP.contains(&name.to_uppercase());
            assert_eq!(is_shown, show != Show::Fds, "{name}");
        }
        let datestyle = Show::named("DateStyle").unwrap();
        assert_eq!(header(datestyle), "datestyle:s");
        assert_eq!(Show::named("nothing"), None);
    }
}
