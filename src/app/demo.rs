//! `pgweir demo`: serves a scratch cluster and says what to try.

use std::process::ExitCode;

use super::{Addresses, fail, runtime, serve};
use crate::cli::DemoArgs;
use crate::config::Overrides;
use crate::demo::{self, DATABASE, Demo, Options, TRY_THESE, USER};
use crate::reload::Source;
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

async fn serve_demo(demo: &Demo, args: &DemoArgs) -> ExitCode {
    let mut overrides = Overrides::new();
    overrides.set("demo", "cluster.primary", &demo.primary_url());
    overrides.set_list("demo", "cluster.replicas", &demo.replica_urls());
    overrides.set("demo", "auth.method", "trust");
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
    match serve(source, parts, greet).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn greet(addresses: &Addresses) {
    let Some(listen) = addresses.listen.first() else {
        return;
    };
    say("");
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
    say("\nTry:");
    for statement in TRY_THESE {
        say(&format!("  {statement}"));
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
