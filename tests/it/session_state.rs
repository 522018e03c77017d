//! State a session sets follows it from backend to backend and is never seen by another session.
//!
//! Most tests have two clients on one backend, which take turns: what one leaves there the other would find.

use crate::shared::{self, Role};
use crate::support::client::{Client, Reply};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// Two clients on one backend.
struct Pair {
    role: Role,
    pgweir: Pgweir,
    one: Client,
    two: Client,
}

async fn pair(name: &'static str) -> Pair {
    pair_with(name, &[], &[]).await
}

async fn pair_with(name: &'static str, first: &[(&str, &str)], second: &[(&str, &str)]) -> Pair {
    let role = shared::role(name).await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let one = role.client_with(&pgweir, first).await;
    let two = role.client_with(&pgweir, second).await;
    Pair {
        role,
        pgweir,
        one,
        two,
    }
}

impl Pair {
    /// What each of the two has for a setting, asked in turns.
    async fn show(&mut self, name: &str) -> (String, String) {
        let sql = format!("SHOW {name}");
        let one = self.one.value(&sql).await;
        let two = self.two.value(&sql).await;
        assert_eq!(self.one.value(&sql).await, one);
        (one, two)
    }

    async fn assert_one_backend(&mut self) {
        let one = self.one.value("SELECT pg_backend_pid()").await;
        assert_eq!(self.two.value("SELECT pg_backend_pid()").await, one);
        assert_eq!(self.role.pids().await, [one]);
    }
}

fn values(one: &str, two: &str) -> (String, String) {
    (one.to_owned(), two.to_owned())
}

#[tokio::test]
async fn settings_follow_their_session_and_nobody_else() {
    let mut pair = pair("set_alternating").await;
    pair.one.query("SET work_mem = '1MB'").await.ok();
    pair.two.query("SET work_mem TO '2MB'").await.ok();
    assert_eq!(pair.show("work_mem").await, values("1MB", "2MB"));
    pair.one
        .extended("SELECT set_config('work_mem', $1, false)", &[Some("3MB")])
        .await
        .ok();
    assert_eq!(pair.show("work_mem").await, values("3MB", "2MB"));
    pair.one.query("RESET work_mem").await.ok();
    assert_eq!(pair.show("work_mem").await, values("4MB", "2MB"));
    pair.two.query("RESET ALL").await.ok();
    assert_eq!(pair.show("work_mem").await, values("4MB", "4MB"));
    pair.two.query("SET my.own = 'x'").await.ok();
    let own = "SELECT coalesce(current_setting('my.own', true), 'none')";
    assert_eq!(pair.two.value(own).await, "x");
    assert!(matches!(pair.one.value(own).await.as_str(), "none" | ""));
    assert_eq!(pair.two.value(own).await, "x");
    pair.assert_one_backend().await;
}

#[tokio::test]
async fn every_spelling_of_set_is_carried() {
    let mut pair = pair("set_spellings").await;
    for (sql, name, value) in [
        ("SET TIME ZONE 'Asia/Tokyo'", "TimeZone", "Asia/Tokyo"),
        (
            "SET SESSION statement_timeout = 12345",
            "statement_timeout",
            "12345ms",
        ),
        (
            "set \"Search_Path\" to 'a', \"B\"",
            "search_path",
            "a, \"B\"",
        ),
        ("SET NAMES 'LATIN1'", "client_encoding", "LATIN1"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "default_transaction_isolation",
            "serializable",
        ),
        ("SET XML OPTION DOCUMENT", "xmloption", "document"),
        (
            "/* c */ SET -- d\n extra_float_digits = 0;",
            "extra_float_digits",
            "0",
        ),
        (
            "SET application_name = E'it\\'s \\\\ \"q\"'",
            "application_name",
            "it's \\ \"q\"",
        ),
        (
            "SELECT 1; SET lock_timeout = '7s'; SELECT 2",
            "lock_timeout",
            "7s",
        ),
    ] {
        let before = pair.two.value(&format!("SHOW {name}")).await;
        pair.one.query(sql).await.ok();
        assert_eq!(pair.show(name).await, values(value, &before), "{sql}");
    }
    pair.one.query("DISCARD ALL").await.ok();
    for name in [
        "TimeZone",
        "statement_timeout",
        "search_path",
        "application_name",
    ] {
        let (one, two) = pair.show(name).await;
        assert_eq!(one, two, "{name}");
    }
    pair.assert_one_backend().await;
}

