//! Which of several replicas reads go to, and what reads must see for a database and for a user.

use super::failover::node;
use super::routing::{PLACE, Stage, cluster, options};
use crate::support::client::Client;
use crate::support::messages;
use crate::support::pgweir::Options;
use crate::support::wait::eventually;

/// A cluster of two replicas whose URLs end in these.
fn stage_of(endings: [&str; 2], change: impl FnOnce(Options) -> Options) -> Stage {
    let cluster = cluster(2);
    let mut options = options(&cluster.primary);
    for (replica, ending) in cluster.replicas.iter().zip(endings) {
        let url = format!("{}?{ending}", replica.node_url());
        options = options.flag("--replica", &url);
    }
    let pgweir = change(options).start();
    Stage { cluster, pgweir }
}

#[tokio::test]
async fn replicas_of_the_own_zone_serve_while_there_are_any() {
    let stage = stage_of(["zone=far", "zone=near"], |options| {
        options.set("cluster.zone", "near")
    });
    let [far, near] = &stage.cluster.replicas[..] else {
        panic!("two replicas")
    };
    let mut client = stage.pgweir.client().await;
    stage.reaches_replica(&mut client).await;
    for _ in 0..40 {
        assert_eq!(client.value(PLACE).await, near.port().to_string());
    }
    assert_eq!(stage.reads()[0], 0);
    let mut console = stage.pgweir.console().await;
    let drain = format!("DRAIN {}", near.address());
    console.query(&drain).await.ok();
    eventually("reads in the other zone", async || {
        client.value(PLACE).await == far.port().to_string()
    })
    .await;
    for _ in 0..40 {
        assert_eq!(client.value(PLACE).await, far.port().to_string());
    }
    console.query(&format!("UN{drain}")).await.ok();
    eventually("reads in the own zone again", async || {
        client.value(PLACE).await == near.port().to_string()
    })
    .await;
}

#[tokio::test]
async fn a_replica_of_three_times_the_weight_gets_three_times_the_reads() {
    let stage = stage_of(["weight=3", "weight=1"], |options| options);
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(stage.pgweir.client().await);
    }
    stage.warm_up().await;
    // What takes as long wherever it runs, many at a time.
    let read = "/* pgweir: replica */ SELECT port FROM place, (SELECT pg_sleep(0.05)) s";
    let mut before = Vec::new();
    for round in 0..40 {
        // The first rounds open the connections.
        if round == 8 {
            before = stage.reads();
        }
        for client in &mut clients {
            client.send(&messages::query(read)).await;
        }
        for client in &mut clients {
            client.reply().await.ok();
        }
    }
    let after = stage.reads();
    let [heavy, light] = [after[0] - before[0], after[1] - before[1]];
    assert!(heavy + light > 400, "{heavy} + {light}");
    // Each round ends at 12 to 4, give or take one.
    let is_fair = (light * 22..light * 40).contains(&(heavy * 10));
    assert!(is_fair, "{heavy} to {light}");
}

#[tokio::test]
async fn what_reads_must_see_is_said_for_databases_and_users_too() {
    let sql = "CREATE ROLE lax LOGIN; CREATE ROLE strict LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO lax, strict";
    let cluster = cluster(1);
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let options = options(&cluster.primary)
        .flag("--replica", &cluster.replicas[0].node_url())
        .set("databases.other.dbname", "postgres")
        .set("databases.other.consistency", "eventual")
        .set("users.lax.consistency", "eventual")
        .set("users.strict.consistency", "cluster");
    let pgweir = options.start();
    let stage = Stage { cluster, pgweir };
    let read = "SELECT v FROM t WHERE id = 8";
    let address = stage.pgweir.address;
    let client = async |user: &str, database: &str| {
        let mut client = Client::connect(address, user, database).await;
        stage.reaches_replica(&mut client).await;
        stage.knows_functions(&mut client).await;
        client
    };
    let mut default = client("postgres", "postgres").await;
    let mut lax = client("lax", "postgres").await;
    let mut strict = client("strict", "postgres").await;
    let mut other = client("postgres", "other").await;
    let mut strict_other = client("strict", "other").await;
    stage.pause_replay();
    // Everybody writes something; the register is written by one that none but `strict` must wait for.
    let mut writer = stage.pgweir.client().await;
    for client in [&mut lax, &mut other] {
        client.query("UPDATE t SET v = 7 WHERE id = 8").await.ok();
        assert_eq!(client.value(read).await, "0");
        client
            .query("SET pgweir.consistency = 'session'")
            .await
            .ok();
        assert_eq!(client.value(read).await, "7");
    }
    writer.query("UPDATE t SET v = 9 WHERE id = 8").await.ok();
    assert_eq!(default.value(read).await, "0");
    assert_eq!(strict.value(read).await, "9");
    // What a user says counts more than what the database does.
    assert_eq!(strict_other.value(read).await, "9");
    stage.resume_replay();
}

#[tokio::test]
async fn a_replica_that_applies_late_serves_old_rows_to_those_who_take_them_until_it_lags_too_far()
{
    let stage = Stage::new(2, |options| options.set("cluster.replica_lag_max", "2s")).await;
    let late = &stage.cluster.replicas[0];
    let (address, port) = (late.address().to_string(), late.port().to_string());
    late.set("recovery_min_apply_delay", "5s").unwrap();
    let mut writer = stage.pgweir.client().await;
    let mut lax = stage.pgweir.client().await;
    lax.query("SET pgweir.consistency = 'eventual'").await.ok();
    writer.query("UPDATE t SET v = 1 WHERE id = 9").await.ok();
    let read = "SELECT v, port FROM t, place WHERE id = 9";
    let mut states = Vec::new();
    let (mut old, mut console) = (0, stage.pgweir.console().await);
    // Up while it is a little late, then lagging, and up again once it has applied what there is.
    eventually("the replica to have applied what was written", async || {
        let state = node(&mut console, &address, "state").await;
        if states.last() != Some(&state) {
            states.push(state);
        }
        let has_applied = late
            .sql("postgres", "SELECT v FROM t WHERE id = 9")
            .unwrap()
            == "1";
        let own = writer.query(read).await.ok().rows.remove(0);
        assert_eq!(own[0].as_deref(), Some("1"), "of {:?}", own[1]);
        assert!(has_applied || own[1].as_deref() != Some(&*port));
        let any = lax.query(read).await.ok().rows.remove(0);
        if any[1].as_deref() == Some(&*port) && any[0].as_deref() == Some("0") {
            // Whoever was let on it asked before it was found to lag.
            assert!(states.iter().all(|state| state == "up"));
            old += 1;
        }
        states == ["up", "lagging", "up"]
    })
    .await;
    assert!(old > 0, "no old row was read");
    eventually("the writer to read on the late replica", async || {
        stage.place(&mut writer).await == port
    })
    .await;
}
