//! What the page is told, as JSON: a snapshot and the timeline in the page's words.
//!
//! Times are in seconds, instants in milliseconds since 1970. Nothing is counted here, so that the page can't say
//! anything else than the console and the metrics do.

pub(super) mod advice;
pub(super) mod history;
pub(super) mod incidents;
pub(super) mod nodes;
pub(super) mod pins;
pub(super) mod pools;
pub(super) mod queries;

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use self::advice::AdviceView;
use self::history::PointView;
use self::incidents::{IncidentView, WaitView};
use self::nodes::NodeView;
use self::pins::PinView;
use self::pools::PoolView;
use super::access::Role;
use crate::shared::Shared;
use crate::status::Snapshot;
use crate::status::advice::Evidence;
use crate::status::timeline::Timeline;
use crate::status::trends::Trends;

/// Pools shown, those in trouble and the busiest first.
const POOLS_MAX: usize = 200;

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
    pub(super) nodes: Vec<NodeView<'a>>,
    /// How long statements have waited for a primary, if they do.
    held: Option<f64>,
    pub(super) pins: Vec<PinView<'a>>,
    pins_left_out: usize,
    pub(super) waits: Vec<WaitView<'a>>,
    pub(super) errors: Vec<IncidentView<'a>>,
    pub(super) slow: Vec<IncidentView<'a>>,
    /// What counts as slow; none if nothing does.
    slow_threshold: Option<f64>,
    pub(super) advice: Vec<AdviceView>,
}

#[derive(Debug, Serialize)]
struct Clients {
    connected: usize,
    connected_max: usize,
    logging_in: usize,
}

/// In milliseconds since 1970.
fn milliseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// In milliseconds since 1970, with its fraction.
fn exact_milliseconds(at: SystemTime) -> f64 {
    seconds(at.duration_since(UNIX_EPOCH).unwrap_or_default()) * 1e3
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

impl<'a> Now<'a> {
    pub(super) fn new(
        shared: &Shared,
        snapshot: &'a Snapshot,
        (timeline, trends): (&Timeline, &Trends),
        role: Role,
    ) -> Self {
        let (pins, pins_left_out) = pins::list(snapshot, role);
        let held = snapshot.clusters.iter().filter_map(|cluster| cluster.held);
        let (pools, pools_left_out) = pools::list(snapshot, timeline, POOLS_MAX);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            role: match role {
                Role::Stats => "stats",
                Role::Admin => "admin",
            },
            time: milliseconds(SystemTime::now()),
            uptime: seconds(shared.started.elapsed()),
            state: state(shared, snapshot),
            clients: Clients {
                connected: snapshot.clients.len(),
                connected_max: snapshot.config.general.max_client_conn,
                logging_in: snapshot.logging_in,
            },
            point: timeline.count(),
            whole: timeline.whole().last().map(PointView::of),
            pools,
            pools_left_out,
            nodes: snapshot.nodes.iter().map(NodeView::new).collect(),
            held: held.max().map(seconds),
            pins,
            pins_left_out,
            waits: incidents::waits(snapshot, role),
            errors: incidents::list(&snapshot.recent.failed, role),
            slow: incidents::list(&snapshot.recent.slow, role),
            slow_threshold: snapshot.config.slow_log.threshold.map(seconds),
            advice: advice::list(&Evidence::of(snapshot, timeline, trends)),
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
