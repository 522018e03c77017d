//! The support is itself tested, against PostgreSQL without pgweir.

use pgweir::demo::cluster::{Cluster, ClusterOptions, Server, ServerOptions, StopMode};

use crate::shared;
use crate::support::client::{self, Client, Login};
use crate::support::messages::{self, PROTOCOL_3_2};
use crate::support::scripted_backend::{ScriptedBackend, Step};
use crate::support::tls::{self, Authority};
use crate::support::wait::{eventually, wait_until};

async fn client_of(server: &Server) -> Client {
    Client::connect(server.address(), "postgres", "postgres").await
}

#[tokio::test]
async fn a_replica_shows_what_the_primary_wrote_and_can_be_promoted() {
    let mut cluster = Cluster::start(2).unwrap();
    let folder = cluster.folder().to_owned();
    let mut primary = client_of(&cluster.primary).await;
    primary.query("CREATE TABLE t (a int)").await.ok();
    primary.query("INSERT INTO t VALUES (42)").await.ok();
    cluster.wait_until_caught_up().unwrap();
    for replica in &cluster.replicas {
        let mut client = client_of(replica).await;
        assert_eq!(client.value("SELECT a FROM t").await, "42");
        let refused = client.query("INSERT INTO t VALUES (43)").await;
        assert_eq!(refused.sqlstate(), "25006");
    }
    cluster.primary.kill9().unwrap();
    assert!(!cluster.primary.is_running());
    let [first, second] = &cluster.replicas[..] else {
        panic!("two replicas")
    };
    first.promote().unwrap();
    second.follow(first).unwrap();
    let mut primary = client_of(first).await;
    primary.query("INSERT INTO t VALUES (43)").await.ok();
    let mut replica = client_of(second).await;
    eventually("the other replica to follow", async || {
        replica.value("SELECT count(*) FROM t").await == "2"
    })
    .await;
    drop(cluster);
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_server_keeps_port_and_data_through_every_kind_of_stop() {
    let mut server = Server::start_scratch().unwrap();
    let port = server.port();
    server.sql("postgres", "CREATE TABLE t (a int)").unwrap();
    server.restart(StopMode::Fast).unwrap();
    server.restart(StopMode::Immediate).unwrap();
    server.kill9().unwrap();
    assert!(!server.is_running());
    server.start().unwrap();
    server.restart(StopMode::Smart).unwrap();
    assert_eq!(server.port(), port);
    let mut client = client_of(&server).await;
    assert_eq!(client.value("SELECT count(*) FROM t").await, "0");
    assert!(server.log().contains("automatic recovery in progress"));
}

#[tokio::test]
async fn a_paused_server_answers_once_it_continues() {
    let mut server = Server::start_scratch().unwrap();
    let mut client = client_of(&server).await;
    server.pause().unwrap();
    client.send(&messages::query("SELECT 1")).await;
    let silence = tokio::time::timeout(crate::support::pgweir::SILENCE, client.read_message());
    assert!(silence.await.is_err(), "a paused server answered");
    server.cont().unwrap();
    assert_eq!(client.reply().await.ok().value(), "1");
    // A paused server stops all the same.
    server.pause().unwrap();
    server.stop(StopMode::Fast).unwrap();
    assert!(!server.is_running());
}

#[test]
fn a_kept_cluster_is_shut_down_cleanly_and_stays() {
    let options = ClusterOptions {
        replicas: 1,
        keep: true,
        ..ClusterOptions::default()
    };
    let cluster = options.start().unwrap();
    let folder = cluster.folder().to_owned();
    drop(cluster);
    for name in ["primary", "replica_1"] {
        let log = std::fs::read_to_string(folder.join(name).join("log")).unwrap();
        assert!(log.trim_end().ends_with("database system is shut down"));
        assert!(!folder.join(name).join("data/postmaster.pid").exists());
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn servers_of_one_process_start_side_by_side() {
    let servers: Vec<Server> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Server::start_scratch().unwrap()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut ports: Vec<u16> = servers.iter().map(Server::port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4);
}

#[test]
fn an_invalid_setting_is_told_with_the_log() {
    let error = ServerOptions::default()
        .set("max_connections", "many")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("max_connections"), "{error}");
}

#[test]
fn psql_statements_return_rows_or_the_error() {
    let server = shared::server();
    let rows = server
        .sql("postgres", "SELECT 1, 'a'; SELECT NULL, 2;")
        .unwrap();
    assert_eq!(rows, "1|a\n|2");
    let error = server.sql("postgres", "SELECT nothing").unwrap_err();
    assert!(error.to_string().contains("\"nothing\" does not exist"));
}

#[tokio::test]
async fn every_password_method_is_answered() {
    let rules = "host all plain 127.0.0.1/32 password\nhost all hashed 127.0.0.1/32 md5\n\
                 host all salted 127.0.0.1/32 scram-sha-256\n";
    let server = ServerOptions::default().hba(rules).start().unwrap();
    let roles = "SET password_encryption = 'scram-sha-256'; CREATE ROLE plain LOGIN PASSWORD 'p'; \
                 CREATE ROLE salted LOGIN PASSWORD 'p'; \
                 SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'p';";
    server.sql("postgres", roles).unwrap();
    for user in ["plain", "hashed", "salted"] {
        let login = Login::new(user, "postgres").password("p");
        let mut client = Client::connect_as(server.address(), &login).await.unwrap();
        assert_eq!(client.value("SELECT current_user").await, user);
        let wrong = login.password("q");
        let error = Client::connect_as(server.address(), &wrong).await;
        assert_eq!(error.err().unwrap().code, "28P01");
    }
}

#[tokio::test]
async fn certificates_serve_a_server_and_prove_a_client() {
    let authority = Authority::new();
    let identity = authority.server(&["localhost"]);
    let server = ServerOptions::default()
        .set("ssl", "on")
        .set("ssl_ca_file", "ca.crt")
        .file("ca.crt", authority.certificate())
        .file("server.crt", identity.certificate)
        .file("server.key", identity.key)
        .hba("hostssl all alice 127.0.0.1/32 cert\n")
        .start()
        .unwrap();
    server.sql("postgres", "CREATE ROLE alice LOGIN").unwrap();
    let config = authority.client_config(Some(&authority.client("alice")));
    let login = Login::new("alice", "postgres");
    let client = tls::connect(server.address(), config, "localhost", &login).await;
    let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(client.unwrap().value(ssl).await, "t");
}

#[tokio::test]
async fn the_client_speaks_every_part_of_the_protocol() {
    let server = shared::server();
    let login = Login::new("postgres", "postgres")
        .protocol(PROTOCOL_3_2)
        .with("application_name", "support");
    let mut client = Client::connect_as(server.address(), &login).await.unwrap();
    assert_eq!(client.parameters["application_name"], "support");
    // Servers before 18 negotiate down to 3.0.
    assert_eq!(client.negotiated.is_some(), client.key.len() == 8);

    let reply = client.query("SELECT 1 AS one; SELECT 2/0").await;
    assert_eq!(
        (reply.columns.as_slice(), reply.status),
        (&["one".to_owned()][..], 'I')
    );
    assert_eq!(reply.sqlstate(), "22012");
    assert_eq!(reply.order, "TDCEZ");

    client.query("CREATE TEMP TABLE t (a int)").await.ok();
    let copied = client.copy_in("COPY t FROM STDIN", &[b"1\n2", b"\n"]).await;
    assert_eq!(copied.ok().tags, ["COPY 2"]);
    assert_eq!(
        client.query("COPY t TO STDOUT").await.ok().copied,
        b"1\n2\n"
    );

    client.query("LISTEN c; NOTIFY c, 'hello'").await.ok();
    let notification = client.notification().await;
    assert_eq!(notification, ("c".to_owned(), "hello".to_owned()));

    client
        .query("DO $$ BEGIN RAISE NOTICE 'seen'; END $$")
        .await
        .ok();
    assert_eq!(client.notices[0].message, "seen");
    client.terminate().await;
}

#[tokio::test]
async fn a_cancel_ends_the_statement() {
    let server = shared::server();
    let mut client = client_of(server).await;
    client.send(&messages::query("SELECT pg_sleep(600)")).await;
    let pid = u32::from_be_bytes(client.key[..4].try_into().unwrap());
    let asleep = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("the statement to sleep", || {
        server.sql("postgres", &asleep).unwrap() == "PgSleep"
    });
    client::cancel(server.address(), &client.key).await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
}

#[tokio::test]
async fn a_scripted_backend_follows_its_steps() {
    let reply = messages::one_value_reply("split");
    let every_byte = (1..reply.len()).collect();
    let backend = ScriptedBackend::start(vec![
        Step::ExpectSql("SELECT 1"),
        Step::SendSplit(reply, every_byte),
        Step::Expect(b'P'),
        Step::Reset,
    ])
    .await;
    let mut client = Client::connect(backend.address(), "u", "d").await;
    assert_eq!(client.value("SELECT 1").await, "split");
    client.send(&messages::parse("", "SELECT 2", &[])).await;
    assert_eq!(client.read_message().await, None);
    client::cancel(backend.address(), b"12345678").await;
    assert_eq!(backend.cancels(), [b"12345678"]);
    assert_eq!(backend.logins(), 1);
}

#[tokio::test]
async fn a_scripted_backend_can_tell_its_clients_apart() {
    let backend = ScriptedBackend::start_with(async |mut connection| {
        let user = connection.startup["user"].clone();
        connection.answer_all(&user).await;
    })
    .await;
    for user in ["alice", "bob"] {
        let mut client = Client::connect(backend.address(), user, "d").await;
        assert_eq!(client.value("SELECT 1").await, user);
        assert_eq!(client.extended("SELECT 1", &[]).await.ok().value(), user);
        client.terminate().await;
    }
}

#[tokio::test]
#[should_panic(expected = "1 scripts of a scripted backend panicked")]
async fn a_scripted_backend_that_is_told_the_unexpected_fails_the_test() {
    let backend = ScriptedBackend::start(vec![Step::ExpectSql("SELECT 2")]).await;
    let mut client = Client::connect(backend.address(), "u", "d").await;
    client.send(&messages::query("SELECT 1")).await;
    assert_eq!(client.read_message().await, None);
}
