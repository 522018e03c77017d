//! Logins that pgweir judges itself: `scram`, `md5`, `peer` and rules, with secrets from a userlist or from the server.

use std::sync::OnceLock;

use pgweir::demo::cluster::{Server, ServerOptions};
use tokio::net::UnixStream;

use crate::support::client::{Client, Login};
use crate::support::link::Link;
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::tls::write_private;
use crate::support::wait::{wait_until, within_limit};

/// `postgres` is trusted, so that `auth_query` needs no password.
const RULES: &str = "host all postgres 127.0.0.1/32 trust\nhost all plain 127.0.0.1/32 password\n\
                     host all hashed 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n";

const ROLES: &str = "SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'p'; \
                     SET password_encryption = 'scram-sha-256'; \
                     CREATE ROLE plain LOGIN PASSWORD 'p'; CREATE ROLE salted LOGIN PASSWORD 'p'; \
                     CREATE ROLE \"o'neil\" LOGIN PASSWORD 'p'; CREATE ROLE changing LOGIN PASSWORD 'old'; \
                     CREATE ROLE expired LOGIN PASSWORD 'p' VALID UNTIL '2001-01-01'; \
                     CREATE ROLE asleep NOLOGIN PASSWORD 'p'; CREATE ROLE bare LOGIN; CREATE DATABASE other;";

fn start() -> Server {
    let server = ServerOptions::default().hba(RULES).start().unwrap();
    server.sql("postgres", ROLES).unwrap();
    server
}

fn guarded() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(start)
}

/// With `auth_query`, run as the superuser.
fn asking(server: &Server, method: &str) -> Options {
    Options::in_front_of(&format!("postgres://postgres@{}", server.address()))
        .flag("--auth", method)
}

fn stored(server: &Server, user: &str) -> String {
    let query = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'");
    server.sql("postgres", &query).unwrap()
}

async fn refusal(pgweir: &Pgweir, login: &Login) -> ServerError {
    let refused = Client::connect_as(pgweir.address, login).await;
    refused.err().expect("the login to be refused")
}

async fn is_served(pgweir: &Pgweir, user: &str) {
    let login = Login::new(user, "postgres").password("p");
    let mut client = pgweir.client_as(&login).await;
    assert_eq!(client.value("SELECT current_user").await, user);
    client.terminate().await;
}

#[tokio::test]
async fn a_scram_proof_also_logs_in_to_the_server() {
    let pgweir = asking(guarded(), "scram").start();
    for user in ["salted", "o'neil", "salted"] {
        is_served(&pgweir, user).await;
    }
}

#[tokio::test]
async fn an_md5_proof_also_logs_in_to_the_server() {
    let pgweir = asking(guarded(), "md5").start();
    // With a SCRAM verifier stored, `md5` asks for SCRAM, as a server does.
    for user in ["hashed", "salted"] {
        is_served(&pgweir, user).await;
    }
}

#[tokio::test]
async fn wrong_passwords_and_users_who_may_not_log_in_are_told_the_same() {
    for method in ["scram", "md5"] {
        let pgweir = asking(guarded(), method).start();
        for (user, password) in [
            ("salted", "q"),
            ("hashed", "q"),
            ("nobody", "p"),
            ("asleep", "p"),
            ("bare", "p"),
            ("expired", "p"),
        ] {
            let login = Login::new(user, "postgres").password(password);
            let error = refusal(&pgweir, &login).await;
            assert_eq!(error.code, "28P01", "{method} {user}");
            let message = format!("password authentication failed for user \"{user}\"");
            assert_eq!(error.message, message);
            assert_eq!((error.detail, error.hint), (None, None));
        }
    }
}

