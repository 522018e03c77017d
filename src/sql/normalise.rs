//! A statement's text without its constants, as `pg_stat_statements` shows it: for logs, metrics and the console.
//!
//! No constant of the text is ever in the result, whatever the statement: it may hold a password.

use std::io::Write;

use super::lexer::{LexOptions, Lexer, TokenKind};
use super::shape::{Shape, What};

/// Stands where a text was cut, or where it could not be read on.
pub const CUT: char = '…';

/// The text with `$n` for each constant, numbered from behind the highest parameter, comments left out and white space
/// collapsed; lists of constants are shown as `($n /*, ... */)`. At most `max_bytes`, the cut mark included.
pub fn normalise(text: &[u8], options: LexOptions, max_bytes: usize) -> String {
    let mut next = highest_param(text, options).saturating_add(1);
    let mut out = Vec::with_capacity(text.len().min(max_bytes) + 16);
    let mut cut = false;
    let mut shape = Shape::new(text, options);
    while let Some(what) = shape.next() {
        if shape.spaced() && !out.is_empty() {
            out.push(b' ');
        }
        match what {
            What::Constant => put_param(&mut out, next),
            What::List => {
                out.push(b'(');
                put_param(&mut out, next);
                out.extend_from_slice(b" /*, ... */)");
            }
            What::Semicolon => out.push(b';'),
            What::Token(token) if token.kind == TokenKind::Error => {
                cut = true;
                break;
            }
            What::Token(token) | What::Param(token) => out.extend_from_slice(token.bytes(text)),
        }
        if matches!(what, What::Constant | What::List) {
            next = next.saturating_add(1);
        }
        if out.len() > max_bytes {
            cut = true;
            break;
        }
    }
    let out = String::from_utf8(out)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    finish(out, cut, max_bytes)
}

fn put_param(out: &mut Vec<u8>, number: u32) {
    // To a vector it can't fail.
    let _ = write!(out, "${number}");
}

fn finish(text: String, cut: bool, max_bytes: usize) -> String {
    // Replacing what is not UTF-8 may have made it longer.
    if !cut && text.len() <= max_bytes {
        return text;
    }
    let mut end = max_bytes.saturating_sub(CUT.len_utf8()).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut text = text.get(..end).unwrap_or_default().to_owned();
    if max_bytes >= CUT.len_utf8() {
        text.push(CUT);
    }
    text
}

fn highest_param(text: &[u8], options: LexOptions) -> u32 {
    if memchr::memchr(b'$', text).is_none() {
        return 0;
    }
    let number = |bytes: &[u8]| {
        let digits = std::str::from_utf8(bytes.get(1..)?).ok()?;
        digits.parse::<u32>().ok()
    };
    Lexer::new(text, options)
        .filter(|token| token.kind == TokenKind::Param)
        .filter_map(|token| number(token.bytes(text)))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        normalise(text.as_bytes(), LexOptions::default(), 1000)
    }

    #[test]
    fn constants_become_parameters() {
        for (text, expected) in [
            ("SELECT 1", "SELECT $1"),
            (
                "SELECT a  FROM\n\tt -- x\n WHERE a = 'b' AND c=5",
                "SELECT a FROM t WHERE a = $1 AND c=$2",
            ),
            ("SELECT $3, 'a'", "SELECT $3, $4"),
            ("SELECT -1, a - 1, 2-1", "SELECT $1, a - $2, $3-$4"),
            (
                "SELECT a IN (1, 2), b IN ($1)",
                "SELECT a IN ($2 /*, ... */), b IN ($3 /*, ... */)",
            ),
            (
                "INSERT INTO t VALUES (1, 2), (3, 4) RETURNING a;",
                "INSERT INTO t VALUES ($1 /*, ... */) RETURNING a",
            ),
            (
                "CREATE USER x PASSWORD 'secret'; SELECT 1 ;",
                "CREATE USER x PASSWORD $1; SELECT $2",
            ),
            ("DO $$ secret $$", "DO $1"),
            ("SELECT 'a'\n'b', E'\\'', X'1F'", "SELECT $1, $2, $3"),
            ("/* hint */ SELECT/**/a", "SELECT a"),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_cut() {
        assert_eq!(shown("SELECT 'secret"), "SELECT …");
        assert_eq!(shown("SELECT $$secret"), "SELECT …");
        assert_eq!(shown("SELECT /* secret"), "SELECT …");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = |text: &str, max| normalise(text.as_bytes(), LexOptions::default(), max);
        assert_eq!(cut("SELECT abc", 10), "SELECT abc");
        assert_eq!(cut("SELECT abcd", 10), "SELECT …");
        assert_eq!(cut("SELECT \"ééé\"", 13), "SELECT \"é…");
        assert_eq!(cut("SELECT abcd", 2), "");
        assert_eq!(
            normalise(b"SELECT \"\xff\xff\xff\xff\"", LexOptions::default(), 14),
            "SELECT \"\u{fffd}…"
        );
    }

    proptest! {
        #[test]
        fn the_result_is_bounded(text in prop::collection::vec(any::<u8>(), 0..300), max in 0usize..100) {
            prop_assert!(normalise(&text, LexOptions::default(), max).len() <= max);
        }

        #[test]
        fn no_constant_is_shown(secret in "[a-z]{12}", quote in prop::sample::select(vec![("'", "'"), ("E'", "'"), ("$a$", "$a$"), ("N'", "'"), ("'x'\n'", "'")]), before in "[a-z ,(]{0,20}") {
            let text = format!("{before} {}{secret}{}", quote.0, quote.1);
            prop_assert!(!shown(&text).contains(&secret));
        }
    }
}
