//! Names as the server folds them: of settings, statements, channels, cursors, functions and tables.

use std::fmt;

use super::lexer::TokenKind;

/// PostgreSQL cuts names to `NAMEDATALEN - 1` bytes.
const MAX_BYTES: usize = 63;

/// A name in its canonical spelling: unquoted ones in lower case, quotes and escapes resolved, cut to 63 bytes.
///
/// Bytes, not text: the client's encoding may be anything. Letters outside ASCII are not folded, as in servers with a
/// multi-byte encoding.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

impl Name {
    /// An unquoted name: folded to lower case.
    pub fn folded(bytes: &[u8]) -> Self {
        Self::cut(bytes.to_ascii_lowercase())
    }

    /// A name to be taken as it is.
    pub fn exact(bytes: &[u8]) -> Self {
        Self::cut(bytes.to_vec())
    }

    /// The name of a setting: never cut, and compared without regard to case, which folding gives.
    pub fn setting(bytes: &[u8]) -> Self {
        Self(bytes.to_ascii_lowercase().into())
    }

    /// The name an identifier token stands for; `escape` is the escape character of a `U&"…"`.
    pub(crate) fn of_token(kind: TokenKind, bytes: &[u8], escape: u8) -> Self {
        match kind {
            TokenKind::QuotedIdent => Self::cut(undouble(inside(bytes, 1), b'"')),
            TokenKind::UnicodeIdent => {
                Self::cut(unicode(&undouble(inside(bytes, 3), b'"'), escape))
            }
            _ => Self::folded(bytes),
        }
    }

    fn cut(mut bytes: Vec<u8>) -> Self {
        if bytes.len() > MAX_BYTES {
            // The server cuts between characters; in UTF-8 that is before a byte that starts one.
            let mut end = MAX_BYTES;
            while end > MAX_BYTES - 4 && bytes[end] & 0xc0 == 0x80 {
                end -= 1;
            }
            bytes.truncate(end);
        }
        Self(bytes.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as text, if it is ASCII or UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl From<&str> for Name {
    /// Takes the text as it is.
    fn from(text: &str) -> Self {
        Self::exact(text.as_bytes())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

/// The text of a string constant, where that takes no escapes to know; `None` otherwise.
pub(crate) fn plain_string(kind: TokenKind, bytes: &[u8]) -> Option<Vec<u8>> {
    match kind {
        TokenKind::String => {
            let text = undouble(inside(bytes, 1), b'\'');
            // A lone quote left over means the string continued on a later line.
            (!continued(inside(bytes, 1))).then_some(text)
        }
        TokenKind::EscapeString => {
            let skip = 1 + usize::from(bytes.first() != Some(&b'\''));
            let text = inside(bytes, skip);
            (!text.contains(&b'\\') && !continued(text)).then(|| undouble(text, b'\''))
        }
        TokenKind::DollarString => Some(dollar_body(bytes).to_vec()),
        _ => None,
    }
}

/// What is between the delimiters of a `$tag$…$tag$`.
pub(crate) fn dollar_body(bytes: &[u8]) -> &[u8] {
    let delimiter = memchr::memchr(b'$', bytes.get(1..).unwrap_or_default()).map_or(0, |at| at + 2);
    let end = bytes.len().saturating_sub(delimiter);
    bytes.get(delimiter..end).unwrap_or_default()
}

fn continued(inside: &[u8]) -> bool {
    let mut quotes = 0usize;
    inside.iter().any(|&byte| {
        if byte == b'\'' {
            quotes += 1;
            false
        } else {
            std::mem::take(&mut quotes) % 2 == 1
        }
    }) || quotes % 2 == 1
}

/// The bytes between an opening of `skip` bytes and a closing of one.
fn inside(bytes: &[u8], skip: usize) -> &[u8] {
    bytes
        .get(skip..bytes.len().saturating_sub(1))
        .unwrap_or_default()
}

fn undouble(bytes: &[u8], quote: u8) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len());
    let mut skip = false;
    for &byte in bytes {
        skip = byte == quote && !skip;
        if !skip || byte != quote {
            text.push(byte);
        }
    }
    text
}

/// Resolves `\0061` and `\+000061`. What is not a valid escape stays: the server refuses such a name.
fn unicode(bytes: &[u8], escape: u8) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len());
    let mut high: Option<u32> = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = bytes.get(at + 1..).unwrap_or_default();
        if byte != escape {
            text.push(byte);
            at += 1;
        } else if rest.first() == Some(&escape) {
            text.push(escape);
            at += 2;
        } else {
            let (digits, skip) = match rest.first() {
                Some(b'+') => (rest.get(1..7), 8),
                _ => (rest.get(..4), 5),
            };
            let Some(code) = digits.and_then(hex) else {
                text.push(byte);
                at += 1;
                continue;
            };
            at += skip;
            push_code(&mut text, &mut high, code);
        }
    }
    text
}

