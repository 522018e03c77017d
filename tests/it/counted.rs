//! What is counted of requests that are no plain success: those that fail as their transaction ends, that get no server
//! connection, that wait for what is before them, that run again.

use std::collections::BTreeMap;

use crate::retries::{Act, script};
use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{
    self as m, bind, close, describe, execute, flush, frame, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};

type Row = BTreeMap<String, String>;

async fn table(console: &mut Client, show: &str) -> Vec<Row> {
    let reply = console.query(show).await.ok();
    let row = |row: &Vec<Option<String>>| {
        let values = row.iter().map(|value| value.clone().unwrap_or_default());
        reply.columns.iter().cloned().zip(values).collect()
    };
    reply.rows.iter().map(row).collect()
}

/// The record of the statement with this text.
async fn of(console: &mut Client, text: &str) -> Row {
    let rows = table(console, "SHOW QUERIES").await;
    let found = rows.iter().find(|row| row["query"] == text);
    found
        .unwrap_or_else(|| panic!("no {text} in {rows:#?}"))
        .clone()
}

#[track_caller]
fn counts<const N: usize>(row: &Row, columns: [&str; N]) -> [u64; N] {
    columns.map(|column| row[column].parse().unwrap())
}

fn start() -> Pgweir {
    Options::new(shared::server()).start()
}

/// The COMMIT that a Sync is has no statement of its own.
#[tokio::test]
async fn a_failure_at_sync_is_an_error_of_the_statement_before_it() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client
        .query(
            "CREATE TABLE counted_at_sync (a int PRIMARY KEY, \
             b int REFERENCES counted_at_sync DEFERRABLE INITIALLY DEFERRED)",
        )
        .await
        .ok();
    let insert = "INSERT INTO counted_at_sync VALUES ($1, $2)";
    for (b, code) in [("7", "23503"), ("1", "")] {
        let reply = client.extended(insert, &[Some("1"), Some(b)]).await;
        let error = reply.errors.first().map_or("", |error| &*error.code);
        assert_eq!(error, code);
    }
    let mut console = pgweir.console().await;
    let row = of(&mut console, insert).await;
    assert_eq!(counts(&row, ["calls", "errors"]), [2, 1]);
    assert_eq!(row["sqlstates"], "23503:1");
    let errors = table(&mut console, "SHOW ERRORS").await;
    assert_eq!(errors[0]["sqlstate"], "23503");
    assert_eq!(errors[0]["query"], insert);
    client.query("DROP TABLE counted_at_sync").await.ok();
}

#[tokio::test]
async fn a_request_without_a_server_connection_is_seen() {
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("timeouts.query_wait_timeout", "'200ms'")
        .set("pool.shed", "false")
        .start();
    let (mut holder, mut client) = (pgweir.client().await, pgweir.client().await);
    holder.query("BEGIN").await.ok();
    let refused = client.query("SELECT 'in vain' AS refused").await;
    assert_eq!(refused.sqlstate(), "53300");
    let refused = client.extended("SELECT $1 AS prepared", &[Some("a")]).await;
    assert_eq!(refused.sqlstate(), "53300");
    holder.query("COMMIT").await.ok();
    client.query("SELECT 'at once' AS next").await.ok();
    let mut console = pgweir.console().await;
    let errors = table(&mut console, "SHOW ERRORS").await;
    let seen = |row: &Row| (row["query"].clone(), row["sqlstate"].clone());
    let seen: Vec<_> = errors.iter().map(seen).collect();
    let expected = ["SELECT $1 AS prepared", "SELECT $1 AS refused"]
        .map(|text| (text.to_owned(), "53300".to_owned()));
    assert_eq!(seen, expected);
    let queued: f64 = errors[1]["queue_time"].parse().unwrap();
    assert!(queued >= 200.0, "{queued}");
    let labels = "{database=\"postgres\",user=\"postgres\",sqlstate=\"53300\"}";
    let refused = pgweir.metric(&format!("pgweir_pool_refused_requests_total{labels}"));
    assert_eq!(refused.unwrap().to_string(), "2");
    // The wait was not the next statement's, and is the pool's.
    let next = of(&mut console, "SELECT $1 AS next").await;
    assert_eq!(next["queue_time"], "0");
    let stats = table(&mut console, "SHOW STATS").await;
    let of_pool = stats.iter().find(|row| row["database"] == "postgres");
    let [waited] = counts(of_pool.unwrap(), ["total_wait_time"]);
    assert!(waited >= 400_000, "{waited}");
}

