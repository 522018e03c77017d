//! More work than the servers can do, and servers that come back: who is served, who is turned away, and how soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pgweir::demo::cluster::{Server, ServerOptions, StopMode};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::shared;
use crate::support::client::{Client, Login};
use crate::support::faulty_link::Link;
use crate::support::messages::{self, ServerError};
use crate::support::pgweir::{Options, Pgweir};
use crate::support::wait::{eventually, within_limit};

/// A number that can be set from outside.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().expect(variable))
}

/// What the clients of a load have seen.
#[derive(Debug, Default)]
struct Tally {
    /// How long each statement took that was answered.
    answered: Vec<Duration>,
    /// How long it took to be told, of those that were turned away.
    refused: Vec<(Duration, ServerError)>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answered.extend(other.answered);
        self.refused.extend(other.refused);
    }

    fn quantile(&mut self, share: f64) -> Duration {
        self.answered.sort_unstable();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (self.answered.len() as f64 * share) as usize;
        self.answered
            .get(place.min(self.answered.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    #[allow(clippy::cast_precision_loss, reason = "a count")]
    fn rate(&self, time: Duration) -> f64 {
        self.answered.len() as f64 / time.as_secs_f64()
    }
}

/// Runs `sql` again and again until `until`; each begins `pause` after the one before began, or at once if that is over.
async fn run(mut client: Client, sql: &str, until: Instant, pause: Duration) -> Tally {
    let mut tally = Tally::default();
    let message = messages::query(sql);
    let mut next = Instant::now() + pause.mul_f64(rand::random_range(0.0..1.0));
    loop {
        tokio::time::sleep_until(next.min(until)).await;
        let begun = Instant::now();
        if begun >= until {
            return tally;
        }
        next = (next + pause).max(begun);
        client.send(&message).await;
        let mut reply = client.reply().await;
        match reply.errors.pop() {
            None => tally.answered.push(begun.elapsed()),
            Some(error) => tally.refused.push((begun.elapsed(), error)),
        }
    }
}

/// The same by `count` clients of a user.
async fn load(
    pgweir: &Pgweir,
    user: &str,
    count: usize,
    sql: &'static str,
    time: Duration,
    pause: Duration,
) -> Tally {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(pgweir.client_as(&Login::new(user, "postgres")).await);
    }
    let until = Instant::now() + time;
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(run(client, sql, until, pause));
    }
    let mut all = Tally::default();
    while let Some(tally) = running.join_next().await {
        all.add(tally.unwrap());
    }
    all
}

#[tokio::test]
async fn clients_that_would_wait_too_long_are_told_so_at_once() {
    const LIMIT: Duration = Duration::from_secs(1);
    let role = shared::role("shed").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .set("timeouts.query_wait_timeout", "1s")
        .start();
    // 40 a second are served and 200 come.
    let time = Duration::from_secs(5);
    let pause = Duration::from_millis(500);
    let nap = "SELECT pg_sleep(0.05)";
    let mut tally = load(&pgweir, role.name, 100, nap, time, pause).await;
    let is_shed = |error: &ServerError| error.message.starts_with("too many clients are waiting");
    let (shed, late): (Vec<_>, Vec<_>) =
        tally.refused.iter().partition(|(_, error)| is_shed(error));
    assert!(!shed.is_empty(), "{late:?}");
    for (_, error) in &shed {
        assert_eq!((&*error.severity, &*error.code), ("ERROR", "53300"));
        let detail = error.detail.as_deref().unwrap();
        assert!(
            detail.starts_with("Pool postgres/shed: ") && detail.contains("are served each second"),
            "{detail}"
        );
        let hint = error.hint.as_deref().unwrap();
        assert!(
            hint.contains("query_wait_timeout (1s)") && hint.contains("pool.shed"),
            "{hint}"
        );
    }
    // Told before they have waited.
    let mut told: Vec<Duration> = shed.iter().map(|(took, _)| *took).collect();
    told.sort_unstable();
    assert!(told[told.len() / 2] < LIMIT, "{told:?}");
    for (_, error) in late {
        assert!(error.message.contains("(query_wait_timeout)"), "{error:?}");
    }
    // The servers were not short of work; how much that is on a busy machine is not for a test to say.
    assert!(!tally.answered.is_empty());
    let slowest = tally.quantile(1.0);
    println!(
        "{} answered, the slowest after {slowest:?}",
        tally.answered.len()
    );
    let series =
        "pgweir_pool_refused_clients_total{database=\"postgres\",user=\"shed\",reason=\"shed\"}";
    let counted = pgweir.metric(series).unwrap();
    assert!((counted - f64::from(u32::try_from(told.len()).unwrap())).abs() < 0.5);
    // When it is over nobody is turned away any more.
    let calm = load(&pgweir, role.name, 2, nap, Duration::from_secs(1), pause).await;
    assert!(
        calm.refused.is_empty() && !calm.answered.is_empty(),
        "{calm:?}"
    );
}

