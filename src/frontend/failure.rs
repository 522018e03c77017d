//! What a failure of the request under way means: whether it runs again (see `rerun`), or what the client is told.
//!
//! [`policy`] decides by failure, place, what was seen, and the statement; here the session's facts are put to it, and the
//! bounds on runs are kept.

use std::sync::atomic::Ordering;
use std::task::Context;

use super::checkout::QUESTION;
use super::leaving::LEAVING;
use super::replay::Original;
use super::rerun::FirstWrite;
use super::session::{End, Phase, Session};
use super::stock;
use crate::backend::connection::Backend;
use crate::backend::receive::ReceiveError;
use crate::config::model::PoolMode;
use crate::error::{Report, SqlState};
use crate::retry::policy::{self, Doubt, Failure, Place, Seen, Verdict};
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::Copy;

/// Runs of a request whose session the server terminated.
///
/// # Why not one
/// A server that shuts down ends its sessions one after the other: the connection that the request gets next may be about
/// to be ended as well. What an operator ends this often stays ended. Where another server may take over, its connections
/// end one after the other before that one is known: there only `retry.attempts` counts.
const TERMINATED_MAX: u32 = 3;

/// What to do where nobody knows what became of a statement.
const LOOK: &str = "Look in the database whether it took effect before you run it again.";

/// Nobody knows what became of a statement.
fn unknown_outcome() -> Report {
    Report::fatal(
        SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
        "server closed the connection unexpectedly; the outcome of the statement is unknown",
    )
    .detail("It was sent, and the connection to the server was lost before it was answered.")
    .hint(LOOK)
}

impl Session {
    /// The session keeps its backend, so that what is lost with it can't be had on another one.
    pub(super) fn keeps_backend(&self) -> bool {
        !self.pins.is_empty() || self.effective.pool.pool_mode == PoolMode::Session
    }

    fn is_nothing_kept(&self) -> bool {
        let rerun = self.rerun.as_ref();
        rerun.is_none_or(|rerun| rerun.journal.is_kept() && rerun.journal.is_empty())
    }

    /// What is to be done about a failure of what is under way on a backend in this state.
    pub(super) fn verdict(&self, failure: Failure, status: TransactionStatus) -> Verdict {
        let Some(rerun) = &self.rerun else {
            return Verdict::Fail;
        };
        let journal = &rerun.journal;
        let place = match status {
            TransactionStatus::Idle => Place::Outside,
            _ if journal.may_have_committed() => Place::Ending,
            _ => Place::Inside,
        };
        let is_cut = self.torn || self.is_amid_message();
        // Of a transaction that had not begun: nobody would compare what was seen.
        let is_seen = place == Place::Outside && journal.seen() > 0 && !self.is_replaying();
        let is_done = failure == Failure::Terminated && journal.has_completed();
        let seen = if is_cut {
            Seen::Cut
        } else if !journal.is_kept() || is_done || is_seen {
            Seen::Part
        } else {
            Seen::Nothing
        };
        // An exchange that commits by itself in its midst is more than one transaction.
        let doubt = if place == Place::Outside && journal.may_have_committed() {
            Doubt::Unrepeatable
        } else {
            journal.doubt()
        };
        policy::verdict(failure, place, seen, doubt)
    }

    /// Whether another run may begin, by the bounds on this request and on the pool; if so it counts.
    pub(super) fn may_run_again(&mut self, failure: Failure) -> bool {
        let (now, retry) = (self.now, &self.effective.retry);
        let terminated_max = if self.routes.is_some() {
            u32::MAX
        } else {
            TERMINATED_MAX
        };
        let rerun = self.rerun.get_or_insert_with(stock::rerun);
        let since = *rerun.since.get_or_insert(now);
        // A transaction is bounded by `attempts` alone: it gets further with each run.
        let was_seen = rerun.journal.seen() > 0;
        let is_terminated = failure == Failure::Terminated && !was_seen;
        // One that did nothing may have been ended for the locks it held.
        let was_idle = failure == Failure::Terminated
            && was_seen
            && rerun.replay.is_none()
            && rerun.journal.answered() == rerun.journal.bytes().len();
        if !rerun.journal.is_kept()
            || rerun.runs >= retry.attempts
            || (is_terminated && rerun.terminated >= terminated_max)
            || (was_idle && rerun.terminated > 0)
            || now.duration_since(since) > retry.deadline
        {
            return false;
        }
        let counters = &self.pool.counters;
        let transactions = counters.transactions.load(Ordering::Relaxed);
        if !self.pool.retries.may_run(retry, transactions, now) {
            return false;
        }
        rerun.runs += 1;
        rerun.terminated += u32::from(is_terminated || was_idle);
        self.pool.retries.count_again(failure);
        true
    }

