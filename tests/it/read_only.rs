//! Read-only transactions on replicas: what takes them to the primary, what is left behind then, and what they may not do
//! where they are.

use super::routing::{PLACE, Stage, cluster, options};
use crate::support::client::{Client, Login};
use crate::support::messages;
use crate::support::wait::eventually;

const REPEATABLE: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const COMMITTED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";

impl Stage {
    /// Opens a transaction that has read on a replica.
    async fn begins(&self, client: &mut Client, begin: &str) {
        let primary = self.primary();
        eventually("a transaction on a replica", async || {
            client.query(begin).await.ok();
            let place = client.value(PLACE).await;
            if place == primary {
                client.query("COMMIT").await.ok();
            }
            place != primary
        })
        .await;
    }
}

/// A replica would carry it out, and nobody on the primary would know.
#[tokio::test]
async fn what_acts_on_the_server_is_refused_where_a_transaction_cannot_move() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    for text in [
        "SELECT pg_advisory_xact_lock(7)",
        "SELECT pg_catalog.pg_try_advisory_xact_lock_shared(7)",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT 1; SELECT pg_wal_replay_pause()",
    ] {
        for begin in [REPEATABLE, "BEGIN READ ONLY"] {
            stage.begins(&mut client, begin).await;
            let reply = client.query(text).await;
            assert_eq!(reply.sqlstate(), "0A000", "{text}");
            let error = reply.error();
            assert!(error.hint.clone().unwrap().contains("primary"), "{error:?}");
            client.query("ROLLBACK").await.ok();
        }
        if !text.contains(';') {
            stage.begins(&mut client, REPEATABLE).await;
            let reply = client.extended(text, &[]).await;
            assert_eq!(reply.sqlstate(), "0A000", "{text}");
            client.query("ROLLBACK").await.ok();
        }
    }
    client
        .query("PREPARE lock AS SELECT pg_advisory_xact_lock(7)")
        .await
        .ok();
    stage.begins(&mut client, REPEATABLE).await;
    assert_eq!(client.query("EXECUTE lock").await.sqlstate(), "0A000");
    client.query("ROLLBACK").await.ok();
    let replica = &stage.cluster.replicas[0];
    let paused = "SELECT pg_is_wal_replay_paused()";
    assert_eq!(replica.sql("postgres", paused).unwrap(), "f");
    // What the replica refuses itself, and what is harmless there, is up to it.
    stage.begins(&mut client, REPEATABLE).await;
    let xml = "SELECT query_to_xml('SELECT 1', true, true, '')";
    client.query(xml).await.ok();
    let write = client.query("SELECT txid_current()").await;
    assert_eq!(write.sqlstate(), "25006");
    client.query("ROLLBACK").await.ok();
}

#[tokio::test]
async fn a_function_call_counts_as_a_write() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    // What it has written does not keep it from a replica then.
    let set = "SET pgweir.consistency = 'eventual'";
    client.query(set).await.ok();
    client.query("BEGIN").await.ok();
    // lo_create(4711)
    let call = [
        &715_u32.to_be_bytes()[..],
        &[0, 1, 0, 1, 0, 1, 0, 0, 0, 4],
        &4711_u32.to_be_bytes(),
        &[0, 1],
    ];
    client.send(&messages::frame(b'F', &call.concat())).await;
    client.reply().await.ok();
    client.query("SET TRANSACTION READ ONLY").await.ok();
    assert_eq!(client.query("COMMIT").await.ok().tags, ["COMMIT"]);
    let made = "SELECT count(*) FROM pg_largeobject_metadata WHERE oid = 4711";
    let primary = &stage.cluster.primary;
    assert_eq!(primary.sql("postgres", made).unwrap(), "1");
}

#[tokio::test]
async fn cursors_and_portals_keep_a_transaction_where_it_is() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    let lock = "SELECT pg_advisory_xact_lock(7)";
    let open = |portal: &str, rows: u32| {
        let batch = [
            messages::parse("", "SELECT id FROM t ORDER BY id", &[]),
            messages::bind(portal, "", &[]),
            messages::execute(portal, rows),
            messages::sync(),
        ];
        batch.concat()
    };
    // Without, it goes on on the primary.
    stage.begins(&mut client, COMMITTED).await;
    client.query(lock).await.ok();
    assert_eq!(client.value(PLACE).await, stage.primary());
    client.query("COMMIT").await.ok();
    for portal in ["cursor", "named", ""] {
        stage.begins(&mut client, COMMITTED).await;
        if portal == "cursor" {
            let declare = "DECLARE cursor CURSOR FOR SELECT id FROM t";
            client.query(declare).await.ok();
        } else {
            client.send(&open(portal, 1)).await;
            client.reply().await.ok();
        }
        assert_eq!(client.query(lock).await.sqlstate(), "0A000", "{portal}");
        client.query("ROLLBACK").await.ok();
    }
}

