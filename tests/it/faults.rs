//! Faults at every point of a statement's life, and what the client is told and the database holds afterwards.
//!
//! The tables below are the contract: a row for each point, a column for each kind of statement. A cell says
//!
//! - what the client got: `ok`, its answer, as if nothing had happened; `CODE`, FATAL with this SQLSTATE and the end of its
//!   session; `error CODE`, an error, with its session going on; `torn`, the end amid a message, where nothing more can be told;
//! - for writes, after a slash, whether the row is there: 0 or 1. Where both may be, it says `?`.
//!
//! Points:
//!
//! - `idle`: the fault comes before the statement;
//! - `unsent`: the statement is on its way and does not reach the server before the fault;
//! - `running`: the server works on it;
//! - `done`: the server has done it and nothing of its answer has arrived;
//! - `half`: half of the answer's first message has arrived;
//! - `ended`: all of the answer but its ReadyForQuery has arrived.
//!
//! Kinds: `read` and `write` outside a transaction, `extended` a write by the extended protocol, `inside` a write in a
//! transaction block, `commit` the COMMIT of one, `committing` a COMMIT by the extended protocol.

use std::process::Command;

use pgweir::demo::cluster::{Server, ServerOptions};
use tokio::io::AsyncReadExt as _;

use crate::support::client::{Client, Login};
use crate::support::faulty_link::{Hold, Link};
use crate::support::messages::{self, Message, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, wait_until, within_limit};

const POINTS: [&str; 6] = ["idle", "unsent", "running", "done", "half", "ended"];

/// `pg_terminate_backend`: the server says why before it closes. What became of a COMMIT it does not say.
const TERMINATED: &str = "
| point   | read  | write   | extended | inside  | commit  |
| idle    | ok    | ok/1    | ok/1     | 57P01/0 | 57P01/0 |
| unsent  | 57P01 | 57P01/0 | 57P01/0  | 57P01/0 | 08007/0 |
| running | 57P01 | 57P01/0 | 57P01/0  | 57P01/0 | 08007/0 |
| done    | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
| half    | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
| ended   | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
";

/// SIGKILL of the backend: the postmaster ends all others and recovers.
const KILLED: &str = "
| point   | read  | write   | extended | inside  | commit  |
| idle    | ok    | ok/1    | ok/1     | 08006/0 | 08006/0 |
| unsent  | 08006 | 08007/0 | 08007/0  | 08006/0 | 08007/0 |
| running | 08006 | 08007/0 | 08007/0  | 08006/0 | 08007/0 |
| done    | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
| half    | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
| ended   | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
";

/// SIGKILL of the postmaster and all its children; it is started again afterwards.
const CRASHED: &str = KILLED;

/// The connection is reset on its way, towards both sides.
const RESET: &str = "
| point   | read  | write   | extended | inside  | commit  |
| idle    | ok    | ok/1    | ok/1     | 08006/0 | 08006/0 |
| unsent  | 08006 | 08007/0 | 08007/0  | 08006/0 | 08007/0 |
| running | 08006 | 08007/? | 08007/?  | 08006/0 | 08007/0 |
| done    | 08006 | 08007/1 | 08007/1  | 08006/0 | 08007/1 |
| half    | torn  | 08007/1 | 08007/1  | 08006/0 | 08007/1 |
| ended   | 08006 | 08007/1 | 08007/1  | 08006/0 | 08007/1 |
";

/// The connection is closed on its way, towards both sides.
const CLOSED: &str = RESET;

/// As [`TERMINATED`], with `retry.statements`: what the server undid is run again.
const TERMINATED_RETRIED: &str = "
| point   | read  | write   | extended | inside  | commit  |
| idle    | ok    | ok/1    | ok/1     | 57P01/0 | 57P01/0 |
| unsent  | ok    | ok/1    | ok/1     | 57P01/0 | 08007/0 |
| done    | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
| half    | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
| ended   | ok    | ok/1    | ok/1     | ok/0    | ok/1    |
";

/// As [`RESET`], with `retry.statements`: reads are run again, of writes nobody knows.
const RESET_RETRIED: &str = "
| point   | read  | write   | extended | inside  | commit  |
| idle    | ok    | ok/1    | ok/1     | 08006/0 | 08006/0 |
| unsent  | ok    | 08007/0 | 08007/0  | 08006/0 | 08007/0 |
| done    | ok    | 08007/1 | 08007/1  | 08006/0 | 08007/1 |
| half    | torn  | 08007/1 | 08007/1  | 08006/0 | 08007/1 |
| ended   | 08006 | 08007/1 | 08007/1  | 08006/0 | 08007/1 |
";

