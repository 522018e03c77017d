//! The loop that runs a client's statements.
//!
//! One task per client, one poll function, no buffer while idle. Each turn sends what is held back, takes a granted
//! backend, reads the server, reads the client; a side is not read while what it said before waits to be sent.
//!
//! # Invariants
//! - A backend is given back only at rest and outside a transaction; however the session ends, the lease it holds
//!   goes through `pool::reset`.
//! - Answers reach the client in the order of its requests, because all of them pass through one backend's queue.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

use super::listening::Listening;
use super::metering::Metering;
use super::planning::Planning;
use super::refusal::Refusal;
use super::rerun::Rerun;
use super::ride::Riding;
use super::routes::Routes;
use super::sequences::Sequences;
use super::sql_prepare::Underway;
use super::unseen::Unseen;
use crate::backend::receive::ReceiveError;
use crate::error::Report;
use crate::meter::SessionBits;
use crate::net::buffer::{Held, Outbox, ReadBuffer};
use crate::net::stream::Stream;
use crate::pool::effective::Effective;
use crate::pool::lane::Short;
use crate::pool::pins::Pinned;
use crate::pool::{ClientPlace, Lease, Pool};
use crate::registry::{ClientState, Order, Registered};
use crate::session::mirror::Reported;
use crate::session::settings::{Row, Tracker};
use crate::session::statements::Names;
use crate::shared::{Prepared, Shared};
use crate::sql::known::Known;
use crate::sql::reading::Rereads;
use crate::sql::state::PinSet;
use crate::wire::limits::{OUTBOX_MAX, WHOLE_FRAME_MAX};

/// Turns taken in one poll before other tasks get theirs.
const TURNS_MAX: usize = 8;

/// Answers owed to one client before it is not read any more.
const OWED_MAX: usize = 100_000;

/// Where a session is. Changed by [`Session::enter`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No backend, nothing asked for.
    Idle,
    /// A statement waits in the inbox for a backend.
    Waiting,
    /// The backend is being brought to the session's settings before the client's bytes may follow.
    Planning,
    /// A lane runs the statement.
    Riding,
    /// The backend works for this client, or waits for it in a transaction.
    Active,
}

impl Phase {
    /// What the client sends is only collected.
    fn collects(self) -> bool {
        matches!(self, Self::Waiting | Self::Planning | Self::Riding)
    }
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Terminate, end of file, or a connection that broke: there is nobody to tell.
    ClientGone,
    /// The client is told, then cut off.
    Fatal(Box<Report>),
    /// The server's own last words were passed on, or there is nothing to add to them.
    ServerGone,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::ClientGone
    }
}

/// The answer to a question about the session's state, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct ProbeAnswer {
    pub rows: Vec<Row>,
    /// The server has reported an error.
    pub failed: bool,
    /// The server would not answer it, and would not if it were asked again.
    pub refused: bool,
}

