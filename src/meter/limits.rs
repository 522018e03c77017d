//! Rules of the configuration that give statements a time limit of their own, or forbid to run them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::fitting::{Conditions, Fitting, RULES_MAX, SessionBits, Whose};
use super::query::Query;
use crate::config::model::StatementRule;

/// What a rule says of a statement's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// `None` is no limit.
    pub after: Option<Duration>,
    /// The rule's name.
    pub rule: Arc<str>,
}

/// What one rule says.
#[derive(Debug)]
struct Said {
    limit: Option<Override>,
    retry: Option<bool>,
}

#[derive(Debug, Default)]
struct LimitSet {
    fitting: Fitting,
    rules: Vec<Said>,
    /// Which of them say something of a statement's time, as bits, and which say whether it may run again.
    limits: u32,
    retries: u32,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Limits {
    set: ArcSwap<LimitSet>,
    versions: AtomicU32,
    /// Whether there are any of either kind: all that a statement costs where there are none.
    has_times: AtomicBool,
    has_retries: AtomicBool,
}

impl From<&StatementRule> for Conditions {
    fn from(rule: &StatementRule) -> Self {
        Self {
            queryid: rule.queryid.clone(),
            query: rule.query.clone(),
            user: rule.user.clone(),
            database: rule.database.clone(),
            application_name: rule.application_name.clone(),
        }
    }
}

impl Limits {
    /// Replaces the rules.
    pub fn set<'a>(&self, rules: impl Iterator<Item = (&'a String, &'a StatementRule)>) {
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let read = |(name, rule): (&'a String, &'a StatementRule)| {
            let limit = rule.query_timeout.map(|limit| Override {
                after: Some(limit).filter(|limit| !limit.is_zero()),
                rule: name.as_str().into(),
            });
            let retry = rule.retry;
            (Conditions::from(rule), Said { limit, retry })
        };
        let (conditions, rules): (Vec<_>, Vec<_>) = rules.map(read).unzip();
        let bits = |has: fn(&Said) -> bool| {
            let each = rules.iter().take(RULES_MAX).enumerate();
            each.fold(0, |bits, (place, rule)| {
                bits | u32::from(has(rule)) << place
            })
        };
        let (limits, retries) = (
            bits(|rule| rule.limit.is_some()),
            bits(|rule| rule.retry.is_some()),
        );
        self.set.store(Arc::new(LimitSet {
            fitting: Fitting::new(version.wrapping_add(1), conditions.into_iter()),
            rules,
            limits,
            retries,
        }));
        self.has_times.store(limits != 0, Ordering::Release);
        self.has_retries.store(retries != 0, Ordering::Release);
    }

    /// Whether a rule may be about a statement of the session. `session` is brought up to date if it is not.
    pub fn may_concern<'a>(
        &self,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> bool {
        if !self.has_times.load(Ordering::Acquire) {
            return false;
        }
        let set = self.set.load();
        set.fitting.of_session(session, whose) & set.limits != 0
    }

    /// What the first rule says that fits `query`.
    pub fn of<'a>(
        &self,
        query: &Query,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> Option<Override> {
        if !self.has_times.load(Ordering::Acquire) {
            return None;
        }
        let set = self.set.load();
        set.first(set.limits, query, session, whose)?.limit.clone()
    }

    /// Whether the first rule that says something about it forbids to run `query` again.
    pub fn forbids_retry<'a>(
        &self,
        query: &Query,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> bool {
        if !self.has_retries.load(Ordering::Acquire) {
            return false;
        }
        let set = self.set.load();
        let rule = set.first(set.retries, query, session, whose);
        rule.is_some_and(|rule| rule.retry == Some(false))
    }
}

