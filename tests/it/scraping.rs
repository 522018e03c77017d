//! What Prometheus, its tools and PgBouncer's exporter make of what pgweir tells. Tools that are not installed are
//! said to be skipped.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgweir::demo::cluster::Cluster;
use socket2::{Domain, Socket, Type};

use crate::shared;
use crate::support::client::Client;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::wait_for;

const RULES: &str = "config/prometheus/pgweir.rules.yml";
const DASHBOARD: &str = "config/grafana/pgweir.json";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of Debian's package, or `None` after saying so.
fn program(name: &str, package: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed (Debian's package {package})");
    }
    found
}

/// pgweir after a bit of everything.
async fn busy() -> (Pgweir, Client) {
    busy_with(&Options::new(shared::server())).await
}

async fn busy_with(options: &Options) -> (Pgweir, Client) {
    let pgweir = options.clone().set("slow_log.threshold", "'10ms'").start();
    let mut client = pgweir.client().await;
    for number in 0..20 {
        let sql = format!("SELECT {number} AS \"quoted \\\\ name\"");
        client.query(&sql).await.ok();
        client.extended("SELECT $1::int", &[Some("1")]).await.ok();
    }
    client.query("SELECT 1 / 0").await;
    client.query("SELECT pg_sleep(0.02)").await.ok();
    client.query("CREATE TEMP TABLE scraped (a int)").await.ok();
    (pgweir, client)
}

fn page(pgweir: &Pgweir) -> String {
    let reply = pgweir.http_get("/metrics").unwrap();
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    body.to_owned()
}

/// Names of pgweir's metrics in a text; those of a histogram's parts stand for the histogram.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let words = words.filter(|word| word.starts_with("pgweir_"));
    words
        .map(|word| {
            let mut part = ["_bucket", "_sum", "_count"].iter();
            let whole = part.find_map(|part| word.strip_suffix(part));
            whole.unwrap_or(word).to_owned()
        })
        .collect()
}

#[tokio::test]
async fn every_family_has_help_and_promtool_finds_nothing_to_say() {
    let (pgweir, _client) = busy().await;
    let page = page(&pgweir);
    for line in page.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(page.contains(&format!("# HELP {name} ")), "{name}");
    }
    let Some(promtool) = program("promtool", "prometheus") else {
        return;
    };
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = check.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{page}");
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let cluster = Cluster::start(1).unwrap();
    let (pgweir, _client) = busy_with(&Options::cluster(&cluster)).await;
    let known: BTreeSet<String> = page(&pgweir)
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(str::to_owned)
        .collect();
    for file in [RULES, DASHBOARD] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let asked = names(&text);
        // The name of the file of rules looks like one.
        let unknown = asked.difference(&known);
        let unknown: Vec<_> = unknown.filter(|name| *name != "pgweir_rules").collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
        assert!(asked.len() > 8, "{file}: {asked:?}");
    }
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests() {
    let Some(promtool) = program("promtool", "prometheus") else {
        return;
    };
    for arguments in [
        ["check", "rules", "pgweir.rules.yml"],
        ["test", "rules", "pgweir.rules.test.yml"],
    ] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(root().join("config/prometheus"))
            .output()
            .unwrap();
        let (out, err) = (&output.stdout, &output.stderr);
        let said = String::from_utf8_lossy(out) + String::from_utf8_lossy(err);
        assert!(output.status.success(), "{said}");
    }
}

#[test]
fn the_dashboard_is_json_with_a_panel_for_each_thing_to_watch() {
    let text = std::fs::read_to_string(root().join(DASHBOARD)).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dashboard["uid"], "pgweir");
    let panels = dashboard["panels"].as_array().unwrap();
    let has = |title: &str| panels.iter().any(|panel| panel["title"] == title);
    for title in [
        "Longest wait",
        "Latency",
        "Statements",
        "Replica lag",
        "Pins a second",
    ] {
        assert!(has(title), "{title}");
    }
}

/// A child that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port for somebody who listens with `SO_REUSEADDR`, kept until the socket is dropped.
fn reserved() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// The body of a page, if there is one.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let (head, body) = reply.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

#[tokio::test]
async fn prometheus_scrapes_it_in_its_own_format() {
    let Some(prometheus) = program("prometheus", "prometheus") else {
        return;
    };
    let (pgweir, _client) = busy().await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: pgweir\n  static_configs:\n  - targets: ['{}']\n",
        pgweir.http
    );
    let file = folder.path().join("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    let (_reserved, address) = reserved();
    let _running = Running(
        Command::new(prometheus)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // The count is that of the console, so the page was read whole and meant what it should.
    let path = "/api/v1/query?query=pgweir_statement_duration_seconds_count";
    let value = wait_for("Prometheus to have scraped pgweir", || {
        let answer: serde_json::Value = serde_json::from_str(&get(address, path)?).ok()?;
        let value = answer["data"]["result"][0]["value"][1].as_str()?;
        Some(value.to_owned())
    });
    let mut console = pgweir.console().await;
    let reply = console.query("SHOW QUERIES").await.ok();
    let calls = reply
        .columns
        .iter()
        .position(|name| name == "calls")
        .unwrap();
    let sum: u64 = reply
        .rows
        .iter()
        .map(|row| row[calls].as_deref().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(value, sum.to_string());
}

#[tokio::test]
async fn pgbouncers_exporter_scrapes_it_unchanged() {
    let name = "prometheus-pgbouncer-exporter";
    let Some(exporter) = program(name, name) else {
        return;
    };
    let (pgweir, _client) = busy().await;
    let (_reserved, address) = reserved();
    let _running = Running(
        Command::new(exporter)
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--pgbouncer-host", "127.0.0.1"])
            .args(["--pgbouncer-port", &pgweir.address.port().to_string()])
            .args(["--pgbouncer-user", "postgres"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let page = wait_for("the exporter to answer", || get(address, "/metrics"));
    if std::env::var_os("PGWEIR_SHOW").is_some() {
        for line in page.lines().filter(|line| line.starts_with("pgbouncer_")) {
            eprintln!("{line}");
        }
    }
    let value = |series: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("no {series} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    // 20 simple and 20 extended statements, an error, a wait, a table.
    assert!(value("pgbouncer_requests_total{database=\"postgres\"}") >= 43.0);
    assert!(value("pgbouncer_received_bytes_total{database=\"postgres\"}") > 500.0);
    assert!(value("pgbouncer_query_microseconds_total{database=\"postgres\"}") > 20_000.0);
    assert!(value("pgbouncer_pools ") >= 1.0);
    assert!(value("pgbouncer_used_clients ") >= 1.0);
    assert!(page.contains("pgbouncer_active_clients{database=\"postgres\",user=\"postgres\"}"));
}

/// A scraper that asks and then reads nothing costs neither the others nor the statements anything.
#[tokio::test]
async fn scrapers_that_stall_hold_up_nobody() {
    let (pgweir, mut client) = busy().await;
    for number in 0..300 {
        client
            .query(&format!("SELECT 1 AS stalled_{number}"))
            .await
            .ok();
    }
    let stalled: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(pgweir.http).unwrap();
            write!(
                stream,
                "GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n",
                pgweir.http
            )
            .unwrap();
            stream
        })
        .collect();
    client.query("SELECT 1 AS unhindered").await.ok();
    assert!(page(&pgweir).contains("pgweir_queries_total"));
    drop(stalled);
}