#[tokio::test]
async fn clients_wait_in_any_case_where_shedding_is_off() {
    let role = shared::role("not_shed").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "2")
        .set("timeouts.query_wait_timeout", "500ms")
        .set("pool.shed", "false")
        .start();
    let (time, pause) = (Duration::from_secs(3), Duration::from_millis(500));
    let tally = load(&pgweir, role.name, 60, "SELECT pg_sleep(0.05)", time, pause).await;
    assert!(!tally.refused.is_empty());
    for (took, error) in tally.refused {
        assert!(error.message.contains("(query_wait_timeout)"), "{error:?}");
        assert!(took >= Duration::from_millis(450), "{took:?}");
    }
}

#[tokio::test]
async fn a_queue_is_no_longer_than_it_may_be() {
    let role = shared::role("short_queue").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", "1")
        .set("pool.max_waiting", "2")
        .start();
    let mut holder = role.client(&pgweir).await;
    holder.query("BEGIN").await.ok();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = role.client(&pgweir).await;
        client.send(&messages::query("SELECT 'waited'")).await;
        waiting.push(client);
    }
    let mut console = pgweir.console().await;
    eventually("two to wait", async || {
        let show = "SHOW POOLS WHERE database = 'postgres'";
        let reply = console.query(show).await.ok();
        let place = reply
            .columns
            .iter()
            .position(|it| it == "cl_waiting")
            .unwrap();
        reply.rows[0][place].as_deref() == Some("2")
    })
    .await;
    let mut third = role.client(&pgweir).await;
    for reply in [
        third.query("SELECT 1").await,
        third.extended("SELECT 1", &[]).await,
    ] {
        assert_eq!((reply.sqlstate(), reply.status), ("53300", 'I'));
        let hint = reply.error().hint.as_deref().unwrap();
        assert_eq!(hint, "The limit is pool.max_waiting (2).");
    }
    holder.query("COMMIT").await.ok();
    for client in &mut waiting {
        assert_eq!(client.reply().await.ok().value(), "waited");
    }
    third.query("SELECT 1").await.ok();
}

#[tokio::test]
async fn a_greedy_user_leaves_others_their_share() {
    let greedy = shared::role("greedy").await;
    let modest = shared::role("modest").await;
    let pgweir = Options::new(shared::server())
        .set("pool.max_server_connections", "4")
        .start();
    let nap = "SELECT pg_sleep(0.02)";
    // First come first served over both would have each statement wait behind sixty: 300 ms.
    let (time, at_once) = (Duration::from_secs(6), Duration::ZERO);
    let late = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        load(
            &pgweir,
            modest.name,
            1,
            nap,
            Duration::from_secs(4),
            at_once,
        )
        .await
    };
    let (mut many, mut few) =
        tokio::join!(load(&pgweir, greedy.name, 60, nap, time, at_once), late);
    assert!(many.refused.is_empty() && few.refused.is_empty());
    let (middle, of_many) = (few.quantile(0.5), many.quantile(0.5));
    assert!(middle * 2 < of_many, "{middle:?} and {of_many:?}");
    // It takes as long as the statement itself: nobody waits who has less than a share, and what it has stays its own.
    println!("half of them within {middle:?}, with {of_many:?} for the others");
    assert!(middle < Duration::from_millis(80), "{middle:?}");
    // Nor does the greedy one starve: it has what is left.
    let (many, few) = (many.answered.len(), few.answered.len());
    assert!(many * 2 > few, "{many} and {few}");
}

