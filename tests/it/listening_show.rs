//! Thousands of clients that listen on one server connection while others commit. Each hears all that was committed on
//! its channels, once, in the order of the commits, never inside a transaction, and what it has sent itself before it is
//! told that the server is ready. Then the server connection is killed, and all are told and hear on.
//!
//! A connection past pgweir that listens on every channel says what was committed, and in which order.
//!
//! `PGWEIR_LISTENERS`, `PGWEIR_TRANSACTIONS` (of each sender) and `PGWEIR_SEED` set its size; `make show-listen` has 5,000.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgweir::tasks;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::pgweir::{Options, Pgweir};

const DATABASE: &str = "listening_show";
const LISTENERS: &str = "application_name = 'pgweir listener'";
const POOL_SIZE: usize = 10;

/// Channels that many clients share.
const GROUPS: usize = 50;
const SENDERS: usize = 8;
/// Each so many listeners runs transactions meanwhile, and each so many comes and goes.
const WORKING: usize = 10;
const CHURNING: usize = 100;
/// How often one comes and goes.
const TURNS: usize = 10;
/// The last notification.
const END: &str = "end";
/// Logins at once.
const LOGINS: usize = 32;

/// A channel and a payload.
type Note = (String, String);

fn number(name: &str, default: usize) -> usize {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap())
}

fn group(of: usize) -> String {
    format!("group_{}", of % GROUPS)
}

async fn direct() -> Client {
    Client::connect(shared::server().address(), "postgres", DATABASE).await
}

async fn connections(observer: &mut Client, condition: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{DATABASE}' AND pid <> pg_backend_pid() AND {condition}"
    );
    observer.value(&sql).await.parse().unwrap()
}

/// Kilobytes of memory.
fn resident(pgweir: &Pgweir) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pgweir.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.unwrap().split_whitespace().nth(1);
    words.unwrap().parse().unwrap()
}

/// What was committed: payloads by channel, each with its place among all.
struct Committed(HashMap<String, Vec<(usize, String)>>);

impl Committed {
    fn new(notes: Vec<Note>) -> Self {
        let mut by_channel: HashMap<_, Vec<_>> = HashMap::new();
        for (at, (channel, payload)) in notes.into_iter().enumerate() {
            by_channel.entry(channel).or_default().push((at, payload));
        }
        Self(by_channel)
    }

    /// What a client on these channels hears, up to the end.
    fn on(&self, channels: &[String]) -> Vec<Note> {
        let mut all: Vec<(usize, &String, &String)> = Vec::new();
        for channel in channels {
            let notes = self.0.get(channel).into_iter().flatten();
            all.extend(notes.map(|(at, payload)| (*at, channel, payload)));
        }
        all.sort_unstable();
        let note = |(_, channel, payload): &(usize, &String, &String)| {
            ((*channel).clone(), (*payload).clone())
        };
        let end = all.iter().position(|(_, _, payload)| *payload == END);
        all.truncate(end.map_or(all.len(), |end| end + 1));
        all.iter().map(note).collect()
    }
}

/// What was wrong, in notifications; in the last case, in clients.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    lost: usize,
    doubled: usize,
    disordered: usize,
}

impl Faults {
    fn count(&mut self, heard: &[Note], committed: &[Note]) {
        if heard == committed {
            return;
        }
        let mut left: HashMap<&Note, i64> = HashMap::new();
        for note in committed {
            *left.entry(note).or_default() += 1;
        }
        for note in heard {
            *left.entry(note).or_default() -= 1;
        }
        let of = |sign: i64| {
            let counts = left.values().map(|count| (count * sign).max(0));
            usize::try_from(counts.sum::<i64>()).unwrap()
        };
        self.lost += of(1);
        self.doubled += of(-1);
        self.disordered += usize::from(left.values().all(|count| *count == 0));
    }
}

struct Listener {
    id: usize,
    client: Client,
    heard: Vec<Note>,
}

fn channels(id: usize) -> [String; 3] {
    ["everybody".to_owned(), group(id), format!("only_{id}")]
}

impl Listener {
    async fn open(address: SocketAddr, id: usize) -> Self {
        let login = Login::new("postgres", DATABASE);
        let mut client = Client::connect_as(address, &login).await.unwrap();
        let [all, group, own] = channels(id);
        let text = format!("LISTEN {all}; LISTEN {group}; LISTEN {own}");
        client.query(&text).await.ok();
        Self {
            id,
            client,
            heard: Vec::new(),
        }
    }

    /// A transaction, in which nothing is heard and behind which its own notification is.
    async fn work(&mut self, turn: usize) {
        let client = &mut self.client;
        client.query("BEGIN").await.ok();
        let before = client.notifications.len();
        let own = format!("own {turn}");
        let notify = format!("SELECT pg_notify('only_{}', '{own}')", self.id);
        client.query(&notify).await.ok();
        client.query("SELECT 1").await.ok();
        let inside = client.notifications.len() - before;
        assert_eq!(inside, 0, "heard inside a transaction");
        client.query("COMMIT").await.ok();
        let is_there = client.notifications.iter().any(|note| note.1 == own);
        assert!(
            is_there,
            "its own notification comes before the server is ready"
        );
    }

