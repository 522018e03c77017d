//! Which replica a read goes to, or why none.
//!
//! Of the replicas that have what the read must see, two are drawn by their shares, and the one with less to do for its share
//! is taken: that spreads load nearly as well as knowing everything, without all sessions choosing the same one at the same
//! moment. Replicas of pgweir's own zone come first.

use std::time::Duration;

use tokio::time::Instant;

use super::reason::Reason;
use crate::cluster::topology::{NodeView, Tick, Topology};
use crate::config::model::Consistency;
use crate::error::SqlState;

/// A read's latency that counts as nothing: below it, servers differ by chance.
const LATENCY_MIN: Duration = Duration::from_micros(500);

/// What is known of a read when its server is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub consistency: Consistency,
    /// What the session must see: its own writes.
    pub own: Tick,
    /// What everybody has written through this process.
    pub all: Tick,
    pub zone: Option<&'a str>,
    pub now: Instant,
    /// Places of servers that are out of the question, a bit each.
    pub avoid: u64,
}

/// Where a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The replica in this place of the topology.
    Replica(usize),
    Primary(Reason),
}

impl Request<'_> {
    /// What a replica must have seen, if that is a matter of ticks.
    pub fn tick(&self) -> Tick {
        match self.consistency {
            Consistency::Eventual | Consistency::Bounded(_) => Tick(0),
            Consistency::Session => self.own,
            Consistency::Cluster => self.own.max(self.all),
        }
    }

    /// Whether a replica has what this read must see.
    fn is_met_by(&self, view: &NodeView) -> bool {
        match self.consistency {
            Consistency::Eventual => true,
            Consistency::Bounded(age) => view.is_within(age, self.now),
            Consistency::Session | Consistency::Cluster => {
                let tick = self.tick();
                tick == Tick(0) || view.covers(tick)
            }
        }
    }

    fn is_avoided(&self, place: usize) -> bool {
        u32::try_from(place)
            .ok()
            .and_then(|place| 1_u64.checked_shl(place))
            .is_none_or(|bit| self.avoid & bit != 0)
    }
}

/// Chooses. `draw` gives numbers below its argument, which is not 0.
pub fn choose(
    request: &Request<'_>,
    topology: &Topology,
    mut draw: impl FnMut(u64) -> u64,
) -> Choice {
    let serves = |place: usize, view: &NodeView| {
        view.serves_reads() && topology.primary != Some(place) && !request.is_avoided(place)
    };
    let mut any = false;
    let mut near = false;
    let mut shares = [0_u64; 2];
    let is_near = |view: &NodeView| {
        request.zone.is_some() && view.node.server.zone.as_deref() == request.zone
    };
    for (place, view) in topology.nodes.iter().enumerate() {
        if !serves(place, view) {
            continue;
        }
        any = true;
        if request.is_met_by(view) {
            let share = view.share(request.now);
            near |= is_near(view) && share > 0;
            shares[usize::from(is_near(view))] += share;
        }
    }
    let total = shares[usize::from(near)];
    if total == 0 {
        return Choice::Primary(if any {
            Reason::Behind
        } else {
            Reason::NoReplica
        });
    }
    let mut pick = |but: Option<usize>, total: u64| {
        let mut drawn = draw(total.max(1));
        let mut last = None;
        for (place, view) in topology.nodes.iter().enumerate() {
            let counts = serves(place, view)
                && request.is_met_by(view)
                && is_near(view) == near
                && Some(place) != but;
            let share = if counts { view.share(request.now) } else { 0 };
            if share > 0 {
                last = Some(place);
                if drawn < share {
                    break;
                }
                drawn -= share;
            }
        }
        last
    };
    // `total` is above 0, so there is one.
    let Some(first) = pick(None, total) else {
        return Choice::Primary(Reason::NoReplica);
    };
    let rest = total - topology.nodes[first].share(request.now);
    match pick(Some(first), rest) {
        Some(second)
            if load(&topology.nodes[second], request.now)
                < load(&topology.nodes[first], request.now) =>
        {
            Choice::Replica(second)
        }
        _ => Choice::Replica(first),
    }
}

