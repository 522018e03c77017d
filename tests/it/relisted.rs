//! A reload that changes the list of servers: what was written before it is seen all the same, what was drained stays so,
//! and a primary of yesterday stays one.

use std::fmt::Write as _;

use pgweir::demo::cluster::{Cluster, Server};

use super::failover::{node, until_node};
use super::reload::{DONE, reload};
use super::routing::{PLACE, cluster};
use crate::support::client::Client;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// A configuration with these replicas, each of which has `weight`.
fn config(primary: &Server, replicas: &[&Server], weight: usize) -> String {
    let mut text = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[auth]\nmethod = \"trust\"\n\
         [timeouts]\nserver_login_retry = \"50ms\"\nquery_wait_timeout = \"2s\"\n\
         [cluster]\nprimary = \"{}\"\nprobe_interval = \"100ms\"\nprobe_timeout = \"500ms\"\ndown_after = 2\n\
         sample_interval = \"5ms\"\n",
        primary.node_url()
    );
    let urls = replicas.iter().map(|it| it.node_url());
    let urls: Vec<_> = urls
        .map(|url| format!("\"{url}?weight={weight}\""))
        .collect();
    if !urls.is_empty() {
        writeln!(text, "replicas = [{}]", urls.join(", ")).unwrap();
    }
    text
}

/// Takes over a list, and waits until all of its servers were found.
async fn relist(pgweir: &Pgweir, primary: &Server, replicas: &[&Server], weight: usize) {
    reload(pgweir, &config(primary, replicas, weight), DONE);
    for replica in replicas {
        until_node(pgweir, &replica.address().to_string(), "state", "up").await;
    }
}

async fn with(pgweir: &Pgweir, consistency: &str) -> Client {
    let mut client = pgweir.client().await;
    let set = format!("SET pgweir.consistency = '{consistency}'");
    client.query(&set).await.ok();
    client
}

fn replay(cluster: &Cluster, function: &str) {
    for replica in &cluster.replicas {
        let sql = format!("SELECT {function}()");
        replica.sql("postgres", &sql).unwrap();
    }
}

/// Waits until reads that ask for nothing go to replicas, which are behind.
async fn are_behind(pgweir: &Pgweir, text: &str) {
    let mut eventual = with(pgweir, "eventual").await;
    eventually("replicas to serve, and to be behind", async || {
        eventual.value(text).await == "0"
    })
    .await;
}

const FIRST: &str = "SELECT v FROM t WHERE id = 1";
const SECOND: &str = "SELECT v FROM t WHERE id = 2";

#[tokio::test]
async fn what_was_written_before_the_list_was_changed_is_seen_after() {
    let cluster = cluster(2);
    let [one, two] = &cluster.replicas[..] else {
        panic!("two replicas")
    };
    let pgweir = Options::config(&config(&cluster.primary, &[one, two], 1)).start();
    let mut writer = pgweir.client().await;
    let mut inside = pgweir.client().await;
    let mut reader = with(&pgweir, "cluster").await;
    let port = cluster.primary.port().to_string();
    eventually("a read on a replica", async || {
        writer.value(PLACE).await != port
    })
    .await;
    replay(&cluster, "pg_wal_replay_pause");
    writer.query("UPDATE t SET v = 1 WHERE id = 1").await.ok();
    inside.query("BEGIN").await.ok();
    inside.query("UPDATE t SET v = 2 WHERE id = 2").await.ok();
    // The same servers, written differently; then one less; then one more.
    for (replicas, weight) in [(&[one, two][..], 2), (&[two], 1), (&[one, two], 1)] {
        relist(&pgweir, &cluster.primary, replicas, weight).await;
        are_behind(&pgweir, FIRST).await;
        let mut late = pgweir.client().await;
        for _ in 0..10 {
            assert_eq!(writer.value(FIRST).await, "1", "its writer");
            assert_eq!(late.value(FIRST).await, "1", "who came later");
            assert_eq!(reader.value(FIRST).await, "1", "cluster");
        }
    }
    // A transaction that was open all the time counts when it is committed.
    assert_eq!(reader.value(SECOND).await, "0");
    inside.query("COMMIT").await.ok();
    let mut late = pgweir.client().await;
    for _ in 0..10 {
        assert_eq!(inside.value(SECOND).await, "2", "its writer");
        assert_eq!(late.value(SECOND).await, "2", "who came later");
        assert_eq!(reader.value(SECOND).await, "2", "cluster");
    }
    replay(&cluster, "pg_wal_replay_resume");
}

