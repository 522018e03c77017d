//! Running again what failed for reasons that are not the client's.
//!
//! What is sent outside a transaction is kept until the first byte of its answer goes to the client. If it fails before,
//! and the table says so (see `failure`), the client is not told: its bytes go back to the front of the inbox, and after a pause they
//! take the ordinary way again. Reads on replicas are kept the same way (see `trial`).
//!
//! # Invariants
//! - Nothing is run again of which the client has seen an answer, nor anything the server may have committed.
//! - What was sent behind the failed exchange was not executed, or is run again with it.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::inbound::Frame;
use super::overrun::Overrun;
use super::questions::Settle;
use super::replay::{Original, Replay};
use super::session::{End, Phase, Session};
use super::stock;

use crate::net::buffer::{Gather, Held, Mark, give_storage, take_storage};
use crate::pool::Lease;
use crate::pool::reset::{self, Residue};
use crate::retry::backoff;
use crate::retry::journal::{BlockEnd, Bounds, Journal};
use crate::retry::policy::{Doubt, Failure};
use crate::sql::known::Known;
use crate::wire::backend::TransactionStatus;
use crate::wire::frontend as f;

/// The longest request outside a transaction that is kept, in bytes.
pub(super) const KEPT_MAX: usize = 64 * 1024;

/// What became of the first write to a backend since the session was last at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum FirstWrite {
    #[default]
    None,
    Done,
    /// The connection was broken, and nothing was taken.
    Refused,
}

/// Where in what was gathered from one read the answers to the client begin, and where those to exchanges end.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub start: Mark,
    /// The last end, or the start.
    last: Mark,
    /// The ends before it, if they are of use.
    earlier: Vec<Mark>,
}

impl Marks {
    /// The answers begin here.
    pub(super) fn begin(&mut self, mark: Mark) {
        self.start = mark;
        self.last = self.start.clone();
    }

    /// An exchange ends here; where one ended before it is kept if `keeps_all`.
    pub(super) fn end(&mut self, mark: Mark, keeps_all: bool) {
        let before = std::mem::replace(&mut self.last, mark);
        if keeps_all && before != self.start {
            self.earlier.push(before);
        }
    }

    pub(super) fn ends(&self) -> impl Iterator<Item = &Mark> {
        let last = Some(&self.last).filter(|last| **last != self.start);
        self.earlier.iter().chain(last)
    }
}

/// What a session keeps for running its requests again. Boxed: a session that has sent nothing has none.
#[derive(Debug, Default)]
pub(super) struct Rerun {
    pub journal: Journal,
    /// How the request under way has failed; the client is not told.
    pub failed: Option<Failure>,
    /// Runs after the first, and how many of them were for a termination.
    pub runs: u32,
    pub terminated: u32,
    /// When the request failed first.
    pub since: Option<Instant>,
    /// Until when the request in front of the inbox pauses.
    pub until: Option<Instant>,
    /// Since when the request in front waits for a connection, if it has waited in another queue before.
    pub queued_since: Option<Instant>,
    /// Until when the time in queues has been counted.
    pub queue_counted: Option<Instant>,
    pub first_write: FirstWrite,
    /// What is known of the transaction, to find out whether it has committed; only with `retry.settle_commit`.
    pub settle: Option<Box<Settle>>,
    /// In the same box: rare, and of use once something was sent.
    pub overrun: Overrun,
    /// It is the transaction that runs again, which had failed with this.
    pub original: Option<Original>,
    pub replay: Option<Box<Replay>>,
    /// The error that the statement in front is to fail with.
    pub refuses: Option<Vec<u8>>,
    /// It is to fail outside a transaction.
    pub refuses_outside: bool,
}

impl Session {
    pub(super) fn rerun_mut(&mut self) -> &mut Rerun {
        self.rerun.get_or_insert_with(stock::rerun)
    }

