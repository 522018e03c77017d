//! Reads on replicas: which statements go there, what they are sure to see, and what happens when a replica fails.

use std::time::Duration;

use pgweir::demo::cluster::{Cluster, Server};

use crate::support::client::Client;
use crate::support::faulty_link::{Hold, Link};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// Tells the port of the server that is asked; no function is called by name.
pub(super) const PLACE: &str = "SELECT port FROM place";

/// A cluster with its pgweir.
pub(super) struct Stage {
    pub cluster: Cluster,
    pub pgweir: Pgweir,
}

pub(super) fn options(primary: &Server) -> Options {
    quick(Options::new(primary))
}

fn quick(options: Options) -> Options {
    options
        .set("cluster.probe_interval", "100ms")
        .set("cluster.probe_timeout", "500ms")
        .set("cluster.down_after", "2")
        .set("cluster.sample_interval", "5ms")
        .set("timeouts.server_login_retry", "50ms")
}

fn with_replicas(options: Options, cluster: &Cluster) -> Options {
    let replicas = cluster.replicas.iter();
    replicas.fold(options, |options, replica| {
        options.flag("--replica", &replica.node_url())
    })
}

pub(super) fn cluster(replicas: usize) -> Cluster {
    let cluster = Cluster::start(replicas).unwrap();
    let sql = "CREATE VIEW place AS SELECT inet_server_port()::text AS port;
        CREATE TABLE t (id int PRIMARY KEY, v int);
        INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i;";
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    cluster
}

impl Stage {
    pub async fn new(replicas: usize, change: impl FnOnce(Options) -> Options) -> Self {
        let cluster = cluster(replicas);
        let options = with_replicas(options(&cluster.primary), &cluster);
        let pgweir = change(options).start();
        let stage = Self { cluster, pgweir };
        stage.warm_up().await;
        stage
    }

    /// Reads sent to each replica so far.
    pub fn reads(&self) -> Vec<u64> {
        let metrics = self.pgweir.http_get("/metrics").unwrap();
        let count = |replica: &Server| {
            let name = format!("pgweir_node_reads_total{{node=\"{}\"}} ", replica.address());
            let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap().parse().unwrap()
        };
        self.cluster.replicas.iter().map(count).collect()
    }

    /// Waits until every replica serves reads, and the functions are known.
    pub async fn warm_up(&self) {
        let mut client = self.pgweir.client().await;
        for replica in &self.cluster.replicas {
            let port = replica.port().to_string();
            eventually("each replica to serve a read", async || {
                client.value(PLACE).await == port
            })
            .await;
        }
        self.knows_functions(&mut client).await;
    }

    pub fn primary(&self) -> String {
        self.cluster.primary.port().to_string()
    }

