//! Never cross replies: many clients on few backends, each of which asks for a random token and must get that one,
//! under cancels, disconnects at every point, errors and killed backends.
//!
//! `PGWEIR_CLIENTS`, `PGWEIR_BACKENDS` and `PGWEIR_SECONDS` make it larger (`make show-never-cross`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pgweir::demo::cluster::ServerOptions;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::support::client::{Client, Login};
use crate::support::messages::{
    self, ServerError, bind, copy_data, describe, execute, flush, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

/// The role of the clients that are shaken, apart from the observer's.
const ROLE: &str = "shaken";

/// What happened, counted.
#[derive(Default)]
struct Counts {
    /// Answers that were checked.
    own: AtomicU64,
    /// Answers that were another client's.
    crossed: AtomicU64,
    cancels: AtomicU64,
    canceled: AtomicU64,
    disconnects: AtomicU64,
    errors: AtomicU64,
    killed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How a client's turn goes.
#[derive(Clone, Copy, Debug)]
enum Act {
    Simple,
    Extended,
    Prepared,
    Pipeline,
    Transaction,
    Setting,
    Copy,
    /// Short as a rule, so that it shares a backend, and then of another kind.
    Uneven,
    Error,
    Canceled,
    LeaveInQuery,
    LeaveInMessage,
    LeaveInTransaction,
    LeaveInCopy,
    LeaveInExchange,
    LeaveAfterSet,
}

impl Act {
    fn random(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..100) {
            0..10 => Self::Simple,
            10..20 => Self::Uneven,
            20..35 => Self::Extended,
            35..50 => Self::Prepared,
            50..58 => Self::Pipeline,
            58..66 => Self::Transaction,
            66..72 => Self::Setting,
            72..76 => Self::Copy,
            76..82 => Self::Error,
            82..88 => Self::Canceled,
            88..90 => Self::LeaveInQuery,
            90..92 => Self::LeaveInMessage,
            92..94 => Self::LeaveInTransaction,
            94..96 => Self::LeaveInCopy,
            96..98 => Self::LeaveInExchange,
            _ => Self::LeaveAfterSet,
        }
    }
}

/// What ended a client's connection; none of it is a failure here.
struct Gone;

/// One client: everything it gets is checked against what it asked for.
struct Shaken {
    client: Client,
    rng: SmallRng,
    counts: Arc<Counts>,
    prepared: u64,
    address: std::net::SocketAddr,
    doing: Option<Act>,
}

impl Shaken {
    fn token(&mut self) -> String {
        format!("{:032x}", self.rng.random::<u128>())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.client.try_send(bytes).await.map_err(|_| Gone)
    }

    /// Reads up to ReadyForQuery: every value that came, and the errors.
    async fn answer(&mut self) -> Result<(Vec<String>, Vec<ServerError>), Gone> {
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        loop {
            let message = self.client.read_message().await.ok_or(Gone)?;
            match message.tag {
                b'D' => values.push(first_value(&message.body)),
                b'd' => values.push(String::from_utf8_lossy(&message.body).trim().to_owned()),
                b'E' => {
                    let error = ServerError::parse(&message);
                    if error.severity == "FATAL" {
                        // 57P01 of a killed backend is the server's; what became of a COMMIT it does not say, so that
                        // pgweir tells 08007 there. Nothing else may end a connection.
                        let doubts = matches!(self.doing, Some(Act::Transaction));
                        let is_told = error.code == "57P01" || (doubts && error.code == "08007");
                        assert!(is_told, "{:?}: {error:?}", self.doing);
                        count(&self.counts.killed);
                        return Err(Gone);
                    }
                    errors.push(error);
                }
                b'Z' => return Ok((values, errors)),
                _ => {}
            }
        }
    }

    /// The answer must be these values and nothing else, or be cut short by an error that `allowed` names.
    async fn check(&mut self, expected: &[String], allowed: &[&str]) -> Result<(), Gone> {
        let (values, errors) = self.answer().await?;
        let is_own = if errors.is_empty() {
            values == expected
        } else {
            values.iter().all(|value| expected.contains(value))
        };
        let are_allowed = errors
            .iter()
            .all(|error| allowed.contains(&error.code.as_str()));
        if is_own && are_allowed {
            count(&self.counts.own);
        } else {
            count(&self.counts.crossed);
            eprintln!("expected {expected:?} or {allowed:?}, got {values:?} {errors:?}");
        }
        Ok(())
    }

    async fn act(&mut self, act: Act) -> Result<(), Gone> {
        let token = self.token();
        self.doing = Some(act);
        match act {
            Act::Simple => {
                self.send(&query(&format!("SELECT '{token}'"))).await?;
                self.check(&[token], &[]).await
            }
            Act::Extended => {
                let batch = [
                    parse("", "SELECT $1::text", &[]),
                    bind("", "", &[Some(&token)]),
                    describe(b'P', ""),
                    execute("", 0),
                    sync(),
                ];
                self.send(&batch.concat()).await?;
                self.check(&[token], &[]).await
            }
            Act::Uneven => self.uneven(token).await,
            Act::Prepared => self.prepared(token).await,
            Act::Pipeline => self.pipeline(token).await,
            Act::Transaction => self.transaction(token).await,
            Act::Setting => self.setting(token).await,
            Act::Copy => {
                let sql = format!("COPY (SELECT '{token}' FROM generate_series(1, 3)) TO STDOUT");
                self.send(&query(&sql)).await?;
                self.check(&[token.clone(), token.clone(), token], &[])
                    .await
            }
            Act::Error => {
                count(&self.counts.errors);
                let sql = format!("SELECT '{token}' UNION ALL SELECT (1 / 0)::text");
                self.send(&query(&sql)).await?;
                self.check(&[], &["22012"]).await
            }
            Act::Canceled => self.canceled(token).await,
            leave => self.leave(leave, &token).await,
        }
    }

    async fn uneven(&mut self, token: String) -> Result<(), Gone> {
        let (mut rows, mut copies, mut divisor) = (1, 1, 1);
        match self.rng.random_range(0..200) {
            0..6 => divisor = 0,
            6..9 => copies = 3000,
            9 => rows = 200_000,
            _ => {}
        }
        let sql = format!(
            "SELECT repeat('{token}', {copies}) FROM generate_series(1, {rows}) AS n \
             GROUP BY 1 HAVING 1 / {divisor} = 1 OR count(*) < 0"
        );
        self.send(&query(&sql)).await?;
        let hurries = rows > 1 && self.rng.random();
        if hurries {
            count(&self.counts.cancels);
            crate::support::client::cancel(self.address, &self.client.key.clone()).await;
        }
        let (expected, allowed): (Vec<String>, &[&str]) = match divisor {
            0 => (Vec::new(), &["22012"]),
            _ if hurries => (vec![token], &["57014"]),
            _ => (vec![token.repeat(copies)], &[]),
        };
        self.check(&expected, allowed).await
    }

    /// A named statement of its own, which moves from backend to backend.
    async fn prepared(&mut self, token: String) -> Result<(), Gone> {
        let mut batch = Vec::new();
        if self.prepared == 0 {
            self.prepared = self.rng.random_range(1..u64::MAX);
            let text = format!("SELECT $1::text || '-{}'", self.prepared);
            batch.extend(parse("mine", &text, &[]));
        }
        batch.extend(bind("", "mine", &[Some(&token)]));
        batch.extend(execute("", 0));
        batch.extend(sync());
        self.send(&batch).await?;
        let expected = format!("{token}-{}", self.prepared);
        self.check(&[expected], &[]).await
    }

    /// Three exchanges in one write, the second of which fails.
    async fn pipeline(&mut self, token: String) -> Result<(), Gone> {
        let exchange = |text: &str, value: &str| {
            [
                parse("", text, &[]),
                bind("", "", &[Some(value)]),
                execute("", 0),
                sync(),
            ]
            .concat()
        };
        let second = self.token();
        let batch = [
            exchange("SELECT $1::text", &token),
            exchange("SELECT ($1::text)::int", &token),
            exchange("SELECT $1::text", &second),
        ];
        self.send(&batch.concat()).await?;
        self.check(&[token], &[]).await?;
        self.check(&[], &["22P02", "22003"]).await?;
        self.check(&[second], &[]).await
    }

    async fn transaction(&mut self, token: String) -> Result<(), Gone> {
        self.send(&query("BEGIN")).await?;
        self.check(&[], &[]).await?;
        let set = format!("SET LOCAL shaken.token = '{token}'");
        self.send(&query(&set)).await?;
        self.check(&[], &[]).await?;
        self.send(&query("SHOW shaken.token")).await?;
        self.check(&[token], &[]).await?;
        let end = if self.rng.random() {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        self.send(&query(end)).await?;
        self.check(&[], &[]).await
    }

    async fn setting(&mut self, token: String) -> Result<(), Gone> {
        let set = format!("SET application_name = '{token}'");
        self.send(&query(&set)).await?;
        self.check(&[], &[]).await?;
        self.send(&query("SHOW application_name")).await?;
        self.check(&[token], &[]).await
    }

    /// The cancel races with the end of the statement; it may hit this one and no other.
    async fn canceled(&mut self, token: String) -> Result<(), Gone> {
        let naps = ["0", "0.001", "0.01", "2"];
        let nap = naps[self.rng.random_range(0..naps.len())];
        let sql = format!("SELECT '{token}' FROM pg_sleep({nap})");
        self.send(&query(&sql)).await?;
        let pause = Duration::from_micros(self.rng.random_range(0..3000));
        tokio::time::sleep(pause).await;
        count(&self.counts.cancels);
        let (address, key) = (self.address, self.client.key.clone());
        let cancel = pgweir::tasks::spawn("cancel", async move {
            crate::support::client::cancel(address, &key).await;
        });
        let (values, errors) = self.answer().await?;
        // Its own next statement may be hit by it, as with PostgreSQL; so it waits for the request to be through.
        cancel.await.unwrap();
        let is_canceled = errors.iter().any(|error| error.code == "57014");
        let is_fine = values == [token] && errors.is_empty();
        if is_canceled && errors.len() == 1 {
            count(&self.counts.canceled);
        } else if is_fine {
            count(&self.counts.own);
        } else {
            count(&self.counts.crossed);
            eprintln!("canceled: got {values:?} {errors:?}");
        }
        Ok(())
    }

    /// Leaves something unfinished behind and hangs up without a word.
    async fn leave(&mut self, how: Act, token: &str) -> Result<(), Gone> {
        count(&self.counts.disconnects);
        let select = query(&format!("SELECT '{token}', pg_sleep(0.5)"));
        let bytes = match how {
            Act::LeaveInQuery => select,
            Act::LeaveInMessage => {
                let cut = self.rng.random_range(1..select.len());
                select[..cut].to_vec()
            }
            Act::LeaveInTransaction => query(&format!(
                "BEGIN; SET application_name = '{token}'; SELECT pg_advisory_xact_lock_shared(7)"
            )),
            Act::LeaveInCopy => {
                [query("COPY shaken FROM STDIN"), copy_data(token.as_bytes())].concat()
            }
            Act::LeaveInExchange => [
                parse("", "INSERT INTO shaken VALUES ($1)", &[]),
                bind("", "", &[Some(token)]),
                execute("", 0),
                flush(),
            ]
            .concat(),
            _ => query(&format!(
                "SET application_name = '{token}'; SET work_mem = '77MB'; SET ROLE pg_monitor"
            )),
        };
        self.send(&bytes).await?;
        if self.rng.random() {
            let pause = Duration::from_micros(self.rng.random_range(0..5000));
            tokio::time::sleep(pause).await;
        }
        Err(Gone)
    }
}

fn first_value(body: &[u8]) -> String {
    let Some((length, rest)) = body[2..].split_first_chunk::<4>() else {
        return String::new();
    };
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    String::from_utf8_lossy(&rest[..length]).into_owned()
}

/// Acts until `stop`; a connection that ended is replaced.
async fn shake(
    address: std::net::SocketAddr,
    seed: u64,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
) {
    let mut rng = SmallRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let login = Login::new(ROLE, "postgres");
        let client = match Client::connect_as(address, &login).await {
            Ok(client) => client,
            Err(error) => panic!("login refused: {error:?}"),
        };
        let mut shaken = Shaken {
            client,
            rng: SmallRng::seed_from_u64(rng.random()),
            counts: Arc::clone(&counts),
            prepared: 0,
            address,
            doing: None,
        };
        while !stop.load(Ordering::Relaxed) {
            let act = Act::random(&mut shaken.rng);
            if shaken.act(act).await.is_err() {
                break;
            }
        }
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// No backend in a transaction, with a lock or with a setting of a client that is gone; and all of them work.
async fn assert_clean(observer: &mut Client, pgweir: &Pgweir, backends: usize) {
    let unclean = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}' AND (state <> 'idle' OR xact_start IS NOT NULL)"
    );
    eventually("every backend to be at rest", async || {
        observer.value(&unclean).await == "0"
    })
    .await;
    let open = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}'");
    // One that was killed is in the list until it has gone.
    eventually("no more backends than the pool has", async || {
        let open: usize = observer.value(&open).await.parse().unwrap();
        open <= backends
    })
    .await;
    let locks = format!(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE usename = '{ROLE}'"
    );
    assert_eq!(observer.value(&locks).await, "0");
    let rows = "SELECT count(*) FROM shaken";
    assert_eq!(
        observer.value(rows).await,
        "0",
        "left in COPY or an exchange"
    );
    let login = Login::new(ROLE, "postgres");
    let mut clients = Vec::new();
    for _ in 0..backends {
        let mut client = pgweir.client_as(&login).await;
        client.query("BEGIN").await.ok();
        let state = "SELECT current_user || ' ' || current_setting('work_mem') || ' ' || \
                     current_setting('application_name') || (SELECT count(*) FROM pg_listening_channels())";
        assert_eq!(client.value(state).await, format!("{ROLE} 4MB 0"));
        clients.push(client);
    }
}