#[tokio::test]
async fn an_unknown_user_is_asked_the_same_as_a_known_one() {
    let pgweir = asking(guarded(), "scram").start();
    let mut asked = Vec::new();
    for user in ["salted", "nobody"] {
        let mut client = Client::open(pgweir.address).await;
        client
            .send(&messages::startup(
                messages::PROTOCOL_3_0,
                &[("user", user), ("database", "postgres")],
            ))
            .await;
        let offer = client.expect(b'R').await;
        let first = b"n,,n=,r=abcdefghijklmnopqr";
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        let body = [b"SCRAM-SHA-256\0".as_slice(), &length, first].concat();
        client.send(&messages::frame(b'p', &body)).await;
        let challenge = client.expect(b'R').await;
        asked.push((offer.body, challenge.body.len()));
    }
    assert_eq!(asked[0], asked[1]);
}

#[tokio::test]
async fn a_password_changed_on_the_server_is_found_after_one_refusal() {
    let server = start();
    let pgweir = asking(&server, "scram").start();
    let old = Login::new("changing", "postgres").password("old");
    let new = Login::new("changing", "postgres").password("new");
    pgweir.client_as(&old).await.terminate().await;
    server
        .sql("postgres", "ALTER ROLE changing PASSWORD 'new'")
        .unwrap();
    assert_eq!(refusal(&pgweir, &new).await.code, "28P01");
    let mut client = pgweir.client_as(&new).await;
    assert_eq!(client.value("SELECT 1").await, "1");
    assert_eq!(refusal(&pgweir, &old).await.code, "28P01");
}

#[tokio::test]
async fn a_userlist_serves_clear_text_md5_and_scram_secrets() {
    let server = guarded();
    let folder = tempfile::tempdir().unwrap();
    let list = format!(
        "\"plain\" \"p\"\n\"salted\" \"{}\"\n\"hashed\" \"{}\"\n",
        stored(server, "salted"),
        stored(server, "hashed")
    );
    let list = write_private(folder.path(), "userlist.txt", &list);
    let options = Options::new(server)
        .set("auth.userlist", list.to_str().unwrap())
        .set("auth.auth_query", "");
    let scram = options.clone().flag("--auth", "scram").start();
    for user in ["plain", "salted"] {
        is_served(&scram, user).await;
    }
    let md5 = options.flag("--auth", "md5").start();
    for user in ["plain", "salted", "hashed"] {
        is_served(&md5, user).await;
    }
    // Who is in neither list is refused like a wrong password.
    for pgweir in [&scram, &md5] {
        let login = Login::new("changing", "postgres").password("old");
        assert_eq!(refusal(pgweir, &login).await.code, "28P01");
    }
}

#[tokio::test]
async fn the_servers_own_refusal_after_the_proof_is_passed_on() {
    let server = guarded();
    let pgweir = asking(server, "scram").start();
    let login = Login::new("salted", "nowhere").password("p");
    let direct = Client::connect_as(server.address(), &login).await;
    let told = refusal(&pgweir, &login).await;
    assert_eq!(direct.err().unwrap().message, told.message);
    assert_eq!(
        (told.severity.as_str(), told.code.as_str()),
        ("FATAL", "3D000")
    );
    // The secret was asked for in another database, or not at all; other logins go on.
    is_served(&pgweir, "salted").await;
}

#[tokio::test]
async fn an_auth_query_that_fails_says_so_and_nothing_more() {
    let pgweir = asking(guarded(), "scram")
        .set(
            "auth.auth_query",
            "SELECT nothing FROM nowhere WHERE u = $1",
        )
        .start();
    let login = Login::new("salted", "postgres").password("p");
    let error = refusal(&pgweir, &login).await;
    assert_eq!(
        (error.severity.as_str(), error.message.as_str()),
        ("FATAL", "could not look up the user's password")
    );
    assert!(pgweir.log_contains("nowhere"));
}

