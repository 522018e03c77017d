//! Many clients over few backends: who gets one, when, and what those are told that get none.

use std::time::Duration;

use tokio::time::Instant;

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// Long enough for whatever is expected to be told within a short timeout.
const SOON: &str = "300ms";

/// Starts a statement of `client` that holds its backend until the shared lock `key` is free.
async fn hold(client: &mut Client, key: i32) {
    let sql = format!("SELECT 'held' FROM pg_advisory_xact_lock_shared({key})");
    client.send(&messages::query(&sql)).await;
}

/// Waits until `count` of the role's backends run or wait in a statement.
async fn busy(role: &mut shared::Role, count: usize) {
    eventually("backends to be busy", async || {
        role.activity("pid", "state = 'active'").await.len() == count
    })
    .await;
}

fn assert_is_wait_timeout(error: &ServerError) {
    assert_eq!(
        (error.severity.as_str(), error.code.as_str()),
        ("ERROR", "53300")
    );
    assert!(error.message.contains("query_wait_timeout"), "{error:?}");
    assert!(error.detail.is_some() && error.hint.is_some(), "{error:?}");
}

#[tokio::test]
async fn many_clients_share_few_backends_in_transaction_mode() {
    let mut role = shared::role("many_clients").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .start();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(role.client(&pgweir).await);
    }
    for round in 0..3 {
        for client in &mut clients {
            client
                .send(&messages::query(&format!("SELECT {round}")))
                .await;
        }
        for client in &mut clients {
            assert_eq!(client.reply().await.ok().value(), round.to_string());
        }
    }
    assert!(role.pids().await.len() <= 2);
}

#[tokio::test]
async fn a_transaction_keeps_its_backend_and_the_others_wait() {
    let role = shared::role("one_transaction").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut first = role.client(&pgweir).await;
    let mut second = role.client(&pgweir).await;
    assert_eq!(first.query("BEGIN").await.ok().status, 'T');
    let pid = first.value("SELECT pg_backend_pid()").await;
    second
        .send(&messages::query("SELECT pg_backend_pid()"))
        .await;
    assert_eq!(first.value("SELECT pg_backend_pid()").await, pid);
    assert_eq!(first.query("COMMIT").await.ok().status, 'I');
    assert_eq!(second.reply().await.ok().value(), pid);
}

#[tokio::test]
async fn a_session_keeps_its_backend_in_session_mode_and_leaves_it_clean() {
    let mut role = shared::role("session_mode").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.pool_mode", "session")
        .set("timeouts.query_wait_timeout", SOON)
        .start();
    let mut first = role.client(&pgweir).await;
    let pid = first.value("SELECT pg_backend_pid()").await;
    first
        .query("SET work_mem = '123kB'; CREATE TEMP TABLE t (a int); PREPARE p AS SELECT 1")
        .await
        .ok();
    let mut second = role.client(&pgweir).await;
    assert_is_wait_timeout(second.query("SELECT 1").await.error());
    assert_eq!(first.value("EXECUTE p").await, "1");
    first.terminate().await;
    eventually("the backend to be free", async || {
        second.query("SELECT 1").await.errors.is_empty()
    })
    .await;
    assert_eq!(second.value("SELECT pg_backend_pid()").await, pid);
    assert_ne!(second.value("SHOW work_mem").await, "123kB");
    assert_eq!(second.query("TABLE t").await.sqlstate(), "42P01");
    assert_eq!(second.query("EXECUTE p").await.sqlstate(), "26000");
    assert_eq!(role.pids().await, [pid]);
}

#[tokio::test]
async fn statement_mode_gives_the_backend_back_and_refuses_transactions() {
    let role = shared::role("statement_mode").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.pool_mode", "statement")
        .start();
    let mut first = role.client(&pgweir).await;
    let mut second = role.client(&pgweir).await;
    assert_eq!(first.value("SELECT 1").await, "1");
    assert_eq!(second.value("SELECT 2").await, "2");
    first.send(&messages::query("BEGIN")).await;
    let errors = first.expect_end().await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        (errors[0].severity.as_str(), errors[0].code.as_str()),
        ("FATAL", "0A000")
    );
    assert_eq!(second.value("SELECT 3").await, "3");
}

