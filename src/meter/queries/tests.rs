use std::time::Duration;

use super::*;
use crate::error::SqlState;
use crate::meter::Execution;

fn execution(millis: u64) -> Execution {
    Execution {
        origin: Origin::default(),
        node: NameId::NONE,
        at: Instant::now(),
        queued: Duration::ZERO,
        took: Duration::from_millis(millis),
        first: Duration::from_millis(millis),
        rows: 2,
        received: 10,
        sent: 100,
        error: None,
        continues: false,
    }
}

fn run(queries: &Queries, id: u64, millis: u64) -> Arc<Query> {
    let query = queries.record(QueryId(id), || format!("q{id}").into());
    queries.touch(&query);
    query.finished(&execution(millis));
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
    query.finished(&Execution {
        origin,
        node: queries.node("primary"),
        first: Duration::from_millis(10),
        queued: Duration::from_millis(5),
        error: Some(SqlState::QUERY_CANCELED),
        ..execution(30)
    });
    query.finished(&Execution {
        origin,
        ..execution(20)
    });
    query.finished(&Execution {
        continues: true,
        ..execution(50)
    });
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
    query.finished(&execution(31));
    query.finished(&execution(33));
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
        heavy.finished(&execution(1));
    }
    let sample = queries.sample();
    assert!(sample.queries.len() <= 11, "{}", sample.queries.len());
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
    for id in 2..20 {
        run(&queries, id, 5);
    }
    assert!(held.is_retired());
    held.finished(&execution(1));
    assert_eq!(calls(&queries.sample()), 20);
    held.finished(&execution(1));
    drop(held);
    assert_eq!(calls(&queries.sample()), 21);
}

#[test]
fn a_statement_that_is_run_again_gets_its_record_back() {
    let queries = Queries::default();
    queries.set_max(2);
    let held = run(&queries, 1, 1);
    for id in 2..10 {
        run(&queries, id, 5);
    }
    assert!(held.is_retired());
    for _ in 0..100 {
        queries.touch(&held);
        held.finished(&execution(50));
    }
    let sample = queries.sample();
    let own = &sample.queries[0];
    assert_eq!((own.id, own.calls), (QueryId(1), 100));
    assert_eq!(calls(&sample), 109);
}

#[test]
fn a_statement_met_anew_goes_on_in_the_record_that_is_held() {
    let queries = Queries::default();
    queries.set_max(2);
    let held = run(&queries, 1, 1);
    for id in 2..10 {
        run(&queries, id, 5);
    }
    assert!(held.is_retired());
    let anew = run(&queries, 1, 50);
    assert!(Arc::ptr_eq(&held, &anew) && !held.is_retired());
    held.finished(&execution(50));
    let own = queries.sample().queries.remove(0);
    assert_eq!((own.id, own.calls), (QueryId(1), 2));
}

#[test]
fn nothing_is_counted_twice_by_who_looks_while_records_make_room() {
    let queries = Queries::default();
    queries.set_max(8);
    let runs = std::sync::atomic::AtomicU64::new(0);
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
