//! Statements that take too long: which limit each has, and how it is ended without anything else being hit.
//!
//! # Why a statement with a limit is sent alone
//! A cancel request names a backend and not a statement. What is more, PostgreSQL sends its signal twice, to the process
//! and then to its group (`signal_child` in its postmaster), and the second one may find the next statement of a
//! pipeline, which was in time. No later look can tell. So where a limit is in force, a statement is sent once
//! everything before it is answered, and after a cancel request nothing is sent until the server has closed the
//! request's connection: both signals have been sent then, and a backend that waits for a statement ignores them.
//!
//! Statements of one extended exchange stay together: the server undoes all of them in any case if one fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use std::time::Duration;

use super::inbound::Frame;
use super::reply;
use super::session::{End, Session};
use crate::backend::cancel;
use crate::backend::connection::Identity;
use crate::error::{Report, SqlState};
use crate::meter::{Limits, SessionBits, Whose};
use crate::registry::ClientEntry;
use crate::sql::known::Known;
use crate::tasks;
use crate::wire::frontend as f;

/// How long the statement under way may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct QueryLimit {
    /// `None` is no limit.
    pub after: Option<Duration>,
    /// The rule that says so, if it is not `timeouts.query_timeout`.
    rule: Option<Arc<str>>,
}

impl QueryLimit {
    /// What the client is told in place of the server's error.
    pub(super) fn report(&self) -> Report {
        let report = Report::error(
            SqlState::QUERY_CANCELED,
            "canceling statement due to query timeout",
        );
        report.hint(self.hint())
    }

    fn hint(&self) -> String {
        match &self.rule {
            None => "The limit is pgweir's timeouts.query_timeout.".to_owned(),
            Some(rule) => format!("The limit is pgweir's statement_rules.{rule}.query_timeout."),
        }
    }

    /// Of two statements that are answered together, the one that may take longer.
    fn longest(self, other: Self) -> Self {
        match (self.after, other.after) {
            (Some(own), Some(others)) if own < others => other,
            (Some(_), None) => other,
            _ => self,
        }
    }
}

/// A cancel request that pgweir sends for a statement of this session.
#[derive(Clone, Debug)]
struct OwnCancel {
    is_over: Arc<AtomicBool>,
    /// The statement was over its limit; else the client asked for it before there was a statement.
    is_for_limit: bool,
}

/// What a session knows of its limits.
#[derive(Debug, Default)]
pub(super) struct Overrun {
    /// Of the statement under way.
    limit: QueryLimit,
    /// Until it is over nothing more is sent.
    own_cancel: Option<OwnCancel>,
}

impl Overrun {
    /// Nothing is under way: there is no statement that had a limit. False if a cancel request of pgweir's own is.
    pub(super) fn rest(&mut self) -> bool {
        let Self { limit, own_cancel } = self;
        if own_cancel.is_none() {
            *limit = QueryLimit::default();
        }
        own_cancel.is_none()
    }
}

impl Session {
    fn overrun(&self) -> Option<&Overrun> {
        self.rerun.as_ref().map(|rerun| &rerun.overrun)
    }

    fn overrun_mut(&mut self) -> &mut Overrun {
        &mut self.rerun_mut().overrun
    }

    /// How long the statement under way may take.
    pub(super) fn query_limit(&self) -> Option<Duration> {
        self.overrun()?.limit.after
    }

    /// The session goes on with another backend. The one that a cancel request is for goes to nobody before it is over.
    pub(super) fn forget_own_cancel(&mut self) {
        if let Some(rerun) = &mut self.rerun {
            rerun.overrun.own_cancel = None;
        }
    }

    /// Whether a cancel request of pgweir's own is under way.
    pub(super) fn has_own_cancel(&self) -> bool {
        self.overrun().is_some_and(|it| it.own_cancel.is_some())
    }

