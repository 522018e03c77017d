//! Replication connections: a server connection of their own, relayed byte for byte in both directions.
//!
//! Such a connection speaks another command language and streams without end; there is nothing to pool. Its login is
//! the pool's, its startup parameters are the client's. It is a client like any other to those who look on, to the
//! operator's orders and to cancel requests.
//!
//! # Invariant
//! A side is not read while more than [`OUTBOX_MAX`] of what it said waits to be sent.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::reply;
use super::startup::{Admitted, HandshakeError};
use crate::backend::connection::Backend;
use crate::backend::login::Credentials;
use crate::net::buffer::{Gather, Outbox, ReadBuffer};
use crate::net::departure::unless_gone;
use crate::net::stream::Stream;
use crate::pool::limits::Slot;
use crate::pool::live::Listed;
use crate::pool::open::{self, OpenError, Opened};
use crate::pool::{ClientPlace, Pool};
use crate::registry::{ClientState, Order, Registered};
use crate::wire::backend;
use crate::wire::limits::OUTBOX_MAX;
use crate::wire::startup::StartupMessage;
use crate::wire::walsender::Dialogue;

/// How long the last words to either side may take, and the end of a message that was begun.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often it is looked whether the pool is still held.
const HELD_POLL: Duration = Duration::from_millis(50);

/// Turns taken in one poll before other tasks get theirs.
const TURNS_MAX: usize = 8;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    ClientGone,
    ServerGone,
    /// An operator wants it so; the client is told.
    Ordered,
}

/// Serves the client until either end closes, or an operator ends it.
pub async fn serve(client: Admitted) -> Result<(), (Option<Stream>, HandshakeError)> {
    let entry = client.register();
    let Admitted {
        mut stream,
        message,
        place,
        credentials,
        shared,
        deadline,
        ..
    } = client;
    let dialer = shared.pools.dialer.load_full();
    let connecting = connect(place.pool(), &message, credentials, &dialer);
    let timed = tokio::time::timeout_at(deadline, connecting);
    let unless_ordered = async {
        tokio::select! {
            connected = timed => connected.unwrap_or(Err(HandshakeError::Timeout { why: None })),
            () = entry.ordered() => Err(HandshakeError::Ordered),
        }
    };
    let (opened, slot) = match unless_gone(&stream, unless_ordered).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Err((Some(stream), error)),
        Err(gone) => return Err((None, gone.into())),
    };
    let mut greeting = Vec::new();
    backend::put_authentication_ok(&mut greeting);
    for (name, value) in &opened.logged_in.parameters {
        backend::put_parameter_status(&mut greeting, name, value);
    }
    backend::put_backend_key_data(&mut greeting, entry.pid.0, entry.key());
    backend::put_ready_for_query(&mut greeting, backend::TransactionStatus::Idle);
    if let Err(error) = stream.write_all(&greeting).await {
        return Err((None, error.into()));
    }
    let relay = Relay::new(stream, entry, opened.backend, slot, place);
    Box::pin(relay.run()).await;
    Ok(())
}

/// Opens the client's own server connection, with the startup parameters it gave and `credentials`, or else the pool's;
/// once the pool is not held.
async fn connect(
    pool: &Arc<Pool>,
    message: &StartupMessage,
    credentials: Option<Credentials>,
    dialer: &crate::backend::connect::Dialer,
) -> Result<(Opened, Slot), HandshakeError> {
    while pool.is_held() {
        tokio::time::sleep(HELD_POLL).await;
    }
    let (generation, effective) = pool.opens_with();
    let mut effective = effective.as_ref().clone();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let replication = message.replication.as_deref().unwrap_or_default();
    effective.startup = vec![("replication".to_owned(), text(replication))];
    effective.startup.extend(
        message
            .parameters
            .iter()
            .map(|(name, value)| (text(name), text(value))),
    );
    effective.pool.connect_query = None;
    let slot = pool
        .reserve(&effective.pool)
        .map_err(|cap| HandshakeError::NoConnection(cap.setting()))?;
    let credentials = credentials.unwrap_or_else(|| pool.credentials());
    let opened = open::open(&effective, &credentials, dialer, generation)
        .await
        .map_err(|error: OpenError| HandshakeError::Open(Arc::new(error)))?;
    Ok((opened, slot))
}

/// Sends `bytes` behind what is held, holding back what is not taken.
fn pass(
    outbox: &mut Outbox,
    stream: &mut Stream,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut gather = Gather::take();
    gather.input(0..bytes.len());
    let sent = outbox.send(stream, cx, &mut gather, bytes);
    gather.give();
    sent
}

