//! PREPARE, EXECUTE and DEALLOCATE in SQL, and the names they share with the protocol.

use crate::same::Same;
use crate::shared;
use crate::support::messages::{
    bind, close, copy_data, copy_done, describe, execute, flush, parse, query, sync,
};
use crate::support::pgweir::Options;

async fn same() -> Same {
    Same::new(|options| options).await
}

fn run(name: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    [
        bind("", name, parameters),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ]
    .concat()
}

#[tokio::test]
async fn statements_of_sql_are_there_on_whichever_backend_comes() {
    let mut same = same().await;
    for text in [
        "PREPARE p AS SELECT 1 AS one",
        "EXECUTE p",
        "EXECUTE p",
        "PREPARE \"P \"\"q\" (int, text) AS SELECT $1 + 1, $2 || 'x'",
        "EXECUTE \"P \"\"q\" (1, 'a')",
        "  EXECUTE /* there */ \"P \"\"q\" (2, 'b');",
        "EXPLAIN (COSTS OFF) EXECUTE p",
        "EXPLAIN (COSTS OFF) EXECUTE \"P \"\"q\"(3, 'c')",
        "EXECUTE p; EXECUTE \"P \"\"q\" (4, 'd'); EXECUTE p",
        "PREPARE p AS SELECT 2",
        "EXECUTE p",
        "DEALLOCATE p",
        "EXECUTE p",
        "DEALLOCATE p",
        "PREPARE p AS SELECT 2",
        "EXECUTE p",
        "DEALLOCATE PREPARE p",
        "EXECUTE missing",
        "EXECUTE pgweir_1",
        "DEALLOCATE pgweir_1",
        "DEALLOCATE ALL",
        "EXECUTE \"P \"\"q\" (4, 'd')",
    ] {
        same.check(&query(text)).await;
        same.check(&query("SELECT 'between'")).await;
    }
}

#[tokio::test]
async fn errors_have_the_clients_names_and_places() {
    let mut same = same().await;
    same.check(&query("PREPARE k AS SELECT $1::int")).await;
    for text in [
        "EXECUTE k",
        "EXECUTE k(1, 2)",
        "EXECUTE k(nothing)",
        "EXECUTE k(1, ",
        "EXECUTE k('x')",
        "EXECUTE k(now())",
        "EXECUTE k(1); SELECT nothing",
        "EXPLAIN EXECUTE k(nothing)",
        "PREPARE wrong AS SELECT nothing",
        "PREPARE wrong AS SELEC",
        "PREPARE wrong (nothing) AS SELECT $1",
        "PREPARE wrong AS SELECT 1 FROM nothing",
        "PREPARE k AS SELECT nothing",
        "PREPARE k (nothing) AS SELECT 1",
        "EXECUTE wrong",
        "PREPARE käse AS SELECT 'ü', nothing",
        "PREPARE käse AS SELECT 'ü'",
        "EXECUTE käse",
        "EXECUTE käse('ü', nothing)",
    ] {
        same.check(&query(text)).await;
    }
}

#[tokio::test]
async fn names_of_sql_and_of_the_protocol_are_the_same_names() {
    let mut same = same().await;
    same.check(&[parse("s", "SELECT $1::int, 's'", &[]), sync()].concat())
        .await;
    for text in [
        "EXECUTE s(1)",
        "EXECUTE s(2)",
        "PREPARE s AS SELECT 1",
        "EXPLAIN (COSTS OFF) EXECUTE s(3)",
        "CREATE TEMP TABLE IF NOT EXISTS sql_prepare_made AS EXECUTE s(5)",
        "DROP TABLE sql_prepare_made",
    ] {
        same.check(&query(text)).await;
    }
    same.check(&query("PREPARE q (int) AS SELECT $1, 'q'"))
        .await;
    for _ in 0..3 {
        same.check(&run("q", &[Some("7")])).await;
        same.check(&[describe(b'S', "q"), sync()].concat()).await;
        same.check(&run("s", &[Some("7")])).await;
    }
    for text in ["SELECT 1", "SELEC", "SELECT nothing"] {
        same.check(&[parse("q", text, &[]), sync()].concat()).await;
    }
    same.check(&[close(b'S', "q"), sync()].concat()).await;
    same.check(&query("EXECUTE q(1)")).await;
    same.check(&query("DEALLOCATE s")).await;
    same.check(&run("s", &[Some("7")])).await;
    // In one write, and before what the name means is confirmed.
    let batch = [
        parse("t", "SELECT 't'", &[]),
        sync(),
        query("EXECUTE t"),
        query("DEALLOCATE t"),
        run("t", &[]),
        query("PREPARE t AS SELECT 'again'"),
        run("t", &[]),
        query("EXECUTE t"),
        query("PREPARE t AS SELECT 'once more'"),
        query("EXECUTE t"),
    ];
    same.check(&batch.concat()).await;
}

