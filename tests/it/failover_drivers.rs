//! Applications with real drivers that go through a switchover: no error outside transactions, and transactions that are
//! run again where their error says so. Skipped where the driver is not installed, as in `drivers`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use pgweir::demo::cluster::{Cluster, StopMode};

use super::drivers::{runs, skip, tell, tests_folder};
use super::failover::quick;
use crate::support::pgweir::Options;

/// Runs `command` with a DSN, and changes the primary while it writes.
#[track_caller]
fn survives(mut command: Command) {
    let mut cluster = Cluster::start(1).unwrap();
    let sql = "CREATE TABLE written (who text, n int)";
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let pgweir = quick(Options::cluster(&cluster)).start();
    let mut program = command
        .arg(format!("postgresql://postgres@{}/postgres", pgweir.address))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "running");
    cluster.primary.stop(StopMode::Fast).unwrap();
    cluster.replicas[0].promote().unwrap();
    program.stdin.take().unwrap().write_all(b"\n").unwrap();
    let said: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(program.wait().unwrap().success());
    tell(&said.join("\n"));
}

#[test]
fn psycopg_survives_a_switchover() {
    let program = "failover_psycopg.py";
    let interpreter = tests_folder().join(".venv/bin/python");
    if !runs(&interpreter, "--version") {
        return skip(program, "no tests/.venv; `make setup` makes it");
    }
    let mut command = Command::new(interpreter);
    command.arg(tests_folder().join("drivers").join(program));
    survives(command);
}

#[test]
fn node_postgres_survives_a_switchover() {
    let program = "failover_node.js";
    if !runs(Path::new("node"), "--version") || !tests_folder().join("node_modules/pg").is_dir() {
        return skip(program, "no node, or no pg in tests/node_modules");
    }
    let mut command = Command::new("node");
    command.arg(tests_folder().join("drivers").join(program));
    survives(command);
}
