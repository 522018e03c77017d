//! Settings that are hard to carry: in another encoding, refused by the next backend, set by the login itself.
//!
//! As in `session_state`, most tests have clients that take turns on one backend.

use crate::shared::{self, direct};
use crate::support::client::{Client, Login};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};

fn one_backend() -> Options {
    Options::new(shared::server()).flag("--pool-size", "1")
}

async fn client(pgweir: &Pgweir, role: &str, parameters: &[(&str, &str)]) -> Client {
    let login = Login::new(role, "postgres");
    let login = parameters
        .iter()
        .fold(login, |login, (name, value)| login.with(name, value));
    pgweir.client_as(&login).await
}

/// A simple query of any bytes.
async fn run_bytes(client: &mut Client, sql: &[u8]) {
    let message = messages::frame(b'Q', &[sql, b"\0"].concat());
    client.send(&message).await;
    client.reply().await.ok();
}

/// `set_config(name, $1, false)` with any bytes.
async fn set_bytes(client: &mut Client, name: &str, value: &[u8]) {
    let length = i32::try_from(value.len()).unwrap().to_be_bytes();
    let bind = [&b"\0\0\0\0\0\x01"[..], &length, value, b"\0\0"].concat();
    let batch = [
        messages::parse("", &format!("SELECT set_config('{name}', $1, false)"), &[]),
        messages::frame(b'B', &bind),
        messages::execute("", 0),
        messages::sync(),
    ];
    client.send(&batch.concat()).await;
    client.reply().await.ok();
}

/// What a setting is, as UTF-8 in hexadecimal digits.
async fn utf8_of(client: &mut Client, name: &str) -> String {
    let sql = format!("SELECT encode(convert_to(current_setting('{name}', true), 'UTF8'), 'hex')");
    client.value(&sql).await
}

