//! The `[pgbouncer]` section and the order of things; databases and users are [`servers`](super::servers)'.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ImportError;
use super::ini::{self, Line};
use super::output::Output;
use super::servers;
use super::settings::{SETTINGS, carry};
use super::values::{Kind, list, number, text, write};

/// PgBouncer's defaults that are not pgweir's, and so have to be written.
const DEFAULTS: [(&str, &str); 4] = [
    ("pool_mode", "session"),
    ("max_client_conn", "100"),
    ("server_login_retry", "15"),
    ("client_tls_sslmode", "disable"),
];

/// Where PgBouncer has its socket unless told otherwise.
const SOCKET_DIR: &str = "/tmp";

/// The settings of `[pgbouncer]`, the last of each name.
pub(super) struct Settings<'a> {
    values: BTreeMap<&'a str, &'a Line>,
    secrets: Vec<(String, String)>,
}

impl<'a> Settings<'a> {
    fn new(lines: &'a [Line]) -> Self {
        let own = lines.iter().filter(|line| line.section == "pgbouncer");
        let values = own.map(|line| (line.name.as_str(), line)).collect();
        let mut settings = Self {
            values,
            secrets: Vec::new(),
        };
        if let Some(text) = settings
            .auth_file()
            .and_then(|path| ini::read_text(&path).ok())
        {
            settings.secrets = ini::userlist(&text);
        }
        settings
    }

    /// The value, unless it is absent or empty.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let line = self.values.get(name)?;
        Some(line.value.as_str()).filter(|value| !value.is_empty())
    }

    fn auth_file(&self) -> Option<PathBuf> {
        let value = self.get("auth_file")?;
        let line = self.values.get("auth_file")?;
        Some(ini::resolve(&line.file, Path::new(value)))
    }

    /// The plain password of a user in the userlist; a hash logs nobody in.
    pub(super) fn password(&self, user: &str) -> Option<&str> {
        let (_, secret) = self.secrets.iter().find(|(name, _)| name == user)?;
        Some(secret.as_str()).filter(|secret| !secret.is_empty() && !is_hash(secret))
    }

    /// The folder PgBouncer looks for a server's socket in when a database has no host.
    pub(super) fn socket_dir(&self) -> &str {
        match self.get("unix_socket_dir") {
            Some(folder) if !folder.starts_with('@') => folder,
            _ => SOCKET_DIR,
        }
    }

    fn all_scram(&self) -> bool {
        !self.secrets.is_empty() && self.secrets.iter().all(|(_, secret)| is_scram(secret))
    }
}

fn is_scram(secret: &str) -> bool {
    secret.starts_with("SCRAM-SHA-256$")
}

fn is_hash(secret: &str) -> bool {
    let md5 = secret.strip_prefix("md5");
    is_scram(secret)
        || md5.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
}

pub(super) fn convert(path: &Path, lines: &[Line]) -> Result<Output, ImportError> {
    let mut out = Output::new();
    let settings = Settings::new(lines);
    listeners(&settings, &mut out);
    for (name, value) in DEFAULTS {
        let missing = settings.get(name).is_none();
        let needed = name != "client_tls_sslmode" || settings.get("client_tls_cert_file").is_some();
        if let (true, true, Some(row)) = (missing, needed, carry(SETTINGS, name)) {
            out.carry(row, None, name, value, path);
        }
    }
    for line in lines.iter().filter(|line| line.section == "pgbouncer") {
        match carry(SETTINGS, &line.name) {
            Some(row) => out.carry(row, None, &line.name, &line.value, &line.file),
            None => out.note(&line.name, "not known: left out"),
        }
    }
    auth(&settings, &mut out);
    special(&settings, path, &mut out);
    for line in lines {
        match line.section.as_str() {
            "pgbouncer" => {}
            "databases" => servers::database(line, &settings, &mut out)?,
            "users" => servers::user(line, &mut out)?,
            "peers" => out.note(
                "[peers]",
                "not supported: cancel requests are not passed between processes",
            ),
            other => out.note(&format!("[{other}]"), "not known: left out"),
        }
    }
    if !lines.iter().any(|line| line.section == "databases") {
        out.note(
            "[databases]",
            "is empty: complete the file with [cluster] and its primary",
        );
    }
    servers::bound_min_idle(&mut out);
    Ok(out)
}

