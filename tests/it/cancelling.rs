//! Cancel requests reach the statement they are meant for, or nothing.

use std::time::Duration;

use crate::shared::{self, Role};
use crate::support::client::{Client, Login, cancel};
use crate::support::messages::{PROTOCOL_3_2, execute, flush, parse, query, sync};
use crate::support::messages::{bind, copy_data};
use crate::support::pgweir::{Options, Pgweir, SILENCE};
use crate::support::wait::eventually;

const SLEEP: &str = "SELECT 'slept' FROM pg_sleep(600)";

async fn one_backend(name: &'static str) -> (Role, Pgweir) {
    let role = shared::role(name).await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .start();
    (role, pgweir)
}

/// Waits until one of the role's backends sleeps.
async fn asleep(role: &mut Role) {
    eventually("the statement to run", async || {
        role.activity("pid", "wait_event = 'PgSleep'").await.len() == 1
    })
    .await;
}

#[tokio::test]
async fn a_running_statement_is_canceled_and_its_session_goes_on() {
    let (mut role, pgweir) = one_backend("cancel_running").await;
    for protocol in [0x0003_0000, PROTOCOL_3_2] {
        let login = Login::new(role.name, "postgres").protocol(protocol);
        let mut client = pgweir.client_as(&login).await;
        client.send(&query(SLEEP)).await;
        asleep(&mut role).await;
        cancel(pgweir.address, &client.key).await;
        let reply = client.reply().await;
        assert_eq!(reply.sqlstate(), "57014");
        assert_eq!(
            reply.error().message,
            "canceling statement due to user request"
        );
        assert_eq!(client.value("SELECT 1").await, "1");
        // In a transaction, which fails as it does with PostgreSQL; and in the extended protocol.
        client.query("BEGIN").await.ok();
        let batch = [
            parse("", SLEEP, &[]),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ];
        client.send(&batch.concat()).await;
        asleep(&mut role).await;
        cancel(pgweir.address, &client.key).await;
        let reply = client.reply().await;
        assert_eq!((reply.sqlstate(), reply.status), ("57014", 'E'));
        client.query("ROLLBACK").await.ok();
        client.terminate().await;
    }
    assert_eq!(role.pids().await.len(), 1);
}

#[tokio::test]
async fn a_queued_statement_is_canceled_and_its_session_goes_on() {
    let (mut role, pgweir) = one_backend("cancel_queued").await;
    let mut holder = role.client(&pgweir).await;
    holder.send(&query(SLEEP)).await;
    asleep(&mut role).await;
    let mut queued = role.client(&pgweir).await;
    queued.send(&query("SELECT 'never'")).await;
    let mut behind = role.client(&pgweir).await;
    behind.send(&query("SELECT 'behind'")).await;
    // It may not have queued yet, in which case the request finds nothing.
    let reply = loop {
        cancel(pgweir.address, &queued.key).await;
        if let Ok(reply) = tokio::time::timeout(SILENCE, queued.reply()).await {
            break reply;
        }
    };
    assert_eq!((reply.order.as_str(), reply.sqlstate()), ("EZ", "57014"));
    assert_eq!(
        reply.error().message,
        "canceling statement due to user request"
    );
    // The one that runs was not meant.
    assert_eq!(
        role.activity("pid", "wait_event = 'PgSleep'").await.len(),
        1
    );
    queued.send(&query("SELECT 'later'")).await;
    cancel(pgweir.address, &holder.key).await;
    assert_eq!(holder.reply().await.sqlstate(), "57014");
    assert_eq!(behind.reply().await.ok().value(), "behind");
    assert_eq!(queued.reply().await.ok().value(), "later");
}

#[tokio::test]
async fn a_cancel_request_of_an_idle_client_does_nothing_to_anybody() {
    let (mut role, pgweir) = one_backend("cancel_idle").await;
    let mut idle = role.client(&pgweir).await;
    let mut busy = role.client(&pgweir).await;
    assert_eq!(idle.value("SELECT 1").await, "1");
    busy.send(&query("SELECT 'done' FROM pg_sleep(0.3)")).await;
    asleep(&mut role).await;
    for _ in 0..5 {
        cancel(pgweir.address, &idle.key).await;
    }
    assert_eq!(busy.reply().await.ok().value(), "done");
    for _ in 0..20 {
        cancel(pgweir.address, &idle.key).await;
        assert_eq!(idle.value("SELECT 2").await, "2");
        assert_eq!(busy.value("SELECT 3").await, "3");
    }
    // Idle in a transaction: as with PostgreSQL, the next statement runs.
    idle.query("BEGIN").await.ok();
    cancel(pgweir.address, &idle.key).await;
    assert_eq!(idle.value("SELECT 4").await, "4");
}

#[tokio::test]
async fn a_wrong_key_cancels_nothing() {
    let (mut role, pgweir) = one_backend("cancel_wrong").await;
    let login = Login::new(role.name, "postgres").protocol(PROTOCOL_3_2);
    let mut client = pgweir.client_as(&login).await;
    let mut other = role.client(&pgweir).await;
    client
        .send(&query("SELECT 'slept' FROM pg_sleep(0.5)"))
        .await;
    asleep(&mut role).await;
    let mut wrong = client.key.clone();
    *wrong.last_mut().unwrap() ^= 1;
    cancel(pgweir.address, &wrong).await;
    // The beginning of a long key, the backend's own number, another client's number with this one's key.
    cancel(pgweir.address, &client.key[..8]).await;
    let pid: u32 = role.pids().await[0].parse().unwrap();
    cancel(
        pgweir.address,
        &[&pid.to_be_bytes()[..], &client.key[4..]].concat(),
    )
    .await;
    cancel(
        pgweir.address,
        &[&other.key[..4], &client.key[4..]].concat(),
    )
    .await;
    cancel(pgweir.address, &[0; 8]).await;
    assert_eq!(client.reply().await.ok().value(), "slept");
    assert_eq!(other.value("SELECT 1").await, "1");
}

