//! The console: its tables over both protocols, and what its commands do to clients and servers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

use pgweir::demo::cluster::binaries;

use crate::shared;
use crate::support::client::{self, Client, Login, Reply};
use crate::support::messages;
use crate::support::pgweir::{Options, Pgweir, SILENCE};
use crate::support::wait::{eventually, wait_until, within_limit};

fn start() -> Pgweir {
    Options::new(shared::server()).start()
}

/// A value of a table's only row that has `key` in `key_column`.
#[track_caller]
fn cell<'a>(reply: &'a Reply, key_column: &str, key: &str, column: &str) -> Option<&'a str> {
    let place = |name: &str| {
        let found = reply.columns.iter().position(|column| column == name);
        found.unwrap_or_else(|| panic!("no column {name} in {:?}", reply.columns))
    };
    let (key_place, place) = (place(key_column), place(column));
    let mut rows = reply
        .rows
        .iter()
        .filter(|row| row[key_place].as_deref() == Some(key));
    let row = rows.next()?;
    assert!(rows.next().is_none(), "more than one row of {key}");
    row[place].as_deref()
}

async fn backend_pid(client: &mut Client) -> String {
    client.value("SELECT pg_backend_pid()").await
}

fn psql(pgweir: &Pgweir, user: &str, database: &str, commands: &[&str]) -> Output {
    let mut psql = Command::new(binaries().unwrap().join("psql"));
    psql.args(["-XAt", "-v", "ON_ERROR_STOP=1"]);
    for command in commands {
        psql.args(["-c", command]);
    }
    psql.arg("-d").arg(pgweir.url(user, database));
    psql.output().unwrap()
}

#[test]
fn psql_shows_every_table_under_both_names_of_the_console() {
    let pgweir = start();
    for database in ["pgweir", "pgbouncer"] {
        let tables = [
            "clients",
            "config",
            "databases",
            "dns_hosts",
            "dns_zones",
            "errors",
            "lists",
            "locks",
            "mem",
            "peer_pools",
            "peers",
            "pins",
            "pools",
            "queries",
            "retries",
            "servers",
            "slow",
            "sockets",
            "active_sockets",
            "state",
            "stats",
            "stats_totals",
            "stats_averages",
            "totals",
            "users",
            "version",
            "waits",
        ];
        let shows: Vec<String> = tables
            .iter()
            .map(|table| format!("SHOW {table};"))
            .collect();
        let shows: Vec<&str> = shows.iter().map(String::as_str).collect();
        let output = psql(&pgweir, "postgres", database, &shows);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("PgBouncer 1.25.0 (pgweir "), "{shown}");
    }
    let help = psql(&pgweir, "postgres", "pgweir", &["SHOW HELP"]);
    let help = String::from_utf8_lossy(&help.stderr);
    assert!(
        help.contains("Console usage") && help.contains("WAIT_CLOSE"),
        "{help}"
    );
}

