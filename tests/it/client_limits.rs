//! How many clients are let in, and how long a login may take.

use std::time::Duration;

use pgweir::demo::cluster::ServerOptions;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::tls::write_private;
use crate::support::wait::{eventually, within_limit};

fn login() -> Login {
    Login::new("postgres", "postgres")
}

async fn refusal(pgweir: &Pgweir, login: &Login) -> ServerError {
    let refused = Client::connect_as(pgweir.address, login).await;
    refused.err().expect("the login to be refused")
}

#[track_caller]
fn names(error: &ServerError, setting: &str) {
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "53300"),
        "{error:?}"
    );
    assert!(error.message.contains(setting), "{error:?}");
    assert!(error.hint.is_some());
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told_which_and_a_place_is_free_again_at_once() {
    let pgweir = Options::new(shared::server())
        .set("general.max_client_conn", "3")
        .start();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(pgweir.client().await);
    }
    names(&refusal(&pgweir, &login()).await, "max_client_conn");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    clients.pop().unwrap().terminate().await;
    eventually("a place", async || {
        Client::connect_as(pgweir.address, &login()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn databases_and_users_have_limits_of_their_own() {
    let server = ServerOptions::default().start().unwrap();
    server
        .sql("postgres", "CREATE ROLE alice LOGIN; CREATE DATABASE app")
        .unwrap();
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n\
         [databases.\"*\"]\n[databases.app]\nmax_db_client_connections = 2\n\
         [users.alice]\nmax_user_client_connections = 1\n",
        server.node_url()
    );
    let pgweir = Options::config(&config).start();
    let mut clients = vec![pgweir.client_as(&Login::new("postgres", "app")).await];
    clients.push(pgweir.client_as(&Login::new("alice", "app")).await);
    let error = refusal(&pgweir, &Login::new("postgres", "app")).await;
    names(&error, "max_db_client_connections");
    let error = refusal(&pgweir, &Login::new("alice", "postgres")).await;
    names(&error, "max_user_client_connections");
    pgweir.client_as(&login()).await.terminate().await;
    drop(clients);
    eventually("places", async || {
        let alice = Login::new("alice", "app");
        Client::connect_as(pgweir.address, &alice).await.is_ok()
    })
    .await;
}

/// How a stampede ends: clients that were let in, and errors of those that were not.
async fn stampede(pgweir: &Pgweir, count: usize) -> (Vec<Client>, Vec<ServerError>, usize) {
    let mut logins = JoinSet::new();
    for _ in 0..count {
        let address = pgweir.address;
        logins.spawn(async move {
            let mut client = Client::open(address).await;
            client
                .try_send(&messages::startup(
                    messages::PROTOCOL_3_0,
                    &[("user", "postgres"), ("database", "postgres")],
                ))
                .await
                .ok()?;
            loop {
                let message = client.read_message().await?;
                match message.tag {
                    b'Z' => return Some(Ok(client)),
                    b'E' => return Some(Err(ServerError::parse(&message))),
                    _ => {}
                }
            }
        });
    }
    let (mut clients, mut errors, mut closed) = (Vec::new(), Vec::new(), 0);
    while let Some(outcome) = logins.join_next().await {
        match outcome.unwrap() {
            Some(Ok(client)) => clients.push(client),
            Some(Err(error)) => errors.push(error),
            None => closed += 1,
        }
    }
    (clients, errors, closed)
}

#[tokio::test]
async fn a_stampede_fills_every_place_and_no_more() {
    let pgweir = Options::new(shared::server())
        .set("general.max_client_conn", "100")
        .start();
    let mut witness = pgweir.client().await;
    let (mut clients, errors, closed) = stampede(&pgweir, 500).await;
    assert_eq!(clients.len(), 99, "{} told, {closed} closed", errors.len());
    for error in &errors {
        names(error, "max_client_conn");
    }
    assert_eq!(witness.value("SELECT 1").await, "1");
    for client in clients.iter_mut().take(10) {
        assert_eq!(client.value("SELECT 2").await, "2");
    }
}

/// How one of many connections that should be refused ends; its socket, which stays open as long as it is kept.
async fn knock(address: std::net::SocketAddr) -> (Refused, Option<TcpStream>) {
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return (Refused::Closed, None);
    };
    let parameters = [("user", "postgres"), ("database", "postgres")];
    let startup = messages::startup(messages::PROTOCOL_3_0, &parameters);
    let mut answer = Vec::new();
    // It may be closed before it has said anything, which can be a reset.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &startup).await;
    let _ = stream.read_to_end(&mut answer).await;
    let outcome = match answer.first() {
        None => Refused::Closed,
        Some(b'E') if answer.windows(6).any(|field| field == b"C53300") => Refused::Told,
        Some(_) => panic!("let in, or told {:?}", String::from_utf8_lossy(&answer)),
    };
    (outcome, Some(stream))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Told,
    Closed,
}

/// Kilobytes of memory that a process has.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("a size")
}

#[tokio::test]
async fn ten_thousand_connections_at_a_limit_of_a_hundred_disturb_nobody() {
    // Other tests of this process need some, too.
    let descriptors = usize::try_from(pgweir::net::descriptors::raise()).unwrap_or(usize::MAX);
    let count = descriptors.saturating_sub(2_000).min(10_000);
    let mut log = std::io::stderr();
    if count < 10_000 {
        let why = format!("only {count} connections: the limit is {descriptors} descriptors\n");
        std::io::Write::write_all(&mut log, why.as_bytes()).unwrap();
    }
    let pgweir = Options::new(shared::server())
        .set("general.max_client_conn", "100")
        .set("log.log_pooler_errors", "false")
        .start();
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(pgweir.client().await);
    }
    let before = resident(pgweir.pid());
    let begun = Instant::now();
    let mut knocking = JoinSet::new();
    for _ in 0..count {
        knocking.spawn(knock(pgweir.address));
    }
    let over = std::cell::Cell::new(false);
    let stampede = async {
        let (mut told, mut kept) = (0, Vec::with_capacity(count));
        while let Some(outcome) = knocking.join_next().await {
            let (refused, stream) = outcome.unwrap();
            told += usize::from(refused == Refused::Told);
            kept.push(stream);
        }
        over.set(true);
        (told, kept)
    };
    let mut longest = Duration::ZERO;
    let mut answered = 0;
    let unaffected = async {
        while !over.get() {
            for (number, client) in clients.iter_mut().enumerate() {
                let asked = Instant::now();
                let answer = client.value(&format!("SELECT {number}")).await;
                assert_eq!(answer, number.to_string());
                longest = longest.max(asked.elapsed());
                answered += 1;
            }
        }
    };
    let stampede = within_limit("the end of the stampede", stampede);
    let ((told, kept), ()) = tokio::join!(stampede, unaffected);
    let took = begun.elapsed();
    let grown = resident(pgweir.pid()).saturating_sub(before);
    let closed = count - told;
    let line = format!(
        "{count} connections at max_client_conn = 100 in {took:.1?}: {told} told 53300, {closed} closed; memory {before} kB \
         and {grown} kB more; {answered} answers to the 100 meanwhile, the slowest in {longest:.0?}\n"
    );
    std::io::Write::write_all(&mut log, line.as_bytes()).unwrap();
    assert_eq!(kept.len(), count);
    assert!(told > 0 && grown < 16 * 1024, "{line}");
    assert!(answered >= 100, "{line}");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn a_stampede_on_one_database_stays_within_its_limit() {
    let pgweir = Options::new(shared::server())
        .set("pool.max_db_client_connections", "20")
        .start();
    let (clients, errors, closed) = stampede(&pgweir, 150).await;
    assert_eq!(clients.len(), 20, "{} told, {closed} closed", errors.len());
    assert_eq!(closed, 0);
    for error in &errors {
        names(error, "max_db_client_connections");
    }
}

/// How long a connection lives on which `bytes` are sent one by one, the last ones never.
async fn life_of_a_slow_login(
    pgweir: &Pgweir,
    bytes: &[u8],
    answered: usize,
) -> (Duration, Vec<u8>) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(pgweir.address).await.unwrap();
    let mut answer = vec![0; answered];
    for byte in &bytes[..bytes.len() - 1] {
        tokio::io::AsyncWriteExt::write_all(&mut stream, &[*byte])
            .await
            .unwrap();
    }
    if answered > 0 {
        stream.read_exact(&mut answer).await.unwrap();
    }
    let _ = within_limit("the end of the login", stream.read_to_end(&mut answer)).await;
    (begun.elapsed(), answer)
}