/// One client's connection after login.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts; the lifecycle is `phase`"
)]
pub struct Session {
    pub(super) stream: Stream,
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<Pool>,
    _place: ClientPlace,
    /// The pool's configuration as of the last checkout.
    pub(super) effective: Arc<Effective>,
    pub(super) entry: Registered,
    pub(super) phase: Phase,
    pub(super) lease: Option<Lease>,
    /// Bytes of the client that are not acted on yet.
    pub(super) inbox: Held,
    /// Bytes the client has not taken.
    pub(super) outbox: Outbox,
    pub(super) settings: Tracker,
    pub(super) planning: Planning,
    /// Boxed: rarely asked for.
    pub(super) probe: Option<Box<ProbeAnswer>>,
    /// What the client was told by `ParameterStatus`.
    pub(super) told: Arc<Reported>,
    pub(super) names: Names<Arc<Known>>,
    pub(super) pins: PinSet,
    /// Its line in the pool's list of pins.
    pub(super) pinned: Option<Pinned>,
    /// Reasons to pin that have gone, on the backend it has: that is cleaned before anybody else gets it.
    pub(super) ended_pins: PinSet,
    /// A DEALLOCATE ALL is under way: which names there are is not known until it is answered.
    pub(super) deallocates: bool,
    /// What was sent in the transaction under way may have changed of how texts are read.
    pub(super) rereads: Rereads,
    /// A DISCARD ALL is under way.
    pub(super) discards: bool,
    /// What is in front of the inbox depends on answers that are still to come.
    pub(super) held_up: bool,
    /// After an error of pgweir's own in an extended exchange: everything up to the next Sync is dropped.
    pub(super) skipping: bool,
    /// Bytes of a refused frame that are still to come.
    pub(super) dropping: usize,
    /// Why the statements were refused that the server was made to fail in place of, oldest first.
    #[allow(
        clippy::box_collection,
        reason = "few sessions are refused anything, and each would hold three words more"
    )]
    pub(super) refusals: Option<Box<VecDeque<Refusal>>>,
    /// What the statements sent so far will leave: inside a transaction or not.
    pub(super) in_transaction: bool,
    /// A statement under way may be a COPY FROM STDIN, which reads what is sent as data.
    pub(super) copies_in: bool,
    pub(super) sequences: Sequences,
    /// Of prepared statements, until the exchange under way ends.
    pub(super) prepared: Underway,
    /// The statement last bound, which Execute runs.
    pub(super) bound: Option<Arc<Prepared>>,
    pub(super) metering: Metering,
    /// Which rules about limits may be about this session.
    pub(super) limit_bits: SessionBits,
    /// `None` in front of a single server.
    pub(super) routes: Option<Box<Routes>>,
    pub(super) unseen: Unseen,
    pub(super) riding: Option<Riding>,
    /// `None` until the client has sent something, and again once that is answered: see `stock`.
    pub(super) rerun: Option<Box<Rerun>>,
    /// `None` while the session listens on nothing.
    pub(super) listening: Option<Box<Listening>>,
    /// A lane has sent the statement in front elsewhere.
    pub(super) goes_alone: bool,
    /// The statement under way is known to be short.
    pub(super) short: Option<Short>,
    /// What is known of the query in front, if it was looked up already.
    pub(super) looked_up: Option<Arc<Known>>,
    /// The time of the present poll: the clock is read once for all that happens in it.
    pub(super) now: Instant,
    /// Since when the session is in its phase, and in its transaction.
    pub(super) since: Instant,
    pub(super) transaction_since: Instant,
    /// Since when the client takes nothing of what is held for it.
    pub(super) blocked_since: Option<Instant>,
    /// The client was sent the beginning of a message whose end will not come: nothing can be told any more.
    pub(super) torn: bool,
    pub(super) notified_waiting: bool,
    /// The statement under way was cancelled for `query_timeout`; the server's error is still to come.
    pub(super) timed_out: bool,
    /// The client has sent nothing more, and wakes this poll's task when it does.
    client_wakes: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// What a session starts with.
#[derive(Debug)]
pub struct Start {
    pub stream: Stream,
    pub shared: Arc<Shared>,
    pub place: ClientPlace,
    pub entry: Registered,
    pub settings: Tracker,
    pub told: Arc<Reported>,
}

