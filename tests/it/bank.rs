//! A bank whose clients lock accounts in opposed order, at every isolation level, while their server connections are
//! ended: nothing is lost, nothing happens twice, and no error reaches an application that docs/retries.md says it is
//! spared.
//!
//! `PGWEIR_CLIENTS`, `PGWEIR_SECONDS` and `PGWEIR_SEED` set its size; `make show-deadlocks` and `make show-kills` run it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pgweir::demo::cluster::{Server, ServerOptions};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::support::client::{Client, Login};
use crate::support::messages as m;
use crate::support::pgweir::{Options, Pgweir};

const ACCOUNTS: u32 = 8;
const OPENING: u64 = 1_000_000;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap())
}

/// What the clients have been told.
#[derive(Default)]
struct Told {
    acknowledged: AtomicU64,
    /// COMMIT was sent and its outcome is not known: by the transfer's number.
    unknown: std::sync::Mutex<Vec<u64>>,
    /// Errors by SQLSTATE.
    errors: std::sync::Mutex<BTreeMap<String, u64>>,
    confirmed: std::sync::Mutex<Vec<u64>>,
    stop: AtomicBool,
    next: AtomicU64,
}

impl Told {
    fn count(&self, code: &str) {
        *self
            .errors
            .lock()
            .unwrap()
            .entry(code.to_owned())
            .or_default() += 1;
    }
}

/// How a client sends what.
#[derive(Clone, Copy)]
struct Way {
    begin: &'static str,
    /// It runs a transaction again itself that was rolled back.
    retries: bool,
    /// By the extended protocol.
    is_extended: bool,
}

enum Outcome {
    Committed,
    RolledBack(String),
    /// The connection ended, with this code, before COMMIT or at it.
    Ended(String, bool),
}

async fn transfer(client: &mut Client, way: Way, number: u64, random: &mut StdRng) -> Outcome {
    let from = random.random_range(1..=ACCOUNTS);
    let to = (from + random.random_range(1..ACCOUNTS) - 1) % ACCOUNTS + 1;
    let amount = random.random_range(1..100);
    let texts = [
        way.begin.to_owned(),
        format!("UPDATE account SET balance = balance - {amount} WHERE id = {from}"),
        format!("UPDATE account SET balance = balance + {amount} WHERE id = {to}"),
        format!("INSERT INTO transfer VALUES ({number}, {from}, {to}, {amount})"),
        "COMMIT".to_owned(),
    ];
    for text in texts {
        let commits = text == "COMMIT";
        match try_query(client, way, &text).await {
            Ok(None) => {}
            Ok(Some(code)) => {
                if try_query(client, way, "ROLLBACK").await.is_err() {
                    return Outcome::Ended(code, false);
                }
                return Outcome::RolledBack(code);
            }
            Err(code) => return Outcome::Ended(code, commits),
        }
    }
    Outcome::Committed
}

/// The SQLSTATE of an error; `Err` with that of the last words if the connection ended.
async fn try_query(client: &mut Client, way: Way, text: &str) -> Result<Option<String>, String> {
    let mut code = None;
    let bytes = if way.is_extended {
        [
            m::parse("", text, &[]),
            m::bind("", "", &[]),
            m::execute("", 0),
            m::sync(),
        ]
        .concat()
    } else {
        m::query(text)
    };
    if client.try_send(&bytes).await.is_err() {
        return Err("none".to_owned());
    }
    loop {
        let Some(message) = client.read_message().await else {
            return Err(code.unwrap_or_else(|| "none".to_owned()));
        };
        match message.tag {
            b'E' => {
                let error = m::ServerError::parse(&message);
                code = Some(error.code);
            }
            b'Z' => return Ok(code),
            _ => {}
        }
    }
}

