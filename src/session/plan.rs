//! The messages that turn a backend's settings into a session's.

use std::sync::Arc;

use super::literal::put_text;
use super::mirror::Mirror;
use super::settings::{Settings, same};

/// How a plan has to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing to do.
    None,
    /// In the same write as the client's statement: it can't fail but by the server's end.
    Ahead,
    /// Its answer is awaited first, because it may fail, and the client's statement must not run as somebody else or
    /// with other settings: a role may have been dropped or its membership revoked meanwhile, and a timeout that the
    /// backend still has may end the plan itself.
    Awaited,
}

/// Whether a session's settings are set before its identity is taken, or after.
///
/// # Why both
/// What only a superuser may change was set either by one who logged in as a superuser and took a lesser role then, or
/// under a role that may. Nothing tells which; the first way is tried first, and of a session that needed the second
/// one that is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    SettingsFirst,
    IdentityFirst,
}

/// How to bring a backend to a session's settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    pub order: Order,
    /// Somebody else may have left settings there that nobody knows of.
    pub is_foreign: bool,
    /// What the backend's login is followed by: a setting that is taken off it goes back to what that has set.
    pub connect_query: Option<&'a str>,
}

const ROLE: &[u8] = b"role";
const SESSION_AUTHORIZATION: &[u8] = b"session_authorization";
const RESET_IDENTITY: &[u8] = b"RESET SESSION AUTHORIZATION;RESET ROLE;";

/// Settings whose value was accepted once and is accepted again, whatever happens to catalogue and privileges.
///
/// # Why no custom setting is among them
/// A library that defines or reserves the prefix of one may be loaded on the next backend: implicitly, by any function,
/// and from then on its rules count (`SET plpgsql.variable_conflict` is a superuser's, once PL/pgSQL was used). What a
/// name went through on other backends says nothing of that. So a plan with one is awaited: a round trip more where a
/// backend changes hands between sessions whose custom settings differ, and none where they are the same. Only the
/// prefix of pgweir's own is nobody else's.
const SURE: [&[u8]; 16] = [
    b"application_name",
    b"bytea_output",
    b"client_encoding",
    b"client_min_messages",
    b"datestyle",
    b"default_transaction_isolation",
    b"default_transaction_read_only",
    b"extra_float_digits",
    b"idle_in_transaction_session_timeout",
    b"intervalstyle",
    b"lock_timeout",
    b"search_path",
    b"standard_conforming_strings",
    b"statement_timeout",
    b"timezone",
    b"work_mem",
];

/// Settings that can end a statement of pgweir's own.
const TIMEOUTS: [&[u8]; 2] = [b"statement_timeout", b"transaction_timeout"];

fn is_sure(name: &[u8]) -> bool {
    SURE.contains(&name) || name.starts_with(b"pgweir.")
}

fn is_identity(name: &[u8]) -> bool {
    name == ROLE || name == SESSION_AUTHORIZATION
}

fn has_identity(settings: &Settings) -> bool {
    settings.get(ROLE).is_some() || settings.get(SESSION_AUTHORIZATION).is_some()
}

fn identity_differs(have: &Settings, want: &Settings) -> bool {
    [ROLE, SESSION_AUTHORIZATION]
        .iter()
        .any(|name| have.get(name) != want.get(name))
}

fn removed<'a>(have: &'a Settings, want: &Settings) -> impl Iterator<Item = &'a [u8]> {
    have.iter()
        .map(|(name, _)| name)
        .filter(|name| want.get(name).is_none() && !is_identity(name))
}

/// Appends the statements that turn `have` into `want` to `text`, to be sent as one simple query (so they take effect
/// together or not at all).
///
/// Identity goes back to the login user first, so that what only a superuser may change is changed as the one who logged
/// in; the wanted role is taken as `order` says.
fn settings(have: &Settings, want: &Settings, order: Order, text: &mut Vec<u8>) -> Pace {
    if have == want {
        return Pace::None;
    }
    let may_be_ended = TIMEOUTS.iter().any(|name| have.get(name).is_some());
    let mut is_sure_of_all = !may_be_ended;
    if has_identity(have) {
        text.extend_from_slice(RESET_IDENTITY);
    }
    for name in removed(have, want) {
        is_sure_of_all &= is_sure(name);
        text.extend_from_slice(b"SELECT pg_catalog.set_config(");
        put_text(text, name);
        // NULL is what RESET is to set_config (PostgreSQL documentation, "System Administration Functions").
        text.extend_from_slice(b",NULL,false);");
    }
    let takes_identity = has_identity(want) && (has_identity(have) || identity_differs(have, want));
    is_sure_of_all &= !takes_identity;
    if takes_identity && order == Order::IdentityFirst {
        put_identity(text, want);
    }
    let changed = want
        .iter()
        .filter(|(name, value)| have.get(name) != Some(*value) && !is_identity(name));
    for (name, value) in changed {
        is_sure_of_all &= is_sure(name);
        put_set(text, name, value);
    }
    if takes_identity && order == Order::SettingsFirst {
        put_identity(text, want);
    }
    if is_sure_of_all {
        Pace::Ahead
    } else {
        Pace::Awaited
    }
}