/// The request may come before, during or after the end of its statement; the clients that share the backend ask for
/// what must not be cancelled.
#[tokio::test]
async fn a_cancel_that_comes_late_hits_nobody_elses_statement() {
    let (role, pgweir) = one_backend("cancel_race").await;
    let mut victims = Vec::new();
    for _ in 0..4 {
        let mut client = role.client(&pgweir).await;
        victims.push(pgweir::tasks::spawn("victim", async move {
            for round in 0..200 {
                let reply = client.query(&format!("SELECT {round}")).await;
                assert_eq!(reply.ok().value(), round.to_string());
            }
        }));
    }
    let mut racer = role.client(&pgweir).await;
    let mut hits = 0;
    while !victims.iter().all(tokio::task::JoinHandle::is_finished) {
        racer
            .send(&query("SELECT 'race' FROM pg_sleep(0.001)"))
            .await;
        cancel(pgweir.address, &racer.key).await;
        let reply = racer.reply().await;
        if reply.errors.is_empty() {
            assert_eq!(reply.value(), "race");
        } else {
            assert_eq!(reply.sqlstate(), "57014");
            hits += 1;
        }
    }
    for victim in victims {
        victim.await.unwrap();
    }
    assert!(hits > 0, "no cancel request found its statement");
}

/// A cancel request while the backend is brought to the session's settings must not leave the statement without them.
#[tokio::test]
async fn a_cancel_never_has_a_statement_run_with_anothers_settings() {
    let (role, pgweir) = one_backend("cancel_plan").await;
    let mut one = role.client(&pgweir).await;
    let mut two = role.client(&pgweir).await;
    one.query("SET my.tenant = 'one'").await.ok();
    two.query("SET my.tenant = 'two'").await.ok();
    for _ in 0..150 {
        one.send(&query("SHOW my.tenant")).await;
        cancel(pgweir.address, &one.key).await;
        let reply = one.reply().await;
        if reply.errors.is_empty() {
            assert_eq!(reply.value(), "one");
        } else {
            assert_eq!(reply.sqlstate(), "57014");
        }
        assert_eq!(two.value("SHOW my.tenant").await, "two");
    }
}

#[tokio::test]
async fn the_statement_of_a_client_that_hangs_up_is_canceled() {
    let (mut role, pgweir) = one_backend("cancel_gone").await;
    let extended = [
        parse("", SLEEP, &[]),
        bind("", "", &[]),
        execute("", 0),
        flush(),
    ]
    .concat();
    let in_transaction = query(&format!("BEGIN; {SLEEP}"));
    for bytes in [query(SLEEP), extended, in_transaction] {
        let mut client = role.client(&pgweir).await;
        client.send(&bytes).await;
        asleep(&mut role).await;
        let pid = role.pids().await;
        drop(client);
        let mut next = role.client(&pgweir).await;
        assert_eq!(next.value("SELECT 1").await, "1");
        assert_eq!(
            next.query("SELECT txid_current_if_assigned()").await.status,
            'I'
        );
        assert_eq!(role.pids().await, pid);
        assert_eq!(role.activity("pid", "state <> 'idle'").await, [""; 0]);
    }
}

#[tokio::test]
async fn a_copy_is_canceled() {
    let (mut role, pgweir) = one_backend("cancel_copy").await;
    role.observe("CREATE TABLE cancel_copy (a text); SELECT 1")
        .await;
    let mut client = role.client(&pgweir).await;
    client
        .send(&query(
            "COPY (SELECT repeat('x', 10000), pg_sleep(0.01) FROM generate_series(1, 100000)) TO STDOUT",
        ))
        .await;
    client.expect(b'H').await;
    cancel(pgweir.address, &client.key).await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
    // A COPY that waits for data is canceled once data comes, as with PostgreSQL.
    client.send(&query("COPY cancel_copy FROM STDIN")).await;
    client.expect(b'G').await;
    cancel(pgweir.address, &client.key).await;
    client.send(&copy_data(&b"x\n".repeat(20_000))).await;
    let mut errors = Vec::new();
    loop {
        let message = client.message().await;
        match message.tag {
            b'E' => errors.push(crate::support::messages::ServerError::parse(&message)),
            b'Z' => break,
            _ => {}
        }
    }
    assert_eq!(errors[0].code, "57014", "{errors:?}");
    assert_eq!(client.value("SELECT count(*) FROM cancel_copy").await, "0");
}

#[tokio::test]
async fn cancel_requests_under_load_are_quick() {
    let (mut role, pgweir) = one_backend("cancel_quick").await;
    let mut client = role.client(&pgweir).await;
    client.send(&query(SLEEP)).await;
    asleep(&mut role).await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut queued = role.client(&pgweir).await;
        queued.send(&query("SELECT 1")).await;
        waiting.push(queued);
    }
    let since = tokio::time::Instant::now();
    cancel(pgweir.address, &client.key).await;
    assert_eq!(client.reply().await.sqlstate(), "57014");
    for queued in &mut waiting {
        assert_eq!(Client::reply(queued).await.ok().value(), "1");
    }
    assert!(since.elapsed() < Duration::from_secs(5));
}
