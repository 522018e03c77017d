//! In which order the pools of a shared listener's sessions log in, and when none of them can.

use std::collections::HashSet;
use std::sync::Arc;

use super::Hope;
use crate::pool::{Pool, PoolKey};

/// Which of a listener's pools logs in next.
#[derive(Debug, Default)]
pub(super) struct Turns {
    attempts: usize,
    /// Those that were refused, each once, since one of them was not or none was left.
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
            // Those refused before are to try again, too: this one may not get further for long.
            self.refused.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::connect::Dialer;
    use crate::config::{Overrides, load};
    use crate::pool::Pools;

    #[test]
    fn a_pool_that_was_refused_is_tried_again_whatever_keeps_the_others() {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://127.0.0.1:1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let candidates = ["refused", "kept"].map(|user| pools.get(&config, "app", user).unwrap());
        let mut turns = Turns::default();
        let mut tried = Vec::new();
        for _ in 0..8 {
            let pool = turns.next(&candidates).unwrap();
            let is_passing = *pool.key.user == *"kept";
            assert_eq!(turns.note(pool, &candidates, is_passing), Hope::Passing);
            tried.push(is_passing);
        }
        assert_eq!(tried.iter().filter(|&&is_passing| !is_passing).count(), 4);
    }

    #[test]
    fn where_all_are_refused_there_is_no_hope() {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://127.0.0.1:1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let candidates = ["one", "two"].map(|user| pools.get(&config, "app", user).unwrap());
        let mut turns = Turns::default();
        for hope in [Hope::Passing, Hope::None, Hope::Passing, Hope::None] {
            let pool = turns.next(&candidates).unwrap();
            assert_eq!(turns.note(pool, &candidates, false), hope);
        }
    }
}
