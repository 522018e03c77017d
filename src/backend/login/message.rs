//! The messages of a login: composed for and parsed from the server.

use super::LoginError;
use crate::error::{Severity, SqlState};
use crate::net::frame::{self, Frame};

/// An `ErrorResponse` from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// The message as it came, to be relayed whole.
    pub frame: Vec<u8>,
    pub severity: Severity,
    pub code: SqlState,
    pub message: String,
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl ServerError {
    /// Takes what it finds; a field that is missing or odd gets a neutral value.
    pub(super) fn parse(frame: &Frame) -> Self {
        let mut error = Self {
            frame: frame.to_bytes(),
            severity: Severity::Fatal,
            code: SqlState::INTERNAL_ERROR,
            message: String::new(),
        };
        let mut translated = Severity::Fatal;
        let mut plain = None;
        for field in frame.body.split(|byte| *byte == 0) {
            let Some((kind, value)) = field.split_first() else {
                continue;
            };
            match kind {
                b'S' => translated = severity(value),
                b'V' => plain = Some(severity(value)),
                b'C' => {
                    if let Ok(code) = value.try_into() {
                        error.code = SqlState(code);
                    }
                }
                b'M' => error.message = String::from_utf8_lossy(value).into_owned(),
                _ => {}
            }
        }
        error.severity = plain.unwrap_or(translated);
        error
    }
}

fn severity(text: &[u8]) -> Severity {
    match text {
        b"ERROR" => Severity::Error,
        b"WARNING" => Severity::Warning,
        b"NOTICE" => Severity::Notice,
        _ => Severity::Fatal,
    }
}

pub(super) enum Authentication {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    Sasl(Vec<String>),
    SaslContinue(Vec<u8>),
    SaslFinal(Vec<u8>),
    Unsupported(String),
}

pub(super) fn authentication(body: &[u8]) -> Result<Authentication, LoginError> {
    let malformed = || LoginError::Protocol("a malformed authentication message");
    let (code, rest) = split_u32(body).ok_or_else(malformed)?;
    Ok(match code {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => Authentication::Md5(rest.try_into().map_err(|_| malformed())?),
        10 => Authentication::Sasl(mechanisms(rest).ok_or_else(malformed)?),
        11 => Authentication::SaslContinue(rest.to_vec()),
        12 => Authentication::SaslFinal(rest.to_vec()),
        2 => Authentication::Unsupported("Kerberos V5".to_owned()),
        4 => Authentication::Unsupported("crypt".to_owned()),
        6 => Authentication::Unsupported("SCM credentials".to_owned()),
        7 | 8 => Authentication::Unsupported("GSSAPI".to_owned()),
        9 => Authentication::Unsupported("SSPI".to_owned()),
        other => Authentication::Unsupported(format!("code {other}")),
    })
}

/// Names ended by NUL, the list by an empty one.
fn mechanisms(mut rest: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let (name, after) = split_cstring(rest)?;
        if name.is_empty() {
            return Some(names);
        }
        names.push(String::from_utf8_lossy(name).into_owned());
        rest = after;
    }
}

/// Fails on a NUL in a name or value, which would make two parameters of one.
pub(super) fn startup(code: u32, parameters: &[(&[u8], &[u8])]) -> Result<Vec<u8>, LoginError> {
    let code = code.to_be_bytes();
    let mut parts: Vec<&[u8]> = vec![&code];
    for (name, value) in parameters {
        if name.is_empty() || name.contains(&0) || value.contains(&0) {
            return Err(LoginError::Protocol("a startup parameter holds a NUL"));
        }
        parts.extend([*name, b"\0", *value, b"\0"]);
    }
    parts.push(b"\0");
    Ok(frame::untagged(&parts))
}

pub(super) fn sasl_initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    // A client-first-message is some 60 bytes.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    frame::message(b'p', &[mechanism.as_bytes(), b"\0", &length, data])
}

pub(super) struct Negotiated {
    pub(super) version: u32,
    /// How many of our `_pq_.` options the server does not know.
    pub(super) options: u32,
}

pub(super) fn negotiated(body: &[u8]) -> Result<Negotiated, LoginError> {
    let parsed = split_u32(body).and_then(|(version, rest)| {
        let (options, _names) = split_u32(rest)?;
        Some(Negotiated { version, options })
    });
    parsed.ok_or(LoginError::Protocol(
        "a malformed protocol version negotiation",
    ))
}

pub(super) fn parameter_status(body: &[u8]) -> Result<(Vec<u8>, Vec<u8>), LoginError> {
    let parsed = split_cstring(body).and_then(|(name, rest)| {
        let (value, rest) = split_cstring(rest)?;
        rest.is_empty().then(|| (name.to_vec(), value.to_vec()))
    });
    parsed.ok_or(LoginError::Protocol("a malformed parameter status"))
}

/// Pid and key; a key has 4 bytes in protocol 3.0 and up to 256 in 3.2.
pub(super) fn backend_key_data(body: &[u8]) -> Result<(u32, Vec<u8>), LoginError> {
    match split_u32(body) {
        Some((pid, key)) if (4..=256).contains(&key.len()) => Ok((pid, key.to_vec())),
        _ => Err(LoginError::Protocol("a malformed cancel key")),
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn split_cstring(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}
