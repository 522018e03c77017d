//! One pool: the connections of one (user, database) to one server, and the clients waiting for one.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool::managed::{self, Object, QueueMode, Timeouts};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::aside::Aside;
use super::catalogue;
use super::effective::Effective;
use super::lane::Lanes;
use super::lease::Lease;
use super::limits::{Cap, Limits, Slot};
use super::live::Live;
use super::manager::Manager;
use super::open::{Gate, OpenError};
use super::pace::Pace;
use super::passthrough::{Learnt, Tries};
use super::pins::Pins;
use super::refused::Refused;
use super::replica::Kin;
use super::retries::Retries;
use super::startups::Startups;
use super::waiter::{CheckoutError, Waiter};
use crate::config::model::{Node, PoolSettings};
use crate::meter::Histogram;
use crate::session::mirror::Reported;

/// deadpool wants a size at the start and keeps the real one itself; the slots are what limits.
const OBJECTS_MAX: usize = 1 << 16;

/// What a pool is for, as clients name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    pub database: Arc<str>,
    pub user: Arc<str>,
    /// The replica, `HOST:PORT`; `None` for the primary, whoever that is.
    pub node: Option<Arc<str>>,
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.database, self.user)?;
        match &self.node {
            Some(node) => write!(f, "@{node}"),
            None => Ok(()),
        }
    }
}

/// What clients of a pool are told to do, by the console.
#[derive(Debug, Default)]
pub struct Orders {
    /// `PAUSE` or `KILL`: no connection is given out until `RESUME`.
    pub paused: AtomicBool,
    /// `DISABLE`: no new client is let in.
    pub disabled: AtomicBool,
    /// There is no primary at the moment: no connection is given out until there is one.
    headless: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    pub key: PoolKey,
    pub effective: Arc<ArcSwap<Effective>>,
    pub orders: Orders,
    pub(super) objects: managed::Pool<Manager>,
    pub(super) aside: Aside,
    pub(super) limits: Arc<Limits>,
    /// Connections that hold a slot: idle, leased, being opened, being cleaned.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) opening: AtomicUsize,
    /// Told when the pool's connections go to another server or address: those that are being opened are given up.
    pub(super) moved: Notify,
    /// Connections of pgweir's own that log in as this one: those that listen for sessions, and one that reads the catalogue.
    /// `PAUSE` waits for them.
    pub(super) listening: Arc<AtomicUsize>,
    /// The connections that are open, for those who look on.
    pub live: Arc<Live>,
    /// How to log in, and whether to try.
    pub(super) gate: Mutex<Gate>,
    waiters: Mutex<VecDeque<Arc<Waiter>>>,
    waiting: AtomicUsize,
    /// Waiting clients that got a connection.
    pub(super) served: AtomicU64,
    pub(super) pace: Mutex<Pace>,
    pub(super) opened_last: Mutex<Option<Instant>>,
    /// The shared cap that kept the pool from opening a connection its waiters need.
    pub(super) blocked_by: Mutex<Option<Cap>>,
    /// What a fresh connection reports; `None` until there was one.
    baseline: Mutex<Option<Arc<Reported>>>,
    pub(super) learnt: Mutex<Option<(Instant, Learnt)>>,
    pub(super) tries: Tries,
    pub startups: Startups,
    pub(super) catalogue: catalogue::Own,
    pub(super) kin: Kin,
    /// The sessions that keep a connection.
    pub pins: Pins,
    pub lanes: Lanes,
    pub retries: Retries,
    /// See [`Self::vacate`].
    pub(super) vacated: AtomicU64,
    /// Clients logged in; kept by their [`ClientPlace`]s.
    pub clients: AtomicUsize,
    pub counters: Counters,
}

/// Totals for `SHOW STATS` and the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub transactions: AtomicU64,
    pub queries: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub transaction_micros: AtomicU64,
    pub query_micros: AtomicU64,
    pub wait_micros: AtomicU64,
    pub parses_client: AtomicU64,
    pub parses_server: AtomicU64,
    pub binds: AtomicU64,
    pub assignments: AtomicU64,
    /// Statements that ended with an error, and requests that were refused.
    pub errors: AtomicU64,
    pub refused: Refused,
    /// Clients told at once that they would wait in vain, and those that have waited in vain.
    pub shed: AtomicU64,
    pub wait_timeouts: AtomicU64,
    /// How long statements took.
    pub latency: Histogram,
}

/// A client's place in its pool, until dropped.
#[derive(Debug)]
pub struct ClientPlace {
    pool: Arc<Pool>,
}

impl ClientPlace {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        pool.clients.fetch_add(1, Ordering::SeqCst);
        Self {
            pool: Arc::clone(pool),
        }
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        self.pool.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    pub fn new(key: PoolKey, effective: Effective, limits: Arc<Limits>) -> Arc<Self> {
        Self::with_kin(key, effective, limits, Kin::default())
    }

