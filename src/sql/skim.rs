//! A quick look at a text that was most likely seen before: its bytes without the values of plain constants.
//!
//! Applications that put values into their texts send the same text with other values over and over. For those the
//! whole of lexing is too much: here one loop takes out decimal digits and plain strings, and gives up where anything
//! stands that takes a lexer to understand.
//!
//! # Invariants
//! - Texts of one skim have one fingerprint: they differ in the digits of numbers and in what is between the quotes of
//!   strings, and in nothing that decides where a token ends or what it is.
//! - As for fingerprints, nobody can make a text that has another's skim: the hash is keyed.

use super::lexer::LexOptions;

const DIGIT: u8 = 1;
/// A letter, digit, underscore or dollar sign: what is part of a name or ends a number in an unusual way.
const NAME: u8 = 2;
/// What needs a closer look: it may begin a string, a comment, a quoted name, a parameter.
const LOOK: u8 = 4;

const CLASSES: [u8; 256] = {
    let mut classes = [0u8; 256];
    let mut index = 0;
    while index < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "the index stays below 256")]
        let byte = index as u8;
        classes[index] = match byte {
            b'0'..=b'9' => DIGIT | NAME,
            b'A'..=b'Z' | b'a'..=b'z' | b'_' | 0x80..=0xff => NAME,
            b'$' => NAME | LOOK,
            b'\'' | b'"' | b'-' | b'/' => LOOK,
            _ => 0,
        };
        index += 1;
    }
    classes
};

