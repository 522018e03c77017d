//! Counting at scale and against bad input. `make show-queries` runs it with a million statements.

use std::time::Duration;

use pgweir::demo::cluster::ServerOptions;
use tokio::time::Instant;

use crate::shared;
use crate::support::client::{Client, Reply};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};

const FINGERPRINTS: usize = 300;
const CLIENTS: usize = 50;

/// A size from the environment, or the one for ordinary runs.
fn size(name: &str, ordinary: usize) -> usize {
    std::env::var(name).map_or(ordinary, |value| value.parse().unwrap())
}

/// The statement of one fingerprint; the seventh is the most expensive by far.
fn statement(fingerprint: usize, number: usize) -> String {
    if fingerprint == 7 {
        format!("SELECT count(*) AS f7 FROM generate_series({number}, 100000 + {number})")
    } else {
        format!("SELECT f{fingerprint} FROM wide WHERE id = {number}")
    }
}

fn column(reply: &Reply, name: &str) -> Vec<String> {
    let place = reply
        .columns
        .iter()
        .position(|column| column == name)
        .unwrap();
    reply
        .rows
        .iter()
        .map(|row| row[place].clone().unwrap_or_default())
        .collect()
}

/// Calls by the `fN` in each text; `None` if it has none.
fn fingerprint(text: &str) -> Option<usize> {
    let name = text
        .split_whitespace()
        .find(|word| word.starts_with('f') && word[1..].parse::<usize>().is_ok())?;
    name[1..].parse().ok()
}

async fn calls(client: &mut Client, table: &str) -> Vec<u64> {
    let reply = client.query(table).await.ok();
    let mut calls = vec![0; FINGERPRINTS];
    for (text, count) in column(&reply, "query").iter().zip(column(&reply, "calls")) {
        if let Some(place) = fingerprint(text) {
            calls[place] += count.parse::<u64>().unwrap();
        }
    }
    calls
}

