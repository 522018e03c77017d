//! The server goes away: restarted while connections are idle, or a backend killed at each point of a session's life.

use std::time::Duration;

use pgweir::demo::cluster::{ServerOptions, StopMode};

use crate::shared::{self, Role};
use crate::support::client::{Client, Login};
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::Options;
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend, Step};
use crate::support::wait::eventually;

#[tokio::test]
async fn idle_connections_of_a_restarted_server_are_replaced() {
    let mut server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).start();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = pgweir.client().await;
        client.query("BEGIN").await.ok();
        clients.push(client);
    }
    for client in &mut clients {
        client.query("COMMIT").await.ok();
    }
    for mode in [StopMode::Fast, StopMode::Immediate] {
        server.restart(mode).unwrap();
        for client in &mut clients {
            assert_eq!(client.value("SELECT 1").await, "1");
        }
        let reply = clients[0].extended("SELECT $1::text", &[Some("x")]).await;
        assert_eq!(reply.ok().value(), "x");
    }
    server.kill9().unwrap();
    server.start().unwrap();
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn a_statement_waits_for_a_server_that_is_down_and_a_new_client_too() {
    let mut server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server)
        .set("timeouts.server_login_retry", "100ms")
        .start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
    server.stop(StopMode::Fast).unwrap();
    client.send(&messages::query("SELECT 2")).await;
    pgweir.wait_for_log("could not open a server connection");
    server.start().unwrap();
    assert_eq!(client.reply().await.ok().value(), "2");
}

#[tokio::test]
async fn a_wait_for_a_server_that_is_down_ends_with_the_reason() {
    let mut server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server)
        .set("timeouts.query_wait_timeout", "300ms")
        .start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
    server.stop(StopMode::Fast).unwrap();
    let reply = client.query("SELECT 2").await;
    assert_eq!(reply.sqlstate(), "53300");
    let detail = reply.error().detail.clone().unwrap();
    assert!(detail.contains("could not connect"), "{detail}");
    server.start().unwrap();
    assert_eq!(client.value("SELECT 3").await, "3");
}

/// Ends the role's only backend and waits until it is gone.
async fn terminate(role: &mut Role) {
    let pids = role.pids().await;
    assert_eq!(pids.len(), 1, "{pids:?}");
    let sql = format!("SELECT pg_terminate_backend({}, 10000)", pids[0]);
    assert_eq!(role.observe(&sql).await, "t");
}

fn assert_is_terminated(errors: &[ServerError]) {
    let expected = ServerError {
        severity: "FATAL".to_owned(),
        code: "57P01".to_owned(),
        message: "terminating connection due to administrator command".to_owned(),
        detail: None,
        hint: None,
    };
    assert_eq!(errors, [expected]);
}