impl Session {
    pub fn new(start: Start) -> Self {
        let now = Instant::now();
        let pool = Arc::clone(start.place.pool());
        Self {
            stream: start.stream,
            effective: pool.effective.load_full(),
            metering: Metering::new(&start.shared, &start.entry, &start.told),
            unseen: Unseen::default(),
            limit_bits: SessionBits::default(),
            riding: None,
            rerun: None,
            listening: None,
            goes_alone: false,
            short: None,
            looked_up: None,
            shared: start.shared,
            pool,
            _place: start.place,
            entry: start.entry,
            phase: Phase::Idle,
            lease: None,
            inbox: Held::default(),
            outbox: Outbox::default(),
            settings: start.settings,
            planning: Planning::default(),
            probe: None,
            told: start.told,
            names: Names::default(),
            pins: PinSet::EMPTY,
            pinned: None,
            ended_pins: PinSet::EMPTY,
            deallocates: false,
            rereads: Rereads::default(),
            sequences: Sequences::default(),
            discards: false,
            held_up: false,
            skipping: false,
            dropping: 0,
            refusals: None,
            in_transaction: false,
            copies_in: false,
            prepared: Underway::default(),
            bound: None,
            routes: None,
            now,
            since: now,
            transaction_since: now,
            blocked_since: None,
            torn: false,
            notified_waiting: false,
            timed_out: false,
            client_wakes: false,
            sleep: None,
        }
    }

    /// Serves the client until it leaves or is cut off, and drops `held` then.
    ///
    /// # Why this is no `async fn`
    /// That keeps room for what it was given, for what it hands on, and for what it calls to hand it on again: four
    /// sessions for each idle client.
    pub fn run(self, held: impl Send) -> impl Future<Output = ()> + Send {
        let (mut serving, mut has_begun) = (Some(self), false);
        let mut ending: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
        poll_fn(move |cx| {
            let _until_the_end = &held;
            if let Some(session) = &mut serving {
                if !std::mem::replace(&mut has_begun, true) {
                    session.open(cx);
                }
                let end = ready!(session.poll(cx));
                let has_words = session.leave(end);
                // Most have none: their client has left, and so does the session.
                ending = serving
                    .take()
                    .filter(|_| has_words)
                    .map(|session| Box::pin(session.part()) as _);
            }
            match &mut ending {
                Some(ending) => ending.as_mut().poll(cx),
                None => Poll::Ready(()),
            }
        })
    }

    fn open(&mut self, cx: &Context<'_>) {
        let entry = &self.entry;
        entry.set_state(ClientState::Idle);
        entry.set_waker(cx.waker());
        if self.shared.config.load().log.log_connections {
            let (user, database) = (&*entry.user, &*entry.database);
            tracing::info!(user, database, client = %entry.peer, tls = entry.tls, "client logged in");
        }
    }

    /// The one place where the phase changes.
    pub(super) fn enter(&mut self, phase: Phase) {
        let now = self.now;
        if self.phase == Phase::Idle && phase != Phase::Idle {
            self.transaction_since = now;
        }
        if phase == Phase::Idle {
            self.short = None;
        }
        self.since = now;
        self.phase = phase;
        if phase == Phase::Idle {
            self.looked_up = None;
            self.note_nothing_asked();
        }
        self.entry.set_state(match phase {
            Phase::Idle => ClientState::Idle,
            Phase::Waiting => ClientState::Waiting,
            Phase::Planning | Phase::Riding | Phase::Active => ClientState::Active,
        });
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.now = Instant::now();
        self.client_wakes = false;
        for _ in 0..TURNS_MAX {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => {
                    self.shed();
                    return self.poll_deadline(cx);
                }
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn; false if nothing moved, which means that every side's waker is registered.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        self.obey()?;
        if self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.identity.is_lost())
        {
            self.lose_server(&ReceiveError::Lost, cx)?;
        }
        let mut moved = self.poll_send(cx)?;
        moved |= self.poll_granted(cx)?;
        moved |= self.poll_ride(cx)?;
        moved |= self.poll_own_cancel(cx)?;
        moved |= self.poll_server(cx)?;
        moved |= self.poll_client(cx)?;
        moved |= self.poll_listening(cx)?;
        Ok(moved)
    }

