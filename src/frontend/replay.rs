//! Replaying a transaction on another connection, up to where it had failed.
//!
//! The journal holds what the client has sent since BEGIN and a hash of what it has seen. The exchanges are sent again,
//! one at a time, and their answers are kept from the client as long as they are what it has seen before: exchange by
//! exchange, by number of bytes and hash (see [`Course`]). Then the transaction goes on as if nothing had happened. If they differ, the client gets the error
//! that its transaction had failed with, in a failed transaction, as it would have at first.
//!
//! # Invariants
//! - No exchange is sent before the one ahead of it has been answered as the client has seen it: a COMMIT above all.
//! - What was replayed and differed is rolled back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;

use super::inbound::Frame;
use super::refusal::Refusal;
use super::rerun::{Marks, Rerun};
use super::session::{End, Phase, Session};
use crate::backend::connection::Identity;
use crate::error::{Report, SqlState};
use crate::net::buffer::{Gather, give_storage, take_storage};
use crate::pool::Lease;
use crate::retry::course::{Course, Step};
use crate::session::mirror::Reported;
use crate::session::statements::Named;
use crate::sql::known::Known;
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frame;
use crate::wire::frontend as f;

/// A statement's name and what it stands for.
type Name = (Box<[u8]>, Named<Arc<Known>>);

/// What the transaction had failed with.
#[derive(Debug)]
pub(super) enum Original {
    /// The server's error; the client's session goes on.
    Error(Vec<u8>),
    /// The server's last words.
    Fatal(Vec<u8>),
    /// The connection was lost.
    Lost,
}

/// A transaction that runs again, until it is where it was.
#[derive(Debug)]
pub(super) struct Replay {
    /// The answers that the client has seen.
    course: Course,
    /// Bytes of the exchanges that were answered to their end; what is behind them was under way.
    answered: usize,
    /// Bytes of all that was sent.
    sent: usize,
    original: Original,
    /// Statements that these exchanges had prepared: the client has them whatever becomes of the transaction.
    names: Vec<Name>,
    /// The client's unnamed statement, which what is replayed may replace by earlier ones.
    unnamed: Option<Named<Arc<Known>>>,
    /// The transaction had failed at its end: the client is not in one any more.
    has_ended: bool,
    /// What came is not what the client has seen.
    differs: bool,
    /// Something came, of which the client has seen nothing yet, that no further run could repeat.
    pub gives_up: bool,
    /// What the server reports since then, if that is a setting.
    reported: Option<Arc<Reported>>,
    /// The backend it runs on, and how many cancel requests that had had before.
    backend: Option<(Arc<Identity>, u32)>,
}

impl Replay {
    /// The client wants its statement cancelled. The request may have come between two of those that are replayed.
    fn is_cancelled(&self) -> bool {
        let backend = self.backend.as_ref();
        backend.is_some_and(|(identity, before)| identity.cancels_begun() != *before)
    }
}

impl Session {
    fn replay(&self) -> Option<&Replay> {
        self.rerun.as_ref()?.replay.as_deref()
    }

    pub(super) fn replay_mut(&mut self) -> Option<&mut Replay> {
        self.rerun.as_mut()?.replay.as_deref_mut()
    }

    /// A transaction is run again and not where it was yet.
    pub(super) fn is_replaying(&self) -> bool {
        self.replay().is_some()
    }

    /// Whether what the client sees is recorded, so that the transaction can be replayed. `status` is the backend's.
    pub(super) fn records(&self, status: TransactionStatus) -> bool {
        let is_open = self.in_transaction || status != TransactionStatus::Idle;
        self.effective.retry.replay
            && is_open
            && !self.is_on_replica()
            && !self.keeps_backend()
            && self.kept().is_some_and(|kept| !kept.is_empty())
    }

    /// What comes next waits until what was replayed before has been answered as the client has seen it: within an
    /// exchange that is what the client had not sent when it failed.
    pub(super) fn awaits_replay(&self, gather: &mut Gather) -> bool {
        let (Some(replay), Some(lease)) = (self.replay(), &self.lease) else {
            return false;
        };
        if !lease.expect.is_open() {
            // The first exchange follows what brings the backend to the session's settings.
            let has_begun = self.kept().is_none_or(|kept| !kept.is_empty());
            return has_begun && !lease.expect.is_at_rest();
        }
        let is_sent = self.kept().is_none_or(|kept| kept.len() >= replay.sent);
        if is_sent && !self.held_up {
            gather.own(|out| out.extend_from_slice(&f::FLUSH_FRAME));
        }
        is_sent
    }