#[tokio::test]
async fn a_backend_killed_while_idle_is_not_noticed() {
    let mut role = shared::role("killed_idle").await;
    let pgweir = Options::new(shared::server()).start();
    let mut client = role.client(&pgweir).await;
    assert_eq!(client.value("SELECT 1").await, "1");
    terminate(&mut role).await;
    assert_eq!(client.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn a_backend_killed_in_a_statement_ends_its_session_with_the_servers_words() {
    let mut role = shared::role("killed_query").await;
    let pgweir = Options::new(shared::server())
        .set("retry.statements", "false")
        .flag("--pool-size", "1")
        .start();
    let mut client = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    client.send(&messages::query("SELECT pg_sleep(600)")).await;
    eventually("the statement to run", async || {
        !role
            .activity("pid", "wait_event = 'PgSleep'")
            .await
            .is_empty()
    })
    .await;
    other.send(&messages::query("SELECT 'other'")).await;
    terminate(&mut role).await;
    assert_is_terminated(&client.expect_end().await);
    assert_eq!(other.reply().await.ok().value(), "other");
}

#[tokio::test]
async fn a_backend_killed_in_a_transaction_ends_its_session_with_the_servers_words() {
    let mut role = shared::role("killed_transaction").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    terminate(&mut role).await;
    assert_is_terminated(&client.expect_end().await);
    let mut other = role.client(&pgweir).await;
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_backend_killed_in_an_unfinished_exchange_ends_its_session_with_the_servers_words() {
    let mut role = shared::role("killed_exchange").await;
    let pgweir = Options::new(shared::server()).start();
    let mut client = role.client(&pgweir).await;
    client
        .send(&[messages::parse("", "SELECT 1", &[]), messages::flush()].concat())
        .await;
    client.expect(b'1').await;
    terminate(&mut role).await;
    assert_is_terminated(&client.expect_end().await);
}

#[tokio::test]
async fn a_pinned_backend_killed_while_idle_ends_its_session_with_the_servers_words() {
    let mut role = shared::role("killed_pinned").await;
    let pgweir = Options::new(shared::server()).start();
    let mut client = role.client(&pgweir).await;
    client.query("CREATE TEMP TABLE t (a int)").await.ok();
    terminate(&mut role).await;
    assert_is_terminated(&client.expect_end().await);
}

/// A session whose server ends in each of these ways; what the client is told.
async fn told_after(steps: Vec<Step>) -> Vec<ServerError> {
    let backend = ScriptedBackend::start(steps).await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let login = Login::new("u", "d");
    let mut client = Client::connect_as(pgweir.address, &login).await.unwrap();
    client.send(&messages::query("SELECT 1")).await;
    client.expect_end().await
}

#[tokio::test]
async fn a_server_that_vanishes_without_a_word_is_reported() {
    for end in [Step::Close, Step::Reset] {
        let errors = told_after(vec![Step::Expect(b'Q'), end]).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(
            (errors[0].severity.as_str(), errors[0].code.as_str()),
            ("FATAL", "08006")
        );
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_not_used_again() {
    let mut garbage = messages::frame(b'Z', b"I");
    garbage.extend(messages::frame(b'D', b"\0\0"));
    for wrong in [
        // Half a reply, then another kind of message than is owed.
        messages::frame(b'1', b""),
        // A length that can't be.
        b"T\0\0\0\x01".to_vec(),
        // An answer that nothing asked for.
        garbage,
    ] {
        let backend =
            ScriptedBackend::start(vec![Step::Expect(b'Q'), Step::Send(wrong), Step::Stall]).await;
        let pgweir = Options::in_front_of_script(&backend).start();
        let login = Login::new("u", "d");
        let mut client = Client::connect_as(pgweir.address, &login).await.unwrap();
        client.send(&messages::query("SELECT 1")).await;
        let mut answer = tokio::time::timeout(Duration::from_secs(10), client.read_message())
            .await
            .unwrap();
        while let Some(message) = answer {
            assert!(matches!(message.tag, b'Z' | b'E'), "{message:?}");
            answer = match message.tag {
                b'Z' => None,
                _ => client.read_message().await,
            };
        }
        let mut next = Client::connect_as(pgweir.address, &login).await.unwrap();
        next.send(&messages::query("SELECT 1")).await;
        eventually("another connection", async || backend.logins() >= 2).await;
    }
}

#[tokio::test]
async fn a_server_that_ends_its_session_behind_an_answer_ends_no_clients() {
    let ends_first = |mut connection: BackendConnection| async move {
        if connection.number > 0 {
            return connection.answer_all("2").await;
        }
        connection.expect(b'Q').await;
        let end = messages::error_response(
            "FATAL",
            "57P01",
            "terminating connection due to administrator command",
        );
        let answer = [messages::one_value_reply("1"), end].concat();
        connection.send(&answer).await;
    };
    let server = ScriptedBackend::start_with(ends_first).await;
    let pgweir = Options::in_front_of_script(&server).start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
    assert_eq!(client.value("SELECT 1").await, "2");
    assert_eq!(client.extended("SELECT 1", &[]).await.ok().value(), "2");
}
