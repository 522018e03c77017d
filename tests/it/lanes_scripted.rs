//! Lanes in front of a scripted server that does whatever a server may do to a statement that was short so far: it
//! fails, it comes late, it comes in pieces, it becomes long, its connection dies before, amid or behind it, a cancel
//! request hits another. Clients cancel, leave, read slowly, have settings of their own and are of two users.
//!
//! Each statement asks for a token, and the answer names the user and the setting it was given under. Whatever happens,
//! a client gets its own answer, the error it asked for, an error that it caused itself, or the end of its connection
//! where a server connection died.
//!
//! The seed is printed; `PGWEIR_SEED=NUMBER` repeats a run, `PGWEIR_CASES` makes it longer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgweir::tasks;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use crate::support::client::{Client, Login, cancel};
use crate::support::messages::{
    self, Message, ServerError, bind, command_complete, data_row, error_response, execute, frame,
    parse, query, ready_for_query, row_description, sync,
};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::scripted_backend::{BackendConnection, ScriptedBackend};

/// Distinct statements: one that was slow has more to prove, and others go on.
const KINDS: usize = 24;
/// Clients at once.
const CLIENTS: u64 = 16;
/// Executions by which a statement is known to be short, with some to spare.
const WARM: usize = 20;
/// Statements that must have ridden for the run to have shown anything, and how long that may take.
const RIDES: f64 = 40.0;
const LONGEST: Duration = Duration::from_secs(60);
const DEFAULT_SETTING: &str = "4MB";

/// What the server does of its own accord, in parts of a thousand statements.
#[derive(Clone, Copy)]
struct Whims {
    slow: u32,
    dies: u32,
    reports: u32,
}

const CALM: Whims = Whims {
    slow: 4,
    dies: 0,
    reports: 2,
};
const DEADLY: Whims = Whims { dies: 4, ..CALM };

/// What came of it all.
#[derive(Default)]
struct Counts {
    answers: AtomicUsize,
    errors: AtomicUsize,
    canceled: AtomicUsize,
    gone: AtomicUsize,
    /// Server connections that died.
    deaths: AtomicUsize,
    slow: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// The text of a statement of some kind, for a token.
fn text(kind: usize, token: &str) -> String {
    format!("SELECT b FROM kind{kind} WHERE a = {token}")
}

/// The rows that the server answers a token with. What it wants of the server is its first word.
fn rows_of(token: &str, user: &str, setting: &str) -> Vec<String> {
    let row = format!("{token}|{user}|{setting}");
    match token.split('-').next() {
        Some("many") => vec![row; 100],
        Some("long") => vec![format!("{row}|{}", "x".repeat(400_000))],
        _ => vec![row],
    }
}

/// A server connection's side of the conversation.
struct Server {
    connection: BackendConnection,
    rng: SmallRng,
    whims: Whims,
    counts: Arc<Counts>,
    setting: String,
    statements: BTreeMap<String, String>,
    /// Token of the portal bound last.
    portal: Option<String>,
    /// After an error, until the Sync.
    skips: bool,
}

/// The connection is over.
struct Dead;

impl Server {
    async fn run(mut self) {
        while let Some(message) = self.connection.read_message().await {
            let done = match message.tag {
                b'Q' => self.simple(&message.strings()[0]).await,
                b'X' => return,
                b'S' => {
                    self.skips = false;
                    self.connection.send(&ready_for_query(b'I')).await;
                    Ok(())
                }
                _ if self.skips => Ok(()),
                _ => self.step(&message).await,
            };
            if done.is_err() {
                count(&self.counts.deaths);
                return;
            }
        }
    }

    fn happens(&mut self, of_thousand: u32) -> bool {
        self.rng.random_range(0..1000) < of_thousand
    }

    async fn simple(&mut self, text: &str) -> Result<(), Dead> {
        if let Some(value) = text.rsplit("set_config('work_mem',").next()
            && text.contains("set_config('work_mem',")
        {
            self.setting = match value.split('\'').nth(1) {
                Some(value) if !value.is_empty() && !value.starts_with(",NULL") => value.to_owned(),
                _ => DEFAULT_SETTING.to_owned(),
            };
        }
        let Some((_, token)) = text.split_once(" WHERE a = ") else {
            self.connection.send(&messages::one_value_reply("")).await;
            return Ok(());
        };
        let token = token.trim_matches('\'').to_owned();
        let answer = self.execute(&token, true).await?;
        self.pass([answer, ready_for_query(b'I')].concat()).await
    }