    /// A statement is being sent; `None` is one that nothing is known of.
    pub(super) fn note_doubt(&mut self, known: Option<&Known>) {
        let unread = (Doubt::Unrepeatable, Some(BlockEnd::Commit));
        let (doubt, end) = known.map_or(unread, |known| (known.doubt, known.block_end));
        self.rerun_mut().journal.note(doubt, end);
        self.note_for_settling(known);
        if known.is_some_and(|known| self.is_never_again(known)) {
            self.give_up_rerun();
        }
    }

    /// A portal is executed, which may have been bound in an exchange before this one.
    pub(super) fn note_portal_end(&mut self, portal: &[u8]) {
        let journal = self.rerun.as_ref().map(|rerun| &rerun.journal);
        let may_have = journal.is_some_and(Journal::may_have_committed);
        let has_ended = journal.is_some_and(Journal::has_ended);
        match self.metering.portal_end(portal) {
            Ok(None) => {}
            // As a rule it was noted by its Bind.
            Ok(Some(BlockEnd::Commit)) | Err(()) if may_have => {}
            Ok(Some(BlockEnd::Rollback)) if has_ended => {}
            Ok(Some(end)) => {
                self.rerun_mut().journal.note(Doubt::Write, Some(end));
                self.note_for_settling(None);
            }
            Err(()) => self.note_doubt(None),
        }
    }

    /// Keeps a frame that was sent.
    pub(super) fn keep(&mut self, frame: Frame<'_>, bytes: &[u8]) {
        let retry = &self.effective.retry;
        let bounds = if self.in_transaction && retry.replay {
            Bounds {
                bytes: retry.journal_size,
                exchanges: retry.journal_statements,
            }
        } else {
            Bounds {
                bytes: KEPT_MAX,
                exchanges: usize::MAX,
            }
        };
        let rerun = self.rerun.get_or_insert_with(stock::rerun);
        let is_data = matches!(frame.tag, f::COPY_DATA | f::COPY_DONE | f::COPY_FAIL);
        let given_up = if frame.missing > 0 || is_data {
            Some(rerun.journal.give_up())
        } else {
            let ends = matches!(frame.tag, f::SYNC | f::QUERY | f::FUNCTION_CALL);
            rerun.journal.keep(bytes, ends, bounds, take_storage)
        };
        if let Some(storage) = given_up {
            give_storage(storage);
        }
    }

    /// Nothing that is under way can be run again.
    pub(super) fn give_up_rerun(&mut self) {
        // A journal of a transaction that runs again is only compared, until it is where it was.
        if let Some(replay) = self.replay_mut() {
            replay.gives_up = true;
            return;
        }
        let has_failed = self.will_rerun() || self.failed_trial().is_some();
        if let Some(rerun) = &mut self.rerun
            && rerun.journal.is_kept()
            && !has_failed
        {
            give_storage(rerun.journal.give_up());
        }
    }

    /// The client is told something of the answer.
    pub(super) fn note_seen(&mut self) {
        self.give_up_rerun();
        self.forget_runs();
    }

    /// The request in front has come to its end.
    pub(super) fn forget_runs(&mut self) {
        if let Some(rerun) = &mut self.rerun {
            (rerun.runs, rerun.terminated, rerun.since) = (0, 0, None);
        }
    }

    /// The client hears of a setting that the statement under way has changed, which is not taken back.
    pub(super) fn note_setting_told(&mut self) {
        if !self.is_on_replica() {
            self.give_up_rerun();
        }
    }

    /// A statement of the exchange in front was completed.
    pub(super) fn note_completed(&mut self) {
        if let Some(rerun) = &mut self.rerun {
            rerun.journal.note_completed();
        }
    }

    /// The unnamed statement is made or destroyed.
    pub(super) fn note_unnamed_replaced(&mut self) {
        if let Some(storage) = self.rerun_mut().journal.replace_unnamed() {
            give_storage(storage);
        }
    }

    pub(super) fn note_unnamed_used(&mut self) {
        self.rerun_mut().journal.use_unnamed();
    }