    /// Whether a read whose lane was lost may run the ordinary way.
    pub(super) fn runs_after_ride(&mut self) -> bool {
        self.rest_rerun();
        self.effective.retry.statements && self.may_run_again(Failure::Lost)
    }

    /// Whether a failure with this verdict is undone by another run of the request, or of its transaction.
    fn may_undo(&mut self, failure: Failure, verdict: Verdict) -> bool {
        let retry = &self.effective.retry;
        // Until it is where it was it has not been asked to commit.
        let may = if self.is_replaying() {
            true
        } else {
            match verdict {
                Verdict::Again => retry.statements,
                Verdict::Replay => retry.replay && self.may_replay(),
                Verdict::Settle | Verdict::Unknown | Verdict::Fail => false,
            }
        };
        may && self.may_run_again(failure)
    }

    pub(super) fn may_replay(&self) -> bool {
        let journal = self.rerun.as_ref().map(|rerun| &rerun.journal);
        let is_kept = journal.is_some_and(|journal| {
            // Of a statement prepared just now it would have to be known whether the client has it.
            let is_partial = journal.may_have_committed() || journal.prepares_now();
            let is_fixed = journal.has_seen_part() && is_partial;
            let is_repeatable = journal.doubt() != Doubt::Unrepeatable;
            journal.is_kept() && journal.answered() > 0 && is_repeatable && !is_fixed
        });
        is_kept && !self.keeps_backend() && !self.is_on_replica()
    }

    /// Takes in an error of the server for what is under way. True if the client does not get it, because the request
    /// runs again.
    pub(super) fn absorbs(
        &mut self,
        code: SqlState,
        is_fatal: bool,
        backend: &Backend,
        payload: &[u8],
    ) -> bool {
        if self.will_rerun() {
            return !(is_fatal && self.keeps_backend());
        }
        let failure = match code {
            SqlState::SERIALIZATION_FAILURE if !is_fatal => Failure::Serialization,
            SqlState::DEADLOCK_DETECTED if !is_fatal => Failure::Deadlock,
            SqlState::ADMIN_SHUTDOWN if is_fatal => Failure::Terminated,
            _ => return false,
        };
        let verdict = self.verdict(failure, backend.status);
        if !self.may_absorb(failure, verdict, backend) || !self.may_undo(failure, verdict) {
            return false;
        }
        let rerun = self.rerun_mut();
        rerun.failed = Some(failure);
        if verdict == Verdict::Replay {
            rerun.original = Some(if is_fatal {
                Original::Fatal(payload.to_vec())
            } else {
                Original::Error(payload.to_vec())
            });
        }
        self.metering.abandon();
        true
    }

    /// Takes in the end of a backend's session that comes unasked, right behind the last answer: the client is not told,
    /// because nothing of its session is lost with it. False if something is.
    pub(super) fn outlives(&self, backend: &Backend) -> bool {
        if !self.is_done_with(backend) {
            return false;
        }
        if let Some(routes) = &self.routes {
            routes.cluster.suspect(&backend.identity.node);
        }
        backend.identity.lose();
        true
    }

