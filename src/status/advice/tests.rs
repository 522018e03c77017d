use super::pools::{Obstacle, Pool};
use super::statements::{LockWait, Statement};
use super::*;
use crate::cluster::state::NodeState;
use crate::sql::state::PinReason;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn pool() -> Pool {
    Pool {
        database: "app".into(),
        user: "web".into(),
        max_size: 4,
        size_key: "databases.app.max_size".to_owned(),
        wait_limit: Some(120 * SECOND),
        waiting: 3,
        longest_wait: 2 * SECOND,
        waited: 30,
        in_use: 4,
        idle_in_transaction: 0,
        pinned: 0,
        obstacle: Obstacle::Size,
    }
}

#[test]
fn a_queue_that_lasts_names_the_setting_of_its_pool() {
    let advice = pools::on_pool(&pool()).unwrap();
    assert_eq!(advice.urgency, Urgency::Soon);
    assert_eq!(advice.setting.as_deref(), Some("databases.app.max_size"));
    assert_eq!(
        advice.what,
        "3 clients in the queue, the first for 2.0 s; clients waited in 30 of the last 60 seconds. 4 of 4 connections \
         in use."
    );
    assert!(advice.action.contains("databases.app.max_size (now 4)"));
    let near_its_end = Pool {
        longest_wait: 70 * SECOND,
        ..pool()
    };
    assert_eq!(pools::on_pool(&near_its_end).unwrap().urgency, Urgency::Now);
    let over = Pool {
        waiting: 0,
        longest_wait: Duration::ZERO,
        ..pool()
    };
    assert!(
        pools::on_pool(&over)
            .unwrap()
            .what
            .starts_with("Nobody in the queue now;")
    );
}

#[test]
fn a_moments_queue_is_not_worth_a_word() {
    let calm = Pool {
        waiting: 0,
        waited: 3,
        ..pool()
    };
    assert_eq!(pools::on_pool(&calm), None);
    let moment = Pool {
        waited: 3,
        longest_wait: 20 * MS,
        ..pool()
    };
    assert_eq!(pools::on_pool(&moment), None);
    let first_of_many = Pool {
        waited: 3,
        ..pool()
    };
    assert!(pools::on_pool(&first_of_many).is_some());
}

#[test]
fn what_holds_a_pool_up_decides_what_helps() {
    let with = |change: fn(&mut Pool)| {
        let mut pool = pool();
        change(&mut pool);
        pools::on_pool(&pool)
    };
    let pinned = with(|pool| pool.pinned = 2).unwrap();
    assert!(pinned.action.contains("pinned sessions") && pinned.setting.is_none());
    let idle = with(|pool| pool.idle_in_transaction = 3).unwrap();
    assert_eq!(
        idle.setting.as_deref(),
        Some("timeouts.idle_transaction_timeout")
    );
    let capped = with(|pool| pool.obstacle = Obstacle::Cap("max_db_connections")).unwrap();
    assert_eq!(capped.setting.as_deref(), Some("pool.max_db_connections"));
    let failed = with(|pool| pool.obstacle = Obstacle::OpenFailed("connection refused".into()));
    let failed = failed.unwrap();
    assert_eq!(failed.urgency, Urgency::Now);
    assert!(failed.action.contains("connection refused"));
    let paused = with(|pool| pool.obstacle = Obstacle::Paused).unwrap();
    assert!(paused.action.contains("RESUME app"));
    assert_eq!(with(|pool| pool.obstacle = Obstacle::NoPrimary), None);
}

fn statement(id: u64, text: &str) -> Statement {
    Statement {
        id: QueryId(id),
        text: text.into(),
        calls: 100,
        rows: 100,
        min: 8 * MS,
        p50: 10 * MS,
        mean: 11 * MS,
        concurrency: 0.2,
        errors: 0,
        errors_lately: 0.0,
        sqlstate: None,
    }
}

/// A lookup by key, which shows how long a round trip takes.
fn lookup() -> Statement {
    Statement {
        min: MS / 5,
        p50: MS / 4,
        mean: MS / 4,
        concurrency: 0.1,
        ..statement(1, "SELECT name FROM users WHERE id = $1")
    }
}

fn index_advised(statement: Statement) -> bool {
    statements::on_statements(&[lookup(), statement])
        .iter()
        .any(|advice| advice.action.starts_with("An index may be missing"))
}