#[tokio::test]
async fn psql_watches_a_table_change() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client.query("SELECT 1 AS watched").await.ok();
    let mut psql = Command::new(binaries().unwrap().join("psql"))
        .args(["-XAtq", "-d", &pgweir.url("postgres", "pgweir")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = psql.stdin.take().unwrap();
    writeln!(
        input,
        "SHOW QUERIES LIKE '%watched' ORDER BY total_time DESC \\watch 0.05"
    )
    .unwrap();
    let mut lines = BufReader::new(psql.stdout.take().unwrap()).lines();
    let mut next = || {
        let shown = lines.by_ref().map(Result::unwrap);
        let mut rows = shown.filter(|line| line.contains("|SELECT $1 AS watched|"));
        rows.next().expect("psql goes on")
    };
    let calls = |row: String| row.split('|').nth(6).unwrap().to_owned();
    for _ in 0..2 {
        assert_eq!(calls(next()), "1");
    }
    client.query("SELECT 1 AS watched").await.ok();
    while calls(next()) != "2" {}
    // Without an end to its input it would go on for good.
    psql.kill().unwrap();
    psql.wait().unwrap();
}

#[tokio::test]
async fn connections_show_tls_statements_names_and_times() {
    let pgweir = start();
    let login = Login::new("postgres", "postgres").with("application_name", "first");
    let mut client = pgweir.client_as(&login).await;
    let prepare = |name: &str| {
        let parse = messages::parse(name, &format!("SELECT '{name}'"), &[]);
        let [bind, execute] = [messages::bind("", name, &[]), messages::execute("", 0)];
        [parse, bind, execute, messages::sync()].concat()
    };
    for name in ["one", "two"] {
        client.send(&prepare(name)).await;
        client.reply().await.ok();
    }
    let mut console = pgweir.console().await;
    let of = async |console: &mut Client, column: &str| {
        let clients = console.query("SHOW CLIENTS").await.ok();
        let servers = console.query("SHOW SERVERS").await.ok();
        let of_client = cell(&clients, "database", "postgres", column);
        let of_server = cell(&servers, "database", "postgres", column);
        [of_client.map(str::to_owned), of_server.map(str::to_owned)]
    };
    let both = |text: &str| [Some(text.to_owned()), Some(text.to_owned())];
    assert_eq!(of(&mut console, "prepared_statements").await, both("2"));
    assert_eq!(of(&mut console, "application_name").await, both("first"));
    assert_eq!(of(&mut console, "tls").await, both(""));
    client.query("SET application_name = 'second'").await.ok();
    assert_eq!(of(&mut console, "application_name").await, both("second"));
    let [of_client, of_server] = of(&mut console, "request_time").await;
    let at = of_client.expect("it has asked something");
    assert_eq!(at.len(), "2026-01-02 03:04:05 UTC".len(), "{at}");
    assert!(of_server.is_some_and(|of_server| of_server[..10] == at[..10]));
    client.send(&messages::close(b'S', "one")).await;
    client.send(&messages::sync()).await;
    client.reply().await.ok();
    let [of_client, of_server] = of(&mut console, "prepared_statements").await;
    // The server's stays, for others that prepare the same.
    assert_eq!(of_client.as_deref(), Some("1"));
    assert_eq!(of_server.as_deref(), Some("2"));
    client.query("DEALLOCATE ALL").await.ok();
    let [of_client, _] = of(&mut console, "prepared_statements").await;
    assert_eq!(of_client.as_deref(), Some("0"));
}

#[tokio::test]
async fn pools_servers_and_clients_show_who_runs_on_what() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    let pid = backend_pid(&mut client).await;
    let mut console = pgweir.console().await;
    let pools = console.query("SHOW POOLS").await.ok();
    let of_pool = |column| cell(&pools, "database", "postgres", column);
    assert_eq!(of_pool("cl_active"), Some("1"));
    assert_eq!(of_pool("sv_active"), Some("1"));
    assert_eq!(of_pool("pool_mode"), Some("transaction"));
    let servers = console.query("SHOW SERVERS").await.ok();
    assert_eq!(cell(&servers, "remote_pid", &pid, "state"), Some("active"));
    let link = cell(&servers, "remote_pid", &pid, "link").unwrap();
    let clients = console.query("SHOW CLIENTS").await.ok();
    assert_eq!(cell(&clients, "ptr", link, "state"), Some("active"));
    assert_eq!(cell(&clients, "database", "pgweir", "type"), Some("C"));
    client.query("COMMIT").await.ok();
    let servers = console.query("SHOW SERVERS").await.ok();
    assert_eq!(cell(&servers, "remote_pid", &pid, "state"), Some("idle"));
    let stats = console.query("SHOW STATS").await.ok();
    let assignments = cell(
        &stats,
        "database",
        "postgres",
        "total_server_assignment_count",
    );
    assert_ne!(assignments, Some("0"));
}

