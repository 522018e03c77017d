//! What a record held when somebody looked.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::histogram::Distribution;
use crate::error::SqlState;

/// Number of a statement, the same in every process; 0 stands for all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueryId(pub u64);

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Number of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// An execution that is part of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    pub trace: TraceId,
    /// From sending to the last answer.
    pub took: Duration,
    pub at: SystemTime,
}

/// Times of one kind: their sum and how they are distributed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub sum: Duration,
    pub distribution: Distribution,
}

impl Times {
    pub(super) fn new(sum_nanos: u64, distribution: Distribution) -> Self {
        Self {
            sum: Duration::from_nanos(sum_nanos),
            distribution,
        }
    }

    /// The mean of `calls` times.
    pub fn mean(&self, calls: u64) -> Duration {
        let nanos = self.sum.as_nanos().checked_div(calls.into()).unwrap_or(0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// One statement's record.
#[derive(Clone, Debug)]
pub struct QuerySample {
    pub id: QueryId,
    /// The text without constants; never a literal.
    pub text: Arc<str>,
    /// Executions that ended, failed ones included.
    pub calls: u64,
    /// From sending to the last answer.
    pub total: Times,
    pub min: Duration,
    pub max: Duration,
    /// From sending to the first answer.
    pub first: Times,
    /// Waiting for a server connection before it was sent.
    pub queue: Times,
    pub rows: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    pub errors: u64,
    /// Errors by SQLSTATE; a few may be missing where there were very many kinds.
    pub sqlstates: Vec<(SqlState, u64)>,
    pub retries: u64,
    /// Times it made a session keep its server connection.
    pub pins: u64,
    pub cache_hits: u64,
    pub first_seen: SystemTime,
    pub last_seen: SystemTime,
    /// Who ran it and where: a few names, `…` if there were more.
    pub users: Vec<Arc<str>>,
    pub databases: Vec<Arc<str>>,
    pub applications: Vec<Arc<str>>,
    pub nodes: Vec<Arc<str>>,
    /// The latest execution that was part of a trace.
    pub exemplar: Option<Exemplar>,
}

impl QuerySample {
    /// This one with what `other` counted; names and times of day stay.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add, Duration::saturating_add)
    }

    /// What this one counted since it was `before`.
    #[must_use]
    pub fn minus(&self, before: &Self) -> Self {
        self.with(before, u64::saturating_sub, Duration::saturating_sub)
    }

    fn with(
        &self,
        other: &Self,
        count: fn(u64, u64) -> u64,
        time: fn(Duration, Duration) -> Duration,
    ) -> Self {
        let times = |own: &Times, other: &Times| Times {
            sum: time(own.sum, other.sum),
            distribution: own.distribution.combine(&other.distribution, count),
        };
        let mut sqlstates = self.sqlstates.clone();
        for (code, others) in &other.sqlstates {
            match sqlstates.iter_mut().find(|(own, _)| own == code) {
                Some((_, own)) => *own = count(*own, *others),
                None => sqlstates.push((*code, count(0, *others))),
            }
        }
        sqlstates.retain(|(_, count)| *count > 0);
        Self {
            calls: count(self.calls, other.calls),
            total: times(&self.total, &other.total),
            first: times(&self.first, &other.first),
            queue: times(&self.queue, &other.queue),
            rows: count(self.rows, other.rows),
            received: count(self.received, other.received),
            sent: count(self.sent, other.sent),
            errors: count(self.errors, other.errors),
            sqlstates,
            retries: count(self.retries, other.retries),
            pins: count(self.pins, other.pins),
            cache_hits: count(self.cache_hits, other.cache_hits),
            ..self.clone()
        }
    }

    /// The time up to the last answer that the share `q` of all calls is at or below: as close as the histogram tells,
    /// and between the least and the most there was.
    pub fn time_at(&self, q: f64) -> Duration {
        let estimate = self.total.distribution.quantile(q);
        estimate.clamp(self.min, self.max.max(self.min))
    }

    /// Whether it stands for all statements that have no record of their own.
    pub fn is_other(&self) -> bool {
        self.id == QueryId::default()
    }
}
