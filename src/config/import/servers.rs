//! The lines of `[databases]` and `[users]`.

use std::collections::BTreeSet;
use std::path::Path;

use super::ImportError;
use super::convert::Settings;
use super::ini::{Line, connection_string};
use super::output::Output;
use super::settings::{Carry, DATABASE, USER, carry};
use super::values::{list, text};
use crate::config::document::dotted;

const DEFAULT_PORT: &str = "5432";

pub(super) fn database(
    line: &Line,
    settings: &Settings<'_>,
    out: &mut Output,
) -> Result<(), ImportError> {
    let path = dotted("databases", &line.name);
    let pairs = pairs(
        line,
        "expected a connection string, such as host=db1 port=5432 dbname=app",
    )?;
    out.table(&path);
    servers(&path, &pairs, settings, out);
    carry_all(DATABASE, &path, &pairs, &line.file, out);
    auth(&path, &pairs, settings, out);
    let value = |name: &str| {
        pairs
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    };
    match (value("user"), value("password")) {
        (Some(user), None) => match settings.password(user) {
            Some(password) => {
                out.put(&path, "password", text(password));
                out.note(
                    &format!("{path}.password"),
                    "taken from auth_file, where PgBouncer finds it",
                );
            }
            None => out.note(
                &format!("{path}.user"),
                "no plain password of this user is in auth_file",
            ),
        },
        (None, Some(_)) => {
            out.remove(&path, "password");
            out.note(&format!("{path}.password"), "has no user: left out");
        }
        _ => {}
    }
    if line.name == "pgweir" {
        out.note(
            &path,
            "is the name of pgweir's console: call the database something else",
        );
    }
    Ok(())
}

/// `auth_user` and its companions hold for all databases: the first one counts, unless there is a general one.
fn auth(path: &str, pairs: &[(String, String)], settings: &Settings<'_>, out: &mut Output) {
    for (key, value) in pairs {
        if !matches!(key.as_str(), "auth_user" | "auth_query" | "auth_dbname") {
            continue;
        }
        let name = format!("{path}.{key}");
        let toml = text(value);
        match out.get("auth", key) {
            Some(general) if general == toml => {}
            Some(_) => out.note(
                &name,
                "not supported: there is one for all databases, and it is another",
            ),
            None => {
                out.put("auth", key, toml);
                if let (true, Some(password)) = (key == "auth_user", settings.password(value)) {
                    out.put("auth", "auth_password", text(password));
                }
                out.note(
                    &name,
                    &format!("holds for all databases: written as auth.{key}"),
                );
            }
        }
    }
}

pub(super) fn user(line: &Line, out: &mut Output) -> Result<(), ImportError> {
    let path = dotted("users", &line.name);
    let pairs = pairs(
        line,
        "expected settings, such as pool_mode=session pool_size=5",
    )?;
    out.table(&path);
    let given = pairs
        .into_iter()
        .filter(|(_, value)| value.parse() != Ok(0.0));
    carry_all(USER, &path, &given.collect::<Vec<_>>(), &line.file, out);
    Ok(())
}

fn pairs(line: &Line, message: &'static str) -> Result<Vec<(String, String)>, ImportError> {
    connection_string(&line.value).ok_or_else(|| ImportError::Syntax {
        file: line.file.clone(),
        line: line.at,
        message,
    })
}

fn carry_all(
    table: &[(&str, Carry)],
    path: &str,
    pairs: &[(String, String)],
    from: &Path,
    out: &mut Output,
) {
    for (key, value) in pairs {
        let name = format!("{path}.{key}");
        match carry(table, key) {
            Some(row) => out.carry(row, Some(path), &name, value, from),
            None => out.note(&name, "not known: left out"),
        }
    }
}

/// Where the database is: one host as it is, several as a primary and replicas.
fn servers(path: &str, pairs: &[(String, String)], settings: &Settings<'_>, out: &mut Output) {
    let value = |name: &str| {
        pairs
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let port = value("port").unwrap_or(DEFAULT_PORT);
    let mut hosts: Vec<&str> = match value("host") {
        Some(hosts) => hosts
            .split(',')
            .map(str::trim)
            .filter(|host| !host.is_empty())
            .collect(),
        None => vec![settings.socket_dir()],
    };
    let mut seen = BTreeSet::new();
    hosts.retain(|host| seen.insert(*host));
    if hosts.iter().any(|host| host.starts_with('@')) {
        out.note(&format!("{path}.host"), "not supported: abstract sockets");
    }
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => {
            out.note(
                &format!("{path}.port"),
                "the value is not understood: 5432 stands in its place",
            );
            5432
        }
    };
    match hosts.as_slice() {
        [] => out.note(&format!("{path}.host"), "names no host"),
        [host] => {
            out.put(path, "host", text(host));
            if port.to_string() != DEFAULT_PORT {
                out.put(path, "port", port.to_string());
            }
        }
        [primary, replicas @ ..] => {
            let urls: Vec<String> = replicas.iter().map(|host| url(host, port)).collect();
            out.put(path, "primary", text(&url(primary, port)));
            out.put(path, "replicas", list(&urls));
            out.note(
                &format!("{path}.host"),
                "several hosts: pgweir finds out which is the primary, PgBouncer takes turns",
            );
        }
    }
}

fn url(host: &str, port: u16) -> String {
    if host.starts_with(['/', '@']) {
        format!("postgres:///?host={}&port={port}", percent_encode(host))
    } else if host.contains(':') {
        format!("postgres://[{host}]:{port}")
    } else {
        format!("postgres://{host}:{port}")
    }
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_@".contains(&byte);
    let encode = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(encode).collect()
}

/// PgBouncer takes a minimum above the size for the size; a configuration refuses it.
pub(super) fn bound_min_idle(out: &mut Output) {
    let count = |out: &Output, path: &str, key: &str| out.get(path, key)?.parse::<u64>().ok();
    let general_max = count(out, "pool", "max_size").unwrap_or(20);
    let general_min = count(out, "pool", "min_idle").unwrap_or(0);
    for path in out.paths() {
        let (own_max, own_min) = (count(out, &path, "max_size"), count(out, &path, "min_idle"));
        let pooled = path == "pool" || path.starts_with("databases.");
        let max = own_max.unwrap_or(general_max);
        let min = own_min.unwrap_or(general_min.min(general_max));
        if pooled && (own_max.is_some() || own_min.is_some()) && min > max {
            out.put(&path, "min_idle", max.to_string());
            out.note(
                &format!("{path}.min_idle"),
                "can't be more than max_size: written as that",
            );
        }
    }
}
