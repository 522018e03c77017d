//! Something to look at: a small, steady load on the sample, through pgweir.
//!
//! A web shop of sorts in the shape of a few `psql` processes that are fed statements at a leisurely pace: reads and
//! writes, a count that lacks an index, a report, two jobs that wait for each other's lock, sign-ups that fail, a
//! session pinned by its temporary table, and analysts who share too small a pool. Taken together a few per cent of
//! one CPU.
//!
//! Invariants: money is not made (`balances` stays the sum of `balance_changes`), and no transaction holds locks on
//! two rows that others may lock in another order, so that whoever tries something in the demo never meets a deadlock.
//!
//! # Why
//! `psql` rather than sessions of pgweir's own: what is shown is then what real clients cause. One that is killed, or
//! loses its connection, is started again. All of them end with this process, as their input ends.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::{SeedableRng as _, seq::IndexedRandom as _};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::binaries::binaries;
use super::{DATABASE, DemoError, USER};
use crate::tasks;

/// The role of those who share too small a pool.
pub const ANALYST: &str = "analyst";

/// Its pool, for the configuration.
pub const ANALYST_POOL_SIZE: usize = 1;

/// What those who move money call themselves.
pub const LEDGER: &str = "ledger";

/// Pause before a `psql` that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// One kind of client.
#[derive(Debug)]
struct Part {
    application: &'static str,
    user: &'static str,
    /// How many of them.
    clients: usize,
    /// Said once after connecting.
    opening: &'static str,
    /// Milliseconds between two turns, at least and at most.
    pause: (u64, u64),
    turn: fn(&mut StdRng) -> String,
}

const PARTS: [Part; 8] = [
    Part {
        application: "web",
        user: USER,
        clients: 5,
        opening: "",
        pause: (60, 200),
        turn: browse,
    },
    Part {
        application: LEDGER,
        user: USER,
        clients: 2,
        opening: "",
        pause: (300, 900),
        turn: trade,
    },
    Part {
        application: "inbox",
        user: USER,
        clients: 1,
        opening: "",
        pause: (1_000, 2_000),
        turn: count_unread,
    },
    Part {
        application: "report",
        user: USER,
        clients: 1,
        opening: "",
        pause: (9_000, 15_000),
        turn: report,
    },
    Part {
        application: "settlement",
        user: USER,
        clients: 2,
        opening: "",
        pause: (20_000, 20_000),
        turn: settle,
    },
    Part {
        application: "signup",
        user: USER,
        clients: 1,
        opening: "",
        pause: (8_000, 16_000),
        turn: sign_up,
    },
    Part {
        application: "import",
        user: USER,
        clients: 1,
        opening: "CREATE TEMP TABLE staging (user_id bigint, amount numeric);",
        pause: (2_000, 4_000),
        turn: stage,
    },
    Part {
        application: "notebook",
        user: ANALYST,
        clients: 4,
        opening: "",
        pause: (2_000, 5_000),
        turn: analyse,
    },
];

fn user(rng: &mut StdRng) -> u32 {
    rng.random_range(1..=20_000)
}

fn browse(rng: &mut StdRng) -> String {
    let (user, asset) = (user(rng), rng.random_range(1..=6));
    let order = rng.random_range(1..=80_000);
    match rng.random_range(0..100) {
        0..35 => format!(
            "SELECT asset_id, amount FROM balances WHERE user_id = {user} ORDER BY asset_id;"
        ),
        35..55 => format!("SELECT id, email, country, verified FROM users WHERE id = {user};"),
        55..70 => format!(
            "SELECT side, price, quantity FROM market_orders WHERE status = 'open' AND asset_id = {asset} \
             AND side = 'sell' ORDER BY price LIMIT 10;"
        ),
        70..85 => format!(
            "SELECT id, price, payment_methods FROM p2p_offers WHERE status = 'open' AND asset_id = {asset} \
             ORDER BY price LIMIT 5;"
        ),
        85..92 => format!(
            "SELECT id, side, price, status FROM market_orders WHERE user_id = {user} \
             ORDER BY created_at DESC LIMIT 20;"
        ),
        92..97 => format!(
            "UPDATE market_orders SET status = 'filled' WHERE id = {order} AND status = 'open';"
        ),
        _ => format!(
            "INSERT INTO market_orders (user_id, asset_id, side, price, quantity, status, created_at) \
             VALUES ({user}, 3, 'buy', {}.5, 0.25, 'open', now());",
            rng.random_range(100..120)
        ),
    }
}

fn trade(rng: &mut StdRng) -> String {
    let user = user(rng);
    let asset = 1 + user % 6;
    let cents = rng.random_range(1..500);
    format!(
        "BEGIN; UPDATE balances SET amount = amount + 0.{cents:03} WHERE user_id = {user} AND asset_id = {asset}; \
         INSERT INTO balance_changes (user_id, asset_id, amount, reason, created_at) \
         SELECT user_id, asset_id, 0.{cents:03}, 'trade', now() FROM balances \
         WHERE user_id = {user} AND asset_id = {asset}; COMMIT;"
    )
}

