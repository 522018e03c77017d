//! What clients whose transactions are under way when the primary is lost are told, by fault and by how far they were; and
//! that with `retry.replay` they need not be told.

use pgweir::demo::cluster::{Cluster, StopMode};

use super::failover::{quick, until_node};
use crate::support::client::Client;
use crate::support::link::Link;
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// How a primary is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Stopped,
    Frozen,
    Cut,
}

/// A primary behind a link, its replica, and their pgweir.
struct Stage {
    cluster: Cluster,
    link: Link,
    pgweir: Pgweir,
}

impl Stage {
    async fn new(change: impl FnOnce(Options) -> Options) -> Self {
        let cluster = Cluster::start(1).unwrap();
        let sql = "CREATE TABLE t (who text);
            CREATE FUNCTION enter(text) RETURNS text LANGUAGE sql AS 'INSERT INTO t VALUES ($1) RETURNING who';
            CREATE VIEW entering AS SELECT enter('hidden') AS who";
        cluster.primary.sql("postgres", sql).unwrap();
        cluster.wait_until_caught_up().unwrap();
        let link = Link::to(cluster.primary.address()).await;
        let options = quick(Options::in_front_of(&link.node_url()))
            .flag("--replica", &cluster.replicas[0].node_url());
        let pgweir = change(options).start();
        Self {
            cluster,
            link,
            pgweir,
        }
    }

    /// The primary is lost and the replica takes its place.
    fn lose_primary(&mut self, fault: Fault) {
        tokio::task::block_in_place(|| {
            let primary = &mut self.cluster.primary;
            match fault {
                Fault::Killed => primary.kill9().unwrap(),
                Fault::Stopped => primary.stop(StopMode::Fast).unwrap(),
                Fault::Frozen => primary.pause().unwrap(),
                Fault::Cut => self.link.cut(),
            }
            self.cluster.replicas[0].promote().unwrap();
        });
    }

    /// Waits until so many backends of the primary wait for this.
    async fn waits(&self, event: &str, count: usize) {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}'");
        eventually(event, async || {
            self.cluster.primary.sql("postgres", &sql).unwrap() == count.to_string()
        })
        .await;
    }

    /// Waits until the primary waits for its standby.
    async fn is_synchronous(&self) {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        eventually("a synchronous standby", async || {
            self.cluster.primary.sql("postgres", sql).unwrap() == "1"
        })
        .await;
    }

    /// A client in a transaction that has written.
    async fn inside(&self, who: &str) -> Client {
        let mut client = self.pgweir.client().await;
        client.query("BEGIN").await.ok();
        let sql = format!("INSERT INTO t VALUES ('{who}')");
        client.query(&sql).await.ok();
        client
    }

    /// Who has written, by the new primary.
    fn written(&self) -> String {
        let sql = "SELECT string_agg(who, ' ' ORDER BY who) FROM t";
        self.cluster.replicas[0].sql("postgres", sql).unwrap()
    }
}

