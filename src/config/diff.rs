//! What a reload changes: the dotted keys that differ, and when each takes effect.
//!
//! Every field of the [model](super::model) is compared by name; one that is added there does not compile here until
//! it is listed. Values are never shown, so that a changed password stays a secret.

use std::collections::BTreeSet;

use super::document::dotted;
use super::model::{
    Auth, ClientTls, Cluster, Config, Database, General, Http, Log, LogRule, Metrics, Overload,
    PoolSettings, Probe, QueryLog, Retry, Routing, ServerTls, SlowLog, StatementRule, Timeouts,
    Traces, User,
};
use super::raw::{Effect, sections};

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Dotted, such as `databases.app.max_size`; a database or user that came or went is named as a whole.
    pub key: String,
    pub effect: Effect,
}

/// The keys that differ, in the order of the reference. What `[pool]`, `[timeouts]` and `[retry]` change is also
/// listed for each database that inherits it.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Changes::default();
    changes.general(&old.general, &new.general);
    changes.http(&old.http, &new.http);
    changes.cluster(&old.cluster, &new.cluster);
    changes.auth(&old.auth, &new.auth);
    changes.client_tls(&old.client_tls, &new.client_tls);
    changes.server_tls(&old.server_tls, &new.server_tls);
    changes.routing("routing", &old.routing, &new.routing);
    changes.pool("pool", &old.pool, &new.pool);
    changes.timeouts("timeouts", &old.timeouts, &new.timeouts);
    changes.retry("retry", &old.retry, &new.retry);
    changes.databases(old, new);
    changes.users(old, new);
    changes.overload(old.overload, new.overload);
    changes.statement_rules(old, new);
    changes.metrics(&old.metrics, &new.metrics);
    changes.slow_log(&old.slow_log, &new.slow_log);
    changes.query_log(&old.query_log, &new.query_log);
    changes.log_rules(old, new);
    changes.traces(&old.traces, &new.traces);
    changes.log(&old.log, &new.log);
    changes.0
}

#[derive(Default)]
struct Changes(Vec<Change>);

/// Compares every field; the pattern without `..` keeps the list complete.
macro_rules! compare {
    ($changes:ident, $section:literal at $path:expr, $old:ident, $new:ident, $type:ident { $($field:ident),+ $(,)? }) => {
        let $type { $($field),+ } = $old;
        $(
            if *$field != $new.$field {
                $changes.push($section, $path, stringify!($field));
            }
        )+
    };
}

impl Changes {
    fn push(&mut self, section: &str, path: &str, name: &str) {
        self.0.push(Change {
            key: format!("{path}.{name}"),
            effect: effect(section, name),
        });
    }

    fn push_whole(&mut self, path: &str) {
        self.0.push(Change {
            key: path.to_owned(),
            effect: Effect::NewConnections,
        });
    }

    fn general(&mut self, old: &General, new: &General) {
        compare!(self, "general" at "general", old, new, General {
            listen, unix_socket_dir, unix_socket_mode, http, workers, max_client_conn, max_packet_size,
            shutdown_timeout, admin_users, stats_users, tcp_keepalive, tcp_keepidle, tcp_keepintvl, tcp_keepcnt,
            tcp_user_timeout,
        });
    }

    fn http(&mut self, old: &Http, new: &Http) {
        compare!(self, "http" at "http", old, new, Http {
            admin_token, stats_token, without_token, hosts, cert_file, key_file,
        });
    }

    fn cluster(&mut self, old: &Cluster, new: &Cluster) {
        let Cluster {
            primary,
            replicas,
            zone,
            probe,
        } = old;
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
        let of = &new.probe;
        for (differs, name) in [
            (*primary != new.primary, "primary"),
            (*replicas != new.replicas, "replicas"),
            (*zone != new.zone, "zone"),
            (*interval != of.interval, "probe_interval"),
            (*sample_interval != of.sample_interval, "sample_interval"),
            (*timeout != of.timeout, "probe_timeout"),
            (*down_after != of.down_after, "down_after"),
            (*replica_lag_max != of.replica_lag_max, "replica_lag_max"),
            (*user != of.user, "probe_user"),
            (*password != of.password, "probe_password"),
            (*dbname != of.dbname, "probe_dbname"),
        ] {
            if differs {
                self.push("cluster", "cluster", name);
            }
        }
    }

