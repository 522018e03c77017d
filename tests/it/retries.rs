//! Statements outside a transaction that fail for reasons which are not the application's: the rows of the table in
//! docs/retries.md, on real servers and, where the exact point matters, on scripted ones.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::shared::{self, Role};
use crate::support::client::{self, Client};
use crate::support::messages as m;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

/// What a scripted server does with a query.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes.
    Say(Vec<u8>),
    /// Sends these bytes and closes the connection.
    SayAndClose(Vec<u8>),
}

/// A server that takes one act for each simple query or Sync, whichever connection it comes on; and what came.
pub struct Script {
    backend: ScriptedBackend,
    heard: Arc<Mutex<Vec<String>>>,
}

pub async fn script(acts: Vec<Act>) -> Script {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let (next, acts) = (Arc::new(AtomicUsize::new(0)), Arc::new(acts));
    let log = Arc::clone(&heard);
    let backend = ScriptedBackend::start_with(move |connection| {
        let (next, acts, log) = (Arc::clone(&next), Arc::clone(&acts), Arc::clone(&log));
        async move { act(connection, &next, &acts, &log).await }
    })
    .await;
    Script { backend, heard }
}

async fn act(
    mut connection: BackendConnection,
    next: &AtomicUsize,
    acts: &[Act],
    log: &Mutex<Vec<String>>,
) {
    while let Some(message) = connection.read_message().await {
        match message.tag {
            b'Q' | b'P' => {
                let texts = message.strings();
                let text = texts.iter().find(|text| !text.is_empty());
                log.lock().unwrap().push(text.cloned().unwrap_or_default());
            }
            _ => {}
        }
        if !matches!(message.tag, b'Q' | b'S') {
            continue;
        }
        let number = next.fetch_add(1, Ordering::SeqCst);
        match acts.get(number).expect("an act for each exchange") {
            Act::Say(bytes) => connection.send(bytes).await,
            Act::SayAndClose(bytes) => {
                connection.send(bytes).await;
                return;
            }
        }
    }
}