    /// Stops replay on all replicas, so that they miss what is written from now on.
    pub fn pause_replay(&self) {
        for replica in &self.cluster.replicas {
            replica
                .sql("postgres", "SELECT pg_wal_replay_pause()")
                .unwrap();
            while replica
                .sql("postgres", "SELECT pg_get_wal_replay_pause_state()")
                .unwrap()
                != "paused"
            {
                // The startup process pauses at the next record, or a fifth of a second later.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    pub fn resume_replay(&self) {
        for replica in &self.cluster.replicas {
            replica
                .sql("postgres", "SELECT pg_wal_replay_resume()")
                .unwrap();
        }
    }

    /// Where a read of `client` goes, once the samples taken so far have come in.
    pub async fn place(&self, client: &mut Client) -> String {
        client.value(PLACE).await
    }

    pub async fn reaches_replica(&self, client: &mut Client) {
        let primary = self.primary();
        eventually("a read on a replica", async || {
            client.value(PLACE).await != primary
        })
        .await;
    }

    /// Waits until the database's functions are known: before that nothing is sure to only read.
    pub async fn knows_functions(&self, client: &mut Client) {
        let primary = self.primary();
        eventually("a function to be known", async || {
            client.value("SELECT lower(port) FROM place").await != primary
        })
        .await;
    }

    pub async fn count(&self, reason: &str) -> u64 {
        let mut console = self.pgweir.console().await;
        let reply = console.query("SHOW ROUTES").await.ok();
        let row = reply
            .rows
            .iter()
            .find(|row| row[1].as_deref() == Some(reason));
        row.unwrap()[2].as_deref().unwrap().parse().unwrap()
    }
}

fn ports(servers: &[Server]) -> Vec<String> {
    servers
        .iter()
        .map(|server| server.port().to_string())
        .collect()
}

#[tokio::test]
async fn reads_go_to_replicas_and_the_rest_to_the_primary() {
    let stage = Stage::new(2, |options| options).await;
    let mut client = stage.pgweir.client().await;
    let replicas = ports(&stage.cluster.replicas);
    for _ in 0..20 {
        let place = stage.place(&mut client).await;
        assert!(replicas.contains(&place), "{place}");
        let reply = client.extended(PLACE, &[]).await.ok();
        assert!(replicas.contains(&reply.value().to_owned()));
    }
    for text in [
        "SELECT port FROM place FOR SHARE",
        "WITH w AS (UPDATE t SET v = v WHERE id = 1) SELECT port FROM place",
        "SELECT inet_server_port()::text",
        "SELECT port, pg_try_advisory_xact_lock(1) FROM place",
        "SELECT port FROM place; SELECT pg_notify('a', 'b')",
        "/* pgweir: primary */ SELECT port FROM place",
        "BEGIN; SELECT port FROM place; COMMIT",
    ] {
        let reply = client.query(text).await.ok();
        assert_eq!(
            reply.rows[0][0].as_deref(),
            Some(stage.primary().as_str()),
            "{text}"
        );
    }
    let parameters = &client.parameters;
    assert_eq!(parameters.get("in_hot_standby").unwrap(), "off");
    assert!(stage.count("read").await >= 40);
}

#[tokio::test]
async fn a_session_sees_its_own_writes_however_far_replicas_are_behind() {
    let stage = Stage::new(2, |options| options).await;
    let mut writer = stage.pgweir.client().await;
    let mut reader = stage.pgweir.client().await;
    stage.place(&mut reader).await;
    stage.pause_replay();
    writer.query("UPDATE t SET v = 1 WHERE id = 1").await.ok();
    for _ in 0..20 {
        assert_eq!(writer.value("SELECT v FROM t WHERE id = 1").await, "1");
    }
    assert_eq!(stage.place(&mut writer).await, stage.primary());
    // Others read what there is.
    assert_ne!(stage.place(&mut reader).await, stage.primary());
    assert_eq!(reader.value("SELECT v FROM t WHERE id = 1").await, "0");
    // Who comes now begins with what was written before.
    let mut late = stage.pgweir.client().await;
    assert_eq!(late.value("SELECT v FROM t WHERE id = 1").await, "1");
    assert!(stage.count("behind").await >= 20);
    stage.resume_replay();
    stage.reaches_replica(&mut writer).await;
    assert_eq!(writer.value("SELECT v FROM t WHERE id = 1").await, "1");
}

#[tokio::test]
async fn a_replica_is_not_asked_for_what_settles_a_commit() {
    let cluster = cluster(1);
    let link = Link::to(cluster.replicas[0].address()).await;
    link.hold(Hold::Request("system_identifier, checkpoint_lsn"));
    let pgweir = options(&cluster.primary)
        .flag("--replica", &link.node_url())
        .set("retry.settle_commit", "true")
        .start();
    Stage { cluster, pgweir }.warm_up().await;
}

/// Its client is told to look in the database.
#[tokio::test]
async fn a_write_of_unknown_outcome_is_seen_by_who_comes_to_look_for_it() {
    let cluster = cluster(1);
    let link = Link::to(cluster.primary.address()).await;
    let options = quick(Options::in_front_of(&link.node_url()));
    let pgweir = with_replicas(options, &cluster).start();
    let stage = Stage { cluster, pgweir };
    stage.warm_up().await;
    stage.pause_replay();
    let texts = [
        "UPDATE t SET v = 1 WHERE id = 1",
        "BEGIN; UPDATE t SET v = 2 WHERE id = 1; COMMIT",
    ];
    for (text, value) in texts.into_iter().zip(["1", "2"]) {
        let mut client = stage.pgweir.client().await;
        link.hold(Hold::Answer("UPDATE t"));
        client.send(&messages::query(text)).await;
        link.held().await;
        let read = "SELECT v FROM t WHERE id = 1";
        eventually("the write", async || {
            stage.cluster.primary.sql("postgres", read).unwrap() == value
        })
        .await;
        link.reset();
        assert_eq!(client.expect_end().await[0].code, "08007");
        let mut next = stage.pgweir.client().await;
        assert_eq!(next.value(read).await, value);
    }
    stage.resume_replay();
}

#[tokio::test]
async fn a_transaction_counts_as_a_write_when_it_may_have_written() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    stage.pause_replay();
    client.query("BEGIN").await.ok();
    client.query("SELECT v FROM t WHERE id = 2").await.ok();
    client.query("COMMIT").await.ok();
    assert_ne!(stage.place(&mut client).await, stage.primary());
    client.query("BEGIN").await.ok();
    client.query("UPDATE t SET v = 2 WHERE id = 2").await.ok();
    client.query("COMMIT").await.ok();
    assert_eq!(stage.place(&mut client).await, stage.primary());
    stage.resume_replay();
    stage.reaches_replica(&mut client).await;
    stage.pause_replay();
    let update = "UPDATE t SET v = 3 WHERE id = 2 RETURNING v";
    assert_eq!(client.extended(update, &[]).await.ok().value(), "3");
    assert_eq!(client.value("SELECT v FROM t WHERE id = 2").await, "3");
    stage.resume_replay();
}

#[tokio::test]
async fn what_reads_must_see_is_the_sessions_choice() {
    let stage = Stage::new(2, |options| options.set("routing.consistency", "cluster")).await;
    let mut writer = stage.pgweir.client().await;
    let mut reader = stage.pgweir.client().await;
    stage.place(&mut reader).await;
    stage.pause_replay();
    writer.query("UPDATE t SET v = 5 WHERE id = 5").await.ok();
    // With consistency "cluster", everybody's writes count.
    assert_eq!(reader.value("SELECT v FROM t WHERE id = 5").await, "5");
    reader
        .query("SET pgweir.consistency = 'session'")
        .await
        .ok();
    assert_eq!(reader.value("SELECT v FROM t WHERE id = 5").await, "0");
    writer
        .query("SET pgweir.consistency = 'eventual'")
        .await
        .ok();
    assert_eq!(writer.value("SELECT v FROM t WHERE id = 5").await, "0");
    writer
        .query("SET pgweir.consistency = 'bounded:1h'")
        .await
        .ok();
    assert_eq!(writer.value("SELECT v FROM t WHERE id = 5").await, "0");
    writer
        .query("SET pgweir.consistency = 'bounded:10ms'")
        .await
        .ok();
    eventually("the replicas to be too old", async || {
        writer.value("SELECT v FROM t WHERE id = 5").await == "5"
    })
    .await;
    // Something that means nothing is not taken for less than it may mean.
    writer.query("SET pgweir.consistency = 'sesion'").await.ok();
    assert_eq!(stage.place(&mut writer).await, stage.primary());
    assert!(stage.count("consistency").await >= 1);
    writer.query("RESET pgweir.consistency").await.ok();
    stage.resume_replay();
    stage.reaches_replica(&mut writer).await;
}

#[tokio::test]
async fn a_read_may_wait_for_a_replica_to_catch_up() {
    let stage = Stage::new(1, |options| options.set("routing.replica_wait", "20s")).await;
    let mut client = stage.pgweir.client().await;
    for value in 1..20 {
        let sql = format!("UPDATE t SET v = {value} WHERE id = 1");
        client.query(&sql).await.ok();
        assert_ne!(stage.place(&mut client).await, stage.primary());
        assert_eq!(
            client.value("SELECT v FROM t WHERE id = 1").await,
            value.to_string()
        );
    }
    stage.pause_replay();
    client.query("UPDATE t SET v = 77 WHERE id = 1").await.ok();
    client
        .send(&messages::query("SELECT v FROM t WHERE id = 1"))
        .await;
    stage.resume_replay();
    assert_eq!(client.reply().await.ok().value(), "77");
}

#[tokio::test]
async fn read_only_transactions_run_on_a_replica_as_a_whole() {
    let stage = Stage::new(2, |options| options).await;
    let mut client = stage.pgweir.client().await;
    for begin in [
        "BEGIN READ ONLY",
        "START TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
    ] {
        client.query(begin).await.ok();
        let first = stage.place(&mut client).await;
        assert_ne!(first, stage.primary(), "{begin}");
        client.query("SAVEPOINT s").await.ok();
        assert_eq!(client.query("UPDATE t SET v = 1").await.sqlstate(), "25006");
        client.query("ROLLBACK TO s").await.ok();
        assert_eq!(client.extended(PLACE, &[]).await.ok().value(), first);
        client.query("COMMIT").await.ok();
    }
    client.query("BEGIN").await.ok();
    client.query("SET TRANSACTION READ ONLY").await.ok();
    assert_ne!(stage.place(&mut client).await, stage.primary());
    let reply = client.query("SHOW transaction_read_only").await.ok();
    assert_eq!((reply.value(), reply.status), ("on", 'T'));
    client.query("COMMIT").await.ok();
    client
        .query("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        .await
        .ok();
    client.query("BEGIN").await.ok();
    assert_ne!(stage.place(&mut client).await, stage.primary());
    client.query("COMMIT").await.ok();
    client.query("BEGIN READ WRITE").await.ok();
    assert_eq!(stage.place(&mut client).await, stage.primary());
    client.query("COMMIT").await.ok();
}

#[tokio::test]
async fn a_read_only_transaction_goes_on_on_the_primary_if_it_must() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    // Advisory locks are the primary's.
    client.query("BEGIN READ ONLY").await.ok();
    let lock = "SELECT pg_advisory_xact_lock(7), inet_server_port()::text";
    let reply = client.query(lock).await.ok();
    assert_eq!(reply.rows[0][1].as_deref(), Some(&*stage.primary()));
    assert_eq!(client.query("COMMIT").await.ok().status, 'I');
    // So is the right to change one's mind.
    client.query("BEGIN READ ONLY").await.ok();
    client.query("SET TRANSACTION READ WRITE").await.ok();
    client.query("UPDATE t SET v = 9 WHERE id = 9").await.ok();
    client.query("COMMIT").await.ok();
    assert_eq!(client.value("SELECT v FROM t WHERE id = 9").await, "9");
    // In READ COMMITTED reads leave nothing behind.
    client
        .query("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        .await
        .ok();
    stage.place(&mut client).await;
    let reply = client.query(lock).await.ok();
    assert_eq!(reply.rows[0][1].as_deref(), Some(&*stage.primary()));
    client.query("COMMIT").await.ok();
    // Where the transaction can't move, nothing may bind the session to the replica.
    eventually("a transaction on a replica", async || {
        client
            .query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .ok();
        let place = client.value(PLACE).await;
        if place == stage.primary() {
            client.query("COMMIT").await.ok();
        }
        place != stage.primary()
    })
    .await;
    let reply = client.query("LISTEN a").await;
    assert_eq!(reply.sqlstate(), "0A000");
    assert!(reply.error().hint.clone().unwrap().contains("primary"));
    assert_eq!(client.query("ROLLBACK").await.ok().status, 'I');
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn functions_are_judged_by_the_catalogue() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    client
        .query(
            "CREATE FUNCTION stable_place() RETURNS text STABLE LANGUAGE sql AS 'SELECT port FROM place';
             CREATE FUNCTION volatile_place() RETURNS text LANGUAGE sql AS 'SELECT port FROM place';
             CREATE VIEW volatile_view AS SELECT volatile_place() AS port;
             CREATE FUNCTION public.upper(int) RETURNS text LANGUAGE sql AS 'SELECT port FROM place'",
        )
        .await
        .ok();
    eventually(
        "a read through a stable function on a replica",
        async || client.value("SELECT stable_place()").await != stage.primary(),
    )
    .await;
    for text in [
        "SELECT volatile_place()",
        "SELECT port FROM volatile_view",
        "SELECT public.upper(1)",
        "SELECT upper(1)",
        "SELECT stable_place() || volatile_place()",
    ] {
        let value = client.value(text).await;
        assert!(value.starts_with(&stage.primary()), "{text}: {value}");
    }
    eventually(
        "a read through a built-in function on a replica",
        async || client.value("SELECT lower(port) FROM place").await != stage.primary(),
    )
    .await;
}

#[tokio::test]
async fn what_a_replica_refuses_is_run_on_the_primary_and_remembered() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    client
        .query(
            // The catalogue is told that it only reads.
            "CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'UPDATE t SET v = v + 1 WHERE id = 50 RETURNING v';
             CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE sql AS 'SELECT writes()';
             CREATE VIEW innocent AS SELECT reads() AS v, port FROM place",
        )
        .await
        .ok();
    stage.reaches_replica(&mut client).await;
    // Refused by the replica, then run where it can be.
    let reply = client.query("SELECT v, port FROM innocent").await.ok();
    assert_eq!(reply.order, "TDCZ");
    assert_eq!(reply.rows[0][0].as_deref(), Some("1"));
    assert_eq!(reply.rows[0][1].as_deref(), Some(&*stage.primary()));
    stage.pgweir.wait_for_log("refused a statement as a write");
    // It was a write, which the session sees.
    assert_eq!(client.value("SELECT v FROM t WHERE id = 50").await, "1");
    assert_eq!(stage.count("again").await, 1);
    client.query("SELECT v, port FROM innocent").await.ok();
    assert_eq!(stage.count("again").await, 1);
    assert_eq!(stage.count("refused").await, 1);
    // The same in the extended protocol, where the answers to Parse and Bind come before the error.
    let reply = client
        .extended("SELECT port, v FROM innocent", &[])
        .await
        .ok();
    assert_eq!(reply.order, "12TDCZ");
    assert_eq!(reply.rows[0][1].as_deref(), Some("3"));
}

/// Ways in which a text that reads has the server write, none of which names a function that it calls.
const HIDDEN_WRITES: [(&str, &str); 6] = [
    ("a view", "SELECT * FROM writing"),
    ("a view of a view", "SELECT 1 FROM above_writing"),
    ("a sequence in a view", "SELECT * FROM counting"),
    ("a policy", "SELECT 1 FROM guarded"),
    ("an operator", "SELECT 1 +!+ 2"),
    ("a function as a column", "SELECT place.touched FROM place"),
];

#[tokio::test]
async fn what_a_text_hides_counts_as_a_write_where_it_runs_on_the_primary() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    client
        .query(
            "CREATE FUNCTION bump(int) RETURNS int LANGUAGE sql AS 'UPDATE t SET v = v + 1 WHERE id = 60 RETURNING v';
             CREATE FUNCTION add(int, int) RETURNS int LANGUAGE sql AS 'SELECT bump(1)';
             CREATE FUNCTION touched(place) RETURNS int LANGUAGE sql AS 'SELECT bump(1)';
             CREATE FUNCTION allowed() RETURNS bool LANGUAGE sql AS 'SELECT bump(1) > 0';
             CREATE OPERATOR +!+ (LEFTARG = int, RIGHTARG = int, FUNCTION = add);
             CREATE VIEW writing AS SELECT bump(1) AS v;
             CREATE VIEW above_writing AS SELECT w.v FROM writing w WHERE w.v > 0;
             CREATE SEQUENCE counted;
             CREATE VIEW counting AS SELECT nextval('counted'::text::regclass), bump(1) FROM t WHERE id = 1;
             CREATE TABLE guarded (a int);
             INSERT INTO guarded VALUES (1);
             ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
             CREATE POLICY seen ON guarded USING (allowed());
             CREATE ROLE limited;
             GRANT ALL ON ALL TABLES IN SCHEMA public TO limited;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO limited",
        )
        .await
        .ok();
    client.query("SET ROLE limited").await.ok();
    let mut expected = 0;
    for (way, text) in HIDDEN_WRITES {
        // Without what was known of the text by a replica's refusal: each time on the primary first.
        for frame in ["/* pgweir: primary */", "BEGIN"] {
            stage.reaches_replica(&mut client).await;
            stage.pause_replay();
            if frame == "BEGIN" {
                client.query("BEGIN").await.ok();
                client.query(text).await.ok();
                client.query("COMMIT").await.ok();
            } else {
                client.query(&format!("{frame} {text}")).await.ok();
            }
            expected += 1;
            let value = client.value("SELECT v FROM t WHERE id = 60").await;
            assert_eq!(value, expected.to_string(), "{way}, {frame}");
            stage.resume_replay();
        }
    }
    // What hides nothing counts for nothing, unless any text may: operators are not told apart.
    client
        .query("RESET ROLE; DROP OPERATOR +!+ (int, int)")
        .await
        .ok();
    stage.knows_functions(&mut client).await;
    stage.pause_replay();
    client.query("BEGIN").await.ok();
    client
        .query("SELECT place.port, t.v FROM place, t WHERE t.v + 1 > 0")
        .await
        .ok();
    client.query("COMMIT").await.ok();
    assert_ne!(stage.place(&mut client).await, stage.primary());
    stage.resume_replay();
}

