//! LISTEN in transaction mode, carried by one server connection for all clients of a database.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::shared;
use crate::support::client::{Client, Login, Reply};
use crate::support::messages::{self, bind, execute, parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};
use crate::support::wait::eventually;

/// A database of one test: notifications go no further.
pub(super) async fn database(name: &str) -> String {
    let mut direct = shared::direct().await;
    direct.query(&format!("CREATE DATABASE {name}")).await.ok();
    name.to_owned()
}

pub(super) async fn client(pgweir: &Pgweir, database: &str) -> Client {
    pgweir.client_as(&Login::new("postgres", database)).await
}

pub(super) async fn direct(database: &str) -> Client {
    Client::connect(shared::server().address(), "postgres", database).await
}

pub(super) fn note(channel: &str, payload: &str) -> (String, String) {
    (channel.to_owned(), payload.to_owned())
}

/// What came so far.
pub(super) fn heard(client: &mut Client) -> Vec<(String, String)> {
    client.notifications.drain(..).collect()
}

/// How many sessions are pinned.
pub(super) async fn pinned(pgweir: &Pgweir) -> usize {
    let mut console = pgweir.console().await;
    console.query("SHOW PINS").await.ok().rows.len()
}

/// Backends of a database, by what they are.
async fn backends(database: &str, condition: &str) -> String {
    let mut direct = shared::direct().await;
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND {condition}"
    );
    direct.value(&sql).await
}

const LISTENERS: &str = "application_name = 'pgweir listener'";

#[tokio::test]
async fn ten_clients_on_two_server_connections_listen_and_hear_each_other() {
    let database = database("listening_ten").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .set("pool.on_session_state", "reject")
        .start();
    let mut clients = Vec::new();
    for of in 0..10 {
        let mut one = client(&pgweir, &database).await;
        one.query(&format!("LISTEN everybody; LISTEN only_{of}"))
            .await
            .ok();
        clients.push(one);
    }
    let mut sender = client(&pgweir, &database).await;
    sender
        .query("BEGIN; NOTIFY everybody, '1'; NOTIFY only_3; NOTIFY everybody, '2'; COMMIT")
        .await
        .ok();
    for (of, one) in clients.iter_mut().enumerate() {
        assert_eq!(one.notification().await, note("everybody", "1"));
        if of == 3 {
            assert_eq!(one.notification().await, note("only_3", ""));
        }
        assert_eq!(one.notification().await, note("everybody", "2"));
    }
    assert_eq!(backends(&database, LISTENERS).await, "1");
    let mut console = pgweir.console().await;
    assert_eq!(console.query("SHOW PINS").await.ok().rows.len(), 0);
    assert_eq!(
        clients[4]
            .value("SELECT string_agg(c, ',' ORDER BY c) FROM pg_listening_channels() c")
            .await,
        "everybody,only_4"
    );
    // None of the connections that run statements has been left listening.
    let left = sender
        .value("SELECT count(*) FROM pg_listening_channels()")
        .await;
    assert_eq!(left, "0");
    let prepared = clients[5]
        .extended("SELECT count(*) FROM pg_listening_channels()", &[])
        .await;
    assert_eq!(prepared.ok().value(), "2");
    clients[5].query("BEGIN").await.ok();
    let within = "SELECT * FROM pg_listening_channels()";
    assert_eq!(clients[5].query(within).await.sqlstate(), "0A000");
    drop(clients);
    eventually("the listener to go", async || {
        backends(&database, LISTENERS).await == "0"
    })
    .await;
}

