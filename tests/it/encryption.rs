//! TLS on both sides, as libpq's words have it, and what an attacker in the middle may try.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use pgweir::demo::cluster::{Guardian, Server, ServerOptions, binaries};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::shared;
use crate::support::client::{self, Client, Login};
use crate::support::link::Link;
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir, SILENCE};
use crate::support::tls::{self, Authority, write_private};
use crate::support::wait::{eventually, wait_until, within_limit};

const SSL: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// A folder with a certificate for `localhost`, and who signed it.
struct Files {
    folder: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            folder: TempDir::new().unwrap(),
            authority: Authority::new(),
        };
        files.renew(&["localhost", "127.0.0.1"]);
        write_private(files.path(), "ca.crt", files.authority.certificate());
        files
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn renew(&self, names: &[&str]) {
        self.authority.server(names).write(self.path(), "server");
    }

    fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    /// Offers clients TLS.
    fn offer(&self, options: Options) -> Options {
        options
            .set("tls.client.cert_file", &self.file("server.crt"))
            .set("tls.client.key_file", &self.file("server.key"))
    }
}

fn psql(pgweir: &Pgweir, dsn: &str, sql: &str) -> Output {
    let address = format!(
        "host=localhost hostaddr=127.0.0.1 port={}",
        pgweir.address.port()
    );
    Command::new(binaries().unwrap().join("psql"))
        .args(["-XAtqc", sql, "-d"])
        .arg(format!("{address} {dsn}"))
        .env("PGCONNECT_TIMEOUT", "30")
        .output()
        .unwrap()
}

#[track_caller]
fn answers(pgweir: &Pgweir, dsn: &str) {
    let output = psql(pgweir, dsn, "SELECT 42");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "42\n",
        "{dsn}: {errors}"
    );
}

#[track_caller]
fn fails(pgweir: &Pgweir, dsn: &str, reason: &str) {
    let output = psql(pgweir, dsn, "SELECT 42");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains(reason),
        "{dsn}: {errors}"
    );
}

#[test]
fn psql_connects_with_every_sslmode_it_has() {
    let files = Files::new();
    let pgweir = files.offer(Options::new(shared::server())).start();
    let login = "user=postgres dbname=postgres";
    let root = format!("sslrootcert={}", files.file("ca.crt"));
    for mode in ["disable", "allow", "prefer", "require"] {
        answers(&pgweir, &format!("{login} sslmode={mode}"));
    }
    for mode in ["verify-ca", "verify-full"] {
        answers(&pgweir, &format!("{login} sslmode={mode} {root}"));
    }
    let output = psql(&pgweir, &format!("{login} sslmode=require"), "\\conninfo");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains("SSL connection (protocol: TLSv1."),
        "{shown}"
    );
}

#[test]
fn psql_finds_no_tls_where_none_is_configured() {
    let pgweir = Options::new(shared::server()).start();
    let login = "user=postgres dbname=postgres";
    answers(&pgweir, &format!("{login} sslmode=prefer"));
    fails(
        &pgweir,
        &format!("{login} sslmode=require"),
        "server does not support SSL",
    );
}

#[tokio::test]
async fn clients_without_tls_are_refused_where_it_is_required() {
    let files = Files::new();
    let pgweir = files
        .offer(Options::new(shared::server()))
        .set("tls.client.sslmode", "require")
        .start();
    let login = Login::new("postgres", "postgres");
    let refused = Client::connect_as(pgweir.address, &login)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code, "28000");
    assert!(refused.hint.unwrap().contains("tls.client.sslmode"));
    let config = files.authority.client_config(None);
    let client = tls::connect(pgweir.address, config, "localhost", &login).await;
    assert_eq!(client.unwrap().value("SELECT 1").await, "1");
}

#[tokio::test]
async fn direct_tls_needs_no_request() {
    let files = Files::new();
    let pgweir = files.offer(Options::new(shared::server())).start();
    let login = Login::new("postgres", "postgres");
    let config = files.authority.client_config(None);
    let client = tls::connect_directly(pgweir.address, config, "localhost", &login).await;
    assert_eq!(client.unwrap().value("SELECT 1").await, "1");
}