#[tokio::test]
async fn what_a_transaction_takes_back_is_not_carried() {
    let mut pair = pair("set_rollback").await;
    pair.one.query("SET work_mem = '1MB'").await.ok();
    for sql in [
        "BEGIN; SET work_mem = '9MB'; ROLLBACK",
        "BEGIN; SET LOCAL work_mem = '9MB'; COMMIT",
        "BEGIN; SELECT set_config('work_mem', '9MB', true); COMMIT",
        "BEGIN; SAVEPOINT s; SET work_mem = '9MB'; ROLLBACK TO s; COMMIT",
        "SET work_mem = '9MB'; SELECT 1/0",
        "SET LOCAL work_mem = '9MB'",
    ] {
        pair.one.query(sql).await;
        assert_eq!(pair.show("work_mem").await, values("1MB", "4MB"), "{sql}");
    }
    // The same with a message for each statement.
    for (statements, value) in [
        (&["BEGIN", "SET work_mem = '9MB'", "ROLLBACK"][..], "1MB"),
        (&["BEGIN", "SET LOCAL work_mem = '9MB'", "COMMIT"], "1MB"),
        (
            &[
                "BEGIN",
                "SAVEPOINT s",
                "SET work_mem = '9MB'",
                "ROLLBACK TO s",
                "COMMIT",
            ],
            "1MB",
        ),
        (
            &["BEGIN", "SET work_mem = '9MB'", "SELECT 1/0", "COMMIT"],
            "1MB",
        ),
        (
            &[
                "BEGIN",
                "SET work_mem = '5MB'",
                "SAVEPOINT s",
                "SELECT 1/0",
                "ROLLBACK TO s",
                "COMMIT",
            ],
            "5MB",
        ),
        (
            &[
                "BEGIN",
                "SET work_mem = '6MB'",
                "RELEASE SAVEPOINT none",
                "ROLLBACK AND CHAIN",
                "SET work_mem = '7MB'",
                "COMMIT",
            ],
            "7MB",
        ),
    ] {
        for sql in statements {
            pair.one.query(sql).await;
        }
        assert_eq!(
            pair.show("work_mem").await,
            values(value, "4MB"),
            "{statements:?}"
        );
    }
    pair.assert_one_backend().await;
}

#[tokio::test]
async fn startup_parameters_hold_on_every_backend_and_reset_goes_back_to_them() {
    let mut pair = pair_with(
        "set_startup",
        &[
            ("application_name", "first app"),
            (
                "options",
                "-c work_mem=1MB --search-path=one,public -c my.own=a\\ b",
            ),
            ("DateStyle", "German"),
        ],
        &[
            ("application_name", "second"),
            ("client_encoding", "LATIN1"),
        ],
    )
    .await;
    assert_eq!(pair.one.parameters["application_name"], "first app");
    assert_eq!(pair.one.parameters["DateStyle"], "German, DMY");
    assert_eq!(pair.two.parameters["client_encoding"], "LATIN1");
    assert_eq!(
        pair.show("application_name").await,
        values("first app", "second")
    );
    assert_eq!(pair.show("work_mem").await, values("1MB", "4MB"));
    assert_eq!(pair.show("search_path").await.0, "one,public");
    assert_eq!(pair.one.value("SHOW my.own").await, "a b");
    for reset in ["RESET", "SET", "RESET ALL", "DISCARD ALL"] {
        pair.one
            .query("SET application_name = 'other'; SET work_mem = '8MB'")
            .await
            .ok();
        assert_eq!(pair.show("work_mem").await, values("8MB", "4MB"));
        match reset {
            "RESET" => pair
                .one
                .query("RESET application_name; RESET work_mem")
                .await
                .ok(),
            "SET" => pair
                .one
                .query("SET application_name TO DEFAULT; SET work_mem = DEFAULT")
                .await
                .ok(),
            all => pair.one.query(all).await.ok(),
        };
        assert_eq!(pair.show("work_mem").await, values("1MB", "4MB"), "{reset}");
        assert_eq!(
            pair.show("application_name").await,
            values("first app", "second"),
            "{reset}"
        );
    }
    assert_eq!(pair.one.value("SHOW my.own").await, "a b");
    pair.assert_one_backend().await;
}

