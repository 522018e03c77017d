//! The client proves who it is: the exchanges of each method, after `StartupMessage` and before `AuthenticationOk`.
//!
//! Each function runs one exchange and returns what it proved; sending `AuthenticationOk`, or the error, is the
//! caller's job, as is bounding the time (`client_login_timeout`).
//!
//! Invariant: an unknown user, a user without a usable secret and a wrong password take the same messages, the same
//! work and the same words.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::auth::cert;
use crate::auth::ident::IdentMaps;
use crate::auth::md5::Md5Hash;
use crate::auth::scram::server::{AwaitingProof, ServerExchange};
use crate::auth::scram::{MockSecret, ScramError, ScramKeys, Verifier};
use crate::auth::secrets::UserSecret;
use crate::config::model::Secret;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};
use crate::net::frame::{self, FrameError};

/// `PG_MAX_AUTH_TOKEN_LENGTH`.
const MAX_PASSWORD_MESSAGE: usize = 65_535;
/// `PG_MAX_SASL_MESSAGE_LENGTH`.
const MAX_SASL_MESSAGE: usize = 1024;

const CLEARTEXT: u32 = 3;
const MD5: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// What a client proved, and what can be made of it on the way to the server.
#[derive(Clone, Debug)]
pub enum Proof {
    Password(Secret),
    Md5(Md5Hash),
    ScramKeys(Arc<ScramKeys>),
}

/// Why a client was not let in, in PostgreSQL's words.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("connection to client failed during authentication: {0}")]
    Io(#[from] std::io::Error),
    /// Common: psql closes the connection to ask its user for a password.
    #[error("client closed the connection during authentication")]
    Closed,
    #[error("password authentication failed for user \"{0}\"")]
    Password(String),
    #[error("empty password returned by client")]
    EmptyPassword,
    #[error("Peer authentication failed for user \"{0}\"")]
    Peer(String),
    #[error("certificate authentication failed for user \"{0}\"")]
    Certificate(String),
    #[error("connection requires a valid client certificate")]
    CertificateMissing,
    #[error("expected password response, got message type {0}")]
    UnexpectedMessage(u8),
    #[error("invalid password packet size")]
    PasswordSize,
    #[error("{0}")]
    MessageLength(FrameError),
    #[error("{0}")]
    Scram(ScramError),
}

impl From<FrameError> for AuthError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Io(error),
            FrameError::Closed => Self::Closed,
            error @ FrameError::Length { .. } => Self::MessageLength(error),
        }
    }
}

impl UserFacing for AuthError {
    fn report(&self) -> Report {
        let text = self.to_string();
        match self {
            Self::Io(_) | Self::Closed => Report::fatal(SqlState::CONNECTION_FAILURE, text),
            Self::Password(_) | Self::EmptyPassword => {
                Report::fatal(SqlState::INVALID_PASSWORD, text)
            }
            Self::Peer(_) | Self::Certificate(_) | Self::CertificateMissing => {
                Report::fatal(SqlState::INVALID_AUTHORIZATION, text)
            }
            Self::UnexpectedMessage(_) | Self::PasswordSize | Self::MessageLength(_) => {
                Report::fatal(SqlState::PROTOCOL_VIOLATION, text)
            }
            Self::Scram(error) => error.report(),
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Client
    }
}

/// SCRAM-SHA-256, with -PLUS where `channel_binding` is the hash of pgweir's own certificate.
/// A secret that can't serve (`None`, or an md5 hash) is played through and refused at the end.
///
/// Not cancel safe: the client must be disconnected.
pub async fn scram<S>(
    stream: &mut S,
    user: &str,
    secret: Option<&UserSecret>,
    mock: &MockSecret,
    channel_binding: Option<&[u8]>,
) -> Result<Arc<ScramKeys>, AuthError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (verifier, genuine) = match verifier(secret).await {
        Some(verifier) => (verifier, true),
        None => (Arc::new(Verifier::mock(user, mock)), false),
    };
    let refused = |error| match error {
        ScramError::WrongProof => AuthError::Password(user.to_owned()),
        other => AuthError::Scram(other),
    };
    let exchange = ServerExchange::new(verifier, genuine, channel_binding);
    let mut offer = Vec::new();
    for mechanism in exchange.mechanisms() {
        offer.extend_from_slice(mechanism.as_bytes());
        offer.push(0);
    }
    offer.push(0);
    request(stream, SASL, &offer).await?;
    let initial = response(stream, MAX_SASL_MESSAGE).await?;
    let awaiting = client_first(stream, exchange, &initial)
        .await?
        .map_err(refused)?;
    let last = response(stream, MAX_SASL_MESSAGE).await?;
    let (keys, signature) = awaiting.client_final(&last).map_err(refused)?;
    request(stream, SASL_FINAL, signature.as_bytes()).await?;
    Ok(Arc::new(keys))
}

