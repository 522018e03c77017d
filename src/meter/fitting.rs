//! Which rules fit a statement and its session, as sets of bits: one for what a statement's text decides, another for
//! what its session decides.
//!
//! The first is kept in the statement's record and the second in the session, so that a rule costs an execution nothing
//! but a look at both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::like::like;
use super::query::Query;

/// Most rules of one set: one bit each.
pub(super) const RULES_MAX: usize = 32;

/// What a rule asks for; what is not given fits everything.
#[derive(Debug)]
pub(super) struct Conditions {
    pub(super) queryid: Option<String>,
    /// A pattern of `LIKE` for the text without constants.
    pub(super) query: Option<String>,
    pub(super) user: Option<String>,
    pub(super) database: Option<String>,
    pub(super) application_name: Option<String>,
}

/// Whose statements they are.
#[derive(Clone, Debug)]
pub struct Whose<'a> {
    pub user: &'a str,
    pub database: &'a str,
    pub application: Arc<str>,
}

/// What a session remembers of a set of rules: which set, and which of its rules may be about the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionBits {
    version: u32,
    bits: u32,
}

/// The conditions of all rules of one set at one time; those beyond [`RULES_MAX`] are ignored.
#[derive(Debug, Default)]
pub(super) struct Fitting {
    /// Differs from that of every other set of its kind.
    version: u32,
    rules: Vec<Conditions>,
}

impl Fitting {
    pub(super) fn new(version: u32, rules: impl Iterator<Item = Conditions>) -> Self {
        Self {
            version,
            rules: rules.take(RULES_MAX).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules that may be about the session's statements, which `session` remembers.
    pub(super) fn of_session<'a>(
        &self,
        session: &mut SessionBits,
        whose: impl FnOnce() -> Whose<'a>,
    ) -> u32 {
        if session.version != self.version {
            let whose = whose();
            let fits =
                |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|name| name == is);
            let bits = self.bits(|rule| {
                fits(&rule.user, whose.user)
                    && fits(&rule.database, whose.database)
                    && fits(&rule.application_name, &whose.application)
            });
            *session = SessionBits {
                version: self.version,
                bits,
            };
        }
        session.bits
    }

    /// The rules that fit `query`, which `kept` remembers.
    pub(super) fn of_query(&self, query: &Query, kept: &AtomicU64) -> u32 {
        let known = kept.load(Ordering::Relaxed);
        // The upper half is the version.
        if known >> 32 == u64::from(self.version) {
            return u32::try_from(known & u64::from(u32::MAX)).unwrap_or(0);
        }
        let id = query.id.to_string();
        let bits = self.bits(|rule| {
            let is_it = |wanted: &String| wanted.eq_ignore_ascii_case(&id);
            let is_like = |pattern: &String| like(&query.text, pattern, true);
            rule.queryid.as_ref().is_none_or(is_it) && rule.query.as_ref().is_none_or(is_like)
        });
        let known = u64::from(self.version) << 32 | u64::from(bits);
        kept.store(known, Ordering::Relaxed);
        bits
    }

    fn bits(&self, fits: impl Fn(&Conditions) -> bool) -> u32 {
        let places = self.rules.iter().enumerate();
        places
            .filter(|(_, rule)| fits(rule))
            .fold(0, |bits, (place, _)| bits | 1 << place)
    }
}