impl Script {
    pub fn pgweir(&self) -> Options {
        Options::in_front_of_script(&self.backend)
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn failed(code: &str) -> Act {
    let error = m::error_response("ERROR", code, "scripted");
    Act::Say([error, m::ready_for_query(b'I')].concat())
}

fn terminated(before: &[u8]) -> Act {
    let fatal = m::error_response("FATAL", "57P01", "scripted");
    Act::SayAndClose([before, &fatal].concat())
}

fn lost() -> Act {
    Act::SayAndClose(Vec::new())
}

fn value(value: &str) -> Act {
    Act::Say(m::one_value_reply(value))
}

fn done(tag: &str) -> Act {
    Act::Say([m::command_complete(tag), m::ready_for_query(b'I')].concat())
}

/// Parses, binds and executes.
fn extended(name: &str, text: &str) -> Vec<u8> {
    [
        m::parse(name, text, &[]),
        m::bind("", name, &[]),
        m::execute("", 0),
        m::sync(),
    ]
    .concat()
}

fn retries(pgweir: &Pgweir, failure: &str) -> f64 {
    let labels = format!("{{database=\"postgres\",user=\"postgres\",failure=\"{failure}\"}}");
    pgweir
        .metric(&format!("pgweir_retries_total{labels}"))
        .unwrap()
}

#[tokio::test]
async fn what_the_server_rolled_back_runs_again_until_it_succeeds() {
    let acts = vec![
        failed("40001"),
        failed("40P01"),
        failed("40001"),
        done("UPDATE 1"),
    ];
    let script = script(acts).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let reply = client.query("UPDATE t SET a = 1").await.ok();
    assert_eq!(
        (reply.tags, reply.status),
        (vec!["UPDATE 1".to_owned()], 'I')
    );
    assert_eq!(script.heard(), ["UPDATE t SET a = 1"; 4]);
    assert_eq!(retries(&pgweir, "serialization").to_string(), "2");
    assert_eq!(retries(&pgweir, "deadlock").to_string(), "1");
}

#[tokio::test]
async fn an_extended_exchange_whose_commit_fails_runs_again_as_a_whole() {
    let answered = [
        m::frame(b'1', b""),
        m::frame(b'2', b""),
        m::command_complete("UPDATE 1"),
    ]
    .concat();
    let error = [
        m::error_response("ERROR", "40001", "scripted"),
        m::ready_for_query(b'I'),
    ]
    .concat();
    let script = script(vec![
        Act::Say([answered.clone(), error].concat()),
        Act::Say([answered, m::ready_for_query(b'I')].concat()),
    ])
    .await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    client.send(&extended("", "UPDATE t SET a = 1")).await;
    assert_eq!(client.reply().await.ok().order, "12CZ");
    assert_eq!(script.heard(), ["UPDATE t SET a = 1"; 2]);
}

#[tokio::test]
async fn attempts_bound_the_runs_of_a_request_and_the_last_error_is_passed_on() {
    let script = script(vec![failed("40001"); 3]).await;
    let pgweir = script.pgweir().set("retry.attempts", "2").start();
    let mut client = pgweir.client().await;
    let reply = client.query("UPDATE t SET a = 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40001", 'I'));
    assert_eq!(script.heard().len(), 3);
}

#[tokio::test]
async fn a_pool_without_budget_runs_nothing_again() {
    let script = script(vec![failed("40001")]).await;
    let pgweir = script
        .pgweir()
        .set("retry.budget", "0")
        .set("retry.budget_min", "0")
        .start();
    let mut client = pgweir.client().await;
    assert_eq!(client.query("UPDATE t SET a = 1").await.sqlstate(), "40001");
    let labels = "{database=\"postgres\",user=\"postgres\"}";
    let over = pgweir.metric(&format!("pgweir_retries_over_budget_total{labels}"));
    assert_eq!(over, Some(1.0));
}

#[tokio::test]
async fn switched_off_every_failure_is_passed_on() {
    let script = script(vec![failed("40001"), terminated(&[])]).await;
    let pgweir = script.pgweir().set("retry.statements", "false").start();
    let mut client = pgweir.client().await;
    assert_eq!(client.query("UPDATE t SET a = 1").await.sqlstate(), "40001");
    client.send(&m::query("SELECT 1")).await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
}

#[tokio::test]
async fn other_errors_and_what_is_unrepeatable_are_passed_on() {
    let script = script(vec![failed("23505"), failed("40001"), failed("40001")]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    assert_eq!(
        client.query("INSERT INTO t VALUES (1)").await.sqlstate(),
        "23505"
    );
    assert_eq!(client.query("VACUUM t").await.sqlstate(), "40001");
    let text = "INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2)";
    assert_eq!(client.query(text).await.sqlstate(), "40001");
    assert_eq!(script.heard().len(), 3);
}

#[tokio::test]
async fn of_two_exchanges_sent_together_the_first_is_not_run_behind_the_second() {
    let script = script(vec![failed("40001"), done("UPDATE 2")]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let both = [
        m::query("UPDATE t SET a = 1"),
        m::query("UPDATE t SET a = 2"),
    ];
    client.send(&both.concat()).await;
    assert_eq!(client.reply().await.sqlstate(), "40001");
    assert_eq!(client.reply().await.ok().tags, ["UPDATE 2"]);
    assert_eq!(script.heard().len(), 2);
}

#[tokio::test]
async fn an_exchange_with_a_commit_in_its_midst_is_not_run_again() {
    let answered = [m::frame(b'1', b""), m::frame(b'2', b"")].concat();
    let error = [
        m::error_response("ERROR", "40001", "scripted"),
        m::ready_for_query(b'I'),
    ]
    .concat();
    let script = script(vec![Act::Say([answered, error].concat())]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let mut batch = Vec::new();
    for text in [
        "BEGIN",
        "UPDATE t SET a = 1",
        "COMMIT",
        "UPDATE t SET a = 2",
    ] {
        batch.extend(
            [
                m::parse("", text, &[]),
                m::bind("", "", &[]),
                m::execute("", 0),
            ]
            .concat(),
        );
    }
    batch.extend(m::sync());
    client.send(&batch).await;
    assert_eq!(client.reply().await.sqlstate(), "40001");
    assert_eq!(script.heard().len(), 4);
}

#[tokio::test]
async fn a_session_terminated_in_place_of_an_answer_runs_its_statement_again() {
    let parsed = [m::frame(b'1', b""), m::frame(b'2', b"")].concat();
    let script = script(vec![
        terminated(&[]),
        done("UPDATE 1"),
        terminated(&parsed),
        Act::Say(
            [
                parsed,
                m::command_complete("UPDATE 2"),
                m::ready_for_query(b'I'),
            ]
            .concat(),
        ),
    ])
    .await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    assert_eq!(
        client.query("UPDATE t SET a = 1").await.ok().tags,
        ["UPDATE 1"]
    );
    client.send(&extended("", "UPDATE t SET a = 2")).await;
    assert_eq!(client.reply().await.ok().tags, ["UPDATE 2"]);
    assert_eq!(retries(&pgweir, "terminated").to_string(), "2");
}

#[tokio::test]
async fn a_session_terminated_behind_a_completed_command_does_not_run_it_again() {
    let script = script(vec![terminated(&m::command_complete("UPDATE 1"))]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    client.send(&m::query("UPDATE t SET a = 1")).await;
    client.expect(b'C').await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
    assert_eq!(script.heard().len(), 1);
}

#[tokio::test]
async fn a_session_terminated_behind_the_whole_answer_is_not_noticed() {
    let fatal = m::error_response("FATAL", "57P01", "scripted");
    let answered = [
        m::command_complete("UPDATE 1"),
        m::ready_for_query(b'I'),
        fatal,
    ]
    .concat();
    let script = script(vec![Act::SayAndClose(answered), done("UPDATE 2")]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let reply = client.query("UPDATE t SET a = 1").await.ok();
    assert_eq!(
        (reply.tags, reply.status),
        (vec!["UPDATE 1".to_owned()], 'I')
    );
    let reply = client.query("UPDATE t SET a = 2").await.ok();
    assert_eq!(reply.tags, ["UPDATE 2"]);
    assert_eq!(script.heard().len(), 2);
}

#[tokio::test]
async fn what_is_terminated_again_and_again_stays_terminated() {
    let script = script(vec![terminated(&[]); 4]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    client.send(&m::query("SELECT 1")).await;
    assert_eq!(client.expect_end().await[0].code, "57P01");
    assert_eq!(script.heard().len(), 4);
}

#[tokio::test]
async fn a_read_whose_connection_is_lost_runs_again() {
    let warning = m::error_response("WARNING", "57P02", "scripted");
    let warning = m::frame(b'N', &warning[5..]);
    let script = script(vec![lost(), Act::SayAndClose(warning), value("7")]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let reply = client.query("SELECT a FROM t").await.ok();
    assert_eq!((reply.value(), reply.order.as_str()), ("7", "TDCZ"));
    assert_eq!(retries(&pgweir, "lost").to_string(), "2");
}

#[tokio::test]
async fn a_read_that_was_answered_in_part_is_not_run_again() {
    let part = [m::row_description(&["a"]), m::data_row(&[Some("1")])].concat();
    let script = script(vec![Act::SayAndClose(part)]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    client.send(&m::query("SELECT a FROM t")).await;
    client.expect(b'T').await;
    client.expect(b'D').await;
    assert_eq!(client.expect_end().await[0].code, "08006");
    assert_eq!(script.heard().len(), 1);
}

#[tokio::test]
async fn the_outcome_of_a_write_whose_connection_is_lost_is_unknown() {
    let script = script(vec![lost()]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    client.send(&m::query("UPDATE t SET a = 1")).await;
    let errors = client.expect_end().await;
    assert_eq!(
        (errors[0].code.as_str(), errors[0].severity.as_str()),
        ("08007", "FATAL")
    );
    assert!(errors[0].hint.is_some());
    assert_eq!(script.heard().len(), 1);
    let labels = "{database=\"postgres\",user=\"postgres\"}";
    let unknown = pgweir.metric(&format!("pgweir_outcomes_unknown_total{labels}"));
    assert_eq!(unknown, Some(1.0));
}

#[tokio::test]
async fn a_commit_whose_connection_is_lost_is_unknown_and_a_transaction_before_it_is_not() {
    let begun = Act::Say([m::command_complete("BEGIN"), m::ready_for_query(b'T')].concat());
    for (text, code) in [("COMMIT", "08007"), ("UPDATE t SET a = 1", "08006")] {
        let script = script(vec![begun.clone(), lost()]).await;
        let pgweir = script.pgweir().start();
        let mut client = pgweir.client().await;
        client.query("BEGIN").await.ok();
        client.send(&m::query(text)).await;
        assert_eq!(client.expect_end().await[0].code, code, "{text}");
    }
}

#[tokio::test]
async fn a_commit_bound_in_an_earlier_exchange_counts_where_it_is_executed() {
    let inside = |messages: &[Vec<u8>]| {
        Act::Say([&messages.concat()[..], &m::ready_for_query(b'T')].concat())
    };
    for (portal, text, code) in [
        ("p", "COMMIT", "08007"),
        ("", "COMMIT", "08007"),
        ("p", "UPDATE t SET a = 2", "08006"),
        ("", "ROLLBACK", "08006"),
    ] {
        let script = script(vec![
            inside(&[m::command_complete("BEGIN")]),
            inside(&[m::command_complete("UPDATE 1")]),
            inside(&[m::frame(b'1', b""), m::frame(b'2', b"")]),
            lost(),
        ])
        .await;
        let pgweir = script.pgweir().start();
        let mut client = pgweir.client().await;
        client.query("BEGIN").await.ok();
        client.query("UPDATE t SET a = 1").await.ok();
        let bound = [m::parse("", text, &[]), m::bind(portal, "", &[]), m::sync()];
        client.send(&bound.concat()).await;
        client.reply().await.ok();
        let execute = [m::execute(portal, 0), m::sync()];
        client.send(&execute.concat()).await;
        let error = client.expect_end().await.remove(0);
        assert_eq!(error.code, code, "{text} in {portal:?}");
        let hint = error.hint.unwrap_or_default();
        let is_undone = code == "08006";
        assert_eq!(hint.contains("rolled back"), is_undone, "{hint}");
    }
}

#[tokio::test]
async fn a_rule_forbids_to_run_a_statement_again() {
    let acts = vec![
        failed("40001"),
        failed("40001"),
        done("UPDATE 1"),
        failed("40P01"),
    ];
    let script = script(acts).await;
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n[pool]\nhidden_state = false\n\
         [statement_rules.once]\nquery = \"%payment%\"\nretry = false\n",
        script.backend.node_url()
    );
    let pgweir = Options::config(&config).start();
    let mut client = pgweir.client().await;
    let reply = client.query("UPDATE payment SET a = 1").await;
    assert_eq!((reply.sqlstate(), reply.status), ("40001", 'I'));
    client.query("UPDATE other SET a = 1").await.ok();
    client.send(&extended("", "UPDATE payment SET a = 2")).await;
    assert_eq!(client.reply().await.sqlstate(), "40P01");
    assert_eq!(script.heard().len(), 4);
}

/// How a session is cut off amid `text`, behind BEGIN if it `begins`, by a limit or by KILL, and with which code.
async fn is_cut_off(by: &str, begins: bool, text: &str, code: &str) {
    let mut acts = vec![Act::Say(Vec::new())];
    if begins {
        let begun = [m::command_complete("BEGIN"), m::ready_for_query(b'T')];
        acts.insert(0, Act::Say(begun.concat()));
    }
    let script = script(acts).await;
    let options = script.pgweir().set("timeouts.cancel_wait_timeout", "100ms");
    let pgweir = match by {
        "KILL" => options.start(),
        limit => options.set(&format!("timeouts.{limit}"), "300ms").start(),
    };
    let mut client = pgweir.client().await;
    if begins {
        client.query("BEGIN").await.ok();
    }
    client.send(&m::query(text)).await;
    if by == "KILL" {
        let runs = || script.heard().iter().any(|heard| heard == text);
        eventually("the statement to run", async || runs()).await;
        pgweir.console().await.query("KILL postgres").await.ok();
    }
    let errors = client.expect_end().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].code, code, "{by} amid {text}: {errors:?}");
    let hint = errors[0].hint.clone().unwrap_or_default();
    assert_eq!(hint.contains(by), by != "KILL", "{hint}");
    let is_unknown = code == "08007";
    assert_eq!(hint.contains("Look in the database"), is_unknown, "{hint}");
    let series = "pgweir_outcomes_unknown_total{database=\"postgres\",user=\"postgres\"}";
    let counted = f64::from(u8::from(is_unknown));
    assert_eq!(pgweir.metric(series), Some(counted));
}

/// In other words than these an application, or another pgweir, could take it that the server has undone its write.
#[tokio::test]
async fn who_is_cut_off_amid_a_write_is_told_that_its_outcome_is_unknown() {
    let write = "UPDATE t SET a = 1";
    for (by, own) in [
        ("query_timeout", "57014"),
        ("transaction_timeout", "25P04"),
        ("KILL", "57P01"),
    ] {
        is_cut_off(by, false, write, "08007").await;
        is_cut_off(by, true, "COMMIT", "08007").await;
        is_cut_off(by, true, write, own).await;
        is_cut_off(by, false, "SELECT a FROM t", own).await;
    }
}

#[tokio::test]
async fn reads_sent_together_are_all_run_again() {
    let script = script(vec![lost(), value("1"), value("2")]).await;
    let pgweir = script.pgweir().start();
    let mut client = pgweir.client().await;
    let both = [m::query("SELECT a FROM t"), m::query("SELECT b FROM t")];
    client.send(&both.concat()).await;
    assert_eq!(client.reply().await.ok().value(), "1");
    assert_eq!(client.reply().await.ok().value(), "2");
}

#[tokio::test]
async fn a_cancel_request_ends_the_pause_before_another_run() {
    let script = script(vec![failed("40001"); 11]).await;
    let pgweir = script
        .pgweir()
        .set("retry.backoff", "60s")
        .set("retry.backoff_max", "60s")
        .set("retry.deadline", "10min")
        .start();
    let mut client = pgweir.client().await;
    client.send(&m::query("UPDATE t SET a = 1")).await;
    eventually("the statement to fail", async || !script.heard().is_empty()).await;
    eventually("the cancel request to end it", async || {
        client::cancel(pgweir.address, &client.key).await;
        pgweir.log_contains("canceling statement")
    })
    .await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_pause_leaves_nothing_behind() {
    let script = script(vec![failed("40001"); 11]).await;
    let pgweir = script
        .pgweir()
        .set("retry.backoff", "60s")
        .set("retry.backoff_max", "60s")
        .start();
    let mut client = pgweir.client().await;
    client.send(&m::query("UPDATE t SET a = 1")).await;
    eventually("the statement to fail", async || !script.heard().is_empty()).await;
    drop(client);
    let mut console = pgweir.console().await;
    eventually("the client to be gone", async || {
        let reply = console.query("SHOW CLIENTS").await.ok();
        reply.rows.len() == 1
    })
    .await;
}

/// Waits until the role has a backend that waits for a lock.
async fn waits_for_lock(role: &mut Role) {
    eventually("a statement to wait for a lock", async || {
        !role
            .activity("pid", "wait_event_type = 'Lock'")
            .await
            .is_empty()
    })
    .await;
}

async fn table(direct: &mut Client, name: &str) {
    let text = format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, a int); INSERT INTO {name} VALUES (1, 0), (2, 0)"
    );
    direct.query(&text).await.ok();
}

#[tokio::test]
async fn a_serialization_failure_of_postgresql_is_absorbed() {
    let mut role = shared::role("retry_serialization").await;
    let pgweir = Options::new(shared::server()).start();
    let mut direct = shared::direct().await;
    table(&mut direct, "retry_serialization").await;
    let text = "UPDATE retry_serialization SET a = a + 1 WHERE id = 1";
    for request in [m::query(text), extended("", text), extended("named", text)] {
        let mut client = role.client(&pgweir).await;
        client
            .query("SET default_transaction_isolation = 'repeatable read'")
            .await
            .ok();
        direct
            .query("BEGIN; UPDATE retry_serialization SET a = a + 10 WHERE id = 1")
            .await
            .ok();
        client.send(&request).await;
        waits_for_lock(&mut role).await;
        direct.query("COMMIT").await.ok();
        assert_eq!(client.reply().await.ok().tags, ["UPDATE 1"]);
    }
    let a = direct
        .value("SELECT a FROM retry_serialization WHERE id = 1")
        .await;
    assert_eq!(a, "33");
}

#[tokio::test]
async fn a_deadlock_of_postgresql_is_absorbed_in_a_pinned_session_too() {
    let mut role = shared::role("retry_deadlock").await;
    let pgweir = Options::new(shared::server()).start();
    let mut direct = shared::direct().await;
    table(&mut direct, "retry_deadlock").await;
    // The direct session is not to be the victim.
    direct.query("SET deadlock_timeout = '1min'").await.ok();
    for pins in [false, true] {
        let mut client = role.client(&pgweir).await;
        client.query("SET deadlock_timeout = '50ms'").await.ok();
        if pins {
            client
                .query("CREATE TEMP TABLE mine AS SELECT 5 AS a")
                .await
                .ok();
        }
        direct
            .query("BEGIN; UPDATE retry_deadlock SET a = a + 10 WHERE id = 2")
            .await
            .ok();
        // The first statement of the text locks row 1, the second waits for row 2.
        let text = "UPDATE retry_deadlock SET a = a + 1 WHERE id = 1; UPDATE retry_deadlock SET a = a + 1 WHERE id = 2";
        client.send(&m::query(text)).await;
        waits_for_lock(&mut role).await;
        direct
            .query("UPDATE retry_deadlock SET a = a + 10 WHERE id = 1")
            .await
            .ok();
        direct.query("COMMIT").await.ok();
        assert_eq!(client.reply().await.ok().tags, ["UPDATE 1", "UPDATE 1"]);
        if pins {
            assert_eq!(client.value("SELECT a FROM mine").await, "5");
        }
    }
    let sum = direct
        .value("SELECT string_agg(a::text, ',') FROM retry_deadlock")
        .await;
    assert_eq!(sum, "22,22");
}

#[tokio::test]
async fn a_write_whose_backend_is_terminated_happens_once() {
    let mut role = shared::role("retry_terminated").await;
    let pgweir = Options::new(shared::server()).start();
    let mut direct = shared::direct().await;
    table(&mut direct, "retry_terminated").await;
    let mut client = role.client(&pgweir).await;
    direct
        .query("BEGIN; UPDATE retry_terminated SET a = a + 10 WHERE id = 1")
        .await
        .ok();
    client
        .send(&m::query(
            "UPDATE retry_terminated SET a = a + 1 WHERE id = 1",
        ))
        .await;
    waits_for_lock(&mut role).await;
    let pids = role.pids().await;
    let terminate = format!("SELECT pg_terminate_backend({}, 10000)", pids[0]);
    assert_eq!(role.observe(&terminate).await, "t");
    direct.query("COMMIT").await.ok();
    assert_eq!(client.reply().await.ok().tags, ["UPDATE 1"]);
    let a = direct
        .value("SELECT a FROM retry_terminated WHERE id = 1")
        .await;
    assert_eq!(a, "11");
}
