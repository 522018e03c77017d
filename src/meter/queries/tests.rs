use std::time::Duration;

use super::*;
use crate::error::SqlState;
use crate::meter::Execution;

fn execution(millis: u64) -> Execution {
    Execution {
        rows: 2,
        received: 10,
        sent: 100,
        ..Execution::that_took(Duration::from_millis(millis))
    }
}

fn run(queries: &Queries, id: u64, millis: u64) -> Arc<Query> {
    let query = queries.record(QueryId(id), || format!("q{id}").into());
    queries.count(&query, &execution(millis));
    query
}

fn calls(sample: &QueriesSample) -> u64 {
    sample.queries.iter().map(|query| query.calls).sum::<u64>() + sample.other.calls
}

#[test]
fn an_execution_counts_in_all_its_aspects() {
    let queries = Queries::default();
    let origin = queries.origin("bob", "app", "web");
    let query = queries.record(QueryId(7), || "SELECT $1".into());
    queries.count(
        &query,
        &Execution {
            origin,
            node: queries.node("primary"),
            first: Duration::from_millis(10),
            queued: Duration::from_millis(5),
            error: Some(SqlState::QUERY_CANCELED),
            ..execution(30)
        },
    );
    queries.count(
        &query,
        &Execution {
            origin,
            ..execution(20)
        },
    );
    queries.count(
        &query,
        &Execution {
            continues: true,
            ..execution(50)
        },
    );
    query.pinned();
    query.retried();
    query.answered_from_cache();
    let sample = queries.sample().queries.remove(0);
    assert_eq!((sample.id, &*sample.text), (QueryId(7), "SELECT $1"));
    assert_eq!((sample.calls, sample.rows), (2, 6));
    assert_eq!((sample.received, sample.sent), (30, 300));
    let millis = Duration::from_millis;
    assert_eq!(sample.total.sum, millis(100));
    assert_eq!((sample.min, sample.max), (millis(20), millis(30)));
    assert_eq!(sample.first.sum, millis(30));
    assert_eq!(sample.first.distribution.count(), 2);
    assert_eq!(sample.queue.sum, millis(5));
    assert_eq!(sample.queue.distribution.count(), 2);
    assert_eq!(sample.errors, 1);
    assert_eq!(sample.sqlstates, [(SqlState::QUERY_CANCELED, 1)]);
    assert_eq!((sample.pins, sample.retries, sample.cache_hits), (1, 1, 1));
    assert_eq!(sample.users, ["bob".into()]);
    assert_eq!(sample.databases, ["app".into()]);
    assert_eq!(sample.applications, ["web".into()]);
    assert_eq!(sample.nodes, ["primary".into()]);
    assert!(sample.last_seen >= sample.first_seen);
}

#[test]
fn no_quantile_is_outside_of_what_there_was() {
    let queries = Queries::default();
    let query = queries.record(QueryId(7), || "SELECT $1".into());
    queries.count(&query, &execution(31));
    queries.count(&query, &execution(33));
    let sample = queries.sample().queries.remove(0);
    let millis = Duration::from_millis;
    assert_ne!(sample.total.distribution.quantile(1.0), millis(33));
    let at = [0.0, 0.5, 1.0].map(|q| sample.time_at(q));
    assert!(at[0] >= millis(31) && at[2] <= millis(33), "{at:?}");
}

#[test]
fn the_records_with_the_most_time_stay_and_nothing_is_lost() {
    let queries = Queries::default();
    queries.set_max(10);
    let heavy = run(&queries, 1, 1000);
    for id in 2..10_000 {
        run(&queries, id, 1);
        queries.count(&heavy, &execution(1));
    }
    let sample = queries.sample();
    assert!(sample.queries.len() <= 10, "{}", sample.queries.len());
    assert_eq!(sample.queries[0].id, QueryId(1));
    assert_eq!(sample.queries[0].calls, 9999);
    assert_eq!(calls(&sample), 2 * 9998 + 1);
    let rows: u64 = sample.queries.iter().map(|query| query.rows).sum();
    assert_eq!(rows + sample.other.rows, 2 * calls(&sample));
    assert!(sample.evictions >= 9_980);
}

#[test]
fn what_is_counted_in_a_record_that_has_made_room_is_not_lost() {
    let queries = Queries::default();
    queries.set_max(1);
    let held = run(&queries, 1, 1);
    // Who has seen its record counts there, though it is taken away meanwhile.
    let seen = held.own().unwrap();
    for id in 2..20 {
        run(&queries, id, 5);
    }
    assert!(!held.is_kept());
    seen.finished(&execution(1));
    drop(seen);
    assert_eq!(calls(&queries.sample()), 20);
    queries.count(&held, &execution(1));
    assert_eq!(calls(&queries.sample()), 21);
    drop(held);
    for _ in 0..3 {
        queries.count(&run(&queries, 1, 1), &execution(100));
    }
    assert_eq!(calls(&queries.sample()), 27);
}

