//! `auth.method = "passthrough"`: the client's password is the server's to judge.

use std::net::{SocketAddr, UdpSocket};
use std::sync::OnceLock;

use pgweir::demo::cluster::{Server, ServerOptions, StopMode};

use crate::support::client::{Client, Login};
use crate::support::messages::ServerError;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::tls::{self, Authority};

const RULES: &str = "host all trusted 127.0.0.1/32 trust\nhost all plain 127.0.0.1/32 password\n\
                     host all hashed 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n";

const ROLES: &str = "CREATE ROLE trusted LOGIN; \
                     SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'p'; \
                     SET password_encryption = 'scram-sha-256'; \
                     CREATE ROLE plain LOGIN PASSWORD 'p'; CREATE ROLE salted LOGIN PASSWORD 'p'; \
                     CREATE ROLE changing LOGIN PASSWORD 'old'; CREATE ROLE asleep NOLOGIN PASSWORD 'p';";

fn start() -> Server {
    let server = ServerOptions::default()
        .set("max_connections", "40")
        .hba(RULES)
        .start()
        .unwrap();
    server.sql("postgres", ROLES).unwrap();
    server
}

/// A server that asks for passwords, for tests that leave it as it is.
fn guarded() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(start)
}

fn passing(server: &Server) -> Options {
    Options::new(server).flag("--auth", "passthrough")
}

async fn refusal(pgweir: &Pgweir, login: &Login) -> ServerError {
    let refused = Client::connect_as(pgweir.address, login).await;
    refused.err().expect("the login to be refused")
}

#[tokio::test]
async fn the_right_password_is_let_in_whatever_the_server_asks() {
    let pgweir = passing(guarded()).start();
    for user in ["trusted", "plain", "hashed", "salted"] {
        let login = Login::new(user, "postgres").password("p");
        // The first is tried on the server, the second is known, and either works on a connection of the pool.
        for _ in 0..2 {
            let mut client = pgweir.client_as(&login).await;
            assert_eq!(client.value("SELECT current_user").await, user);
            client.terminate().await;
        }
    }
}

#[tokio::test]
async fn a_refusal_is_the_servers_own_word_for_word() {
    let server = guarded();
    let pgweir = passing(server).start();
    let logins = [
        Login::new("plain", "postgres").password("q"),
        Login::new("hashed", "postgres").password("q"),
        Login::new("salted", "postgres").password("q"),
        Login::new("salted", "postgres").password(&"q".repeat(2_000)),
        Login::new("nobody", "postgres").password("p"),
        Login::new("asleep", "postgres").password("p"),
        Login::new("trusted", "nowhere").password("p"),
        Login::new("salted", "nowhere").password("p"),
    ];
    for login in &logins {
        let direct = Client::connect_as(server.address(), login).await;
        let direct = direct.err().expect("the server to refuse");
        assert_eq!(refusal(&pgweir, login).await, direct, "{login:?}");
    }
    // Nobody was kept out by them.
    let login = Login::new("salted", "postgres").password("p");
    pgweir.client_as(&login).await.terminate().await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_also_when_the_right_one_is_known() {
    let pgweir = passing(guarded()).start();
    let right = Login::new("salted", "postgres").password("p");
    let _client = pgweir.client_as(&right).await;
    for password in ["q", "P", "p "] {
        let wrong = Login::new("salted", "postgres").password(password);
        assert_eq!(refusal(&pgweir, &wrong).await.code, "28P01");
    }
    let empty = Login::new("salted", "postgres").password("");
    let error = refusal(&pgweir, &empty).await;
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("28P01", "empty password returned by client")
    );
    pgweir.client_as(&right).await.terminate().await;
}

