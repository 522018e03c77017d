//! Run-time settings a session has changed (`SET`, `set_config`, startup parameters), and how they are learnt.
//!
//! # Why the server is asked
//! What a transaction leaves behind depends on savepoints, rollbacks, errors half-way and functions. Rather than model
//! all that, pgweir notes the *names* a transaction may have changed and asks the server for their values when it is
//! over, in the same write as the statement that ends it. The answer is exact and canonical.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use super::leftovers;
use crate::sql::reading::UNREPORTED;

/// Settings that are never carried: the life of the first three ends with the transaction, the others can't be set
/// and are only reported.
const NOT_CARRIED: [&[u8]; 8] = [
    b"transaction_isolation",
    b"transaction_read_only",
    b"transaction_deferrable",
    b"in_hot_standby",
    b"integer_datetimes",
    b"is_superuser",
    b"server_encoding",
    b"server_version",
];

/// A name and its value.
type Entry = (Box<[u8]>, Box<[u8]>);

type NameSet = BTreeSet<Box<[u8]>>;

/// A name and its value, as the server answers a [`Probe`].
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// A set of settings that differ from the server's own, sorted by name. Shared by all sessions that have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    entries: Vec<Entry>,
    /// Those that decide what a text means when it is analysed: names and values, each ended by a NUL.
    analysis: Option<Box<[u8]>>,
}

/// Whether the setting `name` decides what a text means, in ways that the server does not report.
fn decides(name: &[u8]) -> bool {
    name == b"search_path" || UNREPORTED.iter().any(|it| it.as_bytes() == name)
}

impl Settings {
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let at = self
            .entries
            .binary_search_by(|(key, _)| key.as_ref().cmp(name))
            .ok()?;
        Some(&self.entries[at].1)
    }

    /// The empty set, of which there is one.
    pub fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<Settings>> = LazyLock::new(Arc::default);
        Arc::clone(&NONE)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets `name`, or removes it where `value` is `None`.
    pub fn set(&mut self, name: &[u8], value: Option<&[u8]>) {
        match (
            self.entries
                .binary_search_by(|(key, _)| key.as_ref().cmp(name)),
            value,
        ) {
            (Ok(at), Some(value)) => self.entries[at].1 = value.into(),
            (Ok(at), None) => {
                self.entries.remove(at);
            }
            (Err(at), Some(value)) => self.entries.insert(at, (name.into(), value.into())),
            (Err(_), None) => {}
        }
        if decides(name) {
            let decide = self.iter().filter(|(name, _)| decides(name));
            let all = decide.flat_map(|(name, value)| [name, &[0], value, &[0]].concat());
            let all: Vec<u8> = all.collect();
            self.analysis = (!all.is_empty()).then(|| all.into());
        }
    }

    /// The settings among these that decide what a text means when it is analysed; `None` if there are none.
    pub fn analysis(&self) -> Option<&[u8]> {
        self.analysis.as_deref()
    }

    /// These settings with what the server answered to a [`Probe`], oldest first. `login_user` is whom the backend
    /// logged in as: being that user is no setting.
    #[must_use]
    pub fn with(&self, rows: &[Row], login_user: &[u8]) -> Self {
        let mut next = self.clone();
        for (name, value) in rows {
            let name = canonical_name(name);
            if NOT_CARRIED.contains(&name.as_slice()) {
                continue;
            }
            let is_default = match name.as_slice() {
                b"role" => value.as_deref() == Some(b"none"),
                b"session_authorization" => value.as_deref() == Some(login_user),
                _ => false,
            };
            next.set(&name, value.as_deref().filter(|_| !is_default));
        }
        next
    }
}

/// Two sets hold the same; the same `Arc` is the common case and costs one comparison.
pub fn same(a: &Arc<Settings>, b: &Arc<Settings>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// The name a setting is carried under: setting names are case-insensitive.
pub fn canonical_name(name: &[u8]) -> Vec<u8> {
    name.to_ascii_lowercase()
}

/// One session's settings.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// From the startup packet: what `RESET` goes back to.
    startup: Arc<Settings>,
    /// In force outside a transaction: what a backend must have.
    current: Arc<Settings>,
    /// Of the present transaction; boxed, since few have any.
    doings: Option<Box<Doings>>,
}

