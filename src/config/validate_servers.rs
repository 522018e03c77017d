//! The servers of the cluster and of each database: which there are, and what pgweir logs in to them with.

use std::collections::BTreeMap;

use super::decode::{Reader, Setting};
use super::files::secret;
use super::model::{Cluster, Database, Node, PoolSettings, Probe, Retry, Routing, Timeouts};
use super::raw;
use super::read::{DatabaseTable, Raw};
use super::server_url::check_host;
use super::validate::{CONSOLE_NAMES, pool, retry, routing, timeouts};

/// The database that stands for every one that is not named.
const FALLBACK: &str = "*";

pub(super) fn cluster(raw: &raw::Cluster, reader: &mut Reader<'_>) -> Cluster {
    let mut cluster = Cluster {
        primary: raw.primary.value.clone(),
        replicas: raw.replicas.value.clone(),
        zone: raw.zone.value.clone(),
        probe: probe(raw, reader),
    };
    let file = &raw.password_file;
    let password = secret(
        &Setting::default_value(None),
        "",
        file,
        "cluster.password_file",
        reader,
    );
    match &mut cluster.primary {
        Some(primary) if file.is_given() => {
            let problem = match (&primary.user, &primary.password) {
                (None, _) => Some("needs a user in cluster.primary: postgres://USER@HOST"),
                (_, Some(_)) => Some("can't be given together with a password in cluster.primary"),
                _ => None,
            };
            if let Some(message) = problem {
                reader.problem(file.at.as_ref(), "cluster.password_file", message);
            }
            primary.password = password;
        }
        None if file.is_given() => {
            reader.problem(
                file.at.as_ref(),
                "cluster.password_file",
                "needs cluster.primary",
            );
        }
        _ => {}
    }
    match &cluster.primary {
        Some(primary) => complete_replicas(primary, &mut cluster.replicas),
        None if raw.replicas.is_given() => {
            reader.problem(
                raw.replicas.at.as_ref(),
                "cluster.replicas",
                "needs cluster.primary",
            );
        }
        None => {}
    }
    no_server_twice(
        cluster.primary.as_ref(),
        &cluster.replicas,
        &raw.replicas,
        "cluster.replicas",
        reader,
    );
    cluster
}

fn probe(raw: &raw::Cluster, reader: &mut Reader<'_>) -> Probe {
    for (setting, name) in [
        (&raw.probe_interval, "probe_interval"),
        (&raw.sample_interval, "sample_interval"),
        (&raw.probe_timeout, "probe_timeout"),
    ] {
        if setting.value.is_zero() {
            let key = format!("cluster.{name}");
            reader.problem(setting.at.as_ref(), &key, "must be more than 0");
        }
    }
    if raw.down_after.value == 0 {
        let message = "must be at least 1, got 0";
        reader.problem(raw.down_after.at.as_ref(), "cluster.down_after", message);
    }
    let password = secret(
        &raw.probe_password,
        "cluster.probe_password",
        &raw.probe_password_file,
        "cluster.probe_password_file",
        reader,
    );
    if password.is_some() && raw.probe_user.value.is_none() {
        let (at, key) = if raw.probe_password.is_given() {
            (&raw.probe_password.at, "cluster.probe_password")
        } else {
            (&raw.probe_password_file.at, "cluster.probe_password_file")
        };
        reader.problem(at.as_ref(), key, "needs cluster.probe_user");
    }
    Probe {
        interval: raw.probe_interval.value,
        sample_interval: raw.sample_interval.value,
        timeout: raw.probe_timeout.value,
        down_after: raw.down_after.value,
        replica_lag_max: raw.replica_lag_max.value.0,
        user: raw.probe_user.value.clone(),
        password,
        dbname: raw.probe_dbname.value.clone(),
    }
}

/// A replica has its primary's roles: what it does not say itself is the same there.
fn complete_replicas(primary: &Node, replicas: &mut [Node]) {
    for replica in replicas {
        if replica.user.is_none() {
            replica.user.clone_from(&primary.user);
        }
        if replica.password.is_none() && replica.user == primary.user {
            replica.password.clone_from(&primary.password);
        }
        if replica.dbname.is_none() {
            replica.dbname.clone_from(&primary.dbname);
        }
    }
}

fn no_server_twice(
    primary: Option<&Node>,
    replicas: &[Node],
    setting: &Setting<Vec<Node>>,
    key: &str,
    reader: &mut Reader<'_>,
) {
    let mut seen: Vec<(&str, u16)> = primary
        .iter()
        .map(|node| (node.host.as_str(), node.port))
        .collect();
    for node in replicas {
        let address = (node.host.as_str(), node.port);
        if seen.contains(&address) {
            let message = format!("server {}:{} is given twice", node.host, node.port);
            reader.problem(setting.at.as_ref(), key, message);
        }
        seen.push(address);
    }
}

pub(super) fn databases(
    raw: &Raw,
    cluster: &Cluster,
    (routing, pool, timeouts, retry): (Routing, &PoolSettings, &Timeouts, &Retry),
    reader: &mut Reader<'_>,
) -> BTreeMap<String, Database> {
    let mut databases = BTreeMap::new();
    for (name, table) in &raw.databases {
        if let Some(database) = database(name, table, cluster, reader) {
            databases.insert(name.clone(), database);
        }
    }
    if let Some(primary) = &cluster.primary {
        let fallback = || Database {
            primary: primary.clone(),
            replicas: cluster.replicas.clone(),
            dbname: None,
            user: None,
            password: None,
            routing,
            pool: pool.clone(),
            timeouts: timeouts.clone(),
            retry: retry.clone(),
            startup: BTreeMap::new(),
        };
        databases
            .entry(FALLBACK.to_owned())
            .or_insert_with(fallback);
    }
    if raw.databases.is_empty() && cluster.primary.is_none() && !servers_are_wrong(reader) {
        let message = "no server to connect to: give --primary URL, or primary in [cluster]";
        reader.problem(None, "", message);
    }
    databases
}

