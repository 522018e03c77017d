//! Replies a backend still owes, in the order it owes them, and whom each is for.
//!
//! Every message that asks for an answer puts an entry at the back when it is sent; every answer takes one off the
//! front. That one queue decides whether a message from the server goes to the client or was asked for by pgweir and
//! is swallowed, where answers that pgweir gives itself belong in the stream, and whether a backend is at rest. An
//! answer that nothing asked for means the two ends disagree: the connection must not be used again.
//!
//! # Invariants
//! - After an error in an extended exchange the server skips everything up to the next Sync, be it sent already or
//!   not, simple queries included; so does the queue.
//! - A backend is at rest only with the queue empty and no extended exchange without its Sync: until then the server
//!   is in a transaction of its own making, or skips what it is sent.

use std::collections::VecDeque;

use super::backend as b;
use thiserror::Error;

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A simple Query; ends at `ReadyForQuery`.
    Query,
    FunctionCall,
    Parse,
    Bind,
    DescribeStatement,
    DescribePortal,
    Execute,
    Close,
    Sync,
    /// `CopyDone` or `CopyFail`, which nothing answers by itself; it tells which Syncs the server reads in COPY mode.
    CopyEnd,
}

/// Whom the answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Client,
    /// The messages that bring the backend to the session's settings.
    Plan,
    /// A statement the backend did not have; an error goes to the client in place of its own answer.
    Reparse,
    /// A statement closed to keep the backend's count bounded.
    Evict,
    /// A Describe of a statement just parsed; an error goes to the client in place of its own answer.
    Shape,
    /// What the server was made to fail at in place of something that pgweir refuses; the client is told why.
    Refusal,
    /// A query of the client's, who has had the error of what it needed ahead of it: of its own answer, only
    /// `ReadyForQuery` is for the client.
    Answered,
    /// A question of pgweir's about the session's state; its rows are collected.
    Probe,
    /// A question of pgweir's about a transaction, or which server it is asked of; its rows are collected.
    Xact,
    /// Nothing was sent: pgweir answers in the server's place when the turn comes.
    Local,
}

/// The unnamed statement in [`Owed::statement`].
pub const UNNAMED: u64 = u64::MAX;

/// The same of one under the client's own name. Its coming and going is no change: it is no global one.
pub const OWN_NAME: u64 = u64::MAX - 3;

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    pub request: Request,
    pub to: For,
    /// What it changes on the backend: the global statement a Parse or Close under its global name was for, or
    /// [`UNNAMED`] or [`OWN_NAME`]; 0 for nothing. Of a Bind or Describe, the one it uses.
    pub statement: u64,
    /// It changes the session's statement names, which is undone if the server skips it.
    pub renames: bool,
}

impl Owed {
    pub fn new(request: Request, to: For) -> Self {
        Self {
            request,
            to,
            statement: 0,
            renames: false,
        }
    }

    /// Whether it changes a statement of the backend.
    pub fn changes(&self) -> bool {
        !matches!(self.statement, 0 | OWN_NAME)
            && !matches!(self.request, Request::Bind | Request::DescribeStatement)
    }
}

/// How an answer is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub owed: Owed,
    /// The entry was taken off: this was its last answer.
    pub done: bool,
}

/// An answer that nothing asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unexpected message type 0x{0:02x} from server")]
pub struct Unexpected(pub u8);

/// COPY as far as it changes what is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Copy {
    #[default]
    None,
    /// The server reads copy data and ignores Flush and Sync.
    In,
    Out,
    /// Replication: both ends stream; only the connection's end ends it.
    Both,
}

/// The queue.
#[derive(Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts; the lifecycle of COPY is `copy`"
)]
pub struct Expect {
    queue: VecDeque<Owed>,
    /// The entry in front was answered in part, by something that is no error.
    begun: bool,
    copy: Copy,
    /// An extended exchange was begun whose Sync was not sent.
    open: bool,
    /// The server skips what it is sent up to the next Sync, which was not sent when it said so.
    skipping: bool,
    /// Entries that change a statement of the backend, and how many of them belong to the exchange being sent.
    changes: usize,
    changes_now: usize,
    /// A Sync was taken for one that the server reads in COPY mode and does not answer.
    drops_syncs: bool,
    /// Such a COPY ended with an error, perhaps before it read anything: then the server answers one Sync more than is
    /// owed here. The connection may go on with its client, but to nobody else.
    is_suspect: bool,
}