/// The same where the backend may also have settings nobody knows of, or lack some of `connect_query`.
fn anew(have: &Settings, want: &Settings, how: How<'_>, text: &mut Vec<u8>) -> Pace {
    // RESET ALL leaves the identity alone, and needs the login user's for what only a superuser may change.
    if has_identity(have) || how.connect_query.is_some() {
        text.extend_from_slice(RESET_IDENTITY);
    }
    text.extend_from_slice(b"RESET ALL;");
    if let Some(connect_query) = how.connect_query {
        text.extend_from_slice(connect_query.as_bytes());
        // It may end in a comment.
        text.extend_from_slice(b"\n;");
    }
    let pace = settings(&Settings::default(), want, how.order, text);
    let may_be_ended = TIMEOUTS.iter().any(|name| have.get(name).is_some());
    if may_be_ended || how.connect_query.is_some() || pace == Pace::Awaited {
        Pace::Awaited
    } else {
        Pace::Ahead
    }
}

/// Whether everything has to be set anew.
///
/// # Why where there is a `connect_query`
/// Nobody knows what it has set: a custom setting is listed nowhere. What is taken off a backend goes back to the
/// server's own value, and so does what a client resets, where a fresh backend would have that of the query.
///
/// # Why where something unsure is taken off
/// RESET ALL asks for no privileges and checks no value, so it can't fail.
fn starts_anew(mirror: &Mirror, want: &Settings, how: How<'_>) -> bool {
    let have = &mirror.settings;
    let has_query = how.connect_query.is_some();
    let takes_off = || removed(have, want).any(|name| has_query || !is_sure(name));
    let loses = || has_query && (mirror.is_bare || identity_differs(have, want));
    // Its own session keeps what nobody knows of.
    how.is_foreign || (mirror.unknown_to.is_none() && (loses() || takes_off()))
}

/// Whether what [`put`] writes runs `connect_query`.
pub fn runs_connect_query(mirror: &Mirror, want: &Settings, how: How<'_>) -> bool {
    how.connect_query.is_some() && starts_anew(mirror, want, how)
}

/// Whether the backend `mirror` is of has anything else than `want`.
pub fn is_due(mirror: &Mirror, want: &Arc<Settings>, how: How<'_>) -> bool {
    let lacks_some = mirror.is_bare && how.connect_query.is_some() && mirror.unknown_to.is_none();
    how.is_foreign || lacks_some || !same(&mirror.settings, want)
}

/// Appends the statements that bring the backend `mirror` is of to `want`; once they have run, [`done`] is to be told.
pub fn put(mirror: &Mirror, want: &Settings, how: How<'_>, text: &mut Vec<u8>) -> Pace {
    if starts_anew(mirror, want, how) {
        anew(&mirror.settings, want, how, text)
    } else {
        settings(&mirror.settings, want, how.order, text)
    }
}

/// The backend `mirror` is of has `want`, by what [`put`] wrote.
pub fn done(mirror: &mut Mirror, want: &Arc<Settings>, how: How<'_>) {
    if starts_anew(mirror, want, how) {
        mirror.unknown_to = None;
        mirror.is_bare = false;
    }
    mirror.settings = Arc::clone(want);
    mirror.unnamed = None;
}

/// Appends the statements that bring the backend `mirror` is of to `want`, and notes that it has it.
pub fn onto(mirror: &mut Mirror, want: &Arc<Settings>, how: How<'_>, text: &mut Vec<u8>) -> Pace {
    let pace = put(mirror, want, how, text);
    done(mirror, want, how);
    pace
}

fn put_identity(text: &mut Vec<u8>, want: &Settings) {
    for name in [SESSION_AUTHORIZATION, ROLE] {
        if let Some(value) = want.get(name) {
            put_set(text, name, value);
        }
    }
}

