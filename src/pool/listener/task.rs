//! The task of one shared listener: its connection, from the first session that wants it to the last.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::turns::Turns;
use super::{Answer, Hope, Listener, Notification, Question};
use crate::backend::connection::Backend;
use crate::backend::receive::{self, ReceiveError, Receiver};
use crate::pool::effective::Effective;
use crate::pool::limits::{Cap, Slot};
use crate::pool::live::Listed;
use crate::pool::open::{self, OpenError};
use crate::pool::{Pool, Pools, steward};
use crate::session::channels::put_statement;
use crate::wire::backend as b;
use crate::wire::expect::{For, Owed, Received, Request};
use crate::wire::frame;
use crate::wire::frontend;

/// How long the connection is kept that no session wants.
const KEEP: Duration = Duration::from_secs(2);
/// A connection that has been silent this long is asked whether it is still there.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How long the server may take for an answer until its connection counts as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be opened or was lost; it doubles up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// The connection is idle by nature; servers before 14 have no limit on that.
const STAYS: &[u8] = b"SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
    WHERE name = 'idle_session_timeout';";
/// From one attempt to the next one where a session waits for it.
const RETRY_ASKED: Duration = Duration::from_millis(250);
/// What `pg_stat_activity` shows of the connection.
const APPLICATION_NAME: &str = "pgweir listener";

/// Why there is no connection, or no longer one.
#[derive(Debug, Error)]
enum Trouble {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("the limit on server connections is reached ({})", .0.setting())]
    Cap(Cap),
    #[error("{0}")]
    Receive(#[from] ReceiveError),
    #[error("the server said: {0}")]
    Server(String),
    #[error("no answer within {ANSWER_LIMIT:?}")]
    Silence,
    #[error("the pool is paused, or there is no primary")]
    Held,
    #[error("its server connections are being replaced")]
    Replaced,
    #[error("nobody listens any more")]
    Retired,
}

/// The connection, with what is under way on it.
#[derive(Debug)]
struct Link {
    backend: Backend,
    pool: Arc<Pool>,
    _slot: Slot,
    _listed: Listed,
    /// What it listens on.
    channels: BTreeSet<Box<[u8]>>,
    under_way: Option<Batch>,
    /// What was asked together with something that the server has refused: each is asked by itself.
    apart: VecDeque<Question>,
    /// When the server last answered, and since when nobody wants it.
    answered: Instant,
    unwanted_since: Option<Instant>,
}

/// What one query answers.
#[derive(Debug)]
struct Batch {
    asked: Vec<Question>,
    /// What it has the connection listen on, and what not any more.
    listened: Vec<Box<[u8]>>,
    left: Vec<Box<[u8]>>,
    sent: Instant,
    /// Statements that the server has not completed.
    remaining: usize,
    /// What the server said if it has refused.
    refused: Option<String>,
}

impl Trouble {
    /// Whether it is over by itself, or may be with another attempt; a pool with one that is not has no connection to
    /// give.
    fn is_passing(&self) -> bool {
        match self {
            Self::Open(error) => error.is_passing(),
            Self::Cap(_) => false,
            _ => true,
        }
    }
}

/// Serves `listener`, which `was_up` before or not, until no session wants it.
pub(super) async fn run(pools: Arc<Pools>, listener: Arc<Listener>, mut was_up: bool) {
    let mut turns = Turns::default();
    let mut pause = RETRY_FIRST;
    loop {
        if !listener.is_wanted() && pools.listeners.retire(&listener) {
            return;
        }
        let candidates = listener.pools();
        let Some(pool) = turns.next(&candidates) else {
            continue;
        };
        let began = Instant::now();
        let (trouble, asked) = match Link::open(&pools, pool, &listener).await {
            Ok(mut link) => {
                let trouble = link.serve(&pools, &listener, &mut was_up).await;
                (trouble, link.take_asked())
            }
            Err(trouble) => (trouble, Vec::new()),
        };
        let is_passing = trouble.is_passing();
        let hope = turns.note(pool, &listener.pools(), is_passing);
        listener.go_down(asked.into_iter(), hope);
        let is_held = matches!(trouble, Trouble::Held);
        match trouble {
            Trouble::Retired => return,
            Trouble::Held | Trouble::Replaced => {}
            trouble => {
                tracing::warn!(database = %listener.key.database, pool = %pool.key, error = %trouble, "no connection to listen on");
            }
        }
        // Somebody waits to be told whether another pool can.
        if !is_passing && hope == Hope::Passing && listener.is_asked() {
            continue;
        }
        if is_held {
            rest_held(&listener, pool).await;
            continue;
        }
        if began.elapsed() > RETRY_LONGEST {
            pause = RETRY_FIRST;
        }
        rest(
            &listener,
            began,
            pause.mul_f64(rand::random_range(0.5..1.0)),
        )
        .await;
        pause = (pause * 2).min(RETRY_LONGEST);
    }
}

