//! A checker of what reads see: random clients write and read registers while replicas lag at random and the primary is
//! replaced in the middle.
//!
//! Every register has one writer. A read with consistency `session` by that writer must see its last acknowledged write;
//! a read with consistency `cluster` by anybody must see what was acknowledged before the read began. The standby that is
//! promoted is a synchronous one, so nothing acknowledged may be missing afterwards.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, Server};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::support::client::{Client, Login};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};

const CLIENTS: usize = 8;

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// What the clients share.
#[derive(Default)]
struct Registers {
    /// The last acknowledged value of each.
    acknowledged: [AtomicU64; CLIENTS],
    operations: AtomicU64,
    reads: AtomicU64,
    stale: AtomicU64,
    lost: AtomicU64,
}

/// A new session with its consistency, however often the failover ends it on the way.
async fn connect(pgweir: &Pgweir, consistency: &str) -> Client {
    let set = format!("SET pgweir.consistency = '{consistency}'");
    loop {
        let login = Login::new("postgres", "postgres");
        let Ok(mut client) = Client::connect_as(pgweir.address, &login).await else {
            continue;
        };
        if ask(&mut client, &format!("{set}; SELECT 1")).await == Some(1) {
            return client;
        }
    }
}

/// The only value of a query; `None` if the session ended with an error.
async fn ask(client: &mut Client, sql: &str) -> Option<u64> {
    client.try_send(&messages::query(sql)).await.ok()?;
    let mut value = None;
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

async fn work(pgweir: Arc<Pgweir>, of: usize, seed: u64, limit: u64, shared: Arc<Registers>) {
    let mut random = StdRng::seed_from_u64(seed.wrapping_add(of as u64));
    let is_cluster = of % 2 == 1;
    let consistency = if is_cluster { "cluster" } else { "session" };
    let mut client = connect(&pgweir, consistency).await;
    while shared.operations.fetch_add(1, Ordering::SeqCst) < limit {
        let outcome = if random.random_bool(0.1) {
            let sql = format!("UPDATE registers SET v = v + 1 WHERE id = {of} RETURNING v");
            let written = ask(&mut client, &sql).await;
            if let Some(value) = written {
                shared.acknowledged[of].fetch_max(value, Ordering::SeqCst);
            }
            written
        } else {
            let whose = if is_cluster {
                random.random_range(0..CLIENTS)
            } else {
                of
            };
            let expected = shared.acknowledged[whose].load(Ordering::SeqCst);
            let read = ask(
                &mut client,
                &format!("SELECT v FROM registers WHERE id = {whose}"),
            )
            .await;
            shared.reads.fetch_add(1, Ordering::SeqCst);
            if read.is_some_and(|value| value < expected) {
                shared.stale.fetch_add(1, Ordering::SeqCst);
                eprintln!(
                    "client {of} ({consistency}) read {read:?} of {whose}, expected {expected}"
                );
            }
            read
        };
        if outcome.is_none() {
            shared.lost.fetch_add(1, Ordering::SeqCst);
            client = connect(&pgweir, consistency).await;
        }
    }
}

/// Has a replica lag for up to `longest`, again and again, until told to stop.
fn disturb(cluster: &Mutex<Cluster>, seed: u64, longest: Duration, stop: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::SeqCst) {
        let place = random.random_range(0..2);
        let order = |sql: &str| {
            let cluster = cluster.lock().unwrap();
            // One that is the primary by now refuses, which is as good.
            let _ = cluster.replicas[place].sql("postgres", sql);
        };
        order("SELECT pg_wal_replay_pause()");
        let until = Instant::now() + longest.mul_f64(random.random_range(0.0..1.0));
        while Instant::now() < until && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        order("SELECT pg_wal_replay_resume()");
    }
}

fn fail_over(cluster: &Mutex<Cluster>) {
    let mut cluster = cluster.lock().unwrap();
    cluster.primary.kill9().unwrap();
    for replica in &cluster.replicas {
        let _ = replica.sql("postgres", "SELECT pg_wal_replay_resume()");
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
    let sql = format!(
        "CREATE TABLE registers (id int PRIMARY KEY, v bigint);
         INSERT INTO registers SELECT i, 0 FROM generate_series(0, {CLIENTS}) i"
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

/// Nothing acknowledged is lost: the standby that was promoted was synchronous.
fn check_registers(cluster: &Cluster, shared: &Registers, seed: u64) {
    for (id, acknowledged) in shared.acknowledged.iter().enumerate() {
        let sql = format!("SELECT v FROM registers WHERE id = {id}");
        let value = cluster.replicas[0].sql("postgres", &sql).unwrap();
        let value: u64 = value.parse().unwrap();
        let acknowledged = acknowledged.load(Ordering::SeqCst);
        assert!(value >= acknowledged, "register {id}, seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_misses_what_it_must_see_though_replicas_lag_and_the_primary_changes() {
    let seed = environment("PGWEIR_SEED", 1);
    let limit = environment("PGWEIR_OPERATIONS", 4_000);
    let lag = Duration::from_millis(environment("PGWEIR_LAG_MS", 500));
    let cluster = cluster();
    let options = Options::cluster(&cluster)
        .set("cluster.probe_interval", "100ms")
        .set("timeouts.server_login_retry", "50ms");
    let pgweir = Arc::new(options.start());
    let cluster = Arc::new(Mutex::new(cluster));
    let shared = Arc::new(Registers::default());
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
    let promoting = tokio::task::spawn_blocking({
        let cluster = Arc::clone(&cluster);
        move || fail_over(&cluster)
    });
    promoting.await.unwrap();
    for client in clients {
        client.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    disturber.join().unwrap();
    let on_replicas = sent_to_replicas(&pgweir).await;
    let cluster = cluster.lock().unwrap();
    let (stale, refused) = (
        shared.stale.load(Ordering::SeqCst),
        refused_writes(&cluster),
    );
    let reads = shared.reads.load(Ordering::SeqCst);
    eprintln!(
        "seed {seed}: {limit} operations, {reads} reads, {on_replicas} sent to replicas ({}%), lag up to {lag:?}; \
         stale reads {stale}, writes refused by a replica {refused}, sessions ended by the failover {}",
        on_replicas * 100 / reads.max(1),
        shared.lost.load(Ordering::SeqCst),
    );
    assert_eq!((stale, refused), (0, 0), "seed {seed}");
    assert!(on_replicas > 0);
    check_registers(&cluster, &shared, seed);
}