#[test]
fn no_client_gets_anothers_answer() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(shake_all());
}

async fn shake_all() {
    let number = |name, default| usize::try_from(environment(name, default)).unwrap();
    let clients = number("PGWEIR_CLIENTS", 200);
    let backends = number("PGWEIR_BACKENDS", 5);
    let seconds = environment("PGWEIR_SECONDS", 4);
    let seed = rand::random::<u64>();
    let server = ServerOptions::default()
        .set("max_connections", &(backends * 2 + 60).to_string())
        .start()
        .unwrap();
    let mut observer = Client::connect(server.address(), "postgres", "postgres").await;
    for sql in [
        format!("CREATE ROLE {ROLE} LOGIN; GRANT pg_monitor TO {ROLE}"),
        format!("CREATE TABLE shaken (a text); GRANT ALL ON shaken TO {ROLE}"),
    ] {
        observer.query(&sql).await.ok();
    }
    let pgweir = Options::new(&server)
        .flag("--pool-size", &backends.to_string())
        .set("general.max_client_conn", "100000")
        .set("log.level", "warn,pgweir=info")
        .set("log.log_connections", "false")
        .set("log.log_disconnections", "false")
        .set("log.log_pooler_errors", "false")
        .start();
    let counts = Arc::new(Counts::default());
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..clients as u64)
        .map(|index| {
            let client = shake(
                pgweir.address,
                seed.wrapping_add(index),
                Arc::clone(&counts),
                Arc::clone(&stop),
            );
            pgweir::tasks::spawn("shaken client", client)
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        // Now and then a backend dies under its client.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let kill = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
             WHERE usename = '{ROLE}' ORDER BY random() LIMIT 1) AS victim"
        );
        observer.query(&kill).await.ok();
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let on_lanes = pgweir
        .metric(&format!(
            "pgweir_lane_statements_total{{database=\"postgres\",user=\"{ROLE}\",outcome=\"answered\"}} "
        ))
        .unwrap();
    report(&counts, on_lanes, clients, backends, seconds, seed);
    assert_clean(&mut observer, &pgweir, backends).await;
    assert_eq!(counts.crossed.load(Ordering::Relaxed), 0, "seed {seed}");
    assert!(counts.own.load(Ordering::Relaxed) > 0);
}

