//! The timeouts of a session: which one is next, and what happens when it is reached.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::reply;
use super::session::{End, Phase, Session};
use crate::error::{Report, SqlState, UserFacing};
use crate::pool::Lease;

/// How often a read that waits for a replica to catch up looks whether one has.
const PATIENCE_LOOK: Duration = Duration::from_millis(5);

/// A limit of the configuration, by its setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    QueryWait,
    QueryWaitNotify,
    /// The lane has not sent the statement.
    RideWait,
    /// Time to look whether the lane has sent it.
    RideLook,
    /// Time to look whether a replica has caught up.
    Replica,
    /// The shared listener has not answered.
    Listener,
    /// The end of the pause before another run.
    Pause,
    /// The server has not said what became of a COMMIT.
    Settling,
    Query,
    /// The end of a statement that was cancelled for `query_timeout`.
    CancelWait,
    Transaction,
    IdleTransaction,
    ClientIdle,
    PinIdle,
    /// The end of a pin for what the session's application does.
    HabitPin,
    ClientWrite,
}

impl Session {
    /// The next limit and when it is reached.
    pub(super) fn deadline(&self) -> Option<(Instant, Limit)> {
        let timeouts = &self.effective.timeouts;
        let at =
            |since: Instant, limit: Option<Duration>, name: Limit| Some((since + limit?, name));
        let write = self
            .blocked_since
            .and_then(|since| at(since, timeouts.client_write_timeout, Limit::ClientWrite));
        let transaction = at(
            self.transaction_since,
            timeouts.transaction_timeout,
            Limit::Transaction,
        );
        let phase = match self.phase {
            // It is the shared listener that is awaited.
            Phase::Idle | Phase::Active if self.awaits_listener() => {
                let until = self.does_without_listener_at();
                let listener = until.map(|until| (until, Limit::Listener));
                earlier(listener, transaction.filter(|_| self.in_transaction))
            }
            Phase::Idle => at(self.since, timeouts.client_idle_timeout, Limit::ClientIdle),
            Phase::Waiting if self.pauses_until().is_some() => {
                self.pauses_until().map(|until| (until, Limit::Pause))
            }
            Phase::Waiting if self.is_patient() => {
                at(self.since, Some(PATIENCE_LOOK), Limit::Replica)
            }
            Phase::Waiting => {
                let notify = at(
                    self.since,
                    timeouts.query_wait_notify,
                    Limit::QueryWaitNotify,
                );
                let wait = at(self.since, timeouts.query_wait_timeout, Limit::QueryWait);
                earlier(wait, notify.filter(|_| !self.notified_waiting))
            }
            Phase::Planning | Phase::Riding | Phase::Active if self.timed_out => at(
                self.since,
                Some(timeouts.cancel_wait_timeout),
                Limit::CancelWait,
            ),
            Phase::Riding => earlier(self.ride_deadline(), transaction),
            Phase::Planning => {
                let deadline = self.is_settling().then_some(self.effective.retry.deadline);
                let settling = at(self.since, deadline, Limit::Settling);
                let query = at(self.since, timeouts.query_timeout, Limit::Query);
                earlier(query, settling)
            }
            Phase::Active if self.is_awaiting_client() && !self.holds_transaction() => {
                let limit = timeouts.pin_idle_timeout.filter(|_| !self.pins.is_empty());
                let idle = earlier(
                    at(self.since, limit, Limit::PinIdle),
                    at(self.since, timeouts.client_idle_timeout, Limit::ClientIdle),
                );
                earlier(at(self.since, self.habit_pin(), Limit::HabitPin), idle)
            }
            Phase::Active if self.is_awaiting_client() => earlier(
                at(
                    self.since,
                    timeouts.idle_transaction_timeout,
                    Limit::IdleTransaction,
                ),
                transaction,
            ),
            Phase::Active => earlier(
                at(self.since, self.query_limit(), Limit::Query),
                transaction,
            ),
        };
        earlier(phase, write)
    }

    fn is_awaiting_client(&self) -> bool {
        self.lease
            .as_ref()
            .is_some_and(|lease| lease.expect.awaits_more())
    }

    /// In a transaction, be it only that of an extended exchange whose Sync is still to come.
    fn holds_transaction(&self) -> bool {
        let is_open = |lease: &Lease| !lease.expect.is_at_rest();
        self.in_transaction || self.lease.as_ref().is_some_and(is_open)
    }

