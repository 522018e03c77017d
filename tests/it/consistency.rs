//! A checker of what reads see: random clients write and read registers while replicas lag at random and the primary is
//! lost in the middle.
//!
//! Every register has one writer. A read with consistency `session` by that writer must see its last acknowledged write;
//! a read with consistency `cluster` by anybody must see what was acknowledged before the read began; one with
//! `bounded:300ms` what was acknowledged that long before. No read sees more than was ever attempted, which it would if
//! a write ran twice. The standby that is promoted is a synchronous one, so nothing acknowledged may be missing afterwards.
//!
//! Reads and writes take turns at all ways to say them: simple and extended protocol, transactions, functions, views.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, Server, StopMode};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::support::client::{Client, Login};
use crate::support::link::Link;
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

const CLIENTS: usize = 8;

/// How old what a read with consistency `bounded` sees may be.
const BOUND: Duration = Duration::from_millis(300);

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// How the primary is lost.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Stopped,
    Frozen,
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Session,
    Cluster,
    Bounded,
    Eventual,
}

impl Level {
    fn of(client: usize) -> Self {
        [Self::Session, Self::Cluster, Self::Bounded, Self::Eventual][client % 4]
    }

    fn setting(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Cluster => "cluster",
            Self::Bounded => "bounded:300ms",
            Self::Eventual => "eventual",
        }
    }
}

/// One register.
#[derive(Default)]
struct Register {
    /// How often a write was sent; each adds 1.
    attempted: AtomicU64,
    /// Values and when they were acknowledged, oldest first.
    acknowledged: Mutex<Vec<(Instant, u64)>>,
}

impl Register {
    fn acknowledge(&self, value: u64) {
        self.acknowledged
            .lock()
            .unwrap()
            .push((Instant::now(), value));
    }

    /// The last value acknowledged before `moment`.
    fn before(&self, moment: Instant) -> u64 {
        let acknowledged = self.acknowledged.lock().unwrap();
        let before = acknowledged.partition_point(|(at, _)| *at <= moment);
        before
            .checked_sub(1)
            .map_or(0, |place| acknowledged[place].1)
    }

    fn last(&self) -> u64 {
        self.before(Instant::now())
    }
}

/// What the clients share.
#[derive(Default)]
struct Shared {
    registers: [Register; CLIENTS],
    operations: AtomicU64,
    reads: AtomicU64,
    stale: AtomicU64,
    /// Reads of values that nobody has written.
    invented: AtomicU64,
    lost: AtomicU64,
}

/// A new session with its consistency, however often the failover ends it on the way.
async fn connect(pgweir: &Pgweir, level: Level) -> Client {
    let set = format!("SET pgweir.consistency = '{}'", level.setting());
    loop {
        let login = Login::new("postgres", "postgres");
        let Ok(mut client) = Client::connect_as(pgweir.address, &login).await else {
            continue;
        };
        let sql = format!("{set}; SELECT 1");
        if ask(&mut client, &messages::query(&sql)).await == Some(1) {
            return client;
        }
    }
}

/// The last value that these messages, up to one ReadyForQuery, are answered with; 0 if there is none, `None` after an
/// error.
async fn ask(client: &mut Client, request: &[u8]) -> Option<u64> {
    client.try_send(request).await.ok()?;
    let mut value = Some(0);
    loop {
        let message = client.read_message().await?;
        match message.tag {
            b'D' => {
                let text = String::from_utf8_lossy(&message.body[6..]).into_owned();
                value = text.parse().ok();
            }
            b'E' => value = None,
            b'Z' => return value,
            _ => {}
        }
    }
}

fn extended(sql: &str) -> Vec<u8> {
    [
        messages::parse("", sql, &[]),
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::sync(),
    ]
    .concat()
}

/// In a transaction of its own that begins with `begin`.
async fn in_transaction(client: &mut Client, begin: &str, request: &[u8]) -> Option<u64> {
    ask(client, &messages::query(begin)).await?;
    let value = ask(client, request).await?;
    ask(client, &messages::query("COMMIT")).await?;
    Some(value)
}

/// Adds 1 to a register, one way or another.
async fn write(client: &mut Client, register: usize, random: &mut StdRng) -> Option<u64> {
    let update = format!("UPDATE registers SET v = v + 1 WHERE id = {register} RETURNING v");
    let call = format!("SELECT bump({register})");
    // Nothing tells that it writes.
    let view = format!("SELECT v FROM bumped_{register}");
    match random.random_range(0..6) {
        0 => ask(client, &messages::query(&update)).await,
        1 => ask(client, &extended(&update)).await,
        2 => ask(client, &messages::query(&call)).await,
        3 => in_transaction(client, "BEGIN", &extended(&update)).await,
        4 => in_transaction(client, "BEGIN", &messages::query(&view)).await,
        _ => ask(client, &extended(&view)).await,
    }
}