    /// A message of the extended protocol.
    async fn step(&mut self, message: &Message) -> Result<(), Dead> {
        let strings = message.strings();
        let answer = match message.tag {
            b'P' => {
                self.statements
                    .insert(strings[0].clone(), strings[1].clone());
                frame(b'1', b"")
            }
            b'B' => {
                let Some(text) = self.statements.get(&strings[1]) else {
                    panic!("{} is bound and was not parsed", strings[1]);
                };
                // pgweir's own ROLLBACK, for a client that has left, has no parameter.
                let is_clients = text.ends_with("a = $1");
                self.portal = is_clients.then(|| bound_value(&message.body));
                frame(b'2', b"")
            }
            b'D' if message.body.first() == Some(&b'S') => {
                let parameters = frame(b't', &[0, 1, 0, 0, 0, 25]);
                [parameters, row_description(&["b"])].concat()
            }
            b'D' => row_description(&["b"]),
            b'E' => {
                let answer = match self.portal.take() {
                    Some(token) => self.execute(&token, false).await?,
                    None => command_complete("ROLLBACK"),
                };
                self.skips = answer.first() == Some(&b'E');
                answer
            }
            b'C' => frame(b'3', b""),
            _ => Vec::new(),
        };
        self.pass(answer).await
    }

    /// Runs a statement: its answer, which may be an error.
    async fn execute(&mut self, token: &str, describes: bool) -> Result<Vec<u8>, Dead> {
        // A cancel request that finds nothing running is forgotten.
        let canceled = self.connection.canceled();
        let is_slow = self.happens(self.whims.slow);
        if is_slow {
            count(&self.counts.slow);
        }
        let ends = Instant::now() + Duration::from_micros(if is_slow { 150_000 } else { 300 });
        while Instant::now() < ends {
            sleep(Duration::from_millis(1)).await;
            if self.connection.canceled() > canceled {
                return Ok(error_response(
                    "ERROR",
                    "57014",
                    "canceling statement due to user request",
                ));
            }
        }
        if token.starts_with("error-") {
            return Ok(error_response("ERROR", "22012", token));
        }
        let user = self.connection.startup["user"].clone();
        let rows = rows_of(token, &user, &self.setting);
        let mut answer = Vec::new();
        if self.happens(self.whims.reports) {
            answer.extend(messages::parameter_status("TimeZone", "UTC"));
        }
        if describes {
            answer.extend(row_description(&["b"]));
        }
        for row in &rows {
            answer.extend(data_row(&[Some(row)]));
        }
        answer.extend(command_complete(&format!("SELECT {}", rows.len())));
        Ok(answer)
    }

    /// Sends an answer: whole, in pieces, or a part of it and no more.
    async fn pass(&mut self, answer: Vec<u8>) -> Result<(), Dead> {
        let cut = self.rng.random_range(0..=answer.len());
        if self.happens(self.whims.dies) {
            match self.rng.random_range(0..4) {
                0 => self.connection.send(&answer[..cut]).await,
                1 => self.connection.arm_reset(),
                2 => {
                    let farewell = error_response("FATAL", "57P01", "terminating connection");
                    self.connection.send(&farewell).await;
                }
                _ => self.connection.send(&answer).await,
            }
            return Err(Dead);
        }
        if self.happens(100) {
            self.connection.send_split(&answer, &[cut]).await;
        } else {
            self.connection.send(&answer).await;
        }
        Ok(())
    }
}

/// The one parameter of a Bind, in text.
fn bound_value(body: &[u8]) -> String {
    let after_names = body.splitn(3, |byte| *byte == 0).nth(2).unwrap();
    let formats = usize::from(u16::from_be_bytes([after_names[0], after_names[1]]));
    // Then the number of values and the length of the first.
    let value = &after_names[2 + 2 * formats + 2..];
    let length = u32::from_be_bytes(value[..4].try_into().unwrap()) as usize;
    String::from_utf8_lossy(&value[4..4 + length]).into_owned()
}

/// A client's side.
struct Rider {
    address: SocketAddr,
    login: Login,
    user: &'static str,
    setting: &'static str,
    client: Client,
    rng: SmallRng,
    counts: Arc<Counts>,
    is_prepared: [bool; KINDS],
}

/// The client's connection ended.
struct Gone;

impl Rider {
    async fn new(address: SocketAddr, seed: u64, counts: Arc<Counts>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let user = ["first", "second"][rng.random_range(0..2)];
        let setting = [DEFAULT_SETTING, DEFAULT_SETTING, "8MB"][rng.random_range(0..3)];
        let login = Login::new(user, "d").with("work_mem", setting);
        let client = Client::connect_as(address, &login).await.unwrap();
        Self {
            address,
            login,
            user,
            setting,
            client,
            rng,
            counts,
            is_prepared: [false; KINDS],
        }
    }

