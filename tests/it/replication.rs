//! Replication connections pass through on a server connection of their own.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use pgweir::demo::cluster::{Server, ServerOptions, binaries};

use crate::support::client::{Client, Login, cancel};
use crate::support::messages::{ServerError, query};
use crate::support::pgweir::{Options, Pgweir, SILENCE};
use crate::support::wait::wait_until;

fn server() -> Server {
    ServerOptions::default()
        .set("wal_level", "logical")
        .start()
        .unwrap()
}

fn program(name: &str, pgweir: &Pgweir) -> Command {
    let mut command = Command::new(binaries().unwrap().join(name));
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", pgweir.address.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGPASSWORD", "p")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[track_caller]
fn succeeds(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

fn back_up(pgweir: &Pgweir, target: &Path) -> Output {
    program("pg_basebackup", pgweir)
        .args(["-X", "stream", "--checkpoint=fast", "--no-sync", "-D"])
        .arg(target)
        .output()
        .unwrap()
}

#[test]
fn a_base_backup_with_streamed_wal_is_taken_through_pgweir() {
    let server = server();
    server
        .sql(
            "postgres",
            "CREATE TABLE t AS SELECT generate_series(1, 100000) a",
        )
        .unwrap();
    let pgweir = Options::new(&server).flag("--pool-size", "1").start();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("backup");
    succeeds(&back_up(&pgweir, &target));
    let verified = Command::new(binaries().unwrap().join("pg_verifybackup"))
        .arg(&target)
        .output()
        .unwrap();
    succeeds(&verified);
}

#[test]
fn the_server_judges_a_replication_password_by_its_own_rules() {
    // No rule lets `repl` into any database, and there is none called "replication".
    let server = ServerOptions::default()
        .hba("host replication repl 127.0.0.1/32 scram-sha-256\n")
        .start()
        .unwrap();
    server
        .sql(
            "postgres",
            "CREATE ROLE repl LOGIN REPLICATION PASSWORD 'p'",
        )
        .unwrap();
    let pgweir = Options::new(&server).flag("--auth", "passthrough").start();
    let folder = tempfile::tempdir().unwrap();
    let back_up = |target: &str, password: &str| {
        program("pg_basebackup", &pgweir)
            .env("PGUSER", "repl")
            .env("PGPASSWORD", password)
            .args(["-X", "stream", "--checkpoint=fast", "--no-sync", "-D"])
            .arg(folder.path().join(target))
            .output()
            .unwrap()
    };
    succeeds(&back_up("first", "p"));
    let refused = back_up("second", "q");
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(
        errors.contains("password authentication failed for user \"repl\""),
        "{errors}"
    );
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn wal_is_received_while_it_is_written() {
    let server = server();
    let pgweir = Options::new(&server).start();
    let folder = tempfile::tempdir().unwrap();
    let receiver = program("pg_receivewal", &pgweir)
        .args(["--no-sync", "-D"])
        .arg(folder.path())
        .spawn()
        .unwrap();
    let _receiver = Running(receiver);
    wait_until("the receiver to stream", || {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        server.sql("postgres", streaming).unwrap() == "1"
    });
    server.sql("postgres", "CREATE TABLE t (a int)").unwrap();
    let segment = server
        .sql(
            "postgres",
            "SELECT pg_walfile_name(pg_current_wal_lsn()); SELECT pg_switch_wal()",
        )
        .unwrap();
    let segment = segment.lines().next().unwrap();
    wait_until("the segment to be complete", || {
        folder.path().join(segment).exists()
    });
}

#[test]
fn changes_are_decoded_through_a_logical_slot() {
    let server = server();
    server
        .sql("postgres", "CREATE TABLE t (a int, b text)")
        .unwrap();
    let pgweir = Options::new(&server).start();
    let slot = |arguments: &[&str]| {
        let mut command = program("pg_recvlogical", &pgweir);
        command
            .args(["--dbname", "postgres", "--slot", "slot"])
            .args(arguments);
        command
    };
    let create = ["--create-slot", "--plugin", "pgoutput"];
    succeeds(&slot(&create).output().unwrap());
    server
        .sql(
            "postgres",
            "CREATE PUBLICATION p FOR TABLE t; INSERT INTO t VALUES (1, 'needle')",
        )
        .unwrap();
    let end = server
        .sql("postgres", "SELECT pg_current_wal_lsn()")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("changes");
    let options = ["-o", "proto_version=1", "-o", "publication_names=p"];
    let stream = slot(&["--start", "--no-loop", "--endpos", &end, "-f"])
        .arg(&file)
        .args(options)
        .output()
        .unwrap();
    succeeds(&stream);
    let changes = std::fs::read(&file).unwrap();
    assert!(changes.windows(6).any(|window| window == b"needle"));
    succeeds(&slot(&["--drop-slot"]).output().unwrap());
}

#[tokio::test]
async fn commands_and_statements_of_a_walsender_are_answered() {
    let server = server();
    let pgweir = Options::new(&server).start();
    for value in ["database", "true", "on", "1"] {
        let login = Login::new("postgres", "postgres").with("replication", value);
        let mut client = pgweir.client_as(&login).await;
        let reply = client.query("IDENTIFY_SYSTEM").await.ok();
        assert_eq!(reply.columns, ["systemid", "timeline", "xlogpos", "dbname"]);
        if value == "database" {
            assert_eq!(client.value("SELECT 1").await, "1");
        }
        client.terminate().await;
    }
    // Not one: it is an ordinary client.
    let login = Login::new("postgres", "postgres").with("replication", "off");
    let mut client = pgweir.client_as(&login).await;
    assert_eq!(client.query("IDENTIFY_SYSTEM").await.sqlstate(), "42601");
    // None of theirs is left open once they are gone.
    wait_until("walsenders to be gone", || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
        server.sql("postgres", left).unwrap() == "0"
    });
}

#[tokio::test]
async fn a_replication_client_is_refused_in_the_servers_words() {
    let server = server();
    server.sql("postgres", "CREATE ROLE plain LOGIN").unwrap();
    let pgweir = Options::new(&server).start();
    for login in [
        Login::new("plain", "postgres").with("replication", "true"),
        Login::new("postgres", "nowhere").with("replication", "database"),
        Login::new("postgres", "postgres").with("replication", "perhaps"),
    ] {
        let direct = Client::connect_as(server.address(), &login).await;
        let through = Client::connect_as(pgweir.address, &login).await;
        assert_eq!(through.err(), direct.err(), "{login:?}");
    }
}

/// What a table of the console says in the rows where `key_column` is `key`.
async fn shown(pgweir: &Pgweir, table: &str, key: (&str, &str), column: &str) -> Vec<String> {
    let mut console = pgweir.console().await;
    let reply = console.query(&format!("SHOW {table}")).await.ok();
    let place = |name: &str| reply.columns.iter().position(|of| of == name).unwrap();
    let (key_place, place) = (place(key.0), place(column));
    let rows = reply.rows.iter();
    rows.filter(|row| row[key_place].as_deref() == Some(key.1))
        .map(|row| row[place].clone().unwrap_or_default())
        .collect()
}

fn replicates(value: &str) -> Login {
    Login::new("postgres", "postgres").with("replication", value)
}

#[tokio::test]
async fn a_walsender_is_shown_cancelled_and_ended_like_any_client() {
    let server = server();
    let mut pgweir = Options::new(&server).start();
    let mut logical = pgweir.client_as(&replicates("database")).await;
    let mut physical = pgweir.client_as(&replicates("true")).await;
    let ordinary = pgweir.client().await;
    for kind in ["logical", "physical"] {
        let key = ("replication", kind);
        let links = shown(&pgweir, "CLIENTS", key, "link").await;
        assert_eq!(links.len(), 1, "{kind}");
        let servers = shown(&pgweir, "SERVERS", key, "ptr").await;
        assert_eq!(servers, links, "{kind}");
        assert_eq!(shown(&pgweir, "SERVERS", key, "state").await, ["active"]);
    }
    // Its key is pgweir's own, and reaches its own server connection.
    logical.send(&query("SELECT pg_sleep(600)")).await;
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND state = 'active'";
    wait_until("the statement to run", || {
        server.sql("postgres", sleeping).unwrap() == "1"
    });
    cancel(pgweir.address, &logical.key).await;
    assert_eq!(logical.reply().await.sqlstate(), "57014");
    // At the end one that streams is told at once, one that runs something once that is done.
    physical
        .send(&query("START_REPLICATION PHYSICAL 0/1000000"))
        .await;
    physical.expect(b'W').await;
    logical.query("BEGIN").await.ok();
    pgweir.signal("TERM");
    let told = |errors: Vec<ServerError>| {
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].code, "57P01");
    };
    told(physical.expect_end().await);
    drop(ordinary);
    assert_eq!(logical.value("SELECT 1").await, "1");
    logical.query("COMMIT").await.ok();
    told(logical.expect_end().await);
    assert!(pgweir.wait().success());
    assert!(!pgweir.log_contains("shutdown_timeout is over"));
}