    #[allow(clippy::missing_panics_doc, reason = "proved not to")]
    pub(super) fn with_kin(
        key: PoolKey,
        effective: Effective,
        limits: Arc<Limits>,
        kin: Kin,
    ) -> Arc<Self> {
        let gate = Mutex::new(Gate::new(&effective));
        let effective = Arc::new(ArcSwap::from_pointee(effective));
        let manager = Manager::new(Arc::clone(&effective));
        let config = managed::PoolConfig {
            max_size: OBJECTS_MAX,
            timeouts: Timeouts::new(),
            queue_mode: QueueMode::Lifo,
        };
        let objects = managed::Pool::builder(manager)
            .config(config)
            .build()
            // `build` fails only for a timeout without a runtime to keep it.
            .expect("a deadpool pool without timeouts needs no runtime");
        Arc::new(Self {
            key,
            effective,
            orders: Orders::default(),
            objects,
            aside: Aside::default(),
            limits,
            open: Arc::default(),
            opening: AtomicUsize::new(0),
            moved: Notify::new(),
            listening: Arc::default(),
            live: Arc::default(),
            gate,
            waiters: Mutex::default(),
            waiting: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            pace: Mutex::default(),
            opened_last: Mutex::default(),
            blocked_by: Mutex::default(),
            baseline: Mutex::default(),
            learnt: Mutex::default(),
            tries: Tries::default(),
            startups: Startups::default(),
            catalogue: catalogue::Own::default(),
            kin,
            pins: Pins::default(),
            lanes: Lanes::default(),
            retries: Retries::default(),
            vacated: AtomicU64::new(0),
            clients: AtomicUsize::new(0),
            counters: Counters::default(),
        })
    }

    /// An idle connection at once, or `None`. Clients already in the queue come first.
    pub fn try_checkout(self: &Arc<Self>) -> Option<Lease> {
        if self.waiting.load(Ordering::SeqCst) > 0 || self.is_held() {
            return None;
        }
        self.take_idle()
    }

    fn take_idle(self: &Arc<Self>) -> Option<Lease> {
        let get = pin!(self.objects.get());
        match get.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(object)) => Some(Lease::new(object, Arc::clone(self))),
            // Nothing idle, or nothing that passed the checks. `get` never waits (see the manager).
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// Queues `waiter`; its `poll` tells the outcome.
    pub fn enqueue(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        waiter.start();
        self.with_waiters(|waiters| waiters.push_back(Arc::clone(waiter)));
        self.limits.waiting.fetch_add(1, Ordering::SeqCst);
        // One may have become idle between the caller's attempt and now.
        self.serve();
        self.open_or_serve_from_aside();
    }

    pub(super) fn needs_connection(&self) -> bool {
        self.waiting() > self.opening.load(Ordering::SeqCst)
    }

    /// Leaves the queue. What was granted in the meantime goes to the next.
    pub fn withdraw(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        let gone = self.with_waiters(|waiters| {
            let before = waiters.len();
            waiters.retain(|other| !Arc::ptr_eq(other, waiter));
            before - waiters.len()
        });
        self.limits.waiting.fetch_sub(gone, Ordering::SeqCst);
        if let Some(lease) = waiter.withdraw() {
            lease.checkin();
        }
    }

