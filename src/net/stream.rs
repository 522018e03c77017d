//! One byte stream to a client or a server, plain or TLS, behind one concrete type.
//!
//! Everything is poll-based: the relay borrows a thread-local buffer inside one `poll` and must not hold it across an
//! await (DESIGN, hot path).

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::certificate;

/// A connected stream. TLS state is boxed so that a plain connection stays small.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Without TLS too, with bytes that were read and not used.
    Ahead(Box<Ahead>),
    /// TLS where pgweir is the TLS server (a client's connection).
    TlsAccepted(Box<tokio_rustls::server::TlsStream<Plain>>),
    /// TLS where pgweir is the TLS client (a server's connection).
    TlsConnected(Box<tokio_rustls::client::TlsStream<Plain>>),
}

/// A stream without TLS: what a TLS session runs over.
#[derive(Debug)]
pub enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// See [`Stream::Ahead`].
#[derive(Debug)]
pub struct Ahead {
    /// What is read before anything else, backwards.
    bytes: Vec<u8>,
    pub(super) plain: Plain,
}

/// Where the other end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(IpAddr, u16),
    Unix,
}

impl Stream {
    /// Whether what is sent cannot be read on the way.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::TlsAccepted(_) | Self::TlsConnected(_))
    }

    /// Version and cipher of TLS, in the words of its registries: `TLSv1.3/TLS_AES_256_GCM_SHA384`. `None` without TLS.
    pub fn tls_description(&self) -> Option<Box<str>> {
        let (version, cipher) = match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Ahead(_) => return None,
            Self::TlsAccepted(tls) => {
                let tls = tls.get_ref().1;
                (tls.protocol_version(), tls.negotiated_cipher_suite())
            }
            Self::TlsConnected(tls) => {
                let tls = tls.get_ref().1;
                (tls.protocol_version(), tls.negotiated_cipher_suite())
            }
        };
        let version = match version {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLS",
        };
        let cipher = cipher.and_then(|suite| suite.suite().as_str());
        // The registry does not name the version twice.
        let cipher = cipher.unwrap_or("?").replacen("TLS13_", "TLS_", 1);
        Some(format!("{version}/{cipher}").into())
    }

    /// The certificate the other end proved to hold, if it sent one. Whether it was verified, and how, is the
    /// context's choice; a client's is never accepted unverified.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        let certificates = match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Ahead(_) => None,
            Self::TlsAccepted(tls) => tls.get_ref().1.peer_certificates(),
            Self::TlsConnected(tls) => tls.get_ref().1.peer_certificates(),
        };
        certificates.and_then(|chain| chain.first())
    }

    /// Common name of the other end's certificate.
    pub fn peer_common_name(&self) -> Option<String> {
        certificate::common_name(self.peer_certificate()?)
    }

    /// The `tls-server-end-point` hash of the server's certificate, where pgweir is the TLS client.
    pub fn server_end_point_hash(&self) -> Option<Vec<u8>> {
        match self {
            Self::TlsConnected(_) => certificate::end_point_hash(self.peer_certificate()?),
            Self::Tcp(_) | Self::Unix(_) | Self::Ahead(_) | Self::TlsAccepted(_) => None,
        }
    }

    /// The user id of the process at the other end of a Unix socket.
    pub fn peer_uid(&self) -> io::Result<Option<u32>> {
        let unix = match self {
            Self::Unix(unix) => unix,
            Self::Ahead(ahead) => match &ahead.plain {
                Plain::Unix(unix) => unix,
                Plain::Tcp(_) => return Ok(None),
            },
            Self::TlsAccepted(tls) => match tls.get_ref().0 {
                Plain::Unix(unix) => unix,
                Plain::Tcp(_) => return Ok(None),
            },
            Self::Tcp(_) | Self::TlsConnected(_) => return Ok(None),
        };
        Ok(Some(unix.peer_cred()?.uid()))
    }

    /// Address and port of this end; `None` on a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp()?.local_addr().ok()
    }

    /// Address and port of the other end; `None` on a Unix socket.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.tcp()?.peer_addr().ok()
    }

    /// When it is closed, what the peer has not received is forgotten, and the peer is told by a reset.
    pub fn discard_unsent(&self) {
        if let Some(tcp) = self.tcp() {
            // Where it fails the connection is gone already.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }

    fn tcp(&self) -> Option<&TcpStream> {
        let plain = match self {
            Self::Tcp(tcp) => return Some(tcp),
            Self::Unix(_) => return None,
            Self::Ahead(ahead) => &ahead.plain,
            Self::TlsAccepted(tls) => tls.get_ref().0,
            Self::TlsConnected(tls) => tls.get_ref().0,
        };
        match plain {
            Plain::Tcp(tcp) => Some(tcp),
            Plain::Unix(_) => None,
        }
    }

    /// Gives back what was read last and is not used: the next read begins with it. Not for TLS, whose bytes nobody
    /// reads ahead.
    #[must_use]
    pub fn unread(self, bytes: &[u8]) -> Self {
        let plain = match self {
            Self::Tcp(tcp) if !bytes.is_empty() => Plain::Tcp(tcp),
            Self::Unix(unix) if !bytes.is_empty() => Plain::Unix(unix),
            Self::Ahead(mut ahead) => {
                ahead.bytes.extend(bytes.iter().rev());
                return Self::Ahead(ahead);
            }
            other => return other,
        };
        let bytes = bytes.iter().rev().copied().collect();
        Self::Ahead(Box::new(Ahead { bytes, plain }))
    }

    /// Takes the transport out to start TLS on it; `None` if TLS runs already, and where bytes were read that were not
    /// to be: they did not come over TLS (CVE-2021-23214).
    pub fn into_plain(self) -> Option<Plain> {
        match self {
            Self::Tcp(tcp) => Some(Plain::Tcp(tcp)),
            Self::Unix(unix) => Some(Plain::Unix(unix)),
            Self::Ahead(ahead) if ahead.bytes.is_empty() => Some(ahead.plain),
            Self::Ahead(_) | Self::TlsAccepted(_) | Self::TlsConnected(_) => None,
        }
    }

    pub fn is_tcp(&self) -> bool {
        self.tcp().is_some()
    }
}

impl Ahead {
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let count = buf.remaining().min(self.bytes.len());
        let mut given = self.bytes.split_off(self.bytes.len() - count);
        given.reverse();
        buf.put_slice(&given);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp($stream) => $call,
            Self::Unix($stream) => $call,
            Self::Ahead(ahead) => {
                let $stream = &mut ahead.plain;
                $call
            }
            Self::TlsAccepted($stream) => $call,
            Self::TlsConnected($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Self::Ahead(ahead) = this
            && !ahead.bytes.is_empty()
        {
            ahead.give(buf);
            return Poll::Ready(Ok(()));
        }
        each!(Pin::new(this), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

macro_rules! each_plain {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp($stream) => $call,
            Self::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Plain {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each_plain!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each_plain!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_plain!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_plain!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_plain!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
