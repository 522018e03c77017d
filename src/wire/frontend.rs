//! Messages from the frontend: borrowed views of the parts the relay needs, and builders for those pgweir injects.

use super::frame::{FrameError, put, put_cstr, take_cstr};

pub const QUERY: u8 = b'Q';
pub const PARSE: u8 = b'P';
pub const BIND: u8 = b'B';
pub const DESCRIBE: u8 = b'D';
pub const EXECUTE: u8 = b'E';
pub const CLOSE: u8 = b'C';
pub const SYNC: u8 = b'S';
pub const FLUSH: u8 = b'H';
pub const FUNCTION_CALL: u8 = b'F';
pub const COPY_DATA: u8 = b'd';
pub const COPY_DONE: u8 = b'c';
pub const COPY_FAIL: u8 = b'f';
pub const TERMINATE: u8 = b'X';
pub const PASSWORD: u8 = b'p';

/// Whether a client may send a message of type `tag` in a session.
pub fn is_known(tag: u8) -> bool {
    matches!(
        tag,
        QUERY
            | PARSE
            | BIND
            | DESCRIBE
            | EXECUTE
            | CLOSE
            | SYNC
            | FLUSH
            | FUNCTION_CALL
            | COPY_DATA
            | COPY_DONE
            | COPY_FAIL
            | TERMINATE
    )
}

/// Whether a message of type `tag` may be as long as its sender likes; others have [`SMALL_MESSAGE_MAX`].
///
/// [`SMALL_MESSAGE_MAX`]: super::limits::SMALL_MESSAGE_MAX
pub fn may_be_large(tag: u8) -> bool {
    matches!(tag, QUERY | PARSE | BIND | FUNCTION_CALL | COPY_DATA)
}

/// A whole Terminate message.
pub const TERMINATE_FRAME: [u8; 5] = *b"X\0\0\0\x04";

/// A whole Flush message.
pub const FLUSH_FRAME: [u8; 5] = *b"H\0\0\0\x04";

/// A whole Sync message.
pub const SYNC_FRAME: [u8; 5] = *b"S\0\0\0\x04";

/// The text of a Query message; its payload is exactly one string.
pub fn query_text(payload: &[u8]) -> Result<&[u8], FrameError> {
    let mut rest = payload;
    match take_cstr(&mut rest) {
        Some(text) if rest.is_empty() => Ok(text),
        _ => Err(FrameError::Malformed('Q')),
    }
}

/// Whether a `FunctionCall` message calls one of the server's large-object functions, which leave nothing in the session
/// after the transaction. It names its function by number only; these numbers are part of libpq (`fe-lobj.c`).
pub fn calls_large_object_function(payload: &[u8]) -> bool {
    const LARGE_OBJECT: [u32; 15] = [
        715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171,
    ];
    const TRUNCATE_64: u32 = 3172;
    payload.first_chunk().is_some_and(|oid| {
        let oid = u32::from_be_bytes(*oid);
        oid == TRUNCATE_64 || LARGE_OBJECT.contains(&oid)
    })
}

/// A Parse message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub text: &'a [u8],
    /// What follows the name: text, NUL, count and parameter types, as sent.
    pub body: &'a [u8],
}

impl<'a> Parse<'a> {
    pub fn read(payload: &'a [u8]) -> Result<Self, FrameError> {
        let malformed = FrameError::Malformed('P');
        let mut rest = payload;
        let name = take_cstr(&mut rest).ok_or(malformed)?;
        let body = rest;
        let text = take_cstr(&mut rest).ok_or(malformed)?;
        let (count, oids) = rest.split_first_chunk::<2>().ok_or(malformed)?;
        if oids.len() != usize::from(u16::from_be_bytes(*count)) * 4 {
            return Err(malformed);
        }
        Ok(Self { name, text, body })
    }
}

/// The head of a Bind message: what precedes the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    /// Size of the two names and their NULs: where the parameters start in the payload.
    pub head: usize,
}

impl<'a> Bind<'a> {
    /// Reads the head from the first bytes of a payload; `None` if the names don't end within them.
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let mut rest = payload;
        let portal = take_cstr(&mut rest)?;
        let statement = take_cstr(&mut rest)?;
        Some(Self {
            portal,
            statement,
            head: payload.len() - rest.len(),
        })
    }
}

/// How many formats of parameters and how many parameters are in the rest of a Bind message behind its head.
pub fn parameter_counts(rest: &[u8]) -> Option<(u16, u16)> {
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let formats = u16::from_be_bytes(*formats);
    let parameters = rest.get(usize::from(formats) * 2..)?.first_chunk::<2>()?;
    Some((formats, u16::from_be_bytes(*parameters)))
}

/// What a Describe or Close message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

impl<'a> Target<'a> {
    /// Reads the payload of a Describe or Close message with type byte `tag`.
    pub fn read(tag: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let malformed = FrameError::Malformed(char::from(tag));
        let (&kind, mut rest) = payload.split_first().ok_or(malformed)?;
        let name = take_cstr(&mut rest).ok_or(malformed)?;
        match kind {
            _ if !rest.is_empty() => Err(malformed),
            b'S' => Ok(Self::Statement(name)),
            b'P' => Ok(Self::Portal(name)),
            _ => Err(malformed),
        }
    }
}

/// Appends a Query message.
pub fn put_query(out: &mut Vec<u8>, text: &[u8]) {
    put(out, QUERY, |out| put_cstr(out, text));
}

/// Appends a Parse message of `name` with the `body` of another Parse message.
pub fn put_parse(out: &mut Vec<u8>, name: &[u8], body: &[u8]) {
    put(out, PARSE, |out| {
        put_cstr(out, name);
        out.extend_from_slice(body);
    });
}

