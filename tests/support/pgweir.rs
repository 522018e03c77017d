//! The built `pgweir` binary, run as a user would run it.
//!
//! It listens on ports of its own choice, which it logs as `listening on ADDRESS` and `http listening on ADDRESS`. Its
//! log is kept; a panic in it fails the test when the process is dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, Guardian, Server};
use tempfile::TempDir;

use super::client::{Client, Login};
use super::scripted_backend::ScriptedBackend;
use super::wait::{LIMIT, wait_for, wait_until};

/// The program: the one that PGWEIR_TESTED names, such as a release, or the one that was built with the tests.
pub fn binary() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_pgweir");
    std::env::var_os("PGWEIR_TESTED").map_or_else(|| built.into(), PathBuf::from)
}

/// How to run it. Nothing is checked here: an invalid setting is the binary's to refuse.
#[derive(Clone, Debug, Default)]
pub struct Options {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    config: Option<String>,
    /// A command and its arguments that run what stands behind them.
    wrapper: Vec<String>,
}

impl Options {
    /// In front of one server, trusting its clients.
    pub fn new(primary: &Server) -> Self {
        Self::in_front_of(&primary.node_url())
    }

    /// In front of a primary and its replicas, trusting its clients.
    pub fn cluster(cluster: &Cluster) -> Self {
        let replicas = cluster.replicas.iter();
        replicas.fold(Self::new(&cluster.primary), |options, replica| {
            options.flag("--replica", &replica.node_url())
        })
    }

    /// In front of whatever answers at `url`, trusting its clients.
    pub fn in_front_of(url: &str) -> Self {
        Self::default()
            .flag("--primary", url)
            .flag("--listen", "127.0.0.1:0")
            .flag("--http", "127.0.0.1:0")
            .flag("--auth", "trust")
    }

    /// In front of a scripted backend, which is asked nothing but what its script is about.
    pub fn in_front_of_script(backend: &ScriptedBackend) -> Self {
        Self::in_front_of(&backend.node_url()).set("pool.hidden_state", "false")
    }

    /// With a configuration file, which should listen on port 0.
    pub fn config(text: &str) -> Self {
        Self {
            config: Some(text.to_owned()),
            ..Self::default()
        }
    }

    /// A flag and its value; the last of several wins, save `--replica` and `--set`.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        let repeats = matches!(name, "--replica" | "--set");
        let known = self.arguments.iter().position(|argument| argument == name);
        if let (Some(place), false) = (known, repeats) {
            value.clone_into(&mut self.arguments[place + 1]);
        } else {
            self.arguments.extend([name.to_owned(), value.to_owned()]);
        }
        self
    }

    /// A configuration key by its dotted path.
    #[must_use]
    pub fn set(self, key: &str, value: &str) -> Self {
        self.flag("--set", &format!("{key}={value}"))
    }

    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has it find `file` in the place of `/etc/hosts`. False if this machine does not let a process have files of its own.
    pub fn with_hosts(mut self, file: &Path) -> Option<Self> {
        let ways: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-Urm"]];
        let mount = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
        for way in ways {
            let mut words: Vec<String> = way.iter().map(|word| (*word).to_owned()).collect();
            let path = file.to_str().expect("a path in UTF-8");
            words.extend(["sh", "-c", mount, "sh", path].map(str::to_owned));
            let tried = Command::new(&words[0])
                .args(&words[1..])
                .arg("true")
                .stderr(Stdio::null())
                .status();
            if tried.is_ok_and(|status| status.success()) {
                self.wrapper = words;
                return Some(self);
            }
        }
        None
    }

    /// Starts it and waits until `/ready` answers 200.
    #[track_caller]
    pub fn start(&self) -> Pgweir {
        let mut pgweir = self.start_without_waiting();
        wait_until("pgweir to be ready", || {
            pgweir.fail_if_ended();
            pgweir
                .http_get("/ready")
                .is_some_and(|reply| reply.starts_with("HTTP/1.1 200"))
        });
        pgweir
    }

    /// Starts it and waits until it listens, for those that `/ready` can't be read of.
    #[track_caller]
    pub fn start_without_waiting(&self) -> Pgweir {
        let mut pgweir = self.spawn();
        pgweir.address = pgweir.logged_address("listening on ");
        pgweir.http = pgweir.logged_address("http listening on ");
        pgweir
    }

    /// Runs it to its end, which must come by itself, and returns status, stdout and stderr.
    pub fn run_to_end(&self) -> (ExitStatus, String, String) {
        let mut pgweir = self.spawn();
        let status = pgweir.wait();
        let stdout = fs::read_to_string(pgweir.folder.path().join("stdout")).unwrap();
        (status, stdout, pgweir.log())
    }

    #[track_caller]
    fn spawn(&self) -> Pgweir {
        let folder = TempDir::new().unwrap();
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let binary = binary();
        let words = self.wrapper.iter().map(OsStr::new);
        let mut words = words.chain([binary.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or(binary.as_os_str()));
        command.args(words);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PGWEIR_") {
                command.env_remove(name);
            }
        }
        command
            .arg("run")
            .args(&self.arguments)
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"));
        if let Some(config) = &self.config {
            let path = folder.path().join("pgweir.toml");
            fs::write(&path, config).unwrap();
            command.arg("--config").arg(path);
        }
        let child = command.spawn().expect("the pgweir binary");
        let guardian = Guardian::of_process(child.id()).unwrap();
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        Pgweir {
            address: unknown,
            http: unknown,
            folder,
            child,
            guardian: Some(guardian),
            ended: None,
        }
    }
}

