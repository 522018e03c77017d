//! What a text runs unseen, by triggers and views, leaves nothing to another client; and nobody asks where nothing is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgweir::tasks;

use crate::listening::{client, database, direct, pinned};
use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

const TABLE: &str = "CREATE TABLE t (a int); CREATE TABLE log (a int);
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO log SELECT NEW.a; RETURN NEW; END$$;
    CREATE TRIGGER touch BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION touch();";

async fn made(name: &str, sql: &str) -> Client {
    let mut direct = direct(&database(name).await).await;
    direct.query(TABLE).await.ok();
    direct.query(sql).await.ok();
    direct
}

fn start(size: &str) -> Pgweir {
    Options::new(shared::server())
        .flag("--pool-size", size)
        .set("log.level", "info,pgweir=debug")
        .start()
}

/// What pgweir's connection has run last, when nothing more comes.
async fn last(direct: &mut Client) -> String {
    let sql = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
               ORDER BY query_start DESC LIMIT 1";
    direct.value(sql).await
}

/// How often what a database runs unseen has been read.
fn readings(pgweir: &Pgweir) -> usize {
    let log = pgweir.log();
    log.matches("what runs unseen in a database was read")
        .count()
}

/// Waits until what the database runs unseen has been read more than so many times; a release begins it.
async fn is_read(pgweir: &Pgweir, one: &mut Client, before: usize) {
    eventually("what runs unseen to be read", async || {
        one.query("SELECT a FROM log WHERE false").await.ok();
        readings(pgweir) > before
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_a_trigger_takes_pins() {
    made(
        "unseen_lock",
        "CREATE FUNCTION lock() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_advisory_lock(4712)';
         CREATE FUNCTION locks() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM lock(); RETURN NEW; END$$;
         CREATE TRIGGER locks AFTER INSERT ON log FOR EACH ROW EXECUTE FUNCTION locks()",
    )
    .await;
    let pgweir = start("1");
    for round in 0..2 {
        let mut one = client(&pgweir, "unseen_lock").await;
        if round > 0 {
            is_read(&pgweir, &mut one, 0).await;
        }
        one.query("INSERT INTO t VALUES (1)").await.ok();
        eventually("the pin", async || pinned(&pgweir).await == 1).await;
        one.terminate().await;
        let mut other = client(&pgweir, "unseen_lock").await;
        let locks =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
        assert_eq!(other.value(locks).await, "0");
    }
}

#[tokio::test]
async fn what_a_trigger_sets_is_its_sessions() {
    made(
        "unseen_setting",
        "CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN /* → */ PERFORM set_config('work_mem', '7MB', false), set_config('app.unseen', 'mine', false); RETURN NEW; END$$;
         CREATE TRIGGER sets AFTER INSERT ON log FOR EACH STATEMENT EXECUTE FUNCTION sets()",
    )
    .await;
    let pgweir = start("1");
    let mut one = client(&pgweir, "unseen_setting").await;
    let mut other = client(&pgweir, "unseen_setting").await;
    // What the source says has no place in it.
    for client in [&mut one, &mut other] {
        client.query("SET client_encoding = 'LATIN1'").await.ok();
    }
    let shown =
        "SELECT current_setting('work_mem') || coalesce(current_setting('app.unseen', true), '')";
    for round in 0..4 {
        if round > 0 {
            is_read(&pgweir, &mut other, 0).await;
        }
        one.query("INSERT INTO t VALUES (1)").await.ok();
        assert_eq!(other.value(shown).await, "4MB");
        assert_eq!(one.value("SHOW work_mem").await, "7MB");
        one.query("RESET work_mem").await.ok();
    }
}

#[tokio::test]
async fn a_view_that_locks_pins() {
    drop(
        made(
            "unseen_view",
            "CREATE VIEW v AS SELECT a, pg_try_advisory_lock_shared(4713) FROM (VALUES (1)) AS it (a)",
        )
        .await,
    );
    let pgweir = start("2");
    let mut one = client(&pgweir, "unseen_view").await;
    assert_eq!(one.value("SELECT a FROM v").await, "1");
    eventually("the pin", async || pinned(&pgweir).await == 1).await;
    let mut other = client(&pgweir, "unseen_view").await;
    is_read(&pgweir, &mut other, 0).await;
    other.query("SELECT a FROM v").await.ok();
    eventually("the pin", async || pinned(&pgweir).await == 2).await;
}

/// Functions that set something for the session, by what runs them.
const SETTERS: &str = "
    INSERT INTO t VALUES (1);
    CREATE FUNCTION sets() RETURNS int IMMUTABLE LANGUAGE plpgsql AS
        $$BEGIN PERFORM set_config('work_mem', '7MB', false); RETURN 0; END$$;
    CREATE FUNCTION sets(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN sets(); END';
    CREATE FUNCTION sets(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN sets(); END';
    CREATE FUNCTION sets(t) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN sets(); END';
    CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM sets(); END';
    CREATE TYPE pair AS (a int, b int);
    CREATE FUNCTION paired(int) RETURNS pair LANGUAGE plpgsql AS 'BEGIN RETURN (1, sets()); END';
    CREATE FUNCTION shown() RETURNS text LANGUAGE sql AS $$SELECT current_setting('work_mem')$$;";

/// What makes something that runs them, and then runs it.
const WAYS: [(&str, &str); 10] = [
    (
        "CREATE TABLE x.k (a int, b int DEFAULT sets())",
        "INSERT INTO x.k (a) VALUES (1)",
    ),
    (
        "CREATE TABLE x.k (a int CHECK (a > sets()))",
        "INSERT INTO x.k VALUES (1)",
    ),
    (
        "CREATE TABLE x.k (a int, b int GENERATED ALWAYS AS (sets(a)) STORED)",
        "INSERT INTO x.k VALUES (1)",
    ),
    (
        "CREATE TABLE x.k (a int); CREATE INDEX ON x.k (sets(a))",
        "INSERT INTO x.k VALUES (1)",
    ),
    (
        "CREATE TABLE x.k (a int); CREATE RULE r AS ON DELETE TO x.k DO ALSO SELECT sets()",
        "DELETE FROM x.k",
    ),
    (
        "CREATE VIEW x.k AS SELECT a, sets() FROM t",
        "SELECT * FROM x.k",
    ),
    (
        "CREATE OPERATOR x.<+> (leftarg = int, rightarg = int, function = sets)",
        "SELECT a OPERATOR(x.<+>) 1 FROM t",
    ),
    (
        "CREATE DOMAIN x.k AS int CHECK (value > sets())",
        "SELECT a::x.k FROM t",
    ),
    ("CREATE SCHEMA IF NOT EXISTS x", "SELECT t.sets FROM t"),
    (
        "CREATE CAST (int AS pair) WITH FUNCTION paired(int)",
        "SELECT a::pair FROM t",
    ),
];

#[tokio::test]
async fn whatever_runs_it_unseen_what_is_set_is_its_sessions() {
    drop(made("unseen_ways", SETTERS).await);
    let pgweir = start("1");
    let mut one = client(&pgweir, "unseen_ways").await;
    let mut other = client(&pgweir, "unseen_ways").await;
    let event = "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION on_ddl()";
    let ways = WAYS.into_iter();
    for (make, run) in ways.chain([(event, "CREATE TABLE x.k (a int)")]) {
        one.query("CREATE SCHEMA x").await.ok();
        one.query("RESET work_mem").await.ok();
        let before = readings(&pgweir);
        one.query(make).await.ok();
        one.query("RESET work_mem").await.ok();
        is_read(&pgweir, &mut other, before).await;
        assert_eq!(other.value("SHOW work_mem").await, "4MB", "{make}");
        one.query(run).await.ok();
        assert_eq!(other.value("SELECT shown()").await, "4MB", "{make}");
        assert_eq!(one.value("SHOW work_mem").await, "7MB", "{make}");
        one.query("DROP SCHEMA x CASCADE").await.ok();
        one.query("RESET work_mem").await.ok();
    }
}

#[tokio::test]
async fn where_the_server_has_no_connection_to_spare_one_of_the_pools_is_asked() {
    let mut direct = made(
        "unseen_sparse",
        "CREATE ROLE unseen_sparse LOGIN CONNECTION LIMIT 1; GRANT SELECT ON log TO unseen_sparse",
    )
    .await;
    let pgweir = start("1");
    let login = Login::new("unseen_sparse", "unseen_sparse");
    let mut one = pgweir.client_as(&login).await;
    is_read(&pgweir, &mut one, 0).await;
    let by = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'unseen_sparse'";
    assert_eq!(direct.value(by).await, "1");
    // Its reading left the connection as it was.
    assert_eq!(one.value("SHOW lock_timeout").await, "0");
    assert_eq!(one.value("SHOW application_name").await, "");
    drop(one);
    drop(pgweir);
    direct
        .query("DROP OWNED BY unseen_sparse; DROP ROLE unseen_sparse")
        .await
        .ok();
}

#[tokio::test]
async fn it_is_read_where_a_cap_leaves_no_connection_and_none_is_ever_idle() {
    made("unseen_busy", "CREATE VIEW v AS SELECT * FROM t").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .set("pool.max_server_connections", "2")
        .set("log.level", "info,pgweir=debug")
        .start();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut busy = Vec::new();
    for _ in 0..6 {
        let (mut one, is_over) = (client(&pgweir, "unseen_busy").await, Arc::clone(&is_over));
        busy.push(tasks::spawn("client", async move {
            while !is_over.load(Ordering::SeqCst) {
                one.query("SELECT a FROM log WHERE false").await.ok();
            }
        }));
    }
    eventually("what runs unseen to be read", async || {
        readings(&pgweir) > 0
    })
    .await;
    is_over.store(true, Ordering::SeqCst);
    for one in busy {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn nobody_is_asked_where_nothing_is_left() {
    let mut direct = made("unseen_nothing", "CREATE VIEW v AS SELECT * FROM t").await;
    let pgweir = start("1");
    let mut one = client(&pgweir, "unseen_nothing").await;
    let insert = "INSERT INTO t VALUES (2)";
    let asked = async |direct: &mut Client| {
        // A question would have come right behind the answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
        last(direct).await != insert
    };
    eventually("no question", async || {
        one.query(insert).await.ok();
        !asked(&mut direct).await
    })
    .await;
    // A trigger that is made through pgweir is known at once.
    one.query("CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN SET work_mem = '7MB'; RETURN NEW; END$$")
        .await
        .ok();
    one.query("CREATE TRIGGER sets AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION sets()")
        .await
        .ok();
    for _ in 0..10 {
        one.query(insert).await.ok();
        assert!(asked(&mut direct).await);
    }
}
