//! Servers that are down, behind, or not what they should be.

use std::sync::Arc;
use std::time::Duration;

use super::{Advice, Subject, Urgency, spoken};
use crate::cluster::state::NodeState;

/// A replica that serves and is further behind than this deserves a look.
const LAG_MAX: Duration = Duration::from_secs(10);

/// A server.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: Arc<str>,
    pub state: NodeState,
    pub in_state: Duration,
    pub is_primary: bool,
    pub lag: Option<Duration>,
    pub error: Option<Arc<str>>,
}

/// A cluster as a whole.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub servers: Arc<str>,
    /// How long statements have waited for a primary.
    pub held: Option<Duration>,
}

/// Statements wait for a primary.
pub fn on_cluster(cluster: &Cluster) -> Option<Advice> {
    let held = cluster.held?;
    Some(Advice {
        urgency: Urgency::Now,
        subject: Subject::Server(Arc::clone(&cluster.servers)),
        what: format!("No server takes writes; statements wait since {}.", spoken(held)),
        action: "Start the primary, or promote a replica (pg_ctl promote, SELECT pg_promote()): the waiting statements \
                 then go on. They fail after timeouts.query_wait_timeout."
            .to_owned(),
        setting: None,
    })
}

/// What to do about one server.
pub fn on_node(node: &Node) -> Option<Advice> {
    let since = spoken(node.in_state);
    let (urgency, what, action) = match node.state {
        NodeState::Down => {
            let error = node.error.as_deref().unwrap_or("no answer");
            let urgency = if node.is_primary {
                Urgency::Now
            } else {
                Urgency::Soon
            };
            let what = format!("Down since {since}: {error}.");
            let action = "See that the server runs and that pgweir may log in; until then others do its work.";
            (urgency, what, action)
        }
        NodeState::Fenced => (
            Urgency::Now,
            format!("Takes writes, and is not the primary, since {since}."),
            "Stop it before somebody writes to it: it was probably the primary until a failover. Rebuild it as a replica \
             (pg_rewind) afterwards.",
        ),
        NodeState::Refused => (
            Urgency::Now,
            format!("Belongs to another cluster, seen since {since}."),
            "Correct its address in cluster.replicas, or rebuild it from the primary.",
        ),
        NodeState::Lagging => (
            Urgency::Soon,
            format!("Too far behind to serve reads: {}.", behind(node.lag)),
            BEHIND,
        ),
        NodeState::Up if node.lag.is_some_and(|lag| lag > LAG_MAX) => (
            Urgency::Hint,
            format!("{} and still serving reads.", behind(node.lag)),
            BEHIND,
        ),
        NodeState::Up | NodeState::Unprobed | NodeState::ProbingBack | NodeState::Draining => {
            return None;
        }
    };
    Some(Advice {
        urgency,
        subject: Subject::Server(Arc::clone(&node.name)),
        what,
        action: action.to_owned(),
        setting: None,
    })
}

const BEHIND: &str = "Look for long queries on it that hold up replay (max_standby_streaming_delay), for a slow network \
                      or disk, and for a burst of writes on the primary.";

fn behind(lag: Option<Duration>) -> String {
    match lag {
        Some(lag) => format!("{} behind the primary", spoken(lag)),
        None => "behind the primary".to_owned(),
    }
}