    /// A Parse under this name was sent, and is about to be noted.
    pub(super) fn note_parsed(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.note_unnamed_replaced();
        } else if self.names.get(name).is_none() {
            self.rerun_mut().journal.note_name(name);
        }
    }

    /// Nothing is under way, and no transaction is open.
    pub(super) fn rest_rerun(&mut self) {
        if let Some(rerun) = &mut self.rerun {
            give_storage(rerun.journal.rest());
            rerun.first_write = FirstWrite::None;
        }
    }

    /// What comes is written first.
    pub(super) fn forget_written(&mut self) {
        self.rerun_mut().first_write = FirstWrite::None;
    }

    /// Nothing is under way in an open transaction.
    pub(super) fn rest_rerun_inside(&mut self) {
        let status = TransactionStatus::InTransaction;
        let has_ended = |journal: &Journal| journal.has_ended();
        if self.records(status)
            && !self
                .rerun
                .as_ref()
                .is_some_and(|rerun| has_ended(&rerun.journal))
        {
            return;
        }
        if let Some(rerun) = &mut self.rerun {
            if rerun.journal.has_ended() {
                // Another one has begun behind it.
                give_storage(rerun.journal.rest());
            }
            give_storage(rerun.journal.give_up());
        }
    }

    /// What was sent, if all of it can be sent again.
    pub(super) fn kept(&self) -> Option<&[u8]> {
        let journal = &self.rerun.as_ref()?.journal;
        journal.is_kept().then(|| journal.bytes())
    }

    /// Bytes were written to the backend, or its connection turned out to be broken.
    pub(super) fn note_written(&mut self, was_taken: bool) {
        let first_write = &mut self.rerun_mut().first_write;
        if *first_write == FirstWrite::None {
            *first_write = if was_taken {
                FirstWrite::Done
            } else {
                FirstWrite::Refused
            };
        }
    }

    /// Whether the request under way has failed and will run again.
    pub(super) fn will_rerun(&self) -> bool {
        self.rerun
            .as_ref()
            .is_some_and(|rerun| rerun.failed.is_some())
    }

    /// Whether the client does not get to see what is answered now.
    pub(super) fn is_hidden(&self) -> bool {
        self.will_rerun() || self.is_replaying()
    }

    /// Whether what the server says is the end of an exchange that is not the client's to see: it runs elsewhere, or what
    /// ran before did not end there.
    pub(super) fn is_run_elsewhere(&self, status: TransactionStatus) -> bool {
        self.will_rerun()
            || self.failed_trial().is_some()
            || (self.is_replaying() && status == TransactionStatus::Idle)
    }

    /// Until when the request in front pauses.
    pub(super) fn pauses_until(&self) -> Option<Instant> {
        self.rerun.as_ref()?.until
    }

    /// The pause is over, or has been ended.
    pub(super) fn end_pause(&mut self) {
        let was_paused = self
            .rerun
            .as_mut()
            .is_some_and(|rerun| rerun.until.take().is_some());
        if was_paused {
            self.entry.waiter.withdraw();
            self.enter(if self.lease.is_some() {
                Phase::Active
            } else {
                Phase::Idle
            });
        }
    }

    /// Keeps from the client what was gathered of an answer that failed; notes what it gets to see of the others.
    pub(super) fn sift(
        &mut self,
        gather: &mut Gather,
        marks: &Marks,
        status: TransactionStatus,
        input: &[u8],
    ) {
        let will_rerun = self.will_rerun();
        if will_rerun {
            gather.truncate(marks.last.clone());
        }
        if gather.mark() == marks.start {
            return;
        }
        if self.is_replaying() {
            self.compare_seen(gather, marks, input);
            return;
        }
        if !self.records(status) {
            self.note_seen();
            return;
        }
        if let Some(rerun) = &mut self.rerun {
            let mut from = &marks.start;
            for end in marks.ends() {
                gather.each_between(from, end, input, |bytes| rerun.journal.record(bytes));
                rerun.journal.end_seen();
                from = end;
            }
            gather.each_since(from, input, |bytes| rerun.journal.record(bytes));
        }
        if !will_rerun {
            self.forget_runs();
        }
    }

    /// An exchange was answered to its end.
    pub(super) fn note_answered(&mut self, status: TransactionStatus) {
        if !self.records(status) || status == TransactionStatus::Idle {
            self.give_up_rerun();
        } else if let Some(rerun) = &mut self.rerun {
            rerun.journal.answer_front();
        }
    }

    /// The backend of a request that failed is at rest.
    pub(super) fn rerun_at_rest(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let failed = self.rerun.as_ref().and_then(|rerun| rerun.failed);
        failed.map_or(Ok(()), |failure| self.run_again(failure, false, cx))
    }

    /// Runs the request under way again: its backend is given back, or closed if it `is_lost`.
    pub(super) fn run_again(
        &mut self,
        failure: Failure,
        is_lost: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        tracing::debug!(failure = failure.as_str(), "a request runs again");
        let is_transaction = |rerun: &Rerun| rerun.original.is_some() || rerun.replay.is_some();
        if self.rerun.as_deref().is_some_and(is_transaction) {
            let is_idle = |lease: &Lease| lease.status == TransactionStatus::Idle;
            self.begin_replay(!is_lost && self.lease.as_ref().is_some_and(is_idle));
        }
        self.unsend();
        if is_lost || !self.keeps_backend() {
            self.part_with_backend(is_lost);
        } else {
            self.forget_under_way();
        }
        if let Some(routes) = &mut self.routes {
            routes.in_exchange = false;
            routes.opened = None;
        }
        let pause = {
            let retry = &self.effective.retry;
            let runs = self.rerun.as_ref().map_or(1, |rerun| rerun.runs);
            backoff::pause(runs, retry.backoff, retry.backoff_max, &mut rand::rng())
        };
        if pause == Duration::ZERO {
            self.enter(if self.lease.is_some() {
                Phase::Active
            } else {
                Phase::Idle
            });
            return self.process_inbox(cx);
        }
        let until = self.now + pause;
        self.rerun_mut().until = Some(until);
        // It stands in no queue; a cancel request finds it all the same.
        self.entry.waiter.start();
        self.enter(Phase::Waiting);
        Ok(())
    }

    /// Puts what was sent back in front of what is still to be sent.
    pub(super) fn unsend(&mut self) {
        while !self.names.is_settled() {
            self.names.undo();
        }
        let Some(rerun) = &mut self.rerun else {
            return;
        };
        rerun.failed = None;
        rerun.first_write = FirstWrite::None;
        for (_, name) in rerun.journal.names() {
            self.names.change(name, None);
            self.names.confirm();
        }
        let bytes = rerun.journal.rest();
        if bytes.is_empty() {
            return;
        }
        let mut inbox = Held::default();
        inbox.push(&bytes);
        inbox.push(self.inbox.bytes());
        give_storage(bytes);
        self.inbox = inbox;
        self.metering.runs_again();
    }

    /// Gives the backend back, or closes it if it `is_lost`, and forgets what was under way on it.
    pub(super) fn part_with_backend(&mut self, is_lost: bool) {
        self.entry.clear_running();
        let listens = self.take_back_listening();
        self.part_with_channels();
        let lease = self.lease.take();
        let leaves_own = lease.as_ref().is_some_and(|lease| self.has_own_on(lease));
        let leaves = self.take_unseen() || leaves_own;
        self.forget_under_way();
        let Some(lease) = lease.filter(|lease| !is_lost && !lease.identity.is_lost()) else {
            return;
        };
        let residue = match self.pin_residue() {
            Residue::None if self.settings.is_touched() || listens || leaves => {
                Residue::SessionState
            }
            residue => residue,
        };
        let dialer = self.shared.pools.dialer.load();
        let limit = self.effective.timeouts.cancel_wait_timeout;
        reset::give_back(lease, residue, &dialer, limit);
    }

    fn forget_under_way(&mut self) {
        self.take_back_listening();
        self.metering.abandon();
        self.refusals = None;
        self.prepared = super::sql_prepare::Underway::default();
        self.probe = None;
        self.bound = None;
        self.held_up = false;
        self.in_transaction = false;
        self.copies_in = false;
        self.deallocates = false;
        self.discards = false;
        self.timed_out = false;
    }
}
