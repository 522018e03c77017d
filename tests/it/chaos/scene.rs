//! What all of a round share: how the proxy is set up, who runs what, what was found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, Server};
use rand::Rng as _;
use rand::rngs::SmallRng;

use super::ledger::Ledger;
use crate::support::client::{Client, Login};

/// The role of the clients, apart from those who look on.
pub const ROLE: &str = "chaotic";
/// A role they may become.
pub const OTHER_ROLE: &str = "chaotic_other";

/// Findings that are kept; the rest would say the same.
const FINDINGS_MAX: usize = 20;

pub fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Prints past the capture of test output, which hides what passing tests print.
pub fn say(line: &str) {
    let line = format!("{line}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

/// How pgweir and its servers are set up for a round.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub replicas: usize,
    workers: usize,
    lanes: usize,
    pub max_size: usize,
    max_prepared_statements: usize,
    /// Transactions that fail run again, and COMMITs whose answer is lost are settled.
    replays: bool,
}

impl Shape {
    /// The largest pool a reload makes.
    pub const SIZE_MAX: usize = 8;

    pub fn random(rng: &mut SmallRng) -> Self {
        Self {
            replicas: usize::from(rng.random_ratio(1, 3)),
            workers: rng.random_range(1..=2),
            lanes: rng.random_range(0..=2),
            max_size: rng.random_range(4..=Self::SIZE_MAX),
            max_prepared_statements: rng.random_range(2..=20),
            replays: rng.random(),
        }
    }

    /// The configuration file, with a pool of `max_size`.
    pub fn config(self, cluster: &Cluster, max_size: usize) -> String {
        let replicas: Vec<String> = cluster
            .replicas
            .iter()
            .map(|replica| format!("{:?}", replica.node_url()))
            .collect();
        let mut text =
            String::from("[general]\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n");
        let _ = writeln!(text, "workers = {}", self.workers);
        let _ = writeln!(
            text,
            "[cluster]\nprimary = \"postgres://postgres@{}/postgres\"\nreplicas = [{}]",
            cluster.primary.address(),
            replicas.join(", ")
        );
        let _ = writeln!(text, "[auth]\nmethod = \"trust\"");
        let _ = writeln!(
            text,
            "[pool]\nmax_size = {max_size}\nlanes = {}\nmax_prepared_statements = {}",
            self.lanes, self.max_prepared_statements
        );
        // Connections reach their lifetime in the midst of it.
        text.push_str("[timeouts]\nserver_lifetime = \"3s\"\nserver_login_retry = \"100ms\"\n");
        if self.replays {
            text.push_str("[retry]\nreplay = true\nsettle_commit = true\n");
        }
        text.push_str("[log]\nlog_connections = false\nlog_disconnections = false\n");
        text
    }
}

/// The roles and tables that the clients use.
pub fn prepare(primary: &Server) {
    let sql = format!(
        "CREATE ROLE {ROLE} LOGIN; CREATE ROLE {OTHER_ROLE}; GRANT {OTHER_ROLE} TO {ROLE};
         CREATE TABLE ledger (batch bigint, n int);
         CREATE TABLE counters (client int PRIMARY KEY, n bigint);
         GRANT ALL ON ledger, counters TO PUBLIC;"
    );
    primary.sql("postgres", &sql).unwrap();
}

/// What should not have been.
#[derive(Default)]
pub struct Findings(Mutex<Vec<String>>);

impl Findings {
    pub fn add(&self, finding: String) {
        let mut found = self.0.lock().unwrap();
        if found.len() < FINDINGS_MAX {
            say(&format!("chaos: FOUND {finding}"));
            found.push(finding);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Shared by all tasks of a round.
pub struct Scene {
    pub address: SocketAddr,
    /// The primary itself.
    server: SocketAddr,
    pub ledger: Ledger,
    pub findings: Findings,
    pub stop: AtomicBool,
    /// What a fresh session of a direct connection is like.
    pub baseline: String,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Scene {
    pub fn new(address: SocketAddr, server: SocketAddr, clients: usize, baseline: String) -> Self {
        Self {
            address,
            server,
            ledger: Ledger::new(clients),
            findings: Findings::default(),
            stop: AtomicBool::new(false),
            baseline,
            counts: Mutex::default(),
        }
    }

    pub fn count(&self, what: &str) {
        let mut counts = self.counts.lock().unwrap();
        match counts.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                counts.insert(what.to_owned(), 1);
            }
        }
    }

    fn counted(&self, what: &str) -> u64 {
        self.counts.lock().unwrap().get(what).copied().unwrap_or(0)
    }

    /// Prints what pgweir says of itself, for whoever has to find out why somebody waits.
    pub async fn describe(&self) {
        let mut console = Client::connect(self.address, "postgres", "pgweir").await;
        for table in ["POOLS", "CLIENTS", "SERVERS", "PINS"] {
            let reply = console.query(&format!("SHOW {table}")).await;
            say(&format!("chaos: {table} {:?}", reply.columns));
            for row in reply.rows {
                let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
                say(&format!("chaos: {row:?}"));
            }
        }
        let login = Login::new("postgres", "postgres");
        let mut direct = match Client::connect_as(self.server, &login).await {
            Ok(direct) => direct,
            Err(error) => return say(&format!("chaos: the server refuses logins: {error:?}")),
        };
        let activity = "SELECT pid || ' ' || state || ' ' || coalesce(wait_event, '') || ' ' || now() - state_change \
             || ' ' || query FROM pg_stat_activity WHERE backend_type = 'client backend'";
        for line in direct.query(activity).await.column() {
            say(&format!("chaos: {line}"));
        }
    }

    pub fn report(&self, length: Duration, seed: u64) {
        let counts = self.counts.lock().unwrap();
        let parts: Vec<String> = counts
            .iter()
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        let [committed, refused, unknown] = self.ledger.totals();
        say(&format!(
            "chaos: {} s, seed {seed}: writes committed {committed}, refused {refused}, unknown {unknown}; {}",
            length.as_secs(),
            parts.join(", ")
        ));
    }

    /// A round in which nothing happened would have proved nothing.
    pub fn assert_busy(&self) {
        assert!(self.counted("own answer") > 0, "no answer was checked");
        assert!(
            self.counted("fresh session like a direct one") > 0,
            "no session was probed"
        );
        assert!(self.ledger.totals()[0] > 0, "nothing was committed");
    }
}
