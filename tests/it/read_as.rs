//! Constants of prepared statements are read by the settings of the session that prepared them, whoever shares the text and
//! whichever backend runs it.

use pgweir::demo::cluster::ServerOptions;

use crate::shared;
use crate::support::client::Client;
use crate::support::messages::{bind, describe, execute, parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};

fn whole(name: &str, text: &str) -> Vec<u8> {
    [parse(name, text, &[]), sync()].concat()
}

fn run(name: &str) -> Vec<u8> {
    [
        bind("", name, &[]),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ]
    .concat()
}

/// The only row that `batch` is answered with.
async fn row(client: &mut Client, batch: &[u8]) -> Vec<Option<String>> {
    client.send(batch).await;
    let mut reply = client.reply().await.ok();
    assert_eq!(reply.rows.len(), 1);
    reply.rows.remove(0)
}

async fn value(client: &mut Client, batch: &[u8]) -> String {
    row(client, batch).await.remove(0).unwrap()
}

async fn prepare(client: &mut Client, name: &str, text: &str) {
    client.send(&whole(name, text)).await;
    client.reply().await.ok();
}

#[tokio::test]
async fn clients_with_the_same_text_get_their_own_constants() {
    let role = shared::role("own_constants").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    for (settings, others, expression, [first, second]) in [
        (
            "SET TimeZone = 'UTC'",
            "SET TimeZone = 'Asia/Tokyo'",
            "extract(epoch FROM '2020-01-02'::timestamptz)::int8",
            ["1577923200", "1577890800"],
        ),
        (
            "SET DateStyle = 'ISO, MDY'",
            "SET DateStyle = 'ISO, DMY'",
            "'1/2/2020'::date - '2020-01-01'::date",
            ["1", "31"],
        ),
        (
            "SET IntervalStyle = 'postgres'",
            "SET IntervalStyle = 'sql_standard'",
            "extract(epoch FROM '-1 2:00:00'::interval)::int8",
            ["-79200", "-93600"],
        ),
        (
            "SET standard_conforming_strings = on",
            "SET standard_conforming_strings = off",
            r"length('\\')",
            ["2", "1"],
        ),
        (
            "SET client_encoding = 'UTF8'",
            "SET client_encoding = 'LATIN1'",
            "length('é')",
            ["1", "2"],
        ),
        (
            "SET array_nulls = on",
            "SET array_nulls = off",
            "('{NULL}'::text[])[1] IS NULL",
            ["t", "f"],
        ),
        (
            "SET transform_null_equals = off",
            "SET transform_null_equals = on",
            "coalesce(1 = NULL, true)",
            ["t", "f"],
        ),
    ] {
        one.query(settings).await.ok();
        two.query(others).await.ok();
        let text = format!("SELECT {expression}");
        let sql = format!("PREPARE p AS {text}");
        for client in [&mut one, &mut two] {
            client.query("DEALLOCATE ALL").await.ok();
            prepare(client, "s", &text).await;
            client.query(&sql).await.ok();
            prepare(client, "", &text).await;
        }
        for (client, expected) in [(&mut one, first), (&mut two, second)] {
            assert_eq!(value(client, &run("")).await, expected, "{text} unnamed");
            assert_eq!(value(client, &run("s")).await, expected, "{text}");
            assert_eq!(client.value("EXECUTE p").await, expected, "{text} by SQL");
        }
        one.query("RESET ALL").await.ok();
        two.query("RESET ALL").await.ok();
    }
}

#[tokio::test]
async fn texts_without_constants_stay_shared() {
    let role = shared::role("no_constants").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.max_prepared_statements", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("SET TimeZone = 'UTC'").await.ok();
    two.query("SET TimeZone = 'Asia/Tokyo'").await.ok();
    for (text, parsed_anew) in [("SELECT 17", 0), ("SELECT 17, 'x'", 4)] {
        for client in [&mut one, &mut two] {
            client.query("DEALLOCATE ALL").await.ok();
            prepare(client, "s", text).await;
            assert_eq!(value(client, &run("s")).await, "17");
        }
        let before = server_parses(&pgweir).await;
        for _ in 0..2 {
            for client in [&mut one, &mut two] {
                assert_eq!(value(client, &run("s")).await, "17");
            }
        }
        let parses = server_parses(&pgweir).await - before;
        assert_eq!(parses, parsed_anew, "{text}");
    }
}