    /// Whether nothing of the session is lost with `backend`: it owes no more than to forget what it listens on, and to say
    /// what is left where nothing is thought to be.
    fn is_done_with(&self, backend: &Backend) -> bool {
        let expect = &backend.expect;
        let is_guess = self.unseen.is_guess();
        let is_no_loss = |it: u64| it == LEAVING || (it == QUESTION && is_guess);
        let is_done = expect.copy() == Copy::None
            && !expect.is_open()
            && expect.iter().all(|owed| is_no_loss(owed.statement))
            && backend.status == TransactionStatus::Idle
            && backend.unsent_of_frame == 0;
        is_done
            && self.phase == Phase::Active
            && !self.is_hidden()
            && !self.keeps_backend()
            && (is_guess || !self.settings.is_touched())
    }

    /// Whether the session is where the request can be run again at all.
    fn may_absorb(&self, failure: Failure, verdict: Verdict, backend: &Backend) -> bool {
        let loses_backend = failure == Failure::Terminated;
        let is_planning = self.phase == Phase::Planning;
        // A client that cancels its statement is to see it end.
        if self.timed_out || backend.identity.is_being_cancelled() || self.is_to_fail() {
            return false;
        }
        // A transaction taken here from a replica, or a session that would lose its state.
        if (is_planning && self.in_transaction)
            || self.is_on_replica()
            || (self.keeps_backend() && (loses_backend || self.in_transaction))
        {
            return false;
        }
        if loses_backend {
            // A session that is told to end while it does nothing has nothing to run again.
            return is_planning || !self.is_nothing_kept();
        }
        let Some(journal) = self.rerun.as_ref().map(|rerun| &rerun.journal) else {
            return false;
        };
        // What stands behind this exchange is executed already. In a failed transaction that is nothing, but for what
        // follows a ROLLBACK TO: no COMMIT must be among it.
        let is_inside = verdict == Verdict::Replay || self.is_replaying();
        let may_be_more = is_inside && journal.is_whole() && !journal.may_have_committed();
        !is_planning && (journal.awaits_one() || may_be_more)
    }

    /// Whether the server, which ends the session in place of the answer to a COMMIT, may have committed.
    pub(super) fn doubts_commit(&self, code: SqlState, backend: &Backend) -> Option<Report> {
        if code != SqlState::ADMIN_SHUTDOWN || self.is_replaying() {
            return None;
        }
        let verdict = self.verdict(Failure::Terminated, backend.status);
        matches!(verdict, Verdict::Settle | Verdict::Unknown).then(|| self.unknown(verdict))
    }

    pub(super) fn unknown(&self, verdict: Verdict) -> Report {
        let retries = &self.pool.retries;
        retries.unknown.fetch_add(1, Ordering::Relaxed);
        if verdict == Verdict::Settle && self.effective.retry.settle_commit {
            retries.unsettled.fetch_add(1, Ordering::Relaxed);
        }
        unknown_outcome()
    }

    /// The verdict on what is under way, if nobody would know what became of it were the session to end now.
    fn doubt(&self) -> Option<Verdict> {
        if self.is_settling() {
            return Some(Verdict::Settle);
        }
        let lease = self.lease.as_ref()?;
        if self.phase != Phase::Active || self.is_hidden() || lease.expect.awaits_more() {
            return None;
        }
        let verdict = self.verdict(Failure::Lost, lease.status);
        matches!(verdict, Verdict::Settle | Verdict::Unknown).then_some(verdict)
    }

    /// What the client is told by `report`, the end of its session, where that is amid a write.
    ///
    /// # Why
    /// The codes of limits and of an operator's orders say of a statement that the server has undone it. It may have done
    /// it before it heard of them.
    pub(super) fn with_outcome(&self, report: Report) -> Report {
        // What is said of the connection says nothing of the statement, or says it already.
        if report.code.0.starts_with(b"08") {
            return report;
        }
        let Some(verdict) = self.doubt() else {
            return report;
        };
        let message = format!(
            "{}; the outcome of the statement is unknown",
            report.message
        );
        let hint = report
            .hint
            .map_or(LOOK.into(), |hint| format!("{hint} {LOOK}"));
        Report {
            message: message.into(),
            detail: Some("It was sent, and was not answered by then.".into()),
            hint: Some(hint.into()),
            ..self.unknown(verdict)
        }
    }

