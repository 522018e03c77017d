//! Logging in to a PostgreSQL server: from `StartupMessage` to the first `ReadyForQuery`.
//!
//! Reads exact messages of bounded size and leaves nothing in a buffer: after [`login`] the next byte of the stream
//! is the first after `ReadyForQuery`. The caller bounds the time.

mod message;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use self::message::{Authentication, Negotiated};
use crate::auth::md5::Md5Hash;
use crate::auth::scram::client::{Binding, Challenge, ClientExchange};
use crate::auth::scram::{SCRAM_SHA_256_PLUS, ScramError, ScramKeys};
use crate::config::model::Secret;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};
use crate::net::frame::{self, Frame, FrameError};
use crate::net::stream::Stream;

pub use self::message::ServerError;

/// Longest message taken during login. A `ParameterStatus` may carry a long `search_path`.
const MAX_BODY: usize = 256 * 1024;
/// Everything a server may send during login.
const MAX_TOTAL: usize = 4 * 1024 * 1024;

/// The protocol version to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolVersion {
    V3_0,
    /// PostgreSQL 18: cancel keys of up to 256 bytes.
    V3_2,
}

impl ProtocolVersion {
    fn code(self) -> u32 {
        match self {
            Self::V3_0 => 0x0003_0000,
            Self::V3_2 => 0x0003_0002,
        }
    }
}

/// What pgweir can prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    None,
    Password(Secret),
    /// Recovered from a client's proof, or kept from an earlier login.
    ScramKeys(Arc<ScramKeys>),
    Md5(Md5Hash),
}

/// What the server asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAuth {
    /// Nothing, or a client certificate: the login says nothing about the password.
    Trust,
    Cleartext,
    Md5,
    Scram,
}

/// A connection ready for its first query.
#[derive(Debug)]
pub struct LoggedIn {
    pub pid: u32,
    pub cancel_key: Vec<u8>,
    pub protocol: ProtocolVersion,
    /// `ParameterStatus` in the order they came.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    pub method: UpstreamAuth,
    /// Log in again with these in place of the password: set after SCRAM.
    pub learned: Option<Arc<ScramKeys>>,
    /// `NoticeResponse`s that came during login.
    pub notices: Vec<Frame>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("connection to server failed during login: {0}")]
    Io(#[from] std::io::Error),
    #[error("server closed the connection during login")]
    Closed,
    /// The server said no. Holds its own message, to be relayed whole.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The credentials can't answer what the server asks; with a password they could.
    #[error("server asks for {asked:?} authentication, which the known credentials can't answer")]
    PasswordNeeded { asked: UpstreamAuth },
    #[error("server requires an unsupported authentication method: {0}")]
    Unsupported(String),
    #[error("unexpected response from server during login: {0}")]
    Protocol(&'static str),
    #[error("SCRAM exchange with server failed: {0}")]
    Scram(#[from] ScramError),
}

impl From<FrameError> for LoginError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Io(error),
            FrameError::Closed => Self::Closed,
            FrameError::Length { .. } => Self::Protocol("a message of invalid length"),
        }
    }
}

impl UserFacing for LoginError {
    fn report(&self) -> Report {
        match self {
            Self::Server(error) => Report::fatal(error.code, error.message.clone()),
            Self::PasswordNeeded { .. } => Report::fatal(
                SqlState::INVALID_AUTHORIZATION,
                "the server asks for a password that pgweir does not know",
            )
            .hint("Use authentication method passthrough, or give the password in the userlist or the database's settings."),
            Self::Unsupported(_) => {
                Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::Io(_) | Self::Closed | Self::Protocol(_) | Self::Scram(_) => {
                Report::fatal(SqlState::CONNECTION_FAILURE, self.to_string())
            }
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::PasswordNeeded { .. } => ErrorKind::Client,
            _ => ErrorKind::Server,
        }
    }
}

/// Logs in over a connected stream. `startup` holds the parameters of the `StartupMessage`, `user` among them; names
/// and values must be free of NUL. `heard` is set once the server has said something.
///
/// Not cancel safe: the stream must be closed.
pub async fn login(
    stream: &mut Stream,
    protocol: ProtocolVersion,
    startup: &[(&[u8], &[u8])],
    credentials: &Credentials,
    heard: &AtomicBool,
) -> Result<LoggedIn, LoginError> {
    let end_point_hash = stream.server_end_point_hash();
    login_over(
        stream,
        protocol,
        startup,
        credentials,
        end_point_hash.as_deref(),
        heard,
    )
    .await
}

/// `end_point_hash` is that of the server's certificate; `None` without TLS, or where it is undefined.
async fn login_over<S>(
    stream: &mut S,
    protocol: ProtocolVersion,
    startup: &[(&[u8], &[u8])],
    credentials: &Credentials,
    end_point_hash: Option<&[u8]>,
    heard: &AtomicBool,
) -> Result<LoggedIn, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut dialogue = Dialogue {
        stream,
        received: 0,
        notices: Vec::new(),
        protocol,
        heard,
    };
    let startup_message = message::startup(protocol.code(), startup)?;
    dialogue.send(&startup_message).await?;
    let user = startup.iter().find(|(name, _)| *name == b"user");
    let user = user.map_or(&b""[..], |(_, value)| value);
    let (method, learned) = dialogue
        .authenticate(user, credentials, end_point_hash)
        .await?;
    dialogue.until_ready(method, learned).await
}

