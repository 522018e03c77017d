//! Everything at once: clients of every kind on few backends, while backends die, the server restarts and pgweir is
//! reloaded, paused, reconnected and killed around them. What must hold is counted exactly:
//!
//! - every answer is the one its client asked for;
//! - a write is there once if it was acknowledged, never if it was refused, at most once if nobody knows;
//! - a client that comes finds a session like that of a direct connection, whatever the ones before it left behind;
//! - in the end nothing is left over: no transaction, lock, client, server connection, file descriptor or memory.
//!
//! `PGWEIR_CHAOS_SECONDS` (`make chaos`: 120), in rounds of `PGWEIR_CHAOS_ROUND` (30) with other servers and settings;
//! `PGWEIR_CHAOS_CLIENTS` (40); `PGWEIR_SEED` repeats what clients and disturbances choose, though not when.

mod client;
mod disturb;
mod ledger;
mod probe;
mod scene;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgweir::demo::cluster::ClusterOptions;
use pgweir::demo::cluster::ServerOptions;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;
use disturb::Disturber;
use scene::{ROLE, Scene, Shape, environment};

/// Clients that come only to look whether what they find is like a direct connection.
const PROBERS: usize = 2;

/// Settled memory may differ by so much from that of the first third of a round. Allocators give back late.
const MEMORY_SLACK_KIB: u64 = 24 * 1024;

/// Descriptors that come and go with connections being opened, cancel requests and HTTP.
const DESCRIPTOR_SLACK: usize = 12;

#[test]
fn nothing_is_crossed_leaked_lost_or_doubled() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let seed: u64 = std::env::var("PGWEIR_SEED")
        .ok()
        .filter(|seed| seed != "random")
        .map_or_else(rand::random, |seed| seed.parse().expect("a seed"));
    let seconds = environment("PGWEIR_CHAOS_SECONDS", 6);
    let round = environment("PGWEIR_CHAOS_ROUND", 30).min(seconds);
    for number in 0..seconds.div_ceil(round) {
        runtime.block_on(play(seed.wrapping_add(number), Duration::from_secs(round)));
    }
}

/// What a process holds, from `/proc`.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    memory_kib: u64,
    descriptors: usize,
}

impl Holdings {
    fn of(pgweir: &Pgweir) -> Self {
        let proc = format!("/proc/{}", pgweir.pid());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let memory = line.and_then(|line| line.split_whitespace().nth(1));
        Self {
            memory_kib: memory.unwrap().parse().unwrap(),
            descriptors: std::fs::read_dir(format!("{proc}/fd")).unwrap().count(),
        }
    }
}

async fn play(seed: u64, length: Duration) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let shape = Shape::random(&mut rng);
    scene::say(&format!("chaos: seed {seed}, {shape:?}"));
    let cluster = ClusterOptions {
        server: ServerOptions::default().set("max_connections", "200"),
        replicas: shape.replicas,
        keep: false,
    }
    .start()
    .unwrap();
    scene::prepare(&cluster.primary);
    if shape.replicas > 0 {
        cluster.wait_until_caught_up().unwrap();
    }
    let pgweir = Options::config(&shape.config(&cluster, shape.max_size)).start();
    let before = Holdings::of(&pgweir);
    let baseline = probe::direct(cluster.primary.address()).await;
    let clients = usize::try_from(environment("PGWEIR_CHAOS_CLIENTS", 40)).unwrap();
    let scene = Arc::new(Scene::new(
        pgweir.address,
        cluster.primary.address(),
        clients,
        baseline,
    ));

    let mut tasks = Vec::new();
    for index in 0..clients {
        let seed = rng.random();
        tasks.push(pgweir::tasks::spawn(
            "chaotic client",
            client::live(Arc::clone(&scene), index, seed),
        ));
    }
    for _ in 0..PROBERS {
        tasks.push(pgweir::tasks::spawn(
            "prober",
            probe::live(Arc::clone(&scene)),
        ));
    }
    let mut disturber = Disturber::new(Arc::clone(&scene), cluster, shape, rng.random());
    let held = disturb(&mut disturber, &pgweir, length).await;
    scene.stop.store(true, Ordering::Relaxed);
    disturber.settle(&pgweir).await;
    for task in tasks {
        task.await.unwrap();
    }
    scene.report(length, seed);
    check_left_overs(&disturber, &pgweir, &scene).await;
    check_holdings(&held, before, &pgweir, &scene).await;
    scene
        .ledger
        .check(&disturber.cluster.primary, &scene.findings);
    let found = scene.findings.take();
    assert!(found.is_empty(), "seed {seed}: {found:#?}");
    scene.assert_busy();
}