async fn teller(pgweir: Arc<Pgweir>, told: Arc<Told>, way: Way, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let login = Login::new("teller", "postgres");
    let mut client: Option<Client> = None;
    while !told.stop.load(Ordering::Relaxed) {
        let connected = match client.take() {
            Some(client) => client,
            None => match Client::connect_as(pgweir.address, &login).await {
                Ok(client) => client,
                Err(error) => {
                    told.count(&format!("login {}", error.code));
                    continue;
                }
            },
        };
        let mut connected = connected;
        let number = told.next.fetch_add(1, Ordering::Relaxed);
        loop {
            match transfer(&mut connected, way, number, &mut random).await {
                Outcome::Committed => {
                    told.acknowledged.fetch_add(1, Ordering::Relaxed);
                    told.confirmed.lock().unwrap().push(number);
                    client = Some(connected);
                }
                Outcome::RolledBack(code) => {
                    told.count(&code);
                    if way.retries && !told.stop.load(Ordering::Relaxed) {
                        continue;
                    }
                    client = Some(connected);
                }
                Outcome::Ended(code, at_commit) => {
                    if at_commit {
                        told.unknown.lock().unwrap().push(number);
                    }
                    told.count(&if at_commit {
                        format!("COMMIT {code}")
                    } else {
                        code
                    });
                }
            }
            break;
        }
    }
}

/// The bank after all tellers have left: what they were told is what happened.
async fn audit(direct: &mut Client, told: &Told) {
    let total = direct.value("SELECT sum(balance) FROM account").await;
    assert_eq!(total, (OPENING * u64::from(ACCOUNTS)).to_string());
    let twice =
        "SELECT count(*) FROM (SELECT 1 FROM transfer GROUP BY number HAVING count(*) > 1) x";
    assert_eq!(
        direct.value(twice).await,
        "0",
        "transfers that happened twice"
    );
    let balances = "SELECT count(*) FROM account a WHERE balance <> \
        1000000 + coalesce((SELECT sum(amount) FROM transfer WHERE target = a.id), 0) \
        - coalesce((SELECT sum(amount) FROM transfer WHERE source = a.id), 0)";
    assert_eq!(
        direct.value(balances).await,
        "0",
        "balances that do not add up"
    );
    let there = direct
        .query("SELECT number FROM transfer")
        .await
        .ok()
        .column();
    let there: std::collections::HashSet<u64> =
        there.iter().map(|number| number.parse().unwrap()).collect();
    let confirmed = told.confirmed.lock().unwrap();
    let lost = confirmed
        .iter()
        .filter(|number| !there.contains(number))
        .count();
    assert_eq!(lost, 0, "acknowledged transfers that are not there");
    let unknown = told.unknown.lock().unwrap();
    let happened = unknown
        .iter()
        .filter(|number| there.contains(number))
        .count();
    assert_eq!(
        there.len(),
        confirmed.len() + happened,
        "transfers that nobody made"
    );
    eprintln!(
        "audit: {} acknowledged, 0 lost, 0 doubled; {} with unknown outcome, {happened} of them happened",
        confirmed.len(),
        unknown.len(),
    );
}

async fn open_bank(server: &Server) -> Client {
    let mut direct = Client::connect(server.address(), "postgres", "postgres").await;
    let text = format!(
        "CREATE ROLE teller SUPERUSER LOGIN; ALTER ROLE teller SET deadlock_timeout = '20ms'; \
         CREATE TABLE account (id int PRIMARY KEY, balance bigint); \
         CREATE TABLE transfer (number bigint, source int, target int, amount bigint); \
         INSERT INTO account SELECT id, {OPENING} FROM generate_series(1, {ACCOUNTS}) id"
    );
    direct.query(&text).await.ok();
    direct
}

struct Run {
    told: Arc<Told>,
    took: Duration,
}

/// Runs tellers for a time; `disturb` is called again and again meanwhile.
async fn run(
    pgweir: &Arc<Pgweir>,
    ways: &[Way],
    clients: u64,
    seconds: u64,
    seed: u64,
    mut disturb: impl AsyncFnMut(u64),
) -> Run {
    let told = Arc::new(Told::default());
    let began = Instant::now();
    let mut tellers = tokio::task::JoinSet::new();
    for teller_number in 0..clients {
        let way = ways[usize::try_from(teller_number).unwrap() % ways.len()];
        let (pgweir, told) = (Arc::clone(pgweir), Arc::clone(&told));
        tellers.spawn(teller(
            pgweir,
            told,
            way,
            seed.wrapping_mul(1000) + teller_number,
        ));
    }
    let mut round = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        disturb(round).await;
        round += 1;
    }
    told.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tellers.join_next().await {
        ended.unwrap();
    }
    Run {
        told,
        took: began.elapsed(),
    }
}

/// COMMITs whose answer was lost: those that had committed, that had been rolled back, and of which that is unknown.
fn settled(pgweir: &Pgweir) -> [usize; 3] {
    ["committed", "rolled back", "unknown"].map(|outcome| {
        let series = format!(
            "pgweir_commits_settled_total{{database=\"postgres\",user=\"teller\",outcome=\"{outcome}\"}}"
        );
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let count = pgweir.metric(&series).unwrap() as usize;
        count
    })
}

