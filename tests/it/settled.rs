//! What `retry.settle_commit` asks the server leaves no trace with the client, and a COMMIT is called committed only by
//! proof. What the client is told after each fault is in `faults`.

use pgweir::demo::cluster::{Server, ServerOptions};

use crate::shared;
use crate::support::client::{Client, Login, cancel};
use crate::support::faulty_link::{Hold, Link};
use crate::support::messages as m;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

fn settling() -> Options {
    Options::new(shared::server()).set("retry.settle_commit", "true")
}

async fn table(name: &str) -> Client {
    let mut direct = shared::direct().await;
    let text = format!("CREATE TABLE {name} (a int); INSERT INTO {name} VALUES (1), (2), (3)");
    direct.query(&text).await.ok();
    direct
}

/// The tags of the next `count` messages.
async fn tags(client: &mut Client, count: usize) -> String {
    let mut tags = String::new();
    for _ in 0..count {
        tags.push(char::from(client.read_message().await.unwrap().tag));
    }
    tags
}

#[tokio::test]
async fn an_unnamed_portal_outlives_the_questions() {
    let role = shared::role("settle_portal").await;
    let pgweir = settling().start();
    drop(table("settle_portal").await);
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    let update = "UPDATE settle_portal SET a = a RETURNING a";
    let first = [
        m::parse("", update, &[]),
        m::bind("", "", &[]),
        m::execute("", 1),
        m::sync(),
    ];
    client.send(&first.concat()).await;
    assert_eq!(tags(&mut client, 5).await, "12DsZ");
    client.send(&[m::execute("", 0), m::sync()].concat()).await;
    assert_eq!(tags(&mut client, 4).await, "DDCZ");
    // The unnamed statement is there as well.
    let again = [m::bind("", "", &[]), m::execute("", 0), m::sync()];
    client.send(&again.concat()).await;
    assert_eq!(tags(&mut client, 6).await, "2DDDCZ");
    assert_eq!(client.query("COMMIT").await.ok().status, 'I');
}

#[tokio::test]
async fn the_questions_take_no_snapshot_and_run_in_no_failed_transaction() {
    let role = shared::role("settle_snapshot").await;
    let pgweir = settling().start();
    let mut direct = table("settle_snapshot").await;
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    client
        .query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .await
        .ok();
    client
        .query("LOCK TABLE settle_snapshot IN ACCESS SHARE MODE")
        .await
        .ok();
    direct
        .query("INSERT INTO settle_snapshot VALUES (4)")
        .await
        .ok();
    let count = "SELECT count(*) FROM settle_snapshot";
    assert_eq!(client.value(count).await, "4");
    client
        .query("INSERT INTO settle_snapshot VALUES (5)")
        .await
        .ok();
    let failed = client
        .query("INSERT INTO settle_snapshot VALUES ('x')")
        .await;
    assert_eq!((failed.sqlstate(), failed.status), ("22P02", 'E'));
    let reply = client.query("SELECT 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("25P02", 'E'));
    assert_eq!(client.query("COMMIT").await.ok().tags, ["ROLLBACK"]);
    assert_eq!(client.value(count).await, "4");
}

#[tokio::test]
async fn a_transaction_that_writes_nothing_gets_no_id() {
    let role = shared::role("settle_reads").await;
    let pgweir = settling().start();
    drop(table("settle_reads").await);
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    client.query("SELECT a FROM settle_reads").await.ok();
    // It may write for all that is known of it, and does not.
    client
        .query("UPDATE settle_reads SET a = 1 WHERE a = 7")
        .await
        .ok();
    let assigned = client
        .query("SELECT txid_current_if_assigned() IS NULL")
        .await
        .ok();
    assert_eq!(assigned.value(), "t");
    client.query("COMMIT").await.ok();
}

fn settled(pgweir: &Pgweir, outcome: &str) -> f64 {
    let series = format!(
        "pgweir_commits_settled_total{{database=\"postgres\",user=\"app\",outcome=\"{outcome}\"}}"
    );
    pgweir.metric(&series).unwrap()
}

/// A column of `SHOW RETRIES`.
async fn shown(pgweir: &Pgweir, column: &str) -> String {
    let mut console = pgweir.console().await;
    let table = "SHOW RETRIES WHERE user = 'app' AND database = 'postgres'";
    let reply = console.query(table).await.ok();
    let place = reply.columns.iter().position(|name| name == column);
    reply.rows[0][place.unwrap()].clone().unwrap()
}

/// A server of its own behind a link, and pgweir in front of that.
async fn stage(change: impl FnOnce(Options) -> Options) -> (Server, Link, Pgweir) {
    let server = ServerOptions::default().start().unwrap();
    let setup = "CREATE TABLE t (a int); CREATE ROLE app SUPERUSER LOGIN";
    server.sql("postgres", setup).unwrap();
    let link = Link::to(server.address()).await;
    let options = Options::in_front_of(&link.node_url())
        .set("retry.settle_commit", "true")
        .set("timeouts.server_login_retry", "50ms")
        .set("metrics.lock_wait_after", "0");
    (server, link, change(options).start())
}

/// Nobody gets a connection until `RESUME`. The console that asked for it is to stay.
async fn pause(pgweir: &Pgweir) -> Client {
    let mut console = pgweir.console().await;
    console.send(&m::query("PAUSE postgres")).await;
    eventually("the pause", async || {
        let mut other = pgweir.console().await;
        let reply = other.query("SHOW DATABASES").await.ok();
        let paused = reply.columns.iter().position(|it| it == "paused").unwrap();
        let mut rows = reply.rows.iter();
        rows.any(|row| row[0].as_deref() == Some("postgres") && row[paused].as_deref() == Some("1"))
    })
    .await;
    console
}

/// A transaction that writes, whose COMMIT the server carries out; its answer is held.
async fn commit_unheard(server: &Server, link: &Link, client: &mut Client, before: &str) {
    client.query("BEGIN").await.ok();
    if !before.is_empty() {
        client.query(before).await.ok();
    }
    client.query("INSERT INTO t VALUES (1)").await.ok();
    link.hold(Hold::Answer("COMMIT"));
    client.send(&m::query("COMMIT")).await;
    link.held().await;
    eventually("the COMMIT", async || rows(server) == "1").await;
}

/// The connection is lost, and the question what became of the COMMIT is held on the next.
async fn lose_and_hold_question(link: &Link, pgweir: &Pgweir) {
    let _console = pause(pgweir).await;
    link.reset();
    link.empty().await;
    link.hold(Hold::Request("txid_status"));
    pgweir.console().await.query("RESUME postgres").await.ok();
    link.held().await;
}

fn rows(server: &Server) -> String {
    let count = "SELECT count(*) FROM t WHERE a = 1";
    server.sql("postgres", count).unwrap().trim().to_owned()
}

/// As where the server itself refuses a COMMIT.
#[tokio::test]
async fn a_commit_that_is_not_there_and_not_replayed_leaves_no_transaction() {
    let (server, link, pgweir) = stage(|options| options.set("retry.replay", "true")).await;
    let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
    client.query("BEGIN").await.ok();
    assert_eq!(client.value("SELECT count(*) FROM t").await, "0");
    client.query("INSERT INTO t VALUES (1)").await.ok();
    link.hold(Hold::Request("COMMIT"));
    client.send(&m::query("COMMIT")).await;
    link.held().await;
    server.sql("postgres", "INSERT INTO t VALUES (9)").unwrap();
    link.reset();
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("40001", 'I'));
    assert_eq!(rows(&server), "0");
    client.query("INSERT INTO t VALUES (1)").await.ok();
    assert_eq!(rows(&server), "1");
}

