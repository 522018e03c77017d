//! The virtual session is the session: random statements of several clients, each run on a connection of its own and
//! through pgweir, where they share fewer backends. Every answer must be the same, and in the end everything that a
//! session can show of itself.
//!
//! Both worlds are databases of one server with the same contents, and the clients take turns in the same order. Two
//! clients may do what keeps a backend; the other two do only what is carried, and one of them at a time is in a
//! transaction, so that three backends are enough and nobody waits for another.
//!
//! A custom setting that some session has set reads as empty in a connection from then on, and as NULL before: that is the
//! server's, and not compared.
//!
//! Seeds as in `differential`; `make soak` runs both.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::differential::seed;
use crate::same::exchange;
use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::messages::{Message, bind, close, describe, execute, parse, query, sync};
use crate::support::pgweir::{Options, Pgweir};

const CASES: u32 = 40;

const CLIENTS: usize = 4;

/// Clients below this number may keep a backend.
const KEEPERS: usize = 2;

/// Where the statements run without pgweir, and with it.
const DATABASES: [&str; 2] = ["model_direct", "model_through"];

/// What is carried in either protocol.
const CARRIED: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "BEGIN READ ONLY",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "SAVEPOINT a",
    "SAVEPOINT b",
    "ROLLBACK TO a",
    "ROLLBACK TO b",
    "RELEASE a",
    "SELECT 1/0",
    "SELECT FROM nowhere",
    "SET work_mem = '1MB'",
    "SET work_mem = '2MB'",
    "SET LOCAL work_mem = '3MB'",
    "RESET work_mem",
    "SHOW work_mem",
    "SELECT set_config('work_mem', '5MB', false)",
    "SELECT set_config('work_mem', '6MB', true)",
    "SET search_path = model_other, public",
    "SET LOCAL search_path = model_other",
    "RESET search_path",
    "SELECT word || '' FROM words ORDER BY word",
    "SET TIME ZONE 'Asia/Kolkata'",
    "SET TIME ZONE DEFAULT",
    "SET DateStyle = 'German'",
    "SELECT '2020-02-03 04:05:06+00'::timestamptz",
    "SET model.own = 'mine'",
    "SET LOCAL model.own = 'for now'",
    "RESET model.own",
    "SELECT nullif(current_setting('model.own', true), '')",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SHOW transaction_read_only",
    "SHOW transaction_isolation",
    "SET ROLE model_role",
    "SET LOCAL ROLE model_role",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION model_role",
    "RESET SESSION AUTHORIZATION",
    "SELECT current_user, session_user",
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD PLANS",
    "INSERT INTO numbered (a) VALUES (1) RETURNING id + 0",
    "SELECT count(*), max(id) FROM numbered",
    "SELECT nextval('counted')",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "FETCH 2 FROM c",
    "CLOSE c",
    "SELECT pg_try_advisory_xact_lock(1)",
    "SELECT model_set('work_mem', '7MB')",
    "SELECT model_set('DateStyle', 'SQL')",
    "SELECT model_run('EXECUTE p')",
    "SELECT model_run('SELECT ''p''')",
    "DEALLOCATE ALL",
    "LISTEN model_a",
    "LISTEN model_b",
    "UNLISTEN model_a",
    "UNLISTEN *",
    "SET client_encoding = 'LATIN1'",
    "RESET client_encoding",
    "SET model.own = 'm\u{e9}in'",
    "SELECT 'm\u{e9}in', length('m\u{e9}in'), ascii('\u{e9}')",
    "INSERT INTO hooked VALUES (1)",
];

/// What is carried in a simple query, and pins otherwise.
const SIMPLE: &[&str] = &[
    "PREPARE p AS SELECT 'p', current_setting('work_mem')",
    "PREPARE q (int) AS SELECT $1 + 1",
    "PREPARE p AS SELECT word || '' FROM words ORDER BY word",
    "EXECUTE p",
    "EXECUTE q(1)",
    "EXECUTE q(1); EXECUTE p",
    "EXPLAIN (COSTS OFF) EXECUTE p",
    "DEALLOCATE p",
    "DEALLOCATE q",
    "SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name",
    "SELECT 1; SELECT 2",
    "SET work_mem = '8MB'; SELECT 1/0",
    "BEGIN; SET LOCAL work_mem = '9MB'; SHOW work_mem",
    "SAVEPOINT a; SET work_mem = '10MB'; ROLLBACK TO a; SHOW work_mem",
];

