//! SIGHUP: a changed configuration is taken over and nobody is dropped.

use pgweir::demo::cluster::{Server, ServerOptions};

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// A configuration in front of a server, with these lines.
fn config(server: &Server, rest: &str) -> String {
    format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n{rest}\n",
        server.node_url()
    )
}

/// Rewrites the file, reloads, and waits for `outcome` in the log, which must not be there yet.
pub(super) fn reload(pgweir: &Pgweir, text: &str, outcome: &str) {
    let times = |log: &str| log.matches(outcome).count();
    let before = times(&pgweir.log());
    std::fs::write(pgweir.config_path(), text).unwrap();
    pgweir.reload();
    crate::support::wait::wait_until(outcome, || times(&pgweir.log()) > before);
}

pub(super) const DONE: &str = "configuration reloaded";

/// Clients that are all in a transaction at once, as many as get there.
async fn in_transactions(pgweir: &Pgweir, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = pgweir.client().await;
        client.query("BEGIN").await.ok();
        clients.push(client);
    }
    clients
}

async fn open_backends(pgweir: &Pgweir) -> String {
    let mut client = pgweir.client().await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    client.value(count).await
}

#[tokio::test]
async fn a_pool_grows_and_shrinks_with_its_size() {
    let server = ServerOptions::default().start().unwrap();
    let sized = |size: usize| {
        let rest = format!("[pool]\nmax_size = {size}\n[timeouts]\nquery_wait_timeout = \"500ms\"");
        config(&server, &rest)
    };
    let pgweir = Options::config(&sized(1)).start();
    let mut holder = in_transactions(&pgweir, 1).await;
    let mut waiting = pgweir.client().await;
    assert_eq!(waiting.query("BEGIN").await.sqlstate(), "53300");
    reload(&pgweir, &sized(4), DONE);
    let mut more = in_transactions(&pgweir, 3).await;
    assert_eq!(waiting.query("BEGIN").await.sqlstate(), "53300");
    for client in more.iter_mut().chain(&mut holder) {
        client.query("COMMIT").await.ok();
    }
    assert_eq!(open_backends(&pgweir).await, "4");
    reload(&pgweir, &sized(2), DONE);
    eventually("the pool to shrink", async || {
        open_backends(&pgweir).await == "2"
    })
    .await;
    assert_eq!(holder[0].value("SELECT 1").await, "1");
}

#[tokio::test]
async fn timeouts_hold_from_the_next_transaction_on() {
    let server = shared::server();
    let pgweir = Options::config(&config(server, "")).start();
    let mut client = pgweir.client().await;
    client.query("SELECT pg_sleep(0.3)").await.ok();
    let limited = config(server, "[timeouts]\nquery_timeout = \"100ms\"");
    reload(&pgweir, &limited, DONE);
    let error = client.query("SELECT pg_sleep(30)").await;
    assert_eq!(error.sqlstate(), "57014");
    reload(&pgweir, &config(server, ""), DONE);
    client.query("SELECT pg_sleep(0.3)").await.ok();
}

