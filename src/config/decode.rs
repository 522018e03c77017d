//! From the tree of [`document`](super::document) to typed settings: one [`Value`] impl per type of key.
//!
//! Every failure is reported to the [`Reader`] and reading goes on. A message quotes a value only as it stands in the
//! file, before `${VAR}` is filled in, and never the value of a secret or a URL.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Item, Node, Origin, Table, parse_list, parse_quoted, show_string};
use super::model::{
    AuthMethod, LogFormat, Node as Server, OnSessionState, PoolMode, Secret, SslMode,
};
use super::server_url;
use super::units::{
    missing_duration_unit, missing_size_unit, parse_duration, parse_size, show_duration, show_size,
};

/// A setting's value and where it was given; `at` is `None` for a default.
#[derive(Clone, Debug)]
pub(super) struct Setting<T> {
    pub(super) value: T,
    pub(super) at: Option<Origin>,
}

impl<T> Setting<T> {
    pub(super) fn default_value(value: T) -> Self {
        Self { value, at: None }
    }

    pub(super) fn is_given(&self) -> bool {
        self.at.is_some()
    }
}

/// A problem or a warning whose place in the file is not looked up yet.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) at: Option<Origin>,
    pub(super) key: String,
    pub(super) message: String,
}

/// What reading needs to know of the world, and what it found.
pub(super) struct Reader<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// Relative paths of the file are relative to this.
    pub(super) folder: Option<PathBuf>,
    pub(super) problems: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>, folder: Option<PathBuf>) -> Self {
        Self {
            env,
            folder,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, at: Option<&Origin>, key: &str, message: impl Into<String>) {
        self.problems.push(finding(at, key, message));
    }

    pub(super) fn warning(&mut self, at: Option<&Origin>, key: &str, message: impl Into<String>) {
        self.warnings.push(finding(at, key, message));
    }

    /// Takes the setting `name` out of `table`; `base` is what holds, as a default, when it is not there or wrong.
    pub(super) fn take<T: Value>(
        &mut self,
        table: &mut Table,
        name: &str,
        base: &Setting<T>,
    ) -> Setting<T> {
        let Some(entry) = table.entries.remove(name) else {
            return Setting::default_value(base.value.clone());
        };
        let key = table.key(name);
        match T::decode(&entry.item, &key, self) {
            Some(value) => Setting {
                value,
                at: Some(entry.item.at),
            },
            None => Setting::default_value(base.value.clone()),
        }
    }

    /// Takes the table `name` out of `table`, empty if there is none.
    pub(super) fn take_table(&mut self, table: &mut Table, name: &str) -> Table {
        let key = table.key(name);
        match table.entries.remove(name).map(|entry| entry.item) {
            Some(Item {
                node: Node::Table(inner),
                ..
            }) => return inner,
            Some(item) => {
                let message = format!("expected a table [{key}], got {}", describe(&item.node));
                self.problem(Some(&item.at), &key, message);
            }
            None => {}
        }
        Table::new(key)
    }

    /// A string with `${VAR}` filled in.
    fn text(&mut self, item: &Item, key: &str, wanted: &str) -> Option<String> {
        let raw = match &item.node {
            Node::Text(text) => text.clone(),
            Node::Bare(word) => parse_quoted(word).unwrap_or_else(|| word.clone()),
            other => {
                let message = format!("expected {wanted}, got {}", describe(other));
                self.problem(Some(&item.at), key, message);
                return None;
            }
        };
        let filled = interpolate(&raw, self.env).and_then(|text| {
            if text.contains('\0') {
                return Err("must not contain a NUL character".to_owned());
            }
            Ok(text)
        });
        self.checked(item, key, filled)
    }

    /// Text that `parse` understands; what it says of a wrong value is reported.
    fn parsed<T>(
        &mut self,
        item: &Item,
        key: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(item, key, wanted)?;
        self.checked(item, key, parse(&text))
    }

    fn checked<T>(&mut self, item: &Item, key: &str, result: Result<T, String>) -> Option<T> {
        result
            .map_err(|message| self.problem(Some(&item.at), key, message))
            .ok()
    }

    /// A number, also from a word or from `"${VAR}"`.
    fn integer(&mut self, item: &Item, key: &str) -> Option<i64> {
        const WANTED: &str = "a whole number";
        match &item.node {
            Node::Integer(number) => Some(*number),
            node if is_word(node) => self.parsed(item, key, WANTED, |text| {
                text.parse().map_err(|_| format!("expected {WANTED}"))
            }),
            other => {
                let message = format!("expected {WANTED}, got {}", describe(other));
                self.problem(Some(&item.at), key, message);
                None
            }
        }
    }
}

fn finding(at: Option<&Origin>, key: &str, message: impl Into<String>) -> Finding {
    Finding {
        at: at.cloned(),
        key: key.to_owned(),
        message: message.into(),
    }
}

/// Whether the key decides what a text is: it came as a word, or out of the environment.
fn is_word(node: &Node) -> bool {
    matches!(node, Node::Bare(_)) || matches!(node, Node::Text(text) if text.contains("${"))
}

fn describe(node: &Node) -> String {
    match node {
        Node::Text(_) | Node::Bare(_) => "a string".to_owned(),
        Node::Integer(_) => "a number".to_owned(),
        Node::Boolean(value) => value.to_string(),
        Node::Array(_) => "a list".to_owned(),
        Node::Table(_) => "a table".to_owned(),
        Node::Other(name) => (*name).to_owned(),
    }
}

