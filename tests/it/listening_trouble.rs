//! A shared listener in trouble: what can't be converted, encodings and servers it can't have, answers that do not come,
//! clients that take nothing. What its sessions hear then, and what it takes from others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::listening::{client, database, direct, heard, note, pinned};
use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{self, bind, execute, parse, query, sync};
use crate::support::pgweir::Options;
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

const MISSED: &str = "notifications may have been missed";
const LISTENER: &str = "pgweir listener";

#[tokio::test]
async fn what_an_encoding_lacks_is_missed_by_its_clients_and_nobody_is_refused_for_it() {
    let database = database("listening_unconvertible").await;
    let pgweir = Options::new(shared::server())
        .set("pool.on_session_state", "reject")
        .start();
    let login = Login::new("postgres", &database).with("client_encoding", "latin1");
    let mut latin1 = pgweir.client_as(&login).await;
    let mut other = pgweir.client_as(&login).await;
    let mut utf8 = client(&pgweir, &database).await;
    latin1.query("LISTEN a").await.ok();
    utf8.query("LISTEN a").await.ok();
    for round in 0..5 {
        utf8.query("NOTIFY a, '\u{4e2d}'").await.ok();
        assert_eq!(heard(&mut utf8), [note("a", "\u{4e2d}")]);
        // It may be asked for together with the notification.
        other.query(&format!("LISTEN b{round}")).await.ok();
        if latin1.notices.is_empty() {
            assert_eq!(latin1.notice().await.message, MISSED);
        }
        latin1.notices.clear();
        latin1.query(&format!("NOTIFY a, '{round}'")).await.ok();
        assert_eq!(heard(&mut latin1), [note("a", &round.to_string())]);
        utf8.query("SELECT 1").await.ok();
        assert_eq!(heard(&mut utf8), [note("a", &round.to_string())]);
    }
    assert!(utf8.notices.is_empty(), "{:?}", utf8.notices);
    assert!(!pgweir.log_contains("the server refused a LISTEN"));
}

#[tokio::test]
async fn a_client_whose_new_encoding_has_no_listener_hears_by_the_old_one() {
    let database = database("listening_moved").await;
    let mut past = direct(&database).await;
    past.query("CREATE ROLE listening_mover LOGIN").await.ok();
    let pgweir = Options::new(shared::server()).start();
    let login = Login::new("listening_mover", &database);
    let mut one = pgweir.client_as(&login).await;
    one.query("LISTEN a").await.ok();
    past.query("ALTER ROLE listening_mover NOLOGIN").await.ok();
    one.query("SET client_encoding = latin1").await.ok();
    assert_eq!(one.value("SELECT 1").await, "1");
    assert!(one.notices.is_empty(), "{:?}", one.notices);
    // What it can't read it is told to have missed.
    past.query("NOTIFY a, '1'; NOTIFY a, '\u{e9}'; NOTIFY a, '2'")
        .await
        .ok();
    assert_eq!(one.notification().await, note("a", "1"));
    assert_eq!(one.notice().await.message, MISSED);
    assert_eq!(one.notification().await, note("a", "2"));
    past.query("ALTER ROLE listening_mover LOGIN").await.ok();
    eventually("the listener to be another", async || {
        one.query("SELECT 1").await.ok();
        !one.notices.is_empty()
    })
    .await;
    past.query("NOTIFY a, '\u{e9}'").await.ok();
    let in_latin1 = String::from_utf8_lossy(b"\xe9").into_owned();
    assert_eq!(one.notification().await, note("a", &in_latin1));
    past.query("DROP OWNED BY listening_mover; DROP ROLE listening_mover")
        .await;
}

#[tokio::test]
async fn what_is_sent_in_the_old_encoding_until_the_move_is_missed() {
    let database = database("listening_amid_move").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    one.query("BEGIN").await.ok();
    one.query("SET client_encoding = latin1").await.ok();
    one.query("SELECT pg_notify('a', chr(233))").await.ok();
    let reply = one.query("COMMIT").await.ok();
    assert_eq!(reply.order, "CZ");
    assert_eq!(one.notices.len(), 1, "{:?}", one.notices);
    assert_eq!(heard(&mut one), []);
}