#[tokio::test]
async fn what_is_prepared_stays_when_the_transaction_does_not() {
    let mut same = same().await;
    for text in [
        "BEGIN",
        "PREPARE r AS SELECT 'r'",
        "EXECUTE r",
        "ROLLBACK",
        "EXECUTE r",
        "BEGIN",
        "DEALLOCATE r",
        "ROLLBACK",
        "EXECUTE r",
        "BEGIN",
        "PREPARE r AS SELECT 'r'",
        "SELECT 1/0",
        "EXECUTE r",
        "PREPARE u AS SELECT 'u'",
        "DEALLOCATE r",
        "COMMIT",
        "EXECUTE r",
        "EXECUTE u",
        "DEALLOCATE ALL",
    ] {
        same.check(&query(text)).await;
    }
    let whole = |text| {
        [
            parse("", text, &[]),
            bind("", "", &[]),
            describe(b'P', ""),
            execute("", 0),
            sync(),
        ]
        .concat()
    };
    // Of the extended protocol, and several in one text.
    for text in [
        "PREPARE e AS SELECT 'e'",
        "EXECUTE e",
        "DEALLOCATE e",
        "EXECUTE e",
    ] {
        same.check(&whole(text)).await;
    }
    for text in [
        "PREPARE a AS SELECT 'a'; EXECUTE a; PREPARE b AS SELECT 'b'",
        "EXECUTE a; EXECUTE b",
        "DEALLOCATE a; PREPARE a AS SELECT 'new'; EXECUTE a",
        "EXECUTE a",
        "PREPARE c AS SELECT 'c'; SELECT 1/0",
        "EXECUTE c",
        "PREPARE d AS SELECT 'd'",
        "EXECUTE d",
        "DEALLOCATE d",
        "EXECUTE d",
    ] {
        same.check(&query(text)).await;
    }
    same.check(&run("a", &[])).await;
    same.check(&[parse("a", "SELECT 1", &[]), sync()].concat())
        .await;
    same.check(&[parse("x", "SELECT 'x'", &[]), sync()].concat())
        .await;
    same.check(&query("EXECUTE x")).await;
    same.check(&run("x", &[])).await;
}

#[tokio::test]
async fn the_view_of_prepared_statements_shows_the_sessions_own() {
    let mut same = same().await;
    let list = "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name";
    same.check(&query(list)).await;
    same.check(&query("PREPARE one (int) AS SELECT $1 ;")).await;
    same.check(&[parse("two", "SELECT $1::text", &[]), sync()].concat())
        .await;
    same.check(&query("EXECUTE two('x')")).await;
    same.check(&query(list)).await;
    same.check(&query("DEALLOCATE one")).await;
    same.check(&query("PREPARE three AS SELECT 3")).await;
    same.check(&query(list)).await;
    same.check(&run("two", &[Some("y")])).await;
    same.check(&query("EXECUTE three")).await;
    same.check(&query("DEALLOCATE ALL")).await;
    same.check(&query(list)).await;
}

#[tokio::test]
async fn sql_prepared_statements_keep_no_backend() {
    let mut role = shared::role("sql_prepare").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("PREPARE p AS SELECT 'one'").await.ok();
    two.query("PREPARE p AS SELECT 'two'").await.ok();
    assert_eq!(one.value("EXECUTE p").await, "one");
    assert_eq!(two.value("EXECUTE p").await, "two");
    // What a prepared statement does to its session counts when it is executed.
    one.query("PREPARE s AS SELECT set_config('work_mem', '7MB', false)")
        .await
        .ok();
    one.query("EXECUTE s").await.ok();
    assert_ne!(two.value("SHOW work_mem").await, "7MB");
    assert_eq!(one.value("SHOW work_mem").await, "7MB");
    assert_eq!(role.pids().await.len(), 1);
}