/// The `SASLInitialResponse`; the outer result is the stream's, the inner the exchange's.
async fn client_first<S>(
    stream: &mut S,
    exchange: ServerExchange,
    initial: &[u8],
) -> Result<Result<AwaitingProof, ScramError>, AuthError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some((mechanism, data)) = split_initial(initial) else {
        return Ok(Err(ScramError::Malformed("Malformed SASLInitialResponse.")));
    };
    if let Err(error) = exchange.check_mechanism(mechanism) {
        return Ok(Err(error));
    }
    // A client may send the mechanism alone first, and is then asked for the rest with an empty challenge.
    let first = if let Some(data) = data {
        data.to_vec()
    } else {
        request(stream, SASL_CONTINUE, b"").await?;
        response(stream, MAX_SASL_MESSAGE).await?
    };
    match exchange.client_first(mechanism, &first) {
        Ok((awaiting, challenge)) => {
            request(stream, SASL_CONTINUE, challenge.as_bytes()).await?;
            Ok(Ok(awaiting))
        }
        Err(error) => Ok(Err(error)),
    }
}

/// Mechanism and the client-first-message, which is absent where its length is -1.
fn split_initial(body: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let end = memchr::memchr(0, body)?;
    let (length, data) = body[end + 1..].split_first_chunk()?;
    let data = match i32::from_be_bytes(*length) {
        -1 if data.is_empty() => None,
        length if usize::try_from(length).ok() == Some(data.len()) => Some(data),
        _ => return None,
    };
    Some((&body[..end], data))
}

/// The verifier of a secret; one in clear text is hashed on a blocking thread.
async fn verifier(secret: Option<&UserSecret>) -> Option<Arc<Verifier>> {
    match secret? {
        UserSecret::Scram(verifier) => Some(Arc::clone(verifier)),
        UserSecret::Md5(_) => None,
        plain @ UserSecret::Plain(_) => {
            let plain = plain.clone();
            let hashed = tokio::task::spawn_blocking(move || plain.verifier());
            // It can fail only while the runtime shuts down, and then nobody logs in any more.
            hashed.await.ok().flatten()
        }
    }
}

/// md5, or SCRAM where the secret is a SCRAM verifier, as PostgreSQL's `md5` method does.
/// An unknown user is asked for md5.
///
/// Not cancel safe: the client must be disconnected.
pub async fn md5<S>(
    stream: &mut S,
    user: &str,
    secret: Option<&UserSecret>,
    mock: &MockSecret,
    channel_binding: Option<&[u8]>,
) -> Result<Proof, AuthError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (hash, genuine) = match secret {
        Some(UserSecret::Scram(_)) => {
            let keys = scram(stream, user, secret, mock, channel_binding).await?;
            return Ok(Proof::ScramKeys(keys));
        }
        Some(UserSecret::Md5(hash)) => (*hash, true),
        Some(UserSecret::Plain(plain)) => {
            let password = plain.password().expose();
            (Md5Hash::new(password, user.as_bytes()), true)
        }
        None => (Md5Hash::new("", user.as_bytes()), false),
    };
    let salt: [u8; 4] = rand::random();
    request(stream, MD5, &salt).await?;
    let answer = response(stream, MAX_PASSWORD_MESSAGE).await?;
    let answer = password_field(&answer)?;
    if answer.is_empty() {
        return Err(AuthError::EmptyPassword);
    }
    if hash.verify(salt, answer) && genuine {
        Ok(Proof::Md5(hash))
    } else {
        Err(AuthError::Password(user.to_owned()))
    }
}

