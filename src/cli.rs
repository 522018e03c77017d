//! The command line, a contract that others rely on (`pgweir --help`), and the commands that only print.
//!
//! Flags and their `PGWEIR_*` variables become [`Overrides`]; nothing is checked here, so that a wrong flag is
//! reported together with everything else that is wrong. A flag wins over its variable, which wins over the file.
//!
//! # Why
//! The variables are read here and not by clap: its help would show their values, and a URL may hold a password; and
//! a problem should name the variable it came from.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Overrides, import};

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A PostgreSQL pooling proxy.
#[derive(Debug, Parser)]
#[command(name = "pgweir", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients
    Run(RunArgs),
    /// Check a configuration; print every problem with its place
    Check(RunArgs),
    /// Make a scratch PostgreSQL cluster with sample data and serve it
    Demo(DemoArgs),
    /// Print the TOML that does what a pgbouncer.ini does
    Import(ImportArgs),
    /// Print the configuration reference
    #[command(hide = true)]
    Reference,
}

/// What to serve. Every flag is also a variable: `PGWEIR_` and its name.
#[derive(Args, Clone, Default)]
pub struct RunArgs {
    #[arg(
        long,
        value_name = "FILE",
        help = "Configuration file [env: PGWEIR_CONFIG]"
    )]
    pub config: Option<PathBuf>,
    #[arg(
        long,
        value_name = "URL",
        help = "URL of the primary: postgres://HOST:PORT [env: PGWEIR_PRIMARY]"
    )]
    pub primary: Option<String>,
    #[arg(
        long,
        value_name = "URL",
        help = "URL of a replica; may be repeated [env: PGWEIR_REPLICA, separated by commas]"
    )]
    pub replica: Vec<String>,
    #[command(flatten)]
    pub listeners: ListenArgs,
    #[arg(
        long,
        value_name = "N",
        help = "Server connections per user and database [env: PGWEIR_POOL_SIZE]"
    )]
    pub pool_size: Option<String>,
    #[arg(
        long,
        value_name = "METHOD",
        help = "How clients prove who they are: passthrough, trust, scram, md5, cert, peer, hba [env: PGWEIR_AUTH]"
    )]
    pub auth: Option<String>,
    #[command(flatten)]
    pub settings: SetArgs,
}

#[derive(Args, Clone)]
pub struct DemoArgs {
    #[arg(
        long,
        help = "Keep the scratch cluster when pgweir ends [env: PGWEIR_KEEP]"
    )]
    keep: bool,
    #[arg(
        long,
        help = "Serve the sample without a load on it [env: PGWEIR_NO_LOAD]"
    )]
    no_load: bool,
    #[command(flatten)]
    pub listeners: ListenArgs,
    #[command(flatten)]
    pub settings: SetArgs,
}

#[derive(Args, Clone, Default)]
pub struct ListenArgs {
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Address for clients, HOST:PORT; may be repeated [env: PGWEIR_LISTEN, separated by commas]"
    )]
    pub listen: Vec<String>,
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Address for metrics and health, IP:PORT, or off [env: PGWEIR_HTTP]"
    )]
    pub http: Option<String>,
}

#[derive(Args, Clone, Default)]
pub struct SetArgs {
    #[arg(
        long,
        value_name = "KEY=VALUE",
        help = "Any configuration key by its dotted path; may be repeated [env: PGWEIR_SET, separated by commas or lines]"
    )]
    pub set: Vec<String>,
}

#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The pgbouncer.ini
    pub file: PathBuf,
}

/// Values may be URLs with passwords.
macro_rules! debug_without_values {
    ($($name:ident),+) => {
        $(
            impl std::fmt::Debug for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.debug_struct(stringify!($name)).finish_non_exhaustive()
                }
            }
        )+
    };
}

debug_without_values!(RunArgs, DemoArgs);

impl RunArgs {
    /// The configuration file, by flag or environment.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.config_file_from(&config::environment)
    }

    /// What flags and environment say over the file.
    pub fn overrides(&self) -> Overrides {
        self.overrides_from(&config::environment)
    }

    fn config_file_from(&self, env: Env<'_>) -> Option<PathBuf> {
        let variable = || variable("PGWEIR_CONFIG", env).map(PathBuf::from);
        self.config.clone().or_else(variable)
    }

    fn overrides_from(&self, env: Env<'_>) -> Overrides {
        let mut out = Overrides::new();
        set_one(
            &mut out,
            "PGWEIR_PRIMARY",
            "cluster.primary",
            variable("PGWEIR_PRIMARY", env),
        );
        set_many(
            &mut out,
            "PGWEIR_REPLICA",
            "cluster.replicas",
            &variables("PGWEIR_REPLICA", env),
        );
        set_one(
            &mut out,
            "PGWEIR_POOL_SIZE",
            "pool.max_size",
            variable("PGWEIR_POOL_SIZE", env),
        );
        set_one(
            &mut out,
            "PGWEIR_AUTH",
            "auth.method",
            variable("PGWEIR_AUTH", env),
        );
        shared_variables(&mut out, env);
        set_one(
            &mut out,
            "--primary",
            "cluster.primary",
            self.primary.clone(),
        );
        set_many(&mut out, "--replica", "cluster.replicas", &self.replica);
        set_one(
            &mut out,
            "--pool-size",
            "pool.max_size",
            self.pool_size.clone(),
        );
        set_one(&mut out, "--auth", "auth.method", self.auth.clone());
        shared_flags(&mut out, &self.listeners, &self.settings);
        out
    }
}