#[tokio::test]
async fn code_executes_what_the_client_has_prepared() {
    let mut same = same().await;
    same.check(&query(
        "CREATE OR REPLACE FUNCTION sql_prepare_run(what text) RETURNS int LANGUAGE plpgsql AS
         $$DECLARE n int; BEGIN EXECUTE what INTO n; RETURN n; END$$",
    ))
    .await;
    same.check(&query("PREPARE x AS SELECT 7")).await;
    same.check(&query("PREPARE \"Y\" (int) AS SELECT $1 + 1"))
        .await;
    let whole = |text| {
        [
            parse("", text, &[]),
            bind("", "", &[]),
            describe(b'P', ""),
            execute("", 0),
            sync(),
        ]
        .concat()
    };
    for text in [
        "SELECT sql_prepare_run('EXECUTE x')",
        "SELECT sql_prepare_run('EXECUTE \"Y\"(3)')",
        "DO $$DECLARE n int; BEGIN EXECUTE 'EXECUTE x' INTO n; RAISE NOTICE '%', n; END$$",
        "SELECT sql_prepare_run('EXECUTE missing')",
        "BEGIN",
        "SELECT sql_prepare_run('EXECUTE x')",
        "SELECT sql_prepare_run('EXECUTE \"Y\"(3)')",
        "COMMIT",
        "EXECUTE x",
        "SELECT name, from_sql FROM pg_prepared_statements ORDER BY name",
        "PREPARE outer_one AS SELECT sql_prepare_run('EXECUTE x')",
        "EXECUTE outer_one",
        "DEALLOCATE x",
        "SELECT sql_prepare_run('EXECUTE x')",
        "EXECUTE outer_one",
        "PREPARE x AS SELECT 8",
        "EXECUTE outer_one",
    ] {
        same.check(&query(text)).await;
    }
    for text in [
        "SELECT sql_prepare_run('EXECUTE x')",
        "SELECT sql_prepare_run('EXECUTE \"Y\"(5)')",
        "SELECT sql_prepare_run('EXECUTE missing')",
    ] {
        same.check(&whole(text)).await;
    }
}

#[tokio::test]
async fn a_pinned_session_prepares_under_its_own_names() {
    let mut same = same().await;
    let counts =
        "SELECT name, generic_plans, custom_plans FROM pg_prepared_statements ORDER BY name";
    same.check(&query("PREPARE before AS SELECT 1")).await;
    same.check(&query("CREATE TEMP TABLE own_names (a int)"))
        .await;
    for text in [
        "PREPARE o AS SELECT a + 0 FROM own_names",
        "PREPARE n (int) AS SELECT a + 0 FROM own_names WHERE a = $1",
        counts,
        "EXECUTE o",
        "EXECUTE n(1)",
        "EXECUTE before",
        "PREPARE o AS SELECT 2",
        "SELECT name, generic_plans, custom_plans FROM pg_prepared_statements WHERE name <> 'before' ORDER BY name",
        "DEALLOCATE n",
        "EXECUTE n(1)",
        "PREPARE n (int) AS SELECT $1",
        "EXECUTE n(2)",
        "DROP TABLE own_names",
        // The pin has ended: what was prepared goes along.
        "EXECUTE n(3)",
        "EXECUTE o",
        "EXECUTE before",
        "CREATE TEMP TABLE own_names (a int)",
        "INSERT INTO own_names VALUES (5)",
        "EXECUTE o",
        "DO $$BEGIN EXECUTE 'EXECUTE o'; END$$",
        "DEALLOCATE o",
        "EXECUTE o",
        "DROP TABLE own_names",
        "EXECUTE n(4)",
        "DEALLOCATE ALL",
        "EXECUTE n(5)",
    ] {
        same.check(&query(text)).await;
    }
    // Statements of the protocol and of SQL, bound and closed by the protocol.
    same.check(&query("CREATE TEMP TABLE own_names (a int)"))
        .await;
    same.check(&query("PREPARE q (int) AS SELECT $1, 'q'"))
        .await;
    same.check(&run("q", &[Some("7")])).await;
    same.check(&[describe(b'S', "q"), sync()].concat()).await;
    same.check(&[parse("q", "SELECT 1", &[]), sync()].concat())
        .await;
    same.check(&[close(b'S', "q"), sync()].concat()).await;
    same.check(&query("EXECUTE q(1)")).await;
    same.check(&query("PREPARE q AS SELECT 'again'")).await;
    same.check(&query("DROP TABLE own_names")).await;
    same.check(&run("q", &[])).await;
    same.check(&query("EXECUTE q")).await;
}

