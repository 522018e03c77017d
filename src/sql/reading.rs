//! How the server reads a text: by settings, some of which it does not tell; and which statements may change those.
//!
//! Strings become values when a text is analysed, by the settings of that moment: `'2020-01-01'::timestamptz` by the time
//! zone. A text that is prepared keeps what its strings meant then.

use super::classify::Class;
use super::state::Effect;

/// Settings that decide what a text means when it is analysed, and that the server reports.
pub const REPORTED: [&str; 5] = [
    "client_encoding",
    "standard_conforming_strings",
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
];

/// The same of those that it does not report. (`search_path` is not among them: under another one the server analyses a
/// prepared statement anew by itself.)
pub const UNREPORTED: [&str; 6] = [
    "array_nulls",
    "backslash_quote",
    "lc_monetary",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];

/// Those of them by which bytes become tokens.
const LEXING: [&str; 2] = ["client_encoding", "standard_conforming_strings"];

/// Which of these settings a statement may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rereads {
    pub lexing: bool,
    /// Any that the server reports, be it only when the exchange is over.
    pub reported: bool,
    /// One that it does not, until the transaction ends.
    pub unreported: bool,
    told: Told,
}

/// What the transaction under way has changed and the server has reported: it is taken back with the transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    lexing: bool,
    reported: bool,
}

impl Rereads {
    /// Nothing is known of what ran.
    pub const ALL: Self = Self {
        lexing: true,
        reported: true,
        unreported: true,
        told: Told {
            lexing: false,
            reported: false,
        },
    };

    pub fn of(class: &Class) -> Self {
        let mut all = Self::default();
        class.effects().for_each(|effect| all.add(Self::by(effect)));
        all
    }

    fn by(effect: &Effect) -> Self {
        match effect {
            Effect::Setting { name, .. } | Effect::ResetSetting(name) => {
                let is_in = |names: &[&str]| {
                    let name = name.as_bytes();
                    names
                        .iter()
                        .any(|it| it.as_bytes().eq_ignore_ascii_case(name))
                };
                Self {
                    lexing: is_in(&LEXING),
                    reported: is_in(&REPORTED),
                    unreported: is_in(&UNREPORTED),
                    ..Self::default()
                }
            }
            Effect::ResetAll
            | Effect::DiscardAll
            | Effect::SettingsUnknown
            | Effect::Unparsable => Self::ALL,
            // A function that leaves bytes to be read otherwise behind is not to be had for every call of one.
            Effect::OpaqueCode => Self {
                reported: true,
                ..Self::default()
            },
            _ => Self::default(),
        }
    }

    /// The server has reported what it reports.
    pub fn are_told(&mut self) {
        self.told.lexing |= std::mem::take(&mut self.lexing);
        self.told.reported |= std::mem::take(&mut self.reported);
    }

    /// The transaction, or a part of it, is over once what is being sent has run.
    pub fn may_be_taken_back(&mut self) {
        self.lexing |= self.told.lexing;
        self.reported |= self.told.reported;
    }

    pub fn add(&mut self, other: Self) {
        self.lexing |= other.lexing;
        self.reported |= other.reported;
        self.unreported |= other.unreported;
    }
}

/// Whether a setting that is reported may have a say in what `text` means: it has strings, or characters that are not
/// ASCII.
pub fn has_constants(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'\'', b'$', &text[at..]) {
        at += found + 1;
        let is_parameter = text[at - 1] == b'$' && text.get(at).is_some_and(u8::is_ascii_digit);
        if !is_parameter {
            return true;
        }
    }
    !text.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::super::classify::classify;
    use super::super::lexer::LexOptions;
    use super::*;

    fn rereads(text: &str) -> [bool; 3] {
        let all = Rereads::of(&classify(text.as_bytes(), LexOptions::default()));
        [all.lexing, all.reported, all.unreported]
    }

    #[test]
    fn what_changes_the_reading_of_texts_is_seen() {
        for (text, expected) in [
            ("SELECT 1", [false; 3]),
            ("SET work_mem = '1MB'", [false; 3]),
            ("SET LOCAL search_path TO a", [false; 3]),
            ("SET TIME ZONE 'UTC'", [false, true, false]),
            ("SET LOCAL datestyle TO iso", [false, true, false]),
            ("RESET intervalstyle", [false, true, false]),
            ("SET NAMES 'latin1'", [true, true, false]),
            (
                "SET standard_conforming_strings TO off",
                [true, true, false],
            ),
            ("SET array_nulls = off", [false, false, true]),
            ("DISCARD ALL", [true; 3]),
            ("RESET ALL", [true; 3]),
            ("DO $$$$", [false, true, false]),
        ] {
            assert_eq!(rereads(text), expected, "{text}");
        }
    }

    #[test]
    fn what_was_told_is_in_doubt_again_when_it_is_taken_back() {
        let mut all = Rereads::default();
        let of = |text: &str| Rereads::of(&classify(text.as_bytes(), LexOptions::default()));
        all.add(of("SET LOCAL client_encoding TO utf8"));
        all.are_told();
        assert!(!all.lexing && !all.reported);
        all.add(of("SET LOCAL datestyle TO iso"));
        all.are_told();
        all.may_be_taken_back();
        assert!(all.lexing && all.reported && !all.unreported);
    }

    #[test]
    fn parameters_are_no_constants() {
        for (text, expected) in [
            ("SELECT a FROM t WHERE b = $1 AND c = $22", false),
            ("SELECT 1", false),
            ("SELECT 'x'", true),
            ("SELECT $$x$$, $1", true),
            ("SELECT $1, $a$x$a$", true),
            ("SELECT $", true),
            ("SELECT \"é\"", true),
        ] {
            assert_eq!(has_constants(text.as_bytes()), expected, "{text}");
        }
    }
}
