//! The TOML under construction, and the notes.

use std::fmt::Write as _;
use std::path::Path;

use super::settings::Carry;
use super::values::write;

/// The general tables, in the order they are written; databases and users follow.
const ORDER: [&str; 8] = [
    "general",
    "auth",
    "tls.client",
    "tls.server",
    "pool",
    "timeouts",
    "log",
    "cluster",
];

#[derive(Debug)]
struct OutputTable {
    path: String,
    keys: Vec<(String, String)>,
}

#[derive(Debug)]
pub(super) struct Output {
    tables: Vec<OutputTable>,
    notes: Vec<String>,
}

impl Output {
    pub(super) fn new() -> Self {
        let table = |path: &str| OutputTable {
            path: path.to_owned(),
            keys: Vec::new(),
        };
        Self {
            tables: ORDER.iter().map(|path| table(path)).collect(),
            notes: Vec::new(),
        }
    }

    /// A table that is written even if it stays empty.
    pub(super) fn table(&mut self, path: &str) {
        if !self.tables.iter().any(|table| table.path == path) {
            self.tables.push(OutputTable {
                path: path.to_owned(),
                keys: Vec::new(),
            });
        }
    }

    /// Writes a key; one that is there already is replaced, as the last one counts in PgBouncer too.
    pub(super) fn put(&mut self, path: &str, key: &str, toml: String) {
        self.table(path);
        let Some(table) = self.tables.iter_mut().find(|table| table.path == path) else {
            return;
        };
        match table.keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, value)) => *value = toml,
            None => table.keys.push((key.to_owned(), toml)),
        }
    }

    pub(super) fn get(&self, path: &str, key: &str) -> Option<&str> {
        let table = self.tables.iter().find(|table| table.path == path)?;
        let (_, toml) = table.keys.iter().find(|(name, _)| name == key)?;
        Some(toml)
    }

    pub(super) fn remove(&mut self, path: &str, key: &str) {
        for table in self.tables.iter_mut().filter(|table| table.path == path) {
            table.keys.retain(|(name, _)| name != key);
        }
    }

    /// The paths of all tables.
    pub(super) fn paths(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.path.clone()).collect()
    }

    pub(super) fn note(&mut self, name: &str, text: &str) {
        let note = format!("{name}: {text}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Carries one setting as its row says; `path` overrides the row's table, `name` is for notes. A special row is
    /// the caller's.
    pub(super) fn carry(
        &mut self,
        row: Carry,
        path: Option<&str>,
        name: &str,
        value: &str,
        from: &Path,
    ) {
        match row {
            Carry::Key(..) if value.is_empty() => {}
            Carry::Key(table, key, kind) => {
                let written = write(kind, value, from);
                if let Some(toml) = written.toml {
                    self.put(path.unwrap_or(table), key, toml);
                }
                if let Some(note) = written.note {
                    self.note(name, &note);
                }
            }
            Carry::Special => {}
            Carry::NotNeeded(why) => self.note(name, &format!("not needed: {why}")),
            Carry::NotSupported(why) => self.note(name, &format!("not supported: {why}")),
        }
    }

    pub(super) fn render(&self, from: &Path) -> String {
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        let mut out = format!("# Made by `pgweir import` from {}.\n", comment(&name));
        if !self.notes.is_empty() {
            out.push_str("#\n# Not carried over, or not quite the same:\n");
            for note in &self.notes {
                // Writing to a string can't fail.
                let _ = writeln!(out, "# - {}", comment(note));
            }
        }
        for (at, table) in self.tables.iter().enumerate() {
            if at < ORDER.len() && table.keys.is_empty() {
                continue;
            }
            let _ = writeln!(out, "\n[{}]", table.path);
            for (key, toml) in &table.keys {
                let _ = writeln!(out, "{key} = {toml}");
            }
        }
        out
    }
}

/// Text that can't end its comment.
fn comment(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}
