//! The settings as given, before they mean anything: a tree of values, each knowing where it came from.
//!
//! The file's TOML and the `--set` words of flags and environment become one tree here, so that everything after
//! treats them alike. Nothing is interpreted: no type, range or name is checked.
//!
//! # Why
//! serde stops at the first wrong value and forgets where the others were. A tree with origins lets one pass report
//! every problem, and lets a value from `--set` be named by its flag.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// At this byte of the file.
    File(usize),
    /// By a flag or an environment variable of this name.
    Given(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A string of the file.
    Text(String),
    /// A word from a flag or the environment: what it is, the key that it is for decides.
    Bare(String),
    Integer(i64),
    Boolean(bool),
    Array(Vec<Item>),
    Table(Table),
    /// Something no key takes; the name is for the message.
    Other(&'static str),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) node: Node,
    pub(super) at: Origin,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key_at: Origin,
    pub(super) item: Item,
}

/// A table; `path` is its dotted key, empty for the whole file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    pub(super) path: String,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl Table {
    pub(super) fn new(path: String) -> Self {
        Self {
            path,
            entries: BTreeMap::new(),
        }
    }

    /// The dotted key of an entry of this table.
    pub(super) fn key(&self, name: &str) -> String {
        dotted(&self.path, name)
    }
}

/// `path.name`, quoting a name that TOML would not take bare.
pub(super) fn dotted(path: &str, name: &str) -> String {
    let name = show_key(name);
    if path.is_empty() {
        name
    } else {
        format!("{path}.{name}")
    }
}

/// A key as TOML writes it.
pub(super) fn show_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(bare) {
        name.to_owned()
    } else {
        show_string(name)
    }
}

/// A string as TOML writes it.
pub(super) fn show_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a string can't fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Where TOML's grammar is broken, and how.
pub(super) struct SyntaxError {
    pub(super) at: usize,
    pub(super) message: String,
}

/// Reads a file's text. Only the messages of the parser are passed on: its own display quotes the line, and the line
/// may hold a password.
pub(super) fn parse(text: &str) -> Result<Table, Vec<SyntaxError>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table(root.into_inner(), String::new()));
    }
    let syntax_error = |error: toml::de::Error| SyntaxError {
        at: error.span().map_or(0, |span| span.start),
        message: error.message().to_owned(),
    };
    Err(errors.into_iter().map(syntax_error).collect())
}

fn table(entries: DeTable<'_>, path: String) -> Table {
    let mut out = Table::new(path);
    for (key, value) in entries {
        let key_at = Origin::File(key.span().start);
        let name = key.into_inner().into_owned();
        let item = item(value, out.key(&name));
        out.entries.insert(name, Entry { key_at, item });
    }
    out
}

fn item(value: Spanned<DeValue<'_>>, path: String) -> Item {
    let at = Origin::File(value.span().start);
    let node = match value.into_inner() {
        DeValue::String(text) => Node::Text(text.into_owned()),
        DeValue::Integer(number) => {
            match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                Ok(number) => Node::Integer(number),
                Err(_) => Node::Other("a number that is too large"),
            }
        }
        DeValue::Float(_) => Node::Other("a number with a fraction"),
        DeValue::Boolean(value) => Node::Boolean(value),
        DeValue::Datetime(_) => Node::Other("a date"),
        DeValue::Array(items) => Node::Array(
            items
                .into_iter()
                .map(|value| item(value, path.clone()))
                .collect(),
        ),
        DeValue::Table(entries) => Node::Table(table(entries, path)),
    };
    Item { node, at }
}

/// The items of a list given in one word, such as `["a", "b"]`; `None` if it is no list.
pub(super) fn parse_list(word: &str, at: &Origin) -> Option<Vec<Item>> {
    let DeValue::Array(items) = DeValue::parse(word).ok()?.into_inner() else {
        return None;
    };
    let place = |value| Item {
        at: at.clone(),
        ..item(value, String::new())
    };
    Some(items.into_iter().map(place).collect())
}

/// The text of a word in quotes, such as `"a b"`; `None` if it is not quoted.
pub(super) fn parse_quoted(word: &str) -> Option<String> {
    match DeValue::parse(word).ok()?.into_inner() {
        DeValue::String(text) => Some(text.into_owned()),
        _ => None,
    }
}

/// Settings that win over the file's, in the order given; a later one wins over an earlier one.
#[derive(Clone, Default, PartialEq)]
pub struct Overrides(Vec<Override>);

#[derive(Clone, PartialEq)]
struct Override {
    source: Arc<str>,
    key: String,
    words: Words,
}