/// As [`TERMINATED`], with `retry.settle_commit`: the server is asked what became of the COMMIT.
const TERMINATED_SETTLED: &str = "
| point   | inside  | commit        | committing    |
| idle    | 57P01/0 | 57P01/0       | 57P01/0       |
| unsent  | 57P01/0 | error 40001/0 | error 40001/0 |
| running | 57P01/0 | error 40001/0 | error 40001/0 |
| done    | ok/0    | ok/1          | ok/1          |
| half    | ok/0    | ok/1          | ok/1          |
| ended   | ok/0    | ok/1          | ok/1          |
";

/// As [`KILLED`], with `retry.settle_commit`.
const KILLED_SETTLED: &str = "
| point   | inside  | commit        | committing    |
| idle    | 08006/0 | 08006/0       | 08006/0       |
| unsent  | 08006/0 | error 40001/0 | error 40001/0 |
| running | 08006/0 | error 40001/0 | error 40001/0 |
| done    | ok/0    | ok/1          | ok/1          |
";

/// As [`RESET`], with `retry.settle_commit`. Whose COMMIT runs on the server for longer than `retry.deadline` is told
/// that nobody knows.
const RESET_SETTLED: &str = "
| point   | inside  | commit        | committing    |
| idle    | 08006/0 | 08006/0       | 08006/0       |
| unsent  | 08006/0 | error 40001/0 | error 40001/0 |
| running | 08006/0 | 08007/0       | 08007/0       |
| done    | 08006/0 | ok/1          | ok/1          |
| half    | 08006/0 | ok/1          | ok/1          |
| ended   | 08006/0 | ok/1          | ok/1          |
";

/// With `retry.settle_commit` and `retry.replay`, whatever happens: what is rolled back runs again. A transaction that is
/// idle is replayed at once, so that the link is never empty.
const REPLAYED: &str = "
| point   | inside  | commit  | committing |
| unsent  | ok/0    | ok/1    | ok/1       |
| running | ok/0    | ok/1    | ok/1       |
| done    | ok/0    | ok/1    | ok/1       |
| half    | ok/0    | ok/1    | ok/1       |
| ended   | ok/0    | ok/1    | ok/1       |
";

/// The same where the server says why: its last words come behind its answers to Parse and Bind, and a COMMIT of whose
/// answer something was seen is not replayed.
const TERMINATED_REPLAYED: &str = "
| point   | inside  | commit  | committing    |
| unsent  | ok/0    | ok/1    | ok/1          |
| running | ok/0    | ok/1    | error 40001/0 |
| done    | ok/0    | ok/1    | ok/1          |
| half    | ok/0    | ok/1    | ok/1          |
| ended   | ok/0    | ok/1    | ok/1          |
";

/// As [`REPLAYED`], where recovery takes its time at each.
const REPLAYED_AFTER_CRASH: &str = "
| point   | inside  | commit  | committing |
| unsent  | ok/0    | ok/1    | ok/1       |
| running | ok/0    | ok/1    | ok/1       |
| done    | ok/0    | ok/1    | ok/1       |
";

/// Nothing gets through any more, and the backend stands still; `query_timeout` and `cancel_wait_timeout` end it, and of
/// a write nobody knows.
const STALLED: &str = "
| point   | read  | write   | extended | inside  | commit  |
| unsent  | 57014 | 08007/0 | 08007/0  | 57014/0 | 08007/0 |
| running | 57014 | 08007/0 | 08007/0  | 57014/0 | 08007/? |
| done    | 57014 | 08007/1 | 08007/1  | 57014/0 | 08007/1 |
| half    | torn  | 08007/1 | 08007/1  | 57014/0 | 08007/1 |
| ended   | 57014 | 08007/1 | 08007/1  | 57014/0 | 08007/1 |
";

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Terminate,
    Kill,
    Crash,
    Reset,
    Close,
    Stall,
}

/// One server, a link to it, and pgweir in front of that.
struct Scene {
    server: Server,
    link: Link,
    pgweir: Pgweir,
    settings: Vec<(&'static str, &'static str)>,
    /// Rows are told apart by it.
    number: usize,
}

