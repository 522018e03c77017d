//! What becomes of a statement that has ended: its record, and where it is worth a note the slow log, the query log, a
//! trace.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::metering::{Portal, READY_LEN, Running};
use super::session::{End, Session};
use crate::error::{Report, SqlState};
use crate::journal::Entry;
use crate::meter::{Client, Execution, Exemplar, Incident, SessionBits, Verdict, Whose};
use crate::pool::lane::seat::Answered;
use crate::shared::PlanRequest;
use crate::sql::known::Known;
use crate::traces::{TraceParent, Traced};
use crate::wire::frame::{HEADER, Header};
use crate::wire::frontend::{self as f, Bind, Parse};
use crate::wire::limits::WHOLE_FRAME_MAX;

/// The parts of the time a statement took.
#[derive(Clone, Copy, Debug)]
struct Parts {
    /// From sending to the last answer.
    took: Duration,
    first: Duration,
    sent: u64,
}

impl Parts {
    const NONE: Self = Self {
        took: Duration::ZERO,
        first: Duration::ZERO,
        sent: 0,
    };
}

impl Running {
    /// A statement that was to be prepared and could not be, which took no time worth telling.
    fn failed(known: Arc<Known>, code: SqlState, now: Instant) -> Self {
        Self {
            known,
            started: now,
            first: None,
            queued: Duration::ZERO,
            checkout: Duration::ZERO,
            blocked: Duration::ZERO,
            rows: 0,
            received: 0,
            error: Some(code),
            portal: Portal::default(),
            trace: None,
        }
    }
}