/// Disturbs until the time is up; returns what pgweir held meanwhile, each second.
async fn disturb(disturber: &mut Disturber, pgweir: &Pgweir, length: Duration) -> Vec<Holdings> {
    let until = Instant::now() + length;
    let mut next_look = Instant::now();
    let mut held = Vec::new();
    while Instant::now() < until {
        disturber.disturb(pgweir).await;
        if Instant::now() >= next_look {
            held.push(Holdings::of(pgweir));
            next_look += Duration::from_secs(1);
        }
    }
    held
}

/// Nobody is connected any more: no transaction, no lock, no more server connections than pgweir says.
async fn check_left_overs(disturber: &Disturber, pgweir: &Pgweir, scene: &Scene) {
    let ask = |sql: &str| disturber.cluster.primary.sql("postgres", sql).unwrap();
    let unclean = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}' \
         AND (state <> 'idle' OR xact_start IS NOT NULL)"
    );
    eventually("every backend to be at rest", async || ask(&unclean) == "0").await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(ask(locks), "0", "advisory locks outlived their clients");
    let mut console = pgweir.console().await;
    let clients = format!("SHOW CLIENTS WHERE user = '{ROLE}'");
    eventually("pgweir to have no clients", async || {
        console.query(&clients).await.ok().rows.is_empty()
    })
    .await;
    let backends = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}'");
    let servers = format!(
        "SHOW SERVERS WHERE user = '{ROLE}' AND port = '{}'",
        disturber.cluster.primary.port()
    );
    eventually("as many backends as pgweir knows of", async || {
        let known = console.query(&servers).await.ok().rows.len();
        let there: usize = ask(&backends).parse().unwrap();
        there == known && there <= Shape::SIZE_MAX
    })
    .await;
    let pools = console.query("SHOW POOLS").await.ok();
    for row in pools
        .rows
        .iter()
        .filter(|row| row[1].as_deref() == Some(ROLE))
    {
        let of = |name: &str| {
            let place = pools.columns.iter().position(|column| column == name);
            row[place.unwrap()].clone().unwrap()
        };
        for busy in ["cl_active", "cl_waiting", "sv_active"] {
            assert_eq!(of(busy), "0", "{busy} of {row:?}");
        }
    }
    probe::every_backend(scene, pgweir, disturber.shape.max_size).await;
}

async fn check_holdings(held: &[Holdings], before: Holdings, pgweir: &Pgweir, scene: &Scene) {
    let allowed = before.descriptors + DESCRIPTOR_SLACK + 2 * Shape::SIZE_MAX;
    eventually("descriptors to be closed", async || {
        Holdings::of(pgweir).descriptors <= allowed
    })
    .await;
    let peak = |part: &[Holdings]| part.iter().map(|one| one.memory_kib).max().unwrap_or(0);
    let (first, rest) = held.split_at(held.len() / 3);
    let after = Holdings::of(pgweir);
    scene::say(&format!(
        "chaos: pgweir held {} KiB before, at most {} in the first third, {} later, {} in the end; {} descriptors before, {} in the end",
        before.memory_kib,
        peak(first),
        peak(rest),
        after.memory_kib,
        before.descriptors,
        after.descriptors
    ));
    // A short round ends before everything has happened once.
    if held.len() >= 20 && after.memory_kib > peak(first) + MEMORY_SLACK_KIB {
        scene.findings.add(format!(
            "memory has grown from {} to {} KiB",
            peak(first),
            after.memory_kib
        ));
    }
}
