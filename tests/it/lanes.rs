//! Short reads that share a server connection: whoever is unusual keeps nobody waiting, and nobody notices.
//!
//! A lane is only used while another short statement is under way. Here that is one that waits for a lock.

use pgweir::tasks;

use crate::shared::{self, Role};
use crate::support::client::{Client, Login, cancel};
use crate::support::messages::{bind, describe, execute, parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// More than a statement needs to be known as short.
const WARM: usize = 24;

/// A table that can be locked, one lane, and a role of its own.
struct Scene {
    role: Role,
    pgweir: Pgweir,
    table: String,
}

async fn scene(name: &'static str, lanes: &str) -> Scene {
    let mut role = shared::role(name).await;
    let table = format!("{name}_table");
    role.observe(&format!(
        "CREATE TABLE {table} (a int, b text); INSERT INTO {table} SELECT n, 'b' || n FROM generate_series(1, 9) AS n; SELECT 1"
    ))
    .await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "6")
        .set("pool.lanes", lanes)
        .start();
    let scene = Scene {
        role,
        pgweir,
        table,
    };
    let mut client = scene.client().await;
    for _ in 0..WARM {
        assert_eq!(client.value(&scene.select(3)).await, "b3");
        assert_eq!(client.value(&scaled(2)).await, "2");
    }
    scene
}

/// Its last row comes late, or is an error, as its number says.
fn scaled(number: i64) -> String {
    format!("SELECT 4 / {number}")
}

impl Scene {
    async fn client(&self) -> Client {
        self.role.client(&self.pgweir).await
    }

    fn select(&self, key: usize) -> String {
        format!("SELECT b FROM {} WHERE a = {key}", self.table)
    }

    /// Statements that boarded a lane, by outcome.
    fn boarded(&self, outcome: &str) -> f64 {
        let name = self.role.name;
        let series = format!(
            "pgweir_lane_statements_total{{database=\"postgres\",user=\"{name}\",outcome=\"{outcome}\"}} "
        );
        self.pgweir.metric(&series).unwrap_or_default()
    }

    /// Statements that failed so.
    fn failed(&self, code: &str) -> f64 {
        let series = format!("pgweir_statement_errors_total{{sqlstate=\"{code}\"}} ");
        self.pgweir.metric(&series).unwrap_or_default()
    }

    /// A client that holds the table, past pgweir.
    async fn lock(&self) -> Client {
        let mut locker = shared::direct().await;
        let sql = format!("BEGIN; LOCK TABLE {}", self.table);
        locker.query(&sql).await.ok();
        locker
    }

    /// Waits until `count` backends of the role wait for a lock.
    async fn blocked(&mut self, count: usize) {
        let role = &mut self.role;
        eventually("statements that wait for the lock", async || {
            role.activity("pid", "wait_event_type = 'Lock'").await.len() == count
        })
        .await;
    }
}

#[tokio::test]
async fn who_waits_in_front_keeps_nobody_waiting() {
    let mut scene = scene("lane_slow", "1").await;
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    let mut rider = scene.client().await;
    rider.send(&query(&scene.select(2))).await;
    let mut others = Vec::new();
    for number in 1..5 {
        let mut other = scene.client().await;
        other.send(&query(&scaled(number))).await;
        others.push(other);
    }
    scene.blocked(2).await;
    for (number, other) in (1..5).zip(&mut others) {
        let reply = other.reply().await.ok();
        assert_eq!(reply.value(), (4 / number).to_string());
    }
    // The lane is open again once the slow one has left it.
    eventually("a ride to its end", async || {
        assert_eq!(others[0].value(&scaled(4)).await, "1");
        scene.boarded("answered") >= 1.0
    })
    .await;
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
    assert_eq!(rider.reply().await.ok().value(), "b2");
}