#[tokio::test]
async fn ones_own_notification_is_there_before_the_server_is_ready() {
    let database = database("listening_own").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    for round in 0..50 {
        one.query("LISTEN a").await.ok();
        one.query(&format!("NOTIFY a, '{round}'")).await.ok();
        assert_eq!(heard(&mut one), [note("a", &round.to_string())]);
        one.query("BEGIN").await.ok();
        one.query("LISTEN b").await.ok();
        one.query(&format!(
            "SELECT pg_notify('b', '{round}'), pg_notify('a', 'b')"
        ))
        .await
        .ok();
        assert_eq!(heard(&mut one), []);
        one.query("COMMIT").await.ok();
        assert_eq!(
            heard(&mut one),
            [note("b", &round.to_string()), note("a", "b")]
        );
        one.extended("NOTIFY b, 'extended'", &[]).await.ok();
        assert_eq!(heard(&mut one), [note("b", "extended")]);
        one.query("UNLISTEN *; NOTIFY a, 'nobody'").await.ok();
        assert_eq!(heard(&mut one), []);
        one.extended("LISTEN c", &[]).await.ok();
        one.query("NOTIFY a, 'nobody'; NOTIFY c, 'somebody'")
            .await
            .ok();
        assert_eq!(heard(&mut one), [note("c", "somebody")]);
        one.query("DISCARD ALL").await.ok();
        one.query("NOTIFY c, 'nobody'").await.ok();
        assert_eq!(heard(&mut one), []);
    }
}

/// What one client does next.
#[derive(Debug)]
enum Step {
    Simple(String),
    Extended(String),
    /// Two statements in one exchange.
    Together(String, String),
    /// Two exchanges sent at once.
    Ahead(String, String),
}

fn text(random: &mut StdRng, next: &mut u32) -> String {
    let channel = ["a", "b", "\"C d\"\"\"", "d"][random.random_range(0..4usize)];
    let name = ["s", "t"][random.random_range(0..2usize)];
    *next += 1;
    match random.random_range(0..26) {
        0..=3 => format!("LISTEN {channel}"),
        4 => format!("UNLISTEN {channel}"),
        5 => "UNLISTEN *".to_owned(),
        6..=9 => format!("NOTIFY {channel}, '{next}'"),
        10 => format!("SELECT pg_notify('a', '{next}')"),
        11 => format!("DO $$ BEGIN PERFORM pg_notify('b', '{next}'); END $$"),
        12..=14 => "BEGIN".to_owned(),
        15 | 16 => "COMMIT".to_owned(),
        17 => "ROLLBACK".to_owned(),
        18 => format!("SAVEPOINT {name}"),
        19 => format!("ROLLBACK TO {name}"),
        20 => format!("RELEASE {name}"),
        21 => "SELECT 1/0".to_owned(),
        22 => "COMMIT AND CHAIN".to_owned(),
        23 => "DISCARD ALL".to_owned(),
        24 => "SELECT count(*) FROM pg_class WHERE false".to_owned(),
        _ => "SET application_name = 'listens'".to_owned(),
    }
}

fn step(random: &mut StdRng, next: &mut u32) -> Step {
    let mut one = || text(random, next);
    let (first, second, third) = (one(), one(), one());
    // What the first transaction of a text has sent is heard by a LISTEN in the next one: its place in the text is not the
    // listener's to see.
    let ends = |text: &str| text.starts_with("COMMIT") || text.starts_with("ROLLBACK");
    if (ends(&first) && (second.starts_with("LISTEN") || third.starts_with("LISTEN")))
        || (ends(&second) && third.starts_with("LISTEN"))
    {
        return Step::Together(first, second);
    }
    match random.random_range(0..10) {
        0..=3 => Step::Simple(first),
        4 => Step::Simple(format!("{first}; {second}")),
        5 => Step::Simple(format!("{first}; {second}; {third}")),
        6 | 7 => Step::Extended(first),
        8 => Step::Together(first, second),
        _ => Step::Ahead(first, second),
    }
}

fn batch(sql: &str) -> Vec<u8> {
    [parse("", sql, &[]), bind("", "", &[]), execute("", 0)].concat()
}

/// What a client sees of a step, notifications in their place between the exchanges.
#[derive(Debug, PartialEq)]
struct Seen {
    order: String,
    tags: Vec<String>,
    errors: Vec<String>,
    status: char,
    heard: Vec<(String, String)>,
}

impl Seen {
    fn of(reply: Reply, client: &mut Client) -> Self {
        Self {
            order: reply.order,
            tags: reply.tags,
            errors: reply.errors.into_iter().map(|error| error.code).collect(),
            status: reply.status,
            heard: heard(client),
        }
    }
}