#[tokio::test]
async fn databases_come_and_go() {
    let server = ServerOptions::default().start().unwrap();
    server
        .sql("postgres", "CREATE DATABASE one; CREATE DATABASE two")
        .unwrap();
    // No cluster, so no database but these.
    let database = |name: &str, dbname: &str| {
        let primary = server.node_url();
        format!("[databases.{name}]\nprimary = \"{primary}\"\ndbname = \"{dbname}\"\n")
    };
    let head = "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[auth]\nmethod = \"trust\"\n";
    let without_app = format!("{head}{}", database("other", "postgres"));
    let with_app = |dbname: &str| format!("{without_app}{}", database("app", dbname));
    let pgweir = Options::config(&without_app).start();
    let login = Login::new("postgres", "app");
    let refused = async || {
        let error = Client::connect_as(pgweir.address, &login).await;
        let error = error.err().expect("the login to be refused");
        (error.code, error.message)
    };
    let unknown = (
        "3D000".to_owned(),
        "database \"app\" does not exist".to_owned(),
    );
    assert_eq!(refused().await, unknown);
    reload(&pgweir, &with_app("one"), DONE);
    let mut client = pgweir.client_as(&login).await;
    let which = "SELECT current_database()";
    assert_eq!(client.value(which).await, "one");
    // It moves between two transactions, not within one.
    client.query("BEGIN").await.ok();
    assert_eq!(client.value(which).await, "one");
    reload(&pgweir, &with_app("two"), DONE);
    assert_eq!(client.value(which).await, "one");
    client.query("COMMIT").await.ok();
    assert_eq!(client.value(which).await, "two");
    // Who is there when it goes is still served; nobody new is.
    reload(&pgweir, &without_app, DONE);
    assert_eq!(client.value(which).await, "two");
    assert_eq!(refused().await, unknown);
    reload(&pgweir, &with_app("one"), DONE);
    pgweir.client_as(&login).await.terminate().await;
    assert_eq!(client.value(which).await, "one");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_the_log_says_why() {
    let server = shared::server();
    let good = config(server, "[pool]\nmax_size = 3");
    let pgweir = Options::config(&good).start();
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    for (bad, reason) in [
        ("this is no TOML", "pgweir.toml:1"),
        ("[pool]\nmax_sise = 4", "max_sise"),
        ("[pool]\nmax_size = \"many\"", "pool.max_size"),
        (
            "[auth]\nmethod = \"scram\"\nuserlist = \"/nonexistent/list\"",
            "/nonexistent/list",
        ),
        (
            "[auth]\nmethod = \"hba\"\nhba_file = \"/nonexistent/hba\"",
            "/nonexistent/hba",
        ),
        (
            "[tls.client]\ncert_file = \"/nonexistent/crt\"\nkey_file = \"/nonexistent/key\"",
            "/nonexistent/",
        ),
    ] {
        let text = if bad.starts_with("[auth]") {
            format!(
                "[cluster]\nprimary = \"postgres://postgres@{}\"\n{bad}\n",
                server.address()
            )
        } else if bad.starts_with('[') {
            config(server, bad)
        } else {
            bad.to_owned()
        };
        reload(&pgweir, &text, "the configuration stays as it is");
        let log = pgweir.log();
        let line = log.rfind("the configuration stays as it is").unwrap();
        assert!(log[line..].contains(reason), "{reason}: {}", &log[line..]);
    }
    std::fs::remove_file(pgweir.config_path()).unwrap();
    pgweir.reload();
    pgweir.wait_for_log("can't read");
    assert_eq!(client.query("COMMIT").await.ok().tags, ["COMMIT"]);
    pgweir.client().await.terminate().await;
    reload(&pgweir, &config(server, "[pool]\nmax_size = 4"), DONE);
    assert!(pgweir.log_contains("pool.max_size"));
}

#[tokio::test]
async fn a_client_in_the_midst_of_its_work_notices_nothing() {
    let server = shared::server();
    let pgweir = Options::config(&config(server, "")).start();
    let mut querying = pgweir.client().await;
    let mut copying = pgweir.client().await;
    let mut prepared = pgweir.client().await;
    prepared
        .send(&[messages::parse("s", "SELECT 's'", &[]), messages::sync()].concat())
        .await;
    prepared.reply().await.ok();
    prepared.query("SET work_mem = '7MB'").await.ok();
    querying
        .send(&messages::query("SELECT pg_sleep(0.5), 'slept'"))
        .await;
    copying.query("CREATE TEMP TABLE copied (a int)").await.ok();
    copying
        .send(&messages::query("COPY copied FROM STDIN"))
        .await;
    copying.expect(b'G').await;
    copying.send(&messages::copy_data(b"1\n")).await;
    for size in 3..8 {
        let text = config(server, &format!("[pool]\nmax_size = {size}"));
        reload(&pgweir, &text, DONE);
    }
    copying.send(&messages::copy_data(b"2\n")).await;
    copying.send(&messages::copy_done()).await;
    assert_eq!(copying.reply().await.ok().tags, ["COPY 2"]);
    let slept = querying.reply().await.ok();
    assert_eq!(slept.rows[0][1].as_deref(), Some("slept"));
    let batch = [
        messages::bind("", "s", &[]),
        messages::execute("", 0),
        messages::sync(),
    ];
    prepared.send(&batch.concat()).await;
    assert_eq!(prepared.reply().await.ok().value(), "s");
    assert_eq!(prepared.value("SHOW work_mem").await, "7MB");
}

#[tokio::test]
async fn client_limits_and_the_log_level_change_at_once() {
    let server = shared::server();
    let with = |limit: usize, level: &str| {
        let text = config(server, &format!("[log]\nlevel = \"{level}\""));
        text.replace(
            "[general]\n",
            &format!("[general]\nmax_client_conn = {limit}\n"),
        )
    };
    let pgweir = Options::config(&with(1, "info")).start();
    let login = Login::new("postgres", "postgres");
    let client = pgweir.client().await;
    let refused = Client::connect_as(pgweir.address, &login).await;
    assert_eq!(refused.err().unwrap().code, "53300");
    reload(&pgweir, &with(2, "info"), DONE);
    let second = pgweir.client().await;
    // What is said at level info is said no more.
    std::fs::write(pgweir.config_path(), with(3, "error")).unwrap();
    pgweir.reload();
    pgweir.wait_for_log("log.level");
    let mut third = None;
    eventually("the third place", async || {
        third = Client::connect_as(pgweir.address, &login).await.ok();
        third.is_some()
    })
    .await;
    let refused = Client::connect_as(pgweir.address, &login).await;
    assert!(
        refused
            .err()
            .unwrap()
            .message
            .contains("max_client_conn = 3")
    );
    assert!(!pgweir.log_contains("max_client_conn = 3"));
    drop((client, second));
}