    async fn again(&mut self) {
        self.client = Client::connect_as(self.address, &self.login).await.unwrap();
        self.is_prepared = [false; KINDS];
    }

    async fn round(&mut self, number: usize) {
        let wants = match self.rng.random_range(0..100) {
            0..3 => "error",
            3..5 => "many",
            5..7 => "long",
            _ => "plain",
        };
        let token = format!("{wants}-{number}-{:016x}", self.rng.random::<u64>());
        let kind = self.rng.random_range(0..KINDS);
        let done = match self.rng.random_range(0..100) {
            0..4 => self.leave(kind, &token).await,
            4..10 => self.cancel(kind, &token).await,
            _ => self.ask(kind, &token).await,
        };
        if done.is_err() {
            self.again().await;
        }
    }

    /// Sends a statement, simple or prepared.
    async fn send(&mut self, kind: usize, token: &str) -> Result<(), Gone> {
        let message = if self.rng.random_bool(0.5) {
            query(&text(kind, &format!("'{token}'")))
        } else {
            if !self.is_prepared[kind] {
                let parsed = parse(&format!("s{kind}"), &text(kind, "$1"), &[]);
                self.put(&[parsed, sync()].concat()).await?;
                let (_, errors) = self.answer().await?;
                assert_eq!(errors, []);
                self.is_prepared[kind] = true;
            }
            let bound = bind("", &format!("s{kind}"), &[Some(token)]);
            [bound, execute("", 0), sync()].concat()
        };
        self.put(&message).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.client.try_send(bytes).await.map_err(|_| Gone)
    }

    /// Values and errors up to ReadyForQuery.
    async fn answer(&mut self) -> Result<(Vec<String>, Vec<ServerError>), Gone> {
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        loop {
            let Some(message) = self.client.read_message_or_cut().await else {
                count(&self.counts.gone);
                return Err(Gone);
            };
            match message.tag {
                b'D' => values.push(String::from_utf8_lossy(&message.body[6..]).into_owned()),
                b'E' => errors.push(ServerError::parse(&message)),
                b'Z' => {
                    assert_eq!(message.body, b"I");
                    return Ok((values, errors));
                }
                _ => {}
            }
            if errors.last().is_some_and(|error| error.severity == "FATAL") {
                let code = errors.last().map(|error| error.code.clone());
                assert!(
                    matches!(code.as_deref(), Some("08006" | "57P01")),
                    "{errors:?}"
                );
                count(&self.counts.gone);
                return Err(Gone);
            }
        }
    }

    /// The answer must be the client's own; an error is one of `allowed`, or the one asked for.
    async fn check(&mut self, token: &str, allowed: &str) -> Result<(), Gone> {
        if self.rng.random_bool(0.1) {
            // Long enough for others to notice a lane that waits for this client.
            sleep(Duration::from_millis(self.rng.random_range(0..40))).await;
        }
        let (values, errors) = self.answer().await?;
        match errors.as_slice() {
            [] => {
                assert!(
                    values == rows_of(token, self.user, self.setting),
                    "{token}: not its answer"
                );
                assert!(!token.starts_with("error-"), "{token}: no error");
                count(&self.counts.answers);
            }
            [error] if error.code == "22012" => {
                assert_eq!(error.message, token, "another's error");
                count(&self.counts.errors);
            }
            [error] => {
                assert_eq!(error.code, allowed, "{token}: {error:?}");
                count(&self.counts.canceled);
            }
            _ => panic!("{token}: {errors:?}"),
        }
        Ok(())
    }

