//! Faults of a primary that are harder to see than its end: a name that leads elsewhere, answers to probes alone, no
//! connection to spare, a demotion before the promotion.

use std::net::SocketAddr;
use std::time::Duration;

use pgweir::demo::cluster::{Cluster, ClusterOptions, ServerOptions, StopMode};
use tempfile::NamedTempFile;

use super::failover::{answers_probes, node, of_clusters, quick, until_node};
use crate::support::client::{Client, Login};
use crate::support::link::Link;
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

/// A name that the file of hosts alone knows.
const NAME: &str = "writer.pgweir.invalid";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_name_leads_to_the_promoted_server_is_left_though_it_lives() {
    let hosts = NamedTempFile::new().unwrap();
    let lead_to = |place: &str| std::fs::write(hosts.path(), format!("{place} {NAME}\n")).unwrap();
    lead_to("127.0.0.1");
    let cluster = Cluster::start(2).unwrap();
    // One port on two addresses of this machine.
    let before = Link::to(cluster.primary.address()).await;
    let port = before.address().port();
    let promoted = &cluster.replicas[0];
    let _after = Link::at(SocketAddr::from(([127, 0, 0, 2], port)), promoted.address()).await;
    let options = quick(Options::in_front_of(&format!("postgres://{NAME}:{port}")))
        .flag("--replica", &cluster.replicas[1].node_url());
    let Some(options) = options.with_hosts(hosts.path()) else {
        eprintln!("skipped: this machine has no unshare, or does not let us use it");
        return;
    };
    let pgweir = options.start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE moved (a int)").await.ok();
    cluster.wait_until_caught_up().unwrap();
    let mut inside = pgweir.client().await;
    inside.query("BEGIN").await.ok();
    inside.query("INSERT INTO moved VALUES (0)").await.ok();
    promoted.promote().unwrap();
    lead_to("127.0.0.2");
    // The probe's connection ends first, and the next one is to the new address.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgweir probe'";
    cluster.primary.sql("postgres", end).unwrap();
    pgweir.wait_for_log("the server's name leads to another address");
    pgweir.wait_for_log("the primary is on a new timeline");
    let errors = inside.expect_end().await;
    assert_eq!(errors[0].code, "08006", "{errors:?}");
    for value in 1..=10 {
        let sql = format!("INSERT INTO moved VALUES ({value})");
        client.query(&sql).await.ok();
    }
    let count = "SELECT count(*) FROM moved";
    assert_eq!(cluster.primary.sql("postgres", count).unwrap(), "0");
    assert_eq!(promoted.sql("postgres", count).unwrap(), "10");
    assert_eq!(of_clusters(&pgweir).0, 1);
}

/// A primary whose first connection answers probes; later ones are let in and made ready, and that is all.
async fn answers_no_statements(mut connection: BackendConnection) {
    let name = connection.startup.get("application_name");
    if name.is_some_and(|name| name == "pgweir probe") {
        let at = Some("0/3000000");
        let answer = [Some("f"), at, at, None, None, Some("1")];
        return answers_probes(connection, answer).await;
    }
    while let Some(message) = connection.read_message().await {
        if message.strings().concat().contains("pg_is_in_recovery") {
            connection.send(&messages::one_value_reply("f")).await;
        }
    }
}

