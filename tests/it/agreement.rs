//! Console, metrics and page are made from one snapshot: while nothing changes they say the same, field by field.

use pgweir::demo::cluster::Cluster;
use serde_json::Value;

use crate::support::client::{Client, Login, Reply};
use crate::support::http;
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, wait_until};

/// The three of them.
struct Told {
    pgweir: Pgweir,
    console: Client,
}

impl Told {
    async fn show(&mut self, table: &str) -> Vec<Row> {
        let reply = self.console.query(&format!("SHOW {table}")).await.ok();
        Row::all(&reply)
    }

    /// What the page is given.
    fn api(&self, path: &str) -> Value {
        let body = http::get(self.pgweir.http, path, &[]).body;
        serde_json::from_str(&body).unwrap()
    }

    /// A metric whose labels are all of these.
    #[track_caller]
    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let series = format!("{name}{{{}}} ", labels.join(","));
        let value = self.pgweir.metric(&series);
        value.unwrap_or_else(|| panic!("no {series}"))
    }
}

/// A row of the console, by column.
#[derive(Clone, Debug)]
struct Row(Vec<(String, Option<String>)>);

impl Row {
    fn all(reply: &Reply) -> Vec<Self> {
        let row = |row: &Vec<Option<String>>| {
            Self(reply.columns.iter().cloned().zip(row.clone()).collect())
        };
        reply.rows.iter().map(row).collect()
    }

    /// A value; NULL is empty.
    #[track_caller]
    fn text(&self, column: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| name == column);
        let (_, value) = found.unwrap_or_else(|| panic!("no {column} in {self:?}"));
        value.as_deref().unwrap_or_default()
    }

    #[track_caller]
    fn number(&self, column: &str) -> f64 {
        let text = self.text(column);
        text.parse()
            .unwrap_or_else(|_| panic!("{column} is {text}"))
    }
}