fn put_set(text: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    text.extend_from_slice(b"SELECT pg_catalog.set_config(");
    put_text(text, name);
    text.push(b',');
    put_text(text, value);
    text.extend_from_slice(b",false);");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn set(entries: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in entries {
            settings.set(name.as_bytes(), Some(value.as_bytes()));
        }
        settings
    }

    fn text(have: &[(&str, &str)], want: &[(&str, &str)]) -> (Pace, String) {
        let mut out = Vec::new();
        let pace = settings(&set(have), &set(want), Order::SettingsFirst, &mut out);
        (pace, String::from_utf8(out).unwrap())
    }

    #[test]
    fn equal_sets_need_nothing() {
        assert_eq!(
            text(&[("a", "1")], &[("a", "1")]),
            (Pace::None, String::new())
        );
    }

    #[test]
    fn only_differences_are_sent() {
        let (pace, sql) = text(
            &[("a", "1"), ("b", "2"), ("c", "3")],
            &[("a", "1"), ("b", "x"), ("d", "4")],
        );
        assert_eq!(pace, Pace::Awaited);
        assert_eq!(
            sql,
            "SELECT pg_catalog.set_config('c',NULL,false);\
             SELECT pg_catalog.set_config('b','x',false);\
             SELECT pg_catalog.set_config('d','4',false);"
        );
    }

    #[test]
    fn a_role_is_left_first_and_taken_last_and_awaited() {
        let (pace, sql) = text(&[("role", "a")], &[("role", "b"), ("x", "1")]);
        assert_eq!(pace, Pace::Awaited);
        assert_eq!(
            sql,
            "RESET SESSION AUTHORIZATION;RESET ROLE;\
             SELECT pg_catalog.set_config('x','1',false);\
             SELECT pg_catalog.set_config('role','b',false);"
        );
        assert_eq!(text(&[("role", "a")], &[]).0, Pace::Ahead);
    }

    #[test]
    fn a_backend_with_unknown_settings_is_reset_first() {
        let mut out = Vec::new();
        let have = set(&[("a", "1"), ("role", "r")]);
        let pace = anew(&have, &set(&[("b", "2")]), How::default(), &mut out);
        assert_eq!(pace, Pace::Awaited);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;\
             SELECT pg_catalog.set_config('b','2',false);"
        );
        assert_eq!(
            anew(&set(&[]), &set(&[]), How::default(), &mut Vec::new()),
            Pace::Ahead
        );
    }

    #[test]
    fn a_plan_that_a_timeout_may_end_is_awaited() {
        let (have, want) = ([("statement_timeout", "1ms")], [("work_mem", "1")]);
        assert_eq!(text(&have, &want).0, Pace::Awaited);
        assert_eq!(text(&want, &have).0, Pace::Ahead);
    }

    #[test]
    fn what_a_library_may_have_defined_is_awaited() {
        for other in ["my.own", "temp_buffers"] {
            assert_eq!(text(&[], &[(other, "1")]).0, Pace::Awaited);
            assert_eq!(text(&[(other, "1")], &[]).0, Pace::Awaited);
        }
        let (ours, sure) = (("pgweir.consistency", "any"), ("search_path", "a"));
        assert_eq!(text(&[ours], &[sure]).0, Pace::Ahead);
    }

    #[test]
    fn what_may_not_be_taken_off_is_reset_with_all() {
        let mut mirror = Mirror::new(Arc::default(), 1);
        let want = Arc::new(set(&[("search_path", "a")]));
        mirror.settings = Arc::new(set(&[("my.own", "1")]));
        let mut out = Vec::new();
        assert_eq!(
            onto(&mut mirror, &want, How::default(), &mut out),
            Pace::Ahead
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "RESET ALL;SELECT pg_catalog.set_config('search_path','a',false);"
        );
        assert!(mirror.settings == want && !is_due(&mirror, &want, How::default()));
    }

    #[test]
    fn a_role_may_be_taken_before_what_it_may_set() {
        let (have, want) = (set(&[]), set(&[("log_statement", "all"), ("role", "b")]));
        let mut out = Vec::new();
        settings(&have, &want, Order::IdentityFirst, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "SELECT pg_catalog.set_config('role','b',false);\
             SELECT pg_catalog.set_config('log_statement','all',false);"
        );
    }

    #[test]
    fn what_is_taken_off_goes_back_to_the_connect_query() {
        let how = How {
            connect_query: Some("SET work_mem = '7MB' -- ours"),
            ..How::default()
        };
        let mut mirror = Mirror::new(Arc::default(), 1);
        let (none, some) = (Arc::default(), Arc::new(set(&[("work_mem", "1MB")])));
        let mut out = Vec::new();
        assert!(!is_due(&mirror, &none, how) && is_due(&mirror, &some, how));
        onto(&mut mirror, &some, how, &mut out);
        assert!(!out.starts_with(b"RESET"));
        out.clear();
        assert_eq!(onto(&mut mirror, &none, how, &mut out), Pace::Awaited);
        let anew =
            "RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;SET work_mem = '7MB' -- ours\n;";
        assert_eq!(String::from_utf8(out).unwrap(), anew);
        assert!(!is_due(&mirror, &none, how));
        mirror.is_bare = true;
        assert!(is_due(&mirror, &none, how) && !is_due(&mirror, &none, How::default()));
        onto(&mut mirror, &none, how, &mut Vec::new());
        assert!(!is_due(&mirror, &none, how));
    }

    /// A server's settings as far as plans touch them: it reads the statements itself, so that a mistake in writing
    /// them can't hide.
    fn apply(server: &mut BTreeMap<Vec<u8>, Vec<u8>>, mut text: &[u8]) {
        let is_identity = |name: &[u8]| matches!(name, b"role" | b"session_authorization");
        while !text.is_empty() {
            if let Some(rest) = text.strip_prefix(b"RESET SESSION AUTHORIZATION;") {
                server.remove(&b"session_authorization"[..]);
                server.remove(&b"role"[..]);
                text = rest;
            } else if let Some(rest) = text.strip_prefix(b"RESET ROLE;") {
                server.remove(&b"role"[..]);
                text = rest;
            } else if let Some(rest) = text.strip_prefix(b"RESET ALL;") {
                server.retain(|name, _| is_identity(name));
                text = rest;
            } else {
                let rest = text.strip_prefix(b"SELECT pg_catalog.set_config(").unwrap();
                let (name, rest) = literal(rest);
                let rest = rest.strip_prefix(b",").unwrap();
                let (value, rest) = match rest.strip_prefix(b"NULL") {
                    Some(rest) => (None, rest),
                    None => (Some(literal(rest).0), literal(rest).1),
                };
                text = rest.strip_prefix(b",false);").unwrap();
                if name == b"session_authorization" {
                    server.remove(&b"role"[..]);
                }
                match value {
                    Some(value) => server.insert(name, value),
                    None => server.remove(&name),
                };
            }
        }
    }

    /// A constant as the server reads it, and what follows.
    fn literal(text: &[u8]) -> (Vec<u8>, &[u8]) {
        if let Some(text) = text.strip_prefix(b"pg_catalog.convert_from(pg_catalog.decode(") {
            let (digits, rest) = quoted(text);
            let rest = rest.strip_prefix(b",'hex'),pg_catalog.getdatabaseencoding())");
            let byte = |two: &[u8]| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap();
            return (digits.chunks(2).map(byte).collect(), rest.unwrap());
        }
        quoted(text)
    }

    fn quoted(text: &[u8]) -> (Vec<u8>, &[u8]) {
        let (escapes, mut rest) = match text.strip_prefix(b" E'") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix(b"'").unwrap()),
        };
        let mut value = Vec::new();
        loop {
            match rest {
                [b'\'', b'\'', tail @ ..] => {
                    value.push(b'\'');
                    rest = tail;
                }
                [b'\'', tail @ ..] => return (value, tail),
                [b'\\', byte, tail @ ..] if escapes => {
                    assert_eq!(*byte, b'\\', "the only escape that is written");
                    value.push(b'\\');
                    rest = tail;
                }
                [b'\\', ..] => panic!("a backslash means one thing or another"),
                [byte, tail @ ..] => {
                    value.push(*byte);
                    rest = tail;
                }
                [] => panic!("a literal without end"),
            }
        }
    }

    fn some_settings() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
        const NAMES: [&str; 7] = [
            "role",
            "session_authorization",
            "a",
            "b",
            "my.c",
            "statement_timeout",
            "x'y",
        ];
        let name = prop::sample::select(&NAMES[..]).prop_map(|name| name.as_bytes().to_vec());
        let text = prop::collection::vec(prop::sample::select(&b"ab '\"\\;,()$E\xff"[..]), 0..8);
        prop::collection::btree_map(name, text, 0..6)
    }

    fn settings_of(map: &BTreeMap<Vec<u8>, Vec<u8>>) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in map {
            settings.set(name, Some(value));
        }
        settings
    }

    proptest! {
        #[test]
        fn a_plan_makes_the_backend_what_the_session_wants(
            have in some_settings(),
            want in some_settings(),
            order in prop::sample::select(&[Order::SettingsFirst, Order::IdentityFirst][..]),
        ) {
            let mut text = Vec::new();
            let pace = settings(&settings_of(&have), &settings_of(&want), order, &mut text);
            prop_assert_eq!(pace == Pace::None, have == want);
            let mut server = have;
            apply(&mut server, &text);
            prop_assert_eq!(server, want);
        }

        #[test]
        fn a_plan_from_scratch_also_removes_what_nobody_knows(
            have in some_settings(),
            unknown in some_settings(),
            want in some_settings(),
        ) {
            let mut text = Vec::new();
            anew(&settings_of(&have), &settings_of(&want), How::default(), &mut text);
            let mut server = have;
            let is_plain = |name: &[u8]| !is_identity(name);
            server.extend(unknown.into_iter().filter(|(name, _)| is_plain(name)));
            apply(&mut server, &text);
            prop_assert_eq!(server, want);
        }
    }
}
