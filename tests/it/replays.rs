//! Transactions that are run again: what a client notices of it (nothing), and where it is told after all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pgweir::demo::cluster::ServerOptions;

use crate::shared::{self, Role};
use crate::support::client::Client;
use crate::support::messages as m;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::ScriptedBackend;
use crate::support::wait::eventually;

pub(crate) fn replaying() -> Options {
    Options::new(shared::server()).set("retry.replay", "true")
}

pub(crate) async fn table(name: &str) -> Client {
    let mut direct = shared::direct().await;
    let text = format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, a int); INSERT INTO {name} VALUES (1, 0), (2, 0), (3, 0)"
    );
    direct.query(&text).await.ok();
    direct
}

pub(crate) fn replays(pgweir: &Pgweir, role: &Role, answers: &str) -> f64 {
    let user = role.name;
    let series = format!(
        "pgweir_replays_total{{database=\"postgres\",user=\"{user}\",answers=\"{answers}\"}}"
    );
    pgweir.metric(&series).unwrap()
}

/// Ends the role's backend that is in a transaction.
pub(crate) async fn terminate(role: &mut Role) {
    let pids = role.activity("pid", "xact_start IS NOT NULL").await;
    assert_eq!(pids.len(), 1, "{pids:?}");
    let sql = format!("SELECT pg_terminate_backend({}, 10000)", pids[0]);
    assert_eq!(role.observe(&sql).await, "t");
}

async fn waits_for_lock(role: &mut Role) {
    eventually("a statement to wait for a lock", async || {
        !role
            .activity("pid", "wait_event_type = 'Lock'")
            .await
            .is_empty()
    })
    .await;
}

/// A client in a transaction that has updated row 1, read the row `sees`, and waits for row 2 of another session, which
/// has added 10 to rows 2 and then wants row 1: the client is the victim.
async fn deadlock(role: &mut Role, pgweir: &Pgweir, table: &str, sees: u32) -> Client {
    let mut direct = self::table(table).await;
    direct.query("SET deadlock_timeout = '1min'").await.ok();
    let mut client = role.client(pgweir).await;
    client.query("SET deadlock_timeout = '50ms'").await.ok();
    client.query("BEGIN").await.ok();
    let update = |id: u32, by: u32| format!("UPDATE {table} SET a = a + {by} WHERE id = {id}");
    client.query(&update(1, 1)).await.ok();
    let seen = client
        .value(&format!("SELECT a FROM {table} WHERE id = {sees}"))
        .await;
    assert_eq!(seen, "0");
    direct
        .query(&format!("BEGIN; {}", update(2, 10)))
        .await
        .ok();
    client.send(&m::query(&update(2, 1))).await;
    waits_for_lock(role).await;
    direct.query(&update(1, 10)).await.ok();
    direct.query("COMMIT").await.ok();
    client
}

#[tokio::test]
async fn a_deadlock_is_not_noticed_by_its_victim() {
    let mut role = shared::role("replay_deadlock").await;
    let pgweir = replaying().start();
    let mut client = deadlock(&mut role, &pgweir, "replay_deadlock", 3).await;
    let reply = client.reply().await.ok();
    assert_eq!(
        (reply.tags, reply.status),
        (vec!["UPDATE 1".to_owned()], 'T')
    );
    assert_eq!(client.query("COMMIT").await.ok().status, 'I');
    let all = client
        .value("SELECT string_agg(a::text, ',' ORDER BY id) FROM replay_deadlock")
        .await;
    assert_eq!(all, "11,11,0");
    assert_eq!(replays(&pgweir, &role, "same").to_string(), "1");
    assert_eq!(replays(&pgweir, &role, "different").to_string(), "0");
}

