//! What each piece of the hot path costs by itself: `cargo bench --bench pieces`.
//!
//! Times are of the machine they were measured on; compare those of one run. Allocations are exact.

use std::sync::Arc;
use std::time::Duration;

use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher, black_box};
use pgweir::backend::connection::{Backend, Identity};
use pgweir::config::Overrides;
use pgweir::meter::{Execution, Queries, QueryId};
use pgweir::net::connect::Encryption;
use pgweir::net::stream::Stream;
use pgweir::pool::effective::Effective;
use pgweir::pool::limits::Cap;
use pgweir::pool::{Pool, PoolKey};
use pgweir::reload::Source;
use pgweir::session::mirror::Mirror;
use pgweir::session::plan;
use pgweir::session::settings::Settings;
use pgweir::sql::known::KnownStatements;
use pgweir::sql::{LexOptions, classify, normalise};
use pgweir::wire::expect::{Expect, For, Owed, Request};
use pgweir::wire::frame::Header;
use pgweir::wire::{backend, frontend};
use tokio::net::UnixStream;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const POINT_READ: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;";
const REPORT: &str = "WITH hot AS (SELECT user_id, sum(amount) AS total FROM balance_changes WHERE created_at > \
    now() - interval '1 day' GROUP BY 1 HAVING sum(amount) > 100.5) SELECT u.name, h.total, count(o.id) FROM hot h JOIN \
    users u ON u.id = h.user_id LEFT JOIN market_orders o ON o.user_id = u.id AND o.state IN ('open', 'partial', 'held') \
    WHERE u.country <> 'XX' GROUP BY 1, 2 ORDER BY 2 DESC LIMIT 50";

fn main() {
    divan::main();
}

/// 200 rows as a server sends them.
fn rows() -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..200_u32 {
        out.push(backend::DATA_ROW);
        out.extend_from_slice(&(4 + 2 + 4 + 4_u32).to_be_bytes());
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(&4_u32.to_be_bytes());
        out.extend_from_slice(&row.to_be_bytes());
    }
    out
}

#[divan::bench]
fn frame_scan(bencher: Bencher<'_, '_>) {
    let rows = rows();
    bencher
        .counter(BytesCount::new(rows.len()))
        .bench_local(|| {
            let (mut at, mut count) = (0, 0);
            while let Ok(Some(header)) = Header::peek(&black_box(&rows)[at..], usize::MAX) {
                at += header.len;
                count += 1;
            }
            count
        });
}

#[divan::bench(args = [POINT_READ, REPORT])]
fn classify_text(text: &str) -> usize {
    classify(black_box(text.as_bytes()), LexOptions::default())
        .statements
        .len()
}

#[divan::bench(args = [POINT_READ, REPORT])]
fn normalise_text(text: &str) -> usize {
    normalise(black_box(text.as_bytes()), LexOptions::default(), 2048).len()
}

/// What a simple query costs that was seen before: fingerprint and table.
#[divan::bench(args = [POINT_READ, REPORT])]
fn known_lookup(bencher: Bencher<'_, '_>, text: &str) {
    let known = KnownStatements::default();
    known.lookup(text.as_bytes(), LexOptions::default());
    bencher.bench_local(|| known.lookup(black_box(text.as_bytes()), LexOptions::default()));
}

/// A Bind under its global name.
#[divan::bench]
fn statement_rewrite(bencher: Bencher<'_, '_>) {
    let mut payload = b"\0client_name\0".to_vec();
    payload.extend_from_slice(&[0; 20]);
    let mut out = Vec::with_capacity(128);
    bencher.bench_local(|| {
        out.clear();
        let bind = frontend::Bind::read(black_box(&payload));
        if let Some(bind) = bind {
            frontend::put_bind_head(
                &mut out,
                bind.portal,
                b"pgweir_42",
                payload.len() - bind.head,
            );
        }
        out.len()
    });
}

/// The queue of owed answers over one prepared statement.
#[divan::bench]
fn owed_answers(bencher: Bencher<'_, '_>) {
    let requests = [
        Request::Bind,
        Request::DescribePortal,
        Request::Execute,
        Request::Sync,
    ];
    let answers = [
        backend::BIND_COMPLETE,
        backend::ROW_DESCRIPTION,
        backend::DATA_ROW,
        backend::COMMAND_COMPLETE,
        backend::READY_FOR_QUERY,
    ];
    let mut expect = Expect::default();
    bencher.bench_local(|| {
        for request in requests {
            expect.push(Owed::new(request, For::Client));
        }
        for tag in answers {
            let _ = black_box(expect.receive(tag));
        }
        expect.is_at_rest()
    });
}