async fn read(client: &mut Client, register: usize, random: &mut StdRng) -> Option<u64> {
    let select = format!("SELECT v FROM registers WHERE id = {register}");
    let call = format!("SELECT value_of({register})");
    match random.random_range(0..8) {
        0..4 => ask(client, &messages::query(&select)).await,
        4 | 5 => ask(client, &extended(&select)).await,
        6 => ask(client, &messages::query(&call)).await,
        _ => in_transaction(client, "BEGIN READ ONLY", &messages::query(&select)).await,
    }
}

async fn work(pgweir: Arc<Pgweir>, of: usize, seed: u64, limit: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_add(of as u64));
    let level = Level::of(of);
    let mut client = connect(&pgweir, level).await;
    while shared.operations.fetch_add(1, Ordering::SeqCst) < limit {
        let outcome = if random.random_bool(0.1) {
            let register = &shared.registers[of];
            register.attempted.fetch_add(1, Ordering::SeqCst);
            let written = write(&mut client, of, &mut random).await;
            if let Some(value) = written {
                register.acknowledge(value);
            }
            written
        } else {
            let whose = match level {
                Level::Session => of,
                _ => random.random_range(0..CLIENTS),
            };
            let register = &shared.registers[whose];
            let now = Instant::now();
            let expected = match level {
                Level::Session | Level::Cluster => register.before(now),
                Level::Bounded => now
                    .checked_sub(BOUND)
                    .map_or(0, |then| register.before(then)),
                Level::Eventual => 0,
            };
            let read = read(&mut client, whose, &mut random).await;
            shared.reads.fetch_add(1, Ordering::SeqCst);
            if read.is_some_and(|value| value < expected) {
                shared.stale.fetch_add(1, Ordering::SeqCst);
                eprintln!("client {of} ({level:?}) read {read:?} of {whose}, expected {expected}");
            }
            if read.is_some_and(|value| value > register.attempted.load(Ordering::SeqCst)) {
                shared.invented.fetch_add(1, Ordering::SeqCst);
            }
            read
        };
        if outcome.is_none() {
            shared.lost.fetch_add(1, Ordering::SeqCst);
            client = connect(&pgweir, level).await;
        }
    }
}

/// Has a replica lag for up to `longest`, again and again, until told to stop: it stops replaying, or replays each commit
/// that much later.
fn disturb(cluster: &Mutex<Cluster>, seed: u64, longest: Duration, stop: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::SeqCst) {
        let place = random.random_range(0..2);
        let lag = longest.mul_f64(random.random_range(0.0..1.0));
        let pauses = random.random_bool(0.5);
        let order = |is_begin: bool| {
            let cluster = cluster.lock().unwrap();
            let replica = &cluster.replicas[place];
            if pauses {
                let what = if is_begin { "pause" } else { "resume" };
                // One that is the primary by now refuses, which is as good.
                let _ = replica.sql("postgres", &format!("SELECT pg_wal_replay_{what}()"));
            } else {
                let millis = if is_begin { lag.as_millis() } else { 0 };
                let value = format!("{millis}ms");
                replica.set("recovery_min_apply_delay", &value).unwrap();
            }
        };
        order(true);
        let until = Instant::now() + lag;
        while Instant::now() < until && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        order(false);
    }
}

fn fail_over(cluster: &Mutex<Cluster>, link: &Link, fault: Fault) {
    let mut cluster = cluster.lock().unwrap();
    match fault {
        Fault::Killed => cluster.primary.kill9().unwrap(),
        Fault::Stopped => cluster.primary.stop(StopMode::Fast).unwrap(),
        Fault::Frozen => cluster.primary.pause().unwrap(),
        Fault::Cut => link.cut(),
    }
    for replica in &cluster.replicas {
        let _ = replica.sql("postgres", "SELECT pg_wal_replay_resume()");
        replica.set("recovery_min_apply_delay", "0").unwrap();
    }
    cluster.replicas[0].promote().unwrap();
    cluster.replicas[1].follow(&cluster.replicas[0]).unwrap();
}

fn refused_writes(cluster: &Cluster) -> usize {
    let in_log = |server: &Server| server.log().matches("in a read-only transaction").count();
    cluster.replicas.iter().map(in_log).sum()
}

/// A primary with a synchronous standby and one more replica, and the registers at 0.
fn cluster() -> Cluster {
    let cluster = Cluster::start(2).unwrap();
    let views: String = (0..CLIENTS)
        .flat_map(|of| {
            [
                "CREATE VIEW bumped_",
                &of.to_string(),
                " AS SELECT bump(",
                &of.to_string(),
                ") AS v;",
            ]
            .map(str::to_owned)
        })
        .collect();
    let sql = format!(
        "CREATE TABLE registers (id int PRIMARY KEY, v bigint);
         INSERT INTO registers SELECT i, 0 FROM generate_series(0, {CLIENTS}) i;
         CREATE FUNCTION bump(int) RETURNS bigint LANGUAGE sql AS
           'UPDATE registers SET v = v + 1 WHERE id = $1 RETURNING v';
         CREATE FUNCTION value_of(int) RETURNS bigint STABLE LANGUAGE sql AS
           'SELECT v FROM registers WHERE id = $1';
         {views}"
    );
    cluster.primary.sql("postgres", &sql).unwrap();
    cluster
        .primary
        .set("synchronous_standby_names", "replica_1")
        .unwrap();
    cluster.wait_until_caught_up().unwrap();
    cluster
}