impl Session {
    /// Counts a statement whose answer came to `sent` bytes.
    pub(super) fn count(&mut self, ended: &Running, sent: u64) {
        let took = self.now.saturating_duration_since(ended.started);
        // As a rule an answer comes at once.
        let first = match ended.first.filter(|first| *first < self.now) {
            Some(first) => first.saturating_duration_since(ended.started).min(took),
            None => took,
        };
        let parts = Parts { took, first, sent };
        let execution = Execution {
            origin: self.metering.origin,
            node: self.metering.node,
            at: self.now,
            queued: ended.queued,
            took,
            first: parts.first,
            rows: ended.rows,
            received: ended.received,
            sent,
            error: ended.error,
            continues: ended.portal.continues,
        };
        let queries = &self.shared.known.queries;
        queries.count(&ended.known.query, &execution);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let counters = &self.pool.counters;
        if !ended.portal.continues {
            counters.queries.fetch_add(1, Ordering::Relaxed);
        }
        counters.query_micros.fetch_add(micros, Ordering::Relaxed);
        counters.latency.record_duration(took);
        if ended.error.is_some() {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        let verdict = self.judge(ended, took + ended.queued);
        if ended.error.is_some() || verdict.is_slow || verdict.is_logged {
            self.remember(ended, parts, verdict);
        }
        if let Some(trace) = &ended.trace {
            self.export(ended, parts, trace);
        }
    }

    /// Counts a statement that rides on a lane, and `received` bytes of its exchange.
    pub(super) fn start_ride(&mut self, known: Arc<Known>, received: usize) {
        self.metering.received(received);
        self.run_from_here(known, Portal::default());
    }

    /// A statement that rode was answered. What it waited for the lane's connection is time in the queue; that others
    /// were in front of it on that connection is not told apart from its own time.
    pub(super) fn end_ride_answered(&mut self, answered: &Answered) {
        let Some(mut ended) = self.metering.take_front() else {
            return;
        };
        if answered.was_long {
            ended.known.brevity.disappointed();
        }
        let sent = answered.sent.clamp(ended.started, self.now);
        ended.queued = sent.duration_since(ended.started);
        ended.started = sent;
        ended.rows = answered.rows;
        ended.error = answered.error;
        self.count_ride(&ended);
    }

    /// A statement that rode was cut off.
    pub(super) fn end_ride_failed(&mut self, code: SqlState) {
        if let Some(mut ended) = self.metering.take_front() {
            ended.error = Some(code);
            self.count_ride(&ended);
        }
    }

    /// A statement that rode is run the ordinary way, and counted there.
    pub(super) fn forget_ride(&mut self, was_slow: bool) {
        if let Some(front) = self.metering.take_front()
            && was_slow
        {
            front.known.brevity.disappointed();
        }
        self.entry.activity.rests();
    }

    fn count_ride(&mut self, ended: &Running) {
        self.entry.activity.rests();
        let sent = self
            .metering
            .relayed_since()
            .saturating_sub(READY_LEN as u64);
        self.count(ended, sent);
        self.count_transaction();
    }

    fn judge(&mut self, ended: &Running, total: Duration) -> Verdict {
        let Self {
            shared,
            metering,
            entry,
            ..
        } = self;
        let (queries, application) = (&shared.known.queries, metering.origin.application);
        let whose = || Whose {
            user: &entry.user,
            database: &entry.database,
            application: queries.application_of(application, || entry.application()),
        };
        let query = &ended.known.query;
        shared.rules.judge(query, &mut metering.rules, whose, total)
    }

    /// Keeps a statement for those who look, and writes it down.
    fn remember(&self, ended: &Running, parts: Parts, verdict: Verdict) {
        let incident = Arc::new(self.incident(ended, parts));
        let (recent, journal) = (&self.shared.recent, &self.shared.journal);
        if verdict.is_logged {
            journal.put(Entry::Query(Arc::clone(&incident)));
        }
        if incident.error.is_some() {
            recent.failed(Arc::clone(&incident));
        }
        if !verdict.is_slow {
            return;
        }
        let query = &ended.known.query;
        if query.is_sampled(verdict.sample) {
            journal.put(Entry::Slow(Arc::clone(&incident)));
        }
        recent.slow(incident);
        let config = self.shared.config.load();
        let slow = &config.slow_log;
        if slow.explain
            && ended.error.is_none()
            && ended.known.class.has_plan()
            && query.is_to_be_explained(slow.explain_interval)
        {
            let pool = self.lease.as_ref().map_or(&self.pool, |lease| lease.pool());
            // When many are asked for at once, some go without.
            let _ = self.shared.plans.try_send(PlanRequest {
                pool: Arc::clone(pool),
                query: Arc::clone(query),
            });
        }
    }

    fn incident(&self, ended: &Running, parts: Parts) -> Incident {
        let (entry, queries) = (&self.entry, &self.shared.known.queries);
        let application = self.metering.origin.application;
        Incident {
            at: SystemTime::now(),
            client: Client {
                pid: entry.pid.0,
                user: Arc::clone(&entry.user),
                database: Arc::clone(&entry.database),
                application: (*queries.application_of(application, || entry.application())).into(),
                peer: entry.peer,
            },
            query: ended.known.query.id,
            text: Arc::clone(&ended.known.query.text),
            node: queries.names.name(self.metering.node),
            queued: ended.queued,
            server: parts.took.saturating_sub(ended.blocked),
            blocked: ended.blocked.min(parts.took),
            rows: ended.rows,
            sent: parts.sent,
            error: ended.error,
            trace: ended.trace.as_ref().map(|trace| trace.trace),
        }
    }

    fn export(&self, ended: &Running, parts: Parts, trace: &TraceParent) {
        let at = SystemTime::now();
        let query = &ended.known.query;
        query.traced(Exemplar {
            trace: trace.trace,
            took: parts.took,
            at,
        });
        self.shared.tracer.put(Traced {
            trace: trace.trace,
            parent: trace.parent,
            ended: at,
            queued: ended.queued,
            checkout: ended.checkout,
            server: parts.took,
            first: parts.first,
            user: Arc::clone(&self.entry.user),
            database: Arc::clone(&self.entry.database),
            node: self.shared.known.queries.names.name(self.metering.node),
            query: query.id,
            text: Arc::clone(&query.text),
            rows: ended.rows,
            error: ended.error,
        });
    }

    /// Tells the client that the statement in front of the inbox will not run, which has had no server connection. It is
    /// no call of its statement, and an error of the pool all the same.
    pub(super) fn refuse(&mut self, report: &Report, cx: &mut Context<'_>) -> Result<(), End> {
        let queued = self.metering.waited_in_vain();
        let counters = &self.pool.counters;
        counters.refused.count(report.code);
        counters.errors.fetch_add(1, Ordering::Relaxed);
        let refused = Running {
            queued,
            ..Running::failed(self.statement_in_front(), report.code, self.now)
        };
        let incident = Incident {
            node: Arc::default(),
            ..self.incident(&refused, Parts::NONE)
        };
        self.shared.recent.failed(Arc::new(incident));
        self.turn_down(report, cx)
    }

    /// The statement in front of the inbox, as far as its first message tells.
    fn statement_in_front(&self) -> Arc<Known> {
        let known = &self.shared.known;
        let look_up = |text: &[u8]| known.lookup(text, self.lex_options());
        let input = self.inbox.bytes();
        let header = Header::peek(input, WHOLE_FRAME_MAX).ok().flatten();
        let payload = header.and_then(|header| input.get(HEADER..header.len));
        let found = header
            .zip(payload)
            .and_then(|(header, payload)| match header.tag {
                f::QUERY => f::query_text(payload).ok().map(look_up),
                f::PARSE => Parse::read(payload).ok().map(|parse| look_up(parse.text)),
                f::BIND => {
                    let named = self.names.get(Bind::read(payload)?.statement)?;
                    Some(Arc::clone(&named.statement.known))
                }
                _ => None,
            });
        found.unwrap_or_else(|| Arc::clone(known.unread()))
    }

    /// The end of an exchange failed, which is the COMMIT of a transaction that nothing began: no call more, and an error
    /// of the statement before it.
    pub(super) fn fail_at_sync(&mut self, code: SqlState) {
        if let Some(known) = self.metering.last.take() {
            known.query.failed_at_end(code);
            let counters = &self.pool.counters;
            counters.errors.fetch_add(1, Ordering::Relaxed);
            let failed = Running::failed(known, code, self.now);
            let incident = self.incident(&failed, Parts::NONE);
            self.shared.recent.failed(Arc::new(incident));
        }
    }

    /// An extended exchange has ended.
    pub(super) fn end_exchange(&mut self) {
        if let Some((code, known)) = self.metering.end_exchange() {
            self.count(&Running::failed(known, code, self.now), 0);
        }
    }

    /// A transaction has ended.
    pub(super) fn count_transaction(&self) {
        let took = self.now.duration_since(self.transaction_since);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let counters = &self.pool.counters;
        counters.transactions.fetch_add(1, Ordering::Relaxed);
        counters
            .transaction_micros
            .fetch_add(micros, Ordering::Relaxed);
    }

    /// The client calls itself something else from now on.
    pub(super) fn rename_application(&mut self, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        self.entry.rename_application(&name);
        self.metering.origin.application = self.shared.known.queries.application(&name);
        self.metering.rules = SessionBits::default();
        self.forget_limit_rules();
    }
}
