//! What a session counts of its statements, and where one ends and the next begins.
//!
//! Answers come in the order of requests, so the statement in front is the one that is being answered. What is counted
//! of it stays here until it has ended and then goes into its record at once.
//!
//! Times are those of the session's polls: no clock is read for a statement. The first answer of a statement is taken
//! to be in the first bytes that come while it is in front; that is wrong by no more than the time between two reads.
//!
//! Bytes: a statement's are the client's Query, `FunctionCall`, or Parse, Bind, Describe and Execute since the last
//! statement, and COPY data; and everything relayed from the end of the statement before it to its own. A Sync and its
//! `ReadyForQuery`, Flush and Close belong to none.

mod session;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::stock::{self, Front};
use crate::error::SqlState;
use crate::meter::{NameId, Names, Origin, SessionBits};
use crate::registry::ClientEntry;
use crate::retry::journal::BlockEnd;
use crate::session::mirror::Reported;
use crate::shared::Shared;
use crate::sql::known::Known;
use crate::traces::TraceParent;
use crate::wire::frame::HEADER;
use crate::wire::frontend as f;

/// Portals of a session that are told apart; of more the oldest are taken for the one bound last.
const PORTALS_MAX: usize = 32;

/// Replicas whose numbers a session remembers.
const NODES_MAX: usize = 8;

/// A `ReadyForQuery`, whole.
pub(super) const READY_LEN: usize = HEADER + 1;

/// A statement under way.
#[derive(Debug)]
pub(super) struct Running {
    pub known: Arc<Known>,
    /// When it was sent, or when the one before it had ended.
    pub started: Instant,
    pub first: Option<Instant>,
    pub queued: Duration,
    /// How long its backend took to be brought to the session's settings.
    pub checkout: Duration,
    /// How long its answer waited for the client to take it.
    pub blocked: Duration,
    pub rows: u64,
    pub received: u64,
    pub error: Option<SqlState>,
    pub portal: Portal,
    /// The trace it is part of; boxed, since most are part of none.
    pub trace: Option<Box<TraceParent>>,
}

/// What an Execute is about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Portal {
    /// Most rows to return; 0 for all.
    pub limit: u32,
    /// It was executed before: what is left of its rows is asked for.
    pub continues: bool,
}

/// A portal with a name.
#[derive(Debug)]
struct Open {
    number: u64,
    known: Arc<Known>,
    executed: bool,
}

/// An error in an extended exchange, until it is known which statement the server skips for it.
#[derive(Debug)]
struct Failed {
    code: SqlState,
    /// The statement whose Parse it answers.
    parse: Option<Arc<Known>>,
}

/// Which trace the text just sent is part of.
#[derive(Debug, Default)]
enum Tracing {
    /// Nobody has looked.
    #[default]
    Unknown,
    Looked(Option<Box<TraceParent>>),
}

impl Tracing {
    fn found(self) -> Option<Box<TraceParent>> {
        match self {
            Self::Unknown => None,
            Self::Looked(found) => found,
        }
    }
}

/// Servers by their names. Boxed where they are held: most primaries have no replicas, and each session would hold two words
/// more.
type Nodes = Vec<(Arc<str>, NameId)>;

/// See the module.
#[derive(Debug)]
pub(super) struct Metering {
    pub(super) origin: Origin,
    pub(super) node: NameId,
    /// Which rules of the log may be about this session.
    pub(super) rules: SessionBits,
    primary: NameId,
    /// Replicas this session was on.
    nodes: Option<Box<Nodes>>,
    front: Front,
    behind: VecDeque<Running>,
    portals: Vec<Open>,
    unnamed_executed: bool,
    /// How the statement of the unnamed portal may end the transaction.
    unnamed_end: Option<BlockEnd>,
    failed: Option<Box<Failed>>,
    /// The statement that ended last in an exchange that goes on.
    pub(super) last: Option<Arc<Known>>,
    /// Bytes of the client since the last statement.
    pub(super) received: u64,
    /// Bytes relayed to the client, and how many of them were before the statement in front.
    relayed: u64,
    relayed_before: u64,
    /// How long the client has just waited for its backend, and that for the session's settings.
    queued: Duration,
    checkout: Duration,
    trace: Tracing,
    /// Statements counted since the session was last at rest, and how many of those that follow are the same again.
    counted: u32,
    again: u32,
}

