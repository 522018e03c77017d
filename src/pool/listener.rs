//! Shared listeners: one server connection for the notifications of all sessions of a database.
//!
//! A session that listens has an [`Ear`]: the notifications of its channels, in the order in which they were committed,
//! and the answer to what it last asked. The listener's connection runs `LISTEN` for a channel as long as some ear wants
//! it.
//!
//! # Who logs in
//! `LISTEN` takes no right but to connect to the database, and notifications are no one's: whoever may connect can hear
//! all of them. So the sessions of all users of a database share a listener, which logs in as the pool of one of them,
//! with that pool's own credentials: those the configuration gives, or those its clients have proved. When it has to
//! connect again it tries the pools of all its sessions in turn, so a user that was dropped, or whose password was
//! changed, takes notifications from nobody else.
//!
//! # Why one for each encoding
//! The server sends channel and payload in the encoding of the connection that listens.
//!
//! # Invariants
//! - What an ear is sent is in the order in which the server's transactions committed.
//! - An answer to [`Ask::Fence`] or [`Ask::Subscribe`] stands behind every notification committed before it was asked:
//!   the server signals a listening backend before it acknowledges a commit, and a backend that was signalled sends what
//!   there is before it says that it is ready.
//! - A channel is heard from the answer to its `Subscribe` on, and nothing earlier.
//!
//! Bound: [`EAR_BYTES_MAX`] bytes for each session that listens; one connection for each database and encoding with such a
//! session.

mod again;
pub mod ear;
pub mod task;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::pool::Pool;
use super::pools::Pools;
use crate::sql::name::Name;
pub use ear::{Answer, EAR_BYTES_MAX, Ear, Item, Notification, Ticket};

/// How long one who wants to listen waits for a connection that is lost, held or refused for the time being. An attempt
/// under way is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose notifications a listener hears, and in which encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// As clients name it.
    pub database: Arc<str>,
    /// `client_encoding` as the server reports it.
    pub encoding: Box<[u8]>,
}

/// What a session wants of its listener. It is answered in its ear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// That all notifications committed before are in the ear.
    Fence,
    /// The same, and that these channels, if any, are heard from there on: there must be a connection.
    Subscribe(BTreeSet<Name>),
    /// That the place is marked, of which that is true. Nobody waits for it.
    Mark,
}

/// A question on its way to the server.
#[derive(Debug)]
struct Question {
    ear: Arc<Ear>,
    ticket: Ticket,
    ask: Ask,
    at: Instant,
}

impl Question {
    /// Whether it waits for another connection. Who asks what was said by one that is gone is told at once.
    fn waits(&self) -> bool {
        matches!(self.ask, Ask::Subscribe(_))
            && self.at.elapsed() < PATIENCE
            && self.ear.awaits(self.ticket)
    }

    fn answer(&self, answer: Answer) {
        match self.ask {
            Ask::Mark => self.ear.mark(),
            Ask::Fence | Ask::Subscribe(_) => self.ear.answer(self.ticket, answer),
        }
    }

    /// The channels to be heard for it.
    fn channels(&self) -> impl Iterator<Item = &[u8]> {
        let names = match &self.ask {
            Ask::Subscribe(names) => Some(names),
            Ask::Fence | Ask::Mark => None,
        };
        names.into_iter().flatten().map(Name::as_bytes)
    }
}

/// How a listener stands with its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The first connection is being opened; asks wait for it.
    #[default]
    Opening,
    Up,
    /// The connection is gone, or could not be opened, and another one is tried for. Who only asks what was said waits
    /// for none; who wants to listen waits for [`PATIENCE`], unless it is known sooner that there can be none.
    Down,
}

/// What is known of the next connection when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hope {
    Passing,
    /// None of the pools can have one.
    None,
}

/// A session with what it hears of.
#[derive(Debug)]
struct Place {
    ear: Arc<Ear>,
    channels: BTreeSet<Box<[u8]>>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    ears: BTreeMap<u64, Place>,
    /// By the name the server gives a channel.
    channels: HashMap<Box<[u8]>, BTreeMap<u64, Arc<Ear>>>,
    /// Channels that nobody may want any more and that the connection has not been told to leave.
    dropped: BTreeSet<Box<[u8]>>,
    /// Not sent yet, oldest first.
    asked: Vec<Question>,
    next_ear: u64,
}