/// All messages of a statement by the extended protocol.
fn extended(text: &str) -> Vec<u8> {
    let (parse, bind) = (messages::parse("", text, &[]), messages::bind("", "", &[]));
    [parse, bind, messages::execute("", 0), messages::sync()].concat()
}

/// What the client was told, in the words of the tables.
async fn told(client: Client) -> String {
    let mut stream = client.into_transport();
    let (mut bytes, mut code) = (Vec::new(), None);
    loop {
        while bytes.len() > 4 {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if bytes.len() <= length {
                break;
            }
            let frame: Vec<u8> = bytes.drain(..=length).collect();
            let message = Message {
                tag: frame[0],
                body: frame[5..].to_vec(),
            };
            match message.tag {
                b'E' => code = Some(ServerError::parse(&message)),
                b'Z' => {
                    return code.map_or("ok".to_owned(), |error| format!("error {}", error.code));
                }
                _ => {}
            }
        }
        let read = within_limit("an answer or the end", stream.read_buf(&mut bytes)).await;
        if !matches!(read, Ok(count) if count > 0) {
            break;
        }
    }
    match code {
        _ if !bytes.is_empty() => "torn".to_owned(),
        Some(error) if error.severity == "FATAL" => error.code,
        other => format!("{other:?}"),
    }
}

const SETTLES: (&str, &str) = ("retry.settle_commit", "true");
const REPLAYS: (&str, &str) = ("retry.replay", "true");

/// Of a backend that works on such a statement.
const RUNS: &str = "(wait_event = 'PgSleep' OR wait_event_type = 'Lock')";

/// What the statements of replayed transactions wait for while they are to run: another run is not to take as long.
const GATE: &str = "CREATE TABLE gate (a int); CREATE TABLE waiting (a int); \
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql \
    AS $$ BEGIN PERFORM count(*) FROM gate; RETURN NULL; END $$; \
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON waiting DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE FUNCTION wait()";

const CHECKPOINTER: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";

impl Scene {
    async fn new(settings: Vec<(&'static str, &'static str)>) -> Self {
        let server = ServerOptions::default().start().unwrap();
        server
            .sql(
                "postgres",
                "CREATE TABLE faults (a int); CREATE ROLE app SUPERUSER LOGIN",
            )
            .unwrap();
        server.sql("postgres", GATE).unwrap();
        let link = Link::to(server.address()).await;
        let mut options = Options::in_front_of(&link.node_url())
            .flag("--pool-size", "2")
            .set("timeouts.server_login_retry", "50ms")
            .set("retry.statements", "false")
            // Their connections and transactions would be counted.
            .set("metrics.lock_wait_after", "0")
            .set("pool.hidden_state", "false");
        for (name, value) in &settings {
            options = options.set(name, value);
        }
        Self {
            pgweir: options.start(),
            server,
            link,
            settings,
            number: 0,
        }
    }

    fn sql(&self, text: &str) -> String {
        self.server.sql("postgres", text).unwrap()
    }

    /// The app's backends that fit `condition`.
    fn pids(&self, condition: &str) -> Vec<String> {
        let pids = self.sql(&format!(
            "SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND {condition}"
        ));
        pids.split_whitespace().map(str::to_owned).collect()
    }

    /// The backend in a transaction. It need not be the one that was idle before: pgweir may have read the catalogue on that.
    fn inside(&self) -> String {
        let pids = self.pids("state = 'idle in transaction'");
        assert_eq!(pids.len(), 1, "{pids:?}");
        pids[0].clone()
    }