fn listeners(settings: &Settings<'_>, out: &mut Output) {
    let port = settings.get("listen_port").unwrap_or("6432");
    let addresses: Vec<String> = settings
        .get("listen_addr")
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .map(|address| match address {
            "*" => format!("0.0.0.0:{port}"),
            _ if address.contains(':') => format!("[{address}]:{port}"),
            _ => format!("{address}:{port}"),
        })
        .collect();
    if settings
        .get("listen_addr")
        .is_some_and(|addresses| addresses.contains('*'))
    {
        out.note(
            "listen_addr",
            "* listens on IPv4 only; add \"[::]:PORT\" to general.listen for IPv6",
        );
    }
    if addresses.is_empty() {
        out.note(
            "listen_addr",
            "there is always a TCP address: without one, it is 127.0.0.1",
        );
        out.put("general", "listen", list(&[format!("127.0.0.1:{port}")]));
    } else {
        out.put("general", "listen", list(&addresses));
    }
    let folder = settings
        .values
        .get("unix_socket_dir")
        .map_or(SOCKET_DIR, |line| line.value.as_str());
    if folder.starts_with('@') {
        out.note("unix_socket_dir", "not supported: abstract sockets");
    } else if !folder.is_empty() {
        out.put("general", "unix_socket_dir", text(folder));
    }
}

fn auth(settings: &Settings<'_>, out: &mut Output) {
    let name = "auth_type";
    let given = settings.get(name).unwrap_or("md5").to_ascii_lowercase();
    let method = match given.as_str() {
        "trust" | "cert" | "hba" | "scram-sha-256" => given.as_str(),
        "md5" if settings.all_scram() => {
            out.note(
                name,
                "md5 with a userlist of SCRAM verifiers is scram-sha-256",
            );
            "scram-sha-256"
        }
        "md5" => "md5",
        "any" => {
            out.note(
                name,
                "any is trust: everyone is let in, and keeps the name they give",
            );
            "trust"
        }
        "plain" => {
            out.note(
                name,
                "plain is scram-sha-256: the same userlist, no password in clear text",
            );
            "scram-sha-256"
        }
        "ldap" | "pam" => {
            out.note(
                name,
                "not supported: a client's password is tried on the server instead (passthrough)",
            );
            "passthrough"
        }
        _ => {
            out.note(
                name,
                "not known: a client's password is tried on the server instead (passthrough)",
            );
            "passthrough"
        }
    };
    out.put("auth", "method", text(method));
    let checks = matches!(method, "md5" | "scram-sha-256");
    if checks && settings.get("auth_file").is_none() && settings.get("auth_user").is_none() {
        out.note(
            name,
            "needs auth_file or auth_user: complete the [auth] section",
        );
    }
    if let Some(user) = settings.get("auth_user") {
        out.put("auth", "auth_user", text(user));
        if let Some(password) = settings.password(user) {
            out.put("auth", "auth_password", text(password));
        }
    }
}

/// Settings whose zero means something of its own.
fn special(settings: &Settings<'_>, path: &Path, out: &mut Output) {
    if let Some(value) = settings.get("reserve_pool_timeout") {
        let written = write(Kind::Limit, value, path);
        match written.toml.as_deref() {
            Some("\"0\"") => {
                out.note(
                    "reserve_pool_timeout",
                    "0 switches the reserve off: reserve_size is 0 instead",
                );
                out.put("pool", "reserve_size", "0".to_owned());
            }
            Some(toml) => out.put("pool", "reserve_timeout", toml.to_owned()),
            None => {}
        }
        if let Some(note) = written.note {
            out.note("reserve_pool_timeout", &note);
        }
    }
    match settings.get("max_prepared_statements").map(number) {
        Some(Some(0)) => out.note(
            "max_prepared_statements",
            "prepared statements can't be switched off in transaction mode: the default holds",
        ),
        Some(Some(count)) => out.put(
            "pool",
            "max_prepared_statements",
            count.min(100_000).to_string(),
        ),
        Some(None) => out.note(
            "max_prepared_statements",
            "the value is not understood and left out",
        ),
        None => {}
    }
    match settings.get("verbose").map(number) {
        Some(Some(1)) => out.put("log", "level", text("debug")),
        Some(Some(2..)) => out.put("log", "level", text("trace")),
        _ => {}
    }
}
