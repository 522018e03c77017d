//! Run-time settings a session has changed (`SET`, `set_config`, startup parameters), and how they are learnt.
//!
//! # Why the server is asked
//! What a transaction leaves behind depends on savepoints, rollbacks, errors half-way and functions. Rather than model
//! all that, pgweir notes the *names* a transaction may have changed and asks the server for their values when it is
//! over, in the same write as the statement that ends it. The answer is exact and canonical.
//!
//! # Why values are in the database's encoding
//! What a client sends and is told is in its `client_encoding`, which differs from session to session and changes
//! within one, and the server reads a plan by the one that the backend happens to have. So the server is asked for the
//! bytes of the database's own encoding, and is told them in ASCII ([`put_text`]); those of a startup packet are taken
//! for that as they come, as PostgreSQL does. A setting whose *name* is not ASCII pins the session (`sql::classify`).

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use super::leftovers;
use super::literal::{
    TIMEOUT, put_bytes_of, put_literal, put_question, put_text, put_time, unescaped,
};
use super::login::{self, Login};
use crate::sql::reading::UNREPORTED;

/// Settings that are never carried: the life of the first three ends with the transaction, the others can't be set
/// and are only reported, or can't be read.
const NOT_CARRIED: [&[u8]; 9] = [
    b"transaction_isolation",
    b"transaction_read_only",
    b"transaction_deferrable",
    b"in_hot_standby",
    b"integer_datetimes",
    b"is_superuser",
    // Reads as `unavailable`; who sets it is pinned.
    b"seed",
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

    /// These settings with what the server answered to a [`Probe`], oldest first. Being who the backend logged in as is
    /// no setting.
    #[must_use]
    pub fn with(&self, rows: &[Row], login: Login<'_>) -> Self {
        let asked = login::role(rows);
        let login_role = asked.as_deref().or(login.role).unwrap_or(b"none");
        let mut next = self.clone();
        for (name, value) in rows {
            let name = canonical_name(name);
            if name == login::ROLE || NOT_CARRIED.contains(&name.as_slice()) {
                continue;
            }
            let value = value.as_deref().map(unescaped);
            let is_default = match name.as_slice() {
                b"role" => value.as_deref() == Some(login_role),
                b"session_authorization" => value.as_deref() == Some(login.user),
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
    /// A `search_path` was set that no text tells.
    has_unseen_path: bool,
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
    /// The last question was cancelled, as by the session's own `statement_timeout`: the next one takes its time.
    takes_time: bool,
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
            has_unseen_path: false,
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
        if NOT_CARRIED.contains(&name.as_slice()) || !name.is_ascii() {
            return;
        }
        self.names().insert(name.clone().into_boxed_slice());
        // SET SESSION AUTHORIZATION resets the role as well.
        if name == b"session_authorization" {
            self.names().insert(b"role"[..].into());
        }
    }

    /// `SET name` is being sent, a statement of its own: behind a reset in the same text it has the last word.
    pub fn assign(&mut self, name: &[u8]) {
        self.touch(name);
        let Some(doings) = &mut self.doings else {
            return;
        };
        let name = canonical_name(name);
        doings.restore.remove(name.as_slice());
        if name == b"session_authorization" {
            doings.restore.remove(&b"role"[..]);
        }
    }

    /// `RESET name` is being sent.
    pub fn reset(&mut self, name: &[u8]) {
        self.touch(name);
        self.note_reset(canonical_name(name).into_boxed_slice());
    }

    /// `RESET ALL` is being sent, which leaves the identity alone.
    pub fn reset_all(&mut self) {
        self.reset_known(|name| !matches!(name, b"role" | b"session_authorization"));
    }

    /// `DISCARD ALL` is being sent.
    pub fn discard_all(&mut self) {
        self.reset_known(|_| true);
    }

    fn reset_known(&mut self, is_reset: impl Fn(&[u8]) -> bool) {
        self.touch_known();
        let known = self.known().filter(|name| is_reset(name));
        let known: Vec<Box<[u8]>> = known.map(Into::into).collect();
        for name in known {
            self.note_reset(name);
        }
    }

    fn note_reset(&mut self, name: Box<[u8]>) {
        if self.startup.get(&name).is_some() {
            self.doings().restore.insert(name.clone());
        }
        // Nobody can be asked for another: it would be read in the encoding of the moment.
        if name.is_ascii() {
            self.doings().reset.insert(name);
        }
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
            put_text(&mut text, name);
            text.push(b',');
            put_text(&mut text, self.startup.get(name).unwrap_or_default());
            text.extend_from_slice(b",false) WHERE ");
            if name.contains(&b'.') {
                // The view has it only if a library has defined it. Where none has, RESET leaves an empty value.
                text.extend_from_slice(b"(pg_catalog.current_setting(");
                put_text(&mut text, name);
                text.extend_from_slice(
                    b",true) <> '') IS NOT TRUE OR EXISTS (SELECT FROM pg_catalog.pg_settings ",
                );
                text.extend_from_slice(b"WHERE source <> 'session' AND pg_catalog.lower(name) = ");
            } else {
                text.extend_from_slice(b"NOT EXISTS (SELECT FROM pg_catalog.pg_settings ");
                text.extend_from_slice(b"WHERE source = 'session' AND pg_catalog.lower(name) = ");
            }
            put_text(&mut text, name);
            text.push(b')');
            text
        };
        let names = self.doings.iter().flat_map(|doings| &doings.restore);
        names.map(|name| text(name)).collect()
    }

    /// `set_config` may be setting a `search_path` that the text does not show, for the transaction or longer.
    pub fn take_unseen_path(&mut self) {
        self.has_unseen_path = true;
    }

    /// Whether what is created without a schema may come to be in the temporary one.
    pub fn may_create_in_temp(&self) -> bool {
        let names_it = |path: &[u8]| {
            path.windows(7)
                .any(|part| part.eq_ignore_ascii_case(b"pg_temp"))
        };
        self.has_unseen_path || self.current.get(b"search_path").is_some_and(names_it)
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

    /// The question was cancelled. True if it is asked once more.
    pub fn asks_again(&mut self) -> bool {
        !std::mem::replace(&mut self.doings().takes_time, true)
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
        let known = self.known().filter(|name| name.is_ascii());
        let known: Vec<Box<[u8]>> = known.map(Into::into).collect();
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

    /// What to ask a server whose role at login is known if `has_login_role`. An unknown custom setting reads as NULL
    /// rather than as an error.
    pub fn probe(&self, has_login_role: bool) -> Option<Probe> {
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
            if !doings.takes_time || **name != *TIMEOUT {
                add(&|text| put_question(text, name));
            }
        }
        if !doings.reset.is_empty() {
            add(&|text| doings.put_reset(text));
        }
        if anything {
            add(&|text| {
                text.extend_from_slice(b"name, ");
                put_bytes_of(text, |text| text.extend_from_slice(b"setting"));
                text.extend_from_slice(b" FROM pg_catalog.pg_settings WHERE source = 'session'");
                if doings.takes_time {
                    text.extend_from_slice(b" AND name <> 'statement_timeout'");
                }
            });
        }
        if doings.asks_leftovers {
            add(&|text| text.extend_from_slice(leftovers::QUESTION.as_bytes()));
        }
        if doings.takes_time {
            let behind = std::mem::take(&mut text);
            put_time(&mut text, names.contains(TIMEOUT), anything);
            text.extend_from_slice(&behind);
        }
        if !has_login_role && names.contains(&b"role"[..]) {
            login::put_question(&mut text);
        }
        Some(Probe { text })
    }

    /// The transaction is over and these are the values the server has now.
    pub fn learn(&mut self, rows: &[Row], login: Login<'_>) {
        let next = self.current.with(rows, login);
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

#[cfg(test)]
mod tests {
    use super::*;

    const APP: Login<'_> = Login {
        user: b"app",
        role: None,
    };

    fn pair(name: &str, value: &str) -> (Vec<u8>, Option<Vec<u8>>) {
        (name.into(), Some(value.into()))
    }

    #[test]
    fn a_touched_name_is_asked_for_and_learnt() {
        let mut tracker = Tracker::new(Arc::default());
        tracker.touch(b"Search_Path");
        let probe = tracker.probe(true).unwrap();
        assert_eq!(
            String::from_utf8(probe.text).unwrap(),
            "SELECT 'search_path'::pg_catalog.text, pg_catalog.encode(pg_catalog.convert_to(\
             pg_catalog.current_setting('search_path', true), pg_catalog.getdatabaseencoding()), 'escape')"
        );
        tracker.learn(&[pair("search_path", "a, b")], APP);
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
            APP,
        );
        assert!(tracker.current().is_empty());
        tracker.touch(b"role");
        tracker.learn(&[pair("role", "admin")], APP);
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
        tracker.learn(&[pair("timezone", "CET")], APP);
        assert!(!same(tracker.current(), &startup));
        tracker.touch(b"timezone");
        tracker.learn(&[pair("timezone", "UTC")], APP);
        assert!(Arc::ptr_eq(tracker.current(), &startup));
    }

    #[test]
    fn what_was_reset_to_the_servers_value_is_carried_no_more() {
        let mut startup = Settings::default();
        startup.set(b"timezone", Some(b"UTC"));
        let mut tracker = Tracker::new(Arc::new(startup));
        tracker.touch(b"work_mem");
        tracker.learn(&[pair("work_mem", "1MB")], APP);
        tracker.reset_all();
        let restore = String::from_utf8(tracker.restore_texts().concat()).unwrap();
        assert!(restore.contains("'timezone','UTC'") && !restore.contains("work_mem"));
        tracker.restored();
        assert!(!tracker.restores());
        let probe = String::from_utf8(tracker.probe(true).unwrap().text).unwrap();
        assert!(probe.ends_with("IN ('timezone','work_mem')"), "{probe}");
        let rows = [
            pair("timezone", "UTC"),
            pair("work_mem", "4MB"),
            (b"work_mem".to_vec(), None),
        ];
        tracker.learn(&rows, APP);
        assert!(Arc::ptr_eq(tracker.current(), tracker.startup()));
    }

    #[test]
    fn being_the_role_one_began_with_is_no_setting_and_being_none_may_be_one() {
        let mut tracker = Tracker::new(Arc::default());
        tracker.touch(b"role");
        let probe = |has| String::from_utf8(tracker.probe(has).unwrap().text).unwrap();
        assert!(probe(false).contains("'login role'") && !probe(true).contains("'login role'"));
        tracker.learn(&[pair("role", "none"), pair("login role", "owner")], APP);
        assert_eq!(tracker.current().get(b"role"), Some(&b"none"[..]));
        let login = Login {
            role: Some(b"owner"),
            ..APP
        };
        tracker.touch(b"role");
        tracker.learn(&[pair("role", "owner")], login);
        assert!(tracker.current().is_empty());
    }

    #[test]
    fn a_question_that_was_cancelled_takes_its_time_once() {
        let mut tracker = Tracker::new(Arc::default());
        tracker.touch(b"statement_timeout");
        tracker.touch(b"work_mem");
        assert!(tracker.asks_again() && !tracker.asks_again());
        let probe = String::from_utf8(tracker.probe(true).unwrap().text).unwrap();
        let statements: Vec<&str> = probe.split(';').collect();
        assert!(statements[0].contains("current_setting('statement_timeout', true)"));
        assert_eq!(
            statements[1],
            "SELECT pg_catalog.set_config('statement_timeout', '0', true)"
        );
        assert!(statements[2].contains("'work_mem'") && !statements[2].contains("timeout"));
        tracker.learn(&[], APP);
        assert!(tracker.asks_again());
    }

    #[test]
    fn a_set_behind_a_reset_has_the_last_word() {
        let mut startup = Settings::default();
        startup.set(b"role", Some(b"a"));
        startup.set(b"my.own", Some(b"a"));
        let mut tracker = Tracker::new(Arc::new(startup));
        tracker.discard_all();
        tracker.assign(b"Role");
        let restore = String::from_utf8(tracker.restore_texts().concat()).unwrap();
        assert!(restore.contains("'my.own'") && !restore.contains("role"));
        assert!(tracker.is_touched());
        tracker.restored();
        tracker.reset_all();
        let restore = String::from_utf8(tracker.restore_texts().concat()).unwrap();
        assert!(restore.contains("'my.own'") && !restore.contains("role"));
    }
}