    /// Does it to the backend `pid`, which the server may be without afterwards.
    fn strike(&mut self, fault: Fault, pid: &str) {
        match fault {
            Fault::Terminate => {
                self.sql(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
            }
            Fault::Kill => {
                // The server makes all its processes anew, and accepts statements until it has noticed.
                let before = self.sql(CHECKPOINTER);
                signal("KILL", pid);
                wait_until("the server to recover", || {
                    let now = self.server.sql("postgres", CHECKPOINTER);
                    now.is_ok_and(|now| !now.trim().is_empty() && now != before)
                });
            }
            Fault::Crash => self.server.kill9().unwrap(),
            Fault::Reset => self.link.reset(),
            Fault::Close => self.link.close(),
            Fault::Stall => signal("STOP", pid),
        }
    }

    /// One cell: what the client was told, and whether its row is there.
    async fn cell(&mut self, point: &str, kind: &str, fault: Fault) -> String {
        self.number += 1;
        let number = self.number;
        let mark: &'static str = Box::leak(format!("mark_{number}").into_boxed_str());
        let mut client = self.pgweir.client_as(&Login::new("app", "postgres")).await;
        let works = match point {
            "running" if self.replays() => ", (SELECT count(*) FROM gate)",
            "running" => ", pg_sleep(600)",
            _ => "",
        };
        let write =
            format!("/* {mark} */ INSERT INTO faults SELECT {number} FROM (SELECT 1{works}) AS w");
        // The backend that it will run on is the one that is idle.
        let mut pid = client.value("SELECT pg_backend_pid()").await;
        let statement = match kind {
            "read" => messages::query(&format!("/* {mark} */ SELECT 1{works}")),
            "extended" => extended(&write),
            "write" => messages::query(&write),
            "inside" => {
                client.query("BEGIN").await.ok();
                pid = self.inside();
                messages::query(&write)
            }
            _ => {
                client.query("BEGIN").await.ok();
                let insert = format!("INSERT INTO faults VALUES ({number})");
                client.query(&insert).await.ok();
                pid = self.inside();
                if point == "running" && self.replays() {
                    let insert = format!("INSERT INTO waiting VALUES ({number})");
                    client.query(&insert).await.ok();
                } else if point == "running" {
                    // A deferred trigger is the longest part of a COMMIT.
                    let defer = format!(
                        "CREATE TEMP TABLE t (a int); CREATE FUNCTION pg_temp.nap() RETURNS trigger LANGUAGE plpgsql \
                         AS $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$; \
                         CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED \
                         FOR EACH ROW EXECUTE FUNCTION pg_temp.nap(); INSERT INTO t VALUES ({number})"
                    );
                    client.query(&defer).await.ok();
                }
                let text = format!("/* {mark} */ COMMIT");
                match kind {
                    "committing" => extended(&text),
                    _ => messages::query(&text),
                }
            }
        };
        let first = match kind {
            "read" => b'T',
            "extended" | "committing" => b'1',
            _ => b'C',
        };
        match point {
            "unsent" => self.link.hold(Hold::Request(mark)),
            "done" => self.link.hold(Hold::Answer(mark)),
            "half" => self.link.hold(Hold::Half(mark, first)),
            "ended" => self.link.hold(Hold::From(mark, b'Z')),
            _ => {}
        }
        self.act(point, fault, &pid, client, statement, kind).await
    }

    /// Who holds the gate closed, if the statement is to wait there.
    async fn close_gate(&self, point: &str) -> Option<Client> {
        if point != "running" || !self.replays() {
            return None;
        }
        let mut closed = Client::connect(self.server.address(), "postgres", "postgres").await;
        closed.query("BEGIN; LOCK TABLE gate").await.ok();
        Some(closed)
    }

    async fn act(
        &mut self,
        point: &str,
        fault: Fault,
        pid: &str,
        mut client: Client,
        statement: Vec<u8>,
        kind: &str,
    ) -> String {
        let number = self.number;
        let ended = self.link.ended();
        let gate = self.close_gate(point).await;
        if point == "idle" {
            self.strike(fault, pid);
            self.link.empty().await;
            self.recover(fault, pid);
            client.send(&statement).await;
        } else {
            client.send(&statement).await;
            if point == "running" {
                let runs = format!("pid = {pid} AND {RUNS}");
                eventually("the statement to run", async || {
                    !self.pids(&runs).is_empty()
                })
                .await;
            } else {
                self.link.held().await;
            }
            if matches!(point, "done" | "half" | "ended") {
                // The whole answer is on its way: what is done is done.
                let rests = format!("pid = {pid} AND state <> 'active'");
                eventually("the server to be done", async || {
                    !self.pids(&rests).is_empty()
                })
                .await;
            }
            self.strike(fault, pid);
            drop(gate);
            if self.settles() && fault == Fault::Crash {
                // The client waits for it.
                self.recover(fault, pid);
            }
            if !matches!(fault, Fault::Reset | Fault::Close | Fault::Stall) {
                self.link.pass();
            }
        }
        let told = told(client).await;
        if point != "idle" && !(self.settles() && fault == Fault::Crash) {
            self.recover(fault, pid);
        }
        if fault == Fault::Stall {
            self.link.close();
        }
        if matches!(fault, Fault::Kill | Fault::Crash) && point != "idle" && !self.settles() {
            // The server has closed all connections, which this process has still to pass on.
            self.link.empty().await;
        }
        if fault == Fault::Terminate {
            self.ends_one(ended).await;
        }
        let gone = format!("pid = {pid} AND state <> 'idle'");
        if matches!(fault, Fault::Reset | Fault::Close | Fault::Stall) && point == "running" {
            // It notices the end of its connection when it next reads.
            self.sql(&format!("SELECT pg_cancel_backend({pid})"));
        }
        eventually("the backend to be done", async || {
            self.pids(&gone).is_empty()
        })
        .await;
        let mut next = self.pgweir.client_as(&Login::new("app", "postgres")).await;
        assert_eq!(
            next.value("SELECT 'next'").await,
            "next",
            "{point} {kind} {fault:?}"
        );
        next.terminate().await;
        if kind == "read" {
            return told;
        }
        let rows = self.sql(&format!("SELECT count(*) FROM faults WHERE a = {number}"));
        format!("{told}/{rows}")
    }

    /// The last words of a server, which may come behind the answer, are not for whoever comes next.
    async fn ends_one(&self, before: usize) {
        eventually("the end of the connection", async || {
            self.link.ended() > before
        })
        .await;
    }

    /// What became of a COMMIT is asked on a connection that stays.
    fn settles(&self) -> bool {
        self.settings.contains(&SETTLES)
    }

    fn replays(&self) -> bool {
        self.settings.contains(&REPLAYS)
    }

    /// Undoes what would stand in the way of the next case.
    fn recover(&mut self, fault: Fault, pid: &str) {
        match fault {
            Fault::Crash => self.server.start().unwrap(),
            Fault::Stall => signal("CONT", pid),
            _ => {}
        }
    }

    /// All cells of a table, compared.
    async fn compare(mut self, fault: Fault, table: &str) {
        let cells = |row: &str| -> Vec<String> {
            let cells = row.split('|').skip(2);
            let cells = cells.map(|cell| cell.trim().to_owned());
            cells.filter(|cell| !cell.is_empty()).collect()
        };
        let kinds = cells(table.lines().nth(1).unwrap());
        let mut found = format!("\n| point | {} |\n", kinds.join(" | "));
        let mut differs = Vec::new();
        for point in POINTS {
            let row = table
                .lines()
                .find(|line| line.starts_with(&format!("| {point} ")));
            let Some(row) = row else { continue };
            let mut line = format!("| {point} |");
            for (kind, expected) in kinds.iter().zip(cells(row)) {
                let cell = self.cell(point, kind, fault).await;
                let fits = match expected.strip_suffix('?') {
                    Some(told) => cell.starts_with(told),
                    None => cell == expected,
                };
                if !fits {
                    differs.push(format!("{point} {kind}: {cell} instead of {expected}"));
                }
                line = format!("{line} {cell} |");
            }
            found = format!("{found}{line}\n");
        }
        assert!(differs.is_empty(), "{fault:?}: {differs:#?}{found}");
        self.nothing_is_left().await;
    }

    /// No backend but idle ones of the pool, whatever happened.
    async fn nothing_is_left(&self) {
        eventually("every backend to be at rest", async || {
            let states = self.sql("SELECT state FROM pg_stat_activity WHERE usename = 'app'");
            let states: Vec<&str> = states.split_whitespace().collect();
            states.len() <= 2 && states.iter().all(|state| *state == "idle")
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = self.pgweir.client_as(&Login::new("app", "postgres")).await;
            client.query("BEGIN").await.ok();
            clients.push(client);
        }
        assert_eq!(self.pids("true").len(), 2, "{:?}", self.settings);
    }
}

fn signal(name: &str, pid: &str) {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, pid])
        .status()
        .unwrap();
    assert!(status.success(), "could not send {name} to {pid}");
}