#[tokio::test]
async fn a_walsender_waits_for_the_end_of_a_pause() {
    let server = server();
    let pgweir = Options::new(&server).start();
    let mut console = pgweir.console().await;
    console.query("PAUSE").await.ok();
    let waiting = pgweir::tasks::spawn("walsender", {
        let address = pgweir.address;
        async move { Client::connect_as(address, &replicates("true")).await }
    });
    tokio::time::sleep(SILENCE).await;
    assert!(!waiting.is_finished());
    let open = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    assert_eq!(server.sql("postgres", open).unwrap(), "0");
    console.query("RESUME").await.ok();
    let mut client = waiting.await.unwrap().unwrap();
    client.query("IDENTIFY_SYSTEM").await.ok();
}

#[tokio::test]
async fn a_walsender_is_ended_by_kill_client() {
    let server = server();
    let pgweir = Options::new(&server).start();
    let mut client = pgweir.client_as(&replicates("true")).await;
    client
        .send(&query("START_REPLICATION PHYSICAL 0/1000000"))
        .await;
    client.expect(b'W').await;
    let ids = shown(&pgweir, "CLIENTS", ("replication", "physical"), "id").await;
    let mut console = pgweir.console().await;
    console.query(&format!("KILL_CLIENT {}", ids[0])).await.ok();
    assert_eq!(client.expect_end().await[0].code, "57P01");
    wait_until("its server connection to be closed", || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
        server.sql("postgres", left).unwrap() == "0"
    });
}
