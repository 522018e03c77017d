//! The configuration in force, key by key, as `SHOW CONFIG` shows it. Secrets are not shown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::decode::Value;
use super::document::dotted;
use super::model::{
    Auth, AuthMethod, ClientTls, Cluster, Config, Consistency, Database, General, Http, HttpScope,
    HttpUrl, Log, LogFormat, LogRule, Metrics, Node, OnSessionState, Overload, Percent, PoolMode,
    PoolSettings, Probe, QueryLog, Reads, Retry, Routing, Secret, ServerTls, SlowLog, SslMode,
    StatementRule, Timeouts, Traces, User,
};
use super::raw::{Effect, SectionDocs, sections};
use super::units::show_duration;

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Dotted.
    pub key: String,
    /// Empty where it is not set.
    pub value: String,
    pub default: String,
    pub effect: Effect,
}

/// Every key in the order of the reference; a database or user is listed with what it was given or inherits.
pub fn show(config: &Config) -> Vec<Setting> {
    let mut shown = Shown {
        sections: sections(),
        settings: Vec::new(),
    };
    shown.general(&config.general);
    shown.http(&config.http);
    shown.cluster(&config.cluster);
    shown.auth(&config.auth);
    shown.tls(&config.client_tls, &config.server_tls);
    shown.routing("routing", &config.routing);
    shown.pool("pool", &config.pool);
    shown.timeouts("timeouts", &config.timeouts);
    shown.retry("retry", &config.retry);
    for (name, database) in &config.databases {
        shown.database(&dotted("databases", name), database);
    }
    for (name, user) in &config.users {
        shown.user(&dotted("users", name), user);
    }
    shown.overload(&config.overload);
    for (name, rule) in &config.statement_rules {
        shown.statement_rule(&dotted("statement_rules", name), rule);
    }
    shown.metrics(&config.metrics);
    shown.slow_log(&config.slow_log);
    shown.query_log(&config.query_log);
    for (name, rule) in &config.log_rules {
        shown.log_rule(&dotted("log_rules", name), rule);
    }
    shown.traces(&config.traces);
    shown.log(&config.log);
    shown.settings
}

trait Print {
    fn print(&self) -> String;
}

macro_rules! show_as {
    ($($type:ty: $value:ident => $text:expr;)+) => {
        $(impl Print for $type {
            fn print(&self) -> String {
                let $value = self;
                $text
            }
        })+
    };
}

/// A word as the file takes it, without its quotes.
fn word(shown: Option<String>) -> String {
    shown.unwrap_or_default().trim_matches('"').to_owned()
}

show_as! {
    String: value => value.clone();
    bool: value => value.to_string();
    usize: value => value.to_string();
    u32: value => value.to_string();
    u16: value => value.to_string();
    Duration: value => show_duration(*value);
    PathBuf: value => value.display().to_string();
    SocketAddr: value => value.to_string();
    Secret: value => format!("{value:?}");
    AuthMethod: value => word(Value::show(value));
    SslMode: value => word(Value::show(value));
    PoolMode: value => value.as_str().to_owned();
    OnSessionState: value => word(Value::show(value));
    Percent: value => word(Value::show(value));
    HttpScope: value => word(Value::show(value));
    LogFormat: value => word(Value::show(value));
    Reads: value => word(Value::show(value));
    Consistency: value => word(Value::show(value));
    HttpUrl: value => value.to_string();
    Node: node => show_node(node);
}

fn show_node(node: &Node) -> String {
    let user = node
        .user
        .as_ref()
        .map(|user| format!("{user}@"))
        .unwrap_or_default();
    let dbname = node
        .dbname
        .as_ref()
        .map(|name| format!("/{name}"))
        .unwrap_or_default();
    let options = [
        node.weight.map(|weight| format!("weight={weight}")),
        node.zone.as_ref().map(|zone| format!("zone={zone}")),
        node.max_connections
            .map(|count| format!("max_connections={count}")),
    ];
    let options: Vec<String> = options.into_iter().flatten().collect();
    let query = if options.is_empty() { "" } else { "?" };
    let options = options.join("&");
    format!(
        "postgres://{user}{}:{}{dbname}{query}{options}",
        node.host, node.port
    )
}

impl<T: Print> Print for Option<T> {
    fn print(&self) -> String {
        self.as_ref().map(T::print).unwrap_or_default()
    }
}

impl<T: Print> Print for Vec<T> {
    fn print(&self) -> String {
        self.iter().map(T::print).collect::<Vec<_>>().join(", ")
    }
}