#[tokio::test]
async fn riders_are_in_the_logs_and_traces_like_others() {
    let mut scene = scene("lane_logs", "1").await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("all.log");
    // Nobody takes the traces: each is counted as dropped.
    scene.pgweir = Options::new(shared::server())
        .flag("--pool-size", "6")
        .set("pool.lanes", "1")
        .set("query_log.file", &format!("'{}'", log.display()))
        .set("log_rules.all.log", "true")
        .set("traces.endpoint", "'http://127.0.0.1:9/v1/traces'")
        .set("traces.sample", "1")
        .start();
    let mut rider = scene.client().await;
    for _ in 0..WARM {
        rider.value(&scene.select(3)).await;
        rider.value(&scaled(2)).await;
    }
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    let mut sent = WARM;
    eventually("a ride to its end", async || {
        assert_eq!(rider.value(&scaled(4)).await, "1");
        sent += 1;
        scene.boarded("answered") >= 1.0
    })
    .await;
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
    eventually("each in the log", async || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.matches("SELECT $1 / $2").count() == sent
    })
    .await;
    let all = f64::from(u32::try_from(sent + WARM + 1).unwrap());
    eventually("each in a trace", async || {
        scene.pgweir.metric("pgweir_traces_dropped_total ") >= Some(all)
    })
    .await;
    let shown = scene.pgweir.console().await;
    assert_eq!(calls(shown, "SELECT $1 / $2").await, sent.to_string());
}

/// What `SHOW QUERIES` has as the calls of a statement.
async fn calls(mut console: Client, text: &str) -> String {
    let reply = console
        .query(&format!("SHOW QUERIES WHERE query = '{text}'"))
        .await
        .ok();
    let place = reply.columns.iter().position(|column| column == "calls");
    reply.rows[0][place.unwrap()].clone().unwrap()
}

#[tokio::test]
async fn a_rider_is_canceled_at_once_and_its_backend_is_used_again() {
    let mut scene = scene("lane_cancel", "1").await;
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    let mut rider = scene.client().await;
    rider.send(&query(&scene.select(2))).await;
    scene.blocked(2).await;
    cancel(scene.pgweir.address, &rider.key).await;
    let reply = rider.reply().await;
    assert_eq!(reply.sqlstate(), "57014");
    assert_eq!(
        reply.error().message,
        "canceling statement due to user request"
    );
    // Nobody waits for it any more: the server is told too, and the connection serves others.
    scene.blocked(1).await;
    assert_eq!(rider.value("SELECT 7").await, "7");
    assert!((scene.failed("57014") - 1.0).abs() < 0.1);
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
    for number in 1..5 {
        assert_eq!(rider.value(&scaled(number)).await, (4 / number).to_string());
    }
}

#[tokio::test]
async fn a_client_that_leaves_amid_its_ride_leaves_nothing_running() {
    let mut scene = scene("lane_leave", "1").await;
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    let mut rider = scene.client().await;
    rider.send(&query(&scene.select(2))).await;
    scene.blocked(2).await;
    drop(rider);
    scene.blocked(1).await;
    eventually("the failed call", async || scene.failed("08006") > 0.0).await;
    assert!(scene.failed("08006") < 1.5);
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
}

#[tokio::test]
async fn a_ride_whose_backend_dies_is_made_elsewhere() {
    let mut scene = scene("lane_killed", "1").await;
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    let first = scene.role.activity("pid", "wait_event_type = 'Lock'").await;
    let mut rider = loop {
        if let Some(rider) = kill_under_a_rider(&mut scene, &first).await {
            break rider;
        }
    };
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
    assert_eq!(rider.reply().await.ok().value(), "b2");
}

/// Has a client wait on a lane, and kills its backend. None if it was not on the lane any more, as a statement that
/// waits that long soon is: then the killed backend was its own, and its session ends.
async fn kill_under_a_rider(scene: &mut Scene, others: &[String]) -> Option<Client> {
    let ended = |scene: &Scene| {
        let log = scene.pgweir.log();
        log.matches("the server ended the session").count()
    };
    let before = (scene.boarded("elsewhere"), ended(scene));
    let mut rider = scene.client().await;
    rider.send(&query(&scene.select(2))).await;
    scene.blocked(others.len() + 1).await;
    let blocked = scene.role.activity("pid", "wait_event_type = 'Lock'").await;
    let killed = blocked.iter().find(|pid| !others.contains(pid)).unwrap();
    let sql = format!("SELECT pg_terminate_backend({killed})");
    scene.role.observe(&sql).await;
    let mut is_over = false;
    eventually("the statement on another backend", async || {
        let blocked = scene.role.activity("pid", "wait_event_type = 'Lock'").await;
        is_over = ended(scene) > before.1;
        is_over || (blocked.len() == others.len() + 1 && !blocked.contains(killed))
    })
    .await;
    if is_over {
        let has_left = scene.boarded("elsewhere") > before.0;
        assert!(has_left, "a rider whose backend dies goes elsewhere");
    }
    (!is_over).then_some(rider)
}

