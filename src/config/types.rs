//! The types of keys that are more than a string, a number or a list: limits, durations, sizes, addresses, words.

use std::net::SocketAddr;
use std::time::Duration;

use super::decode::{Reader, Value};
use super::document::{Item, Node, show_string};
use super::model::{
    AuthMethod, Consistency, HttpScope, LogFormat, Node as Server, OnSessionState, Percent,
    PoolMode, Reads, SslMode,
};
use super::server_url;
use super::units::{
    missing_duration_unit, missing_size_unit, parse_duration, parse_size, show_duration, show_size,
};

/// A limit on a number, `0` for none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cap(pub(super) Option<usize>);

impl Value for Cap {
    fn kind() -> String {
        "number, or 0".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let count = usize::decode(item, key, reader)?;
        Some(Self(Some(count).filter(|count| *count > 0)))
    }

    fn show(&self) -> Option<String> {
        Some(self.0.unwrap_or(0).to_string())
    }
}

impl Value for Duration {
    fn kind() -> String {
        "duration".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if let Node::Integer(number) = &item.node {
            let message = missing_duration_unit(&number.to_string());
            reader.problem(Some(&item.at), key, message);
            return None;
        }
        reader.parsed_quoting(item, key, "a duration such as \"30s\"", parse_duration)
    }

    fn show(&self) -> Option<String> {
        Some(show_string(&show_duration(*self)))
    }
}

/// A limit in time, `"0"` for none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit(pub(super) Option<Duration>);

impl Value for Limit {
    fn kind() -> String {
        "duration, or \"0\"".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let duration = Duration::decode(item, key, reader)?;
        Some(Self(Some(duration).filter(|duration| !duration.is_zero())))
    }

    fn show(&self) -> Option<String> {
        self.0.unwrap_or(Duration::ZERO).show()
    }
}

/// A share, `"N%"`.
impl Value for Percent {
    fn kind() -> String {
        "percentage".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str = "a percentage such as \"80%\"";
        reader.parsed(item, key, WANTED, |text| {
            let number = text
                .strip_suffix('%')
                .and_then(|number| number.parse().ok());
            match number {
                Some(number @ 0..=100) => Ok(Self(number)),
                _ => Err(format!("expected {WANTED}, at most 100%")),
            }
        })
    }

    fn show(&self) -> Option<String> {
        Some(show_string(&format!("{}%", self.0)))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size(pub(super) u64);

impl Value for Size {
    fn kind() -> String {
        "size".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if let Node::Integer(number) = &item.node {
            let message = missing_size_unit(&number.to_string());
            reader.problem(Some(&item.at), key, message);
            return None;
        }
        let size = reader.parsed_quoting(item, key, "a size such as \"64KiB\"", parse_size)?;
        Some(Self(size))
    }

    fn show(&self) -> Option<String> {
        Some(show_string(&show_size(self.0)))
    }
}

/// Permissions of a file, as `chmod` takes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FileMode(pub(super) u32);

impl Value for FileMode {
    fn kind() -> String {
        "octal string".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str = "permissions in octal, such as \"0770\"";
        let mode = reader.parsed(item, key, WANTED, |text| {
            match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o777 => Ok(mode),
                _ => Err(format!("expected {WANTED}")),
            }
        })?;
        Some(Self(mode))
    }

    fn show(&self) -> Option<String> {
        Some(format!("\"{:04o}\"", self.0))
    }
}

/// A TCP address to listen on, `HOST:PORT`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Address(pub(super) String);

impl Value for Address {
    fn kind() -> String {
        "\"HOST:PORT\"".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str =
            "HOST:PORT, such as \"127.0.0.1:6432\", \"0.0.0.0:6432\" or \"[::]:6432\"";
        reader.parsed(item, key, WANTED, |text| {
            let (host, port) = text
                .rsplit_once(':')
                .ok_or_else(|| format!("expected {WANTED}"))?;
            let literal = host.starts_with('[') && host.ends_with(']');
            let named = !host.is_empty() && !host.contains([':', '*', '/', '[', ']', ' ', ',']);
            let known = if literal {
                text.parse::<SocketAddr>().is_ok()
            } else {
                named
            };
            if known && port.parse::<u16>().is_ok() {
                Ok(Self(text.to_owned()))
            } else {
                Err(format!("expected {WANTED}"))
            }
        })
    }