struct Shown {
    sections: Vec<SectionDocs>,
    settings: Vec<Setting>,
}

/// Shows every field; the pattern without `..` keeps the list complete.
macro_rules! list {
    ($shown:ident, $section:literal at $path:expr, $of:ident, $type:ident { $($field:ident),+ $(,)? }) => {
        let $type { $($field),+ } = $of;
        $($shown.push($section, $path, stringify!($field), Print::print($field));)+
    };
}

impl Shown {
    fn push(&mut self, section: &str, path: &str, name: &str, value: String) {
        let declared = self
            .sections
            .iter()
            .find(|candidate| candidate.path == section)
            .and_then(|section| section.keys.iter().find(|key| key.name == name));
        let effect = declared.map_or(Effect::Restart, |key| key.effect);
        let default = word(declared.and_then(|key| key.default.clone()));
        self.settings.push(Setting {
            key: format!("{path}.{name}"),
            value,
            default,
            effect,
        });
    }

    fn general(&mut self, of: &General) {
        list!(self, "general" at "general", of, General {
            listen, unix_socket_dir, unix_socket_mode, http, workers, max_client_conn, max_packet_size,
            shutdown_timeout, admin_users, stats_users, tcp_keepalive, tcp_keepidle, tcp_keepintvl, tcp_keepcnt,
            tcp_user_timeout,
        });
        for setting in &mut self.settings {
            if setting.key == "general.unix_socket_mode" {
                setting.value = format!("{:04o}", of.unix_socket_mode);
            }
        }
    }

    fn http(&mut self, of: &Http) {
        list!(self, "http" at "http", of, Http {
            admin_token, stats_token, without_token, hosts, cert_file, key_file,
        });
    }

    fn cluster(&mut self, of: &Cluster) {
        let Cluster {
            primary,
            replicas,
            zone,
            probe,
        } = of;
        let Probe {
            interval,
            sample_interval,
            timeout,
            down_after,
            replica_lag_max,
            user,
            password,
            dbname,
        } = probe;
        for (name, value) in [
            ("primary", primary.print()),
            ("replicas", replicas.print()),
            ("zone", zone.print()),
            ("probe_interval", interval.print()),
            ("sample_interval", sample_interval.print()),
            ("probe_timeout", timeout.print()),
            ("down_after", down_after.print()),
            ("replica_lag_max", replica_lag_max.print()),
            ("probe_user", user.print()),
            ("probe_password", password.print()),
            ("probe_dbname", dbname.print()),
        ] {
            self.push("cluster", "cluster", name, value);
        }
    }

    fn auth(&mut self, of: &Auth) {
        list!(self, "auth" at "auth", of, Auth {
            method, userlist, auth_query, auth_user, auth_password, auth_dbname, hba_file, ident_file, cache_ttl,
        });
    }

    fn tls(&mut self, client: &ClientTls, server: &ServerTls) {
        list!(self, "tls.client" at "tls.client", client, ClientTls {
            sslmode, cert_file, key_file, ca_file,
        });
        list!(self, "tls.server" at "tls.server", server, ServerTls {
            sslmode, ca_file, cert_file, key_file, direct,
        });
    }

    fn routing(&mut self, path: &str, of: &Routing) {
        list!(self, "routing" at path, of, Routing { reads, consistency, replica_wait });
    }

    fn pool(&mut self, path: &str, of: &PoolSettings) {
        list!(self, "pool" at path, of, PoolSettings {
            pool_mode, max_size, min_idle, reserve_size, reserve_timeout, max_db_connections, max_user_connections,
            max_server_connections, max_db_client_connections, max_user_client_connections, max_prepared_statements,
            lanes, on_session_state, hidden_state, shared_listener, max_pinned, connect_query, max_waiting, shed,
        });
    }

    fn timeouts(&mut self, path: &str, of: &Timeouts) {
        list!(self, "timeouts" at path, of, Timeouts {
            query_wait_timeout, query_wait_notify, server_connect_timeout, server_login_retry, client_login_timeout,
            idle_transaction_timeout, transaction_timeout, query_timeout, client_idle_timeout, pin_idle_timeout, client_write_timeout,
            server_idle_timeout, server_lifetime, cancel_wait_timeout,
        });
    }

    fn retry(&mut self, path: &str, of: &Retry) {
        list!(self, "retry" at path, of, Retry {
            statements, replay, settle_commit, attempts, deadline, backoff, backoff_max, budget, budget_min,
            journal_size, journal_statements,
        });
    }

