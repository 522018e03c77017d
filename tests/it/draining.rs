//! SIGTERM: transactions end, idle clients are told, the process ends with 0.

use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::shared;
use crate::support::client::Client;
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, wait_until};

async fn is_told_of_the_shutdown(mut client: Client) {
    let errors = client.expect_end().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    let error = &errors[0];
    assert_eq!(
        (
            error.severity.as_str(),
            error.code.as_str(),
            error.message.as_str()
        ),
        (
            "FATAL",
            "57P01",
            "terminating connection due to administrator command"
        )
    );
}

async fn accepts_no_more(pgweir: &Pgweir) {
    eventually("new connections to be refused", async || {
        TcpStream::connect(pgweir.address).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn idle_clients_are_told_and_the_process_ends_with_0() {
    let mut pgweir = Options::new(shared::server()).start();
    let fresh = pgweir.client().await;
    let mut used = pgweir.client().await;
    used.value("SELECT 1").await;
    let mut pinned = pgweir.client().await;
    pinned.query("CREATE TEMP TABLE t (a int)").await.ok();
    let begun = Instant::now();
    pgweir.signal("TERM");
    for client in [fresh, used, pinned] {
        is_told_of_the_shutdown(client).await;
    }
    assert!(pgweir.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(pgweir.log_contains("stopped"));
}

#[tokio::test]
async fn a_transaction_is_finished_first() {
    let server = shared::server();
    let mut pgweir = Options::new(server).start();
    let mut client = pgweir.client().await;
    client
        .query("CREATE TABLE IF NOT EXISTS drained (a int)")
        .await
        .ok();
    client
        .query("BEGIN; INSERT INTO drained VALUES (1)")
        .await
        .ok();
    let idle = pgweir.client().await;
    pgweir.signal("TERM");
    is_told_of_the_shutdown(idle).await;
    accepts_no_more(&pgweir).await;
    assert!(
        pgweir
            .http_get("/ready")
            .is_none_or(|reply| reply.contains("503"))
    );
    // It goes on as if nothing were, and is told only once it has committed.
    client.query("INSERT INTO drained VALUES (2)").await.ok();
    client.send(&messages::query("COMMIT")).await;
    assert_eq!(client.reply().await.ok().tags, ["COMMIT"]);
    is_told_of_the_shutdown(client).await;
    assert!(pgweir.wait().success());
    let rows = server.sql(
        "postgres",
        "SELECT count(*) FROM drained; DROP TABLE drained",
    );
    assert_eq!(rows.unwrap(), "2");
}

#[tokio::test]
async fn a_statement_and_a_pipeline_under_way_are_finished_first() {
    let mut pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut running = pgweir.client().await;
    running
        .send(&messages::query("SELECT 'drained', pg_sleep(1)"))
        .await;
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
                  AND query LIKE '%drained%'";
    wait_until("the statement to sleep", || {
        shared::server().sql("postgres", asleep).unwrap() == "1"
    });
    // Waits for the only backend: it is served too.
    let mut waiting = pgweir.client().await;
    waiting.send(&messages::query("SELECT 'waited'")).await;
    let queued = "pgweir_pool_clients{database=\"postgres\",user=\"postgres\",state=\"waiting\"} ";
    wait_until("the other one to wait", || {
        pgweir.metric(queued) == Some(1.0)
    });
    pgweir.signal("TERM");
    assert_eq!(running.reply().await.ok().column(), ["drained"]);
    assert_eq!(waiting.reply().await.ok().value(), "waited");
    is_told_of_the_shutdown(running).await;
    is_told_of_the_shutdown(waiting).await;
    assert!(pgweir.wait().success());
}

#[tokio::test]
async fn the_rest_is_cut_off_after_shutdown_timeout() {
    let mut pgweir = Options::new(shared::server())
        .set("general.shutdown_timeout", "500ms")
        .start();
    let mut stubborn = pgweir.client().await;
    stubborn.query("BEGIN").await.ok();
    let begun = Instant::now();
    pgweir.signal("TERM");
    is_told_of_the_shutdown(stubborn).await;
    assert!(pgweir.wait().success());
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(pgweir.log_contains("shutdown_timeout"));
}

#[tokio::test]
async fn a_second_signal_ends_the_patience() {
    for second in ["TERM", "INT"] {
        let mut pgweir = Options::new(shared::server()).start();
        let mut stubborn = pgweir.client().await;
        stubborn.query("BEGIN").await.ok();
        pgweir.signal("TERM");
        pgweir.wait_for_log("shutting down");
        accepts_no_more(&pgweir).await;
        assert_eq!(stubborn.value("SELECT 1").await, "1");
        pgweir.signal(second);
        is_told_of_the_shutdown(stubborn).await;
        assert!(pgweir.wait().success());
    }
}

#[tokio::test]
async fn an_interrupt_drains_as_well_and_the_socket_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut pgweir = Options::new(shared::server())
        .set("general.unix_socket_dir", folder.path().to_str().unwrap())
        .start();
    let path = folder
        .path()
        .join(format!(".s.PGSQL.{}", pgweir.address.port()));
    let mut client = Client::over(UnixStream::connect(&path).await.unwrap());
    let login = crate::support::client::Login::new("postgres", "postgres");
    client.log_in(&login).await.unwrap();
    assert_eq!(client.value("SELECT 1").await, "1");
    pgweir.signal("INT");
    is_told_of_the_shutdown(client).await;
    assert!(pgweir.wait().success());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_hold_the_shutdown_up() {
    let mut pgweir = Options::new(shared::server())
        .set("general.shutdown_timeout", "1s")
        .start();
    let mut deaf = pgweir.client().await;
    deaf.send(&messages::query(
        "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)",
    ))
    .await;
    let mut other = pgweir.client().await;
    assert_eq!(other.value("SELECT 1").await, "1");
    let begun = Instant::now();
    pgweir.signal("TERM");
    is_told_of_the_shutdown(other).await;
    assert!(pgweir.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(deaf);
}