impl DemoArgs {
    /// Whether the scratch cluster stays when pgweir ends.
    pub fn keep(&self) -> bool {
        self.keep || is_set("PGWEIR_KEEP")
    }

    /// Whether the sample is served without a load on it.
    pub fn no_load(&self) -> bool {
        self.no_load || is_set("PGWEIR_NO_LOAD")
    }

    /// What flags and environment say over the demo's own settings.
    pub fn overrides(&self) -> Overrides {
        let mut out = Overrides::new();
        shared_variables(&mut out, &config::environment);
        shared_flags(&mut out, &self.listeners, &self.settings);
        out
    }
}

fn shared_variables(out: &mut Overrides, env: Env<'_>) {
    set_many(
        out,
        "PGWEIR_LISTEN",
        "general.listen",
        &variables("PGWEIR_LISTEN", env),
    );
    set_one(
        out,
        "PGWEIR_HTTP",
        "general.http",
        variable("PGWEIR_HTTP", env),
    );
    for setting in split_settings(&variable("PGWEIR_SET", env).unwrap_or_default()) {
        out.set_pair("PGWEIR_SET", &setting);
    }
}

fn shared_flags(out: &mut Overrides, listeners: &ListenArgs, settings: &SetArgs) {
    set_many(out, "--listen", "general.listen", &listeners.listen);
    set_one(out, "--http", "general.http", listeners.http.clone());
    for setting in &settings.set {
        let source = match setting.split_once('=') {
            Some((key, _)) => format!("--set {}", key.trim()),
            None => "--set".to_owned(),
        };
        out.set_pair(&source, setting);
    }
}

fn set_one(out: &mut Overrides, source: &str, key: &str, value: Option<String>) {
    if let Some(value) = value {
        out.set(source, key, &value);
    }
}

fn set_many(out: &mut Overrides, source: &str, key: &str, values: &[String]) {
    if !values.is_empty() {
        out.set_list(source, key, values);
    }
}

/// An empty variable counts as one that is not set, which is how orchestrators leave them out.
fn variable(name: &str, env: Env<'_>) -> Option<String> {
    env(name).filter(|value| !value.trim().is_empty())
}

fn is_set(name: &str) -> bool {
    variable(name, &config::environment).is_some_and(|word| is_true(&word))
}