#[tokio::test]
async fn a_terminated_backend() {
    Scene::new(vec![])
        .await
        .compare(Fault::Terminate, TERMINATED)
        .await;
}

#[tokio::test]
async fn a_killed_backend() {
    Scene::new(vec![]).await.compare(Fault::Kill, KILLED).await;
}

#[tokio::test]
async fn a_crashed_server() {
    Scene::new(vec![])
        .await
        .compare(Fault::Crash, CRASHED)
        .await;
}

#[tokio::test]
async fn a_reset_connection() {
    Scene::new(vec![]).await.compare(Fault::Reset, RESET).await;
}

#[tokio::test]
async fn a_closed_connection() {
    Scene::new(vec![]).await.compare(Fault::Close, CLOSED).await;
}

#[tokio::test]
async fn a_terminated_backend_with_retries() {
    Scene::new(vec![("retry.statements", "true")])
        .await
        .compare(Fault::Terminate, TERMINATED_RETRIED)
        .await;
}

#[tokio::test]
async fn a_reset_connection_with_retries() {
    Scene::new(vec![("retry.statements", "true")])
        .await
        .compare(Fault::Reset, RESET_RETRIED)
        .await;
}

#[tokio::test]
async fn a_terminated_backend_whose_commit_is_settled() {
    Scene::new(vec![SETTLES])
        .await
        .compare(Fault::Terminate, TERMINATED_SETTLED)
        .await;
}

