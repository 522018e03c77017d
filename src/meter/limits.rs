//! Rules of the configuration that give statements a time limit of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::fitting::{Conditions, Fitting, SessionBits, Whose};
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

#[derive(Debug, Default)]
struct LimitSet {
    fitting: Fitting,
    limits: Vec<Override>,
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Limits {
    set: ArcSwap<LimitSet>,
    versions: AtomicU32,
    /// Whether there are any: all that a statement costs where there are none.
    is_on: AtomicBool,
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
        let with_limit = |(name, rule): (&'a String, &'a StatementRule)| {
            let limit = rule.query_timeout?;
            let limit = Override {
                after: Some(limit).filter(|limit| !limit.is_zero()),
                rule: name.as_str().into(),
            };
            Some((Conditions::from(rule), limit))
        };
        let (conditions, limits): (Vec<_>, Vec<_>) = rules.filter_map(with_limit).unzip();
        let is_on = !limits.is_empty();
        self.set.store(Arc::new(LimitSet {
            fitting: Fitting::new(version.wrapping_add(1), conditions.into_iter()),
            limits,
        }));
        self.is_on.store(is_on, Ordering::Release);
    }

    /// Whether a rule may be about a statement of the session. `session` is brought up to date if it is not.
    pub fn may_concern<'a>(
        &self,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> bool {
        self.is_on.load(Ordering::Acquire)
            && self.set.load().fitting.of_session(session, whose) != 0
    }

    /// What the first rule says that fits `query`.
    pub fn of<'a>(
        &self,
        query: &Query,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> Option<Override> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        let set = self.set.load();
        let of_session = set.fitting.of_session(session, whose);
        if of_session == 0 {
            return None;
        }
        let bits = of_session & set.fitting.of_query(query, &query.limits);
        let first = usize::try_from(bits.trailing_zeros()).unwrap_or(usize::MAX);
        set.limits.get(first).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::Instant;

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
        }
    }

    #[test]
    fn the_first_rule_with_a_limit_that_fits_decides() {
        let limits = Limits::default();
        let query = Query::new(QueryId(7), "SELECT report".into(), Instant::now(), None);
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
        let other = Query::new(QueryId(8), "SELECT 1".into(), Instant::now(), None);
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
