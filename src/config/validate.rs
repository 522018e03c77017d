//! From settings of the right types to the [`Config`]: ranges, and what must hold between keys.
//!
//! A [`Config`] comes out in any case, so that every problem is found in one pass; the caller throws it away if there
//! was one. Files are only opened to see that they can be read, except password files, which are read here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decode::{Reader, Setting};
use super::model::{
    Auth, AuthMethod, ClientTls, Config, General, Log, PoolSettings, Secret, ServerTls, SslMode,
    Timeouts, User,
};
use super::raw::{self, Raw};
use super::validate_servers::{cluster, databases};

/// The console's names: no database can have them.
pub(super) const CONSOLE_NAMES: [&str; 2] = ["pgweir", "pgbouncer"];

/// PostgreSQL itself takes at most this much in one message.
const LARGEST_PACKET: u64 = 2_147_483_647;
/// A startup packet may be this long.
const SMALLEST_PACKET: u64 = 10_000;
const MOST_WORKERS: usize = 1024;
const LARGEST_POOL: usize = 100_000;

pub(super) fn validate(raw: &Raw, reader: &mut Reader<'_>) -> Config {
    let general = general(&raw.general, reader);
    let cluster = cluster(&raw.cluster, reader);
    let pool = pool(&raw.pool, "pool", reader);
    let timeouts = timeouts(&raw.timeouts, "timeouts", reader);
    let databases = databases(raw, &cluster, &pool, &timeouts, reader);
    let auth = auth(&raw.auth, reader);
    let client_tls = client_tls(&raw.client_tls, reader);
    let config = Config {
        server_tls: server_tls(&raw.server_tls, reader),
        users: raw
            .users
            .iter()
            .map(|(name, (path, raw))| (name.clone(), user(raw, path, reader)))
            .collect(),
        log: log(&raw.log, reader),
        general,
        cluster,
        auth,
        client_tls,
        pool,
        timeouts,
        databases,
    };
    auth_needs(&raw.auth, &config, reader);
    config
}

fn general(raw: &raw::General, reader: &mut Reader<'_>) -> General {
    within(&raw.workers, "general.workers", 1, MOST_WORKERS, reader);
    at_least_one(&raw.max_client_conn, "general.max_client_conn", reader);
    let packet = raw.max_packet_size.value.0;
    if !(SMALLEST_PACKET..=LARGEST_PACKET).contains(&packet) {
        reader.problem(
            raw.max_packet_size.at.as_ref(),
            "general.max_packet_size",
            format!("must be between {SMALLEST_PACKET}B and {LARGEST_PACKET}B"),
        );
    }
    if let Some(folder) = &raw.unix_socket_dir.value
        && !folder.is_dir()
    {
        let message = format!("{} is not a folder", folder.display());
        reader.problem(
            raw.unix_socket_dir.at.as_ref(),
            "general.unix_socket_dir",
            message,
        );
    }
    listeners(raw, reader);
    General {
        listen: raw
            .listen
            .value
            .iter()
            .map(|address| address.0.clone())
            .collect(),
        unix_socket_dir: raw.unix_socket_dir.value.clone(),
        unix_socket_mode: raw.unix_socket_mode.value.0,
        http: raw.http.value.0,
        workers: raw.workers.value,
        max_client_conn: raw.max_client_conn.value,
        max_packet_size: usize::try_from(packet).unwrap_or(usize::MAX),
        shutdown_timeout: raw.shutdown_timeout.value,
        admin_users: raw.admin_users.value.clone(),
        stats_users: raw.stats_users.value.clone(),
        tcp_keepalive: raw.tcp_keepalive.value,
        tcp_keepidle: raw.tcp_keepidle.value.0,
        tcp_keepintvl: raw.tcp_keepintvl.value.0,
        tcp_keepcnt: raw
            .tcp_keepcnt
            .value
            .0
            .and_then(|count| u32::try_from(count).ok()),
        tcp_user_timeout: raw.tcp_user_timeout.value.0,
    }
}

