//! A client that does something else each time, and checks every answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::ledger::{Fate, Ledger};
use super::scene::{OTHER_ROLE, ROLE, Scene};
use crate::support::client::{Client, cancel};
use crate::support::messages::{
    self, Message, ServerError, bind, close, copy_data, copy_done, copy_fail, describe, execute,
    flush, parse, query, sync,
};

/// What a disturbed statement or session may be told: the server was stopped or lost, or somebody canceled it. 40001 is
/// said of a COMMIT that was settled and had not happened.
const DISTURBED: [&str; 9] = [
    "57P01", "57P02", "57P03", "57014", "08006", "08007", "40001", "40003", "53300",
];

/// Those after which nobody knows whether the statement was run.
const DOUBTFUL: [&str; 3] = ["08006", "08007", "40003"];

/// Longest wait for an answer: a restart of the server takes a second or two, and nothing else takes long.
const PATIENCE: Duration = Duration::from_secs(20);

/// The connection is of no more use: it ended, or what was under way on it was disturbed.
#[derive(Debug)]
pub struct Over;

type Step = Result<(), Over>;

/// What came until some message.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The first column of each row, each line of COPY.
    pub values: Vec<String>,
    pub tags: Vec<String>,
    pub errors: Vec<ServerError>,
    /// Of ReadyForQuery, or 0.
    pub status: u8,
}

/// A connection and what was said on it last.
pub struct Connection {
    client: Client,
    scene: Arc<Scene>,
    /// The only channel it may listen to.
    channel: String,
    recent: VecDeque<String>,
}

impl Connection {
    /// Logs in; being refused because of a disturbance is no finding.
    pub async fn open(scene: &Arc<Scene>, parameters: &[(&str, &str)]) -> Result<Self, Over> {
        let mut connection = Self {
            client: Client::open(scene.address).await,
            scene: Arc::clone(scene),
            channel: String::new(),
            recent: VecDeque::new(),
        };
        let login = [&[("user", ROLE), ("database", "postgres")], parameters].concat();
        let startup = messages::startup(messages::PROTOCOL_3_0, &login);
        connection.send(&startup).await?;
        let answer = connection.until(b"Z").await?;
        if answer.errors.is_empty() {
            return Ok(connection);
        }
        connection.find(&format!("login: {answer:?}"));
        Err(Over)
    }

    fn find(&self, finding: &str) {
        self.scene
            .findings
            .add(format!("{finding} after {:?}", self.recent));
    }

    fn remember(&mut self, what: impl Into<String>) {
        if self.recent.len() == 8 {
            self.recent.pop_front();
        }
        self.recent.push_back(what.into());
    }

    async fn send(&mut self, bytes: &[u8]) -> Step {
        self.client.try_send(bytes).await.map_err(|_| Over)
    }

    /// Reads up to a message with one of these tags. A session that is ended has to be told why.
    async fn until(&mut self, tags: &[u8]) -> Result<Answer, Over> {
        let mut answer = Answer::default();
        loop {
            let message = tokio::time::timeout(PATIENCE, self.client.read_message_or_cut()).await;
            let Ok(message) = message else {
                self.find("no answer");
                self.scene.describe().await;
                return Err(Over);
            };
            let Some(message) = message else {
                let last = self.recent.back().map_or("login", |what| {
                    what.split_whitespace().next().unwrap_or_default()
                });
                self.scene
                    .count(&format!("ended without a word after {last}"));
                return Err(Over);
            };
            self.take(&message, &mut answer)?;
            if tags.contains(&message.tag) {
                return Ok(answer);
            }
        }
    }

    fn take(&mut self, message: &Message, answer: &mut Answer) -> Step {
        match message.tag {
            b'D' => answer.values.push(first_value(&message.body)),
            b'd' => {
                let line = String::from_utf8_lossy(&message.body);
                answer.values.push(line.trim_end().to_owned());
            }
            b'C' => answer.tags.extend(message.strings()),
            b'Z' => answer.status = message.body[0],
            b'K' => self.client.key.clone_from(&message.body),
            b'A' => {
                let channel = String::from_utf8_lossy(&message.body[4..]).into_owned();
                if self.channel.is_empty() || !channel.starts_with(&self.channel) {
                    self.find(&format!("a notification for another client: {channel:?}"));
                }
                self.scene.count("own notification");
            }
            b'E' => {
                let error = ServerError::parse(message);
                if error.severity == "FATAL" || error.severity == "PANIC" {
                    self.scene.count(&format!("ended by {}", error.code));
                    if !is_disturbance(&error) {
                        self.find(&format!("ended: {error:?}"));
                    }
                    return Err(Over);
                }
                answer.errors.push(error);
            }
            _ => {}
        }
        Ok(())
    }

