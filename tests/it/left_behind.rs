//! What a session leaves on a connection that it kept for a while, and what an EXECUTE leaves there.

use super::listening::pinned;
use super::own_numbers::{define, step};
use crate::same::Same;
use crate::shared::{self, Role};
use crate::support::client::Client;
use crate::support::messages::{self, bind, copy_data, copy_done, execute, parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, within_limit};

async fn alone(name: &'static str) -> (Role, Pgweir) {
    let role = shared::role(name).await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    (role, pgweir)
}

fn run(text: &str) -> Vec<u8> {
    [step(text), sync()].concat()
}

async fn nobody_is_pinned(pgweir: &Pgweir) {
    eventually("the pins to end", async || pinned(pgweir).await == 0).await;
}

/// `other` has none of the statements that `one` has.
async fn assert_apart(one: &mut Client, other: &mut Client) {
    let count = "SELECT count(*) FROM pg_prepared_statements";
    assert_eq!(other.query("EXECUTE q").await.sqlstate(), "26000");
    assert_eq!(other.value(count).await, "0");
    assert_eq!(one.value("EXECUTE q").await, "secret");
}

#[tokio::test]
async fn what_was_prepared_while_numbers_kept_a_connection_is_nobody_elses() {
    let (role, pgweir) = alone("left_by_habit").await;
    define(&["CREATE SEQUENCE left_by_habit"]).await;
    let mut one = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    one.query("SELECT nextval('left_by_habit')").await.ok();
    one.query("SELECT lastval()").await.ok();
    one.terminate().await;
    let mut one = role.client(&pgweir).await;
    one.query("SELECT nextval('left_by_habit')").await.ok();
    one.query("PREPARE q AS SELECT 'secret'").await.ok();
    nobody_is_pinned(&pgweir).await;
    assert_apart(&mut one, &mut other).await;
}

#[tokio::test]
async fn what_was_lent_to_a_text_that_the_server_cannot_parse_is_nobody_elses() {
    let (role, pgweir) = alone("left_by_typo").await;
    let mut one = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    one.query("PREPARE q AS SELECT 'secret'").await.ok();
    for is_gone in [false, true] {
        if is_gone {
            one.query("CREATE TABLE left_by_typo (a int)").await.ok();
            one.query("PREPARE gone AS SELECT a FROM left_by_typo")
                .await
                .ok();
            other.query("DROP TABLE left_by_typo").await.ok();
        }
        let typo = "SELECT * FROM pg_prepared_statements WHERE name = 'q";
        assert_eq!(one.query(typo).await.sqlstate(), "42601");
        nobody_is_pinned(&pgweir).await;
        assert_apart(&mut one, &mut other).await;
    }
}

/// Of code in a text the server tells the place as if the text itself could not be parsed.
#[tokio::test]
async fn a_text_that_has_begun_to_run_pins_though_code_in_it_cannot_be_parsed() {
    let (role, pgweir) = alone("left_by_code").await;
    let parameters = [("client_encoding", "SJIS")];
    for code in [
        "DO $$BEGIN SELEC 1; END$$",
        "CREATE FUNCTION left_by_code() RETURNS int LANGUAGE sql AS 'SELEC 1'",
    ] {
        let mut one = role.client_with(&pgweir, &parameters).await;
        let lock = b"SELECT pg_advisory_lock(4711) /* \x93\xfa\x83\x5c */; ";
        let text = [&lock[..], code.as_bytes(), b"\0"].concat();
        one.send(&messages::frame(b'Q', &text)).await;
        assert_eq!(one.reply().await.sqlstate(), "42601");
        assert_eq!(pinned(&pgweir).await, 1, "{code}");
        one.terminate().await;
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711";
        let mut other = role.client(&pgweir).await;
        assert_eq!(other.value(locks).await, "0", "{code}");
    }
}

