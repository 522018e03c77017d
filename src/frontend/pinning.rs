//! Why a session keeps its backend, and whether it may.
//!
//! # Invariant
//! A session with a reason to pin is in its pool's list of pins, from the statement that gave the reason until the last
//! one is gone; in a pool in session mode nobody is pinned.

use std::sync::Arc;

use tokio::time::Instant;

use super::refusal::Refusal;
use super::session::Session;
use crate::backend::connection::Backend;
use crate::config::model::{OnSessionState, PoolMode};
use crate::error::SqlState;
use crate::pool::pins::Pin;
use crate::pool::reset::Residue;
use crate::session::leftovers;
use crate::sql::classify::{Class, Statement, StatementKind};
use crate::sql::known::Known;
use crate::sql::state::{PinReason, PinSet};
use crate::telemetry;
use crate::wire::backend as b;
use crate::wire::expect::{Owed, Request};

/// Whether an error is one of the client's whole text, which the server parses before it runs any of it, or of code in
/// that text itself, to which the text has come: of what code runs, the place is told in another way, or not at all.
fn is_in_text(error: &[u8]) -> bool {
    let is_parsers = matches!(
        b::error_field(error, b'R'),
        Some(b"scanner_yyerror" | b"base_yyparse")
    );
    let is_inner = b"pqW".iter().any(|&it| b::error_field(error, it).is_some());
    is_parsers
        && !is_inner
        && b::error_field(error, b'P').is_some()
        && b::sqlstate(error) == Some(SqlState::SYNTAX_ERROR)
}

/// Why a text may not run on a replica, though a replica would not refuse it.
fn is_primarys(class: &Class) -> Option<Refusal> {
    use StatementKind as K;
    let mut functions = class.functions.iter();
    if let Some(function) = functions.find(|it| it.acts_on_server()) {
        return Some(Refusal::ActsOnReplica(function.to_string().into()));
    }
    let (_, before) = class.statements.split_last()?;
    let ends = |it: &Statement| {
        matches!(
            it.kind,
            K::Commit { .. } | K::Rollback { .. } | K::PrepareTransaction
        )
    };
    before.iter().any(ends).then_some(Refusal::GoesOnOnReplica)
}

impl Session {
    /// Whether nothing may be pinned here at all.
    pub(super) fn rejects(&self, pins: PinSet) -> Option<Refusal> {
        if self.is_on_replica() && !pins.is_empty() {
            return Some(Refusal::OnReplica(pins));
        }
        let pool = &self.effective.pool;
        let rejects = pool.on_session_state == OnSessionState::Reject
            && pool.pool_mode != PoolMode::Session
            && !pins.is_empty();
        rejects.then_some(Refusal::SessionState(pins))
    }

    /// A statement with these reasons to pin is about to be sent: notes them, or tells why it may not be.
    pub(super) fn pin(&mut self, pins: PinSet, known: Option<&Known>) -> Option<Refusal> {
        if pins.contains(PinReason::Unclassifiable) {
            self.prepared.is_doubtful = false;
        }
        if self.is_on_replica()
            && let Some(refusal) = known.and_then(|known| is_primarys(&known.class))
        {
            return Some(refusal);
        }
        let pool = &self.effective.pool;
        if pins.without(self.pins).is_empty() || pool.pool_mode == PoolMode::Session {
            return self.rejects(pins);
        }
        let limit = pool.max_pinned.of(pool.max_size);
        let refusal = self.rejects(pins);
        if refusal.is_some() {
            return refusal;
        }
        if self.pinned.is_none() && !self.list_pin(pins, known, limit) {
            return Some(Refusal::TooManyPins { limit });
        }
        let new = pins.without(self.pins);
        self.set_pins(self.pins.union(pins));
        telemetry::metrics::pinned(new.iter().map(PinReason::as_str));
        if let Some(known) = known {
            self.tell_of_pin(new, known);
        }
        None
    }