#[tokio::test]
async fn a_transaction_that_would_be_answered_otherwise_fails_with_its_error() {
    let mut role = shared::role("replay_differs").await;
    let pgweir = replaying().start();
    // Row 2 is not what it was when the other session has committed.
    let mut client = deadlock(&mut role, &pgweir, "replay_differs", 2).await;
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
    assert_eq!(reply.error().message, "deadlock detected");
    assert!(reply.error().detail.is_some());
    let reply = client.query("SELECT 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("25P02", 'E'));
    let reply = client.query("COMMIT").await.ok();
    assert_eq!(
        (reply.tags, reply.status),
        (vec!["ROLLBACK".to_owned()], 'I')
    );
    let all = client
        .value("SELECT string_agg(a::text, ',' ORDER BY id) FROM replay_differs")
        .await;
    assert_eq!(all, "10,10,0");
    assert_eq!(replays(&pgweir, &role, "different").to_string(), "1");
}

#[tokio::test]
async fn without_replay_the_error_is_passed_on() {
    let mut role = shared::role("replay_off").await;
    let pgweir = Options::new(shared::server()).start();
    let mut client = deadlock(&mut role, &pgweir, "replay_off", 3).await;
    let reply = client.reply().await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
}

#[tokio::test]
async fn a_transaction_whose_backend_is_terminated_goes_on_on_another_one() {
    let mut role = shared::role("replay_terminated").await;
    let pgweir = replaying().start();
    let mut direct = table("replay_terminated").await;
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    let insert = [
        m::parse(
            "insert",
            "INSERT INTO replay_terminated VALUES ($1, $2)",
            &[23, 23],
        ),
        m::bind("", "insert", &[Some("4"), Some("40")]),
        m::execute("", 0),
        m::sync(),
    ];
    client.send(&insert.concat()).await;
    assert_eq!(client.reply().await.ok().tags, ["INSERT 0 1"]);
    client.query("SAVEPOINT a").await.ok();
    let twice = client
        .query("INSERT INTO replay_terminated VALUES (1, 1)")
        .await;
    assert_eq!((twice.sqlstate(), twice.status), ("23505", 'E'));
    assert_eq!(client.query("ROLLBACK TO a").await.ok().status, 'T');
    client.query("SET LOCAL work_mem = '5MB'").await.ok();

    // Between statements, and in one.
    terminate(&mut role).await;
    assert_eq!(client.value("SHOW work_mem").await, "5MB");
    direct
        .query("BEGIN; UPDATE replay_terminated SET a = a + 10 WHERE id = 2")
        .await
        .ok();
    let update = "UPDATE replay_terminated SET a = a + 1 WHERE id = 2";
    client.send(&m::query(update)).await;
    waits_for_lock(&mut role).await;
    terminate(&mut role).await;
    direct.query("COMMIT").await.ok();
    let reply = client.reply().await.ok();
    assert_eq!(
        (reply.tags, reply.status),
        (vec!["UPDATE 1".to_owned()], 'T')
    );

    // The statement that the transaction has prepared is still there.
    let again = [
        m::bind("", "insert", &[Some("5"), Some("50")]),
        m::execute("", 0),
        m::sync(),
    ];
    client.send(&again.concat()).await;
    assert_eq!(client.reply().await.ok().tags, ["INSERT 0 1"]);
    assert_eq!(client.query("COMMIT").await.ok().status, 'I');
    let all = "SELECT string_agg(id || '=' || a, ',' ORDER BY id) FROM replay_terminated";
    assert_eq!(direct.value(all).await, "1=0,2=11,3=0,4=40,5=50");
    assert_eq!(replays(&pgweir, &role, "same").to_string(), "2");
}

#[tokio::test]
async fn a_statement_prepared_in_a_transaction_outlives_its_failure() {
    let mut role = shared::role("replay_names").await;
    let pgweir = replaying().start();
    let mut direct = table("replay_names").await;
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    let select = [
        m::parse("s", "SELECT a FROM replay_names WHERE id = 1", &[]),
        m::bind("", "s", &[]),
        m::execute("", 0),
        m::sync(),
    ];
    client.send(&select.concat()).await;
    assert_eq!(client.reply().await.ok().value(), "0");
    direct
        .query("UPDATE replay_names SET a = 7 WHERE id = 1")
        .await
        .ok();
    terminate(&mut role).await;
    client.send(&m::query("SELECT 1")).await;
    let errors = client.expect_end().await;
    assert_eq!(errors[0].code, "57P01");

    // An error leaves the session there.
    let mut client = deadlock(&mut role, &pgweir, "replay_names_2", 2).await;
    assert_eq!(client.reply().await.sqlstate(), "40P01");
    client.query("ROLLBACK").await.ok();
    assert_eq!(client.value("SHOW deadlock_timeout").await, "50ms");
}

#[tokio::test]
async fn a_transaction_survives_a_server_that_is_killed_and_comes_back() {
    let mut server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server)
        .set("retry.replay", "true")
        .set("timeouts.server_login_retry", "100ms")
        .start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE t (a int)").await.ok();
    client.query("BEGIN").await.ok();
    client.query("INSERT INTO t VALUES (1)").await.ok();
    server.kill9().unwrap();
    server.start().unwrap();
    assert_eq!(
        client.query("INSERT INTO t VALUES (2)").await.ok().status,
        'T'
    );
    assert_eq!(client.query("COMMIT").await.ok().status, 'I');
    assert_eq!(client.value("SELECT sum(a) FROM t").await, "3");
}

