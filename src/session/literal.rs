//! Names and values of settings in texts for the server, whatever the encoding that it reads them in.

use std::borrow::Cow;

/// What may end a question: it is counted for each statement of a text.
pub(super) const TIMEOUT: &[u8] = b"statement_timeout";

/// Appends a string literal that means the same under both values of `standard_conforming_strings`.
pub fn put_literal(out: &mut Vec<u8>, text: &[u8]) {
    if text.contains(&b'\\') {
        out.extend_from_slice(b" E");
    }
    out.push(b'\'');
    for &byte in text {
        if byte == b'\'' || byte == b'\\' {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

/// Appends an expression for `text`, which is in the database's encoding: ASCII, that the server reads alike under any
/// `client_encoding`.
pub fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    if text.is_ascii() {
        return put_literal(out, text);
    }
    out.extend_from_slice(b"pg_catalog.convert_from(pg_catalog.decode('");
    for byte in text {
        out.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    out.extend_from_slice(b"','hex'),pg_catalog.getdatabaseencoding())");
}

/// Appends a name and an expression for its value.
pub(super) fn put_question(text: &mut Vec<u8>, name: &[u8]) {
    put_literal(text, name);
    text.extend_from_slice(b"::pg_catalog.text, ");
    put_bytes_of(text, |text| {
        text.extend_from_slice(b"pg_catalog.current_setting(");
        put_literal(text, name);
        text.extend_from_slice(b", true)");
    });
}

/// Appends what takes the timeout away from the statements behind it, and tells it before if it may have been changed.
pub(super) fn put_time(text: &mut Vec<u8>, is_touched: bool, anything: bool) {
    if is_touched {
        text.extend_from_slice(b"SELECT ");
        put_question(text, TIMEOUT);
        text.push(b';');
    } else if anything {
        text.extend_from_slice(b"SELECT name, setting FROM pg_catalog.pg_settings ");
        text.extend_from_slice(b"WHERE source = 'session' AND name = 'statement_timeout';");
    }
    text.extend_from_slice(b"SELECT pg_catalog.set_config('statement_timeout', '0', true);");
}

/// Appends an expression for the bytes of `value` in the database's encoding, which [`unescaped`] reads.
pub(super) fn put_bytes_of(text: &mut Vec<u8>, value: impl Fn(&mut Vec<u8>)) {
    text.extend_from_slice(b"pg_catalog.encode(pg_catalog.convert_to(");
    value(text);
    text.extend_from_slice(b", pg_catalog.getdatabaseencoding()), 'escape')");
}

/// What was encoded as `escape`: backslashes are doubled, bytes outside ASCII are three octal digits behind one.
pub(super) fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return bytes.into(),
            [
                b'\\',
                high @ b'0'..=b'3',
                middle @ b'0'..=b'7',
                low @ b'0'..=b'7',
                tail @ ..,
            ] => {
                let [high, middle, low] = [high, middle, low].map(|digit| digit - b'0');
                bytes.push(high * 64 + middle * 8 + low);
                tail
            }
            [b'\\', b'\\', tail @ ..] => {
                bytes.push(b'\\');
                tail
            }
            [byte, tail @ ..] => {
                bytes.push(*byte);
                tail
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bytes_of_the_databases_encoding() {
        let told = unescaped(br"Zo\303\253 \\ \\303");
        assert_eq!(*told, *r"Zoë \ \303".as_bytes());
        let mut text = Vec::new();
        put_text(&mut text, "ë".as_bytes());
        let expected: &[u8] = b"pg_catalog.convert_from(pg_catalog.decode('c3ab','hex'),pg_catalog.getdatabaseencoding())";
        assert_eq!(text, expected);
    }

    #[test]
    fn literals_survive_quotes_and_backslashes() {
        let mut out = Vec::new();
        put_literal(&mut out, br"a'b\c");
        assert_eq!(out, br" E'a''b\\c'");
    }
}
