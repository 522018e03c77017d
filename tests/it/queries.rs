//! What is counted of statements: exactly what was sent, and what `pg_stat_statements` counts too.

use std::collections::BTreeMap;

use pgweir::demo::cluster::{Server, ServerOptions};

use crate::shared;
use crate::support::client::{Client, Login, Reply};
use crate::support::messages::{
    bind, copy_data, copy_done, describe, execute, flush, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// A row of `SHOW QUERIES` and the like, by column.
type Row = BTreeMap<String, String>;

fn rows(reply: &Reply) -> Vec<Row> {
    let row = |row: &Vec<Option<String>>| {
        let values = row.iter().map(|value| value.clone().unwrap_or_default());
        reply.columns.iter().cloned().zip(values).collect()
    };
    reply.rows.iter().map(row).collect()
}

async fn table(console: &mut Client, show: &str) -> Vec<Row> {
    rows(&console.query(show).await.ok())
}

/// The record of the statement with this text.
#[track_caller]
fn of<'a>(rows: &'a [Row], text: &str) -> &'a Row {
    let mut found = rows.iter().filter(|row| row["query"] == text);
    let row = found.next();
    assert!(found.next().is_none(), "{text} twice in {rows:#?}");
    row.unwrap_or_else(|| panic!("no {text} in {rows:#?}"))
}

#[track_caller]
fn number(row: &Row, column: &str) -> f64 {
    row[column].parse().unwrap()
}

#[track_caller]
fn counts(row: &Row, columns: &[&str]) -> Vec<u64> {
    let count = |column: &&str| row[*column].parse().unwrap();
    columns.iter().map(count).collect()
}

fn start() -> Pgweir {
    Options::new(shared::server()).start()
}

/// What the client reads up to and with as many ReadyForQuery, in bytes.
async fn read_bytes(client: &mut Client, readies: usize) -> usize {
    let (mut bytes, mut seen) = (0, 0);
    while seen < readies {
        let message = client.message().await;
        bytes += message.to_bytes().len();
        seen += usize::from(message.tag == b'Z');
    }
    bytes
}

#[tokio::test]
async fn every_execution_counts_with_its_rows_and_errors() {
    let pgweir = start();
    let login = Login::new("postgres", "postgres").with("application_name", "counted");
    let mut client = pgweir.client_as(&login).await;
    for number in 0..5 {
        let sql = format!("SELECT {number} FROM generate_series(1, 3)");
        client.query(&sql).await.ok();
    }
    for _ in 0..4 {
        client
            .extended("SELECT $1::int / $2", &[Some("1"), Some("1")])
            .await
            .ok();
        let error = client
            .extended("SELECT $1::int / $2", &[Some("1"), Some("0")])
            .await;
        assert_eq!(error.sqlstate(), "22012");
    }
    // It fails when it is prepared, and is never executed.
    let failed = [
        parse("", "SELECT nothing_such", &[]),
        describe(b'S', ""),
        sync(),
    ]
    .concat();
    client.send(&failed).await;
    assert_eq!(client.reply().await.sqlstate(), "42703");
    // Pipelined: the second fails, the third is skipped, the fourth is in an exchange of its own.
    let one = |sql: &str| [parse("", sql, &[]), bind("", "", &[]), execute("", 0)].concat();
    let pipeline = [
        one("SELECT 'first'"),
        one("SELECT 1 / 0 AS second"),
        one("SELECT 'third' AS third"),
        sync(),
        one("SELECT 'fourth' AS fourth"),
        sync(),
    ]
    .concat();
    client.send(&pipeline).await;
    assert_eq!(client.reply().await.sqlstate(), "22012");
    client.reply().await.ok();
    client.query("SELECT 1; SELECT 2").await.ok();
    client.query("SELECT 1 / 0 AS simple").await;
    client.query("").await;

    let mut console = pgweir.console().await;
    let rows = table(&mut console, "SHOW QUERIES").await;
    let check = |text: &str, expected: [u64; 3]| {
        let row = of(&rows, text);
        assert_eq!(
            counts(row, &["calls", "rows", "errors"]),
            expected,
            "{text}"
        );
    };
    check("SELECT $1 FROM generate_series($2, $3)", [5, 15, 0]);
    check("SELECT $1::int / $2", [8, 4, 4]);
    check("SELECT nothing_such", [1, 0, 1]);
    check("SELECT $1", [1, 1, 0]);
    check("SELECT $1 / $2 AS second", [1, 0, 1]);
    check("SELECT $1 AS fourth", [1, 1, 0]);
    check("SELECT $1; SELECT $2", [1, 2, 0]);
    check("SELECT $1 / $2 AS simple", [1, 0, 1]);
    check("", [1, 0, 0]);
    assert!(rows.iter().all(|row| !row["query"].contains("third")));
    let divided = of(&rows, "SELECT $1::int / $2");
    assert_eq!(divided["sqlstates"], "22012:4");
    let whose = ["users", "databases", "application_names", "nodes"].map(|name| &*divided[name]);
    assert_eq!(whose, ["postgres", "postgres", "counted", "primary"]);
}

