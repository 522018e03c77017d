//! Live clients and their cancel keys.
//!
//! A cancel request names a client of pgweir, never a backend: the key is pgweir's own and random, and it reaches the
//! server only while that client's statement runs there.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use tokio::time::Instant;

use crate::backend::connection::Identity;
use crate::meter::{Activity, Address};
use crate::pool::lane::seat::Seat;
use crate::pool::waiter::{CheckoutError, Waiter};

/// What a client is told as its backend's process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrontendPid(pub u32);

/// What clients are told. No process of a server has such a number (Linux has none above 2^22), so that a client can't take
/// a notification of another backend for its own.
const PIDS: std::ops::RangeInclusive<u32> = (1 << 22) + 1..=i32::MAX.unsigned_abs();

/// Length of the keys of protocol 3.2; in 3.0 the first four bytes are used.
pub const KEY_LEN: usize = 32;

/// What a session is doing, in PgBouncer's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ClientState {
    Login = 0,
    Idle = 1,
    Waiting = 2,
    Active = 3,
}

impl ClientState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Active => "active",
        }
    }

    fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Idle,
            2 => Self::Waiting,
            3 => Self::Active,
            _ => Self::Login,
        }
    }
}

/// What a client's connection is for, in PgBouncer's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    #[default]
    None,
    /// Of one database (`replication=database`), which also runs SQL.
    Logical,
    Physical,
}

impl Replication {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Logical => "logical",
            Self::Physical => "physical",
        }
    }
}

/// What an operator wants of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    None = 0,
    /// End with 57P01 once outside a transaction.
    Drain = 1,
    /// End with 57P01 now.
    Terminate = 2,
}

/// What a cancel request finds.
#[derive(Debug, Default)]
enum Running {
    #[default]
    Nothing,
    /// A backend that is being prepared for the client's statement; a request is kept until it is.
    Soon {
        canceled: bool,
    },
    On(Arc<Identity>),
}

/// One live client.
#[derive(Debug)]
pub struct ClientEntry {
    pub pid: FrontendPid,
    pub key: [u8; KEY_LEN],
    /// How much of `key` the client was told. As narrow as that: there is one for each idle client.
    key_len: u8,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub peer: Address,
    /// Version and cipher; `None` without TLS.
    pub tls: Option<Box<str>>,
    /// `application_name` as given at startup.
    pub application_name: Box<str>,
    /// As set since.
    renamed: Mutex<Option<Arc<str>>>,
    /// Its prepared statements that have names, as of when the server last had answered everything.
    pub prepared: AtomicUsize,
    pub replication: Replication,
    /// Where it connected to; `None` on a Unix socket. Shared, since all come to few addresses.
    pub local: Option<Arc<SocketAddr>>,
    pub waiter: Arc<Waiter>,
    /// Its place in a lane, from the first ride on.
    pub seat: OnceLock<Arc<Seat>>,
    running: Mutex<Running>,
    state: AtomicU8,
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
    /// What it runs, and what ties it to its server connection.
    pub activity: Activity,
}

impl ClientEntry {
    /// The cancel key as the client was told it.
    pub fn key(&self) -> &[u8] {
        &self.key[..usize::from(self.key_len).min(KEY_LEN)]
    }

    pub fn state(&self) -> ClientState {
        ClientState::from_u8(self.state.load(Ordering::Relaxed))
    }

    pub fn set_state(&self, state: ClientState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// What the client calls itself now.
    pub fn application(&self) -> Arc<str> {
        let renamed = self.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        renamed
            .clone()
            .unwrap_or_else(|| Arc::from(&*self.application_name))
    }

    /// The client calls itself something else from now on.
    pub fn rename_application(&self, name: &str) {
        *self.renamed.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.into());
    }