    /// The transaction that has failed, at its end if it `has_ended`, will run again; notes what the client has seen of it.
    pub(super) fn begin_replay(&mut self, has_ended: bool) {
        // What was not confirmed the client does not have.
        while !self.names.is_settled() {
            self.names.undo();
        }
        let names = &self.names;
        let Some(rerun) = &mut self.rerun else {
            return;
        };
        let original = rerun.original.take();
        if rerun.replay.is_some() {
            return;
        }
        let journal = &rerun.journal;
        let answered = journal.answered();
        // A transaction of which part of such an exchange was seen is not replayed if that prepares more.
        let prepared = journal.names().iter().filter(|(at, _)| *at < answered);
        let prepared =
            prepared.filter_map(|(_, name)| Some((name.clone(), names.get(name)?.clone())));
        rerun.replay = Some(Box::new(Replay {
            course: Course::of(journal),
            answered,
            sent: journal.bytes().len(),
            original: original.unwrap_or(Original::Lost),
            names: prepared.collect(),
            unnamed: names.get(b"").cloned(),
            has_ended,
            differs: false,
            gives_up: false,
            reported: None,
            backend: None,
        }));
    }

    /// The replay goes on with this backend.
    pub(super) fn note_lease_of_replay(&mut self, lease: &Lease) {
        if let Some(replay) = self.replay_mut() {
            let identity = Arc::clone(&lease.identity);
            let before = identity.cancels_begun();
            replay.backend = Some((identity, before));
            (replay.gives_up, replay.reported) = (false, None);
        }
    }

    /// Bytes of the inbox that the client has sent long ago.
    pub(super) fn unsent_of_replay(&self) -> usize {
        let sent = self.kept().map_or(0, <[u8]>::len);
        self.replay()
            .map_or(0, |replay| replay.sent.saturating_sub(sent))
    }

    /// The server reports a setting.
    pub(super) fn take_setting(&mut self, reported: &Arc<Reported>, payload: &[u8]) {
        if self.is_hidden() {
            self.note_setting_replayed(reported, payload);
            return;
        }
        self.note_setting_told();
        self.told = Arc::clone(reported);
        // It may have been set where no text tells, such as in a function or a trigger.
        if let Some((name, value)) = b::parameter_status(payload) {
            self.settings.touch(name);
            if name == b"application_name" {
                self.rename_application(value);
                self.sequences.rename();
            }
        }
    }

    /// The server reports a setting while its answers are compared. The client has not been told of any: the answers
    /// differ, or this is new and the client will hear of it.
    fn note_setting_replayed(&mut self, reported: &Arc<Reported>, payload: &[u8]) {
        let Some(replay) = self.replay_mut() else {
            return;
        };
        replay.reported = Some(Arc::clone(reported));
        if let Some((name, _)) = b::parameter_status(payload) {
            self.settings.touch(name);
        }
    }

    /// Compares what was gathered with what the client has seen; the client gets what is behind that.
    pub(super) fn compare_seen(&mut self, gather: &mut Gather, marks: &Marks, input: &[u8]) {
        let (mut new, mut ends) = (take_storage(), Vec::new());
        let mut from = &marks.start;
        for end in marks.ends() {
            gather.each_between(from, end, input, |bytes| new.extend_from_slice(bytes));
            ends.push(new.len());
            from = end;
        }
        gather.each_since(from, input, |bytes| new.extend_from_slice(bytes));
        gather.truncate(marks.start.clone());
        if let Some(rerun) = self.rerun.as_deref_mut()
            && let Some(replay) = &mut rerun.replay
        {
            match replay.course.compare(&mut rerun.journal, &new, &ends) {
                Step::On => {}
                Step::There(_) if replay.is_cancelled() => replay.differs = true,
                Step::Differs => replay.differs = true,
                Step::There(at) => self.end_replay(&new, at, &ends, gather),
            }
        }
        give_storage(new);
    }