#[tokio::test]
async fn a_killed_backend_whose_commit_is_settled() {
    Scene::new(vec![SETTLES, ("retry.statements", "true")])
        .await
        .compare(Fault::Kill, KILLED_SETTLED)
        .await;
}

#[tokio::test]
async fn a_crashed_server_whose_commit_is_settled() {
    Scene::new(vec![SETTLES, ("retry.statements", "true")])
        .await
        .compare(Fault::Crash, KILLED_SETTLED)
        .await;
}

#[tokio::test]
async fn a_reset_connection_whose_commit_is_settled() {
    let settings = vec![SETTLES, ("retry.deadline", "1s")];
    Scene::new(settings)
        .await
        .compare(Fault::Reset, RESET_SETTLED)
        .await;
}

#[tokio::test]
async fn a_reset_connection_whose_commit_is_settled_and_replayed() {
    Scene::new(vec![SETTLES, REPLAYS])
        .await
        .compare(Fault::Reset, REPLAYED)
        .await;
}

#[tokio::test]
async fn a_closed_connection_whose_transaction_is_replayed() {
    Scene::new(vec![SETTLES, REPLAYS])
        .await
        .compare(Fault::Close, REPLAYED)
        .await;
}

#[tokio::test]
async fn a_terminated_backend_whose_transaction_is_replayed() {
    Scene::new(vec![SETTLES, REPLAYS])
        .await
        .compare(Fault::Terminate, TERMINATED_REPLAYED)
        .await;
}

#[tokio::test]
async fn a_killed_backend_whose_transaction_is_replayed() {
    Scene::new(vec![SETTLES, REPLAYS, ("retry.statements", "true")])
        .await
        .compare(Fault::Kill, REPLAYED_AFTER_CRASH)
        .await;
}

#[tokio::test]
async fn a_crashed_server_whose_transaction_is_replayed() {
    Scene::new(vec![SETTLES, REPLAYS, ("retry.statements", "true")])
        .await
        .compare(Fault::Crash, REPLAYED_AFTER_CRASH)
        .await;
}

const HOLDS: [Hold; 8] = [
    Hold::Request("BEGIN"),
    Hold::Answer("BEGIN"),
    Hold::Request("first"),
    Hold::Answer("first"),
    Hold::Request("second"),
    Hold::Answer("second"),
    Hold::Request("COMMIT"),
    Hold::Answer("COMMIT"),
];

/// A second fault at each point of a replay: on the way to the server, and on the way back, of each of its exchanges.
#[tokio::test]
async fn a_fault_during_a_replay() {
    let mut scene = Scene::new(vec![SETTLES, REPLAYS]).await;
    for fault in [Fault::Terminate, Fault::Reset, Fault::Close, Fault::Kill] {
        for hold in HOLDS {
            scene.strike_replay(fault, hold).await;
        }
    }
    scene.nothing_is_left().await;
}

