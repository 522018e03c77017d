//! A random dialogue with PostgreSQL and the same one through pgweir: every message of the answers must be the same.
//!
//! Two backends, and a second client that uses the same statement names for other texts, settings of its own, and
//! keeps one backend in a transaction from time to time, so that the first client's exchanges change places.
//!
//! The first client has no startup parameters: what RESET goes back to is seen only behind the next Sync.
//!
//! The seed is fixed, so that a change is judged by what it changed. `PGWEIR_SEED=random` looks for more (`make soak`) and
//! prints its seed, `PGWEIR_SEED=NUMBER` repeats such a run, `PGWEIR_CASES` makes it longer.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::same::exchange;
use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{
    Message, bind, close, describe, execute, flush, parse, query, sync,
};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::eventually;

const CASES: u32 = 60;

/// Texts for both protocols; `$1` is an integer. Transactions, settings and errors among them.
const TEXTS: [&str; 43] = [
    "SELECT 1 AS one",
    "SELECT $1::int4 + 1 AS n",
    "SELECT g, $1::int4 FROM generate_series(1, 5) g",
    "INSERT INTO differential VALUES ($1::int4) RETURNING a",
    "SELECT a FROM differential ORDER BY a",
    "SELECT 1/(a - 1) FROM differential ORDER BY a",
    "SELECT 1/($1::int4 - 1)",
    "SELEC wrong",
    "SELECT nothing FROM differential",
    "",
    "BEGIN",
    "BEGIN READ ONLY",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "COMMIT AND CHAIN",
    "SET work_mem = '1MB'",
    "SET LOCAL work_mem = '2MB'",
    "SELECT set_config('work_mem', '3MB', false)",
    "RESET work_mem",
    "RESET ALL",
    "SHOW work_mem",
    "SHOW application_name",
    "SHOW transaction_isolation",
    "SELECT 1; SELECT 2",
    "SET work_mem = '4MB'; SELECT 1/0",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "MOVE 2 IN c",
    "FETCH 2 IN c",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET TRANSACTION READ ONLY",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "SELECT count(*) FROM pg_listening_channels()",
    "PREPARE s1 AS SELECT 'of SQL'",
    "PREPARE s2 AS SELECT $1::int4",
    "EXECUTE s1",
    "EXECUTE s2(1); EXECUTE s1",
    "DEALLOCATE s1",
    "DEALLOCATE s2; PREPARE s2 AS SELECT 2",
    "SELECT name, from_sql FROM pg_prepared_statements WHERE name <> '' ORDER BY name",
];

/// One message of an exchange. Names are indexes into `NAMES` and `PORTALS`.
#[derive(Clone, Debug)]
enum Part {
    Parse(usize, usize),
    Bind(usize, usize, bool),
    DescribeStatement(usize),
    DescribePortal(usize),
    Execute(usize, u32),
    CloseStatement(usize),
    ClosePortal(usize),
    Flush,
    /// Parse, Bind, Describe and Execute of one text, as drivers send them.
    Whole(usize, usize),
    /// Bind, Describe and Execute of a statement that may be there.
    Again(usize, bool),
}

#[derive(Clone, Debug)]
enum Step {
    /// Ended by a Sync.
    Exchange(Vec<Part>),
    Query(usize),
    /// What was gathered so far is sent and its answer awaited; then the other client does something.
    Rest(Other),
}

/// What the second client does.
#[derive(Clone, Copy, Debug)]
enum Other {
    Nothing,
    Begin,
    End,
    /// Uses the first client's statement names for texts of its own.
    Statement(usize),
    /// Sets what the first client sets.
    Set,
}

const NAMES: [&str; 4] = ["", "s1", "s2", "s3"];
const PORTALS: [&str; 2] = ["", "p1"];