#[tokio::test]
async fn a_known_password_needs_no_login_to_the_server() {
    let server = start();
    let pgweir = passing(&server).start();
    let login = Login::new("salted", "postgres").password("p");
    let logins = || server.log().matches("connection authorized").count();
    server.set("log_connections", "on").unwrap();
    for _ in 0..5 {
        let mut client = pgweir.client_as(&login).await;
        client.value("SELECT 1").await;
        client.terminate().await;
    }
    // psql's own, through which the setting was made, may be among them or not.
    let by_salted = server.log().matches("authorized: user=salted").count();
    assert_eq!(by_salted, 1, "{} in all", logins());
}

#[tokio::test]
async fn a_changed_password_holds_from_the_next_login_on() {
    let server = start();
    let pgweir = passing(&server).start();
    let old = Login::new("changing", "postgres").password("old");
    let new = Login::new("changing", "postgres").password("new");
    let mut client = pgweir.client_as(&old).await;
    assert_eq!(refusal(&pgweir, &new).await.code, "28P01");
    server
        .sql("postgres", "ALTER ROLE changing PASSWORD 'new'")
        .unwrap();
    pgweir.client_as(&new).await.terminate().await;
    assert_eq!(refusal(&pgweir, &old).await.code, "28P01");
    // The pool logs in with the new one, and the client from before is served by it.
    server
        .sql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'changing'",
        )
        .unwrap();
    crate::support::wait::eventually("the pool to log in anew", async || {
        let mut fresh = pgweir.client_as(&new).await;
        fresh.query("SELECT 1").await.errors.is_empty()
    })
    .await;
    assert_eq!(client.value("SELECT current_user").await, "changing");
}

#[tokio::test]
async fn a_restarted_server_is_logged_in_to_without_the_client() {
    let mut server = start();
    let pgweir = passing(&server).start();
    let login = Login::new("salted", "postgres").password("p");
    let mut client = pgweir.client_as(&login).await;
    let before = client.value("SELECT pg_backend_pid()").await;
    server.restart(StopMode::Fast).unwrap();
    let after = client.value("SELECT pg_backend_pid()").await;
    assert_ne!(before, after);
    pgweir.client_as(&login).await.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stampede_of_first_logins_leaves_the_server_its_connections() {
    let server = start();
    let pgweir = passing(&server).flag("--pool-size", "5").start();
    let login = Login::new("salted", "postgres").password("p");
    let mut clients = Vec::new();
    for _ in 0..100 {
        let (address, login) = (pgweir.address, login.clone());
        clients.push(pgweir::tasks::spawn("client", async move {
            let mut client = Client::connect_as(address, &login).await?;
            client.value("SELECT 1").await;
            Ok::<_, ServerError>(client)
        }));
    }
    for client in clients {
        client.await.unwrap().unwrap();
    }
    let log = server.log();
    assert!(!log.contains("too many clients"), "{log}");
    let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'salted'";
    let open: usize = server.sql("postgres", open).unwrap().parse().unwrap();
    assert!(open <= 5, "{open} connections of a pool of 5");
}

#[tokio::test]
async fn a_full_server_is_reported_in_its_own_words() {
    let server = ServerOptions::default()
        .set("max_connections", "5")
        .set("superuser_reserved_connections", "2")
        .hba(RULES)
        .start()
        .unwrap();
    server.sql("postgres", ROLES).unwrap();
    let login = Login::new("salted", "postgres").password("p");
    let mut holders = Vec::new();
    for _ in 0..3 {
        let holder = Client::connect_as(server.address(), &login).await;
        holders.push(holder.unwrap());
    }
    let direct = Client::connect_as(server.address(), &login).await;
    let direct = direct.err().unwrap();
    assert_eq!(direct.code, "53300");
    let pgweir = passing(&server).start();
    assert_eq!(refusal(&pgweir, &login).await, direct);
    // Where no password is tried the client waits for room, and is told why it waited in vain.
    let pgweir = Options::new(&server)
        .set("timeouts.query_wait_timeout", "500ms")
        .start();
    let trusted = Login::new("trusted", "postgres");
    let told = refusal(&pgweir, &trusted).await;
    assert_eq!((told.code, told.message), (direct.code, direct.message));
    drop(holders);
    crate::support::wait::eventually("room on the server", async || {
        Client::connect_as(pgweir.address, &trusted).await.is_ok()
    })
    .await;
}

/// An address of this machine that is not a loopback address, if it has one.
fn outside_address(port: u16) -> Option<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: connecting only picks the interface.
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback()).then(|| SocketAddr::new(ip, port))
}

