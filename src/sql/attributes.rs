//! Names that a text has behind a dot: columns as a rule, but `table.name` may also call a function `name(table)`.
//!
//! Bound: `NAMES_MAX` names, four bytes each; a text with more may name anything.

use super::lexer::{LexOptions, Lexer, TokenKind};
use super::name::Name;

const NAMES_MAX: usize = 256;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// Hashes of the names, sorted.
    Named(Box<[u32]>),
    /// Too many, or not sure how they are written.
    Any,
}

impl Attributes {
    pub fn of(text: &[u8], options: LexOptions) -> Self {
        if options.cannot_be_sure(text) {
            return Self::Any;
        }
        if memchr::memchr(b'.', text).is_none() {
            return Self::Named(Box::default());
        }
        let mut lexer = Lexer::new(text, options);
        let mut hashes = Vec::new();
        let mut is_behind_dot = false;
        while let Some(token) = lexer.next_significant() {
            if is_behind_dot && token.kind.is_name() {
                // Its escape character may be said behind it.
                if token.kind == TokenKind::UnicodeIdent || hashes.len() >= NAMES_MAX {
                    return Self::Any;
                }
                let name = Name::of_token(token.kind, &text[token.range()], b'\\');
                hashes.push(hash(name.as_bytes()));
            }
            is_behind_dot = token.kind == TokenKind::Dot;
        }
        hashes.sort_unstable();
        hashes.dedup();
        Self::Named(hashes.into())
    }

    /// Whether `name` may be among them; true too for a few that are not.
    pub fn may_have(&self, name: &[u8]) -> bool {
        match self {
            Self::Named(hashes) => hashes.binary_search(&hash(name)).is_ok(),
            Self::Any => true,
        }
    }
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    name.iter().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Attributes {
        Attributes::of(text.as_bytes(), LexOptions::default())
    }

    #[test]
    fn names_behind_a_dot_are_found_as_the_server_folds_them() {
        let found = of("SELECT t.One, (t).\"Two\", s . /* so */ three, four, '.five' FROM s.t");
        for name in ["one", "Two", "three", "t"] {
            assert!(found.may_have(name.as_bytes()), "{name}");
        }
        for name in ["One", "two", "four", "five", "s"] {
            assert!(!found.may_have(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_is_not_sure_may_be_anything() {
        assert_eq!(
            of("SELECT t.U&\"!0061\" UESCAPE '!' FROM t"),
            Attributes::Any
        );
        assert_eq!(of(&",t.a".repeat(NAMES_MAX + 1)), Attributes::Any);
    }
}