#[tokio::test]
async fn bytes_are_those_of_a_statements_own_messages() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    let simple = query("SELECT repeat('x', 1000) AS simple");
    let mut answers = 0;
    for _ in 0..3 {
        client.send(&simple).await;
        answers += read_bytes(&mut client, 1).await;
    }
    let exchange = [
        parse("s", "SELECT repeat('x', $1) AS bound", &[23]),
        bind("", "s", &[Some("70000")]),
        describe(b'P', ""),
        execute("", 0),
    ]
    .concat();
    client.send(&[&*exchange, &sync()].concat()).await;
    let bound = read_bytes(&mut client, 1).await - 6;
    client.query("CREATE TEMP TABLE copied (a text)").await.ok();
    let copy = query("COPY copied FROM STDIN");
    client.send(&copy).await;
    let mut copied = client.expect(b'G').await.to_bytes().len();
    let data = [
        copy_data(&vec![b'a'; 100_000]),
        copy_data(b"\nb\n"),
        copy_done(),
    ]
    .concat();
    client.send(&data).await;
    copied += read_bytes(&mut client, 1).await;

    let mut console = pgweir.console().await;
    let rows = table(&mut console, "SHOW QUERIES").await;
    let check = |text: &str, received: usize, sent: usize| {
        let bytes = counts(of(&rows, text), &["bytes_received", "bytes_sent"]);
        assert_eq!(bytes, [received as u64, sent as u64], "{text}");
    };
    check("SELECT repeat($1, $2) AS simple", 3 * simple.len(), answers);
    check("SELECT repeat($2, $1) AS bound", exchange.len(), bound);
    check("COPY copied FROM STDIN", copy.len() + data.len(), copied);
    let copy = of(&rows, "COPY copied FROM STDIN");
    assert_eq!(counts(copy, &["calls", "rows"]), [1, 2]);
}

/// JDBC fetches a large result in pieces; `pg_stat_statements` counts that as one call, too.
#[tokio::test]
async fn a_portal_fetched_in_pieces_is_one_call() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    let portals = [
        parse("a", "SELECT generate_series(1, 10) AS a", &[]),
        parse("b", "SELECT generate_series(1, 7) AS b", &[]),
        bind("pa", "a", &[]),
        bind("pb", "b", &[]),
        execute("pa", 4),
        execute("pb", 3),
        execute("pa", 4),
        execute("pb", 3),
        execute("pa", 4),
        sync(),
    ]
    .concat();
    client.send(&portals).await;
    let reply = client.reply().await.ok();
    assert_eq!(reply.rows.len(), 16);
    client.query("COMMIT").await.ok();
    let mut console = pgweir.console().await;
    let rows = table(&mut console, "SHOW QUERIES").await;
    let a = of(&rows, "SELECT generate_series($1, $2) AS a");
    assert_eq!(counts(a, &["calls", "rows"]), [1, 10]);
    let b = of(&rows, "SELECT generate_series($1, $2) AS b");
    assert_eq!(counts(b, &["calls", "rows"]), [1, 6]);
}