    /// Acts on a limit that was reached.
    pub(super) fn reach(&mut self, limit: Limit, cx: &mut Context<'_>) -> Result<(), End> {
        match limit {
            Limit::QueryWaitNotify => {
                self.notify_waiting(cx);
                Ok(())
            }
            Limit::QueryWait => self.wait_no_longer(cx),
            Limit::RideWait => self.leave_lane_unsent(cx),
            Limit::RideLook => Ok(()),
            Limit::Pause => {
                self.end_pause();
                if self.is_settling() {
                    self.ask_outcome(cx);
                    return Ok(());
                }
                self.process_inbox(cx)
            }
            Limit::Settling => {
                self.part_with_backend(true);
                Err(self.unsettled())
            }
            Limit::Replica => {
                self.enter(Phase::Idle);
                self.process_inbox(cx)
            }
            Limit::Listener => self.do_without_listener(cx),
            Limit::Query => {
                self.cancel_overrun();
                Ok(())
            }
            Limit::CancelWait => Err(self.cannot_cancel()),
            Limit::Transaction => Self::cut(
                SqlState::TRANSACTION_TIMEOUT,
                "transaction",
                "transaction_timeout",
            ),
            Limit::IdleTransaction => Self::cut(
                SqlState::IDLE_IN_TRANSACTION_TIMEOUT,
                "idle-in-transaction",
                "idle_transaction_timeout",
            ),
            Limit::ClientIdle => Self::cut(
                SqlState::IDLE_SESSION_TIMEOUT,
                "idle-session",
                "client_idle_timeout",
            ),
            Limit::PinIdle => Err(self.cut_pinned()),
            Limit::HabitPin => {
                self.end_habit_pin();
                self.settle(cx)
            }
            Limit::ClientWrite => Self::cut(
                SqlState::CONNECTION_FAILURE,
                "client write",
                "client_write_timeout",
            ),
        }
    }

    /// The statement has waited for a server connection for as long as it may.
    fn wait_no_longer(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let limit = self.effective.timeouts.query_wait_timeout;
        let error = self.queue().wait_timeout(limit.unwrap_or_default());
        let waited = self.count_wait();
        self.stop_waiting();
        if self.is_settling() {
            return Err(self.unsettled());
        }
        if self.is_replaying() {
            return self.fall_back(false, cx);
        }
        self.enter(Phase::Idle);
        self.metering.waited(waited);
        self.refuse(&error.report(), cx)?;
        let _ = self.outbox.poll_send(&mut self.stream, cx);
        self.process_inbox(cx)
    }

    /// Tells the client that its statement waits for a server connection, and why.
    fn notify_waiting(&mut self, cx: &mut Context<'_>) {
        self.notified_waiting = true;
        let notice = Report::new(
            crate::error::Severity::Notice,
            SqlState::SUCCESSFUL_COMPLETION,
            "waiting for a server connection",
        );
        let notice = notice.detail(format!(
            "Pool {}: {}.",
            self.queue().key,
            self.queue().why_waiting()
        ));
        reply::report(&mut self.outbox, &notice);
        // Sending registers for the rest, if any is left.
        let _ = self.outbox.poll_send(&mut self.stream, cx);
    }

    fn cut_pinned(&self) -> End {
        let report = Report::fatal(
            SqlState::IDLE_SESSION_TIMEOUT,
            "terminating connection due to idle-session timeout of a session that keeps its server connection",
        )
        .detail(format!("It kept it for: {}.", self.pins))
        .hint("The limit is pgweir's timeouts.pin_idle_timeout.");
        End::Fatal(Box::new(report))
    }

    /// Cuts the client off; a statement under way is cancelled by the cleaning of its backend.
    fn cut(code: SqlState, what: &'static str, setting: &'static str) -> Result<(), End> {
        let report = Report::fatal(
            code,
            format!("terminating connection due to {what} timeout"),
        )
        .hint(format!("The limit is pgweir's timeouts.{setting}."));
        Err(End::Fatal(Box::new(report)))
    }
}

pub(super) fn earlier(
    a: Option<(Instant, Limit)>,
    b: Option<(Instant, Limit)>,
) -> Option<(Instant, Limit)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
        (a, b) => a.or(b),
    }
}
