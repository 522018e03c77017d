//! One server connection: its stream, what it owes, what it has, and whether it is clean.
//!
//! # Invariants
//! - A backend is handed to another client only if [`Backend::is_clean`]; anything else is cleaned first or dropped.
//! - `expect` has an entry for every answer under way, whoever asked.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::model::Node;
use crate::net::buffer::{Held, Outbox, ReadBuffer};
use crate::net::connect::Encryption;
use crate::net::stream::Stream;
use crate::session::mirror::{Incarnation, Mirror};
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::Expect;
use crate::wire::frontend::TERMINATE_FRAME;

/// What others may know and do of a backend while a session uses it: who it is on the server, and whether a cancel
/// request to it is under way.
#[derive(Debug)]
pub struct Identity {
    pub node: Node,
    /// Where the connection goes: the node's name may have other addresses, or lead elsewhere by now. `None` on a Unix
    /// socket.
    pub peer: Option<SocketAddr>,
    pub pid: u32,
    pub cancel_key: Vec<u8>,
    /// How a cancel request travels: as the connection does.
    pub encryption: Encryption,
    made: Instant,
    /// When a client was last given it, in nanoseconds since `made`; 0 for never.
    last_used: AtomicU64,
    cancels: AtomicU32,
    cancels_begun: AtomicU32,
    cancels_done: Notify,
    /// A cancel request may have reached the server, and nobody knows whether its signal is still to come.
    is_in_doubt: AtomicBool,
    /// The server is not what it was: nothing it says on this connection counts any more.
    is_lost: AtomicBool,
    /// It is another's place that the server had: it is to carry out nothing more.
    is_disowned: AtomicBool,
}

impl Identity {
    pub fn new(node: Node, pid: u32, cancel_key: Vec<u8>, encryption: Encryption) -> Self {
        Self {
            node,
            peer: None,
            pid,
            cancel_key,
            encryption,
            made: Instant::now(),
            last_used: AtomicU64::new(0),
            cancels: AtomicU32::new(0),
            cancels_begun: AtomicU32::new(0),
            cancels_done: Notify::new(),
            is_in_doubt: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            is_disowned: AtomicBool::new(false),
        }
    }

    /// A client's statement is sent to it at `now`.
    pub fn used(&self, now: Instant) {
        let nanos = now.saturating_duration_since(self.made).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).max(1);
        self.last_used.store(nanos, Ordering::Relaxed);
    }

    /// When a client was last given it; `None` if none was.
    pub fn last_used(&self) -> Option<Instant> {
        let nanos = self.last_used.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.made + Duration::from_nanos(nanos))
    }

    /// A cancel request is about to be sent; until the guard is dropped this backend goes to nobody else, so that the
    /// signal can't hit another client's statement.
    pub fn cancelling(self: &Arc<Self>) -> Cancelling {
        self.cancels.fetch_add(1, Ordering::SeqCst);
        self.cancels_begun.fetch_add(1, Ordering::SeqCst);
        Cancelling(Arc::clone(self))
    }

    pub fn is_being_cancelled(&self) -> bool {
        self.cancels.load(Ordering::SeqCst) > 0
    }

    /// Cancel requests since the connection was opened.
    pub fn cancels_begun(&self) -> u32 {
        self.cancels_begun.load(Ordering::SeqCst)
    }

    /// A cancel request is being written. Unless it is settled, the backend stays in doubt for good.
    pub fn writing_cancel(self: &Arc<Self>) -> Doubt {
        Doubt(Some(Arc::clone(self)))
    }

    /// The connection is given up by whoever uses it.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::SeqCst);
    }

    /// The connection is lost, and its server is not to carry out what it has not received yet. An orderly end would have
    /// the kernel go on sending that to a server that is cut off: a COMMIT, which a primary of yesterday would carry out
    /// when it is back.
    pub fn disown(&self) {
        self.is_disowned.store(true, Ordering::SeqCst);
        self.lose();
    }

    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    pub fn is_in_doubt(&self) -> bool {
        self.is_in_doubt.load(Ordering::SeqCst)
    }

    /// Waits until no cancel request is under way. Cancel safe.
    pub async fn cancels_done(&self) {
        loop {
            let done = self.cancels_done.notified();
            if !self.is_being_cancelled() {
                return;
            }
            done.await;
        }
    }
}