    /// The rules, which of them may be about this session, and whose it is.
    fn rules<'a>(&'a mut self) -> (&'a Limits, &'a mut SessionBits, impl FnOnce() -> Whose<'a>) {
        let Self {
            shared,
            metering,
            entry,
            limit_bits,
            ..
        } = self;
        let (queries, application) = (&shared.known.queries, metering.origin.application);
        let entry: &'a ClientEntry = entry;
        let whose = move || Whose {
            user: &entry.user,
            database: &entry.database,
            application: queries.application_of(application, || entry.application()),
        };
        (&shared.limits, limit_bits, whose)
    }

    /// Whether a statement of this session may have a limit.
    fn may_be_limited(&mut self) -> bool {
        if self.effective.timeouts.query_timeout.is_some() {
            return true;
        }
        let (rules, bits, whose) = self.rules();
        rules.may_concern(bits, whose)
    }

    /// The limit of `known`.
    fn limit_of(&mut self, known: &Known) -> QueryLimit {
        let (rules, bits, whose) = self.rules();
        match rules.of(&known.query, bits, whose) {
            Some(rule) => QueryLimit {
                after: rule.after,
                rule: Some(rule.rule),
            },
            None => self.general_limit(),
        }
    }

    /// Whether a rule forbids to run `known` again.
    pub(super) fn is_never_again(&mut self, known: &Known) -> bool {
        let (rules, bits, whose) = self.rules();
        rules.forbids_retry(&known.query, bits, whose)
    }

    fn general_limit(&self) -> QueryLimit {
        QueryLimit {
            after: self.effective.timeouts.query_timeout,
            rule: None,
        }
    }

    /// Notes the limit of a statement that is about to be sent; `is_first` if it is the first one of its exchange.
    pub(super) fn limit_statement(&mut self, known: &Known, is_first: bool) {
        let limit = self.limit_of(known);
        let overrun = self.overrun_mut();
        overrun.limit = if is_first {
            limit
        } else {
            std::mem::take(&mut overrun.limit).longest(limit)
        };
    }

    /// The client calls itself something else: other rules may hold.
    pub(super) fn forget_limit_rules(&mut self) {
        self.limit_bits = SessionBits::default();
    }

    /// Whether `frame` begins an exchange that must not be sent yet; see the module. Notes the limit of one that may.
    pub(super) fn must_come_alone(&mut self, frame: Frame<'_>) -> bool {
        let begins = matches!(
            frame.tag,
            f::QUERY | f::PARSE | f::BIND | f::DESCRIBE | f::EXECUTE | f::CLOSE | f::FUNCTION_CALL
        );
        let Some(lease) = self.lease.as_ref().filter(|_| begins) else {
            return false;
        };
        if lease.expect.is_open() {
            return false;
        }
        if self.has_own_cancel() {
            return true;
        }
        // What pgweir itself sends ahead of the statement belongs to it.
        if !lease.expect.has_earlier() {
            let limit = self.general_limit();
            self.overrun_mut().limit = limit;
            return false;
        }
        self.query_limit().is_some() || self.may_be_limited()
    }

    /// Has the server cancel what runs beyond its limit.
    pub(super) fn cancel_overrun(&mut self) {
        self.timed_out = true;
        self.since = self.now;
        self.cancel_ride();
        if let Some(lease) = &self.lease {
            let identity = Arc::clone(&lease.identity);
            self.begin_own_cancel(identity, true);
        }
    }

    /// Passes on a cancel request that came while the backend was being prepared. The client was not made to wait for
    /// its end, so it is pgweir that sends nothing more before it.
    pub(super) fn cancel_late(&mut self, backend: &Arc<Identity>) {
        self.begin_own_cancel(Arc::clone(backend), false);
    }

    fn begin_own_cancel(&mut self, backend: Arc<Identity>, is_for_limit: bool) {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, entry) = (Arc::clone(&is_over), Arc::clone(&self.entry));
        let dialer = self.shared.pools.dialer.load_full();
        let limit = self.effective.timeouts.cancel_wait_timeout;
        let request = cancel::cancel(backend, dialer, limit);
        self.overrun_mut().own_cancel = Some(OwnCancel {
            is_over,
            is_for_limit,
        });
        tasks::spawn("cancel", async move {
            if let Err(error) = request.await {
                tracing::warn!(%error, "a cancel request was not delivered");
            }
            over.store(true, Ordering::Release);
            entry.wake();
        });
    }

    /// Goes on once pgweir's own cancel request is over. True if something moved.
    pub(super) fn poll_own_cancel(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let own_cancel = self.overrun().and_then(|it| it.own_cancel.as_ref());
        let Some(own) = own_cancel.filter(|own| own.is_over.load(Ordering::Acquire)) else {
            return Ok(false);
        };
        let is_for_limit = own.is_for_limit;
        self.forget_own_cancel();
        let in_doubt = |lease: &crate::pool::Lease| lease.identity.is_in_doubt();
        if is_for_limit && self.lease.as_ref().is_some_and(in_doubt) {
            // Its signal may still come, and hit whatever runs then.
            return Err(self.cannot_cancel());
        }
        self.settle(cx)?;
        if self.held_up {
            self.process_inbox(cx)?;
        }
        Ok(true)
    }

    /// The server has not done what it was asked for.
    pub(super) fn cannot_cancel(&self) -> End {
        let report = Report::fatal(
            SqlState::QUERY_CANCELED,
            "terminating connection due to query timeout",
        );
        let own = self.overrun().map(|overrun| overrun.limit.hint());
        let hint = own.unwrap_or_else(|| self.general_limit().hint());
        End::Fatal(Box::new(report.hint(hint)))
    }

    /// The error in place of the server's for the statement that was cancelled; `None` if it was not.
    pub(super) fn take_overrun(&mut self, code: Option<SqlState>) -> Option<Report> {
        if !self.timed_out || code != Some(SqlState::QUERY_CANCELED) {
            return None;
        }
        self.timed_out = false;
        Some(self.overrun()?.limit.report())
    }

    /// A ride that was cancelled.
    pub(super) fn cancelled_ride(&mut self) -> Report {
        let timed_out = std::mem::take(&mut self.timed_out);
        match self.overrun().filter(|_| timed_out) {
            Some(overrun) => overrun.limit.report(),
            None => reply::canceled(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_are_answered_together_have_the_time_of_the_longest() {
        let limit = |seconds: Option<u64>| QueryLimit {
            after: seconds.map(Duration::from_secs),
            rule: None,
        };
        let longest = |a, b| limit(a).longest(limit(b)).after.map(|it| it.as_secs());
        assert_eq!(longest(Some(1), Some(2)), Some(2));
        assert_eq!(longest(Some(2), Some(1)), Some(2));
        assert_eq!(longest(Some(2), None), None);
        assert_eq!(longest(None, Some(2)), None);
    }
}
