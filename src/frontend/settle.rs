//! What became of a COMMIT that was not answered: `retry.settle_commit`.
//!
//! Three questions of pgweir's own, whose answers the client does not see:
//! - *which*: before a session's first statement on a connection, outside a transaction: which server this is, and its
//!   last checkpoint. Asked again when it is older than [`WHICH_AGE`]; the statement waits for it;
//! - *id*: in a transaction, behind a statement that may have written, once it is answered: the transaction's id, if it
//!   has one. Asked until it has;
//! - *outcome*: after the loss of the connection amid COMMIT, of the server that is the primary then.
//!
//! [`outcome`] decides by the answers. What is not known by them is unknown.
//!
//! # Why the id is not asked for in the write of the statement
//! A cancel request of the client's for its statement could hit the question behind it, and fail the transaction of a
//! client whose statement had succeeded. So the question waits for the answer, no cancel request is passed on while it is
//! under way, and what the client sends waits for it: as a rule it is answered by the time that the client is.
//!
//! # Invariants
//! - No question is asked in a failed transaction, or gives one its first snapshot.
//! - A transaction is called committed or rolled back only by proof.

use std::sync::Arc;
use std::task::Context;

use tokio::time::Instant;

use super::questions::{
    Commit, ID, Question, Settle, Settling, WHICH, WHICH_AGE, may_write, put_rest, rest_of_commit,
    rolled_back,
};
use super::replay::Original;
use super::reply;
use super::session::{End, Phase, Session};
use super::stock;
use crate::backend::connection::Backend;
use crate::error::{Report, SqlState};
use crate::net::buffer::{Gather, give_storage};
use crate::retry::backoff;
use crate::retry::outcome::{Outcome, outcome};
use crate::retry::policy::{Failure, Verdict};
use crate::sql::classify::StatementKind as Kind;
use crate::sql::known::Known;
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frame::HEADER;
use crate::wire::frontend as f;

impl Session {
    fn settle_ref(&self) -> Option<&Settle> {
        self.rerun.as_ref()?.settle.as_deref()
    }

    fn settle_mut(&mut self) -> &mut Settle {
        self.rerun_mut().settle.get_or_insert_default()
    }

    /// Whether a COMMIT is being settled: the client waits for what became of it.
    pub(super) fn is_settling(&self) -> bool {
        self.settle_ref()
            .is_some_and(|settle| settle.under_way.is_some())
    }

    /// A statement is being sent; `None` is one that nothing is known of.
    pub(super) fn note_for_settling(&mut self, known: Option<&Known>) {
        if !self.effective.retry.settle_commit {
            return;
        }
        let is_commit = known
            .is_some_and(|known| matches!(known.class.only(), Some(Kind::Commit { chain: false })));
        let ends = known.is_none_or(|known| known.block_end.is_some());
        let may_write = known.is_none_or(may_write);
        let settle = self.settle_mut();
        settle.commit = match settle.commit {
            Commit::None if is_commit => Commit::Last,
            Commit::None if !ends => Commit::None,
            _ => Commit::Other,
        };
        settle.has_tag = false;
        settle.is_due |= may_write;
        if ends && !is_commit {
            // What follows may be another transaction.
            settle.xact = None;
        }
    }

    /// A statement of the client's was completed.
    pub(super) fn note_tag(&mut self, backend: &Backend, owed: Owed, tag: &[u8]) {
        if let Some(rerun) = &mut self.rerun
            && let Some(settle) = &mut rerun.settle
            && settle.commit == Commit::Last
        {
            let runs = |owed: &&Owed| matches!(owed.request, Request::Query | Request::Execute);
            let left = backend.expect.iter().filter(runs);
            let left = left.filter(|owed| owed.to == For::Client).count();
            let is_last = left == usize::from(owed.request == Request::Query);
            settle.has_tag = is_last && tag == b"COMMIT\0";
            if is_last && !settle.has_tag {
                // It has failed, and the client knows.
                settle.commit = Commit::Other;
            }
        }
    }

    /// The transaction is over.
    pub(super) fn forget_for_settling(&mut self) {
        if let Some(rerun) = &mut self.rerun
            && let Some(settle) = &mut rerun.settle
        {
            settle.forget_transaction();
        }
    }

