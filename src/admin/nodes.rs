//! `SHOW NODES` and `SHOW ROUTES`, and taking a replica out of service: `DRAIN` and `UNDRAIN`.

use std::time::Duration;

use super::command::{Outcome, done};
use super::table::{Column, Row, Value, int8, text};
use crate::error::{Report, SqlState};
use crate::shared::Shared;
use crate::status::nodes::{NodeStatus, RouteStatus};

const OBJECT_NOT_IN_PREREQUISITE_STATE: SqlState = SqlState(*b"55000");

pub(super) const NODES: [Column; 20] = [
    text("node"),
    text("role"),
    text("state"),
    int8("state_ms"),
    int8("timeline"),
    text("lsn"),
    text("replay_lsn"),
    int8("lag_bytes"),
    int8("lag_ms"),
    int8("connections"),
    int8("outstanding"),
    int8("latency_us"),
    int8("reads"),
    int8("failed_reads"),
    int8("weight"),
    text("zone"),
    int8("probe_age_ms"),
    int8("probe_us"),
    text("error"),
    text("cluster"),
];

pub(super) const ROUTES: [Column; 4] = [
    text("target"),
    text("reason"),
    int8("count"),
    text("description"),
];

/// The row of one reason.
pub(super) fn route(route: &RouteStatus) -> Row {
    vec![
        route.target.into(),
        route.reason.into(),
        route.count.into(),
        route.description.into(),
    ]
}

fn millis(duration: Duration) -> Value {
    Value::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn micros(duration: Duration) -> Value {
    Value::Number(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// The row of one server.
pub(super) fn row(node: &NodeStatus) -> Row {
    let view = &node.view;
    vec![
        (&*view.node.name).into(),
        if node.is_primary {
            "primary"
        } else {
            view.role.as_str()
        }
        .into(),
        view.state.as_str().into(),
        millis(node.in_state),
        view.timeline.map(u64::from).into(),
        view.written.map(|lsn| lsn.to_string()).into(),
        view.replayed.map(|lsn| lsn.to_string()).into(),
        view.lag_bytes.into(),
        view.lag.map_or(Value::Null, millis),
        node.connections.into(),
        node.outstanding.into(),
        micros(node.latency),
        node.reads.into(),
        node.failed_reads.into(),
        u64::from(view.node.weight()).into(),
        view.node.server.zone.clone().into(),
        view.probed
            .map_or(Value::Null, |probed| millis(probed.elapsed())),
        micros(view.probe_took),
        view.error.as_deref().into(),
        (&*node.cluster).into(),
    ]
}

/// Takes the server called `name` out of service in every cluster that has it, or lets it back.
pub(super) fn drain(shared: &Shared, name: &str, drained: bool) -> Result<Outcome, Report> {
    let mut found = false;
    for cluster in shared.clusters.all() {
        for node in cluster.nodes.iter().filter(|node| *node.name == *name) {
            found = true;
            if !cluster.drain(node, drained) {
                return Err(Report::error(
                    OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("server \"{name}\" is the primary"),
                )
                .detail("Only replicas can be drained.")
                .hint("Promote another server first."));
            }
        }
    }
    if !found {
        return Err(Report::error(
            SqlState::UNDEFINED_OBJECT,
            format!("server \"{name}\" does not exist"),
        )
        .hint("SHOW NODES has the names; servers are known where there are replicas."));
    }
    Ok(done(if drained { "DRAIN" } else { "UNDRAIN" }))
}
