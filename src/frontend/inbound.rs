//! What the client sends: framing, batches, simple queries, and forwarding.

use std::ops::Range;
use std::sync::Arc;
use std::task::Context;

use super::exchange::holds_batch;
use super::listening::Gate;
use super::refusal::Refusal;
use super::reply;
use super::session::{End, Phase, Session};
use crate::config::model::PoolMode;
use crate::error::{Report, Severity, SqlState};
use crate::net::buffer::Gather;
use crate::session::plan::Pace;
use crate::sql::known::Known;
use crate::sql::prepared::PreparedUse;
use crate::sql::reading::Rereads;
use crate::sql::state::{Effect, PinReason};
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frame::{FrameError, HEADER, Header};
use crate::wire::frontend as f;
use crate::wire::limits::{SMALL_MESSAGE_MAX, STATEMENT_MAX, WHOLE_FRAME_MAX};

/// A client's frame, as far as it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub tag: u8,
    pub payload: &'a [u8],
    /// Where the bytes that are there begin and end in the input.
    pub start: usize,
    pub end: usize,
    /// Bytes still to come.
    pub missing: usize,
    /// What is there of the messages that follow.
    pub behind: &'a [u8],
}

impl Frame<'_> {
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// All of it, with what is still to come.
    pub(super) fn len(&self) -> usize {
        self.end - self.start + self.missing
    }
}

fn protocol_violation(error: FrameError) -> End {
    End::Fatal(Box::new(Report::fatal(
        SqlState::PROTOCOL_VIOLATION,
        error.to_string(),
    )))
}

/// Refuses by its head what is no message, instead of waiting for the rest of it.
fn check_type(header: Header) -> Result<(), End> {
    if !f::is_known(header.tag) {
        let message = format!("invalid frontend message type {}", header.tag);
        let report = Report::fatal(SqlState::PROTOCOL_VIOLATION, message);
        return Err(End::Fatal(Box::new(report)));
    }
    if header.len > SMALL_MESSAGE_MAX && !f::may_be_large(header.tag) {
        return Err(protocol_violation(FrameError::TooLarge {
            len: header.len,
            max: SMALL_MESSAGE_MAX,
        }));
    }
    Ok(())
}

impl Session {
    /// Acts on `input`; returns how much of it was used. The rest waits for more bytes or for a backend.
    pub(super) fn process(&mut self, cx: &mut Context<'_>, input: &[u8]) -> Result<usize, End> {
        if self.awaits_listener() || self.ride(input) {
            return Ok(0);
        }
        let mut gather = Gather::take();
        let used = self.forward(input, &mut gather, cx);
        self.send_to_server(cx, &mut gather, input);
        gather.give();
        used
    }

    fn forward(
        &mut self,
        input: &[u8],
        gather: &mut Gather,
        cx: &mut Context<'_>,
    ) -> Result<usize, End> {
        let mut at = if self.dropping > 0 {
            self.drop_rest(input)
        } else {
            self.forward_rest(input, gather)
        };
        let max = self.shared.config.load().general.max_packet_size;
        while let Some(header) = Header::peek(&input[at..], max).map_err(protocol_violation)? {
            check_type(header)?;
            let have = header.len.min(input.len() - at);
            let missing = header.len - have;
            let bound = if matches!(header.tag, f::QUERY | f::PARSE) {
                STATEMENT_MAX
            } else {
                WHOLE_FRAME_MAX
            };
            if missing > 0 && have < bound && header.tag != f::COPY_DATA {
                break;
            }
            let payload = &input[at + HEADER..at + have];
            let frame = Frame {
                tag: header.tag,
                payload,
                start: at,
                end: at + have,
                missing,
                behind: &input[at + have..],
            };
            if self.skipping {
                self.skip(frame, cx)?;
            } else if self.lease.is_some() || !self.answer_alone(frame, cx)? {
                if !self.has_backend(&input[at..], max, gather)? {
                    break;
                }
                if self.must_come_alone(frame) {
                    self.held_up = true;
                    break;
                }
                if self.must_wait(frame) {
                    // Answers that are due now come from nobody else.
                    self.emit_locals(cx)?;
                }
                if self.must_wait(frame) {
                    self.hold_up(gather);
                    break;
                }
                let received = self.metering.received;
                if self.gate_step(frame, gather) || !self.dispatch(frame, gather)? {
                    // It comes here again, and is counted then.
                    self.metering.received = received;
                    break;
                }
                self.keep(frame, &input[at..at + have]);
            }
            at += have;
            if missing > 0 {
                if let Some(lease) = self.lease.as_mut().filter(|_| self.dropping == 0) {
                    lease.unsent_of_frame = missing;
                }
                break;
            }
        }
        self.emit_locals(cx)?;
        Ok(at)
    }

