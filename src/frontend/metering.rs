//! What a session counts of its statements, and where one ends and the next begins.
//!
//! Answers come in the order of requests, so the statement in front is the one that is being answered. What is counted
//! of it stays here until it has ended and then goes into its record at once.
//!
//! Times are those of the session's polls: no clock is read for a statement. The first answer of a statement is taken
//! to be in the first bytes that come while it is in front; that is wrong by no more than the time between two reads.
//!
//! Bytes: a statement's are the client's Query, or Parse, Bind, Describe and Execute since the last statement, and COPY
//! data; and everything relayed from the end of the statement before it to its own. A Sync and its `ReadyForQuery`
//! belong to none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::session::{End, Session};
use crate::error::SqlState;
use crate::meter::{Execution, NameId, Origin};
use crate::registry::ClientEntry;
use crate::session::mirror::Reported;
use crate::shared::Shared;
use crate::sql::known::Known;
use crate::wire::frame::HEADER;
use crate::wire::frontend as f;

/// Suspended portals of a session that are told apart; one beyond counts its next Execute as a new call.
const SUSPENDED_MAX: usize = 8;

/// Capacity that the queue of statements keeps when it is empty.
const KEPT: usize = 64;

/// A `ReadyForQuery`, whole.
const READY_LEN: usize = HEADER + 1;

/// A statement under way.
#[derive(Debug)]
struct Running {
    known: Arc<Known>,
    /// When it was sent, or when the one before it had ended.
    started: Instant,
    first: Option<Instant>,
    queued: Duration,
    /// How long its answer waited for the client to take it.
    blocked: Duration,
    rows: u64,
    received: u64,
    error: Option<SqlState>,
    portal: Portal,
}

/// What an Execute is about.
#[derive(Clone, Copy, Debug, Default)]
struct Portal {
    /// Stands for its name.
    number: u64,
    /// Most rows to return; 0 for all.
    limit: u32,
    /// It was suspended before.
    continues: bool,
}

/// An error in an extended exchange, until it is known which statement the server skips for it.
#[derive(Debug)]
struct Failed {
    code: SqlState,
    /// The statement whose Parse it answers.
    parse: Option<Arc<Known>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Metering {
    origin: Origin,
    node: NameId,
    primary: NameId,
    front: Option<Running>,
    behind: VecDeque<Running>,
    suspended: Vec<(u64, Arc<Known>)>,
    failed: Option<Box<Failed>>,
    /// Bytes of the client since the last statement.
    received: u64,
    /// Bytes relayed to the client, and how many of them were before the statement in front.
    relayed: u64,
    relayed_before: u64,
    /// How long the client has just waited for its backend.
    queued: Duration,
}

impl Metering {
    pub(super) fn new(shared: &Shared, entry: &ClientEntry, told: &Reported) -> Self {
        let queries = &shared.known.queries;
        let application = told.get(b"application_name").unwrap_or_default();
        let application = String::from_utf8_lossy(application);
        Self {
            origin: queries.origin(&entry.user, &entry.database, &application),
            node: queries.node("primary"),
            primary: queries.node("primary"),
            front: None,
            behind: VecDeque::new(),
            suspended: Vec::new(),
            failed: None,
            received: 0,
            relayed: 0,
            relayed_before: 0,
            queued: Duration::ZERO,
        }
    }

    /// What is sent from here on runs on this server.
    pub(super) fn run_on(&mut self, node: NameId) {
        self.node = node;
    }

    pub(super) fn run_on_primary(&mut self) {
        self.node = self.primary;
    }

    /// What is under way is run elsewhere, and counted there.
    pub(super) fn abandon(&mut self) {
        self.front = None;
        self.behind.clear();
        self.failed = None;
    }

    /// The client has sent a message of `len` bytes.
    pub(super) fn sent(&mut self, tag: u8, len: usize) {
        let len = len as u64;
        match tag {
            f::SYNC => self.received = 0,
            f::COPY_DATA | f::COPY_DONE | f::COPY_FAIL => {
                if let Some(last) = self.behind.back_mut().or(self.front.as_mut()) {
                    last.received += len;
                }
            }
            _ => self.received += len,
        }
    }

    /// The client was given a backend, for which it had waited.
    pub(super) fn waited(&mut self, queued: Duration) {
        self.queued = queued;
    }

    /// The client has taken what it let wait for `blocked`.
    pub(super) fn unblocked(&mut self, blocked: Duration) {
        if let Some(front) = &mut self.front {
            front.blocked += blocked;
        }
    }

    /// The server has answered something.
    pub(super) fn answered(&mut self, now: Instant) {
        if let Some(front) = &mut self.front {
            front.first.get_or_insert(now);
        }
    }

    /// `len` bytes are passed on to the client.
    pub(super) fn relayed(&mut self, len: usize) {
        self.relayed += len as u64;
    }

    /// A command of the statement in front returned or changed `rows`.
    pub(super) fn returned(&mut self, rows: u64) {
        if let Some(front) = &mut self.front {
            front.rows += rows;
        }
    }

    /// The simple query in front failed.
    pub(super) fn failed(&mut self, code: SqlState) {
        if let Some(front) = &mut self.front {
            front.error = Some(code);
        }
    }

    /// Something failed in an extended exchange: if it was a Parse, that of `parse`.
    pub(super) fn failed_extended(&mut self, code: SqlState, parse: Option<Arc<Known>>) {
        self.failed = Some(Box::new(Failed { code, parse }));
    }

    /// A portal of this name is made anew.
    pub(super) fn bound(&mut self, portal: &[u8]) {
        if !self.suspended.is_empty() {
            let number = number(portal);
            self.suspended.retain(|(known, _)| *known != number);
        }
    }