#[tokio::test]
async fn what_was_written_before_there_were_replicas_is_seen_after() {
    let cluster = cluster(1);
    let replica = &cluster.replicas[0];
    let pgweir = Options::config(&config(&cluster.primary, &[], 1)).start();
    let mut writer = pgweir.client().await;
    replay(&cluster, "pg_wal_replay_pause");
    writer.query("UPDATE t SET v = 1 WHERE id = 1").await.ok();
    let mut idle = pgweir.client().await;
    idle.query("SELECT 1").await.ok();
    relist(&pgweir, &cluster.primary, &[replica], 1).await;
    are_behind(&pgweir, FIRST).await;
    // By a process that was started after it, too.
    let restarted = Options::config(&config(&cluster.primary, &[replica], 1)).start();
    are_behind(&restarted, FIRST).await;
    let mut late = restarted.client().await;
    for _ in 0..10 {
        assert_eq!(writer.value(FIRST).await, "1", "its writer");
        assert_eq!(idle.value(FIRST).await, "1", "another session");
        assert_eq!(late.value(FIRST).await, "1", "after a restart");
    }
    replay(&cluster, "pg_wal_replay_resume");
    let port = cluster.primary.port().to_string();
    eventually("a read on a replica", async || {
        writer.value(PLACE).await != port
    })
    .await;
}

#[tokio::test]
async fn what_was_drained_stays_so_and_an_old_primary_stays_fenced() {
    let mut cluster = cluster(2);
    let address = |server: &Server| server.address().to_string();
    let (old, next, drained) = (
        address(&cluster.primary),
        address(&cluster.replicas[0]),
        address(&cluster.replicas[1]),
    );
    let text = |cluster: &Cluster, weight| {
        let replicas = [&cluster.replicas[0], &cluster.replicas[1]];
        config(&cluster.primary, &replicas, weight)
    };
    let pgweir = Options::config(&text(&cluster, 1)).start();
    let mut client = pgweir.client().await;
    let mut console = pgweir.console().await;
    client.query("SELECT 1").await.ok();
    console.query(&format!("DRAIN {drained}")).await.ok();
    until_node(&pgweir, &drained, "state", "draining").await;
    reload(&pgweir, &text(&cluster, 2), DONE);
    until_node(&pgweir, &next, "state", "up").await;
    eventually("the drained one to be found", async || {
        node(&mut console, &drained, "state").await != "unprobed"
    })
    .await;
    assert_eq!(node(&mut console, &drained, "state").await, "draining");
    let port = cluster.replicas[1].port().to_string();
    for _ in 0..20 {
        assert_ne!(client.value(PLACE).await, port);
    }
    // The old primary comes back when the new one is away.
    cluster.primary.kill9().unwrap();
    cluster.replicas[0].promote().unwrap();
    client.query("UPDATE t SET v = 3 WHERE id = 3").await.ok();
    cluster.primary.start().unwrap();
    until_node(&pgweir, &old, "state", "fenced").await;
    cluster.replicas[0].kill9().unwrap();
    until_node(&pgweir, &next, "state", "down").await;
    reload(&pgweir, &text(&cluster, 3), DONE);
    until_node(&pgweir, &old, "state", "fenced").await;
    let update = "UPDATE t SET v = 4 WHERE id = 3";
    let error = client.query(update).await;
    assert_eq!(error.errors[0].code, "57P03");
    let read = "SELECT v FROM t WHERE id = 3";
    assert_eq!(cluster.primary.sql("postgres", read).unwrap(), "0");
    cluster.replicas[0].start().unwrap();
    let mut client = pgweir.client().await;
    client.query(update).await.ok();
    assert_eq!(client.value(read).await, "4");
}
