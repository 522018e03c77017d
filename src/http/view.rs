//! What the page is told, as JSON: a snapshot and the timeline in the page's words.
//!
//! Times are in seconds, instants in milliseconds since 1970. Nothing is computed here that the page could show
//! otherwise than the console does.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::access::Role;
use super::api::PoolName;
use crate::shared::Shared;
use crate::status::timeline::{Point, Timeline};
use crate::status::{PoolStatus, Snapshot};

/// Pools shown, the busiest first.
const POOLS_MAX: usize = 200;

/// Points that a pool's rates are means of.
const RECENT: usize = 5;

/// This moment.
#[derive(Debug, Serialize)]
pub(super) struct Now<'a> {
    version: &'static str,
    role: &'static str,
    time: u64,
    uptime: f64,
    state: &'static str,
    clients: Clients,
    /// Number of the newest point of the timeline.
    point: u64,
    whole: Option<PointView>,
    pub(super) pools: Vec<PoolView<'a>>,
    pools_left_out: usize,
}

#[derive(Debug, Serialize)]
struct Clients {
    connected: usize,
    connected_max: usize,
    logging_in: usize,
}

/// A pool and what it does.
#[derive(Debug, Serialize)]
pub(super) struct PoolView<'a> {
    database: &'a str,
    user: &'a str,
    mode: &'static str,
    clients: usize,
    waiting: usize,
    longest_wait: f64,
    servers_active: usize,
    servers_idle: usize,
    /// Being opened, tested, or waiting for a cancel request to be through.
    servers_other: usize,
    servers_max: usize,
    statements_a_second: f32,
    /// Why clients wait, if any do.
    why_waiting: Option<String>,
    point: Option<PointView>,
}

/// Statements and transactions a second, mean wait in seconds, clients waiting, server connections in use.
type PointView = (f32, f32, f32, u32, u32);

fn point_view(point: &Point) -> PointView {
    let Point {
        statements,
        transactions,
        wait,
        waiting,
        in_use,
    } = *point;
    (statements, transactions, wait, waiting, in_use)
}

/// Now, in milliseconds since 1970.
fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

impl<'a> Now<'a> {
    pub(super) fn new(
        shared: &Shared,
        snapshot: &'a Snapshot,
        timeline: &Timeline,
        role: Role,
    ) -> Self {
        let mut pools: Vec<_> = snapshot
            .pools
            .iter()
            .map(|pool| PoolView::new(pool, timeline))
            .collect();
        pools.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
        let pools_left_out = pools.len().saturating_sub(POOLS_MAX);
        pools.truncate(POOLS_MAX);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            role: match role {
                Role::Stats => "stats",
                Role::Admin => "admin",
            },
            time: milliseconds(),
            uptime: shared.started.elapsed().as_secs_f64(),
            state: state(shared, snapshot),
            clients: Clients {
                connected: snapshot.clients.len(),
                connected_max: snapshot.config.general.max_client_conn,
                logging_in: snapshot.logging_in,
            },
            point: timeline.count(),
            whole: timeline.whole().last().map(point_view),
            pools,
            pools_left_out,
        }
    }
}

fn state(shared: &Shared, snapshot: &Snapshot) -> &'static str {
    if shared.draining.load(Ordering::SeqCst) {
        "stopping"
    } else if snapshot.paused {
        "paused"
    } else if shared.ready.load(Ordering::SeqCst) {
        "serving"
    } else {
        "starting"
    }
}

impl<'a> PoolView<'a> {
    fn new(status: &'a PoolStatus, timeline: &Timeline) -> Self {
        let pool = &status.pool;
        let points = || timeline.of_pool(&pool.key.database, &pool.key.user);
        let rate = points().map_or(0.0, |points| {
            Timeline::recent(points, RECENT, |point| point.statements)
        });
        Self {
            database: &pool.key.database,
            user: &pool.key.user,
            mode: status.pool_mode.as_str(),
            clients: status.cl_active + status.cl_waiting,
            waiting: status.cl_waiting,
            longest_wait: status.maxwait.as_secs_f64(),
            servers_active: status.sv_active,
            servers_idle: status.sv_idle,
            servers_other: status.sv_login + status.sv_tested + status.sv_being_canceled,
            servers_max: pool.effective.load().pool.max_size,
            statements_a_second: rate,
            why_waiting: (status.cl_waiting > 0).then(|| pool.why_waiting()),
            point: points().and_then(|points| points.last().map(point_view)),
        }
    }

    /// By what pools are listed: those in trouble first, then those that work.
    #[allow(clippy::cast_precision_loss, reason = "for sorting")]
    fn weight(&self) -> f64 {
        self.waiting as f64 * 1e6
            + f64::from(self.statements_a_second) * 1e2
            + self.servers_active as f64
            + self.clients as f64 / 1e3
    }
}

/// The points of the last 15 minutes, a list for each series, oldest first.
#[derive(Debug, Serialize)]
pub(super) struct History {
    /// Number of the last one.
    point: u64,
    time: u64,
    /// Seconds from one to the next.
    step: f64,
    statements: Vec<f32>,
    transactions: Vec<f32>,
    wait: Vec<f32>,
    waiting: Vec<u32>,
    in_use: Vec<u32>,
}

impl History {
    /// Of the whole, or of a pool; none if that has no points.
    pub(super) fn new(timeline: &Timeline, of: Option<&PoolName>) -> Option<Self> {
        let points: Vec<&Point> = match of {
            None => timeline.whole().collect(),
            Some(PoolName { database, user }) => timeline.of_pool(database, user)?.collect(),
        };
        let each = |series: fn(&Point) -> f32| points.iter().map(|point| series(point)).collect();
        let count = |series: fn(&Point) -> u32| points.iter().map(|point| series(point)).collect();
        Some(Self {
            point: timeline.count(),
            time: milliseconds(),
            step: crate::status::timeline::STEP.as_secs_f64(),
            statements: each(|point| point.statements),
            transactions: each(|point| point.transactions),
            wait: each(|point| point.wait),
            waiting: count(|point| point.waiting),
            in_use: count(|point| point.in_use),
        })
    }
}
