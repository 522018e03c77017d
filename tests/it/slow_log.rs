//! The slow log and the query log: what is written, by which rules, and what happens when it can't be.

use std::path::Path;

use serde_json::Value;

use crate::shared;
use crate::support::client::Login;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, wait_until};

fn entries(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[track_caller]
fn metric(pgweir: &Pgweir, series: &str) -> f64 {
    pgweir.metric(&format!("{series} ")).unwrap()
}

#[tokio::test]
async fn slow_statements_are_written_with_what_they_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slow.log");
    let pgweir = Options::new(shared::server())
        .set("slow_log.threshold", "'100ms'")
        .set("slow_log.format", "'json'")
        .set("slow_log.file", &quoted(&path))
        .start();
    let login = Login::new("postgres", "postgres").with("application_name", "slow app");
    let mut client = pgweir.client_as(&login).await;
    client.query("SELECT 'secret', pg_sleep(0.2)").await.ok();
    client.query("SELECT 1 AS quick").await.ok();
    wait_until("the entry to be written", || !entries(&path).is_empty());
    let entries = entries(&path);
    assert_eq!(entries.len(), 1, "{entries:?}");
    let entry = &entries[0];
    assert_eq!(entry["event"], "slow");
    assert_eq!(entry["query"], "SELECT $1, pg_sleep($2)");
    assert_eq!(entry["application_name"], "slow app");
    assert_eq!(entry["node"], "primary");
    assert_eq!(entry["rows"], 1);
    let millis = |name: &str| entry[name].as_f64().unwrap();
    assert!(millis("total_ms") >= 200.0 && millis("server_ms") >= 200.0);
    let parts = millis("queue_ms") + millis("server_ms") + millis("client_ms");
    assert!((parts - millis("total_ms")).abs() < 0.01, "{entry}");
    assert!(!entry.to_string().contains("secret"));
    assert!((metric(&pgweir, "pgweir_slow_statements_total") - 1.0).abs() < 0.1);
}

fn with_rules(slow: &Path, query: &Path) -> String {
    format!(
        "[general]\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n[cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n\
         [slow_log]\nthreshold = \"50ms\"\nformat = \"json\"\nfile = \"{}\"\n\
         [query_log]\nfile = \"{}\"\n\
         [log_rules.a_report]\nquery = \"%report%\"\nslow_threshold = \"0\"\n\
         [log_rules.frequent]\nquery = \"select pg_sleep%frequent\"\nsample = 3\n\
         [log_rules.quick]\nquery = \"%quick%\"\nslow_threshold = \"1ms\"\n\
         [log_rules.watched]\nuser = \"postgres\"\napplication_name = \"watched\"\nlog = true\n",
        shared::server().node_url(),
        slow.display(),
        query.display()
    )
}

#[tokio::test]
async fn rules_set_thresholds_samples_and_what_is_written_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let (slow, query) = (
        folder.path().join("slow.log"),
        folder.path().join("query.log"),
    );
    let config = with_rules(&slow, &query);
    let pgweir = Options::config(&config).start();
    let mut client = pgweir.client().await;
    client.query("SELECT pg_sleep(0.1) AS report").await.ok();
    for _ in 0..6 {
        client.query("SELECT pg_sleep(0.06) AS frequent").await.ok();
    }
    client.query("SELECT pg_sleep(0.01) AS quick").await.ok();
    let login = Login::new("postgres", "postgres").with("application_name", "watched");
    let mut watched = pgweir.client_as(&login).await;
    for number in 0..50 {
        let sql = format!("SELECT generate_series(1, {number}) AS seen");
        watched.query(&sql).await.ok();
    }
    assert_eq!(
        watched.query("SELECT 1 / 0 AS failed").await.sqlstate(),
        "22012"
    );
    watched
        .query("SET application_name = 'elsewhere'")
        .await
        .ok();
    watched.query("SELECT 1 AS unseen").await.ok();

    wait_until("the entries to be written", || {
        entries(&slow).len() >= 3 && entries(&query).len() >= 51
    });
    let of = |text: &str| {
        let slow = entries(&slow);
        let fits = slow
            .iter()
            .filter(|entry| entry["query"].as_str().unwrap().contains(text));
        fits.count()
    };
    assert_eq!((of("report"), of("frequent"), of("quick")), (0, 2, 1));
    let query = entries(&query);
    let seen: Vec<_> = query
        .iter()
        .filter(|entry| entry["query"].as_str().unwrap().contains("seen"))
        .collect();
    assert_eq!(seen.len(), 50);
    for (number, entry) in seen.iter().enumerate() {
        assert_eq!(
            (&entry["event"], &entry["rows"]),
            (&"query".into(), &number.into())
        );
        assert_eq!(entry["user"], "postgres");
    }
    let failed = query.iter().find(|entry| entry["sqlstate"] == "22012");
    assert!(failed.is_some(), "{query:?}");
    assert!(
        !query
            .iter()
            .any(|entry| entry["query"].as_str().unwrap().contains("unseen"))
    );
}