    fn with_waiters<R>(&self, change: impl FnOnce(&mut VecDeque<Arc<Waiter>>) -> R) -> R {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut waiters);
        self.waiting.store(waiters.len(), Ordering::SeqCst);
        result
    }

    fn pop_waiter(&self) -> Option<Arc<Waiter>> {
        let waiter = self.with_waiters(VecDeque::pop_front)?;
        self.limits.waiting.fetch_sub(1, Ordering::SeqCst);
        Some(waiter)
    }

    /// Gives idle connections to waiting clients, first come first served.
    pub fn serve(self: &Arc<Self>) {
        while self.waiting() > 0 && !self.is_held() {
            let Some(mut lease) = self.take_idle() else {
                return;
            };
            loop {
                let Some(waiter) = self.pop_waiter() else {
                    // The queue emptied meanwhile: back to the idle ones, without another round of `serve`.
                    lease.put_back();
                    break;
                };
                match waiter.grant(lease) {
                    None => {
                        self.served.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Some(unwanted) => lease = unwanted,
                }
            }
        }
    }

    /// Tells all waiting clients that the server will not have them.
    pub(super) fn fail_waiters(&self, error: &Arc<OpenError>) {
        self.fail_waiting(|| CheckoutError::Refused(Arc::clone(error)));
    }

    /// Ends the waiting of all clients in the queue.
    pub(super) fn fail_waiting(&self, error: impl Fn() -> CheckoutError) {
        while let Some(waiter) = self.pop_waiter() {
            waiter.fail(error());
        }
    }

    /// Which `RECONNECT` a connection opened now is younger than.
    pub fn generation(&self) -> u64 {
        self.objects.manager().generation.load(Ordering::SeqCst)
    }

    /// Clients in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Since when the first in the queue waits.
    pub fn oldest_wait(&self) -> Option<Instant> {
        self.with_waiters(|waiters| waiters.front().and_then(|waiter| waiter.since()))
    }

    pub fn is_held(&self) -> bool {
        self.orders.paused.load(Ordering::Relaxed) || self.is_headless()
    }

    /// Whether clients wait for a primary.
    pub fn is_headless(&self) -> bool {
        self.orders.headless.load(Ordering::Relaxed)
    }

    pub(super) fn set_headless(&self, is_headless: bool) {
        self.orders.headless.store(is_headless, Ordering::SeqCst);
    }

    /// The pool's connections go to another server from now on: what the last one said does not count.
    pub(super) fn forget_failures(&self) {
        self.with_gate(Gate::forget_failures);
    }

    /// Has all waiting clients ask for a connection anew, perhaps elsewhere.
    pub(super) fn turn_away(&self) {
        self.fail_waiting(|| CheckoutError::TurnedAway);
    }

    /// Marks connections to servers that `is_gone` as lost.
    pub(super) fn abandon(&self, is_gone: impl Fn(&Node) -> bool) {
        for backend in self.live.all() {
            if is_gone(&backend.identity.node) {
                // A read that a replica carries out all the same does no harm.
                if self.is_of_replica() {
                    backend.identity.lose();
                } else {
                    backend.identity.disown();
                }
            }
        }
        self.lanes.wake();
    }

    /// Connections that are idle.
    pub fn idle(&self) -> usize {
        self.objects.status().available + self.aside.len()
    }

    /// Connections in any state.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Connections that listen for sessions. They take no place of those that run statements.
    pub fn listening(&self) -> usize {
        self.listening.load(Ordering::SeqCst)
    }

    /// Connections being opened.
    pub fn opening(&self) -> usize {
        self.opening.load(Ordering::SeqCst)
    }

    /// The error of a client that has waited `limit` long in vain.
    pub fn wait_timeout(&self, limit: Duration) -> CheckoutError {
        self.counters.wait_timeouts.fetch_add(1, Ordering::Relaxed);
        if self.is_headless() {
            return CheckoutError::NoPrimary { waited: limit };
        }
        CheckoutError::WaitTimeout {
            waited: limit,
            pool: self.key.to_string(),
            why: self.why_waiting(),
        }
    }

    pub(super) fn with_gate<R>(&self, change: impl FnOnce(&mut Gate) -> R) -> R {
        change(&mut self.gate.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A slot for one more connection.
    pub fn reserve(&self, settings: &PoolSettings) -> Result<Slot, Cap> {
        let node = &self.effective.load().primary;
        self.limits.reserve(&self.key, node, &self.open, settings)
    }

    pub(super) fn set_blocked_by(&self, cap: Option<Cap>) {
        *self
            .blocked_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = cap;
    }

    /// What a fresh connection of this pool reports.
    pub fn baseline(&self) -> Option<Arc<Reported>> {
        self.baseline
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_baseline(&self, reported: Option<Arc<Reported>>) {
        if reported.is_none() {
            self.startups.clear();
        }
        *self.baseline.lock().unwrap_or_else(PoisonError::into_inner) = reported;
    }

    /// Moves opened connections from the manager's stock to the idle ones.
    pub(super) fn settle_ready(&self) {
        let mut settled: Vec<Object<Manager>> = Vec::new();
        while self.objects.manager().has_ready() {
            let get = pin!(self.objects.get());
            match get.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(object)) => settled.push(object),
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let left = self.with_waiters(|waiters| waiters.len());
        self.limits.waiting.fetch_sub(left, Ordering::SeqCst);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::model::{OnSessionState, Percent, PoolMode, PoolSettings};

    pub(in crate::pool) fn settings() -> PoolSettings {
        PoolSettings {
            pool_mode: PoolMode::Transaction,
            max_size: 2,
            min_idle: 0,
            reserve_size: 0,
            reserve_timeout: Duration::ZERO,
            max_db_connections: None,
            max_user_connections: None,
            max_server_connections: None,
            max_db_client_connections: None,
            max_user_client_connections: None,
            max_prepared_statements: 10,
            max_waiting: None,
            shed: true,
            lanes: 2,
            on_session_state: OnSessionState::Pin,
            hidden_state: true,
            shared_listener: true,
            max_pinned: Percent(100),
            connect_query: None,
        }
    }
}