#[tokio::test]
async fn a_users_name_is_never_read_as_sql_whatever_the_encoding_of_the_connection() {
    let rules = format!("host all asker 127.0.0.1/32 trust\n{RULES}");
    let server = ServerOptions::default().hba(&rules).start().unwrap();
    server.sql("postgres", ROLES).unwrap();
    // By default the server itself refuses the text that the name makes.
    let roles = "CREATE ROLE asker SUPERUSER LOGIN; ALTER ROLE asker SET client_encoding = 'GBK'; \
                 ALTER ROLE asker SET backslash_quote = 'on'; \
                 CREATE ROLE \"jos\u{e9}\" LOGIN PASSWORD 'p';";
    server.sql("postgres", roles).unwrap();
    // In GBK the name's first four bytes are two characters, and its backslash is the second half of one of them.
    let name = "\u{65c1}\\'; CREATE TABLE broken_out (a int) --";
    for encoding in ["", "[databases.postgres]\nclient_encoding = \"GBK\"\n"] {
        let config = format!(
            "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
             [cluster]\nprimary = \"postgres://asker@{}\"\n[auth]\nmethod = \"scram\"\n{encoding}",
            server.address()
        );
        let pgweir = Options::config(&config).start();
        let error = refusal(&pgweir, &Login::new(name, "postgres").password("p")).await;
        assert_eq!(error.code, "28P01", "{error:?}");
        let made = "SELECT count(*) FROM pg_class WHERE relname = 'broken_out'";
        assert_eq!(server.sql("postgres", made).unwrap(), "0");
        for user in ["jos\u{e9}", "o'neil"] {
            let login = Login::new(user, "postgres").password("p");
            pgweir.client_as(&login).await.terminate().await;
        }
    }
}

#[tokio::test]
async fn a_connection_for_auth_query_that_falls_silent_is_given_up() {
    let link = Link::to(guarded().address()).await;
    let pgweir = Options::in_front_of(&format!("postgres://postgres@{}", link.address()))
        .flag("--auth", "scram")
        .set("timeouts.server_connect_timeout", "500ms")
        .start();
    is_served(&pgweir, "salted").await;
    link.cut();
    let login = Login::new("o'neil", "postgres").password("p");
    let error = refusal(&pgweir, &login).await;
    assert_eq!(error.message, "could not look up the user's password");
    link.mend();
    is_served(&pgweir, "o'neil").await;
}

#[tokio::test]
async fn a_connection_for_auth_query_that_nobody_needs_is_closed() {
    let server = start();
    let pgweir = asking(&server, "scram")
        .set("timeouts.server_idle_timeout", "1s")
        .start();
    is_served(&pgweir, "salted").await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'postgres' \
                AND query LIKE '%rolvaliduntil%' AND pid <> pg_backend_pid()";
    assert_eq!(server.sql("postgres", open).unwrap(), "1");
    wait_until("the connection to be closed", || {
        server.sql("postgres", open).unwrap() == "0"
    });
    is_served(&pgweir, "o'neil").await;
}

#[tokio::test]
async fn a_database_with_a_forced_user_logs_in_as_that_one_whoever_comes() {
    let server = guarded();
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"postgres://postgres@{0}\"\n[auth]\nmethod = \"scram\"\n\
         [databases.app]\ndbname = \"other\"\nuser = \"salted\"\npassword = \"p\"\n\
         [databases.broken]\ndbname = \"other\"\nuser = \"salted\"\npassword = \"q\"\n",
        server.address()
    );
    let pgweir = Options::config(&config).start();
    let login = Login::new("o'neil", "app").password("p");
    let mut client = pgweir.client_as(&login).await;
    let who = "SELECT current_user || ' ' || current_database()";
    assert_eq!(client.value(who).await, "salted other");
    let wrong = Login::new("o'neil", "app").password("q");
    assert_eq!(refusal(&pgweir, &wrong).await.code, "28P01");
    let broken = Login::new("o'neil", "broken").password("p");
    let error = refusal(&pgweir, &broken).await;
    assert_eq!(
        error.message,
        "password authentication failed for user \"salted\""
    );
    assert!(!pgweir.log_contains("password = "), "{}", pgweir.log());
    let missing = Login::new("o'neil", "missing").password("p");
    let error = refusal(&pgweir, &missing).await;
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("3D000", "database \"missing\" does not exist")
    );
}

