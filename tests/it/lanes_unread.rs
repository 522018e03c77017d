//! A client that does not read what it rides for: it keeps nobody else from being answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::support::client::{Client, Login};
use crate::support::messages::{self, query};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

/// More than a statement needs to be known as short.
const WARM: usize = 24;
/// More than sockets and buffers hold.
const LONG: usize = 16 * 1024 * 1024;
/// How long the server waits for a request behind one whose answer is long. Less than a lane waits for an answer.
const BEHIND: Duration = Duration::from_millis(10);

/// What the server has seen.
#[derive(Default)]
struct Seen {
    held: AtomicUsize,
    /// Long answers begun.
    long: AtomicUsize,
    /// Those of them with a request behind them.
    before_another: AtomicUsize,
}

/// A statement of some kind, short until its parameter says otherwise.
fn text(kind: usize, wants: &str) -> String {
    format!("SELECT b FROM t{kind} WHERE a = '{wants}'")
}

fn wanted(sql: &str) -> &str {
    sql.split(" WHERE a = ")
        .nth(1)
        .unwrap_or_default()
        .trim_matches('\'')
}

async fn serve(mut connection: BackendConnection, seen: Arc<Seen>) {
    let mut next = None;
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => match connection.read_message().await {
                Some(message) => message,
                None => return,
            },
        };
        let sql = message.strings().concat();
        match wanted(&sql) {
            "hold" => {
                seen.held.fetch_add(1, Ordering::SeqCst);
                connection.expect_end().await;
                return;
            }
            "long" => {
                next = timeout(BEHIND, connection.read_message())
                    .await
                    .ok()
                    .flatten();
                if next.is_some() {
                    seen.before_another.fetch_add(1, Ordering::SeqCst);
                }
                seen.long.fetch_add(1, Ordering::SeqCst);
                let answer = messages::one_value_reply(&"x".repeat(LONG));
                connection.send(&answer).await;
            }
            other => {
                connection.send(&messages::one_value_reply(other)).await;
            }
        }
    }
}

async fn client(pgweir: &Pgweir) -> Client {
    pgweir.client_as(&Login::new("postgres", "d")).await
}

/// Has a kind of statement be known as short.
async fn warm(client: &mut Client, kind: usize) {
    for of in 0..WARM {
        let token = format!("warm-{of}");
        assert_eq!(client.value(&text(kind, &token)).await, token);
    }
}

/// With a short statement under way past the lane, so that the next one rides, and a client for others.
async fn busy(seen: &Arc<Seen>) -> (ScriptedBackend, Pgweir, [Client; 2]) {
    let served = Arc::clone(seen);
    let backend =
        ScriptedBackend::start_with(move |connection| serve(connection, Arc::clone(&served))).await;
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "8")
        .set("pool.lanes", "1")
        .start();
    let mut first = client(&pgweir).await;
    warm(&mut first, 0).await;
    first.send(&query(&text(0, "hold"))).await;
    eventually("it to be under way", async || {
        seen.held.load(Ordering::SeqCst) == 1
    })
    .await;
    let other = client(&pgweir).await;
    (backend, pgweir, [first, other])
}

fn ridden(pgweir: &Pgweir) -> f64 {
    let series =
        "pgweir_lane_statements_total{database=\"d\",user=\"postgres\",outcome=\"answered\"} ";
    pgweir.metric(series).unwrap_or_default()
}

#[tokio::test]
async fn who_comes_behind_an_answer_that_is_not_read_is_answered() {
    let seen = Arc::new(Seen::default());
    let (_backend, pgweir, [_first, mut other]) = busy(&seen).await;
    let mut kind = 0;
    eventually("a long answer on the lane", async || {
        kind += 1;
        warm(&mut other, kind).await;
        let mut slow = client(&pgweir).await;
        slow.send(&query(&text(kind, "long"))).await;
        eventually("the answer to come", async || {
            seen.long.load(Ordering::SeqCst) == kind
        })
        .await;
        let before = ridden(&pgweir);
        warm(&mut other, kind).await;
        let amid = ridden(&pgweir);
        assert!(slow.reply().await.ok().value().len() == LONG);
        amid <= before && ridden(&pgweir) > amid
    })
    .await;
}

#[tokio::test]
async fn who_rides_behind_an_answer_that_is_not_read_is_answered() {
    let seen = Arc::new(Seen::default());
    let (_backend, pgweir, [_first, mut other]) = busy(&seen).await;
    let mut kind = 0;
    eventually("one to ride behind another", async || {
        kind += 1;
        warm(&mut other, kind).await;
        let mut slow = client(&pgweir).await;
        slow.send(&query(&text(kind, "long"))).await;
        other.send(&query(&text(kind, "other"))).await;
        assert_eq!(other.reply().await.ok().value(), "other");
        // It gets its own answer whatever became of those behind it.
        assert!(slow.reply().await.ok().value().len() == LONG);
        seen.before_another.load(Ordering::SeqCst) > 0
    })
    .await;
}