/// A holder of the only connection, and a client whose short statement, behind another one, waits for it on a lane.
async fn queued(scene: &mut Scene, setting: &str, limit: &str) -> (Client, Client, Client) {
    scene.pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.lanes", "1")
        .set(&format!("timeouts.{setting}"), limit)
        .start();
    let mut first = scene.client().await;
    for _ in 0..WARM {
        first.value(&scene.select(3)).await;
    }
    let mut holder = scene.client().await;
    holder.query("BEGIN").await.ok();
    first.send(&query(&scene.select(3))).await;
    let mut console = scene.pgweir.console().await;
    let name = scene.role.name;
    let waiting = format!("SHOW CLIENTS WHERE user = '{name}' AND state = 'waiting'");
    eventually("the first to wait", async || {
        console.query(&waiting).await.ok().rows.len() == 1
    })
    .await;
    let mut rider = scene.client().await;
    rider.send(&query(&scene.select(4))).await;
    (holder, first, rider)
}

#[tokio::test]
async fn who_waits_on_a_lane_waits_no_longer_than_others() {
    let mut scene = scene("lane_queue", "1").await;
    let (_holder, mut first, mut rider) = queued(&mut scene, "query_wait_timeout", "300ms").await;
    let sent = tokio::time::Instant::now();
    let reply = rider.reply().await;
    let waited = sent.elapsed();
    assert_eq!(reply.sqlstate(), "53300");
    assert!(reply.error().message.contains("query_wait_timeout"));
    assert!(scene.boarded("elsewhere") >= 1.0);
    // A lane alone would have it wait for a second.
    let limits = std::time::Duration::from_millis(250)..std::time::Duration::from_millis(900);
    assert!(limits.contains(&waited), "{waited:?}");
    assert_eq!(first.reply().await.sqlstate(), "53300");
}

#[tokio::test]
async fn query_timeout_does_not_count_before_a_lane_has_sent() {
    let mut scene = scene("lane_unsent", "1").await;
    let (mut holder, mut first, mut rider) = queued(&mut scene, "query_timeout", "200ms").await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    holder.query("COMMIT").await.ok();
    assert_eq!(first.reply().await.ok().value(), "b3");
    assert_eq!(rider.reply().await.ok().value(), "b4");
    assert!(scene.boarded("answered") + scene.boarded("elsewhere") >= 1.0);
    // Where it is sent, it counts from there.
    let mut locker = scene.lock().await;
    let mut other = scene.client().await;
    first.send(&query(&scene.select(3))).await;
    other.send(&query(&scene.select(5))).await;
    for client in [&mut first, &mut other] {
        assert_eq!(client.reply().await.sqlstate(), "57014");
    }
    locker.query("COMMIT").await.ok();
}

#[tokio::test]
async fn query_timeout_ends_a_ride() {
    let mut scene = scene("lane_timeout", "1").await;
    let locker = scene.lock().await;
    scene.pgweir = Options::new(shared::server())
        .set("timeouts.query_timeout", "500ms")
        .start();
    let mut clients = Vec::new();
    // The new process does not know the statement as short yet.
    drop(locker);
    let mut first = scene.client().await;
    for _ in 0..WARM {
        first.value(&scene.select(3)).await;
    }
    let _locker = scene.lock().await;
    for key in 1..4 {
        let mut client = scene.client().await;
        client.send(&query(&scene.select(key))).await;
        clients.push(client);
    }
    for client in &mut clients {
        let reply = client.reply().await;
        assert_eq!(reply.sqlstate(), "57014");
        assert_eq!(
            reply.error().message,
            "canceling statement due to query timeout"
        );
        assert_eq!(client.value("SELECT 7").await, "7");
    }
}