impl Metering {
    pub(super) fn new(shared: &Shared, entry: &ClientEntry, told: &Reported) -> Self {
        let queries = &shared.known.queries;
        let application = told.get(b"application_name").unwrap_or_default();
        let application = String::from_utf8_lossy(application);
        let primary = queries.node("primary");
        Self {
            origin: queries.origin(&entry.user, &entry.database, &application),
            node: primary,
            rules: SessionBits::default(),
            primary,
            nodes: None,
            front: Front::default(),
            behind: VecDeque::new(),
            portals: Vec::new(),
            unnamed_executed: false,
            unnamed_end: None,
            failed: None,
            last: None,
            received: 0,
            relayed: 0,
            relayed_before: 0,
            queued: Duration::ZERO,
            checkout: Duration::ZERO,
            trace: Tracing::Unknown,
            counted: 0,
            again: 0,
        }
    }

    /// What was sent is sent again: what was counted of it is not counted twice.
    pub(super) fn runs_again(&mut self) {
        self.again += std::mem::take(&mut self.counted);
    }

    /// Nothing is under way.
    pub(super) fn rests(&mut self) {
        (self.counted, self.again) = (0, 0);
        (self.queued, self.checkout) = Default::default();
        self.last = None;
    }

    /// What is under way is run elsewhere, and counted there.
    pub(super) fn abandon(&mut self) {
        for running in self.front.take().into_iter().chain(self.behind.drain(..)) {
            running.known.query.retried();
        }
        self.failed = None;
    }

    /// The client has sent a message of `len` bytes.
    pub(super) fn sent(&mut self, tag: u8, len: usize) {
        let len = len as u64;
        match tag {
            f::SYNC => {
                self.received = 0;
                self.trace = Tracing::Unknown;
            }
            f::COPY_DATA | f::COPY_DONE | f::COPY_FAIL => {
                if let Some(last) = self.behind.back_mut().or(self.front.get_mut()) {
                    last.received += len;
                }
            }
            f::FLUSH | f::CLOSE => {}
            _ => self.received += len,
        }
    }

    /// The client has sent `len` bytes that belong to the statement that starts next.
    pub(super) fn received(&mut self, len: usize) {
        self.received += len as u64;
    }

    /// Takes the statement in front off, which has nothing behind it.
    pub(super) fn take_front(&mut self) -> Option<Running> {
        self.front.take()
    }

    /// Bytes relayed of the statement in front, or just taken off.
    pub(super) fn relayed_since(&self) -> u64 {
        self.relayed - self.relayed_before
    }

    /// Statements run on this server from now on.
    pub(super) fn runs_on(&mut self, node: &Arc<str>, names: &Names) {
        let nodes = self.nodes.get_or_insert_default();
        if let Some((_, id)) = nodes.iter().find(|(known, _)| Arc::ptr_eq(known, node)) {
            self.node = *id;
            return;
        }
        if nodes.len() >= NODES_MAX {
            nodes.clear();
        }
        self.node = names.id(node);
        nodes.push((Arc::clone(node), self.node));
    }

    /// Statements run on the primary from now on.
    pub(super) fn runs_on_primary(&mut self) {
        self.node = self.primary;
    }

    /// The client has waited for a backend, and got one or waits for another.
    pub(super) fn waited(&mut self, queued: Duration) {
        self.queued += queued;
    }

    /// It got none: how long it had waited, which is no other statement's time.
    pub(super) fn waited_in_vain(&mut self) -> Duration {
        std::mem::take(&mut self.queued)
    }

    /// The backend was brought to the session's settings.
    pub(super) fn planned(&mut self, checkout: Duration) {
        self.checkout = checkout;
    }

    /// The client has taken what it let wait for `blocked`.
    pub(super) fn unblocked(&mut self, blocked: Duration) {
        if let Some(front) = self.front.get_mut() {
            front.blocked += blocked;
        }
    }

    /// The server has answered something.
    pub(super) fn answered(&mut self, now: Instant) {
        if let Some(front) = self.front.get_mut() {
            front.first.get_or_insert(now);
        }
    }

    /// `len` bytes are passed on to the client.
    pub(super) fn relayed(&mut self, len: usize) {
        self.relayed += len as u64;
    }