#[tokio::test]
async fn scram_is_bound_to_the_channel_where_the_client_demands_it() {
    let files = Files::new();
    let server = ServerOptions::default()
        .hba("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        .start()
        .unwrap();
    server
        .sql("postgres", "CREATE ROLE salted LOGIN PASSWORD 'p'")
        .unwrap();
    let url = format!("postgres://postgres@{}", server.address());
    let options = Options::in_front_of(&url).flag("--auth", "scram");
    let pgweir = files.offer(options).start();
    let login = "user=salted password=p dbname=postgres";
    answers(
        &pgweir,
        &format!("{login} sslmode=require channel_binding=require"),
    );
    answers(
        &pgweir,
        &format!("{login} sslmode=require channel_binding=disable"),
    );
    answers(&pgweir, &format!("{login} sslmode=disable"));
    fails(
        &pgweir,
        &format!("{login} sslmode=disable channel_binding=require"),
        "channel binding",
    );
}

/// Logs in with SCRAM-SHA-256-PLUS, bound to the certificate that hashes to `hash`.
async fn log_in_bound(client: &mut Client, user: &str, hash: Vec<u8>) {
    let names = [("user", user), ("database", "postgres")];
    let startup = messages::startup(messages::PROTOCOL_3_0, &names);
    client.send(&startup).await;
    let offer = client.expect(b'R').await;
    assert!(offer.body[4..].starts_with(b"SCRAM-SHA-256-PLUS\0"));
    let mut exchange = ScramSha256::new(b"p", ChannelBinding::tls_server_end_point(hash));
    let length = i32::try_from(exchange.message().len())
        .unwrap()
        .to_be_bytes();
    let body = [
        b"SCRAM-SHA-256-PLUS\0".as_slice(),
        &length,
        exchange.message(),
    ]
    .concat();
    client.send(&messages::frame(b'p', &body)).await;
    exchange
        .update(&client.expect(b'R').await.body[4..])
        .unwrap();
    client
        .send(&messages::frame(b'p', exchange.message()))
        .await;
    exchange
        .finish(&client.expect(b'R').await.body[4..])
        .unwrap();
}

#[tokio::test]
async fn scram_is_bound_to_the_certificate_of_the_connection_though_another_is_loaded_meanwhile() {
    let files = Files::new();
    let server = ServerOptions::default().start().unwrap();
    let role = "CREATE ROLE salted LOGIN PASSWORD 'p'";
    server.sql("postgres", role).unwrap();
    let url = format!("postgres://postgres@{}", server.address());
    let options = Options::in_front_of(&url).flag("--auth", "scram");
    let pgweir = files.offer(options).start();
    let pem = std::fs::read_to_string(files.file("server.crt")).unwrap();
    let before = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let config = files.authority.client_config(None);
    let mut client = tls::encrypt(pgweir.address, config, "localhost").await;
    files.renew(&["localhost"]);
    pgweir.reload();
    pgweir.wait_for_log("reloaded");
    log_in_bound(&mut client, "salted", Sha256::digest(&before).to_vec()).await;
    while client.message().await.tag != b'Z' {}
}

/// What comes back for `bytes` sent in one piece, until the connection is closed.
async fn answer_to(pgweir: &Pgweir, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(pgweir.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset ends it as well as an orderly close.
    let _ = within_limit("the end of the connection", stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn plain_text_stuffed_behind_an_ssl_request_is_never_acted_on() {
    let files = Files::new();
    let pgweir = files.offer(Options::new(shared::server())).start();
    let startup = messages::startup(
        messages::PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "postgres")],
    );
    for stuffing in [
        startup,
        messages::query("SELECT 1"),
        vec![0; 100],
        vec![b'R'; 1],
    ] {
        let answer = answer_to(&pgweir, &[messages::ssl_request(), stuffing].concat()).await;
        assert_eq!(answer.first(), Some(&b'S'));
        // At most a TLS alert: no authentication, no error in plain text that a client might believe.
        assert!(answer.len() < 10, "{answer:?}");
        assert!(answer.get(1).is_none_or(|byte| *byte == 0x15), "{answer:?}");
    }
}

#[tokio::test]
async fn gssapi_encryption_is_declined_and_the_client_goes_on() {
    let files = Files::new();
    for has_tls in [false, true] {
        let options = Options::new(shared::server());
        let pgweir = if has_tls {
            files.offer(options)
        } else {
            options
        }
        .start();
        let login = Login::new("postgres", "postgres");
        let mut client = Client::open(pgweir.address).await;
        client.send(&messages::gssenc_request()).await;
        assert_eq!(client.read_exact(1).await, b"N");
        if !has_tls {
            client.send(&messages::ssl_request()).await;
            assert_eq!(client.read_exact(1).await, b"N");
        }
        client.log_in(&login).await.unwrap();
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn certificates_prove_clients() {
    let files = Files::new();
    let pgweir = files
        .offer(Options::new(shared::server()))
        .flag("--auth", "cert")
        .set("tls.client.ca_file", &files.file("ca.crt"))
        .start();
    let own = files.authority.client("postgres");
    let config = files.authority.client_config(Some(&own));
    let login = Login::new("postgres", "postgres");
    let client = tls::connect(pgweir.address, config.clone(), "localhost", &login).await;
    assert_eq!(
        client.unwrap().value("SELECT current_user").await,
        "postgres"
    );
    // Another name, no certificate, no TLS.
    let other = Login::new("other", "postgres");
    let refused = tls::connect(pgweir.address, config, "localhost", &other).await;
    let refused = refused.err().unwrap();
    assert_eq!(
        (refused.code.as_str(), refused.message.as_str()),
        (
            "28000",
            "certificate authentication failed for user \"other\""
        )
    );
    let bare = files.authority.client_config(None);
    for refused in [
        tls::connect(pgweir.address, bare, "localhost", &login).await,
        Client::connect_as(pgweir.address, &login).await,
    ] {
        let refused = refused.err().unwrap();
        assert_eq!(
            refused.message,
            "connection requires a valid client certificate"
        );
    }
}

#[test]
fn a_certificate_of_another_authority_is_no_certificate() {
    let files = Files::new();
    Authority::new()
        .client("postgres")
        .write(files.path(), "stranger");
    files
        .authority
        .client("postgres")
        .write(files.path(), "own");
    let pgweir = files
        .offer(Options::new(shared::server()))
        .set("tls.client.sslmode", "verify-ca")
        .set("tls.client.ca_file", &files.file("ca.crt"))
        .start();
    let with = |name: &str| {
        let pair = format!(
            "sslcert={} sslkey={}",
            files.file(&format!("{name}.crt")),
            files.file(&format!("{name}.key"))
        );
        format!("user=postgres dbname=postgres sslmode=require {pair}")
    };
    answers(&pgweir, &with("own"));
    fails(&pgweir, &with("stranger"), "");
    fails(&pgweir, "user=postgres dbname=postgres sslmode=require", "");
}

#[tokio::test]
async fn a_reload_takes_over_replaced_certificates_and_drops_nobody() {
    let files = Files::new();
    let pgweir = files.offer(Options::new(shared::server())).start();
    let login = Login::new("postgres", "postgres");
    let config = files.authority.client_config(None);
    let before = tls::connect(pgweir.address, config.clone(), "localhost", &login).await;
    let mut before = before.unwrap();
    files.renew(&["renamed.test"]);
    pgweir.reload();
    pgweir.wait_for_log("configuration reloaded");
    let after = tls::connect(pgweir.address, config.clone(), "renamed.test", &login).await;
    assert_eq!(after.unwrap().value("SELECT 1").await, "1");
    assert_eq!(before.value("SELECT 2").await, "2");
    // A broken one changes nothing, and the log says which file.
    write_private(files.path(), "server.crt", "no certificate");
    pgweir.reload();
    pgweir.wait_for_log("the configuration stays as it is");
    assert!(pgweir.log_contains("server.crt"));
    let after = tls::connect(pgweir.address, config, "renamed.test", &login).await;
    assert_eq!(after.unwrap().value("SELECT 3").await, "3");
}

/// A server with TLS for `localhost` and 127.0.0.1 that knows `alice` by certificate, and users who come only with or
/// only without TLS.
fn encrypted() -> &'static (Server, Files) {
    static SERVER: OnceLock<((Server, Files), Guardian)> = OnceLock::new();
    let (encrypted, _) = SERVER.get_or_init(|| {
        let files = Files::new();
        // What is static is not dropped.
        let guardian = Guardian::of_folder(files.path(), false).unwrap();
        let identity = files.authority.server(&["localhost"]);
        let server = ServerOptions::default()
            .set("ssl", "on")
            .set("ssl_ca_file", "ca.crt")
            .file("ca.crt", files.authority.certificate())
            .file("server.crt", identity.certificate)
            .file("server.key", identity.key)
            .hba(
                "hostssl all alice 127.0.0.1/32 cert\nhostssl all secure 127.0.0.1/32 trust\n\
                 hostnossl all open 127.0.0.1/32 trust\nhost all postgres 127.0.0.1/32 trust\n\
                 hostssl all bound 127.0.0.1/32 scram-sha-256\n",
            )
            .start()
            .unwrap();
        let roles = "CREATE ROLE alice LOGIN; CREATE ROLE secure LOGIN; CREATE ROLE open LOGIN; \
                     CREATE ROLE bound LOGIN PASSWORD 'p'";
        server.sql("postgres", roles).unwrap();
        ((server, files), guardian)
    });
    encrypted
}

fn through(host: &str, sslmode: &str) -> Options {
    let (server, files) = encrypted();
    let options = Options::in_front_of(&format!("postgres://{host}:{}", server.port()))
        .set("tls.server.sslmode", sslmode);
    if sslmode.starts_with("verify") {
        options.set("tls.server.ca_file", &files.file("ca.crt"))
    } else {
        options
    }
}

#[tokio::test]
async fn every_sslmode_reaches_the_server_as_libpq_would() {
    for (mode, ssl) in [
        ("disable", "f"),
        ("allow", "f"),
        ("prefer", "t"),
        ("require", "t"),
        ("verify-ca", "t"),
        ("verify-full", "t"),
    ] {
        let pgweir = through("localhost", mode).start();
        assert_eq!(pgweir.client().await.value(SSL).await, ssl, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_at_the_end_is_cancelled_though_the_server_is_slow_to_answer() {
    let (server, _) = encrypted();
    let link = Link::to(server.address()).await;
    let mut pgweir = Options::in_front_of(&link.node_url())
        .set("tls.server.sslmode", "require")
        .set("general.shutdown_timeout", "200ms")
        .start();
    let mut client = pgweir.client().await;
    let sleep = messages::query("SELECT 'cut off', pg_sleep(600)");
    client.send(&sleep).await;
    let asleep = "SELECT count(*) FROM pg_stat_activity \
                  WHERE query LIKE '%cut off%' AND wait_event = 'PgSleep'";
    wait_until("the statement to sleep", || {
        server.sql("postgres", asleep).unwrap() == "1"
    });
    link.cut();
    pgweir.signal("TERM");
    client.expect_end().await;
    tokio::time::sleep(SILENCE).await;
    link.mend();
    assert!(pgweir.wait().success());
    wait_until("the statement to be cancelled", || {
        server.sql("postgres", asleep).unwrap() == "0"
    });
}

#[tokio::test]
async fn the_console_tells_version_and_cipher() {
    let files = Files::new();
    let pgweir = files.offer(through("localhost", "require")).start();
    let _client = pgweir.client().await;
    let console = "user=postgres dbname=pgweir sslmode=require";
    for table in ["CLIENTS", "SERVERS"] {
        let shown = psql(&pgweir, console, &format!("SHOW {table}"));
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(
            shown.contains("|TLSv1.3/TLS_AES_256_GCM_SHA384|"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn allow_and_prefer_try_the_other_way_where_the_server_insists() {
    for mode in ["allow", "prefer"] {
        let pgweir = through("localhost", mode).start();
        for (user, ssl) in [("secure", "t"), ("open", "f")] {
            let mut client = Client::connect(pgweir.address, user, "postgres").await;
            assert_eq!(client.value(SSL).await, ssl, "{mode} {user}");
        }
    }
}

#[tokio::test]
async fn a_server_that_can_not_be_verified_is_not_used() {
    let (server, _) = encrypted();
    let strangers = Files::new();
    let login = Login::new("postgres", "postgres");
    // 127.0.0.1 is not in the certificate; nobody there is known to the other authority; the last has no TLS at all.
    let plain = format!("postgres://{}", shared::server().address());
    for options in [
        through("127.0.0.1", "verify-full"),
        Options::in_front_of(&format!("postgres://localhost:{}", server.port()))
            .set("tls.server.sslmode", "verify-ca")
            .set("tls.server.ca_file", &strangers.file("ca.crt")),
        Options::in_front_of(&plain).set("tls.server.sslmode", "require"),
    ] {
        let pgweir = options.set("timeouts.query_wait_timeout", "300ms").start();
        let refused = Client::connect_as(pgweir.address, &login)
            .await
            .err()
            .unwrap();
        assert_eq!(refused.code, "53300", "{refused:?}");
        assert!(refused.detail.unwrap().contains("SSL"));
        // What the log knows and clients are not told is which server it was.
        pgweir.wait_for_log("could not open a server connection");
    }
    let pgweir = through("127.0.0.1", "verify-ca").start();
    assert_eq!(pgweir.client().await.value(SSL).await, "t");
}

#[tokio::test]
async fn pgweirs_own_certificate_proves_it_to_the_server() {
    let (_, files) = encrypted();
    files.authority.client("alice").write(files.path(), "alice");
    let pgweir = through("localhost", "verify-full")
        .set("tls.server.cert_file", &files.file("alice.crt"))
        .set("tls.server.key_file", &files.file("alice.key"))
        .start();
    let mut client = Client::connect(pgweir.address, "alice", "postgres").await;
    assert_eq!(client.value("SELECT current_user").await, "alice");
}

#[tokio::test]
async fn a_password_is_bound_to_the_servers_channel() {
    let pgweir = through("localhost", "require")
        .flag("--auth", "passthrough")
        .start();
    let login = Login::new("bound", "postgres").password("p");
    let mut client = pgweir.client_as(&login).await;
    assert_eq!(client.value(SSL).await, "t");
}

#[tokio::test]
async fn a_cancel_request_travels_as_the_connection_does() {
    let (server, files) = encrypted();
    let pgweir = files.offer(through("localhost", "require")).start();
    let login = Login::new("secure", "postgres");
    let config = files.authority.client_config(None);
    let client = tls::connect(pgweir.address, config, "localhost", &login).await;
    let mut client = client.unwrap();
    client.send(&messages::query("SELECT pg_sleep(600)")).await;
    wait_until("the statement to sleep", || {
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        server.sql("postgres", asleep).unwrap() == "1"
    });
    client::cancel(pgweir.address, &client.key.clone()).await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn large_results_and_copies_pass_through_both_tls_ends() {
    let (_, files) = encrypted();
    let pgweir = files.offer(through("localhost", "require")).start();
    let login = Login::new("postgres", "postgres");
    let config = files.authority.client_config(None);
    let client = tls::connect(pgweir.address, config, "localhost", &login).await;
    let mut client = client.unwrap();
    let rows = client
        .query("SELECT i || repeat('x', 1000) FROM generate_series(1, 20000) i")
        .await
        .ok()
        .column();
    assert_eq!(rows.len(), 20_000);
    assert!(
        rows.iter()
            .enumerate()
            .all(|(i, row)| row.starts_with(&(i + 1).to_string()))
    );
    client.query("CREATE TEMP TABLE t (a text)").await.ok();
    let line = [vec![b'y'; 1000], vec![b'\n']].concat();
    let piece = line.repeat(200);
    let pieces = vec![piece.as_slice(); 50];
    let copied = client.copy_in("COPY t FROM STDIN", &pieces).await.ok();
    assert_eq!(copied.tags, ["COPY 10000"]);
    eventually("the rows to be there", async || {
        client.value("SELECT sum(length(a)) FROM t").await == "10000000"
    })
    .await;
}