    /// Has the server answer what was sent so far, without ending the exchange; what is behind waits in the inbox.
    pub(super) fn hold_up(&mut self, gather: &mut Gather) {
        if !self.held_up {
            self.held_up = true;
            gather.own(|out| out.extend_from_slice(&f::FLUSH_FRAME));
        }
    }

    /// Forwards the rest of a frame whose head was sent.
    fn forward_rest(&mut self, input: &[u8], gather: &mut Gather) -> usize {
        let Some(lease) = &mut self.lease else {
            return 0;
        };
        let count = lease.unsent_of_frame.min(input.len());
        lease.unsent_of_frame -= count;
        gather.input(0..count);
        count
    }

    /// A backend that may be sent to now, having got one if necessary.
    fn has_backend(&mut self, input: &[u8], max: usize, gather: &mut Gather) -> Result<bool, End> {
        let Some(lease) = &self.lease else {
            return Ok(holds_batch(input, max).map_err(protocol_violation)?
                && self.check_out(input, gather));
        };
        if self.phase != Phase::Active {
            return Ok(false);
        }
        if self.is_holding()
            || self.will_rerun()
            || self.awaits_replay(gather)
            || !self.may_follow_on_replica()
        {
            self.held_up = true;
            return Ok(false);
        }
        if self.may_move() {
            let is_whole = holds_batch(input, max).map_err(protocol_violation)?;
            return Ok(is_whole && self.goes_on(input, gather));
        }
        // A session that keeps its backend brings it up to date between transactions.
        if lease.is_clean() && !self.in_transaction && self.plan(gather) == Pace::Awaited {
            self.enter(Phase::Planning);
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether what the client sends next has to wait for an answer: it would be mistaken for part of what pgweir asks
    /// about, or of what DISCARD ALL takes away.
    pub(super) fn is_holding(&self) -> bool {
        let Some(lease) = &self.lease else {
            return false;
        };
        let last = lease.expect.iter().last();
        lease.expect.owes(For::Probe)
            || self.sends_one_by_one()
            || lease.expect.owes(For::Xact)
            || (self.discards
                && last.is_some_and(|owed| matches!(owed.request, Request::Query | Request::Sync)))
    }

    /// Answers what needs no server while the session has no backend. True if that was done.
    fn answer_alone(&mut self, frame: Frame<'_>, cx: &mut Context<'_>) -> Result<bool, End> {
        match frame.tag {
            f::SYNC => {
                reply::ready(&mut self.outbox);
                let _ = self.outbox.poll_send(&mut self.stream, cx);
                Ok(true)
            }
            // PostgreSQL accepts and ignores these outside COPY; Flush has nothing to flush.
            f::FLUSH | f::COPY_DATA | f::COPY_DONE | f::COPY_FAIL => {
                self.dropping = frame.missing;
                Ok(true)
            }
            f::TERMINATE => Err(End::ClientGone),
            _ => Ok(false),
        }
    }

    /// Drops what follows an error of pgweir's own, up to the Sync that ends it.
    fn skip(&mut self, frame: Frame<'_>, cx: &mut Context<'_>) -> Result<(), End> {
        match frame.tag {
            f::SYNC => {
                self.skipping = false;
                reply::ready(&mut self.outbox);
                let _ = self.outbox.poll_send(&mut self.stream, cx);
                Ok(())
            }
            f::TERMINATE => Err(End::ClientGone),
            _ => {
                self.dropping = frame.missing;
                Ok(())
            }
        }
    }

    /// Answers the statement in front of the inbox with an error, and goes on behind it.
    pub(super) fn turn_down(&mut self, report: &Report, cx: &mut Context<'_>) -> Result<(), End> {
        if report.severity == Severity::Fatal {
            return Err(End::Fatal(Box::new(report.clone())));
        }
        if let Some(original) = self.original_error() {
            return Err(End::Fatal(Box::new(original)));
        }
        self.log_error(report);
        self.forget_runs();
        if let Some(listening) = &mut self.listening {
            listening.forget_asked();
        }
        reply::report(&mut self.outbox, report);
        let max = self.shared.config.load().general.max_packet_size;
        let header = Header::peek(self.inbox.bytes(), max).map_err(protocol_violation)?;
        match header {
            Some(Header {
                tag: f::QUERY | f::FUNCTION_CALL,
                len,
            }) => {
                self.dropping = len.saturating_sub(self.inbox.len());
                self.inbox.consume(len);
                reply::ready(&mut self.outbox);
            }
            _ => self.skipping = true,
        }
        let _ = self.outbox.poll_send(&mut self.stream, cx);
        Ok(())
    }

    /// Forwards one frame to the backend and notes what it will be answered with. False if it has to wait for answers.
    fn dispatch(&mut self, frame: Frame<'_>, gather: &mut Gather) -> Result<bool, End> {
        self.held_up = false;
        if !matches!(frame.tag, f::BIND | f::QUERY) {
            self.metering.sent(frame.tag, frame.len());
        }
        if matches!(frame.tag, f::SYNC | f::QUERY | f::FUNCTION_CALL) {
            if let Some(routes) = &mut self.routes {
                routes.in_exchange = false;
            }
            self.names.next_exchange();
            self.sequences.next_exchange();
            self.prepared.reparsed = 0;
        }
        if self.is_to_fail() && self.fails_as_before(frame, gather)? {
            return Ok(true);
        }
        match frame.tag {
            f::QUERY => return self.query(frame, gather),
            f::PARSE => return self.parse(frame, gather),
            f::BIND => return self.bind(frame, gather),
            f::DESCRIBE => return self.describe(frame, gather).map(|()| true),
            f::CLOSE => return self.close(frame, gather).map(|()| true),
            f::EXECUTE => {
                self.execute(frame);
                gather.input(frame.range());
                // What follows in this exchange is to find startup values put back, not the server's own. Behind a COPY it
                // would be read as data.
                if self.settings.restores() && !self.discards && !self.copies_in {
                    self.restore(For::Reparse, gather);
                }
                return Ok(true);
            }
            f::SYNC => {
                self.expect(Request::Sync);
                gather.input(frame.range());
                self.unlist(gather);
                self.probe(gather);
                return Ok(true);
            }
            f::FUNCTION_CALL => {
                if !f::calls_large_object_function(frame.payload) {
                    let pins = PinReason::OpaqueState.into();
                    if let Some(refusal) = self.pin(pins, None) {
                        let known = Arc::clone(self.shared.known.function_call());
                        self.refuse_query(frame, Some(known), refusal, gather);
                        return Ok(true);
                    }
                }
                if self.awaits_numbers(None, false, gather) {
                    return Ok(false);
                }
                self.note_sent(None);
                self.rereads.reported = true;
                self.take_numbers(None);
                self.start(Arc::clone(self.shared.known.function_call()));
                self.expect(Request::FunctionCall);
            }
            f::COPY_DONE | f::COPY_FAIL => self.expect(Request::CopyEnd),
            f::TERMINATE => return Err(End::ClientGone),
            _ => {}
        }
        gather.input(frame.range());
        Ok(true)
    }

    pub(super) fn expect(&mut self, request: Request) {
        self.owe(Owed::new(request, For::Client));
    }

    pub(super) fn owe(&mut self, owed: Owed) {
        if let Some(lease) = &mut self.lease {
            if lease.expect.awaits_more() {
                self.since = self.now;
                if !lease.expect.is_open() && lease.status == TransactionStatus::Idle {
                    self.transaction_since = self.now;
                }
            }
            lease.expect.push(owed);
        }
    }

    fn query(&mut self, frame: Frame<'_>, gather: &mut Gather) -> Result<bool, End> {
        let (known, text) = if frame.missing > 0 {
            (None, None)
        } else {
            let text = f::query_text(frame.payload).map_err(protocol_violation)?;
            self.trace(text);
            let looked_up = self.looked_up.take();
            let look_up = || self.shared.known.lookup(text, self.lex_options());
            (Some(looked_up.unwrap_or_else(look_up)), Some(text))
        };
        // Of a text too large to be looked at whole nothing can be proved.
        let gate = known
            .as_ref()
            .map_or(Gate::Open(PinReason::Unclassifiable.into()), |known| {
                self.gate(known, None)
            });
        let Gate::Open(pins) = gate else {
            return Ok(false);
        };
        self.metering.sent(frame.tag, frame.len());
        let read = known.as_deref().zip(text);
        let refusal = if self.may_escape(read) {
            Some(Refusal::SessionState(pins))
        } else {
            self.pin_query(pins, known.as_deref())
        };
        let shown = |it: &Arc<Known>| self.show_channels(it, false, gather);
        if let Some(refusal) = refusal.or_else(|| known.as_ref().and_then(shown)) {
            self.refuse_query(frame, known, refusal, gather);
            return Ok(true);
        }
        if read.is_some_and(|(known, text)| self.revives(known, text, gather))
            || self.awaits_numbers(known.as_deref(), false, gather)
        {
            return Ok(false);
        }
        self.note_sent(known.as_deref());
        self.note_unnamed_replaced();
        if let (Some(known), Some(text)) = (known, text) {
            if known.prepared != PreparedUse::None
                || self.prepared.is_revived
                || self.may_run_by_name(text, &known)
            {
                return self.query_prepared(frame, text, &known, gather);
            }
            self.note(&known)?;
            self.take_numbers(Some(&known));
            self.start(known);
        } else {
            self.rereads = Rereads::ALL;
            self.take_numbers(None);
            self.start(Arc::clone(self.shared.known.unread()));
        }
        self.expect(Request::Query);
        self.names.forget_unnamed();
        if let Some(lease) = &mut self.lease {
            lease.mirror.unnamed = None;
        }
        gather.input(frame.range());
        // Behind half a message a question would be read as the rest of it.
        if frame.missing == 0 {
            self.probe(gather);
        }
        Ok(true)
    }

    /// Code is about to be sent that can't be seen through.
    pub(super) fn note_opaque(&mut self) {
        if self.effective.pool.pool_mode != PoolMode::Session {
            self.settings.touch_opaque();
            if let Some(lease) = &mut self.lease {
                lease.mirror.unknown_to = Some(self.entry.pid.0);
            }
        }
    }

    /// Notes what a statement that is about to be sent does to the session.
    pub(super) fn note(&mut self, known: &Known) -> Result<(), End> {
        if !self.pins.is_empty() && known.may_unpin {
            self.settings.ask_leftovers();
        }
        self.rereads.add(known.rereads);
        let transaction = known.class.transaction;
        if transaction.ends() || transaction.savepoints() {
            self.rereads.may_be_taken_back();
        }
        self.note_unseen(known);
        if known.is_plain {
            return Ok(());
        }
        if known.empties_database {
            self.shared.pools.vacate(&known.query.text);
        }
        let class = &known.class;
        self.copies_in |= known.copies_in;
        if transaction.begins() || transaction.ends() {
            // A string that does both is settled by what the server reports.
            self.in_transaction = transaction.begins() || transaction.chains();
        }
        if self.in_transaction && self.effective.pool.pool_mode == PoolMode::Statement {
            let report = Report::fatal(
                SqlState::FEATURE_NOT_SUPPORTED,
                "transaction blocks are not allowed in statement pooling mode",
            )
            .hint("Use pool_mode = \"transaction\".");
            return Err(End::Fatal(Box::new(report)));
        }
        for effect in class.effects() {
            match effect {
                Effect::Setting { name, local: false } => self.settings.touch(name.as_bytes()),
                Effect::ResetSetting(name) => self.settings.reset(name.as_bytes()),
                Effect::DeallocateSql(name) => {
                    self.deallocates = true;
                    // The name may be one that pgweir has given.
                    if name.is_some() {
                        self.settings.ask_leftovers();
                    }
                }
                Effect::ResetAll => self.settings.reset_known(),
                Effect::DiscardAll => {
                    self.discards = true;
                    self.settings.reset_known();
                }
                Effect::SettingsUnknown => self.settings.touch_anything(),
                Effect::OpaqueCode => self.note_opaque(),
                _ => {}
            }
        }
        Ok(())
    }
}
