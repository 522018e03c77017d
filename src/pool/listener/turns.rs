//! In which order the pools of a shared listener's sessions log in, and when none of them can.

use std::collections::HashSet;
use std::sync::Arc;

use super::Hope;
use crate::pool::{Pool, PoolKey};

/// Which of a listener's pools logs in next.
#[derive(Debug, Default)]
pub(super) struct Turns {
    attempts: usize,
    /// Those that could not, each once, since one of them could or none was left.
    refused: HashSet<PoolKey>,
}

impl Turns {
    /// The next one: of those not refused one that may open now, if there are such.
    pub(super) fn next<'a>(&mut self, candidates: &'a [Arc<Pool>]) -> Option<&'a Arc<Pool>> {
        self.refused
            .retain(|key| candidates.iter().any(|pool| pool.key == *key));
        let from = self.attempts % candidates.len().max(1);
        self.attempts = self.attempts.wrapping_add(1);
        let in_turn = || candidates[from..].iter().chain(&candidates[..from]);
        let is_hopeful = |pool: &&Arc<Pool>| !self.refused.contains(&pool.key);
        in_turn()
            .find(|pool| is_hopeful(pool) && !pool.is_held())
            .or_else(|| in_turn().find(is_hopeful))
            .or_else(|| in_turn().next())
    }

    /// What there is to hope for after the attempt of `pool` that has failed, for the time being or because it was refused.
    /// `candidates` are those that there are by now.
    pub(super) fn note(&mut self, pool: &Pool, candidates: &[Arc<Pool>], is_passing: bool) -> Hope {
        if is_passing {
            self.refused.remove(&pool.key);
            return Hope::Passing;
        }
        self.refused.insert(pool.key.clone());
        if self.is_one_left(candidates) {
            return Hope::Passing;
        }
        self.refused.clear();
        Hope::None
    }

    fn is_one_left(&self, candidates: &[Arc<Pool>]) -> bool {
        candidates
            .iter()
            .any(|pool| !self.refused.contains(&pool.key))
    }
}
