//! `currval` does not return the number of a client that wrote later; pins end when what caused them is gone.

use pgweir::session::sequences::PROBATION;

use crate::shared::{self, Role};
use crate::support::client::Client;
use crate::support::faulty_link::{Hold, Link};
use crate::support::messages::{bind, execute, parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, within_limit};

/// The application of these clients has written often enough to be known as one that reads no numbers.
pub(super) async fn end_probation(client: &mut Client) {
    for _ in 0..=PROBATION {
        client.query("SELECT txid_current()").await.ok();
    }
}

pub(super) async fn two(role: &Role, pgweir: &Pgweir) -> [Client; 2] {
    [role.client(pgweir).await, role.client(pgweir).await]
}

#[tokio::test]
async fn currval_is_not_that_of_a_later_writer() {
    let role = shared::role("sequences").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("CREATE SEQUENCE own_numbers").await.ok();
    one.query("SELECT nextval('own_numbers')").await.ok();
    two.query("SELECT nextval('own_numbers')").await.ok();
    let reply = one.query("SELECT currval('own_numbers')").await;
    assert_eq!(reply.sqlstate(), "55000");
    one.terminate().await;
    // The last to advance it reads its own.
    two.query("SELECT nextval('own_numbers')").await.ok();
    assert_eq!(two.value("SELECT currval('own_numbers')").await, "3");
    assert_eq!(two.value("SELECT lastval()").await, "3");
    two.query("DROP SEQUENCE own_numbers").await.ok();
}

#[tokio::test]
async fn an_application_that_reads_its_numbers_finds_them() {
    let role = shared::role("number_readers").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("CREATE TABLE read_numbers (id serial, a int)")
        .await
        .ok();
    end_probation(&mut one).await;
    one.query("INSERT INTO read_numbers (a) VALUES (1)")
        .await
        .ok();
    other
        .query("INSERT INTO read_numbers (a) VALUES (2)")
        .await
        .ok();
    // The first time is a lesson, and no lie.
    assert_eq!(one.query("SELECT lastval()").await.sqlstate(), "55000");
    for (client, number) in [(&mut one, "3"), (&mut other, "4")] {
        client
            .query("INSERT INTO read_numbers (a) VALUES (3)")
            .await
            .ok();
        assert_eq!(client.value("SELECT lastval()").await, number);
    }
    assert_eq!(
        one.value("SELECT currval('read_numbers_id_seq')").await,
        "3"
    );
    assert_eq!(
        other.value("SELECT currval('read_numbers_id_seq')").await,
        "4"
    );
    // Whoever comes later starts with none.
    one.terminate().await;
    other.terminate().await;
    let [mut one, mut other] = two(&role, &pgweir).await;
    for client in [&mut one, &mut other] {
        let read = ["SELECT lastval()", "SELECT currval('read_numbers_id_seq')"];
        for text in read {
            assert_eq!(client.query(text).await.sqlstate(), "55000");
        }
    }
    one.query("DROP TABLE read_numbers").await.ok();
}

#[tokio::test]
async fn nobody_reads_the_number_of_a_sequence_it_has_not_used() {
    let role = shared::role("number_strangers").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    end_probation(&mut one).await;
    one.query("CREATE SEQUENCE strange_numbers").await.ok();
    one.query("SELECT nextval('strange_numbers')").await.ok();
    // A write that takes no number, in the same transaction, in either protocol.
    other.query("BEGIN").await.ok();
    other
        .extended("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1", &[])
        .await
        .ok();
    let reply = other.extended("SELECT lastval()", &[]).await;
    assert_eq!(reply.sqlstate(), "55000");
    other.query("ROLLBACK").await.ok();
    other.terminate().await;
    one.query("SELECT nextval('strange_numbers')").await.ok();
    assert_eq!(one.value("SELECT lastval()").await, "2");
    one.query("DROP SEQUENCE strange_numbers").await.ok();
}

#[tokio::test]
async fn an_application_that_nobody_knows_keeps_its_numbers_where_there_is_room() {
    let role = shared::role("number_probation").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "4")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("CREATE SEQUENCE new_numbers").await.ok();
    for client in [&mut one, &mut other] {
        client.query("SELECT nextval('new_numbers')").await.ok();
    }
    assert_eq!(one.value("SELECT currval('new_numbers')").await, "1");
    assert_eq!(other.value("SELECT lastval()").await, "2");
    one.query("DROP SEQUENCE new_numbers").await.ok();
}

#[tokio::test]
async fn a_connection_set_aside_is_anybodys_who_needs_it() {
    let mut role = shared::role("number_guests").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("CREATE SEQUENCE guest_numbers").await.ok();
    for number in ["1", "3"] {
        assert_eq!(one.value("SELECT nextval('guest_numbers')").await, number);
        let read = "SELECT nextval('guest_numbers')";
        assert_ne!(other.value(read).await, number);
    }
    // For those who look on it is idle.
    let console = &mut pgweir.console().await;
    let pools = console.query("SHOW SERVERS").await.ok();
    assert_eq!(pools.rows.len(), 1);
    console.query("PAUSE").await.ok();
    console.query("RESUME").await.ok();
    // One that is lost meanwhile is not missed.
    one.query("SELECT nextval('guest_numbers')").await.ok();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'number_guests' AND application_name = ''";
    assert_eq!(role.observe(kill).await, "1");
    assert_eq!(one.value("SELECT nextval('guest_numbers')").await, "6");
    assert_eq!(other.query("SELECT lastval()").await.sqlstate(), "55000");
    drop(other);
    one.query("DROP SEQUENCE guest_numbers").await.ok();
}