#[tokio::test]
async fn a_rule_forbids_to_replay_a_transaction_with_its_statement() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        done("UPDATE 1", b'T'),
        done("UPDATE 1", b'T'),
        error("40P01", b'E'),
    ])
    .await;
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n[retry]\nreplay = true\n\
         [statement_rules.once]\nquery = \"%payment%\"\nretry = false\n",
        backend.node_url()
    );
    let pgweir = Options::config(&config).start();
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.query("UPDATE payment SET a = 1").await.ok();
    client.query("UPDATE t SET a = 1").await.ok();
    let reply = client.query("UPDATE t SET a = 2").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'));
    assert_eq!(heard.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn what_is_longer_than_the_journal_is_not_replayed() {
    for (key, value) in [
        ("retry.journal_statements", "3"),
        ("retry.journal_size", "100B"),
    ] {
        let name = if value == "3" {
            "replay_many"
        } else {
            "replay_long"
        };
        let mut role = shared::role(name).await;
        let pgweir = replaying().set(key, value).start();
        let mut client = deadlock(&mut role, &pgweir, name, 3).await;
        let reply = client.reply().await;
        assert_eq!((reply.sqlstate(), reply.status), ("40P01", 'E'), "{key}");
    }
}

#[tokio::test]
async fn a_transaction_with_a_cursor_or_copy_is_not_replayed() {
    let mut role = shared::role("replay_cursor").await;
    let pgweir = replaying().start();
    for text in [
        "DECLARE c CURSOR FOR SELECT 1",
        "COPY (SELECT 1) TO STDOUT",
        "LISTEN x",
        "DO 'BEGIN END'",
    ] {
        let mut client = role.client(&pgweir).await;
        client.query("BEGIN").await.ok();
        client.query(text).await.ok();
        terminate(&mut role).await;
        assert_eq!(client.expect_end().await[0].code, "57P01", "{text}");
    }
}

/// A server that answers each exchange with the next of `answers` and notes what it was asked; an empty answer closes
/// the connection.
pub(crate) async fn script(answers: Vec<Vec<u8>>) -> (ScriptedBackend, Arc<Mutex<Vec<String>>>) {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let (next, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(answers));
    let log = Arc::clone(&heard);
    let backend = ScriptedBackend::start_with(move |mut connection| {
        let (next, answers, log) = (Arc::clone(&next), Arc::clone(&answers), Arc::clone(&log));
        async move {
            let mut status = b'I';
            while let Some(message) = connection.read_message().await {
                if message.tag != b'Q' {
                    continue;
                }
                let text = message.strings().first().cloned().unwrap_or_default();
                if text == "ROLLBACK" {
                    // That is how pgweir cleans a connection.
                    let done = [m::command_complete("ROLLBACK"), m::ready_for_query(b'I')];
                    connection.send(&done.concat()).await;
                    continue;
                }
                if text == "DISCARD SEQUENCES" {
                    // Ahead of the first writes of an application.
                    connection.send(&done(&text, status)).await;
                    continue;
                }
                log.lock().unwrap().push(text);
                let number = next.fetch_add(1, Ordering::SeqCst);
                let answer = answers.get(number).expect("an answer for each query");
                connection.send(answer).await;
                status = answer.last().copied().unwrap_or(status);
                if !answer.ends_with(b"T") && !answer.ends_with(b"I") && !answer.ends_with(b"E") {
                    return;
                }
            }
        }
    })
    .await;
    (backend, heard)
}

pub(crate) fn done(tag: &str, status: u8) -> Vec<u8> {
    [m::command_complete(tag), m::ready_for_query(status)].concat()
}

pub(crate) fn error(code: &str, status: u8) -> Vec<u8> {
    [
        m::error_response("ERROR", code, "scripted"),
        m::ready_for_query(status),
    ]
    .concat()
}

pub(crate) fn in_front_of(backend: &ScriptedBackend) -> Pgweir {
    Options::in_front_of_script(backend)
        .set("retry.replay", "true")
        .start()
}

#[tokio::test]
async fn a_commit_that_is_refused_is_replayed_with_its_transaction() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        done("UPDATE 1", b'T'),
        error("40001", b'I'),
        done("BEGIN", b'T'),
        done("UPDATE 1", b'T'),
        done("COMMIT", b'I'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.query("UPDATE t SET a = 1").await.ok();
    let reply = client.query("COMMIT").await.ok();
    assert_eq!((reply.tags, reply.status), (vec!["COMMIT".to_owned()], 'I'));
    let all = ["BEGIN", "UPDATE t SET a = 1", "COMMIT"];
    assert_eq!(*heard.lock().unwrap(), [all, all].concat());
}

#[tokio::test]
async fn a_commit_is_not_sent_again_behind_another_answer() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        done("UPDATE 1", b'T'),
        error("40001", b'I'),
        done("BEGIN", b'T'),
        done("UPDATE 2", b'T'),
        // Behind a COMMIT that fails there is no transaction, failed or not.
        error("22P02", b'I'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.query("UPDATE t SET a = 1").await.ok();
    let reply = client.query("COMMIT").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40001", 'I'));
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.iter().filter(|text| *text == "COMMIT").count(), 1);
    assert_eq!(heard.len(), 6);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_never_replayed() {
    let fatal = m::error_response("FATAL", "57P01", "scripted");
    for end in [Vec::new(), fatal] {
        let (backend, heard) = script(vec![done("BEGIN", b'T'), done("UPDATE 1", b'T'), end]).await;
        let pgweir = in_front_of(&backend);
        let mut client = pgweir.client().await;
        client.query("BEGIN").await.ok();
        client.query("UPDATE t SET a = 1").await.ok();
        client.send(&m::query("COMMIT")).await;
        assert_eq!(client.expect_end().await[0].code, "08007");
        assert_eq!(heard.lock().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn an_answer_that_was_seen_in_part_goes_on_where_it_stopped() {
    let part = [m::row_description(&["a"]), m::data_row(&[Some("1")])].concat();
    let rest = [m::data_row(&[Some("2")]), done("SELECT 2", b'T')].concat();
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        part.clone(),
        done("BEGIN", b'T'),
        [part, rest].concat(),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    let reply = client.query("SELECT a FROM t").await.ok();
    assert_eq!(reply.order, "TDDCZ");
    assert_eq!(reply.column(), ["1", "2"]);
    assert_eq!(heard.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn statements_sent_together_are_replayed_together() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        error("40P01", b'E'),
        error("25P02", b'E'),
        done("BEGIN", b'T'),
        done("UPDATE 1", b'T'),
        done("UPDATE 2", b'T'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    let both = [
        m::query("UPDATE t SET a = 1"),
        m::query("UPDATE u SET a = 2"),
    ];
    client.send(&both.concat()).await;
    assert_eq!(client.reply().await.ok().tags, ["UPDATE 1"]);
    assert_eq!(client.reply().await.ok().tags, ["UPDATE 2"]);
    assert_eq!(heard.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn an_error_with_a_commit_sent_behind_it_is_passed_on() {
    let (backend, heard) = script(vec![
        done("BEGIN", b'T'),
        done("SAVEPOINT", b'T'),
        error("40P01", b'E'),
        done("ROLLBACK", b'T'),
        done("COMMIT", b'I'),
    ])
    .await;
    let pgweir = in_front_of(&backend);
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    client.query("SAVEPOINT a").await.ok();
    let texts = ["UPDATE t SET a = 1", "ROLLBACK TO a", "COMMIT"];
    client.send(&texts.map(m::query).concat()).await;
    assert_eq!(client.reply().await.sqlstate(), "40P01");
    assert_eq!(client.reply().await.ok().tags, ["ROLLBACK"]);
    assert_eq!(client.reply().await.ok().tags, ["COMMIT"]);
    assert_eq!(heard.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn what_a_client_adds_to_an_open_exchange_waits_for_the_replay() {
    let mut role = shared::role("replay_open").await;
    let pgweir = replaying().start();
    let mut direct = table("replay_open").await;
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    let select = [
        m::parse("", "SELECT a FROM replay_open WHERE id = 1", &[]),
        m::bind("", "", &[]),
        m::execute("", 0),
        m::flush(),
    ];
    client.send(&select.concat()).await;
    for tag in [b'1', b'2', b'D', b'C'] {
        client.expect(tag).await;
    }
    direct
        .query("UPDATE replay_open SET a = 9 WHERE id = 1")
        .await
        .ok();
    terminate(&mut role).await;
    let rest = [
        m::parse("", "UPDATE replay_open SET a = 1 WHERE id = 2", &[]),
        m::bind("", "", &[]),
        m::execute("", 0),
        m::parse("", "COMMIT", &[]),
        m::bind("", "", &[]),
        m::execute("", 0),
        m::sync(),
    ];
    let _ = client.try_send(&rest.concat()).await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
    let a = direct.value("SELECT a FROM replay_open WHERE id = 2").await;
    assert_eq!(a, "0");
}
