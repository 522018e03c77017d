//! Where a statement of a session begins and where it ends, for what is counted of it.

use std::sync::Arc;

use super::{Portal, Tracing};
use crate::error::SqlState;
use crate::frontend::session::{End, Session};
use crate::sql::known::Known;
use crate::wire::frame::HEADER;
use crate::wire::frontend as f;

impl Session {
    /// Notes which trace a statement with this text is part of. Off, this costs a look at a flag.
    pub(in crate::frontend) fn trace(&mut self, text: &[u8]) {
        if self.shared.tracer.is_on() {
            let trace = self.shared.tracer.trace_of(text);
            self.metering.trace = Tracing::Looked(trace.map(Box::new));
        }
    }

    /// Counts a simple query from here.
    pub(in crate::frontend) fn start(&mut self, known: Arc<Known>) {
        self.run_from_here(known, Portal::default());
    }

    /// Counts the Execute with this payload from here.
    pub(in crate::frontend) fn start_execute(&mut self, payload: &[u8]) {
        let (name, limit) = f::portal_of(payload);
        let limit = limit.try_into().map_or(0, u32::from_be_bytes);
        let (continues, known) = self.metering.executes(name);
        let portal = Portal { limit, continues };
        let known = known.unwrap_or_else(|| match &self.bound {
            Some(statement) => Arc::clone(&statement.known),
            None => Arc::clone(self.shared.known.unread()),
        });
        self.run_from_here(known, portal);
    }

    /// Has a statement run from here. Not inlined, as the end is not, so that a profile shows what counting costs.
    #[inline(never)]
    pub(in crate::frontend) fn run_from_here(&mut self, known: Arc<Known>, portal: Portal) {
        if matches!(self.metering.trace, Tracing::Unknown) && self.shared.tracer.is_on() {
            // A statement prepared earlier carries nobody's trace.
            let trace = self.shared.tracer.begin();
            self.metering.trace = Tracing::Looked(trace.map(Box::new));
        }
        let is_first = self.metering.front.get().is_none();
        self.limit_statement(&known, is_first);
        if is_first {
            self.entry.activity.runs(&known.query, self.now);
        }
        self.metering.push(known, portal, self.now);
    }

    /// What runs now is what is in front.
    fn tell_next(&self) {
        match self.metering.front.get() {
            Some(next) => self.entry.activity.runs(&next.known.query, self.now),
            None => self.entry.activity.rests(),
        }
    }

    /// The statement in front ends with a message of `len` bytes that is still to be relayed.
    #[inline(never)]
    pub(in crate::frontend) fn end_statement(&mut self, len: usize) {
        let before = self.metering.relayed_before;
        self.metering.relayed_before = self.metering.relayed + len as u64;
        let sent = self.metering.relayed_before - before;
        if let Some(ended) = self.metering.pop(self.now) {
            self.tell_next();
            if self.metering.again > 0 {
                self.metering.again -= 1;
                ended.known.query.retried();
            } else {
                if ended.error.is_none() {
                    let took = self.now.saturating_duration_since(ended.started);
                    ended.known.brevity.saw(took, ended.rows, sent);
                }
                self.count(&ended, sent);
            }
            self.metering.counted += 1;
            self.metering.last = Some(ended.known);
        }
    }

    /// The portal in front has returned as many rows as it was asked for.
    pub(in crate::frontend) fn suspend_statement(&mut self) {
        self.note_completed();
        if let Some(front) = self.metering.front.get_mut() {
            front.rows += u64::from(front.portal.limit);
        }
        self.end_statement(HEADER);
    }

    /// The server skips the statement in front after an error, which is its own if it is the first one skipped.
    pub(in crate::frontend) fn skip_statement(&mut self) {
        if let Some(failed) = self.metering.failed.take() {
            self.metering.failed(failed.code);
            self.end_statement(0);
        } else {
            self.metering.pop(self.now);
            self.tell_next();
        }
    }

    /// The session ends amid a statement.
    pub(in crate::frontend) fn abandon_statement(&mut self, end: &End) {
        let Some(mut front) = self.metering.front.take() else {
            return;
        };
        let failed = self.metering.failed.take().map(|failed| failed.code);
        let code = match end {
            End::Fatal(report) => report.code,
            End::ClientGone | End::ServerGone => SqlState::CONNECTION_FAILURE,
        };
        front.error = front.error.or(failed).or(Some(code));
        let sent = self.metering.relayed_since();
        self.count(&front, sent);
    }
}