/// Appends the head of a Bind message whose remaining `rest_len` bytes (parameters) follow from elsewhere.
pub fn put_bind_head(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], rest_len: usize) {
    let length = 4 + portal.len() + 1 + statement.len() + 1 + rest_len;
    out.push(BIND);
    // The frame came with a checked length below 2 GiB and only the statement's name differs.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    put_cstr(out, portal);
    put_cstr(out, statement);
}

/// Appends an Execute message of `portal` for all of its rows.
pub fn put_execute(out: &mut Vec<u8>, portal: &[u8]) {
    put(out, EXECUTE, |out| {
        put_cstr(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

/// Appends a Describe (`tag` = [`DESCRIBE`]) or Close (`tag` = [`CLOSE`]) message for a statement.
pub fn put_statement_target(out: &mut Vec<u8>, tag: u8, name: &[u8]) {
    put(out, tag, |out| {
        out.push(b'S');
        put_cstr(out, name);
    });
}

/// Appends a Close message for a portal.
pub fn put_portal_close(out: &mut Vec<u8>, name: &[u8]) {
    put(out, CLOSE, |out| {
        out.push(b'P');
        put_cstr(out, name);
    });
}

/// Appends a `CopyFail` message.
pub fn put_copy_fail(out: &mut Vec<u8>, reason: &[u8]) {
    put(out, COPY_FAIL, |out| put_cstr(out, reason));
}

/// The portal that an Execute with this payload is about, and what follows its name.
pub fn portal_of(payload: &[u8]) -> (&[u8], &[u8]) {
    match payload.iter().position(|byte| *byte == 0) {
        Some(end) => (&payload[..end], &payload[end + 1..]),
        None => (payload, &[]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_is_one_string_and_nothing_after_it() {
        assert_eq!(query_text(b"select 1\0"), Ok(&b"select 1"[..]));
        assert!(query_text(b"select 1").is_err());
        assert!(query_text(b"select 1\0X").is_err());
    }

    #[test]
    fn parse_checks_its_parameter_count() {
        let parse = Parse::read(b"s\0select $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((parse.name, parse.text), (&b"s"[..], &b"select $1"[..]));
        assert!(Parse::read(b"s\0select $1\0\0\x02\0\0\0\x17").is_err());
        assert!(Parse::read(b"s\0select $1\0").is_err());
    }

    #[test]
    fn bind_knows_where_its_parameters_start() {
        let bind = Bind::read(b"p\0stmt\0\0\0\0\0\0\0").unwrap();
        assert_eq!(
            (bind.portal, bind.statement, bind.head),
            (&b"p"[..], &b"stmt"[..], 7)
        );
        assert_eq!(Bind::read(b"p\0stm"), None);
    }

    #[test]
    fn a_rewritten_bind_has_the_length_of_head_and_rest() {
        let mut out = Vec::new();
        put_bind_head(&mut out, b"", b"pgweir_1", 6);
        assert_eq!(out, b"B\0\0\0\x14\0pgweir_1\0");
    }

    #[test]
    fn describe_and_close_name_a_statement_or_a_portal() {
        assert_eq!(Target::read(b'D', b"Sx\0"), Ok(Target::Statement(b"x")));
        assert_eq!(Target::read(b'C', b"P\0"), Ok(Target::Portal(b"")));
        assert!(Target::read(b'C', b"Xx\0").is_err());
        assert!(Target::read(b'C', b"Sx").is_err());
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1..=255_u8, 0..12)
    }

    /// The payload of the one frame in `bytes`.
    fn payload(bytes: &[u8]) -> &[u8] {
        &bytes[crate::wire::frame::HEADER..]
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = query_text(&bytes);
            let _ = Parse::read(&bytes);
            let _ = Target::read(CLOSE, &bytes);
            let _ = calls_large_object_function(&bytes);
            let _ = parameter_counts(&bytes);
            if let Some(bind) = Bind::read(&bytes) {
                prop_assert!(bind.head <= bytes.len());
            }
        }

        #[test]
        fn what_is_written_is_read_back_and_nothing_shorter_is(
            name in text(),
            sql in text(),
            oids in prop::collection::vec(any::<u32>(), 0..4),
        ) {
            let mut body = [sql.as_slice(), &[0]].concat();
            body.extend(u16::try_from(oids.len()).unwrap().to_be_bytes());
            body.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
            let mut out = Vec::new();
            put_parse(&mut out, &name, &body);
            let parse = Parse::read(payload(&out)).unwrap();
            prop_assert_eq!((parse.name, parse.text, parse.body), (&name[..], &sql[..], &body[..]));
            for cut in 0..payload(&out).len() {
                prop_assert!(Parse::read(&payload(&out)[..cut]).is_err(), "cut at {}", cut);
            }
            let mut out = Vec::new();
            put_query(&mut out, &sql);
            prop_assert_eq!(query_text(payload(&out)), Ok(&sql[..]));
            let mut out = Vec::new();
            put_statement_target(&mut out, DESCRIBE, &name);
            prop_assert_eq!(Target::read(DESCRIBE, payload(&out)), Ok(Target::Statement(&name[..])));
        }

        #[test]
        fn a_rewritten_bind_names_what_it_should_and_keeps_its_parameters(
            portal in text(),
            statement in text(),
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut out = Vec::new();
            put_bind_head(&mut out, &portal, &statement, rest.len());
            out.extend_from_slice(&rest);
            let header = crate::wire::frame::Header::peek(&out, 1000).unwrap().unwrap();
            prop_assert_eq!(header.len, out.len());
            let bind = Bind::read(payload(&out)).unwrap();
            prop_assert_eq!((bind.portal, bind.statement), (&portal[..], &statement[..]));
            prop_assert_eq!(&payload(&out)[bind.head..], &rest[..]);
        }
    }
}
