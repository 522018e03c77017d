//! A link between pgweir and a server that fails where a test wants it to: it passes bytes on frame by frame and, at a
//! chosen point of the dialogue, holds them until the test has done what it does to the connection or to the server.
//!
//! It also counts logins under way, so that a test can see how hard a server is met.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::wait::{eventually, within_limit};

/// Where in a dialogue the link holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The server gets nothing of a client's message with this text in it, nor of what follows.
    Request(&'static str),
    /// The server has the message with this text, and so has the client everything but the answer.
    Answer(&'static str),
    /// The client gets the first half of the first message with this tag behind the message with this text.
    Half(&'static str, u8),
    /// The client gets nothing from the first message with this tag on, behind the message with this text.
    From(&'static str, u8),
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Held,
    /// What was held is passed on, and everything after it.
    Passed,
    Closed,
    Reset,
}

#[derive(Debug)]
struct Control {
    server: SocketAddr,
    hold: Mutex<Option<Hold>>,
    fate: watch::Sender<Fate>,
    /// Of all connections that there are.
    cut: watch::Sender<Fate>,
    open: AtomicUsize,
    ended: AtomicUsize,
    held: AtomicUsize,
    held_now: Notify,
    logging_in: AtomicUsize,
    logging_in_most: AtomicUsize,
    logins: AtomicUsize,
}

/// See the module. It ends when dropped, connections included.
pub struct Link {
    pub address: SocketAddr,
    control: Arc<Control>,
    acceptor: JoinHandle<()>,
}

impl Link {
    /// A link to `server`.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let control = Arc::new(Control {
            server,
            hold: Mutex::default(),
            fate: watch::channel(Fate::Held).0,
            cut: watch::channel(Fate::Passed).0,
            open: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            held_now: Notify::new(),
            logging_in: AtomicUsize::new(0),
            logging_in_most: AtomicUsize::new(0),
            logins: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&control);
        let acceptor = pgweir::tasks::spawn("faulty link", async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(relay(stream, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            control,
            acceptor,
        }
    }

    pub fn node_url(&self) -> String {
        format!("postgres://{}", self.address)
    }

    /// From now on the next connection that comes to this point is held there.
    pub fn hold(&self, hold: Hold) {
        self.control.fate.send_replace(Fate::Held);
        self.control.held.store(0, Ordering::SeqCst);
        *self.control.hold.lock().unwrap() = Some(hold);
    }

    /// Waits until a connection is held.
    pub async fn held(&self) {
        let held = async {
            loop {
                let notified = self.control.held_now.notified();
                if self.control.held.load(Ordering::SeqCst) > 0 {
                    return;
                }
                notified.await;
            }
        };
        within_limit("a connection to be held", held).await;
    }

    /// Passes on what was held.
    pub fn pass(&self) {
        *self.control.hold.lock().unwrap() = None;
        self.control.fate.send_replace(Fate::Passed);
    }

    fn cut(&self, fate: Fate) {
        *self.control.hold.lock().unwrap() = None;
        self.control.cut.send_replace(fate);
    }

    /// Ends every connection in order, towards both sides, held ones too.
    pub fn close(&self) {
        self.cut(Fate::Closed);
    }

    /// Ends every connection with RST, towards both sides, held ones too.
    pub fn reset(&self) {
        self.cut(Fate::Reset);
    }

    /// Waits until no connection is left: what their ends had to say has been passed on.
    pub async fn empty(&self) {
        eventually("the link to be empty", async || {
            self.control.open.load(Ordering::SeqCst) == 0
        })
        .await;
    }

    /// Connections that have ended, and what their ends had to say has been passed on.
    pub fn ended(&self) -> usize {
        self.control.ended.load(Ordering::SeqCst)
    }

    /// The most logins that were under way at the same time.
    pub fn logging_in_most(&self) -> usize {
        self.control.logging_in_most.load(Ordering::SeqCst)
    }

    /// Logins that succeeded.
    pub fn logins(&self) -> usize {
        self.control.logins.load(Ordering::SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// A login under way, until dropped.
struct LoggingIn(Arc<Control>);

impl LoggingIn {
    fn begin(control: &Arc<Control>) -> Self {
        let now = control.logging_in.fetch_add(1, Ordering::SeqCst) + 1;
        control.logging_in_most.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(control))
    }
}

impl Drop for LoggingIn {
    fn drop(&mut self) {
        self.0.logging_in.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection, until dropped.
struct Open(Arc<Control>);

impl Open {
    fn begin(control: &Arc<Control>) -> Self {
        control.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(control))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// What both directions of a connection know.
#[derive(Default)]
struct Armed {
    /// The server was sent the message that was waited for.
    behind: Mutex<Option<Hold>>,
}

async fn relay(client: TcpStream, control: Arc<Control>) {
    let logging_in = LoggingIn::begin(&control);
    let Ok(server) = TcpStream::connect(control.server).await else {
        // As the server would have done.
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let sockets = [
        SockRef::from(&client).try_clone().unwrap(),
        SockRef::from(&server).try_clone().unwrap(),
    ];
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let armed = Armed::default();
    let _open = Open::begin(&control);
    let mut cut = control.cut.subscribe();
    let upward = upward(client_read, server_write, &control, &armed);
    let downward = downward(server_read, client_write, &control, &armed, logging_in);
    let fate = tokio::select! {
        fate = upward => fate,
        fate = downward => fate,
        _ = cut.changed() => *cut.borrow(),
    };
    if fate == Fate::Reset {
        for socket in &sockets {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
    }
}

/// Holds the connection until the test has decided.
async fn hold(control: &Control) -> Fate {
    control.held.fetch_add(1, Ordering::SeqCst);
    control.held_now.notify_waiters();
    let mut fate = control.fate.subscribe();
    let decided = fate.wait_for(|fate| *fate != Fate::Held).await;
    decided.map_or(Fate::Closed, |fate| *fate)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// From pgweir to the server, in whatever pieces it comes. Texts are in one piece, as they are short.
async fn upward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    control: &Control,
    armed: &Armed,
) -> Fate {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                // What the server still says is passed on.
                return std::future::pending().await;
            }
            Ok(count) => count,
        };
        let bytes = &buffer[..count];
        let wanted = *control.hold.lock().unwrap();
        match wanted {
            Some(Hold::Request(text)) if contains(bytes, text) => match hold(control).await {
                Fate::Passed => {}
                fate => return fate,
            },
            Some(wanted @ (Hold::Answer(text) | Hold::Half(text, _) | Hold::From(text, _)))
                if contains(bytes, text) =>
            {
                *armed.behind.lock().unwrap() = Some(wanted);
            }
            _ => {}
        }
        if to.write_all(bytes).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// From the server to pgweir, frame by frame.
async fn downward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    control: &Control,
    armed: &Armed,
    logging_in: LoggingIn,
) -> Fate {
    let mut logging_in = Some(logging_in);
    let (mut held, mut is_first) = (Vec::new(), true);
    loop {
        while let Some(frame) = take_frame(&mut held, is_first) {
            is_first = false;
            if frame[0] == b'Z' && logging_in.take().is_some() {
                control.logins.fetch_add(1, Ordering::SeqCst);
            }
            let wanted = *armed.behind.lock().unwrap();
            let sent_ahead = match wanted {
                Some(Hold::Answer(_)) => Some(0),
                Some(Hold::From(_, tag)) if frame[0] == tag => Some(0),
                Some(Hold::Half(_, tag)) if frame[0] == tag => Some(frame.len() / 2),
                _ => None,
            };
            let mut rest = &frame[..];
            if let Some(ahead) = sent_ahead {
                let (first, second) = frame.split_at(ahead);
                if to.write_all(first).await.is_err() {
                    return Fate::Closed;
                }
                rest = second;
                match hold(control).await {
                    Fate::Passed => *armed.behind.lock().unwrap() = None,
                    fate => return fate,
                }
            }
            if to.write_all(rest).await.is_err() {
                return Fate::Closed;
            }
        }
        match from.read_buf(&mut held).await {
            Ok(count) if count > 0 => {}
            Ok(_) => {
                let _ = to.write_all(&held).await;
                return Fate::Closed;
            }
            Err(_) => return Fate::Reset,
        }
    }
}

/// A whole frame off the front. The answer to a request for encryption, the first of all, has no frame.
fn take_frame(held: &mut Vec<u8>, is_first: bool) -> Option<Vec<u8>> {
    if is_first && held.len() == 1 && matches!(held[0], b'N' | b'S') {
        return Some(std::mem::take(held));
    }
    let header = held.get(..5)?;
    let length = u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
    (held.len() > length).then(|| held.drain(..=length).collect())
}
