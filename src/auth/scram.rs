//! SCRAM-SHA-256 (RFC 5802, RFC 7677): keys and verifiers; the two roles are in [`server`] and [`client`].
//!
//! # Why
//!
//! Own code rather than pgwire's or postgres-protocol's roles, because neither gives out the `ClientKey`. The server
//! role recovers it from a valid proof (`ClientKey = ClientProof XOR HMAC(StoredKey, AuthMessage)`), and the client
//! role logs in with it: a client's SCRAM login is passed on to the server with no password kept anywhere.

pub mod client;
pub mod server;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::error::{ErrorKind, Report, SqlState, UserFacing};

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding, offered only over TLS.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's `scram_iterations` default, used for verifiers made here.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// More is refused: the other side chooses the count, and each one costs two hash rounds here.
pub const MAX_ITERATIONS: u32 = 1_000_000;
/// Length of the salts made here, as PostgreSQL's.
pub const SALT_LEN: usize = 16;

const KEY_LEN: usize = 32;
const VERIFIER_PREFIX: &str = "SCRAM-SHA-256$";
/// Raw length of the nonces made here, as PostgreSQL's.
const RAW_NONCE_LEN: usize = 18;

type HmacSha256 = Hmac<Sha256>;
type Key = [u8; KEY_LEN];

/// What a server stores of a password: enough to check a proof, not enough to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    pub stored_key: Key,
    pub server_key: Key,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Reads PostgreSQL's form, `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix(VERIFIER_PREFIX)?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations = parse_iterations(iterations)?;
        let salt = BASE64.decode(salt).ok()?;
        Some(Self {
            iterations,
            salt,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
        })
    }

    /// PostgreSQL's form. It is a secret: whoever has it can pose as the server, or guess passwords at leisure.
    pub fn to_text(&self) -> String {
        format!(
            "{VERIFIER_PREFIX}{}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }

    /// Whether this is the verifier of `password`. Costs [`Verifier::iterations`] hash rounds.
    pub fn accepts(&self, password: &str) -> bool {
        let keys = ScramKeys::derive(password, &self.salt, self.iterations);
        bool::from(keys.stored_key().ct_eq(&self.stored_key))
    }

    /// What an unknown user is checked against: the salt is the same at each attempt, as a real user's would be.
    pub fn mock(user: &str, secret: &MockSecret) -> Self {
        let mut salt = hmac(&secret.0, &[b"salt", user.as_bytes()]).to_vec();
        salt.truncate(SALT_LEN);
        Self {
            iterations: DEFAULT_ITERATIONS,
            salt,
            stored_key: hmac(&secret.0, &[b"stored", user.as_bytes()]),
            server_key: hmac(&secret.0, &[b"server", user.as_bytes()]),
        }
    }
}

/// Random for each process; salts of unknown users come from it.
#[derive(Clone)]
pub struct MockSecret(Key);

impl MockSecret {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for MockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MockSecret(********)")
    }
}

/// What logs in to a server whose verifier has this salt and iteration count, in place of the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    client_key: Key,
    server_key: Key,
    salt: Vec<u8>,
    iterations: u32,
}

