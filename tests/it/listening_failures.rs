//! LISTEN in transaction mode where something goes wrong: names the server refuses, statements that are cancelled, that
//! fail for another one, that run elsewhere, and a shared listener that answers late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, StopMode};

use super::listening::{client, database, direct, heard, note, pinned};
use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{self, frame};
use crate::support::pgweir::Options;
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

#[tokio::test]
async fn a_name_that_is_no_channel_takes_the_listener_from_nobody() {
    let database = database("listening_names").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    let mut two = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    let texts: [&[u8]; 5] = [
        b"LISTEN \"\xff\"",
        b"LISTEN a\xc3",
        b"LISTEN U&\"\\d800\"",
        b"LISTEN U&\"\\0000\"",
        b"LISTEN b; LISTEN \"\xed\xa0\x80\"",
    ];
    let mut past = direct(&database).await;
    for text in texts {
        let bytes = frame(b'Q', &[text, b"\0"].concat());
        two.send(&bytes).await;
        past.send(&bytes).await;
        let (reply, expected) = (two.reply().await, past.reply().await);
        assert_eq!(reply.sqlstate(), expected.sqlstate(), "{text:?}");
        assert_eq!(reply.error().message, expected.error().message, "{text:?}");
    }
    // An escape that makes a channel is one.
    two.query("LISTEN U&\"\\0063\"").await.ok();
    two.query("NOTIFY c, '1'; NOTIFY a, '2'; NOTIFY b, '3'")
        .await
        .ok();
    assert_eq!(heard(&mut two), [note("c", "1")]);
    one.query("SELECT 1").await.ok();
    assert_eq!(heard(&mut one), [note("a", "2")]);
    assert!(one.notices.is_empty(), "{:?}", one.notices);
    assert_eq!(pinned(&pgweir).await, 0);
}

#[tokio::test]
async fn a_name_outside_ascii_is_left_to_nobody_whatever_the_encoding_becomes() {
    let database = database("listening_outside_ascii").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = client(&pgweir, &database).await;
    one.query("BEGIN").await.ok();
    one.query("LISTEN \"\u{e9}\"").await.ok();
    one.query("SET client_encoding = latin1").await.ok();
    one.query("COMMIT").await.ok();
    assert_eq!(pinned(&pgweir).await, 1);
    one.terminate().await;
    // On the same server connection, if it was kept.
    let mut two = client(&pgweir, &database).await;
    let channels = two.query("SELECT pg_listening_channels()").await.ok();
    assert!(channels.rows.is_empty(), "{channels:?}");
    two.query("NOTIFY \"\u{e9}\"").await.ok();
    assert_eq!(heard(&mut two), []);
}

/// What a client listens on by a connection of its own stays there, whatever it listens on besides.
#[tokio::test]
async fn a_name_outside_ascii_is_not_carried_for_one_who_listens_already() {
    let database = database("listening_outside_ascii_too").await;
    let pgweir = Options::new(shared::server()).start();
    let mut sender = direct(&database).await;
    let in_latin1 = String::from_utf8_lossy(b"\xe9").into_owned();
    let outside = "LISTEN \"\u{e9}\"";
    for way in ["in a block", "in a text", "by the extended protocol"] {
        let mut one = client(&pgweir, &database).await;
        one.query("LISTEN a").await.ok();
        match way {
            "in a block" => {
                one.query("BEGIN").await.ok();
                one.query("LISTEN b").await.ok();
                one.query(outside).await.ok();
                one.query("COMMIT").await.ok();
            }
            "in a text" => {
                let text = format!("BEGIN; LISTEN b; {outside}; COMMIT");
                one.query(&text).await.ok();
            }
            _ => {
                one.extended("LISTEN b", &[]).await.ok();
                one.extended(outside, &[]).await.ok();
            }
        }
        assert_eq!(pinned(&pgweir).await, 1, "{way}");
        one.query("SET client_encoding = latin1").await.ok();
        // Answered once the listener is another.
        one.query("SELECT 1").await.ok();
        assert_eq!(pinned(&pgweir).await, 1, "{way}");
        sender
            .query("NOTIFY \"\u{e9}\", '1'; NOTIFY a, '2'; NOTIFY b, '3'")
            .await
            .ok();
        // They come from two connections.
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(one.notification().await);
        }
        seen.sort();
        let expected = [note("a", "2"), note("b", "3"), note(&in_latin1, "1")];
        assert_eq!(seen, expected, "{way}");
        one.terminate().await;
    }
}