#[tokio::test]
async fn a_client_that_goes_amid_its_statement_leaves_a_failed_call() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client
        .send(&query("SELECT pg_sleep(100) AS left_alone"))
        .await;
    let mut console = pgweir.console().await;
    eventually("the statement to run", async || {
        let clients = table(&mut console, "SHOW CLIENTS").await;
        clients
            .iter()
            .any(|client| client["database"] == "postgres" && client["state"] == "active")
    })
    .await;
    drop(client);
    eventually("the call to be counted", async || {
        let rows = table(&mut console, "SHOW QUERIES LIKE '%left_alone'").await;
        rows.first()
            .is_some_and(|row| counts(row, &["calls", "errors"]) == [1, 1])
    })
    .await;
    let errors = table(&mut console, "SHOW ERRORS LIKE '%left_alone'").await;
    assert_eq!(errors[0]["sqlstate"], "08006");
}

#[tokio::test]
async fn times_tell_waiting_first_answer_and_the_rest_apart() {
    let pgweir = Options::new(shared::server())
        .set("pool.max_size", "1")
        .set("slow_log.threshold", "'100ms'")
        .start();
    let (mut first, mut second) = (pgweir.client().await, pgweir.client().await);
    first.send(&query("SELECT pg_sleep(0.3) AS holder")).await;
    let mut console = pgweir.console().await;
    eventually("the only server connection to be taken", async || {
        let pools = table(&mut console, "SHOW POOLS").await;
        pools.iter().any(|pool| pool["sv_active"] == "1")
    })
    .await;
    second.query("SELECT 1 AS queued").await.ok();
    first.reply().await.ok();
    // A row at once and another later.
    let exchange = [
        parse(
            "",
            "SELECT repeat('x', 100000), pg_sleep(0.2 * n) FROM generate_series(0, 1) n",
            &[],
        ),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    first.send(&exchange).await;
    first.reply().await.ok();
    let rows = table(&mut console, "SHOW QUERIES").await;
    let queued = of(&rows, "SELECT $1 AS queued");
    assert!(number(queued, "queue_time") > 50.0, "{queued:?}");
    let (total, wait) = (number(queued, "total_time"), number(queued, "queue_time"));
    assert!(total < wait, "{queued:?}");
    assert!(number(queued, "p99_queue_time") > 50.0, "{queued:?}");
    let holder = of(&rows, "SELECT pg_sleep($1) AS holder");
    assert!(
        (300.0..3000.0).contains(&number(holder, "total_time")),
        "{holder:?}"
    );
    for column in ["p50_time", "p99_time", "min_time", "max_time", "mean_time"] {
        let (one, total) = (number(holder, column), number(holder, "total_time"));
        assert!((one - total).abs() <= total * 0.02, "{column}: {holder:?}");
    }
    let pieces = rows
        .iter()
        .find(|row| row["query"].contains("repeat"))
        .unwrap();
    let (first, total) = (
        number(pieces, "first_byte_time"),
        number(pieces, "total_time"),
    );
    assert!(total > 200.0 && first < total - 100.0, "{pieces:?}");

    let slow = table(&mut console, "SHOW SLOW ORDER BY total_time DESC").await;
    of(&slow, "SELECT pg_sleep($1) AS holder");
    let queued = of(&slow, "SELECT $1 AS queued");
    assert!(number(queued, "queue_time") > 50.0, "{queued:?}");
    let parts = ["queue_time", "server_time", "client_time"].map(|part| number(queued, part));
    let total: f64 = parts.iter().sum();
    assert!(
        (total - number(queued, "total_time")).abs() < 0.001,
        "{queued:?}"
    );
}

#[tokio::test]
async fn records_are_bounded_and_what_makes_room_counts_as_other() {
    let pgweir = Options::new(shared::server())
        .set("metrics.max_queries", "5")
        .start();
    let mut client = pgweir.client().await;
    client.query("SELECT pg_sleep(0.2) AS heavy").await.ok();
    for number in 0..100 {
        client
            .query(&format!("SELECT 1 AS light_{number}"))
            .await
            .ok();
        client.query("SELECT pg_sleep(0) AS heavy").await.ok();
    }
    let mut console = pgweir.console().await;
    let rows = table(&mut console, "SHOW QUERIES").await;
    assert!(rows.len() <= 7, "{rows:#?}");
    let heavy = of(&rows, "SELECT pg_sleep($1) AS heavy");
    assert_eq!(heavy["calls"], "101");
    assert_eq!(rows[0]["query"], heavy["query"]);
    let all: u64 = rows.iter().map(|row| counts(row, &["calls"])[0]).sum();
    assert_eq!(all, 201);
    let other = of(&rows, "<other>");
    assert!(counts(other, &["calls"])[0] >= 94, "{other:?}");
    console.query("SET metrics.max_queries = 50").await.ok();
    for number in 0..40 {
        client
            .query(&format!("SELECT 1 AS later_{number}"))
            .await
            .ok();
    }
    let rows = table(&mut console, "SHOW QUERIES LIKE '%later%'").await;
    assert_eq!(rows.len(), 40);
}

#[tokio::test]
async fn stats_users_see_numbers_and_no_texts() {
    let folder = tempfile::tempdir().unwrap();
    let userlist = folder.path().join("userlist.txt");
    std::fs::write(&userlist, "\"postgres\" \"p\"\n\"watcher\" \"w\"\n").unwrap();
    let pgweir = Options::new(shared::server())
        .flag("--auth", "scram")
        .set("auth.userlist", &format!("'{}'", userlist.display()))
        .set("general.stats_users", "['watcher']")
        .set("general.admin_users", "['postgres']")
        .set("slow_log.threshold", "'1ms'")
        .start();
    let login = |user, password, database| Login::new(user, database).password(password);
    let own = login("postgres", "p", "postgres");
    let mut client = pgweir.client_as(&own).await;
    for sql in [
        "SELECT pg_sleep(0.01) AS text_of_it",
        "SELECT 1 / 0 AS text_of_it",
        "CREATE TEMP TABLE text_of_it (a int)",
    ] {
        client.query(sql).await;
    }
    let admin = login("postgres", "p", "pgweir");
    let mut admin = pgweir.client_as(&admin).await;
    let watcher = login("watcher", "w", "pgweir");
    let mut watcher = pgweir.client_as(&watcher).await;
    for show in ["SHOW QUERIES", "SHOW SLOW", "SHOW ERRORS", "SHOW PINS"] {
        let all = table(&mut admin, show).await;
        let known = |row: &Row| row["query"].contains("text_of_it");
        assert!(all.iter().any(known), "{show}: {all:#?}");
        let all = table(&mut watcher, show).await;
        let hidden = |row: &Row| row["query"] == "<insufficient privilege>";
        assert!(
            !all.is_empty() && all.iter().all(hidden),
            "{show}: {all:#?}"
        );
        // What can't be seen can't be searched either.
        let found = table(&mut watcher, &format!("{show} LIKE '%text_of_it%'")).await;
        assert!(found.is_empty(), "{show}: {found:#?}");
    }
}

#[tokio::test]
async fn pins_show_who_holds_what_why_and_since_when() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    let mut console = pgweir.console().await;
    assert!(table(&mut console, "SHOW PINS").await.is_empty());
    client.query("CREATE TEMP TABLE pinning (a int)").await.ok();
    let pins = table(&mut console, "SHOW PINS").await;
    assert_eq!(pins.len(), 1);
    assert_eq!(pins[0]["query"], "CREATE TEMP TABLE pinning (a int)");
    assert!(pins[0]["reasons"].contains("temp"), "{pins:?}");
    assert!(pins[0]["link"].starts_with("0x"), "{pins:?}");
    let queries = table(&mut console, "SHOW QUERIES WHERE pins > 0").await;
    assert_eq!(queries.len(), 1);
    client.query("DISCARD ALL").await.ok();
    assert!(table(&mut console, "SHOW PINS").await.is_empty());
}

