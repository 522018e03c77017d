//! What slow statements wait for: `pg_blocking_pids` and `pg_stat_activity`, sampled while there are slow statements.
//!
//! Bound: a look each `PERIOD` at most, at `STATEMENTS_MAX` statements and `BLOCKERS_MAX` that stand in the way of
//! each; without a statement that runs longer than `metrics.lock_wait_after`, none.
//!
//! # Why
//! `pg_blocking_pids` takes the lock manager's locks for a moment, so it is asked only of statements that have been
//! running for as long as PostgreSQL itself waits before it looks for deadlocks, and never of all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::side::Sides;
use crate::backend::query::Row;
use crate::meter::{Blocker, Client, Doing, QueryId, Wait, Waits};
use crate::pool::Pool;
use crate::registry::ClientEntry;
use crate::shared::Shared;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Statements looked at, the longest running first.
const STATEMENTS_MAX: usize = 100;
/// Backends kept of those that stand in a statement's way.
const BLOCKERS_MAX: usize = 16;

/// A client on its backend.
#[derive(Clone, Debug)]
struct OnBackend {
    pool: Arc<Pool>,
    entry: Arc<ClientEntry>,
    doing: Option<Doing>,
}

/// Backends by server and process id.
type Backends = HashMap<(String, u32), OnBackend>;

/// Looks until dropped.
pub async fn watch(shared: Arc<Shared>) {
    let mut sides = Sides::default();
    loop {
        tokio::time::sleep(PERIOD).await;
        let after = shared.config.load().metrics.lock_wait_after;
        let waits = match after {
            Some(after) => look(&shared, &mut sides, after).await,
            None => Vec::new(),
        };
        sides.close_unused();
        shared.recent.set_waits(Waits {
            taken: Some(SystemTime::now()),
            waits,
        });
    }
}

/// The backends that clients run on.
fn backends(shared: &Shared) -> Backends {
    let clients = shared.registry.all().into_iter();
    let mut running: HashMap<usize, Arc<ClientEntry>> = clients
        .filter_map(|entry| Some((Arc::as_ptr(&entry.running()?).addr(), entry)))
        .collect();
    let mut backends = Backends::new();
    for pool in shared.pools.all() {
        for live in pool.live.all() {
            let address = Arc::as_ptr(&live.identity).addr();
            if let Some(entry) = running.remove(&address) {
                let node = &live.identity.node;
                let server = format!("{}:{}", node.host, node.port);
                let on = OnBackend {
                    pool: Arc::clone(&pool),
                    doing: entry.activity.running(),
                    entry,
                };
                backends.insert((server, live.identity.pid), on);
            }
        }
    }
    backends
}

async fn look(shared: &Shared, sides: &mut Sides, after: Duration) -> Vec<Wait> {
    let now = Instant::now();
    let backends = backends(shared);
    let mut slow: Vec<(Doing, &String, u32)> = backends
        .iter()
        .filter_map(|((server, pid), on)| Some((on.doing?, server, *pid)))
        .filter(|(doing, ..)| now.saturating_duration_since(doing.since) >= after)
        .collect();
    slow.sort_by_key(|(doing, ..)| doing.since);
    slow.truncate(STATEMENTS_MAX);
    let mut by_server: BTreeMap<&String, Vec<u32>> = BTreeMap::new();
    for (_, server, pid) in slow {
        by_server.entry(server).or_default().push(pid);
    }
    let mut waits = Vec::new();
    for (server, pids) in by_server {
        let of = |pid: &u32| backends.get(&(server.clone(), *pid));
        let Some(first) = pids.first().and_then(of) else {
            continue;
        };
        let text = question(&pids);
        match sides.ask(&shared.pools, &first.pool, false, &text).await {
            Ok(rows) => {
                let rows = rows.iter();
                waits.extend(rows.filter_map(|row| wait(row, server, &backends, now)));
            }
            Err(error) => {
                tracing::debug!(%server, %error, "could not ask what statements wait for");
            }
        }
    }
    waits
}

/// What each of these backends waits for, and the states of those that stand in its way.
fn question(pids: &[u32]) -> Vec<u8> {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    let pids = pids.join(",");
    format!(
        "SELECT a.pid, a.wait_event_type, a.wait_event, l.locktype, l.mode, l.relation, b.blockers, \
         pg_catalog.array_to_string(ARRAY(SELECT COALESCE(s.state, '') \
         FROM pg_catalog.unnest(b.blockers) WITH ORDINALITY u(pid, n) \
         LEFT JOIN pg_catalog.pg_stat_activity s ON s.pid = u.pid ORDER BY u.n), '|') \
         FROM pg_catalog.pg_stat_activity a \
         CROSS JOIN LATERAL (SELECT pg_catalog.pg_blocking_pids(a.pid) AS blockers) b \
         LEFT JOIN LATERAL (SELECT w.locktype, w.mode, w.relation::pg_catalog.regclass::pg_catalog.text AS relation \
         FROM pg_catalog.pg_locks w WHERE w.pid = a.pid AND NOT w.granted LIMIT 1) l ON true \
         WHERE a.pid IN ({pids}) ORDER BY a.pid"
    )
    .into_bytes()
}

fn client(entry: &ClientEntry) -> Client {
    Client {
        pid: entry.pid.0,
        user: Arc::clone(&entry.user),
        database: Arc::clone(&entry.database),
        application: (*entry.application()).into(),
        peer: entry.peer,
    }
}

/// A row of the answer; `None` for what is not a backend of pgweir's any more.
fn wait(row: &Row, server: &str, backends: &Backends, now: Instant) -> Option<Wait> {
    let text = |place: usize| -> Box<str> {
        let value = row.get(place).and_then(Option::as_deref);
        String::from_utf8_lossy(value.unwrap_or_default()).into()
    };
    let pid: u32 = text(0).parse().ok()?;
    let on = |pid: u32| backends.get(&(server.to_owned(), pid));
    let own = on(pid)?;
    let doing = own.doing?;
    let (blockers, states) = (text(6), text(7));
    let blockers = blockers.trim_matches(['{', '}']).split(',');
    let blockers = blockers.filter_map(|pid| pid.parse().ok());
    let blocker = |(backend, state): (u32, &str)| Blocker {
        backend,
        state: state.into(),
        client: on(backend).map(|on| {
            // One that is idle in its transaction took the lock by what it ran before.
            let last = on.entry.activity.last();
            let query = last.map_or(QueryId::default(), |last| last.query);
            (client(&on.entry), query)
        }),
    };
    Some(Wait {
        client: client(&own.entry),
        query: doing.query,
        backend: pid,
        running: now.saturating_duration_since(doing.since),
        event_type: text(1),
        event: text(2),
        lock_type: text(3),
        lock_mode: text(4),
        relation: text(5),
        blockers: blockers
            .zip(states.split('|').chain(std::iter::repeat("")))
            .take(BLOCKERS_MAX)
            .map(blocker)
            .collect(),
    })
}