#[tokio::test]
async fn a_wrong_startup_parameter_is_refused_with_the_servers_words() {
    let role = shared::role("set_wrong_startup").await;
    let pgweir = Options::new(shared::server()).start();
    for (name, value) in [
        ("options", "-c work_mem=many"),
        ("options", "-c no_such_setting=1"),
        ("DateStyle", "Klingon"),
        ("max_connections", "7"),
    ] {
        let login = crate::support::client::Login::new(role.name, "postgres").with(name, value);
        let direct = Client::connect_as(shared::server().address(), &login)
            .await
            .err()
            .unwrap();
        let through = Client::connect_as(pgweir.address, &login)
            .await
            .err()
            .unwrap();
        assert_eq!(
            (&through.severity, &through.code, &through.message),
            (&direct.severity, &direct.code, &direct.message),
            "{name}={value}"
        );
    }
    let mut client = role.client(&pgweir).await;
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_client_is_told_of_every_reported_value() {
    let mut pair = pair("set_reported").await;
    pair.one
        .query("SET TimeZone = 'Asia/Tokyo'; SET application_name = 'told'")
        .await
        .ok();
    assert_eq!(pair.one.parameters["TimeZone"], "Asia/Tokyo");
    assert_eq!(pair.one.parameters["application_name"], "told");
    let other = pair.two.parameters.clone();
    pair.two.query("SELECT 1").await.ok();
    assert_eq!(pair.two.parameters, other);
    pair.one.query("BEGIN; SET DateStyle = 'German'").await.ok();
    assert_eq!(pair.one.parameters["DateStyle"], "German, DMY");
    pair.one.query("ROLLBACK").await.ok();
    assert_eq!(pair.one.parameters["DateStyle"], "ISO, MDY");
    // A change inside a trigger is found by what the server reports.
    pair.two
        .query(
            "CREATE TABLE told (a int); CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM set_config('IntervalStyle', 'iso_8601', false); RETURN NEW; END $$; \
             CREATE TRIGGER tell BEFORE INSERT ON told FOR EACH ROW EXECUTE FUNCTION tell()",
        )
        .await
        .ok();
    pair.one.query("INSERT INTO told VALUES (1)").await.ok();
    assert_eq!(pair.one.parameters["IntervalStyle"], "iso_8601");
    assert_eq!(
        pair.show("IntervalStyle").await,
        values("iso_8601", "postgres")
    );
}

#[tokio::test]
async fn roles_are_carried_and_a_dropped_one_runs_nothing() {
    let mut pair = pair("set_role").await;
    pair.one
        .query("CREATE ROLE low; CREATE ROLE mid")
        .await
        .ok();
    pair.one.query("SET ROLE low").await.ok();
    let user = "SELECT current_user || '/' || session_user";
    assert_eq!(pair.one.value(user).await, "low/set_role");
    assert_eq!(pair.two.value(user).await, "set_role/set_role");
    assert_eq!(pair.one.value(user).await, "low/set_role");
    pair.one.query("RESET ROLE").await.ok();
    assert_eq!(pair.one.value(user).await, "set_role/set_role");
    pair.one.query("SET SESSION AUTHORIZATION mid").await.ok();
    assert_eq!(pair.two.value(user).await, "set_role/set_role");
    assert_eq!(pair.one.value(user).await, "mid/mid");
    pair.one
        .query("RESET SESSION AUTHORIZATION; SET ROLE low")
        .await
        .ok();
    pair.two.query("DROP ROLE low").await.ok();
    let errors = {
        pair.one.send(&messages::query(user)).await;
        pair.one.expect_end().await
    };
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(pair.two.value(user).await, "set_role/set_role");
    pair.two.query("DROP ROLE mid").await.ok();
}

#[tokio::test]
async fn a_client_that_leaves_right_after_set_leaves_nothing() {
    let mut pair = pair("set_and_leave").await;
    for round in 0..20 {
        let mut leaver = pair.role.client(&pair.pgweir).await;
        leaver
            .send(&messages::query(&format!(
                "SET work_mem = '{}MB'",
                10 + round
            )))
            .await;
        drop(leaver);
        assert_eq!(pair.show("work_mem").await, values("4MB", "4MB"), "{round}");
    }
    for sql in [
        "BEGIN; SET work_mem = '9MB'",
        "CREATE TEMP TABLE t (a int); SELECT pg_advisory_lock(4711)",
        "LISTEN c; PREPARE p AS SELECT 1",
        "SET ROLE pg_monitor",
    ] {
        let mut leaver = pair.role.client(&pair.pgweir).await;
        leaver.send(&messages::query(sql)).await;
        drop(leaver);
        assert_eq!(pair.show("work_mem").await, values("4MB", "4MB"), "{sql}");
        assert_eq!(pair.two.value(LEFTOVERS).await, "0", "{sql}");
        assert_eq!(pair.two.value("SELECT current_user").await, "set_and_leave");
    }
}

/// Counts what a session can leave behind on its backend.
const LEFTOVERS: &str = "SELECT (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory') \
     + (SELECT count(*) FROM pg_listening_channels()) \
     + (SELECT count(*) FROM pg_prepared_statements WHERE from_sql) \
     + (SELECT count(*) FROM pg_cursors WHERE is_holdable) \
     + (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind IN ('r', 'v', 'S'))";

/// One statement of the first client, and how it finds what it made; the second never does.
async fn pinned(
    name: &'static str,
    make: &str,
    find: &str,
    found: &str,
    absent: fn(&Reply) -> bool,
) {
    let mut role = shared::role(name).await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut owner = role.client(&pgweir).await;
    let mut other = role.client(&pgweir).await;
    owner.query(make).await.ok();
    let pid = owner.value("SELECT pg_backend_pid()").await;
    for _ in 0..3 {
        assert!(absent(&other.query(find).await));
        assert_eq!(other.value(LEFTOVERS).await, "0");
        assert_eq!(owner.value(find).await, found);
        assert_eq!(owner.value("SELECT pg_backend_pid()").await, pid);
    }
    owner.terminate().await;
    // What was pinned is closed, so that not even a trace of it is left, and its place is free.
    eventually("the pinned backend to be closed", async || {
        !role.pids().await.contains(&pid)
    })
    .await;
    let mut clients = [other, role.client(&pgweir).await];
    for client in &mut clients {
        client.query("BEGIN").await.ok();
        assert_eq!(client.value(LEFTOVERS).await, "0");
        assert!(absent(&client.query(find).await));
        client.query("ROLLBACK; BEGIN").await.ok();
    }
    for client in &mut clients {
        client.query("COMMIT").await.ok();
    }
    assert!(role.pids().await.len() <= 2);
}

fn is_error(reply: &Reply) -> bool {
    !reply.errors.is_empty()
}

fn is_zero(reply: &Reply) -> bool {
    reply.errors.is_empty() && reply.value() == "0"
}

#[tokio::test]
async fn a_temporary_table_is_its_owners() {
    let make = "CREATE TEMP TABLE secret AS SELECT 42 AS a";
    pinned("pin_temp", make, "SELECT a FROM secret", "42", is_error).await;
}

#[tokio::test]
async fn an_advisory_lock_is_its_owners() {
    let find = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND objid = 815";
    pinned(
        "pin_lock",
        "SELECT pg_advisory_lock(815)",
        find,
        "1",
        is_zero,
    )
    .await;
}

#[tokio::test]
async fn a_held_cursor_is_its_owners() {
    let make = "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 'row'";
    pinned("pin_cursor", make, "FETCH FIRST FROM c", "row", is_error).await;
}

#[tokio::test]
async fn notifications_reach_the_listener_and_nobody_else() {
    let mut pair = pair("notify").await;
    let listening = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut listener = pair.role.client(&listening).await;
    let mut bystander = pair.role.client(&listening).await;
    listener.query("LISTEN news").await.ok();
    bystander.query("SELECT 1").await.ok();
    pair.one.query("NOTIFY news, 'idle'").await.ok();
    assert_eq!(
        listener.notification().await,
        ("news".to_owned(), "idle".to_owned())
    );
    listener.query("BEGIN").await.ok();
    pair.two.query("NOTIFY news, 'later'").await.ok();
    listener.query("COMMIT").await.ok();
    assert_eq!(
        listener.notification().await,
        ("news".to_owned(), "later".to_owned())
    );
    bystander.query("SELECT 1").await.ok();
    assert!(bystander.notifications.is_empty());
}

#[tokio::test]
async fn discard_all_forgets_the_session_and_frees_its_backend() {
    let mut pair = pair("discard_all").await;
    pair.one
        .query("CREATE TEMP TABLE t (a int); LISTEN c; PREPARE p AS SELECT 1; SET work_mem = '9MB'")
        .await
        .ok();
    pair.one.query("SELECT pg_advisory_lock(99)").await.ok();
    pair.one.query("DISCARD ALL").await.ok();
    assert_eq!(pair.two.value(LEFTOVERS).await, "0");
    assert_eq!(pair.show("work_mem").await, values("4MB", "4MB"));
    pair.assert_one_backend().await;
}

/// State made where no text tells of it: in a function or a DO block.
#[tokio::test]
async fn state_made_inside_code_does_not_reach_the_next_client() {
    let mut pair = pair("opaque").await;
    pair.one
        .query(
            "CREATE FUNCTION opaque_state() RETURNS int LANGUAGE plpgsql AS $$ BEGIN \
             CREATE TEMP TABLE opaque_t (a int); PERFORM pg_advisory_lock(77); \
             PERFORM set_config('work_mem', '9MB', false); \
             EXECUTE 'PREPARE opaque_p AS SELECT 1'; EXECUTE 'LISTEN opaque_c'; RETURN 1; END $$; \
             CREATE FUNCTION opaque_tenant() RETURNS text LANGUAGE sql AS $$ \
             SELECT set_config('opaque.tenant', 'x', false) $$",
        )
        .await
        .ok();
    for sql in [
        "DO $$ BEGIN CREATE TEMP TABLE opaque_t (a int); END $$",
        "DO $$ BEGIN PERFORM pg_advisory_lock(77); END $$",
        "DO $$ BEGIN PERFORM set_config('work_mem', '9MB', false); END $$",
        "DO $$ BEGIN EXECUTE 'LISTEN opaque_c'; END $$",
        "DO $$ BEGIN SET ROLE pg_monitor; END $$",
        "SELECT opaque_state()",
        "SELECT opaque_tenant()",
    ] {
        let mut client = pair.role.client(&pair.pgweir).await;
        client.query(sql).await.ok();
        let mut other = pair.role.client(&pair.pgweir).await;
        other.send(&messages::query(LEFTOVERS)).await;
        // Either the state is seen at once or its maker keeps the backend until it leaves.
        let waited =
            tokio::time::timeout(crate::support::pgweir::SILENCE, other.expect(b'T')).await;
        client.terminate().await;
        if waited.is_err() {
            other.expect(b'T').await;
        }
        assert_eq!(other.reply().await.ok().value(), "0", "{sql}");
        assert_eq!(other.value("SHOW work_mem").await, "4MB", "{sql}");
        assert_eq!(other.value("SELECT current_user").await, "opaque", "{sql}");
        let tenant = "SELECT coalesce(current_setting('opaque.tenant', true), '')";
        assert_eq!(other.value(tenant).await, "", "{sql}");
    }
}

/// A step of the extended protocol without its Sync.
fn step(portal: &str, sql: &str, rows: u32) -> Vec<u8> {
    [
        messages::parse("", sql, &[]),
        messages::bind(portal, "", &[]),
        messages::execute(portal, rows),
    ]
    .concat()
}

#[tokio::test]
async fn what_is_reset_in_an_exchange_is_the_startup_value_for_the_rest_of_it() {
    let startup = [("application_name", "mine"), ("options", "-c work_mem=1MB")];
    let mut pair = pair_with("reset_inside", &startup, &[]).await;
    for (reset, set) in [
        ("RESET application_name", "SET application_name = 'other'"),
        (
            "SET application_name TO DEFAULT",
            "SET application_name = 'other'",
        ),
        ("RESET ALL", "SET application_name = 'other'"),
        ("RESET work_mem", "SET work_mem = '9MB'"),
    ] {
        for transaction in [false, true] {
            if transaction {
                pair.one.query("BEGIN").await.ok();
            }
            pair.one.query(set).await.ok();
            let batch = [
                step("", reset, 0),
                step(
                    "",
                    "SELECT current_setting('application_name') || current_setting('work_mem')",
                    0,
                ),
                messages::sync(),
            ];
            pair.one.send(&batch.concat()).await;
            let reply = pair.one.reply().await.ok();
            assert_eq!(reply.value(), "mine1MB", "{reset} {transaction}");
            let tag = reset.split(' ').next().unwrap();
            assert_eq!(reply.tags, [tag, "SELECT 1"], "{reset}");
            if transaction {
                pair.one.query("ROLLBACK").await.ok();
            }
            pair.one.query(reset).await.ok();
        }
        assert_eq!(
            pair.show("application_name").await,
            values("mine", ""),
            "{reset}"
        );
    }
    // One that failed resets nothing, nor does one that is still to run.
    pair.one.query("SET work_mem = '9MB'").await.ok();
    let batch = [
        messages::parse("", "RESET work_mem", &[]),
        messages::bind("later", "", &[]),
        step("", "SHOW work_mem", 0),
        messages::execute("later", 0),
        step("", "SHOW work_mem", 0),
        messages::sync(),
    ];
    pair.one.send(&batch.concat()).await;
    assert_eq!(pair.one.reply().await.ok().column(), ["9MB", "1MB"]);
    pair.assert_one_backend().await;
}

#[tokio::test]
async fn a_reset_leaves_an_open_portal_alone() {
    let mut pair = pair_with("reset_portal", &[("application_name", "mine")], &[]).await;
    let client = &mut pair.one;
    client
        .query("BEGIN; SET application_name = 'other'")
        .await
        .ok();
    let batch = [
        messages::parse("reset", "RESET application_name", &[]),
        step("", "SELECT generate_series(1, 3)", 1),
        messages::sync(),
    ];
    client.send(&batch.concat()).await;
    assert_eq!(client.reply().await.ok().column(), ["1"]);
    let batch = [
        messages::bind("p", "reset", &[]),
        messages::execute("p", 0),
        messages::sync(),
    ];
    client.send(&batch.concat()).await;
    client.reply().await.ok();
    client
        .send(&[messages::execute("", 0), messages::sync()].concat())
        .await;
    assert_eq!(client.reply().await.ok().column(), ["2", "3"]);
    assert_eq!(client.value("SHOW application_name").await, "mine");
    client.query("COMMIT").await.ok();
    assert_eq!(pair.show("application_name").await, values("mine", ""));
}