#[tokio::test]
async fn the_extended_protocol_works_with_portals_and_binary_results() {
    let pgweir = start();
    let mut console = pgweir.console().await;
    let reply = console.extended("SHOW VERSION", &[]).await.ok();
    assert_eq!(
        (reply.order.as_str(), reply.columns.as_slice()),
        ("12TDCZ", &["version".to_owned()][..])
    );
    let refused = console.extended("SHOW VERSION", &[Some("x")]).await;
    assert_eq!(
        (refused.sqlstate(), refused.order.as_str()),
        ("08P01", "1EZ")
    );
    // Three rows, one at a time, then the statement described and closed.
    let batch = [
        messages::parse("s", "show state", &[]),
        messages::describe(b'S', "s"),
        messages::bind("p", "s", &[]),
        messages::execute("p", 2),
        messages::execute("p", 2),
        messages::close(b'S', "s"),
        messages::sync(),
    ];
    console.send(&batch.concat()).await;
    let reply = console.reply().await.ok();
    assert_eq!(reply.order, "1tT2DDsDC3Z");
    let binary = messages::frame(b'B', b"\0\0\0\0\0\0\0\x01\0\x01");
    let batch = [
        messages::parse("", "SHOW LISTS", &[]),
        binary,
        messages::execute("", 1),
        messages::sync(),
    ];
    console.send(&batch.concat()).await;
    let reply = console.reply().await.ok();
    assert_eq!(
        reply.rows[0][1].as_ref().map(String::len),
        Some(4),
        "an int4"
    );
    let batch = [
        messages::parse("", "", &[]),
        messages::bind("", "", &[]),
        messages::describe(b'P', ""),
        messages::execute("", 0),
        messages::sync(),
    ];
    console.send(&batch.concat()).await;
    assert_eq!(console.reply().await.ok().order, "12nIZ");
    assert_eq!(console.query("").await.ok().order, "IZ");
}

#[tokio::test]
async fn several_statements_run_in_order_and_a_wrong_one_keeps_all_from_running() {
    let pgweir = start();
    let mut console = pgweir.console().await;
    let reply = console
        .query("begin; SHOW version; select 1; set DateStyle to 'ISO'; commit")
        .await
        .ok();
    assert_eq!(reply.tags, ["BEGIN", "SHOW", "SHOW", "SET", "COMMIT"]);
    let reply = console.query("PAUSE; FROBNICATE").await;
    assert_eq!(reply.sqlstate(), "42601");
    let state = console.query("SHOW STATE").await.ok();
    assert_eq!(cell(&state, "key", "paused", "value"), Some("no"));
    assert_eq!(
        console
            .query("PAUSE nowhere; SHOW VERSION")
            .await
            .ok()
            .tags
            .len(),
        2
    );
    assert_eq!(console.query("SHOW FDS").await.sqlstate(), "0A000");
    assert_eq!(console.query("SUSPEND").await.sqlstate(), "0A000");
    assert_eq!(console.query("KILL_CLIENT 1").await.sqlstate(), "42704");
}

#[tokio::test]
async fn nonsense_ends_the_connection_with_a_protocol_violation() {
    let pgweir = start();
    let whole_and_wrong: [&[u8]; 4] = [
        b"Q\0\0\0\x03",
        b"Q\x7f\xff\xff\xff",
        b"?\0\0\0\x04",
        b"Q\0\0\0\x06ab",
    ];
    for bytes in whole_and_wrong {
        let mut console = pgweir.console().await;
        console.send(bytes).await;
        let errors = console.expect_end().await;
        assert_eq!(errors.len(), 1, "{bytes:?}");
        assert_eq!(
            (errors[0].code.as_str(), errors[0].severity.as_str()),
            ("08P01", "FATAL")
        );
    }
}

#[tokio::test]
async fn pause_waits_for_transactions_and_holds_statements_until_resume() {
    let pgweir = start();
    let mut busy = pgweir.client().await;
    busy.query("BEGIN").await.ok();
    let before = backend_pid(&mut busy).await;
    let mut console = pgweir.console().await;
    console.send(&messages::query("PAUSE postgres")).await;
    let early = tokio::time::timeout(SILENCE, console.read_message()).await;
    assert!(early.is_err(), "PAUSE did not wait: {early:?}");
    busy.query("COMMIT").await.ok();
    assert_eq!(console.reply().await.ok().tags, ["PAUSE"]);
    let databases = console.query("SHOW DATABASES").await.ok();
    assert_eq!(cell(&databases, "name", "postgres", "paused"), Some("1"));
    assert_eq!(
        cell(&databases, "name", "postgres", "current_connections"),
        Some("0")
    );
    busy.send(&messages::query("SELECT pg_backend_pid()")).await;
    eventually("the statement to wait", async || {
        let pools = console.query("SHOW POOLS").await.ok();
        cell(&pools, "database", "postgres", "cl_waiting") == Some("1")
    })
    .await;
    assert_eq!(console.query("RESUME postgres").await.ok().tags, ["RESUME"]);
    let after = busy.reply().await.ok();
    assert_ne!(after.value(), before);
    assert_eq!(console.query("RESUME postgres").await.sqlstate(), "55000");
}