#[tokio::test]
async fn a_password_is_asked_in_clear_text_only_where_nobody_can_read_it() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = authority.server(&["db.test"]).write(folder.path(), "tls");
    let pgweir = passing(guarded())
        .flag("--listen", "0.0.0.0:0")
        .set("tls.client.cert_file", cert.to_str().unwrap())
        .set("tls.client.key_file", key.to_str().unwrap())
        .start();
    let Some(address) = outside_address(pgweir.address.port()) else {
        println!("skipped: this machine has no address but loopback");
        return;
    };
    let login = Login::new("salted", "postgres").password("p");
    let refused = Client::connect_as(address, &login).await.err().unwrap();
    assert_eq!(refused.code, "28000");
    assert!(refused.hint.unwrap().contains("TLS"));
    let config = authority.client_config(None);
    let over_tls = tls::connect(address, config, "db.test", &login).await;
    assert_eq!(
        over_tls.unwrap().value("SELECT current_user").await,
        "salted"
    );
    // No password, no secret: in clear text too.
    let trusted = Login::new("trusted", "postgres");
    assert!(Client::connect_as(address, &trusted).await.is_ok());
}

/// A server with other rules for a physical replication login than for the ordinary logins of `repl`.
fn with_rules(replication: &str, ordinary: &str) -> Server {
    let rules = format!(
        "host replication repl 127.0.0.1/32 {replication}\nhost all all 127.0.0.1/32 {ordinary}\n"
    );
    let server = ServerOptions::default().hba(&rules).start().unwrap();
    let role = "CREATE ROLE repl LOGIN REPLICATION PASSWORD 'p'";
    server.sql("postgres", role).unwrap();
    server
}

#[tokio::test]
async fn what_a_replication_login_was_asked_for_says_nothing_of_ordinary_ones() {
    let server = with_rules("trust", "scram-sha-256");
    let pgweir = passing(&server).start();
    let ordinary = Login::new("repl", "postgres");
    let replicates = ordinary.clone().with("replication", "true");
    pgweir.client_as(&replicates).await.terminate().await;
    for wrong in ["", "q"] {
        let error = refusal(&pgweir, &ordinary.clone().password(wrong)).await;
        assert_eq!(error.code, "28P01", "{error:?}");
    }
    let mut client = pgweir.client_as(&ordinary.clone().password("p")).await;
    assert_eq!(client.value("SELECT current_user").await, "repl");
    // And the other way round: no password is asked for now that one is known.
    pgweir.client_as(&replicates).await.terminate().await;
    client.terminate().await;
    pgweir.client_as(&ordinary.password("p")).await;
}

#[tokio::test]
async fn what_an_ordinary_login_was_asked_for_says_nothing_of_replication() {
    let server = with_rules("scram-sha-256", "trust");
    let pgweir = passing(&server).start();
    let ordinary = Login::new("repl", "postgres");
    let replicates = ordinary.clone().with("replication", "true");
    let mut client = pgweir.client_as(&ordinary).await;
    let error = refusal(&pgweir, &replicates.clone().password("q")).await;
    assert_eq!(error.code, "28P01", "{error:?}");
    let mut walsender = pgweir.client_as(&replicates.password("p")).await;
    walsender.query("IDENTIFY_SYSTEM").await.ok();
    assert_eq!(client.value("SELECT current_user").await, "repl");
    pgweir.client_as(&ordinary).await;
}