/// What the present transaction does about settings.
#[derive(Clone, Debug, Default)]
struct Doings {
    touched: Touched,
    /// It may have left more than settings: see [`leftovers`].
    asks_leftovers: bool,
    /// Names that it may have reset.
    reset: NameSet,
    /// Those of them that go back to a startup value, which the server does not know, and were not put back yet.
    restore: NameSet,
}

impl Doings {
    /// What was reset to the server's own value is carried no more. (One pass over the view, which is slow.)
    fn put_reset(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(
            b"name, NULL FROM pg_catalog.pg_settings WHERE source <> 'session' AND pg_catalog.lower(name) IN (",
        );
        for (index, name) in self.reset.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            put_literal(text, name);
        }
        text.push(b')');
    }
}

/// What the present transaction may have changed.
#[derive(Clone, Debug, Default)]
enum Touched {
    #[default]
    Nothing,
    Names(NameSet),
    /// Names could not be read from the statements: everything with a session value is asked for.
    Anything(NameSet),
}

/// A question to the server about a session's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// One simple query. Its rows are (name, value) pairs.
    pub text: Vec<u8>,
}

impl Tracker {
    pub fn new(startup: Arc<Settings>) -> Self {
        Self {
            current: Arc::clone(&startup),
            startup,
            doings: None,
        }
    }

    fn doings(&mut self) -> &mut Doings {
        self.doings.get_or_insert_default()
    }

    pub fn current(&self) -> &Arc<Settings> {
        &self.current
    }

    pub fn startup(&self) -> &Arc<Settings> {
        &self.startup
    }

    /// Whether the session's values must be asked for when the transaction is over.
    pub fn is_touched(&self) -> bool {
        let touched = |doings: &Doings| !matches!(doings.touched, Touched::Nothing);
        self.doings.as_deref().is_some_and(touched)
    }

    /// The present transaction may have set or reset `name` for the session.
    pub fn touch(&mut self, name: &[u8]) {
        let name = canonical_name(name);
        if NOT_CARRIED.contains(&name.as_slice()) {
            return;
        }
        self.names().insert(name.clone().into_boxed_slice());
        // SET SESSION AUTHORIZATION resets the role as well.
        if name == b"session_authorization" {
            self.names().insert(b"role"[..].into());
        }
    }

    /// `RESET name` is being sent.
    pub fn reset(&mut self, name: &[u8]) {
        self.touch(name);
        self.note_reset(canonical_name(name).into_boxed_slice());
    }

    /// `RESET ALL` or `DISCARD ALL` is being sent.
    pub fn reset_known(&mut self) {
        self.touch_known();
        let known: Vec<Box<[u8]>> = self.known().map(Into::into).collect();
        for name in known {
            self.note_reset(name);
        }
    }

    fn note_reset(&mut self, name: Box<[u8]>) {
        if self.startup.get(&name).is_some() {
            self.doings().restore.insert(name.clone());
        }
        self.doings().reset.insert(name);
    }

    /// Names of the settings the session has or started with.
    fn known(&self) -> impl Iterator<Item = &[u8]> {
        self.current
            .iter()
            .chain(self.startup.iter())
            .map(|(name, _)| name)
    }

    /// Whether a startup value may have to be put back.
    pub fn restores(&self) -> bool {
        let restores = |doings: &Doings| !doings.restore.is_empty();
        self.doings.as_deref().is_some_and(restores)
    }

    /// The statements that put startup values back where they were reset. Their rows have one column, which tells them
    /// from the answers to a [`Probe`]. A setting with a session value was not reset: the statement failed, or has not
    /// run yet.
    pub fn restore_texts(&self) -> Vec<Vec<u8>> {
        let text = |name: &[u8]| {
            let mut text = b"SELECT pg_catalog.set_config(".to_vec();
            put_literal(&mut text, name);
            text.push(b',');
            put_literal(&mut text, self.startup.get(name).unwrap_or_default());
            text.extend_from_slice(
                b",false) WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_settings ",
            );
            text.extend_from_slice(b"WHERE source = 'session' AND pg_catalog.lower(name) = ");
            put_literal(&mut text, name);
            text.push(b')');
            text
        };
        let names = self.doings.iter().flat_map(|doings| &doings.restore);
        names.map(|name| text(name)).collect()
    }

