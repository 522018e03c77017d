//! Which answer of the server belongs to which rider.

use std::collections::VecDeque;
use std::ops::Range;

use tokio::time::Instant;

use super::seat::{Answered, Handed, Outcome, Ticket};
use crate::backend::connection::Backend;
use crate::backend::receive::Receiver;
use crate::error::SqlState;
use crate::wire::backend as b;
use crate::wire::expect::{For, Owed, Received, Request};

/// A request the server has not answered yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub ticket: Ticket,
    /// The server answered with an error; unless parts of the answer are out, it is run again elsewhere.
    pub failed: bool,
    pub streams: bool,
    /// It kept others waiting, and the server was asked to cancel it.
    pub was_slow: bool,
    sent: Instant,
    rows: u64,
    /// Of the last error.
    code: Option<SqlState>,
}

impl Flight {
    pub(super) fn new(ticket: Ticket, sent: Instant) -> Self {
        Self {
            ticket,
            failed: false,
            streams: false,
            was_slow: false,
            sent,
            rows: 0,
            code: None,
        }
    }

    fn outcome(&self) -> Outcome {
        // An error that the ordinary way would not repeat is none.
        if self.failed && !self.streams {
            Outcome::Elsewhere {
                was_slow: self.was_slow,
            }
        } else {
            Outcome::Answered(Answered {
                sent: self.sent,
                rows: self.rows,
                was_long: self.streams || self.was_slow,
                error: self.code,
            })
        }
    }
}

/// What one read brought.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// Answers that are complete.
    pub ended: usize,
    /// The server ends the connection, or would not have the settings.
    pub is_over: bool,
    /// It said something that a short read is not the cause of: the connection is not used again.
    pub is_odd: bool,
    /// An answer is handed over from here on while it still grows.
    pub streams: bool,
}

/// Hands the answers out.
pub(super) struct Answers<'a> {
    pub input: &'a [u8],
    pub flights: &'a mut VecDeque<Flight>,
    pub brought: &'a mut Brought,
    /// Bytes for the front rider that were not handed over yet.
    pub pending: Range<usize>,
    /// The frame under way is the last of an answer.
    pub ends: bool,
}

impl Answers<'_> {
    /// Hands over what has gathered for the front rider.
    pub(super) fn flush(&mut self) {
        let bytes = &self.input[std::mem::take(&mut self.pending)];
        if bytes.is_empty() {
            return;
        }
        if let Some(front) = self.flights.front_mut() {
            match front.ticket.answer(bytes) {
                Handed::Streaming => {
                    self.brought.streams |= !front.streams;
                    front.streams = true;
                }
                Handed::Kept | Handed::Nobody => {}
            }
        }
    }
}

impl Receiver for Answers<'_> {
    fn relay(&mut self, range: Range<usize>) {
        if self.pending.end == range.start && !self.pending.is_empty() {
            self.pending.end = range.end;
        } else {
            self.flush();
            self.pending = range;
        }
        if std::mem::take(&mut self.ends) {
            self.flush();
            if let Some(flight) = self.flights.pop_front() {
                flight.ticket.end(flight.outcome());
                self.brought.ended += 1;
            }
        }
    }

    fn local(&mut self, _: Request) {}

    fn message(&mut self, _: &Backend, received: Received, tag: u8, payload: &[u8]) -> bool {
        let is_riders = received.owed.to == For::Client;
        match tag {
            b::ERROR_RESPONSE => {
                self.brought.is_over |= b::is_fatal(payload) || !is_riders;
                if let Some(front) = self.flights.front_mut() {
                    front.failed = true;
                    front.code = b::sqlstate(payload);
                }
            }
            b::COMMAND_COMPLETE if is_riders => {
                if let Some(front) = self.flights.front_mut() {
                    front.rows += b::rows(payload);
                }
            }
            b::PARAMETER_STATUS | b::NOTIFICATION_RESPONSE if is_riders => {
                // None of those under way has been told of it.
                self.brought.is_odd = true;
                self.flights
                    .iter_mut()
                    .for_each(|flight| flight.failed = true);
            }
            b::READY_FOR_QUERY => {
                self.ends = is_riders;
                let is_idle = payload
                    .first()
                    .copied()
                    .and_then(b::TransactionStatus::from_byte)
                    == Some(b::TransactionStatus::Idle);
                self.brought.is_odd |= !is_idle;
            }
            _ => {}
        }
        true
    }

    fn skipped(&mut self, _: Owed) {}
}