impl Expect {
    /// Notes that `owed` was sent, or for [`For::Local`] that it is to be answered in this place.
    pub fn push(&mut self, owed: Owed) {
        match owed.request {
            Request::Sync if self.copy == Copy::In => {
                self.drops_syncs = true;
                return;
            }
            Request::CopyEnd if self.copy == Copy::In => {
                self.copy = Copy::None;
                return;
            }
            // Nothing awaits it: the server accepts and ignores it outside COPY.
            Request::CopyEnd if self.queue.is_empty() => return,
            Request::CopyEnd => {}
            Request::Sync => self.open = false,
            // They end an exchange like a Sync, unless they are skipped.
            Request::Query | Request::FunctionCall => self.open = self.skips_the_next(),
            _ => self.open |= owed.to != For::Local,
        }
        if matches!(
            owed.request,
            Request::Sync | Request::Query | Request::FunctionCall
        ) {
            self.changes_now = 0;
        }
        if owed.changes() {
            self.changes += 1;
            self.changes_now += 1;
        }
        self.queue.push_back(owed);
    }

    fn pop(&mut self) {
        self.begun = false;
        if self.queue.pop_front().is_some_and(|owed| owed.changes()) {
            self.changes -= 1;
            self.changes_now = self.changes_now.min(self.changes);
        }
    }

    /// Whether an exchange before the one being sent may still change statements of the backend, or, after an error,
    /// not change them.
    pub fn is_changing(&self) -> bool {
        self.changes > self.changes_now
    }

    /// Whether something is owed for an exchange of the client's before the one being sent.
    pub fn has_earlier(&self) -> bool {
        self.queue.iter().any(|owed| {
            let ends = matches!(
                owed.request,
                Request::Sync | Request::Query | Request::FunctionCall
            );
            ends && matches!(owed.to, For::Client | For::Refusal | For::Answered)
        })
    }

    /// Nothing is owed, no COPY is under way and no extended exchange waits for its Sync.
    pub fn is_at_rest(&self) -> bool {
        self.awaits_more() && !self.open
    }

    /// Everything sent was answered, but the server may be in the midst of an extended exchange.
    pub fn awaits_more(&self) -> bool {
        self.queue.is_empty() && self.copy == Copy::None
    }

    /// An extended exchange was begun whose Sync was not sent.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The server skips what it is sent up to the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// The server skips what it is sent now: the Sync that ends the skipping is still to be sent.
    pub fn skips_the_next(&self) -> bool {
        self.skipping && !self.has_sync()
    }

