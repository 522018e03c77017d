//! What a text has to do with statements prepared by SQL: `PREPARE`, `EXECUTE`, `DEALLOCATE`, and the view that lists
//! them.

use super::classify::{Class, StatementKind};
use super::lexer::{LexOptions, Lexer, TokenKind};
use super::name::Name;
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
    pub fn of(text: &[u8], options: LexOptions, class: &Class) -> Self {
        let changes = |effect: &Effect| {
            matches!(
                effect,
                Effect::PrepareSql(_) | Effect::DeallocateSql(Some(_))
            )
        };
        if lists(text, options, class) {
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

/// Whether `text` names the view of prepared statements or the function behind it. Constants count where they decide
/// about the text, because they may be SQL that it runs; elsewhere another text of the same shape has others.
fn lists(text: &[u8], options: LexOptions, class: &Class) -> bool {
    const FUNCTION: &[u8] = b"pg_prepared_statement";
    // Most texts are done with here.
    let starts = memchr::memchr3_iter(b'p', b'P', b'"', text);
    let mentions = |at: usize| {
        let word = text.get(at..at + FUNCTION.len());
        text[at] == b'"' || word.is_some_and(|word| word.eq_ignore_ascii_case(FUNCTION))
    };
    if !{ starts }.any(mentions) {
        return false;
    }
    let is_either = |name: &[u8]| {
        name.strip_prefix(FUNCTION)
            .is_some_and(|it| it == b"" || it == b"s")
    };
    Lexer::new(text, options).any(|token| {
        let bytes = &text[token.range()];
        match token.kind {
            // Its escape character may be said behind it.
            TokenKind::UnicodeIdent => true,
            kind if kind.is_name() => is_either(Name::of_token(kind, bytes, b'\\').as_bytes()),
            kind if kind.is_string() && class.needs_text => bytes
                .windows(FUNCTION.len())
                .any(|word| word.eq_ignore_ascii_case(FUNCTION)),
            _ => false,
        }
    })
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
            ("TABLE PG_Prepared_Statements", P::Listed),
            ("TABLE \"pg_prepared_statements\"", P::Listed),
            (
                "TABLE U&\"pg!005fprepared_statements\" UESCAPE '!'",
                P::Listed,
            ),
            ("TABLE \"PG_PREPARED_STATEMENTS\"", P::None),
            ("TABLE my_pg_prepared_statements", P::None),
            ("SELECT 'pg_prepared_statements'", P::None),
            (
                "DO $$BEGIN PERFORM FROM PG_prepared_statements; END$$",
                P::Listed,
            ),
            (
                "SELECT query_to_xml('TABLE pg_prepared_statements', true, true, '')",
                P::Listed,
            ),
        ] {
            let (text, options) = (text.as_bytes(), LexOptions::default());
            let found = PreparedUse::of(text, options, &classify(text, options));
            assert_eq!(found, expected, "{}", text.escape_ascii());
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
