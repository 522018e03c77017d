//! PostgreSQL's lexical rules over raw bytes: a text becomes tokens that tile it exactly.
//!
//! One pass, no allocation, no recursion, no decoding: bytes from 0x80 up are letters, as in the server's `scan.l`.
//! It never fails; what the server's scanner would refuse is a [`TokenKind::Error`] token, and scanning goes on after
//! it. Nothing here knows keywords or grammar.
//!
//! Invariants: the first token starts at 0, each token starts where the one before ended, the last ends at the end of
//! the text, and no token is empty.
//!
//! # Why
//!
//! Rules that changed between server versions are read in the way that is harmless for classification: `0x1F` and
//! `1_000` are one number (16 and later; a syntax error or a label before), `\v` is white space (16), and a number
//! with a letter behind it is two tokens (before 15; a syntax error since). Character sets whose second bytes can be
//! ASCII (SJIS, BIG5, GBK, UHC, JOHAB, GB18030) cannot be scanned by bytes; [`LexOptions::unsafe_encoding`] says so.

mod token;

use memchr::{memchr, memchr2, memmem};

pub use token::{Token, TokenKind};

/// Session settings that change how bytes become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LexOptions {
    /// The server setting of that name: off, backslashes escape inside plain `'…'`.
    pub standard_conforming_strings: bool,
    /// `client_encoding` has characters whose later bytes can be ASCII; tokens after such a character can't be trusted.
    pub unsafe_encoding: bool,
    /// Either setting may have been changed by what was sent before.
    pub in_doubt: bool,
}

impl Default for LexOptions {
    fn default() -> Self {
        Self {
            standard_conforming_strings: true,
            unsafe_encoding: false,
            in_doubt: false,
        }
    }
}

impl LexOptions {
    /// Whether tokens of `text` may differ from what the server sees.
    pub fn cannot_be_sure(self, text: &[u8]) -> bool {
        // What the two settings are about is not ASCII, or a backslash.
        (self.unsafe_encoding && !text.is_ascii())
            || (self.in_doubt && (!text.is_ascii() || text.contains(&b'\\')))
    }
}

/// Iterator over the tokens of a text, white space and comments included.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    standard_conforming_strings: bool,
}

const SPACE: u8 = 1;
const IDENT_START: u8 = 2;
const IDENT_PART: u8 = 4;
const DIGIT: u8 = 8;
const OPERATOR: u8 = 16;

const CLASSES: [u8; 256] = {
    let mut classes = [0u8; 256];
    let mut index = 0;
    while index < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "the index stays below 256")]
        let byte = index as u8;
        classes[index] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'A'..=b'Z' | b'a'..=b'z' | b'_' | 0x80..=0xff => IDENT_START | IDENT_PART,
            b'0'..=b'9' => DIGIT | IDENT_PART,
            b'$' => IDENT_PART,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*'
            | b'/' | b'%' | b'<' | b'>' | b'=' => OPERATOR,
            _ => 0,
        };
        index += 1;
    }
    classes
};

fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a [u8], options: LexOptions) -> Self {
        Self {
            text,
            at: 0,
            standard_conforming_strings: options.standard_conforming_strings,
        }
    }

    /// The text being scanned.
    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// The next token that is neither white space nor a comment.
    pub fn next_significant(&mut self) -> Option<Token> {
        self.next_spaced().map(|(token, _)| token)
    }

    /// The next token that is neither white space nor a comment, and whether there was any before it.
    pub(crate) fn next_spaced(&mut self) -> Option<(Token, bool)> {
        let mut spaced = false;
        loop {
            let start = self.at;
            self.at = self.run(start, SPACE);
            spaced |= self.at != start;
            let token = self.next()?;
            if !token.kind.is_trivia() {
                return Some((token, spaced));
            }
            spaced = true;
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    fn byte_is(&self, at: usize, class: u8) -> bool {
        self.byte(at).is_some_and(|byte| is(byte, class))
    }

    /// Where the run of bytes of `class` from `at` ends.
    fn run(&self, at: usize, class: u8) -> usize {
        let mut end = at;
        while self.byte_is(end, class) {
            end += 1;
        }
        end
    }

    fn token(&self, first: u8) -> (TokenKind, usize) {
        let start = self.at;
        if is(first, SPACE) {
            return (TokenKind::Whitespace, self.run(start, SPACE));
        }
        if is(first, IDENT_START) {
            return self.ident(first);
        }
        if is(first, DIGIT) {
            return (TokenKind::Number, self.number());
        }
        let second = self.byte(start + 1);
        match (first, second) {
            (b'\'', _) if self.standard_conforming_strings => {
                self.string(TokenKind::String, start + 1)
            }
            (b'\'', _) => self.string(TokenKind::EscapeString, start + 1),
            (b'"', _) => self.quoted_ident(TokenKind::QuotedIdent, start + 1),
            (b'-', Some(b'-')) => (TokenKind::LineComment, self.line_end(start)),
            (b'/', Some(b'*')) => self.block_comment(),
            (b'$', _) => self.dollar(),
            (b'.', Some(b'0'..=b'9')) => (TokenKind::Number, self.number()),
            (b'.', Some(b'.')) => (TokenKind::DotDot, start + 2),
            (b':', Some(b':')) => (TokenKind::Typecast, start + 2),
            (b':', Some(b'=')) => (TokenKind::ColonEquals, start + 2),
            _ if is(first, OPERATOR) => (TokenKind::Operator, self.operator()),
            _ => (punctuation(first), start + 1),
        }
    }

    fn ident(&self, first: u8) -> (TokenKind, usize) {
        let start = self.at;
        let second = self.byte(start + 1);
        match (first, second) {
            (b'e' | b'E', Some(b'\'')) => self.string(TokenKind::EscapeString, start + 2),
            (b'b' | b'B', Some(b'\'')) => self.string(TokenKind::BitString, start + 2),
            (b'x' | b'X', Some(b'\'')) => self.string(TokenKind::HexString, start + 2),
            // `N'…'` is the keyword NCHAR and a plain string to the server: escapes as in a plain string.
            (b'n' | b'N', Some(b'\'')) => self.string(TokenKind::NationalString, start + 2),
            (b'u' | b'U', Some(b'&')) => match self.byte(start + 2) {
                Some(b'\'') => self.string(TokenKind::UnicodeString, start + 3),
                Some(b'"') => self.quoted_ident(TokenKind::UnicodeIdent, start + 3),
                _ => (TokenKind::Ident, start + 1),
            },
            _ => (TokenKind::Ident, self.run(start + 1, IDENT_PART)),
        }
    }

    /// A string whose opening quote ends at `at`, with its continuations on later lines.
    fn string(&self, kind: TokenKind, mut at: usize) -> (TokenKind, usize) {
        let escapes = kind == TokenKind::EscapeString
            || (kind == TokenKind::NationalString && !self.standard_conforming_strings);
        let doubles = !matches!(kind, TokenKind::BitString | TokenKind::HexString);
        loop {
            let rest = self.text.get(at..).unwrap_or_default();
            let found = if escapes {
                memchr2(b'\'', b'\\', rest)
            } else {
                memchr(b'\'', rest)
            };
            let Some(found) = found else {
                return (TokenKind::Error, self.text.len());
            };
            at += found;
            if self.byte(at) == Some(b'\\') {
                // The escaped byte may itself be a quote.
                at += 2;
                continue;
            }
            at += 1;
            if doubles && self.byte(at) == Some(b'\'') {
                at += 1;
            } else if let Some(continued) = self.continuation(at) {
                at = continued;
            } else {
                return (kind, at);
            }
        }
    }

    /// Behind the quote that continues a string after white space with a newline in it, `scan.l`'s `quotecontinue`.
    fn continuation(&self, closed: usize) -> Option<usize> {
        let mut at = closed;
        let mut newline_seen = false;
        loop {
            match self.byte(at)? {
                b'\n' | b'\r' => newline_seen = true,
                b' ' | b'\t' | 0x0b | 0x0c => {}
                b'-' if self.byte(at + 1) == Some(b'-') => {
                    at = self.line_end(at);
                    continue;
                }
                b'\'' if newline_seen => return Some(at + 1),
                _ => return None,
            }
            at += 1;
        }
    }

    fn quoted_ident(&self, kind: TokenKind, mut at: usize) -> (TokenKind, usize) {
        let opened = at;
        loop {
            let Some(found) = memchr(b'"', self.text.get(at..).unwrap_or_default()) else {
                return (TokenKind::Error, self.text.len());
            };
            at += found + 1;
            if self.byte(at) == Some(b'"') {
                at += 1;
            } else if at == opened + 1 {
                // A zero-length delimited identifier is an error to the server.
                return (TokenKind::Error, at);
            } else {
                return (kind, at);
            }
        }
    }

    fn line_end(&self, at: usize) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        memchr2(b'\n', b'\r', rest).map_or(self.text.len(), |found| at + found)
    }

    fn block_comment(&self) -> (TokenKind, usize) {
        let mut depth = 1u32;
        let mut at = self.at + 2;
        while depth > 0 {
            let Some(found) = memchr2(b'*', b'/', self.text.get(at..).unwrap_or_default()) else {
                return (TokenKind::Error, self.text.len());
            };
            at += found;
            match (self.byte(at), self.byte(at + 1)) {
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    at += 2;
                }
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    at += 2;
                }
                _ => at += 1,
            }
        }
        (TokenKind::BlockComment, at)
    }

    /// `$1`, `$tag$…$tag$`, or a stray dollar sign.
    fn dollar(&self) -> (TokenKind, usize) {
        let start = self.at;
        if self.byte_is(start + 1, DIGIT) {
            return (TokenKind::Param, self.run(start + 1, DIGIT));
        }
        let mut at = start + 1;
        if self.byte_is(at, IDENT_START) {
            // Tags are identifiers without dollar signs.
            while self.byte(at) != Some(b'$') && self.byte_is(at, IDENT_PART) {
                at += 1;
            }
        }
        if self.byte(at) != Some(b'$') {
            return (TokenKind::Error, start + 1);
        }
        let body = at + 1;
        let delimiter = self.text.get(start..body).unwrap_or_default();
        let rest = self.text.get(body..).unwrap_or_default();
        match memmem::find(rest, delimiter) {
            Some(found) => (TokenKind::DollarString, body + found + delimiter.len()),
            None => (TokenKind::Error, self.text.len()),
        }
    }

    fn number(&self) -> usize {
        let start = self.at;
        let radix_digit: Option<fn(u8) -> bool> = match self.byte(start + 1) {
            Some(b'x' | b'X') => Some(|byte| byte.is_ascii_hexdigit()),
            Some(b'o' | b'O') => Some(|byte| matches!(byte, b'0'..=b'7')),
            Some(b'b' | b'B') => Some(|byte| matches!(byte, b'0' | b'1')),
            _ => None,
        };
        if let (Some(b'0'), Some(radix_digit)) = (self.byte(start), radix_digit) {
            let end = self.digits(start + 2, true, radix_digit);
            if end > start + 2 {
                return end;
            }
        }
        let decimal: fn(u8) -> bool = |byte| byte.is_ascii_digit();
        let mut end = self.digits(start, false, decimal);
        // `1..10` is a range of PL/pgSQL's: two numbers.
        if self.byte(end) == Some(b'.') && self.byte(end + 1) != Some(b'.') {
            end = self.digits(end + 1, false, decimal);
        }
        if matches!(self.byte(end), Some(b'e' | b'E')) {
            let signed = usize::from(matches!(self.byte(end + 1), Some(b'+' | b'-')));
            if self.byte_is(end + 1 + signed, DIGIT) {
                end = self.digits(end + 1 + signed, false, decimal);
            }
        }
        end
    }

    /// The end of a run of digits, single underscores between them allowed (and before them, behind a radix).
    fn digits(&self, at: usize, leading_underscore: bool, digit: fn(u8) -> bool) -> usize {
        let is_digit = |at| self.byte(at).is_some_and(digit);
        let mut end = at;
        loop {
            let between = end > at || leading_underscore;
            if is_digit(end) {
                end += 1;
            } else if between && self.byte(end) == Some(b'_') && is_digit(end + 1) {
                end += 2;
            } else {
                return end;
            }
        }
    }

    /// The end of an operator: no comment starts inside it, and only operators with a character outside SQL's own set
    /// may end in a sign (`a=-1` is `a = -1`).
    fn operator(&self) -> usize {
        let start = self.at;
        let mut end = start + 1;
        while self.byte_is(end, OPERATOR) {
            let comment = matches!(
                (self.byte(end), self.byte(end + 1)),
                (Some(b'-'), Some(b'-')) | (Some(b'/'), Some(b'*'))
            );
            if comment {
                break;
            }
            end += 1;
        }
        let operator = self.text.get(start..end).unwrap_or_default();
        let may_end_in_sign = |byte: &u8| b"~!@#^&|`?%".contains(byte);
        while end > start + 1
            && matches!(self.byte(end - 1), Some(b'+' | b'-'))
            && !operator[..end - start - 1].iter().any(may_end_in_sign)
        {
            end -= 1;
        }
        end
    }
}

fn punctuation(byte: u8) -> TokenKind {
    match byte {
        b'(' => TokenKind::LeftParen,
        b')' => TokenKind::RightParen,
        b'[' => TokenKind::LeftBracket,
        b']' => TokenKind::RightBracket,
        b',' => TokenKind::Comma,
        b';' => TokenKind::Semicolon,
        b'.' => TokenKind::Dot,
        b':' => TokenKind::Colon,
        _ => TokenKind::Error,
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let start = self.at;
        let first = self.byte(start)?;
        let (kind, end) = self.token(first);
        // An escape at the very end of the text may step over it.
        let end = end.min(self.text.len());
        self.at = end;
        Some(Token { kind, start, end })
    }
}

#[cfg(test)]
mod tests;
