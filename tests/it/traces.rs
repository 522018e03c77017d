//! Traces: what a collector gets, and that none is waited for.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::time::Instant;

use crate::shared;
use crate::support::messages::{bind, execute, parse, sync};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::wait_until;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn comment(flags: &str) -> String {
    format!("/*traceparent='00-{TRACE}-b7ad6b7169203331-{flags}'*/")
}

/// A collector of OTLP over HTTP, for as long as the test runs.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            spans: Arc::default(),
        };
        let own = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                own.take(stream.unwrap());
            }
        });
        collector
    }

    fn take(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let resource = &body["resourceSpans"][0];
        let name = &resource["resource"]["attributes"][0]["value"]["stringValue"];
        assert_eq!(name, "weir");
        let spans = resource["scopeSpans"][0]["spans"]
            .as_array()
            .unwrap()
            .clone();
        self.spans.lock().unwrap().extend(spans);
        let mut stream = reader.into_inner();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            .unwrap();
    }

    fn spans(&self) -> Vec<Value> {
        self.spans.lock().unwrap().clone()
    }
}

fn start(address: SocketAddr, options: impl Fn(Options) -> Options) -> Pgweir {
    let traced = Options::new(shared::server())
        .set("traces.endpoint", &format!("'http://{address}'"))
        .set("traces.service_name", "'weir'");
    options(traced).start()
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let attributes = span["attributes"].as_array()?;
    let found = attributes
        .iter()
        .find(|attribute| attribute["key"] == key)?;
    found["value"].as_object()?.values().next()
}

/// Names of the spans that have `span` as their parent.
fn below(spans: &[Value], span: &Value) -> Vec<String> {
    let own = spans
        .iter()
        .filter(|other| other["parentSpanId"] == span["spanId"]);
    own.map(|other| other["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_statement_continues_its_callers_trace() {
    let collector = Collector::start();
    let pgweir = start(collector.address, |options| {
        options.set("pool.max_size", "1")
    });
    let (mut client, mut holder) = (pgweir.client().await, pgweir.client().await);
    let sampled = comment("01");
    holder.query("BEGIN").await.ok();
    let text = format!("SELECT 'secret' AS simple {sampled}");
    client.send(&crate::support::messages::query(&text)).await;
    let mut console = pgweir.console().await;
    crate::support::wait::eventually("the client to wait", async || {
        let pools = console.query("SHOW POOLS WHERE cl_waiting = 1").await.ok();
        !pools.rows.is_empty()
    })
    .await;
    holder.query("ROLLBACK").await.ok();
    client.reply().await.ok();
    let exchange = [
        parse("", &format!("SELECT 1 / $1::int AS bound {sampled}"), &[]),
        bind("", "", &[Some("0")]),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&exchange).await;
    assert_eq!(client.reply().await.sqlstate(), "22012");
    // These are not exported: one that its caller does not sample, one of no trace.
    client
        .query(&format!("SELECT 1 AS unsampled {}", comment("00")))
        .await
        .ok();
    client.query("SELECT 1 AS untraced").await.ok();

    wait_until("the spans", || collector.spans().len() >= 5);
    let spans = collector.spans();
    assert!(
        spans.iter().all(|span| span["traceId"] == TRACE),
        "{spans:#?}"
    );
    let statements: Vec<_> = spans.iter().filter(|span| span["kind"] == 2).collect();
    assert_eq!(statements.len(), 2, "{spans:#?}");
    assert!(
        statements
            .iter()
            .all(|span| span["parentSpanId"] == "b7ad6b7169203331")
    );
    let simple = statements
        .iter()
        .find(|span| {
            attribute(span, "db.query.text").is_some_and(|text| text == "SELECT $1 AS simple")
        })
        .unwrap();
    assert_eq!(simple["name"], "SELECT postgres");
    assert_eq!(attribute(simple, "db.system.name").unwrap(), "postgresql");
    let children = below(&spans, simple);
    assert!(
        children.contains(&"queue".to_owned()) && children.contains(&"server".to_owned()),
        "{children:?}"
    );
    let failed = statements
        .iter()
        .find(|span| span["status"]["code"] == 2)
        .unwrap();
    assert_eq!(
        attribute(failed, "db.response.status_code").unwrap(),
        "22012"
    );
    assert!(!format!("{spans:?}").contains("secret"));
}

#[tokio::test]
async fn the_latest_trace_of_a_statement_is_the_exemplar_of_its_latency() {
    let collector = Collector::start();
    let pgweir = start(collector.address, |options| options);
    let mut client = pgweir.client().await;
    let text = format!("SELECT pg_sleep(0.01) {}", comment("01"));
    client.query(&text).await.ok();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\
         Accept: application/openmetrics-text; version=1.0.0\r\nConnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(pgweir.http).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("application/openmetrics-text") && page.ends_with("# EOF\n"));
    let mark = format!(" # {{trace_id=\"{TRACE}\"}} 0.0");
    let marked: Vec<_> = page.lines().filter(|line| line.contains(&mark)).collect();
    assert_eq!(marked.len(), 1, "{page}");
    let bucket = "pgweir_query_duration_seconds_bucket{queryid=\"";
    assert!(marked[0].starts_with(bucket), "{marked:?}");
    // Prometheus's older format has no place for it.
    assert!(!pgweir.http_get("/metrics").unwrap().contains("trace_id"));
    wait_until("the export", || {
        pgweir.metric("pgweir_traces_exported_total ").unwrap() >= 1.0
    });
}

#[tokio::test]
async fn one_statement_in_so_many_begins_a_trace_of_its_own() {
    let collector = Collector::start();
    let pgweir = start(collector.address, |options| {
        options.set("traces.sample", "5")
    });
    let mut client = pgweir.client().await;
    for _ in 0..20 {
        client.query("SELECT 1 AS sampled").await.ok();
    }
    let statements = || {
        let spans = collector.spans();
        spans
            .into_iter()
            .filter(|span| span["kind"] == 2)
            .collect::<Vec<_>>()
    };
    wait_until("four statements", || statements().len() == 4);
    assert!(
        statements()
            .iter()
            .all(|span| span.get("parentSpanId").is_none())
    );
}

/// One that refuses connections, and one that takes them and says nothing.
#[tokio::test]
async fn a_dead_collector_delays_nothing_and_what_it_misses_is_counted() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [closed, silent.local_addr().unwrap()] {
        let pgweir = start(address, |options| options.set("traces.sample", "1"));
        let mut client = pgweir.client().await;
        let begun = Instant::now();
        for _ in 0..6000 {
            client
                .send(&crate::support::messages::query("SELECT 1"))
                .await;
        }
        for _ in 0..6000 {
            client.reply().await.ok();
        }
        let took = begun.elapsed();
        assert!(took.as_secs() < 30, "{took:?}");
        // The queue holds 4,096.
        wait_until("what does not fit to be counted", || {
            pgweir.metric("pgweir_traces_dropped_total ").unwrap() > 0.0
        });
        assert!(pgweir.metric("pgweir_traces_exported_total ").unwrap() < 0.1);
    }
}