    /// The backend is lost: whether the request under way runs again, or else how the session ends.
    pub(super) fn judge_loss(&mut self) -> Result<Failure, Option<Report>> {
        if let Some(failure) = self.rerun.as_ref().and_then(|rerun| rerun.failed) {
            // A session that keeps its connection has lost with it what it keeps it for.
            return if self.keeps_backend() {
                Err(None)
            } else {
                Ok(failure)
            };
        }
        let Some(lease) = &self.lease else {
            return Err(None);
        };
        // A client that cancels its statement is to see it end.
        let is_cancelled = self.timed_out || lease.identity.is_being_cancelled();
        let status = lease.status;
        let has_begun = self.phase == Phase::Planning && self.in_transaction;
        let was_refused = self
            .rerun
            .as_ref()
            .is_some_and(|rerun| rerun.first_write == FirstWrite::Refused);
        let failure = if was_refused || self.phase == Phase::Planning {
            Failure::Stale
        } else {
            Failure::Lost
        };
        let verdict = self.verdict(failure, status);
        let is_planning = self.phase == Phase::Planning;
        let is_idle = !is_planning && self.is_nothing_kept();
        let may_move = !is_idle && !has_begun && !self.keeps_backend() && !self.is_to_fail();
        if may_move && !is_cancelled && self.may_undo(failure, verdict) {
            if verdict == Verdict::Replay {
                self.rerun_mut().original = Some(Original::Lost);
            }
            return Ok(failure);
        }
        match verdict {
            Verdict::Unknown | Verdict::Settle if !self.is_replaying() => {
                Err(Some(self.unknown(verdict)))
            }
            _ => Err(None),
        }
    }

    /// The backend can't be used any more: what the client has seen nothing of is run elsewhere.
    pub(super) fn lose_server(
        &mut self,
        error: &ReceiveError,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        if let (Some(routes), Some(lease)) = (&self.routes, &self.lease) {
            routes.cluster.suspect(&lease.identity.node);
        }
        if self.is_on_trial() {
            return self.run_elsewhere(cx);
        }
        if self.is_settling() {
            return self.take_outcome(true, cx);
        }
        if self.may_settle() {
            return self.begin_settling(cx);
        }
        // Behind what breaks the protocol there may be an answer that the client was not sent.
        let is_end = matches!(
            error,
            ReceiveError::Closed | ReceiveError::Io(_) | ReceiveError::Lost
        );
        if is_end && let Some(lease) = self.lease.as_ref().filter(|it| self.is_done_with(it)) {
            lease.identity.lose();
            return self.release_lost(cx);
        }
        match self.judge_loss() {
            Ok(failure) => self.run_again(failure, true, cx),
            Err(_) if self.is_replaying() => self.fall_back(true, cx),
            Err(report) => Err(self.server_gone(error, report)),
        }
    }

    /// `report` says more than `error`.
    fn server_gone(&mut self, error: &ReceiveError, report: Option<Report>) -> End {
        self.drop_backend();
        self.since = self.now;
        let lost = || {
            let lost = Report::fatal(SqlState::CONNECTION_FAILURE, error.to_string());
            // Whatever may have been committed has a report of its own.
            if self.in_transaction {
                lost.hint("The transaction is rolled back. Connect and run it again.")
            } else {
                lost
            }
        };
        End::Fatal(Box::new(report.unwrap_or_else(lost)))
    }

    /// Whether a notice is the server's warning that it ends at once. The end of the connection says the same, and of a
    /// request that runs again the client hears nothing.
    pub(super) fn hears_last_words(&self, notice: &[u8]) -> bool {
        let is_end = matches!(
            b::sqlstate(notice),
            Some(SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN)
        );
        self.will_rerun() || (is_end && self.kept().is_some_and(|kept| !kept.is_empty()))
    }

    /// The request under way was told by the server that the session ends.
    pub(super) fn was_terminated(&self) -> bool {
        let failed = self.rerun.as_ref().and_then(|rerun| rerun.failed);
        failed == Some(Failure::Terminated)
    }
}
