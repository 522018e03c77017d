//! Statements that pgweir refuses: one error each, in its place, with the effect that an error of the server has; the
//! session goes on.

use crate::shared::{self, Role};
use crate::support::client::Client;
use crate::support::messages::{
    ServerError, bind, copy_data, describe, execute, frame, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};

async fn rejecting(name: &'static str) -> (Role, Pgweir, Client) {
    let role = shared::role(name).await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.on_session_state", "reject")
        .start();
    let client = role.client(&pgweir).await;
    (role, pgweir, client)
}

#[track_caller]
fn is_refused(error: &ServerError, kind: &str) {
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("ERROR", "0A000"),
        "{error:?}"
    );
    assert!(error.message.contains(kind), "{error:?}");
    let hint = error.hint.as_deref().unwrap_or_default();
    assert!(hint.contains("pool.on_session_state"), "{error:?}");
}

fn run(sql: &str) -> Vec<u8> {
    [
        parse("", sql, &[]),
        bind("", "", &[]),
        describe(b'P', ""),
        execute("", 0),
    ]
    .concat()
}

#[tokio::test]
async fn a_refused_statement_is_one_error_and_the_session_goes_on_unpinned() {
    let (role, pgweir, mut client) = rejecting("rejected").await;
    let mut other = role.client(&pgweir).await;
    for (sql, kind) in [
        ("CREATE TEMP TABLE t (a int)", "a temporary table"),
        ("SELECT pg_advisory_lock(1)", "advisory lock"),
        ("SELECT setseed(0.5)", "setseed"),
        ("SELECT 1; LOAD 'plpgsql'; SELECT 2", "LOAD"),
    ] {
        let reply = client.query(sql).await;
        is_refused(reply.error(), kind);
        assert_eq!((reply.status, reply.order.as_str()), ('I', "EZ"), "{sql}");
        let reply = client
            .extended(sql.split(';').nth(1).unwrap_or(sql), &[])
            .await;
        is_refused(reply.error(), kind);
        assert_eq!(reply.status, 'I', "{sql}");
        assert_eq!(other.value("SELECT 1").await, "1");
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    // What lasts no longer than a transaction is nobody's state.
    client.query("BEGIN").await.ok();
    client
        .query("CREATE TEMP TABLE t (a int) ON COMMIT DROP")
        .await
        .ok();
    client.query("COMMIT").await.ok();
    assert_eq!(other.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_refused_statement_fails_its_transaction() {
    let (mut role, _pgweir, mut client) = rejecting("rejected_inside").await;
    client
        .query("CREATE TABLE IF NOT EXISTS rejected_inside (a int)")
        .await
        .ok();
    client.query("BEGIN").await.ok();
    client
        .query("INSERT INTO rejected_inside VALUES (1)")
        .await
        .ok();
    let reply = client.query("CREATE TEMP TABLE t (a int)").await;
    is_refused(reply.error(), "a temporary table");
    assert_eq!(reply.status, 'E');
    assert_eq!(client.query("SELECT 1").await.sqlstate(), "25P02");
    // There the server has another reason, for the simple and for the extended protocol.
    let again = client.query("CREATE TEMP TABLE t (a int)").await;
    assert_eq!(again.sqlstate(), "25P02");
    let again = client.extended("CREATE TEMP TABLE t (a int)", &[]).await;
    assert_eq!(again.sqlstate(), "25P02");
    let ended = client.query("COMMIT").await.ok();
    assert_eq!(
        (ended.tags, ended.status),
        (vec!["ROLLBACK".to_owned()], 'I')
    );
    // A savepoint takes it back like any error.
    client
        .query("BEGIN; INSERT INTO rejected_inside VALUES (2); SAVEPOINT s")
        .await
        .ok();
    let reply = client.extended("SELECT pg_advisory_lock(1)", &[]).await;
    is_refused(reply.error(), "advisory lock");
    assert_eq!(reply.status, 'E');
    client.query("ROLLBACK TO s").await.ok();
    assert_eq!(client.query("COMMIT").await.ok().tags, ["COMMIT"]);
    // Nothing of a text of several statements has run.
    let mixed = "INSERT INTO rejected_inside VALUES (3); CREATE TEMP TABLE t (a int)";
    is_refused(client.query(mixed).await.error(), "a temporary table");
    let rows = "SELECT string_agg(a::text, ',') FROM rejected_inside";
    assert_eq!(role.observe(rows).await, "2");
}

#[tokio::test]
async fn a_refusal_has_its_place_in_a_pipeline() {
    let (mut role, _pgweir, mut client) = rejecting("rejected_pipeline").await;
    let table = "CREATE TABLE IF NOT EXISTS rejected_pipeline (a int)";
    client.query(table).await.ok();
    let batch = [
        "SELECT 'a' FROM pg_sleep(0.1)",
        "SELECT setseed(1)",
        "SELECT 'b'",
    ];
    client.send(&batch.map(query).concat()).await;
    assert_eq!(client.reply().await.ok().value(), "a");
    is_refused(client.reply().await.error(), "setseed");
    assert_eq!(client.reply().await.ok().value(), "b");
    // The server skips up to the Sync, and takes back what the exchange had done.
    let named = [
        parse("kept", "SELECT 'c'", &[]),
        parse("", "SELECT 'd'", &[]),
        sync(),
    ];
    client.send(&named.concat()).await;
    client.reply().await.ok();
    let batch = [
        run("INSERT INTO rejected_pipeline VALUES (1)"),
        parse("state", "SELECT setseed(1)", &[]),
        bind("", "state", &[]),
        execute("", 0),
        run("INSERT INTO rejected_pipeline VALUES (2)"),
        sync(),
        run("SELECT 'e'"),
        sync(),
    ];
    client.send(&batch.concat()).await;
    let reply = client.reply().await;
    is_refused(reply.error(), "setseed");
    assert_eq!(reply.order, "12nC1EZ");
    assert_eq!(client.reply().await.ok().value(), "e");
    assert_eq!(
        role.observe("SELECT count(*) FROM rejected_pipeline").await,
        "0"
    );
    // An error before it hides it; what follows has its own.
    let batch = [
        run("SELECT 1/0"),
        run("SELECT setseed(1)"),
        sync(),
        run("SELECT setseed(1)"),
        sync(),
    ];
    client.send(&batch.concat()).await;
    assert_eq!(client.reply().await.sqlstate(), "22012");
    is_refused(client.reply().await.error(), "setseed");
    client
        .send(&[bind("", "kept", &[]), execute("", 0), sync()].concat())
        .await;
    assert_eq!(client.reply().await.ok().value(), "c");
}

#[tokio::test]
async fn what_is_too_large_to_be_understood_is_refused_and_dropped() {
    let (_role, _pgweir, mut client) = rejecting("rejected_large").await;
    let large = format!("SELECT '{}'", "x".repeat(5 << 20));
    is_refused(client.query(&large).await.error(), "does not understand");
    is_refused(
        client.extended(&large, &[]).await.error(),
        "does not understand",
    );
    assert_eq!(client.value("SELECT 1").await, "1");
    // FunctionCall of something that pgweir knows nothing of: setseed(float8) by its number.
    let call = [
        &1599u32.to_be_bytes()[..],
        &[0, 0, 0, 1, 0, 0, 0, 1],
        b"1",
        &[0, 0],
    ]
    .concat();
    client.send(&frame(b'F', &call)).await;
    is_refused(client.reply().await.error(), "a function");
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_large_message_refused_after_waiting_is_an_error_and_the_session_goes_on() {
    let role = shared::role("refused_large").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("timeouts.query_wait_timeout", "300ms")
        .start();
    let mut holder = role.client(&pgweir).await;
    let mut client = role.client(&pgweir).await;
    let large = "x".repeat(300_000);
    client
        .send(&[parse("s", "SELECT length($1)", &[]), sync()].concat())
        .await;
    client.reply().await.ok();
    holder.query("BEGIN").await.ok();
    let extended = [bind("", "s", &[Some(&large)]), execute("", 0), sync()].concat();
    // A simple query is read up to 4 MiB before it is given anything.
    let simple = query(&format!("SELECT length('{}')", "x".repeat(6 << 20)));
    for (bytes, begin) in [(extended.clone(), 100_000), (simple, 5 << 20)] {
        // Its end comes long after the refusal.
        let (head, tail) = bytes.split_at(begin);
        client.send(head).await;
        let error = client.expect(b'E').await;
        let error = ServerError::parse(&error);
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("ERROR", "53300")
        );
        client.send(tail).await;
        client.expect(b'Z').await;
    }
    // Data of a COPY that never began is dropped, however large.
    client.send(&copy_data(large.as_bytes())).await;
    holder.query("COMMIT").await.ok();
    client.send(&extended).await;
    assert_eq!(client.reply().await.ok().value(), "300000");
    assert_eq!(holder.value("SELECT 1").await, "1");
}
