//! Servers.

use serde::Serialize;

use super::seconds;
use crate::status::nodes::NodeStatus;

/// One server.
#[derive(Debug, Serialize)]
pub(in crate::http) struct NodeView<'a> {
    name: &'a str,
    cluster: &'a str,
    role: &'static str,
    state: &'static str,
    in_state: f64,
    lag: Option<f64>,
    lag_bytes: Option<u64>,
    connections: usize,
    outstanding: usize,
    reads: u64,
    failed_reads: u64,
    /// How long the last probe took.
    probe: f64,
    zone: Option<&'a str>,
    error: Option<&'a str>,
}

impl<'a> NodeView<'a> {
    pub(super) fn new(status: &'a NodeStatus) -> Self {
        let view = &status.view;
        Self {
            name: &view.node.name,
            cluster: &status.cluster,
            role: if status.is_primary {
                "primary"
            } else {
                view.role.as_str()
            },
            state: view.state.as_str(),
            in_state: seconds(status.in_state),
            lag: view.lag.map(seconds),
            lag_bytes: view.lag_bytes,
            connections: status.connections,
            outstanding: status.outstanding,
            reads: status.reads,
            failed_reads: status.failed_reads,
            probe: seconds(view.probe_took),
            zone: view.node.server.zone.as_deref(),
            error: view.error.as_deref(),
        }
    }
}