    async fn ask(&mut self, kind: usize, token: &str) -> Result<(), Gone> {
        self.send(kind, token).await?;
        self.check(token, "none").await
    }

    async fn cancel(&mut self, kind: usize, token: &str) -> Result<(), Gone> {
        self.send(kind, token).await?;
        sleep(Duration::from_micros(self.rng.random_range(0..4000))).await;
        cancel(self.address, &self.client.key).await;
        self.check(token, "57014").await
    }

    async fn leave(&mut self, kind: usize, token: &str) -> Result<(), Gone> {
        self.send(kind, token).await?;
        sleep(Duration::from_micros(self.rng.random_range(0..4000))).await;
        Err(Gone)
    }
}

async fn server(whims: Whims, seed: u64, counts: &Arc<Counts>) -> ScriptedBackend {
    let counts = Arc::clone(counts);
    ScriptedBackend::start_with(move |connection| {
        let number = connection.number as u64;
        let setting = connection.startup.get("work_mem").cloned();
        let server = Server {
            connection,
            rng: SmallRng::seed_from_u64(seed ^ number),
            whims,
            counts: Arc::clone(&counts),
            setting: setting.unwrap_or_else(|| DEFAULT_SETTING.to_owned()),
            statements: BTreeMap::new(),
            portal: None,
            skips: false,
        };
        server.run()
    })
    .await
}

/// Has every kind of statement be known as short.
async fn warm(pgweir: &Pgweir, seed: u64, counts: &Arc<Counts>) {
    let mut rider = Rider::new(pgweir.address, seed, Arc::clone(counts)).await;
    for kind in 0..KINDS {
        for number in 0..WARM {
            if rider.ask(kind, &format!("plain-{number}")).await.is_err() {
                rider.again().await;
            }
        }
    }
}

fn answered(pgweir: &Pgweir) -> f64 {
    ["first", "second"]
        .iter()
        .filter_map(|user| {
            pgweir.metric(&format!(
                "pgweir_lane_statements_total{{database=\"d\",user=\"{user}\",outcome=\"answered\"}} "
            ))
        })
        .sum()
}

async fn ride(whims: Whims) -> (Arc<Counts>, f64) {
    let seed = std::env::var("PGWEIR_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    let rounds = std::env::var("PGWEIR_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(120);
    eprintln!("PGWEIR_SEED={seed}");
    let counts = Arc::new(Counts::default());
    let backend = server(whims, seed, &counts).await;
    let pgweir = Options::in_front_of_script(&backend)
        .flag("--pool-size", "4")
        .set("timeouts.server_login_retry", "1ms")
        .start();
    warm(&pgweir, seed, &counts).await;
    let began = Instant::now();
    let mut first = 0;
    loop {
        let riders: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (address, counts) = (pgweir.address, Arc::clone(&counts));
                tasks::spawn("rider", async move {
                    let seed = seed.wrapping_add(first + number + 1);
                    let mut rider = Rider::new(address, seed, counts).await;
                    for number in 0..rounds {
                        rider.round(number).await;
                    }
                })
            })
            .collect();
        for rider in riders {
            rider.await.unwrap();
        }
        let answered = answered(&pgweir);
        eprintln!("on lanes {answered}");
        // On a busy machine few statements are short.
        if answered >= RIDES || began.elapsed() > LONGEST {
            return (counts, answered);
        }
        first += CLIENTS;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn riders_get_their_own_answers_whatever_the_server_and_others_do() {
    let (counts, on_lanes) = ride(CALM).await;
    let read = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    // Nothing died, so nobody's connection ended, and nothing failed but what was to fail.
    assert_eq!((read(&counts.deaths), read(&counts.gone)), (0, 0));
    for counter in [
        &counts.answers,
        &counts.errors,
        &counts.canceled,
        &counts.slow,
    ] {
        assert!(read(counter) > 0);
    }
    assert!(on_lanes >= RIDES, "only {on_lanes} rode");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn riders_get_their_own_answers_or_none_where_server_connections_die() {
    let (counts, on_lanes) = ride(DEADLY).await;
    let read = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    assert!(read(&counts.deaths) > 0);
    assert!(read(&counts.answers) > 0);
    assert!(on_lanes >= RIDES, "only {on_lanes} rode");
}