#[tokio::test]
async fn a_primary_that_answers_probes_but_no_statements_is_found_out() {
    let cluster = Cluster::start(1).unwrap();
    for server in [&cluster.primary, &cluster.replicas[0]] {
        for (name, value) in [("timezone", "UTC"), ("datestyle", "ISO, MDY")] {
            server.set(name, value).unwrap();
        }
    }
    let replica = &cluster.replicas[0];
    let primary = ScriptedBackend::start_with(answers_no_statements).await;
    let pgweir = quick(Options::in_front_of_script(&primary))
        .set("routing.reads", "primary")
        .flag("--replica", &replica.node_url())
        .start();
    let mut client = pgweir.client().await;
    client.send(&messages::query("SELECT 7")).await;
    until_node(&pgweir, &primary.address().to_string(), "state", "down").await;
    pgweir.wait_for_log("server is down");
    replica.promote().unwrap();
    // It never told what its operators and casts call, so that nothing is sure to only read.
    assert_eq!(client.expect_end().await[0].code, "08007");
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE alive (a int)").await.ok();
    assert_eq!(of_clusters(&pgweir).0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_asks_a_dead_primary_for_a_secret_asks_the_next_one() {
    let cluster = Cluster::start(1).unwrap();
    let roles = "CREATE ROLE salted LOGIN PASSWORD 'p'; CREATE ROLE waiting LOGIN PASSWORD 'p'";
    cluster.primary.sql("postgres", roles).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let replica = &cluster.replicas[0];
    let primary = Link::to(cluster.primary.address()).await;
    let url = format!("postgres://postgres@{}", primary.address());
    let pgweir = quick(Options::in_front_of(&url))
        .flag("--auth", "scram")
        .flag("--replica", &replica.node_url())
        .set("timeouts.server_connect_timeout", "1min")
        .start();
    let login = |user: &str| Login::new(user, "postgres").password("p");
    let mut client = pgweir.client_as(&login("salted")).await;
    client.query("SELECT 1").await.ok();
    primary.cut();
    let (address, second) = (pgweir.address, login("waiting"));
    let waiting = pgweir::tasks::spawn("waiting", async move {
        let mut client = Client::connect_as(address, &second).await?;
        Ok::<_, ServerError>(client.value("SELECT current_user").await)
    });
    pgweir.wait_for_log("server is down");
    replica.promote().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "waiting");
}

#[tokio::test]
async fn a_long_read_on_a_replica_without_a_connection_to_spare_is_left_alone() {
    let server = ServerOptions::default()
        .set("max_connections", "12")
        .set("superuser_reserved_connections", "0")
        .set("max_wal_senders", "2");
    let cluster = ClusterOptions {
        server,
        replicas: 1,
        ..ClusterOptions::default()
    };
    let cluster = cluster.start().unwrap();
    let sql = "CREATE VIEW place AS SELECT inet_server_port()::text AS port";
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let replica = &cluster.replicas[0];
    let pgweir = quick(Options::cluster(&cluster)).start();
    let mut client = pgweir.client().await;
    let place = replica.port().to_string();
    eventually("a read on the replica", async || {
        client.value("SELECT port FROM place").await == place
    })
    .await;
    // Longer than a server may be silent, and than it takes then for three probes to fail.
    client
        .send(&messages::query(
            "/* pgweir: replica */ SELECT port FROM place, (SELECT pg_sleep(8)) s",
        ))
        .await;
    // Whatever connection becomes free is taken at once.
    let (mut others, mut refused) = (Vec::new(), 0);
    let mut reply = std::pin::pin!(client.reply());
    let reply = loop {
        let login = Login::new("postgres", "postgres");
        tokio::select! {
            reply = &mut reply => break reply.ok(),
            other = Client::connect_as(replica.address(), &login) => match other {
                Ok(other) => others.push(other),
                Err(error) => {
                    assert_eq!(error.code, "53300");
                    refused += 1;
                }
            }
        }
    };
    assert_eq!(reply.value(), place);
    assert!(refused > 0);
    assert!(!pgweir.log_contains("server is down"));
    let mut console = pgweir.console().await;
    let address = replica.address().to_string();
    assert_eq!(node(&mut console, &address, "state").await, "up");
    let failed = format!("pgweir_node_failed_reads_total{{node=\"{address}\"}}");
    assert_eq!(pgweir.metric(&failed), Some(0.0));
}

#[tokio::test]
async fn a_primary_that_is_seen_demoted_first_is_counted_as_a_failover() {
    let mut cluster = Cluster::start(1).unwrap();
    let pgweir = quick(Options::cluster(&cluster)).start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE demoted (a int)").await.ok();
    cluster.primary.stop(StopMode::Fast).unwrap();
    let data = cluster.primary.data();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    cluster.primary.start().unwrap();
    let old = cluster.primary.address().to_string();
    until_node(&pgweir, &old, "role", "replica").await;
    client
        .send(&messages::query("INSERT INTO demoted VALUES (1)"))
        .await;
    cluster.replicas[0].promote().unwrap();
    client.reply().await.ok();
    pgweir.wait_for_log("failover: another server is the primary");
    let (failovers, holds, held) = of_clusters(&pgweir);
    assert_eq!((failovers, holds), (1, 1));
    assert!(held > Duration::ZERO);
}

/// Clients in transactions on all of the pool's connections: who comes next needs a new one. How many there are is pgweir's
/// to say, which reads the catalogue on one of them when it likes.
async fn hold_all(pgweir: &Pgweir) -> Vec<Client> {
    let mut holders = Vec::new();
    loop {
        let mut holder = pgweir.client().await;
        holder.query("BEGIN").await.ok();
        holders.push(holder);
        let mut idle = String::new();
        eventually("no connection to be at anything else", async || {
            // All of one moment.
            let page = pgweir.http_get("/metrics").expect("an answer to /metrics");
            let servers = |state: &str| {
                let labels = format!("database=\"postgres\",user=\"postgres\",state=\"{state}\"");
                let series = format!("pgweir_pool_servers{{{labels}}} ");
                let line = page.lines().find_map(|line| line.strip_prefix(&series));
                line.map_or_else(|| panic!("no {series}"), str::to_owned)
            };
            idle = servers("idle");
            let others = ["login", "tested", "being_canceled"];
            others.iter().all(|state| servers(state) == "0")
                && servers("active") == holders.len().to_string()
        })
        .await;
        if idle == "0" {
            return holders;
        }
    }
}

/// A login that nobody answers goes on for `server_connect_timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_being_opened_to_the_old_primary_keeps_nobody_from_the_new_one() {
    let cluster = Cluster::start(1).unwrap();
    let link = Link::to(cluster.primary.address()).await;
    let replica = &cluster.replicas[0];
    let pgweir = quick(Options::in_front_of(&link.node_url()))
        .flag("--replica", &replica.node_url())
        .set("timeouts.server_connect_timeout", "10min")
        .start();
    let mut client = pgweir.client().await;
    client.query("CREATE TABLE opening (a int)").await.ok();
    cluster.wait_until_caught_up().unwrap();
    let holders = hold_all(&pgweir).await;
    link.cut();
    client
        .send(&messages::query("INSERT INTO opening VALUES (1)"))
        .await;
    until_node(&pgweir, &link.address().to_string(), "state", "down").await;
    tokio::task::block_in_place(|| replica.promote().unwrap());
    client.reply().await.ok();
    for mut holder in holders {
        assert_eq!(holder.expect_end().await[0].code, "08006");
    }
    assert_eq!(client.value("SELECT count(*) FROM opening").await, "1");
}
