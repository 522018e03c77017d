//! Pools and their queues.

use serde::Serialize;

use super::history::PointView;
use super::seconds;
use crate::status::timeline::Timeline;
use crate::status::{PoolStatus, Snapshot};

/// Points that a pool's rates are means of.
const RECENT: usize = 5;

/// A pool and what it does.
#[derive(Debug, Serialize)]
pub(in crate::http) struct PoolView<'a> {
    database: &'a str,
    user: &'a str,
    mode: &'static str,
    paused: bool,
    clients: usize,
    waiting: usize,
    longest_wait: f64,
    servers_active: usize,
    servers_idle: usize,
    /// Being opened, tested, or waiting for a cancel request to be through.
    servers_other: usize,
    servers_max: usize,
    statements_a_second: f32,
    errors_a_second: f32,
    /// Why clients wait, if any do.
    why_waiting: Option<String>,
    point: Option<PointView>,
}

/// The `max` first of the pools, and how many are left out.
pub(super) fn list<'a>(
    snapshot: &'a Snapshot,
    timeline: &Timeline,
    max: usize,
) -> (Vec<PoolView<'a>>, usize) {
    let mut pools: Vec<_> = snapshot
        .pools
        .iter()
        .map(|pool| PoolView::new(pool, timeline))
        .collect();
    pools.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
    let left_out = pools.len().saturating_sub(max);
    pools.truncate(max);
    (pools, left_out)
}

impl<'a> PoolView<'a> {
    fn new(status: &'a PoolStatus, timeline: &Timeline) -> Self {
        let pool = &status.pool;
        let points = || timeline.of_pool(&pool.key.database, &pool.key.user);
        let recent = |series| points().map_or(0.0, |of| Timeline::recent(of, RECENT, series));
        Self {
            database: &pool.key.database,
            user: &pool.key.user,
            mode: status.pool_mode.as_str(),
            paused: pool.is_held(),
            clients: status.cl_active + status.cl_waiting,
            waiting: status.cl_waiting,
            longest_wait: seconds(status.maxwait),
            servers_active: status.sv_active,
            servers_idle: status.sv_idle,
            servers_other: status.sv_login + status.sv_tested + status.sv_being_canceled,
            servers_max: status.connections_max,
            statements_a_second: recent(|point| point.statements),
            errors_a_second: recent(|point| point.errors),
            why_waiting: (status.cl_waiting > 0).then(|| pool.why_waiting()),
            point: points().and_then(|points| points.last().map(PointView::of)),
        }
    }

    /// By what pools are listed.
    #[allow(clippy::cast_precision_loss, reason = "for sorting")]
    fn weight(&self) -> f64 {
        self.waiting as f64 * 1e6
            + f64::from(self.statements_a_second) * 1e2
            + self.servers_active as f64
            + self.clients as f64 / 1e3
    }
}