#[tokio::test]
async fn what_a_replica_does_not_have_yet_is_found_on_the_primary() {
    let stage = Stage::new(1, |options| options.set("routing.consistency", "eventual")).await;
    let mut client = stage.pgweir.client().await;
    stage.pause_replay();
    client.query("CREATE TABLE young (a int)").await.ok();
    assert_eq!(client.value("SELECT count(*) FROM young").await, "0");
    assert_eq!(
        client
            .query("SELECT count(*) FROM nothing")
            .await
            .sqlstate(),
        "42P01"
    );
    let reply = client.extended("SELECT count(*) FROM young", &[]).await;
    assert_eq!(reply.ok().value(), "0");
    stage.resume_replay();
}

#[tokio::test]
async fn a_write_behind_a_read_in_a_pipeline_goes_to_the_primary() {
    let stage = Stage::new(1, |options| options).await;
    let mut client = stage.pgweir.client().await;
    let extended = |sql: &str| {
        [
            messages::parse("", sql, &[]),
            messages::bind("", "", &[]),
            messages::execute("", 0),
            messages::sync(),
        ]
        .concat()
    };
    let pipeline = [
        extended(PLACE),
        extended("UPDATE t SET v = 31 WHERE id = 31"),
        extended("SELECT v FROM t WHERE id = 31"),
        messages::query(PLACE),
        messages::query("BEGIN"),
        messages::query("SELECT v FROM t WHERE id = 31"),
        messages::query("COMMIT"),
    ]
    .concat();
    client.send(&pipeline).await;
    assert_ne!(client.reply().await.ok().value(), stage.primary());
    assert_eq!(client.reply().await.ok().tags, ["UPDATE 1"]);
    assert_eq!(client.reply().await.ok().value(), "31");
    client.reply().await.ok();
    client.reply().await.ok();
    assert_eq!(client.reply().await.ok().value(), "31");
    assert_eq!(client.reply().await.ok().status, 'I');
}