/// One shared listener.
#[derive(Debug)]
pub struct Listener {
    pub key: Key,
    state: Mutex<State>,
    /// Something was asked, or the connection may have to go.
    woken: Notify,
}

/// All listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    by_key: Mutex<HashMap<Key, Arc<Listener>>>,
}

/// A session's place with its listener, until dropped.
#[derive(Debug)]
pub struct Hearing {
    listener: Arc<Listener>,
    pub ear: Arc<Ear>,
}

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Listener>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the listener of `key`, which is made if there is none. `wake` is called when the ear has something new.
    pub fn join(
        &self,
        pools: &Arc<Pools>,
        key: Key,
        pool: &Arc<Pool>,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Hearing {
        let mut listeners = self.lock();
        let (listener, is_new) = match listeners.get(&key) {
            Some(listener) => (Arc::clone(listener), false),
            None => (Arc::new(Listener::new(key.clone())), true),
        };
        // Retiring one takes the lock of all, so this one is not.
        let ear = listener.lock().add(pool, wake);
        if is_new {
            listeners.insert(key, Arc::clone(&listener));
            again::start(Arc::clone(pools), Arc::clone(&listener), None);
        }
        Hearing { listener, ear }
    }

    /// Has every listener look whether its connection may stay.
    pub fn look(&self) {
        for listener in self.lock().values() {
            listener.woken.notify_one();
        }
    }

    /// Ends a listener that nobody wants; false if somebody does.
    fn retire(&self, listener: &Listener) -> bool {
        let mut listeners = self.lock();
        let is_unwanted = listener.lock().ears.is_empty();
        if is_unwanted {
            listeners.remove(&listener.key);
        }
        is_unwanted
    }
}

impl State {
    fn add(&mut self, pool: &Arc<Pool>, wake: Box<dyn Fn() + Send + Sync>) -> Arc<Ear> {
        self.next_ear += 1;
        let ear = Arc::new(Ear::new(self.next_ear, pool, wake));
        let place = Place {
            ear: Arc::clone(&ear),
            channels: BTreeSet::new(),
        };
        self.ears.insert(ear.id, place);
        ear
    }

    fn remove(&mut self, id: u64) {
        for channel in self
            .ears
            .remove(&id)
            .map(|place| place.channels)
            .unwrap_or_default()
        {
            self.silence(&channel, id);
        }
    }

    fn forget(&mut self, channel: &[u8], id: u64) {
        if let Some(place) = self.ears.get_mut(&id) {
            place.channels.remove(channel);
        }
        self.silence(channel, id);
    }

    fn silence(&mut self, channel: &[u8], id: u64) {
        if let Some(ears) = self.channels.get_mut(channel) {
            ears.remove(&id);
            if ears.is_empty() {
                self.channels.remove(channel);
                self.dropped.insert(channel.into());
            }
        }
    }

    /// The connection listens for `question`.
    fn subscribe(&mut self, question: &Question) {
        let Question { ear, ticket, .. } = question;
        // A session may have left since it asked, or want it no more; then nobody may want the channel.
        let place = self.ears.get_mut(&ear.id);
        let Some(place) = place.filter(|_| ear.awaits(*ticket)) else {
            self.dropped.extend(question.channels().map(Box::from));
            return;
        };
        for channel in question.channels() {
            place.channels.insert(channel.into());
            let ears = self.channels.entry(channel.into()).or_default();
            ears.insert(ear.id, Arc::clone(ear));
        }
    }
}

