//! One throw-away PostgreSQL server: made, started, stopped, killed, paused, promoted, gone when dropped.
//!
//! It trusts everyone unless told otherwise, listens on 127.0.0.1 and on a Unix socket in its folder, and does not
//! sync to disk. Its superuser is `postgres`. Everything here blocks: call it from a blocking thread or from a test.
//!
//! # Why
//!
//! - **The port is reserved by a socket that is bound with `SO_REUSEADDR` and never listens.** The kernel gives such a
//!   port to nobody else, yet lets the server bind it (`SO_REUSEADDR` too), so there is no race at the first start and
//!   none at a restart, when a freshly freed port could have become somebody's source port.
//! - **`initdb` runs once in a process** and its result is copied, which is ten times faster. The servers of one
//!   process so share a system identifier.
//! - **Readiness is read in `postmaster.pid`**, as `pg_ctl` does: no connection, no process.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::DemoError;
use super::binaries::binaries;
use super::options::{SCRATCH_SETTINGS, ServerOptions, StopMode};
use super::process::{children, freeze, is_alive, signal};
use super::scratch::{Folder, as_account, give_to_account};
use super::template::{copy_template, initialise, run};

/// The superuser of every server made here.
pub const SUPERUSER: &str = "postgres";

/// Longest wait for a server to start or stop; crash recovery of a scratch server takes a second or two.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// Pause between two looks at a condition that is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl ServerOptions {
    /// A server of its own in a folder of its own, running.
    pub fn start(&self) -> Result<Server, DemoError> {
        let folder = Arc::new(Folder::create(false)?);
        Server::create(&folder, "primary", self)
    }
}

/// A running or stopped server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    name: String,
    folder: Arc<Folder>,
    home: PathBuf,
    port: u16,
    /// Holds the port; see the module's `# Why`.
    _reservation: Socket,
    postmaster: Option<Child>,
}

impl Server {
    /// A server with default settings in a folder of its own, running.
    pub fn start_scratch() -> Result<Self, DemoError> {
        ServerOptions::default().start()
    }

    pub(crate) fn create(
        folder: &Arc<Folder>,
        name: &str,
        options: &ServerOptions,
    ) -> Result<Self, DemoError> {
        let mut server = Self::unmade(folder, name)?;
        if options.own_identity {
            initialise(&server.data(), &server.home)?;
        } else {
            copy_template(&server.data())?;
        }
        for (file, content) in &options.files {
            server.install(file, content)?;
        }
        if let Some(hba) = &options.hba {
            let own = format!("local replication {SUPERUSER} trust\nlocal all {SUPERUSER} trust\n");
            fs::write(server.data().join("pg_hba.conf"), own + hba)?;
        }
        server.configure(&options.settings)?;
        server.start()?;
        Ok(server)
    }

    /// A streaming replica of `primary` with a replication slot of its own, running; not necessarily streaming yet.
    pub(crate) fn replicate(primary: &Self, name: &str) -> Result<Self, DemoError> {
        let mut server = Self::unmade(&primary.folder, name)?;
        let conninfo = primary.conninfo(name);
        run(
            Command::new(binaries()?.join("pg_basebackup"))
                .args(["--checkpoint=fast", "--wal-method=stream", "--no-sync"])
                .args(["--write-recovery-conf", "--create-slot", "--slot", name])
                .args(["--dbname", &conninfo, "--pgdata"])
                .arg(server.data()),
            &server.home,
        )?;
        server.configure(&[])?;
        server.start()?;
        Ok(server)
    }