#[tokio::test]
async fn any_table_can_be_filtered_ordered_and_cut_over_both_protocols() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    for sql in ["SELECT 1 AS b", "SELECT 1 AS a", "SELECT 1 AS a"] {
        client.query(sql).await.ok();
    }
    let mut console = pgweir.console().await;
    let by_calls = "SHOW QUERIES WHERE query LIKE 'SELECT%' ORDER BY calls DESC LIMIT 1";
    assert_eq!(
        table(&mut console, by_calls).await[0]["query"],
        "SELECT $1 AS a"
    );
    let reply = console.extended(by_calls, &[]).await.ok();
    assert_eq!(rows(&reply)[0]["calls"], "2");
    let stats = table(&mut console, "SHOW STATS WHERE database = postgres").await;
    assert_eq!(stats[0]["total_query_count"], "3");
    let config = table(&mut console, "SHOW CONFIG LIKE 'metrics.%'").await;
    assert!(config.len() >= 2, "{config:?}");
    let error = console.query("SHOW POOLS ORDER BY nothing").await;
    assert_eq!(error.sqlstate(), "42703");
}

fn with_pg_stat_statements() -> Server {
    ServerOptions::default()
        .set("shared_preload_libraries", "pg_stat_statements")
        .set("pg_stat_statements.track_utility", "on")
        .start()
        .unwrap()
}