/// Asks for the password in clear text. Only over TLS, loopback or a Unix socket; the caller sees to that.
///
/// Not cancel safe: the client must be disconnected.
pub async fn cleartext<S>(stream: &mut S, user: &str) -> Result<Secret, AuthError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    request(stream, CLEARTEXT, b"").await?;
    let answer = zeroize::Zeroizing::new(response(stream, MAX_PASSWORD_MESSAGE).await?);
    let password = password_field(&answer)?;
    if password.is_empty() {
        return Err(AuthError::EmptyPassword);
    }
    // No secret pgweir can know is other than UTF-8, so such a password is a wrong one.
    std::str::from_utf8(password)
        .map(|password| Secret::new(password.to_owned()))
        .map_err(|_| AuthError::Password(user.to_owned()))
}

/// Whether a password in clear text is the user's; hashing runs on a blocking thread. Every user costs as much as one with
/// a SCRAM verifier, so that the time does not tell who is known.
pub async fn check_cleartext(
    user: &str,
    password: &Secret,
    secret: Option<&UserSecret>,
    mock: &MockSecret,
) -> Result<(), AuthError> {
    let (name, password, secret) = (user.to_owned(), password.clone(), secret.cloned());
    let mock = Verifier::mock(user, mock);
    let checked = tokio::task::spawn_blocking(move || {
        if !matches!(secret, Some(UserSecret::Scram(_))) {
            std::hint::black_box(mock.accepts(password.expose()));
        }
        secret.is_some_and(|secret| secret.accepts(&name, &password))
    });
    match checked.await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(AuthError::Password(user.to_owned())),
    }
}

/// `peer`: the operating system's name of the user id at the other end of the Unix socket.
pub async fn peer(
    uid: Option<u32>,
    user: &str,
    map: Option<&str>,
    maps: &IdentMaps,
) -> Result<(), AuthError> {
    let passwd = tokio::fs::read_to_string("/etc/passwd")
        .await
        .unwrap_or_default();
    let system_user = uid.and_then(|uid| user_name(&passwd, uid));
    if system_user.is_some_and(|name| maps.allows(map, name, user)) {
        Ok(())
    } else {
        Err(AuthError::Peer(user.to_owned()))
    }
}

/// `cert`: the common name of the certificate that TLS verified. `presented` is false where there was none.
pub fn certificate(
    presented: bool,
    common_name: Option<&str>,
    user: &str,
    map: Option<&str>,
    maps: &IdentMaps,
) -> Result<(), AuthError> {
    if !presented {
        Err(AuthError::CertificateMissing)
    } else if cert::permits(common_name, user, map, maps) {
        Ok(())
    } else {
        Err(AuthError::Certificate(user.to_owned()))
    }
}

/// The name of a user id in `/etc/passwd`.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let line_uid: u32 = fields.nth(1)?.parse().ok()?;
        (line_uid == uid && !name.is_empty()).then_some(name)
    })
}

async fn request<S>(stream: &mut S, code: u32, data: &[u8]) -> Result<(), AuthError>
where
    S: AsyncWrite + Unpin,
{
    let bytes = frame::message(b'R', &[&code.to_be_bytes(), data]);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

/// The body of the `p` message that answers a request.
async fn response<S>(stream: &mut S, max_body: usize) -> Result<Vec<u8>, AuthError>
where
    S: AsyncRead + Unpin,
{
    let frame = frame::read_frame(stream, max_body).await?;
    match frame.tag {
        b'p' => Ok(frame.body),
        // psql and libpq say goodbye when their user has no password at hand.
        b'X' => Err(AuthError::Closed),
        other => Err(AuthError::UnexpectedMessage(other)),
    }
}

/// The password of a `PasswordMessage`: one string that fills it.
fn password_field(body: &[u8]) -> Result<&[u8], AuthError> {
    match memchr::memchr(0, body) {
        Some(end) if end + 1 == body.len() => Ok(&body[..end]),
        _ => Err(AuthError::PasswordSize),
    }
}

#[cfg(test)]
mod tests;