#[tokio::test]
async fn one_channel_more_than_are_carried_is_heard_by_a_connection_of_ones_own() {
    let database = database("listening_many").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    one.query("BEGIN").await.ok();
    for of in 0..1000 {
        one.query(&format!("LISTEN c{of}")).await.ok();
    }
    one.query("COMMIT").await.ok();
    assert_eq!(pinned(&pgweir).await, 0);
    one.extended("LISTEN c1000", &[]).await.ok();
    assert_eq!(pinned(&pgweir).await, 1);
    let mut sender = direct(&database).await;
    for of in [1000, 0, 999] {
        let channel = format!("c{of}");
        sender.query(&format!("NOTIFY {channel}")).await.ok();
        assert_eq!(one.notification().await, note(&channel, ""));
    }
}

#[tokio::test]
async fn nothing_more_is_carried_once_the_shared_listener_is_switched_off() {
    let database = database("listening_switched").await;
    let config = |is_on: bool| {
        format!(
            "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
             [auth]\nmethod = \"trust\"\n\
             [cluster]\nprimary = \"{}\"\n\
             [pool]\nshared_listener = {is_on}\n",
            shared::server().node_url()
        )
    };
    let pgweir = Options::config(&config(true)).start();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    std::fs::write(pgweir.config_path(), config(false)).unwrap();
    pgweir.reload();
    pgweir.wait_for_log("configuration reloaded");
    one.query("BEGIN").await.ok();
    one.query("LISTEN b").await.ok();
    one.query("COMMIT").await.ok();
    assert_eq!(pinned(&pgweir).await, 1);
    let mut sender = direct(&database).await;
    for channel in ["a", "b"] {
        sender.query(&format!("NOTIFY {channel}")).await.ok();
        assert_eq!(one.notification().await, note(channel, ""));
    }
}

#[tokio::test]
async fn what_was_listened_on_without_the_listener_is_heard_whatever_comes_after() {
    let database = database("listening_without").await;
    let mut past = direct(&database).await;
    past.query("CREATE ROLE listening_without LOGIN").await.ok();
    let pgweir = Options::new(shared::server()).start();
    let login = Login::new("listening_without", &database);
    let mut one = pgweir.client_as(&login).await;
    one.query("LISTEN a").await.ok();
    // It keeps its connection, and there is none to listen on.
    one.query("BEGIN").await.ok();
    past.query("ALTER ROLE listening_without NOLOGIN")
        .await
        .ok();
    let killed = past.value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgweir listener'");
    assert_eq!(killed.await, "1");
    one.query("LISTEN b").await.ok();
    one.query("COMMIT").await.ok();
    assert_eq!(pinned(&pgweir).await, 1);
    past.query("ALTER ROLE listening_without LOGIN").await.ok();
    let told = one.notice().await;
    assert_eq!(told.message, "notifications may have been missed");
    one.query("BEGIN").await.ok();
    past.query("NOTIFY b, 'once'").await.ok();
    one.query("LISTEN b").await.ok();
    one.query("COMMIT").await.ok();
    assert_eq!(one.notification().await, note("b", "once"));
    one.query("NOTIFY b, 'again'").await.ok();
    assert_eq!(heard(&mut one), [note("b", "again")]);
    drop(one);
    drop(pgweir);
    past.query("DROP ROLE listening_without").await.ok();
}

#[tokio::test]
async fn a_listen_behind_a_statement_that_failed_for_another_one_is_heard() {
    let database = database("listening_answered").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut one = client(&pgweir, &database).await;
    let mut other = client(&pgweir, &database).await;
    one.query("CREATE TABLE t (a int)").await.ok();
    one.query("LISTEN a").await.ok();
    one.query("PREPARE k AS SELECT * FROM t").await.ok();
    // Where it was prepared somebody else is at work, and where it comes to next it can't be.
    other.query("BEGIN").await.ok();
    direct(&database).await.query("DROP TABLE t").await.ok();
    assert_eq!(one.query("EXECUTE k").await.sqlstate(), "42P01");
    one.query("LISTEN b").await.ok();
    one.query("NOTIFY b, 'heard'").await.ok();
    assert_eq!(heard(&mut one), [note("b", "heard")]);
    other.query("COMMIT").await.ok();
}

/// What a scripted server does with a query.
struct Script {
    /// UNLISTENs that fail as if they were cancelled, and those that came so far.
    cancels: usize,
    unlistens: AtomicUsize,
    /// How long the listener takes for an answer behind the first two.
    delay: Duration,
    fences: AtomicUsize,
}