    /// A simple query and its answer, whatever it is.
    pub async fn ask(&mut self, sql: &str) -> Result<Answer, Over> {
        self.remember(sql);
        self.send(&query(sql)).await?;
        self.answer().await
    }

    /// The answer up to ReadyForQuery; a disturbed one ends the connection's use.
    async fn answer(&mut self) -> Result<Answer, Over> {
        let answer = self.until(b"Z").await?;
        match answer.errors.iter().find(|error| is_disturbance(error)) {
            Some(error) => {
                self.scene.count(&format!("disturbed by {}", error.code));
                Err(Over)
            }
            None => Ok(answer),
        }
    }

    /// Checks an answer that came undisturbed.
    fn check(&self, answer: &Answer, expected: &[String], error: Option<&str>, status: u8) {
        let codes: Vec<&str> = answer.errors.iter().map(|one| one.code.as_str()).collect();
        let is_right = codes == error.as_slice()
            && answer.status == status
            && (error.is_some() || answer.values == expected);
        if is_right {
            self.scene.count("own answer");
        } else {
            let short = |values: &[String]| {
                format!(
                    "{} values {:?}",
                    values.len(),
                    &values[..values.len().min(3)]
                )
            };
            self.find(&format!(
                "expected {}, error {error:?}, status {:?}; got {}, {:?}, status {:?}",
                short(expected),
                char::from(status),
                short(&answer.values),
                answer.errors,
                char::from(answer.status)
            ));
        }
    }
}

fn is_disturbance(error: &ServerError) -> bool {
    DISTURBED.contains(&error.code.as_str()) || error.message.contains("is disabled")
}

fn first_value(body: &[u8]) -> String {
    let Some((length, rest)) = body[2..].split_first_chunk::<4>() else {
        return String::new();
    };
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    String::from_utf8_lossy(&rest[..length]).into_owned()
}

/// What its session was told to be, which has to be so on every backend.
#[derive(Clone, Debug, Default)]
struct Session {
    work_mem: Option<u32>,
    application_name: Option<String>,
    is_other_role: bool,
}

impl Session {
    fn shown(&self) -> String {
        let work_mem = self.work_mem.map_or("4MB".into(), |kib| format!("{kib}kB"));
        let name = self.application_name.as_deref().unwrap_or_default();
        let role = if self.is_other_role { OTHER_ROLE } else { ROLE };
        format!("{work_mem} {name} {role}")
    }
}

const SHOW_SESSION: &str = "SELECT current_setting('work_mem') || ' ' || \
     current_setting('application_name') || ' ' || current_user";

/// A client of the chaos.
struct Chaotic {
    connection: Connection,
    scene: Arc<Scene>,
    rng: SmallRng,
    index: usize,
    session: Session,
    /// The number in its named statement, once that is prepared.
    prepared: Option<u32>,
}

