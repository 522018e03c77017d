//! What the server answers: relayed as it came, except for answers to pgweir's own messages.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::checkout::QUESTION;
use super::leaving::LEAVING;
use super::reply;
use super::rerun::Marks;
use super::reviving::comes_again;
use super::session::{End, ProbeAnswer, Session};
use crate::backend::connection::Backend;
use crate::backend::receive::{self, ReceiveError, Receiver};
use crate::error::SqlState;
use crate::net::buffer::{Gather, ReadBuffer};
use crate::session::leftovers;
use crate::session::settings::Row;
use crate::sql::state::{PinReason, PinSet};
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{For, OWN_NAME, Owed, Received, Request, UNNAMED};
use crate::wire::frame::{self, HEADER};
use crate::wire::limits::OUTBOX_MAX;

/// The session's part in receiving.
struct Relay<'a> {
    gather: Gather,
    marks: Marks,
    /// An exchange ends with the message under way.
    marks_end: bool,
    session: &'a mut Session,
    /// What the backend has, if it was asked.
    learnt: Vec<Row>,
    /// How many of its statements the backend still has, if it was asked.
    prepared: Option<usize>,
    /// The server has said that it ends the session, and the client is not told.
    is_lost: bool,
    /// The server has refused the session's settings, and another backend is tried.
    plans_elsewhere: bool,
    /// Why the session ends once the client has what came so far.
    end: Option<End>,
}

impl Receiver for Relay<'_> {
    fn relay(&mut self, range: Range<usize>) {
        self.session.metering.relayed(range.len());
        self.gather.input(range);
        if std::mem::take(&mut self.marks_end) {
            let keeps_all = self.session.effective.retry.replay;
            self.marks.end(self.gather.mark(), keeps_all);
        }
    }

    fn local(&mut self, request: Request) {
        let session = &mut *self.session;
        self.gather.own(|out| session.put_local(request, out));
    }

    fn message(&mut self, backend: &Backend, received: Received, tag: u8, payload: &[u8]) -> bool {
        let Received { owed, done } = received;
        if owed.renames && tag == b::ERROR_RESPONSE && owed.request == Request::Query {
            self.session.names.undo();
        } else if owed.renames && (done || receive::names_statement(received, tag)) {
            self.session.names.confirm();
            if owed.request == Request::Close {
                self.session.give_up_rerun();
            }
        }
        if done
            && !matches!(
                owed.request,
                Request::Parse | Request::Bind | Request::Close
            )
        {
            // What is behind it in a pipeline is under way from here on.
            self.session.since = self.session.now;
        }
        match tag {
            b::ERROR_RESPONSE => return self.error(backend, owed, payload),
            b::NOTICE_RESPONSE => return !self.session.hears_last_words(payload),
            b::PARAMETER_STATUS if owed.to == For::Client => {
                let reported = &backend.mirror.reported;
                self.session.take_setting(reported, payload);
            }
            b::COMMAND_COMPLETE if owed.to == For::Client => {
                self.session.note_tag(backend, owed, payload);
                self.session.note_acknowledged();
                self.session.note_completed();
                self.session.passes_trial(true);
                self.complete(owed, payload);
            }
            b::EMPTY_QUERY_RESPONSE if owed.request == Request::Execute => {
                self.session.end_statement(HEADER);
            }
            b::PORTAL_SUSPENDED => self.session.suspend_statement(),
            b::NOTIFICATION_RESPONSE => return !self.session.hears_elsewhere(payload),
            b::READY_FOR_QUERY => {
                if owed.to == For::Client {
                    self.session.note_acknowledged();
                    self.session.passes_trial(false);
                }
                self.ready(backend, owed);
                let is_clients = matches!(owed.to, For::Client | For::Refusal | For::Answered);
                let counts = is_clients && !self.session.is_run_elsewhere(backend.status);
                return !(counts && self.session.is_ready(backend.status));
            }
            b::DATA_ROW if owed.to == For::Xact => self.session.take_answer_row(payload),
            b::DATA_ROW if owed.to == For::Probe => {
                if let Some([Some(name), value]) = b::columns(payload).as_deref() {
                    let row = (name.to_vec(), value.map(<[u8]>::to_vec));
                    self.session.probe.get_or_insert_default().rows.push(row);
                }
            }
            _ => {}
        }
        true
    }

    fn row(&mut self) {
        self.session.passes_trial(true);
    }

    fn skipped(&mut self, owed: Owed) {
        if owed.renames {
            self.session.names.undo();
        }
        match owed.to {
            For::Refusal => drop(self.session.pop_refusal()),
            For::Probe if owed.statement == LEAVING => {
                self.session.leaves_no_more();
            }
            // It did not come to be.
            For::Reparse | For::Evict if owed.statement == OWN_NAME => {
                drop(self.session.names.own_none());
            }
            For::Local if owed.request == Request::DescribeStatement => {
                self.session.prepared.next_description();
            }
            _ => {}
        }
        let is_counted = matches!(
            owed.request,
            Request::Execute | Request::Query | Request::FunctionCall
        );
        if is_counted && matches!(owed.to, For::Client | For::Refusal) {
            self.session.not_completed();
            self.session.skip_statement();
        }
    }
}