    /// They have been put back.
    pub fn restored(&mut self) {
        if let Some(doings) = &mut self.doings {
            doings.restore = NameSet::new();
        }
    }

    /// The present transaction runs code whose doings nobody can tell from its text.
    pub fn touch_opaque(&mut self) {
        self.touch_anything();
        self.doings().asks_leftovers = true;
    }

    /// The present transaction may end what pins the session: the server is asked what is left.
    pub fn ask_leftovers(&mut self) {
        self.names();
        self.doings().asks_leftovers = true;
    }

    /// Whether the next answer tells what the session has left on its backend.
    pub fn asks_leftovers(&self) -> bool {
        let asks = |doings: &Doings| doings.asks_leftovers;
        self.doings.as_deref().is_some_and(asks)
    }

    /// The server would not answer: nothing is known of the present transaction, and it is not asked again.
    pub fn give_up(&mut self) {
        self.doings = None;
    }

    /// The present transaction may have changed settings nobody knows the names of.
    pub fn touch_anything(&mut self) {
        let names = std::mem::take(self.names());
        self.doings().touched = Touched::Anything(names);
        // `pg_settings` shows neither of these.
        self.touch(b"session_authorization");
        self.touch_known();
    }

    /// Every setting the session has may have been reset (`RESET ALL`).
    pub fn touch_known(&mut self) {
        let known: Vec<Box<[u8]>> = self.known().map(Into::into).collect();
        if !known.is_empty() {
            self.names().extend(known);
        }
    }

    fn names(&mut self) -> &mut NameSet {
        let touched = &mut self.doings().touched;
        if matches!(touched, Touched::Nothing) {
            *touched = Touched::Names(NameSet::default());
        }
        match touched {
            Touched::Names(names) | Touched::Anything(names) => names,
            // Replaced two lines above.
            Touched::Nothing => unreachable!("touched was just made"),
        }
    }

    /// What to ask the server. An unknown custom setting reads as NULL rather than as an error.
    pub fn probe(&self) -> Option<Probe> {
        let doings = self.doings.as_deref()?;
        let (names, anything) = match &doings.touched {
            Touched::Nothing => return None,
            Touched::Names(names) => (names, false),
            Touched::Anything(names) => (names, true),
        };
        let mut text = Vec::with_capacity(64 + 64 * names.len());
        let mut add = |question: &dyn Fn(&mut Vec<u8>)| {
            let lead = if text.is_empty() {
                &b"SELECT "[..]
            } else {
                b" UNION ALL SELECT "
            };
            text.extend_from_slice(lead);
            question(&mut text);
        };
        for name in names {
            add(&|text| {
                put_literal(text, name);
                text.extend_from_slice(b"::pg_catalog.text, pg_catalog.current_setting(");
                put_literal(text, name);
                text.extend_from_slice(b", true)");
            });
        }
        if !doings.reset.is_empty() {
            add(&|text| doings.put_reset(text));
        }
        if anything {
            add(&|text| {
                text.extend_from_slice(
                    b"name, setting FROM pg_catalog.pg_settings WHERE source = 'session'",
                );
            });
        }
        if doings.asks_leftovers {
            add(&|text| text.extend_from_slice(leftovers::QUESTION.as_bytes()));
        }
        Some(Probe { text })
    }

    /// The transaction is over and these are the values the server has now.
    pub fn learn(&mut self, rows: &[Row], login_user: &[u8]) {
        let next = self.current.with(rows, login_user);
        self.give_up();
        if next != *self.current {
            // A session that is back where it started shares the set of those that never left.
            self.current = if next == *self.startup {
                Arc::clone(&self.startup)
            } else {
                Arc::new(next)
            };
        }
    }
}