fn listeners(raw: &raw::General, reader: &mut Reader<'_>) {
    let at = raw.listen.at.as_ref();
    if raw.listen.value.is_empty() {
        reader.problem(at, "general.listen", "must name at least one address");
    }
    let mut seen = BTreeSet::new();
    for address in &raw.listen.value {
        let free_port = address.0.ends_with(":0");
        if !free_port && !seen.insert(address.0.to_ascii_lowercase()) {
            reader.problem(
                at,
                "general.listen",
                format!("{} is given twice", address.0),
            );
        }
    }
    if let Some(http) = raw.http.value.0
        && http.port() != 0
        && seen.contains(&http.to_string())
    {
        let at = raw.http.at.as_ref().or(at);
        reader.problem(
            at,
            "general.http",
            format!("{http} is an address of general.listen too"),
        );
    }
}

pub(super) fn pool(raw: &raw::Pool, path: &str, reader: &mut Reader<'_>) -> PoolSettings {
    let key = |name: &str| format!("{path}.{name}");
    within(&raw.max_size, &key("max_size"), 1, LARGEST_POOL, reader);
    within(
        &raw.reserve_size,
        &key("reserve_size"),
        0,
        LARGEST_POOL,
        reader,
    );
    within(
        &raw.max_prepared_statements,
        &key("max_prepared_statements"),
        1,
        LARGEST_POOL,
        reader,
    );
    let (max_size, min_idle) = (raw.max_size.value, raw.min_idle.value);
    if min_idle > max_size {
        // Named by the key that is given here: in a database the other one may be inherited.
        if raw.max_size.is_given() {
            let message = format!("must be at least min_idle ({min_idle}), got {max_size}");
            reader.problem(raw.max_size.at.as_ref(), &key("max_size"), message);
        } else if raw.min_idle.is_given() {
            let message = format!("must be at most max_size ({max_size}), got {min_idle}");
            reader.problem(raw.min_idle.at.as_ref(), &key("min_idle"), message);
        }
    }
    PoolSettings {
        pool_mode: raw.pool_mode.value,
        max_size,
        min_idle,
        reserve_size: raw.reserve_size.value,
        reserve_timeout: raw.reserve_timeout.value,
        max_db_connections: raw.max_db_connections.value.0,
        max_user_connections: raw.max_user_connections.value.0,
        max_server_connections: raw.max_server_connections.value.0,
        max_db_client_connections: raw.max_db_client_connections.value.0,
        max_user_client_connections: raw.max_user_client_connections.value.0,
        max_prepared_statements: raw.max_prepared_statements.value,
        on_session_state: raw.on_session_state.value,
        connect_query: raw
            .connect_query
            .value
            .clone()
            .filter(|query| !query.is_empty()),
    }
}

pub(super) fn timeouts(raw: &raw::Timeouts, path: &str, reader: &mut Reader<'_>) -> Timeouts {
    let key = |name: &str| format!("{path}.{name}");
    for (setting, name) in [
        (&raw.server_connect_timeout, "server_connect_timeout"),
        (&raw.client_login_timeout, "client_login_timeout"),
        (&raw.cancel_wait_timeout, "cancel_wait_timeout"),
    ] {
        if setting.is_given() && setting.value.is_zero() {
            reader.problem(setting.at.as_ref(), &key(name), "must be more than 0");
        }
    }
    Timeouts {
        query_wait_timeout: raw.query_wait_timeout.value.0,
        query_wait_notify: raw.query_wait_notify.value.0,
        server_connect_timeout: raw.server_connect_timeout.value,
        server_login_retry: raw.server_login_retry.value,
        client_login_timeout: raw.client_login_timeout.value,
        idle_transaction_timeout: raw.idle_transaction_timeout.value.0,
        transaction_timeout: raw.transaction_timeout.value.0,
        query_timeout: raw.query_timeout.value.0,
        client_idle_timeout: raw.client_idle_timeout.value.0,
        client_write_timeout: raw.client_write_timeout.value.0,
        server_idle_timeout: raw.server_idle_timeout.value.0,
        server_lifetime: raw.server_lifetime.value.0,
        cancel_wait_timeout: raw.cancel_wait_timeout.value,
    }
}