#[test]
fn a_slow_search_for_a_few_rows_may_lack_an_index() {
    const SEARCH: &str = "SELECT count(*) FROM notes WHERE user_id = $1";
    assert!(index_advised(statement(2, SEARCH)));
    assert!(index_advised(statement(
        2,
        "  update notes SET x = $1 WHERE user_id = $2"
    )));
    for text in [
        "SELECT pg_sleep($1) FROM t WHERE a = $2",
        "SELECT a FROM t WHERE a = $1 FOR UPDATE",
        "SELECT a, count(*) FROM t WHERE b = $1 GROUP BY a",
        "SELECT count(*) FROM notes",
        "INSERT INTO t SELECT a FROM u WHERE b = $1",
        "",
    ] {
        assert!(!index_advised(statement(2, text)), "{text}");
    }
    let changed = |change: fn(&mut Statement)| {
        let mut statement = statement(2, SEARCH);
        change(&mut statement);
        index_advised(statement)
    };
    assert!(
        !changed(|statement| statement.rows = 5_000),
        "it reads many rows"
    );
    assert!(!changed(|statement| statement.calls = 5), "too few to tell");
    assert!(!changed(|statement| statement.p50 = MS), "fast enough");
    assert!(
        !changed(|statement| statement.min = MS / 5),
        "it can be fast: it waits for something"
    );
    assert!(
        !changed(|statement| statement.concurrency = 0.0),
        "it does not matter"
    );
    // Where every answer takes long because the server is far away, none is slow.
    let far = |id| Statement {
        min: 9 * MS,
        p50: 10 * MS,
        ..statement(id, SEARCH)
    };
    assert_eq!(statements::on_statements(&[far(1), far(2)]), []);
}

#[test]
fn the_statement_that_time_goes_to_is_named_on_a_busy_server() {
    let share = |concurrency| {
        let heavy = Statement {
            concurrency,
            ..statement(3, "SELECT a, count(*) FROM t GROUP BY a")
        };
        let found = statements::on_statements(&[lookup(), heavy]);
        found.first().map(|advice| advice.what.clone())
    };
    assert_eq!(
        share(0.9).as_deref(),
        Some("90 % of the time of all statements in the last minute, 11 ms a call.")
    );
    assert_eq!(share(0.1), None);
}

#[test]
fn statements_that_fail_are_explained_by_what_they_fail_with() {
    let failing = |sqlstate: &str| {
        let statement = Statement {
            errors: 7,
            errors_lately: 0.1,
            sqlstate: Some(sqlstate.to_owned()),
            ..lookup()
        };
        statements::on_statements(&[statement])
    };
    let duplicate = &failing("23505")[0];
    assert_eq!(
        duplicate.what,
        "7 of 100 calls failed, most often with 23505 (unique_violation)."
    );
    assert!(duplicate.action.contains("ON CONFLICT"));
    assert!(failing("22003")[0].what.contains("data_exception"));
    assert_eq!(failing("P0001"), [], "the application's own");
    let over = Statement {
        errors_lately: 0.0,
        ..lookup()
    };
    assert_eq!(statements::on_statements(&[over]), []);
}

#[test]
fn a_lock_names_who_holds_it_and_what_to_do() {
    let wait = |query, running, blocker, state: &str| LockWait {
        query: QueryId(query),
        running,
        relation: "assets".into(),
        blocker_state: state.into(),
        blocker,
    };
    let advice = statements::on_locks(&[
        wait(1, SECOND, 77, "active"),
        wait(2, 7 * SECOND, 88, "idle in transaction"),
        wait(3, 2 * SECOND, 77, "active"),
    ]);
    assert_eq!(advice.len(), 2);
    assert_eq!(
        advice[0].what,
        "2 statements wait for a lock on assets that server process 77 holds, the longest for 2.0 s."
    );
    assert_eq!(
        (advice[0].urgency, &advice[0].setting),
        (Urgency::Soon, &None)
    );
    assert_eq!(advice[1].urgency, Urgency::Now);
    assert_eq!(
        advice[1].setting.as_deref(),
        Some("timeouts.idle_transaction_timeout")
    );
}

