//! Every setting of PgBouncer's `[pgbouncer]` section, and what becomes of it.
//!
//! The names are those of PgBouncer 1.25 and of the development after it; a test holds the list complete.

use super::values::Kind;

/// What becomes of a setting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Carry {
    /// Written as this key of this table.
    Key(&'static str, &'static str, Kind),
    /// Needs more than its own value: handled by name in [`convert`](super::convert).
    Special,
    /// pgweir does without it, and why.
    NotNeeded(&'static str),
    /// pgweir can't do it.
    NotSupported(&'static str),
}

use Carry::{Key, NotNeeded, NotSupported, Special};

const RESOLVED: &str = "names are resolved each time a server connection is made";
const TLS_CHOICE: &str = "TLS 1.2 and 1.3 with the library's own strong choices are used";
const SYSTEM_LOG: &str = "the log goes to standard error; leave the rest to the service manager";
const SERVICE: &str = "leave it to the service manager";
const NETWORK: &str = "there is nothing to tune here";

/// The settings, in the order of PgBouncer's documentation.
pub(super) const SETTINGS: &[(&str, Carry)] = &[
    ("logfile", NotSupported(SYSTEM_LOG)),
    ("pidfile", NotNeeded(SERVICE)),
    ("listen_addr", Special),
    ("listen_port", Special),
    ("unix_socket_dir", Special),
    (
        "unix_socket_mode",
        Key("general", "unix_socket_mode", Kind::Mode),
    ),
    (
        "unix_socket_group",
        NotSupported("the socket has pgweir's own group"),
    ),
    ("user", NotSupported("start pgweir as that user")),
    (
        "conffile",
        NotNeeded("the file is named on the command line"),
    ),
    ("service_name", NotNeeded(SERVICE)),
    ("job_name", NotNeeded(SERVICE)),
    (
        "peer_id",
        NotSupported("cancel requests are not passed between processes; use more workers in one"),
    ),
    ("listen_backlog", NotNeeded(NETWORK)),
    (
        "so_reuseport",
        NotNeeded("one process uses several cores: see general.workers"),
    ),
    ("pool_mode", Key("pool", "pool_mode", Kind::PoolMode)),
    (
        "max_client_conn",
        Key("general", "max_client_conn", Kind::Count),
    ),
    ("default_pool_size", Key("pool", "max_size", Kind::PoolSize)),
    ("min_pool_size", Key("pool", "min_idle", Kind::Count)),
    (
        "reserve_pool_size",
        Key("pool", "reserve_size", Kind::Count),
    ),
    ("reserve_pool_timeout", Special),
    (
        "max_db_connections",
        Key("pool", "max_db_connections", Kind::Count),
    ),
    (
        "max_db_client_connections",
        Key("pool", "max_db_client_connections", Kind::Count),
    ),
    (
        "max_user_connections",
        Key("pool", "max_user_connections", Kind::Count),
    ),
    (
        "max_user_client_connections",
        Key("pool", "max_user_client_connections", Kind::Count),
    ),
    (
        "server_round_robin",
        NotSupported("the connection used last is used first, so that spare ones can close"),
    ),
    ("max_prepared_statements", Special),
    (
        "track_extra_parameters",
        NotNeeded("every parameter a client sets follows it"),
    ),
    (
        "ignore_startup_parameters",
        NotNeeded("startup parameters are carried to the server"),
    ),
    (
        "disable_pqexec",
        NotSupported("simple queries can't be refused"),
    ),
    (
        "application_name_add_host",
        NotSupported("SHOW CLIENTS has the addresses"),
    ),
    ("auth_type", Special),
    ("auth_file", Key("auth", "userlist", Kind::Path)),
    ("auth_hba_file", Key("auth", "hba_file", Kind::Path)),
    ("auth_ident_file", Key("auth", "ident_file", Kind::Path)),
    ("auth_user", Special),
    ("auth_query", Key("auth", "auth_query", Kind::Text)),
    ("auth_dbname", Key("auth", "auth_dbname", Kind::Text)),
    ("auth_ldap_options", NotSupported("LDAP is not spoken")),
    (
        "scram_iterations",
        NotNeeded("verifiers keep the iterations they were made with"),
    ),
    ("admin_users", Key("general", "admin_users", Kind::Names)),
    ("stats_users", Key("general", "stats_users", Kind::Names)),
    ("syslog", NotSupported(SYSTEM_LOG)),
    ("syslog_ident", NotSupported(SYSTEM_LOG)),
    ("syslog_facility", NotSupported(SYSTEM_LOG)),
    ("log_connections", Key("log", "log_connections", Kind::Flag)),
    (
        "log_disconnections",
        Key("log", "log_disconnections", Kind::Flag),
    ),
    (
        "log_pooler_errors",
        Key("log", "log_pooler_errors", Kind::Flag),
    ),
    (
        "log_stats",
        NotSupported("read /metrics or SHOW STATS instead"),
    ),
    (
        "stats_period",
        NotSupported("read /metrics or SHOW STATS instead"),
    ),
    ("verbose", Special),
    (
        "login_notify_message",
        NotSupported("no NOTICE is sent after a login"),
    ),
    (
        "server_reset_query",
        NotNeeded("session state is cleaned when a connection changes hands"),
    ),
    (
        "server_reset_query_always",
        NotNeeded("session state is cleaned when a connection changes hands"),
    ),
    (
        "server_check_delay",
        NotNeeded(
            "a closed connection is noticed without a query; for one that a firewall drops set general.tcp_keepidle",
        ),
    ),
    (
        "server_check_query",
        NotNeeded(
            "a closed connection is noticed without a query; for one that a firewall drops set general.tcp_keepidle",
        ),
    ),
    (
        "server_fast_close",
        NotSupported("in session mode a connection stays with its client"),
    ),
    (
        "server_lifetime",
        Key("timeouts", "server_lifetime", Kind::Lifetime),
    ),
    (
        "server_idle_timeout",
        Key("timeouts", "server_idle_timeout", Kind::Limit),
    ),
    (
        "server_connect_timeout",
        Key("timeouts", "server_connect_timeout", Kind::Duration),
    ),
    (
        "server_login_retry",
        Key("timeouts", "server_login_retry", Kind::Limit),
    ),
    (
        "client_login_timeout",
        Key("timeouts", "client_login_timeout", Kind::Duration),
    ),
    (
        "autodb_idle_timeout",
        NotNeeded("a pool without clients and servers takes no room worth naming"),
    ),
    (
        "pool_idle_timeout",
        NotNeeded("a pool without clients and servers takes no room worth naming"),
    ),
    (
        "query_timeout",
        Key("timeouts", "query_timeout", Kind::Limit),
    ),
    (
        "query_wait_timeout",
        Key("timeouts", "query_wait_timeout", Kind::Limit),
    ),
    (
        "query_wait_notify",
        Key("timeouts", "query_wait_notify", Kind::Limit),
    ),
    (
        "cancel_wait_timeout",
        Key("timeouts", "cancel_wait_timeout", Kind::Duration),
    ),
    (
        "client_idle_timeout",
        Key("timeouts", "client_idle_timeout", Kind::Limit),
    ),
    (
        "idle_transaction_timeout",
        Key("timeouts", "idle_transaction_timeout", Kind::Limit),
    ),
    (
        "transaction_timeout",
        Key("timeouts", "transaction_timeout", Kind::Limit),
    ),
    ("suspend_timeout", NotSupported("there is no SUSPEND")),
    ("dns_max_ttl", NotNeeded(RESOLVED)),
    ("dns_nxdomain_ttl", NotNeeded(RESOLVED)),
    ("dns_zone_check_period", NotNeeded(RESOLVED)),
    ("resolv_conf", NotSupported("the system's resolver is used")),
    (
        "client_tls_sslmode",
        Key("tls.client", "sslmode", Kind::SslMode),
    ),
    (
        "client_tls_key_file",
        Key("tls.client", "key_file", Kind::Path),
    ),
    (
        "client_tls_cert_file",
        Key("tls.client", "cert_file", Kind::Path),
    ),
    (
        "client_tls_ca_file",
        Key("tls.client", "ca_file", Kind::Path),
    ),
    ("client_tls_protocols", NotSupported(TLS_CHOICE)),
    ("client_tls_ciphers", NotSupported(TLS_CHOICE)),
    ("client_tls13_ciphers", NotSupported(TLS_CHOICE)),
    ("client_tls_ecdhcurve", NotSupported(TLS_CHOICE)),
    ("client_tls_dheparams", NotSupported(TLS_CHOICE)),
    (
        "server_tls_sslmode",
        Key("tls.server", "sslmode", Kind::SslMode),
    ),
    (
        "server_tls_ca_file",
        Key("tls.server", "ca_file", Kind::Path),
    ),
    (
        "server_tls_key_file",
        Key("tls.server", "key_file", Kind::Path),
    ),
    (
        "server_tls_cert_file",
        Key("tls.server", "cert_file", Kind::Path),
    ),
    ("server_tls_protocols", NotSupported(TLS_CHOICE)),
    ("server_tls_ciphers", NotSupported(TLS_CHOICE)),
    ("server_tls13_ciphers", NotSupported(TLS_CHOICE)),
    ("pkt_buf", NotNeeded(NETWORK)),
    (
        "max_packet_size",
        Key("general", "max_packet_size", Kind::Bytes),
    ),
    ("sbuf_loopcnt", NotNeeded(NETWORK)),
    ("tcp_defer_accept", NotNeeded(NETWORK)),
    ("tcp_socket_buffer", NotNeeded(NETWORK)),
    ("tcp_keepalive", Key("general", "tcp_keepalive", Kind::Flag)),
    ("tcp_keepcnt", Key("general", "tcp_keepcnt", Kind::Count)),
    ("tcp_keepidle", Key("general", "tcp_keepidle", Kind::Limit)),
    (
        "tcp_keepintvl",
        Key("general", "tcp_keepintvl", Kind::Limit),
    ),
    (
        "tcp_user_timeout",
        Key("general", "tcp_user_timeout", Kind::Milliseconds),
    ),
];

/// What becomes of the settings of a database; the special ones are handled in [`servers`](super::servers).
pub(super) const DATABASE: &[(&str, Carry)] = &[
    ("user", Key("", "user", Kind::Text)),
    ("password", Key("", "password", Kind::Text)),
    ("dbname", Key("", "dbname", Kind::Text)),
    ("host", Special),
    ("port", Special),
    ("auth_user", Special),
    ("auth_query", Special),
    ("auth_dbname", Special),
    ("pool_size", Key("", "max_size", Kind::PoolSize)),
    ("min_pool_size", Key("", "min_idle", Kind::Count)),
    ("reserve_pool", Key("", "reserve_size", Kind::Count)),
    ("reserve_pool_size", Key("", "reserve_size", Kind::Count)),
    ("connect_query", Key("", "connect_query", Kind::Text)),
    ("pool_mode", Key("", "pool_mode", Kind::PoolMode)),
    (
        "query_wait_timeout",
        Key("", "query_wait_timeout", Kind::Limit),
    ),
    (
        "load_balance_hosts",
        NotSupported("pgweir finds out which of the hosts is the primary"),
    ),
    (
        "max_db_connections",
        Key("", "max_db_connections", Kind::Count),
    ),
    (
        "max_db_client_connections",
        Key("", "max_db_client_connections", Kind::Count),
    ),
    (
        "server_lifetime",
        Key("", "server_lifetime", Kind::Lifetime),
    ),
    ("client_encoding", Key("", "client_encoding", Kind::Text)),
    ("datestyle", Key("", "datestyle", Kind::Text)),
    ("timezone", Key("", "timezone", Kind::Text)),
    ("application_name", Key("", "application_name", Kind::Text)),
];

/// What becomes of the settings of a user; there a zero means the database's limit, so it is left out.
pub(super) const USER: &[(&str, Carry)] = &[
    ("pool_mode", Key("", "pool_mode", Kind::PoolMode)),
    ("pool_size", Key("", "max_size", Kind::Count)),
    ("reserve_pool_size", Key("", "reserve_size", Kind::Count)),
    (
        "max_user_connections",
        Key("", "max_user_connections", Kind::Count),
    ),
    (
        "max_user_client_connections",
        Key("", "max_user_client_connections", Kind::Count),
    ),
    ("query_timeout", Key("", "query_timeout", Kind::Limit)),
    (
        "query_wait_timeout",
        Key("", "query_wait_timeout", Kind::Limit),
    ),
    (
        "idle_transaction_timeout",
        Key("", "idle_transaction_timeout", Kind::Limit),
    ),
    (
        "transaction_timeout",
        Key("", "transaction_timeout", Kind::Limit),
    ),
    (
        "client_idle_timeout",
        Key("", "client_idle_timeout", Kind::Limit),
    ),
];

/// What becomes of `name`; `None` if PgBouncer has no such setting.
pub(super) fn carry(table: &[(&str, Carry)], name: &str) -> Option<Carry> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, carry)| *carry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The names in PgBouncer's own table of settings (`src/main.c`).
    const PGBOUNCER: &str = "
        logfile pidfile listen_addr listen_port unix_socket_dir unix_socket_mode unix_socket_group user
        conffile service_name job_name peer_id listen_backlog so_reuseport pool_mode max_client_conn
        default_pool_size min_pool_size reserve_pool_size reserve_pool_timeout max_db_connections
        max_db_client_connections max_user_connections max_user_client_connections server_round_robin
        max_prepared_statements track_extra_parameters ignore_startup_parameters disable_pqexec
        application_name_add_host auth_type auth_file auth_hba_file auth_ident_file auth_user auth_query
        auth_dbname auth_ldap_options scram_iterations admin_users stats_users syslog syslog_ident
        syslog_facility log_connections log_disconnections log_pooler_errors log_stats stats_period verbose
        login_notify_message server_reset_query server_reset_query_always server_check_delay
        server_check_query server_fast_close server_lifetime server_idle_timeout server_connect_timeout
        server_login_retry client_login_timeout autodb_idle_timeout pool_idle_timeout query_timeout
        query_wait_timeout query_wait_notify cancel_wait_timeout client_idle_timeout
        idle_transaction_timeout transaction_timeout suspend_timeout dns_max_ttl dns_nxdomain_ttl
        dns_zone_check_period resolv_conf client_tls_sslmode client_tls_key_file client_tls_cert_file
        client_tls_ca_file client_tls_protocols client_tls_ciphers client_tls13_ciphers client_tls_ecdhcurve
        client_tls_dheparams server_tls_sslmode server_tls_ca_file server_tls_key_file server_tls_cert_file
        server_tls_protocols server_tls_ciphers server_tls13_ciphers pkt_buf max_packet_size sbuf_loopcnt
        tcp_defer_accept tcp_socket_buffer tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl
        tcp_user_timeout
";

    #[test]
    fn every_setting_of_pgbouncer_has_an_answer() {
        let expected: BTreeSet<&str> = PGBOUNCER.split_whitespace().collect();
        let known: BTreeSet<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
        assert_eq!(expected.len(), 101);
        assert_eq!(known, expected);
        assert_eq!(known.len(), SETTINGS.len(), "a name stands twice");
    }
}