    /// Sends the first question to a backend that is this session's now: what became of a COMMIT, or which server this is,
    /// if that is not known or too old. True if there is one, whose answer is to be awaited.
    pub(super) fn ask_first(&mut self, gather: &mut Gather) -> bool {
        let may_commit = self.effective.retry.settle_commit && !self.is_on_replica();
        if !may_commit && !self.is_settling() {
            return false;
        }
        let now = self.now;
        self.forget_for_settling();
        let Some(lease) = &mut self.lease else {
            return false;
        };
        let cancels = lease.identity.cancels_begun();
        let settle = self.rerun.get_or_insert_with(stock::rerun);
        let settle = settle.settle.get_or_insert_default();
        settle.cancels = cancels;
        let is_known = |(at, _): &(Instant, _)| now.duration_since(*at) < WHICH_AGE;
        let text = match &settle.under_way {
            Some(settling) => {
                let id = settling.xact.as_ref().map_or(0, |(id, _)| *id);
                format!("{WHICH}; SELECT pg_catalog.txid_status({id})")
            }
            None if lease.incarnation.as_ref().is_some_and(is_known) => return false,
            None => WHICH.to_owned(),
        };
        let is_outcome = settle.under_way.is_some();
        settle.ask(if is_outcome {
            Question::Outcome
        } else {
            Question::Which
        });
        gather.own(|out| f::put_query(out, text.as_bytes()));
        lease.expect.push(Owed::new(Request::Query, For::Xact));
        lease.mirror.unnamed = None;
        self.entry.set_running_soon();
        true
    }

    /// Asks for the transaction's id, when all that was sent in it is answered.
    pub(super) fn ask_id(&mut self, cx: &mut Context<'_>) {
        if !self.effective.retry.settle_commit || self.is_hidden() || self.is_on_replica() {
            return;
        }
        let (Some(settle), Some(lease)) = (self.settle_ref(), &self.lease) else {
            return;
        };
        // Without it nothing could be made of the id.
        let knows_server = matches!(lease.incarnation, Some((_, Some(_))));
        if !settle.is_due
            || settle.xact.is_some()
            || !knows_server
            || lease.status != TransactionStatus::InTransaction
            || lease.identity.cancels_begun() != settle.cancels
        {
            return;
        }
        self.settle_mut().ask(Question::Id);
        let mut gather = Gather::take();
        self.run_own(ID.as_bytes(), 0, For::Xact, &mut gather);
        gather.own(|out| out.extend_from_slice(&f::SYNC_FRAME));
        self.owe(Owed::new(Request::Sync, For::Xact));
        self.entry.set_running_soon();
        self.send_to_server(cx, &mut gather, &[]);
        gather.give();
    }

    /// A row of an answer.
    pub(super) fn take_answer_row(&mut self, payload: &[u8]) {
        let row = b::columns(payload).unwrap_or_default();
        let row = row.into_iter().map(|value| value.map(<[u8]>::to_vec));
        let row = row.collect();
        self.settle_mut().rows.push(row);
    }

    /// A question failed. The end of the session, if the transaction failed with it.
    pub(super) fn take_refused_question(&mut self, error: &[u8]) -> Option<End> {
        let settle = self.settle_mut();
        settle.refused = b::sqlstate(error);
        (settle.asked == Some(Question::Id)).then(|| {
            let reason = b::error_field(error, b'M').unwrap_or_default();
            let report = Report::fatal(
                SqlState::CONNECTION_FAILURE,
                "could not ask for the id of the transaction, which is rolled back",
            )
            .detail(format!(
                "The server said: {}",
                String::from_utf8_lossy(reason)
            ));
            End::Fatal(Box::new(report))
        })
    }

    /// A question was answered to its end.
    pub(super) fn take_answer(&mut self, backend: &Backend) {
        let now = self.now;
        let settle = self.settle_mut();
        match settle.asked {
            Some(Question::Which) => settle.which = Some((now, settle.incarnation())),
            Some(Question::Id) => settle.take_id(),
            Some(Question::Outcome) | None => {}
        }
        if settle.asked.is_some() {
            return;
        }
        // Of what is behind the question nothing was sent; what the client has not sent yet it can't have meant.
        let is_cancelled = self.entry.set_running(Arc::clone(&backend.identity));
        let front = self.inbox.bytes().first();
        let is_there = front.is_some_and(|tag| {
            matches!(
                *tag,
                f::QUERY | f::PARSE | f::BIND | f::DESCRIBE | f::EXECUTE | f::CLOSE
            )
        });
        if is_cancelled && is_there {
            self.rerun_mut().refuses = Some(payload(&reply::canceled()));
        }
    }

