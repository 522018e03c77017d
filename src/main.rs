//! The `pgweir` binary: parse arguments, run, exit.

use std::process::ExitCode;

use clap::Parser;
use pgweir::app;
use pgweir::cli::{self, Cli, Command};
use pgweir::reload::Source;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => app::run(Source {
            file: args.config_file(),
            overrides: args.overrides(),
        }),
        Command::Check(args) => cli::check(&args),
        Command::Demo(args) => app::demo::run(&args),
        Command::Import(args) => cli::import(&args),
        Command::Reference => cli::reference(),
    }
}