    fn auth(&mut self, old: &Auth, new: &Auth) {
        compare!(self, "auth" at "auth", old, new, Auth {
            method, userlist, auth_query, auth_user, auth_password, auth_dbname, hba_file, ident_file, cache_ttl,
        });
    }

    fn client_tls(&mut self, old: &ClientTls, new: &ClientTls) {
        compare!(self, "tls.client" at "tls.client", old, new, ClientTls {
            sslmode, cert_file, key_file, ca_file,
        });
    }

    fn server_tls(&mut self, old: &ServerTls, new: &ServerTls) {
        compare!(self, "tls.server" at "tls.server", old, new, ServerTls {
            sslmode, ca_file, cert_file, key_file, direct,
        });
    }

    fn routing(&mut self, path: &str, old: &Routing, new: &Routing) {
        compare!(self, "routing" at path, old, new, Routing { reads, consistency, replica_wait });
    }

    fn pool(&mut self, path: &str, old: &PoolSettings, new: &PoolSettings) {
        compare!(self, "pool" at path, old, new, PoolSettings {
            pool_mode, max_size, min_idle, reserve_size, reserve_timeout, max_db_connections, max_user_connections,
            max_server_connections, max_db_client_connections, max_user_client_connections, max_prepared_statements,
            lanes, on_session_state, hidden_state, shared_listener, max_pinned, connect_query, max_waiting, shed,
        });
    }

    fn timeouts(&mut self, path: &str, old: &Timeouts, new: &Timeouts) {
        compare!(self, "timeouts" at path, old, new, Timeouts {
            query_wait_timeout, query_wait_notify, server_connect_timeout, server_login_retry, client_login_timeout,
            idle_transaction_timeout, transaction_timeout, query_timeout, client_idle_timeout, pin_idle_timeout, client_write_timeout,
            server_idle_timeout, server_lifetime, cancel_wait_timeout,
        });
    }

    fn retry(&mut self, path: &str, old: &Retry, new: &Retry) {
        compare!(self, "retry" at path, old, new, Retry {
            statements, replay, settle_commit, attempts, deadline, backoff, backoff_max, budget, budget_min,
            journal_size, journal_statements,
        });
    }

    fn databases(&mut self, old: &Config, new: &Config) {
        let names: BTreeSet<&String> = old.databases.keys().chain(new.databases.keys()).collect();
        for name in names {
            let path = dotted("databases", name);
            match (old.databases.get(name), new.databases.get(name)) {
                (Some(old), Some(new)) => self.database(&path, old, new),
                _ => self.push_whole(&path),
            }
        }
    }