    /// Goes on with the statement that has waited for the answer which server this is.
    pub(super) fn begin_behind_which(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let identity = self.lease.as_ref().map(|lease| Arc::clone(&lease.identity));
        if identity.is_some_and(|identity| self.entry.set_running(identity)) {
            self.part_with_backend(false);
            self.stop_waiting();
            if self.is_replaying() {
                return self.fall_back(false, cx);
            }
            self.enter(Phase::Idle);
            self.refuse(&reply::canceled(), cx)?;
            return self.process_inbox(cx);
        }
        let mut gather = Gather::take();
        self.prepare(&mut gather);
        self.send_to_server(cx, &mut gather, &[]);
        gather.give();
        self.process_inbox(cx)
    }

    /// Whether the session was waiting for the answer to the question which server this is.
    pub(super) fn takes_which(&mut self) -> bool {
        let settle = self.rerun.as_mut().and_then(|rerun| rerun.settle.as_mut());
        settle.is_some_and(|settle| settle.asked.take() == Some(Question::Which))
    }

    /// What the backend has told of its server stays with it.
    pub(super) fn keep_which(&mut self, backend: &mut Backend) {
        if let Some(rerun) = &mut self.rerun
            && let Some(settle) = &mut rerun.settle
            && let Some(which) = settle.which.take()
        {
            backend.incarnation = Some(which);
        }
    }

    /// Notes how the COMMIT under way on `backend`, whose connection is lost, can be settled. False if it can't.
    pub(super) fn prepare_settling(&mut self, backend: &Backend) -> bool {
        let Some(settling) = self.settling_on(backend) else {
            return false;
        };
        self.settle_mut().prepared = Some(Box::new(settling));
        true
    }

    fn settling_on(&self, backend: &Backend) -> Option<Settling> {
        if !self.effective.retry.settle_commit
            || self.is_hidden()
            || self.phase != Phase::Active
            || backend.status != TransactionStatus::InTransaction
            || self.verdict(Failure::Lost, backend.status) != Verdict::Settle
        {
            return None;
        }
        let settle = self.settle_ref()?;
        let has_tag = settle.has_tag;
        let then = backend.incarnation.clone().and_then(|(_, then)| then);
        let xact = settle.xact.zip(then);
        if settle.commit != Commit::Last || (xact.is_none() && !has_tag) {
            return None;
        }
        let listening = self.listening.as_ref();
        let listens = listening.is_some_and(|it| it.channels.is_pending());
        Some(Settling {
            xact,
            rest: rest_of_commit(&backend.expect, has_tag)?,
            has_tag,
            ends_session: self.keeps_backend()
                || self.settings.is_touched()
                || self.unseen.has_left_by_what_was_found()
                || listens,
            names: self.names.unsettled(),
            since: self.now,
            asked: 0,
        })
    }

    /// Whether the connection was lost amid a COMMIT that can be settled.
    pub(super) fn may_settle(&mut self) -> bool {
        if self.settle_ref().is_none() {
            return false;
        }
        if self.settle_mut().prepared.is_some() {
            return true;
        }
        let settling = self
            .lease
            .as_ref()
            .and_then(|lease| self.settling_on(lease));
        self.settle_mut().prepared = settling.map(Box::new);
        self.settle_mut().prepared.is_some()
    }

    /// The connection is lost: what was sent goes back, and the server is asked.
    pub(super) fn begin_settling(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(settling) = self.settle_mut().prepared.take() else {
            return Ok(());
        };
        if !settling.has_tag && self.effective.retry.replay && self.may_replay() {
            self.rerun_mut().original = Some(Original::Error(payload(&rolled_back())));
            self.begin_replay(true);
            self.unsend();
        } else {
            while !self.names.is_settled() {
                self.names.undo();
            }
            give_storage(self.rerun_mut().journal.rest());
        }
        self.part_with_backend(true);
        if settling.has_tag {
            return self.end_as_committed(*settling, cx);
        }
        self.settle_mut().under_way = Some(settling);
        self.ask_outcome(cx);
        Ok(())
    }

