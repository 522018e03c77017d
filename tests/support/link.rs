//! A TCP relay in front of a server that can be cut, as a network is: nothing passes any more, and nobody is told.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A running relay. It stops when dropped, connections included.
pub struct Link {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
    acceptor: JoinHandle<()>,
}

impl Link {
    /// A relay to `server`.
    pub async fn to(server: SocketAddr) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), server).await
    }

    /// A relay to `server` that listens on `address`.
    pub async fn at(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_open, opened) = watch::channel(true);
        let acceptor = pgweir::tasks::spawn("link", async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let opened = opened.clone();
                connections.spawn(relay(client, server, opened));
            }
        });
        Self {
            address,
            is_open,
            acceptor,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `--primary` and `--replica`.
    pub fn node_url(&self) -> String {
        format!("postgres://{}", self.address)
    }

    /// From now on nothing passes; what was sent waits, as it would for retransmission.
    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    pub fn mend(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn relay(client: TcpStream, server: SocketAddr, mut opened: watch::Receiver<bool>) {
    if opened.wait_for(|is_open| *is_open).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::join!(
        pass(from_client, to_server, opened.clone()),
        pass(from_server, to_client, opened)
    );
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut opened: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        let was_open = *opened.borrow();
        if opened.wait_for(|is_open| *is_open).await.is_err() {
            return;
        }
        // What was under way on a connection that its sender has reset is not sent again.
        if !was_open && !matches!(from.as_ref().take_error(), Ok(None)) {
            return;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