/// Appends a string literal that means the same under both values of `standard_conforming_strings`.
pub fn put_literal(out: &mut Vec<u8>, text: &[u8]) {
    if text.contains(&b'\\') {
        out.extend_from_slice(b" E");
    }
    out.push(b'\'');
    for &byte in text {
        if byte == b'\'' || byte == b'\\' {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (Vec<u8>, Option<Vec<u8>>) {
        (name.into(), Some(value.into()))
    }

    #[test]
    fn a_touched_name_is_asked_for_and_learnt() {
        let mut tracker = Tracker::new(Arc::default());
        tracker.touch(b"Search_Path");
        let probe = tracker.probe().unwrap();
        assert_eq!(
            String::from_utf8(probe.text).unwrap(),
            "SELECT 'search_path'::pg_catalog.text, pg_catalog.current_setting('search_path', true)"
        );
        tracker.learn(&[pair("search_path", "a, b")], b"app");
        assert_eq!(tracker.current().get(b"search_path"), Some(&b"a, b"[..]));
        assert!(!tracker.is_touched());
    }

    #[test]
    fn what_decides_meanings_is_kept_together() {
        let mut settings = Settings::default();
        settings.set(b"work_mem", Some(b"1MB"));
        assert_eq!(settings.analysis(), None);
        settings.set(b"search_path", Some(b"a"));
        settings.set(b"array_nulls", Some(b"off"));
        let both = b"array_nulls\0off\0search_path\0a\0";
        assert_eq!(settings.analysis(), Some(&both[..]));
        settings.set(b"search_path", None);
        assert_eq!(settings.analysis(), Some(&b"array_nulls\0off\0"[..]));
        settings.set(b"array_nulls", None);
        assert_eq!(settings, {
            let mut settings = Settings::default();
            settings.set(b"work_mem", Some(b"1MB"));
            settings
        });
    }

    #[test]
    fn being_oneself_is_no_setting() {
        let mut tracker = Tracker::new(Arc::default());
        tracker.touch(b"session_authorization");
        tracker.learn(
            &[pair("role", "none"), pair("session_authorization", "app")],
            b"app",
        );
        assert!(tracker.current().is_empty());
        tracker.touch(b"role");
        tracker.learn(&[pair("role", "admin")], b"app");
        assert_eq!(tracker.current().get(b"role"), Some(&b"admin"[..]));
    }

    #[test]
    fn transaction_scoped_settings_are_not_carried() {
        let mut tracker = Tracker::new(Arc::default());
        tracker.touch(b"transaction_isolation");
        assert!(!tracker.is_touched());
    }

    #[test]
    fn a_session_back_at_its_start_shares_its_startup_set() {
        let mut startup = Settings::default();
        startup.set(b"timezone", Some(b"UTC"));
        let startup = Arc::new(startup);
        let mut tracker = Tracker::new(Arc::clone(&startup));
        tracker.touch(b"timezone");
        tracker.learn(&[pair("timezone", "CET")], b"app");
        assert!(!same(tracker.current(), &startup));
        tracker.touch(b"timezone");
        tracker.learn(&[pair("timezone", "UTC")], b"app");
        assert!(Arc::ptr_eq(tracker.current(), &startup));
    }

    #[test]
    fn what_was_reset_to_the_servers_value_is_carried_no_more() {
        let mut startup = Settings::default();
        startup.set(b"timezone", Some(b"UTC"));
        let mut tracker = Tracker::new(Arc::new(startup));
        tracker.touch(b"work_mem");
        tracker.learn(&[pair("work_mem", "1MB")], b"app");
        tracker.reset_known();
        let restore = String::from_utf8(tracker.restore_texts().concat()).unwrap();
        assert!(restore.contains("'timezone','UTC'") && !restore.contains("work_mem"));
        tracker.restored();
        assert!(!tracker.restores());
        let probe = String::from_utf8(tracker.probe().unwrap().text).unwrap();
        assert!(probe.ends_with("IN ('timezone','work_mem')"), "{probe}");
        let rows = [
            pair("timezone", "UTC"),
            pair("work_mem", "4MB"),
            (b"work_mem".to_vec(), None),
        ];
        tracker.learn(&rows, b"app");
        assert!(Arc::ptr_eq(tracker.current(), tracker.startup()));
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        let mut out = Vec::new();
        put_literal(&mut out, br"a'b\c");
        assert_eq!(out, br" E'a''b\\c'");
    }
}