/// Text, calls that succeeded, rows.
type Counted = BTreeMap<String, (u64, u64)>;

async fn counted_by_the_server(direct: &mut Client) -> Counted {
    let sql = "SELECT query, calls, rows FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'";
    let rows = rows(&direct.query(sql).await.ok());
    let entry = |row: &Row| {
        let [calls, rows] = counts(row, &["calls", "rows"])[..] else {
            unreachable!()
        };
        (row["query"].clone(), (calls, rows))
    };
    rows.iter().map(entry).collect()
}

async fn counted_by_pgweir(console: &mut Client) -> Counted {
    let rows = table(console, "SHOW QUERIES").await;
    let entry = |row: &Row| {
        let [calls, errors, rows] = counts(row, &["calls", "errors", "rows"])[..] else {
            unreachable!()
        };
        // As PostgreSQL 18 shows lists; the one here has two constants.
        let text = row["query"].replace("($1 /*, ... */)", "($1, $2)");
        (text, (calls - errors, rows))
    };
    let succeeded = rows.iter().map(entry).filter(|(_, (calls, _))| *calls > 0);
    succeeded.collect()
}

#[tokio::test]
async fn counts_are_those_of_pg_stat_statements() {
    let server = with_pg_stat_statements();
    let mut direct = Client::connect(server.address(), "postgres", "postgres").await;
    direct
        .query("CREATE EXTENSION pg_stat_statements")
        .await
        .ok();
    direct
        .query("CREATE TABLE t (a int PRIMARY KEY, b text)")
        .await
        .ok();
    let pgweir = Options::new(&server).set("pool.max_size", "2").start();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(pgweir.client().await);
    }
    direct.query("SELECT pg_stat_statements_reset()").await.ok();
    for round in 0..40 {
        let client = &mut clients[round % 4];
        let number = round.to_string();
        client
            .query(&format!("INSERT INTO t VALUES ({round}, 'x')"))
            .await
            .ok();
        client
            .query(&format!("SELECT * FROM t WHERE a < {round} ORDER BY a"))
            .await
            .ok();
        client
            .extended("SELECT b FROM t WHERE a = $1", &[Some(&number)])
            .await
            .ok();
        client
            .extended(
                "UPDATE t SET b = $1 WHERE a <= $2::int",
                &[Some("y"), Some(&number)],
            )
            .await
            .ok();
        if round % 5 == 0 {
            client.query("BEGIN").await.ok();
            client
                .query(&format!("DELETE FROM t WHERE a = {round}"))
                .await
                .ok();
            client.query("SELECT 1 / 0").await;
            client.query("ROLLBACK").await.ok();
            client.query("SELECT FROM nowhere").await;
        }
        let again = format!("INSERT INTO t VALUES ({round}, 'x')");
        assert_eq!(client.query(&again).await.sqlstate(), "23505");
    }
    let mut console = pgweir.console().await;
    let (server, pgweir) = (
        counted_by_the_server(&mut direct).await,
        counted_by_pgweir(&mut console).await,
    );
    // What pgweir runs itself is the server's to count only.
    let server: Counted = server
        .into_iter()
        .filter(|(text, _)| pgweir.contains_key(text) || text.contains(" t "))
        .filter(|(text, _)| !text.contains("pg_catalog"))
        .collect();
    assert_eq!(pgweir, server);
    assert_eq!(pgweir.len(), 7, "{pgweir:#?}");
}

#[tokio::test]
async fn a_flush_gives_answers_before_the_exchange_ends_and_counts_the_same() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    let first = [
        parse("", "SELECT 1 AS flushed", &[]),
        bind("", "", &[]),
        execute("", 0),
        flush(),
    ]
    .concat();
    client.send(&first).await;
    client.expect(b'1').await;
    client.expect(b'2').await;
    client.expect(b'D').await;
    client.expect(b'C').await;
    let mut console = pgweir.console().await;
    let rows = table(&mut console, "SHOW QUERIES").await;
    assert_eq!(
        counts(of(&rows, "SELECT $1 AS flushed"), &["calls", "rows"]),
        [1, 1]
    );
    client.send(&sync()).await;
    client.reply().await.ok();
}