    /// See [`Self::is_at_rest`]: at rest or not, another answer may be on its way.
    pub fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    pub fn copy(&self) -> Copy {
        self.copy
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn front(&self) -> Option<Owed> {
        self.queue.front().copied()
    }

    /// Whether the entry in front was answered in part before, by something that is no error.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether an answer to messages of this kind is still to come.
    pub fn owes(&self, to: For) -> bool {
        self.queue.iter().any(|owed| owed.to == to)
    }

    /// What is owed, next first.
    pub fn iter(&self) -> impl Iterator<Item = &Owed> {
        self.queue.iter()
    }

    /// Takes a message of the server with type byte `tag`. Notices and parameter status belong to whoever is first, and
    /// to the client if nothing is owed; notifications to the client, who alone listens.
    pub fn receive(&mut self, tag: u8) -> Result<Received, Unexpected> {
        if matches!(
            tag,
            b::NOTICE_RESPONSE | b::NOTIFICATION_RESPONSE | b::PARAMETER_STATUS
        ) {
            let is_for_front = !self.skipping && tag != b::NOTIFICATION_RESPONSE;
            let front = self.front().filter(|_| is_for_front);
            let owed = front.unwrap_or(Owed::new(Request::Sync, For::Client));
            return Ok(Received { owed, done: false });
        }
        if tag == b::READY_FOR_QUERY && self.queue.is_empty() && self.is_suspect {
            let owed = Owed::new(Request::Sync, For::Client);
            return Ok(Received { owed, done: false });
        }
        let owed = self.front().ok_or(Unexpected(tag))?;
        let done = match tag {
            b::READY_FOR_QUERY => {
                self.copy = Copy::None;
                self.drops_syncs = false;
                matches!(
                    owed.request,
                    Request::Query | Request::FunctionCall | Request::Sync
                )
                .then_some(true)
            }
            b::ERROR_RESPONSE => {
                self.is_suspect |= self.drops_syncs && owed.request == Request::Execute;
                self.copy = Copy::None;
                Some(false)
            }
            _ => self.step(tag, owed.request),
        };
        let done = done.ok_or(Unexpected(tag))?;
        if done {
            self.pop();
            self.drop_copy_ends();
        } else {
            self.begun |= tag != b::ERROR_RESPONSE;
        }
        Ok(Received { owed, done })
    }

    /// What `tag` means to `request`: `None` does not belong to it, `Some(true)` ends it.
    fn step(&mut self, tag: u8, request: Request) -> Option<bool> {
        use Request as R;
        match (tag, request) {
            (b::PARSE_COMPLETE, R::Parse)
            | (b::BIND_COMPLETE, R::Bind)
            | (b::CLOSE_COMPLETE, R::Close)
            | (b::ROW_DESCRIPTION | b::NO_DATA, R::DescribeStatement | R::DescribePortal)
            | (b::PORTAL_SUSPENDED, R::Execute) => Some(true),
            (b::COMMAND_COMPLETE | b::EMPTY_QUERY_RESPONSE, R::Execute) => {
                self.copy = Copy::None;
                Some(true)
            }
            (b::COMMAND_COMPLETE | b::EMPTY_QUERY_RESPONSE, R::Query) => {
                self.copy = Copy::None;
                Some(false)
            }
            (b::PARAMETER_DESCRIPTION, R::DescribeStatement)
            | (b::ROW_DESCRIPTION | b::DATA_ROW, R::Query)
            | (b::DATA_ROW, R::Execute)
            | (b::FUNCTION_CALL_RESPONSE, R::FunctionCall)
            | (b::COPY_DATA | b::COPY_DONE, R::Query | R::Execute) => Some(false),
            (b::COPY_IN_RESPONSE, R::Query | R::Execute) => {
                self.enter_copy_in();
                Some(false)
            }
            (b::COPY_OUT_RESPONSE, R::Query | R::Execute) => {
                self.copy = Copy::Out;
                Some(false)
            }
            (b::COPY_BOTH_RESPONSE, R::Query | R::Execute) => {
                self.copy = Copy::Both;
                Some(false)
            }
            _ => None,
        }
    }

    /// Syncs sent before the end of the copy data are read in COPY mode, where the server ignores them.
    fn enter_copy_in(&mut self) {
        let end = self
            .queue
            .iter()
            .position(|owed| owed.request == Request::CopyEnd);
        self.copy = if end.is_some() { Copy::None } else { Copy::In };
        let before = self.queue.len();
        let mut index = 0;
        let until = end.unwrap_or(usize::MAX);
        self.queue.retain(|owed| {
            let at = index;
            index += 1;
            at == 0 || at > until || !matches!(owed.request, Request::Sync | Request::CopyEnd)
        });
        let gone = before - self.queue.len();
        self.drops_syncs |= gone > usize::from(end.is_some());
        // The Sync that would have ended the exchange may be among those.
        let is_extended = self
            .front()
            .is_some_and(|owed| owed.request == Request::Execute);
        self.open |= is_extended && !self.has_sync();
    }

    fn has_sync(&self) -> bool {
        self.queue.iter().any(|owed| owed.request == Request::Sync)
    }

    fn drop_copy_ends(&mut self) {
        while self
            .front()
            .is_some_and(|owed| owed.request == Request::CopyEnd)
        {
            self.queue.pop_front();
        }
    }

    /// After an error whose entry is still in front, and before the `ReadyForQuery` of a server that skips: takes off
    /// what the server skips and shows each to `skipped`. In a simple exchange nothing is skipped; in an extended one,
    /// everything before the next Sync.
    pub fn skip_to_sync(&mut self, mut skipped: impl FnMut(Owed)) {
        let is_simple = |owed: Owed| {
            matches!(
                owed.request,
                Request::Sync | Request::Query | Request::FunctionCall
            )
        };
        if !self.skipping && self.front().is_none_or(is_simple) {
            return;
        }
        let mut skips_query = false;
        while let Some(owed) = self.front() {
            if owed.request == Request::Sync {
                self.skipping = false;
                if skips_query {
                    // One that pgweir put behind a client's Query, with what the Query needs before it, answers for it.
                    self.queue[0].to = For::Client;
                } else if owed.to == For::Reparse
                    && let Some(query) = self.queue.get_mut(1)
                {
                    // One that pgweir put between a client's Query and what the Query needs.
                    query.to = For::Answered;
                }
                return;
            }
            skips_query |=
                owed.request == Request::Query && matches!(owed.to, For::Client | For::Refusal);
            self.pop();
            skipped(owed);
        }
        self.skipping = true;
        self.open = true;
    }

    /// What the entry in front was to change is settled before its last answer.
    pub fn settle_front(&mut self) {
        let Some(owed) = self.queue.front_mut() else {
            return;
        };
        let changed = owed.changes();
        owed.renames = false;
        owed.statement = 0;
        if changed {
            self.changes -= 1;
            self.changes_now = self.changes_now.min(self.changes);
        }
    }

    /// Takes off an entry in front that pgweir answers itself; call until `None` after each answer and each send.
    pub fn take_local(&mut self) -> Option<Request> {
        let owed = self
            .front()
            .filter(|owed| owed.to == For::Local && !self.skipping)?;
        self.pop();
        self.drop_copy_ends();
        Some(owed.request)
    }
}

#[cfg(test)]
mod tests;
