//! Rules of the configuration about what is logged, in the form in which they are asked: a set of bits for what a
//! statement's text decides, another for what its session decides.
//!
//! The first is kept in the statement's record and the second in the session, so that a rule costs an execution nothing
//! but a look at both. Without rules there is nothing to look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::like::like;
use super::query::Query;
use crate::config::model::{LogRule, SlowLog};

/// Most rules: one bit each.
const RULES_MAX: usize = 32;

/// What is to be done with an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Differs from that of every other set.
    version: u32,
    rules: Vec<LogRule>,
    threshold: Option<Duration>,
    sample: u64,
}

/// Whose statements they are.
#[derive(Clone, Debug)]
pub struct Whose<'a> {
    pub user: &'a str,
    pub database: &'a str,
    pub application: Arc<str>,
}

/// The rules in force.
#[derive(Debug)]
pub struct Rules {
    set: ArcSwap<RuleSet>,
    versions: AtomicU32,
}

/// What a session remembers of the rules: which set, and which of its rules may be about the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionBits {
    version: u32,
    bits: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            set: ArcSwap::from_pointee(RuleSet::default()),
            versions: AtomicU32::new(0),
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
        self.set.store(Arc::new(RuleSet {
            version,
            rules: rules.take(RULES_MAX).collect(),
            threshold: slow.threshold,
            sample: slow.sample as u64,
        }));
    }

    /// What is to be done with an execution of `query` that took `total`. `session` is brought up to date if it is not.
    pub fn judge<'a>(
        &self,
        query: &Query,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
        total: Duration,
    ) -> Verdict {
        let set = self.set.load();
        let mut verdict = Verdict {
            is_slow: set.threshold.is_some_and(|threshold| total >= threshold),
            sample: set.sample,
            is_logged: false,
        };
        if set.rules.is_empty() {
            return verdict;
        }
        if session.version != set.version {
            *session = set.of_session(&whose());
        }
        let bits = session.bits & set.of_query(query);
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

impl RuleSet {
    fn of_session(&self, whose: &Whose<'_>) -> SessionBits {
        let fits =
            |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|name| name == is);
        let bits = self.bits(|rule| {
            fits(&rule.user, whose.user)
                && fits(&rule.database, whose.database)
                && fits(&rule.application_name, &whose.application)
        });
        SessionBits {
            version: self.version,
            bits,
        }
    }

    /// Taken from the record if it knows this set.
    fn of_query(&self, query: &Query) -> u32 {
        let known = query.rules.load(Ordering::Relaxed);
        // The upper half is the version.
        if known >> 32 == u64::from(self.version) {
            return u32::try_from(known & u64::from(u32::MAX)).unwrap_or(0);
        }
        let id = query.id.to_string();
        let bits = self.bits(|rule| {
            rule.queryid
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(&id))
                && rule
                    .query
                    .as_ref()
                    .is_none_or(|pattern| like(&query.text, pattern, true))
        });
        let known = u64::from(self.version) << 32 | u64::from(bits);
        query.rules.store(known, Ordering::Relaxed);
        bits
    }

    fn bits(&self, fits: impl Fn(&LogRule) -> bool) -> u32 {
        let places = self.rules.iter().enumerate();
        places
            .filter(|(_, rule)| fits(rule))
            .fold(0, |bits, (place, _)| bits | 1 << place)
    }
}