/// What keeps a backend.
const KEPT: &[&str] = &[
    "CREATE TEMP TABLE t (a int)",
    "CREATE TEMP TABLE words (word text)",
    "CREATE TEMP TABLE u (a int) ON COMMIT DROP",
    "INSERT INTO t VALUES (1)",
    "SELECT count(*) FROM t",
    "DROP TABLE t",
    "DROP TABLE pg_temp.words",
    "DISCARD TEMP",
    "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
    "FETCH 2 FROM h",
    "CLOSE h",
    "CLOSE ALL",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(2)",
    "SELECT pg_advisory_unlock(1)",
    "SELECT pg_advisory_unlock_shared(2)",
    "SELECT pg_advisory_unlock_all()",
    "SELECT currval('counted')",
    "SELECT currval('numbered_id_seq')",
    "SELECT lastval()",
    "DISCARD SEQUENCES",
    "PREPARE p AS SELECT 'kept'; EXECUTE p",
    "DEALLOCATE p; PREPARE p AS SELECT 'kept again'",
    "SELECT model_run('PREPARE r AS SELECT ''r''')",
    "SELECT model_run('CREATE TEMP TABLE IF NOT EXISTS v (a int)')",
    "SELECT model_run('DROP TABLE IF EXISTS v')",
    "SELECT setseed(0.5), random()",
    "UPDATE hooked SET a = 2",
];

/// What a session shows of itself.
const SHOWN: &[&str] = &[
    "SELECT name, setting FROM pg_settings WHERE name IN ('work_mem', 'search_path', 'TimeZone', 'DateStyle', \
     'application_name', 'default_transaction_read_only', 'client_encoding', 'role') ORDER BY name",
    "SELECT nullif(current_setting('model.own', true), ''), current_user, session_user",
    "SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name",
    "SELECT name, is_holdable FROM pg_cursors ORDER BY name",
    "SELECT objid, mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY objid, mode",
    "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema() ORDER BY relname",
    "SELECT string_agg(it, ',' ORDER BY it) FROM pg_listening_channels() AS it",
];

/// Run in both databases.
const SCHEMA: &str = "
    CREATE TABLE numbered (id serial, a int);
    CREATE SEQUENCE counted;
    CREATE TABLE words AS SELECT 'public' AS word;
    CREATE SCHEMA model_other;
    CREATE TABLE model_other.words AS SELECT 'other' AS word;
    GRANT ALL ON ALL TABLES IN SCHEMA public TO model_role;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO model_role;
    CREATE FUNCTION model_set(name text, value text) RETURNS text LANGUAGE plpgsql AS
        $$BEGIN RETURN set_config(name, value, false); END$$;
    CREATE FUNCTION model_run(text text) RETURNS int LANGUAGE plpgsql AS
        $$DECLARE n int; BEGIN EXECUTE text; GET DIAGNOSTICS n = ROW_COUNT; RETURN n; END$$;
    CREATE TABLE hooked (a int);
    INSERT INTO hooked VALUES (0);
    GRANT ALL ON hooked TO model_role;
    CREATE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM set_config('work_mem', '11MB', false); RETURN NEW; END$$;
    CREATE FUNCTION hook_lock() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_try_advisory_lock(3); RETURN NEW; END$$;
    CREATE TRIGGER hook BEFORE INSERT ON hooked FOR EACH ROW EXECUTE FUNCTION hook();
    CREATE TRIGGER hook_lock AFTER UPDATE ON hooked FOR EACH STATEMENT EXECUTE FUNCTION hook_lock();
";