#[tokio::test]
async fn sigusr1_pauses_and_sigusr2_resumes() {
    let mut pgweir = start();
    let mut client = pgweir.client().await;
    client.query("BEGIN").await.ok();
    pgweir.signal("USR1");
    pgweir.wait_for_log("got SIGUSR1");
    assert_eq!(client.value("SELECT 1").await, "1");
    assert!(!pgweir.log_contains("paused: no server connection"));
    client.query("COMMIT").await.ok();
    pgweir.wait_for_log("paused: no server connection");
    let mut console = pgweir.console().await;
    let databases = console.query("SHOW DATABASES").await.ok();
    assert_eq!(cell(&databases, "name", "postgres", "paused"), Some("1"));
    client.send(&messages::query("SELECT 2")).await;
    tokio::time::sleep(SILENCE).await;
    pgweir.signal("USR2");
    assert_eq!(client.reply().await.ok().value(), "2");
    assert!(pgweir.stop().success());
}

#[tokio::test]
async fn a_cancelled_pause_is_taken_back() {
    let pgweir = start();
    let mut busy = pgweir.client().await;
    busy.query("BEGIN").await.ok();
    let mut console = pgweir.console().await;
    console.send(&messages::query("PAUSE")).await;
    let mut other = pgweir.console().await;
    eventually("the pause to begin", async || {
        let state = other.query("SHOW STATE").await.ok();
        cell(&state, "key", "paused", "value") == Some("yes")
    })
    .await;
    client::cancel(pgweir.address, &console.key).await;
    assert_eq!(console.reply().await.sqlstate(), "57014");
    busy.query("COMMIT").await.ok();
    assert_eq!(busy.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_pause_that_another_console_resumes_is_over() {
    let pgweir = start();
    let mut busy = pgweir.client().await;
    busy.query("BEGIN").await.ok();
    let mut other = pgweir.console().await;
    for (pause, resume, key) in [
        ("PAUSE", "RESUME", None),
        ("PAUSE postgres", "RESUME postgres", Some("postgres")),
    ] {
        let mut console = pgweir.console().await;
        console.send(&messages::query(pause)).await;
        eventually("the pause to begin", async || match key {
            None => {
                let state = other.query("SHOW STATE").await.ok();
                cell(&state, "key", "paused", "value") == Some("yes")
            }
            Some(name) => {
                let databases = other.query("SHOW DATABASES").await.ok();
                cell(&databases, "name", name, "paused") == Some("1")
            }
        })
        .await;
        other.query(resume).await.ok();
        let error = console.reply().await.error().clone();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("57014", "canceling PAUSE because of RESUME")
        );
        console.query("SHOW VERSION").await.ok();
    }
    // Nobody closes idle connections any more.
    busy.query("COMMIT").await.ok();
    let before = backend_pid(&mut busy).await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!(backend_pid(&mut busy).await, before);
}

#[tokio::test]
async fn orders_hold_for_pools_that_are_made_later() {
    let pgweir = start();
    let mut console = pgweir.console().await;
    console.query("DISABLE template1").await.ok();
    let refused = Client::connect_as(pgweir.address, &Login::new("postgres", "template1")).await;
    let error = refused.err().expect("a disabled database lets nobody in");
    assert_eq!(
        error.message,
        "database does not allow connections: template1"
    );
    assert_eq!(error.severity, "FATAL");
    console.query("ENABLE template1").await.ok();
    let mut client = Client::connect(pgweir.address, "postgres", "template1").await;
    assert_eq!(client.value("SELECT current_database()").await, "template1");
}

#[tokio::test]
async fn reconnect_replaces_server_connections_when_they_are_free() {
    let pgweir = start();
    let mut client = pgweir.client().await;
    let mut busy = pgweir.client().await;
    busy.query("BEGIN").await.ok();
    let kept = backend_pid(&mut busy).await;
    let replaced = backend_pid(&mut client).await;
    let mut console = pgweir.console().await;
    console.query("RECONNECT postgres").await.ok();
    assert_ne!(backend_pid(&mut client).await, replaced);
    assert_eq!(
        backend_pid(&mut busy).await,
        kept,
        "a transaction keeps its server"
    );
    console.send(&messages::query("WAIT_CLOSE postgres")).await;
    busy.query("COMMIT").await.ok();
    assert_eq!(console.reply().await.ok().tags, ["WAIT_CLOSE"]);
    assert_ne!(backend_pid(&mut busy).await, kept);
}

#[tokio::test]
async fn kill_cuts_clients_off_and_holds_the_database() {
    let pgweir = start();
    let mut idle = pgweir.client().await;
    let mut busy = pgweir.client().await;
    let mut spared = Client::connect(pgweir.address, "postgres", "template1").await;
    busy.query("BEGIN").await.ok();
    let mut console = pgweir.console().await;
    console.query("KILL postgres").await.ok();
    for client in [&mut idle, &mut busy] {
        let errors = client.expect_end().await;
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].code, "57P01");
    }
    assert_eq!(spared.value("SELECT 1").await, "1");
    eventually("all its server connections to be closed", async || {
        let databases = console.query("SHOW DATABASES").await.ok();
        cell(&databases, "name", "postgres", "current_connections") == Some("0")
    })
    .await;
    console.query("RESUME postgres").await.ok();
    let mut client = pgweir.client().await;
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn kill_ends_clients_that_wait_at_login() {
    let pgweir = start();
    let mut console = pgweir.console().await;
    console.query("PAUSE postgres").await.ok();
    // The server is to say whether it takes the parameter, which needs a connection to it.
    let login = Login::new("postgres", "postgres").with("work_mem", "5MB");
    let address = pgweir.address;
    let waiting = pgweir::tasks::spawn("client at login", async move {
        Client::connect_as(address, &login).await.err()
    });
    // It is known from when it has proved itself.
    eventually("the client to be told", async || {
        console.query("KILL postgres").await.ok();
        waiting.is_finished()
    })
    .await;
    let error = waiting.await.unwrap().expect("an end of the login");
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("FATAL", "57P01")
    );
}