/// A server that crashes gives ids out again whose WAL was not flushed. A transaction that got the lost one's id and
/// committed is not taken for it. A transaction may have its id long before it writes anything to the WAL.
#[tokio::test]
async fn an_id_that_was_given_out_again_proves_nothing() {
    for (is_reused, id_comes_first) in [(true, false), (true, true), (false, false)] {
        let (mut server, link, pgweir) = stage(|options| options).await;
        let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
        let ask_id = "SELECT txid_current()";
        // All WAL is flushed.
        server.sql("postgres", "INSERT INTO t VALUES (0)").unwrap();
        client.query("BEGIN").await.ok();
        if id_comes_first {
            client.query(ask_id).await.ok();
        }
        client.query("INSERT INTO t VALUES (1)").await.ok();
        let id = client.value(ask_id).await;
        link.hold(Hold::Request("COMMIT"));
        client.send(&m::query("COMMIT")).await;
        link.held().await;
        // Nobody gets a connection until others have written.
        let _console = pause(&pgweir).await;
        server.kill9().unwrap();
        server.start().unwrap();
        link.pass();
        if is_reused {
            let insert = "BEGIN; INSERT INTO t VALUES (2); SELECT txid_current(); COMMIT";
            assert_eq!(server.sql("postgres", insert).unwrap().trim(), id);
        }
        pgweir.console().await.query("RESUME postgres").await.ok();
        if is_reused {
            assert_eq!(client.expect_end().await[0].code, "08007");
            assert_eq!(settled(&pgweir, "committed").to_string(), "0");
            assert_eq!(settled(&pgweir, "unknown").to_string(), "1");
            assert_eq!(shown(&pgweir, "commits_unknown").await, "1");
            assert_eq!(shown(&pgweir, "outcomes_unknown").await, "1");
        } else {
            let reply = client.reply().await;
            assert_eq!((reply.sqlstate(), reply.status), ("40001", 'I'));
            assert_eq!(settled(&pgweir, "rolled back").to_string(), "1");
            assert_eq!(settled(&pgweir, "unknown").to_string(), "0");
            assert_eq!(shown(&pgweir, "commits_rolled_back").await, "1");
            assert_eq!(shown(&pgweir, "outcomes_unknown").await, "0");
        }
        assert_eq!(rows(&server), "0");
    }
}