/// Runs `work` for each of `count` clients at once.
async fn at_once<F: Future<Output = ()> + Send + 'static>(
    count: usize,
    mut work: impl FnMut(usize) -> F,
) {
    let running: Vec<_> = (0..count)
        .map(|index| tasks::spawn("client", work(index)))
        .collect();
    for client in running {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rider_has_its_own_settings_statements_and_errors() {
    let scene = scene("lane_own", "2").await;
    let (address, name) = (scene.pgweir.address, scene.role.name);
    at_once(24, |index| async move {
        let zone = if index % 2 == 0 { "UTC" } else { "Asia/Tokyo" };
        let login = Login::new(name, "postgres").with("TimeZone", zone);
        let mut client = Client::connect_as(address, &login).await.unwrap();
        let statement = format!("SELECT $1::text || '-{}'", index % 5);
        client
            .send(&[parse("mine", &statement, &[]), sync()].concat())
            .await;
        client.reply().await.ok();
        for round in 0..120 {
            let noon = "SELECT extract(hour FROM '2020-01-01 12:00+00'::timestamptz)::int";
            let hour = if index % 2 == 0 { "12" } else { "21" };
            assert_eq!(client.value(noon).await, hour);
            let token = format!("{index}/{round}");
            let batch = [
                bind("", "mine", &[Some(&token)]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ];
            client.send(&batch.concat()).await;
            let reply = client.reply().await.ok();
            assert_eq!(reply.value(), format!("{token}-{}", index % 5));
            let divisor = i64::from(round % 10 != 0);
            let reply = client.query(&scaled(divisor)).await;
            if divisor == 0 {
                assert_eq!(reply.sqlstate(), "22012");
            } else {
                assert_eq!(reply.ok().value(), "4");
            }
        }
    })
    .await;
    assert!(scene.boarded("answered") > 0.0);
    assert!(scene.boarded("elsewhere") > 0.0, "errors are had elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_comes_whole_and_a_client_that_does_not_take_it_stops_nobody() {
    let mut scene = scene("lane_long", "1").await;
    let long = |length: usize| format!("SELECT repeat('{length} ', {length})");
    let mut first = scene.client().await;
    for _ in 0..WARM {
        first.value(&long(3)).await;
    }
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    let mut slow = scene.client().await;
    slow.send(&query(&long(3_000_000))).await;
    for round in 1..50 {
        assert_eq!(
            first.value(&long(round)).await,
            format!("{round} ").repeat(round)
        );
    }
    let reply = slow.reply().await.ok();
    assert!(reply.value() == "3000000 ".repeat(3_000_000));
    assert_eq!(slow.value("SELECT 7").await, "7");
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
}

#[tokio::test]
async fn without_lanes_nobody_rides() {
    let mut scene = scene("lane_none", "0").await;
    let locker = scene.lock().await;
    let mut clients = Vec::new();
    for key in 1..4 {
        let mut client = scene.client().await;
        client.send(&query(&scene.select(key))).await;
        clients.push(client);
    }
    scene.blocked(3).await;
    drop(locker);
    for (key, client) in (1..4).zip(&mut clients) {
        assert_eq!(client.reply().await.ok().value(), format!("b{key}"));
    }
    let boarded = scene.boarded("answered") + scene.boarded("elsewhere");
    assert!(boarded < 1.0, "{boarded} have boarded");
}

#[tokio::test]
async fn a_connection_that_lacks_a_statement_is_not_kept_by_the_lane() {
    const RUNS: usize = 20;
    let mut scene = scene("lane_lacks", "1").await;
    let mut rider = scene.client().await;
    // The lane's connection has to be brought to this first: it is there already when the lane finds what it lacks.
    rider.query("SET work_mem = '5MB'").await.ok();
    let prepare = [parse("p", "SELECT 4 / $1::int4", &[]), sync()];
    rider.send(&prepare.concat()).await;
    rider.reply().await.ok();
    let run = async |rider: &mut Client| {
        let run = [bind("", "p", &[Some("2")]), execute("", 0), sync()];
        rider.send(&run.concat()).await;
        assert_eq!(rider.reply().await.ok().value(), "2");
    };
    for _ in 0..WARM {
        run(&mut rider).await;
    }
    // The connection that has the statement is taken.
    let locker = scene.lock().await;
    let mut ordinary = scene.client().await;
    ordinary.send(&query(&scene.select(1))).await;
    scene.blocked(1).await;
    for _ in 0..RUNS {
        run(&mut rider).await;
    }
    let (answered, elsewhere) = (scene.boarded("answered"), scene.boarded("elsewhere"));
    assert!(answered > 0.0, "nobody rode");
    // The first, after which the connection has the statement.
    assert!(elsewhere < 3.0, "{elsewhere} went elsewhere");
    drop(locker);
    assert_eq!(ordinary.reply().await.ok().value(), "b1");
}