#[tokio::test]
async fn prepared_statements_and_settings_hold_on_every_server() {
    let stage = Stage::new(2, |options| options).await;
    let mut client = stage.pgweir.client().await;
    client.query("SET datestyle = 'German'").await.ok();
    client.query("SET work_mem = '5MB'").await.ok();
    client
        .send(
            &[
                messages::parse(
                    "p",
                    "SELECT '2020-02-01'::date || ' ' || port FROM place",
                    &[],
                ),
                messages::sync(),
            ]
            .concat(),
        )
        .await;
    client.reply().await.ok();
    let mut seen = std::collections::BTreeSet::new();
    eventually("all servers to be asked", async || {
        let execute = [
            messages::bind("", "p", &[]),
            messages::execute("", 0),
            messages::sync(),
        ]
        .concat();
        client.send(&execute).await;
        let reply = client.reply().await.ok();
        let (date, port) = reply.value().split_once(' ').unwrap();
        assert_eq!(date, "01.02.2020");
        seen.insert(port.to_owned());
        // What follows a write runs on the primary for a moment.
        if seen.len() == 2 {
            client.query("UPDATE t SET v = 0 WHERE id = 3").await.ok();
        }
        seen.len() == 3
    })
    .await;
    assert_eq!(client.value("SHOW work_mem").await, "5MB");
}

