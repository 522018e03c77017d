//! Clients that vanish while their login waits for something, or amid a statement: what they held is free at once.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{self, PROTOCOL_3_0};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

/// Connections, logins under way included.
fn connections(pgweir: &Pgweir) -> f64 {
    pgweir.metric("pgweir_client_connections ").unwrap()
}

/// A startup packet with a value that no backend has been asked about yet, so that the login needs one.
fn startup(value: &str) -> Vec<u8> {
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("application_name", value),
    ];
    messages::startup(PROTOCOL_3_0, &parameters)
}

async fn one_connection_is_left(pgweir: &Pgweir) {
    // query_wait_timeout and client_login_timeout are longer than this waits.
    eventually("the place of the client that left", async || {
        connections(pgweir) <= 1.0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_while_its_login_waits_for_a_backend_gives_its_place_up() {
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("general.max_client_conn", "2")
        .start();
    let mut holder = pgweir.client().await;
    holder.query("BEGIN").await.ok();
    // The second one has asked something ahead of the answer to its login.
    let ahead = [startup("eager"), messages::query("SELECT 1")].concat();
    for packet in [startup("patient"), ahead] {
        let mut waiting = Client::open(pgweir.address).await;
        waiting.send(&packet).await;
        eventually("the login to begin", async || connections(&pgweir) >= 2.0).await;
        drop(waiting);
        one_connection_is_left(&pgweir).await;
    }
    // Nor is it in the queue any more: who comes next is the first.
    holder.query("COMMIT").await.ok();
    let login = Login::new("postgres", "postgres").with("application_name", "next");
    let mut next = pgweir.client_as(&login).await;
    assert_eq!(next.value("SHOW application_name").await, "next");
}

#[tokio::test]
async fn a_client_that_goes_while_its_password_is_tried_gives_its_place_up() {
    // Accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://{}", silent.local_addr().unwrap());
    let pgweir = Options::in_front_of(&url)
        .flag("--auth", "passthrough")
        .set("timeouts.server_connect_timeout", "120s")
        .start();
    let mut clients = Vec::new();
    // More than are tried at a time.
    for number in 0..4 {
        let mut client = Client::open(pgweir.address).await;
        client.send(&startup(&number.to_string())).await;
        clients.push(client);
    }
    eventually("the logins to begin", async || connections(&pgweir) >= 4.0).await;
    drop(clients);
    eventually("the places of the clients that left", async || {
        connections(&pgweir) < 1.0
    })
    .await;
}

#[tokio::test]
async fn preparing_a_session_counts_as_login() {
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("timeouts.client_login_timeout", "500ms")
        .start();
    let mut holder = pgweir.client().await;
    holder.query("BEGIN").await.ok();
    let begun = Instant::now();
    let login = Login::new("postgres", "postgres").with("application_name", "late");
    let error = Client::connect_as(pgweir.address, &login)
        .await
        .err()
        .unwrap();
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57014")
    );
    assert_eq!(error.message, "canceling authentication due to timeout");
    assert!(
        error
            .hint
            .unwrap()
            .contains("timeouts.client_login_timeout"),
        "a hint"
    );
    assert!(error.detail.unwrap().contains("1 of 1"), "a detail");
    assert!(begun.elapsed() < Duration::from_secs(10));
    holder.query("COMMIT").await.ok();
    pgweir.client_as(&login).await.terminate().await;
}

async fn canceled_twice(connection: &BackendConnection) {
    while connection.canceled() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A backend that has not begun a statement when the signal comes ignores it.
#[tokio::test]
async fn a_statement_of_a_pinned_client_that_left_is_cancelled_until_it_ends() {
    let backend = ScriptedBackend::start_with(|mut connection| async move {
        while let Some(message) = connection.read_message().await {
            if message.tag != b'Q' {
                continue;
            }
            if message.strings()[0].contains("long") {
                canceled_twice(&connection).await;
                let ended = [
                    messages::error_response("ERROR", "57014", "canceled"),
                    messages::ready_for_query(b'I'),
                ];
                connection.send(&ended.concat()).await;
            } else {
                connection.send(&messages::one_value_reply("1")).await;
            }
        }
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut client = pgweir.client().await;
    client.value("SELECT pg_advisory_lock(1)").await;
    client.send(&messages::query("SELECT long()")).await;
    eventually("the statement to be sent", async || {
        let mut console = pgweir.console().await;
        let shown = console.query("SHOW SERVERS WHERE state = 'active'").await;
        !shown.ok().rows.is_empty()
    })
    .await;
    drop(client);
    eventually("a second cancel request", async || {
        backend.cancels().len() >= 2
    })
    .await;
    eventually("the connection to be closed", async || {
        let mut console = pgweir.console().await;
        console.query("SHOW SERVERS").await.ok().rows.is_empty()
    })
    .await;
}