fn hex(text: &str) -> String {
    let digits: Vec<String> = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

#[tokio::test]
async fn values_survive_backends_of_other_encodings() {
    shared::role("carried_encodings").await;
    let pgweir = one_backend().start();
    let role = "carried_encodings";
    let start = ("options", "-c my.start=K\u{e4}se");
    let mut utf8 = client(&pgweir, role, &[("client_encoding", "UTF8")]).await;
    let mut latin1 = client(&pgweir, role, &[("client_encoding", "LATIN1"), start]).await;
    let mut sjis = client(&pgweir, role, &[("client_encoding", "SJIS")]).await;
    utf8.query("SET my.tenant = 'Zoë \\ x'").await.ok();
    utf8.query("SET search_path = 'Zoë', public").await.ok();
    run_bytes(&mut latin1, b"SET my.tenant = 'Zo\xeb'").await;
    run_bytes(&mut latin1, b"SET search_path = \"\xe4\", public").await;
    // The second byte of this character is a backslash.
    set_bytes(&mut sjis, "my.tenant", b"\x95\x5c").await;
    set_bytes(&mut sjis, "search_path", b"\x95\x5c, public").await;
    for _ in 0..3 {
        assert_eq!(utf8_of(&mut utf8, "my.tenant").await, hex("Zoë \\ x"));
        assert_eq!(utf8_of(&mut sjis, "my.tenant").await, hex("表"));
        assert_eq!(utf8_of(&mut latin1, "my.tenant").await, hex("Zoë"));
        assert_eq!(utf8_of(&mut latin1, "my.start").await, hex("Käse"));
        assert_eq!(utf8_of(&mut sjis, "search_path").await, hex("表, public"));
        let path = utf8_of(&mut utf8, "search_path").await;
        assert_eq!(path, hex("\"Zoë\", public"));
        let path = utf8_of(&mut latin1, "search_path").await;
        assert_eq!(path, hex("\"ä\", public"));
    }
    // What was set before the encoding was changed stays what it was, and so does what a reset goes back to.
    latin1.query("SET client_encoding = 'UTF8'").await.ok();
    assert_eq!(sjis.value("SELECT 1").await, "1");
    assert_eq!(latin1.value("SHOW my.tenant").await, "Zoë");
    assert_eq!(latin1.value("SHOW my.start").await, "Käse");
    latin1.query("RESET ALL").await.ok();
    assert_eq!(utf8.value("SHOW my.tenant").await, "Zoë \\ x");
    assert_eq!(utf8_of(&mut latin1, "my.start").await, hex("Käse"));
    let pid = "SELECT pg_backend_pid()";
    assert_eq!(utf8.value(pid).await, sjis.value(pid).await);
}

#[tokio::test]
async fn a_custom_setting_that_the_next_backend_refuses_runs_nothing_without_it() {
    let mut admin = direct().await;
    admin
        .query("CREATE ROLE carried_custom LOGIN; CREATE TABLE carried_seen (a text); GRANT ALL ON carried_seen TO carried_custom")
        .await
        .ok();
    let pgweir = one_backend().start();
    let mut one = client(&pgweir, "carried_custom", &[]).await;
    let mut two = client(&pgweir, "carried_custom", &[]).await;
    one.query("SET plpgsql.variable_conflict = 'use_column'")
        .await
        .ok();
    // From here on the backend has PL/pgSQL, whose setting is a superuser's.
    two.query("DO $$ BEGIN END $$").await.ok();
    let insert =
        "INSERT INTO carried_seen VALUES (current_setting('plpgsql.variable_conflict', true))";
    one.query(insert).await.ok();
    let seen = admin.value("SELECT a FROM carried_seen").await;
    assert_eq!(seen, "use_column");
}

#[tokio::test]
async fn what_one_backend_refuses_is_set_on_another() {
    let mut admin = direct().await;
    admin
        .query(
            "CREATE ROLE carried_other LOGIN; CREATE ROLE carried_admin SUPERUSER; \
             GRANT carried_admin TO carried_other",
        )
        .await
        .ok();
    let pgweir = one_backend().start();
    let mut one = client(&pgweir, "carried_other", &[]).await;
    let mut two = client(&pgweir, "carried_other", &[]).await;
    // It can't be changed any more where a temporary table was made.
    one.query("SET temp_buffers = '2MB'").await.ok();
    two.query("CREATE TEMP TABLE mine (a int); INSERT INTO mine VALUES (1)")
        .await
        .ok();
    two.query("DROP TABLE mine").await.ok();
    assert_eq!(one.value("SHOW temp_buffers").await, "2MB");
    // What only a superuser may change was set under a role that may.
    one.query("SET ROLE carried_admin").await.ok();
    one.query("SET log_min_duration_statement = 12345")
        .await
        .ok();
    for _ in 0..2 {
        assert_eq!(two.value("SELECT current_user").await, "carried_other");
        let what = "SELECT current_user || current_setting('log_min_duration_statement')";
        assert_eq!(one.value(what).await, "carried_admin12345ms");
    }
}

#[tokio::test]
async fn what_connect_query_sets_is_there_whoever_was_there_before() {
    shared::role("carried_connect").await;
    let query = "SET work_mem = '7MB'; SET my.base = 'b' -- ours";
    let pgweir = one_backend()
        .set("pool.connect_query", &format!("{query:?}"))
        .start();
    let mut one = client(&pgweir, "carried_connect", &[]).await;
    let mut two = client(&pgweir, "carried_connect", &[]).await;
    let base = "SELECT current_setting('work_mem') || current_setting('my.base', true)";
    assert_eq!(one.value(base).await, "7MBb");
    for text in [
        "SET work_mem = '1MB'; SET my.base = 'x'",
        "RESET work_mem; RESET my.base",
        "RESET ALL",
        "DISCARD ALL",
        "SET ROLE carried_connect",
    ] {
        one.query(text).await.ok();
        assert_eq!(two.value(base).await, "7MBb", "{text}");
        // What the client itself has reset of custom settings stays empty, as on a server.
        let expected = if text.starts_with("SET work_mem") {
            "1MBx"
        } else {
            "7MB"
        };
        assert_eq!(one.value(base).await, expected, "{text}");
    }
    let pid = "SELECT pg_backend_pid()";
    assert_eq!(one.value(pid).await, two.value(pid).await);
    let login = [("options", "-c work_mem=2MB")];
    let mut three = client(&pgweir, "carried_connect", &login).await;
    assert_eq!(three.value(base).await, "2MBb");
    assert_eq!(two.value(base).await, "7MBb");
}

#[tokio::test]
async fn a_connect_query_that_cannot_run_twice_refuses_nobody() {
    shared::role("carried_once").await;
    let pgweir = one_backend()
        .set("pool.connect_query", "\"PREPARE once AS SELECT 1\"")
        .start();
    let mut one = client(&pgweir, "carried_once", &[]).await;
    one.query("RESET ALL").await.ok();
    let login = [("options", "-c work_mem=2MB")];
    let mut two = client(&pgweir, "carried_once", &login).await;
    assert_eq!(two.value("SHOW work_mem").await, "2MB");
    assert_eq!(one.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_login_with_a_role_of_its_own_has_it_for_every_client() {
    let mut admin = direct().await;
    admin
        .query(
            "CREATE ROLE carried_owner; CREATE ROLE carried_app LOGIN; CREATE ROLE carried_third; \
             GRANT carried_owner, carried_third TO carried_app; ALTER ROLE carried_app SET role = carried_owner",
        )
        .await
        .ok();
    for mode in ["transaction", "session"] {
        let pgweir = one_backend().set("pool.pool_mode", mode).start();
        let login = Login::new("carried_app", "postgres");
        let mut past = Client::connect_as(shared::server().address(), &login)
            .await
            .unwrap();
        let user = "SELECT current_user";
        for texts in [
            &["SET ROLE NONE"][..],
            &["SET ROLE carried_third"],
            &["SET ROLE carried_third", "RESET ROLE"],
            &["SET ROLE NONE", "RESET SESSION AUTHORIZATION"],
            &["SET ROLE NONE", "DISCARD ALL"],
            &["SELECT set_config('role', 'none', false)"],
        ] {
            let mut one = client(&pgweir, "carried_app", &[]).await;
            for text in texts {
                one.query(text).await.ok();
                past.query(text).await.ok();
            }
            if mode == "session" {
                drop(one);
            } else {
                let mut two = client(&pgweir, "carried_app", &[]).await;
                assert_eq!(two.value(user).await, "carried_owner", "{texts:?}");
                let expected = past.value(user).await;
                assert_eq!(one.value(user).await, expected, "{texts:?}");
            }
            let mut next = client(&pgweir, "carried_app", &[]).await;
            assert_eq!(next.value(user).await, "carried_owner", "{mode} {texts:?}");
        }
    }
}

#[tokio::test]
async fn what_a_text_sets_behind_a_reset_stays() {
    let mut admin = direct().await;
    admin
        .query(
            "CREATE ROLE carried_reset SUPERUSER LOGIN; CREATE ROLE carried_a; CREATE ROLE carried_b",
        )
        .await
        .ok();
    let pgweir = one_backend().start();
    let options = "-c my.tenant=a -c work_mem=1MB -c role=carried_a";
    let mut one = client(&pgweir, "carried_reset", &[("options", options)]).await;
    let mut two = client(&pgweir, "carried_reset", &[]).await;
    let all = "SELECT concat_ws(' ', current_setting('my.tenant', true), current_setting('work_mem'), current_user)";
    for (text, expected) in [
        ("RESET ALL; SET my.tenant = 'b'", "b 1MB carried_a"),
        (
            "RESET ALL; SELECT set_config('my.tenant', 'c', false)",
            "c 1MB carried_a",
        ),
        (
            "RESET work_mem; SET work_mem = '2MB'; RESET my.tenant",
            "a 2MB carried_a",
        ),
        (
            "RESET ROLE; SET ROLE carried_b; RESET ALL",
            "a 1MB carried_b",
        ),
        ("RESET ROLE", "a 1MB carried_a"),
        ("SET my.tenant = 'd'; RESET ALL", "a 1MB carried_a"),
    ] {
        one.query(text).await.ok();
        assert_eq!(one.value(all).await, expected, "{text}");
        two.query("SELECT 1").await.ok();
        assert_eq!(one.value(all).await, expected, "{text}");
    }
}

#[tokio::test]
async fn a_table_that_a_search_path_makes_temporary_is_its_owners() {
    shared::role("carried_temp").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let path = [("options", "-csearch_path=pg_temp,public")];
    let mut other = client(&pgweir, "carried_temp", &[]).await;
    let is_there = "SELECT count(to_regclass('carried_hidden'))";
    // A startup parameter, a parameter for the session, one for the transaction.
    for (start, setting) in [
        (&path[..], None),
        (&[], Some("SELECT set_config('search_path', $1, false)")),
        (&[], Some("SELECT set_config('search_path', $1, true)")),
    ] {
        let mut one = client(&pgweir, "carried_temp", start).await;
        one.query("BEGIN").await.ok();
        if let Some(setting) = setting {
            one.extended(setting, &[Some("pg_temp, public")]).await.ok();
        }
        one.query("CREATE TABLE carried_hidden (a int)").await.ok();
        one.query("COMMIT").await.ok();
        assert_eq!(other.value(is_there).await, "0", "{setting:?}");
        one.query("INSERT INTO carried_hidden VALUES (1)")
            .await
            .ok();
        assert_eq!(one.value("TABLE carried_hidden").await, "1");
        one.query("DROP TABLE carried_hidden").await.ok();
        if setting.is_none_or(|setting| setting.contains("false")) {
            one.query("SELECT 1 AS a INTO carried_hidden").await.ok();
            assert_eq!(other.value(is_there).await, "0", "{setting:?}");
            assert_eq!(one.value("TABLE carried_hidden").await, "1");
        }
    }
}

#[tokio::test]
async fn a_seed_and_a_name_that_is_not_ascii_stay_where_they_are() {
    shared::role("carried_seed").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut past = direct().await;
    let mut one = client(&pgweir, "carried_seed", &[]).await;
    let mut two = client(&pgweir, "carried_seed", &[("client_encoding", "LATIN1")]).await;
    let seed = "SELECT set_config('seed', '0.5', false)";
    past.query(seed).await.ok();
    one.query(seed).await.ok();
    assert_eq!(two.value("SELECT 1").await, "1");
    let random = "SELECT random()";
    assert_eq!(one.value(random).await, past.value(random).await);
    one.query("DISCARD ALL").await.ok();
    one.query("SET \"my.kä\" = 'x'; RESET seed").await.ok();
    assert_eq!(two.value("SELECT 1").await, "1");
    assert_eq!(one.value("SHOW \"my.kä\"").await, "x");
}