#[tokio::test]
async fn a_statement_that_waits_too_long_is_refused_and_the_session_goes_on() {
    let mut role = shared::role("wait_timeout").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("timeouts.query_wait_timeout", SOON)
        .start();
    let mut lock = shared::direct().await;
    lock.query("SELECT pg_advisory_lock(1001)").await.ok();
    let mut holder = role.client(&pgweir).await;
    hold(&mut holder, 1001).await;
    busy(&mut role, 1).await;

    let mut client = role.client(&pgweir).await;
    let reply = client.query("SELECT 1").await;
    assert_is_wait_timeout(reply.error());
    assert_eq!((reply.order.as_str(), reply.status), ("EZ", 'I'));
    let detail = reply.error().detail.clone().unwrap();
    assert!(detail.contains("1 of 1 connections in use"), "{detail}");

    // In the extended protocol everything up to the Sync is dropped and answered by one error.
    let reply = client.extended("SELECT $1::text", &[Some("x")]).await;
    assert_is_wait_timeout(reply.error());
    assert_eq!((reply.order.as_str(), reply.status), ("EZ", 'I'));

    // Two exchanges and a simple query sent at once get an answer each.
    let exchange = [
        messages::parse("", "SELECT 1", &[]),
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::sync(),
    ]
    .concat();
    client
        .send(&[exchange.clone(), messages::query("SELECT 2"), exchange].concat())
        .await;
    for _ in 0..3 {
        assert_is_wait_timeout(client.reply().await.error());
    }

    lock.query("SELECT pg_advisory_unlock(1001)").await.ok();
    assert_eq!(holder.reply().await.ok().value(), "held");
    assert_eq!(client.value("SELECT 3").await, "3");
    let reply = client.extended("SELECT $1::text", &[Some("x")]).await;
    assert_eq!(reply.ok().value(), "x");
}

#[tokio::test]
async fn the_statement_behind_one_that_waited_in_vain_gets_the_freed_backend() {
    let mut role = shared::role("wait_pipelined").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("timeouts.query_wait_timeout", "1s")
        .start();
    let mut lock = shared::direct().await;
    lock.query("SELECT pg_advisory_lock(1002)").await.ok();
    let mut holder = role.client(&pgweir).await;
    hold(&mut holder, 1002).await;
    busy(&mut role, 1).await;
    let mut client = role.client(&pgweir).await;
    client
        .send(&[messages::query("SELECT 1"), messages::query("SELECT 2")].concat())
        .await;
    assert_is_wait_timeout(client.reply().await.error());
    let since = Instant::now();
    lock.query("SELECT pg_advisory_unlock(1002)").await.ok();
    assert_eq!(client.reply().await.ok().value(), "2");
    // Woken by the backend, not by a timer.
    assert!(since.elapsed() < Duration::from_millis(900));
}

#[tokio::test]
async fn a_client_that_waits_is_told_so() {
    let mut role = shared::role("wait_notify").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("timeouts.query_wait_notify", "100ms")
        .start();
    let mut lock = shared::direct().await;
    lock.query("SELECT pg_advisory_lock(1003)").await.ok();
    let mut holder = role.client(&pgweir).await;
    hold(&mut holder, 1003).await;
    busy(&mut role, 1).await;
    let mut client = role.client(&pgweir).await;
    client.send(&messages::query("SELECT 1")).await;
    let notice = client.read_message().await.unwrap();
    let notice = ServerError::parse(&notice);
    assert_eq!(
        (notice.severity.as_str(), notice.code.as_str()),
        ("NOTICE", "00000")
    );
    lock.query("SELECT pg_advisory_unlock(1003)").await.ok();
    assert_eq!(client.reply().await.ok().value(), "1");
}