/// What was sent of each fingerprint, and what clients measured of the seventh, in order.
async fn run(pgweir: &Pgweir, statements: usize) -> (Vec<u64>, Vec<Duration>) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let address = pgweir.address;
        let share = statements / CLIENTS;
        tasks.spawn(async move {
            let mut client = Client::connect(address, "postgres", "postgres").await;
            let (mut sent, mut own) = (vec![0; FINGERPRINTS], Vec::new());
            for turn in 0..share {
                let place = (turn * 7 + number * 13) % FINGERPRINTS;
                let begun = Instant::now();
                client.query(&statement(place, turn)).await.ok();
                if place == 7 {
                    own.push(begun.elapsed());
                }
                sent[place] += 1;
            }
            (sent, own)
        });
    }
    let (mut sent, mut own) = (vec![0; FINGERPRINTS], Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (counts, times) = done.unwrap();
        for (sum, count) in sent.iter_mut().zip(counts) {
            *sum += count;
        }
        own.extend(times);
    }
    own.sort();
    (sent, own)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_count_is_exact_and_the_top_statement_is_the_servers_own() {
    let statements = size("PGWEIR_STATEMENTS", 20_000);
    let server = ServerOptions::default()
        .set("shared_preload_libraries", "pg_stat_statements")
        .start()
        .unwrap();
    let mut direct = Client::connect(server.address(), "postgres", "postgres").await;
    direct
        .query("CREATE EXTENSION pg_stat_statements")
        .await
        .ok();
    // The server does not tell statements apart by the names they give their columns.
    let columns: Vec<_> = (0..FINGERPRINTS)
        .map(|place| format!("f{place} int"))
        .collect();
    let wide = format!(
        "CREATE TABLE wide (id int PRIMARY KEY, {})",
        columns.join(", ")
    );
    direct.query(&wide).await.ok();
    direct
        .query("INSERT INTO wide (id) SELECT generate_series(0, 99)")
        .await
        .ok();
    direct.query("SELECT pg_stat_statements_reset()").await.ok();
    let pgweir = Options::new(&server).start();
    let begun = Instant::now();
    let (sent, times) = run(&pgweir, statements).await;
    let took = begun.elapsed();
    let mut console = pgweir.console().await;
    assert_eq!(calls(&mut console, "SHOW QUERIES").await, sent);
    let of_server = "SELECT query, calls FROM pg_stat_statements";
    assert_eq!(calls(&mut direct, of_server).await, sent);
    let own = console
        .query("SHOW QUERIES ORDER BY total_time DESC LIMIT 1")
        .await
        .ok();
    let top = "SELECT query FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 1";
    let servers = direct.value(top).await;
    // Here, where the machine is busy, the client's record is a bound only.
    for (name, percent) in [("p50_time", 50), ("p95_time", 95), ("p99_time", 99)] {
        let exact = times[(times.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1e3;
        let told: f64 = column(&own, name)[0].parse().unwrap();
        eprintln!("its {name}: {told:.3} ms, the client's own {exact:.3} ms with its waits");
        assert!(told <= exact * 1.004, "{name}: {told} for {exact}");
    }
    let own = column(&own, "query").remove(0);
    assert_eq!(fingerprint(&own), Some(7), "{own}");
    assert_eq!(fingerprint(&servers), Some(7), "{servers}");
    let all: u64 = sent.iter().sum();
    let a_second = u128::from(all) * 1000 / took.as_millis().max(1);
    eprintln!(
        "{all} statements of {FINGERPRINTS} fingerprints over {CLIENTS} clients in {took:?} ({a_second}/s): every count exact"
    );
    eprintln!("top by time here and in pg_stat_statements: {own}");
}

/// Clients of the run whose quantiles are compared, and how long their statements sleep: evenly spread from 10 to 70 ms,
/// so that no quantile falls into a gap.
const SLEEPERS: usize = 50;

fn sleep_micros(number: usize) -> u64 {
    // Multiples of the golden section spread over the interval more evenly than random numbers do.
    10_000 + number as u64 * 37_082 % 60_000
}

/// Statements that sleep: how long each was asked to, and what its client measured, in order.
async fn sleep(pgweir: &Pgweir, rounds: usize) -> (Vec<Duration>, Vec<Duration>) {
    let mut tasks = tokio::task::JoinSet::new();
    for sleeper in 0..SLEEPERS {
        let address = pgweir.address;
        tasks.spawn(async move {
            let mut client = Client::connect(address, "postgres", "postgres").await;
            // Server connections are opened by this one.
            client.query("SELECT pg_sleep(0.2) AS first").await.ok();
            let (mut asked, mut own) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                let micros = sleep_micros(round * SLEEPERS + sleeper);
                let sql = format!("SELECT pg_sleep({micros} / 1e6) AS measured");
                let begun = Instant::now();
                client.query(&sql).await.ok();
                own.push(begun.elapsed());
                asked.push(Duration::from_micros(micros));
            }
            (asked, own)
        });
    }
    let (mut asked, mut own) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (a, o) = done.unwrap();
        asked.extend(a);
        own.extend(o);
    }
    asked.sort();
    own.sort();
    (asked, own)
}

/// On any machine, what is shown lies between what the server was asked to take and what the client measured: each time
/// does, so each quantile does. The client's has the way to pgweir and back in it, and its own wait for a processor,
/// which pgweir can't know; where the machine is not busy that is little, and then the two are held to 2 %.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quantiles_are_those_of_a_clients_own_record() {
    const HISTOGRAM: f64 = 0.004;
    let is_quiet = std::env::var_os("PGWEIR_ROUNDS").is_some();
    let rounds = size("PGWEIR_ROUNDS", 10);
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", &SLEEPERS.to_string())
        .start();
    let (asked, own) = sleep(&pgweir, rounds).await;
    let mut console = pgweir.console().await;
    let shown = console.query("SHOW QUERIES LIKE '%measured'").await.ok();
    assert_eq!(column(&shown, "calls"), [own.len().to_string()]);
    for (name, percent) in [("p50_time", 50), ("p95_time", 95), ("p99_time", 99)] {
        let rank = (own.len() * percent).div_ceil(100) - 1;
        let exact = own[rank].as_secs_f64() * 1e3;
        let least = asked[rank].as_secs_f64() * 1e3;
        let told: f64 = column(&shown, name)[0].parse().unwrap();
        let off = (told - exact).abs() / exact;
        eprintln!(
            "{name} of {}: {told:.3} ms, the client's own {exact:.3} ms, {:.2} % apart",
            own.len(),
            off * 100.0
        );
        let (least, most) = (least * (1.0 - HISTOGRAM), exact * (1.0 + HISTOGRAM));
        assert!((least..=most).contains(&told), "{name}: {told} for {exact}");
        assert!(!is_quiet || off <= 0.02, "{name}: {told} for {exact}");
    }
}

