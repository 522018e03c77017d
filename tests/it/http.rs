//! HTTP: health, metrics, and clients that misbehave.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::shared;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::LIMIT;

fn start() -> Pgweir {
    Options::new(shared::server()).start()
}

/// Everything the server says to these bytes, until it closes.
fn raw(pgweir: &Pgweir, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(pgweir.http).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut reply = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn health_and_index_are_answered() {
    let pgweir = start();
    let get = |path: &str| pgweir.http_get(path).unwrap();
    assert!(get("/live").starts_with("HTTP/1.1 200"));
    assert!(get("/ready").starts_with("HTTP/1.1 200"));
    let index = get("/");
    assert!(
        index.contains("/metrics") && index.contains("/ready"),
        "{index}"
    );
    assert!(get("/nothing").starts_with("HTTP/1.1 404"));
    let posted = raw(
        &pgweir,
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
}

#[test]
fn a_head_that_is_too_large_or_garbage_is_refused() {
    let pgweir = start();
    let large = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n",
        "a".repeat(20_000)
    );
    let reply = raw(&pgweir, large.as_bytes());
    assert!(!reply.starts_with("HTTP/1.1 200"), "{reply}");
    let reply = raw(&pgweir, b"\0\0\0\x08\x04\xd2\x16\x2f\r\n\r\n");
    assert!(!reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(
        pgweir
            .http_get("/live")
            .unwrap()
            .starts_with("HTTP/1.1 200")
    );
}

#[test]
fn stalled_connections_are_bounded_and_do_not_keep_others_out_for_long() {
    let pgweir = start();
    let mut stalled: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(pgweir.http).unwrap())
        .collect();
    for stream in &mut stalled {
        // Those beyond the limit are closed already.
        let _ = stream.write_all(b"GET /live HTTP/1.1\r\n");
    }
    let reply = crate::support::wait::wait_for("room for one more", || {
        pgweir.http_get("/live").filter(|reply| !reply.is_empty())
    });
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn metrics_are_well_formed_and_follow_the_traffic() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    let series = "pgweir_queries_total{database=\"postgres\",user=\"postgres\"} ";
    client.query("SELECT 1").await.ok();
    let before = pgweir.metric(series).unwrap();
    for _ in 0..5 {
        client.query("SELECT 1").await.ok();
    }
    assert!(pgweir.metric(series).unwrap() >= before + 5.0);
    let bytes = |direction: &str| {
        let series =
            format!("pgweir_{direction}_bytes_total{{database=\"postgres\",user=\"postgres\"}} ");
        pgweir.metric(&series).unwrap()
    };
    let (received, sent) = (bytes("received"), bytes("sent"));
    let reply = client.query("SELECT repeat('x', 10000)").await;
    assert_eq!(reply.value().len(), 10_000);
    // The frame is its text, type, length and NUL; the row has a description and a tag around it.
    let frame = "SELECT repeat('x', 10000)".len() + 6;
    assert_eq!(
        (bytes("received") - received).to_string(),
        frame.to_string()
    );
    assert!((10_000.0..11_000.0).contains(&(bytes("sent") - sent)));
    let clients = "pgweir_pool_clients{database=\"postgres\",user=\"postgres\",state=\"active\"} ";
    assert_eq!(pgweir.metric(clients), Some(1.0));

    let response = pgweir.http_get("/metrics").unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeSet::new());
    for line in body.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(
                helped.insert(rest.split(' ').next().unwrap()),
                "twice: {line}"
            );
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(
                typed.insert(rest.split(' ').next().unwrap()),
                "twice: {line}"
            );
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with("pgweir_"), "{line}");
            let parts = ["_bucket", "_sum", "_count"];
            let whole = parts.iter().find_map(|part| name.strip_suffix(part));
            let name = whole.filter(|name| typed.contains(name)).unwrap_or(name);
            assert!(helped.contains(name) && typed.contains(name), "{line}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert_eq!(helped, typed);
}
