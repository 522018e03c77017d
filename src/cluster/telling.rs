//! What the log says of a cluster.

use super::board::Event;
use super::state::NodeState;
use super::topology::Topology;

/// A line in the log for what is worth one.
pub(super) fn tell(event: &Event, topology: &Topology) {
    match event {
        Event::Primary { from, to, timeline } => {
            let primary = &topology.nodes[*to].node.name;
            let timeline = timeline.unwrap_or_default();
            match from {
                None => tracing::info!(%primary, timeline, "found the primary"),
                Some(from) => {
                    let before = &topology.nodes[*from].node.name;
                    tracing::warn!(%primary, timeline, %before, "failover: another server is the primary");
                }
            }
        }
        Event::Renewed { node, timeline } => {
            let primary = &topology.nodes[*node].node.name;
            tracing::warn!(
                %primary, timeline,
                "failover: the primary is on a new timeline: connections to what it was are given up"
            );
        }
        Event::Assumed { node } => {
            let view = &topology.nodes[*node];
            tracing::error!(
                server = %view.node.name,
                reason = view.error.as_deref().unwrap_or_default(),
                "servers can't be probed: the configured primary is taken for the primary, and replicas are not used; set cluster.probe_user"
            );
        }
        Event::Outdated { node, timeline } => tracing::error!(
            server = %topology.nodes[*node].node.name, timeline,
            "the primary is on a timeline that the cluster has left: another server was promoted; it is given nothing more"
        ),
        Event::Moved { node, moved } => {
            let view = &topology.nodes[*node];
            let (server, from, to) = (&view.node.name, moved.from.as_str(), moved.to.as_str());
            let reason = view.error.as_deref().unwrap_or_default();
            match moved.to {
                NodeState::Fenced => tracing::error!(
                    %server, from, timeline = view.timeline.unwrap_or_default(),
                    "TWO PRIMARIES: this server takes writes and is not the primary of the cluster; it is given nothing"
                ),
                NodeState::Refused => tracing::error!(
                    %server, from,
                    "the server belongs to another cluster (its system identifier differs); it is given nothing"
                ),
                NodeState::Down => tracing::warn!(%server, from, reason, "server is down"),
                _ => {
                    tracing::info!(%server, role = view.role.as_str(), from, to, "server changed its state");
                }
            }
        }
    }
}