    fn push(&mut self, known: Arc<Known>, portal: Portal, now: Instant) {
        let running = Running {
            known,
            started: now,
            first: None,
            queued: std::mem::take(&mut self.queued),
            blocked: Duration::ZERO,
            rows: 0,
            received: std::mem::take(&mut self.received),
            error: None,
            portal,
        };
        if self.front.is_none() {
            self.relayed_before = self.relayed;
            self.front = Some(running);
        } else {
            self.behind.push_back(running);
        }
    }

    /// Takes the statement in front off; the next one begins `now`.
    fn pop(&mut self, now: Instant) -> Option<Running> {
        let ended = self.front.take()?;
        self.front = self.behind.pop_front();
        match &mut self.front {
            Some(next) => next.started = now,
            None if self.behind.capacity() > KEPT => self.behind = VecDeque::new(),
            None => {}
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

impl Session {
    /// Counts a simple query from here.
    pub(super) fn start(&mut self, known: Arc<Known>) {
        self.start_portal(known, Portal::default());
    }

    /// Counts the Execute with this payload from here.
    pub(super) fn start_execute(&mut self, payload: &[u8]) {
        let (name, limit) = match payload.iter().position(|byte| *byte == 0) {
            Some(end) => (&payload[..end], &payload[end + 1..]),
            None => (payload, &[][..]),
        };
        let limit = limit.try_into().map_or(0, u32::from_be_bytes);
        let mut portal = Portal {
            number: 0,
            limit,
            continues: false,
        };
        let mut known = None;
        if limit > 0 || !self.metering.suspended.is_empty() {
            portal.number = number(name);
            let suspended = &mut self.metering.suspended;
            let place = suspended.iter().position(|(of, _)| *of == portal.number);
            portal.continues = place.is_some();
            known = place.map(|place| suspended.swap_remove(place).1);
        }
        let known = known.unwrap_or_else(|| match &self.bound {
            Some(statement) => Arc::clone(&statement.known),
            None => Arc::clone(self.shared.known.unread()),
        });
        self.start_portal(known, portal);
    }

    fn start_portal(&mut self, known: Arc<Known>, portal: Portal) {
        self.pool.counters.queries.fetch_add(1, Ordering::Relaxed);
        self.shared.known.queries.touch(&known.query);
        self.metering.push(known, portal, self.now);
    }

    /// The statement in front ends with a message of `len` bytes that is still to be relayed.
    pub(super) fn end_statement(&mut self, len: usize) {
        let before = self.metering.relayed_before;
        self.metering.relayed_before = self.metering.relayed + len as u64;
        let sent = self.metering.relayed_before - before;
        if let Some(ended) = self.metering.pop(self.now) {
            self.count(&ended, sent);
        }
    }

    /// The portal in front has returned as many rows as it was asked for.
    pub(super) fn suspend_statement(&mut self) {
        let metering = &mut self.metering;
        if let Some(front) = &mut metering.front {
            front.rows += u64::from(front.portal.limit);
            if metering.suspended.len() < SUSPENDED_MAX {
                let known = Arc::clone(&front.known);
                metering.suspended.push((front.portal.number, known));
            }
        }
        self.end_statement(HEADER);
    }

    /// The server skips the statement in front after an error, which is its own if it is the first one skipped.
    pub(super) fn skip_statement(&mut self) {
        match self.metering.failed.take() {
            Some(failed) => {
                self.metering.failed(failed.code);
                self.end_statement(0);
            }
            None => drop(self.metering.pop(self.now)),
        }
    }

    /// An extended exchange has ended.
    pub(super) fn end_exchange(&mut self) {
        self.metering.relayed_before = self.metering.relayed + READY_LEN as u64;
        let failed = self.metering.failed.take();
        if let Some(Failed {
            code,
            parse: Some(known),
        }) = failed.map(|failed| *failed)
        {
            // It was to be prepared only, and nothing is under way that it could be taken for.
            let query = &known.query;
            self.shared.known.queries.touch(query);
            query.finished(&Execution {
                origin: self.metering.origin,
                node: self.metering.node,
                at: self.now,
                queued: Duration::ZERO,
                took: Duration::ZERO,
                first: Duration::ZERO,
                rows: 0,
                received: 0,
                sent: 0,
                error: Some(code),
                continues: false,
            });
        }
    }

    /// The session ends amid a statement.
    pub(super) fn abandon_statement(&mut self, end: &End) {
        let Some(mut front) = self.metering.front.take() else {
            return;
        };
        let failed = self.metering.failed.take().map(|failed| failed.code);
        let code = match end {
            End::Fatal(report) => report.code,
            End::ClientGone | End::ServerGone => SqlState::CONNECTION_FAILURE,
        };
        front.error = front.error.or(failed).or(Some(code));
        let sent = self.metering.relayed - self.metering.relayed_before;
        self.count(&front, sent);
    }

    fn count(&self, ended: &Running, sent: u64) {
        let took = self.now.saturating_duration_since(ended.started);
        let first = ended.first.unwrap_or(self.now);
        let first = first.saturating_duration_since(ended.started).min(took);
        ended.known.query.finished(&Execution {
            origin: self.metering.origin,
            node: self.metering.node,
            at: self.now,
            queued: ended.queued,
            took,
            first,
            rows: ended.rows,
            received: ended.received,
            sent,
            error: ended.error,
            continues: ended.portal.continues,
        });
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let counter = &self.pool.counters.query_micros;
        counter.fetch_add(micros, Ordering::Relaxed);
    }

    /// The client calls itself something else from now on.
    pub(super) fn rename_application(&mut self, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        self.metering.origin.application = self.shared.known.queries.names.id(&name);
    }
}