#[tokio::test]
async fn a_connection_that_takes_long_to_open_keeps_nobody_from_one_set_aside() {
    let role = shared::role("opened_aside").await;
    let link = Link::to(shared::server().address()).await;
    let pgweir = Options::in_front_of(&link.node_url())
        .flag("--pool-size", "2")
        .set("timeouts.server_connect_timeout", "10min")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("CREATE SEQUENCE aside_numbers").await.ok();
    let take = "SELECT nextval('aside_numbers')";
    one.query(take).await.ok();
    one.query("SELECT lastval()").await.ok();
    one.terminate().await;
    // Now it is known to read, be it a while later.
    let mut one = role.client(&pgweir).await;
    one.query(take).await.ok();
    let console = &mut pgweir.console().await;
    eventually("the pin to end", async || {
        console.query("SHOW PINS").await.ok().rows.is_empty()
    })
    .await;
    assert_eq!(console.query("SHOW SERVERS").await.ok().rows.len(), 1);
    link.hold(Hold::Request("opened_aside"));
    let value = within_limit("a connection", other.value("SELECT 1")).await;
    assert_eq!(value, "1");
    link.held().await;
    link.pass();
    other.query("DROP SEQUENCE aside_numbers").await.ok();
}

#[tokio::test]
async fn a_number_is_found_in_the_transaction_that_took_it() {
    let role = shared::role("number_transactions").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("CREATE TABLE transaction_numbers (id serial, a int)")
        .await
        .ok();
    one.query("CREATE SEQUENCE transaction_others").await.ok();
    one.query("SELECT nextval('transaction_others')").await.ok();
    other.query("BEGIN").await.ok();
    other
        .extended("INSERT INTO transaction_numbers (a) VALUES (1)", &[])
        .await
        .ok();
    assert_eq!(other.value("SELECT lastval()").await, "1");
    let reply = other.query("SELECT currval('transaction_others')").await;
    assert_eq!(reply.sqlstate(), "55000");
    other.query("ROLLBACK").await.ok();
    // In one exchange, and in a pipeline, in either protocol.
    let all = [
        parse("", "INSERT INTO transaction_numbers (a) VALUES (2)", &[]),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SELECT currval('transaction_numbers_id_seq')", &[]),
        bind("", "", &[]),
        execute("", 0),
        sync(),
        query("SELECT lastval()"),
    ]
    .concat();
    other.send(&all).await;
    let reply = other.reply().await.ok();
    assert_eq!(reply.rows[0][0].as_deref(), Some("2"));
    assert_eq!(other.reply().await.ok().value(), "2");
    drop(other);
    let drop = "DROP TABLE transaction_numbers; DROP SEQUENCE transaction_others";
    one.query(drop).await.ok();
}

#[tokio::test]
async fn a_view_that_takes_numbers_takes_them_for_its_reader() {
    let role = shared::role("number_views").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let [mut one, mut other] = two(&role, &pgweir).await;
    one.query("CREATE SEQUENCE view_numbers").await.ok();
    one.query("CREATE VIEW view_of_numbers AS SELECT nextval('view_numbers') AS n")
        .await
        .ok();
    end_probation(&mut one).await;
    one.query("SELECT nextval('view_numbers')").await.ok();
    other.query("SELECT n FROM view_of_numbers").await.ok();
    assert_eq!(one.query("SELECT lastval()").await.sqlstate(), "55000");
    drop(other);
    one.query("DROP VIEW view_of_numbers; DROP SEQUENCE view_numbers")
        .await
        .ok();
}

#[tokio::test]
async fn a_pin_ends_when_its_cause_is_gone() {
    let role = shared::role("unpinned").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    let causes = [
        ("CREATE TEMP TABLE t (a int)", "DROP TABLE t"),
        ("LISTEN ch", "UNLISTEN *"),
        ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock(7)"),
        ("PREPARE p AS SELECT 1", "DEALLOCATE p"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c"),
    ];
    for (make, end) in causes {
        one.query(make).await.ok();
        one.query(end).await.ok();
        // With one backend, this is served only if `one` has let go of it.
        assert_eq!(two.value("SELECT 1").await, "1", "{end}");
    }
    // Anything in the temporary schema counts, not only tables.
    one.query("CREATE TEMP TABLE t (a int, b int)").await.ok();
    one.query("CREATE STATISTICS pg_temp.s ON a, b FROM t")
        .await
        .ok();
    one.query("CREATE TYPE pg_temp.pair AS (a int, b int)")
        .await
        .ok();
    one.query("DROP TABLE t").await.ok();
    one.query("SELECT NULL::pg_temp.pair").await.ok();
    one.query("DROP TYPE pg_temp.pair").await.ok();
    assert_eq!(two.value("SELECT 1").await, "1");
    one.query("LISTEN ch").await.ok();
    one.query("CREATE TEMP TABLE t (a int)").await.ok();
    one.query("DROP TABLE t").await.ok();
    assert_eq!(
        one.value("SELECT count(*) FROM pg_listening_channels()")
            .await,
        "1"
    );
    one.query("UNLISTEN ch").await.ok();
    assert_eq!(two.value("SELECT 2").await, "2");
}