    /// The transaction is where it was: what is behind the first `at` bytes of `new`, in which exchanges end at `ends`, is
    /// for the client.
    fn end_replay(&mut self, new: &[u8], mut at: usize, ends: &[usize], gather: &mut Gather) {
        self.pool.retries.replayed.fetch_add(1, Relaxed);
        let Some(rerun) = &mut self.rerun else {
            return;
        };
        let replay = rerun.replay.take();
        let rest = &new[at..];
        let there = at;
        for &end in ends.iter().filter(|end| **end > there) {
            rerun.journal.record(&new[at..end]);
            rerun.journal.end_seen();
            at = end;
        }
        rerun.journal.record(&new[at..]);
        gather.own(|out| out.extend_from_slice(rest));
        let Some(replay) = replay else {
            return;
        };
        if let Some(reported) = replay.reported.clone() {
            if let Some(name) = reported.get(b"application_name") {
                self.rename_application(name);
            }
            self.told = reported;
        }
        if replay.gives_up || replay.reported.is_some() {
            self.give_up_rerun();
        }
    }

    /// Compares an answer that pgweir gives itself; the client gets it if it has not seen it.
    pub(super) fn compare_local(&mut self, answer: &[u8]) {
        let mut gather = Gather::take();
        gather.own(|out| out.extend_from_slice(answer));
        self.compare_seen(&mut gather, &Marks::default(), &[]);
        let mut rest = take_storage();
        gather.move_to(&mut rest, &[]);
        gather.give();
        self.outbox.push(&rest);
        give_storage(rest);
    }

    /// Whether the replay has shown that the transaction does not go as it did.
    pub(super) fn replay_differs(&self) -> bool {
        let is_gone = self.is_replaying() && self.kept().is_none();
        is_gone || self.replay().is_some_and(|replay| replay.differs)
    }

    /// Whether a replay has come to an end in vain, when everything that was sent is answered: it has shown that the
    /// transaction does not go as it did, or the client has seen more than is answered now, or it cancels its statement.
    pub(super) fn replay_is_over(&self) -> bool {
        let (Some(replay), Some(lease)) = (self.replay(), &self.lease) else {
            return false;
        };
        let Some(kept) = self.kept() else {
            return true;
        };
        let has_ended = !kept.is_empty()
            && lease.status == TransactionStatus::Idle
            && lease.expect.is_at_rest();
        replay.differs || has_ended || kept.len() >= replay.sent || replay.is_cancelled()
    }

    /// The transaction is not run again after all: the client has what it had of it, and what it had sent is dropped.
    pub(super) fn drop_replay(&mut self) {
        let replay = self.rerun.as_mut().and_then(|rerun| rerun.replay.take());
        if let Some(replay) = replay {
            self.inbox.consume(replay.sent);
            self.restore_names(replay.names, replay.unnamed);
        }
    }

    /// The client has these statements, whatever has become of the transaction.
    fn restore_names(&mut self, names: Vec<Name>, unnamed: Option<Named<Arc<Known>>>) {
        for (name, named) in names {
            self.names.change(&name, Some(named));
            self.names.confirm();
        }
        self.names.change(b"", unnamed);
        self.names.confirm();
    }

    /// Gives the replay up: the client gets the error that its transaction had failed with.
    pub(super) fn fall_back(&mut self, is_lost: bool, cx: &mut Context<'_>) -> Result<(), End> {
        let replay = self.rerun.as_mut().and_then(|rerun| rerun.replay.take());
        let Some(replay) = replay else {
            return Ok(());
        };
        self.pool.retries.differed.fetch_add(1, Relaxed);
        if self.kept().is_none() {
            // What was under way is not here any more.
            let report = fatal_of(&replay.original);
            return Err(End::Fatal(Box::new(report)));
        }
        tracing::debug!(
            "a transaction that ran again was answered otherwise; its client is told of the failure"
        );
        let Replay {
            answered,
            original,
            names,
            unnamed,
            has_ended,
            ..
        } = *replay;
        self.unsend();
        self.restore_names(names, unnamed);
        self.part_with_backend(is_lost);
        self.forget_runs();
        self.metering.rests();
        self.inbox.consume(answered);
        if let Some(routes) = &mut self.routes {
            routes.in_exchange = false;
            routes.opened = None;
        }
        match original {
            Original::Error(error) if !self.inbox.is_empty() => {
                let rerun = self.rerun_mut();
                (rerun.refuses, rerun.refuses_outside) = (Some(error), has_ended);
                self.enter(Phase::Idle);
                self.process_inbox(cx)
            }
            Original::Error(error) | Original::Fatal(error) => {
                self.outbox.push(&framed(&error));
                Err(End::ServerGone)
            }
            Original::Lost => Err(End::Fatal(Box::new(fatal_of(&Original::Lost)))),
        }
    }