impl Scene {
    /// A transaction fails amid its second statement and is replayed; what is struck again is at `hold`, then.
    async fn strike_replay(&mut self, fault: Fault, hold: Hold) {
        self.number += 1;
        let number = self.number;
        let mut client = self.pgweir.client_as(&Login::new("app", "postgres")).await;
        client.query("BEGIN").await.ok();
        let first = format!("/* first */ INSERT INTO faults VALUES ({number}) RETURNING a");
        let answer = client.query(&first).await.ok();
        assert_eq!(answer.value(), number.to_string());
        let before = self.pids("state = 'idle in transaction'").concat();
        self.link.hold(Hold::Answer("second"));
        let second = format!("/* second */ INSERT INTO faults VALUES (-{number}) RETURNING a");
        client.send(&messages::query(&second)).await;
        self.link.held().await;
        self.link.reset();
        self.link.hold(hold);
        let is_commit = matches!(hold, Hold::Request("COMMIT") | Hold::Answer("COMMIT"));
        if is_commit {
            assert_eq!(client.reply().await.ok().value(), format!("-{number}"));
            client.send(&messages::query("COMMIT")).await;
        }
        self.link.held().await;
        let replays = self.pids(&format!("pid <> {before}")).remove(0);
        self.strike(fault, &replays);
        self.link.pass();
        let what = format!("{fault:?} at {hold:?}");
        if !is_commit {
            let reply = client.reply().await;
            assert!(reply.errors.is_empty(), "{what}: {:?}", reply.errors);
            assert_eq!(reply.value(), format!("-{number}"), "{what}");
            client.send(&messages::query("COMMIT")).await;
        }
        let reply = client.reply().await;
        assert!(reply.errors.is_empty(), "{what}: {:?}", reply.errors);
        assert_eq!(
            (&*reply.tags, reply.status),
            (&["COMMIT".to_owned()][..], 'I')
        );
        let count = format!("SELECT count(*) FROM faults WHERE a IN ({number}, -{number})");
        assert_eq!(self.sql(&count), "2", "{what}");
        client.terminate().await;
    }
}

#[tokio::test]
async fn a_stalled_connection() {
    let settings = vec![
        ("timeouts.query_timeout", "400ms"),
        ("timeouts.cancel_wait_timeout", "1s"),
    ];
    Scene::new(settings)
        .await
        .compare(Fault::Stall, STALLED)
        .await;
}

/// A link that lets nothing through while pgweir connects.
#[tokio::test]
async fn a_connection_that_stalls_at_login() {
    let scene = Scene::new(vec![
        ("timeouts.server_connect_timeout", "200ms"),
        ("timeouts.query_wait_timeout", "1s"),
    ])
    .await;
    let mut client = scene.pgweir.client_as(&Login::new("app", "postgres")).await;
    assert_eq!(client.value("SELECT 1").await, "1");
    for pid in scene.pids("true") {
        scene.sql(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    }
    scene.link.empty().await;
    scene.link.hold(Hold::Request("app"));
    let reply = client.query("SELECT 2").await;
    assert_eq!(reply.sqlstate(), "53300");
    let detail = reply.error().detail.clone().unwrap();
    assert!(detail.contains("server_connect_timeout"), "{detail}");
    scene.link.pass();
    eventually("the server to be used again", async || {
        client.query("SELECT 3").await.errors.is_empty()
    })
    .await;
    scene.nothing_is_left().await;
}

/// The session's settings go out ahead of the statement, in the same write, and stall with it.
#[tokio::test]
async fn a_stall_behind_settings() {
    let scene = Scene::new(vec![
        ("timeouts.query_timeout", "1s"),
        ("timeouts.cancel_wait_timeout", "1s"),
    ])
    .await;
    let login = Login::new("app", "postgres");
    let mut client = scene.pgweir.client_as(&login).await;
    client.query("SET work_mem = '1234kB'").await.ok();
    let mut other = scene.pgweir.client_as(&login).await;
    assert_ne!(other.value("SHOW work_mem").await, "1234kB");
    scene.link.hold(Hold::Request("stalled"));
    client.send(&messages::query("SELECT 'stalled'")).await;
    assert_eq!(told(client).await, "57014");
    scene.link.close();
    scene.link.empty().await;
    assert_eq!(other.value("SELECT 1").await, "1");
    // Where the link works, a limit keeps the two together as well.
    let mut client = scene.pgweir.client_as(&login).await;
    client.query("SET work_mem = '1234kB'").await.ok();
    other.query("SELECT 1").await.ok();
    assert_eq!(client.value("SHOW work_mem").await, "1234kB");
}
