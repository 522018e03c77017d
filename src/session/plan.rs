//! The messages that turn a backend's settings into a session's.

use std::sync::Arc;

use super::mirror::Mirror;
use super::settings::{Settings, put_literal};

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

const ROLE: &[u8] = b"role";
const SESSION_AUTHORIZATION: &[u8] = b"session_authorization";

/// Settings whose value was accepted once and is accepted again, whatever happens to catalogue and privileges. Custom
/// ones (with a dot) are as well.
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

fn is_identity(name: &[u8]) -> bool {
    name == ROLE || name == SESSION_AUTHORIZATION
}

/// Appends the statements that turn `have` into `want` to `text`, to be sent as one simple query (so they take effect
/// together or not at all).
///
/// Identity goes back to the login user first and to the wanted role last, so that settings only a superuser may
/// change are changed as the one who logged in.
pub fn settings(have: &Settings, want: &Settings, text: &mut Vec<u8>) -> Pace {
    if have == want {
        return Pace::None;
    }
    let mut pace = if TIMEOUTS.iter().any(|name| have.get(name).is_some()) {
        Pace::Awaited
    } else {
        Pace::Ahead
    };
    let identity_differs = [ROLE, SESSION_AUTHORIZATION]
        .iter()
        .any(|name| have.get(name) != want.get(name));
    let had_identity = [ROLE, SESSION_AUTHORIZATION]
        .iter()
        .any(|name| have.get(name).is_some());
    if had_identity {
        text.extend_from_slice(b"RESET SESSION AUTHORIZATION;RESET ROLE;");
    }
    for (name, _) in have
        .iter()
        .filter(|(name, _)| want.get(name).is_none() && !is_identity(name))
    {
        text.extend_from_slice(b"SELECT pg_catalog.set_config(");
        put_literal(text, name);
        // NULL is what RESET is to set_config (PostgreSQL documentation, "System Administration Functions").
        text.extend_from_slice(b",NULL,false);");
    }
    let changed = want
        .iter()
        .filter(|(name, value)| have.get(name) != Some(*value) && !is_identity(name));
    for (name, value) in changed {
        if !SURE.contains(&name) && !name.contains(&b'.') {
            pace = Pace::Awaited;
        }
        put_set(text, name, value);
    }
    if had_identity || identity_differs {
        for name in [SESSION_AUTHORIZATION, ROLE] {
            if let Some(value) = want.get(name) {
                put_set(text, name, value);
                pace = Pace::Awaited;
            }
        }
    }
    pace
}

/// As [`settings`], where the backend may also have settings nobody knows of.
pub fn anew(
    have: &Settings,
    want: &Settings,
    connect_query: Option<&str>,
    text: &mut Vec<u8>,
) -> Pace {
    // RESET ALL leaves the identity alone, and needs the login user's for what only a superuser may change.
    if [ROLE, SESSION_AUTHORIZATION]
        .iter()
        .any(|name| have.get(name).is_some())
    {
        text.extend_from_slice(b"RESET SESSION AUTHORIZATION;RESET ROLE;");
    }
    text.extend_from_slice(b"RESET ALL;");
    if let Some(connect_query) = connect_query {
        text.extend_from_slice(connect_query.as_bytes());
        text.push(b';');
    }
    let pace = settings(&Settings::default(), want, text);
    let may_fail = TIMEOUTS.iter().any(|name| have.get(name).is_some());
    if may_fail || pace == Pace::Awaited {
        Pace::Awaited
    } else {
        Pace::Ahead
    }
}

/// Appends the statements that bring the backend `mirror` is of to `want`, and notes that it has it. `resets`: somebody
/// else may have left settings there that nobody knows of.
pub fn onto(
    mirror: &mut Mirror,
    want: &Arc<Settings>,
    resets: bool,
    connect_query: Option<&str>,
    text: &mut Vec<u8>,
) -> Pace {
    let pace = if resets {
        mirror.unknown_to = None;
        anew(&mirror.settings, want, connect_query, text)
    } else {
        settings(&mirror.settings, want, text)
    };
    mirror.settings = Arc::clone(want);
    mirror.unnamed = None;
    pace
}

fn put_set(text: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    text.extend_from_slice(b"SELECT pg_catalog.set_config(");
    put_literal(text, name);
    text.push(b',');
    put_literal(text, value);
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
        let pace = settings(&set(have), &set(want), &mut out);
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
        let pace = anew(&have, &set(&[("b", "2")]), None, &mut out);
        assert_eq!(pace, Pace::Awaited);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;\
             SELECT pg_catalog.set_config('b','2',false);"
        );
        assert_eq!(
            anew(&set(&[]), &set(&[]), None, &mut Vec::new()),
            Pace::Ahead
        );
    }

    #[test]
    fn a_plan_that_a_timeout_may_end_is_awaited() {
        let (have, want) = ([("statement_timeout", "1ms")], [("x", "1")]);
        assert_eq!(text(&have, &want).0, Pace::Awaited);
        assert_eq!(text(&want, &have).0, Pace::Ahead);
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

    /// A literal as the server reads it, and what follows.
    fn literal(text: &[u8]) -> (Vec<u8>, &[u8]) {
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
        fn a_plan_makes_the_backend_what_the_session_wants(have in some_settings(), want in some_settings()) {
            let mut text = Vec::new();
            let pace = settings(&settings_of(&have), &settings_of(&want), &mut text);
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
            anew(&settings_of(&have), &settings_of(&want), None, &mut text);
            let mut server = have;
            let is_plain = |name: &[u8]| !is_identity(name);
            server.extend(unknown.into_iter().filter(|(name, _)| is_plain(name)));
            apply(&mut server, &text);
            prop_assert_eq!(server, want);
        }
    }
}