struct Dialogue<'a, S> {
    stream: &'a mut S,
    received: usize,
    notices: Vec<Frame>,
    protocol: ProtocolVersion,
    heard: &'a AtomicBool,
}

type Authenticated = (UpstreamAuth, Option<Arc<ScramKeys>>);

impl<S> Dialogue<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The next message that is neither an error, a notice nor a version negotiation.
    async fn next(&mut self) -> Result<Frame, LoginError> {
        loop {
            let frame = frame::read_frame(self.stream, MAX_BODY).await?;
            self.heard.store(true, Ordering::Relaxed);
            self.received += frame.body.len();
            if self.received > MAX_TOTAL {
                return Err(LoginError::Protocol("too much data"));
            }
            match frame.tag {
                b'E' => {
                    let error = ServerError::parse(&frame);
                    return Err(LoginError::Server(Box::new(error)));
                }
                b'N' => self.notices.push(frame),
                b'v' => self.negotiated(&frame.body)?,
                _ => return Ok(frame),
            }
        }
    }

    fn negotiated(&mut self, body: &[u8]) -> Result<(), LoginError> {
        let Negotiated { version, options } = message::negotiated(body)?;
        if options > 0 {
            return Err(LoginError::Protocol(
                "it rejects protocol options that were not asked for",
            ));
        }
        self.protocol = match version {
            // Before PostgreSQL 18 only the minor version was sent.
            0 | 0x0003_0000 => ProtocolVersion::V3_0,
            2 | 0x0003_0002 if self.protocol == ProtocolVersion::V3_2 => ProtocolVersion::V3_2,
            _ => {
                return Err(LoginError::Protocol(
                    "it negotiates a protocol version that was not asked for",
                ));
            }
        };
        Ok(())
    }

    async fn next_authentication(&mut self) -> Result<Authentication, LoginError> {
        let frame = self.next().await?;
        if frame.tag != b'R' {
            return Err(LoginError::Protocol("not an authentication message"));
        }
        message::authentication(&frame.body)
    }

    async fn authenticate(
        &mut self,
        user: &[u8],
        credentials: &Credentials,
        end_point_hash: Option<&[u8]>,
    ) -> Result<Authenticated, LoginError> {
        let method = match self.next_authentication().await? {
            Authentication::Ok => return Ok((UpstreamAuth::Trust, None)),
            Authentication::Cleartext => {
                let asked = UpstreamAuth::Cleartext;
                let Credentials::Password(password) = credentials else {
                    return Err(LoginError::PasswordNeeded { asked });
                };
                self.send_password(password.expose().as_bytes()).await?;
                asked
            }
            Authentication::Md5(salt) => {
                let asked = UpstreamAuth::Md5;
                let hash = match credentials {
                    Credentials::Password(password) => Md5Hash::new(password.expose(), user),
                    Credentials::Md5(hash) => *hash,
                    Credentials::None | Credentials::ScramKeys(_) => {
                        return Err(LoginError::PasswordNeeded { asked });
                    }
                };
                self.send_password(hash.response(salt).as_bytes()).await?;
                asked
            }
            Authentication::Sasl(mechanisms) => {
                let keys = self.scram(&mechanisms, credentials, end_point_hash).await?;
                self.expect_ok().await?;
                return Ok((UpstreamAuth::Scram, Some(keys)));
            }
            Authentication::Unsupported(name) => return Err(LoginError::Unsupported(name)),
            Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => {
                return Err(LoginError::Protocol("a SASL message out of order"));
            }
        };
        self.expect_ok().await?;
        Ok((method, None))
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), LoginError> {
        let bytes = zeroize::Zeroizing::new(frame::message(b'p', &[password, b"\0"]));
        self.send(&bytes).await
    }

    async fn expect_ok(&mut self) -> Result<(), LoginError> {
        match self.next_authentication().await? {
            Authentication::Ok => Ok(()),
            _ => Err(LoginError::Protocol(
                "a second authentication request after the answer to the first",
            )),
        }
    }

    async fn scram(
        &mut self,
        mechanisms: &[String],
        credentials: &Credentials,
        end_point_hash: Option<&[u8]>,
    ) -> Result<Arc<ScramKeys>, LoginError> {
        let binding = choose_binding(mechanisms, end_point_hash)?;
        let asked = UpstreamAuth::Scram;
        if matches!(credentials, Credentials::None | Credentials::Md5(_)) {
            return Err(LoginError::PasswordNeeded { asked });
        }
        let mechanism = binding.mechanism();
        let (exchange, first) = ClientExchange::start(binding);
        self.send(&message::sasl_initial(mechanism, first.as_bytes()))
            .await?;
        let Authentication::SaslContinue(data) = self.next_authentication().await? else {
            return Err(LoginError::Protocol("not the server's SCRAM challenge"));
        };
        let challenge = exchange.server_first(&data)?;
        let keys = keys_for(&challenge, credentials).await?;
        let (exchange, last) = challenge.respond(&keys);
        self.send(&frame::message(b'p', &[last.as_bytes()])).await?;
        // AuthenticationOk without the server's signature would be a server that does not know the secret.
        let Authentication::SaslFinal(data) = self.next_authentication().await? else {
            return Err(LoginError::Protocol("not the server's SCRAM signature"));
        };
        exchange.server_final(&data)?;
        Ok(keys)
    }

    async fn until_ready(
        mut self,
        method: UpstreamAuth,
        learned: Option<Arc<ScramKeys>>,
    ) -> Result<LoggedIn, LoginError> {
        let mut parameters = Vec::new();
        let mut key = None;
        loop {
            let frame = self.next().await?;
            match frame.tag {
                b'S' => parameters.push(message::parameter_status(&frame.body)?),
                b'K' => key = Some(message::backend_key_data(&frame.body)?),
                b'Z' if frame.body == b"I" => break,
                _ => return Err(LoginError::Protocol("an unexpected message type")),
            }
        }
        // A server behind some poolers sends none; then nothing can be cancelled.
        let (pid, cancel_key) = key.unwrap_or_default();
        Ok(LoggedIn {
            pid,
            cancel_key,
            protocol: self.protocol,
            parameters,
            method,
            learned,
            notices: self.notices,
        })
    }
}