    /// Gets a connection to the server that is primary now, for the question to it.
    pub(super) fn ask_outcome(&mut self, cx: &mut Context<'_>) {
        self.refresh();
        let mut gather = Gather::take();
        self.check_out_primary(&mut gather);
        self.send_to_server(cx, &mut gather, &[]);
        gather.give();
    }

    /// The question is answered, or the connection that it was asked on is lost.
    pub(super) fn take_outcome(&mut self, is_lost: bool, cx: &mut Context<'_>) -> Result<(), End> {
        let settle = self.settle_mut();
        settle.asked = None;
        let (now, word) = (settle.incarnation(), settle.word());
        let is_in_vain = is_lost || settle.is_refused();
        let Some(settling) = &mut settle.under_way else {
            return Ok(());
        };
        let found = match (&now, &settling.xact) {
            (Some(now), Some((_, then))) if !is_in_vain => outcome(then, now, word),
            // A standby, or a server that would not answer now.
            _ => Outcome::Open,
        };
        settling.asked += 1;
        let (since, asked) = (settling.since, settling.asked);
        self.part_with_backend(is_lost);
        match found {
            Outcome::Committed => match self.settle_mut().under_way.take() {
                Some(settling) => self.end_as_committed(*settling, cx),
                None => Ok(()),
            },
            Outcome::Aborted => self.end_as_rolled_back(cx),
            Outcome::Open if self.now.duration_since(since) < self.effective.retry.deadline => {
                let retry = &self.effective.retry;
                let pause =
                    backoff::pause(asked, retry.backoff, retry.backoff_max, &mut rand::rng());
                self.rerun_mut().until = Some(self.now + pause);
                self.entry.waiter.start();
                self.enter(Phase::Waiting);
                Ok(())
            }
            Outcome::Open | Outcome::Unknown => Err(self.unsettled()),
        }
    }

    /// The end of a session whose COMMIT can't be settled.
    pub(super) fn unsettled(&self) -> End {
        End::Fatal(Box::new(self.unknown(Verdict::Settle)))
    }

    fn end_as_committed(&mut self, settling: Settling, cx: &mut Context<'_>) -> Result<(), End> {
        self.pool.retries.count_settled(true);
        self.drop_replay();
        for (name, named) in settling.names {
            self.names.change(&name, named);
            self.names.confirm();
        }
        self.note_acknowledged();
        self.count_transaction();
        let mut out = Vec::new();
        put_rest(&settling.rest, settling.has_tag, &mut out);
        self.end_settled(&out, settling.ends_session, cx)
    }

    fn end_as_rolled_back(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.pool.retries.count_settled(false);
        if self.is_replaying() && self.may_run_again(Failure::Lost) {
            self.settle_mut().under_way = None;
            self.enter(Phase::Idle);
            return self.process_inbox(cx);
        }
        let Some(settling) = self.settle_mut().under_way.take() else {
            return Ok(());
        };
        self.drop_replay();
        let mut out = Vec::new();
        b::put_report(&mut out, &rolled_back());
        b::put_ready_for_query(&mut out, TransactionStatus::Idle);
        self.end_settled(&out, settling.ends_session, cx)
    }

    /// Gives the client its answer, and goes on with what it has sent behind it.
    fn end_settled(
        &mut self,
        answer: &[u8],
        ends_session: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        self.outbox.push(answer);
        self.forget_for_settling();
        self.rest_rerun();
        self.forget_runs();
        self.metering.rests();
        self.note_rest();
        self.enter(Phase::Idle);
        if ends_session {
            let report = Report::fatal(
                SqlState::CONNECTION_FAILURE,
                "server closed the connection unexpectedly",
            )
            .detail("What the session had left on its connection is lost.");
            return Err(End::Fatal(Box::new(report)));
        }
        let _ = self.outbox.poll_send(&mut self.stream, cx);
        self.process_inbox(cx)
    }
}

/// `report` as the server would send it, without the head of the message.
fn payload(report: &Report) -> Vec<u8> {
    let mut payload = Vec::new();
    b::put_report(&mut payload, report);
    payload.drain(..HEADER);
    payload
}