    /// The backend a cancel request would go to now.
    pub fn running(&self) -> Option<Arc<Identity>> {
        match &*self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            Running::On(backend) => Some(Arc::clone(backend)),
            Running::Nothing | Running::Soon { .. } => None,
        }
    }

    fn change_running(&self, running: Running) -> Running {
        let mut lock = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *lock, running)
    }

    /// From here on, until [`Self::set_running`], a cancel request is kept; so is one that was kept already.
    pub fn set_running_soon(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*running, Running::Soon { .. }) {
            *running = Running::Soon { canceled: false };
        }
    }

    /// From here on, until [`Self::clear_running`], a cancel request reaches `backend`. True if there was one already.
    pub fn set_running(&self, backend: Arc<Identity>) -> bool {
        matches!(
            self.change_running(Running::On(backend)),
            Running::Soon { canceled: true }
        )
    }

    /// From here on a cancel request finds nothing to cancel.
    pub fn clear_running(&self) {
        self.change_running(Running::Nothing);
    }

    /// Takes the hold on the running backend under the lock, so that it can't be given back between the two.
    pub fn hold_for_cancel(
        &self,
    ) -> Option<(Arc<Identity>, crate::backend::connection::Cancelling)> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *running {
            Running::On(identity) => Some((Arc::clone(identity), identity.cancelling())),
            Running::Soon { canceled } => {
                *canceled = true;
                None
            }
            Running::Nothing => None,
        }
    }

    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Relaxed) {
            0 => Order::None,
            1 => Order::Drain,
            _ => Order::Terminate,
        }
    }

    /// Tells the session to end; a stronger order stands.
    pub fn give_order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        self.wake();
    }

    /// Has the session look around: something changed that it is not told of otherwise.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }

    /// Ready once the client is to end. For a client that has no session yet, whose waker this takes the place of.
    pub async fn ordered(&self) {
        poll_fn(|cx| {
            self.set_waker(cx.waker());
            match self.order() {
                Order::None => Poll::Pending,
                Order::Drain | Order::Terminate => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Whom to wake for an order; the session's task, set once.
    pub fn set_waker(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }
}

/// By numbers drawn at random here: nobody can choose them to collide.
type Clients = HashMap<FrontendPid, Arc<ClientEntry>, foldhash::fast::RandomState>;

/// All live clients.
#[derive(Debug, Default)]
pub struct Registry {
    clients: Mutex<Clients>,
}

/// What a new client is registered with.
#[derive(Debug)]
pub struct NewClient {
    /// 4 for protocol 3.0, [`KEY_LEN`] for 3.2.
    pub key_len: usize,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub peer: Address,
    /// Version and cipher; `None` without TLS.
    pub tls: Option<Box<str>>,
    pub application_name: Box<str>,
    pub replication: Replication,
    pub local: Option<Arc<SocketAddr>>,
}

/// Registered until dropped.
#[derive(Debug)]
pub struct Registered {
    entry: Arc<ClientEntry>,
    registry: Arc<Registry>,
}

impl std::ops::Deref for Registered {
    type Target = Arc<ClientEntry>;

    fn deref(&self) -> &Arc<ClientEntry> {
        &self.entry
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.entry.pid);
    }
}

impl ClientEntry {
    /// When it was registered.
    pub fn connected(&self) -> Instant {
        self.activity.epoch()
    }

    /// A number that no other client has or had: of what is known only here, and drawn at random.
    pub fn serial(&self) -> u64 {
        let (first, _) = self.key.split_first_chunk().unwrap_or((&[0; 8], &[]));
        u64::from_le_bytes(*first)
    }
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a client under a random process id and key.
    pub fn register(self: &Arc<Self>, new: NewClient) -> Registered {
        let (key, connected) = (rand::random(), Instant::now());
        let mut clients = self.lock();
        let pid = std::iter::repeat_with(|| FrontendPid(rand::random_range(PIDS)))
            .find(|pid| !clients.contains_key(pid))
            // `repeat_with` never ends.
            .unwrap_or(FrontendPid(0));
        let entry = Arc::new(ClientEntry {
            pid,
            key,
            key_len: u8::try_from(new.key_len).unwrap_or(u8::MAX),
            user: new.user,
            database: new.database,
            peer: new.peer,
            tls: new.tls,
            application_name: new.application_name,
            renamed: Mutex::default(),
            prepared: AtomicUsize::new(0),
            replication: new.replication,
            local: new.local,
            waiter: Arc::default(),
            seat: OnceLock::new(),
            running: Mutex::default(),
            state: AtomicU8::new(ClientState::Login as u8),
            order: AtomicU8::new(Order::None as u8),
            waker: Mutex::default(),
            activity: Activity::new(connected),
        });
        clients.insert(pid, Arc::clone(&entry));
        Registered {
            entry,
            registry: Arc::clone(self),
        }
    }

    /// Every client.
    pub fn all(&self) -> Vec<Arc<ClientEntry>> {
        self.lock().values().cloned().collect()
    }

    /// The client with this process id.
    pub fn get(&self, pid: FrontendPid) -> Option<Arc<ClientEntry>> {
        self.lock().get(&pid).cloned()
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The client a cancel request is for. `key` is compared in constant time and in the length it was given out, so
    /// that a long key can't be guessed by its beginning.
    pub fn find(&self, pid: u32, key: &[u8]) -> Option<Arc<ClientEntry>> {
        use subtle::ConstantTimeEq;
        let entry = Arc::clone(self.lock().get(&FrontendPid(pid))?);
        bool::from(entry.key().ct_eq(key)).then_some(entry)
    }
}

/// Ends the waiting of a client that is still queued or rides on a lane; false if it does neither.
pub fn cancel_queued(entry: &ClientEntry) -> bool {
    entry.waiter.fail(CheckoutError::Canceled) || entry.seat.get().is_some_and(|seat| seat.cancel())
}
