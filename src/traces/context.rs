//! A caller's trace, out of the comment that sqlcommenter puts into a statement's text. Pure.
//!
//! ```text
//! SELECT 1 /*action='show',traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'*/
//! ```

use std::ops::Range;

use memchr::memmem;

use crate::meter::TraceId;

/// What a comment begins with that carries a trace.
const KEY: &[u8] = b"traceparent='";

/// A comment stands at the end of a text, or at its beginning: only so much of long ones is searched.
const SEARCHED: usize = 4096;

/// W3C Trace Context, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: TraceId,
    /// The caller's span; none where a trace begins.
    pub parent: Option<u64>,
    pub is_sampled: bool,
}

/// The caller's trace.
pub fn traceparent(text: &[u8]) -> Option<TraceParent> {
    let searched = |range: Range<usize>| {
        let part = &text[range];
        let at = memmem::find(part, KEY)?;
        read(&part[at + KEY.len()..])
    };
    if text.len() <= 2 * SEARCHED {
        return searched(0..text.len());
    }
    searched(text.len() - SEARCHED..text.len()).or_else(|| searched(0..SEARCHED))
}

/// `00-TRACE-SPAN-FLAGS'`.
fn read(value: &[u8]) -> Option<TraceParent> {
    let value = std::str::from_utf8(value.get(..55)?).ok()?;
    let mut parts = value.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let fits = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    // Version ff is forbidden; later ones begin like the first.
    if !fits || version.eq_ignore_ascii_case("ff") {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let span = u64::from_str_radix(span, 16).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (trace != 0 && span != 0).then_some(TraceParent {
        trace: TraceId(trace),
        parent: Some(span),
        is_sampled: flags & 1 != 0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_comment_carries_the_callers_trace() {
        let text = format!("SELECT 1 /*action='a',traceparent='{GIVEN}'*/");
        let found = traceparent(text.as_bytes()).unwrap();
        assert_eq!(found.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(found.parent, Some(0xb7ad_6b71_6920_3331));
        assert!(found.is_sampled);
        let long = format!("{text}{}", " ".repeat(100_000));
        assert_eq!(traceparent(long.as_bytes()), Some(found));
        let long = format!("{}{text}", " ".repeat(100_000));
        assert_eq!(traceparent(long.as_bytes()), Some(found));
        let unsampled = text.replace("-01'", "-00'");
        assert!(!traceparent(unsampled.as_bytes()).unwrap().is_sampled);
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for value in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c+b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let text = format!("SELECT 1 /*traceparent='{value}'*/");
            assert_eq!(traceparent(text.as_bytes()), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(before in prop::collection::vec(any::<u8>(), 0..60), after in prop::collection::vec(any::<u8>(), 0..80)) {
            traceparent(&[&*before, KEY, &*after].concat());
        }
    }
}