/// A user's limits only ever narrow or widen the database's: "none at all" has no place here.
fn user(raw: &raw::User, path: &str, reader: &mut Reader<'_>) -> User {
    const ZERO: &str = "must be more than 0; leave it out to keep the database's limit";
    for (setting, name) in [
        (&raw.max_size, "max_size"),
        (&raw.max_user_connections, "max_user_connections"),
        (
            &raw.max_user_client_connections,
            "max_user_client_connections",
        ),
    ] {
        if setting.value == Some(0) {
            reader.problem(setting.at.as_ref(), &format!("{path}.{name}"), ZERO);
        }
    }
    for (setting, name) in [
        (&raw.max_size, "max_size"),
        (&raw.reserve_size, "reserve_size"),
    ] {
        if setting.value.is_some_and(|size| size > LARGEST_POOL) {
            let message = format!("must be at most {LARGEST_POOL}");
            reader.problem(setting.at.as_ref(), &format!("{path}.{name}"), message);
        }
    }
    for (setting, name) in [
        (&raw.query_timeout, "query_timeout"),
        (&raw.query_wait_timeout, "query_wait_timeout"),
        (&raw.idle_transaction_timeout, "idle_transaction_timeout"),
        (&raw.transaction_timeout, "transaction_timeout"),
        (&raw.client_idle_timeout, "client_idle_timeout"),
    ] {
        if setting.value == Some(Duration::ZERO) {
            reader.problem(setting.at.as_ref(), &format!("{path}.{name}"), ZERO);
        }
    }
    User {
        pool_mode: raw.pool_mode.value,
        max_size: raw.max_size.value,
        reserve_size: raw.reserve_size.value,
        max_user_connections: raw.max_user_connections.value,
        max_user_client_connections: raw.max_user_client_connections.value,
        query_timeout: raw.query_timeout.value,
        query_wait_timeout: raw.query_wait_timeout.value,
        idle_transaction_timeout: raw.idle_transaction_timeout.value,
        transaction_timeout: raw.transaction_timeout.value,
        client_idle_timeout: raw.client_idle_timeout.value,
    }
}

fn auth(raw: &raw::Auth, reader: &mut Reader<'_>) -> Auth {
    for (setting, key) in [
        (&raw.userlist, "auth.userlist"),
        (&raw.hba_file, "auth.hba_file"),
        (&raw.ident_file, "auth.ident_file"),
    ] {
        readable(setting, key, reader);
    }
    let query = raw.auth_query.value.trim();
    if !query.is_empty() && !query.contains("$1") {
        let message = "must contain $1, which stands for the user's name";
        reader.problem(raw.auth_query.at.as_ref(), "auth.auth_query", message);
    }
    let auth_password = secret(
        &raw.auth_password,
        "auth.auth_password",
        &raw.auth_password_file,
        "auth.auth_password_file",
        reader,
    );
    if auth_password.is_some() && raw.auth_user.value.is_none() {
        let at = raw
            .auth_password
            .at
            .as_ref()
            .or(raw.auth_password_file.at.as_ref());
        reader.problem(at, "auth.auth_password", "needs auth.auth_user");
    }
    Auth {
        method: raw.method.value,
        userlist: raw.userlist.value.clone(),
        auth_query: Some(query.to_owned()).filter(|query| !query.is_empty()),
        auth_user: raw.auth_user.value.clone(),
        auth_password,
        auth_dbname: raw.auth_dbname.value.clone(),
        hba_file: raw.hba_file.value.clone(),
        ident_file: raw.ident_file.value.clone(),
        cache_ttl: raw.cache_ttl.value,
    }
}