/// The page's object that has this value.
#[track_caller]
fn object<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let mut all = list.as_array().unwrap().iter();
    let found = all.find(|one| one[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

#[track_caller]
fn assert_text(row: &Row, column: &str, page: &Value) {
    let page = page.as_str().unwrap_or_default();
    assert_eq!(row.text(column), page, "{column} of {row:?}");
}

/// Equal but for how they are rounded.
#[track_caller]
fn assert_near(one: f64, other: f64, what: &str) {
    assert!((one - other).abs() <= 2e-6, "{what}: {one} and {other}");
}

#[track_caller]
fn assert_number(row: &Row, column: &str, page: &Value) {
    let page = page.as_f64().unwrap();
    assert_near(row.number(column), page, column);
}

/// A primary and a replica, and pgweir with two server connections: one keeps a temporary table, one an open
/// transaction, and a third client waits behind them.
async fn busy(cluster: &Cluster) -> (Told, Vec<Client>) {
    let pgweir = Options::cluster(cluster)
        .flag("--pool-size", "2")
        .set("routing.consistency", "eventual")
        .start();
    let mut console = pgweir.console().await;
    eventually("the replica to be up", async || {
        let nodes = console.query("SHOW NODES WHERE state = 'up'").await.ok();
        nodes.rows.len() == 2
    })
    .await;
    let login = Login::new("postgres", "postgres").with("application_name", "shop");
    let (mut one, mut two) = (pgweir.client_as(&login).await, pgweir.client().await);
    for number in 0..20 {
        one.query(&format!("SELECT {number} AS agreed")).await.ok();
        two.extended("SELECT $1::int", &[Some("1")]).await.ok();
    }
    one.query("SELECT pg_sleep(0.02)").await.ok();
    for _ in 0..3 {
        two.query("SELECT 1 / 0").await.error();
        two.query("SELECT nothing").await.error();
    }
    one.query("CREATE TEMP TABLE kept (n int)").await.ok();
    two.query("BEGIN").await.ok();
    two.query("INSERT INTO pg_temp.nothing VALUES (1)").await;
    let mut three = pgweir.client().await;
    three
        .send(&messages::query("CREATE TABLE later (n int)"))
        .await;
    wait_until("the third to wait", || {
        let labels = "{database=\"postgres\",user=\"postgres\",state=\"waiting\"} ";
        pgweir.metric(&format!("pgweir_pool_clients{labels}")) == Some(1.0)
    });
    (Told { pgweir, console }, vec![one, two, three])
}

fn assert_pools(told: &Told, rows: &[Row]) {
    let page = told.api("/api/pools");
    assert_eq!(page.as_array().unwrap().len(), rows.len());
    for row in rows {
        let one = object(&page, "user", row.text("user"));
        assert_text(row, "database", &one["database"]);
        assert_text(row, "pool_mode", &one["mode"]);
        assert_number(row, "cl_waiting", &one["waiting"]);
        assert_number(row, "sv_active", &one["servers_active"]);
        assert_number(row, "sv_idle", &one["servers_idle"]);
        let clients = row.number("cl_active") + row.number("cl_waiting");
        assert_near(clients, one["clients"].as_f64().unwrap(), "clients");
        let others = ["sv_login", "sv_tested", "sv_being_canceled"];
        let others: f64 = others.iter().map(|column| row.number(column)).sum();
        assert_near(others, one["servers_other"].as_f64().unwrap(), "others");
        let key = [
            ("database", row.text("database")),
            ("user", row.text("user")),
        ];
        let of = |name: &str, state: &str| {
            let labels = [key[0], key[1], ("state", state)];
            told.metric(name, &labels)
        };
        for state in ["active", "waiting"] {
            let shown = row.number(&format!("cl_{state}"));
            assert_near(shown, of("pgweir_pool_clients", state), state);
        }
        for state in ["active", "idle", "login", "tested", "being_canceled"] {
            let shown = row.number(&format!("sv_{state}"));
            assert_near(shown, of("pgweir_pool_servers", state), state);
        }
        let max = told.metric("pgweir_pool_servers_max", &key);
        assert!(one["servers_max"].as_f64().unwrap() >= max, "{one}");
        // It goes on while it is looked at.
        let waited = row.number("maxwait") + row.number("maxwait_us") / 1e6;
        let [page, metric] = [
            one["longest_wait"].as_f64().unwrap(),
            told.metric("pgweir_pool_longest_wait_seconds", &key),
        ];
        assert!(waited <= page && page <= metric && metric < waited + 30.0);
        assert_eq!(waited > 0.0, row.number("cl_waiting") > 0.0);
    }
}

fn assert_nodes(told: &Told, rows: &[Row]) {
    let page = told.api("/api/nodes");
    assert_eq!((rows.len(), page.as_array().unwrap().len()), (2, 2));
    for row in rows {
        let one = object(&page, "name", row.text("node"));
        for column in ["role", "state", "zone", "error", "cluster"] {
            assert_text(row, column, &one[column]);
        }
        for column in ["connections", "outstanding", "reads", "failed_reads"] {
            assert_number(row, column, &one[column]);
        }
        let node = ("node", row.text("node"));
        let labels = [
            node,
            ("role", row.text("role")),
            ("state", row.text("state")),
        ];
        assert_near(told.metric("pgweir_node_state", &labels), 1.0, "state");
        for (column, metric) in [
            ("connections", "pgweir_node_servers"),
            ("outstanding", "pgweir_node_outstanding_reads"),
            ("reads", "pgweir_node_reads_total"),
            ("failed_reads", "pgweir_node_failed_reads_total"),
            ("timeline", "pgweir_node_timeline"),
        ] {
            assert_near(row.number(column), told.metric(metric, &[node]), column);
        }
    }
    let reads: f64 = rows.iter().map(|row| row.number("reads")).sum();
    assert!(reads > 0.0, "{rows:?}");
}

fn assert_routes(told: &Told, rows: &[Row]) {
    assert!(rows.iter().any(|row| row.number("count") > 0.0));
    for row in rows {
        let labels = [
            ("target", row.text("target")),
            ("reason", row.text("reason")),
        ];
        let count = told.metric("pgweir_routes_total", &labels);
        assert_near(row.number("count"), count, row.text("reason"));
    }
}

fn assert_pins(told: &Told, rows: &[Row]) {
    let page = told.api("/api/pins");
    assert_eq!((rows.len(), page.as_array().unwrap().len()), (1, 1));
    let (row, one) = (&rows[0], &page[0]);
    assert_number(row, "pid", &one["pid"]);
    for (column, field) in [
        ("user", "user"),
        ("database", "database"),
        ("application_name", "application"),
        ("addr", "address"),
        ("queryid", "id"),
        ("query", "text"),
    ] {
        assert_text(row, column, &one[field]);
    }
    assert_text(row, "reasons", &one["reasons"][0]["reason"]);
    assert_eq!(row.text("application_name"), "shop");
    let age = one["age"].as_f64().unwrap();
    let shown = row.number("pinned_time") / 1e3;
    assert!((shown..shown + 30.0).contains(&age), "{age}: {row:?}");
    let pool = [("database", "postgres"), ("user", "postgres")];
    assert_near(told.metric("pgweir_pool_pinned", &pool), 1.0, "pinned");
}

fn assert_queries(told: &Told, rows: &[Row]) {
    let page = told.api("/api/queries");
    let listed = &page["listed"];
    assert_eq!(listed.as_array().unwrap().len(), rows.len());
    assert!(rows.len() >= 6, "{rows:?}");
    let mut time = 0.0;
    for row in rows {
        let one = object(listed, "id", row.text("queryid"));
        assert_text(row, "query", &one["text"]);
        for column in ["calls", "errors", "retries", "rows"] {
            assert_number(row, column, &one[column]);
        }
        for (column, field) in [
            ("total_time", "total_time"),
            ("mean_time", "mean_time"),
            ("p95_time", "p95"),
        ] {
            let millis = row.number(column);
            assert_near(millis / 1e3, one[field].as_f64().unwrap(), column);
        }
        let id = ("queryid", row.text("queryid"));
        for (column, metric) in [
            ("calls", "pgweir_query_calls_total"),
            ("calls", "pgweir_query_duration_seconds_count"),
            ("rows", "pgweir_query_rows_total"),
            ("bytes_sent", "pgweir_query_sent_bytes_total"),
            ("bytes_received", "pgweir_query_received_bytes_total"),
            ("retries", "pgweir_query_retries_total"),
            ("pins", "pgweir_query_pins_total"),
        ] {
            assert_near(row.number(column), told.metric(metric, &[id]), metric);
        }
        let sum = told.metric("pgweir_query_duration_seconds_sum", &[id]);
        assert_near(row.number("total_time") / 1e3, sum, "its time");
        time += sum;
        for failed in row.text("sqlstates").split_terminator(',') {
            let (code, count) = failed.split_once(':').unwrap();
            let labels = [id, ("sqlstate", code)];
            let metric = told.metric("pgweir_query_errors_total", &labels);
            assert_near(count.parse().unwrap(), metric, failed);
        }
    }
    assert!((time - page["total_time"].as_f64().unwrap()).abs() < 1e-4);
}

/// What databases and pools come to is what their statements do.
fn assert_totals(told: &Told, queries: &[Row], stats: &[Row]) {
    let calls: f64 = queries.iter().map(|row| row.number("calls")).sum();
    let of_database = |row: &&Row| row.text("database") == "postgres";
    let stats = stats.iter().find(of_database).unwrap();
    let pool = [("database", "postgres"), ("user", "postgres")];
    let metric = |name: &str| told.metric(name, &pool);
    assert_near(calls, stats.number("total_query_count"), "statements");
    assert_near(calls, metric("pgweir_queries_total"), "statements");
    for (column, name) in [
        ("total_xact_count", "pgweir_transactions_total"),
        ("total_received", "pgweir_received_bytes_total"),
        ("total_sent", "pgweir_sent_bytes_total"),
        (
            "total_server_assignment_count",
            "pgweir_server_assignments_total",
        ),
        ("total_client_parse_count", "pgweir_client_parses_total"),
        ("total_bind_count", "pgweir_binds_total"),
    ] {
        assert_near(stats.number(column), metric(name), name);
    }
    let seconds = stats.number("total_query_time") / 1e6;
    assert_near(seconds, metric("pgweir_query_seconds_total"), "time");
}

#[tokio::test]
async fn console_metrics_and_page_never_disagree() {
    let cluster = Cluster::start(1).unwrap();
    let (mut told, _clients) = busy(&cluster).await;
    let rows = told.show("POOLS WHERE user = 'postgres'").await;
    assert_eq!(rows.len(), 1);
    assert_pools(&told, &rows);
    let rows = told.show("NODES").await;
    assert_nodes(&told, &rows);
    let rows = told.show("ROUTES").await;
    assert_routes(&told, &rows);
    let rows = told.show("PINS").await;
    assert_pins(&told, &rows);
    let queries = told.show("QUERIES").await;
    assert_queries(&told, &queries);
    let stats = told.show("STATS").await;
    assert_totals(&told, &queries, &stats);
    for (table, path) in [("ERRORS", "/api/errors"), ("SLOW", "/api/slow")] {
        let shown = told.show(table).await;
        let page = told.api(path);
        assert_eq!(shown.len(), page.as_array().unwrap().len(), "{table}");
    }
}
