//! Prepared statements whose tables or types DDL has changed: as on a direct connection, on whichever backend.

use pgweir::demo::cluster::ServerOptions;

use crate::same::Same;
use crate::shared;
use crate::support::client::Client;
use crate::support::messages::{bind, close, describe, execute, parse, query, sync};
use crate::support::pgweir::Options;

async fn same() -> Same {
    Same::new(|options| options).await
}

/// Bind, Execute and Sync: a client that remembers descriptions.
fn run(name: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    [bind("", name, parameters), execute("", 0), sync()].concat()
}

/// Bind, Describe, Execute and Sync: a client that asks each time.
fn ask(name: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    [
        bind("", name, parameters),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ]
    .concat()
}

fn prepare(name: &str, text: &str) -> Vec<u8> {
    [parse(name, text, &[]), describe(b'S', name), sync()].concat()
}

async fn ddl(statements: &[&str]) {
    let mut client = shared::direct().await;
    for statement in statements {
        client.query(statement).await.ok();
    }
    client.terminate().await;
}

/// The answer's tags, and the error if there is one.
async fn answer(client: &mut Client, batch: &[u8]) -> String {
    client.send(batch).await;
    let reply = client.reply().await;
    match reply.errors.first() {
        Some(error) => format!("{} {}", reply.order, error.code),
        None => reply.order,
    }
}

#[tokio::test]
async fn a_statement_whose_result_has_changed_is_refused_on_every_backend_until_it_is_parsed_again()
{
    ddl(&[
        "CREATE TABLE stale_result (a int)",
        "INSERT INTO stale_result VALUES (1)",
    ])
    .await;
    let mut same = same().await;
    same.check(&prepare("s", "SELECT * FROM stale_result"))
        .await;
    for _ in 0..4 {
        assert_eq!(same.tags(&run("s", &[])).await, "2DCZ");
    }
    ddl(&["ALTER TABLE stale_result ADD COLUMN b text"]).await;
    for _ in 0..6 {
        assert_eq!(same.tags(&run("s", &[])).await, "EZ");
    }
    // Each refusal has words of its own, however many are under way.
    let thrice = run("s", &[]).repeat(3);
    assert_eq!(same.tags(&thrice).await, "EZEZEZ");
    same.check(&query("BEGIN")).await;
    assert_eq!(same.tags(&run("s", &[])).await, "EZ");
    assert_eq!(same.tags(&run("s", &[])).await, "EZ");
    same.check(&query("ROLLBACK")).await;
    let again = [close(b'S', "s"), prepare("s", "SELECT * FROM stale_result")].concat();
    assert_eq!(same.tags(&again).await, "31tTZ");
    for _ in 0..4 {
        assert_eq!(same.tags(&run("s", &[])).await, "2DCZ");
    }
    ddl(&["DROP TABLE stale_result"]).await;
    for _ in 0..4 {
        assert_eq!(same.tags(&run("s", &[])).await, "EZ");
    }
    ddl(&["CREATE TABLE stale_result (a int, b text)"]).await;
    for _ in 0..4 {
        assert_eq!(same.tags(&run("s", &[])).await, "2CZ");
    }
}

#[tokio::test]
async fn a_statement_parsed_after_the_ddl_is_not_refused_for_another_clients_sake() {
    ddl(&["CREATE TABLE stale_other (a int)"]).await;
    let role = shared::role("stale_other").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut old = role.client(&pgweir).await;
    let mut new = role.client(&pgweir).await;
    let mut holder = role.client(&pgweir).await;
    let text = "SELECT * FROM stale_other";
    assert_eq!(answer(&mut old, &prepare("o", text)).await, "1tTZ");
    for end in ["BEGIN", "COMMIT", "BEGIN"] {
        holder.query(end).await.ok();
        assert_eq!(answer(&mut old, &run("o", &[])).await, "2CZ");
    }
    ddl(&["ALTER TABLE stale_other ADD COLUMN b text"]).await;
    assert_eq!(answer(&mut new, &prepare("n", text)).await, "1tTZ");
    for end in ["COMMIT", "BEGIN", "COMMIT", "BEGIN"] {
        holder.query(end).await.ok();
        assert_eq!(answer(&mut new, &run("n", &[])).await, "2CZ");
        assert_eq!(answer(&mut old, &run("o", &[])).await, "EZ 0A000");
        assert_eq!(answer(&mut new, &run("n", &[])).await, "2CZ");
    }
    // In a transaction there is no way back, and none is needed.
    for end in ["COMMIT", "BEGIN"] {
        holder.query(end).await.ok();
        new.query("BEGIN").await.ok();
        assert_eq!(answer(&mut new, &run("n", &[])).await, "2CZ");
        new.query("COMMIT").await.ok();
    }
}

#[tokio::test]
async fn a_client_that_asks_for_the_description_each_time_is_told_the_new_one() {
    ddl(&["CREATE TABLE stale_asked (a int)"]).await;
    let role = shared::role("stale_asked").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut client = role.client(&pgweir).await;
    let mut holder = role.client(&pgweir).await;
    let text = "SELECT * FROM stale_asked";
    assert_eq!(answer(&mut client, &prepare("s", text)).await, "1tTZ");
    ddl(&["ALTER TABLE stale_asked ADD COLUMN b text"]).await;
    // This backend has not parsed it before.
    holder.query("BEGIN").await.ok();
    holder.query("SELECT 1").await.ok();
    client.send(&ask("s", &[])).await;
    assert_eq!(client.reply().await.ok().columns.len(), 2);
    holder.query("COMMIT").await.ok();
    for end in ["BEGIN", "COMMIT", "BEGIN"] {
        holder.query(end).await.ok();
        assert_eq!(answer(&mut client, &run("s", &[])).await, "2CZ");
    }
}