/// How often pgweir has prepared a statement on a server.
async fn server_parses(pgweir: &Pgweir) -> u64 {
    let stats = pgweir.console().await.query("SHOW STATS").await.ok();
    let is_it = |name: &String| name == "total_server_parse_count";
    let column = stats.columns.iter().position(is_it).unwrap();
    let counts = stats.rows.iter().filter_map(|row| row[column].as_deref());
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// What the settings are when a statement runs, or when another backend is given it, does not matter.
#[tokio::test]
async fn a_constant_is_what_it_was_when_its_statement_was_prepared() {
    // One of its own: DDL of other tests would have the server analyse statements anew.
    let server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).flag("--pool-size", "2").start();
    let mut one = pgweir.client().await;
    let mut two = pgweir.client().await;
    let mut third = pgweir.client().await;
    let text = "SELECT extract(epoch FROM '2020-01-02 00:00'::timestamptz)::int8, '1/2/2020'::date - '2020-01-01'::date, \
                ('{NULL}'::text[])[1] IS NULL";
    one.query("SET TimeZone = 'UTC'").await.ok();
    two.query("SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'ISO, DMY'; SET array_nulls = off")
        .await
        .ok();
    for client in [&mut one, &mut two] {
        prepare(client, "s", text).await;
    }
    one.query("SET TimeZone = 'America/New_York'").await.ok();
    one.query("PREPARE p AS SELECT '2020-01-02 00:00'::timestamptz = '2020-01-02 05:00Z'")
        .await
        .ok();
    one.query("SET TimeZone = 'UTC'").await.ok();
    two.query("SET array_nulls = on").await.ok();
    for turn in 0..4 {
        // On either backend.
        let end = if turn % 2 == 0 { "BEGIN" } else { "COMMIT" };
        third.query(end).await.ok();
        for (client, expected) in [
            (&mut one, ["1577923200", "1", "t"]),
            (&mut two, ["1577903400", "31", "f"]),
        ] {
            let row = row(client, &run("s")).await;
            let row: Vec<_> = row.iter().flatten().collect();
            assert_eq!(row, expected, "turn {turn}");
        }
        assert_eq!(one.value("EXECUTE p").await, "t");
        assert_eq!(one.value("SHOW TimeZone").await, "UTC");
        assert_eq!(two.value("SHOW DateStyle").await, "ISO, DMY");
        assert_eq!(two.value("SHOW array_nulls").await, "on");
        // Inside a transaction that has values of its own.
        one.query("BEGIN").await.ok();
        one.query("SET LOCAL TimeZone = 'CET'").await.ok();
        assert_eq!(value(&mut one, &run("s")).await, "1577923200");
        assert_eq!(one.value("SHOW TimeZone").await, "CET");
        one.query("COMMIT").await.ok();
        assert_eq!(one.value("SHOW TimeZone").await, "UTC");
    }
}

