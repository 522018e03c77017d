//! Framing: one byte of type, four of length (which counts itself), then the payload.

use thiserror::Error;

/// Bytes of type and length.
pub const HEADER: usize = 5;

/// A peer's framing can't be believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("invalid message length {0}")]
    Length(u32),
    #[error("message of {len} bytes is larger than the limit of {max} bytes")]
    TooLarge { len: usize, max: usize },
    #[error("invalid message format in \"{0}\"")]
    Malformed(char),
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    /// Size of the whole frame, type byte included.
    pub len: usize,
}

impl Header {
    /// Reads the head of the frame at the start of `buf`; `None` if fewer than [`HEADER`] bytes are there.
    pub fn peek(buf: &[u8], max: usize) -> Result<Option<Self>, FrameError> {
        let Some((head, _)) = buf.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [tag, length @ ..] = *head;
        let length = u32::from_be_bytes(length);
        if length < 4 {
            return Err(FrameError::Length(length));
        }
        let len = length as usize + 1;
        if len > max {
            return Err(FrameError::TooLarge { len, max });
        }
        Ok(Some(Self { tag, len }))
    }
}

/// Takes a NUL-terminated string off the front of `payload`.
pub fn take_cstr<'a>(payload: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(0, payload)?;
    let text = &payload[..end];
    *payload = &payload[end + 1..];
    Some(text)
}

/// Appends a frame: `tag`, a length filled in afterwards, and what `body` writes.
pub fn put(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    put_untagged(out, body);
}

/// Appends a packet without a type byte, as the startup packets are.
pub fn put_untagged(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    // Only pgweir's own messages are built here and all of them are far below 4 GiB.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends `text` and a NUL. Bytes from the first NUL on are left out: a name can't hold one.
pub fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_needs_five_bytes_and_a_length_of_at_least_four() {
        assert_eq!(Header::peek(b"Q\0\0\0", 100), Ok(None));
        assert_eq!(
            Header::peek(b"Q\0\0\0\x04", 100),
            Ok(Some(Header { tag: b'Q', len: 5 }))
        );
        assert_eq!(
            Header::peek(b"Q\0\0\0\x03", 100),
            Err(FrameError::Length(3))
        );
        assert_eq!(
            Header::peek(b"Q\x7f\xff\xff\xff", 100),
            Err(FrameError::TooLarge {
                len: 0x8000_0000,
                max: 100
            })
        );
    }

    #[test]
    fn strings_end_at_their_nul_and_never_past_the_payload() {
        let mut rest = &b"ab\0c"[..];
        assert_eq!(take_cstr(&mut rest), Some(&b"ab"[..]));
        assert_eq!(take_cstr(&mut rest), None);
        assert_eq!(rest, b"c");
    }

    #[test]
    fn put_fills_in_the_length() {
        let mut out = Vec::new();
        put(&mut out, b'S', |out| put_cstr(out, b"x"));
        assert_eq!(out, b"S\0\0\0\x06x\0");
    }

    proptest! {
        #[test]
        fn a_header_is_read_from_any_bytes_and_never_past_them(
            bytes in prop::collection::vec(any::<u8>(), 0..12),
            max in 5..100_000_usize,
        ) {
            match Header::peek(&bytes, max) {
                Ok(None) => prop_assert!(bytes.len() < HEADER),
                Ok(Some(header)) => {
                    prop_assert!((HEADER..=max).contains(&header.len));
                    prop_assert_eq!(header.tag, bytes[0]);
                }
                Err(_) => prop_assert!(bytes.len() >= HEADER),
            }
        }

        #[test]
        fn what_was_put_is_peeked_at_every_cut(
            tag in any::<u8>(),
            body in prop::collection::vec(any::<u8>(), 0..300),
            next in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let mut frame = Vec::new();
            put(&mut frame, tag, |out| out.extend_from_slice(&body));
            let len = frame.len();
            prop_assert_eq!(len, HEADER + body.len());
            frame.extend_from_slice(&next);
            for cut in 0..=frame.len() {
                let header = (cut >= HEADER).then_some(Header { tag, len });
                prop_assert_eq!(Header::peek(&frame[..cut], 1000), Ok(header));
            }
        }

        #[test]
        fn strings_are_read_back_up_to_their_first_nul(text in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut out = Vec::new();
            put_cstr(&mut out, &text);
            let mut rest = out.as_slice();
            let before_nul = text.split(|byte| *byte == 0).next();
            prop_assert_eq!(take_cstr(&mut rest), before_nul);
            prop_assert!(rest.is_empty());
        }
    }
}
