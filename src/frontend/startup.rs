//! From the first byte of a connection to a session that may run statements.
//!
//! Nothing is held for a client before it is authenticated but the packet it is sending, of at most 10,000 bytes.

use std::sync::Arc;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::shared::Shared;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};
use crate::net::stream::Stream;
use crate::pool::open::OpenError;
use crate::pool::waiter::CheckoutError;
use crate::registry::{KEY_LEN, NewClient, Registered};
use crate::session::mirror::Reported;
use crate::session::settings::Tracker;
use crate::wire::backend;
use crate::wire::startup::{self, StartupError, StartupMessage, StartupPacket, Version};

use super::session::{Session, Start};
use super::prepare;

/// Why a connection did not become a session.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// It ended, or was never more than a probe: nobody is told.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Startup(#[from] StartupError),
    #[error("database \"{0}\" does not exist")]
    NoDatabase(String),
    #[error("{0}")]
    Open(#[from] Arc<OpenError>),
    #[error("{0}")]
    Checkout(#[from] CheckoutError),
    /// The server refused a startup parameter; its own words are passed on.
    #[error("{message}")]
    Parameter { payload: Vec<u8>, message: String },
}

impl UserFacing for HandshakeError {
    fn report(&self) -> Report {
        match self {
            Self::Io(_) => Report::fatal(SqlState::CONNECTION_FAILURE, "connection lost"),
            Self::Startup(StartupError::Version { .. }) => {
                Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::Startup(StartupError::NoUser) => Report::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()),
            Self::Startup(_) => Report::fatal(SqlState::PROTOCOL_VIOLATION, self.to_string()),
            Self::NoDatabase(_) => Report::fatal(SqlState::INVALID_CATALOG_NAME, self.to_string()),
            Self::Open(error) => error.report(),
            Self::Checkout(error) => error.report(),
            Self::Parameter { .. } => Report::fatal(SqlState::INVALID_PARAMETER_VALUE, self.to_string()),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_) | Self::Startup(_) | Self::NoDatabase(_) | Self::Parameter { .. } => ErrorKind::Client,
            Self::Open(error) => error.kind(),
            Self::Checkout(error) => error.kind(),
        }
    }
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Arrival {
    Startup(Stream, StartupMessage),
    Cancel { pid: u32, key: Vec<u8> },
}

/// Reads packets until the client says what it wants.
pub async fn arrive(mut stream: Stream) -> Result<Arrival, (Stream, HandshakeError)> {
    loop {
        match read_packet(&mut stream).await {
            Err(error) => return Err((stream, error)),
            Ok(StartupPacket::Cancel { pid, key }) => return Ok(Arrival::Cancel { pid, key }),
            Ok(StartupPacket::Startup(message)) => return Ok(Arrival::Startup(stream, message)),
            Ok(StartupPacket::Ssl | StartupPacket::GssEnc) => {
                if let Err(error) = stream.write_all(b"N").await {
                    return Err((stream, error.into()));
                }
            }
        }
    }
}

async fn read_packet(stream: &mut Stream) -> Result<StartupPacket, HandshakeError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let mut packet = vec![0; startup::packet_len(head)? - 4];
    stream.read_exact(&mut packet).await?;
    Ok(startup::read(&packet)?)
}

/// Makes a session for an authenticated client: finds its pool, has the server accept its startup parameters, and
/// tells it everything a server tells after authentication.
pub async fn admit(
    mut stream: Stream,
    message: StartupMessage,
    shared: Arc<Shared>,
) -> Result<Session, (Stream, HandshakeError)> {
    let user = String::from_utf8_lossy(&message.user).into_owned();
    let database = String::from_utf8_lossy(&message.database).into_owned();
    let Some(pool) = shared.pools.get(&shared.config.load(), &database, &user) else {
        return Err((stream, HandshakeError::NoDatabase(database)));
    };
    let entry = shared.registry.register(NewClient {
        user: Arc::clone(&pool.key.user),
        database: Arc::clone(&pool.key.database),
        peer: "tcp".into(),
        tls: stream.is_tls(),
    });
    let prepared = match prepare::prepare(&pool, &message, &entry.waiter).await {
        Ok(prepared) => prepared,
        Err(error) => return Err((stream, error)),
    };
    if let Err(error) = greet(&mut stream, &message, &entry, &prepared.reported).await {
        return Err((stream, error.into()));
    }
    let settings = Tracker::new(prepared.settings);
    Ok(Session::new(Start { stream, shared, pool, entry, settings, told: prepared.reported }))
}

async fn greet(
    stream: &mut Stream,
    message: &StartupMessage,
    entry: &Registered,
    reported: &Reported,
) -> std::io::Result<()> {
    let mut out = Vec::with_capacity(512);
    let spoken = message.version.min(Version::V3_2);
    if message.version > Version::V3_2 || !message.protocol_options.is_empty() {
        startup::put_negotiate_protocol_version(&mut out, spoken, &message.protocol_options);
    }
    backend::put_authentication_ok(&mut out);
    for (name, value) in reported.iter() {
        backend::put_parameter_status(&mut out, name, value);
    }
    let key_len = if spoken < Version::V3_2 { 4 } else { KEY_LEN };
    backend::put_backend_key_data(&mut out, entry.pid.0, &entry.key[..key_len]);
    backend::put_ready_for_query(&mut out, backend::TransactionStatus::Idle);
    stream.write_all(&out).await?;
    stream.flush().await
}