fn part() -> impl Strategy<Value = Part> {
    let (name, portal, text) = (0..NAMES.len(), 0..PORTALS.len(), 0..TEXTS.len());
    prop_oneof![
        3 => (name.clone(), text.clone()).prop_map(|(n, t)| Part::Parse(n, t)),
        2 => (portal.clone(), name.clone(), any::<bool>()).prop_map(|(p, n, x)| Part::Bind(p, n, x)),
        1 => name.clone().prop_map(Part::DescribeStatement),
        1 => portal.clone().prop_map(Part::DescribePortal),
        2 => (portal.clone(), 0..3u32).prop_map(|(p, max)| Part::Execute(p, max)),
        1 => name.clone().prop_map(Part::CloseStatement),
        1 => portal.prop_map(Part::ClosePortal),
        1 => Just(Part::Flush),
        6 => (name.clone(), text).prop_map(|(n, t)| Part::Whole(n, t)),
        6 => (name, any::<bool>()).prop_map(|(n, x)| Part::Again(n, x)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let other = prop_oneof![
        2 => Just(Other::Nothing),
        2 => Just(Other::Begin),
        2 => Just(Other::End),
        2 => (1..NAMES.len()).prop_map(Other::Statement),
        1 => Just(Other::Set),
    ];
    prop_oneof![
        4 => vec(part(), 0..6).prop_map(Step::Exchange),
        2 => (0..TEXTS.len()).prop_map(Step::Query),
        3 => other.prop_map(Step::Rest),
    ]
}

fn put_bind(out: &mut Vec<u8>, portal: usize, name: usize, has_parameter: bool) {
    let parameters: &[Option<&str>] = if has_parameter { &[Some("1")] } else { &[] };
    out.extend(bind(PORTALS[portal], NAMES[name], parameters));
}

fn put_part(out: &mut Vec<u8>, part: &Part) {
    match *part {
        Part::Parse(name, text) => out.extend(parse(NAMES[name], TEXTS[text], &[])),
        Part::Bind(portal, name, parameter) => put_bind(out, portal, name, parameter),
        Part::DescribeStatement(name) => out.extend(describe(b'S', NAMES[name])),
        Part::DescribePortal(portal) => out.extend(describe(b'P', PORTALS[portal])),
        Part::Execute(portal, max) => out.extend(execute(PORTALS[portal], max)),
        Part::CloseStatement(name) => out.extend(close(b'S', NAMES[name])),
        Part::ClosePortal(portal) => out.extend(close(b'P', PORTALS[portal])),
        Part::Flush => out.extend(flush()),
        Part::Whole(name, text) => {
            out.extend(parse(NAMES[name], TEXTS[text], &[]));
            put_bind(out, 0, name, TEXTS[text].contains("$1"));
            out.extend(describe(b'P', ""));
            out.extend(execute("", 0));
        }
        Part::Again(name, parameter) => {
            put_bind(out, 0, name, parameter);
            out.extend(describe(b'P', ""));
            out.extend(execute("", 0));
        }
    }
}

/// The second client, which remembers whether it is in a transaction.
struct Neighbour {
    client: Client,
    in_transaction: bool,
}

impl Neighbour {
    async fn act(&mut self, other: Other) {
        match other {
            Other::Nothing => {}
            Other::Begin | Other::End => {
                let begins = matches!(other, Other::Begin);
                if begins != self.in_transaction {
                    let text = if begins { "BEGIN" } else { "COMMIT" };
                    self.client.query(text).await.ok();
                    self.in_transaction = begins;
                }
            }
            Other::Statement(name) => {
                let batch = [
                    close(b'S', NAMES[name]),
                    parse(NAMES[name], &format!("SELECT 'neighbour {name}'"), &[]),
                    bind("", NAMES[name], &[]),
                    execute("", 0),
                    sync(),
                ];
                self.client.send(&batch.concat()).await;
                let reply = self.client.reply().await.ok();
                assert_eq!(reply.value(), format!("neighbour {name}"));
            }
            Other::Set => {
                self.client.query("SET work_mem = '99MB'").await.ok();
                assert_eq!(self.client.value("SHOW work_mem").await, "99MB");
            }
        }
    }
}

/// Stands for the end of the connection in an answer.
const CLOSED: Message = Message {
    tag: b'!',
    body: Vec::new(),
};

/// Everything the server says in the dialogue, a list for each [`Step::Rest`].
async fn hold_dialogue(
    client: &mut Client,
    mut neighbour: Option<&mut Neighbour>,
    steps: &[Step],
) -> Vec<Vec<Message>> {
    let mut answers = Vec::new();
    let mut batch = Vec::new();
    for step in steps.iter().chain([&Step::Rest(Other::End)]) {
        match step {
            Step::Exchange(parts) => {
                for part in parts {
                    put_part(&mut batch, part);
                }
                batch.extend(sync());
            }
            Step::Query(text) => batch.extend(query(TEXTS[*text])),
            Step::Rest(other) => {
                let mut answer = exchange(client, &batch).await;
                let readies = answer.iter().filter(|message| message.tag == b'Z');
                if readies.count() < crate::same::readies(&batch) {
                    answer.push(CLOSED);
                    answers.push(answer);
                    break;
                }
                answers.push(answer);
                batch.clear();
                if let Some(neighbour) = &mut neighbour {
                    neighbour.act(*other).await;
                }
            }
        }
    }
    answers
}

/// Each dialogue begins with the same rows and no session.
async fn fresh_client(direct: &mut Client, address: std::net::SocketAddr) -> Client {
    let rows = "TRUNCATE differential; INSERT INTO differential VALUES (1), (2)";
    direct.query(rows).await.ok();
    let login = Login::new("postgres", "postgres");
    Client::connect_as(address, &login).await.unwrap()
}

/// An answer without what may differ: where in its source the server found an error, and which of two names of the
/// same text it is about, which the server is not told.
fn comparable(messages: &[Message]) -> Vec<Message> {
    let fields = |message: &Message| {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        let fields = body
            .split('\0')
            .filter(|field| !field.starts_with(['F', 'L', 'R']));
        let text = fields.collect::<Vec<_>>().join("\0");
        if text.contains("\0C08P01\0") {
            text.replace(['1', '2', '3'], "?").into_bytes()
        } else {
            text.into_bytes()
        }
    };
    let messages = messages.iter().map(|message| match message.tag {
        b'E' => Message {
            tag: b'E',
            body: fields(message),
        },
        _ => message.clone(),
    });
    messages.collect()
}

/// PostgreSQL 15 has crashed here, in a failed transaction, on statements whose plans were invalid.
fn has_crashed(answers: &[Vec<Message>]) -> bool {
    answers.iter().any(|answer| answer.last() == Some(&CLOSED))
}

async fn compare(pgweir: &Pgweir, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut keeper = shared::direct().await;
    let mut direct = fresh_client(&mut keeper, shared::server().address()).await;
    let expected = hold_dialogue(&mut direct, None, steps).await;
    if has_crashed(&expected) {
        eprintln!("PostgreSQL itself crashed: {steps:?}");
        eventually("recovery", async || {
            let login = Login::new("postgres", "postgres");
            Client::connect_as(shared::server().address(), &login)
                .await
                .is_ok()
        })
        .await;
        return Ok(());
    }
    // Its last transaction must not stand in the way of the next TRUNCATE.
    direct.terminate().await;
    let mut through = fresh_client(&mut keeper, pgweir.address).await;
    let mut neighbour = Neighbour {
        client: pgweir.client().await,
        in_transaction: false,
    };
    let got = hold_dialogue(&mut through, Some(&mut neighbour), steps).await;
    through.terminate().await;
    neighbour.client.terminate().await;
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        prop_assert_eq!(
            comparable(got),
            comparable(expected),
            "in the answer to write {}",
            index
        );
    }
    Ok(())
}

pub fn seed() -> u64 {
    match std::env::var("PGWEIR_SEED").as_deref() {
        Ok("random") => rand::random(),
        Ok(seed) => seed.parse().expect("a number, or random"),
        Err(_) => 1_739_731_853_339_051_896,
    }
}

#[test]
fn a_random_dialogue_is_the_same_through_pgweir() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cases = std::env::var("PGWEIR_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let seed = seed();
    eprintln!("PGWEIR_SEED={seed}");
    runtime.block_on(async {
        let table = "CREATE TABLE differential (a int)";
        shared::direct().await.query(table).await.ok();
    });
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .set("pool.max_prepared_statements", "3")
        .start();
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&vec(step(), 1..14), |steps| {
        runtime.block_on(compare(&pgweir, &steps))
    });
    if let Err(error) = outcome {
        panic!("PGWEIR_SEED={seed}: {error}");
    }
}