    /// Sends what is held for either side.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        if self.outbox.is_empty() {
            self.set_blocked(None);
        } else {
            let before = self.outbox.len();
            if let Poll::Ready(sent) = self.outbox.poll_send(&mut self.stream, cx) {
                sent?;
                moved = true;
            } else if self.outbox.len() < before || self.blocked_since.is_none() {
                self.set_blocked(Some(self.now));
            }
        }
        if let Some(lease) = &mut self.lease
            && !lease.outbox.is_empty()
        {
            let backend = &mut **lease;
            if let Poll::Ready(sent) = backend.outbox.poll_send(&mut backend.stream, cx) {
                // A server that does not take bytes any more has said why; reading tells.
                moved = sent.is_ok();
            }
        }
        Ok(moved)
    }

    fn set_blocked(&mut self, since: Option<Instant>) {
        if let Some(before) = std::mem::replace(&mut self.blocked_since, since) {
            self.metering.unblocked(self.now.duration_since(before));
        }
    }

    /// Reads the client. While it waits for a backend its bytes are only collected, up to a bound, which also tells
    /// when it hangs up.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let collects = self.phase.collects() || self.held_up || self.awaits_listener();
        let server_is_full = self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.outbox.len() >= OUTBOX_MAX);
        // Answers that pgweir gives itself fill no buffer that would stop a client.
        let owes_too_much = self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.expect.len() >= OWED_MAX);
        if self.client_wakes
            || server_is_full
            || owes_too_much
            || self.outbox.len() >= OUTBOX_MAX
            || (collects && self.inbox.len() >= WHOLE_FRAME_MAX + self.unsent_of_replay())
        {
            return Ok(false);
        }
        let mut buffer = ReadBuffer::take();
        let Poll::Ready(read) = buffer.poll_fill(&mut self.stream, cx) else {
            self.client_wakes = true;
            return Ok(false);
        };
        let count = read?;
        if count == 0 {
            return Err(End::ClientGone);
        }
        let received = &self.pool.counters.received_bytes;
        received.fetch_add(count as u64, Ordering::Relaxed);
        if self.inbox.is_empty() && !collects {
            let used = self.process(cx, buffer.bytes(count))?;
            self.inbox.push(&buffer.bytes(count)[used..]);
        } else {
            self.inbox.push(buffer.bytes(count));
            self.process_inbox(cx)?;
        }
        Ok(true)
    }

    /// Acts on bytes that were held back, if the phase lets it.
    pub(super) fn process_inbox(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if self.inbox.is_empty() || self.phase.collects() {
            return Ok(());
        }
        let mut held = self.inbox.take();
        let used = self.process(cx, held.bytes());
        held.consume(*used.as_ref().unwrap_or(&0));
        self.inbox = held;
        used.map(|_| ())
    }

    /// Whether something would be cut short by ending here. A backend that is merely kept is nothing.
    fn is_busy(&self) -> bool {
        let works = self.lease.as_ref().is_some_and(|lease| !lease.is_clean());
        works || self.phase.collects() || !self.inbox.is_empty() || self.awaits_listener()
    }

    /// Does what the operator ordered.
    fn obey(&mut self) -> Result<(), End> {
        match self.entry.order() {
            Order::None => Ok(()),
            Order::Drain if self.is_busy() => Ok(()),
            Order::Drain | Order::Terminate => Err(End::Fatal(Box::new(super::reply::shutdown()))),
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let Some((at, limit)) = self.deadline() else {
                return Poll::Pending;
            };
            // A timer that rings early is set anew then, instead of at every statement.
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if sleep.deadline() > at || sleep.is_elapsed() {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.now = Instant::now();
            if self.now >= at {
                if let Err(end) = self.reach(limit, cx) {
                    return Poll::Ready(end);
                }
                // The phase may have changed, and what is awaited now has no waker yet.
                cx.waker().wake_by_ref();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_of_an_idle_client_is_little_more_than_its_session() {
        fn size_of_future<F>(_: impl Fn(Session, ()) -> F) -> usize {
            size_of::<F>()
        }
        let (session, task) = (size_of::<Session>(), size_of_future(Session::run));
        assert!(session <= 896, "{session} bytes");
        assert!(task <= session + 64, "{task} bytes");
    }
}
