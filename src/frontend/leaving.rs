//! What a session's backend itself listens on: it is told to forget before anybody else gets it (see
//! [`super::listening`]).

use super::refusal::Refusal;
use super::session::{ProbeAnswer, Session};
use crate::net::buffer::Gather;
use crate::session::channels::put_statement;
use crate::sql::known::Known;
use crate::sql::state::PinReason;
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

/// Marks the statements that have the backend forget channels among pgweir's own.
pub(super) const LEAVING: u64 = u64::MAX - 1;

impl Session {
    /// Has the backend forget what it listens on for the session, once the transaction is over that is ended here.
    pub(super) fn leave_channels(&mut self, gather: &mut Gather) {
        let (Some(listening), Some(lease)) = (&mut self.listening, &mut self.lease) else {
            return;
        };
        if listening.on_backend.is_empty() || listening.is_leaving || self.in_transaction {
            return;
        }
        listening.is_leaving = true;
        let mut text = Vec::new();
        for name in &listening.on_backend {
            put_statement(&mut text, b"UNLISTEN", name.as_bytes());
        }
        gather.own(|out| f::put_query(out, &text));
        lease.expect.push(Owed {
            statement: LEAVING,
            ..Owed::new(Request::Query, For::Probe)
        });
        lease.mirror.unnamed = None;
    }

    /// Whether the backend still has to be told to forget.
    pub(super) fn has_channels_to_leave(&self) -> bool {
        self.listening
            .as_ref()
            .is_some_and(|it| !it.on_backend.is_empty() && !it.is_leaving)
    }

    /// The backend has answered that it has forgotten, or why not. What was cancelled is asked for again.
    pub(super) fn left_channels(&mut self, status: TransactionStatus, answer: &ProbeAnswer) {
        self.leaves_no_more();
        if status != TransactionStatus::Idle || (answer.failed && !answer.refused) {
            return;
        }
        self.part_with_channels();
        if self.pins.contains(PinReason::Listen) {
            // Asked for leftovers behind an attempt that was cancelled, the backend has shown what is gone now.
            self.settings.ask_leftovers();
        }
        if answer.refused {
            // It goes to nobody else.
            self.set_pins(self.pins.union(PinReason::Listen.into()));
        }
    }

    /// The backend is gone, and all that it listened on.
    pub(super) fn left_with_backend(&mut self) {
        self.leaves_no_more();
        self.part_with_channels();
        self.probe = None;
    }

    /// The backend was not told, or is told no more.
    pub(super) fn leaves_no_more(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.is_leaving = false;
        }
    }

    /// Has the backend listen on what the session listens on, for a statement that asks for it. In a transaction it would
    /// not see it.
    pub(super) fn show_channels(
        &mut self,
        known: &Known,
        portal: bool,
        gather: &mut Gather,
    ) -> Option<Refusal> {
        if !known.reads_channels {
            return None;
        }
        let is_bound = portal && self.bound.is_some();
        let (Some(listening), Some(lease)) = (&mut self.listening, &mut self.lease) else {
            return None;
        };
        if listening.subscribed.is_empty() {
            return None;
        }
        if self.in_transaction || is_bound || lease.status != TransactionStatus::Idle {
            return Some(Refusal::ListeningChannels);
        }
        let mut text = Vec::new();
        for name in &listening.subscribed {
            put_statement(&mut text, b"LISTEN", name.as_bytes());
        }
        listening
            .on_backend
            .extend(listening.subscribed.iter().cloned());
        gather.own(|out| f::put_query(out, &text));
        lease.expect.push(Owed::new(Request::Query, For::Probe));
        lease.mirror.unnamed = None;
        None
    }
}