/// Whether a read that failed on a replica with `code`, before the client saw anything, is run elsewhere: what a
/// replica can't do, what it does not have yet, what it was interrupted in, and what it has too little of.
pub fn runs_elsewhere(code: SqlState) -> bool {
    matches!(
        code,
        SqlState::READ_ONLY_SQL_TRANSACTION
            | SqlState::FEATURE_NOT_SUPPORTED
            | SqlState::SERIALIZATION_FAILURE
            | SqlState::DEADLOCK_DETECTED
            | SqlState::ADMIN_SHUTDOWN
            | SqlState::CRASH_SHUTDOWN
            | SqlState::CANNOT_CONNECT_NOW
    ) || matches!(&code.0[..2], b"08" | b"3F" | b"42" | b"53" | b"58" | b"XX")
}

/// How long a read would take there, roughly; a server of twice the weight is taken to do twice as much at a time. Of two
/// that have nothing to do and are as fast, the one drawn first, by its share, is taken.
fn load(view: &NodeView, now: Instant) -> u128 {
    let load = &view.node.load;
    let outstanding = load.outstanding.load(std::sync::atomic::Ordering::Relaxed) as u128;
    // In thousandths of a read.
    let ahead = outstanding * 100_000 / u128::from(view.share(now)).max(1) + 1000;
    ahead * load.expected(now).max(LATENCY_MIN).as_micros()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::cluster::node::Node;
    use crate::cluster::samples::Fresh;
    use crate::cluster::state::NodeState;
    use crate::cluster::topology::{Attested, Role};
    use crate::config::model;

    fn view(index: usize, server: &model::Node, tick: Option<u64>, now: Instant) -> NodeView {
        NodeView {
            node: Arc::new(Node::new(server, index)),
            role: Role::Replica,
            state: NodeState::Up,
            since: now,
            timeline: Some(1),
            written: None,
            replayed: None,
            lag_bytes: None,
            lag: None,
            attested: tick.map(|tick| Attested {
                at: now,
                fresh: Fresh {
                    tick: Tick(tick),
                    at: now,
                },
            }),
            probed: None,
            probe_took: Duration::ZERO,
            error: None,
        }
    }

    /// A primary and replicas that have seen these ticks.
    fn topology(ticks: &[Option<u64>], now: Instant) -> Topology {
        let primary = NodeView {
            role: Role::Primary,
            ..view(0, &model::Node::at("db0", 1), None, now)
        };
        let replica = |(place, tick): (usize, &Option<u64>)| {
            let server = model::Node::at(format!("db{place}"), 1);
            view(place + 1, &server, *tick, now)
        };
        Topology {
            nodes: std::iter::once(primary)
                .chain(ticks.iter().enumerate().map(replica))
                .collect(),
            primary: Some(0),
            is_held: false,
            held_since: None,
        }
    }

    fn request(consistency: Consistency, own: u64, all: u64, now: Instant) -> Request<'static> {
        Request {
            consistency,
            own: Tick(own),
            all: Tick(all),
            zone: None,
            now,
            avoid: 0,
        }
    }

    #[test]
    fn a_replica_must_have_what_the_read_must_see() {
        let now = Instant::now();
        let topology = topology(&[Some(5), None], now);
        let to =
            |consistency, own, all| choose(&request(consistency, own, all, now), &topology, |_| 0);
        assert_eq!(to(Consistency::Session, 5, 9), Choice::Replica(1));
        assert_eq!(
            to(Consistency::Session, 6, 0),
            Choice::Primary(Reason::Behind)
        );
        assert_eq!(
            to(Consistency::Cluster, 0, 9),
            Choice::Primary(Reason::Behind)
        );
        assert_eq!(to(Consistency::Cluster, 0, 5), Choice::Replica(1));
        assert!(matches!(
            to(Consistency::Eventual, 9, 9),
            Choice::Replica(_)
        ));
        let age = Consistency::Bounded(Duration::from_secs(1));
        assert_eq!(to(age, 9, 9), Choice::Replica(1));
        let later = Request {
            now: now + Duration::from_secs(2),
            ..request(age, 0, 0, now)
        };
        assert_eq!(
            choose(&later, &topology, |_| 0),
            Choice::Primary(Reason::Behind)
        );
    }

    #[test]
    fn servers_that_are_out_are_not_chosen() {
        let now = Instant::now();
        let mut topology = topology(&[Some(5), Some(5)], now);
        let mut request = request(Consistency::Session, 0, 0, now);
        topology.nodes[1].state = NodeState::Lagging;
        for drawn in 0..200 {
            let draw = |total: u64| drawn % total;
            assert_eq!(choose(&request, &topology, draw), Choice::Replica(2));
        }
        request.avoid = 1 << 2;
        assert_eq!(
            choose(&request, &topology, |_| 0),
            Choice::Primary(Reason::NoReplica)
        );
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let now = Instant::now();
        let topology = topology(&[Some(5), Some(5)], now);
        let request = request(Consistency::Session, 0, 0, now);
        let busy = &topology.nodes[1].node.load;
        busy.outstanding.store(3, Ordering::Relaxed);
        for drawn in 0..20 {
            let draw = |total: u64| drawn % total;
            assert_eq!(choose(&request, &topology, draw), Choice::Replica(2));
        }
        for _ in 0..100 {
            topology.nodes[2]
                .node
                .load
                .answered(Duration::from_secs(1), now);
        }
        assert_eq!(choose(&request, &topology, |_| 0), Choice::Replica(1));
    }

    #[test]
    fn a_server_of_more_weight_bears_more_at_a_time() {
        let begun = Instant::now();
        let now = begun + Duration::from_secs(60);
        let mut topology = topology(&[Some(5), Some(5)], begun);
        let server = model::Node {
            weight: Some(3),
            ..model::Node::at("db9", 1)
        };
        topology.nodes[1] = view(1, &server, Some(5), begun);
        let request = request(Consistency::Session, 0, 0, now);
        let chosen = |heavy: usize, light: usize, drawn: u64| {
            let outstanding = [heavy, light];
            for (place, count) in outstanding.into_iter().enumerate() {
                let load = &topology.nodes[place + 1].node.load;
                load.outstanding.store(count, Ordering::Relaxed);
            }
            choose(&request, &topology, |total| drawn * 100 % total)
        };
        for drawn in 0..4 {
            assert_eq!(chosen(5, 2, drawn), Choice::Replica(1));
            assert_eq!(chosen(7, 2, drawn), Choice::Replica(2));
            // With nothing to do, by shares.
            let first = if drawn < 3 { 1 } else { 2 };
            assert_eq!(chosen(0, 0, drawn), Choice::Replica(first));
            assert_eq!(chosen(6, 2, drawn), Choice::Replica(first));
        }
    }

    #[test]
    fn shares_follow_weights_and_a_server_that_came_back_begins_with_little() {
        let begun = Instant::now();
        let now = begun + Duration::from_secs(60);
        let mut topology = topology(&[Some(5), Some(5)], begun);
        let share = |topology: &Topology, place: usize| topology.nodes[place].share(now);
        assert_eq!(share(&topology, 1), 100);
        topology.nodes[1].since = now;
        assert_eq!(share(&topology, 1), 10);
        topology.nodes[1].since = now.checked_sub(Duration::from_secs(5)).unwrap();
        assert_eq!(share(&topology, 1), 55);
        let server = model::Node {
            weight: Some(0),
            ..model::Node::at("db9", 1)
        };
        topology.nodes[2] = view(2, &server, Some(5), begun);
        let request = request(Consistency::Session, 0, 0, now);
        for drawn in 0..100 {
            let draw = |total: u64| drawn % total;
            assert_eq!(choose(&request, &topology, draw), Choice::Replica(1));
        }
    }

    #[test]
    fn the_own_zone_comes_first_while_it_has_somebody() {
        let now = Instant::now();
        let mut topology = topology(&[Some(5), Some(5)], now);
        let server = model::Node {
            zone: Some("a".to_owned()),
            ..model::Node::at("db9", 1)
        };
        topology.nodes[2] = view(2, &server, Some(5), now);
        let mut request = request(Consistency::Session, 0, 0, now);
        request.zone = Some("a");
        for drawn in 0..20 {
            let draw = |total: u64| drawn % total;
            assert_eq!(choose(&request, &topology, draw), Choice::Replica(2));
        }
        request.avoid = 1 << 2;
        assert_eq!(choose(&request, &topology, |_| 0), Choice::Replica(1));
    }
}