    /// Hears all up to the end.
    async fn listen(mut self) -> Self {
        let works = self.id.is_multiple_of(WORKING);
        loop {
            let note = self.client.notification().await;
            let is_end = note.1 == END;
            self.heard.push(note);
            if is_end {
                return self;
            }
            if works && self.heard.len().is_multiple_of(8) {
                self.work(self.heard.len()).await;
            }
        }
    }

    /// Waits to be told that something may have been missed.
    async fn be_told(mut self) -> Self {
        let notice = self.client.notice().await;
        assert_eq!(notice.message, "notifications may have been missed");
        // What it was telling itself when the end came.
        let is_own = |note: &Note| note.1.starts_with("own ");
        assert!(self.client.notifications.iter().all(is_own), "{notice:?}");
        self.client.notifications.clear();
        self
    }

    async fn hear_on(mut self) {
        let note = self.client.notification().await;
        assert_eq!(note, ("everybody".to_owned(), "after".to_owned()));
    }
}

/// Comes and goes: what was heard each time.
async fn churn(mut client: Client, id: usize) -> Vec<Vec<Note>> {
    let channel = group(id);
    let mut heard = Vec::new();
    for turn in 0..TURNS {
        client.query(&format!("LISTEN {channel}")).await.ok();
        for (what, rest) in [("first", true), ("last", false)] {
            let notify = format!("NOTIFY {channel}, '{what} {id}.{turn}'");
            client.query(&notify).await.ok();
            if rest {
                client.query("SELECT pg_sleep(0.02)").await.ok();
            }
        }
        client.query(&format!("UNLISTEN {channel}")).await.ok();
        heard.push(client.notifications.drain(..).collect());
        client.query("SELECT pg_sleep(0.01)").await.ok();
        assert!(client.notifications.is_empty(), "heard what it has left");
    }
    heard
}

/// Sends in `count` transactions, some of which are rolled back. Tells how many notifications it has committed.
async fn send(mut client: Client, id: usize, count: usize, listeners: usize, seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed + id as u64);
    let mut sent = 0;
    for turn in 0..count {
        let notes = random.random_range(1..=4);
        let is_kept = random.random_bool(0.9);
        let mut text = "BEGIN;".to_owned();
        for of in 0..notes {
            let channel = match random.random_range(0..10) {
                0 => "everybody".to_owned(),
                1..=4 => group(random.random_range(0..GROUPS)),
                _ => format!("only_{}", random.random_range(0..listeners)),
            };
            let _ = write!(text, "NOTIFY {channel}, '{id}.{turn}.{of}';");
        }
        if random.random_bool(0.5) {
            client.query(&text).await.ok();
            sleep(Duration::from_millis(random.random_range(0..5))).await;
            text.clear();
        }
        text.push_str(if is_kept { "COMMIT" } else { "ROLLBACK" });
        client.query(&text).await.ok();
        sent += if is_kept { notes } else { 0 };
    }
    sent
}

/// Hears everything up to the end, past pgweir.
async fn note_all(listeners: usize) -> JoinHandle<Vec<Note>> {
    let mut client = direct().await;
    let mut text = "LISTEN everybody;".to_owned();
    for of in 0..GROUPS {
        let _ = write!(text, "LISTEN {};", group(of));
    }
    for of in 0..listeners {
        let _ = write!(text, "LISTEN only_{of};");
    }
    client.query(&text).await.ok();
    tasks::spawn("note all", async move {
        let mut notes = Vec::new();
        while notes.last().is_none_or(|note: &Note| note.1 != END) {
            notes.push(client.notification().await);
        }
        notes
    })
}

async fn all<T>(handles: Vec<JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for handle in handles {
        results.push(handle.await.unwrap());
    }
    results
}

async fn open_all(pgweir: &Pgweir, count: usize) -> Vec<Listener> {
    let next = Arc::new(AtomicUsize::new(0));
    let address = pgweir.address;
    let openers = (0..LOGINS).map(|_| {
        let next = Arc::clone(&next);
        tasks::spawn("open", async move {
            let mut opened = Vec::new();
            loop {
                let id = next.fetch_add(1, Ordering::SeqCst);
                if id >= count {
                    return opened;
                }
                opened.push(Listener::open(address, id).await);
            }
        })
    });
    all(openers.collect()).await.into_iter().flatten().collect()
}

/// Server connections of pgweir's.
async fn servers(pgweir: &Pgweir) -> usize {
    let mut console = pgweir.console().await;
    let servers = console.query("SHOW SERVERS").await.ok();
    let is_shown = |row: &&Vec<Option<String>>| row[2].as_deref() == Some(DATABASE);
    servers.rows.iter().filter(is_shown).count()
}