impl Script {
    fn new(cancels: usize, delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            cancels,
            unlistens: AtomicUsize::new(0),
            delay,
            fences: AtomicUsize::new(0),
        })
    }

    async fn start(self: &Arc<Self>) -> ScriptedBackend {
        let script = Arc::clone(self);
        ScriptedBackend::start_with(move |connection| {
            let script = Arc::clone(&script);
            async move { script.answer(connection).await }
        })
        .await
    }

    async fn answer(&self, mut connection: BackendConnection) {
        let name = connection.startup.get("application_name");
        let is_listener = name.map(String::as_str) == Some("pgweir listener");
        while let Some(message) = connection.read_message().await {
            let sql = message.strings().concat();
            let mut answer = if is_listener {
                if self.fences.fetch_add(1, Ordering::SeqCst) >= 2 {
                    tokio::time::sleep(self.delay).await;
                }
                if sql.contains("refused") {
                    messages::error_response("ERROR", "XX000", "no such channel")
                } else {
                    messages::command_complete("LISTEN")
                }
            } else if sql.starts_with("UNLISTEN") {
                if self.unlistens.fetch_add(1, Ordering::SeqCst) < self.cancels {
                    messages::error_response("ERROR", "57014", "canceling statement")
                } else {
                    messages::command_complete("UNLISTEN")
                }
            } else {
                let tag = sql.split(' ').next().unwrap_or_default();
                messages::command_complete(tag)
            };
            answer.extend(messages::ready_for_query(b'I'));
            connection.send(&answer).await;
        }
    }
}

#[tokio::test]
async fn a_backend_that_was_kept_from_forgetting_is_told_again() {
    let script = Script::new(3, Duration::ZERO);
    let backend = script.start().await;
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "1")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    // The only connection is another client's once it has forgotten.
    let mut two = client(&pgweir, "scripted").await;
    two.query("SELECT 1").await.ok();
    assert_eq!(script.unlistens.load(Ordering::SeqCst), 4);
    assert_eq!(pinned(&pgweir).await, 0);
}