fn count_unread(rng: &mut StdRng) -> String {
    format!(
        "SELECT count(*) FROM user_notifications WHERE user_id = {} AND read_at IS NULL;",
        user(rng)
    )
}

fn report(_: &mut StdRng) -> String {
    "SELECT country, reason, count(*), sum(amount) FROM balance_changes JOIN users ON users.id = user_id \
     GROUP BY country, reason ORDER BY country, reason;"
        .to_owned()
}

fn settle(_: &mut StdRng) -> String {
    "BEGIN; SELECT symbol FROM assets WHERE id = 1 FOR UPDATE; SELECT pg_sleep(1.5); COMMIT;"
        .to_owned()
}

fn sign_up(rng: &mut StdRng) -> String {
    const FAILING: [&str; 3] = [
        "INSERT INTO users (email, country, verified, created_at) VALUES ('user7@example.com', 'DE', false, now());",
        "SELECT referrer FROM users WHERE id = 7;",
        "UPDATE balances SET amount = amount - 1000000 WHERE user_id = 1 AND asset_id = 2;",
    ];
    (*FAILING.choose(rng).unwrap_or(&FAILING[0])).to_owned()
}

fn stage(rng: &mut StdRng) -> String {
    format!(
        "INSERT INTO staging VALUES ({}, 1); TRUNCATE staging;",
        user(rng)
    )
}

fn analyse(_: &mut StdRng) -> String {
    "SELECT country, count(*) FROM users, pg_sleep(0.8) WHERE verified GROUP BY country;".to_owned()
}

/// The load, until dropped.
#[derive(Debug)]
pub struct Load {
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Connects to `address`, where pgweir serves the sample.
    pub fn start(address: SocketAddr) -> Result<Self, DemoError> {
        let psql = binaries()?.join("psql");
        let clients = PARTS
            .iter()
            .flat_map(|part| (0..part.clients).map(move |_| part));
        Ok(Self {
            clients: clients
                .map(|part| tasks::spawn("demo load", play(part, psql.clone(), address)))
                .collect(),
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

/// One client, again and again.
async fn play(part: &'static Part, psql: std::path::PathBuf, address: SocketAddr) {
    let mut rng = StdRng::from_os_rng();
    loop {
        if let Ok(mut child) = start(part, &psql, address) {
            feed(part, &mut child, &mut rng).await;
            // It has lost its connection, or is told so by the end of its input.
            let _ = child.wait().await;
        }
        sleep(RESTART_PAUSE).await;
    }
}

fn start(part: &Part, psql: &Path, address: SocketAddr) -> std::io::Result<Child> {
    Command::new(psql)
        .args(["--no-psqlrc", "--quiet", "--no-password", "--dbname"])
        .arg(format!(
            "host={} port={} user={} dbname={DATABASE} application_name={}",
            address.ip(),
            address.port(),
            part.user,
            part.application
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// Says what there is to say until nobody listens.
async fn feed(part: &Part, child: &mut Child, rng: &mut StdRng) {
    let Some(mut input) = child.stdin.take() else {
        return;
    };
    let mut line = part.opening.to_owned();
    loop {
        line.push('\n');
        if input.write_all(line.as_bytes()).await.is_err() || input.flush().await.is_err() {
            return;
        }
        let (least, most) = part.pause;
        sleep(Duration::from_millis(rng.random_range(least..=most))).await;
        line = (part.turn)(rng);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{Options, prepare};

    #[tokio::test]
    async fn every_turn_is_what_the_sample_answers_and_money_is_not_made() {
        let demo = prepare(Options {
            replicas: 0,
            ..Options::default()
        })
        .await
        .unwrap();
        let mut rng = StdRng::seed_from_u64(7);
        for part in &PARTS {
            let mut script = format!("SET ROLE {};\n{}\n", part.user, part.opening);
            for _ in 0..=40 / part.pause.0.div_ceil(100).max(1) {
                script.push_str(&(part.turn)(&mut rng));
                script.push('\n');
            }
            let outcome = demo.cluster.primary.sql(DATABASE, &script);
            let fails = part.application == "signup";
            assert_eq!(outcome.is_err(), fails, "{}: {outcome:?}", part.application);
        }
        let books = "SELECT count(*) FROM balances b FULL JOIN \
                     (SELECT user_id, asset_id, sum(amount) AS amount FROM balance_changes GROUP BY 1, 2) c \
                     USING (user_id, asset_id) WHERE b.amount IS DISTINCT FROM c.amount";
        assert_eq!(demo.cluster.primary.sql(DATABASE, books).unwrap(), "0");
    }
}