fn choose_binding(
    mechanisms: &[String],
    end_point_hash: Option<&[u8]>,
) -> Result<Binding, LoginError> {
    let offers = |name: &str| mechanisms.iter().any(|offered| offered == name);
    let chosen = Binding::choose(end_point_hash, offers(SCRAM_SHA_256_PLUS));
    if offers(chosen.mechanism()) {
        return Ok(chosen);
    }
    Err(LoginError::Unsupported(format!(
        "SASL mechanisms {}",
        mechanisms.join(", ")
    )))
}

/// Keys that fit the challenge: those at hand, or made of the password on a blocking thread.
async fn keys_for(
    challenge: &Challenge,
    credentials: &Credentials,
) -> Result<Arc<ScramKeys>, LoginError> {
    let asked = UpstreamAuth::Scram;
    match credentials {
        Credentials::ScramKeys(keys) if keys.fit(challenge.salt(), challenge.iterations()) => {
            Ok(Arc::clone(keys))
        }
        Credentials::Password(password) => {
            let password = password.clone();
            let salt = challenge.salt().to_vec();
            let iterations = challenge.iterations();
            let derived = tokio::task::spawn_blocking(move || {
                ScramKeys::derive(password.expose(), &salt, iterations)
            });
            let keys = derived
                .await
                .map_err(|_| LoginError::Protocol("login was interrupted by shutdown"))?;
            Ok(Arc::new(keys))
        }
        // The password was changed on the server since the keys were learned.
        Credentials::ScramKeys(_) | Credentials::None | Credentials::Md5(_) => {
            Err(LoginError::PasswordNeeded { asked })
        }
    }
}

#[cfg(test)]
mod tests;