    fn database(&mut self, path: &str, of: &Database) {
        let Database {
            primary,
            replicas,
            dbname,
            user,
            password,
            routing,
            pool,
            timeouts,
            retry,
            startup,
        } = of;
        let section = "databases.NAME";
        self.push(section, path, "primary", primary.print());
        self.push(section, path, "replicas", replicas.print());
        self.push(section, path, "dbname", dbname.print());
        self.push(section, path, "user", user.print());
        self.push(section, path, "password", password.print());
        self.routing(path, routing);
        self.pool(path, pool);
        self.timeouts(path, timeouts);
        self.retry(&format!("{path}.retry"), retry);
        for (name, value) in startup {
            self.push(section, path, name, value.clone());
        }
    }

    fn user(&mut self, path: &str, of: &User) {
        list!(self, "users.NAME" at path, of, User {
            reads, consistency, replica_wait, pool_mode, max_size, reserve_size, max_user_connections, max_user_client_connections, query_timeout,
            query_wait_timeout, idle_transaction_timeout, transaction_timeout, client_idle_timeout, max_pinned, pin_idle_timeout, retry_statements,
            retry_replay, retry_settle_commit, retry_attempts, retry_deadline, priority,
        });
    }

    fn metrics(&mut self, of: &Metrics) {
        list!(self, "metrics" at "metrics", of, Metrics {
            max_queries, max_query_series, lock_wait_after,
        });
    }

    fn slow_log(&mut self, of: &SlowLog) {
        list!(self, "slow_log" at "slow_log", of, SlowLog {
            threshold, sample, file, format, explain, explain_interval,
        });
    }

    fn query_log(&mut self, of: &QueryLog) {
        list!(self, "query_log" at "query_log", of, QueryLog { file, format });
    }

    fn log_rule(&mut self, path: &str, of: &LogRule) {
        list!(self, "log_rules.NAME" at path, of, LogRule {
            queryid, query, user, database, application_name, slow_threshold, sample, log,
        });
    }

    fn overload(&mut self, of: &Overload) {
        list!(self, "overload" at "overload", of, Overload {
            opening_max, breaker_after, fail_fast,
        });
    }

    fn statement_rule(&mut self, path: &str, of: &StatementRule) {
        list!(self, "statement_rules.NAME" at path, of, StatementRule {
            queryid, query, user, database, application_name, query_timeout, retry,
        });
    }

    fn traces(&mut self, of: &Traces) {
        list!(self, "traces" at "traces", of, Traces { endpoint, sample, service_name });
    }

    fn log(&mut self, of: &Log) {
        list!(self, "log" at "log", of, Log {
            level, format, log_connections, log_disconnections, log_pooler_errors,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};

    fn shown(settings: &[(&str, &str)]) -> Vec<Setting> {
        let mut overrides = Overrides::new();
        overrides.set(
            "--primary",
            "cluster.primary",
            "postgres://me:secret1@db1/x",
        );
        for (key, value) in settings {
            overrides.set("--set", key, value);
        }
        show(&load(None, &overrides, &|_| None).unwrap().config)
    }

    fn find<'a>(settings: &'a [Setting], key: &str) -> &'a Setting {
        settings
            .iter()
            .find(|setting| setting.key == key)
            .unwrap_or_else(|| panic!("{key} is not shown"))
    }

    #[test]
    fn values_defaults_and_effects_are_shown() {
        let settings = shown(&[("pool.max_size", "7"), ("timeouts.query_timeout", "90s")]);
        let size = find(&settings, "pool.max_size");
        assert_eq!(
            (&*size.value, &*size.default, size.effect),
            ("7", "20", Effect::Live)
        );
        assert_eq!(find(&settings, "timeouts.query_timeout").value, "90s");
        assert_eq!(find(&settings, "pool.pool_mode").value, "transaction");
        assert_eq!(find(&settings, "general.workers").effect, Effect::Restart);
        assert_eq!(find(&settings, "general.unix_socket_mode").value, "0777");
        assert_eq!(find(&settings, "databases.\"*\".max_size").value, "7");
    }

    #[test]
    fn no_secret_is_shown() {
        let settings = shown(&[
            ("databases.app.user", "u"),
            ("databases.app.password", "secret2"),
            ("auth.auth_user", "u"),
            ("auth.auth_password", "secret3"),
            ("http.admin_token", "secret-secret-secret"),
        ]);
        for setting in &settings {
            assert!(!setting.value.contains("secret"), "{setting:?}");
        }
        assert_eq!(
            find(&settings, "cluster.primary").value,
            "postgres://me@db1:5432/x"
        );
        assert_eq!(find(&settings, "databases.app.password").value, "********");
    }
}