const READ_COMMITTED: Way = Way {
    begin: "BEGIN",
    retries: false,
    is_extended: false,
};
const REPEATABLE_READ: Way = Way {
    begin: "BEGIN ISOLATION LEVEL REPEATABLE READ",
    retries: false,
    is_extended: false,
};
const SERIALIZABLE: Way = Way {
    begin: "BEGIN ISOLATION LEVEL SERIALIZABLE",
    retries: false,
    is_extended: false,
};

/// The same by the extended protocol.
const fn extended(way: Way) -> Way {
    Way {
        is_extended: true,
        ..way
    }
}

fn replaying(server: &Server) -> Options {
    Options::new(server)
        .set("retry.replay", "true")
        .set("retry.settle_commit", "true")
        .set("retry.attempts", "1000")
        .set("retry.deadline", "10min")
        .set("retry.budget_min", "10000")
        .set("retry.backoff_max", "100ms")
}

#[tokio::test]
async fn a_bank_under_deadlocks_conflicts_and_kills_loses_and_doubles_nothing() {
    let (clients, seconds) = (number("PGWEIR_CLIENTS", 8), number("PGWEIR_SECONDS", 4));
    let seed = number("PGWEIR_SEED", 6);
    eprintln!("seed {seed}");
    let server = ServerOptions::default().start().unwrap();
    let mut direct = open_bank(&server).await;
    let pgweir = Arc::new(replaying(&server).start());
    let ways = [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE];
    let mut random = StdRng::seed_from_u64(seed);
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
        WHERE usename = 'teller' ORDER BY random() LIMIT 1) x";
    let run = run(&pgweir, &ways, clients, seconds, seed, async |_| {
        let pause = Duration::from_millis(random.random_range(10..120));
        tokio::time::sleep(pause).await;
        direct.query(kill).await.ok();
    })
    .await;
    let mut errors = run.told.errors.lock().unwrap().clone();
    eprintln!("errors: {errors:?}");
    let metrics = pgweir.http_get("/metrics").unwrap();
    let lines = metrics.lines();
    for line in lines.filter(|line| line.starts_with("pgweir_re") && line.contains("teller")) {
        eprintln!("{line}");
    }
    audit(&mut direct, &run.told).await;
    // Of what is terminated at its COMMIT the outcome is unknown.
    errors.retain(|code, _| code != "COMMIT 08007");
    assert_eq!(
        errors,
        BTreeMap::new(),
        "errors that should have been absorbed"
    );
    assert!(run.told.acknowledged.load(Ordering::Relaxed) > 0);
}

/// Serialization failures and deadlocks, while the server is killed with SIGKILL: what is replayed for the one reason may
/// fail for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serializable_transfers_on_a_server_that_is_killed_lose_and_double_nothing() {
    let (clients, seconds) = (number("PGWEIR_CLIENTS", 8), number("PGWEIR_SECONDS", 4));
    let every = Duration::from_millis(number("PGWEIR_KILL_EVERY_MS", 1500));
    let seed = number("PGWEIR_SEED", 7);
    eprintln!("seed {seed}");
    let mut server = ServerOptions::default().start().unwrap();
    drop(open_bank(&server).await);
    let options = replaying(&server)
        .set("timeouts.server_login_retry", "100ms")
        .set("timeouts.query_wait_timeout", "1min");
    let pgweir = Arc::new(options.start());
    let ways = [SERIALIZABLE, extended(SERIALIZABLE)];
    let mut kills = 0;
    let run = run(&pgweir, &ways, clients, seconds, seed, async |_| {
        tokio::time::sleep(every).await;
        server.kill9().unwrap();
        server.start().unwrap();
        kills += 1;
    })
    .await;
    let mut errors = run.told.errors.lock().unwrap().clone();
    eprintln!("{kills} kills; errors seen by clients: {errors:?}");
    let mut direct = Client::connect(server.address(), "postgres", "postgres").await;
    audit(&mut direct, &run.told).await;
    // Of a COMMIT that nothing could be found out of.
    errors.retain(|code, _| code != "COMMIT 08007");
    assert_eq!(
        errors,
        BTreeMap::new(),
        "errors that should have been absorbed"
    );
    assert!(kills > 0 && run.told.acknowledged.load(Ordering::Relaxed) > 0);
}