/// Resident memory of a process, in bytes.
fn memory(pgweir: &Pgweir) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pgweir.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[tokio::test]
async fn any_number_of_fingerprints_takes_a_bounded_memory_and_is_counted() {
    let count = size("PGWEIR_DISTINCT", 20_000);
    let pgweir = Options::new(shared::server()).start();
    let mut client = pgweir.client().await;
    let mut largest = 0;
    for batch in 0..count.div_ceil(1000) {
        let numbers = batch * 1000..(batch * 1000 + 1000).min(count);
        let messages: Vec<u8> = numbers
            .clone()
            .flat_map(|number| messages::query(&format!("SELECT 1 AS distinct_{number}")))
            .collect();
        client.send(&messages).await;
        for _ in numbers {
            client.reply().await.ok();
        }
        largest = largest.max(memory(&pgweir));
    }
    let mut console = pgweir.console().await;
    let shown = console.query("SHOW QUERIES").await.ok();
    let sum: u64 = column(&shown, "calls")
        .iter()
        .map(|calls| calls.parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, count as u64);
    assert!(shown.rows.len() <= 1127, "{}", shown.rows.len());
    eprintln!(
        "{count} fingerprints: {} MB resident at most",
        largest / 1_000_000
    );
    assert!(largest < 400_000_000, "{largest}");
}

#[tokio::test]
async fn long_statements_and_bytes_that_are_no_text_are_counted_like_others() {
    let pgweir = Options::new(shared::server()).start();
    let mut client = pgweir.client().await;
    // A megabyte of text, of a literal, and one more than is looked at.
    let names = "x".repeat(50);
    let columns: Vec<_> = (0..1600)
        .map(|number| format!("1 AS \"{names}{number}\""))
        .collect();
    client
        .query(&format!("SELECT {}", columns.join(", ")))
        .await
        .ok();
    for megabytes in [1, 6] {
        let literal = "s".repeat(megabytes << 20);
        client
            .query(&format!("SELECT length('{literal}') AS long"))
            .await
            .ok();
    }
    client
        .send(&messages::frame(b'Q', b"SELECT 1 AS \"\xff\xfe\"\0"))
        .await;
    assert_eq!(client.reply().await.sqlstate(), "22021");
    let mut console = pgweir.console().await;
    let shown = console.query("SHOW QUERIES").await.ok();
    let (texts, calls) = (column(&shown, "query"), column(&shown, "calls"));
    let sum: u64 = calls
        .iter()
        .map(|calls| calls.parse::<u64>().unwrap())
        .sum();
    assert_eq!(sum, 4, "{texts:?}");
    assert!(texts.iter().all(|text| text.len() <= 2048), "{texts:?}");
    assert!(texts.iter().any(|text| text == "SELECT length($1) AS long"));
    assert!(texts.iter().any(|text| text == "<not read>"));
    assert!(texts.iter().any(|text| text.contains('\u{fffd}')));
    let page = pgweir.http_get("/metrics").unwrap();
    assert!(page.len() < 2 << 20);
    tokio::time::timeout(Duration::from_secs(5), client.query("SELECT 1"))
        .await
        .unwrap()
        .ok();
}