#[tokio::test]
async fn kill_client_ends_the_one_that_is_named() {
    let pgweir = start();
    let login = Login::new("postgres", "postgres");
    let mut one = pgweir
        .client_as(&login.clone().with("application_name", "one"))
        .await;
    let mut other = pgweir
        .client_as(&login.with("application_name", "other"))
        .await;
    let mut console = pgweir.console().await;
    let clients = console.query("SHOW CLIENTS").await.ok();
    let id = cell(&clients, "application_name", "one", "id").unwrap();
    console.query(&format!("KILL_CLIENT {id}")).await.ok();
    assert_eq!(one.expect_end().await[0].code, "57P01");
    assert_eq!(other.value("SELECT 1").await, "1");
}

fn config(rest: &str) -> String {
    format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n{rest}\n[cluster]\nprimary = \"{}\"\n",
        shared::server().node_url()
    )
}

#[tokio::test]
async fn reload_takes_a_good_file_over_and_leaves_a_bad_one() {
    let trusting = |size: u32| {
        config("") + &format!("[auth]\nmethod = \"trust\"\n[pool]\nmax_size = {size}\n")
    };
    let pgweir = Options::config(&trusting(3)).start();
    let mut console = pgweir.console().await;
    let size = async |console: &mut Client| {
        let config = console.query("SHOW CONFIG").await.ok();
        cell(&config, "key", "pool.max_size", "value")
            .unwrap()
            .to_owned()
    };
    assert_eq!(size(&mut console).await, "3");
    std::fs::write(pgweir.config_path(), trusting(4)).unwrap();
    console.query("RELOAD").await.ok();
    assert_eq!(size(&mut console).await, "4");
    std::fs::write(pgweir.config_path(), trusting(5) + "nonsense = 1\n").unwrap();
    let reply = console.query("RELOAD").await;
    assert_eq!(reply.sqlstate(), "F0000");
    assert!(
        reply.error().detail.as_ref().unwrap().contains("nonsense"),
        "{reply:?}"
    );
    assert_eq!(size(&mut console).await, "4");
    assert_eq!(
        pgweir.metric("pgweir_config_reloads_total{result=\"failure\"} "),
        Some(1.0)
    );
}