#[test]
fn a_statement_that_is_run_again_and_again_gets_its_record_back() {
    let queries = Queries::default();
    queries.set_max(2);
    let held = run(&queries, 1, 1);
    for id in 2..10 {
        run(&queries, id, 20);
    }
    assert!(!held.is_kept());
    for _ in 0..100 {
        queries.count(&held, &execution(5));
    }
    let sample = queries.sample();
    let own = &sample.queries[0];
    // Three among all others, and with the next it has as much as the record with the least.
    assert_eq!((own.id, own.calls), (QueryId(1), 97));
    assert_eq!(calls(&sample), 109);
}

#[test]
fn one_slow_execution_is_enough_and_what_is_light_makes_nobody_room() {
    let queries = Queries::default();
    queries.set_max(10);
    for id in 1..=10 {
        run(&queries, id, 100 + id);
    }
    for id in 11..1000 {
        run(&queries, id, 1);
    }
    let sample = queries.sample();
    let mut kept: Vec<u64> = sample.queries.iter().map(|query| query.id.0).collect();
    kept.sort_unstable();
    assert_eq!(kept, (1..=10).collect::<Vec<_>>());
    assert_eq!((sample.evictions, sample.other.calls), (0, 989));
    run(&queries, 1000, 5000);
    let sample = queries.sample();
    let first = &sample.queries[0];
    assert_eq!((first.id, first.calls), (QueryId(1000), 1));
    assert!(sample.queries.iter().all(|query| query.id != QueryId(1)));
    assert_eq!((sample.evictions, sample.other.calls), (1, 990));
}

#[test]
fn a_lower_bound_holds_from_the_next_new_statement_on() {
    let queries = Queries::default();
    for id in 1..=1000 {
        run(&queries, id, id);
    }
    queries.set_max(10);
    run(&queries, 1001, 999);
    let sample = queries.sample();
    let kept: Vec<u64> = sample.queries.iter().map(|query| query.id.0).collect();
    assert_eq!(kept.len(), 10);
    assert!(kept.contains(&1001) && kept.contains(&1000), "{kept:?}");
    assert_eq!(calls(&sample), 1001);
}

#[test]
fn a_statement_met_anew_has_one_record() {
    let queries = Queries::default();
    queries.set_max(2);
    let held = run(&queries, 1, 1);
    for id in 2..10 {
        run(&queries, id, 5);
    }
    assert!(!held.is_kept());
    let anew = run(&queries, 1, 50);
    assert!(anew.is_kept() && !Arc::ptr_eq(&held, &anew));
    queries.count(&held, &execution(500));
    assert!(held.is_kept() && !anew.is_kept());
    assert!(Arc::ptr_eq(&held, &run(&queries, 1, 50)));
    let sample = queries.sample();
    let of_it = sample.queries.iter().filter(|query| query.id == QueryId(1));
    let of_it: Vec<u64> = of_it.map(|query| query.calls).collect();
    // The first went to the others.
    assert_eq!(of_it, [3]);
    assert_eq!(calls(&sample), 12);
}

fn assert_each_once(sample: &QueriesSample, max: usize) {
    let mut ids: Vec<_> = sample.queries.iter().map(|it| it.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), sample.queries.len());
    assert!(ids.len() <= max);
}

/// Runs statements of 41, one of which it holds as a session does that has prepared it.
fn run_many(queries: &Queries, times: u64, stride: u64) {
    let held = queries.record(QueryId(1), || "q1".into());
    for number in 0..times {
        let id = number * stride % 41 + 1;
        let query = match id {
            1 => Arc::clone(&held),
            _ => queries.record(QueryId(id), || format!("q{id}").into()),
        };
        let execution = Execution {
            error: Some(SqlState::QUERY_CANCELED).filter(|_| number % 3 == 0),
            ..execution(number % 13 + id)
        };
        queries.count(&query, &execution);
        if number % 1000 == 0 {
            assert_each_once(&queries.sample(), 8);
        }
    }
}

#[test]
fn many_who_count_at_once_lose_nothing_and_keep_the_bound() {
    const EACH: u64 = 20_000;
    let queries = Queries::default();
    queries.set_max(8);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let queries = &queries;
            scope.spawn(move || run_many(queries, EACH, 7 + thread));
        }
    });
    let sample = queries.sample();
    assert_eq!(calls(&sample), 4 * EACH);
    let all = || sample.queries.iter().chain([&sample.other]);
    let errors: u64 = all().map(|query| query.errors).sum();
    let named = all().flat_map(|query| &query.sqlstates);
    assert_eq!(errors, 4 * EACH.div_ceil(3));
    assert_eq!(named.map(|(_, count)| count).sum::<u64>(), errors);
    // Whatever was found amid all that, what takes long enough is let in.
    assert!(run(&queries, 1000, 10_000_000).is_kept());
}

#[test]
fn nothing_is_counted_twice_by_who_looks_while_records_make_room() {
    let queries = Queries::default();
    queries.set_max(8);
    let runs = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..20_000_u64 {
                runs.fetch_add(1, Ordering::SeqCst);
                run(&queries, number * 7 % 101 + 1, number % 13);
            }
        });
        let mut last = 0;
        while last < 20_000 {
            let sum = calls(&queries.sample());
            let begun = runs.load(Ordering::SeqCst);
            assert!(sum <= begun, "{sum} calls of {begun}");
            assert!(sum >= last, "{sum} calls after {last}");
            last = sum;
        }
    });
}
