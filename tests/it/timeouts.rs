//! Every limit in time: what it ends, what the client is told, what goes on.

use std::time::Duration;

use pgweir::demo::cluster::ServerOptions;
use tokio::time::Instant;

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::Options;
use crate::support::scripted_backend::{ScriptedBackend, Step};
use crate::support::wait::{eventually, wait_until};

fn with(setting: &str, limit: &str) -> Options {
    Options::new(shared::server()).set(&format!("timeouts.{setting}"), limit)
}

#[track_caller]
fn is_about(error: &ServerError, severity: &str, code: &str, setting: &str) {
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        (severity, code),
        "{error:?}"
    );
    let hint = error.hint.as_deref().unwrap_or_default();
    assert!(hint.contains(setting), "{error:?}");
}

async fn end_of(mut client: Client) -> ServerError {
    let mut errors = client.expect_end().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

/// Waits until no statement with `mark` in it runs on the server.
fn nothing_runs(mark: &str) {
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid() \
         AND query LIKE '%{mark}%'"
    );
    wait_until("the statement to end on the server", || {
        shared::server().sql("postgres", &running).unwrap() == "0"
    });
}

#[tokio::test]
async fn a_statement_over_its_time_is_cancelled_on_the_server_and_the_session_goes_on() {
    let pgweir = with("query_timeout", "200ms")
        .flag("--pool-size", "1")
        .start();
    let mut client = pgweir.client().await;
    for _ in 0..2 {
        let reply = client
            .query("SELECT 'query_timeout_mark', pg_sleep(600)")
            .await;
        is_about(reply.error(), "ERROR", "57014", "timeouts.query_timeout");
        assert_eq!(reply.status, 'I');
        nothing_runs("query_timeout_mark");
        let extended = client.extended("SELECT pg_sleep(600)", &[]).await;
        is_about(extended.error(), "ERROR", "57014", "timeouts.query_timeout");
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    // In a transaction it is one failed statement.
    client.query("BEGIN").await.ok();
    let reply = client.query("SELECT pg_sleep(600)").await;
    assert_eq!((reply.sqlstate(), reply.status), ("57014", 'E'));
    client.query("ROLLBACK").await.ok();
    assert_eq!(client.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn query_timeout_counts_from_the_statement_and_not_from_its_rows() {
    let pgweir = with("query_timeout", "700ms").start();
    let mut client = pgweir.client().await;
    let begun = Instant::now();
    // Rows all the time, far more than a buffer holds.
    let rows = "SELECT repeat('x', 20000), pg_sleep(0.01) FROM generate_series(1, 100000)";
    let reply = client.query(rows).await;
    assert_eq!(reply.sqlstate(), "57014");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn query_timeout_leaves_a_client_its_time_between_statements() {
    let pgweir = with("query_timeout", "300ms").start();
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.value("SELECT 1").await, "1");
    // An exchange without its Sync is the client's to go on with, too.
    client
        .send(&[messages::parse("", "SELECT 2", &[]), messages::flush()].concat())
        .await;
    client.expect(b'1').await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let rest = [
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::sync(),
    ];
    client.send(&rest.concat()).await;
    assert_eq!(client.reply().await.ok().value(), "2");
    client.query("COMMIT").await.ok();
}

#[tokio::test]
async fn a_transaction_left_idle_is_ended_and_rolled_back() {
    let server = shared::server();
    let pgweir = with("idle_transaction_timeout", "300ms")
        .flag("--pool-size", "1")
        .start();
    let mut client = pgweir.client().await;
    client
        .query("CREATE TABLE IF NOT EXISTS left_idle (a int)")
        .await
        .ok();
    // Busy is not idle, and outside a transaction there is no hurry.
    client
        .query("BEGIN; INSERT INTO left_idle VALUES (1)")
        .await
        .ok();
    client.query("SELECT pg_sleep(0.6)").await.ok();
    client.query("COMMIT").await.ok();
    tokio::time::sleep(Duration::from_millis(500)).await;
    client
        .query("BEGIN; INSERT INTO left_idle VALUES (2)")
        .await
        .ok();
    is_about(
        &end_of(client).await,
        "FATAL",
        "25P03",
        "timeouts.idle_transaction_timeout",
    );
    let mut next = pgweir.client().await;
    assert_eq!(next.value("SELECT count(*) FROM left_idle").await, "1");
    // A failed one holds its backend as well.
    next.query("BEGIN; SELECT 1/0").await;
    is_about(
        &end_of(next).await,
        "FATAL",
        "25P03",
        "timeouts.idle_transaction_timeout",
    );
    // So does an exchange without its Sync.
    let mut open = pgweir.client().await;
    open.send(&[messages::parse("", "SELECT 2", &[]), messages::flush()].concat())
        .await;
    open.expect(b'1').await;
    is_about(
        &end_of(open).await,
        "FATAL",
        "25P03",
        "timeouts.idle_transaction_timeout",
    );
    server.sql("postgres", "DROP TABLE left_idle").unwrap();
}

#[tokio::test]
async fn a_transaction_over_its_time_is_ended_busy_or_not() {
    let pgweir = with("transaction_timeout", "400ms")
        .flag("--pool-size", "1")
        .start();
    let mut busy = pgweir.client().await;
    busy.query("BEGIN").await.ok();
    busy.send(&messages::query(
        "SELECT 'transaction_timeout_mark', pg_sleep(600)",
    ))
    .await;
    is_about(
        &end_of(busy).await,
        "FATAL",
        "25P04",
        "timeouts.transaction_timeout",
    );
    nothing_runs("transaction_timeout_mark");
    let mut chatty = pgweir.client().await;
    chatty.query("BEGIN").await.ok();
    let begun = Instant::now();
    let told = loop {
        chatty.send(&messages::query("SELECT 1")).await;
        let message = chatty.message().await;
        if message.tag == b'E' {
            break ServerError::parse(&message);
        }
        chatty.reply().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    };
    is_about(&told, "FATAL", "25P04", "timeouts.transaction_timeout");
    // Many short ones are no long one.
    let mut short = pgweir.client().await;
    for _ in 0..4 {
        short
            .query("BEGIN; SELECT pg_sleep(0.15); COMMIT")
            .await
            .ok();
    }
}

#[tokio::test]
async fn a_client_idle_too_long_is_sent_away() {
    let pgweir = with("client_idle_timeout", "1500ms").start();
    let mut lively = pgweir.client().await;
    let silent = pgweir.client().await;
    let mut pinned = pgweir.client().await;
    pinned.query("CREATE TEMP TABLE t (a int)").await.ok();
    let mut in_transaction = pgweir.client().await;
    in_transaction.query("BEGIN").await.ok();
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(lively.value("SELECT 1").await, "1");
    }
    for client in [silent, pinned] {
        is_about(
            &end_of(client).await,
            "FATAL",
            "57P05",
            "timeouts.client_idle_timeout",
        );
    }
    assert_eq!(in_transaction.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_rows_is_cut_off() {
    let pgweir = with("client_write_timeout", "500ms")
        .flag("--pool-size", "1")
        .start();
    let mut deaf = pgweir.client().await;
    deaf.send(&messages::query(
        "SELECT 'client_write_mark', repeat('x', 1000) FROM generate_series(1, 10000000)",
    ))
    .await;
    // Its backend serves the next one, who had no other.
    let mut next = pgweir.client().await;
    assert_eq!(next.value("SELECT 1").await, "1");
    nothing_runs("client_write_mark");
    assert!(pgweir.log_contains("client write timeout"));
    drop(deaf);
    // A slow statement is not a slow client.
    next.query("SELECT pg_sleep(1), repeat('x', 5000000)")
        .await
        .ok();
}

#[tokio::test]
async fn a_client_waits_no_longer_than_it_may_and_is_told_what_for() {
    let pgweir = with("query_wait_timeout", "300ms")
        .flag("--pool-size", "1")
        .start();
    let mut holder = pgweir.client().await;
    holder.query("BEGIN").await.ok();
    let mut waiting = pgweir.client().await;
    for _ in 0..2 {
        let simple = waiting.query("SELECT 1").await;
        assert_eq!((simple.sqlstate(), simple.status), ("53300", 'I'));
        assert!(simple.error().message.contains("query_wait_timeout"));
        let extended = waiting.extended("SELECT 1", &[]).await;
        assert_eq!(extended.sqlstate(), "53300");
    }
    holder.query("COMMIT").await.ok();
    assert_eq!(waiting.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_server_that_stalls_at_login_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://{}", listener.local_addr().unwrap());
    let pgweir = Options::in_front_of(&url)
        .set("timeouts.server_connect_timeout", "200ms")
        .set("timeouts.query_wait_timeout", "1s")
        .start();
    let begun = Instant::now();
    let login = Login::new("postgres", "postgres");
    let error = Client::connect_as(pgweir.address, &login)
        .await
        .err()
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(
        error.detail.unwrap().contains("server_connect_timeout"),
        "a detail"
    );
    pgweir.wait_for_log("server_connect_timeout");
}

#[tokio::test]
async fn a_server_that_ignores_the_cancel_is_given_up() {
    let backend = ScriptedBackend::start(vec![Step::ExpectSql("SELECT 1"), Step::Stall]).await;
    let pgweir = Options::in_front_of_script(&backend)
        .set("timeouts.query_timeout", "200ms")
        .set("timeouts.cancel_wait_timeout", "300ms")
        .start();
    let mut client = Client::connect(pgweir.address, "u", "d").await;
    let begun = Instant::now();
    client.send(&messages::query("SELECT 1")).await;
    let error = end_of(client).await;
    is_about(&error, "FATAL", "57014", "timeouts.query_timeout");
    assert!(begun.elapsed() >= Duration::from_millis(450));
    eventually("the cancel request", async || !backend.cancels().is_empty()).await;
}

#[tokio::test]
async fn users_and_databases_have_timeouts_of_their_own() {
    let server = ServerOptions::default().start().unwrap();
    server.sql("postgres", "CREATE ROLE hasty LOGIN").unwrap();
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n\
         [databases.postgres]\n[databases.fast]\ndbname = \"postgres\"\nquery_timeout = \"100ms\"\n\
         [users.hasty]\nquery_timeout = \"100ms\"\n",
        server.node_url()
    );
    let pgweir = Options::config(&config).start();
    for (user, database, cut) in [
        ("postgres", "postgres", false),
        ("postgres", "fast", true),
        ("hasty", "postgres", true),
    ] {
        let mut client = pgweir.client_as(&Login::new(user, database)).await;
        let reply = client.query("SELECT pg_sleep(0.5)").await;
        assert_eq!(!reply.errors.is_empty(), cut, "{user} {database}");
    }
}

/// `count` naps of 200 ms, sent in one write: nothing is awaited before the last one has begun.
fn naps(count: usize) -> Vec<u8> {
    messages::query("SELECT pg_sleep(0.2)").repeat(count)
}

/// The same by the extended protocol, each followed by `end`.
fn extended_naps(count: usize, end: &[u8]) -> Vec<u8> {
    let nap = [
        messages::parse("", "SELECT pg_sleep(0.2)", &[]),
        messages::bind("", "", &[]),
        messages::execute("", 0),
        end.to_vec(),
    ];
    nap.concat().repeat(count)
}

#[tokio::test]
async fn query_timeout_counts_from_the_statement_under_way_in_a_pipeline() {
    let pgweir = with("query_timeout", "700ms").start();
    let mut client = pgweir.client().await;
    client.send(&naps(6)).await;
    for _ in 0..6 {
        client.reply().await.ok();
    }
    client.send(&extended_naps(6, &messages::sync())).await;
    for _ in 0..6 {
        client.reply().await.ok();
    }
    // Without Flush the server would tell of none of them before the Sync.
    let exchange = [extended_naps(6, &messages::flush()), messages::sync()];
    client.send(&exchange.concat()).await;
    assert_eq!(client.reply().await.ok().tags.len(), 6);
    // The one that is too long is the one that ends.
    let long = messages::query("SELECT pg_sleep(600)");
    client.send(&[naps(2), long, naps(2)].concat()).await;
    for number in 0..5 {
        let reply = client.reply().await;
        if number == 2 {
            is_about(reply.error(), "ERROR", "57014", "timeouts.query_timeout");
        } else {
            reply.ok();
        }
    }
}

#[tokio::test]
async fn transaction_timeout_counts_from_the_transactions_start() {
    let pgweir = with("transaction_timeout", "700ms").start();
    let mut client = pgweir.client().await;
    client.send(&naps(6)).await;
    for _ in 0..6 {
        client.reply().await.ok();
    }
    client.send(&extended_naps(6, &messages::sync())).await;
    for _ in 0..6 {
        client.reply().await.ok();
    }
    // A client that keeps its backend is in no transaction meanwhile.
    client.query("CREATE TEMP TABLE t (a int)").await.ok();
    tokio::time::sleep(Duration::from_millis(900)).await;
    client.query("SELECT pg_sleep(0.2)").await.ok();
    client
        .send(&[messages::query("BEGIN"), naps(6)].concat())
        .await;
    is_about(
        &end_of(client).await,
        "FATAL",
        "25P04",
        "timeouts.transaction_timeout",
    );
}

#[tokio::test]
async fn the_cancel_for_query_timeout_hits_nothing_but_the_statement_that_took_too_long() {
    let pgweir = with("query_timeout", "60ms").start();
    let mut client = pgweir.client().await;
    let nap = messages::query("SELECT pg_sleep(0.02)").repeat(3);
    let extended_nap = [
        messages::parse("", "SELECT pg_sleep(0.02)", &[]),
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::sync(),
    ]
    .concat();
    let long = messages::query("SELECT pg_sleep(600)");
    // PostgreSQL sends its signal twice, and the second one may find the next statement.
    for round in 0..25 {
        let pipeline = [long.clone(), nap.clone(), extended_nap.repeat(2)];
        client.send(&pipeline.concat()).await;
        let cut = client.reply().await;
        is_about(cut.error(), "ERROR", "57014", "timeouts.query_timeout");
        for behind in 0..5 {
            let reply = client.reply().await;
            assert_eq!(reply.errors, [], "round {round}, {behind} behind");
        }
    }
    // In a transaction the same backend goes on.
    for round in 0..15 {
        let begin = messages::query("BEGIN");
        let rest = [messages::query("ROLLBACK"), nap.clone()].concat();
        client.send(&[begin, long.clone(), rest].concat()).await;
        client.reply().await.ok();
        let cut = client.reply().await;
        assert_eq!((cut.sqlstate(), cut.status), ("57014", 'E'));
        for behind in 0..4 {
            let reply = client.reply().await;
            assert_eq!(reply.errors, [], "round {round}, {behind} behind");
        }
    }
}

#[tokio::test]
async fn a_statement_rule_gives_statements_a_limit_of_their_own() {
    let server = shared::server();
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nadmin_users = [\"postgres\"]\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n\
         [timeouts]\nquery_timeout = \"300ms\"\n\
         [statement_rules.a_report]\nquery = \"%report%\"\nquery_timeout = \"0\"\n\
         [statement_rules.hasty]\nquery = \"%hasty%\"\nquery_timeout = \"50ms\"\n\
         [statement_rules.others]\nuser = \"somebody\"\nquery_timeout = \"1ms\"\n",
        server.node_url()
    );
    let pgweir = Options::config(&config).start();
    let mut client = pgweir.client().await;
    let begun = Instant::now();
    let reply = client.query("SELECT pg_sleep(600), 'x' AS hasty").await;
    let rule = "statement_rules.hasty.query_timeout";
    is_about(reply.error(), "ERROR", "57014", rule);
    let extended = client.extended("SELECT pg_sleep(600), 'x' AS hasty", &[]);
    is_about(extended.await.error(), "ERROR", "57014", rule);
    assert!(begun.elapsed() < Duration::from_secs(10));
    client
        .query("SELECT pg_sleep(0.6), 'x' AS report")
        .await
        .ok();
    let reply = client.query("SELECT pg_sleep(600)").await;
    is_about(reply.error(), "ERROR", "57014", "timeouts.query_timeout");
    // Several in one exchange have the time of the longest.
    let step = |sql: &str| {
        [
            messages::parse("", sql, &[]),
            messages::bind("", "", &[]),
            messages::execute("", 0),
        ]
        .concat()
    };
    let exchange = [
        step("SELECT pg_sleep(0.1), 'x' AS hasty"),
        step("SELECT pg_sleep(0.1)"),
        messages::sync(),
    ];
    client.send(&exchange.concat()).await;
    assert_eq!(client.reply().await.ok().tags.len(), 2);
    // Changed at once for those who are there.
    let mut console = pgweir.console().await;
    console
        .query("SET statement_rules.hasty.query_timeout = '0'")
        .await
        .ok();
    client
        .query("SELECT pg_sleep(0.4), 'x' AS hasty")
        .await
        .ok();
}

#[tokio::test]
async fn a_limit_of_one_statement_leaves_others_their_pipeline() {
    // A rule about another user's statements is nobody else's concern: all are with the server at once.
    let backend = ScriptedBackend::start(vec![
        Step::ExpectSql("SELECT 1"),
        Step::ExpectSql("SELECT 2"),
        Step::Send(messages::one_value_reply("1")),
        Step::Send(messages::one_value_reply("2")),
    ])
    .await;
    let pgweir = Options::in_front_of_script(&backend)
        .set("statement_rules.a.user", "somebody")
        .set("statement_rules.a.query_timeout", "1s")
        .start();
    let mut client = Client::connect(pgweir.address, "u", "d").await;
    let both = [messages::query("SELECT 1"), messages::query("SELECT 2")];
    client.send(&both.concat()).await;
    assert_eq!(client.reply().await.ok().value(), "1");
    assert_eq!(client.reply().await.ok().value(), "2");
}

#[tokio::test]
async fn lock_timeout_follows_the_client_and_ends_nobody_elses_wait() {
    let server = shared::server();
    server
        .sql(
            "postgres",
            "CREATE TABLE IF NOT EXISTS lock_carried (a int)",
        )
        .unwrap();
    let pgweir = Options::new(server).flag("--pool-size", "3").start();
    let mut holder = pgweir.client().await;
    holder.query("BEGIN; LOCK lock_carried").await.ok();
    let mut hasty = pgweir.client().await;
    let mut patient = pgweir.client().await;
    hasty.query("SET lock_timeout = '100ms'").await.ok();
    for _ in 0..3 {
        // Whichever backend each of them gets.
        assert_eq!(patient.value("SHOW lock_timeout").await, "0");
        let reply = hasty.query("SELECT 1 FROM lock_carried").await;
        assert_eq!((reply.sqlstate(), reply.status), ("55P03", 'I'));
    }
    patient
        .send(&messages::query("SELECT count(*) FROM lock_carried"))
        .await;
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'lock_carried'::regclass";
    wait_until("the patient client to wait", || {
        server.sql("postgres", waiting).unwrap() == "1"
    });
    let reply = hasty.query("SELECT 1 FROM lock_carried").await;
    assert_eq!(reply.sqlstate(), "55P03");
    holder.query("COMMIT").await.ok();
    assert_eq!(patient.reply().await.ok().value(), "0");
    server.sql("postgres", "DROP TABLE lock_carried").unwrap();
}