#[tokio::test]
async fn a_string_that_ends_a_transaction_and_goes_on_does_so_on_the_primary() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    let ids = "SELECT count(*) FROM t WHERE id > 1000";
    let primary = &stage.cluster.primary;
    for (count, end) in [(1, "COMMIT"), (2, "ROLLBACK")] {
        stage.begins(&mut client, REPEATABLE).await;
        let text = format!("{end}; INSERT INTO t VALUES (1000 + {count}, 0)");
        let reply = client.query(&text).await.ok();
        assert_eq!((&*reply.tags[0], reply.status), (end, 'I'));
        assert_eq!(primary.sql("postgres", ids).unwrap(), count.to_string());
    }
    // A failed one has another answer to COMMIT.
    stage.begins(&mut client, REPEATABLE).await;
    assert_eq!(client.query("SELECT 1/0").await.sqlstate(), "22012");
    let text = "ROLLBACK; INSERT INTO t VALUES (1003, 0)";
    assert_eq!(client.query(text).await.ok().status, 'I');
    stage.begins(&mut client, REPEATABLE).await;
    assert_eq!(client.query("SELECT 1/0").await.sqlstate(), "22012");
    let text = "COMMIT; INSERT INTO t VALUES (1004, 0)";
    let reply = client.query(text).await;
    assert_eq!((reply.sqlstate(), reply.status), ("25P02", 'E'));
    client.query("ROLLBACK").await.ok();
    // What it has set would be lost elsewhere.
    stage.begins(&mut client, REPEATABLE).await;
    client.query("SET LOCAL work_mem = '1MB'").await.ok();
    let reply = client.query(text).await;
    assert_eq!((reply.sqlstate(), reply.status), ("0A000", 'E'));
    client.query("ROLLBACK").await.ok();
    assert_eq!(primary.sql("postgres", ids).unwrap(), "3");
}

/// A replica can't run serializable transactions, and says so only at their first statement.
#[tokio::test]
async fn who_is_serializable_by_default_reads_on_the_primary() {
    let cluster = cluster(1);
    let sql = "CREATE ROLE careful LOGIN; GRANT SELECT ON place TO careful;
        ALTER ROLE careful SET default_transaction_isolation = 'serializable'";
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let pgweir = options(&cluster.primary)
        .flag("--replica", &cluster.replicas[0].node_url())
        .start();
    let stage = Stage { cluster, pgweir };
    let login = Login::new("careful", "postgres");
    for _ in 0..2 {
        let mut careful = stage.pgweir.client_as(&login).await;
        for begin in ["BEGIN READ ONLY", "BEGIN; SET TRANSACTION READ ONLY"] {
            for text in begin.split("; ") {
                careful.query(text).await.ok();
            }
            assert_eq!(careful.value(PLACE).await, stage.primary(), "{begin}");
            let level = careful.value("SHOW transaction_isolation").await;
            assert_eq!(level, "serializable");
            careful.query("COMMIT").await.ok();
        }
        // What it says itself counts.
        stage.begins(&mut careful, REPEATABLE).await;
        careful.query("COMMIT").await.ok();
        // Nor does it concern others.
        stage.warm_up().await;
        let mut other = stage.pgweir.client().await;
        stage.begins(&mut other, "BEGIN READ ONLY").await;
        other.query("COMMIT").await.ok();
    }
    // The same for everybody.
    for server in [&stage.cluster.primary, &stage.cluster.replicas[0]] {
        std::fs::OpenOptions::new()
            .append(true)
            .open(server.data().join("postgresql.conf"))
            .and_then(|mut file| {
                std::io::Write::write_all(
                    &mut file,
                    b"\ndefault_transaction_isolation = 'serializable'\n",
                )
            })
            .unwrap();
        server.sql("postgres", "SELECT pg_reload_conf()").unwrap();
    }
    let pgweir = options(&stage.cluster.primary)
        .flag("--replica", &stage.cluster.replicas[0].node_url())
        .start();
    let mut client = pgweir.client().await;
    for _ in 0..20 {
        client.query("BEGIN READ ONLY").await.ok();
        assert_eq!(client.value(PLACE).await, stage.primary());
        client.query("COMMIT").await.ok();
    }
}
