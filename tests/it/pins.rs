//! Sessions that keep their server connection: who they are, how many there may be, and for how long.

use std::time::Duration;

use tokio::time::Instant;

use crate::shared::{self, Role};
use crate::support::client::{Client, Reply};
use crate::support::messages::{parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

async fn pins(pgweir: &Pgweir) -> Reply {
    let mut console = pgweir.console().await;
    console.query("SHOW PINS").await.ok()
}

/// One column of `SHOW PINS`.
async fn shown(pgweir: &Pgweir, column: &str) -> Vec<String> {
    let reply = pins(pgweir).await;
    let place = reply
        .columns
        .iter()
        .position(|name| name == column)
        .unwrap();
    let rows = reply.rows.iter();
    rows.map(|row| row[place].clone().unwrap_or_default())
        .collect()
}

/// Waits for these reasons in `SHOW PINS`: what is left is asked for behind the client's answer.
async fn reasons_become(pgweir: &Pgweir, reasons: &[&str]) {
    let what = format!("the pins to be {reasons:?}");
    eventually(&what, async || shown(pgweir, "reasons").await == reasons).await;
}

async fn with(name: &'static str, options: impl FnOnce(Options) -> Options) -> (Role, Pgweir) {
    let role = shared::role(name).await;
    let pgweir = options(Options::new(shared::server())).start();
    (role, pgweir)
}

#[tokio::test]
async fn show_pins_tells_who_keeps_what_why_and_since_when() {
    let (role, pgweir) = with("pins_shown", |options| options).await;
    let parameters = [("application_name", "the culprit")];
    let mut client = role.client_with(&pgweir, &parameters).await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    assert_eq!(pins(&pgweir).await.rows.len(), 0);
    client
        .query("CREATE TEMP TABLE kept (a int DEFAULT 77)")
        .await
        .ok();
    let reply = pins(&pgweir).await;
    let row: Vec<&str> = reply.rows[0]
        .iter()
        .map(|value| value.as_deref().unwrap_or_default())
        .collect();
    let id = u32::from_be_bytes(client.key[..4].try_into().unwrap()).to_string();
    let own = [&*id, "pins_shown", "postgres", "the culprit"];
    assert_eq!(row[..4], own);
    assert_eq!(row[5..7], [&*backend, "temp_table"]);
    assert!(row[7].ends_with("UTC"), "{row:?}");
    assert!(row[8].parse::<f64>().unwrap() < 60_000.0, "{row:?}");
    assert_eq!(row[9].len(), 16, "{row:?}");
    assert!(
        row[10].contains("TEMP TABLE kept") && !row[10].contains("77"),
        "{row:?}"
    );
    assert!(row[11].starts_with("0x"), "{row:?}");
    let metric = "pgweir_pool_pinned{database=\"postgres\",user=\"pins_shown\"}";
    assert_eq!(pgweir.metric(metric), Some(1.0));
    // One more reason, of the same pin.
    client.query("SELECT pg_advisory_lock(1)").await.ok();
    reasons_become(&pgweir, &["temp_table,advisory_lock"]).await;
    client.query("DROP TABLE kept").await.ok();
    reasons_become(&pgweir, &["advisory_lock"]).await;
    client.query("SELECT pg_advisory_unlock(1)").await.ok();
    reasons_become(&pgweir, &[]).await;
    // What no text tells is found out by asking.
    client
        .query("DO $$ BEGIN EXECUTE 'CREATE TEM' || 'P TABLE hidden (a int)'; END $$")
        .await
        .ok();
    reasons_become(&pgweir, &["temp_table"]).await;
    assert_eq!(shown(&pgweir, "query").await, [""]);
    drop(client);
    reasons_become(&pgweir, &[]).await;
}

#[tokio::test]
async fn what_did_not_come_to_be_pins_nobody() {
    let (role, pgweir) = with("pins_undone", |options| options).await;
    let mut client = role.client(&pgweir).await;
    for statements in [
        &["BEGIN", "CREATE TEMP TABLE t (a int)", "ROLLBACK"][..],
        &[
            "BEGIN",
            "SAVEPOINT s",
            "CREATE TEMP TABLE t (a int)",
            "ROLLBACK TO s",
            "COMMIT",
        ],
        &["CREATE TEMP TABLE t (a nothing)"],
        &["BEGIN; CREATE TEMP TABLE t (a int); SELECT 1/0", "COMMIT"],
        &["DECLARE c CURSOR WITH HOLD FOR SELECT 1/0"],
    ] {
        for sql in statements {
            client.query(sql).await;
        }
        reasons_become(&pgweir, &[]).await;
    }
    // A name that is taken stays what it was, and leaves nothing behind.
    for text in ["SELECT 1", "SELECT 2"] {
        client.send(&[parse("s", text, &[]), sync()].concat()).await;
        let reply = client.reply().await;
        if text == "SELECT 2" {
            assert_eq!(reply.sqlstate(), "42P05");
            assert_eq!(
                reply.error().message,
                "prepared statement \"s\" already exists"
            );
        }
    }
    client
        .send(&[parse("s", "SELEC 1", &[]), sync()].concat())
        .await;
    assert_eq!(client.reply().await.sqlstate(), "42601");
    reasons_become(&pgweir, &[]).await;
}

#[tokio::test]
async fn only_a_share_of_a_pool_may_be_pinned() {
    let (role, pgweir) = with("pins_bounded", |options| {
        options
            .flag("--pool-size", "3")
            .set("pool.max_pinned", "50%")
    })
    .await;
    // Half of three, rounded up.
    let mut pinned = Vec::new();
    for _ in 0..2 {
        let mut client = role.client(&pgweir).await;
        client.query("CREATE TEMP TABLE t (a int)").await.ok();
        pinned.push(client);
    }
    let mut client = role.client(&pgweir).await;
    client.query("BEGIN").await.ok();
    for extended in [false, true] {
        let reply = if extended {
            client.extended("CREATE TEMP TABLE t (a int)", &[]).await
        } else {
            client.query("CREATE TEMP TABLE t (a int)").await
        };
        let error = reply.error();
        assert_eq!((&*error.severity, &*error.code), ("ERROR", "53300"));
        assert_eq!(reply.status, if extended { 'I' } else { 'E' });
        let detail = error.detail.as_deref().unwrap();
        assert!(
            detail.contains("2 held by pinned sessions (temp_table 2)"),
            "{detail}"
        );
        assert!(error.hint.as_deref().unwrap().contains("pool.max_pinned"));
        client.query("ROLLBACK").await.ok();
    }
    // Those who are pinned may be for more reasons.
    pinned[0].query("SELECT setseed(0.5)").await.ok();
    assert_eq!(client.value("SELECT 1").await, "1");
    pinned[1].query("DROP TABLE t").await.ok();
    reasons_become(&pgweir, &["temp_table,set_seed"]).await;
    client.query("CREATE TEMP TABLE t (a int)").await.ok();
}

#[tokio::test]
async fn a_pinned_session_idle_too_long_is_ended() {
    let (role, pgweir) = with("pins_idle", |options| {
        options.set("timeouts.pin_idle_timeout", "500ms")
    })
    .await;
    let begun = Instant::now();
    let mut idle = role.client(&pgweir).await;
    let mut freed = role.client(&pgweir).await;
    let mut busy = role.client(&pgweir).await;
    let mut pinned = role.client(&pgweir).await;
    idle.value("SELECT 1").await;
    freed
        .query("CREATE TEMP TABLE t (a int); DROP TABLE t")
        .await
        .ok();
    busy.query("CREATE TEMP TABLE t (a int)").await.ok();
    busy.query("BEGIN").await.ok();
    pinned.query("CREATE TEMP TABLE t (a int)").await.ok();
    let errors = pinned.expect_end().await;
    assert!(begun.elapsed() >= Duration::from_millis(450));
    assert_eq!((&*errors[0].severity, &*errors[0].code), ("FATAL", "57P05"));
    assert!(errors[0].detail.as_deref().unwrap().contains("temp_table"));
    assert!(
        errors[0]
            .hint
            .as_deref()
            .unwrap()
            .contains("timeouts.pin_idle_timeout")
    );
    // Those that keep nothing, or are in a transaction, are left alone.
    for client in [&mut idle, &mut freed, &mut busy] {
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn who_waits_in_vain_is_told_of_the_pins() {
    let (role, pgweir) = with("pins_told", |options| {
        options
            .flag("--pool-size", "2")
            .set("timeouts.query_wait_timeout", "300ms")
    })
    .await;
    let mut one: Client = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("CREATE TEMP TABLE t (a int)").await.ok();
    two.send(&query("SELECT setseed(0.1), pg_advisory_lock(7)"))
        .await;
    two.reply().await.ok();
    let mut waiting = role.client(&pgweir).await;
    let reply = waiting.query("SELECT 1").await;
    assert_eq!(reply.sqlstate(), "53300");
    let detail = reply.error().detail.clone().unwrap();
    let told = "2 held by pinned sessions (temp_table 1, advisory_lock 1, set_seed 1)";
    assert!(detail.contains(told), "{detail}");
}

/// What `DISCARD ALL` does not undo is not for the next client.
#[tokio::test]
async fn after_discard_all_a_backend_with_a_seed_or_a_library_goes_to_nobody() {
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    for statement in ["SELECT setseed(0.5)", "LOAD 'plpgsql'"] {
        let mut first = pgweir.client().await;
        first.query(statement).await.ok();
        let pid = first.value("SELECT pg_backend_pid()").await;
        first.query("DISCARD ALL").await.ok();
        let mut next = pgweir.client().await;
        let other = next.value("SELECT pg_backend_pid()").await;
        assert_ne!(pid, other, "{statement}");
    }
}
