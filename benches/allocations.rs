//! Allocations of pgweir for each transaction in steady state: `cargo bench --bench allocations`.
//!
//! pgweir runs in this process, whose allocator counts; PostgreSQL and pgbench do not. Exits with an error if more than
//! one allocation in a hundred transactions remains.

#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::alloc::System;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use pgweir::config::Overrides;
use pgweir::demo::cluster::{Server, ServerOptions};
use pgweir::reload::Source;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations for each transaction that are none: a timer, a table that grows.
const NONE: f64 = 0.01;

/// Transactions of the shorter load, of all clients. Every 15 s what was counted of statements is copied, which takes some 150
/// allocations in one of the loads: of these it is one in 400.
const TRANSACTIONS: u32 = 32_000;

/// The lanes to measure with; each in a process of its own, because pgweir is installed once in one.
const LANES: [&str; 2] = ["0", "2"];
const VARIABLE: &str = "PGWEIR_BENCH_LANES";

fn main() -> ExitCode {
    let outcome = match std::env::var(VARIABLE) {
        Ok(lanes) => measure(&lanes),
        Err(_) => measure_all(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("more than {NONE} allocations for each transaction");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_all() -> Result<bool, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?;
    let mut is_none = true;
    for lanes in LANES {
        is_none &= Command::new(&program)
            .env(VARIABLE, lanes)
            .status()?
            .success();
    }
    Ok(is_none)
}

fn measure(lanes: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let server = ServerOptions::default().start()?;
    let mut init = pgbench(&server.address().to_string());
    succeed(init.args(["-i", "-s", "1", "-q", "postgres"]))?;
    let address = serve(&server, lanes)?;
    let mut is_none = true;
    for (mode, clients) in [
        ("simple", "1"),
        ("simple", "16"),
        ("prepared", "1"),
        ("prepared", "16"),
    ] {
        let each = allocations(&address, mode, clients)?;
        println!("lanes {lanes}, {mode}, {clients} clients: {each:.4} allocations a transaction");
        is_none &= each < NONE;
    }
    Ok(is_none)
}

/// Serves on a thread of its own and says where.
fn serve(server: &Server, lanes: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut overrides = Overrides::new();
    overrides.set("bench", "cluster.primary", &server.node_url());
    overrides.set("bench", "auth.method", "trust");
    overrides.set("bench", "general.listen", "127.0.0.1:0");
    overrides.set("bench", "general.http", "127.0.0.1:0");
    overrides.set("bench", "pool.lanes", lanes);
    let source = Source {
        file: None,
        overrides,
    };
    let parts = source.read()?;
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = pgweir::app::runtime(1).expect("a runtime");
        runtime.block_on(pgweir::app::serve(source, parts, |addresses| {
            let _ = ready.send(addresses.listen.first().map(ToString::to_string));
        }))
    });
    let address = is_ready.recv_timeout(Duration::from_secs(10))?;
    address.ok_or_else(|| "no address".into())
}

fn pgbench(address: &str) -> Command {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let mut command = Command::new("pgbench");
    command
        .env("PGHOST", host)
        .env("PGPORT", port)
        .env("PGUSER", "postgres")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

fn succeed(command: &mut Command) -> Result<String, Box<dyn std::error::Error>> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?} failed").into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Allocations, and the time in which they were made.
#[derive(Clone, Copy)]
struct Counted {
    count: f64,
    seconds: f64,
}

#[allow(clippy::cast_precision_loss, reason = "small numbers")]
fn counted(
    work: impl FnOnce() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<Counted, Box<dyn std::error::Error>> {
    let (region, start) = (Region::new(ALLOCATOR), Instant::now());
    work()?;
    let change = region.change();
    Ok(Counted {
        count: (change.allocations + change.reallocations) as f64,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Runs the load once to warm up, once, and once with three times as many transactions: what the difference allocates is
/// that of the transactions alone, without that of connecting. What pgweir allocates by the clock (its steward, its
/// samples) is measured while nothing runs and taken off.
fn allocations(
    address: &str,
    mode: &str,
    clients: &str,
) -> Result<f64, Box<dyn std::error::Error>> {
    let each = TRANSACTIONS / clients.parse::<u32>()?;
    let load = |transactions: u32| {
        counted(|| {
            let count = transactions.to_string();
            let arguments = [
                "-n", "-S", "-M", mode, "-c", clients, "-t", &count, "postgres",
            ];
            succeed(pgbench(address).args(arguments)).map(|_| ())
        })
    };
    load(each)?;
    let idle = counted(|| {
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let (once, thrice) = (load(each)?, load(3 * each)?);
    let by_the_clock = idle.count / idle.seconds * (thrice.seconds - once.seconds);
    Ok((thrice.count - once.count - by_the_clock) / f64::from(2 * TRANSACTIONS))
}