fn report(
    counts: &Counts,
    on_lanes: f64,
    clients: usize,
    backends: usize,
    seconds: u64,
    seed: u64,
) {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let named = BTreeMap::from([
        ("1 own", of(&counts.own)),
        ("2 crossed", of(&counts.crossed)),
        ("3 cancel requests", of(&counts.cancels)),
        ("4 canceled", of(&counts.canceled)),
        ("5 disconnects", of(&counts.disconnects)),
        ("6 errors", of(&counts.errors)),
        ("7 killed", of(&counts.killed)),
    ]);
    let parts: Vec<String> = named
        .iter()
        .map(|(name, count)| format!("{} {count}", &name[2..]))
        .collect();
    let line = format!(
        "never cross: {clients} clients on {backends} backends for {seconds} s (seed {seed}): {}, on lanes {on_lanes}\n",
        parts.join(", ")
    );
    // Past the capture of test output, which hides what passing tests print.
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

/// What a query answered before its client left does to nobody: the same on purpose, one step at a time.
#[tokio::test]
async fn an_answer_nobody_took_is_nobody_elses() {
    let mut role = crate::shared::role("nobodys_answer").await;
    let pgweir = Options::new(crate::shared::server())
        .flag("--pool-size", "1")
        .start();
    for round in 0..30 {
        let mut leaver = role.client(&pgweir).await;
        let sql = format!(
            "SELECT 'not yours {round}' FROM generate_series(1, {})",
            round * 50
        );
        leaver.send(&query(&sql)).await;
        if round % 2 == 0 {
            leaver.read_message().await;
        }
        drop(leaver);
        let mut next = role.client(&pgweir).await;
        let token = format!("mine {round}");
        let reply = next.extended("SELECT $1::text", &[Some(&token)]).await.ok();
        assert_eq!(reply.value(), token);
        next.send(&messages::terminate()).await;
    }
    assert_eq!(role.pids().await.len(), 1);
}