    fn unmade(folder: &Arc<Folder>, name: &str) -> Result<Self, DemoError> {
        let home = folder.path().join(name);
        fs::create_dir(&home)?;
        give_to_account(&home)?;
        let reservation = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        reservation.set_reuse_address(true)?;
        reservation.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let port = reservation
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("the reserved address has no port"))?
            .port();
        Ok(Self {
            name: name.to_owned(),
            folder: Arc::clone(folder),
            home,
            port,
            _reservation: reservation,
            postmaster: None,
        })
    }

    fn install(&self, name: &str, content: &[u8]) -> Result<(), DemoError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.data().join(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?
            .write_all(content)?;
        Ok(give_to_account(&path)?)
    }

    /// Appends to `postgresql.conf`; of two lines for one setting the last counts.
    fn configure(&self, settings: &[(String, String)]) -> Result<(), DemoError> {
        let mut lines = String::from("\n");
        let mut add = |name: &str, value: &str| {
            lines.extend([name, " = '", &escape_setting(value), "'\n"]);
        };
        for (name, value) in SCRATCH_SETTINGS {
            add(name, value);
        }
        add("port", &self.port.to_string());
        add("cluster_name", &self.name);
        add(
            "unix_socket_directories",
            &self.folder.path().to_string_lossy(),
        );
        for (name, value) in settings {
            add(name, value);
        }
        OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))?
            .write_all(lines.as_bytes())?;
        Ok(())
    }

    /// Its name in the cluster, which is also its `cluster_name` and, on a replica, its `application_name` and slot.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `postgres://127.0.0.1:PORT`, for `--primary` and `--replica`, without user or database.
    pub fn node_url(&self) -> String {
        format!("postgres://{}", self.address())
    }

    /// A DSN for `user` and `database`.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@{}/{database}", self.address())
    }

    /// The folder of its Unix socket `.s.PGSQL.PORT`.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where it logs.
    pub fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Its log so far; what is not UTF-8 is replaced.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// How a replica or another program reaches it over the Unix socket, as superuser.
    fn conninfo(&self, application_name: &str) -> String {
        format!(
            "host='{}' port={} user={SUPERUSER} application_name={application_name}",
            escape_setting(&self.folder.path().to_string_lossy()),
            self.port,
        )
    }

    /// Whether the postmaster runs; a paused one does.
    pub fn is_running(&mut self) -> bool {
        match &mut self.postmaster {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// Starts it and waits until it accepts connections. A server that runs is left as it is.
    pub fn start(&mut self) -> Result<(), DemoError> {
        if self.is_running() {
            return Ok(());
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = Command::new(binaries()?.join("postgres"));
        as_account(&mut command, &self.home)
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us: the server must live until its last client was told goodbye.
            .process_group(0);
        let child = command.spawn()?;
        let pid = child.id();
        self.postmaster = Some(child);
        let pidfile = self.data().join("postmaster.pid");
        self.await_change("start", |server| {
            if let Some(status) = server.exit_status()? {
                server.postmaster = None;
                return Err(server.failed("start", &status.to_string()));
            }
            Ok(fs::read_to_string(&pidfile).is_ok_and(|file| is_ready(&file, pid)))
        })
    }

    /// Stops it and waits until it is gone. A paused server is continued first.
    pub fn stop(&mut self, mode: StopMode) -> Result<(), DemoError> {
        if !self.is_running() {
            return Ok(());
        }
        self.cont()?;
        self.signal(mode.signal())?;
        self.await_change("stop", |server| Ok(server.exit_status()?.is_some()))?;
        self.postmaster = None;
        Ok(())
    }

    /// `stop` and `start`; it keeps its port.
    pub fn restart(&mut self, mode: StopMode) -> Result<(), DemoError> {
        self.stop(mode)?;
        self.start()
    }

    /// Kills every process of it at once, as a crash of its machine would; what is left needs recovery.
    pub fn kill9(&mut self) -> Result<(), DemoError> {
        let Some(mut child) = self.postmaster.take() else {
            return Ok(());
        };
        let mut all = freeze(child.id())?;
        all.push(child.id());
        signal("KILL", &all)?;
        child.wait()?;
        self.await_change("die", |_| Ok(!all.iter().any(|pid| is_alive(*pid))))
    }

    /// Stops every process of it with SIGSTOP: connections stay open, nothing is answered.
    pub fn pause(&mut self) -> Result<(), DemoError> {
        if let Some(child) = &self.postmaster {
            let children = freeze(child.id())?;
            signal("STOP", &children)?;
        }
        Ok(())
    }

    /// Undoes `pause`.
    pub fn cont(&mut self) -> Result<(), DemoError> {
        if let Some(child) = &self.postmaster {
            signal("CONT", &children(child.id()))?;
            signal("CONT", &[child.id()])?;
        }
        Ok(())
    }

    /// Makes a replica a primary and waits until it is one.
    ///
    /// `pg_promote` is not told to wait: its snapshot would stand in the way of what is still to be replayed (recovery
    /// conflicts), and the two would wait for each other for `max_standby_streaming_delay`.
    pub fn promote(&self) -> Result<(), DemoError> {
        self.sql("postgres", "SELECT pg_promote(false)")?;
        let deadline = Instant::now() + CHANGE_LIMIT;
        while self.sql("postgres", "SELECT pg_is_in_recovery()")? == "t" {
            if Instant::now() > deadline {
                return Err(self.failed("promote", "it is still in recovery after 60 s"));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Makes a replica stream from `primary`, for which it gets a slot there, as the others must after a promotion.
    pub fn follow(&self, primary: &Self) -> Result<(), DemoError> {
        primary.sql(
            "postgres",
            &format!(
                "SELECT pg_create_physical_replication_slot('{0}') WHERE NOT EXISTS \
                 (SELECT FROM pg_replication_slots WHERE slot_name = '{0}')",
                self.name
            ),
        )?;
        self.set("primary_conninfo", &primary.conninfo(&self.name))?;
        self.set("primary_slot_name", &self.name)
    }

    /// `ALTER SYSTEM SET` and reload; a setting that needs a restart waits for one.
    pub fn set(&self, name: &str, value: &str) -> Result<(), DemoError> {
        let value = value.replace('\'', "''");
        // ALTER SYSTEM refuses to run in the transaction block that two statements in one string are.
        self.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
        self.sql("postgres", "SELECT pg_reload_conf()").map(drop)
    }

    /// Runs `sql` as superuser with psql over the Unix socket and returns what it prints: a line for each row, values
    /// parted by `|`, no headings. The first error ends it. A script may hold many statements, COPY data included.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, DemoError> {
        let mut command = Command::new(binaries()?.join("psql"));
        as_account(&mut command, &self.home)
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d"])
            .arg(format!(
                "{} dbname='{}'",
                self.conninfo("pgweir-scratch"),
                escape_setting(database)
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // An early end of psql is seen in its exit status, so a broken pipe says nothing new.
                let _ = stdin.as_mut().map(|pipe| pipe.write_all(sql.as_bytes()));
                drop(stdin);
            });
            child.wait_with_output()
        })?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(self.failed("run a statement", errors.trim()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.trim_end_matches('\n').to_owned())
    }

    fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.postmaster {
            Some(child) => child.try_wait(),
            None => Ok(None),
        }
    }

    fn signal(&self, name: &str) -> Result<(), DemoError> {
        match &self.postmaster {
            Some(child) => signal(name, &[child.id()]),
            None => Ok(()),
        }
    }

    fn await_change(
        &mut self,
        change: &'static str,
        mut done: impl FnMut(&mut Self) -> Result<bool, DemoError>,
    ) -> Result<(), DemoError> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        while !done(self)? {
            if Instant::now() > deadline {
                let waited = format!("it did not within {} s", CHANGE_LIMIT.as_secs());
                return Err(self.failed(change, &waited));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// The error for a failed `action`, with the end of the server's log.
    fn failed(&self, action: &'static str, reason: &str) -> DemoError {
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(10).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        DemoError::Server {
            server: self.name.clone(),
            action,
            reason: reason.to_owned(),
            log: tail.join("\n"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = self.stop(StopMode::Immediate).is_ok();
        if !stopped && let Some(mut child) = self.postmaster.take() {
            // Nobody is left to be told, and its guardian removes the folder in any case.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Backslashes and quotes are doubled in both `postgresql.conf` and a connection string.
fn escape_setting(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

/// Whether this `postmaster.pid` is of process `pid` and says that connections are accepted (its eighth line, after
/// pid, data folder, start time, port, socket folder, address and shared memory key).
fn is_ready(pidfile: &str, pid: u32) -> bool {
    let mut lines = pidfile.lines();
    let same = lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid);
    let status = lines.nth(6).unwrap_or_default().trim();
    same && matches!(status, "ready" | "standby")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfile_is_ready_only_with_its_own_pid_and_status() {
        let file = "42\n/d\n1700000000\n5555\n/s\n127.0.0.1\n  123 456\nready   \n";
        assert!(is_ready(file, 42));
        assert!(!is_ready(file, 43));
        assert!(!is_ready(&file.replace("ready   ", "starting"), 42));
        assert!(!is_ready("42\n/d\n", 42));
        assert!(!is_ready("", 42));
    }

    #[test]
    fn values_of_settings_are_quoted() {
        assert_eq!(escape_setting(r"it's a \ path"), r"it''s a \\ path");
    }
}