#[tokio::test]
async fn who_waits_for_a_lock_and_who_holds_it_is_shown_while_it_lasts() {
    let pgweir = Options::new(shared::server())
        .set("metrics.lock_wait_after", "'200ms'")
        .start();
    let (mut holder, mut waiter) = (pgweir.client().await, pgweir.client().await);
    holder
        .query("CREATE TABLE IF NOT EXISTS contended (a int)")
        .await
        .ok();
    holder.query("BEGIN").await.ok();
    holder
        .query("LOCK TABLE contended IN EXCLUSIVE MODE")
        .await
        .ok();
    let pid = holder.value("SELECT pg_backend_pid()").await;
    waiter.send(&query("UPDATE contended SET a = 1")).await;
    let mut console = pgweir.console().await;
    eventually("the wait to be seen", async || {
        !table(&mut console, "SHOW LOCKS").await.is_empty()
    })
    .await;
    let waits = table(&mut console, "SHOW WAITS").await;
    let wait = of(&waits, "UPDATE contended SET a = $1");
    assert_eq!(
        (&*wait["wait_event_type"], &*wait["wait_event"]),
        ("Lock", "relation")
    );
    assert_eq!(wait["blocked_by"], pid);
    assert!(number(wait, "running_time") >= 200.0, "{wait:?}");
    let locks = table(&mut console, "SHOW LOCKS").await;
    let lock = of(&locks, "UPDATE contended SET a = $1");
    let what = [
        "locktype",
        "mode",
        "relation",
        "blocking_server_pid",
        "blocking_state",
    ];
    let what = what.map(|column| &*lock[column]);
    assert_eq!(
        what,
        [
            "relation",
            "RowExclusiveLock",
            "contended",
            &pid,
            "idle in transaction"
        ]
    );
    // It is idle in its transaction: what it ran last is shown.
    assert_eq!(lock["blocking_query"], "SELECT pg_backend_pid()");
    let clients = table(&mut console, "SHOW CLIENTS").await;
    let holding = clients
        .iter()
        .find(|client| client["id"] == lock["blocking_pid"]);
    assert!(holding.is_some(), "{lock:?} {clients:?}");
    holder.query("ROLLBACK").await.ok();
    waiter.reply().await.ok();
    eventually("the wait to be over", async || {
        table(&mut console, "SHOW WAITS").await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_statement_that_was_run_again_counts_once_everywhere() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client.query("CREATE SEQUENCE tries_of_again").await.ok();
    // What a sequence has given is not taken back with what failed.
    client
        .query(
            "CREATE FUNCTION fails_twice_again() RETURNS int LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('tries_of_again') < 3 THEN RAISE 'not yet' USING ERRCODE = '40001'; END IF; \
             RETURN 1; END $$",
        )
        .await
        .ok();
    let text = "SELECT fails_twice_again()";
    assert_eq!(client.query(text).await.ok().value(), "1");
    client.extended(text, &[]).await.ok();
    // One that can't be prepared is a call as well.
    client.extended("SELECT nothing", &[]).await.error();
    client
        .send(&[parse("", "SELECT neither", &[]), sync()].concat())
        .await;
    client.reply().await.error();
    let mut console = pgweir.console().await;
    let queries = console.query("SHOW QUERIES").await.ok();
    let sum = |name: &str| -> u64 {
        let place = queries.columns.iter().position(|column| column == name);
        let values = queries.rows.iter().map(|row| row[place.unwrap()].clone());
        values
            .map(|value| value.unwrap().parse::<u64>().unwrap())
            .sum()
    };
    assert_eq!((sum("calls"), sum("retries"), sum("errors")), (6, 2, 2));
    let stats = console
        .query("SHOW STATS WHERE database = 'postgres'")
        .await
        .ok();
    let place = stats
        .columns
        .iter()
        .position(|column| column == "total_query_count");
    assert_eq!(stats.rows[0][place.unwrap()].as_deref(), Some("6"));
    let series = "pgweir_queries_total{database=\"postgres\",user=\"postgres\"} ";
    assert_eq!(pgweir.metric(series), Some(6.0));
}