#[tokio::test]
async fn reads_of_a_replica_that_dies_or_freezes_are_answered_by_others() {
    let mut stage = Stage::new(2, |options| options).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(stage.pgweir.client().await);
    }
    let mut sleeping = stage.pgweir.client().await;
    let slow = "SELECT port FROM place, (SELECT pg_sleep(2)) s";
    sleeping.query("/* pgweir: replica */ SELECT 1").await.ok();
    sleeping
        .send(&messages::query(&format!("/* pgweir: replica */ {slow}")))
        .await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let mut on = None;
    eventually("a slow read on a replica", async || {
        on = stage
            .cluster
            .replicas
            .iter()
            .position(|replica| replica.sql("postgres", running).unwrap() == "1");
        on.is_some()
    })
    .await;
    let on = on.unwrap();
    stage.cluster.replicas[on].kill9().unwrap();
    for client in &mut clients {
        assert_ne!(
            client.value(PLACE).await,
            stage.cluster.replicas[on].port().to_string()
        );
    }
    let place = sleeping.reply().await.ok().value().to_owned();
    assert_ne!(place, stage.cluster.replicas[on].port().to_string());
    let other = 1 - on;
    stage.cluster.replicas[other].pause().unwrap();
    for client in &mut clients {
        assert_eq!(client.value(PLACE).await, stage.primary());
    }
    stage.cluster.replicas[other].cont().unwrap();
    stage.cluster.replicas[on].start().unwrap();
    stage.warm_up().await;
}