impl Listener {
    fn new(key: Key) -> Self {
        Self {
            key,
            state: Mutex::default(),
            woken: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pools of its sessions, each once, in the order in which they came.
    fn pools(&self) -> Vec<Arc<Pool>> {
        let mut pools: Vec<Arc<Pool>> = Vec::new();
        for place in self.lock().ears.values() {
            let pool = &place.ear.pool;
            if !pools.iter().any(|other| Arc::ptr_eq(other, pool)) {
                pools.push(Arc::clone(pool));
            }
        }
        pools
    }

    /// Whether something was asked that was not sent.
    fn is_asked(&self) -> bool {
        !self.lock().asked.is_empty()
    }

    fn is_wanted(&self) -> bool {
        !self.lock().ears.is_empty()
    }

    /// Tells those who listen to its channel.
    fn hear(&self, notification: Notification) {
        let state = self.lock();
        let Some(ears) = state.channels.get(&notification.channel) else {
            return;
        };
        let notification = Arc::new(notification);
        for ear in ears.values() {
            ear.push(Item::Notification(Arc::clone(&notification)));
        }
    }

    /// The channels that some session hears.
    fn wanted(&self) -> BTreeSet<Box<[u8]>> {
        self.lock().channels.keys().cloned().collect()
    }

    /// Takes what was asked, and the channels that nobody wants.
    fn take_asked(&self) -> (Vec<Question>, BTreeSet<Box<[u8]>>) {
        let mut state = self.lock();
        let asked = std::mem::take(&mut state.asked);
        let mut dropped = std::mem::take(&mut state.dropped);
        let awaited: BTreeSet<&[u8]> = asked.iter().flat_map(Question::channels).collect();
        dropped.retain(|channel| {
            !state.channels.contains_key(channel) && !awaited.contains(&channel[..])
        });
        (asked, dropped)
    }

    /// The connection still listens on what it was to leave.
    fn drop_again(&self, channels: &[Box<[u8]>]) {
        self.lock().dropped.extend(channels.iter().cloned());
    }

    /// The server has done what was asked.
    fn fulfil(&self, asked: &[Question]) {
        let mut state = self.lock();
        for question in asked {
            state.subscribe(question);
            question.answer(Answer::Done);
        }
    }

    /// The connection is there. Those who had one before may have missed something.
    fn come_up(&self, was_down: bool) {
        let mut state = self.lock();
        state.phase = Phase::Up;
        if was_down {
            for place in state.ears.values() {
                if !place.channels.is_empty() {
                    place.ear.push(Item::Missed);
                }
            }
        }
    }

    /// There is no connection for what `asked` and what was asked since.
    fn go_down(&self, asked: impl Iterator<Item = Question>, hope: Hope) {
        let mut state = self.lock();
        state.phase = Phase::Down;
        let later = std::mem::take(&mut state.asked);
        for question in asked.chain(later) {
            if hope == Hope::Passing && question.waits() {
                state.asked.push(question);
            } else {
                question.answer(Answer::Unavailable);
            }
        }
    }
}

impl Listener {
    /// What was asked is lost, whatever it was.
    fn give_up(&self) {
        self.go_down(std::iter::empty(), Hope::None);
        for place in self.lock().ears.values() {
            place.ear.give_up();
        }
    }
}

impl Hearing {
    /// Asks the listener; the answer comes to the ear. One thing at a time, besides marks.
    pub fn ask(&self, ask: Ask) {
        let mut state = self.listener.lock();
        let ticket = if ask == Ask::Mark {
            Ticket::default()
        } else {
            self.ear.ask()
        };
        let question = Question {
            ear: Arc::clone(&self.ear),
            ticket,
            ask,
            at: Instant::now(),
        };
        if state.phase == Phase::Down && !matches!(question.ask, Ask::Subscribe(_)) {
            question.answer(Answer::Unavailable);
            return;
        }
        state.asked.push(question);
        drop(state);
        self.listener.woken.notify_one();
    }

    /// Hears `channels` no more.
    pub fn leave<'a>(&self, channels: impl Iterator<Item = &'a Name>) {
        let mut state = self.listener.lock();
        for channel in channels {
            state.forget(channel.as_bytes(), self.ear.id);
        }
        drop(state);
        self.listener.woken.notify_one();
    }

    pub fn encoding(&self) -> &[u8] {
        &self.listener.key.encoding
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.listener.lock().remove(self.ear.id);
        self.listener.woken.notify_one();
    }
}