/// See [`Identity::writing_cancel`].
#[derive(Debug)]
pub struct Doubt(Option<Arc<Identity>>);

impl Doubt {
    /// The server has closed the cancel connection: its signal was sent before that.
    pub fn settle(mut self) {
        self.0 = None;
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(identity) = &self.0 {
            identity.is_in_doubt.store(true, Ordering::SeqCst);
        }
    }
}

/// See [`Identity::cancelling`].
#[derive(Debug)]
pub struct Cancelling(Arc<Identity>);

impl Drop for Cancelling {
    fn drop(&mut self) {
        if self.0.cancels.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.cancels_done.notify_waiters();
        }
    }
}

/// The rest of a frame from the server whose head was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Passing {
    pub remaining: usize,
    pub to_client: bool,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Backend {
    pub stream: Stream,
    pub identity: Arc<Identity>,
    pub mirror: Mirror,
    pub expect: Expect,
    pub status: TransactionStatus,
    /// Bytes the server has not taken.
    pub outbox: Outbox,
    /// The beginning of a frame of the server.
    pub inbox: Held,
    pub passing: Passing,
    /// Bytes of a client's frame that are still to come after its head was sent.
    pub unsent_of_frame: usize,
    /// The server has said that it ends the connection.
    pub is_ended: bool,
    pub opened: Instant,
    /// Given back to the pool at.
    pub released: Instant,
    /// Which `RECONNECT` it is younger than.
    pub generation: u64,
    pub id: u64,
    /// Which server it is on, if that was asked: when, and what it said.
    pub incarnation: Option<(Instant, Option<Incarnation>)>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Where nothing is owed everything was received, and an orderly end tells even a server that is cut off.
        if self.identity.is_disowned.load(Ordering::SeqCst) && !self.expect.is_at_rest() {
            self.stream.discard_unsent();
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Backend {
    pub fn new(stream: Stream, identity: Identity, mirror: Mirror, generation: u64) -> Self {
        let now = Instant::now();
        Self {
            stream,
            identity: Arc::new(identity),
            mirror,
            expect: Expect::default(),
            status: TransactionStatus::Idle,
            outbox: Outbox::default(),
            inbox: Held::default(),
            passing: Passing::default(),
            unsent_of_frame: 0,
            is_ended: false,
            opened: now,
            released: now,
            generation,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            incarnation: None,
        }
    }

    /// Nothing is under way in either direction: the next message of the server would be unasked for.
    pub fn is_at_rest(&self) -> bool {
        self.expect.is_at_rest()
            && self.outbox.is_empty()
            && self.inbox.is_empty()
            && self.passing.remaining == 0
            && self.unsent_of_frame == 0
    }

    /// At rest and outside a transaction: what a pool may keep.
    pub fn is_clean(&self) -> bool {
        self.is_at_rest()
            && self.status == TransactionStatus::Idle
            && !self.is_ended
            && !self.expect.is_suspect()
            && !self.identity.is_in_doubt()
            && !self.identity.is_lost()
    }

    /// Tells the server that the connection is over, if that can be said at once; the server notices a close anyway,
    /// but logs it as unexpected.
    pub fn say_goodbye(&mut self) {
        if self.is_at_rest() {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = Pin::new(&mut self.stream).poll_write(&mut cx, &TERMINATE_FRAME);
        }
    }

    /// Looks, without waiting, whether an idle connection has anything to say. A server that speaks unasked is closing
    /// the connection or reports something nobody is there to hear; either way it is not to be used.
    pub fn poll_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        let mut buffer = ReadBuffer::take();
        buffer.poll_fill(&mut self.stream, cx).is_pending()
    }
}