#[tokio::test]
async fn a_statement_whose_table_is_gone_keeps_the_list_from_nobody() {
    let role = shared::role("gone_table").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("CREATE TABLE gone_table (a int)").await.ok();
    one.query("PREPARE gone AS SELECT a FROM gone_table")
        .await
        .ok();
    one.query("PREPARE kept AS SELECT 1").await.ok();
    two.query("DROP TABLE gone_table").await.ok();
    let names = "SELECT name FROM pg_prepared_statements WHERE name = 'kept'";
    assert_eq!(one.value(names).await, "kept");
    assert_eq!(one.query("EXECUTE gone").await.sqlstate(), "42P01");
    assert_eq!(one.value("EXECUTE kept").await, "1");
    // Code that might run it by name is not hindered either.
    one.query("DO $$BEGIN EXECUTE 'EXECUTE kept'; END$$")
        .await
        .ok();
    assert_eq!(
        two.value("SELECT count(*) FROM pg_prepared_statements")
            .await,
        "0"
    );
}

/// Whatever is lent to a shared server connection is taken back, be it that some of it never was there, or that the client
/// ends its exchange in an unusual way or not at all.
#[tokio::test]
async fn what_was_lent_is_nobody_elses() {
    let role = shared::role("lent_names").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    let count = "SELECT count(*) FROM pg_prepared_statements";
    one.query("CREATE TABLE lent_names (a int)").await.ok();
    for text in [
        "PREPARE a AS SELECT 1",
        "PREPARE gone AS SELECT a FROM lent_names",
        "PREPARE z AS SELECT 2",
    ] {
        one.query(text).await.ok();
    }
    two.query("DROP TABLE lent_names").await.ok();
    let lists = [parse("", count, &[]), bind("", "", &[])].concat();
    let awaited = [lists.clone(), flush()].concat();
    one.send(&awaited).await;
    one.expect(b'1').await;
    one.expect(b'2').await;
    one.send(&[execute("", 0), sync()].concat()).await;
    assert_eq!(one.reply().await.ok().rows[0][0].as_deref(), Some("2"));
    assert_eq!(two.value(count).await, "0");
    // A simple query ends the exchange.
    one.send(&[lists, query("SELECT 3")].concat()).await;
    assert_eq!(one.reply().await.ok().value(), "3");
    assert_eq!(two.value(count).await, "0");
    assert_eq!(one.value("EXECUTE z").await, "2");
    one.send(&awaited).await;
    one.expect(b'1').await;
    one.expect(b'2').await;
    drop(one);
    assert_eq!(two.value(count).await, "0");
    assert_eq!(two.query("EXECUTE z").await.sqlstate(), "26000");
}

/// Lending what can't be prepared any more rolls nothing back.
#[tokio::test]
async fn a_commit_behind_code_depends_on_nothing_lent() {
    let role = shared::role("lent_commit").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    for text in [
        "CREATE TABLE lent_commit (a int)",
        "CREATE TABLE lent_commit_gone (a int)",
        "CREATE FUNCTION lent_commit_run(what text) RETURNS text LANGUAGE plpgsql AS
         $$BEGIN EXECUTE what; RETURN 'ran'; EXCEPTION WHEN others THEN RETURN 'failed'; END$$",
        "PREPARE gone AS SELECT a FROM lent_commit_gone",
        "PREPARE adds AS INSERT INTO lent_commit VALUES (2)",
        "DROP TABLE lent_commit_gone",
        "BEGIN",
        "INSERT INTO lent_commit VALUES (1)",
    ] {
        one.query(text).await.ok();
    }
    let reply = one
        .query("SELECT lent_commit_run('EXECUTE gone'); COMMIT")
        .await
        .ok();
    assert_eq!(reply.rows[0][0].as_deref(), Some("failed"));
    assert_eq!(one.value("SELECT count(*) FROM lent_commit").await, "1");
    assert_eq!(
        one.value("SELECT lent_commit_run('EXECUTE gone')").await,
        "failed"
    );
    assert_eq!(
        one.value("SELECT lent_commit_run('EXECUTE adds')").await,
        "ran"
    );
    assert_eq!(one.value("SELECT count(*) FROM lent_commit").await, "2");
    one.query("DROP FUNCTION lent_commit_run; DROP TABLE lent_commit")
        .await
        .ok();
}

