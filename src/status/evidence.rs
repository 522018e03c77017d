//! From a snapshot to what advice is given on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::advice::statements::{LockWait, Statement};
use super::advice::{Evidence, nodes, pins, pools};
use super::pins::PinStatus;
use super::timeline::Timeline;
use super::trends::Trends;
use super::{PoolStatus, Snapshot};
use crate::config::model::{Config, PoolMode};
use crate::meter::QuerySample;
use crate::pool::obstacle::Obstacle;

/// Points that count as the last minute.
const MINUTE: usize = 60;

/// A transaction without a statement for less than this is only between two of them.
const BETWEEN_STATEMENTS: Duration = Duration::from_millis(100);

impl Evidence {
    /// What is there now, and what was in the last minute.
    pub fn of(snapshot: &Snapshot, timeline: &Timeline, trends: &Trends) -> Self {
        let keeping = keeping(snapshot);
        Self {
            clients: snapshot.clients.len() + snapshot.logging_in,
            clients_max: snapshot.config.general.max_client_conn,
            pools: snapshot
                .pools
                .iter()
                .map(|pool| self::pool(pool, &snapshot.config, timeline, &keeping))
                .collect(),
            statements: snapshot
                .queries
                .queries
                .iter()
                .map(|query| statement(query, trends))
                .collect(),
            waits: waits(snapshot),
            pins: snapshot.pins.iter().flat_map(pins_of).collect(),
            clusters: snapshot.clusters.iter().map(cluster).collect(),
            nodes: snapshot.nodes.iter().map(node).collect(),
        }
    }
}

/// Connections of a pool that clients hold without running anything on them.
#[derive(Clone, Copy, Debug, Default)]
struct Keeping {
    idle_in_transaction: usize,
    pinned: usize,
}

type KeepingBy = HashMap<(Arc<str>, Arc<str>), Keeping>;

fn keeping(snapshot: &Snapshot) -> KeepingBy {
    let pinned: HashSet<u32> = snapshot.pins.iter().map(|pin| pin.pin.client).collect();
    let mut by_pool = KeepingBy::new();
    for client in &snapshot.clients {
        let idle = client
            .last_began
            .is_none_or(|at| at.elapsed() >= BETWEEN_STATEMENTS);
        if client.server.is_none() || client.running.is_some() || !idle {
            continue;
        }
        let key = (
            Arc::clone(&client.entry.database),
            Arc::clone(&client.entry.user),
        );
        let keeping = by_pool.entry(key).or_default();
        if pinned.contains(&client.entry.pid.0) {
            keeping.pinned += 1;
        } else {
            keeping.idle_in_transaction += 1;
        }
    }
    by_pool
}

fn pool(
    status: &PoolStatus,
    config: &Config,
    timeline: &Timeline,
    keeping: &KeepingBy,
) -> pools::Pool {
    let pool = &status.pool;
    let (database, user) = (Arc::clone(&pool.key.database), Arc::clone(&pool.key.user));
    let effective = pool.effective.load();
    let mut keeping = keeping
        .get(&(Arc::clone(&database), Arc::clone(&user)))
        .copied()
        .unwrap_or_default();
    if status.pool_mode == PoolMode::Session {
        // Whoever is connected holds one, which says nothing.
        keeping = Keeping::default();
    }
    let waited = timeline.of_pool(&database, &user).map_or(0, |points| {
        let skipped = points.len().saturating_sub(MINUTE);
        points
            .skip(skipped)
            .filter(|point| point.waiting > 0)
            .count()
    });
    pools::Pool {
        max_size: status.connections_max,
        size_key: size_key(config, &database, &user),
        wait_limit: effective.timeouts.query_wait_timeout,
        waiting: status.cl_waiting,
        longest_wait: status.maxwait,
        waited,
        in_use: status.sv_active,
        idle_in_transaction: keeping.idle_in_transaction,
        pinned: keeping.pinned,
        obstacle: match pool.obstacle() {
            Obstacle::Paused => pools::Obstacle::Paused,
            Obstacle::NoPrimary => pools::Obstacle::NoPrimary,
            Obstacle::OpenFailed(error) => pools::Obstacle::OpenFailed(error.to_string()),
            Obstacle::Cap(cap) => pools::Obstacle::Cap(cap.setting()),
            Obstacle::Size => pools::Obstacle::Size,
        },
        database,
        user,
    }
}

/// Where a pool's `max_size` is said, or where to say it for this pool alone.
fn size_key(config: &Config, database: &str, user: &str) -> String {
    let by_user = config.users.get(user).and_then(|user| user.max_size);
    if by_user.is_some() {
        return format!("users.{}.max_size", quoted(user));
    }
    match config.databases.get(database) {
        Some(own) if own.pool.max_size != config.pool.max_size => {
            format!("databases.{}.max_size", quoted(database))
        }
        _ => "pool.max_size".to_owned(),
    }
}

/// A name as a part of a dotted key.
fn quoted(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}

fn statement(query: &QuerySample, trends: &Trends) -> Statement {
    let load = trends.load(query.id);
    let most = query.sqlstates.iter().max_by_key(|(_, count)| *count);
    Statement {
        id: query.id,
        text: Arc::clone(&query.text),
        calls: query.calls,
        rows: query.rows,
        min: query.min,
        p50: query.time_at(0.5),
        mean: query.total.mean(query.calls),
        concurrency: load.concurrency,
        errors: query.errors,
        errors_lately: load.errors_a_second,
        sqlstate: most.map(|(code, _)| code.as_str().to_owned()),
    }
}

fn waits(snapshot: &Snapshot) -> Vec<LockWait> {
    let waits = snapshot.recent.waits.waits.iter();
    waits
        .filter_map(|wait| {
            let blocker = wait.blockers.first()?;
            Some(LockWait {
                query: wait.query,
                running: wait.running,
                relation: wait.relation.clone(),
                blocker_state: blocker.state.clone(),
                blocker: blocker.backend,
            })
        })
        .collect()
}

fn pins_of(status: &PinStatus) -> impl Iterator<Item = pins::Pin> {
    let (query, age) = (status.pin.query, status.pin.since.elapsed());
    let reasons = status.pin.reasons.iter();
    reasons.map(move |reason| pins::Pin { reason, query, age })
}

fn cluster(status: &super::ClusterStatus) -> nodes::Cluster {
    nodes::Cluster {
        servers: Arc::clone(&status.servers),
        held: status.held,
    }
}

fn node(status: &super::NodeStatus) -> nodes::Node {
    let view = &status.view;
    nodes::Node {
        name: (&*view.node.name).into(),
        state: view.state,
        in_state: status.in_state,
        is_primary: status.is_primary,
        lag: view.lag,
        error: view.error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};

    #[test]
    fn the_key_that_decides_a_pools_size_is_named() {
        let mut overrides = Overrides::new();
        for (key, value) in [
            ("cluster.primary", "postgres://db1"),
            ("databases.app.max_size", "5"),
            ("databases.same.min_idle", "1"),
            ("users.batch.max_size", "2"),
            ("users.\"a b\".max_size", "2"),
        ] {
            overrides.set("--set", key, value);
        }
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let key = |database, user| size_key(&config, database, user);
        assert_eq!(key("app", "web"), "databases.app.max_size");
        assert_eq!(key("app", "batch"), "users.batch.max_size");
        assert_eq!(key("same", "web"), "pool.max_size");
        assert_eq!(key("other", "a b"), "users.\"a b\".max_size");
    }
}