/// A pgweir process. Dropping it kills it.
#[derive(Debug)]
pub struct Pgweir {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where `/metrics`, `/live` and `/ready` are.
    pub http: SocketAddr,
    folder: TempDir,
    child: Child,
    /// Kills the process if this one is killed.
    guardian: Option<Guardian>,
    ended: Option<ExitStatus>,
}

impl Pgweir {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A DSN through it.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@{}/{database}", self.address)
    }

    /// A logged-in client of database `postgres`, as its superuser.
    pub async fn client(&self) -> Client {
        Client::connect(self.address, "postgres", "postgres").await
    }

    /// A client of the admin console.
    pub async fn console(&self) -> Client {
        Client::connect(self.address, "postgres", "pgweir").await
    }

    /// A client with a login of its own.
    pub async fn client_as(&self, login: &Login) -> Client {
        let client = Client::connect_as(self.address, login).await;
        client.unwrap_or_else(|error| panic!("login refused: {error:?}"))
    }

    /// Its configuration and what it has said.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration file, for tests that rewrite it and reload.
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("pgweir.toml")
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("stderr")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        read_log(&self.log_path())
    }

    pub fn log_contains(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.log_contains(text));
    }

    /// A response as it came, head and body; `None` if nobody answered.
    pub fn http_get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.http, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        Some(response)
    }

    /// The value of a series in `/metrics`, given as it is printed there, labels included.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let metrics = self.http_get("/metrics").expect("an answer to /metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse().ok()
    }

    /// Sends a signal by its name: `TERM`, `HUP`, `INT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name])
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "could not signal pgweir");
    }

    /// SIGHUP; what it did is in the log.
    pub fn reload(&self) {
        self.signal("HUP");
    }

    /// SIGTERM, then its exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("pgweir to end", || self.try_wait())
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
            if self.ended.is_some() {
                // Its number may become another process's from now on.
                self.dismiss_guardian();
            }
        }
        self.ended
    }

    fn dismiss_guardian(&mut self) {
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
    }

    #[track_caller]
    fn fail_if_ended(&mut self) {
        if let Some(status) = self.try_wait() {
            panic!("pgweir ended with {status}:\n{}", self.log());
        }
    }

    #[track_caller]
    fn logged_address(&mut self, prefix: &str) -> SocketAddr {
        wait_for("pgweir to log its addresses", || {
            self.fail_if_ended();
            self.log()
                .lines()
                .find_map(|line| address_after(line, prefix))
        })
    }
}

/// The address after `prefix` in a log line, whatever stands before it, unless that is one more word of another prefix.
fn address_after(line: &str, prefix: &str) -> Option<SocketAddr> {
    let (before, after) = line.split_once(prefix)?;
    if before.trim_end().ends_with("http") {
        return None;
    }
    after.split_whitespace().next()?.parse().ok()
}

fn read_log(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Drop for Pgweir {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            // It may end at this very moment, which is as good.
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.dismiss_guardian();
        }
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            eprintln!("the end of pgweir's log:\n{}", tail.join("\n"));
        } else {
            assert!(!log.contains("panicked at"), "pgweir panicked:\n{log}");
        }
    }
}

/// Runs the binary with other arguments than `run`, such as `check`, to its end: status, stdout, stderr.
pub fn command(arguments: &[&str]) -> (ExitStatus, String, String) {
    let output = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

/// A moment in which nothing should happen, for the rare test of an absence. Prefer a condition.
pub const SILENCE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listener_has_its_line() {
        let client = "2025-01-01T00:00:00Z  INFO pgweir::server: listening on 127.0.0.1:6432";
        let http = "2025-01-01T00:00:00Z  INFO pgweir::http: http listening on 127.0.0.1:9930";
        let port = |line, prefix| address_after(line, prefix).map(|address| address.port());
        assert_eq!(port(client, "listening on "), Some(6432));
        assert_eq!(port(client, "http listening on "), None);
        assert_eq!(port(http, "listening on "), None);
        assert_eq!(port(http, "http listening on "), Some(9930));
    }

    #[test]
    fn a_flag_given_twice_counts_once_unless_it_may_repeat() {
        let options = Options::in_front_of("postgres://127.0.0.1:1")
            .flag("--auth", "scram")
            .set("a", "1")
            .set("b", "2");
        let count = |name: &str| {
            options
                .arguments
                .iter()
                .filter(|argument| *argument == name)
                .count()
        };
        assert_eq!((count("--auth"), count("--set")), (1, 2));
    }
}