/// What stands behind the end of a failed transaction, in the same text, is run.
#[tokio::test]
async fn names_mean_the_same_behind_the_end_of_a_failed_transaction() {
    let mut same = same().await;
    same.check(&query("PREPARE ended AS SELECT 17")).await;
    for (begin, text) in [
        ("BEGIN", "ROLLBACK; EXECUTE ended"),
        ("BEGIN", "COMMIT; EXECUTE ended; EXECUTE missing"),
        ("BEGIN; SAVEPOINT s", "ROLLBACK TO s; EXECUTE ended"),
        ("BEGIN; SAVEPOINT s", "ROLLBACK TO t; EXECUTE ended"),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "COMMIT AND CHAIN; EXECUTE ended; SHOW transaction_read_only; SHOW transaction_isolation",
        ),
        ("BEGIN", "PREPARE TRANSACTION 'ended'; EXECUTE ended"),
        ("BEGIN", "ROLLBACK; EXECUTE pgweir_1; SELECT 1"),
        (
            "BEGIN",
            "END; DEALLOCATE ended; PREPARE ended AS SELECT 18; EXECUTE ended",
        ),
        ("BEGIN", "EXECUTE ended; ROLLBACK"),
        ("BEGIN", "ROLLBACK; EXECUTE ended"),
    ] {
        same.check(&query(begin)).await;
        same.check(&query("SELECT 1/0")).await;
        same.check(&query(text)).await;
        same.check(&query("ROLLBACK")).await;
    }
}

#[tokio::test]
async fn nobody_runs_a_statement_of_others_behind_a_failed_transaction() {
    let role = shared::role("failed_guesses").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("PREPARE mine AS SELECT 'of one'").await.ok();
    let names = "SELECT name FROM pg_prepared_statements";
    assert_eq!(one.value(names).await, "mine");
    assert_eq!(one.value("EXECUTE mine").await, "of one");
    for number in 1..20 {
        two.query("BEGIN").await.ok();
        assert_eq!(two.query("SELECT 1/0").await.sqlstate(), "22012");
        let text = format!("ROLLBACK; EXECUTE pgweir_{number}");
        assert_eq!(two.query(&text).await.sqlstate(), "26000");
    }
    // Nor in a session that has names of its own there.
    two.query("PREPARE own AS SELECT 2; SELECT 1").await.ok();
    for number in 1..20 {
        let text = format!("EXECUTE pgweir_{number}");
        assert_eq!(two.query(&text).await.sqlstate(), "26000");
        assert_eq!(two.extended(&text, &[]).await.sqlstate(), "26000");
    }
    assert_eq!(two.value("EXECUTE own").await, "2");
}

/// The messages that take back what was lent are not sent where the server skips them, or reads them as data.
#[tokio::test]
async fn what_was_lent_is_taken_back_where_the_server_listens() {
    let role = shared::role("lent_skipped").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    let count = "SELECT count(*) FROM pg_prepared_statements";
    one.query("CREATE TABLE lent_skipped (a text)").await.ok();
    one.query("PREPARE q AS SELECT 1").await.ok();
    let batch = [
        parse("", count, &[]),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SELEC", &[]),
        flush(),
    ];
    one.send(&batch.concat()).await;
    while one.message().await.tag != b'E' {}
    one.send(&[query("EXECUTE q"), sync()].concat()).await;
    one.reply().await.ok();
    assert_eq!(two.value(count).await, "0");
    // In front of a COPY.
    let text = format!("{count}; COPY lent_skipped FROM STDIN");
    one.send(&query(&text)).await;
    one.expect(b'T').await;
    one.expect(b'D').await;
    one.expect(b'C').await;
    one.expect(b'G').await;
    let data = [copy_data(b"x\n"), copy_done()].concat();
    one.send(&data).await;
    one.reply().await.ok();
    assert_eq!(one.value("SELECT a FROM lent_skipped").await, "x");
    assert_eq!(two.value(count).await, "0");
    one.query("DROP TABLE lent_skipped").await.ok();
}
