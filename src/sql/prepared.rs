//! What a text has to do with statements prepared by SQL: `PREPARE`, `EXECUTE`, `DEALLOCATE`, and the view that lists
//! them.

use super::classify::{Class, StatementKind};
use super::state::Effect;

/// How the names of prepared statements in a text can be dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PreparedUse {
    /// It names none.
    #[default]
    None,
    /// They can be replaced: one `PREPARE` or `DEALLOCATE` alone, or any number of `EXECUTE`s.
    Renamed,
    /// The text prepares or deallocates besides doing other things, so that what a name means changes in its midst: the
    /// backend must know the client's own names.
    Own,
    /// It reads the view of prepared statements: the backend must have the client's and no others.
    Listed,
}

impl PreparedUse {
    pub fn of(text: &[u8], class: &Class) -> Self {
        const VIEW: &[u8] = b"pg_prepared_statement";
        let changes = |effect: &Effect| {
            matches!(
                effect,
                Effect::PrepareSql(_) | Effect::DeallocateSql(Some(_))
            )
        };
        if memchr::memmem::find(text, VIEW).is_some() {
            return Self::Listed;
        }
        if class.effects().any(changes) {
            let alone = matches!(
                class.only(),
                Some(StatementKind::Prepare | StatementKind::Deallocate)
            );
            return if alone { Self::Renamed } else { Self::Own };
        }
        let executes = |effect: &Effect| matches!(effect, Effect::ExecuteSql(_));
        if class.effects().any(executes) {
            Self::Renamed
        } else {
            Self::None
        }
    }
}

/// The names that `text`, wherever in it, tells somebody to execute: what stands behind the word EXECUTE.
pub fn executed_in(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    const WORD: &[u8] = b"execute";
    let is_part =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(*byte, b'_' | b'$') || *byte >= 0x80;
    let ends = memchr::memchr2_iter(b'e', b'E', text).filter_map(move |at| {
        let end = at.checked_sub(WORD.len() - 1)?;
        let word = &text[end..=at];
        let is_word = word.eq_ignore_ascii_case(WORD);
        let is_whole = end
            .checked_sub(1)
            .is_none_or(|before| !is_part(&text[before]));
        (is_word && is_whole).then_some(at + 1)
    });
    ends.filter_map(move |end| {
        let behind = text[end..].trim_ascii_start();
        if let Some(quoted) = behind.strip_prefix(b"\"") {
            let close = memchr::memchr(b'"', quoted)?;
            return Some(quoted[..close].to_vec());
        }
        let has_blank = behind.len() < text.len() - end;
        let length = behind.iter().take_while(|byte| is_part(byte)).count();
        (has_blank && length > 0).then(|| behind[..length].to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::super::classify::classify;
    use super::super::lexer::LexOptions;
    use super::*;

    #[test]
    fn names_can_be_replaced_where_they_mean_one_thing() {
        use PreparedUse as P;
        for (text, expected) in [
            ("SELECT 1", P::None),
            ("DEALLOCATE ALL", P::None),
            ("PREPARE p AS SELECT 1", P::Renamed),
            ("DEALLOCATE PREPARE p;", P::Renamed),
            ("EXECUTE p(1); EXECUTE q", P::Renamed),
            ("EXPLAIN ANALYZE EXECUTE p", P::Renamed),
            ("CREATE TABLE t AS EXECUTE p", P::Renamed),
            ("PREPARE p AS SELECT 1; EXECUTE p", P::Own),
            ("DEALLOCATE p; SELECT 1", P::Own),
            ("SELECT name FROM pg_prepared_statements", P::Listed),
            (
                "SELECT * FROM pg_catalog.pg_prepared_statement()",
                P::Listed,
            ),
        ] {
            let class = classify(text.as_bytes(), LexOptions::default());
            assert_eq!(PreparedUse::of(text.as_bytes(), &class), expected, "{text}");
        }
    }

    #[test]
    fn what_code_is_told_to_execute_is_found_in_any_text() {
        for (text, expected) in [
            ("SELECT 1", &[][..]),
            ("SELECT f('execute q (2, 2)')", &["q"]),
            (
                "SELECT f('EXPLAIN EXECUTE Q1', 'Execute  \"A b\"(1)')",
                &["q1", "A b"],
            ),
            ("DO $$BEGIN EXECUTE 'EXECUTE x'; END$$", &["x"]),
            ("SELECT executes q, unexecute q, execute_q", &[]),
            ("SELECT 'execute", &[]),
            ("EXECUTE \"x", &[]),
            ("execute", &[]),
        ] {
            let found: Vec<_> = executed_in(text.as_bytes()).collect();
            assert_eq!(
                found,
                expected.iter().map(|it| it.as_bytes()).collect::<Vec<_>>(),
                "{text}"
            );
        }
    }
}