#[tokio::test]
async fn under_a_cap_each_user_has_what_it_weighs() {
    let server = shared::server();
    let heavy = shared::role("heavy").await;
    let light = shared::role("light").await;
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n\
         [pool]\nmax_server_connections = 8\n\
         [users.heavy]\npriority = 300\n[users.light]\npriority = 100\n",
        server.node_url()
    );
    let pgweir = Options::config(&config).start();
    let nap = "SELECT pg_sleep(0.02)";
    let (time, at_once) = (Duration::from_secs(5), Duration::ZERO);
    let (more, less) = tokio::join!(
        load(&pgweir, heavy.name, 24, nap, time, at_once),
        load(&pgweir, light.name, 24, nap, time, at_once),
    );
    #[allow(clippy::cast_precision_loss, reason = "counts")]
    let ratio = more.answered.len() as f64 / less.answered.len() as f64;
    // Six connections to two, once the first come has given way.
    assert!(ratio > 1.5, "{ratio}");
}

#[tokio::test]
async fn an_unreachable_server_fails_fast_where_that_is_wanted() {
    let mut server = ServerOptions::default().start().unwrap();
    let pgweir = Options::new(&server)
        .set("overload.fail_fast", "true")
        .set("timeouts.server_login_retry", "100ms")
        .start();
    let mut client = pgweir.client().await;
    client.query("SELECT 1").await.ok();
    server.stop(StopMode::Fast).unwrap();
    for _ in 0..3 {
        let reply = client.query("SELECT 1").await;
        assert_eq!((reply.sqlstate(), reply.status), ("57P03", 'I'));
        let message = &reply.error().message;
        assert!(
            message.starts_with("the server can't be reached: "),
            "{message}"
        );
    }
    let series = format!(
        "pgweir_server_unreachable{{server=\"{}\"}}",
        server.address()
    );
    assert_eq!(pgweir.metric(&series), Some(1.0));
    server.start().unwrap();
    eventually("the server to be used again", async || {
        client.query("SELECT 1").await.errors.is_empty()
    })
    .await;
    assert_eq!(pgweir.metric(&series), Some(0.0));
}

/// A server with the roles `user_0` and so on.
fn server_with_users(count: usize) -> Server {
    let options = ServerOptions::default().set("max_connections", "100");
    let server = options.start().unwrap();
    for user in 0..count {
        let sql = format!("CREATE ROLE user_{user} LOGIN");
        server.sql("postgres", &sql).unwrap();
    }
    server
}

/// Clients that all have a statement to run when the server comes back, from pools of `users`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stampede_after_an_outage_is_let_in_smoothly() {
    const OPENING_MAX: usize = 4;
    let (count, users) = (number("PGWEIR_STAMPEDE", 400), 10);
    let mut server = server_with_users(users);
    let link = Link::to(server.address()).await;
    let pgweir = Options::in_front_of(&link.node_url())
        .flag("--pool-size", "8")
        .set("overload.opening_max", &OPENING_MAX.to_string())
        .set("timeouts.server_login_retry", "200ms")
        .start();
    let login = |index: usize| Login::new(&format!("user_{}", index % users), "postgres");
    let mut clients = Vec::new();
    for index in 0..count {
        let mut client = pgweir.client_as(&login(index)).await;
        if index < users {
            client.query("SELECT 1").await.ok();
        }
        clients.push(client);
    }
    server.kill9().unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut asking = JoinSet::new();
    for (index, mut client) in clients.into_iter().enumerate() {
        let answered = Arc::clone(&answered);
        asking.spawn(async move {
            client
                .send(&messages::query(&format!("SELECT {index}")))
                .await;
            let reply = client.reply().await.ok();
            assert_eq!(reply.value(), index.to_string());
            answered.fetch_add(1, Ordering::SeqCst);
        });
    }
    // As many more connect while it is away.
    let address = pgweir.address;
    for index in 0..count / 4 {
        let login = login(index);
        asking.spawn(async move {
            let mut client = Client::connect_as(address, &login).await.unwrap();
            assert_eq!(client.value("SELECT 'late'").await, "late");
        });
    }
    eventually("the outage to be noticed", async || {
        pgweir.log_contains("the server can't be reached")
    })
    .await;
    assert_eq!(answered.load(Ordering::SeqCst), 0);
    let begun = Instant::now();
    server.start().unwrap();
    let all = async {
        while let Some(done) = asking.join_next().await {
            done.unwrap();
        }
    };
    within_limit("everybody to be served", all).await;
    println!(
        "{count} clients and {} that came meanwhile served {:?} after the server's start; {} logins on it, {} at a time",
        count / 4,
        begun.elapsed(),
        link.logins(),
        link.logging_in_most(),
    );
    assert!(
        link.logging_in_most() <= OPENING_MAX,
        "{}",
        link.logging_in_most()
    );
    pgweir.wait_for_log("the server is reached again");
}

