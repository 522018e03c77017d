//! Programs that use real drivers, run through pgweir. `make setup` installs the drivers; without them, or without
//! their runtime, a program is skipped and the reason printed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgweir::demo::cluster::ServerOptions;

use crate::support::pgweir::Options;

/// Where Debian's libpostgresql-jdbc-java puts the driver.
const JDBC_JAR: &str = "/usr/share/java/postgresql.jar";

/// Where Debian's golang-github-lib-pq-dev puts the driver: `src/github.com/lib/pq` in here.
const GO_PATH: &str = "/usr/share/gocode";

pub(super) fn tests_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Whether `program` can be started at all.
pub(super) fn runs(program: &Path, argument: &str) -> bool {
    Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Prints past the capture of test output, which hides what passing tests print.
pub(super) fn tell(line: &str) {
    let line = format!("{line}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

pub(super) fn skip(program: &str, reason: &str) {
    tell(&format!("skipped {program}: {reason}"));
}

/// Runs `command` with a DSN through a pgweir of its own, which has fewer backends than the programs have clients.
#[track_caller]
fn passes(command: &mut Command, dsn: impl FnOnce(&str) -> String) {
    let server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).flag("--pool-size", "5").start();
    let address = format!("{}/postgres", pgweir.address);
    let output = command
        .arg(dsn(&address))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    tell(stdout.trim());
}

fn python(program: &str) {
    let interpreter = tests_folder().join(".venv/bin/python");
    if !runs(&interpreter, "--version") {
        return skip(program, "no tests/.venv; `make setup` makes it");
    }
    let mut command = Command::new(interpreter);
    command.arg(tests_folder().join("drivers").join(program));
    passes(&mut command, |address| {
        format!("postgresql://postgres@{address}")
    });
}

#[test]
fn psycopg_works_through_pgweir() {
    python("smoke_psycopg.py");
}

#[tokio::test]
async fn the_console_works_with_psycopg_and_asyncpg() {
    let (program, interpreter) = (
        "console_drivers.py",
        tests_folder().join(".venv/bin/python"),
    );
    if !runs(&interpreter, "--version") {
        return skip(program, "no tests/.venv; `make setup` makes it");
    }
    let server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).start();
    let mut client = pgweir.client().await;
    for number in 0..3 {
        let sql = format!("SELECT {number} AS shown");
        client.query(&sql).await.ok();
    }
    let output = Command::new(interpreter)
        .arg(tests_folder().join("drivers").join(program))
        .arg(format!("postgresql://postgres@{}/pgweir", pgweir.address))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    tell(stdout.trim());
}

#[test]
fn asyncpg_works_through_pgweir() {
    python("smoke_asyncpg.py");
}

#[test]
fn node_postgres_works_through_pgweir() {
    let program = "smoke_node.js";
    if !runs(Path::new("node"), "--version") {
        return skip(program, "no node");
    }
    if !tests_folder().join("node_modules/pg").is_dir() {
        return skip(
            program,
            "no tests/node_modules/pg; `make setup` installs it",
        );
    }
    let mut command = Command::new("node");
    command.arg(tests_folder().join("drivers").join(program));
    passes(&mut command, |address| {
        format!("postgresql://postgres@{address}")
    });
}

#[test]
fn pgjdbc_works_through_pgweir() {
    let program = "SmokeJdbc.java";
    if !runs(Path::new("javac"), "-version") {
        return skip(program, "no javac");
    }
    if !Path::new(JDBC_JAR).is_file() {
        return skip(program, "no pgJDBC; `make setup` installs it");
    }
    let mut command = Command::new("java");
    command
        .args(["-cp", JDBC_JAR])
        .arg(tests_folder().join("drivers").join(program));
    passes(&mut command, |address| {
        format!("jdbc:postgresql://{address}?user=postgres")
    });
}

#[test]
fn lib_pq_works_through_pgweir() {
    let program = "smoke_go.go";
    if !runs(Path::new("go"), "version") {
        return skip(program, "no go");
    }
    if !Path::new(GO_PATH).join("src/github.com/lib/pq").is_dir() {
        return skip(program, "no lib/pq; `make setup` installs it");
    }
    let mut command = Command::new("go");
    command
        .envs([("GO111MODULE", "off"), ("GOPATH", GO_PATH)])
        .arg("run")
        .arg(tests_folder().join("drivers").join(program));
    passes(&mut command, |address| {
        format!("postgresql://postgres@{address}?sslmode=disable")
    });
}