/// Appends a code point; a surrogate pair comes as two escapes.
fn push_code(text: &mut Vec<u8>, high: &mut Option<u32>, code: u32) {
    if (0xd800..0xdc00).contains(&code) {
        *high = Some(code);
        return;
    }
    let code = match high.take() {
        Some(high) if (0xdc00..0xe000).contains(&code) => {
            0x1_0000 + ((high & 0x3ff) << 10) + (code & 0x3ff)
        }
        _ => code,
    };
    if let Some(character) = char::from_u32(code) {
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    let mut value = 0;
    for &digit in digits {
        value = value * 16 + char::from(digit).to_digit(16)?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(bytes: &str) -> Name {
        Name::of_token(TokenKind::QuotedIdent, bytes.as_bytes(), b'\\')
    }

    fn unicode_name(bytes: &str, escape: u8) -> Name {
        Name::of_token(TokenKind::UnicodeIdent, bytes.as_bytes(), escape)
    }

    #[test]
    fn names_are_folded_unless_quoted() {
        assert_eq!(Name::of_token(TokenKind::Ident, b"FooBar", b'\\'), "foobar");
        assert_eq!(quoted("\"FooBar\""), "FooBar");
        assert_eq!(quoted("\"a\"\"b\"\"\"\"c\""), "a\"b\"\"c");
    }

    #[test]
    fn unicode_escapes_are_resolved() {
        assert_eq!(unicode_name(r#"U&"d\0061t\+000061""#, b'\\'), "data");
        assert_eq!(unicode_name(r#"U&"d!0061t!+000061""#, b'!'), "data");
        assert_eq!(unicode_name(r#"u&"a\\b""#, b'\\'), r"a\b");
        assert_eq!(unicode_name(r#"u&"\D83D\DE00""#, b'\\'), "\u{1f600}");
        assert_eq!(unicode_name(r#"u&"\zz""#, b'\\'), r"\zz");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let long = "a".repeat(62) + "éé";
        assert_eq!(Name::from(long.as_str()).as_bytes().len(), 62);
        assert_eq!(Name::from("a".repeat(70).as_str()).as_bytes().len(), 63);
    }

    #[test]
    fn plain_strings_are_those_without_escapes() {
        let plain = |kind, text: &str| plain_string(kind, text.as_bytes());
        assert_eq!(plain(TokenKind::String, "'it''s'"), Some(b"it's".to_vec()));
        assert_eq!(plain(TokenKind::String, "''"), Some(Vec::new()));
        assert_eq!(plain(TokenKind::String, "'a'\n'b'"), None);
        assert_eq!(
            plain(TokenKind::EscapeString, "E'abc'"),
            Some(b"abc".to_vec())
        );
        assert_eq!(
            plain(TokenKind::EscapeString, "'abc'"),
            Some(b"abc".to_vec())
        );
        assert_eq!(plain(TokenKind::EscapeString, r"E'\x61'"), None);
        assert_eq!(
            plain(TokenKind::DollarString, "$x$a$b$x$"),
            Some(b"a$b".to_vec())
        );
        assert_eq!(plain(TokenKind::Number, "1"), None);
    }
}