/// The name of the user who runs the tests.
fn own_name() -> String {
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn over_unix(path: &std::path::Path, login: &Login) -> Result<Client, ServerError> {
    let stream = within_limit("a Unix socket", UnixStream::connect(path)).await;
    let mut client = Client::over(stream.unwrap());
    client.log_in(login).await?;
    Ok(client)
}

#[tokio::test]
async fn peer_lets_the_owner_of_the_socket_in_under_their_name_only() {
    let server = ServerOptions::default().start().unwrap();
    let name = own_name();
    let role = format!("CREATE ROLE \"{name}\" LOGIN");
    if name != "postgres" {
        server.sql("postgres", &role).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let pgweir = Options::new(&server)
        .flag("--auth", "peer")
        .set("general.unix_socket_dir", folder.path().to_str().unwrap())
        .start();
    let socket = format!(".s.PGSQL.{}", pgweir.address.port());
    let socket = folder.path().join(socket);
    let own = Login::new(&name, "postgres");
    let mut client = over_unix(&socket, &own).await.unwrap();
    assert_eq!(client.value("SELECT current_user").await, name);
    let other = Login::new("somebody", "postgres");
    let error = over_unix(&socket, &other).await.err().unwrap();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("28000", "Peer authentication failed for user \"somebody\"")
    );
    // TCP has no owner to ask about.
    assert_eq!(refusal(&pgweir, &own).await.code, "28000");
}

#[tokio::test]
async fn rules_decide_by_address_database_and_user_and_the_first_that_fits_counts() {
    let server = guarded();
    let folder = tempfile::tempdir().unwrap();
    let rules = "local all all peer\nhost other all 127.0.0.1/32 reject\n\
                 host all postgres 127.0.0.1/32 trust\nhost all hashed 127.0.0.1/32 md5\n\
                 host all plain 127.0.0.1/32 password\nhost all salted 127.0.0.1/32 scram-sha-256\n\
                 hostssl all bare 127.0.0.1/32 trust\n";
    let file = write_private(folder.path(), "hba.conf", rules);
    let pgweir = asking(server, "hba")
        .set("auth.hba_file", file.to_str().unwrap())
        .start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT current_user").await, "postgres");
    for user in ["hashed", "plain", "salted"] {
        is_served(&pgweir, user).await;
        let wrong = Login::new(user, "postgres").password("q");
        assert_eq!(refusal(&pgweir, &wrong).await.code, "28P01", "{user}");
    }
    for (user, database, message) in [
        (
            "postgres",
            "other",
            "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"postgres\", database \
             \"other\", no encryption",
        ),
        (
            "bare",
            "postgres",
            "no pg_hba.conf entry for host \"127.0.0.1\", user \"bare\", database \"postgres\", \
             no encryption",
        ),
    ] {
        let error = refusal(&pgweir, &Login::new(user, database)).await;
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("28000", message)
        );
    }
}

#[tokio::test]
async fn no_secret_is_in_the_log_at_its_most_talkative() {
    let server = guarded();
    let pgweir = asking(server, "scram").set("log.level", "trace").start();
    is_served(&pgweir, "salted").await;
    let wrong = Login::new("salted", "postgres").password("hunter2");
    refusal(&pgweir, &wrong).await;
    let passing = Options::new(server)
        .flag("--auth", "passthrough")
        .set("log.level", "trace")
        .start();
    is_served(&passing, "plain").await;
    refusal(&passing, &wrong).await;
    for pgweir in [&pgweir, &passing] {
        let log = pgweir.log();
        for secret in ["hunter2", &stored(server, "salted"), "SCRAM-SHA-256$"] {
            assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
        }
    }
}
