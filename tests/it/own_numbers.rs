//! Numbers of sequences where the order of things matters: inside exchanges, behind the end of a failed transaction, ahead of
//! what must come first or alone; and how long an application is thought to read them.

use std::sync::Arc;

use pgweir::demo::cluster::ServerOptions;
use tokio::sync::Semaphore;

use super::sequences::{end_probation, two};
use crate::routing::{PLACE, Stage};
use crate::shared::{self, Role};
use crate::support::client::{Client, Login};
use crate::support::messages::{
    self, bind, close, copy_data, copy_done, execute, flush, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::{eventually, within_limit};

fn pgweir(pool_size: &str) -> Pgweir {
    Options::new(shared::server())
        .flag("--pool-size", pool_size)
        .start()
}

/// Runs `texts` past pgweir, which learns nothing from them.
pub(super) async fn define(texts: &[&str]) {
    let mut direct = shared::direct().await;
    for text in texts {
        direct.query(text).await.ok();
    }
}

/// A statement of an exchange.
pub(super) fn step(text: &str) -> Vec<u8> {
    [parse("", text, &[]), bind("", "", &[]), execute("", 0)].concat()
}

#[tokio::test]
async fn a_function_finds_the_number_of_its_own_transaction() {
    let role = shared::role("function_numbers").await;
    define(&[
        "CREATE SEQUENCE function_numbers",
        "CREATE FUNCTION function_number() RETURNS bigint LANGUAGE plpgsql AS \
         'BEGIN RETURN currval(''function_numbers''); EXCEPTION WHEN OTHERS THEN RETURN -1; END'",
    ])
    .await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    end_probation(&mut one).await;
    let mut found = Vec::new();
    for turn in 0..6 {
        other.query("SELECT nextval('function_numbers')").await.ok();
        one.query("BEGIN").await.ok();
        let taken = if turn % 2 == 0 {
            one.value("SELECT nextval('function_numbers')").await
        } else {
            let reply = one
                .extended("SELECT nextval('function_numbers')", &[])
                .await;
            reply.ok().value().to_owned()
        };
        found.push(one.value("SELECT function_number()").await == taken);
        one.query("COMMIT").await.ok();
    }
    // At most the first time is a lesson, and nobody was pinned for it.
    assert_eq!(found[1..], [true; 5]);
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn an_application_whose_functions_miss_their_numbers_is_known_to_read() {
    let role = shared::role("function_lessons").await;
    define(&[
        "CREATE SEQUENCE function_lessons",
        "CREATE FUNCTION function_lesson() RETURNS bigint LANGUAGE plpgsql AS \
         'BEGIN RETURN lastval(); END'",
    ])
    .await;
    let pgweir = pgweir("2");
    let [mut one, mut other] = two(&role, &pgweir).await;
    end_probation(&mut one).await;
    for client in [&mut one, &mut other] {
        client
            .query("SELECT nextval('function_lessons')")
            .await
            .ok();
    }
    let reply = one.query("SELECT function_lesson()").await;
    assert_eq!(reply.sqlstate(), "55000");
    for _ in 0..3 {
        let taken = one.value("SELECT nextval('function_lessons')").await;
        other.query("SELECT nextval('function_lessons')").await.ok();
        assert_eq!(one.value("SELECT function_lesson()").await, taken);
    }
}

#[tokio::test]
async fn two_numbers_of_one_pipeline_are_both_found() {
    let role = shared::role("number_pairs").await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    define(&["CREATE SEQUENCE pair_a", "CREATE SEQUENCE pair_b"]).await;
    other.query("SELECT nextval('pair_a')").await.ok();
    let batch = [
        step("SELECT nextval('pair_a')"),
        step("SELECT nextval('pair_b')"),
        step("SELECT currval('pair_a') + currval('pair_b')"),
        sync(),
    ];
    one.send(&batch.concat()).await;
    let reply = one.reply().await.ok();
    assert_eq!(reply.column(), ["2", "1", "3"]);
}

/// Statements that must have a transaction to themselves, and code that ends its own, in the extended protocol. On a server
/// of their own: some wait for all other transactions.
#[tokio::test]
async fn what_must_be_alone_in_its_exchange_is() {
    let server = ServerOptions::default().start().unwrap();
    let mut direct = Client::connect(server.address(), "postgres", "postgres").await;
    for text in [
        "CREATE TABLE number_loners (id serial, a int)",
        "CREATE PROCEDURE number_loner() LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO number_loners (a) VALUES (1); COMMIT; INSERT INTO number_loners (a) VALUES (2); COMMIT; END'",
    ] {
        direct.query(text).await.ok();
    }
    let pgweir = Options::new(&server).flag("--pool-size", "1").start();
    let [mut one, mut other] = [pgweir.client().await, pgweir.client().await];
    for text in [
        "VACUUM number_loners",
        "CREATE DATABASE number_loners_db",
        "DROP DATABASE number_loners_db",
        "CREATE INDEX CONCURRENTLY number_loners_a ON number_loners (a)",
        "REINDEX INDEX CONCURRENTLY number_loners_a",
        "DROP INDEX CONCURRENTLY number_loners_a",
        "ALTER SYSTEM SET work_mem = '4MB'",
        "ALTER SYSTEM RESET work_mem",
        "CALL number_loner()",
        "DO 'BEGIN COMMIT; PERFORM 1; COMMIT; END'",
    ] {
        for named in [false, true] {
            other
                .query("INSERT INTO number_loners (a) VALUES (0)")
                .await
                .ok();
            if !named {
                one.extended(text, &[]).await.ok();
                continue;
            }
            if text.contains("DATABASE") || text.contains("CONCURRENTLY") {
                continue;
            }
            // In an exchange that has begun already.
            one.send(&[close(b'P', "gone"), step(text), sync()].concat())
                .await;
            one.reply().await.ok();
            other
                .query("INSERT INTO number_loners (a) VALUES (0)")
                .await
                .ok();
            one.send(&[parse("s", text, &[]), sync()].concat()).await;
            one.reply().await.ok();
            other
                .query("INSERT INTO number_loners (a) VALUES (0)")
                .await
                .ok();
            let run = [bind("", "s", &[]), execute("", 0), sync()];
            one.send(&run.concat()).await;
            one.reply().await.ok();
            one.query("DEALLOCATE s").await.ok();
        }
    }
}

#[tokio::test]
async fn behind_the_end_of_a_failed_transaction_nobody_reads_a_foreign_number() {
    let role = shared::role("failed_numbers").await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    define(&[
        "CREATE SEQUENCE failed_numbers",
        "CREATE FUNCTION failed_number() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN lastval(); END'",
    ])
    .await;
    for (begin, end, status) in [
        ("BEGIN", "ROLLBACK; SELECT lastval()", 'I'),
        ("BEGIN", "ROLLBACK; SELECT failed_number()", 'I'),
        ("BEGIN", "/* é */ COMMIT; SELECT lastval()", 'I'),
        ("BEGIN", "END; SELECT 1; SELECT failed_number()", 'I'),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "ABORT AND CHAIN; SELECT lastval()",
            'E',
        ),
        (
            "BEGIN; SAVEPOINT \"é\"",
            "ROLLBACK TO \"é\"; SELECT lastval()",
            'E',
        ),
        ("BEGIN", "PREPARE TRANSACTION 'x'; SELECT lastval()", 'I'),
    ] {
        other.query("SELECT nextval('failed_numbers')").await.ok();
        one.query(begin).await.ok();
        assert_eq!(one.query("SELECT 1/0").await.sqlstate(), "22012");
        let reply = one.query(end).await;
        assert_eq!(reply.tags[0], "ROLLBACK", "{end}");
        assert_eq!((reply.sqlstate(), reply.status), ("55000", status), "{end}");
        one.query("ROLLBACK").await.ok();
        one.query("DISCARD ALL").await.ok();
    }
    // A savepoint that is not there.
    other.query("SELECT nextval('failed_numbers')").await.ok();
    one.query("BEGIN").await.ok();
    assert_eq!(one.query("SELECT 1/0").await.sqlstate(), "22012");
    let reply = one.query("ROLLBACK TO nowhere; SELECT lastval()").await;
    assert_eq!((reply.sqlstate(), reply.status), ("3B001", 'E'));
}

/// Where pgweir can't tell what a text does, the server refuses it.
#[tokio::test]
async fn text_that_is_not_understood_reads_no_foreign_number() {
    let role = shared::role("unread_numbers").await;
    let pgweir = pgweir("1");
    let mut other = role.client(&pgweir).await;
    define(&["CREATE SEQUENCE unread_numbers"]).await;
    other.query("SELECT nextval('unread_numbers')").await.ok();
    let parameters = [("client_encoding", "SJIS")];
    let mut unread = role.client_with(&pgweir, &parameters).await;
    unread.query("BEGIN").await.ok();
    assert_eq!(unread.query("SELECT 1/0").await.sqlstate(), "22012");
    let text = b"ROLLBACK; SELECT lastval() /* \x83\x5c */\0";
    unread.send(&messages::frame(b'Q', text)).await;
    assert_eq!(unread.reply().await.sqlstate(), "25P02");
    unread.query("ROLLBACK").await.ok();
    unread.send(&messages::frame(b'Q', text)).await;
    assert_eq!(unread.reply().await.sqlstate(), "55000");
    unread.query("DISCARD ALL").await.ok();
    other.query("SELECT nextval('unread_numbers')").await.ok();
    let parse = messages::frame(b'P', b"\0SELECT lastval() /* \x83\x5c */\0\0\0");
    let batch = [parse, bind("", "", &[]), execute("", 0), sync()];
    unread.send(&batch.concat()).await;
    assert_eq!(unread.reply().await.sqlstate(), "55000");
    unread.terminate().await;
}

#[tokio::test]
async fn behind_the_end_of_a_failed_transaction_in_a_pipeline_nobody_does() {
    let role = shared::role("pipelined_numbers").await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    define(&[
        "CREATE SEQUENCE pipelined_numbers",
        "CREATE FUNCTION pipelined_number() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN lastval(); END'",
    ])
    .await;
    for batch in [
        [query("ROLLBACK"), query("SELECT lastval()")].concat(),
        [query("ROLLBACK"), query("SELECT pipelined_number()")].concat(),
        [
            step("ROLLBACK"),
            step("SELECT lastval()"),
            sync(),
            query("SELECT 1"),
        ]
        .concat(),
        [
            step("ROLLBACK"),
            step("SELECT pipelined_number()"),
            sync(),
            query("SELECT 1"),
        ]
        .concat(),
    ] {
        one.query("ROLLBACK").await.ok();
        one.query("DISCARD ALL").await.ok();
        other
            .query("SELECT nextval('pipelined_numbers')")
            .await
            .ok();
        one.query("BEGIN").await.ok();
        assert_eq!(one.query("SELECT 1/0").await.sqlstate(), "22012");
        one.send(&batch).await;
        let replies = [one.reply().await, one.reply().await];
        let errors: Vec<_> = replies.iter().flat_map(|it| &it.errors).collect();
        assert_eq!(errors.len(), 1, "{replies:?}");
        assert_eq!(errors[0].code, "55000", "{replies:?}");
    }
}

/// A query takes the snapshot of a transaction that has one for all: nothing may stand ahead of what comes first.
#[tokio::test]
async fn what_must_come_first_in_its_transaction_does() {
    let role = shared::role("first_numbers").await;
    define(&["CREATE TABLE first_numbers (id serial, a int)"]).await;
    let pgweir = pgweir("2");
    let [mut one, mut other] = two(&role, &pgweir).await;
    // Both backends have numbers of others.
    let insert = "INSERT INTO first_numbers (a) VALUES (0)";
    for text in [
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; INSERT INTO first_numbers (a) VALUES (1)",
        "SET LOCAL work_mem = '1MB'; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; DO 'BEGIN END'",
    ] {
        foreign(&mut other, &role, &pgweir, insert).await;
        one.query("BEGIN").await.ok();
        one.query(text).await.ok();
        one.query("COMMIT").await.ok();
    }
    for extended in [false, true] {
        foreign(&mut other, &role, &pgweir, insert).await;
        one.query("BEGIN ISOLATION LEVEL REPEATABLE READ")
            .await
            .ok();
        let lock = "LOCK TABLE first_numbers IN SHARE MODE";
        other.query("BEGIN").await.ok();
        other.query(insert).await.ok();
        let count = "SELECT count(*) FROM first_numbers";
        let expected = other.value(count).await;
        let batch = if extended {
            [step(lock), sync()].concat()
        } else {
            query(lock)
        };
        one.send(&batch).await;
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'first_numbers'::regclass";
        eventually("a lock to be waited for", async || {
            shared::direct().await.value(waits).await == "1"
        })
        .await;
        other.query("COMMIT").await.ok();
        one.reply().await.ok();
        // What was committed while the lock was waited for is seen.
        assert_eq!(one.value(count).await, expected, "extended: {extended}");
        one.query("COMMIT").await.ok();
    }
}

/// Has two clients run `insert` on both backends of the pool.
async fn foreign(other: &mut Client, role: &Role, pgweir: &Pgweir, insert: &str) {
    let mut third = role.client(pgweir).await;
    other.query("BEGIN").await.ok();
    for client in [&mut *other, &mut third] {
        client.query(insert).await.ok();
    }
    other.query("COMMIT").await.ok();
    third.terminate().await;
}

#[tokio::test]
async fn a_copy_takes_numbers_like_any_write() {
    let role = shared::role("copy_numbers").await;
    define(&[
        "CREATE TABLE copy_numbers (id serial, a int)",
        "CREATE SEQUENCE copy_others",
    ])
    .await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    other.query("SELECT nextval('copy_others')").await.ok();
    one.query("BEGIN").await.ok();
    let copy = "COPY copy_numbers (a) FROM STDIN";
    one.copy_in(copy, &[b"7\n"]).await.ok();
    assert_eq!(one.value("SELECT lastval()").await, "1");
    one.query("COMMIT").await.ok();
    one.query("DISCARD ALL").await.ok();
    // Behind the data, in one write.
    other.query("SELECT nextval('copy_others')").await.ok();
    let batch = [
        query(copy),
        copy_data(b"8\n"),
        copy_done(),
        query("INSERT INTO copy_numbers (a) VALUES (9)"),
    ];
    one.send(&batch.concat()).await;
    one.expect(b'G').await;
    one.reply().await.ok();
    one.reply().await.ok();
    assert_eq!(
        one.value("SELECT string_agg(id || ':' || a, ' ' ORDER BY id) FROM copy_numbers")
            .await,
        "1:7 2:8 3:9"
    );
}

#[tokio::test]
async fn a_text_too_large_to_be_read_reads_no_foreign_number() {
    let role = shared::role("large_numbers").await;
    define(&["CREATE SEQUENCE large_numbers"]).await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    let text = format!("SELECT lastval() /* {} */", "x".repeat(5 << 20));
    for name in ["", "large"] {
        other.query("SELECT nextval('large_numbers')").await.ok();
        let batch = [
            parse(name, &text, &[]),
            bind("", name, &[]),
            execute("", 0),
            sync(),
        ];
        one.send(&batch.concat()).await;
        assert_eq!(one.reply().await.sqlstate(), "55000");
        one.terminate().await;
        one = role.client(&pgweir).await;
    }
}

#[tokio::test]
async fn an_application_that_reads_numbers_does_not_keep_connections_for_good() {
    let role = shared::role("number_yielders").await;
    define(&["CREATE SEQUENCE yielded_numbers"]).await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("SELECT nextval('yielded_numbers')").await.ok();
    one.query("SELECT lastval()").await.ok();
    one.terminate().await;
    // This one has read nothing itself.
    let mut one = role.client(&pgweir).await;
    one.query("SELECT nextval('yielded_numbers')").await.ok();
    assert_eq!(other.value("SELECT 1").await, "1");
    let taken = one.value("SELECT nextval('yielded_numbers')").await;
    // Where nobody needs the connection, it is found again after a while.
    let console = &mut pgweir.console().await;
    eventually("the pin to end", async || {
        console.query("SHOW PINS").await.ok().rows.is_empty()
    })
    .await;
    assert_eq!(one.value("SELECT lastval()").await, taken);
}

/// A session that writes and writes is not taken for a reader for long.
#[tokio::test]
async fn a_busy_session_that_reads_no_numbers_gives_its_connection_back() {
    let role = shared::role("number_writers").await;
    define(&["CREATE SEQUENCE written_numbers"]).await;
    let pgweir = pgweir("2");
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("SELECT nextval('written_numbers')").await.ok();
    one.query("SELECT lastval()").await.ok();
    for _ in 0..50 {
        other.query("SELECT nextval('written_numbers')").await.ok();
    }
    let pins = pgweir.console().await.query("SHOW PINS").await.ok();
    assert_eq!(pins.rows.len(), 1);
    // The one that reads keeps its own.
    assert_eq!(one.value("SELECT lastval()").await, "1");
}

#[tokio::test]
async fn a_text_that_the_server_cannot_parse_pins_nobody() {
    let role = shared::role("unparsed").await;
    let pgweir = pgweir("1");
    let [mut one, mut other] = two(&role, &pgweir).await;
    for text in ["SELEC 1", "SELECT 1; SELEC 2", "SELECT 'x", "SELECT (1"] {
        assert_eq!(one.query(text).await.sqlstate(), "42601", "{text}");
        assert_eq!(other.value("SELECT 1").await, "1", "{text}");
    }
    one.query("BEGIN").await.ok();
    assert_eq!(one.query("SELEC 1").await.sqlstate(), "42601");
    one.query("ROLLBACK").await.ok();
    assert_eq!(other.value("SELECT 1").await, "1");
    let pins = pgweir.console().await.query("SHOW PINS").await.ok();
    assert!(pins.rows.is_empty());
}

/// What else is under way may be what pgweir does not understand.
#[tokio::test]
async fn a_syntax_error_of_code_proves_nothing() {
    let role = shared::role("half_parsed").await;
    define(&[
        "CREATE FUNCTION half_parsed() RETURNS void LANGUAGE plpgsql AS \
         'BEGIN PERFORM set_config(''work_mem'', ''1MB'', false); EXECUTE ''SELEC 1''; END'",
    ])
    .await;
    let pgweir = pgweir("1");
    let mut one = role
        .client_with(&pgweir, &[("client_encoding", "SJIS")])
        .await;
    // Read by its bytes alone it can't be understood in this encoding.
    let text = b"SELECT half_parsed() /* \x83\x5c */\0";
    let batch = messages::frame(b'Q', text);
    one.send(&batch).await;
    assert_eq!(one.reply().await.sqlstate(), "42601");
    let pins = pgweir.console().await.query("SHOW PINS").await.ok();
    assert_eq!(pins.rows.len(), 1);
    // Two in a pipeline: the second is one that the server understands.
    one.terminate().await;
    let mut one = role
        .client_with(&pgweir, &[("client_encoding", "SJIS")])
        .await;
    let valid = messages::frame(b'Q', b"SELECT 1 /* \x83\x5c */\0");
    let batch = [query("SELEC 1"), valid].concat();
    one.send(&[batch, flush()].concat()).await;
    assert_eq!(one.reply().await.sqlstate(), "42601");
    one.reply().await.ok();
    let pins = pgweir.console().await.query("SHOW PINS").await.ok();
    assert_eq!(pins.rows.len(), 1);
}

#[tokio::test]
async fn a_connection_to_a_replica_is_set_aside_for_nobody() {
    let stage = Stage::new(1, |options| options.set("pool.lanes", "0")).await;
    let replica = &stage.cluster.replicas[0];
    let sql = "CREATE SEQUENCE replica_numbers; CREATE ROLE numbers SUPERUSER LOGIN";
    stage.cluster.primary.sql("postgres", sql).unwrap();
    stage.cluster.wait_until_caught_up().unwrap();
    let login = Login::new("numbers", "postgres");
    let mut one = stage.pgweir.client_as(&login).await;
    let mut other = stage.pgweir.client_as(&login).await;
    one.query("SELECT nextval('replica_numbers')").await.ok();
    let console = &mut stage.pgweir.console().await;
    for client in [&mut one, &mut other] {
        eventually("the replica to serve a read", async || {
            client.value(PLACE).await == replica.port().to_string()
        })
        .await;
        // A client has its answer before its connection is given back.
        eventually("the connections to be idle", async || {
            let servers = console.query("SHOW SERVERS").await.ok();
            let is_busy = |row: &Vec<Option<String>>| row.contains(&Some("active".to_owned()));
            !servers.rows.iter().any(is_busy)
        })
        .await;
    }
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'numbers'";
    assert_eq!(replica.sql("postgres", count).unwrap(), "1");
}

/// A backend that is slow to forget.
async fn forget_slowly(mut connection: BackendConnection, asked: Arc<Semaphore>) {
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        let answer = if sql == "DISCARD SEQUENCES" {
            asked.add_permits(1);
            let forgot = Semaphore::acquire_many(&asked, 2).await.unwrap();
            forgot.forget();
            assert_eq!(connection.canceled(), 0);
            [
                messages::command_complete(&sql),
                messages::ready_for_query(b'I'),
            ]
            .concat()
        } else if sql == "SELECT unknown()" {
            within_limit("a cancel request", async {
                while connection.canceled() == 0 {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let error = "canceling statement due to user request";
            [
                messages::error_response("ERROR", "57014", error),
                messages::ready_for_query(b'I'),
            ]
            .concat()
        } else {
            messages::one_value_reply("1")
        };
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn a_cancel_request_that_comes_while_numbers_are_forgotten_is_kept_for_the_statement() {
    let plain = Login::new("scripted", "scripted");
    // Behind the settings of another session as well.
    for login in [plain.clone(), plain.with("application_name", "named")] {
        let asked = Arc::new(Semaphore::new(0));
        let script = Arc::clone(&asked);
        let backend =
            ScriptedBackend::start_with(move |it| forget_slowly(it, Arc::clone(&script))).await;
        let pgweir = Options::in_front_of_script(&backend)
            .flag("--pool-size", "1")
            .start();
        let mut other = pgweir.client_as(&Login::new("scripted", "scripted")).await;
        let mut one = pgweir.client_as(&login).await;
        other.query("SELECT nextval('s')").await.ok();
        one.send(&query("SELECT unknown()")).await;
        drop(asked.acquire().await.unwrap());
        let mut cancel = Client::open(pgweir.address).await;
        cancel.send(&messages::cancel_request(&one.key)).await;
        cancel.expect_end().await;
        asked.add_permits(1);
        assert_eq!(one.reply().await.sqlstate(), "57014");
    }
}