/// Exchanges that were sent to replicas.
async fn sent_to_replicas(pgweir: &Pgweir) -> u64 {
    let mut console = pgweir.console().await;
    let routes = console.query("SHOW ROUTES").await.ok();
    let to_replicas = |row: &&Vec<Option<String>>| row[0].as_deref() == Some("replica");
    let counts = routes.rows.iter().filter(to_replicas);
    counts
        .filter_map(|row| row[2].as_deref()?.parse::<u64>().ok())
        .sum()
}

/// Nothing acknowledged is lost, because the standby that was promoted was synchronous, and nothing is there twice.
fn check_registers(cluster: &Cluster, shared: &Shared, seed: u64) {
    for (id, register) in shared.registers.iter().enumerate() {
        let sql = format!("SELECT v FROM registers WHERE id = {id}");
        let value = cluster.replicas[0].sql("postgres", &sql).unwrap();
        let value: u64 = value.parse().unwrap();
        let possible = register.last()..=register.attempted.load(Ordering::SeqCst);
        assert!(
            possible.contains(&value),
            "register {id}, seed {seed}: {value}, {possible:?}"
        );
    }
}

/// A quarter of the operations asked for: there are four faults.
async fn check(fault: Fault) {
    let seed = environment("PGWEIR_SEED", 1);
    let limit = environment("PGWEIR_OPERATIONS", 4_000) / 4;
    let lag = Duration::from_millis(environment("PGWEIR_LAG_MS", 500));
    let cluster = cluster();
    let link = Link::to(cluster.primary.address()).await;
    let replicas = cluster.replicas.iter();
    let options = replicas.fold(
        Options::in_front_of(&link.node_url()),
        |options, replica| options.flag("--replica", &replica.node_url()),
    );
    let options = options
        .set("cluster.probe_interval", "100ms")
        .set("cluster.probe_timeout", "500ms")
        .set("timeouts.server_login_retry", "50ms");
    let pgweir = Arc::new(options.start());
    // Views that write go to the primary once the catalogue was read; before, replicas refuse them.
    let mut client = connect(&pgweir, Level::Eventual).await;
    eventually("a read by a function on a replica", async || {
        ask(&mut client, &messages::query("SELECT value_of(0)"))
            .await
            .unwrap();
        sent_to_replicas(&pgweir).await > 0
    })
    .await;
    let cluster = Arc::new(Mutex::new(cluster));
    let shared = Arc::new(Shared::default());
    let stop = Arc::new(AtomicBool::new(false));
    let disturber = std::thread::spawn({
        let (cluster, stop) = (Arc::clone(&cluster), Arc::clone(&stop));
        move || disturb(&cluster, seed, lag, &stop)
    });
    let start = |of| {
        let (pgweir, shared) = (Arc::clone(&pgweir), Arc::clone(&shared));
        pgweir::tasks::spawn("client", work(pgweir, of, seed, limit, shared))
    };
    let clients: Vec<_> = (0..CLIENTS).map(start).collect();
    // However long that takes: longer than tests wait for things.
    while shared.operations.load(Ordering::SeqCst) < limit / 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::task::block_in_place(|| fail_over(&cluster, &link, fault));
    for client in clients {
        client.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    disturber.join().unwrap();
    let on_replicas = sent_to_replicas(&pgweir).await;
    let cluster = cluster.lock().unwrap();
    let count = |count: &AtomicU64| count.load(Ordering::SeqCst);
    let (stale, invented, refused) = (
        count(&shared.stale),
        count(&shared.invented),
        refused_writes(&cluster),
    );
    let (reads, lost) = (count(&shared.reads), count(&shared.lost));
    eprintln!(
        "seed {seed}, primary {fault:?}: {limit} operations, {reads} reads, {on_replicas} sent to replicas ({}%), lag up to {lag:?}; \
         stale reads {stale}, values nobody wrote {invented}, writes refused by a replica {refused}, sessions ended by the failover {lost}",
        on_replicas * 100 / reads.max(1),
    );
    assert_eq!((stale, invented, refused), (0, 0, 0), "seed {seed}");
    assert!(on_replicas > 0);
    // Each client is in one transaction at most, and may come to one server that is about to end.
    assert!(lost <= 2 * CLIENTS as u64, "{lost}, seed {seed}");
    check_registers(&cluster, &shared, seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_misses_what_it_must_see_though_the_primary_is_killed() {
    check(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_misses_what_it_must_see_though_the_primary_is_stopped() {
    check(Fault::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_misses_what_it_must_see_though_the_primary_is_frozen() {
    check(Fault::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_misses_what_it_must_see_though_the_primary_is_cut_off() {
    check(Fault::Cut).await;
}