/// Answers every query; the first one of the connection that listens to something `unconvertible` as when it finds a
/// notification behind it that it can't send.
async fn fail_to_tell(mut connection: BackendConnection, failed: Arc<AtomicUsize>) {
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        let tag = sql.split(' ').next().unwrap_or_default();
        let mut answer = messages::command_complete(tag);
        let name = connection.startup.get("application_name");
        if name.map(String::as_str) == Some(LISTENER)
            && sql.contains("unconvertible")
            && failed.fetch_add(1, Ordering::SeqCst) == 0
        {
            let words = "character has no equivalent";
            answer.extend(messages::error_response("ERROR", "22P05", words));
        }
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn an_error_behind_what_was_asked_is_no_refusal_of_it() {
    let failed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&failed);
    let backend = ScriptedBackend::start_with(move |connection| {
        fail_to_tell(connection, Arc::clone(&counted))
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut one = client(&pgweir, "scripted").await;
    let mut two = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    two.query("LISTEN unconvertible").await.ok();
    assert_eq!(one.notice().await.message, MISSED);
    assert_eq!(pinned(&pgweir).await, 0);
    assert!(!pgweir.log_contains("the server refused a LISTEN"));
}

/// Answers every query; not where the connection that listens is to listen in latin1.
async fn keep_silent_in_latin1(mut connection: BackendConnection) {
    let of = |name: &str| connection.startup.get(name).map(String::as_str);
    let is_silent =
        of("application_name") == Some(LISTENER) && of("client_encoding") == Some("LATIN1");
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        if is_silent {
            continue;
        }
        let tag = sql.split(' ').next().unwrap_or_default();
        let mut answer = messages::command_complete(tag);
        if sql.starts_with("SET client_encoding") {
            answer.extend(messages::parameter_status("client_encoding", "LATIN1"));
        }
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn who_can_not_have_another_listener_waits_for_it_once_and_not_for_long() {
    let backend = ScriptedBackend::start_with(keep_silent_in_latin1).await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    let began = Instant::now();
    one.query("SET client_encoding = latin1").await.ok();
    for _ in 0..3 {
        one.query("SELECT 1").await.ok();
    }
    let took = began.elapsed();
    // There was a listener to be waited for.
    assert!(took > Duration::from_secs(4), "{took:?}");
    assert!(took < Duration::from_secs(9), "{took:?}");
}

/// Answers every query; not where the connection that listens is to listen on what is `silent`.
async fn keep_silent(mut connection: BackendConnection) {
    let name = connection.startup.get("application_name");
    let is_listener = name.map(String::as_str) == Some(LISTENER);
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        if is_listener && sql.contains("silent") {
            continue;
        }
        let tag = sql.split(' ').next().unwrap_or_default();
        let mut answer = if sql.contains("refused by pgweir") {
            messages::error_response("ERROR", "22P02", "invalid input syntax")
        } else {
            messages::command_complete(tag)
        };
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn who_waits_for_a_silent_listener_lets_go_of_its_server_connection() {
    let backend = ScriptedBackend::start_with(keep_silent).await;
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "1")
        .set("pool.on_session_state", "reject")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    let mut two = client(&pgweir, "scripted").await;
    let began = Instant::now();
    one.send(&query("LISTEN silent")).await;
    eventually("it to wait for the listener", async || {
        backend.logins() == 2
    })
    .await;
    two.query("SELECT 1").await.ok();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(9), "the listener's own limit");
    assert_eq!(one.reply().await.sqlstate(), "0A000");
    one.query("SELECT 1").await.ok();
    assert_eq!(pinned(&pgweir).await, 0);
}

#[tokio::test]
async fn a_listener_takes_no_idle_connection_of_another_server() {
    let [full, other] = [
        ScriptedBackend::start_with(keep_silent).await,
        ScriptedBackend::start_with(keep_silent).await,
    ];
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [auth]\nmethod = \"trust\"\n\
         [cluster]\nprimary = \"{}?max_connections=1\"\n\
         [databases.other]\nprimary = \"{}\"\n",
        full.node_url(),
        other.node_url()
    );
    let pgweir = Options::config(&config).start();
    let mut elsewhere = client(&pgweir, "other").await;
    elsewhere.query("SELECT 1").await.ok();
    let mut one = client(&pgweir, "scripted").await;
    one.query("BEGIN").await.ok();
    one.query("LISTEN a").await.ok();
    assert_eq!(pinned(&pgweir).await, 1);
    elsewhere.query("SELECT 1").await.ok();
    assert_eq!(other.logins(), 1);
}

/// An exchange without its Sync, and a query behind it: what the client listens on and hears then.
async fn listen_unsynced(client: &mut Client, first: &str, second: &str) -> Vec<String> {
    let exchange = [parse("", first, &[]), bind("", "", &[]), execute("", 0)].concat();
    client.send(&[exchange, query(second)].concat()).await;
    client.reply().await.ok();
    client.send(&sync()).await;
    client.reply().await.ok();
    let listened = client.query("SELECT pg_listening_channels() ORDER BY 1");
    let mut seen = listened.await.ok().column();
    let notify = "NOTIFY unsynced, 'a'; NOTIFY b, 'b'; NOTIFY before, 'c'";
    client.query(notify).await.ok();
    seen.extend(heard(client).into_iter().map(|(_, payload)| payload));
    seen
}

#[tokio::test]
async fn a_query_behind_an_exchange_without_sync_is_not_taken_for_part_of_it() {
    let database = database("listening_unsynced").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    let mut past = direct("postgres").await;
    for (first, second) in [
        ("LISTEN unsynced", "SELECT 1"),
        ("LISTEN unsynced", "LISTEN b"),
        ("LISTEN unsynced", "UNLISTEN unsynced"),
        ("SELECT 1", "BEGIN; LISTEN unsynced; COMMIT"),
        ("SELECT 1", "LISTEN unsynced; UNLISTEN before"),
    ] {
        for before in ["UNLISTEN *", "LISTEN before"] {
            let mut seen = Vec::new();
            for client in [&mut one, &mut past] {
                client.query("UNLISTEN *").await.ok();
                client.query(before).await.ok();
                seen.push(listen_unsynced(client, first, second).await);
            }
            assert_eq!(seen[0], seen[1], "{before}; {first}; {second}");
        }
    }
    assert_eq!(pinned(&pgweir).await, 0);
}

/// A server of which the first UNLISTEN is cancelled, and that tells what is listened on.
async fn forget_late(mut connection: BackendConnection, cancelled: Arc<AtomicUsize>) {
    let name = connection.startup.get("application_name");
    let is_listener = name.map(String::as_str) == Some(LISTENER);
    let mut listens = false;
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        let mut answer = Vec::new();
        if sql.contains("pin asked") {
            answer.extend(messages::row_description(&["name", "value"]));
            answer.extend(messages::data_row(&[Some("pin asked"), None]));
            if listens {
                answer.extend(messages::data_row(&[Some("pin listen"), None]));
            }
            answer.extend(messages::command_complete("SELECT 1"));
        } else if sql.starts_with("UNLISTEN") && cancelled.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.extend(messages::error_response("ERROR", "57014", "canceling"));
        } else {
            listens = sql.contains("LISTEN a") && !is_listener;
            for statement in sql.split("; ") {
                let tag = statement.split(' ').next().unwrap_or_default();
                answer.extend(messages::command_complete(tag));
            }
        }
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn what_a_backend_forgets_at_the_second_attempt_keeps_it_from_nobody() {
    let cancelled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cancelled);
    let backend = ScriptedBackend::start_with(move |connection| {
        forget_late(connection, Arc::clone(&counted))
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "1")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a; SELECT f()").await.ok();
    let mut two = client(&pgweir, "scripted").await;
    two.query("SELECT 1").await.ok();
    assert_eq!(cancelled.load(Ordering::SeqCst), 2);
    assert_eq!(pinned(&pgweir).await, 0);
}

#[tokio::test]
async fn what_waits_for_a_client_that_reads_late_comes_before_what_it_asks() {
    let database = database("listening_late").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    let mut sender = direct(&database).await;
    one.query("LISTEN a").await.ok();
    let payload = "x".repeat(7000);
    // More than sockets hold.
    for from in (0..900).step_by(100) {
        let notify = format!(
            "SELECT count(pg_notify('a', i || '{payload}')) FROM generate_series({from}, {from} + 99) i"
        );
        sender.query(&notify).await.ok();
    }
    one.send(&query("UNLISTEN a")).await;
    sender.query("NOTIFY a, 'too late?'").await.ok();
    one.reply().await.ok();
    let heard = heard(&mut one);
    let numbers = heard.iter().take(900).enumerate();
    for (at, (_, text)) in numbers {
        assert_eq!(*text, format!("{at}{payload}"));
    }
    assert!((900..=901).contains(&heard.len()), "{}", heard.len());
    one.query("NOTIFY a, 'nobody'").await.ok();
    assert!(one.notifications.is_empty());
    assert!(one.notices.is_empty(), "{:?}", one.notices);
}

#[tokio::test]
async fn portals_of_statements_that_listen_are_bounded() {
    const COUNT: usize = 5_100;
    let database = database("listening_portals").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    one.query("BEGIN").await.ok();
    let mut bytes = parse("s", "LISTEN a", &[]);
    for of in 0..COUNT {
        bytes.extend(bind(&format!("portal_{of}"), "s", &[]));
    }
    bytes.extend(sync());
    one.send(&bytes).await;
    let errors = one.expect_end().await;
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].code, "53400");
}