    /// What the client's transaction had failed with, if that was to be undone and can't be.
    pub(super) fn original_error(&self) -> Option<Report> {
        let rerun = self.rerun.as_ref()?;
        if let Some(replay) = rerun.replay.as_deref() {
            return Some(fatal_of(&replay.original));
        }
        rerun.refuses.as_deref().map(fatal)
    }

    /// The statement in front is to fail as its transaction had.
    pub(super) fn is_to_fail(&self) -> bool {
        self.rerun
            .as_ref()
            .is_some_and(|rerun| rerun.refuses.is_some())
    }

    /// Opens a transaction block for the statement in front to fail in. Behind a COMMIT that fails there is none.
    pub(super) fn open_to_fail(&mut self, gather: &mut Gather) {
        let is_outside = |rerun: &Rerun| rerun.refuses_outside;
        if !self.is_to_fail() || self.rerun.as_deref().is_some_and(is_outside) {
            return;
        }
        let Some(lease) = &mut self.lease else {
            return;
        };
        gather.own(|out| f::put_query(out, b"BEGIN"));
        lease.expect.push(Owed::new(Request::Query, For::Plan));
        lease.mirror.unnamed = None;
        self.entry.set_running_soon();
        self.in_transaction = true;
    }

    /// Has the server fail in place of `frame`, with the words of the error that its transaction had failed with. False
    /// if nothing is to fail.
    pub(super) fn fails_as_before(
        &mut self,
        frame: Frame<'_>,
        gather: &mut Gather,
    ) -> Result<bool, End> {
        let error = self.rerun.as_mut().and_then(|rerun| rerun.refuses.take());
        let Some(error) = error else {
            return Ok(false);
        };
        let report = report_of(&error);
        match frame.tag {
            f::QUERY => {
                let known = f::query_text(frame.payload).ok().map(|text| {
                    let options = self.lex_options();
                    self.shared.known.lookup(text, options)
                });
                self.refuse_query(frame, known, Refusal::AsBefore(Box::new(report)), gather);
            }
            f::PARSE | f::BIND | f::DESCRIBE | f::EXECUTE | f::CLOSE => {
                self.refuse_step(frame, Refusal::AsBefore(Box::new(report)), gather);
            }
            _ => return Err(End::Fatal(Box::new(fatal(&error)))),
        }
        Ok(true)
    }
}

/// The end of a session with the server's error.
fn fatal(error: &[u8]) -> Report {
    let report = report_of(error);
    Report::fatal(report.code, report.message)
}

fn fatal_of(original: &Original) -> Report {
    match original {
        Original::Error(error) | Original::Fatal(error) => fatal(error),
        Original::Lost => Report::fatal(
            SqlState::CONNECTION_FAILURE,
            "server closed the connection unexpectedly",
        ),
    }
}

fn framed(error: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, b::ERROR_RESPONSE, |out| {
        out.extend_from_slice(error);
    });
    out
}

/// The server's error in the form of pgweir's own.
fn report_of(error: &[u8]) -> Report {
    let text = |field| {
        let value = b::error_field(error, field)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let code = b::sqlstate(error).unwrap_or(SqlState::INTERNAL_ERROR);
    let mut report = Report::error(code, text(b'M').unwrap_or_default());
    if let Some(detail) = text(b'D') {
        report = report.detail(detail);
    }
    if let Some(hint) = text(b'H') {
        report = report.hint(hint);
    }
    report
}
