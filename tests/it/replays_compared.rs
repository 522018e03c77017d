//! What is compared in a replay, and what a client is told where it differs: nothing twice, nothing behind a difference.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::replays::{done, error, in_front_of, replaying, replays, script, table, terminate};
use crate::shared;
use crate::support::client::{Client, cancel};
use crate::support::messages as m;
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

fn rows(values: &[&str]) -> Vec<u8> {
    let rows = values.iter().map(|value| m::data_row(&[Some(value)]));
    [m::row_description(&["a"])]
        .into_iter()
        .chain(rows)
        .collect::<Vec<_>>()
        .concat()
}

fn selected(values: &[&str]) -> Vec<u8> {
    let tag = format!("SELECT {}", values.len());
    [rows(values), done(&tag, b'T')].concat()
}

fn count(heard: &Mutex<Vec<String>>, text: &str) -> usize {
    let heard = heard.lock().unwrap();
    heard.iter().filter(|one| *one == text).count()
}

#[tokio::test]
async fn rows_seen_before_the_transaction_began_are_not_sent_again() {
    let (backend, heard) = script(vec![
        rows(&["1"]),
        [rows(&["1", "2"]), done("SELECT 2", b'I')].concat(),
        done("BEGIN", b'T'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    let both = [m::query("SELECT a FROM t"), m::query("BEGIN")];
    client.send(&both.concat()).await;
    client.expect(b'T').await;
    client.expect(b'D').await;
    assert_eq!(client.expect_end().await[0].code, "08006");
    assert_eq!(*heard.lock().unwrap(), ["SELECT a FROM t"]);
}

#[tokio::test]
async fn a_transaction_that_does_not_begin_again_does_not_run_outside_of_one() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        done("UPDATE 1", b'T'),
        error("40P01", b'E'),
        error("53200", b'I'),
        // The transaction that the client is told of its failure in.
        done("BEGIN", b'T'),
        error("22P02", b'E'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.query("UPDATE t SET a = 1").await.ok();
    let reply = client.query("UPDATE u SET a = 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
    assert_eq!(count(&heard, "UPDATE t SET a = 1"), 1);
}

#[tokio::test]
async fn nothing_is_sent_behind_an_answer_that_differs() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        selected(&["1"]),
        done("UPDATE 1", b'T'),
        error("40P01", b'E'),
        done("BEGIN", b'T'),
        selected(&["2"]),
        done("BEGIN", b'T'),
        error("22P02", b'E'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    assert_eq!(client.value("SELECT a FROM t").await, "1");
    client.query("UPDATE t SET a = 1").await.ok();
    let reply = client.query("UPDATE u SET a = 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
    assert_eq!(count(&heard, "UPDATE t SET a = 1"), 1);
}

/// An answer was seen in part, the replay went on with it, and the connection is lost once more.
#[tokio::test]
async fn what_a_replay_has_added_is_compared_by_the_next_one() {
    for (again, differs) in [(selected(&["1", "2"]), false), (selected(&["1"]), true)] {
        let (backend, heard) = script(vec![
            done("BEGIN", b'T'),
            rows(&["1"]),
            done("BEGIN", b'T'),
            selected(&["1", "2"]),
            Vec::new(),
            done("BEGIN", b'T'),
            again,
            done("UPDATE 1", b'T'),
            done("COMMIT", b'I'),
        ])
        .await;
        let pgweir = in_front_of(&backend);
        let mut client = pgweir.client().await;
        client.query("BEGIN").await.ok();
        let reply = client.query("SELECT a FROM t").await.ok();
        assert_eq!(reply.column(), ["1", "2"]);
        client.send(&m::query("UPDATE t SET a = 1")).await;
        if differs {
            assert_eq!(client.expect_end().await[0].code, "08006");
            assert_eq!(count(&heard, "UPDATE t SET a = 1"), 1);
        } else {
            assert_eq!(client.reply().await.ok().status, 'T');
            assert_eq!(client.query("COMMIT").await.ok().status, 'I');
        }
    }
}

#[tokio::test]
async fn an_open_exchange_that_is_answered_with_less_is_given_up() {
    let mut role = shared::role("replay_short").await;
    let pgweir = replaying().start();
    let mut direct = table("replay_short").await;
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    let select = [
        m::parse("", "SELECT a FROM replay_short WHERE id = 1", &[]),
        m::bind("", "", &[]),
        m::execute("", 0),
        m::flush(),
    ];
    client.send(&select.concat()).await;
    for tag in [b'1', b'2', b'D', b'C'] {
        client.expect(tag).await;
    }
    direct
        .query("DELETE FROM replay_short WHERE id = 1")
        .await
        .ok();
    terminate(&mut role).await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
    assert_eq!(replays(&pgweir, &role, "different").to_string(), "1");
}

#[tokio::test]
async fn a_statement_named_in_an_exchange_seen_in_part_ends_the_journal() {
    let mut role = shared::role("replay_named").await;
    let pgweir = replaying().start();
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    let select = [
        m::parse("named", "SELECT 1", &[]),
        m::bind("", "named", &[]),
        m::execute("", 0),
        m::flush(),
    ];
    client.send(&select.concat()).await;
    for tag in [b'1', b'2', b'D', b'C'] {
        client.expect(tag).await;
    }
    terminate(&mut role).await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
    assert_eq!(replays(&pgweir, &role, "same").to_string(), "0");
    assert_eq!(replays(&pgweir, &role, "different").to_string(), "0");
}

fn run(name: &str) -> Vec<u8> {
    [m::bind("", name, &[]), m::execute("", 0), m::sync()].concat()
}

async fn prepare_and_run(client: &mut Client, name: &str, text: &str) -> String {
    client
        .send(&[m::parse(name, text, &[]), run(name)].concat())
        .await;
    client.reply().await.ok().value().to_owned()
}

#[tokio::test]
async fn the_unnamed_statement_is_the_clients_where_a_replay_is_given_up() {
    let role = shared::role("replay_unnamed").await;
    let pgweir = replaying().start();
    let mut direct = table("replay_unnamed").await;
    let mut client = role.client(&pgweir).await;
    let update = "UPDATE replay_unnamed SET a = a + 1 WHERE id = 1";
    for (name, text) in [("update", update), ("rollback", "ROLLBACK")] {
        client
            .send(&[m::parse(name, text, &[]), m::sync()].concat())
            .await;
        client.reply().await.ok();
    }
    client
        .query("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .ok();
    assert_eq!(
        prepare_and_run(&mut client, "", "SELECT 'old'").await,
        "old"
    );
    let read = "SELECT a FROM replay_unnamed WHERE id = 1";
    assert_eq!(prepare_and_run(&mut client, "read", read).await, "0");
    assert_eq!(
        prepare_and_run(&mut client, "", "SELECT 'new'").await,
        "new"
    );
    direct
        .query("UPDATE replay_unnamed SET a = 7 WHERE id = 1")
        .await
        .ok();
    client.send(&run("update")).await;
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("40001", 'E'));
    client.send(&run("rollback")).await;
    assert_eq!(client.reply().await.ok().status, 'I');
    client.send(&run("")).await;
    assert_eq!(client.reply().await.ok().value(), "new");
    assert_eq!(replays(&pgweir, &role, "different").to_string(), "1");
}

#[tokio::test]
async fn a_setting_told_where_a_replay_ends_is_not_told_by_another_one() {
    let zone = m::parameter_status("TimeZone", "Asia/Tokyo");
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        rows(&["1"]),
        done("BEGIN", b'T'),
        [rows(&["1"]), zone, done("SELECT 1", b'T')].concat(),
        error("40P01", b'E'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.send(&m::query("SELECT zone()")).await;
    let mut tags = Vec::new();
    loop {
        let message = client.read_message().await.unwrap();
        tags.push(message.tag);
        if message.tag == b'Z' {
            break;
        }
    }
    assert_eq!(tags, b"TDSCZ");
    let reply = client.query("UPDATE t SET a = 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
    assert_eq!(heard.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_client_that_waits_too_long_for_a_replay_gets_the_error_and_goes_on() {
    let role = shared::role("replay_waits").await;
    let pgweir = replaying()
        .flag("--pool-size", "1")
        .set("retry.backoff", "300ms")
        .set("timeouts.query_wait_timeout", "1s")
        .start();
    let mut direct = table("replay_waits").await;
    let mut client = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    client
        .query("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .ok();
    let read = "SELECT a FROM replay_waits WHERE id = 1";
    assert_eq!(client.value(read).await, "0");
    direct
        .query("UPDATE replay_waits SET a = 7 WHERE id = 1")
        .await
        .ok();
    // It gets the connection when the transaction has failed, and keeps it until the replay is given up.
    other.send(&m::query("BEGIN")).await;
    eventually("the other client to wait", async || {
        let line = format!(
            "pgweir_pool_clients{{database=\"postgres\",user=\"{}\",state=\"waiting\"}}",
            role.name
        );
        pgweir.metric(&line).unwrap_or_default() > 0.0
    })
    .await;
    client
        .send(&m::query("UPDATE replay_waits SET a = 1 WHERE id = 1"))
        .await;
    assert_eq!(other.reply().await.ok().status, 'T');
    eventually("the replay to be given up", async || {
        replays(&pgweir, &role, "different") > 0.0
    })
    .await;
    other.query("COMMIT").await.ok();
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("40001", 'E'));
    assert_eq!(client.query("ROLLBACK").await.ok().status, 'I');
}

/// A server that says what it heard, answers an UPDATE with a deadlock at first, and the second SELECT when it is let.
async fn deadlocking(
    mut connection: BackendConnection,
    heard: Arc<Mutex<Vec<String>>>,
    goes_on: Arc<Notify>,
) {
    while let Some(message) = connection.read_message().await {
        let text = message.strings().first().cloned().unwrap_or_default();
        heard.lock().unwrap().push(text.clone());
        let answer = match (text.as_str(), count(&heard, &text)) {
            ("BEGIN", _) => done("BEGIN", b'T'),
            ("ROLLBACK", _) => done("ROLLBACK", b'I'),
            ("SELECT 1", 2) => {
                goes_on.notified().await;
                selected(&["1"])
            }
            ("SELECT 1", _) => selected(&["1"]),
            ("UPDATE t", 1) => error("40P01", b'E'),
            ("UPDATE t", _) => done("UPDATE 1", b'T'),
            _ => error("22P02", b'E'),
        };
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn a_cancel_request_between_two_statements_ends_the_replay() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let goes_on = Arc::new(Notify::new());
    let (log, go) = (Arc::clone(&heard), Arc::clone(&goes_on));
    let backend = ScriptedBackend::start_with(move |connection| {
        deadlocking(connection, Arc::clone(&log), Arc::clone(&go))
    })
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.query("SELECT 1").await.ok();
    client.send(&m::query("UPDATE t")).await;
    eventually("the replay", async || count(&heard, "SELECT 1") == 2).await;
    cancel(pgweir.address, &client.key).await;
    eventually("the cancel request", async || !backend.cancels().is_empty()).await;
    goes_on.notify_one();
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
    assert_eq!(count(&heard, "UPDATE t"), 1);
}

#[tokio::test]
async fn an_idle_transaction_that_is_ended_twice_stays_ended() {
    let mut role = shared::role("replay_idle").await;
    let pgweir = replaying().start();
    drop(table("replay_idle").await);
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    client
        .query("UPDATE replay_idle SET a = 1 WHERE id = 1")
        .await
        .ok();
    terminate(&mut role).await;
    eventually("the replay", async || replays(&pgweir, &role, "same") > 0.0).await;
    terminate(&mut role).await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
    assert_eq!(replays(&pgweir, &role, "same").to_string(), "1");
}