#[tokio::test]
async fn a_login_that_takes_too_long_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let list = write_private(folder.path(), "userlist", "");
    let pgweir = Options::new(shared::server())
        .flag("--auth", "scram")
        .set("auth.userlist", list.to_str().unwrap())
        .set("timeouts.client_login_timeout", "700ms")
        .start();
    let startup = messages::startup(
        messages::PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "postgres")],
    );
    // Nothing, half a packet, half a packet after a declined SSLRequest: closed without a word, as a server does.
    let after_ssl = [messages::ssl_request(), startup.clone()].concat();
    for (bytes, answered) in [(&startup[..1], 0), (&startup[..], 0), (&after_ssl[..], 1)] {
        let (life, answer) = life_of_a_slow_login(&pgweir, bytes, answered).await;
        assert_eq!(answer.len(), answered);
        assert!(life >= Duration::from_millis(650), "{life:?}");
        assert!(life < Duration::from_secs(10), "{life:?}");
    }
    // Known by now who it wants to be, it is told.
    let mut client = Client::open(pgweir.address).await;
    client.send(&startup).await;
    client.expect(b'R').await;
    let errors = client.expect_end().await;
    assert_eq!(errors[0].code, "57014");
    assert_eq!(errors[0].message, "canceling authentication due to timeout");
    assert!(
        errors[0]
            .hint
            .as_ref()
            .unwrap()
            .contains("client_login_timeout")
    );
}

#[tokio::test]
async fn slow_logins_keep_nobody_out() {
    let pgweir = Options::new(shared::server())
        .set("general.max_client_conn", "10")
        .start();
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut client = Client::open(pgweir.address).await;
        client.send(&[0, 0]).await;
        slow.push(client);
    }
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
}
