//! `pgweir demo`: serves a scratch cluster and says what to try.

use std::cell::RefCell;
use std::pin::pin;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{Addresses, AppError, fail, runtime, serve};
use crate::cli::DemoArgs;
use crate::config::Overrides;
use crate::demo::load::{ANALYST, ANALYST_POOL_SIZE, LEDGER, Load};
use crate::demo::{self, DATABASE, Demo, LOOK_AT, Options, TRY_THESE, USER};
use crate::reload::{Parts, Source};
use crate::telemetry;

/// Makes the cluster, serves it until stopped, and takes it down.
pub fn run(args: &DemoArgs) -> ExitCode {
    let runtime = match runtime(1) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(async {
        say("Starting a PostgreSQL primary and two streaming replicas with sample data ...");
        let options = Options {
            keep: args.keep(),
            ..Options::default()
        };
        let demo = tokio::select! {
            demo = demo::prepare(options) => match demo {
                Ok(demo) => demo,
                Err(error) => return fail(&error),
            },
            _ = tokio::signal::ctrl_c() => return ExitCode::FAILURE,
        };
        let served = serve_demo(&demo, args).await;
        if args.keep() {
            say(&format!(
                "The servers' files stay in {}. To start them again:",
                demo.folder().display()
            ));
            demo.restart_commands()
                .iter()
                .for_each(|command| say(&format!("  {command}")));
        }
        // Stopping the servers waits for them, which is no work for the runtime's only thread.
        let stopped = tokio::task::spawn_blocking(move || drop(demo)).await;
        if stopped.is_ok() {
            served
        } else {
            ExitCode::FAILURE
        }
    })
}

/// The logs of a demo, beside its servers.
#[derive(Clone, Debug)]
struct Logs {
    slow: String,
    query: String,
}

impl Logs {
    fn of(demo: &Demo) -> Self {
        let file = |name| demo.folder().join(name).display().to_string();
        Self {
            slow: file("slow.log"),
            query: file("query.log"),
        }
    }
}

/// What of the load is to be seen, in the logs and the console.
fn seeing(overrides: &mut Overrides, logs: &Logs) {
    let analyst_size = format!("users.{ANALYST}.max_size");
    for (key, value) in [
        (&*analyst_size, &*ANALYST_POOL_SIZE.to_string()),
        ("retry.replay", "true"),
        ("slow_log.threshold", "200ms"),
        ("slow_log.explain", "true"),
        ("slow_log.file", &logs.slow),
        ("query_log.file", &logs.query),
        ("log_rules.ledger.application_name", LEDGER),
        ("log_rules.ledger.log", "true"),
        ("metrics.lock_wait_after", "300ms"),
    ] {
        overrides.set("demo", key, value);
    }
}

async fn serve_demo(demo: &Demo, args: &DemoArgs) -> ExitCode {
    let mut overrides = Overrides::new();
    overrides.set("demo", "cluster.primary", &demo.primary_url());
    overrides.set_list("demo", "cluster.replicas", &demo.replica_urls());
    overrides.set("demo", "auth.method", "trust");
    let logs = Logs::of(demo);
    seeing(&mut overrides, &logs);
    overrides.extend(args.overrides());
    let source = Source {
        file: None,
        overrides,
    };
    let parts = match source.read() {
        Ok(parts) => parts,
        Err(error) => return fail(&error),
    };
    telemetry::tracing::init(&parts.config.log);
    match serve_loaded(source, parts, args, &logs).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Serves, with the load on it until the first word to stop: its clients shall not keep the end waiting.
async fn serve_loaded(
    source: Source,
    parts: Parts,
    args: &DemoArgs,
    logs: &Logs,
) -> Result<(), AppError> {
    let load = RefCell::new(None);
    let ready = |addresses: &Addresses| {
        greet(addresses, logs, args.no_load());
        let Some(listen) = addresses.listen.first().filter(|_| !args.no_load()) else {
            return;
        };
        match Load::start(*listen) {
            Ok(started) => *load.borrow_mut() = Some(started),
            Err(error) => tracing::warn!("the demo has no load: {error}"),
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut served = pin!(serve(source, parts, ready));
    let stopping = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        outcome = &mut served => return outcome,
        () = stopping => drop(load.take()),
    }
    served.await
}

fn greet(addresses: &Addresses, logs: &Logs, no_load: bool) {
    let Some(listen) = addresses.listen.first() else {
        return;
    };
    say("");
    if let Some(http) = addresses.http {
        say(&format!("  The live page: http://{http}/"));
    }
    say(&format!(
        "  The exchange:  psql postgres://{USER}@{listen}/{DATABASE}"
    ));
    say(&format!(
        "  The console:   psql postgres://{USER}@{listen}/pgweir"
    ));
    if let Some(http) = addresses.http {
        say(&format!(
            "  HTTP:          http://{http}/ready  http://{http}/metrics"
        ));
    }
    say(&format!("  Slow log:      {}", logs.slow));
    say(&format!("  Query log:     {} (of {LEDGER})", logs.query));
    if !no_load {
        say("\nA small load runs on it, a few per cent of a CPU; --no-load leaves it out.");
    }
    say("\nTry in the exchange:");
    for statement in TRY_THESE {
        say(&format!("  {statement}"));
    }
    say("\nLook in the console:");
    let width = LOOK_AT.iter().map(|(show, _)| show.len()).max();
    let width = width.unwrap_or_default();
    for (show, tells) in LOOK_AT {
        say(&format!("  {show:width$}  -- {tells}"));
    }
    say("\nCtrl-C stops everything and removes it.");
}

#[allow(
    clippy::print_stdout,
    reason = "the demo's job is to tell a person what to do"
)]
fn say(line: &str) {
    println!("{line}");
}