/// Goodput at five times the load that the servers can bear, beside the most that they can do.
#[tokio::test]
async fn at_five_times_the_capacity_as_much_is_done_as_at_best() {
    let seconds = u64::try_from(number("PGWEIR_SECONDS", 3)).unwrap();
    // A debug build on a busy machine shows the shape, a release build by itself the figure.
    let is_shown = std::env::var_os("PGWEIR_SHOW").is_some();
    let (backends, work) = if is_shown {
        (
            8,
            "SELECT count(*), pg_sleep(0.02) FROM generate_series(1, 100)",
        )
    } else {
        (4, "SELECT pg_sleep(0.05)")
    };
    let role = shared::role("overloaded").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", &backends.to_string())
        .set("timeouts.query_wait_timeout", "500ms")
        .start();
    let time = Duration::from_secs(seconds);
    let mut peak = Tally::default();
    for clients in [backends, backends * 3 / 2, backends * 2] {
        let tally = load(&pgweir, role.name, clients, work, time, Duration::ZERO).await;
        assert!(tally.refused.is_empty(), "{:?}", tally.refused);
        if tally.answered.len() > peak.answered.len() {
            peak = tally;
        }
    }
    let capacity = peak.rate(time);
    // Enough clients that each has but one statement under way: a statement a second from each.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of clients"
    )]
    let clients = (capacity * 5.0) as usize;
    let pause = Duration::from_secs(1);
    // What is counted begins when the overload has lasted for a while, as it would in the midst of a bad day.
    load(
        &pgweir,
        role.name,
        clients,
        work,
        Duration::from_secs(2),
        pause,
    )
    .await;
    let mut tally = load(&pgweir, role.name, clients, work, time, pause).await;
    #[allow(clippy::cast_precision_loss, reason = "a count")]
    let offered = (tally.answered.len() + tally.refused.len()) as f64 / time.as_secs_f64();
    let (goodput, p99) = (tally.rate(time), tally.quantile(0.99));
    println!(
        "peak {capacity:.0}/s; {offered:.0}/s offered by {clients} clients: goodput {goodput:.0}/s ({:.0} % of the peak), \
         p50 {:?}, p99 {p99:?} of those let in (query_wait_timeout 500ms); {} refused",
        goodput / capacity * 100.0,
        tally.quantile(0.5),
        tally.refused.len(),
    );
    assert!(!tally.refused.is_empty());
    if is_shown {
        assert!(
            goodput >= 0.9 * capacity,
            "goodput is below 90 % of the peak"
        );
        assert!(
            p99 <= Duration::from_millis(700),
            "p99 is more than the wait allowed, a statement and a margin"
        );
    } else {
        assert!(goodput > 0.0, "nobody was served");
    }
}