#[tokio::test]
async fn a_drained_replica_serves_nobody_until_it_is_let_back() {
    let stage = Stage::new(2, |options| options).await;
    let mut client = stage.pgweir.client().await;
    let mut console = stage.pgweir.console().await;
    let [first, second] = &stage.cluster.replicas[..] else {
        panic!("two replicas")
    };
    console
        .query(&format!("DRAIN {}", first.address()))
        .await
        .ok();
    eventually("the state to change", async || {
        let reply = console.query("SHOW NODES").await.ok();
        reply
            .rows
            .iter()
            .any(|row| row[2].as_deref() == Some("draining"))
    })
    .await;
    for _ in 0..20 {
        assert_eq!(client.value(PLACE).await, second.port().to_string());
    }
    let reply = console
        .query(&format!("DRAIN {}", stage.cluster.primary.address()))
        .await;
    assert_eq!(reply.sqlstate(), "55000");
    assert_eq!(console.query("DRAIN nowhere").await.sqlstate(), "42704");
    console
        .query(&format!("UNDRAIN {}", first.address()))
        .await
        .ok();
    stage.warm_up().await;
}

#[tokio::test]
async fn reads_stay_on_the_primary_where_that_is_configured() {
    let stage = Stage::new(1, |options| options.set("users.aside.reads", "primary")).await;
    stage
        .cluster
        .primary
        .sql(
            "postgres",
            "CREATE ROLE aside LOGIN; GRANT SELECT ON place TO aside",
        )
        .unwrap();
    stage.cluster.wait_until_caught_up().unwrap();
    let mut client = Client::connect(stage.pgweir.address, "aside", "postgres").await;
    for _ in 0..10 {
        assert_eq!(client.value(PLACE).await, stage.primary());
    }
    let hinted = format!("/* pgweir: replica */ {PLACE}");
    eventually("a hint to be followed", async || {
        client.value(&hinted).await != stage.primary()
    })
    .await;
    assert!(stage.count("configured").await >= 10);
}

