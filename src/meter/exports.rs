//! Which statements have series of their own in the metrics, and what the rest comes to.
//!
//! # Why
//! A counter must only grow, or a scraper takes it for a restart and adds all of it anew. If a statement that gets
//! series of its own took what it had counted along, the sum of the others would shrink. So what was once exported as
//! part of the others stays there, and the statement's own series begin at zero; when its series end, what they held
//! joins the others. The sum over all series is at every time what was counted in all.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::counts::OTHER_SQLSTATES_MAX;
use super::queries::QueriesSample;
use super::sample::{QueryId, QuerySample};
use crate::error::SqlState;

/// See the module.
#[derive(Debug, Default)]
pub struct Exports {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Statements with series of their own, and what they had counted before.
    own: HashMap<QueryId, Option<QuerySample>>,
    /// Statements that were exported among the others.
    among: HashSet<QueryId>,
    /// SQLSTATEs told apart where many statements' come together. Which they are stays: a series that comes late or goes
    /// would have the rest shrink.
    codes: HashSet<SqlState>,
}

impl Exports {
    /// Leaves `sum`, of many statements, only so many SQLSTATEs: those that were met first.
    pub fn cap(&self, sum: &mut QuerySample) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        sum.sqlstates.sort_by_key(|(_, count)| Reverse(*count));
        sum.sqlstates.retain(|(code, _)| {
            let has_room = state.codes.len() < OTHER_SQLSTATES_MAX;
            state.codes.contains(code) || (has_room && state.codes.insert(*code))
        });
    }

    /// The `max` statements with the most time, as their series are to show them, and all others.
    pub fn select(&self, sample: &QueriesSample, max: usize) -> (Vec<QuerySample>, QuerySample) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (top, rest) = sample.queries.split_at(sample.queries.len().min(max));
        let mut other = sample.other.clone();
        for query in rest {
            other = other.plus(query);
        }
        let mut before = std::mem::take(&mut state.own);
        let shown = top
            .iter()
            .map(|query| {
                let base = match before.remove(&query.id) {
                    // Its record has made room and begun anew meanwhile.
                    Some(base) => base.filter(|base| base.calls <= query.calls),
                    None => state.among.contains(&query.id).then(|| query.clone()),
                };
                let shown = base
                    .as_ref()
                    .map_or_else(|| query.clone(), |base| query.minus(base));
                if let Some(base) = &base {
                    other = other.plus(base);
                }
                state.own.insert(query.id, base);
                shown
            })
            .collect();
        state.among = rest.iter().map(|query| query.id).collect();
        (shown, other)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Execution, Queries};
    use super::*;

    fn run(queries: &Queries, id: u64, millis: u64) {
        let took = Duration::from_millis(millis);
        let query = queries.record(QueryId(id), || "q".into());
        let execution = Execution::that_took(took);
        queries.count(&query, &execution);
    }

    fn select(queries: &Queries, exports: &Exports, max: usize) -> (Vec<(u64, u64)>, u64) {
        let (shown, other) = exports.select(&queries.sample(), max);
        let shown = shown.iter().map(|query| (query.id.0, query.calls));
        (shown.collect(), other.calls)
    }

    #[test]
    fn series_only_grow_whoever_has_them() {
        let (queries, exports) = (Queries::default(), Exports::default());
        run(&queries, 1, 100);
        run(&queries, 2, 10);
        run(&queries, 2, 10);
        assert_eq!(select(&queries, &exports, 1), (vec![(1, 1)], 2));
        // The second overtakes the first: its series begin at nothing, the first's calls join the others.
        run(&queries, 2, 500);
        assert_eq!(select(&queries, &exports, 1), (vec![(2, 0)], 4));
        run(&queries, 2, 500);
        run(&queries, 1, 1);
        assert_eq!(select(&queries, &exports, 1), (vec![(2, 1)], 5));
        // A new one that is at the top at once has all of its own.
        run(&queries, 3, 5000);
        assert_eq!(select(&queries, &exports, 1), (vec![(3, 1)], 6));
        assert_eq!(select(&queries, &exports, 0), (vec![], 7));
    }

    #[test]
    fn sqlstates_of_many_statements_are_bounded_and_stay_the_same() {
        let exports = Exports::default();
        let code =
            |number: u64| SqlState(*format!("X{number:04}").as_bytes().first_chunk().unwrap());
        let mut sum = Queries::default().sample().other;
        sum.sqlstates = (0..500).map(|number| (code(number), number + 1)).collect();
        exports.cap(&mut sum);
        assert_eq!(sum.sqlstates.len(), OTHER_SQLSTATES_MAX);
        assert_eq!(sum.sqlstates[0], (code(499), 500));
        sum.sqlstates = vec![(code(0), 100_000), (code(499), 501)];
        exports.cap(&mut sum);
        assert_eq!(sum.sqlstates, [(code(499), 501)]);
    }

    #[test]
    fn nothing_goes_backwards_over_many_scrapes() {
        let (queries, exports) = (Queries::default(), Exports::default());
        queries.set_max(8);
        let (mut last, mut runs) = (0, 0);
        for round in 0..300_u64 {
            run(&queries, round * 7 % 23 + 1, round * 13 % 17);
            runs += 1;
            let (shown, other) = select(&queries, &exports, 3);
            let own: u64 = shown.iter().map(|(_, calls)| calls).sum();
            assert_eq!(own + other, runs);
            assert!(other >= last, "{other} after {last} in round {round}");
            last = other;
        }
    }
}
