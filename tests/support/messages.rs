//! Messages of the frontend/backend protocol as bytes, and frames as they come in. Independent of the crate's own
//! `wire`, so that a mistake there can't hide itself.

use std::fmt;

/// Protocol 3.0.
pub const PROTOCOL_3_0: u32 = 0x0003_0000;
/// Protocol 3.2, with cancel keys of other lengths than four.
pub const PROTOCOL_3_2: u32 = 0x0003_0002;

pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSSENC_REQUEST: u32 = 80_877_104;
pub const CANCEL_REQUEST: u32 = 80_877_102;

/// One message with a tag.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "{}{body:?}", char::from(self.tag))
    }
}

impl Message {
    /// The message as it is on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        frame(self.tag, &self.body)
    }

    /// The body's zero-terminated strings (its last one may lack the zero).
    pub fn strings(&self) -> Vec<String> {
        let body = self.body.strip_suffix(b"\0").unwrap_or(&self.body);
        body.split(|byte| *byte == 0)
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    }
}

/// An error or notice, by its fields.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    pub severity: String,
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " DETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " HINT: {hint}")?;
        }
        Ok(())
    }
}

impl ServerError {
    /// Reads the body of an ErrorResponse or NoticeResponse.
    pub fn parse(message: &Message) -> Self {
        let mut error = Self::default();
        for field in message.strings() {
            let Some(kind) = field.chars().next() else {
                continue;
            };
            let value = field[kind.len_utf8()..].to_owned();
            match kind {
                'V' => error.severity = value,
                'C' => error.code = value,
                'M' => error.message = value,
                'D' => error.detail = Some(value),
                'H' => error.hint = Some(value),
                _ => {}
            }
        }
        error
    }
}

/// A message with a tag, whatever they are.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(untagged(body));
    bytes
}

/// Length and body, as a startup packet is.
pub fn untagged(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes(), body].concat()
}

fn c(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn count(items: usize) -> [u8; 2] {
    u16::try_from(items).unwrap().to_be_bytes()
}

pub fn startup(protocol: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = protocol.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(c(name));
        body.extend(c(value));
    }
    body.push(0);
    untagged(&body)
}

pub fn ssl_request() -> Vec<u8> {
    untagged(&SSL_REQUEST.to_be_bytes())
}

pub fn gssenc_request() -> Vec<u8> {
    untagged(&GSSENC_REQUEST.to_be_bytes())
}

/// `key` is what `BackendKeyData` held: process id, then secret.
pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    untagged(&[&CANCEL_REQUEST.to_be_bytes(), key].concat())
}

pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &c(sql))
}

pub fn parse(name: &str, sql: &str, parameter_types: &[u32]) -> Vec<u8> {
    let mut body = [c(name), c(sql), count(parameter_types.len()).to_vec()].concat();
    for oid in parameter_types {
        body.extend(oid.to_be_bytes());
    }
    frame(b'P', &body)
}

/// Parameters and results in text.
pub fn bind(portal: &str, statement: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    let mut body = [c(portal), c(statement), vec![0, 0]].concat();
    body.extend(count(parameters.len()));
    for parameter in parameters {
        match parameter {
            Some(text) => {
                body.extend(i32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.as_bytes());
            }
            None => body.extend((-1i32).to_be_bytes()),
        }
    }
    body.extend([0, 0]);
    frame(b'B', &body)
}

/// `kind` is `b'S'` for a statement, `b'P'` for a portal.
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    frame(b'D', &[vec![kind], c(name)].concat())
}

/// `kind` as in [`describe`].
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    frame(b'C', &[vec![kind], c(name)].concat())
}

/// `max_rows` of zero is no limit.
pub fn execute(portal: &str, max_rows: u32) -> Vec<u8> {
    frame(b'E', &[c(portal), max_rows.to_be_bytes().to_vec()].concat())
}

pub fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    frame(b'H', b"")
}

pub fn copy_data(data: &[u8]) -> Vec<u8> {
    frame(b'd', data)
}

pub fn copy_done() -> Vec<u8> {
    frame(b'c', b"")
}

pub fn copy_fail(reason: &str) -> Vec<u8> {
    frame(b'f', &c(reason))
}

pub fn password(text: &str) -> Vec<u8> {
    frame(b'p', &c(text))
}

pub fn terminate() -> Vec<u8> {
    frame(b'X', b"")
}

// What servers send, for scripted backends.

pub fn authentication_ok() -> Vec<u8> {
    frame(b'R', &0u32.to_be_bytes())
}

pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    frame(b'S', &[c(name), c(value)].concat())
}

pub fn backend_key_data(pid: u32, secret: &[u8]) -> Vec<u8> {
    frame(b'K', &[&pid.to_be_bytes(), secret].concat())
}

/// `status` is `b'I'`, `b'T'` or `b'E'`.
pub fn ready_for_query(status: u8) -> Vec<u8> {
    frame(b'Z', &[status])
}

/// Columns of type text.
pub fn row_description(columns: &[&str]) -> Vec<u8> {
    const TEXT_OID: u32 = 25;
    let mut body = count(columns.len()).to_vec();
    for column in columns {
        body.extend(c(column));
        body.extend([0; 6]);
        body.extend(TEXT_OID.to_be_bytes());
        body.extend((-1i16).to_be_bytes());
        body.extend((-1i32).to_be_bytes());
        body.extend([0; 2]);
    }
    frame(b'T', &body)
}

pub fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = count(values.len()).to_vec();
    for value in values {
        match value {
            Some(text) => {
                body.extend(i32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.as_bytes());
            }
            None => body.extend((-1i32).to_be_bytes()),
        }
    }
    frame(b'D', &body)
}

pub fn command_complete(tag: &str) -> Vec<u8> {
    frame(b'C', &c(tag))
}

pub fn error_response(severity: &str, code: &str, message: &str) -> Vec<u8> {
    let fields = [
        ("S", severity),
        ("V", severity),
        ("C", code),
        ("M", message),
    ];
    let mut body: Vec<u8> = fields
        .iter()
        .flat_map(|(kind, value)| [kind.as_bytes().to_vec(), c(value)].concat())
        .collect();
    body.push(0);
    frame(b'E', &body)
}

/// The whole reply to a simple query with one text value.
pub fn one_value_reply(value: &str) -> Vec<u8> {
    [
        row_description(&["value"]),
        data_row(&[Some(value)]),
        command_complete("SELECT 1"),
        ready_for_query(b'I'),
    ]
    .concat()
}
