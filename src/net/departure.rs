//! Noticing that a peer has gone while nobody reads it.
//!
//! What the peer has sent stays unread: it belongs to whoever reads the stream next, and under TLS it could not be
//! read here at all.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::stream::{Plain, Stream};

/// How often a peer is looked at that has sent something already, so that its socket stays readable.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The two kinds of socket that can be watched.
trait Watched {
    async fn readable(&self) -> io::Result<bool>;
    fn look(&self) -> io::Result<usize>;
}

macro_rules! watched {
    ($socket:ty) => {
        impl Watched for $socket {
            async fn readable(&self) -> io::Result<bool> {
                Ok(self.ready(Interest::READABLE).await?.is_read_closed())
            }

            fn look(&self) -> io::Result<usize> {
                self.try_io(Interest::READABLE, || {
                    SockRef::from(self).peek(&mut [MaybeUninit::uninit()])
                })
            }
        }
    };
}

watched!(TcpStream);
watched!(UnixStream);

/// Ends when the other end of `socket` has closed its direction, or the connection broke.
async fn closed(socket: &impl Watched) {
    loop {
        match socket.readable().await {
            Ok(true) | Err(_) => return,
            Ok(false) => {}
        }
        match socket.look() {
            Ok(0) => return,
            // Its end comes behind what it has sent.
            Ok(_) => tokio::time::sleep(LOOK_AGAIN).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

impl Stream {
    /// Ends when the peer has closed its direction of the connection, or the connection broke. Cancel safe.
    pub async fn closed(&self) {
        let plain = match self {
            Self::Tcp(tcp) => return closed(tcp).await,
            Self::Unix(unix) => return closed(unix).await,
            Self::Ahead(ahead) => &ahead.plain,
            Self::TlsAccepted(tls) => tls.get_ref().0,
            Self::TlsConnected(tls) => tls.get_ref().0,
        };
        match plain {
            Plain::Tcp(tcp) => closed(tcp).await,
            Plain::Unix(unix) => closed(unix).await,
        }
    }
}

/// The outcome of `work`, done on behalf of the peer of `stream`, or an error as soon as that peer is gone. Cancel safe
/// if `work` is, which is dropped then.
pub async fn unless_gone<T>(stream: &Stream, work: impl Future<Output = T>) -> io::Result<T> {
    tokio::select! {
        biased;
        outcome = work => Ok(outcome),
        () = stream.closed() => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp_pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Stream::Tcp(near.unwrap()), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_peer_that_closes_is_noticed_also_behind_what_it_has_sent() {
        for sent in [&b""[..], b"unread"] {
            let (mut near, mut far) = tcp_pair().await;
            far.write_all(sent).await.unwrap();
            drop(far);
            let gone = unless_gone(&near, pending::<()>()).await;
            assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let mut left = Vec::new();
            near.read_to_end(&mut left).await.unwrap();
            assert_eq!(left, sent);
        }
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert!(
            unless_gone(&Stream::Unix(near), pending::<()>())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_peer_that_stays_can_be_read_afterwards() {
        let (mut near, mut far) = tcp_pair().await;
        far.write_all(b"a").await.unwrap();
        let mut byte = [0];
        near.read_exact(&mut byte).await.unwrap();
        // It waits for the peer between two reads.
        let watch = tokio::time::timeout(LOOK_AGAIN / 4, near.closed()).await;
        assert!(watch.is_err());
        far.write_all(b"b").await.unwrap();
        near.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"b");
        far.write_all(b"c").await.unwrap();
        let watch = tokio::time::timeout(LOOK_AGAIN * 2, near.closed()).await;
        assert!(watch.is_err());
        near.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"c");
    }
}