#[derive(Clone, PartialEq)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Overrides {
    pub fn new() -> Self {
        Self::default()
    }

    /// `key` is a dotted path, `value` a word without quotes or a TOML list; problems name `source`.
    pub fn set(&mut self, source: &str, key: &str, value: &str) {
        self.push(source, key, Words::One(value.to_owned()));
    }

    /// `setting` is `KEY=VALUE`; one without `=` becomes a problem when the configuration is loaded.
    pub fn set_pair(&mut self, source: &str, setting: &str) {
        let (key, value) = setting.split_once('=').unwrap_or(("", ""));
        self.set(source, key.trim(), value);
    }

    /// A list whose items are taken as they are.
    pub fn set_list(&mut self, source: &str, key: &str, values: &[String]) {
        self.push(source, key, Words::Many(values.to_vec()));
    }

    /// These, then `later`'s.
    pub fn extend(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, source: &str, key: &str, words: Words) {
        self.0.push(Override {
            source: source.into(),
            key: key.to_owned(),
            words,
        });
    }

    /// Puts the settings into `root`. What can't be placed is returned: its origin, its key and why.
    pub(super) fn apply(&self, root: &mut Table) -> Vec<(Origin, String, String)> {
        let mut misplaced = Vec::new();
        for given in &self.0 {
            if let Err(message) = given.apply(root) {
                misplaced.push((
                    Origin::Given(given.source.clone()),
                    given.key.clone(),
                    message,
                ));
            }
        }
        misplaced
    }
}

/// Values may be passwords: only the keys are shown.
impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|given| &given.key))
            .finish()
    }
}

impl Override {
    fn apply(&self, root: &mut Table) -> Result<(), String> {
        const SHAPE: &str = "expected KEY=VALUE, such as pool.max_size=5";
        let at = Origin::Given(self.source.clone());
        if self.key.is_empty() {
            return Err(SHAPE.to_owned());
        }
        let mut path = split_key(&self.key)?;
        let last = path.pop().ok_or(SHAPE)?;
        let mut table = root;
        for name in path {
            let path = table.key(&name);
            let entry = table.entries.entry(name).or_insert_with(|| Entry {
                key_at: at.clone(),
                item: Item {
                    node: Node::Table(Table::new(path.clone())),
                    at: at.clone(),
                },
            });
            let Node::Table(inner) = &mut entry.item.node else {
                return Err(format!("{path} is not a table"));
            };
            table = inner;
        }
        let node = match &self.words {
            Words::One(word) => Node::Bare(word.clone()),
            Words::Many(words) => Node::Array(words.iter().map(|word| bare(word, &at)).collect()),
        };
        let item = Item {
            node,
            at: at.clone(),
        };
        table.entries.insert(last, Entry { key_at: at, item });
        Ok(())
    }
}

fn bare(word: &str, at: &Origin) -> Item {
    Item {
        node: Node::Bare(word.to_owned()),
        at: at.clone(),
    }
}

/// The names of a dotted key; a name with other characters than letters, digits, `_`, `-` and `*` is in quotes.
fn split_key(key: &str) -> Result<Vec<String>, String> {
    const SHAPE: &str =
        "expected a dotted key, such as pool.max_size or databases.\"my.db\".max_size";
    let mut names = Vec::new();
    let mut rest = key.trim();
    loop {
        let (name, after) = if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').ok_or(SHAPE)?;
            (&quoted[..end], &quoted[end + 1..])
        } else {
            let bare = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '*';
            let end = rest.find(|c| !bare(c)).unwrap_or(rest.len());
            if end == 0 {
                return Err(SHAPE.to_owned());
            }
            rest.split_at(end)
        };
        names.push(name.to_owned());
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None if after.is_empty() => return Ok(names),
            None => return Err(SHAPE.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dotted_keys_are_split_at_dots_outside_quotes() {
        let names = |key| split_key(key).map_err(|_| ());
        assert_eq!(
            names("pool.max_size"),
            Ok(vec!["pool".into(), "max_size".into()])
        );
        assert_eq!(
            names("databases.\"my.db\".user"),
            Ok(vec!["databases".into(), "my.db".into(), "user".into()])
        );
        assert_eq!(
            names("databases.*.user"),
            Ok(vec!["databases".into(), "*".into(), "user".into()])
        );
        for wrong in ["", ".", "pool.", ".pool", "pool max", "\"pool", "\"a\"b"] {
            assert_eq!(names(wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn overrides_do_not_show_their_values() {
        let mut overrides = Overrides::new();
        overrides.set("--set", "databases.app.password", "hunter2");
        assert_eq!(format!("{overrides:?}"), "[\"databases.app.password\"]");
    }

    proptest! {
        #[test]
        fn strings_are_written_as_toml_reads_them(text in any::<String>()) {
            prop_assert_eq!(parse_quoted(&show_string(&text)), Some(text));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
            let _ = split_key(&text);
            let _ = parse_list(&text, &Origin::File(0));
        }
    }
}
