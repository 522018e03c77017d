//! The servers of clusters as `SHOW NODES` and the metrics show them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::ServerStatus;
pub use crate::cluster::state::NodeState;
use crate::cluster::topology::NodeView;
use crate::cluster::{Cluster, Clusters};
use crate::routing::reason::Reason;
use crate::shared::Shared;

/// One server of a cluster.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The addresses of the cluster's servers, which name it.
    pub cluster: Arc<str>,
    pub view: NodeView,
    /// It is the one that writes go to.
    pub is_primary: bool,
    /// How long it has been in its state.
    pub in_state: Duration,
    /// Open connections of all pools there, probes not counted.
    pub connections: usize,
    /// Reads there that are not answered.
    pub outstanding: usize,
    pub latency: Duration,
    pub reads: u64,
    pub failed_reads: u64,
}

/// A cluster as a whole.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    pub servers: Arc<str>,
    /// How long statements have been waiting for a primary.
    pub held: Option<Duration>,
    pub failovers: u64,
    /// Times that statements had to wait for a primary.
    pub holds: u64,
    /// Time that statements had to wait for a primary, in all.
    pub held_total: Duration,
}

/// How often statements went somewhere for a reason.
#[derive(Clone, Copy, Debug)]
pub struct RouteStatus {
    pub reason: &'static str,
    /// `primary` or `replica`.
    pub target: &'static str,
    pub count: u64,
    pub description: &'static str,
}

/// Every reason.
pub(super) fn routes(shared: &Shared) -> Vec<RouteStatus> {
    let status = |(reason, count): (Reason, u64)| RouteStatus {
        reason: reason.as_str(),
        target: if reason.is_replica() {
            "replica"
        } else {
            "primary"
        },
        count,
        description: reason.describe(),
    };
    shared.routes.all().map(status).collect()
}

/// Every server of every cluster, in the order of the configuration; `servers` are the open connections.
pub(super) fn nodes(clusters: &Clusters, servers: &[ServerStatus]) -> Vec<NodeStatus> {
    let mut connections: HashMap<String, usize> = HashMap::new();
    for server in servers {
        let address = server.backend.identity.node.address();
        *connections.entry(address).or_default() += 1;
    }
    let mut nodes = Vec::new();
    for cluster in clusters.all() {
        let topology = cluster.topology();
        for (place, view) in topology.nodes.iter().enumerate() {
            let load = &view.node.load;
            nodes.push(NodeStatus {
                cluster: Arc::clone(&cluster.servers),
                is_primary: topology.primary == Some(place),
                in_state: view.since.elapsed(),
                connections: connections.get(&*view.node.name).copied().unwrap_or(0),
                outstanding: load.outstanding.load(Ordering::Relaxed),
                latency: load.latency(),
                reads: load.reads.load(Ordering::Relaxed),
                failed_reads: load.failed.load(Ordering::Relaxed),
                view: view.clone(),
            });
        }
    }
    nodes
}

/// Every cluster.
pub(super) fn clusters(clusters: &Clusters) -> Vec<ClusterStatus> {
    let now = Instant::now();
    let status = |cluster: Arc<Cluster>| ClusterStatus {
        servers: Arc::clone(&cluster.servers),
        held: cluster
            .topology()
            .held_since
            .map(|since| now.duration_since(since)),
        failovers: cluster.failovers(),
        holds: cluster.holds(),
        held_total: cluster.held_total(),
    };
    clusters.all().into_iter().map(status).collect()
}