impl Relay<'_> {
    fn error(&mut self, backend: &Backend, owed: Owed, payload: &[u8]) -> bool {
        if owed.request == Request::Parse && owed.renames && owed.statement == UNNAMED {
            self.session.names.fail_unnamed();
        }
        let refused = (owed.to == For::Refusal)
            .then(|| self.session.take_refusal(owed, b::sqlstate(payload)))
            .flatten();
        let code = refused.as_ref().map(|report| report.code);
        let code = code.or(b::sqlstate(payload));
        let is_fatal = b::is_fatal(payload);
        if self.fails_question(owed, is_fatal, payload) {
            return false;
        }
        if self.session.fails_on_trial(owed, code, is_fatal) {
            return false;
        }
        if let Some(code) = code.filter(|_| is_fatal || owed.to == For::Client)
            && self.session.absorbs(code, is_fatal, backend, payload)
        {
            return false;
        }
        if is_fatal && self.doubts_commit(code, backend) {
            return false;
        }
        if (is_fatal && self.session.outlives(backend)) || (!is_fatal && owed.to == For::Answered) {
            return false;
        }
        if is_fatal {
            self.end = Some(End::ServerGone);
        } else if owed.to == For::Plan && !comes_again(owed, code) {
            if self.session.plans_again(payload) {
                self.plans_elsewhere = true;
                return false;
            }
            let overrun = self.session.take_overrun(b::sqlstate(payload));
            let end = overrun.map(|_| self.session.cannot_cancel());
            let failed = || End::Fatal(Box::new(reply::not_restored(payload)));
            self.end.get_or_insert_with(|| end.unwrap_or_else(failed));
        } else if owed.to == For::Probe {
            self.session.fail_probe(b::sqlstate(payload));
        }
        self.count_error(owed, code);
        if !matches!(owed.to, For::Plan | For::Evict | For::Probe) {
            self.session.not_completed();
        }
        if owed.to == For::Client {
            self.session.learn_from_error(backend, owed, payload);
        }
        if let Some(report) = refused {
            self.gather.own(|out| b::put_report(out, &report));
            return false;
        }
        let placed = self.session.place_error(owed, payload);
        let payload = placed.as_deref().unwrap_or(payload);
        if let Some(payload) = self.in_own_words(payload).or_else(|| placed.clone()) {
            self.gather.own(|out| {
                frame::put(out, b::ERROR_RESPONSE, |out| {
                    out.extend_from_slice(&payload);
                });
            });
            return false;
        }
        let is_clients = !matches!(owed.to, For::Plan | For::Evict | For::Probe);
        let code = b::sqlstate(payload);
        let overrun = is_clients.then(|| self.session.take_overrun(code));
        let Some(report) = overrun.flatten() else {
            return true;
        };
        self.gather.own(|out| b::put_report(out, &report));
        false
    }

    /// Takes in an error in place of the answer to a question of `settle`. False if it is another one.
    fn fails_question(&mut self, owed: Owed, is_fatal: bool, payload: &[u8]) -> bool {
        if is_fatal && self.session.is_settling() {
            // It says nothing of the COMMIT, which is asked for again on another connection.
            self.is_lost = true;
            return true;
        }
        if is_fatal || owed.to != For::Xact {
            return false;
        }
        let end = self.session.take_refused_question(payload);
        self.end = self.end.take().or(end);
        true
    }

    /// Takes in the end of a session in place of the answer to a COMMIT. True if that is not for the client.
    fn doubts_commit(&mut self, code: Option<SqlState>, backend: &Backend) -> bool {
        // What became of it is asked once the connection is closed, which it is now.
        if code == Some(SqlState::ADMIN_SHUTDOWN) && self.session.prepare_settling(backend) {
            self.is_lost = true;
            return true;
        }
        let report = code.and_then(|code| self.session.doubts_commit(code, backend));
        let is_unknown = report.is_some();
        if let Some(report) = report {
            self.end = Some(End::Fatal(Box::new(report)));
        }
        is_unknown
    }

    /// Errors about a statement name it as the server knows it.
    fn in_own_words(&self, payload: &[u8]) -> Option<Vec<u8>> {
        self.session.names.in_own_words(payload)
    }

    fn complete(&mut self, owed: Owed, payload: &[u8]) {
        match payload {
            b"DISCARD ALL\0" => {
                self.session.names.forget_all();
                self.session.set_pins(PinSet::EMPTY);
            }
            b"DEALLOCATE ALL\0" => self.session.names.forget_all(),
            _ => {}
        }
        self.session.completed(owed.request, payload);
        self.session.metering.returned(b::rows(payload));
        if owed.request == Request::Execute {
            self.session.end_statement(HEADER + payload.len());
        }
    }

    /// An error is that of the statement in front, or of one that the server skips for it.
    fn count_error(&mut self, owed: Owed, code: Option<SqlState>) {
        let Some(code) = code else {
            return;
        };
        let session = &mut *self.session;
        match (owed.request, owed.to) {
            (Request::Query | Request::FunctionCall, For::Client | For::Refusal) => {
                session.metering.failed(code);
            }
            (Request::Sync, For::Client) => session.fail_at_sync(code),
            (Request::FunctionCall | Request::Sync, _)
            | (_, For::Plan | For::Probe | For::Evict) => {}
            (Request::Parse, For::Client) => {
                let parse = session.names.under_way().cloned();
                session.metering.failed_extended(code, parse);
            }
            _ => session.metering.failed_extended(code, None),
        }
    }

    fn ready(&mut self, backend: &Backend, owed: Owed) {
        match owed.to {
            For::Client | For::Refusal if self.session.will_rerun() => {}
            For::Client | For::Refusal | For::Answered => {
                self.session.note_answered(backend.status);
                self.marks_end = true;
                self.session.timed_out = false;
                self.session.prepared.edits = None;
                self.session.prepared.is_doubtful = false;
                match owed.request {
                    Request::Sync => self.session.end_exchange(),
                    // A Query, or a FunctionCall.
                    _ => self.session.end_statement(HEADER + 1),
                }
                if backend.status == TransactionStatus::Idle {
                    self.session.metering.forget_portals();
                    self.session.forget_for_settling();
                    self.session.count_transaction();
                    self.session.transaction_since = self.session.now;
                }
            }
            For::Probe if owed.statement == LEAVING => {
                let answer = std::mem::take(&mut self.session.probe);
                self.session
                    .left_channels(backend.status, &answer.unwrap_or_default());
            }
            For::Probe => {
                self.tell(backend);
                self.learn(backend, owed);
            }
            For::Plan if self.plans_elsewhere => {}
            For::Plan => {
                self.tell(backend);
                let identity = &backend.identity;
                // A cancel request must not hit another one behind it.
                let is_last = !backend.expect.owes(For::Plan);
                if is_last && self.session.entry.set_running(Arc::clone(identity)) {
                    self.session.cancel_late(identity);
                }
            }
            For::Xact => self.session.take_answer(backend),
            For::Reparse | For::Evict | For::Shape | For::Local => {}
        }
    }

    /// Tells the client what pgweir's own statements have changed.
    fn tell(&mut self, backend: &Backend) {
        let (told, now) = (&mut self.session.told, &backend.mirror.reported);
        let before = self.gather.mark();
        self.gather.own(|out| reply::put_changes(told, now, out));
        if before == self.marks.start {
            self.marks.begin(self.gather.mark());
        } else if self.gather.mark() != before {
            // It is no answer, and would not come again.
            self.session.give_up_rerun();
        }
    }

    /// Takes in the answer to a question about the session's state, if it was asked outside a transaction.
    fn learn(&mut self, backend: &Backend, owed: Owed) {
        let ProbeAnswer {
            mut rows,
            refused,
            failed,
        } = *self.session.probe.take().unwrap_or_default();
        if backend.status != TransactionStatus::Idle {
            return;
        }
        // It is asked again once, and not without end.
        let is_silent = owed.statement == QUESTION && (failed || rows.is_empty());
        if refused || (is_silent && !self.session.settings.asks_again()) {
            // Nothing is known of what the session has left on this backend: it stays there.
            self.session.settings.give_up();
            let unknown = PinReason::SettingsUnknown.into();
            self.session.set_pins(self.session.pins.union(unknown));
        } else if !is_silent && !rows.is_empty() {
            if let Some(mut left) = leftovers::take(&mut rows) {
                // Those that the session has under their own names, it knows.
                if left.own == self.session.names.own_sql(backend.id) {
                    left.pins.remove(PinReason::SqlPrepare);
                }
                self.session
                    .settle_pins(left.pins, backend.expect.is_at_rest());
                self.prepared = Some(left.prepared);
            }
            let login = backend.mirror.login(&self.session.effective.login_user);
            self.session.settings.learn(&rows, login);
            self.learnt = rows;
        }
    }
}