#[derive(Clone, Debug)]
enum Action {
    Simple(&'static str),
    /// Parse of the unnamed statement, Bind, Describe, Execute.
    Whole(&'static str),
    Parse(&'static str, &'static str),
    /// Bind, Describe, Execute.
    Run(&'static str),
    Close(&'static str),
}

/// One write of one client; each action ends with a Sync or is a Query.
#[derive(Clone, Debug)]
struct Turn {
    client: usize,
    actions: Vec<Action>,
}

fn action(client: usize) -> BoxedStrategy<Action> {
    let name = prop::sample::select(&["s1", "s2", "p"][..]);
    // Code executes `p`, and the server does not bear every command of the protocol's there.
    let parsed = prop::sample::select(&["s1", "s2"][..]);
    let carried = prop::sample::select(CARRIED);
    let simple = prop_oneof![
        2 => carried.clone(),
        1 => prop::sample::select(SIMPLE),
    ];
    let all = prop_oneof![
        3 => carried.clone(),
        1 => prop::sample::select(SIMPLE),
        2 => prop::sample::select(KEPT),
    ];
    let (simple, whole) = if client < KEEPERS {
        (all.clone().boxed(), all.boxed())
    } else {
        (simple.boxed(), carried.boxed())
    };
    prop_oneof![
        6 => simple.prop_map(Action::Simple),
        3 => whole.clone().prop_map(Action::Whole),
        2 => (parsed, whole).prop_map(|(name, text)| Action::Parse(name, text)),
        2 => name.clone().prop_map(Action::Run),
        1 => name.prop_map(Action::Close),
    ]
    .boxed()
}

fn turn() -> impl Strategy<Value = Turn> {
    (0..CLIENTS).prop_flat_map(|client| {
        let few = prop_oneof![4 => Just(1..2), 1 => Just(2..4)];
        few.prop_flat_map(move |count| vec(action(client), count))
            .prop_map(move |actions| Turn { client, actions })
    })
}

fn put(out: &mut Vec<u8>, action: &Action) {
    let run = |name| [bind("", name, &[]), describe(b'P', ""), execute("", 0)].concat();
    match *action {
        Action::Simple(text) => return out.extend(query(text)),
        Action::Whole(text) => out.extend([parse("", text, &[]), run("")].concat()),
        Action::Parse(name, text) => out.extend(parse(name, text, &[])),
        Action::Run(name) => out.extend(run(name)),
        Action::Close(name) => out.extend(close(b'S', name)),
    }
    out.extend(sync());
}

/// Answers without what tells where in the server's source something was found, and whether a backend has ever made a
/// temporary table: its schema stays when all of them are gone, so that what is missing in it is the table.
fn comparable(messages: Vec<Message>) -> Vec<Message> {
    let no_schema: &[&[u8]] = &[b"C3F000", b"Mschema \"pg_temp\" does not exist"];
    let no_table: &[&[u8]] = &[b"C42P01", b"Mtable \"words\" does not exist"];
    let strip = |mut message: Message| {
        if matches!(message.tag, b'E' | b'N') {
            let fields = message.body.split(|byte| *byte == 0);
            let kept: Vec<_> = fields
                .filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R')))
                .map(|field| {
                    let place = no_schema.iter().position(|it| *it == field);
                    place.map_or(field, |place| no_table[place])
                })
                .collect();
            message.body = kept.join(&0);
        }
        message
    };
    // Who listens and changes its encoding gets another listener, and is told.
    let is_new_listener = |message: &Message| {
        let words = b"Mnotifications may have been missed";
        message.tag == b'N' && message.body.split(|byte| *byte == 0).any(|it| it == words)
    };
    let messages = messages.into_iter().filter(|it| !is_new_listener(it));
    messages.map(strip).collect()
}

/// The clients of one world.
struct World {
    clients: Vec<Client>,
}

impl World {
    async fn new(address: std::net::SocketAddr, database: &str) -> Self {
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let login = Login::new("postgres", database);
            let login = login.with("application_name", application(client));
            clients.push(Client::connect_as(address, &login).await.unwrap());
        }
        Self { clients }
    }

    async fn answer(&mut self, client: usize, batch: &[u8]) -> Vec<Message> {
        comparable(exchange(&mut self.clients[client], batch).await)
    }

    async fn leave(self) {
        for client in self.clients {
            client.terminate().await;
        }
    }
}

fn application(client: usize) -> &'static str {
    if client < KEEPERS { "keeper" } else { "plain" }
}

/// The transaction status behind an answer.
fn status(answer: &[Message]) -> Option<u8> {
    answer.last().and_then(|last| last.body.first().copied())
}

/// Whether it is not this client's turn: another of those that keep no backend is in a transaction.
fn sits_out(client: usize, states: [u8; CLIENTS]) -> bool {
    let mut others = (KEEPERS..CLIENTS).filter(|other| *other != client);
    client >= KEEPERS && others.any(|other| states[other] != b'I')
}

async fn compare(pgweir: &Pgweir, turns: &[Turn]) -> Result<(), TestCaseError> {
    let server = shared::server().address();
    for database in DATABASES {
        let mut keeper = Client::connect(server, "postgres", database).await;
        let fresh = "TRUNCATE numbered RESTART IDENTITY; ALTER SEQUENCE counted RESTART";
        keeper.query(fresh).await.ok();
        keeper.terminate().await;
    }
    let mut direct = World::new(server, DATABASES[0]).await;
    let mut through = World::new(pgweir.address, DATABASES[1]).await;
    let mut states = [b'I'; CLIENTS];
    for (index, Turn { client, actions }) in turns.iter().enumerate() {
        if sits_out(*client, states) {
            continue;
        }
        let mut batch = Vec::new();
        for action in actions {
            put(&mut batch, action);
        }
        let expected = direct.answer(*client, &batch).await;
        states[*client] = status(&expected).unwrap_or(b'I');
        let got = through.answer(*client, &batch).await;
        prop_assert_eq!(got, expected, "in the answer to turn {}", index);
    }
    // Who is in a transaction has a backend that another needs.
    let mut order: Vec<usize> = (0..CLIENTS).collect();
    order.sort_by_key(|client| states[*client] == b'I');
    for client in order {
        let batch = query("ROLLBACK");
        let expected = direct.answer(client, &batch).await;
        let got = through.answer(client, &batch).await;
        prop_assert_eq!(got, expected, "in client {}'s ROLLBACK", client);
        for text in SHOWN {
            let expected = direct.answer(client, &query(text)).await;
            let got = through.answer(client, &query(text)).await;
            prop_assert_eq!(got, expected, "client {}: {}", client, text);
        }
        let told = [&direct, &through].map(|world| {
            let mut told = world.clients[client].parameters.clone();
            // Of the connection, not of the session.
            told.remove("in_hot_standby");
            told
        });
        prop_assert_eq!(&told[1], &told[0], "what client {} was told", client);
    }
    direct.leave().await;
    through.leave().await;
    Ok(())
}

async fn set_up(pgweir: &Pgweir) {
    let mut keeper = shared::direct().await;
    keeper.query("CREATE ROLE model_role").await.ok();
    for database in DATABASES {
        keeper
            .query(&format!("CREATE DATABASE {database}"))
            .await
            .ok();
        let server = shared::server().address();
        let mut client = Client::connect(server, "postgres", database).await;
        client.query(SCHEMA).await.ok();
    }
    // Which of the applications reads the numbers of sequences is known by now.
    let login =
        |client| Login::new("postgres", DATABASES[1]).with("application_name", application(client));
    let mut keeper = pgweir.client_as(&login(0)).await;
    assert_eq!(keeper.query("SELECT lastval()").await.sqlstate(), "55000");
    let mut plain = pgweir.client_as(&login(KEEPERS)).await;
    for _ in 0..=pgweir::session::sequences::PROBATION {
        plain
            .query("INSERT INTO numbered (a) VALUES (1)")
            .await
            .ok();
    }
    keeper.terminate().await;
    plain.terminate().await;
}

#[test]
fn a_virtual_session_is_a_session() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cases = std::env::var("PGWEIR_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let seed = seed();
    eprintln!("PGWEIR_SEED={seed}");
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "3")
        .set("pool.max_prepared_statements", "3")
        // Nobody has to wait for another; who does all the same is told, and the comparison fails.
        .set("timeouts.query_wait_timeout", "5s")
        .start();
    runtime.block_on(set_up(&pgweir));
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        // A case that waits in vain is not waited for again and again.
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&vec(turn(), 1..40), |turns| {
        runtime.block_on(compare(&pgweir, &turns))
    });
    if let Err(error) = outcome {
        panic!("PGWEIR_SEED={seed}: {error}");
    }
}
