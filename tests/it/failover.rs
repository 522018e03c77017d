//! The primary is found, goes away, and is replaced: by itself, or by a replica that is promoted.

use std::time::Duration;

use pgweir::demo::cluster::{Cluster, StopMode};

use crate::support::client::Client;
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// Probes that notice a frozen server within half a second.
fn quick(options: Options) -> Options {
    options
        .set("cluster.probe_interval", "100ms")
        .set("cluster.probe_timeout", "300ms")
        .set("cluster.down_after", "2")
        .set("timeouts.server_login_retry", "50ms")
}

/// A column of `SHOW NODES`, by the server's address.
async fn node(console: &mut Client, address: &str, column: &str) -> String {
    let reply = console.query("SHOW NODES").await.ok();
    let place = reply.columns.iter().position(|name| name == column);
    let row = reply
        .rows
        .iter()
        .find(|row| row[0].as_deref() == Some(address));
    row.unwrap_or_else(|| panic!("no row for {address}"))[place.unwrap()]
        .clone()
        .unwrap_or_default()
}

async fn until_node(pgweir: &Pgweir, address: &str, column: &str, value: &str) {
    let mut console = pgweir.console().await;
    eventually(&format!("{address} to have {column} {value}"), async || {
        node(&mut console, address, column).await == value
    })
    .await;
}

#[tokio::test]
async fn roles_are_found_in_whatever_order_servers_are_listed() {
    let cluster = Cluster::start(2).unwrap();
    let [first, second] = &cluster.replicas[..] else {
        panic!("two replicas")
    };
    let pgweir = Options::new(first)
        .flag("--replica", &second.node_url())
        .flag("--replica", &cluster.primary.node_url())
        .start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE found (a int)").await.ok();
    let mut console = pgweir.console().await;
    for (server, role) in [
        (first, "replica"),
        (second, "replica"),
        (&cluster.primary, "primary"),
    ] {
        let address = server.address().to_string();
        assert_eq!(node(&mut console, &address, "role").await, role);
        assert_eq!(node(&mut console, &address, "timeline").await, "1");
        until_node(&pgweir, &address, "state", "up").await;
    }
    let state = format!(
        "pgweir_node_state{{node=\"{}\",role=\"primary\",state=\"up\"}}",
        cluster.primary.address()
    );
    assert_eq!(pgweir.metric(&state), Some(1.0));
    assert!(pgweir.log_contains("found the primary"));
}

#[tokio::test]
async fn a_promoted_replica_takes_over_and_the_old_primary_gets_nothing() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = quick(Options::cluster(&cluster)).start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE kept (a int)").await.ok();
    cluster.wait_until_caught_up().unwrap();
    cluster.primary.kill9().unwrap();
    // Sent while there is no primary.
    client
        .send(&messages::query("INSERT INTO kept VALUES (1)"))
        .await;
    let mut other = pgweir.client().await;
    cluster.replicas[0].promote().unwrap();
    client.reply().await.ok();
    assert_eq!(other.value("SELECT count(*) FROM kept").await, "1");
    assert_eq!(
        cluster.replicas[0]
            .sql("postgres", "SELECT count(*) FROM kept")
            .unwrap(),
        "1"
    );
    // It comes back as it was, and takes writes of whoever connects to it; nobody does.
    cluster.primary.start().unwrap();
    let old = cluster.primary.address().to_string();
    until_node(&pgweir, &old, "state", "fenced").await;
    pgweir.wait_for_log("TWO PRIMARIES");
    client.query("INSERT INTO kept VALUES (2)").await.ok();
    let count = "SELECT count(*) FROM kept";
    assert_eq!(cluster.primary.sql("postgres", count).unwrap(), "0");
    assert_eq!(client.value(count).await, "2");
    let failovers = pgweir
        .http_get("/metrics")
        .unwrap()
        .lines()
        .any(|line| line.starts_with("pgweir_cluster_failovers_total") && line.ends_with(" 1"));
    assert!(failovers);
}

#[tokio::test]
async fn a_frozen_primary_is_left_and_what_waits_for_it_is_told() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = quick(Options::cluster(&cluster)).start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE frozen (a int)").await.ok();
    cluster.wait_until_caught_up().unwrap();
    let mut inside = pgweir.client().await;
    inside.query("BEGIN").await.ok();
    inside.query("INSERT INTO frozen VALUES (0)").await.ok();
    cluster.primary.pause().unwrap();
    let address = cluster.primary.address().to_string();
    until_node(&pgweir, &address, "state", "down").await;
    // Held, not sent to a server that does not answer.
    client
        .send(&messages::query("INSERT INTO frozen VALUES (1)"))
        .await;
    inside.send(&messages::query("COMMIT")).await;
    cluster.replicas[0].promote().unwrap();
    client.reply().await.ok();
    let errors = inside.expect_end().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(client.value("SELECT count(*) FROM frozen").await, "1");
}

#[tokio::test]
async fn statements_wait_for_a_primary_that_restarts_for_as_long_as_they_may() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = quick(Options::cluster(&cluster))
        .set("timeouts.query_wait_timeout", "1s")
        .start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
    cluster.primary.stop(StopMode::Fast).unwrap();
    let reply = client.query("CREATE TABLE late (a int)").await;
    assert_eq!(reply.sqlstate(), "57P03");
    assert!(reply.error().hint.clone().unwrap().contains("SHOW NODES"));
    client
        .send(&messages::query("CREATE TABLE late (a int)"))
        .await;
    cluster.primary.start().unwrap();
    client.reply().await.ok();
}

#[tokio::test]
async fn a_replica_of_another_cluster_is_refused() {
    let cluster = Cluster::start(0).unwrap();
    let options = pgweir::demo::cluster::ServerOptions {
        own_identity: true,
        ..Default::default()
    };
    let stranger = options.start().unwrap();
    let pgweir = Options::new(&cluster.primary)
        .flag("--replica", &stranger.node_url())
        .start();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
    until_node(&pgweir, &stranger.address().to_string(), "state", "refused").await;
    pgweir.wait_for_log("belongs to another cluster");
}

#[tokio::test]
async fn where_probes_are_not_let_in_the_configured_primary_serves() {
    let cluster = Cluster::start(1).unwrap();
    let pgweir = Options::cluster(&cluster)
        .set("cluster.probe_user", "nobody_of_that_name")
        .start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE served (a int)").await.ok();
    pgweir.wait_for_log("set cluster.probe_user");
    tokio::time::timeout(Duration::from_secs(10), client.query("SELECT 1"))
        .await
        .unwrap()
        .ok();
}
