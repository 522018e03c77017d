//! Rules of the configuration about what is logged. Without rules there is nothing to look at; see
//! [`fitting`](super::fitting) for what they cost otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::fitting::{Conditions, Fitting, RULES_MAX, SessionBits, Whose};
use super::histogram::nanos;
use super::query::Query;
use crate::config::model::{LogRule, SlowLog};

/// What is to be done with an execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Its slowness is worth noting.
    pub is_slow: bool,
    /// One of so many slow ones is written; 0 for none.
    pub sample: u64,
    /// It is written whether slow or not.
    pub is_logged: bool,
}

/// All rules at one time.
#[derive(Debug, Default)]
struct RuleSet {
    fitting: Fitting,
    rules: Vec<LogRule>,
    threshold: Option<Duration>,
    sample: u64,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Rules {
    set: ArcSwap<RuleSet>,
    versions: AtomicU32,
    /// What takes less than this, in nanoseconds, is not worth a look at the rules: there are none, and it is not slow.
    noted_from: AtomicU64,
}

impl From<&LogRule> for Conditions {
    fn from(rule: &LogRule) -> Self {
        Self {
            queryid: rule.queryid.clone(),
            query: rule.query.clone(),
            user: rule.user.clone(),
            database: rule.database.clone(),
            application_name: rule.application_name.clone(),
        }
    }
}

impl Rules {
    /// Replaces the rules; those beyond `RULES_MAX` are ignored.
    pub fn set(&self, slow: &SlowLog, rules: impl Iterator<Item = LogRule>) {
        let version = self
            .versions
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1);
        let rules: Vec<LogRule> = rules.take(RULES_MAX).collect();
        let noted_from = match slow.threshold {
            _ if !rules.is_empty() => 0,
            Some(threshold) => nanos(threshold),
            None => u64::MAX,
        };
        self.set.store(Arc::new(RuleSet {
            fitting: Fitting::new(version, rules.iter().map(Conditions::from)),
            rules,
            threshold: slow.threshold,
            sample: slow.sample as u64,
        }));
        self.noted_from.store(noted_from, Ordering::Release);
    }

    /// What is to be done with an execution of `query` that took `total`. `session` is brought up to date if it is not.
    pub fn judge<'a>(
        &self,
        query: &Query,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
        total: Duration,
    ) -> Verdict {
        if nanos(total) < self.noted_from.load(Ordering::Acquire) {
            return Verdict::default();
        }
        let set = self.set.load();
        let mut verdict = Verdict {
            is_slow: set.threshold.is_some_and(|threshold| total >= threshold),
            sample: set.sample,
            is_logged: false,
        };
        if set.fitting.is_empty() {
            return verdict;
        }
        let of_session = set.fitting.of_session(session, whose);
        let bits = of_session & set.fitting.of_query(query, &query.rules);
        let mut decided = false;
        for (place, rule) in set.rules.iter().enumerate() {
            if bits & (1 << place) == 0 {
                continue;
            }
            verdict.is_logged |= rule.log;
            if let (Some(threshold), false) = (rule.slow_threshold, decided) {
                // Zero is "never".
                verdict.is_slow = !threshold.is_zero() && total >= threshold;
                decided = true;
            }
            if let Some(sample) = rule.sample {
                verdict.sample = sample as u64;
            }
        }
        verdict
    }
}