#[tokio::test]
async fn waiting_clients_are_served_in_the_order_they_came() {
    let mut role = shared::role("fifo").await;
    role.observe("CREATE TABLE fifo (n serial, client int); SELECT 1")
        .await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut holder = role.client(&pgweir).await;
    holder.query("BEGIN").await.ok();
    let mut console = pgweir.client().await;
    console.query("SELECT 1").await.ok();
    let mut clients = Vec::new();
    for number in 0..10 {
        let mut client = role.client(&pgweir).await;
        let insert = format!("INSERT INTO fifo (client) VALUES ({number})");
        client.send(&messages::query(&insert)).await;
        // A round trip through the one thread of pgweir: the client before has queued by now.
        console.query("SELECT 1").await.ok();
        clients.push(client);
    }
    holder.query("COMMIT").await.ok();
    for client in &mut clients {
        client.reply().await.ok();
    }
    let order = role
        .observe("SELECT string_agg(client::text, ' ' ORDER BY n) FROM fifo")
        .await;
    assert_eq!(order, "0 1 2 3 4 5 6 7 8 9");
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_takes_no_backend_with_it() {
    let mut role = shared::role("leaves_queue").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    let mut holder = role.client(&pgweir).await;
    holder.query("BEGIN").await.ok();
    for _ in 0..5 {
        let mut client = role.client(&pgweir).await;
        client.send(&messages::query("SELECT 1")).await;
        drop(client);
    }
    let mut last = role.client(&pgweir).await;
    last.send(&messages::query("SELECT 'last'")).await;
    holder.query("COMMIT").await.ok();
    assert_eq!(last.reply().await.ok().value(), "last");
    assert_eq!(role.pids().await.len(), 1);
}

/// Makes two roles busy against `pgweir`: the first saturates its cap, then a client of the second wants to be served.
async fn second_pool_is_served(pgweir: &Pgweir, logins: [Login; 2]) {
    let [busy_login, other_login] = logins;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let mut client = pgweir.client_as(&busy_login).await;
        let stop = std::sync::Arc::clone(&stop);
        tasks.push(pgweir::tasks::spawn("busy client", async move {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.query("SELECT pg_sleep(0.005)").await.ok();
                count += 1;
            }
            count
        }));
    }
    let since = Instant::now();
    let mut other = pgweir.client_as(&other_login).await;
    for round in 0..5 {
        let sql = format!("SELECT {round}");
        assert_eq!(other.value(&sql).await, round.to_string());
    }
    let took = since.elapsed();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for task in tasks {
        assert!(task.await.unwrap() > 0, "a client of the busy pool starved");
    }
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_second_pool_is_not_starved_under_the_total_cap() {
    let mut one = shared::role("total_one").await;
    let mut two = shared::role("total_two").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_server_connections", "2")
        .start();
    let logins = [one.name, two.name].map(|name| Login::new(name, "postgres"));
    second_pool_is_served(&pgweir, logins).await;
    assert!(one.pids().await.len() + two.pids().await.len() <= 2);
}

#[tokio::test]
async fn a_second_pool_is_not_starved_under_a_database_cap() {
    let mut one = shared::role("database_one").await;
    let mut two = shared::role("database_two").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_db_connections", "2")
        .start();
    let logins = [one.name, two.name].map(|name| Login::new(name, "postgres"));
    second_pool_is_served(&pgweir, logins).await;
    assert!(one.pids().await.len() + two.pids().await.len() <= 2);
}

#[tokio::test]
async fn a_second_pool_is_not_starved_under_a_user_cap() {
    let mut role = shared::role("user_cap").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_user_connections", "2")
        .start();
    let logins = ["postgres", "template1"].map(|database| Login::new(role.name, database));
    second_pool_is_served(&pgweir, logins).await;
    assert!(role.pids().await.len() <= 2);
}