impl LimitSet {
    /// The first of the rules `among` these that fits.
    fn first<'a>(
        &self,
        among: u32,
        query: &Query,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> Option<&Said> {
        let of_session = among & self.fitting.of_session(session, whose);
        if of_session == 0 {
            return None;
        }
        let bits = of_session & self.fitting.of_query(query, &query.limits);
        let first = usize::try_from(bits.trailing_zeros()).unwrap_or(usize::MAX);
        self.rules.get(first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::meter::QueryId;

    fn rule(query: Option<&str>, user: Option<&str>, limit: Option<u64>) -> StatementRule {
        StatementRule {
            queryid: None,
            query: query.map(str::to_owned),
            user: user.map(str::to_owned),
            database: None,
            application_name: None,
            query_timeout: limit.map(Duration::from_secs),
            retry: None,
        }
    }

    #[test]
    fn the_first_rule_that_says_whether_to_run_again_decides() {
        let limits = Limits::default();
        let query = |text: &str, id| Query::alone(QueryId(id), text);
        let says = |pattern, retry| StatementRule {
            retry,
            ..rule(Some(pattern), None, None)
        };
        let forbids = |query: &Query, bits: &mut SessionBits| {
            limits.forbids_retry(query, bits, || Whose {
                user: "bob",
                database: "app",
                application: "".into(),
            })
        };
        let (pay, harmless, other) = (
            query("SELECT pay", 1),
            query("SELECT pay_day", 2),
            query("SELECT 1", 3),
        );
        let mut bits = SessionBits::default();
        assert!(!forbids(&pay, &mut bits));
        let rules = [
            ("a", rule(Some("%"), None, Some(1))),
            ("b", says("%pay_day%", Some(true))),
            ("c", says("%pay%", Some(false))),
        ];
        let rules: BTreeMap<String, StatementRule> = rules
            .into_iter()
            .map(|(name, rule)| (name.to_owned(), rule))
            .collect();
        limits.set(rules.iter());
        let found = [&pay, &harmless, &other].map(|query| forbids(query, &mut bits));
        assert_eq!(found, [true, false, false]);
    }

    #[test]
    fn a_rule_about_retries_is_none_about_time() {
        let limits = Limits::default();
        let says = StatementRule {
            retry: Some(false),
            ..rule(None, None, None)
        };
        let rules = BTreeMap::from([("a".to_owned(), says)]);
        limits.set(rules.iter());
        let mut bits = SessionBits::default();
        assert!(!limits.may_concern(&mut bits, || Whose {
            user: "bob",
            database: "app",
            application: "".into(),
        }));
    }

    #[test]
    fn the_first_rule_with_a_limit_that_fits_decides() {
        let limits = Limits::default();
        let query = Query::alone(QueryId(7), "SELECT report");
        let whose = |user: &'static str| Whose {
            user,
            database: "app",
            application: "".into(),
        };
        let mut bits = SessionBits::default();
        assert_eq!(limits.of(&query, &mut bits, || whose("bob")), None);
        assert!(!limits.may_concern(&mut bits, || whose("bob")));
        let rules: BTreeMap<String, StatementRule> = [
            ("a", rule(Some("%report"), None, None)),
            ("b", rule(Some("%report"), Some("bob"), Some(0))),
            ("c", rule(Some("%report"), None, Some(5))),
            ("d", rule(None, Some("eve"), Some(9))),
        ]
        .into_iter()
        .map(|(name, rule)| (name.to_owned(), rule))
        .collect();
        limits.set(rules.iter());
        let of = |user: &'static str| {
            let mut bits = SessionBits::default();
            let found = limits.of(&query, &mut bits, || whose(user));
            found.map(|found| (found.rule.to_string(), found.after))
        };
        assert_eq!(of("bob"), Some(("b".to_owned(), None)));
        assert_eq!(
            of("amy"),
            Some(("c".to_owned(), Some(Duration::from_secs(5))))
        );
        let other = Query::alone(QueryId(8), "SELECT 1");
        let mut bits = SessionBits::default();
        let found = limits.of(&other, &mut bits, || whose("eve")).unwrap();
        assert_eq!(&*found.rule, "d");
        let mut bits = SessionBits::default();
        assert_eq!(limits.of(&other, &mut bits, || whose("amy")), None);
        assert!(limits.may_concern(&mut bits, || whose("amy")));
        // A session that knows the old set learns the new one.
        limits.set(BTreeMap::new().iter());
        assert!(!limits.may_concern(&mut bits, || whose("amy")));
    }
}
