//! What a failure of the request under way means: whether it runs again (see `rerun`), or what the client is told.
//!
//! [`policy`] decides by failure, place, what was seen, and the statement; here the session's facts are put to it, and the
//! bounds on runs are kept.

use std::sync::atomic::Ordering;

use super::rerun::FirstWrite;
use super::session::{Phase, Session};
use crate::backend::connection::Backend;
use crate::config::model::PoolMode;
use crate::error::{Report, SqlState};
use crate::retry::policy::{self, Doubt, Failure, Place, Seen, Verdict};
use crate::wire::backend::{self as b, TransactionStatus};

/// Runs of a request whose session the server terminated.
///
/// # Why not one
/// A server that shuts down ends its sessions one after the other: the connection that the request gets next may be about
/// to be ended as well. What an operator ends this often stays ended. Where another server may take over, its connections
/// end one after the other before that one is known: there only `retry.attempts` counts.
const TERMINATED_MAX: u32 = 3;

/// Nobody knows what became of a statement.
fn unknown_outcome() -> Report {
    Report::fatal(
        SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
        "server closed the connection unexpectedly; the outcome of the statement is unknown",
    )
    .detail("It was sent, and the connection to the server was lost before it was answered.")
    .hint("Look in the database whether it took effect before you run it again.")
}

impl Session {
    /// The session keeps its backend, so that what is lost with it can't be had on another one.
    pub(super) fn keeps_backend(&self) -> bool {
        let keeps = !self.pins.is_empty() && !self.is_on_probation();
        keeps || self.effective.pool.pool_mode == PoolMode::Session
    }

    fn is_nothing_kept(&self) -> bool {
        let rerun = self.rerun.as_ref();
        rerun.is_none_or(|rerun| rerun.journal.is_kept() && rerun.journal.is_empty())
    }

    /// What is to be done about a failure of what is under way on a backend in this state.
    fn verdict(&self, failure: Failure, status: TransactionStatus) -> Verdict {
        let Some(rerun) = &self.rerun else {
            return Verdict::Fail;
        };
        let journal = &rerun.journal;
        let place = match status {
            TransactionStatus::Idle => Place::Outside,
            _ if journal.may_have_committed() => Place::Ending,
            _ => Place::Inside,
        };
        let is_cut = self.torn
            || self
                .lease
                .as_ref()
                .is_some_and(|lease| lease.passing.remaining > 0 && lease.passing.to_client);
        let seen = if is_cut {
            Seen::Cut
        } else if !journal.is_kept() || (failure == Failure::Terminated && journal.has_completed())
        {
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
    fn may_run_again(&mut self, failure: Failure) -> bool {
        let (now, retry) = (self.now, &self.effective.retry);
        let terminated_max = if self.routes.is_some() {
            u32::MAX
        } else {
            TERMINATED_MAX
        };
        let rerun = self.rerun.get_or_insert_default();
        let since = *rerun.since.get_or_insert(now);
        let is_terminated = failure == Failure::Terminated;
        if !retry.statements
            || !rerun.journal.is_kept()
            || rerun.runs >= retry.attempts
            || (is_terminated && rerun.terminated >= terminated_max)
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
        rerun.terminated += u32::from(is_terminated);
        self.pool.retries.count_again(failure);
        true
    }

    /// Whether a read whose lane was lost may run the ordinary way.
    pub(super) fn runs_after_ride(&mut self) -> bool {
        self.rest_rerun();
        self.rerun_mut();
        self.may_run_again(Failure::Lost)
    }

    /// Takes in an error of the server for what is under way. True if the client does not get it, because the request
    /// runs again.
    pub(super) fn absorbs(&mut self, code: SqlState, is_fatal: bool, backend: &Backend) -> bool {
        if self.will_rerun() {
            return true;
        }
        let failure = match code {
            SqlState::SERIALIZATION_FAILURE if !is_fatal => Failure::Serialization,
            SqlState::DEADLOCK_DETECTED if !is_fatal => Failure::Deadlock,
            SqlState::ADMIN_SHUTDOWN if is_fatal => Failure::Terminated,
            _ => return false,
        };
        let loses_backend = is_fatal;
        // A client that cancels its statement is to see it end.
        if self.timed_out || backend.identity.is_being_cancelled() {
            return false;
        }
        let has_begun = self.phase == Phase::Planning && self.in_transaction;
        if has_begun || self.is_on_replica() || (loses_backend && self.keeps_backend()) {
            return false;
        }
        let is_one = self
            .rerun
            .as_ref()
            .is_some_and(|rerun| rerun.journal.is_one_exchange());
        // Of several exchanges those behind this one are executed already, unless the server is gone.
        if !loses_backend && (!is_one || self.phase == Phase::Planning) {
            return false;
        }
        // A session that is told to end while it does nothing.
        if loses_backend && self.phase != Phase::Planning && self.is_nothing_kept() {
            return false;
        }
        if self.verdict(failure, backend.status) != Verdict::Again || !self.may_run_again(failure) {
            return false;
        }
        self.rerun_mut().failed = Some(failure);
        self.metering.abandon();
        true
    }

    /// Takes in the end of a backend's session that comes unasked, right behind the last answer: the client is not told,
    /// because nothing of its session is lost with it. False if something is.
    pub(super) fn outlives(&self, backend: &Backend) -> bool {
        let is_done = backend.expect.is_at_rest() && backend.status == TransactionStatus::Idle;
        if !is_done
            || self.phase != Phase::Active
            || self.keeps_backend()
            || self.settings.is_touched()
        {
            return false;
        }
        if let Some(routes) = &self.routes {
            routes.cluster.suspect(&backend.identity.node);
        }
        backend.identity.lose();
        true
    }

    /// The backend is lost: whether the request under way runs again, or else how the session ends.
    pub(super) fn judge_loss(&mut self) -> Result<Failure, Option<Report>> {
        if let Some(failure) = self.rerun.as_ref().and_then(|rerun| rerun.failed) {
            return Ok(failure);
        }
        let Some(lease) = &self.lease else {
            return Err(None);
        };
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
        let is_idle = self.phase != Phase::Planning && self.is_nothing_kept();
        match verdict {
            Verdict::Unknown | Verdict::Settle => {
                let unknown = &self.pool.retries.unknown;
                unknown.fetch_add(1, Ordering::Relaxed);
                Err(Some(unknown_outcome()))
            }
            Verdict::Again
                if !is_idle
                    && !has_begun
                    && !self.keeps_backend()
                    && self.may_run_again(failure) =>
            {
                Ok(failure)
            }
            Verdict::Again | Verdict::Replay | Verdict::Fail => Err(None),
        }
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