    fn database(&mut self, at: &str, old: &Database, new: &Database) {
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
        } = old;
        for (differs, name) in [
            (*primary != new.primary, "primary"),
            (*replicas != new.replicas, "replicas"),
            (*dbname != new.dbname, "dbname"),
            (*user != new.user, "user"),
            (*password != new.password, "password"),
        ] {
            if differs {
                self.push("databases.NAME", at, name);
            }
        }
        self.routing(at, routing, &new.routing);
        self.pool(at, pool, &new.pool);
        self.timeouts(at, timeouts, &new.timeouts);
        self.retry(&format!("{at}.retry"), retry, &new.retry);
        for name in [
            "client_encoding",
            "datestyle",
            "timezone",
            "application_name",
        ] {
            if startup.get(name) != new.startup.get(name) {
                self.push("databases.NAME", at, name);
            }
        }
    }

    fn users(&mut self, old: &Config, new: &Config) {
        let names: BTreeSet<&String> = old.users.keys().chain(new.users.keys()).collect();
        for name in names {
            let path = dotted("users", name);
            match (old.users.get(name), new.users.get(name)) {
                (Some(old), Some(new)) => self.user(&path, old, new),
                _ => self.push_whole(&path),
            }
        }
    }

    fn user(&mut self, at: &str, old: &User, new: &User) {
        compare!(self, "users.NAME" at at, old, new, User {
            reads, consistency, replica_wait, pool_mode, max_size, reserve_size, max_user_connections, max_user_client_connections, query_timeout,
            query_wait_timeout, idle_transaction_timeout, transaction_timeout, client_idle_timeout, max_pinned, pin_idle_timeout, retry_statements,
            retry_replay, retry_settle_commit, retry_attempts, retry_deadline, priority,
        });
    }

    fn metrics(&mut self, old: &Metrics, new: &Metrics) {
        compare!(self, "metrics" at "metrics", old, new, Metrics {
            max_queries, max_query_series, lock_wait_after,
        });
    }

    fn slow_log(&mut self, old: &SlowLog, new: &SlowLog) {
        compare!(self, "slow_log" at "slow_log", old, new, SlowLog {
            threshold, sample, file, format, explain, explain_interval,
        });
    }

    fn query_log(&mut self, old: &QueryLog, new: &QueryLog) {
        compare!(self, "query_log" at "query_log", old, new, QueryLog { file, format });
    }

    fn log_rules(&mut self, old: &Config, new: &Config) {
        let names: BTreeSet<&String> = old.log_rules.keys().chain(new.log_rules.keys()).collect();
        for name in names {
            let path = dotted("log_rules", name);
            match (old.log_rules.get(name), new.log_rules.get(name)) {
                (Some(old), Some(new)) => {
                    compare!(self, "log_rules.NAME" at &path, old, new, LogRule {
                        queryid, query, user, database, application_name, slow_threshold, sample, log,
                    });
                }
                _ => self.0.push(Change {
                    key: path,
                    effect: Effect::Live,
                }),
            }
        }
    }

    fn overload(&mut self, old: Overload, new: Overload) {
        let old = &old;
        compare!(self, "overload" at "overload", old, new, Overload {
            opening_max, breaker_after, fail_fast,
        });
    }

    fn statement_rules(&mut self, old: &Config, new: &Config) {
        let (old, new) = (&old.statement_rules, &new.statement_rules);
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let path = dotted("statement_rules", name);
            match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) => {
                    compare!(self, "statement_rules.NAME" at &path, old, new, StatementRule {
                        queryid, query, user, database, application_name, query_timeout, retry,
                    });
                }
                _ => self.0.push(Change {
                    key: path,
                    effect: Effect::Live,
                }),
            }
        }
    }

    fn traces(&mut self, old: &Traces, new: &Traces) {
        compare!(self, "traces" at "traces", old, new, Traces { endpoint, sample, service_name });
    }

    fn log(&mut self, old: &Log, new: &Log) {
        compare!(self, "log" at "log", old, new, Log {
            level, format, log_connections, log_disconnections, log_pooler_errors,
        });
    }
}