/// The typo waits for what the connection has of others to be forgotten.
#[tokio::test]
async fn a_typo_that_had_to_wait_pins_nobody() {
    let (role, pgweir) = alone("left_by_waiting").await;
    define(&["CREATE SEQUENCE left_by_waiting"]).await;
    let mut one = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    other.query("SELECT nextval('left_by_waiting')").await.ok();
    assert_eq!(one.query("SELEC 1").await.sqlstate(), "42601");
    nobody_is_pinned(&pgweir).await;
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn behind_a_large_parse_that_was_skipped_nobody_runs_anothers_statement() {
    let (role, pgweir) = alone("left_unnamed").await;
    let mut one = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    let secret = [parse("", "SELECT 'secret'", &[]), sync()].concat();
    other.send(&secret).await;
    other.reply().await.ok();
    let text = format!("SELECT 1 /* {} */", "x".repeat(5 << 20));
    let batch = [bind("", "nosuch", &[]), parse("", &text, &[]), sync()];
    one.send(&batch.concat()).await;
    assert_eq!(one.reply().await.sqlstate(), "26000");
    let run = [bind("", "", &[]), execute("", 0), sync()].concat();
    one.send(&run).await;
    assert_eq!(one.reply().await.sqlstate(), "26000");
    one.send(&[parse("", &text, &[]), run].concat()).await;
    assert_eq!(one.reply().await.ok().value(), "1");
}

#[tokio::test]
async fn an_execute_reads_no_number_of_others() {
    let (role, pgweir) = alone("left_numbers").await;
    define(&["CREATE SEQUENCE left_numbers"]).await;
    let mut other = role.client(&pgweir).await;
    let read = "PREPARE q AS SELECT lastval()";
    for batches in [
        &[query(read), run("EXECUTE q")][..],
        &[query(read), query("EXECUTE q")],
        &[query(&format!("{read}; EXECUTE q"))],
        &[run(read), run("EXECUTE q")],
        &[run(read), query("EXECUTE q")],
        &[
            query("PREPARE q AS SELECT 1"),
            query(&format!("DEALLOCATE q; {read}")),
            query("EXECUTE q"),
        ],
        &[
            [parse("q", "SELECT lastval()", &[]), sync()].concat(),
            run("EXPLAIN ANALYZE EXECUTE q"),
        ],
    ] {
        other.query("SELECT nextval('left_numbers')").await.ok();
        let mut one = role.client(&pgweir).await;
        let (last, before) = batches.split_last().unwrap();
        for batch in before {
            one.send(batch).await;
            one.reply().await.ok();
        }
        one.send(last).await;
        assert_eq!(one.reply().await.sqlstate(), "55000", "{batches:?}");
        one.terminate().await;
    }
}

#[tokio::test]
async fn what_an_execute_sets_is_the_clients() {
    let set = "SELECT set_config('search_path', 't1', false)";
    let prepare = format!("PREPARE q AS {set}");
    let both = format!("{prepare}; EXECUTE q");
    for batches in [
        &[query(&prepare), run("EXECUTE q")][..],
        &[query(&prepare), query("EXECUTE q")],
        &[query(&both)],
        &[run(&prepare), run("EXECUTE q")],
        &[query(&format!("{prepare}; SELECT 1")), query("EXECUTE q")],
    ] {
        let mut same = Same::new(|options| options).await;
        for batch in batches {
            same.check(batch).await;
        }
        same.check(&query("DEALLOCATE ALL")).await;
        for _ in 0..4 {
            same.check(&query("SHOW search_path")).await;
        }
    }
}

/// What pgweir sends for itself says nothing of the names that the server has.
#[tokio::test]
async fn names_mean_the_same_behind_an_exchange_that_failed() {
    let (role, pgweir) = alone("left_names").await;
    define(&[
        "CREATE SEQUENCE left_names",
        "CREATE FUNCTION left_names() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    ])
    .await;
    let mut one = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    other.query("SELECT nextval('left_names')").await.ok();
    for text in [
        "PREPARE q AS SELECT 'before'",
        "DEALLOCATE q; PREPARE q AS SELECT 'now'",
    ] {
        one.query(text).await.ok();
    }
    let failing = parse("wrong", "SELECT nothing", &[]);
    let batch = [failing, step("SELECT left_names()"), sync()];
    one.send(&batch.concat()).await;
    assert_eq!(one.reply().await.sqlstate(), "42703");
    assert_eq!(one.value("EXECUTE q").await, "now");
}

#[tokio::test]
async fn a_statement_behind_a_copy_in_its_exchange_does_not_wait_for_ever() {
    let (role, pgweir) = alone("left_copy").await;
    define(&[
        "CREATE TABLE left_copy (a int)",
        "CREATE SEQUENCE left_copy_numbers",
        "CREATE FUNCTION left_copied() RETURNS bigint LANGUAGE plpgsql AS \
         'BEGIN RETURN count(*) FROM left_copy; END'",
    ])
    .await;
    let mut one = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    for _ in 0..=pgweir::session::sequences::PROBATION {
        one.query("SELECT txid_current()").await.ok();
    }
    let take = "SELECT nextval('left_copy_numbers')";
    other.query(take).await.ok();
    let batch = [
        step("COPY left_copy FROM STDIN"),
        copy_data(b"7\n"),
        copy_done(),
        step("SELECT left_copied()"),
        sync(),
    ];
    one.send(&batch.concat()).await;
    within_limit("the data to be wanted", one.expect(b'1')).await;
    one.expect(b'2').await;
    one.expect(b'G').await;
    let reply = within_limit("the function", one.reply()).await.ok();
    assert_eq!(reply.value(), "1");
    assert_eq!(reply.tags, ["COPY 1", "SELECT 1"]);
}

#[tokio::test]
async fn a_text_that_the_server_does_not_run_takes_no_savepoint_away() {
    let mut same = Same::new(|options| options).await;
    for text in [
        "PREPARE p AS SELECT 1",
        "BEGIN",
        "SAVEPOINT a",
        "SAVEPOINT b",
        "SELECT 1/0",
        "ROLLBACK TO a; EXECUTE p; SELEC",
        "ROLLBACK TO b",
        "EXECUTE p",
        "ROLLBACK",
    ] {
        same.check(&query(text)).await;
    }
    // Nor does one that pgweir refuses.
    let role = shared::role("left_savepoints").await;
    let pgweir = Options::new(shared::server())
        .set("pool.on_session_state", "reject")
        .start();
    let mut one = role.client(&pgweir).await;
    for text in [
        "PREPARE p AS SELECT 1",
        "BEGIN",
        "SAVEPOINT a",
        "SAVEPOINT b",
    ] {
        one.query(text).await.ok();
    }
    one.query("SELECT 1/0").await;
    let refused = "ROLLBACK TO a; EXECUTE p; CREATE TEMP TABLE t (a int)";
    assert_eq!(one.query(refused).await.sqlstate(), "25P02");
    one.query("ROLLBACK TO b").await.ok();
    assert_eq!(one.value("EXECUTE p").await, "1");
}