/// The two connections and what is on its way between them.
#[derive(Debug)]
struct Relay {
    stream: Stream,
    entry: Registered,
    backend: Backend,
    to_client: Outbox,
    dialogue: Dialogue,
    place: ClientPlace,
    /// Its line among the pool's connections, and its slot: given back when they are dropped.
    _listed: Listed,
    _slot: Slot,
}

impl Relay {
    fn new(
        stream: Stream,
        entry: Registered,
        backend: Backend,
        slot: Slot,
        place: ClientPlace,
    ) -> Self {
        Self {
            _listed: place.pool().live.list(&backend),
            stream,
            entry,
            backend,
            to_client: Outbox::default(),
            dialogue: Dialogue::new(),
            place,
            _slot: slot,
        }
    }

    async fn run(mut self) {
        self.entry.set_running(Arc::clone(&self.backend.identity));
        self.entry.set_state(ClientState::Active);
        poll_fn(|cx| {
            self.entry.set_waker(cx.waker());
            Poll::Ready(())
        })
        .await;
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.entry.clear_running();
        let _ = tokio::time::timeout(FAREWELL, self.part(end)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..TURNS_MAX {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn; false if nothing moved, which means that every side's waker is registered.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        match self.entry.order() {
            Order::None => {}
            Order::Drain if !self.dialogue.may_end() => {}
            Order::Drain | Order::Terminate => return Err(End::Ordered),
        }
        let mut moved = false;
        if !self.to_client.is_empty()
            && let Poll::Ready(sent) = self.to_client.poll_send(&mut self.stream, cx)
        {
            sent.map_err(|_| End::ClientGone)?;
            moved = true;
        }
        let Backend { outbox, stream, .. } = &mut self.backend;
        if !outbox.is_empty()
            && let Poll::Ready(sent) = outbox.poll_send(stream, cx)
        {
            // A server that does not take bytes any more has said why; reading tells.
            moved |= sent.is_ok();
        }
        moved |= self.poll_server(cx)?;
        moved |= self.poll_client(cx)?;
        Ok(moved)
    }

    /// Reads the server once and passes on what came.
    fn poll_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.to_client.len() >= OUTBOX_MAX {
            return Ok(false);
        }
        let mut buffer = ReadBuffer::take();
        let Poll::Ready(read) = buffer.poll_fill(&mut self.backend.stream, cx) else {
            return Ok(false);
        };
        let count = read.map_err(|_| End::ServerGone)?;
        if count == 0 {
            return Err(End::ServerGone);
        }
        let bytes = buffer.bytes(count);
        self.dialogue
            .server_sent(bytes)
            .map_err(|_| End::ServerGone)?;
        let counters = &self.place.pool().counters;
        counters
            .sent_bytes
            .fetch_add(count as u64, Ordering::Relaxed);
        pass(&mut self.to_client, &mut self.stream, cx, bytes).map_err(|_| End::ClientGone)?;
        Ok(true)
    }

    /// Reads the client once and passes on what came.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.backend.outbox.len() >= OUTBOX_MAX {
            return Ok(false);
        }
        let mut buffer = ReadBuffer::take();
        let Poll::Ready(read) = buffer.poll_fill(&mut self.stream, cx) else {
            return Ok(false);
        };
        let count = read.map_err(|_| End::ClientGone)?;
        if count == 0 {
            return Err(End::ClientGone);
        }
        self.dialogue.client_sent();
        let counters = &self.place.pool().counters;
        counters
            .received_bytes
            .fetch_add(count as u64, Ordering::Relaxed);
        let Backend { outbox, stream, .. } = &mut self.backend;
        // A failed write is not reported here: reading tells what the server said before it closed.
        let _ = pass(outbox, stream, cx, buffer.bytes(count));
        Ok(true)
    }

    /// Sends what is left to either side, tells the client what there is to tell, and closes.
    async fn part(&mut self, end: End) {
        if end == End::ClientGone {
            // As a rule a Terminate.
            let Backend { outbox, stream, .. } = &mut self.backend;
            let _ = poll_fn(|cx| outbox.poll_send(stream, cx)).await;
            return;
        }
        if end == End::Ordered {
            while !self.dialogue.is_between_messages() {
                if poll_fn(|cx| self.poll_rest(cx)).await.is_err() {
                    return;
                }
            }
            reply::report(&mut self.to_client, &reply::shutdown());
        }
        let farewell = poll_fn(|cx| {
            std::task::ready!(self.to_client.poll_send(&mut self.stream, cx))?;
            Pin::new(&mut self.stream).poll_shutdown(cx)
        });
        let _ = farewell.await;
    }

    /// Goes on with a message of the server that was begun.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.poll_server(cx)? {
            return Poll::Ready(Ok(()));
        }
        if self.to_client.is_empty() {
            return Poll::Pending;
        }
        self.to_client
            .poll_send(&mut self.stream, cx)
            .map_err(|_| End::ClientGone)
    }
}