/// A backend is given a statement in the midst of a pipeline that changes how it would be read.
#[tokio::test]
async fn a_pipeline_keeps_what_it_has_set() {
    let server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).flag("--pool-size", "2").start();
    let mut one = pgweir.client().await;
    let mut other = pgweir.client().await;
    one.query("SET TimeZone = 'UTC'").await.ok();
    let text =
        "SELECT extract(epoch FROM '2020-01-02'::timestamptz)::int8, current_setting('TimeZone')";
    prepare(&mut one, "s", text).await;
    // The backend that knows the statement is taken.
    other.query("BEGIN").await.ok();
    let unsynced = |text| [parse("", text, &[]), bind("", "", &[]), execute("", 0)].concat();
    let batch = [unsynced("SET LOCAL TimeZone = 'Asia/Tokyo'"), run("s")].concat();
    assert_eq!(
        row(&mut one, &batch).await,
        [Some("1577923200".into()), Some("Asia/Tokyo".into())]
    );
    assert_eq!(one.value("SHOW TimeZone").await, "UTC");
    // What is parsed behind such a setting is nobody else's.
    let local = "SELECT extract(epoch FROM '2020-01-03'::timestamptz)::int8";
    let batch = [
        unsynced("SET LOCAL TimeZone = 'Asia/Tokyo'"),
        parse("t", local, &[]),
        run("t"),
    ]
    .concat();
    assert_eq!(value(&mut one, &batch).await, "1577977200");
    prepare(&mut one, "u", local).await;
    assert_eq!(value(&mut one, &run("u")).await, "1578009600");
    other.query("COMMIT").await.ok();
}

/// Nothing is asked of a server that refuses whatever it is asked.
#[tokio::test]
async fn a_prepared_rollback_ends_a_failed_transaction_under_other_settings() {
    let server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).flag("--pool-size", "2").start();
    let mut one = pgweir.client().await;
    let mut other = pgweir.client().await;
    prepare(&mut one, "r", "ROLLBACK /* it's é */").await;
    one.query("SET TimeZone = 'Asia/Tokyo'").await.ok();
    other.query("BEGIN").await.ok();
    one.query("BEGIN").await.ok();
    one.send(&query("SELECT 1/0")).await;
    assert_eq!(one.reply().await.sqlstate(), "22012");
    let batch = [bind("", "r", &[]), execute("", 0), sync()].concat();
    one.send(&batch).await;
    one.reply().await.ok();
    assert_eq!(one.value("SELECT 1").await, "1");
    other.query("COMMIT").await.ok();
}

/// What a transaction has set, and the client was told, is undone by what is still under way.
#[tokio::test]
async fn a_setting_that_is_taken_back_in_a_pipeline_reads_no_constant() {
    let role = shared::role("constants_taken_back").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("SET TimeZone = 'UTC'").await.ok();
    two.query("SET TimeZone = 'Asia/Tokyo'").await.ok();
    for (turn, end) in ["ROLLBACK TO s", "ROLLBACK", "COMMIT"]
        .into_iter()
        .enumerate()
    {
        for extended in [false, true] {
            let text = format!(
                "SELECT extract(epoch FROM '2020-01-02'::timestamptz)::int8 AS turn_{turn}_{extended}"
            );
            one.query("BEGIN").await.ok();
            one.query("SAVEPOINT s").await.ok();
            one.query("SET LOCAL TimeZone = 'Asia/Tokyo'").await.ok();
            let end = if extended {
                [
                    parse("", end, &[]),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]
                .concat()
            } else {
                query(end)
            };
            one.send(&[end, whole("s", &text), run("s")].concat()).await;
            one.reply().await.ok();
            one.reply().await.ok();
            assert_eq!(one.reply().await.ok().value(), "1577923200", "{text}");
            one.query("ROLLBACK").await.ok();
            // Who reads as that setting would have it shares nothing with that.
            prepare(&mut two, "s", &text).await;
            assert_eq!(value(&mut two, &run("s")).await, "1577890800", "{text}");
            assert_eq!(value(&mut one, &run("s")).await, "1577923200", "{text}");
            one.query("DEALLOCATE s").await.ok();
            two.query("DEALLOCATE s").await.ok();
        }
    }
    // The scanner's own.
    one.query("BEGIN").await.ok();
    one.query("SET LOCAL standard_conforming_strings = off")
        .await
        .ok();
    let text = r"SELECT '\'; LISTEN taken_back; SELECT ''";
    one.send(&[query("ROLLBACK"), query(text)].concat()).await;
    one.reply().await.ok();
    one.reply().await.ok();
    assert_eq!(
        one.value("SELECT count(*) FROM pg_listening_channels()")
            .await,
        "1"
    );
}
