//! Gauges and counters of the servers of clusters.

use super::Page;
use crate::status::Snapshot;
use crate::status::nodes::NodeState;
use crate::status::nodes::NodeStatus;

/// A family of one value a server: name, kind, help, value.
type Family = (
    &'static str,
    &'static str,
    &'static str,
    fn(&NodeStatus) -> Option<f64>,
);

#[allow(
    clippy::cast_precision_loss,
    reason = "a gauge of more than 2^53 is read by nobody"
)]
const FAMILIES: [Family; 8] = [
    (
        "pgweir_node_lag_seconds",
        "gauge",
        "For how long a replica has lacked what it lacks.",
        |node| node.view.lag.map(|lag| lag.as_secs_f64()),
    ),
    (
        "pgweir_node_lag_bytes",
        "gauge",
        "How far a replica's replay is behind the primary's log.",
        |node| node.view.lag_bytes.map(|bytes| bytes as f64),
    ),
    (
        "pgweir_node_timeline",
        "gauge",
        "The timeline of a server.",
        |node| node.view.timeline.map(f64::from),
    ),
    (
        "pgweir_node_servers",
        "gauge",
        "Server connections to a server, of all pools.",
        |node| Some(node.connections as f64),
    ),
    (
        "pgweir_node_outstanding_reads",
        "gauge",
        "Reads on a replica that are not answered.",
        |node| Some(node.outstanding as f64),
    ),
    (
        "pgweir_node_read_latency_seconds",
        "gauge",
        "How long reads on a replica take lately.",
        |node| Some(node.latency.as_secs_f64()),
    ),
    (
        "pgweir_node_reads_total",
        "counter",
        "Reads sent to a replica.",
        |node| Some(node.reads as f64),
    ),
    (
        "pgweir_node_failed_reads_total",
        "counter",
        "Reads on a replica that had to be run elsewhere.",
        |node| Some(node.failed_reads as f64),
    ),
];

pub(super) fn put(page: &mut Page, snapshot: &Snapshot) {
    let nodes = distinct(&snapshot.nodes);
    page.family(
        "pgweir_node_state",
        "gauge",
        "1 for the state a server is in.",
    );
    for node in &nodes {
        for state in NodeState::ALL {
            let role = if node.is_primary {
                "primary"
            } else {
                node.view.role.as_str()
            };
            let labels = [
                ("node", &*node.view.node.name),
                ("role", role),
                ("state", state.as_str()),
            ];
            page.sample(
                "pgweir_node_state",
                &labels,
                u8::from(node.view.state == state),
            );
        }
    }
    for (name, kind, help, value) in FAMILIES {
        page.family(name, kind, help);
        for node in &nodes {
            if let Some(value) = value(node) {
                page.sample(name, &[("node", &node.view.node.name)], value);
            }
        }
    }
    put_clusters(page, snapshot);
    let name = "pgweir_routes_total";
    page.family(
        name,
        "counter",
        "Decisions where an exchange or transaction runs, by reason.",
    );
    for route in &snapshot.routes {
        let labels = [("target", route.target), ("reason", route.reason)];
        page.sample(name, &labels, route.count);
    }
}

/// A server that several clusters list has one series.
fn distinct(nodes: &[NodeStatus]) -> Vec<&NodeStatus> {
    let mut distinct: Vec<&NodeStatus> = Vec::new();
    for node in nodes {
        if !distinct
            .iter()
            .any(|other| other.view.node.name == node.view.node.name)
        {
            distinct.push(node);
        }
    }
    distinct
}

fn put_clusters(page: &mut Page, snapshot: &Snapshot) {
    page.family(
        "pgweir_cluster_held",
        "gauge",
        "1 while statements wait for a primary.",
    );
    for cluster in &snapshot.clusters {
        let labels = [("cluster", &*cluster.servers)];
        page.sample(
            "pgweir_cluster_held",
            &labels,
            u8::from(cluster.held.is_some()),
        );
    }
    let name = "pgweir_cluster_holds_total";
    page.family(
        name,
        "counter",
        "Times that statements had to wait for a primary.",
    );
    for cluster in &snapshot.clusters {
        page.sample(name, &[("cluster", &*cluster.servers)], cluster.holds);
    }
    page.family(
        "pgweir_cluster_held_seconds_total",
        "counter",
        "Time in which statements had to wait for a primary.",
    );
    for cluster in &snapshot.clusters {
        // The first wait is for a primary to be found at all.
        let now = cluster.held.filter(|_| cluster.holds > 0);
        let total = cluster.held_total + now.unwrap_or_default();
        let labels = [("cluster", &*cluster.servers)];
        page.sample(
            "pgweir_cluster_held_seconds_total",
            &labels,
            total.as_secs_f64(),
        );
    }
    page.family(
        "pgweir_cluster_failovers_total",
        "counter",
        "Times that another server became the primary.",
    );
    for cluster in &snapshot.clusters {
        let labels = [("cluster", &*cluster.servers)];
        page.sample("pgweir_cluster_failovers_total", &labels, cluster.failovers);
    }
}