fn settings(names: &[(&str, &str)]) -> Arc<Settings> {
    let mut settings = Settings::default();
    for (name, value) in names {
        settings.set(name.as_bytes(), Some(value.as_bytes()));
    }
    Arc::new(settings)
}

/// The comparison at each checkout, where nothing differs.
#[divan::bench]
fn session_plan_of_equals(bencher: Bencher<'_, '_>) {
    let want = settings(&[("application_name", "bench"), ("search_path", "app")]);
    let have = Arc::clone(&want);
    bencher.bench_local(|| pgweir::session::settings::same(black_box(&have), black_box(&want)));
}

/// And where two settings do.
#[divan::bench]
fn session_plan_of_two_settings(bencher: Bencher<'_, '_>) {
    let one = settings(&[("application_name", "a"), ("search_path", "x")]);
    let two = settings(&[("application_name", "b"), ("search_path", "y")]);
    let mut mirror = Mirror::new(Arc::default(), 10);
    let mut text = Vec::with_capacity(512);
    let mut turn = false;
    bencher.bench_local(|| {
        turn = !turn;
        text.clear();
        let want = if turn { &one } else { &two };
        plan::onto(&mut mirror, want, plan::How::default(), &mut text);
        text.len()
    });
}

/// A pool with one idle connection, to a socket whose other end says nothing.
fn pool() -> Result<(Arc<Pool>, UnixStream), Box<dyn std::error::Error>> {
    let mut overrides = Overrides::new();
    overrides.set("bench", "cluster.primary", "postgres://127.0.0.1:1");
    let parts = Source {
        file: None,
        overrides,
    }
    .read()?;
    let effective = Effective::of(&parts.config, "exchange", "app").ok_or("no database")?;
    let key = PoolKey {
        database: "exchange".into(),
        user: "app".into(),
        node: None,
    };
    let node = effective.primary.clone();
    let settings = effective.pool.clone();
    let pool = Pool::new(key, effective, Arc::default());
    let (near, far) = UnixStream::pair()?;
    let identity = Identity::new(node, 1, Vec::new(), Encryption::Plain);
    let mirror = Mirror::new(Arc::default(), 10);
    let slot = pool.reserve(&settings).map_err(Cap::setting)?;
    pool.adopt(Backend::new(Stream::Unix(near), identity, mirror, 0), slot);
    Ok((pool, far))
}

/// A backend checked out, looked at, and checked in, for each transaction.
#[divan::bench]
fn checkout_and_checkin(bencher: Bencher<'_, '_>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let (pool, _far) = pool().expect("a pool");
    bencher.bench_local(|| {
        let lease = black_box(&pool).try_checkout().expect("an idle connection");
        let is_clean = lease.is_clean();
        lease.checkin();
        is_clean
    });
}

/// What is counted of one statement.
#[divan::bench]
fn metrics_record(bencher: Bencher<'_, '_>) {
    let known = KnownStatements::default();
    let statement = known.lookup(POINT_READ.as_bytes(), LexOptions::default());
    let queries: &Queries = &known.queries;
    let execution = Execution {
        origin: queries.origin("app", "exchange", "bench"),
        node: queries.node("primary"),
        at: Instant::now(),
        queued: Duration::ZERO,
        took: Duration::from_micros(140),
        first: Duration::from_micros(130),
        rows: 1,
        received: 60,
        sent: 90,
        error: None,
        continues: false,
    };
    bencher.bench_local(|| queries.count(&statement.query, black_box(&execution)));
}

/// A copy of a thousand records whose times spread over five doublings: what each look at the statements costs, on a
/// thread that no session waits for.
#[divan::bench]
fn metrics_sample(bencher: Bencher<'_, '_>) {
    let queries = Queries::default();
    for id in 1..=1000 {
        let query = queries.record(QueryId(id), || "SELECT $1".into());
        for time in 0..500 {
            let took = Duration::from_micros(100 + (time * 37 + id * 11) % 3_100);
            let execution = Execution {
                origin: queries.origin("app", "exchange", "bench"),
                node: queries.node("primary"),
                at: Instant::now(),
                queued: Duration::ZERO,
                took,
                first: took,
                rows: 1,
                received: 60,
                sent: 90,
                error: None,
                continues: false,
            };
            queries.count(&query, &execution);
        }
    }
    bencher.bench_local(|| black_box(&queries).sample());
}