/// Whether servers are named, but wrongly: that is reported already.
fn servers_are_wrong(reader: &Reader<'_>) -> bool {
    let about_servers = |key: &str| {
        key == "cluster"
            || key == "cluster.primary"
            || key == "databases"
            || key.starts_with("databases.")
    };
    reader
        .problems
        .iter()
        .any(|problem| about_servers(&problem.key))
}

fn database(
    name: &str,
    table: &DatabaseTable,
    cluster: &Cluster,
    reader: &mut Reader<'_>,
) -> Option<Database> {
    let raw = &table.own;
    let path = &table.path;
    if CONSOLE_NAMES.contains(&name) {
        reader.problem(
            table.at.as_ref(),
            path,
            "is the console's name; call the database something else",
        );
    }
    general_only(table, reader);
    let (password_key, file_key) = (format!("{path}.password"), format!("{path}.password_file"));
    let password = secret(
        &raw.password,
        &password_key,
        &raw.password_file,
        &file_key,
        reader,
    );
    if password.is_some() && raw.user.value.is_none() {
        let (at, key) = if raw.password.is_given() {
            (&raw.password.at, &password_key)
        } else {
            (&raw.password_file.at, &file_key)
        };
        reader.problem(at.as_ref(), key, format!("needs {path}.user"));
    }
    let pool = pool(&table.pool, path, reader);
    let timeouts = timeouts(&table.timeouts, path, reader);
    let retry = retry(&table.retry, &format!("{path}.retry"), reader);
    let (mut primary, mut replicas, own) = servers(table, cluster, reader)?;
    if own && primary.user.is_none() {
        primary.user.clone_from(&raw.user.value);
        primary.password.clone_from(&password);
    }
    complete_replicas(&primary, &mut replicas);
    no_server_twice(
        Some(&primary),
        &replicas,
        &raw.replicas,
        &format!("{path}.replicas"),
        reader,
    );
    let url_dbname = primary.dbname.clone().filter(|_| own && name != FALLBACK);
    let startup = [
        ("client_encoding", &raw.client_encoding),
        ("datestyle", &raw.datestyle),
        ("timezone", &raw.timezone),
        ("application_name", &raw.application_name),
    ];
    Some(Database {
        primary,
        replicas,
        dbname: raw.dbname.value.clone().or(url_dbname),
        user: raw.user.value.clone(),
        password,
        routing: routing(&table.routing),
        pool,
        timeouts,
        retry,
        startup: startup
            .into_iter()
            .filter_map(|(name, setting)| Some((name.to_owned(), setting.value.clone()?)))
            .collect(),
    })
}

/// Keys that hold for the whole process and would mean nothing in one database.
fn general_only(table: &DatabaseTable, reader: &mut Reader<'_>) {
    let path = &table.path;
    if table.pool.max_server_connections.is_given() {
        let at = table.pool.max_server_connections.at.as_ref();
        let key = format!("{path}.max_server_connections");
        reader.problem(at, &key, "counts over all databases: set it in [pool]");
    }
    if table.timeouts.client_login_timeout.is_given() {
        let at = table.timeouts.client_login_timeout.at.as_ref();
        let key = format!("{path}.client_login_timeout");
        reader.problem(
            at,
            &key,
            "starts before the database is known: set it in [timeouts]",
        );
    }
}

/// The primary, the replicas, and whether they are the database's own rather than the cluster's.
fn servers(
    table: &DatabaseTable,
    cluster: &Cluster,
    reader: &mut Reader<'_>,
) -> Option<(Node, Vec<Node>, bool)> {
    let raw = &table.own;
    let key = |name: &str| format!("{}.{name}", table.path);
    if raw.primary.is_given() && raw.host.is_given() {
        reader.problem(
            raw.host.at.as_ref(),
            &key("host"),
            "can't be given together with primary",
        );
    }
    if raw.port.is_given() && !raw.host.is_given() {
        reader.problem(raw.port.at.as_ref(), &key("port"), "needs host");
    }
    if let Some(primary) = &raw.primary.value {
        return Some((primary.clone(), raw.replicas.value.clone(), true));
    }
    if let Some(host) = &raw.host.value {
        let host = match check_host(host) {
            Ok(host) => host,
            Err(message) => {
                reader.problem(raw.host.at.as_ref(), &key("host"), message);
                return None;
            }
        };
        let primary = Node::at(host, raw.port.value.unwrap_or(5432));
        return Some((primary, raw.replicas.value.clone(), true));
    }
    if raw.replicas.is_given() {
        let message = "needs primary or host beside it";
        reader.problem(raw.replicas.at.as_ref(), &key("replicas"), message);
    }
    if cluster.primary.is_none() {
        let message = "has no server: give primary or host here, or primary in [cluster]";
        reader.problem(table.at.as_ref(), &table.path, message);
    }
    Some((cluster.primary.clone()?, cluster.replicas.clone(), false))
}