    /// A command of the statement in front returned or changed `rows`.
    pub(super) fn returned(&mut self, rows: u64) {
        if let Some(front) = self.front.get_mut() {
            front.rows += rows;
        }
    }

    /// The simple query in front failed.
    pub(super) fn failed(&mut self, code: SqlState) {
        if let Some(front) = self.front.get_mut() {
            front.error = Some(code);
        }
    }

    /// Something failed in an extended exchange: if it was a Parse, that of `parse`.
    pub(super) fn failed_extended(&mut self, code: SqlState, parse: Option<Arc<Known>>) {
        self.failed = Some(Box::new(Failed { code, parse }));
    }

    /// An extended exchange has ended: what was to be prepared only and failed, where nothing is under way that it could be
    /// taken for.
    pub(super) fn end_exchange(&mut self) -> Option<(SqlState, Arc<Known>)> {
        self.last = None;
        self.relayed_before = self.relayed + READY_LEN as u64;
        let failed = self.failed.take()?;
        Some((failed.code, failed.parse?))
    }

    /// A portal of this name is made, of a statement unless that is not known.
    pub(super) fn bound(&mut self, portal: &[u8], known: Option<&Arc<Known>>) {
        if portal.is_empty() {
            self.unnamed_executed = false;
            self.unnamed_end = known.map_or(Some(BlockEnd::Commit), |known| known.block_end);
            return;
        }
        let number = number(portal);
        self.portals.retain(|open| open.number != number);
        if self.portals.len() >= PORTALS_MAX {
            self.portals.remove(0);
        }
        if let Some(known) = known {
            self.portals.push(Open {
                number,
                known: Arc::clone(known),
                executed: false,
            });
        }
    }

    /// How the execution of the portal of this name may end the transaction; `Err` if it is not known what it runs.
    pub(super) fn portal_end(&self, portal: &[u8]) -> Result<Option<BlockEnd>, ()> {
        if portal.is_empty() {
            return Ok(self.unnamed_end);
        }
        let number = number(portal);
        let open = self.portals.iter().find(|open| open.number == number);
        open.map(|open| open.known.block_end).ok_or(())
    }

    /// The portal of this name is executed: whether it was before, and its statement if that is not the one bound last.
    fn executes(&mut self, portal: &[u8]) -> (bool, Option<Arc<Known>>) {
        if portal.is_empty() {
            let before = std::mem::replace(&mut self.unnamed_executed, true);
            return (before, None);
        }
        let number = number(portal);
        match self.portals.iter_mut().find(|open| open.number == number) {
            Some(open) => {
                let before = std::mem::replace(&mut open.executed, true);
                (before, Some(Arc::clone(&open.known)))
            }
            None => (false, None),
        }
    }

    /// The transaction has ended, and its portals with it.
    pub(super) fn forget_portals(&mut self) {
        if !self.portals.is_empty() {
            self.portals = Vec::new();
        }
    }

    fn push(&mut self, known: Arc<Known>, portal: Portal, now: Instant) {
        let running = Running {
            known,
            started: now,
            first: None,
            queued: std::mem::take(&mut self.queued),
            checkout: std::mem::take(&mut self.checkout),
            blocked: Duration::ZERO,
            rows: 0,
            received: std::mem::take(&mut self.received),
            error: None,
            portal,
            trace: std::mem::take(&mut self.trace).found(),
        };
        if self.front.get().is_none() {
            self.relayed_before = self.relayed;
            self.front.put(running);
        } else {
            if self.behind.capacity() == 0 {
                self.behind = stock::queue();
            }
            self.behind.push_back(running);
        }
    }

    /// Takes the statement in front off; the next one begins `now`.
    fn pop(&mut self, now: Instant) -> Option<Running> {
        let ended = self.front.take()?;
        if let Some(mut next) = self.behind.pop_front() {
            next.started = now;
            self.front.put(next);
        } else if self.behind.capacity() > 0 {
            // Only of a pipeline: as a rule there is none to give.
            stock::give_queue(std::mem::take(&mut self.behind));
        }
        Some(ended)
    }
}

/// A number for a portal's name, FNV-1a: a client that makes two names collide miscounts its own calls.
fn number(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