    fn show(&self) -> Option<String> {
        Some(show_string(&self.0))
    }
}

/// The HTTP listener's address, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HttpAddress(pub(super) Option<SocketAddr>);

impl Value for HttpAddress {
    fn kind() -> String {
        "\"IP:PORT\" or \"off\"".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str = "IP:PORT, such as \"127.0.0.1:9930\", or \"off\"";
        reader.parsed(item, key, WANTED, |text| match text {
            "off" => Ok(Self(None)),
            _ => match text.parse() {
                Ok(address) => Ok(Self(Some(address))),
                Err(_) => Err(format!("expected {WANTED}")),
            },
        })
    }

    fn show(&self) -> Option<String> {
        let shown = self
            .0
            .map_or_else(|| "off".to_owned(), |address| address.to_string());
        Some(show_string(&shown))
    }
}

impl Value for Consistency {
    fn kind() -> String {
        "\"eventual\", \"session\", \"cluster\", \"bounded:DURATION\"".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str =
            "eventual, session, cluster, or bounded: and a duration such as bounded:5s";
        reader.parsed(item, key, WANTED, |text| {
            Self::parse(text).ok_or_else(|| format!("expected {WANTED}"))
        })
    }

    fn show(&self) -> Option<String> {
        Some(show_string(&match self {
            Self::Eventual => "eventual".to_owned(),
            Self::Session => "session".to_owned(),
            Self::Cluster => "cluster".to_owned(),
            Self::Bounded(age) => format!("bounded:{}", show_duration(*age)),
        }))
    }
}

impl Consistency {
    /// As it is written in the file and in `SET pgweir.consistency`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "eventual" => Some(Self::Eventual),
            "session" => Some(Self::Session),
            "cluster" => Some(Self::Cluster),
            _ => {
                let age = parse_duration(text.strip_prefix("bounded:")?).ok()?;
                Some(Self::Bounded(age))
            }
        }
    }
}

/// A server, by its URL.
impl Value for Server {
    fn kind() -> String {
        "URL".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str = "a URL such as \"postgres://HOST:PORT\"";
        reader.parsed(item, key, WANTED, server_url::parse)
    }

    fn show(&self) -> Option<String> {
        None
    }
}

/// Keys that take one of a few words; the first word of a variant is the one shown.
macro_rules! words {
    ($($type:ident { $($word:literal = $variant:ident),+ $(,)? })+) => {
        $(
            impl Value for $type {
                fn kind() -> String {
                    [$(concat!("\"", $word, "\"")),+].join(", ")
                }

                fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
                    const WORDS: &[&str] = &[$($word),+];
                    reader.parsed(item, key, "a string", |text| match text {
                        $($word => Ok(Self::$variant),)+
                        _ => Err(unknown_word(&item.node, WORDS)),
                    })
                }

                fn show(&self) -> Option<String> {
                    [$((Self::$variant, $word)),+]
                        .iter()
                        .find(|(variant, _)| variant == self)
                        .map(|(_, word)| show_string(word))
                }
            }
        )+
    };
}

words! {
    PoolMode { "session" = Session, "transaction" = Transaction, "statement" = Statement }
    OnSessionState { "pin" = Pin, "reject" = Reject }
    LogFormat { "text" = Text, "json" = Json }
    Reads { "replicas" = Replicas, "primary" = Primary }
    HttpScope { "health" = Health, "metrics" = Metrics, "all" = All }
    SslMode {
        "disable" = Disable, "allow" = Allow, "prefer" = Prefer, "require" = Require, "verify-ca" = VerifyCa,
        "verify-full" = VerifyFull,
    }
    AuthMethod {
        "passthrough" = Passthrough, "scram-sha-256" = ScramSha256, "scram" = ScramSha256, "md5" = Md5,
        "trust" = Trust, "cert" = Cert, "peer" = Peer, "hba" = Hba,
    }
}

fn unknown_word(node: &Node, words: &[&str]) -> String {
    let expected = format!("expected one of {}", words.join(", "));
    match node {
        Node::Text(text) | Node::Bare(text) if text.len() <= 40 => {
            format!("{expected}; got {text:?}")
        }
        _ => expected,
    }
}
