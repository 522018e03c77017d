//! Server URLs as libpq reads them: `postgres://USER:PASSWORD@HOST:PORT/DBNAME?host=…`.
//!
//! No message of this module quotes the URL, because it may hold a password.
//!
//! # Why
//! Not the `url` crate: libpq's URLs take a socket's folder for a host, percent-encoded or as a parameter, and a
//! wrong one must be explained without being shown.

use super::model::{Node, Secret};

const DEFAULT_PORT: u16 = 5432;

/// Parameters of libpq that have a key of their own here.
const ELSEWHERE: [(&str, &str); 11] = [
    ("sslmode", "tls.server.sslmode"),
    ("sslnegotiation", "tls.server.direct"),
    ("sslrootcert", "tls.server.ca_file"),
    ("sslcert", "tls.server.cert_file"),
    ("sslkey", "tls.server.key_file"),
    ("connect_timeout", "timeouts.server_connect_timeout"),
    ("application_name", "databases.NAME.application_name"),
    ("client_encoding", "databases.NAME.client_encoding"),
    ("keepalives", "general.tcp_keepalive"),
    ("keepalives_idle", "general.tcp_keepidle"),
    ("passfile", "password_file"),
];

pub(super) fn parse(url: &str) -> Result<Node, String> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or("expected a URL such as \"postgres://USER@HOST:PORT/DBNAME\"")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, address) = match authority.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, authority),
    };
    let (host, port) = split_port(address)?;
    let mut node = Node {
        dbname: filled(decode(dbname)?),
        ..Node::at(decode(host)?, port)
    };
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        node.user = filled(decode(user)?);
        node.password = filled(decode(password)?).map(Secret::new);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        set(&mut node, &decode(name)?, decode(value)?)?;
    }
    node.host = check_host(&node.host)?;
    if node.password.is_some() && node.user.is_none() {
        return Err("has a password but no user".to_owned());
    }
    Ok(node)
}

fn set(node: &mut Node, name: &str, value: String) -> Result<(), String> {
    match name {
        "host" => node.host = value,
        "port" => node.port = parse_port(&value)?,
        "user" => node.user = filled(value),
        "password" => node.password = filled(value).map(Secret::new),
        "dbname" => node.dbname = filled(value),
        "weight" => match value.parse() {
            Ok(weight) => node.weight = Some(weight),
            Err(_) => return Err("has a weight that is not a number up to 65535".to_owned()),
        },
        "zone" => node.zone = filled(value),
        "max_connections" => match value.parse() {
            Ok(count) if count > 0 => node.max_connections = Some(count),
            _ => return Err("has max_connections that is not a number above 0".to_owned()),
        },
        _ => {
            let Some((_, key)) = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == name) else {
                return Err(
                    "has a parameter other than host, port, user, password, dbname, weight, zone and max_connections"
                        .to_owned(),
                );
            };
            return Err(format!("{name} does not belong into the URL: set {key}"));
        }
    }
    Ok(())
}

fn split_port(address: &str) -> Result<(&str, u16), String> {
    if let Some(literal) = address.strip_prefix('[') {
        let (host, after) = literal
            .split_once(']')
            .ok_or("has an IPv6 address without a closing bracket")?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, parse_port(port)?)),
            None if after.is_empty() => Ok((host, DEFAULT_PORT)),
            None => Err("has something other than a port after the IPv6 address".to_owned()),
        };
    }
    match address.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err("has an IPv6 address outside brackets".to_owned())
        }
        Some((host, port)) => Ok((host, parse_port(port)?)),
        None => Ok((address, DEFAULT_PORT)),
    }
}

fn parse_port(port: &str) -> Result<u16, String> {
    match port.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("has a port that is not a number between 1 and 65535".to_owned()),
    }
}

/// A host as [`Node::host`] holds it, or what is wrong with it.
pub(super) fn check_host(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("has no host".to_owned());
    }
    if host.starts_with('/') {
        return Ok(host.to_owned());
    }
    if host.starts_with('@') {
        return Err("has an abstract Unix socket, which is not supported".to_owned());
    }
    if host.contains(',') {
        return Err("names several hosts: give one, and the others as replicas".to_owned());
    }
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    let literal = host.parse::<std::net::Ipv6Addr>().is_ok();
    if literal || (!host.is_empty() && host.chars().all(name)) {
        Ok(host.to_owned())
    } else {
        Err("has a host that is neither a name, an IP address nor a socket's folder".to_owned())
    }
}

fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn decode(text: &str) -> Result<String, String> {
    const WRONG: &str =
        "has a % that is not followed by two hexadecimal digits; write %25 for the sign itself";
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return Err(WRONG.to_owned());
        };
        out.push(u8::try_from(high * 16 + low).map_err(|_| WRONG.to_owned())?);
    }
    match String::from_utf8(out) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err("decodes to something that is not text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(host: &str, port: u16, user: &str, password: &str, dbname: &str) -> Node {
        Node {
            user: filled(user.to_owned()),
            password: filled(password.to_owned()).map(Secret::new),
            dbname: filled(dbname.to_owned()),
            ..Node::at(host, port)
        }
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        let rows = [
            ("postgres://db1", node("db1", 5432, "", "", "")),
            ("postgresql://db1:5433/", node("db1", 5433, "", "", "")),
            (
                "postgres://a:b@10.0.0.1:6000/app",
                node("10.0.0.1", 6000, "a", "b", "app"),
            ),
            (
                "postgres://a:p%40ss%2Fw%25@h/my%20db",
                node("h", 5432, "a", "p@ss/w%", "my db"),
            ),
            ("postgres://a:x@y@h/db", node("h", 5432, "a", "x@y", "db")),
            (
                "postgres://u@[::1]:5433/db",
                node("::1", 5433, "u", "", "db"),
            ),
            ("postgres://[fe80::1]", node("fe80::1", 5432, "", "", "")),
            (
                "postgres://%2Frun%2Fpostgresql:5433/db",
                node("/run/postgresql", 5433, "", "", "db"),
            ),
            (
                "postgres://h?weight=3&zone=a%20b&max_connections=50",
                Node {
                    weight: Some(3),
                    zone: Some("a b".to_owned()),
                    max_connections: Some(50),
                    ..node("h", 5432, "", "", "")
                },
            ),
            (
                "postgres:///db?host=/run/postgresql&port=6&user=u&password=p%26",
                node("/run/postgresql", 6, "u", "p&", "db"),
            ),
        ];
        for (url, expected) in rows {
            assert_eq!(parse(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn wrong_urls_are_explained_without_being_shown() {
        let rows = [
            (
                "db1:5432",
                "expected a URL such as \"postgres://USER@HOST:PORT/DBNAME\"",
            ),
            ("postgres://", "has no host"),
            ("postgres://u:secret@", "has no host"),
            ("postgres://:secret@h", "has a password but no user"),
            (
                "postgres://u:se/cret@h",
                "has a port that is not a number between 1 and 65535",
            ),
            (
                "postgres://h:0",
                "has a port that is not a number between 1 and 65535",
            ),
            (
                "postgres://h:65536",
                "has a port that is not a number between 1 and 65535",
            ),
            ("postgres://::1", "has an IPv6 address outside brackets"),
            (
                "postgres://[::1",
                "has an IPv6 address without a closing bracket",
            ),
            (
                "postgres://[::1]x",
                "has something other than a port after the IPv6 address",
            ),
            (
                "postgres://h1,h2",
                "names several hosts: give one, and the others as replicas",
            ),
            (
                "postgres://u:100%@h",
                "has a % that is not followed by two hexadecimal digits; write %25 for the sign itself",
            ),
            (
                "postgres://u:%ff@h",
                "decodes to something that is not text",
            ),
            (
                "postgres://u:%00@h",
                "decodes to something that is not text",
            ),
            (
                "postgres://h?sslmode=require",
                "sslmode does not belong into the URL: set tls.server.sslmode",
            ),
            (
                "postgres://h?weight=-1",
                "has a weight that is not a number up to 65535",
            ),
            (
                "postgres://h?max_connections=0",
                "has max_connections that is not a number above 0",
            ),
            (
                "postgres://h?secret=1",
                "has a parameter other than host, port, user, password, dbname, weight, zone and max_connections",
            ),
            (
                "postgres://a b",
                "has a host that is neither a name, an IP address nor a socket's folder",
            ),
        ];
        for (url, expected) in rows {
            assert_eq!(parse(url), Err(expected.to_owned()), "{url}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", after in ".*") {
            let _ = parse(&text);
            let _ = parse(&format!("postgres://{after}"));
        }
    }
}