    fn tell_of_pin(&self, new: PinSet, known: &Known) {
        known.query.pinned();
        if known.pins_first_time() {
            let remedies: Vec<&str> = new.iter().map(PinReason::remedy).collect();
            tracing::info!(
                pool = %self.pool.key,
                reasons = %new,
                statement = %known.query.text,
                "a statement makes clients keep their server connection; to avoid it: {}",
                remedies.join("; "),
            );
        }
    }

    /// Puts the session among those that are pinned, unless there are `limit` others.
    fn list_pin(&mut self, reasons: PinSet, known: Option<&Known>, limit: usize) -> bool {
        let backend = self.lease.as_ref().map_or(0, |lease| lease.identity.pid);
        let pin = Pin {
            client: self.entry.pid.0,
            backend,
            reasons,
            query: known.map(|known| known.query.id).unwrap_or_default(),
            text: known.map_or_else(Arc::default, |known| Arc::clone(&known.query.text)),
            since: Instant::now(),
        };
        self.pinned = self.pool.pin(pin, limit);
        self.pinned.is_some()
    }

    /// The reasons are these now.
    pub(super) fn set_pins(&mut self, pins: PinSet) {
        if pins == self.pins {
            return;
        }
        self.ended_pins = self.ended_pins.union(self.pins.without(pins));
        self.pins = pins;
        if pins.is_empty() {
            self.pinned = None;
        } else if let Some(pinned) = &self.pinned {
            pinned.change(pins);
        }
    }

    /// The same of a query that pgweir may not understand, which the server may not, either.
    pub(super) fn pin_query(&mut self, pins: PinSet, known: Option<&Known>) -> Option<Refusal> {
        let reason = PinReason::Unclassifiable;
        // It may come here again before it is sent.
        let is_new = !self.pins.contains(reason) || self.prepared.is_doubtful;
        let refusal = self.pin(pins, known);
        if is_new && pins.contains(reason) && refusal.is_none() {
            self.prepared.is_doubtful = self.is_answered();
        }
        refusal
    }

    /// The client's statement has failed.
    pub(super) fn learn_from_error(&mut self, backend: &Backend, owed: Owed, error: &[u8]) {
        self.note_missing_number(error);
        let is_nothing_done = owed.request == Request::Query && !backend.expect.has_begun();
        self.settle_doubt(is_nothing_done && is_in_text(error));
        // What was to pin the session may not have come to be.
        if !self.pins.is_empty() {
            self.settings.ask_leftovers();
        }
    }

    /// A query has failed. One that `is_unparsed` has done nothing, and pins nobody.
    fn settle_doubt(&mut self, is_unparsed: bool) {
        if std::mem::take(&mut self.prepared.is_doubtful) && is_unparsed {
            let (mut pins, ended) = (self.pins, self.ended_pins);
            pins.remove(PinReason::Unclassifiable);
            self.set_pins(pins);
            self.ended_pins = ended;
        }
    }

    /// The server has told what is left of what pins a session. `is_all` is false if statements were sent since it was
    /// asked, which may have left more: then nothing is taken off.
    pub(super) fn settle_pins(&mut self, left: PinSet, is_all: bool) {
        let kept = if is_all {
            self.pins.without(leftovers::settled())
        } else {
            self.pins
        };
        let names = if self.names.is_own() {
            PinReason::SqlPrepare.into()
        } else {
            PinSet::EMPTY
        };
        self.set_pins(kept.union(left).union(names));
    }

    /// What this session leaves on its backend, at rest, besides settings.
    pub(super) fn pin_residue(&self) -> Residue {
        if !self.pins.is_empty() || self.ended_pins.outlives_discard() {
            Residue::Pinned
        } else if self.ended_pins.is_empty() {
            Residue::None
        } else {
            Residue::SessionState
        }
    }

    /// Lists a session that was found to be pinned after the fact: what is there can't be refused any more.
    pub(super) fn list_late_pin(&mut self) {
        if !self.pins.is_empty()
            && self.pinned.is_none()
            && self.effective.pool.pool_mode != PoolMode::Session
        {
            self.list_pin(self.pins, None, usize::MAX);
            telemetry::metrics::pinned(self.pins.iter().map(PinReason::as_str));
        }
    }
}