/// The only error of a session that has ended.
async fn end(client: &mut Client) -> ServerError {
    let mut errors = client.expect_end().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

/// Loses the primary while one client thinks in its transaction, one has a statement running, one's COMMIT waits for a
/// standby that never comes, and so do two statements outside transactions, one of which looks like a read.
async fn clients_are_told(fault: Fault) {
    let mut stage = Stage::new(|options| options).await;
    let primary = &stage.cluster.primary;
    primary.set("synchronous_standby_names", "nobody").unwrap();
    let mut idle = stage.inside("idle").await;
    let mut busy = stage.inside("busy").await;
    busy.send(&messages::query("SELECT pg_sleep(600)")).await;
    let mut committing = stage.inside("committing").await;
    committing.send(&messages::query("COMMIT")).await;
    let mut outside = stage.pgweir.client().await;
    let sql = "INSERT INTO t VALUES ('outside')";
    outside.send(&messages::query(sql)).await;
    let mut hidden = stage.pgweir.client().await;
    let sql = "/* pgweir: primary */ SELECT who FROM entering";
    hidden.send(&messages::query(sql)).await;
    stage.waits("SyncRep", 3).await;
    stage.waits("PgSleep", 1).await;
    stage.cluster.wait_until_caught_up().unwrap();
    stage.lose_primary(fault);
    let is_told = fault == Fault::Stopped;
    for client in [&mut idle, &mut busy] {
        let error = end(client).await;
        if is_told {
            // The server's own words.
            assert_eq!(error.code, "57P01", "{fault:?}");
        } else {
            assert_eq!(error.code, "08006", "{fault:?}");
            let hint = error.hint.unwrap();
            assert!(hint.contains("rolled back"), "{fault:?}: {hint}");
        }
    }
    for client in [&mut committing, &mut outside, &mut hidden] {
        let error = end(client).await;
        assert_eq!(error.code, "08007", "{fault:?}");
        let hint = error.hint.unwrap();
        assert!(hint.contains("Look in the database"), "{fault:?}: {hint}");
    }
    // All were in the log that the replica had, and none was run again.
    assert_eq!(stage.written(), "committing hidden outside");
    let mut client = stage.pgweir.client().await;
    client.query("INSERT INTO t VALUES ('next')").await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_under_way_on_a_primary_that_is_killed_are_told() {
    clients_are_told(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_under_way_on_a_primary_that_is_stopped_are_told() {
    clients_are_told(Fault::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_under_way_on_a_primary_that_is_frozen_are_told() {
    clients_are_told(Fault::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_under_way_on_a_primary_that_is_cut_off_are_told() {
    clients_are_told(Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_did_not_reach_the_old_primary_never_does() {
    let mut stage = Stage::new(|options| options).await;
    let mut client = stage.inside("late").await;
    stage.link.cut();
    client.send(&messages::query("COMMIT")).await;
    let old = stage.link.address().to_string();
    until_node(&stage.pgweir, &old, "state", "down").await;
    stage.lose_primary(Fault::Cut);
    assert_eq!(end(&mut client).await.code, "08007");
    stage.link.mend();
    until_node(&stage.pgweir, &old, "state", "fenced").await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    eventually("the old primary to end the transaction", async || {
        stage.cluster.primary.sql("postgres", sql).unwrap() == "0"
    })
    .await;
    let count = "SELECT count(*) FROM t";
    assert_eq!(stage.cluster.primary.sql("postgres", count).unwrap(), "0");
}

/// With `retry.settle_commit`. The standby is synchronous and has the WAL of the COMMIT, so the transaction is there; but an
/// id that another server calls committed may be another transaction's, and the client is told that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_the_new_primary_has_is_there_once_and_its_client_is_told_to_look() {
    let mut stage = Stage::new(|options| options.set("retry.settle_commit", "true")).await;
    let primary = &stage.cluster.primary;
    primary.set("synchronous_standby_names", "*").unwrap();
    stage.is_synchronous().await;
    let mut client = stage.inside("committed").await;
    client
        .query("SET LOCAL synchronous_commit = remote_apply")
        .await
        .ok();
    // It has flushed the COMMIT and does not apply it.
    let replica = &stage.cluster.replicas[0];
    replica
        .sql("postgres", "SELECT pg_wal_replay_pause()")
        .unwrap();
    client.send(&messages::query("COMMIT")).await;
    stage.waits("SyncRep", 1).await;
    let written = "SELECT pg_current_wal_flush_lsn()";
    let written = primary.sql("postgres", written).unwrap();
    let has = format!("SELECT pg_last_wal_receive_lsn() >= '{written}'");
    eventually("the standby to have it", async || {
        replica.sql("postgres", &has).unwrap() == "t"
    })
    .await;
    stage.lose_primary(Fault::Killed);
    let error = end(&mut client).await;
    assert_eq!(error.code, "08007");
    assert!(error.hint.unwrap().contains("Look in the database"));
    assert_eq!(stage.written(), "committed");
}

/// With `retry.settle_commit`, of a COMMIT that reached neither server the new primary proves that it is not there: the
/// client is told so, or with `retry.replay` its transaction runs again.
async fn a_commit_that_is_not_there(replays: bool) {
    let mut stage = Stage::new(|options| {
        options
            .set("retry.settle_commit", "true")
            .set("retry.replay", &replays.to_string())
    })
    .await;
    let primary = &stage.cluster.primary;
    primary.set("synchronous_standby_names", "*").unwrap();
    stage.is_synchronous().await;
    let mut client = stage.inside("again").await;
    // Behind the question for the transaction's id: nobody is settled without.
    assert_eq!(client.value("SELECT 1").await, "1");
    stage.link.cut();
    client.send(&messages::query("COMMIT")).await;
    stage.lose_primary(Fault::Killed);
    let reply = client.reply().await;
    if replays {
        assert_eq!(reply.ok().tags, ["COMMIT"]);
    } else {
        assert_eq!((reply.sqlstate(), reply.status), ("40001", 'I'));
        assert_eq!(stage.written(), "");
        let text = "BEGIN; INSERT INTO t VALUES ('again'); COMMIT";
        client.query(text).await.ok();
    }
    assert_eq!(stage.written(), "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_the_new_primary_does_not_have_is_called_rolled_back() {
    a_commit_that_is_not_there(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_the_new_primary_does_not_have_is_replayed_there() {
    a_commit_that_is_not_there(true).await;
}

/// With `retry.replay`, of two clients amid their transactions neither notices that the primary is another one.
async fn nobody_notices(fault: Fault) {
    let mut stage = Stage::new(|options| options.set("retry.replay", "true")).await;
    let mut idle = stage.inside("idle").await;
    assert_eq!(idle.value("SELECT count(*) FROM t").await, "1");
    let mut busy = stage.inside("busy").await;
    busy.send(&messages::query("SELECT 7 FROM (SELECT pg_sleep(1)) s"))
        .await;
    stage.waits("PgSleep", 1).await;
    stage.lose_primary(fault);
    assert_eq!(busy.reply().await.ok().value(), "7");
    let reply = idle.query("INSERT INTO t VALUES ('idle again')").await;
    assert_eq!(reply.ok().status, 'T', "{fault:?}");
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.query("COMMIT").await.ok().status, 'I');
    }
    assert_eq!(stage.written(), "busy idle idle again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_transactions_survive_a_primary_that_is_killed() {
    nobody_notices(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_transactions_survive_a_primary_that_is_stopped() {
    nobody_notices(Fault::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_transactions_survive_a_primary_that_is_frozen() {
    nobody_notices(Fault::Frozen).await;
}
