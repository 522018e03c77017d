//! Reaching a PostgreSQL server: names, sockets, and TLS as libpq's `sslmode` has it.
//!
//! Bounded by the caller's timeout (`server_connect_timeout`), of which the addresses of a name get equal shares.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::stream::{Plain, Stream};
use super::tls::{Negotiation, ServerTlsContext, TlsError};
use crate::config::model::{General, Node, SslMode};
use crate::error::{ErrorKind, Report, SqlState, UserFacing};

/// `SSLRequest`: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What one attempt does about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    Plain,
    /// TLS if the server has it and the handshake succeeds, else plain.
    Preferred,
    Required,
}

impl Encryption {
    /// What to begin with.
    pub fn first(sslmode: SslMode) -> Self {
        match sslmode {
            SslMode::Disable | SslMode::Allow => Self::Plain,
            SslMode::Prefer => Self::Preferred,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Self::Required,
        }
    }

    /// What to try on a new connection after the server refused the login over `stream`, as libpq's `allow` and
    /// `prefer` do: the other of plain and TLS. `None` if there is no second way.
    pub fn second(sslmode: SslMode, stream: &Stream) -> Option<Self> {
        match (sslmode, stream) {
            (SslMode::Allow, Stream::Tcp(_)) => Some(Self::Required),
            (SslMode::Prefer, Stream::TlsConnected(_)) => Some(Self::Plain),
            _ => None,
        }
    }

    /// What a `CancelRequest` uses: the same as the connection whose statement it cancels.
    pub fn same_as(stream: &Stream) -> Self {
        if stream.is_tls() {
            Self::Required
        } else {
            Self::Plain
        }
    }
}

/// Why a server could not be reached. The texts name no address: they may reach clients.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("could not translate host name to address: {0}")]
    Resolve(io::Error),
    #[error("could not connect to server: {0}")]
    Io(#[from] io::Error),
    #[error("server does not support SSL, but SSL was required")]
    SslNotSupported,
    /// Not shown: whoever sent it is not authenticated (CVE-2024-10977).
    #[error("server sent an error response during SSL exchange")]
    SslErrorResponse,
    #[error("received invalid response to SSL negotiation: {0:?}")]
    SslResponse(char),
    #[error("server closed the connection during SSL exchange")]
    SslClosed,
    #[error("SSL error: {0}")]
    Tls(#[from] TlsError),
}

impl UserFacing for ConnectError {
    fn report(&self) -> Report {
        match self {
            Self::Resolve(_)
            | Self::Io(_)
            | Self::SslNotSupported
            | Self::SslErrorResponse
            | Self::SslResponse(_)
            | Self::SslClosed
            | Self::Tls(_) => Report::fatal(SqlState::CONNECTION_FAILURE, self.to_string()),
        }
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Server
    }
}

/// TCP options of every connection, to clients and to servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    pub keepalive: bool,
    pub keepidle: Option<Duration>,
    pub keepintvl: Option<Duration>,
    pub keepcnt: Option<u32>,
    pub user_timeout: Option<Duration>,
}

impl SocketOptions {
    pub fn from_config(general: &General) -> Self {
        Self {
            keepalive: general.tcp_keepalive,
            keepidle: general.tcp_keepidle,
            keepintvl: general.tcp_keepintvl,
            keepcnt: general.tcp_keepcnt,
            user_timeout: general.tcp_user_timeout,
        }
    }