#[tokio::test]
async fn a_message_that_waits_for_answers_counts_once() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client.query("PREPARE counted_once AS SELECT 1").await.ok();
    let simple = query("EXECUTE counted_once -- simple");
    let pipeline = [query("SELECT pg_sleep(0.1)"), simple.clone()].concat();
    client.send(&pipeline).await;
    for _ in 0..2 {
        client.reply().await.ok();
    }
    let stats = async |console: &mut Client| {
        let stats = table(console, "SHOW STATS").await;
        let of_pool = stats.iter().find(|row| row["database"] == "postgres");
        counts(of_pool.unwrap(), ["total_client_parse_count"])
    };
    let mut console = pgweir.console().await;
    let [before] = stats(&mut console).await;
    let exchange = [
        parse("", "EXECUTE counted_once /* bound */", &[]),
        bind("", "", &[]),
        describe(b'P', ""),
        execute("", 0),
    ]
    .concat();
    let around = [flush(), close(b'S', "nothing"), flush()].concat();
    let pipeline = [
        query("SELECT pg_sleep(0.1)"),
        around,
        exchange.clone(),
        sync(),
    ]
    .concat();
    client.send(&pipeline).await;
    for _ in 0..2 {
        client.reply().await.ok();
    }
    assert_eq!(stats(&mut console).await, [before + 1]);
    let rows = table(&mut console, "SHOW QUERIES LIKE 'EXECUTE counted_once%'").await;
    let received: u64 = rows
        .iter()
        .map(|row| row["bytes_received"].parse::<u64>().unwrap())
        .sum();
    assert_eq!(
        received,
        (simple.len() + exchange.len()) as u64,
        "{rows:#?}"
    );
}

/// A call of `lo_creat`, or of nothing.
fn function_call(oid: u32) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    // One format code, text; one argument, "0"; the result as text.
    body.extend_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0, 0, 1, b'0', 0, 0]);
    frame(b'F', &body)
}

#[tokio::test]
async fn a_function_call_counts_for_itself() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    let call = function_call(957);
    client.send(&call).await;
    client.expect(b'V').await;
    client.expect(b'Z').await;
    client.send(&call).await;
    client.expect(b'V').await;
    client.expect(b'Z').await;
    client.send(&function_call(1)).await;
    assert!(!client.reply().await.sqlstate().is_empty());
    let next = query("SELECT 'called' AS next");
    client.send(&next).await;
    client.reply().await.ok();
    let mut console = pgweir.console().await;
    let row = of(&mut console, "<function call>").await;
    assert_eq!(counts(&row, ["calls", "errors"]), [3, 1]);
    assert_eq!(counts(&row, ["bytes_received"]), [3 * call.len() as u64]);
    let row = of(&mut console, "SELECT $1 AS next").await;
    assert_eq!(counts(&row, ["bytes_received"]), [next.len() as u64]);
}

#[tokio::test]
async fn each_statement_of_a_pipeline_that_runs_again_has_a_retry() {
    let answered = [
        frame(b'1', b""),
        frame(b'2', b""),
        m::command_complete("UPDATE 1"),
    ]
    .concat();
    let failed = [
        m::error_response("ERROR", "40001", "scripted"),
        m::ready_for_query(b'I'),
    ]
    .concat();
    let script = script(vec![
        // The second fails, then the COMMIT.
        Act::Say([answered.clone(), failed.clone()].concat()),
        Act::Say([answered.clone(), answered.clone(), failed].concat()),
        Act::Say([answered.clone(), answered, m::ready_for_query(b'I')].concat()),
    ])
    .await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let one = |sql: &str| [parse("", sql, &[]), bind("", "", &[]), execute("", 0)].concat();
    let pipeline = [one("UPDATE t SET a = 1"), one("UPDATE t SET b = 1"), sync()].concat();
    client.send(&pipeline).await;
    assert_eq!(client.reply().await.ok().order, "12C12CZ");
    let mut console = pgweir.console().await;
    for text in ["UPDATE t SET a = $1", "UPDATE t SET b = $1"] {
        let row = of(&mut console, text).await;
        assert_eq!(
            counts(&row, ["calls", "errors", "retries"]),
            [1, 0, 2],
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_secret_set_on_the_console_is_not_in_the_log() {
    let pgweir = start();
    let mut console = pgweir.console().await;
    let set = "SET http.admin_token = 'told to nobody'";
    console.query(set).await;
    pgweir.wait_for_log("http.admin_token");
    assert!(!pgweir.log().contains("told to nobody"), "{}", pgweir.log());
}

#[tokio::test]
async fn a_client_can_not_write_a_line_of_the_log() {
    let pgweir = Options::new(shared::server())
        .set("slow_log.threshold", "'10ms'")
        .start();
    let login = Login::new("postgres", "postgres").with("application_name", "web\nFORGED line=1");
    let mut client = pgweir.client_as(&login).await;
    client.query("SELECT pg_sleep(0.05)").await.ok();
    pgweir.wait_for_log("slow statement");
    let log = pgweir.log();
    assert!(log.contains("FORGED"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("FORGED")), "{log}");
}