/// The effect declared beside the key; a key that nobody declared is safest taken for one that needs a restart.
fn effect(section: &str, name: &str) -> Effect {
    sections()
        .into_iter()
        .find(|candidate| candidate.path == section)
        .and_then(|section| section.keys.into_iter().find(|key| key.name == name))
        .map_or(Effect::Restart, |key| key.effect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{HttpScope, Secret};
    use crate::config::{Overrides, load};

    fn config(settings: &[(&str, &str)]) -> Config {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://db1");
        for (key, value) in settings {
            overrides.set("--set", key, value);
        }
        load(None, &overrides, &|_| None).unwrap().config
    }

    #[test]
    fn a_reload_says_what_changed_and_when_it_takes_effect() {
        let old = config(&[("databases.app.user", "a"), ("users.bob.max_size", "3")]);
        let new = config(&[
            ("general.listen", "127.0.0.1:7000"),
            ("pool.max_size", "30"),
            ("databases.app.user", "b"),
            ("databases.\"my.db\".timezone", "UTC"),
            ("users.bob.max_size", "4"),
            ("log.level", "debug"),
        ]);
        let changes: Vec<String> = diff(&old, &new)
            .into_iter()
            .map(|change| format!("{} ({})", change.key, change.effect.as_str()))
            .collect();
        assert_eq!(
            changes,
            [
                "general.listen (restart)",
                "pool.max_size (live)",
                "databases.\"*\".max_size (live)",
                "databases.app.user (new connections)",
                "databases.app.max_size (live)",
                "databases.\"my.db\" (new connections)",
                "users.bob.max_size (live)",
                "log.level (live)",
            ]
        );
        assert_eq!(diff(&new, &new), []);
    }

    #[test]
    fn every_compared_key_has_a_declared_effect() {
        let mut changes = Changes::default();
        let one = config(&[("databases.app.password", "x"), ("databases.app.user", "u")]);
        let two = different(&one);
        changes.0.extend(diff(&one, &two));
        for change in &changes.0 {
            let (path, name) = change.key.rsplit_once('.').unwrap_or_default();
            if change.effect == Effect::Restart {
                let declared = sections().into_iter().any(|section| {
                    section.path == path && section.keys.iter().any(|key| key.name == name)
                });
                assert!(declared, "{} has no declared effect", change.key);
            }
        }
        assert!(changes.0.len() > 40, "{:?}", changes.0);
    }

    /// The same with every field of the general sections changed, which the exhaustive patterns of `diff` then list.
    fn different(config: &Config) -> Config {
        let mut other = config.clone();
        let general = &mut other.general;
        general.listen.clear();
        general.unix_socket_dir = Some("/".into());
        general.unix_socket_mode = 0;
        general.http = None;
        general.workers += 1;
        general.max_client_conn += 1;
        general.max_packet_size += 1;
        general.shutdown_timeout *= 2;
        general.admin_users.push("a".into());
        general.stats_users.push("a".into());
        general.tcp_keepalive = false;
        general.tcp_keepidle = Some(general.shutdown_timeout);
        general.tcp_keepintvl = Some(general.shutdown_timeout);
        general.tcp_keepcnt = Some(1);
        general.tcp_user_timeout = Some(general.shutdown_timeout);
        other.http.admin_token = Some(Secret::new("a".into()));
        other.http.stats_token = Some(Secret::new("a".into()));
        other.http.without_token = HttpScope::Health;
        other.http.hosts.push("a".into());
        other.http.cert_file = Some("/".into());
        other.http.key_file = Some("/".into());
        other.cluster.primary = None;
        other.auth.userlist = Some("/".into());
        other.auth.cache_ttl *= 2;
        other.client_tls.cert_file = Some("/".into());
        other.server_tls.direct = true;
        let pool = &mut other.pool;
        pool.max_size += 1;
        pool.min_idle += 1;
        pool.reserve_size += 1;
        pool.reserve_timeout *= 2;
        pool.max_db_connections = Some(1);
        pool.max_user_connections = Some(1);
        pool.max_server_connections = Some(1);
        pool.max_db_client_connections = Some(1);
        pool.max_user_client_connections = Some(1);
        pool.max_prepared_statements += 1;
        pool.connect_query = Some("SELECT 1".into());
        let timeouts = &mut other.timeouts;
        timeouts.query_wait_timeout = None;
        timeouts.query_wait_notify = None;
        timeouts.server_connect_timeout *= 2;
        timeouts.server_login_retry *= 2;
        timeouts.client_login_timeout *= 2;
        timeouts.cancel_wait_timeout *= 2;
        timeouts.server_idle_timeout = None;
        timeouts.server_lifetime = None;
        let retry = &mut other.retry;
        retry.statements = false;
        retry.replay = true;
        retry.settle_commit = true;
        retry.attempts += 1;
        retry.deadline *= 2;
        retry.backoff *= 2;
        retry.backoff_max *= 2;
        retry.budget += 1;
        retry.budget_min += 1;
        retry.journal_size += 1;
        retry.journal_statements += 1;
        other.databases.clear();
        other.log.level.clear();
        other.log.log_connections = false;
        other
    }
}