/// Counts backends after clients have done what clients do at their worst.
#[tokio::test]
async fn no_backend_is_left_over_after_whatever_clients_do() {
    const POOL: usize = 5;
    let mut role = shared::role("abusers").await;
    let pgweir = Options::new(shared::server())
        .flag("--pool-size", &POOL.to_string())
        .set("timeouts.query_timeout", "80ms")
        .set("timeouts.query_wait_timeout", "400ms")
        .set("timeouts.idle_transaction_timeout", "150ms")
        .set("timeouts.transaction_timeout", "300ms")
        .set("timeouts.client_write_timeout", "200ms")
        .set("timeouts.server_idle_timeout", "1s")
        // Its side connection would be counted.
        .set("metrics.lock_wait_after", "0")
        .start();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for index in 0..40_u64 {
        let (address, stop) = (pgweir.address, Arc::clone(&stop));
        clients.spawn(async move { abuse(address, seed.wrapping_add(index), &stop).await });
    }
    let mut most = 0;
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        // Those being closed are still there for a moment: the states tell them apart by what they run.
        most = most.max(
            role.activity(
                "pid",
                "backend_type = 'client backend' AND state = 'active'",
            )
            .await
            .len(),
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    println!("{most} active backends at most");
    // All of them are idle in the pool, clean, and go when they are idle too long.
    eventually("the pool to be at rest", async || {
        let states = role.activity("state", "true").await;
        states.len() <= POOL && states.iter().all(|state| state == "idle")
    })
    .await;
    eventually("idle connections to be closed", async || {
        role.pids().await.is_empty()
    })
    .await;
    let mut console = pgweir.console().await;
    let servers = console.query("SHOW SERVERS").await.ok();
    assert!(servers.rows.is_empty(), "{:?}", servers.rows);
    // And the pool is as good as new.
    for _ in 0..POOL {
        let mut client = role.client(&pgweir).await;
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

/// One client after the other, each leaving at a bad moment, until told to stop.
async fn abuse(address: std::net::SocketAddr, seed: u64, stop: &AtomicBool) {
    use rand::{Rng as _, SeedableRng as _};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let login = Login::new("abusers", "postgres");
    while !stop.load(Ordering::SeqCst) {
        let Ok(mut client) = Client::connect_as(address, &login).await else {
            continue;
        };
        let step = |sql: &str, end: &[u8]| {
            [
                messages::parse("", sql, &[]),
                messages::bind("", "", &[]),
                messages::execute("", 0),
                end.to_vec(),
            ]
            .concat()
        };
        let deed = match rng.random_range(0..10) {
            0 => messages::query("SELECT pg_sleep(0.5)"),
            1 => messages::query("BEGIN; SELECT 1"),
            2 => messages::query("SELECT repeat('x', 10000) FROM generate_series(1, 5000)"),
            3 => messages::query("SELECT pg_sleep(0.01)").repeat(20),
            4 => step("SELECT pg_sleep(0.3)", &messages::flush()),
            5 => step("SELECT 1", &messages::sync()).repeat(10),
            6 => messages::query("COPY (SELECT generate_series(1, 100000)) TO STDOUT"),
            7 => messages::query("CREATE TEMP TABLE t (a int)"),
            8 => messages::query("SELECT 1/0"),
            _ => messages::query("SELECT 'half of a message'")[..12].to_vec(),
        };
        let _ = client.try_send(&deed).await;
        let mut stream = client.into_transport();
        let patience = Duration::from_millis(rng.random_range(0..400));
        let listens = rng.random_range(0..3) > 0;
        let talk = async {
            let mut buffer = vec![0; 16 * 1024];
            while listens && matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
            if !listens {
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(patience, talk).await;
    }
}

/// One pool's connections take too long to log in: that says nothing of the server, and the others have theirs.
#[tokio::test]
async fn a_pool_whose_logins_hang_does_not_close_the_server_to_others() {
    let role = shared::role("hangs").await;
    let config = format!(
        "[general]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [cluster]\nprimary = \"{}\"\n[auth]\nmethod = \"trust\"\n[timeouts]\nserver_connect_timeout = \"1s\"\n\
         server_login_retry = \"50ms\"\n[overload]\nbreaker_after = 2\n[databases.postgres]\n\
         [databases.hangs]\ndbname = \"postgres\"\nconnect_query = \"SELECT pg_sleep(60)\"\n",
        shared::server().node_url()
    );
    let pgweir = Options::config(&config).start();
    let mut stuck = Vec::new();
    for _ in 0..4 {
        // The first connection is what tells it who the server is.
        let mut client = Client::open(pgweir.address).await;
        let names = [("user", role.name), ("database", "hangs")];
        client.send(&messages::startup(0x0003_0000, &names)).await;
        stuck.push(client);
    }
    eventually("several attempts to have failed", async || {
        let log = pgweir.log();
        log.matches("(server_connect_timeout)").count() >= 4
    })
    .await;
    assert!(!pgweir.log_contains("the server can't be reached"));
    let mut client = role.client(&pgweir).await;
    assert_eq!(client.value("SELECT 1").await, "1");
}
