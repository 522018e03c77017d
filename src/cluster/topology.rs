//! The picture of a cluster that sessions decide by: replaced as a whole, read without a lock.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lsn::Lsn;
use super::node::Node;
use super::samples::Fresh;
pub use super::samples::Tick;
use super::state::NodeState;

/// How long a replica that came back takes to its full share of the reads.
const SLOW_START: Duration = Duration::from_secs(10);

/// What a server says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Unknown,
    Primary,
    Replica,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// What a replica is known to have replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// When it was asked. A connection opened later may be to a server that was restarted since, and that has not
    /// replayed that far again: what is attested holds for older connections.
    pub at: Instant,
    pub fresh: Fresh,
}

/// One server.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub node: Arc<Node>,
    pub role: Role,
    pub state: NodeState,
    pub since: Instant,
    pub timeline: Option<u32>,
    /// The primary's log, or what a replica has received of it.
    pub written: Option<Lsn>,
    pub replayed: Option<Lsn>,
    pub lag_bytes: Option<u64>,
    pub lag: Option<Duration>,
    /// `None`: nothing is known that could be compared with the primary's log.
    pub attested: Option<Attested>,
    /// When it was last asked, and how long the answer took.
    pub probed: Option<Instant>,
    pub probe_took: Duration,
    /// Why the last probe failed.
    pub error: Option<Arc<str>>,
}

impl NodeView {
    /// Whether it may be given reads at all.
    pub fn serves_reads(&self) -> bool {
        self.role == Role::Replica && self.state == NodeState::Up
    }

    /// Its share of the reads at `now`, in hundredths of a weight of 1: less for a while after it came back.
    pub fn share(&self, now: Instant) -> u64 {
        let up = now.duration_since(self.since).min(SLOW_START);
        let ramp = 10 + 90 * up.as_millis() / SLOW_START.as_millis();
        u64::from(self.node.weight()) * u64::try_from(ramp).unwrap_or(100)
    }

    /// Whether it has what was acknowledged before `tick` was drawn.
    pub fn covers(&self, tick: Tick) -> bool {
        self.attested
            .is_some_and(|attested| attested.fresh.tick >= tick)
    }

    /// Whether it has everything that is older than `age`.
    pub fn is_within(&self, age: Duration, now: Instant) -> bool {
        self.attested
            .is_some_and(|attested| now.duration_since(attested.fresh.at) <= age)
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    pub nodes: Vec<NodeView>,
    /// The primary's place among `nodes`.
    pub primary: Option<usize>,
    /// Nobody takes writes at the moment: statements wait.
    pub is_held: bool,
    /// Since when.
    pub held_since: Option<Instant>,
}

impl Topology {
    pub fn primary(&self) -> Option<&NodeView> {
        self.nodes.get(self.primary?)
    }
}