#[tokio::test]
async fn a_rule_that_is_changed_holds_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (slow, query) = (
        folder.path().join("slow.log"),
        folder.path().join("query.log"),
    );
    let pgweir = Options::config(&with_rules(&slow, &query)).start();
    let mut client = pgweir.client().await;
    client.query("SELECT pg_sleep(0.1) AS report").await.ok();
    let mut console = pgweir.console().await;
    console
        .query("SET log_rules.a_report.slow_threshold = '1ms'")
        .await
        .ok();
    client.query("SELECT pg_sleep(0.01) AS report").await.ok();
    wait_until("the changed rule to hold", || entries(&slow).len() == 1);
}

#[tokio::test]
async fn a_log_that_is_moved_away_goes_on_in_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slow.log");
    let pgweir = Options::new(shared::server())
        .set("slow_log.threshold", "'1ms'")
        .set("slow_log.file", &quoted(&path))
        .start();
    let mut client = pgweir.client().await;
    client.query("SELECT pg_sleep(0.01) AS before").await.ok();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    wait_until("the first line", || read(&path).contains("before"));
    let moved = folder.path().join("slow.log.1");
    std::fs::rename(&path, &moved).unwrap();
    eventually("a line in a new file", async || {
        client.query("SELECT pg_sleep(0.01) AS after").await.ok();
        read(&path).contains("after")
    })
    .await;
    assert!(read(&moved).contains("before"));
}

/// `/dev/full` is a disk that is full.
#[tokio::test]
async fn a_full_disk_loses_entries_and_holds_up_nothing() {
    let pgweir = Options::new(shared::server())
        .set("slow_log.threshold", "'1ms'")
        .set("slow_log.file", "'/dev/full'")
        .start();
    let mut client = pgweir.client().await;
    for _ in 0..20 {
        client.query("SELECT pg_sleep(0.002) AS lost").await.ok();
    }
    wait_until("the entries to be counted as dropped", || {
        metric(&pgweir, "pgweir_log_entries_dropped_total{log=\"slow\"}") >= 20.0
    });
    assert!(metric(&pgweir, "pgweir_log_entries_total{log=\"slow\"}") < 0.1);
    pgweir.wait_for_log("could not write");
    let complaints = pgweir.log().matches("could not write").count();
    assert_eq!(complaints, 1);
}

#[tokio::test]
async fn the_plan_of_a_slow_statement_is_asked_for_once_on_a_side_connection() {
    let pgweir = Options::new(shared::server())
        .set("slow_log.threshold", "'20ms'")
        .set("slow_log.explain", "true")
        .start();
    let mut client = pgweir.client().await;
    client
        .query("CREATE TABLE IF NOT EXISTS explained (a int PRIMARY KEY, b text)")
        .await
        .ok();
    let slow = "SELECT b, pg_sleep(0.03) FROM (SELECT 'kept secret' AS b) x WHERE NOT EXISTS (SELECT FROM explained WHERE a = 7)";
    for _ in 0..3 {
        client.query(slow).await.ok();
    }
    let mut console = pgweir.console().await;
    eventually("the plan", async || {
        let shown = console
            .query("SHOW SLOW WHERE plan LIKE '%explained%' LIMIT 1")
            .await
            .ok();
        !shown.rows.is_empty()
    })
    .await;
    pgweir.wait_for_log("plan of a slow statement");
    let log = pgweir.log();
    assert_eq!(log.matches("plan of a slow statement").count(), 1);
    assert!(
        log.contains("Index") && !log.contains("kept secret"),
        "{log}"
    );
    // Statements without a plan are not asked about.
    client
        .query("DO $$ BEGIN PERFORM pg_sleep(0.03); END $$")
        .await
        .ok();
    client.query("SELECT 1").await.ok();
}