/// The storm of `make show-deadlocks`: prints what clients saw without replay, with it, and where they retry themselves.
#[tokio::test]
async fn a_deadlock_storm_is_not_seen_by_clients() {
    let (clients, seconds) = (number("PGWEIR_CLIENTS", 8), number("PGWEIR_SECONDS", 3));
    let seed = number("PGWEIR_SEED", 6);
    eprintln!("seed {seed}, {clients} clients, {seconds} s each");
    let own = Way {
        retries: true,
        ..READ_COMMITTED
    };
    for (name, replays, way) in [
        ("without replay", false, READ_COMMITTED),
        ("the application retries", false, own),
        ("with replay", true, READ_COMMITTED),
    ] {
        let server = ServerOptions::default().start().unwrap();
        let mut direct = open_bank(&server).await;
        let options = replaying(&server).flag("--pool-size", &clients.to_string());
        let pgweir = options.set("retry.replay", &replays.to_string()).start();
        let pgweir = Arc::new(pgweir);
        let run = run(&pgweir, &[way], clients, seconds, seed, async |_| {
            tokio::time::sleep(Duration::from_millis(50)).await;
        })
        .await;
        let errors = run.told.errors.lock().unwrap().clone();
        let acknowledged = run.told.acknowledged.load(Ordering::Relaxed);
        let deadlocks = direct
            .value("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")
            .await;
        #[allow(clippy::cast_precision_loss, reason = "a rate to print")]
        let rate = acknowledged as f64 / run.took.as_secs_f64();
        eprintln!(
            "{name}: {acknowledged} transfers ({rate:.0} a second), errors seen by clients: {errors:?}; \
             deadlocks the server reports: {deadlocks}"
        );
        audit(&mut direct, &run.told).await;
        if replays {
            assert_eq!(errors, BTreeMap::new());
        } else {
            assert!(
                errors.get("40P01").is_some_and(|count| *count > 0),
                "no storm"
            );
        }
    }
}

/// `make show-kills`: the server is killed with SIGKILL and started again, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_again_and_again_loses_and_doubles_nothing() {
    let (clients, seconds) = (number("PGWEIR_CLIENTS", 8), number("PGWEIR_SECONDS", 4));
    let every = Duration::from_millis(number("PGWEIR_KILL_EVERY_MS", 1500));
    let seed = number("PGWEIR_SEED", 6);
    eprintln!("seed {seed}, {clients} clients, {seconds} s, killed every {every:?}");
    // COMMIT takes a while, as on a disk: each kill falls into some.
    let slow_commits = ServerOptions::default()
        .set("fsync", "on")
        .set("commit_delay", "20000")
        .set("commit_siblings", "0");
    let mut server = slow_commits.start().unwrap();
    drop(open_bank(&server).await);
    let options = replaying(&server)
        .set("timeouts.server_login_retry", "100ms")
        .set("timeouts.query_wait_timeout", "1min");
    let pgweir = Arc::new(options.start());
    let mut kills = 0;
    let run = run(
        &pgweir,
        &[READ_COMMITTED],
        clients,
        seconds,
        seed,
        async |_| {
            tokio::time::sleep(every).await;
            server.kill9().unwrap();
            server.start().unwrap();
            kills += 1;
        },
    )
    .await;
    let errors = run.told.errors.lock().unwrap().clone();
    let mut direct = Client::connect(server.address(), "postgres", "postgres").await;
    let unknown = run.told.unknown.lock().unwrap().len();
    let [committed, rolled_back, unsettled] = settled(&pgweir);
    let settled = committed + rolled_back;
    eprintln!(
        "{kills} kills; errors seen by clients: {errors:?}; COMMITs whose answer was lost: {settled} settled / {} \
         ({committed} had committed, {rolled_back} had not and were replayed), {unknown} unknown",
        settled + unknown,
    );
    assert_eq!(unsettled, unknown, "COMMITs of which nothing was found out");
    audit(&mut direct, &run.told).await;
    let others = errors.keys().filter(|code| *code != "COMMIT 08007").count();
    assert_eq!(others, 0, "unexplained errors");
    assert!(settled > 0, "no kill fell into a COMMIT");
    assert!(kills > 0 && run.told.acknowledged.load(Ordering::Relaxed) > 0);
}
