//! From the first byte of a connection to a session that may run statements.
//!
//! Nothing is held for a client before it is authenticated but the packet it is sending, of at most 10,000 bytes.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::login::{self, Applicant, Denied};
use crate::backend::login::{Credentials, LoginError};
use crate::config::model::SslMode;
use crate::error::{ErrorKind, Report, Severity, SqlState, UserFacing};
use crate::meter::Address;
use crate::net::buffer::ReadBuffer;
use crate::net::departure::unless_gone;
use crate::net::stream::Stream;
use crate::net::tls::{ClientTlsContext, Negotiation, TlsError};
use crate::pool::open::OpenError;
use crate::pool::pools::NoPlace;
use crate::pool::waiter::CheckoutError;
use crate::pool::{ClientPlace, Pool};
use crate::registry::{NewClient, Registered, Replication};
use crate::session::mirror::Reported;
use crate::session::settings::Tracker;
use crate::shared::{Shared, is_console};
use crate::wire::backend;
use crate::wire::limits::STARTUP_PACKET_MAX;
use crate::wire::startup::{self, StartupError, StartupMessage, StartupPacket, Version};

use super::prepare::{self, Known};
use super::session::{Session, Start};

/// Why a connection did not become a session.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// It ended, or was never more than a probe: nobody is told.
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Startup(#[from] StartupError),
    #[error("database \"{0}\" does not exist")]
    NoDatabase(String),
    #[error("{0}")]
    Open(#[from] Arc<OpenError>),
    #[error("{0}")]
    Checkout(#[from] CheckoutError),
    #[error("{0}")]
    Denied(#[from] Denied),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("connection requires TLS")]
    TlsRequired,
    #[error("user and database names must be UTF-8")]
    Encoding,
    #[error("too many client connections ({setting} = {limit})")]
    TooManyClients { setting: &'static str, limit: usize },
    #[error("no server connection is left for replication ({0})")]
    NoConnection(&'static str),
    #[error("canceling authentication due to timeout")]
    Timeout {
        /// What was waited for, if that was more than the client's own messages.
        why: Option<String>,
    },
    #[error("the database system is shutting down")]
    ShuttingDown,
    #[error("terminating connection due to administrator command")]
    Ordered,
    /// The server refused a startup parameter; its own words are passed on.
    #[error("{message}")]
    Parameter {
        code: SqlState,
        payload: Vec<u8>,
        message: String,
    },
}

impl HandshakeError {
    /// The server's own `ErrorResponse`, where it said no, as a whole frame.
    pub fn server_frame(&self) -> Option<Vec<u8>> {
        let open = match self {
            Self::Denied(Denied::Server(error)) => error,
            Self::Open(error) | Self::Checkout(CheckoutError::Refused(error)) => error,
            _ => return None,
        };
        match open {
            OpenError::Login(LoginError::Server(error)) => Some(error.frame.clone()),
            _ => None,
        }
    }
}

impl HandshakeError {
    fn cause(&self) -> Report {
        match self {
            Self::Io(_) => Report::fatal(SqlState::CONNECTION_FAILURE, "connection lost"),
            Self::Startup(StartupError::Version { .. }) => {
                Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::Startup(StartupError::NoUser) => {
                Report::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string())
            }
            Self::Startup(_) => Report::fatal(SqlState::PROTOCOL_VIOLATION, self.to_string()),
            Self::NoDatabase(_) => Report::fatal(SqlState::INVALID_CATALOG_NAME, self.to_string()),
            Self::Open(error) => error.report(),
            Self::Checkout(error) => error.report(),
            Self::Denied(error) => error.report(),
            Self::Tls(_) => Report::fatal(SqlState::PROTOCOL_VIOLATION, self.to_string()),
            Self::TlsRequired => Report::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string())
                .hint("The limit is pgweir's tls.client.sslmode."),
            Self::Encoding => Report::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()),
            Self::TooManyClients { setting, .. } => {
                Report::fatal(SqlState::TOO_MANY_CONNECTIONS, self.to_string())
                    .hint(format!("Raise {setting} or close idle clients."))
            }
            Self::NoConnection(_) => {
                Report::fatal(SqlState::TOO_MANY_CONNECTIONS, self.to_string())
            }
            Self::Timeout { why } => Report {
                detail: why.clone().map(Into::into),
                ..Report::fatal(SqlState::QUERY_CANCELED, self.to_string())
                    .hint("The limit is pgweir's timeouts.client_login_timeout.")
            },
            Self::ShuttingDown => Report::fatal(SqlState::CANNOT_CONNECT_NOW, self.to_string()),
            Self::Parameter { code, payload, .. } => {
                let field = |kind| {
                    let text = backend::error_field(payload, kind)?;
                    Some(String::from_utf8_lossy(text).into_owned().into())
                };
                // What is an error of a statement is fatal to a connection that was to start with it.
                Report {
                    detail: field(b'D'),
                    hint: field(b'H'),
                    ..Report::fatal(*code, self.to_string())
                }
            }
            Self::Ordered => super::reply::shutdown(),
        }
    }
}

impl UserFacing for HandshakeError {
    /// Fatal, whatever it is to a session: the connection does not come to be.
    fn report(&self) -> Report {
        Report {
            severity: Severity::Fatal,
            ..self.cause()
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io(_)
            | Self::Startup(_)
            | Self::NoDatabase(_)
            | Self::Tls(_)
            | Self::TlsRequired
            | Self::Encoding
            | Self::Parameter { .. } => ErrorKind::Client,
            Self::TooManyClients { .. } | Self::NoConnection(_) | Self::Timeout { .. } => {
                ErrorKind::Limit
            }
            Self::ShuttingDown | Self::Ordered => ErrorKind::Operator,
            Self::Denied(error) => error.kind(),
            Self::Open(error) => error.kind(),
            Self::Checkout(error) => error.kind(),
        }
    }
}

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Arrival {
    Startup(Stream, StartupMessage),
    /// The end of its connection tells the client that the request was passed on: what it sends next is not hit.
    Cancel {
        stream: Stream,
        pid: u32,
        key: Vec<u8>,
    },
}

/// Reads packets until the client says what it wants, starting TLS where it asks for that first.
pub async fn arrive(
    mut stream: Stream,
    tls: Option<&ClientTlsContext>,
) -> Result<Arrival, (Option<Stream>, HandshakeError)> {
    if let (Some(tls), Stream::Tcp(tcp)) = (tls, &stream)
        && starts_tls(tcp).await
    {
        stream = Box::pin(start_tls(stream, tls, Negotiation::Direct)).await?;
    }
    // PostgreSQL answers one request for each kind of encryption.
    for _ in 0..3 {
        let (packet, behind) = match read_packet(&mut stream).await {
            Ok(read) => read,
            Err(error) => return Err((Some(stream), error)),
        };
        stream = stream.unread(&behind);
        match packet {
            StartupPacket::Cancel { pid, key } => return Ok(Arrival::Cancel { stream, pid, key }),
            StartupPacket::Startup(message) => return Ok(Arrival::Startup(stream, message)),
            StartupPacket::Ssl if tls.is_some() && stream.is_tcp() && !stream.is_tls() => {
                stream = answer(stream, *b"S").await?;
                if let Some(tls) = tls {
                    stream = Box::pin(start_tls(stream, tls, Negotiation::SslRequest)).await?;
                }
            }
            StartupPacket::Ssl | StartupPacket::GssEnc => {
                stream = answer(stream, *b"N").await?;
            }
        }
    }
    Err((Some(stream), StartupError::Layout.into()))
}

/// Whether the first byte is that of a TLS handshake record; no startup packet is long enough to begin so.
async fn starts_tls(tcp: &tokio::net::TcpStream) -> bool {
    let mut first = [0];
    matches!(tcp.peek(&mut first).await, Ok(1)) && first == [0x16]
}

async fn answer(
    mut stream: Stream,
    byte: [u8; 1],
) -> Result<Stream, (Option<Stream>, HandshakeError)> {
    // Whatever follows an accepted SSLRequest is read by TLS or not at all: nothing was read ahead (CVE-2021-23214).
    match stream.write_all(&byte).await {
        Ok(()) => Ok(stream),
        Err(error) => Err((Some(stream), error.into())),
    }
}

async fn start_tls(
    stream: Stream,
    tls: &ClientTlsContext,
    how: Negotiation,
) -> Result<Stream, (Option<Stream>, HandshakeError)> {
    let Some(plain) = stream.into_plain() else {
        return Err((None, StartupError::Layout.into()));
    };
    tls.accept(plain, how)
        .await
        .map_err(|error| (None, error.into()))
}

/// The next packet, and what was read behind it. Mostly that takes one read: nobody sends more before the answer.
async fn read_packet(stream: &mut Stream) -> Result<(StartupPacket, Vec<u8>), HandshakeError> {
    let mut begun = Vec::new();
    poll_fn(|cx| poll_packet(stream, &mut begun, cx)).await
}

fn poll_packet(
    stream: &mut Stream,
    begun: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<Result<(StartupPacket, Vec<u8>), HandshakeError>> {
    loop {
        let mut buffer = ReadBuffer::take();
        let most = if stream.is_tls() {
            missing(begun)?
        } else {
            STARTUP_PACKET_MAX - begun.len()
        };
        let count = ready!(buffer.poll_fill_some(most, stream, cx))?;
        if count == 0 {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
        }
        let read = buffer.bytes(count);
        let bytes = if begun.is_empty() {
            read
        } else {
            begun.extend_from_slice(read);
            &*begun
        };
        if missing(bytes)? == 0
            && let Some((head, rest)) = bytes.split_first_chunk::<4>()
        {
            let (packet, behind) = rest.split_at(startup::packet_len(*head)? - 4);
            return Poll::Ready(Ok((startup::read(packet)?, behind.to_vec())));
        }
        if begun.is_empty() {
            begun.extend_from_slice(read);
        }
    }
}

/// How many bytes are missing of a packet that begins with `bytes`, as far as these tell.
fn missing(bytes: &[u8]) -> Result<usize, StartupError> {
    match bytes.first_chunk::<4>() {
        None => Ok(4 - bytes.len()),
        Some(head) => Ok(startup::packet_len(*head)?.saturating_sub(bytes.len())),
    }
}

/// Tells a client that asks for more than is spoken here what it gets; like a server, before anything else.
async fn negotiate(stream: &mut Stream, message: &StartupMessage) -> io::Result<()> {
    if message.version <= Version::V3_2 && message.protocol_options.is_empty() {
        return Ok(());
    }
    let mut out = Vec::new();
    let spoken = message.version.min(Version::V3_2);
    startup::put_negotiate_protocol_version(&mut out, spoken, &message.protocol_options);
    stream.write_all(&out).await
}

/// Where a client may come in.
#[derive(Debug)]
pub struct Admission {
    pub place: ClientPlace,
    /// What its own server connection logs in with, if that is not what the pool does.
    pub credentials: Option<Credentials>,
}

/// Checks who the client is and whether it may come in; `None` is the console. `tls` is what its stream began with.
pub async fn admit(
    stream: &mut Stream,
    tls: Option<&ClientTlsContext>,
    message: &StartupMessage,
    address: Option<IpAddr>,
    shared: &Shared,
) -> Result<Option<Admission>, HandshakeError> {
    negotiate(stream, message).await?;
    let config = shared.config.load_full();
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| HandshakeError::Encoding);
    let (user, database) = (text(&message.user)?, text(&message.database)?);
    if config.client_tls.sslmode >= SslMode::Require && !stream.is_tls() && address.is_some() {
        return Err(HandshakeError::TlsRequired);
    }
    let pool = if is_console(database) {
        None
    } else {
        let pool = shared.pools.get(&config, database, user);
        let pool = pool.ok_or_else(|| HandshakeError::NoDatabase(database.to_owned()))?;
        // A password is not asked for, nor a server that is away, by whom nobody may pass.
        if pool.orders.disabled.load(Ordering::Relaxed) {
            return Err(CheckoutError::Disabled(database.to_owned()).into());
        }
        Some(pool)
    };
    let applicant = Applicant {
        stream,
        tls,
        address,
        message,
        user,
        database,
    };
    let credentials = login::authenticate(applicant, shared, pool.as_ref()).await?;
    let Some(pool) = pool else { return Ok(None) };
    let place = take_place(&pool, shared)?;
    Ok(Some(Admission { place, credentials }))
}

/// A place in `pool`, unless it takes no more clients.
fn take_place(pool: &Arc<Pool>, shared: &Shared) -> Result<ClientPlace, HandshakeError> {
    // It may have been disabled meanwhile.
    if pool.orders.disabled.load(Ordering::Relaxed) {
        return Err(CheckoutError::Disabled(pool.key.database.to_string()).into());
    }
    shared
        .pools
        .take_place(pool)
        .map_err(|NoPlace { setting, limit }| HandshakeError::TooManyClients { setting, limit })
}

/// A client that has proved itself, on its way to a session.
#[derive(Debug)]
pub struct Admitted {
    pub stream: Stream,
    pub message: StartupMessage,
    pub peer: Address,
    /// Where it connected to; `None` on a Unix socket.
    pub local: Option<Arc<SocketAddr>>,
    pub place: ClientPlace,
    /// See [`Admission::credentials`].
    pub credentials: Option<Credentials>,
    pub shared: Arc<Shared>,
    /// When its login has taken too long.
    pub deadline: Instant,
}

impl Admitted {
    /// Puts the client among the live ones.
    pub(super) fn register(&self) -> Registered {
        let key = &self.place.pool().key;
        self.shared.registry.register(NewClient {
            key_len: self.message.cancel_key_len(),
            user: Arc::clone(&key.user),
            database: Arc::clone(&key.database),
            peer: self.peer,
            tls: self.stream.tls_description(),
            application_name: self.message.application_name(),
            replication: match self.message.replication.as_deref() {
                None => Replication::None,
                Some(b"database") => Replication::Logical,
                Some(_) => Replication::Physical,
            },
            local: self.local.clone(),
        })
    }
}

/// Makes a session for an authenticated client: has the server accept its startup parameters, and tells it everything
/// a server tells after authentication. Preparing ends at the deadline, and when the client goes.
pub async fn begin(client: Admitted) -> Result<Session, (Option<Stream>, HandshakeError)> {
    let entry = client.register();
    let Admitted {
        mut stream,
        message,
        place,
        shared,
        deadline,
        ..
    } = client;
    let known = match prepare::known(place.pool(), &message) {
        Ok(known) => known,
        Err(error) => return Err((Some(stream), error)),
    };
    let prepared = match known {
        Known::Prepared(prepared) => prepared,
        Known::ToTry(settings) => {
            let prepare = prepare::prepare(place.pool(), settings, &entry.waiter, deadline);
            let unless_ordered = async {
                tokio::select! {
                    prepared = prepare => prepared,
                    () = entry.ordered() => Err(HandshakeError::Ordered),
                }
            };
            match Box::pin(unless_gone(&stream, unless_ordered)).await {
                Ok(Ok(prepared)) => prepared,
                Ok(Err(error)) => return Err((Some(stream), error)),
                Err(gone) => return Err((None, gone.into())),
            }
        }
    };
    if let Err(error) = greet(&mut stream, &entry, &prepared.reported).await {
        return Err((Some(stream), error.into()));
    }
    let settings = Tracker::new(prepared.settings);
    Ok(Session::new(Start {
        stream,
        shared,
        place,
        entry,
        settings,
        told: prepared.reported,
    }))
}

async fn greet(stream: &mut Stream, entry: &Registered, reported: &Reported) -> io::Result<()> {
    let mut out = Vec::with_capacity(512);
    backend::put_authentication_ok(&mut out);
    out.extend_from_slice(reported.greeting(backend::put_parameter_status));
    backend::put_backend_key_data(&mut out, entry.pid.0, entry.key());
    backend::put_ready_for_query(&mut out, backend::TransactionStatus::Idle);
    stream.write_all(&out).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    const PACKET: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0bob\0\0";
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

    /// What arrives when a client sends `pieces` one after the other and nothing more.
    async fn arrives(pieces: &[&[u8]]) -> Result<Arrival, HandshakeError> {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let send = async {
            for piece in pieces {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            theirs.shutdown().await.unwrap();
            theirs
        };
        let (arrival, _theirs) = tokio::join!(arrive(Stream::Unix(ours), None), send);
        arrival.map_err(|(_, error)| error)
    }

    #[tokio::test]
    async fn what_is_sent_behind_the_startup_message_is_read_next() {
        let whole = [PACKET, b"more"].concat();
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        let asked = [&SSL_REQUEST[..], &whole].concat();
        for pieces in [
            vec![&whole[..]],
            vec![&whole[..3], &whole[3..]],
            vec![&whole[..20], &whole[20..]],
            bytes,
            vec![&asked[..]],
            vec![&asked[..5], &asked[5..28], &asked[28..]],
        ] {
            let Ok(Arrival::Startup(mut stream, message)) = arrives(&pieces).await else {
                panic!("no startup message in {pieces:?}");
            };
            assert_eq!(message.user, b"bob");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"more");
        }
    }

    #[tokio::test]
    async fn a_packet_without_an_end_is_refused() {
        let cut = arrives(&[&PACKET[..12]]).await;
        assert!(matches!(cut, Err(HandshakeError::Io(_))));
        let long = arrives(&[b"\0\x01\0\0", &vec![0; 60_000]]).await;
        assert!(matches!(
            long,
            Err(HandshakeError::Startup(StartupError::Length))
        ));
    }
}