/// Acts until the end; a connection that is over is replaced.
pub async fn live(scene: Arc<Scene>, index: usize, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    while !scene.stop.load(Ordering::Relaxed) {
        let name = rng
            .random_ratio(1, 3)
            .then(|| format!("start{}", rng.random::<u32>()));
        let parameters: Vec<(&str, &str)> = name
            .iter()
            .map(|name| ("application_name", name.as_str()))
            .collect();
        let Ok(connection) = Connection::open(&scene, &parameters).await else {
            scene.count("login disturbed");
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut chaotic = Chaotic {
            connection,
            scene: Arc::clone(&scene),
            rng: SmallRng::seed_from_u64(rng.random()),
            index,
            session: Session {
                application_name: name,
                ..Session::default()
            },
            prepared: None,
        };
        while !scene.stop.load(Ordering::Relaxed) {
            if chaotic.act().await.is_err() {
                break;
            }
        }
    }
}

impl Chaotic {
    fn token(&mut self) -> String {
        format!("{:016x}", self.rng.random::<u64>())
    }

    async fn act(&mut self) -> Step {
        let token = self.token();
        match self.rng.random_range(0..100) {
            0..8 => self.simple(token).await,
            8..16 => self.extended(token).await,
            16..24 => self.named(token).await,
            24..28 => self.portal(token).await,
            28..34 => self.pipeline(token).await,
            34..42 => self.insert().await,
            42..48 => self.transaction().await,
            48..52 => self.implicit_transaction().await,
            52..56 => self.pipelined_inserts().await,
            56..60 => self.count().await,
            60..65 => self.copy_in().await,
            65..67 => self.copy_out(token).await,
            67..72 => self.set().await,
            72..76 => self.show_session().await,
            76..79 => self.temporary_table(token).await,
            79..82 => self.advisory_lock().await,
            82..84 => self.listen(token).await,
            84..86 => self.sql_prepare(token).await,
            86..88 => self.cursor(token).await,
            88..91 => self.error().await,
            91..94 => self.canceled(token).await,
            94..96 => self.slow_reader(token).await,
            _ => self.leave().await,
        }
    }

    /// A simple query with exactly this answer.
    async fn run(&mut self, sql: &str, expected: &[String], status: u8) -> Step {
        let answer = self.connection.ask(sql).await?;
        self.connection.check(&answer, expected, None, status);
        Ok(())
    }

    /// An extended batch with one ReadyForQuery and exactly this answer.
    async fn exchange(&mut self, what: &str, batch: &[Vec<u8>], expected: &[String]) -> Step {
        self.connection.remember(what);
        self.connection.send(&batch.concat()).await?;
        let answer = self.connection.answer().await?;
        self.connection.check(&answer, expected, None, b'I');
        Ok(())
    }

    async fn simple(&mut self, token: String) -> Step {
        self.run(&format!("SELECT '{token}'"), &[token], b'I').await
    }

    async fn extended(&mut self, token: String) -> Step {
        let batch = [
            parse("", "SELECT $1::text", &[]),
            bind("", "", &[Some(&token)]),
            describe(b'P', ""),
            execute("", 0),
            sync(),
        ];
        self.exchange("unnamed", &batch, &[token]).await
    }

    /// A named statement of its own, which moves from backend to backend and is closed now and then.
    async fn named(&mut self, token: String) -> Step {
        let mut batch = Vec::new();
        let number = self.prepared.unwrap_or_else(|| self.rng.random());
        if self.prepared.is_none() {
            let text = format!("SELECT $1::text || '-{number}'");
            batch.push(parse("mine", &text, &[]));
        }
        batch.extend([bind("", "mine", &[Some(&token)]), execute("", 0)]);
        let is_closed = self.rng.random_ratio(1, 8);
        if is_closed {
            batch.push(close(b'S', "mine"));
        }
        batch.push(sync());
        self.prepared = if is_closed { None } else { Some(number) };
        let expected = format!("{token}-{number}");
        self.exchange("named", &batch, &[expected]).await
    }

    /// A portal read in two parts, in one exchange.
    async fn portal(&mut self, token: String) -> Step {
        self.connection.remember("portal");
        let text = "SELECT $1::text || n FROM generate_series(1, 5) AS n";
        let batch = [
            parse("", text, &[]),
            bind("p", "", &[Some(&token)]),
            execute("p", 2),
            flush(),
        ];
        self.connection.send(&batch.concat()).await?;
        let mut answer = self.connection.until(b"sE").await?;
        let rest = if answer.errors.is_empty() {
            execute("p", 0)
        } else {
            Vec::new()
        };
        self.connection.send(&[rest, sync()].concat()).await?;
        let end = self.connection.answer().await?;
        answer.values.extend(end.values);
        answer.errors.extend(end.errors);
        answer.status = end.status;
        if answer.errors.iter().any(is_disturbance) {
            return Err(Over);
        }
        let expected: Vec<String> = (1..=5).map(|n| format!("{token}{n}")).collect();
        self.connection.check(&answer, &expected, None, b'I');
        Ok(())
    }

    /// Three exchanges in one write, the second of which fails.
    async fn pipeline(&mut self, token: String) -> Step {
        self.connection.remember("pipeline");
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
            exchange("SELECT 1 / length($1::text)", ""),
            exchange("SELECT $1::text", &second),
        ];
        self.connection.send(&batch.concat()).await?;
        for (value, error) in [
            (Some(token), None),
            (None, Some("22012")),
            (Some(second), None),
        ] {
            let answer = self.connection.answer().await?;
            let expected: Vec<String> = value.into_iter().collect();
            self.connection.check(&answer, &expected, error, b'I');
        }
        Ok(())
    }

    /// What the last message told of a write.
    fn settle(&self, batch: usize, answer: &Answer, tag: &str) {
        let fate = match answer.errors.first() {
            Some(error) if DOUBTFUL.contains(&error.code.as_str()) => Fate::Unknown,
            Some(_) => Fate::Refused,
            None if answer.tags.last().is_some_and(|last| last.starts_with(tag)) => Fate::Committed,
            None => {
                self.connection
                    .find(&format!("{tag} expected, got {answer:?}"));
                Fate::Unknown
            }
        };
        self.scene.ledger.set(batch, fate);
    }

    /// Sends what may commit `batch`, reads the answer and notes what became of it.
    async fn write(
        &mut self,
        what: &str,
        bytes: &[u8],
        batch: usize,
        tag: &str,
    ) -> Result<Answer, Over> {
        self.connection.remember(what);
        self.scene.ledger.set(batch, Fate::Unknown);
        self.connection.send(bytes).await?;
        let answer = self.connection.until(b"Z").await?;
        self.settle(batch, &answer, tag);
        if answer.errors.iter().any(is_disturbance) {
            self.scene.count("write disturbed");
            return Err(Over);
        }
        Ok(answer)
    }

    /// A write by itself, in either protocol, sometimes canceled.
    async fn insert(&mut self) -> Step {
        let rows = self.rng.random_range(1..5);
        let batch = self.scene.ledger.begin(rows);
        let sql = Ledger::insert(batch, rows);
        let bytes = if self.rng.random() {
            query(&sql)
        } else {
            [
                parse("", &sql, &[]),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat()
        };
        let hurry = self.rng.random_ratio(1, 10).then(|| {
            let (address, key) = (self.scene.address, self.connection.client.key.clone());
            pgweir::tasks::spawn("cancel", async move { cancel(address, &key).await })
        });
        let written = self.write(&sql, &bytes, batch, "INSERT").await;
        if let Some(hurry) = hurry {
            hurry.await.map_err(|_| Over)?;
        }
        let answer = written?;
        self.connection.check(&answer, &[], None, b'I');
        Ok(())
    }

    /// `BEGIN`, writes with a savepoint rolled back to, `COMMIT` or `ROLLBACK` or an error.
    async fn transaction(&mut self) -> Step {
        let rows = self.rng.random_range(1..5);
        let batch = self.scene.ledger.begin(rows);
        self.run("BEGIN", &[], b'T').await?;
        self.run(&Ledger::insert(batch, rows), &[], b'T').await?;
        if self.rng.random() {
            self.run("SAVEPOINT s", &[], b'T').await?;
            self.run(&Ledger::insert(batch, 7), &[], b'T').await?;
            self.run("ROLLBACK TO s", &[], b'T').await?;
        }
        match self.rng.random_range(0..4) {
            0 => self.run("ROLLBACK", &[], b'I').await,
            1 => {
                let answer = self.connection.ask("SELECT 1 / 0").await?;
                self.connection.check(&answer, &[], Some("22012"), b'E');
                let answer = self.connection.ask("COMMIT").await?;
                if answer.tags != ["ROLLBACK"] {
                    self.connection
                        .find(&format!("a failed transaction: {answer:?}"));
                }
                Ok(())
            }
            _ => {
                let answer = self
                    .write("COMMIT", &query("COMMIT"), batch, "COMMIT")
                    .await?;
                self.connection.check(&answer, &[], None, b'I');
                Ok(())
            }
        }
    }

    /// Several statements before one Sync, which are one transaction; sometimes the last one fails.
    async fn implicit_transaction(&mut self) -> Step {
        let fails = self.rng.random_ratio(1, 3);
        let batch = self.scene.ledger.begin(3);
        let mut bytes = Vec::new();
        for n in 1..=3 {
            let sql = format!("INSERT INTO ledger VALUES ({batch}, $1)");
            let n = n.to_string();
            bytes.extend(
                [
                    parse("", &sql, &[23]),
                    bind("", "", &[Some(&n)]),
                    execute("", 0),
                ]
                .concat(),
            );
        }
        if fails {
            bytes.extend(
                [
                    parse("", "SELECT 1 / 0", &[]),
                    bind("", "", &[]),
                    execute("", 0),
                ]
                .concat(),
            );
        }
        bytes.extend(sync());
        let answer = self.write("one Sync", &bytes, batch, "INSERT").await?;
        let error = fails.then_some("22012");
        self.connection.check(&answer, &[], error, b'I');
        Ok(())
    }

    /// Several writes in one packet, each with its own Sync.
    async fn pipelined_inserts(&mut self) -> Step {
        self.connection.remember("pipelined inserts");
        let count = self.rng.random_range(2..8);
        let mut bytes = Vec::new();
        let mut batches = Vec::new();
        for _ in 0..count {
            let batch = self.scene.ledger.begin(1);
            let sql = format!("INSERT INTO ledger VALUES ({batch}, 1)");
            bytes.extend(
                [
                    parse("", &sql, &[]),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ]
                .concat(),
            );
            self.scene.ledger.set(batch, Fate::Unknown);
            batches.push(batch);
        }
        self.connection.send(&bytes).await?;
        let mut disturbed = false;
        for batch in batches {
            let answer = self.connection.until(b"Z").await?;
            self.settle(batch, &answer, "INSERT");
            disturbed |= answer.errors.iter().any(is_disturbance);
            if answer.errors.is_empty() {
                self.connection.check(&answer, &[], None, b'I');
            }
        }
        if disturbed { Err(Over) } else { Ok(()) }
    }

    /// Its own counter, one more; and what it reads is what it has written.
    async fn count(&mut self) -> Step {
        let ledger = &self.scene.ledger;
        let sql = format!(
            "INSERT INTO counters VALUES ({}, 1) ON CONFLICT (client) DO UPDATE SET n = counters.n + 1",
            self.index
        );
        ledger.increment(self.index);
        self.connection.remember(&sql);
        self.connection.send(&query(&sql)).await?;
        let answer = self.connection.until(b"Z").await?;
        match answer.errors.first() {
            None => ledger.settle_increment(self.index, true),
            Some(error) if DOUBTFUL.contains(&error.code.as_str()) => {}
            Some(_) => ledger.settle_increment(self.index, false),
        }
        if answer.errors.iter().any(is_disturbance) {
            return Err(Over);
        }
        self.connection.check(&answer, &[], None, b'I');
        let sql = format!("SELECT n FROM counters WHERE client = {}", self.index);
        let answer = self.connection.ask(&sql).await?;
        let (least, most) = self.scene.ledger.bounds(self.index);
        let found = answer.values.first().and_then(|n| n.parse().ok());
        if !found.is_some_and(|n: u64| (least..=most).contains(&n)) {
            self.connection
                .find(&format!("its counter is {answer:?}, not {least} to {most}"));
        }
        Ok(())
    }

    /// Rows by COPY, in pieces; sometimes the client calls it off.
    async fn copy_in(&mut self) -> Step {
        let rows = self.rng.random_range(1..200);
        let batch = self.scene.ledger.begin(rows);
        let text = "COPY ledger FROM STDIN";
        self.connection.remember(text);
        self.connection.send(&query(text)).await?;
        let start = self.connection.until(b"GZ").await?;
        if !start.errors.is_empty() {
            if !start.errors.iter().any(is_disturbance) {
                self.connection.find(&format!("COPY: {start:?}"));
            }
            return Err(Over);
        }
        let data = Ledger::copied(batch, rows);
        let size = self.rng.random_range(1..300);
        let pieces: Vec<Vec<u8>> = data.as_bytes().chunks(size).map(copy_data).collect();
        self.connection.send(&pieces.concat()).await?;
        if self.rng.random_ratio(1, 5) {
            self.connection.send(&copy_fail("called off")).await?;
            let answer = self.connection.answer().await?;
            let codes: Vec<&str> = answer
                .errors
                .iter()
                .map(|error| error.code.as_str())
                .collect();
            // A canceled COPY may be told of either.
            if codes != ["57014"] || answer.status != b'I' {
                self.connection
                    .find(&format!("COPY called off: {answer:?}"));
            }
            return Ok(());
        }
        let answer = self.write("CopyDone", &copy_done(), batch, "COPY").await?;
        self.connection.check(&answer, &[], None, b'I');
        Ok(())
    }

    async fn copy_out(&mut self, token: String) -> Step {
        let sql =
            format!("COPY (SELECT '{token}' || n FROM generate_series(1, 300) AS n) TO STDOUT");
        let expected: Vec<String> = (1..=300).map(|n| format!("{token}{n}")).collect();
        self.run(&sql, &expected, b'I').await
    }

    /// Changes its session, sometimes in a transaction that is rolled back.
    async fn set(&mut self) -> Step {
        let mut wanted = self.session.clone();
        let sql = match self.rng.random_range(0..5) {
            0 => {
                let kib = self.rng.random_range(5001..6000) | 1;
                wanted.work_mem = Some(kib);
                format!("SET work_mem = '{kib}kB'")
            }
            1 => {
                wanted.work_mem = None;
                "RESET work_mem".to_owned()
            }
            2 => {
                let name = self.token();
                let sql = format!("SET application_name = '{name}'");
                wanted.application_name = Some(name);
                sql
            }
            3 => {
                wanted.is_other_role = true;
                format!("SET ROLE {OTHER_ROLE}")
            }
            _ => {
                wanted.is_other_role = false;
                "RESET ROLE".to_owned()
            }
        };
        if self.rng.random_ratio(1, 4) {
            self.run("BEGIN", &[], b'T').await?;
            self.run(&sql, &[], b'T').await?;
            self.run(SHOW_SESSION, &[wanted.shown()], b'T').await?;
            return self.run("ROLLBACK", &[], b'I').await;
        }
        self.run(&sql, &[], b'I').await?;
        self.session = wanted;
        self.show_session().await
    }

    async fn show_session(&mut self) -> Step {
        let expected = self.session.shown();
        self.run(SHOW_SESSION, &[expected], b'I').await
    }

    /// State that can't be moved, left behind as often as not.
    async fn temporary_table(&mut self, token: String) -> Step {
        self.run("CREATE TEMP TABLE mine (a text)", &[], b'I')
            .await?;
        self.run(&format!("INSERT INTO mine VALUES ('{token}')"), &[], b'I')
            .await?;
        self.run("SELECT a FROM mine", &[token], b'I').await?;
        if self.rng.random_ratio(1, 4) {
            return Err(Over);
        }
        self.run("DROP TABLE mine", &[], b'I').await
    }

    async fn advisory_lock(&mut self) -> Step {
        let key: u16 = self.rng.random();
        let key = u64::from(key) << 16 | self.index as u64;
        let held = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {} AND pid = pg_backend_pid()",
            key & 0xffff_ffff
        );
        self.run(
            &format!("SELECT pg_advisory_lock({key})"),
            &[String::new()],
            b'I',
        )
        .await?;
        self.run(&held, &["1".to_owned()], b'I').await?;
        if self.rng.random_ratio(1, 4) {
            return Err(Over);
        }
        self.run(
            &format!("SELECT pg_advisory_unlock({key})"),
            &["t".to_owned()],
            b'I',
        )
        .await
    }

    async fn listen(&mut self, token: String) -> Step {
        self.connection.channel = format!("of_{}_", self.index);
        let channel = format!("of_{}_{token}", self.index);
        self.run(&format!("LISTEN {channel}"), &[], b'I').await?;
        self.run(&format!("NOTIFY {channel}, '{token}'"), &[], b'I')
            .await?;
        if self.rng.random_ratio(1, 4) {
            return Err(Over);
        }
        self.run("UNLISTEN *", &[], b'I').await
    }

    async fn sql_prepare(&mut self, token: String) -> Step {
        self.run("PREPARE said AS SELECT $1::text || '-said'", &[], b'I')
            .await?;
        let expected = format!("{token}-said");
        self.run(&format!("EXECUTE said('{token}')"), &[expected], b'I')
            .await?;
        if self.rng.random_ratio(1, 4) {
            return Err(Over);
        }
        self.run("DEALLOCATE said", &[], b'I').await
    }

    async fn cursor(&mut self, token: String) -> Step {
        let sql = format!(
            "DECLARE held CURSOR WITH HOLD FOR SELECT '{token}' || n FROM generate_series(1, 3) AS n"
        );
        self.run(&sql, &[], b'I').await?;
        let all: Vec<String> = (1..=3).map(|n| format!("{token}{n}")).collect();
        self.run("FETCH 2 FROM held", &all[..2], b'I').await?;
        if self.rng.random_ratio(1, 4) {
            return Err(Over);
        }
        self.run("FETCH 2 FROM held", &all[2..], b'I').await?;
        self.run("CLOSE held", &[], b'I').await
    }

    async fn error(&mut self) -> Step {
        let (sql, code) = match self.rng.random_range(0..3) {
            0 => ("SELECT 1 / 0", "22012"),
            1 => ("SELEC", "42601"),
            _ => ("SELECT * FROM there_is_none", "42P01"),
        };
        let answer = self.connection.ask(sql).await?;
        self.connection.check(&answer, &[], Some(code), b'I');
        Ok(())
    }

    /// The cancel races with the end of the statement; it may hit this one and no other.
    async fn canceled(&mut self, token: String) -> Step {
        let naps = ["0", "0.001", "0.01", "1"];
        let nap = naps[self.rng.random_range(0..naps.len())];
        let sql = format!("SELECT '{token}' FROM pg_sleep({nap})");
        self.connection.remember(&sql);
        self.connection.send(&query(&sql)).await?;
        let pause = Duration::from_micros(self.rng.random_range(0..3000));
        tokio::time::sleep(pause).await;
        let (address, key) = (self.scene.address, self.connection.client.key.clone());
        let hurry = pgweir::tasks::spawn("cancel", async move { cancel(address, &key).await });
        let answer = self.connection.until(b"Z").await;
        hurry.await.map_err(|_| Over)?;
        let answer = answer?;
        if answer.errors.iter().any(is_disturbance) {
            self.scene.count("canceled");
        } else {
            self.connection.check(&answer, &[token], None, b'I');
        }
        Ok(())
    }

    /// Takes its time over a large answer.
    async fn slow_reader(&mut self, token: String) -> Step {
        let rows = 20_000;
        let sql = format!("SELECT '{token}' || n FROM generate_series(1, {rows}) AS n");
        self.connection.remember(&sql);
        self.connection.send(&query(&sql)).await?;
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..200))).await;
        if self.rng.random_ratio(1, 3) {
            return Err(Over);
        }
        let answer = self.connection.answer().await?;
        let expected: Vec<String> = (1..=rows).map(|n| format!("{token}{n}")).collect();
        self.connection.check(&answer, &expected, None, b'I');
        Ok(())
    }

    /// Hangs up at any byte of something that writes, with or without reading a part of the answer.
    async fn leave(&mut self) -> Step {
        self.scene.count("left at any byte");
        let rows = 2;
        let batch = self.scene.ledger.begin(rows);
        let insert = Ledger::insert(batch, rows);
        let select = "SELECT repeat('x', 1000) FROM generate_series(1, 100)";
        let (open, rest) = match self.rng.random_range(0..5) {
            0 => (
                vec![query("SET work_mem = '77MB'"), query(select)],
                query(&insert),
            ),
            1 => (
                vec![query("BEGIN"), query(&insert), query(select)],
                query("COMMIT"),
            ),
            2 => {
                let write = [parse("", &insert, &[]), bind("", "", &[]), execute("", 0)];
                (vec![write.concat()], sync())
            }
            3 => {
                let data = Ledger::copied(batch, rows);
                let copy = [query("COPY ledger FROM STDIN"), copy_data(data.as_bytes())];
                (vec![copy.concat()], copy_done())
            }
            _ => (vec![query(select), flush()], query(&insert)),
        };
        let open = open.concat();
        let all = [open.clone(), rest].concat();
        let cut = self.rng.random_range(1..=all.len());
        // Without the last byte of what commits it, it must not be there.
        if cut == all.len() {
            self.scene.ledger.set(batch, Fate::Unknown);
        }
        self.connection.send(&all[..cut]).await?;
        for _ in 0..self.rng.random_range(0..4) {
            // Half a message is not answered.
            let moment = Duration::from_micros(self.rng.random_range(0..10_000));
            let read = self.connection.client.read_message_or_cut();
            if let Ok(None) = tokio::time::timeout(moment, read).await {
                break;
            }
        }
        Err(Over)
    }
}