/// Answers every query. What was committed before the client's transaction reaches the listener late: with what it is
/// asked `after` so many queries.
async fn tell_late(mut connection: BackendConnection, asked: Arc<AtomicUsize>, after: usize) {
    let name = connection.startup.get("application_name");
    let is_listener = name.map(String::as_str) == Some("pgweir listener");
    let mut status = b'I';
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        let mut answer = Vec::new();
        if is_listener && asked.fetch_add(1, Ordering::SeqCst) == after {
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer.extend(frame(b'A', b"\0\0\0\x07a\0older\0"));
        }
        let (tag, next) = match &*sql {
            "BEGIN" => ("BEGIN", b'T'),
            "COMMIT" => ("COMMIT", b'I'),
            "UNLISTEN *" => ("UNLISTEN", status),
            _ => ("LISTEN", status),
        };
        status = next;
        answer.extend(messages::command_complete(tag));
        answer.extend(messages::ready_for_query(status));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn what_is_older_than_the_transaction_that_ends_listening_is_heard() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // It has been asked for its settings, to listen, and what came before the client was ready.
    let backend = ScriptedBackend::start_with(move |connection| {
        tell_late(connection, Arc::clone(&counted), 3)
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    one.query("BEGIN").await.ok();
    one.query("UNLISTEN *").await.ok();
    assert_eq!(heard(&mut one), []);
    one.query("COMMIT").await.ok();
    assert_eq!(heard(&mut one), [note("a", "older")]);
}

/// Ends the first connections when they are told to forget, the first one with the server's last words.
async fn end_at_unlisten(mut connection: BackendConnection, ended: Arc<AtomicUsize>) {
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        if sql.starts_with("UNLISTEN") {
            let before = ended.fetch_add(1, Ordering::SeqCst);
            if before == 0 {
                let words = "terminating connection due to administrator command";
                let last = messages::error_response("FATAL", "57P01", words);
                connection.send(&last).await;
            }
            if before < 2 {
                return;
            }
        }
        let tag = sql.split(' ').next().unwrap_or_default();
        let mut answer = messages::command_complete(tag);
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn a_backend_that_is_lost_while_it_forgets_is_nobodys_loss() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let backend = ScriptedBackend::start_with(move |connection| {
        end_at_unlisten(connection, Arc::clone(&counted))
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "1")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    for channel in ["a", "b", "c"] {
        one.query(&format!("LISTEN {channel}")).await.ok();
        one.query("SELECT 1").await.ok();
    }
    assert_eq!(ended.load(Ordering::SeqCst), 3);
}

/// Ends the connection that listens, twice, when it is to listen on something new, and then makes no more of it.
async fn end_at_listen(mut connection: BackendConnection, ended: Arc<AtomicUsize>) {
    let name = connection.startup.get("application_name");
    let is_listener = name.map(String::as_str) == Some("pgweir listener");
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        if is_listener && sql.contains("LISTEN \"b\"") && ended.fetch_add(1, Ordering::SeqCst) < 2 {
            return;
        }
        let tag = sql.split(' ').next().unwrap_or_default();
        let mut answer = messages::command_complete(tag);
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn who_listens_while_the_listener_is_lost_waits_for_the_next_one() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let backend = ScriptedBackend::start_with(move |connection| {
        end_at_listen(connection, Arc::clone(&counted))
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend)
        .set("pool.on_session_state", "reject")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    one.query("LISTEN b").await.ok();
    assert_eq!(ended.load(Ordering::SeqCst), 3);
    assert_eq!(pinned(&pgweir).await, 0);
}

/// Lets a LISTEN run over its time; what comes behind it before the cancel request is over is cancelled, too.
async fn run_over(mut connection: BackendConnection, early: Arc<AtomicUsize>) {
    let name = connection.startup.get("application_name");
    let is_listener = name.map(String::as_str) == Some("pgweir listener");
    let mut was_cancelled = false;
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        if sql == "LISTEN a" && !is_listener {
            while connection.canceled() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            was_cancelled = true;
        }
        let mut answer = if was_cancelled && connection.cancels_over() == 0 {
            early.fetch_add(1, Ordering::SeqCst);
            messages::error_response("ERROR", "57014", "canceling statement due to user request")
        } else {
            let tag = sql.split(' ').next().unwrap_or_default();
            messages::command_complete(tag)
        };
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn nothing_is_asked_of_a_backend_that_a_cancel_request_is_under_way_to() {
    let early = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&early);
    let backend =
        ScriptedBackend::start_with(move |connection| run_over(connection, Arc::clone(&counted)))
            .await;
    backend.hold_cancels(Duration::from_millis(400));
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "1")
        .set("timeouts.query_timeout", "200ms")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    assert_eq!(one.query("LISTEN a").await.sqlstate(), "57014");
    one.query("SELECT 1").await.ok();
    let mut two = client(&pgweir, "scripted").await;
    two.query("SELECT 1").await.ok();
    // The statement, and what was sent in the same write.
    assert_eq!(early.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_the_listener_is_refused_is_one_clients_loss() {
    let script = Script::new(0, Duration::from_millis(200));
    let backend = script.start().await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(client(&pgweir, "scripted").await);
    }
    let [one, two, three, four] = &mut clients[..] else {
        unreachable!("there are four");
    };
    one.query("LISTEN a").await.ok();
    let before = script.fences.load(Ordering::SeqCst);
    one.send(&messages::query("SELECT 1")).await;
    eventually("the listener to be busy", async || {
        script.fences.load(Ordering::SeqCst) > before
    })
    .await;
    // These are asked for together.
    let (two, three, four) = tokio::join!(
        two.query("LISTEN b"),
        three.query("LISTEN refused"),
        four.query("LISTEN c")
    );
    for reply in [two, three, four] {
        reply.ok();
    }
    one.reply().await.ok();
    pgweir.wait_for_log("the server refused a LISTEN");
    assert_eq!(pinned(&pgweir).await, 1);
    assert!(!pgweir.log_contains("no connection to listen on"));
    assert!(one.notices.is_empty(), "{:?}", one.notices);
}

#[tokio::test]
async fn a_client_that_waits_for_the_listener_is_not_idle() {
    let script = Script::new(0, Duration::from_millis(900));
    let backend = script.start().await;
    let pgweir = Options::in_front_of_script(&backend)
        .set("timeouts.client_idle_timeout", "300ms")
        .set("timeouts.idle_transaction_timeout", "300ms")
        .start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    one.query("SELECT 1").await.ok();
    one.query("SELECT 1").await.ok();
    let errors = one.expect_end().await;
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].code, "57P05");
}

#[tokio::test]
async fn a_read_that_fails_on_a_replica_is_answered_once() {
    let cluster = Cluster::start(1).unwrap();
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v int);
        INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i;
        CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'UPDATE t SET v = v + 1 WHERE id = 50 RETURNING v';
        CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE sql AS 'SELECT writes()';
        CREATE VIEW innocent AS SELECT reads() AS v;
        CREATE VIEW guilty AS SELECT reads() AS v;
        CREATE VIEW place AS SELECT inet_server_port()::text AS port;";
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let pgweir = Options::cluster(&cluster)
        .set("cluster.probe_interval", "100ms")
        .set("cluster.sample_interval", "5ms")
        .start();
    let mut one = pgweir.client().await;
    let primary = cluster.primary.port().to_string();
    one.query("LISTEN a").await.ok();
    eventually("a read on the replica", async || {
        one.value("SELECT port FROM place").await != primary
    })
    .await;
    let reply = one.query("SELECT v FROM innocent").await.ok();
    assert_eq!(reply.order, "TDCZ");
    // A second ReadyForQuery would be taken for the end of this one.
    let reply = one.query("SELECT 'x' AS x").await.ok();
    assert_eq!((reply.order.as_str(), reply.value()), ("TDCZ", "x"));
    eventually("a read on the replica", async || {
        one.value("SELECT port FROM place").await != primary
    })
    .await;
    let reply = one.extended("SELECT v FROM guilty", &[]).await.ok();
    assert_eq!(reply.order, "12TDCZ");
    one.query("NOTIFY a, 'own'").await.ok();
    assert_eq!(heard(&mut one), [note("a", "own")]);
    // Both were tried on the replica.
    eventually("two refusals in the log", async || {
        let log = pgweir.log();
        log.matches("refused a statement as a write").count() == 2
    })
    .await;
    // A transaction that begins on the replica and listens ends on the primary.
    one.query("BEGIN READ ONLY").await.ok();
    one.query("SELECT count(*) FROM t").await.ok();
    one.query("LISTEN b").await.ok();
    one.query("COMMIT").await.ok();
    one.query("NOTIFY b, 'moved'").await.ok();
    assert_eq!(heard(&mut one), [note("b", "moved")]);
    assert_eq!(pinned(&pgweir).await, 0);
}

/// Waits until it is told that it may have missed something, and hears what comes behind that.
async fn hears_again(one: &mut Client, sender: &mut Client, what: &str) {
    let notice = one.notice().await;
    assert_eq!(notice.message, "notifications may have been missed");
    sender.query(&format!("NOTIFY a, '{what}'")).await.ok();
    assert_eq!(one.notification().await, note("a", what));
}

#[tokio::test]
async fn whatever_becomes_of_the_primary_its_listeners_are_told_and_hear_on() {
    let mut cluster = Cluster::start(2).unwrap();
    let pgweir = Options::cluster(&cluster)
        .set("cluster.probe_interval", "100ms")
        .set("cluster.probe_timeout", "500ms")
        .set("cluster.down_after", "2")
        .set("timeouts.server_login_retry", "50ms")
        .start();
    let mut one = pgweir.client().await;
    let mut sender = pgweir.client().await;
    one.query("LISTEN a").await.ok();
    cluster.primary.restart(StopMode::Fast).unwrap();
    hears_again(&mut one, &mut sender, "restarted").await;
    // It says nothing, and another one leads.
    cluster.primary.pause().unwrap();
    cluster.replicas[0].promote().unwrap();
    hears_again(&mut one, &mut sender, "frozen").await;
    let mut late = pgweir.client().await;
    late.query("LISTEN a").await.ok();
    sender.query("NOTIFY a, 'late'").await.ok();
    for client in [&mut one, &mut late] {
        assert_eq!(client.notification().await, note("a", "late"));
    }
    assert_eq!(pinned(&pgweir).await, 0);
    cluster.primary.cont().unwrap();
}

#[tokio::test]
async fn a_transaction_that_runs_again_is_heard_once_and_at_its_end() {
    let database = database("listening_replay").await;
    let pgweir = Options::new(shared::server())
        .set("retry.replay", "true")
        // Its transaction would be counted.
        .set("pool.hidden_state", "false")
        .start();
    let mut past = direct(&database).await;
    past.query("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 0)")
        .await
        .ok();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    let terminate = format!(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{database}' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
    );
    for round in 1..=3 {
        one.query("BEGIN").await.ok();
        one.query("UPDATE t SET a = a + 1").await.ok();
        one.query(&format!("NOTIFY a, '{round}'")).await.ok();
        assert_eq!(past.value(&terminate).await, "1");
        assert_eq!(one.value("SELECT a FROM t").await, round.to_string());
        past.query("NOTIFY a, 'other'").await.ok();
        assert_eq!(one.value("SELECT 'x'").await, "x");
        assert_eq!(heard(&mut one), [], "inside the transaction");
        one.query("COMMIT").await.ok();
        let expected = [note("a", "other"), note("a", &round.to_string())];
        assert_eq!(heard(&mut one), expected);
    }
    // A LISTEN is not run again.
    one.query("BEGIN").await.ok();
    one.query("LISTEN b").await.ok();
    one.query("UPDATE t SET a = a + 1").await.ok();
    assert_eq!(past.value(&terminate).await, "1");
    assert_eq!(one.expect_end().await[0].code, "57P01");
}