#[test]
fn pins_are_grouped_by_their_cause_and_each_reason_has_a_remedy() {
    let pin = |reason, query, seconds| pins::Pin {
        reason,
        query: QueryId(query),
        age: seconds * SECOND,
    };
    let advice = pins::on_pins(&[
        pin(PinReason::AdvisoryLock, 1, 60),
        pin(PinReason::TempTable, 2, 200),
        pin(PinReason::TempTable, 2, 30),
        pin(PinReason::TempTable, 3, 1),
    ]);
    assert_eq!(advice.len(), 2, "a moment's pin is left out: {advice:?}");
    assert_eq!(
        advice[0].what,
        "2 sessions keep their server connection because of it (temp_table), for up to 3 min."
    );
    assert!(advice[0].action.contains("ON COMMIT DROP"));
    assert!(
        advice[1]
            .what
            .starts_with("1 session keeps its server connection")
    );
    for reason in PinReason::ALL {
        assert!(pins::remedy(reason).ends_with('.'), "{reason:?}");
    }
}

#[test]
fn servers_out_of_order_are_named() {
    let node = |state, is_primary, lag: Option<Duration>| {
        nodes::on_node(&nodes::Node {
            name: "db2:5432".into(),
            state,
            in_state: 90 * SECOND,
            is_primary,
            lag,
            error: Some("connection refused".into()),
        })
    };
    let urgency = |advice: Option<Advice>| advice.map(|advice| advice.urgency);
    assert_eq!(
        urgency(node(NodeState::Down, true, None)),
        Some(Urgency::Now)
    );
    let down = node(NodeState::Down, false, None).unwrap();
    assert_eq!(
        (down.urgency, &*down.what),
        (Urgency::Soon, "Down since 1 min: connection refused.")
    );
    assert_eq!(
        urgency(node(NodeState::Fenced, false, None)),
        Some(Urgency::Now)
    );
    assert_eq!(
        urgency(node(NodeState::Refused, false, None)),
        Some(Urgency::Now)
    );
    let lagging = node(NodeState::Lagging, false, Some(40 * SECOND)).unwrap();
    assert!(
        lagging.what.contains("40.0 s behind the primary"),
        "{lagging:?}"
    );
    let behind = node(NodeState::Up, false, Some(11 * SECOND));
    assert_eq!(urgency(behind), Some(Urgency::Hint));
    assert_eq!(node(NodeState::Up, false, Some(SECOND)), None);
    assert_eq!(node(NodeState::Draining, false, None), None);
    let held = nodes::on_cluster(&nodes::Cluster {
        servers: "db1:5432, db2:5432".into(),
        held: Some(3 * SECOND),
    });
    assert!(held.unwrap().what.contains("statements wait since 3.0 s"));
}

#[test]
fn the_most_urgent_comes_first_and_there_is_an_end_to_it() {
    let mut evidence = Evidence {
        clients: 95,
        clients_max: 100,
        pools: vec![Pool {
            longest_wait: 100 * SECOND,
            ..pool()
        }],
        statements: vec![lookup(), statement(2, "SELECT 1 FROM t WHERE a = $1")],
        ..Evidence::default()
    };
    let urgencies: Vec<Urgency> = advise(&evidence)
        .iter()
        .map(|advice| advice.urgency)
        .collect();
    assert_eq!(urgencies, [Urgency::Now, Urgency::Soon, Urgency::Hint]);
    evidence.pools = vec![pool(); 100];
    assert_eq!(advise(&evidence).len(), ADVICE_MAX);
    let calm = Evidence {
        clients_max: 100,
        ..Evidence::default()
    };
    assert_eq!(advise(&calm), []);
    let full = Evidence {
        clients: 100,
        clients_max: 100,
        ..Evidence::default()
    };
    let refused = &advise(&full)[0];
    assert_eq!(refused.urgency, Urgency::Now);
    assert_eq!(refused.setting.as_deref(), Some("general.max_client_conn"));
}

#[test]
fn times_are_spoken_with_their_units() {
    for (time, words) in [
        (Duration::from_micros(85), "85 µs"),
        (Duration::from_micros(2_340), "2.3 ms"),
        (Duration::from_millis(58), "58 ms"),
        (Duration::from_millis(1_500), "1.5 s"),
        (Duration::from_secs(200), "3 min"),
        (Duration::from_secs(5_400), "1.5 h"),
    ] {
        assert_eq!(spoken(time), words);
    }
}