impl Session {
    /// Reads the server once and passes on what came.
    pub(super) fn poll_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.outbox.len() >= OUTBOX_MAX {
            return Ok(false);
        }
        let Some(lease) = &mut self.lease else {
            return Ok(false);
        };
        let mut buffer = ReadBuffer::take();
        let Poll::Ready(read) = buffer.poll_fill(&mut lease.stream, cx) else {
            return Ok(false);
        };
        match read {
            Ok(0) => return self.lose_server(&ReceiveError::Closed, cx).map(|()| true),
            Err(error) => {
                self.lose_server(&ReceiveError::Io(error), cx)?;
                return Ok(true);
            }
            Ok(count) => {
                let sent = &self.pool.counters.sent_bytes;
                sent.fetch_add(count as u64, Ordering::Relaxed);
                self.take_in(cx, buffer.bytes(count))?;
            }
        }
        self.settle(cx)?;
        if self.held_up {
            self.process_inbox(cx)?;
        }
        Ok(true)
    }

    fn take_in(&mut self, cx: &mut Context<'_>, new: &[u8]) -> Result<(), End> {
        // The lease steps aside while the session hears what its backend said.
        let Some(mut lease) = self.lease.take() else {
            return Ok(());
        };
        self.metering.answered(self.now);
        let mut relay = Relay {
            gather: Gather::take(),
            marks: Marks::default(),
            marks_end: false,
            session: self,
            learnt: Vec::new(),
            prepared: None,
            is_lost: false,
            plans_elsewhere: false,
            end: None,
        };
        let backend = &mut *lease;
        let received = receive::take_in(backend, new, |backend, input| {
            let used = receive::receive(backend, input, &mut relay)?;
            if relay.session.holds_back(&mut relay.gather, input) {
                return Ok(used);
            }
            let session = &mut *relay.session;
            session.sift(&mut relay.gather, &relay.marks, backend.status, input);
            let Session { outbox, stream, .. } = &mut *relay.session;
            // The server is not to blame for a client that does not take its answer.
            if outbox.send(stream, cx, &mut relay.gather, input).is_err() {
                relay.end.get_or_insert(End::ClientGone);
            }
            Ok(used)
        });
        let Relay {
            gather,
            learnt,
            prepared,
            is_lost,
            plans_elsewhere,
            end,
            ..
        } = relay;
        gather.give();
        if !learnt.is_empty() {
            self.reflect(&mut lease.mirror, &learnt);
        }
        // Code that runs DEALLOCATE ALL takes the session's own names away with all others.
        if prepared.is_some_and(|prepared| lease.mirror.recount(prepared)) {
            self.names.forget_all();
        }
        self.keep_which(&mut lease);
        self.lease = Some(lease);
        self.list_late_pin();
        if let Err(error) = received {
            return self.lose_server(&error, cx);
        }
        if is_lost || self.was_terminated() {
            return self.lose_server(&ReceiveError::Closed, cx);
        }
        if plans_elsewhere {
            return self.plan_elsewhere(cx);
        }
        let is_over = matches!(end, Some(End::ServerGone | End::Fatal(_)));
        if self.replay_differs() || (is_over && self.is_replaying()) {
            return self.fall_back(is_over, cx);
        }
        match end {
            None => {}
            Some(End::ClientGone) => return Err(End::ClientGone),
            Some(end) => {
                self.drop_backend();
                return Err(end);
            }
        }
        Ok(())
    }
}