async fn take(client: &mut Client, step: &Step) -> Vec<Seen> {
    let (bytes, exchanges) = match step {
        Step::Simple(sql) => (query(sql), 1),
        Step::Extended(sql) => ([batch(sql), sync()].concat(), 1),
        Step::Together(one, two) => ([batch(one), batch(two), sync()].concat(), 1),
        Step::Ahead(one, two) => ([query(one), batch(two), sync()].concat(), 2),
    };
    client.send(&bytes).await;
    let mut seen = Vec::new();
    for _ in 0..exchanges {
        let reply = client.reply().await;
        seen.push(Seen::of(reply, client));
    }
    seen
}

/// One client through pgweir and one past it, which do the same.
struct Pair {
    through: Client,
    past: Client,
    /// What was said and heard since they were last idle, unless that was in one step outside transactions.
    said: String,
    heard: [Vec<(String, String)>; 2],
}

async fn channels(client: &mut Client) -> Vec<String> {
    let reply = client.query("SELECT pg_listening_channels() ORDER BY 1");
    reply.await.ok().column()
}

impl Pair {
    /// Takes a step with both and compares what they see, each notification in its exchange; of transactions, at their
    /// end.
    ///
    /// A notification that comes just when a transaction begins is sent before or behind it. And a backend that listens on
    /// something and is kept from reading by a transaction reads what is older than a `LISTEN` in it, too: what the server
    /// would not have sent to a backend that had read in time may be missing.
    async fn step(&mut self, step: &Step, story: &str) {
        let mut seen = take(&mut self.through, step).await;
        let mut expected = take(&mut self.past, step).await;
        let is_apart = self.said.is_empty() && expected.iter().all(|one| one.status == 'I');
        if !is_apart {
            let _ = match step {
                Step::Simple(one) | Step::Extended(one) => write!(self.said, "{one};"),
                Step::Together(one, two) | Step::Ahead(one, two) => {
                    write!(self.said, "{one};{two};")
                }
            };
            for one in &mut seen {
                self.heard[0].append(&mut one.heard);
            }
            for one in &mut expected {
                self.heard[1].append(&mut one.heard);
            }
        }
        assert_eq!(seen, expected, "{story}");
        if expected.last().is_some_and(|last| last.status == 'I') {
            let listened = channels(&mut self.past).await;
            assert_eq!(channels(&mut self.through).await, listened, "{story}");
            assert_eq!(heard(&mut self.through), [], "{story}");
            self.compare_transaction(story);
        }
    }

    fn compare_transaction(&mut self, story: &str) {
        let said = std::mem::take(&mut self.said).replace("UNLISTEN", "");
        let [seen, mut expected] = std::mem::take(&mut self.heard);
        let is_new = |name: &str| {
            let spelled = if name == "C d\"" { "\"C d\"\"\"" } else { name };
            said.contains(&format!("LISTEN {spelled}"))
        };
        let mut there = seen.clone();
        expected.retain(|one| {
            let place = there.iter().position(|other| other == one);
            place.map(|place| there.remove(place)).is_some() || !is_new(&one.0)
        });
        assert_eq!(seen, expected, "{story}");
    }
}

/// Random dialogues of several clients, of which each answer and the place of each notification must be the same as on
/// connections of their own. `PGWEIR_SEED=NUMBER` repeats one, `PGWEIR_ROUNDS` makes it longer.
#[tokio::test]
async fn random_dialogues_hear_what_they_hear_on_connections_of_their_own() {
    let through = database("listening_model").await;
    let past = database("listening_model_direct").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "6")
        .start();
    let environment = |name| {
        let value: Option<String> = std::env::var(name).ok();
        value.and_then(|value| value.parse().ok())
    };
    let seed = environment("PGWEIR_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let rounds = environment("PGWEIR_ROUNDS").unwrap_or(8);
    for seed in seed..seed + rounds {
        eprintln!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut pairs = Vec::new();
        for _ in 0..4 {
            pairs.push(Pair {
                through: client(&pgweir, &through).await,
                past: direct(&past).await,
                said: String::new(),
                heard: [Vec::new(), Vec::new()],
            });
        }
        let (mut next, mut story) = (0, format!("seed {seed}"));
        for _ in 0..150 {
            let of = random.random_range(0..pairs.len());
            let step = step(&mut random, &mut next);
            let _ = write!(story, "\n{of}: {step:?}");
            pairs[of].step(&step, &story).await;
        }
        let last = Step::Simple("ROLLBACK".to_owned());
        for pair in &mut pairs {
            pair.step(&last, &story).await;
        }
    }
}

