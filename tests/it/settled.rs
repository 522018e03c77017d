//! What `retry.settle_commit` asks the server leaves no trace with the client, and a COMMIT is called committed only by
//! proof. What the client is told after each fault is in `faults`.

use pgweir::demo::cluster::ServerOptions;

use crate::shared;
use crate::support::client::{Client, Login};
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

/// A server that crashes gives ids out again whose WAL was not flushed. A transaction that got the lost one's id and
/// committed is not taken for it.
#[tokio::test]
async fn an_id_that_was_given_out_again_proves_nothing() {
    for is_reused in [true, false] {
        let mut server = ServerOptions::default().start().unwrap();
        let setup = "CREATE TABLE t (a int); CREATE ROLE app SUPERUSER LOGIN";
        server.sql("postgres", setup).unwrap();
        let link = Link::to(server.address()).await;
        let pgweir = Options::in_front_of(&link.node_url())
            .set("retry.settle_commit", "true")
            .set("timeouts.server_login_retry", "50ms")
            .set("metrics.lock_wait_after", "0")
            .start();
        let mut client = pgweir.client_as(&Login::new("app", "postgres")).await;
        client.query("BEGIN").await.ok();
        client.query("INSERT INTO t VALUES (1)").await.ok();
        let id = client.value("SELECT txid_current()").await;
        link.hold(Hold::Request("COMMIT"));
        client.send(&m::query("COMMIT")).await;
        link.held().await;
        // Nobody gets a connection until others have written.
        let mut console = pgweir.console().await;
        console.send(&m::query("PAUSE postgres")).await;
        eventually("the pause", async || {
            let mut other = pgweir.console().await;
            let reply = other.query("SHOW DATABASES").await.ok();
            let paused = reply.columns.iter().position(|it| it == "paused").unwrap();
            let mut rows = reply.rows.iter();
            rows.any(|row| {
                row[0].as_deref() == Some("postgres") && row[paused].as_deref() == Some("1")
            })
        })
        .await;
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
        let there = server.sql("postgres", "SELECT count(*) FROM t WHERE a = 1");
        assert_eq!(there.unwrap().trim(), "0");
    }
}
