//! From the tree of [`document`](super::document) to typed settings: one [`Value`] impl per type of key.
//!
//! Every failure is reported to the [`Reader`] and reading goes on. A message quotes a value only as it stands in the
//! file, before `${VAR}` is filled in, and never the value of a secret or a URL.

use std::path::PathBuf;

use super::document::{Item, Node, Origin, Table, parse_list, parse_quoted, show_string};
use super::model::Secret;

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
    pub(super) fn parsed<T>(
        &mut self,
        item: &Item,
        key: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(item, key, wanted)?;
        self.checked(item, key, parse(&text))
    }

    /// The same for a `parse` whose messages quote: what came out of the environment is not repeated.
    pub(super) fn parsed_quoting<T>(
        &mut self,
        item: &Item,
        key: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let filled =
            matches!(&item.node, Node::Text(text) | Node::Bare(text) if text.contains("${"));
        self.parsed(item, key, wanted, |text| {
            parse(text).map_err(|message| {
                if filled {
                    format!("expected {wanted}")
                } else {
                    message
                }
            })
        })
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
