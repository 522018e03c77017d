//! The console's tables beside those of a real PgBouncer: the same columns, of the same types, in the same order.
//!
//! `tests/golden/pgbouncer_columns.txt` is what PgBouncer 1.24.1 says. Where there is a PgBouncer (`make bouncer`), it is
//! asked again; `PGWEIR_GOLDEN=write` writes what it says into the file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages;
use crate::support::pgweir::Options;
use crate::support::wait::eventually;

/// Every SHOW of PgBouncer that answers with a table and means something in pgweir.
const SHOWS: [&str; 22] = [
    "ACTIVE_SOCKETS",
    "CLIENTS",
    "CONFIG",
    "DATABASES",
    "DNS_HOSTS",
    "DNS_ZONES",
    "LISTS",
    "MEM",
    "PEERS",
    "PEER_POOLS",
    "POOLS",
    "SERVERS",
    "SOCKETS",
    "STATE",
    "STATS",
    "STATS_AVERAGES",
    "STATS_TOTALS",
    "TOTALS",
    "USERS",
    "VERSION",
    "TIMEZONE",
    "DATESTYLE",
];

/// Columns that pgweir has and PgBouncer 1.24 has not: old names that Debian's prometheus-pgbouncer-exporter reads.
const EXTRA: [(&str, &str); 2] = [
    ("DATABASES", "reserve_pool:23"),
    ("STATS", "total_requests:1700"),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pgbouncer_columns.txt")
}

/// Names and types (as OIDs) of the columns a SHOW answers with.
async fn columns(console: &mut Client, show: &str) -> Vec<String> {
    let query = messages::query(&format!("SHOW {show}"));
    console.send(&query).await;
    let mut columns = Vec::new();
    loop {
        let message = console.message().await;
        match message.tag {
            b'T' => columns = described(&message.body),
            b'E' => panic!("SHOW {show}: {message:?}"),
            b'Z' => return columns,
            _ => {}
        }
    }
}

/// The columns of a RowDescription.
fn described(body: &[u8]) -> Vec<String> {
    let mut columns = Vec::new();
    let mut rest = &body[2..];
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        // Table and number of the column, then its type; size, modifier and format are behind it.
        let kind = u32::from_be_bytes(rest[end + 7..end + 11].try_into().unwrap());
        columns.push(format!("{name}:{kind}"));
        rest = &rest[end + 19..];
    }
    columns
}

async fn tables(console: &mut Client) -> BTreeMap<String, Vec<String>> {
    let mut tables = BTreeMap::new();
    for show in SHOWS {
        tables.insert(show.to_owned(), columns(console, show).await);
    }
    tables
}

fn read(text: &str) -> BTreeMap<String, Vec<String>> {
    let line = |line: &str| {
        let (show, columns) = line.split_once(' ').unwrap();
        let columns = columns.split(' ').map(str::to_owned).collect();
        (show.to_owned(), columns)
    };
    text.lines().map(line).collect()
}

fn write(tables: &BTreeMap<String, Vec<String>>) -> String {
    let lines = tables
        .iter()
        .map(|(show, columns)| format!("{show} {}\n", columns.join(" ")));
    lines.collect()
}

/// A PgBouncer in front of the tests' server; ends when dropped.
struct PgBouncer {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The PgBouncer that `make bouncer` has made, or the one that `PGBOUNCER` names.
fn program() -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pgbouncer/pgbouncer");
    let named = std::env::var_os("PGBOUNCER").map(PathBuf::from);
    named.or(Some(made)).filter(|path| path.is_file())
}

impl PgBouncer {
    fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; PgBouncer can't choose one itself.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let server = shared::server().address();
        let ini = format!(
            "[databases]\npostgres = host={} port={} dbname=postgres user=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {}\nauth_type = any\nadmin_users = postgres\n\
             pool_mode = transaction\nunix_socket_dir =\n",
            server.ip(),
            server.port(),
            address.port()
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, ini).unwrap();
        let mut command = Command::new(program);
        // It does not run as root.
        if rustix::process::getuid().is_root() {
            use std::os::unix::fs::PermissionsExt as _;
            let readable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(folder.path(), readable).unwrap();
            command.args(["-u", "postgres"]);
        }
        let process = command
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            address,
            _folder: folder,
        }
    }

    async fn console(&self) -> Client {
        eventually("PgBouncer to listen", async || {
            tokio::net::TcpStream::connect(self.address).await.is_ok()
        })
        .await;
        let login = Login::new("postgres", "pgbouncer");
        Client::connect_as(self.address, &login).await.unwrap()
    }
}

#[tokio::test]
async fn columns_are_those_of_a_real_pgbouncer() {
    let Some(program) = program() else {
        eprintln!("skipped: no PgBouncer to ask (make bouncer)");
        return;
    };
    let bouncer = PgBouncer::start(&program);
    let mut console = bouncer.console().await;
    let tables = tables(&mut console).await;
    if std::env::var("PGWEIR_GOLDEN").is_ok_and(|what| what == "write") {
        std::fs::write(golden(), write(&tables)).unwrap();
    }
    let golden = std::fs::read_to_string(golden()).unwrap();
    assert_eq!(write(&tables), golden);
}

#[tokio::test]
async fn the_console_has_pgbouncers_columns_and_few_more() {
    let pgweir = Options::new(shared::server()).start();
    let mut console = pgweir.console().await;
    let golden = std::fs::read_to_string(golden()).unwrap();
    let theirs = read(&golden);
    assert_eq!(theirs.len(), SHOWS.len());
    for (show, own) in tables(&mut console).await {
        let extra = |column: &String| EXTRA.contains(&(&*show, &**column));
        let own: Vec<String> = own.into_iter().filter(|column| !extra(column)).collect();
        assert_eq!(own, theirs[&show], "SHOW {show}");
    }
}
