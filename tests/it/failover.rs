//! The primary is found, goes away, and is replaced: by itself, or by a replica that is promoted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, StopMode};

use crate::support::client::Client;
use crate::support::link::Link;
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

/// Probes that notice a frozen server within half a second.
pub(super) fn quick(options: Options) -> Options {
    options
        .set("cluster.probe_interval", "100ms")
        .set("cluster.probe_timeout", "300ms")
        .set("cluster.down_after", "2")
        .set("timeouts.server_login_retry", "50ms")
}

/// A column of `SHOW NODES`, by the server's address.
pub(super) async fn node(console: &mut Client, address: &str, column: &str) -> String {
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

pub(super) async fn until_node(pgweir: &Pgweir, address: &str, column: &str, value: &str) {
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

/// The value of a metric that has one series.
fn metric_of<T: std::str::FromStr>(metrics: &str, name: &str) -> T {
    let line = metrics.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

/// Failovers, times that there was no primary, and how long in all, of the only cluster.
pub(super) fn of_clusters(pgweir: &Pgweir) -> (u64, u64, Duration) {
    let metrics = pgweir.http_get("/metrics").unwrap();
    let held = metric_of(&metrics, "pgweir_cluster_held_seconds_total");
    (
        metric_of(&metrics, "pgweir_cluster_failovers_total"),
        metric_of(&metrics, "pgweir_cluster_holds_total"),
        Duration::from_secs_f64(held),
    )
}

#[tokio::test]
async fn a_promoted_replica_takes_over_and_the_old_primary_gets_nothing() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = quick(Options::cluster(&cluster)).start();
    // The time until the first primary was found is no wait for one that is away.
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE kept (a int)").await.ok();
    assert_eq!(of_clusters(&pgweir), (0, 0, Duration::ZERO));
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
    let (failovers, holds, held) = of_clusters(&pgweir);
    assert_eq!((failovers, holds), (1, 1));
    assert!(held > Duration::ZERO);
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

/// Counts of `SHOW ROUTES`.
async fn routed(pgweir: &Pgweir, reason: &str) -> u64 {
    let mut console = pgweir.console().await;
    let reply = console.query("SHOW ROUTES").await.ok();
    let row = |row: &&Vec<Option<String>>| row[1].as_deref() == Some(reason);
    let found = reply.rows.iter().find(row).unwrap()[2].clone();
    found.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_primary_that_is_cut_off_is_left_and_gets_nothing_when_it_is_back() {
    let cluster = Cluster::start(1).unwrap();
    let link = Link::to(cluster.primary.address()).await;
    let replica = &cluster.replicas[0];
    let pgweir = quick(Options::in_front_of(&link.node_url()))
        .flag("--replica", &replica.node_url())
        // Its questions would be counted.
        .set("pool.hidden_state", "false")
        .start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE parted (a int)").await.ok();
    cluster.wait_until_caught_up().unwrap();
    link.cut();
    let old = link.address().to_string();
    until_node(&pgweir, &old, "state", "down").await;
    client
        .send(&messages::query("INSERT INTO parted VALUES (1)"))
        .await;
    replica.promote().unwrap();
    client.reply().await.ok();
    // It runs on all the while, and takes what others write.
    let count = "SELECT count(*) FROM parted";
    cluster
        .primary
        .sql("postgres", "INSERT INTO parted VALUES (10), (11)")
        .unwrap();
    link.mend();
    until_node(&pgweir, &old, "state", "fenced").await;
    pgweir.wait_for_log("TWO PRIMARIES");
    for _ in 0..20 {
        client.query("INSERT INTO parted VALUES (2)").await.ok();
        let mut fresh = pgweir.client().await;
        fresh.query("INSERT INTO parted VALUES (3)").await.ok();
    }
    assert_eq!(cluster.primary.sql("postgres", count).unwrap(), "2");
    assert_eq!(client.value(count).await, "41");
    assert_eq!(routed(&pgweir, "held").await, 1);
    let held = "pgweir_cluster_holds_total";
    let metrics = pgweir.http_get("/metrics").unwrap();
    let count = |line: &&str| line.starts_with(held) && line.ends_with(" 1");
    assert!(metrics.lines().any(|line| count(&line)), "{metrics}");
}

#[tokio::test]
async fn a_primary_that_is_demoted_comes_back_as_a_replica() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = quick(Options::cluster(&cluster)).start();
    let mut client = pgweir.client().await;
    client
        .query("CREATE VIEW place AS SELECT inet_server_port()::text AS port")
        .await
        .ok();
    client.query("CREATE TABLE moved (a int)").await.ok();
    cluster.primary.stop(StopMode::Fast).unwrap();
    cluster.replicas[0].promote().unwrap();
    client.query("INSERT INTO moved VALUES (1)").await.ok();
    let conninfo = format!(
        "primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n",
        cluster.replicas[0].port()
    );
    let data = cluster.primary.data();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    let own = data.join("postgresql.auto.conf");
    let before = std::fs::read_to_string(&own).unwrap();
    std::fs::write(&own, before + &conninfo).unwrap();
    cluster.primary.start().unwrap();
    let old = cluster.primary.address().to_string();
    until_node(&pgweir, &old, "role", "replica").await;
    until_node(&pgweir, &old, "state", "up").await;
    for value in 2..30 {
        let sql = format!("INSERT INTO moved VALUES ({value})");
        client.query(&sql).await.ok();
        let sql = "SELECT max(a) FROM moved";
        assert_eq!(client.value(sql).await, value.to_string());
    }
    let place = cluster.primary.port().to_string();
    eventually("a read on the server that was the primary", async || {
        client.value("SELECT port FROM place").await == place
    })
    .await;
    assert!(!cluster.primary.log().contains("read-only transaction"));
}

/// A standby far ahead whose first connection answers probes, and which answers nothing else.
async fn answers_probes_only(connection: BackendConnection) {
    let far = Some("FFFF/0");
    answers_probes(connection, [Some("t"), None, None, far, far, Some("1")]).await;
}

/// A server whose first connection gives probes this answer, and which answers nothing else.
pub(super) async fn answers_probes(mut connection: BackendConnection, answer: [Option<&str>; 6]) {
    if connection.number > 0 {
        return std::future::pending().await;
    }
    while let Some(message) = connection.read_message().await {
        let text = message.strings().concat();
        let row = if text.contains("pg_control_system") {
            messages::data_row(&[None, Some("16777216"), Some("8192")])
        } else if text.contains("pg_is_in_recovery") {
            messages::data_row(&answer)
        } else {
            Vec::new()
        };
        let end = [
            messages::command_complete("SELECT 1"),
            messages::ready_for_query(b'I'),
        ];
        connection.send(&[row, end.concat()].concat()).await;
    }
}

#[tokio::test]
async fn a_replica_that_answers_probes_but_no_reads_is_found_out() {
    let cluster = Cluster::start(0).unwrap();
    for (name, value) in [("timezone", "UTC"), ("datestyle", "ISO, MDY")] {
        cluster.primary.set(name, value).unwrap();
    }
    let replica = ScriptedBackend::start_with(answers_probes_only).await;
    let pgweir = quick(Options::new(&cluster.primary))
        .flag("--replica", &replica.node_url())
        .start();
    let address = replica.address().to_string();
    until_node(&pgweir, &address, "state", "up").await;
    let mut clients = Vec::new();
    let mut console = pgweir.console().await;
    eventually("a read on the replica", async || {
        let mut client = pgweir.client().await;
        client.send(&messages::query("SELECT 7")).await;
        clients.push(client);
        node(&mut console, &address, "outstanding").await != "0"
    })
    .await;
    // What it left unanswered is run elsewhere.
    for client in &mut clients {
        assert_eq!(client.reply().await.ok().value(), "7");
    }
    assert_eq!(node(&mut console, &address, "state").await, "down");
    pgweir.wait_for_log("server is down");
}

/// Writes and reads what it wrote, outside transactions, until told to stop. Any error fails the test.
async fn write_and_read(pgweir: Arc<Pgweir>, written: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut client = pgweir.client().await;
    while !stop.load(Ordering::SeqCst) {
        let insert = "INSERT INTO ledger DEFAULT VALUES RETURNING id";
        let id = client.value(insert).await;
        written.fetch_add(1, Ordering::SeqCst);
        let read = format!("SELECT count(*) FROM ledger WHERE id = {id}");
        assert_eq!(client.extended(&read, &[]).await.ok().value(), "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_outside_transactions_survive_a_switchover_and_a_restart() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = Arc::new(quick(Options::cluster(&cluster)).start());
    let mut client = pgweir.client().await;
    client
        .query("CREATE TABLE ledger (id bigserial PRIMARY KEY)")
        .await
        .ok();
    cluster.wait_until_caught_up().unwrap();
    let (written, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let start = |_| {
        let worker = write_and_read(Arc::clone(&pgweir), Arc::clone(&written), Arc::clone(&stop));
        pgweir::tasks::spawn("writer", worker)
    };
    let writers: Vec<_> = (0..8).map(start).collect();
    let more = async |count: u64| {
        let goal = written.load(Ordering::SeqCst) + count;
        eventually("more writes", async || {
            written.load(Ordering::SeqCst) >= goal
        })
        .await;
    };
    more(100).await;
    tokio::task::block_in_place(|| {
        cluster.primary.stop(StopMode::Fast).unwrap();
        cluster.replicas[0].promote().unwrap();
    });
    more(100).await;
    tokio::task::block_in_place(|| cluster.replicas[0].restart(StopMode::Fast).unwrap());
    more(100).await;
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    let written = written.load(Ordering::SeqCst).to_string();
    assert_eq!(client.value("SELECT count(*) FROM ledger").await, written);
}