impl ScramKeys {
    /// The keys of a password (RFC 5802 section 3). Costs `iterations` hash rounds, about 2 ms for the default: not
    /// for an async worker's thread.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        // PostgreSQL uses the raw bytes where SASLprep fails, and so must every other side.
        let prepared = stringprep::saslprep(password);
        let prepared = prepared.as_deref().unwrap_or(password);
        let mut salted = salted_password(prepared.as_bytes(), salt, iterations);
        let keys = Self {
            client_key: hmac(&salted, &[b"Client Key"]),
            server_key: hmac(&salted, &[b"Server Key"]),
            salt: salt.to_vec(),
            iterations,
        };
        salted.zeroize();
        keys
    }

    /// [`ScramKeys::derive`] with a fresh salt and the default iteration count.
    pub fn fresh(password: &str) -> Self {
        Self::derive(
            password,
            &rand::random::<[u8; SALT_LEN]>(),
            DEFAULT_ITERATIONS,
        )
    }

    /// The verifier that accepts these keys.
    pub fn verifier(&self) -> Verifier {
        Verifier {
            iterations: self.iterations,
            salt: self.salt.clone(),
            stored_key: self.stored_key(),
            server_key: self.server_key,
        }
    }

    /// Whether a server that asks with this salt and count can be answered with these keys.
    pub fn fit(&self, salt: &[u8], iterations: u32) -> bool {
        self.iterations == iterations && self.salt == salt
    }

    fn stored_key(&self) -> Key {
        Sha256::digest(self.client_key).into()
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl Drop for ScramKeys {
    fn drop(&mut self) {
        self.client_key.zeroize();
        self.server_key.zeroize();
    }
}

/// Why an exchange failed, in either role. The texts are PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message does not parse; the detail says where.
    #[error("malformed SCRAM message")]
    Malformed(&'static str),
    /// The nonce or the binding attribute is not the one of this exchange.
    #[error("invalid SCRAM response")]
    Invalid(&'static str),
    #[error("client selected an invalid SASL authentication mechanism")]
    UnknownMechanism,
    #[error("unsupported SCRAM channel-binding type")]
    UnsupportedBinding,
    #[error("client requires an unsupported SCRAM extension")]
    UnsupportedExtension,
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// The client saw no -PLUS though it was offered: somebody may have removed it from the list.
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    /// Wrong password, or no such user.
    #[error("the SCRAM proof is wrong")]
    WrongProof,
    #[error("the server asks for {0} SCRAM iterations, more than {MAX_ITERATIONS}")]
    TooManyIterations(u32),
    #[error("the server did not prove that it knows the password")]
    WrongServerSignature,
    /// The server's own `e=` attribute.
    #[error("the server ended the SCRAM exchange: {0}")]
    ServerError(String),
}

impl UserFacing for ScramError {
    fn report(&self) -> Report {
        let text = self.to_string();
        match self {
            Self::Malformed(detail) | Self::Invalid(detail) => {
                Report::fatal(SqlState::PROTOCOL_VIOLATION, text).detail(*detail)
            }
            Self::UnknownMechanism | Self::UnsupportedBinding => {
                Report::fatal(SqlState::PROTOCOL_VIOLATION, text)
            }
            Self::UnsupportedExtension | Self::AuthorizationIdentity => {
                Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, text)
            }
            Self::Downgrade => Report::fatal(SqlState::INVALID_AUTHORIZATION, text).detail(
                "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding.",
            ),
            Self::BindingMismatch => Report::fatal(SqlState::INVALID_AUTHORIZATION, text),
            Self::WrongProof => Report::fatal(SqlState::INVALID_PASSWORD, text),
            Self::TooManyIterations(_) | Self::WrongServerSignature | Self::ServerError(_) => {
                Report::fatal(SqlState::CONNECTION_FAILURE, text)
            }
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyIterations(_) | Self::WrongServerSignature | Self::ServerError(_) => {
                ErrorKind::Server
            }
            _ => ErrorKind::Client,
        }
    }
}

fn keyed(key: &[u8]) -> HmacSha256 {
    // HMAC takes keys of any length; the error exists for other kinds of MAC.
    #[allow(clippy::expect_used, reason = "see above")]
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// `Hi()` of RFC 5802: PBKDF2 with HMAC-SHA-256 and one block.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let keyed = keyed(password);
    let mut round = keyed.clone();
    round.update(salt);
    round.update(&1u32.to_be_bytes());
    let mut last: Key = round.finalize().into_bytes().into();
    let mut result = last;
    for _ in 1..iterations {
        let mut round = keyed.clone();
        round.update(&last);
        last = round.finalize().into_bytes().into();
        xor(&mut result, &last);
    }
    result
}

fn xor(into: &mut Key, other: &Key) {
    for (byte, other) in into.iter_mut().zip(other) {
        *byte ^= other;
    }
}

fn nonce() -> String {
    BASE64.encode(rand::random::<[u8; RAW_NONCE_LEN]>())
}

/// A positive decimal count without sign, blanks or leading zeros.
fn parse_iterations(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) || text.starts_with('0') {
        return None;
    }
    text.parse().ok()
}

fn decode_key(text: &str) -> Option<Key> {
    BASE64.decode(text).ok()?.try_into().ok()
}

/// Printable ASCII without comma (RFC 5802 section 7, `printable`).
fn is_printable(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| (0x21..=0x7e).contains(&byte) && byte != b',')
}

/// The value of `message`'s leading attribute `name`, and what follows the comma after it.
fn attribute(message: &str, name: char) -> Option<(&str, &str)> {
    let value = message.strip_prefix(name)?.strip_prefix('=')?;
    Some(value.split_once(',').unwrap_or((value, "")))
}

#[cfg(test)]
mod tests;