#[tokio::test]
async fn a_listener_that_is_killed_is_replaced_and_its_clients_are_told() {
    let database = database("listening_killed").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    let mut sender = direct(&database).await;
    one.query("LISTEN a").await.ok();
    for round in 0..3 {
        let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND ";
        let killed = sender.value(&format!("{killed}{LISTENERS}")).await;
        assert_eq!(killed, "1");
        let message = one.notice().await;
        assert_eq!(
            message.message, "notifications may have been missed",
            "round {round}"
        );
        assert_eq!(message.severity, "NOTICE");
        sender.query(&format!("NOTIFY a, '{round}'")).await.ok();
        assert_eq!(one.notification().await, note("a", &round.to_string()));
    }
    assert_eq!(one.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn where_there_is_no_connection_to_listen_on_listen_pins() {
    let database = database("listening_capped").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_server_connections", "1")
        .start();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    let mut console = pgweir.console().await;
    assert_eq!(console.query("SHOW PINS").await.ok().rows.len(), 1);
    one.query("NOTIFY a, 'own'").await.ok();
    assert_eq!(heard(&mut one), [note("a", "own")]);
    direct(&database)
        .await
        .query("NOTIFY a, 'other'")
        .await
        .ok();
    assert_eq!(one.notification().await, note("a", "other"));
    one.query("UNLISTEN a").await.ok();
    let mut two = client(&pgweir, &database).await;
    assert_eq!(two.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn the_setting_gives_each_listening_client_its_own_server_connection() {
    let database = database("listening_off").await;
    let pgweir = Options::new(shared::server())
        .set("pool.shared_listener", "false")
        .start();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    assert_eq!(backends(&database, LISTENERS).await, "0");
    let mut console = pgweir.console().await;
    assert_eq!(console.query("SHOW PINS").await.ok().rows.len(), 1);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_and_the_others_hear_on() {
    let database = database("listening_slow").await;
    let pgweir = Options::new(shared::server()).start();
    let mut slow = client(&pgweir, &database).await;
    let mut quick = client(&pgweir, &database).await;
    slow.query("LISTEN a").await.ok();
    quick.query("LISTEN a").await.ok();
    let mut sender = direct(&database).await;
    // In a transaction nothing is sent to it.
    slow.query("BEGIN").await.ok();
    let mut sent = 0;
    while !pgweir.log_contains("does not take its notifications") {
        sent += 1;
        assert!(sent <= 3000, "8 MB are long full");
        let payload = "x".repeat(7900);
        sender
            .query(&format!("NOTIFY a, '{sent}{payload}'"))
            .await
            .ok();
        let (_, heard) = quick.notification().await;
        assert_eq!(heard, format!("{sent}{payload}"));
    }
    let errors = slow.expect_end().await;
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].code, "53400");
    assert_eq!(
        errors[0].message,
        "terminating connection because it does not take its notifications"
    );
}

#[tokio::test]
async fn payloads_come_in_the_encoding_of_each_client() {
    let database = database("listening_encodings").await;
    let pgweir = Options::new(shared::server()).start();
    let mut utf8 = client(&pgweir, &database).await;
    let login = Login::new("postgres", &database).with("client_encoding", "latin1");
    let mut latin1 = pgweir.client_as(&login).await;
    let is_told = |one: &mut Client, bytes: &[u8]| {
        let (_, payload) = one.notifications.pop_front().unwrap();
        assert_eq!(payload, String::from_utf8_lossy(bytes));
    };
    utf8.query("LISTEN a").await.ok();
    latin1.query("LISTEN a").await.ok();
    utf8.query("NOTIFY a, 'é'").await.ok();
    is_told(&mut utf8, "é".as_bytes());
    latin1.query("SELECT 1").await.ok();
    is_told(&mut latin1, b"\xe9");
    // Whoever changes the encoding changes the listener.
    utf8.query("SET client_encoding = latin1").await.ok();
    assert_eq!(utf8.value("SELECT 1").await, "1");
    assert_eq!(utf8.notices.len(), 1);
    assert_eq!(
        utf8.notices[0].message,
        "notifications may have been missed"
    );
    latin1.query("SELECT pg_notify('a', chr(232))").await.ok();
    utf8.query("SELECT 1").await.ok();
    is_told(&mut utf8, b"\xe8");
}

#[tokio::test]
async fn pausing_closes_the_listener_and_resuming_brings_it_back() {
    let database = database("listening_paused").await;
    let pgweir = Options::new(shared::server()).start();
    let mut one = client(&pgweir, &database).await;
    one.query("LISTEN a").await.ok();
    let mut console = pgweir.console().await;
    let servers = console.query("SHOW SERVERS").await.ok();
    let states: Vec<_> = servers
        .rows
        .iter()
        .filter(|row| row[2].as_deref() == Some(&*database))
        .map(|row| row[4].clone().unwrap_or_default())
        .collect();
    assert!(states.contains(&"listening".to_owned()), "{servers:?}");
    console.query("PAUSE").await.ok();
    eventually("all server connections to be closed", async || {
        backends(&database, "true").await == "0"
    })
    .await;
    console.query("RESUME").await.ok();
    assert_eq!(
        one.notice().await.message,
        "notifications may have been missed"
    );
    direct(&database).await.query("NOTIFY a, 'x'").await.ok();
    assert_eq!(one.notification().await, note("a", "x"));
    console.query("RECONNECT").await.ok();
    assert_eq!(
        one.notice().await.message,
        "notifications may have been missed"
    );
    direct(&database).await.query("NOTIFY a, 'y'").await.ok();
    assert_eq!(one.notification().await, note("a", "y"));
}

/// Answers every query; the connection that listens, late, and saying something in between.
async fn answer_listen(mut connection: BackendConnection, listens: Arc<AtomicBool>) {
    let heard =
        |payload: &str| messages::frame(b'A', format!("\0\0\0\x07a\0{payload}\0").as_bytes());
    let name = connection.startup.get("application_name");
    let is_listener = name.map(String::as_str) == Some("pgweir listener");
    while let Some(message) = connection.read_message().await {
        let sql = message.strings().concat();
        let mut answer = match &*sql {
            // The shared listener says it, too.
            "LISTEN a" => {
                assert!(listens.load(Ordering::SeqCst), "sent too early");
                heard("own")
            }
            "" if is_listener => heard("own"),
            _ => Vec::new(),
        };
        if is_listener && sql.contains("LISTEN \"a\"") {
            // Whatever is sent meanwhile would find it not listening.
            tokio::time::sleep(Duration::from_millis(100)).await;
            listens.store(true, Ordering::SeqCst);
            // Older than the answer: nobody's.
            answer = heard("old");
        }
        answer.extend(messages::command_complete("LISTEN"));
        answer.extend(messages::ready_for_query(b'I'));
        connection.send(&answer).await;
    }
}

#[tokio::test]
async fn a_listen_is_sent_only_once_the_shared_listener_listens() {
    let listens = Arc::new(AtomicBool::new(false));
    let backend = ScriptedBackend::start_with(move |connection| {
        answer_listen(connection, Arc::clone(&listens))
    })
    .await;
    let pgweir = Options::in_front_of_script(&backend).start();
    let mut one = client(&pgweir, "scripted").await;
    one.query("LISTEN a").await.ok();
    assert_eq!(heard(&mut one), [note("a", "own")]);
    one.query("NOTIFY a, 'own'").await.ok();
    assert_eq!(heard(&mut one), [note("a", "own")]);
}