/// Fills in `${VAR}`; `$${` is a literal `${`, every other `$` stands for itself.
fn interpolate(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some((name, after)) = rest[at + 2..].split_once('}') else {
            return Err("${ without a closing }; write $${ for a literal ${".to_owned());
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) {
            return Err(
                "${} must hold the name of an environment variable; write $${ for a literal ${"
                    .to_owned(),
            );
        }
        let value = env(name).ok_or_else(|| format!("environment variable {name} is not set"))?;
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// A type of key: how it is read, and how the reference names and shows it.
pub(super) trait Value: Clone {
    /// The type's name in the reference.
    fn kind() -> String;
    /// Reads it; on failure a problem is reported and `None` returned.
    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self>;
    /// The value as TOML; `None` if it stands for "not set".
    fn show(&self) -> Option<String>;
}

impl<T: Value> Value for Option<T> {
    fn kind() -> String {
        T::kind()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        T::decode(item, key, reader).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }
}

/// A list, or a single item in its place.
impl<T: Value> Value for Vec<T> {
    fn kind() -> String {
        format!("{}, or a list of them", T::kind())
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let listed = match &item.node {
            Node::Array(items) => Some(items.clone()),
            Node::Bare(word) => parse_list(word, &item.at),
            _ => None,
        };
        let Some(items) = listed else {
            return T::decode(item, key, reader).map(|value| vec![value]);
        };
        // Every item is read before the first failure counts, so that each wrong one is reported.
        let values: Vec<Option<T>> = items
            .iter()
            .map(|item| T::decode(item, key, reader))
            .collect();
        values.into_iter().collect()
    }

    fn show(&self) -> Option<String> {
        let items: Vec<String> = self.iter().filter_map(T::show).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

impl Value for String {
    fn kind() -> String {
        "string".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        reader.text(item, key, "a string")
    }

    fn show(&self) -> Option<String> {
        Some(show_string(self))
    }
}

impl Value for Secret {
    fn kind() -> String {
        "secret".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(item, key, "a string")?;
        if text.is_empty() {
            reader.problem(Some(&item.at), key, "must not be empty");
            return None;
        }
        Some(Self::new(text))
    }

    fn show(&self) -> Option<String> {
        None
    }
}

impl Value for PathBuf {
    fn kind() -> String {
        "path".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(item, key, "a path")?;
        if text.is_empty() {
            reader.problem(Some(&item.at), key, "must not be empty");
            return None;
        }
        match (&item.at, &reader.folder) {
            (Origin::File(_), Some(folder)) => Some(folder.join(text)),
            _ => Some(Self::from(text)),
        }
    }

    fn show(&self) -> Option<String> {
        Some(show_string(&self.display().to_string()))
    }
}

impl Value for bool {
    fn kind() -> String {
        "boolean".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        const WANTED: &str = "true or false";
        match &item.node {
            Node::Boolean(value) => Some(*value),
            node if is_word(node) => reader.parsed(item, key, WANTED, |text| {
                text.parse().map_err(|_| format!("expected {WANTED}"))
            }),
            other => {
                let message = format!("expected {WANTED}, got {}", describe(other));
                reader.problem(Some(&item.at), key, message);
                None
            }
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// How many. Bounded, so that no semaphore or table made from it can overflow.
const LARGEST_COUNT: i64 = 10_000_000;

impl Value for usize {
    fn kind() -> String {
        "number".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let number = reader.integer(item, key)?;
        if !(0..=LARGEST_COUNT).contains(&number) {
            let message = format!("must be between 0 and {LARGEST_COUNT}, got {number}");
            reader.problem(Some(&item.at), key, message);
            return None;
        }
        Self::try_from(number).ok()
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u16 {
    fn kind() -> String {
        "number".to_owned()
    }

    fn decode(item: &Item, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let number = reader.integer(item, key)?;
        match Self::try_from(number) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                let message = format!("must be between 1 and {}, got {number}", Self::MAX);
                reader.problem(Some(&item.at), key, message);
                None
            }
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

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
        reader.parsed(item, key, "a duration such as \"30s\"", parse_duration)
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
        let size = reader.parsed(item, key, "a size such as \"64KiB\"", parse_size)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn variables_are_filled_in_once() {
        let env = |name: &str| match name {
            "PW" => Some("a${PW}b".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let rows = [
            ("plain", Ok("plain")),
            ("x${PW}y${EMPTY}", Ok("xa${PW}by")),
            ("$1 and $$2", Ok("$1 and $$2")),
            ("a$${PW}", Ok("a${PW}")),
            ("${NOPE}", Err("environment variable NOPE is not set")),
            (
                "${PW",
                Err("${ without a closing }; write $${ for a literal ${"),
            ),
            (
                "${P-W}",
                Err(
                    "${} must hold the name of an environment variable; write $${ for a literal ${",
                ),
            ),
        ];
        for (text, expected) in rows {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(interpolate(text, &env), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn escaped_text_is_left_alone(text in ".*") {
            let escaped = text.replace("${", "$${");
            prop_assert_eq!(interpolate(&escaped, &|_| None), Ok(text));
        }
    }
}