#[tokio::test]
async fn types_that_ddl_has_replaced_are_not_those_of_a_shared_statement() {
    let replace = [
        "DROP TYPE IF EXISTS stale_mood",
        "CREATE TYPE stale_mood AS ENUM ('sad', 'happy')",
    ];
    ddl(&replace).await;
    let mut same = same().await;
    let text = "SELECT $1::stale_mood";
    for _ in 0..2 {
        same.check(&[close(b'S', "s"), prepare("s", text)].concat())
            .await;
        assert_eq!(same.tags(&run("s", &[Some("sad")])).await, "2DCZ");
    }
    ddl(&replace).await;
    for _ in 0..4 {
        let again = [close(b'S', "s"), prepare("s", text)].concat();
        assert_eq!(same.tags(&again).await, "31tTZ");
        assert_eq!(same.tags(&run("s", &[Some("happy")])).await, "2DCZ");
        assert_eq!(same.tags(&run("s", &[Some("sad")])).await, "2DCZ");
    }
    ddl(&["DROP TYPE stale_mood"]).await;
    for _ in 0..2 {
        assert_eq!(
            same.tags(&[close(b'S', "s"), prepare("s", text)].concat())
                .await,
            "3EZ"
        );
    }
}

#[tokio::test]
async fn the_search_path_between_parse_and_bind_decides_as_on_a_direct_connection() {
    ddl(&[
        "CREATE SCHEMA stale_one",
        "CREATE SCHEMA stale_two",
        "CREATE SCHEMA stale_three",
        "CREATE TABLE stale_one.t AS SELECT 1 AS a",
        "CREATE TABLE stale_two.t AS SELECT 2 AS a",
        "CREATE TABLE stale_three.t AS SELECT 'three'::text AS b",
    ])
    .await;
    let mut same = same().await;
    same.check(&query("SET search_path = stale_one")).await;
    same.check(&prepare("s", "SELECT * FROM t")).await;
    for _ in 0..2 {
        for path in [
            "stale_two",
            "stale_one",
            "stale_three",
            "stale_two",
            "public",
            "stale_one",
        ] {
            same.check(&query(&format!("SET search_path = {path}")))
                .await;
            for _ in 0..3 {
                same.check(&run("s", &[])).await;
            }
        }
    }
}

/// Constants are read when a text is analysed: by the settings that its session had then.
#[tokio::test]
async fn a_constant_is_what_it_was_when_its_statement_was_prepared() {
    // One of its own: DDL of other tests would have the server analyse statements anew.
    let server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server).flag("--pool-size", "2").start();
    let mut one = pgweir.client().await;
    let mut two = pgweir.client().await;
    let mut third = pgweir.client().await;
    let text = "SELECT extract(epoch FROM '2020-01-02 00:00'::timestamptz)::int8, '1/2/2020'::date - '2020-01-01'::date";
    one.query("SET TimeZone = 'UTC'").await.ok();
    two.query("SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'ISO, DMY'")
        .await
        .ok();
    let prepare = [parse("s", text, &[]), sync()].concat();
    let run = [
        bind("", "s", &[]),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ]
    .concat();
    for client in [&mut one, &mut two] {
        client.send(&prepare).await;
        client.reply().await.ok();
    }
    // What the settings are when it runs does not matter.
    one.query("SET TimeZone = 'America/New_York'").await.ok();
    one.query("PREPARE p AS SELECT '2020-01-02 00:00'::timestamptz = '2020-01-02 05:00Z'")
        .await
        .ok();
    one.query("SET TimeZone = 'UTC'").await.ok();
    for turn in 0..4 {
        // On either backend.
        let end = if turn % 2 == 0 { "BEGIN" } else { "COMMIT" };
        third.query(end).await.ok();
        for (client, epoch, days) in [
            (&mut one, "1577923200", "1"),
            (&mut two, "1577903400", "31"),
        ] {
            client.send(&run).await;
            let reply = client.reply().await.ok();
            let row: Vec<_> = reply.rows[0].iter().flatten().collect();
            assert_eq!(row, [epoch, days], "turn {turn}");
        }
        assert_eq!(one.value("EXECUTE p").await, "t");
        assert_eq!(one.value("SHOW TimeZone").await, "UTC");
        assert_eq!(two.value("SHOW DateStyle").await, "ISO, DMY");
        // Inside a transaction that has values of its own.
        one.query("BEGIN").await.ok();
        one.query("SET LOCAL TimeZone = 'CET'").await.ok();
        one.send(&run).await;
        let reply = one.reply().await.ok();
        assert_eq!(reply.rows[0][0].as_deref(), Some("1577923200"));
        assert_eq!(one.value("SHOW TimeZone").await, "CET");
        one.query("COMMIT").await.ok();
        assert_eq!(one.value("SHOW TimeZone").await, "UTC");
    }
}