#[tokio::test]
async fn set_changes_what_can_change_live() {
    let pgweir = start();
    let mut console = pgweir.console().await;
    console.query("SET default_pool_size = 6").await.ok();
    let config = console.query("SHOW CONFIG").await.ok();
    assert_eq!(cell(&config, "key", "pool.max_size", "value"), Some("6"));
    let size = cell(&config, "key", "default_pool_size", "value");
    assert_eq!(size, Some("6"));
    console.query("SET query_timeout = 30").await.ok();
    let config = console.query("SHOW CONFIG").await.ok();
    let timeout = cell(&config, "key", "timeouts.query_timeout", "value");
    assert_eq!(timeout, Some("30s"));
    assert_eq!(
        console.query("SET default_pool_size = x").await.sqlstate(),
        "22023"
    );
    console.query("SET pool.max_size = 7").await.ok();
    let config = console.query("SHOW CONFIG").await.ok();
    assert_eq!(cell(&config, "key", "pool.max_size", "value"), Some("7"));
    console
        .query("SET timeouts.query_timeout TO '90s'")
        .await
        .ok();
    assert_eq!(
        console.query("SET general.workers = 4").await.sqlstate(),
        "55P02"
    );
    assert_eq!(
        console.query("SET pool.max_size = many").await.sqlstate(),
        "22023"
    );
    assert_eq!(
        console.query("SET no.such_key = 1").await.sqlstate(),
        "22023"
    );
    let config = console.query("SHOW CONFIG").await.ok();
    assert_eq!(cell(&config, "key", "pool.max_size", "value"), Some("7"));
    assert_eq!(
        cell(&config, "key", "timeouts.query_timeout", "value"),
        Some("90s")
    );
}

#[tokio::test]
async fn only_those_named_are_let_in_and_only_admins_give_orders() {
    let folder = tempfile::tempdir().unwrap();
    let userlist = folder.path().join("userlist.txt");
    std::fs::write(
        &userlist,
        "\"ann\" \"a\"\n\"stan\" \"s\"\n\"nobody\" \"n\"\n",
    )
    .unwrap();
    let users = "admin_users = [\"ann\"]\nstats_users = [\"stan\"]";
    let auth = format!(
        "[auth]\nmethod = \"scram\"\nuserlist = \"{}\"\n",
        userlist.display()
    );
    let pgweir = Options::config(&(config(users) + &auth)).start();
    let login = |user, password| Login::new(user, "pgweir").password(password);
    let mut ann = pgweir.client_as(&login("ann", "a")).await;
    ann.query("PAUSE").await.ok();
    ann.query("RESUME").await.ok();
    let mut stan = pgweir.client_as(&login("stan", "s")).await;
    stan.query("SHOW POOLS").await.ok();
    assert_eq!(stan.query("PAUSE").await.sqlstate(), "42501");
    let refused = Client::connect_as(pgweir.address, &login("nobody", "n")).await;
    assert_eq!(
        refused.err().expect("nobody is no console user").code,
        "42501"
    );
}

#[tokio::test]
async fn shutdown_ends_the_process_with_success() {
    let mut pgweir = start();
    let mut idle = pgweir.client().await;
    let mut console = pgweir.console().await;
    console.send(&messages::query("SHUTDOWN")).await;
    assert_eq!(idle.expect_end().await[0].code, "57P01");
    assert!(pgweir.wait().success());
}

#[tokio::test]
async fn shutdown_can_wait_for_transactions_and_for_clients() {
    let mut pgweir = start();
    let mut busy = pgweir.client().await;
    busy.query("BEGIN").await.ok();
    let mut console = pgweir.console().await;
    console
        .send(&messages::query("SHUTDOWN WAIT_FOR_SERVERS"))
        .await;
    pgweir.wait_for_log("shutting down");
    busy.query("COMMIT").await.ok();
    assert_eq!(busy.expect_end().await[0].code, "57P01");
    assert!(pgweir.wait().success());

    let mut pgweir = start();
    let mut client = pgweir.client().await;
    let mut console = pgweir.console().await;
    console.query("SHUTDOWN WAIT_FOR_CLIENTS").await.ok();
    wait_until("/ready to say no", || {
        let reply = pgweir.http_get("/ready").unwrap_or_default();
        reply.starts_with("HTTP/1.1 503")
    });
    let refused = Client::connect_as(pgweir.address, &Login::new("postgres", "postgres")).await;
    assert_eq!(refused.err().expect("no new clients").code, "57P03");
    assert_eq!(client.value("SELECT 1").await, "1");
    assert!(pgweir.try_wait().is_none());
    client.terminate().await;
    assert!(pgweir.wait().success());
    within_limit("the console to be told", console.expect_end()).await;
}