/// What came of the run.
struct Run {
    listeners: Vec<Listener>,
    /// Of those that come and go.
    churned: Vec<Vec<Vec<Note>>>,
    committed: Committed,
    sent: usize,
    took: Duration,
    /// Server connections of pgweir's at its end, and those of them that listen.
    servers: usize,
    listening: usize,
}

impl Run {
    /// Has `listeners` listen while others send, and come and go.
    async fn new(pgweir: &Pgweir, listeners: Vec<Listener>, seed: u64) -> Self {
        let (count, transactions) = (listeners.len(), number("PGWEIR_TRANSACTIONS", 40));
        let login = Login::new("postgres", DATABASE);
        let committed = note_all(count).await;
        let began = Instant::now();
        let listening: Vec<_> = listeners
            .into_iter()
            .map(|one| tasks::spawn("listen", one.listen()))
            .collect();
        let (mut senders, mut churners) = (Vec::new(), Vec::new());
        for id in 0..SENDERS {
            let client = if id % 2 == 0 {
                pgweir.client_as(&login).await
            } else {
                direct().await
            };
            let sends = send(client, id, transactions, count, seed);
            senders.push(tasks::spawn("send", sends));
        }
        for id in 0..count.div_ceil(CHURNING) {
            let client = pgweir.client_as(&login).await;
            churners.push(tasks::spawn("churn", churn(client, id)));
        }
        let sent = all(senders).await.into_iter().sum();
        let churned = all(churners).await;
        let mut last = direct().await;
        let listeners_now = connections(&mut last, LISTENERS).await;
        let servers = servers(pgweir).await;
        last.query(&format!("NOTIFY everybody, '{END}'")).await.ok();
        Self {
            listeners: all(listening).await,
            churned,
            committed: Committed::new(committed.await.unwrap()),
            sent,
            took: began.elapsed(),
            servers,
            listening: listeners_now,
        }
    }

    /// What was wrong, and how many notifications were heard.
    fn check(&self) -> (Faults, usize) {
        let (mut faults, mut heard) = (Faults::default(), 0);
        for one in &self.listeners {
            faults.count(&one.heard, &self.committed.on(&channels(one.id)));
            heard += one.heard.len();
        }
        for (id, turns) in self.churned.iter().enumerate() {
            let all = self.committed.on(&[group(id)]);
            for (turn, notes) in turns.iter().enumerate() {
                for what in ["first", "last"] {
                    let own = (group(id), format!("{what} {id}.{turn}"));
                    assert!(notes.contains(&own), "{own:?} is not in {notes:?}");
                }
                let start = all.iter().position(|note| *note == notes[0]).unwrap();
                let end = (start + notes.len()).min(all.len());
                faults.count(notes, &all[start..end]);
                heard += notes.len();
            }
        }
        (faults, heard)
    }
}

/// Ends the connection that listens: all are told, and hear what comes then.
async fn kill(listeners: Vec<Listener>) {
    let began = Instant::now();
    let told: Vec<_> = listeners
        .into_iter()
        .map(|one| tasks::spawn("be told", one.be_told()))
        .collect();
    let mut killer = direct().await;
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{DATABASE}' AND {LISTENERS}"
    );
    assert_eq!(killer.value(&kill).await, "1");
    let listeners = all(told).await;
    killer.query("NOTIFY everybody, 'after'").await.ok();
    let hearing = listeners
        .into_iter()
        .map(|one| tasks::spawn("hear on", one.hear_on()));
    all(hearing.collect()).await;
    eprintln!(
        "its connection was killed: all were told and heard on within {:.1?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_listen_on_one_server_connection() {
    let count = number("PGWEIR_LISTENERS", 300);
    let seed = number("PGWEIR_SEED", rand::random_range(0..1_000_000)) as u64;
    eprintln!("PGWEIR_SEED={seed}");
    let mut observer = shared::direct().await;
    observer
        .query(&format!("CREATE DATABASE {DATABASE}"))
        .await
        .ok();
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", &POOL_SIZE.to_string())
        .set("general.max_client_conn", "20000")
        .set("pool.on_session_state", "reject")
        .start();
    let before = resident(&pgweir);
    let began = Instant::now();
    let listeners = open_all(&pgweir, count).await;
    let (opened, memory) = (began.elapsed(), resident(&pgweir) - before);

    let run = Run::new(&pgweir, listeners, seed).await;
    let (faults, heard) = run.check();
    let Run {
        listening,
        servers,
        sent,
        took,
        ..
    } = run;
    eprintln!(
        "{count} clients listen on {listening} server connection, with {servers} in all; {sent} notifications of {SENDERS} \
         senders and those of the clients themselves were heard {heard} times in {took:.1?}; LISTEN of all took \
         {opened:.1?}, and pgweir {} kB a client; {faults:?}",
        memory / count.max(1),
    );
    assert_eq!(faults, Faults::default());
    assert_eq!(listening, 1);
    assert!(servers <= POOL_SIZE + 1, "{servers} server connections");
    assert!(heard > sent, "hardly anything was heard");
    kill(run.listeners).await;
}