fn is(byte: Option<&u8>, class: u8) -> bool {
    byte.is_some_and(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

/// Feeds the text without its constants to `absorb`, in pieces. False if it needs a closer look; what was fed counts for
/// nothing then.
pub(super) fn skim(text: &[u8], options: LexOptions, mut absorb: impl FnMut(&[u8])) -> bool {
    if options != LexOptions::default() {
        return false;
    }
    // What is not fed yet begins at `start`.
    let (mut start, mut at) = (0, 0);
    while let Some(plain) = plain(&text[at..]) {
        at += plain;
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        if is(text.get(at), DIGIT) {
            let digits = text[at..].iter().take_while(|byte| is(Some(byte), DIGIT));
            let end = at + digits.count();
            // Part of a name, or a number that something follows which makes it one of another kind, such as `0x1F`,
            // `1_000` or `1e5`.
            if !is(before, NAME) && !is(text.get(end), NAME) {
                absorb(&text[start..at]);
                absorb(b"0");
                start = end;
            }
            at = end;
        } else {
            let Some(end) = look(text, at, before) else {
                return false;
            };
            if text[at] == b'\'' {
                absorb(&text[start..=at]);
                start = end;
            }
            at = end;
        }
    }
    absorb(&text[start..]);
    true
}

/// How many bytes are neither digits nor in need of a look; `None` if all are.
fn plain(text: &[u8]) -> Option<usize> {
    let steps = text.chunks_exact(STEP);
    // Most of a text is letters and blanks: what else there is is looked at byte by byte.
    let whole = steps.take_while(|step| {
        let bytes: [u8; STEP] = (*step).try_into().unwrap_or([FIRST; STEP]);
        !has_candidate(u64::from_le_bytes(bytes))
    });
    let skipped = whole.count() * STEP;
    let rest = text[skipped..].iter();
    let found = rest
        .map(|byte| CLASSES[usize::from(*byte)])
        .position(|class| class & (DIGIT | LOOK) != 0);
    found.map(|found| skipped + found)
}

/// Bytes looked at together.
const STEP: usize = size_of::<u64>();
/// Every byte with a class of `DIGIT` or `LOOK` is one of these or between them.
const FIRST: u8 = b'"';
const LAST: u8 = b'9';

/// Whether one of the bytes is at least `FIRST` and at most `LAST`.
fn has_candidate(bytes: u64) -> bool {
    const EACH: u64 = u64::MAX / 0xff;
    const HIGH: u64 = EACH * 0x80;
    // Seven bits of each byte, so that no sum or difference reaches into the next one; the eighth is the answer.
    let low = bytes & !HIGH;
    let at_least = low + EACH * (0x80 - u64::from(FIRST));
    let at_most = EACH * (0x80 + u64::from(LAST)) - low;
    at_least & at_most & !bytes & HIGH != 0
}

/// Where the plain string or the operator at `at` ends; `None` for anything else.
fn look(text: &[u8], at: usize, before: Option<&u8>) -> Option<usize> {
    match (text[at], text.get(at + 1)) {
        (b'-', Some(b'-')) | (b'/', Some(b'*')) => None,
        (b'-' | b'/', _) => Some(at + 1),
        // Behind a letter or `U&` it is a string of another kind.
        (b'\'', _) if !is(before, NAME) && before != Some(&b'&') => string_end(text, at + 1),
        _ => None,
    }
}

/// Where a string ends whose content begins at `at`.
fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr(b'\'', text.get(at..)?)? + 1;
        if text.get(at) != Some(&b'\'') {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sql::fingerprint::stable_id;

    fn of(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let options = LexOptions::default();
        skim(text.as_bytes(), options, |bytes| {
            out.extend_from_slice(bytes);
        })
        .then_some(out)
    }

    #[track_caller]
    fn check(text: &str, skimmed: Option<&str>) {
        let found = of(text);
        let found = found.as_deref().map(String::from_utf8_lossy);
        assert_eq!(found.as_deref(), skimmed, "{text}");
    }

    #[test]
    fn values_go_and_everything_else_stays() {
        check(
            "SELECT a1 FROM t WHERE b=4711 AND c = -12.50;",
            Some("SELECT a1 FROM t WHERE b=0 AND c = -0.0;"),
        );
        check("SELECT 'it''s', 'b'", Some("SELECT ', '"));
        check("SELECT ''", Some("SELECT '"));
        check("SELECT 'a\\'", Some("SELECT '"));
        check(
            "SELECT 1e5, 0x1F, 1_000, 12e-5",
            Some("SELECT 1e5, 0x1F, 1_000, 12e-0"),
        );
        check("SELECT 4/2", Some("SELECT 0/0"));
        let long = format!("SELECT {}", "a, ".repeat(300));
        check(&long, Some(&long));
    }

    #[test]
    fn what_takes_a_lexer_is_left_to_it() {
        for text in [
            "SELECT \"a\"",
            "SELECT $1",
            "SELECT $$a$$",
            "SELECT E'a'",
            "SELECT n'a'",
            "SELECT U&'a'",
            "SELECT 1 -- it's",
            "SELECT /* 'a */ 1",
            "SELECT 'a",
            "SELECT '''",
        ] {
            check(text, None);
        }
        let text = b"SELECT 1";
        for options in [
            LexOptions {
                standard_conforming_strings: false,
                ..LexOptions::default()
            },
            LexOptions {
                unsafe_encoding: true,
                ..LexOptions::default()
            },
            LexOptions {
                in_doubt: true,
                ..LexOptions::default()
            },
        ] {
            assert!(!skim(text, options, |_| {}));
        }
    }

    /// Pieces of texts, the odd ones more often than in life. No UESCAPE: one that belongs to a `U&'…'` is not skimmed,
    /// and any other is an error to the server.
    fn text() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "SELECT", " ", "a", "A1", "1", "42", "0", "9.5", ".", "..", "1e5", "e", "E", "-", "--",
            "/", "*", "/*", "*/", "'", "''", "'a'", "'1'", "\"", "$", "$1", "\n", "\\", "&", "U&",
            "N", "x", "0x1F", "_", "(", ")", ",", ";", "IN", "VALUES", "=", "é", "::", ":", "+",
            "LIMIT", "null",
        ]);
        prop::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
    }

    /// The text with other digits and other letters here and there.
    fn varied(text: &str, seeds: &[u8]) -> String {
        let mut out = String::new();
        for (byte, seed) in text.chars().zip(seeds.iter().cycle()) {
            match (byte, seed % 4) {
                ('0'..='9', 0) => out.push(char::from(b'0' + seed % 10)),
                ('0'..='9', 1) => out.push_str("37"),
                ('a', 2) => out.push('b'),
                _ => out.push(byte),
            }
        }
        out
    }

    #[test]
    fn every_byte_that_counts_is_a_candidate_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let counts = is(Some(&byte), DIGIT | LOOK);
            let expected = (FIRST..=LAST).contains(&byte);
            assert!(expected || !counts, "{byte:#x}");
            for at in 0..STEP {
                for other in [0, b' ', b'z', 0x7f, 0x80, 0xff] {
                    let mut step = [other; STEP];
                    step[at] = byte;
                    let found = has_candidate(u64::from_le_bytes(step));
                    assert_eq!(found, expected, "{step:x?}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn steps_find_what_bytes_find(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let one_by_one = |text: &[u8]| text.iter().position(|byte| is(Some(byte), DIGIT | LOOK));
            prop_assert_eq!(plain(&bytes), one_by_one(&bytes));
            // Mostly letters, as texts are.
            let letters: Vec<u8> = bytes.iter().map(|byte| if *byte < 0xf0 { byte | 0x40 } else { byte & 0x3f }).collect();
            prop_assert_eq!(plain(&letters), one_by_one(&letters));
        }

        #[test]
        fn texts_of_one_skim_have_one_fingerprint(
            text in text(),
            seeds in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            let other = varied(&text, &seeds);
            if let (Some(a), Some(b)) = (of(&text), of(&other)) && a == b {
                let options = LexOptions::default();
                prop_assert_eq!(
                    stable_id(text.as_bytes(), options),
                    stable_id(other.as_bytes(), options),
                    "{} | {}", text, other
                );
            }
        }
    }
}