/// What the chosen method can't do without.
fn auth_needs(raw: &raw::Auth, config: &Config, reader: &mut Reader<'_>) {
    let at = raw.method.at.as_ref();
    let mut need = |missing: bool, message: &str| {
        if missing {
            reader.problem(at, "auth.method", message);
        }
    };
    let auth = &config.auth;
    match auth.method {
        AuthMethod::ScramSha256 | AuthMethod::Md5 => {
            let has_user = auth.auth_user.is_some()
                || config
                    .databases
                    .values()
                    .any(|db| db.primary.user.is_some());
            need(
                auth.userlist.is_none() && !(auth.auth_query.is_some() && has_user),
                "needs verifiers: give auth.userlist, or auth.auth_user (or a user in the primary's URL) to run \
                 auth.auth_query",
            );
        }
        AuthMethod::Cert => {
            let tls = &config.client_tls;
            need(
                tls.sslmode == SslMode::Disable,
                "cert needs tls.client.cert_file",
            );
            need(tls.ca_file.is_none(), "cert needs tls.client.ca_file");
        }
        AuthMethod::Peer => need(
            config.general.unix_socket_dir.is_none(),
            "peer needs general.unix_socket_dir",
        ),
        AuthMethod::Hba => need(auth.hba_file.is_none(), "hba needs auth.hba_file"),
        AuthMethod::Passthrough | AuthMethod::Trust => {}
    }
    if auth.method != AuthMethod::Hba && raw.hba_file.is_given() {
        let message = "is not used: auth.method is not hba";
        reader.warning(raw.hba_file.at.as_ref(), "auth.hba_file", message);
    }
    let exposed = config
        .general
        .listen
        .iter()
        .find(|address| !is_loopback(address));
    if let (AuthMethod::Trust, Some(exposed)) = (auth.method, exposed) {
        let message = format!("trust lets everyone in who can reach {exposed}, under any name");
        reader.warning(at, "auth.method", message);
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn client_tls(raw: &raw::ClientTls, reader: &mut Reader<'_>) -> ClientTls {
    certificate(&raw.cert_file, &raw.key_file, "tls.client", reader);
    readable(&raw.ca_file, "tls.client.ca_file", reader);
    let has_certificate = raw.cert_file.value.is_some();
    let by_certificate = if has_certificate {
        SslMode::Prefer
    } else {
        SslMode::Disable
    };
    let sslmode = raw.sslmode.value.unwrap_or(by_certificate);
    let at = raw.sslmode.at.as_ref();
    if sslmode != SslMode::Disable && !has_certificate {
        reader.problem(
            at,
            "tls.client.sslmode",
            "needs tls.client.cert_file and tls.client.key_file",
        );
    }
    if sslmode >= SslMode::VerifyCa && raw.ca_file.value.is_none() {
        reader.problem(at, "tls.client.sslmode", "needs tls.client.ca_file");
    }
    ClientTls {
        sslmode,
        cert_file: raw.cert_file.value.clone(),
        key_file: raw.key_file.value.clone(),
        ca_file: raw.ca_file.value.clone(),
    }
}

fn server_tls(raw: &raw::ServerTls, reader: &mut Reader<'_>) -> ServerTls {
    certificate(&raw.cert_file, &raw.key_file, "tls.server", reader);
    readable(&raw.ca_file, "tls.server.ca_file", reader);
    let sslmode = raw.sslmode.value;
    let at = raw.sslmode.at.as_ref();
    if sslmode >= SslMode::VerifyCa && raw.ca_file.value.is_none() {
        reader.problem(at, "tls.server.sslmode", "needs tls.server.ca_file");
    }
    if raw.direct.value && sslmode < SslMode::Require {
        let at = raw.direct.at.as_ref();
        reader.problem(
            at,
            "tls.server.direct",
            "needs tls.server.sslmode to be require or stronger",
        );
    }
    if sslmode == SslMode::Disable && (raw.cert_file.is_given() || raw.ca_file.is_given()) {
        reader.warning(
            at,
            "tls.server.sslmode",
            "disable leaves the certificate files unused",
        );
    }
    ServerTls {
        sslmode,
        ca_file: raw.ca_file.value.clone(),
        cert_file: raw.cert_file.value.clone(),
        key_file: raw.key_file.value.clone(),
        direct: raw.direct.value,
    }
}

/// Certificate and key come together.
fn certificate(
    cert: &Setting<Option<PathBuf>>,
    key: &Setting<Option<PathBuf>>,
    path: &str,
    reader: &mut Reader<'_>,
) {
    let (cert_key, key_key) = (format!("{path}.cert_file"), format!("{path}.key_file"));
    readable(cert, &cert_key, reader);
    readable(key, &key_key, reader);
    match (&cert.value, &key.value) {
        (Some(_), None) => reader.problem(cert.at.as_ref(), &cert_key, format!("needs {key_key}")),
        (None, Some(_)) => reader.problem(key.at.as_ref(), &key_key, format!("needs {cert_key}")),
        _ => {}
    }
}

fn log(raw: &raw::Log, reader: &mut Reader<'_>) -> Log {
    let level = &raw.level.value;
    if !is_filter(level) {
        let message = "expected error, warn, info, debug, trace, or a directive such as \"pgweir::pool=debug,info\"";
        reader.problem(raw.level.at.as_ref(), "log.level", message);
    }
    Log {
        level: level.clone(),
        format: raw.format.value,
        log_connections: raw.log_connections.value,
        log_disconnections: raw.log_disconnections.value,
        log_pooler_errors: raw.log_pooler_errors.value,
    }
}

/// Whether it is a filter that lets something through on purpose: to `EnvFilter` a misspelt level is the name of a
/// module, and the log would be silent.
fn is_filter(level: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level_word = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let directive = |part: &str| match part.rsplit_once('=') {
        Some((_, level)) => level_word(level),
        None => level_word(part),
    };
    level.split(',').all(|part| directive(part.trim()))
        && tracing_subscriber::EnvFilter::builder()
            .parse(level)
            .is_ok()
}

fn at_least_one(setting: &Setting<usize>, key: &str, reader: &mut Reader<'_>) {
    if setting.value == 0 {
        reader.problem(setting.at.as_ref(), key, "must be at least 1, got 0");
    }
}

/// Only what is given here is checked; an inherited value was checked where it stands.
fn within(setting: &Setting<usize>, key: &str, least: usize, most: usize, reader: &mut Reader<'_>) {
    let value = setting.value;
    if setting.is_given() && !(least..=most).contains(&value) {
        let message = format!("must be between {least} and {most}, got {value}");
        reader.problem(setting.at.as_ref(), key, message);
    }
}

/// A password, given or in a file.
pub(super) fn secret(
    password: &Setting<Option<Secret>>,
    password_key: &str,
    file: &Setting<Option<PathBuf>>,
    file_key: &str,
    reader: &mut Reader<'_>,
) -> Option<Secret> {
    let Some(path) = &file.value else {
        return password.value.clone();
    };
    if password.value.is_some() {
        reader.problem(
            file.at.as_ref(),
            file_key,
            format!("can't be given together with {password_key}"),
        );
    }
    match read_secret(path) {
        Ok(secret) => Some(secret),
        Err(message) => {
            reader.problem(file.at.as_ref(), file_key, message);
            None
        }
    }
}

/// The file's first line. An editor's line end is no part of a password; a second line is a mistake.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    if line.contains(['\n', '\0']) {
        return Err(format!("{} holds more than one line", path.display()));
    }
    Ok(Secret::new(line.to_owned()))
}

fn readable(setting: &Setting<Option<PathBuf>>, key: &str, reader: &mut Reader<'_>) {
    let Some(path) = &setting.value else {
        return;
    };
    let opened = std::fs::File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_dir() => {
            let message = format!("{} is a folder", path.display());
            reader.problem(setting.at.as_ref(), key, message);
        }
        Ok(_) => {}
        Err(error) => reader.problem(setting.at.as_ref(), key, unreadable(path, &error)),
    }
}

/// Why a file can't be read, in the words of the standard library's error kinds, which are the same everywhere.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("can't read {}: {}", path.display(), error.kind())
}
