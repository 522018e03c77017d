//! What applications say in comments: where a statement is to run, and which trace it belongs to.
//!
//! Not part of a class: comments do not count in fingerprints. Texts without the words cost one search.

use memchr::memmem;

use super::lexer::{LexOptions, Lexer, TokenKind};

/// `/* pgweir: primary */`, `/* pgweir: replica */`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteHint {
    Primary,
    Replica,
}

/// Where a comment says the statement is to run. If comments disagree, the primary.
pub fn route_hint(text: &[u8], options: LexOptions) -> Option<RouteHint> {
    const WORD: &[u8] = b"pgweir:";
    let find = |bytes: &[u8]| {
        let mut places = memchr::memchr_iter(b':', bytes);
        places.find_map(|colon| {
            let at = (colon + 1).checked_sub(WORD.len())?;
            bytes[at..=colon].eq_ignore_ascii_case(WORD).then_some(at)
        })
    };
    find(text)?;
    let mut hint = None;
    for comment in comments(text, options) {
        let Some(at) = find(comment) else {
            continue;
        };
        let value = comment
            .get(at + WORD.len()..)
            .unwrap_or_default()
            .trim_ascii_start();
        let is = |word: &[u8]| {
            value
                .get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word))
                && !value.get(word.len()).is_some_and(u8::is_ascii_alphanumeric)
        };
        if is(b"primary") {
            return Some(RouteHint::Primary);
        }
        if is(b"replica") {
            hint = Some(RouteHint::Replica);
        }
    }
    hint
}

/// The W3C trace context in a sqlcommenter comment: `traceparent='00-…-…-01'`, if well formed.
pub fn traceparent(text: &[u8], options: LexOptions) -> Option<&str> {
    const WORD: &[u8] = b"traceparent='";
    memmem::find(text, WORD)?;
    comments(text, options).find_map(|comment| {
        let at = memmem::find(comment, WORD)? + WORD.len();
        let value = comment.get(at..at + 55)?;
        (comment.get(at + 55) == Some(&b'\'') && is_traceparent(value))
            .then(|| std::str::from_utf8(value).ok())
            .flatten()
    })
}

fn comments(text: &[u8], options: LexOptions) -> impl Iterator<Item = &[u8]> {
    Lexer::new(text, options)
        .filter(|token| matches!(token.kind, TokenKind::BlockComment | TokenKind::LineComment))
        .map(|token| token.bytes(text))
}

/// `version-trace_id-parent_id-flags` in lower-case hexadecimal, ids not all zero, version not ff.
fn is_traceparent(value: &[u8]) -> bool {
    let fields: Vec<&[u8]> = value.split(|&byte| byte == b'-').collect();
    let hex = |field: &[u8], length| {
        field.len() == length
            && field
                .iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let any = |field: &[u8]| field.iter().any(|&byte| byte != b'0');
    match fields.as_slice() {
        [version, trace, parent, flags] => {
            hex(version, 2)
                && *version != b"ff"
                && hex(trace, 32)
                && any(trace)
                && hex(parent, 16)
                && any(parent)
                && hex(flags, 2)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(text: &str) -> Option<RouteHint> {
        route_hint(text.as_bytes(), LexOptions::default())
    }

    #[test]
    fn hints_are_read_from_comments_only() {
        assert_eq!(
            hint("/* pgweir: primary */ SELECT 1"),
            Some(RouteHint::Primary)
        );
        assert_eq!(hint("SELECT 1 -- pgweir:Replica"), Some(RouteHint::Replica));
        assert_eq!(
            hint("/* pgweir: replica */ SELECT 1 /* pgweir: primary */"),
            Some(RouteHint::Primary)
        );
        assert_eq!(hint("SELECT '/* pgweir: primary */'"), None);
        assert_eq!(hint("/* pgweir: primaryx */ SELECT 1"), None);
        assert_eq!(hint("/* pgweir: */ SELECT 1"), None);
        assert_eq!(hint("SELECT 1"), None);
    }

    #[test]
    fn traceparent_is_read_if_well_formed() {
        let trace = |text: &'static str| traceparent(text.as_bytes(), LexOptions::default());
        let good = "00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01";
        assert_eq!(
            trace(
                "SELECT 1 /*action='x',traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/"
            ),
            Some(good)
        );
        for bad in [
            "SELECT 'traceparent=''00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'''",
            "SELECT 1 /*traceparent='00-5bd6*/",
            "SELECT 1 /*traceparent='00-00000000000000000000000000000000-c532cb4098ac3dd2-01'*/",
            "SELECT 1 /*traceparent='ff-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/",
            "SELECT 1 /*traceparent='00-5BD66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/",
        ] {
            assert_eq!(trace(bad), None, "{bad}");
        }
    }
}