/// Waits for the next attempt, the last of which `began` then: for less than `pause` if somebody wants to listen. A
/// listener that nobody wants does not linger.
async fn rest(listener: &Listener, began: Instant, pause: Duration) {
    let until = Instant::now() + pause;
    while listener.is_wanted() {
        let until = if listener.is_asked() {
            until.min(began + RETRY_ASKED)
        } else {
            until
        };
        if Instant::now() >= until {
            return;
        }
        let _ = tokio::time::timeout_at(until, listener.woken.notified()).await;
    }
}

/// The same while `pool` is held: until it is not, as the listener is then had look, or it is time for another.
async fn rest_held(listener: &Listener, pool: &Pool) {
    let until = Instant::now() + RETRY_ASKED;
    while listener.is_wanted() && pool.is_held() {
        if tokio::time::timeout_at(until, listener.woken.notified())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Takes a place under the caps, closing the longest-idle connection that counts under the one that is reached.
fn reserve(pools: &Pools, pool: &Arc<Pool>, effective: &Effective) -> Result<Slot, Cap> {
    loop {
        let limits = pools.limits();
        let (node, settings) = (&effective.primary, &effective.pool);
        match limits.reserve(&pool.key, node, &pool.listening, settings) {
            Ok(slot) => return Ok(slot),
            Err(cap) if steward::close_longest_idle(pools, pool, cap, |_, _| true) => {}
            Err(cap) => return Err(cap),
        }
    }
}

impl Link {
    async fn open(
        pools: &Arc<Pools>,
        pool: &Arc<Pool>,
        listener: &Listener,
    ) -> Result<Self, Trouble> {
        if pool.is_held() {
            return Err(Trouble::Held);
        }
        // Before the settings are read: a move is either heard of or in them.
        let moved = pool.moved.notified();
        let (generation, effective) = pool.opens_with();
        let slot = reserve(pools, pool, &effective).map_err(Trouble::Cap)?;
        let encoding = String::from_utf8_lossy(&listener.key.encoding);
        let mut effective = effective.with_startup([
            ("client_encoding", &*encoding),
            ("application_name", APPLICATION_NAME),
            // What is meant for statements of the role would end one that listens for thousands of sessions.
            ("statement_timeout", "0"),
        ]);
        // It is for clients' statements, and may listen itself.
        effective.pool.connect_query = None;
        let (credentials, dialer) = (pool.login_credentials(), pools.dialer.load_full());
        let opened = tokio::select! {
            opened = open::open(&effective, &credentials, &dialer, generation) => opened?,
            // A server that is away answers late or never.
            () = moved => return Err(Trouble::Replaced),
        };
        let backend = opened.backend;
        let now = Instant::now();
        Ok(Self {
            _listed: pool.live.list_listener(&backend),
            pool: Arc::clone(pool),
            backend,
            _slot: slot,
            channels: BTreeSet::new(),
            under_way: None,
            apart: VecDeque::new(),
            answered: now,
            unwanted_since: None,
        })
    }

    /// What was asked and not answered.
    fn take_asked(&mut self) -> Vec<Question> {
        let under_way = self.under_way.take().map(|batch| batch.asked);
        let mut asked = under_way.unwrap_or_default();
        asked.extend(std::mem::take(&mut self.apart));
        asked
    }

    /// Listens until the connection is lost, must go, or is wanted by nobody.
    async fn serve(&mut self, pools: &Pools, listener: &Listener, was_up: &mut bool) -> Trouble {
        // The first answer tells that it listens to all that is wanted.
        let mut is_up = false;
        self.listen_again(listener);
        loop {
            let now = Instant::now();
            if let Some(trouble) = self.must_go(pools, listener, now) {
                return trouble;
            }
            if self.under_way.is_none() {
                if !is_up {
                    is_up = true;
                    listener.come_up(std::mem::replace(was_up, true));
                }
                self.send_asked(listener, now);
            }
            let until = self.next_look();
            tokio::select! {
                received = poll_fn(|cx| self.poll(cx, listener)) => {
                    if let Err(trouble) = received {
                        return trouble;
                    }
                }
                () = listener.woken.notified() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Why the connection can't stay.
    fn must_go(&mut self, pools: &Pools, listener: &Listener, now: Instant) -> Option<Trouble> {
        if self.backend.identity.is_lost() {
            return Some(ReceiveError::Lost.into());
        }
        if self.pool.is_held() {
            return Some(Trouble::Held);
        }
        if self.backend.generation < self.pool.generation() {
            return Some(Trouble::Replaced);
        }
        let late = |batch: &Batch| now.duration_since(batch.sent) >= ANSWER_LIMIT;
        if self.under_way.as_ref().is_some_and(late) {
            return Some(Trouble::Silence);
        }
        if listener.is_wanted() {
            self.unwanted_since = None;
            return None;
        }
        let since = *self.unwanted_since.get_or_insert(now);
        let is_over = now.duration_since(since) >= KEEP;
        (is_over && pools.listeners.retire(listener)).then_some(Trouble::Retired)
    }

    fn next_look(&self) -> Instant {
        let answer = match &self.under_way {
            Some(batch) => batch.sent + ANSWER_LIMIT,
            None => self.answered + HEARTBEAT,
        };
        let unwanted = self.unwanted_since.map(|since| since + KEEP);
        unwanted.map_or(answer, |at| at.min(answer))
    }

    /// Has a new connection listen on what the one before it did.
    fn listen_again(&mut self, listener: &Listener) {
        let mut text = STAYS.to_vec();
        let channels = listener.wanted();
        for channel in &channels {
            put_statement(&mut text, b"LISTEN", channel);
        }
        self.channels.clone_from(&channels);
        let listened = channels.into_iter().collect();
        self.send(&text, Vec::new(), listened, Vec::new());
    }

    /// Sends one query for all that was asked, if anything was or the server has been silent for long.
    fn send_asked(&mut self, listener: &Listener, now: Instant) {
        let (asked, dropped) = match self.apart.pop_front() {
            Some(question) => (vec![question], BTreeSet::new()),
            None => listener.take_asked(),
        };
        let (mut listened, mut left) = (Vec::new(), Vec::new());
        let mut text = Vec::new();
        for channel in asked.iter().flat_map(Question::channels) {
            if self.channels.insert(channel.into()) {
                put_statement(&mut text, b"LISTEN", channel);
                listened.push(channel.into());
            }
        }
        for channel in dropped {
            if self.channels.remove(&channel) {
                put_statement(&mut text, b"UNLISTEN", &channel);
                left.push(channel);
            }
        }
        let is_silent = now.duration_since(self.answered) >= HEARTBEAT;
        if !asked.is_empty() || !text.is_empty() || is_silent {
            self.send(&text, asked, listened, left);
        }
    }

    fn send(
        &mut self,
        text: &[u8],
        asked: Vec<Question>,
        listened: Vec<Box<[u8]>>,
        left: Vec<Box<[u8]>>,
    ) {
        let remaining = listened.len() + left.len();
        let mut query = Vec::with_capacity(text.len() + 6);
        frontend::put_query(&mut query, text);
        self.backend.outbox.push(&query);
        self.backend
            .expect
            .push(Owed::new(Request::Query, For::Probe));
        self.under_way = Some(Batch {
            asked,
            listened,
            left,
            sent: Instant::now(),
            remaining,
            refused: None,
        });
    }

    /// The server has refused what it was sent, and undone all of it. Who has asked for what it refuses does without.
    fn undo(&mut self, listener: &Listener, mut batch: Batch) -> Result<(), Trouble> {
        let words = batch.refused.take().unwrap_or_default();
        if batch.asked.is_empty() {
            return Err(Trouble::Server(words));
        }
        for channel in &batch.listened {
            self.channels.remove(channel);
        }
        listener.drop_again(&batch.left);
        self.channels.extend(batch.left);
        if let [question] = &batch.asked[..] {
            tracing::warn!(database = %listener.key.database, error = %words, "the server refused a LISTEN");
            question.answer(Answer::Unavailable);
        } else {
            self.apart.extend(batch.asked);
        }
        Ok(())
    }

    /// Sends what is held and takes in what the server said. Cancel safe.
    fn poll(&mut self, cx: &mut Context<'_>, listener: &Listener) -> Poll<Result<(), Trouble>> {
        let backend = &mut self.backend;
        if !backend.outbox.is_empty()
            && let Poll::Ready(Err(error)) = backend.outbox.poll_send(&mut backend.stream, cx)
        {
            return Poll::Ready(Err(ReceiveError::Io(error).into()));
        }
        let mut heard = Heard {
            listener,
            under_way: &mut self.under_way,
            refused: None,
            last_words: None,
        };
        let Poll::Ready(received) = receive::poll_receive(backend, cx, &mut heard) else {
            return Poll::Pending;
        };
        self.answered = Instant::now();
        let (refused, last_words) = (heard.refused, heard.last_words);
        if let Some(batch) = refused {
            self.undo(listener, batch)?;
        }
        Poll::Ready(match last_words {
            Some(words) => Err(Trouble::Server(words)),
            None => received.map(|_| ()).map_err(Trouble::Receive),
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.backend.say_goodbye();
    }
}

impl Batch {
    /// Whether the server has completed all of it, if it had anything to complete.
    fn is_completed(&self) -> bool {
        self.remaining == 0
    }
}

/// Takes what the server says as it comes.
struct Heard<'a> {
    listener: &'a Listener,
    under_way: &'a mut Option<Batch>,
    refused: Option<Batch>,
    last_words: Option<String>,
}

impl Receiver for Heard<'_> {
    fn relay(&mut self, _: Range<usize>) {}

    fn local(&mut self, _: Request) {}

    fn message(&mut self, _: &Backend, received: Received, tag: u8, payload: &[u8]) -> bool {
        match tag {
            b::NOTIFICATION_RESPONSE => {
                if let Some(channel) = b::notification_channel(payload) {
                    let mut message = Vec::with_capacity(frame::HEADER + payload.len());
                    frame::put(&mut message, tag, |out| out.extend_from_slice(payload));
                    self.listener.hear(Notification {
                        channel: channel.into(),
                        frame: message.into(),
                    });
                }
            }
            b::ERROR_RESPONSE => {
                let words = b::error_field(payload, b'M').unwrap_or_default();
                let words = Some(String::from_utf8_lossy(words).into_owned());
                match self.under_way {
                    Some(batch) if !b::is_fatal(payload) && !batch.is_completed() => {
                        batch.refused = words;
                    }
                    // Behind all statements it is a notification that the server can't send, and there may be others.
                    _ => self.last_words = words,
                }
            }
            b::COMMAND_COMPLETE => {
                if let Some(batch) = self.under_way {
                    batch.remaining = batch.remaining.saturating_sub(1);
                }
            }
            // What stands behind it in the same read is heard by those who asked.
            b::READY_FOR_QUERY if received.done => match self.under_way.take() {
                Some(batch) if batch.refused.is_some() => self.refused = Some(batch),
                Some(batch) => self.listener.fulfil(&batch.asked),
                None => {}
            },
            _ => {}
        }
        false
    }

    fn skipped(&mut self, _: Owed) {}
}