#[tokio::test]
async fn a_replica_with_other_settings_is_not_used() {
    let cluster = cluster(1);
    cluster.replicas[0].set("timezone", "Asia/Tokyo").unwrap();
    let pgweir = with_replicas(options(&cluster.primary), &cluster).start();
    let mut client = pgweir.client().await;
    for _ in 0..20 {
        assert_eq!(
            client.value(PLACE).await,
            cluster.primary.port().to_string()
        );
    }
    pgweir.wait_for_log("the replica is not used: its TimeZone is");
}

/// What the golden file sends to replicas, by the words of its answers.
fn golden_reads() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/routes.txt");
    let golden = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = golden.lines().collect();
    let is_read = |pair: &&[&str]| pair[1].starts_with("  => replica");
    let pairs = lines.windows(2).filter(is_read);
    pairs.map(|pair| pair[0].replace("\\n", "\n")).collect()
}

#[tokio::test]
async fn what_is_said_to_be_a_read_is_one_by_a_replicas_word() {
    let cluster = cluster(1);
    let sql = "CREATE TABLE u (id int PRIMARY KEY, v int); CREATE SEQUENCE s; CREATE SCHEMA s;
        CREATE SCHEMA other;
        CREATE FUNCTION reads_a(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
        CREATE FUNCTION s.reads_a(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'";
    cluster.primary.sql("postgres", sql).unwrap();
    cluster.wait_until_caught_up().unwrap();
    let replica = cluster.replicas[0].address();
    let mut client = Client::connect(replica, "postgres", "postgres").await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    let mut count = 0;
    for text in golden_reads() {
        let reply = client.query(&text).await;
        // Some are no SQL, call functions that this database lacks, or want a transaction: the primary says the same.
        if let Some(error) = reply.errors.first() {
            let code = error.code.as_str();
            assert!(
                matches!(code, "42601" | "42883" | "25P01"),
                "{text}: {code}"
            );
        }
        if reply.status != 'I' {
            client.query("ROLLBACK").await.ok();
        }
        assert_eq!(client.value(locks).await, "0", "{text}");
        count += 1;
    }
    assert!(count > 80, "{count}");
}