fn variables(name: &str, env: Env<'_>) -> Vec<String> {
    let value = variable(name, env).unwrap_or_default();
    let words = value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

fn is_true(word: &str) -> bool {
    matches!(
        word.trim().to_ascii_lowercase().as_str(),
        "1" | "true" | "yes" | "on"
    )
}

/// The settings of a text: one a line, or several with commas between them that are in no list and no quotes.
fn split_settings(text: &str) -> Vec<String> {
    let mut settings = Vec::new();
    for line in text.lines() {
        let (mut start, mut depth, mut quoted) = (0, 0_i32, false);
        for (at, c) in line.char_indices() {
            match c {
                '"' => quoted = !quoted,
                '[' if !quoted => depth += 1,
                ']' if !quoted => depth -= 1,
                ',' if !quoted && depth <= 0 => {
                    settings.push(&line[start..at]);
                    start = at + 1;
                }
                _ => {}
            }
        }
        settings.push(&line[start..]);
    }
    let settings = settings.into_iter().map(str::trim);
    settings
        .filter(|setting| !setting.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `pgweir check`: all problems to standard error, or that there are none to standard output.
#[expect(clippy::print_stdout, reason = "printing is what this command does")]
pub fn check(args: &RunArgs) -> ExitCode {
    match config::load(
        args.config_file().as_deref(),
        &args.overrides(),
        &config::environment,
    ) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            println!("configuration is valid");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::FAILURE
        }
    }
}

/// `pgweir import`: the TOML to standard output, what it could not carry over also to standard error.
#[expect(clippy::print_stdout, reason = "printing is what this command does")]
pub fn import(args: &ImportArgs) -> ExitCode {
    match import::import(&args.file) {
        Ok(imported) => {
            for note in &imported.notes {
                eprintln!("{note}");
            }
            print!("{}", imported.toml);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// `pgweir reference`: the text of `config/reference.md`.
#[expect(clippy::print_stdout, reason = "printing is what this command does")]
pub fn reference() -> ExitCode {
    print!("{}", config::reference::render());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::AuthMethod;

    fn run_args(words: &[&str]) -> RunArgs {
        let words = ["pgweir", "run"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_reaches_its_key() {
        let args = run_args(&[
            "--primary",
            "postgres://db1:1",
            "--replica",
            "postgres://db2:2",
            "--replica",
            "postgres://db3:3",
            "--listen",
            "127.0.0.1:7000",
            "--http",
            "off",
            "--pool-size",
            "7",
            "--auth",
            "trust",
            "--set",
            "databases.app.max_size=5",
            "--set",
            "databases.app.dbname=123",
            "--set",
            "general.admin_users=[\"a\", \"b\"]",
        ]);
        let overrides = args.overrides_from(&|_| None);
        let config = config::load(None, &overrides, &|_| None).unwrap().config;
        assert_eq!(config.cluster.primary.unwrap().host, "db1");
        let replicas: Vec<String> = config
            .cluster
            .replicas
            .into_iter()
            .map(|node| node.host)
            .collect();
        assert_eq!(replicas, ["db2", "db3"]);
        assert_eq!(config.general.listen, ["127.0.0.1:7000"]);
        assert_eq!(config.general.http, None);
        assert_eq!(config.general.admin_users, ["a", "b"]);
        assert_eq!(config.pool.max_size, 7);
        assert_eq!(config.auth.method, AuthMethod::Trust);
        assert_eq!(config.databases["app"].pool.max_size, 5);
        assert_eq!(config.databases["app"].dbname.as_deref(), Some("123"));
    }

    #[test]
    fn every_variable_reaches_its_key_and_a_flag_wins_over_it() {
        let env = |name: &str| {
            let value = match name {
                "PGWEIR_CONFIG" => "/etc/pgweir.toml",
                "PGWEIR_PRIMARY" => "postgres://db1",
                "PGWEIR_REPLICA" => "postgres://db2, postgres://db3",
                "PGWEIR_LISTEN" => "127.0.0.1:7000,127.0.0.1:7001",
                "PGWEIR_HTTP" => "127.0.0.1:7002",
                "PGWEIR_POOL_SIZE" => "7",
                "PGWEIR_AUTH" => "trust",
                "PGWEIR_SET" => {
                    "general.admin_users=[\"a\",\"b\"],pool.min_idle=2\nlog.level=debug"
                }
                _ => return None,
            };
            Some(value.to_owned())
        };
        let args = run_args(&["--pool-size", "8", "--set", "log.level=warn"]);
        assert_eq!(
            args.config_file_from(&env),
            Some(PathBuf::from("/etc/pgweir.toml"))
        );
        let config = config::load(None, &args.overrides_from(&env), &env)
            .unwrap()
            .config;
        assert_eq!(config.cluster.primary.unwrap().host, "db1");
        assert_eq!(config.cluster.replicas.len(), 2);
        assert_eq!(config.general.listen, ["127.0.0.1:7000", "127.0.0.1:7001"]);
        assert_eq!(config.general.http, Some(([127, 0, 0, 1], 7002).into()));
        assert_eq!(config.general.admin_users, ["a", "b"]);
        assert_eq!(config.pool.max_size, 8);
        assert_eq!(config.pool.min_idle, 2);
        assert_eq!(config.auth.method, AuthMethod::Trust);
        assert_eq!(config.log.level, "warn");
    }

    #[test]
    fn a_problem_names_the_flag_or_variable_it_came_from() {
        let env = |name: &str| match name {
            "PGWEIR_SET" => Some("pool.reserve_size=many".to_owned()),
            "PGWEIR_HTTP" => Some("here".to_owned()),
            _ => None,
        };
        let args = run_args(&[
            "--primary",
            "postgres://u:hunter2@",
            "--pool-size",
            "0",
            "--set",
            "pool.max_sise=5",
            "--set",
            "timeouts.query_timeout=30",
            "--set",
            "nonsense",
            "--set",
            "pool=x",
        ]);
        let problems = config::load(None, &args.overrides_from(&env), &env).unwrap_err();
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "--primary: cluster.primary: has no host",
                "--set: expected KEY=VALUE, such as pool.max_size=5",
                "--set pool: expected a table [pool], got a string",
                "--set timeouts.query_timeout: a duration needs a unit: write \"30s\" or \"30ms\"",
                "PGWEIR_HTTP: general.http: expected IP:PORT, such as \"127.0.0.1:9930\", or \"off\"",
            ]
        );
    }

    #[test]
    fn the_debug_output_of_arguments_shows_no_password() {
        let args = run_args(&["--primary", "postgres://u:hunter2@db1"]);
        assert!(!format!("{args:?}").contains("hunter2"));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for words in [
            &["pgweir", "check", "--config", "x.toml", "--set", "a=b"][..],
            &[
                "pgweir",
                "demo",
                "--keep",
                "--no-load",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "off",
            ],
            &["pgweir", "import", "pgbouncer.ini"],
            &["pgweir", "reference"],
        ] {
            assert!(Cli::try_parse_from(words).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn settings_are_split_at_commas_outside_lists_and_quotes() {
        let rows: [(&str, &[&str]); 4] = [
            ("", &[]),
            ("a=1, b=2\n c=3 ,", &["a=1", "b=2", "c=3"]),
            ("a=[1,2],b=\"x,y\"", &["a=[1,2]", "b=\"x,y\""]),
            ("a=]x,b=\"y,z", &["a=]x", "b=\"y,z"]),
        ];
        for (text, expected) in rows {
            assert_eq!(split_settings(text), expected, "{text}");
        }
    }
}