    /// Sets them, and `TCP_NODELAY`.
    pub fn apply(&self, tcp: &TcpStream) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let socket = SockRef::from(tcp);
        if self.keepalive {
            let mut keepalive = TcpKeepalive::new();
            if let Some(idle) = self.keepidle {
                keepalive = keepalive.with_time(idle);
            }
            if let Some(interval) = self.keepintvl {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(count) = self.keepcnt {
                keepalive = keepalive.with_retries(count);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        } else {
            // A listener may have had it on.
            socket.set_keepalive(false)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

impl SocketOptions {
    /// Sets every one, those that are not given to what a new socket has. Connections inherit them from a listening
    /// socket on Linux.
    pub fn set_all(&self, socket: &impl AsFd) -> io::Result<()> {
        let fresh = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let or = |given: Option<Duration>, usual: io::Result<Duration>| given.map_or(usual, Ok);
        let keepalive = TcpKeepalive::new()
            .with_time(or(self.keepidle, fresh.tcp_keepalive_time())?)
            .with_interval(or(self.keepintvl, fresh.tcp_keepalive_interval())?)
            .with_retries(
                self.keepcnt
                    .map_or_else(|| fresh.tcp_keepalive_retries(), Ok)?,
            );
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_keepalive(self.keepalive)?;
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}

/// Where to dial, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub node: &'a Node,
    /// The only address to dial; `None` for those that the node's name has. TLS goes by the name either way.
    pub at: Option<SocketAddr>,
    /// When the caller gives up.
    pub until: Instant,
}

/// Connects to a node. A Unix socket never uses TLS, as in libpq.
///
/// Cancel safe: a connection under way is closed.
pub async fn connect(
    target: Target<'_>,
    tls: &ServerTlsContext,
    encryption: Encryption,
    options: &SocketOptions,
) -> Result<Stream, ConnectError> {
    let node = target.node;
    if node.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", node.host, node.port);
        return Ok(Stream::Unix(UnixStream::connect(path).await?));
    }
    let tcp = dial(target, options).await?;
    match encryption {
        Encryption::Plain => Ok(Stream::Tcp(tcp)),
        Encryption::Required => match encrypt(tcp, node, tls).await? {
            stream if stream.is_tls() => Ok(stream),
            _ => Err(ConnectError::SslNotSupported),
        },
        Encryption::Preferred => match encrypt(tcp, node, tls).await {
            Ok(stream) => Ok(stream),
            Err(error) => {
                tracing::debug!(%error, "TLS failed, sslmode prefer allows a plain connection");
                Ok(Stream::Tcp(dial(target, options).await?))
            }
        },
    }
}

/// Tries every address of the node, in the resolver's order.
async fn dial(target: Target<'_>, options: &SocketOptions) -> Result<TcpStream, ConnectError> {
    let Target { node, at, until } = target;
    let addresses: Vec<SocketAddr> = match at {
        Some(address) => vec![address],
        None => tokio::net::lookup_host((node.host.as_str(), node.port))
            .await
            .map_err(ConnectError::Resolve)?
            .collect(),
    };
    let tcp = dial_one_of(&addresses, until).await?;
    options.apply(&tcp)?;
    Ok(tcp)
}

/// The first of `addresses` that answers. One that does not, because what is sent to it is lost, leaves the others their
/// shares of the time.
async fn dial_one_of(addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let connecting = TcpStream::connect(address);
        let connected = if left == 1 {
            // The caller knows how long.
            connecting.await
        } else {
            let time = until.saturating_duration_since(Instant::now());
            let share = time / u32::try_from(left).unwrap_or(u32::MAX);
            let connected = tokio::time::timeout(share, connecting).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match connected {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Whether `node`'s name still leads to `peer`, for all that the resolver tells.
pub async fn leads_to(node: &Node, peer: IpAddr) -> bool {
    match tokio::net::lookup_host((node.host.as_str(), node.port)).await {
        Ok(addresses) => {
            let mut addresses = addresses.map(|address| address.ip()).peekable();
            addresses.peek().is_none() || addresses.any(|address| address == peer)
        }
        Err(_) => true,
    }
}

/// Starts TLS; the stream comes back plain if the server answers that it has none.
async fn encrypt(
    mut tcp: TcpStream,
    node: &Node,
    tls: &ServerTlsContext,
) -> Result<Stream, ConnectError> {
    if tls.negotiation() == Negotiation::SslRequest {
        tcp.write_all(&SSL_REQUEST).await?;
        // Exactly one byte: whatever a man in the middle adds after `S` goes to the TLS handshake and breaks it,
        // and never counts as having come over TLS (CVE-2021-23222).
        let mut answer = [0];
        match tcp.read(&mut answer).await? {
            0 => return Err(ConnectError::SslClosed),
            _ => match answer[0] {
                b'S' => {}
                b'N' => return Ok(Stream::Tcp(tcp)),
                b'E' => return Err(ConnectError::SslErrorResponse),
                other => return Err(ConnectError::SslResponse(char::from(other))),
            },
        }
    }
    Ok(tls.handshake(Plain::Tcp(tcp), &node.host).await?)
}

#[cfg(test)]
mod tests;