/// The server ends the session in which it is asked what became of a COMMIT: that says nothing of the COMMIT.
#[tokio::test]
async fn the_end_of_the_session_that_asks_is_no_answer() {
    for (setting, value) in [
        ("retry.replay", "false"),
        ("retry.replay", "true"),
        ("pool.pool_mode", "session"),
    ] {
        let (server, link, pgweir) = stage(|options| options.set(setting, value)).await;
        let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
        commit_unheard(&server, &link, &mut client, "").await;
        lose_and_hold_question(&link, &pgweir).await;
        let ended = link.ended();
        let end =
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'app'";
        server.sql("postgres", end).unwrap();
        eventually("the end of the session", async || link.ended() > ended).await;
        link.pass();
        let reply = client.reply().await.ok();
        assert_eq!(
            (reply.tags.concat().as_str(), reply.status),
            ("COMMIT", 'I'),
            "{setting}"
        );
        if value == "session" {
            assert_eq!(client.expect_end().await[0].code, "08006");
        }
        assert_eq!(settled(&pgweir, "committed").to_string(), "1");
        assert_eq!(rows(&server), "1", "{setting}");
    }
}

/// What it was to listen on by its COMMIT the session has lost with the connection.
#[tokio::test]
async fn who_is_to_listen_from_its_commit_on_is_not_left_deaf() {
    let (server, link, pgweir) = stage(|options| options).await;
    let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
    commit_unheard(&server, &link, &mut client, "LISTEN a").await;
    link.reset();
    assert_eq!(client.reply().await.ok().tags, ["COMMIT"]);
    assert_eq!(client.expect_end().await[0].code, "08006");
}

#[tokio::test]
async fn a_server_that_does_not_say_what_became_of_a_commit_is_not_awaited_longer_than_the_deadline()
 {
    let (server, link, pgweir) = stage(|options| options.set("retry.deadline", "1s")).await;
    let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
    commit_unheard(&server, &link, &mut client, "").await;
    lose_and_hold_question(&link, &pgweir).await;
    assert_eq!(client.expect_end().await[0].code, "08007");
    assert_eq!(settled(&pgweir, "unknown").to_string(), "1");
}

/// Whoever cancels a statement that waits behind a question means the statement.
#[tokio::test]
async fn a_cancel_request_behind_a_question_ends_the_statement_that_waits() {
    let (_server, link, pgweir) = stage(|options| options).await;
    let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
    let sleep = m::query("SELECT pg_sleep(600)");
    link.hold(Hold::Request("pg_control_system"));
    client.send(&sleep).await;
    link.held().await;
    cancel(pgweir.address, &client.key).await;
    link.pass();
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("57014", 'I'));
    assert_eq!(client.value("SELECT 1").await, "1");
    let extended = [
        m::parse("", "SELECT pg_sleep(600)", &[]),
        m::bind("", "", &[]),
        m::execute("", 0),
        m::sync(),
    ];
    for sleep in [sleep, extended.concat()] {
        client.query("BEGIN").await.ok();
        link.hold(Hold::Request("txid_current_if_assigned"));
        client.query("INSERT INTO t VALUES (1)").await.ok();
        link.held().await;
        let received = "pgweir_received_bytes_total{database=\"postgres\",user=\"app\"}";
        let before = pgweir.metric(received).unwrap();
        client.send(&sleep).await;
        eventually("the statement to be there", async || {
            pgweir.metric(received).unwrap() > before
        })
        .await;
        cancel(pgweir.address, &client.key).await;
        link.pass();
        let reply = client.reply().await;
        assert_eq!((reply.sqlstate(), reply.status), ("57014", 'E'));
        assert_eq!(client.query("COMMIT").await.ok().tags, ["ROLLBACK"]);
        assert_eq!(client.value("SELECT count(*) FROM t").await, "0");
    }
}

/// A transaction whose server is not known can't be settled: nothing is asked in it that could fail.
#[tokio::test]
async fn an_id_is_not_asked_for_where_it_would_be_of_no_use() {
    let (server, _link, pgweir) = stage(|options| options).await;
    let setup = "CREATE ROLE low LOGIN; GRANT ALL ON t TO low;
        REVOKE EXECUTE ON FUNCTION pg_control_system(), txid_current_if_assigned() FROM PUBLIC";
    server.sql("postgres", setup).unwrap();
    let mut client = pgweir.client_as(&Login::new("low", "postgres")).await;
    client.query("BEGIN").await.ok();
    client.query("INSERT INTO t VALUES (1)").await.ok();
    assert_eq!(client.query("COMMIT").await.ok().tags, ["COMMIT"]);
    assert_eq!(rows(&server), "1");
}