#[tokio::test]
async fn a_pool_gives_way_only_to_one_that_shares_its_cap() {
    let mut capped = shared::role("gives_way_capped").await;
    let mut free = shared::role("gives_way_free").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_size", "1")
        .set("pool.max_user_connections", "1")
        .start();
    // A client of the capped user's other pool waits for as long as the transaction lasts.
    let mut holder = capped.client(&pgweir).await;
    holder.query("BEGIN").await.ok();
    let other_database = Login::new(capped.name, "template1");
    let starved = pgweir.client_as(&other_database);
    let mut client = free.client(&pgweir).await;
    let pid = client.value("SELECT pg_backend_pid()").await;
    let until = Instant::now() + Duration::from_millis(300);
    let mut pids = vec![pid.clone()];
    let mut starved = std::pin::pin!(starved);
    while Instant::now() < until {
        tokio::select! {
            biased;
            _ = &mut starved => panic!("the cap of one was exceeded"),
            pid = client.value("SELECT pg_backend_pid()") => pids.push(pid),
        }
    }
    pids.dedup();
    assert_eq!(pids, [pid.as_str()]);
    holder.query("COMMIT").await.ok();
    assert_eq!(starved.await.value("SELECT 1").await, "1");
    assert_eq!((capped.pids().await.len(), free.pids().await.len()), (1, 1));
}

#[tokio::test]
async fn the_cap_that_is_reached_is_named() {
    let one = shared::role("named_cap").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_server_connections", "1")
        .set("timeouts.query_wait_timeout", SOON)
        .start();
    let mut holder = one.client(&pgweir).await;
    holder.query("BEGIN").await.ok();
    let mut second = one.client(&pgweir).await;
    let reply = second.query("SELECT 1").await;
    assert_is_wait_timeout(reply.error());
    let detail = reply.error().detail.clone().unwrap();
    assert!(detail.contains("max_server_connections"), "{detail}");
}

#[tokio::test]
async fn the_reserve_opens_after_its_timeout() {
    let mut role = shared::role("reserve").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.reserve_size", "1")
        .set("pool.reserve_timeout", SOON)
        .start();
    let mut holder = role.client(&pgweir).await;
    holder.query("BEGIN").await.ok();
    let mut client = role.client(&pgweir).await;
    let since = Instant::now();
    assert_eq!(client.value("SELECT 1").await, "1");
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert_eq!(role.pids().await.len(), 2);
}

#[tokio::test]
async fn idle_connections_are_kept_at_their_minimum() {
    let mut role = shared::role("min_idle").await;
    let pgweir = Options::new(shared::server())
        .set("pool.min_idle", "3")
        .set("timeouts.server_idle_timeout", "1s")
        .start();
    let mut clients = vec![role.client(&pgweir).await];
    eventually("three idle connections", async || {
        role.pids().await.len() == 3
    })
    .await;
    // Five at once, of which the two above the minimum go again.
    for _ in 0..4 {
        clients.push(role.client(&pgweir).await);
    }
    for client in &mut clients {
        client.query("BEGIN").await.ok();
    }
    assert_eq!(role.pids().await.len(), 5);
    for client in &mut clients {
        client.query("COMMIT").await.ok();
    }
    eventually("the extra connections to go", async || {
        role.pids().await.len() == 3
    })
    .await;
}

#[tokio::test]
async fn idle_connections_are_closed_after_their_timeout() {
    let mut role = shared::role("idle_timeout").await;
    let pgweir = Options::new(shared::server())
        .set("timeouts.server_idle_timeout", SOON)
        .start();
    let mut client = role.client(&pgweir).await;
    let pid = client.value("SELECT pg_backend_pid()").await;
    eventually("the idle connection to go", async || {
        role.pids().await.is_empty()
    })
    .await;
    assert_ne!(client.value("SELECT pg_backend_pid()").await, pid);
}

#[tokio::test]
async fn connections_are_replaced_at_the_end_of_their_lifetime() {
    let role = shared::role("lifetime").await;
    let pgweir = Options::new(shared::server())
        .set("timeouts.server_lifetime", SOON)
        .start();
    let mut client = role.client(&pgweir).await;
    // A transaction outlives it; the connection is closed when it is given back.
    client.query("BEGIN").await.ok();
    let pid = client.value("SELECT pg_backend_pid()").await;
    client.query("SELECT pg_sleep(0.4)").await.ok();
    assert_eq!(client.value("SELECT pg_backend_pid()").await, pid);
    client.query("COMMIT").await.ok();
    assert_ne!(client.value("SELECT pg_backend_pid()").await, pid);
}
