//! Reads on replicas: whether an exchange is one for a replica, which one, and getting a connection to it.
//!
//! # Invariants
//! - Nothing is sent to a replica but an exchange that was proved, one at a time, or what belongs to a read-only
//!   transaction there.
//! - A connection serves a read that must see something only if it is older than the replica's word that it has that:
//!   a server that was restarted meanwhile has closed it.
//!
//! # Why one exchange at a time
//! Behind it there may be a write, and what is sent can't be taken back. Clients that send many exchanges ahead of the
//! answers (pipelining) have them run one after the other where they begin with a read.

use std::sync::Arc;

use super::routes::Reading;
use super::session::{Phase, Session};
use crate::cluster::topology::Topology;
use crate::config::model::Consistency;
use crate::net::buffer::Gather;
use crate::pool::{Lease, Pool};
use crate::routing::proof::Intent;
use crate::routing::reason::Reason;
use crate::routing::route::{self, Choice, Request};

/// What became of an exchange that was looked at.
#[derive(Debug)]
enum Found {
    /// A connection to a replica in this place of the topology.
    Lease(Lease, usize),
    /// All connections to it are in use: the session waits for one.
    Busy(Arc<Pool>, usize),
    /// The read waits for a replica to catch up.
    Patience,
    Primary(Reason),
}

impl Session {
    /// Gets a backend of a replica for the exchange at the front of `input`, or queues for one, if it is one for a
    /// replica. `None` if it is not; else whether its bytes may follow.
    pub(super) fn check_out_for_read(&mut self, input: &[u8], gather: &mut Gather) -> Option<bool> {
        self.renew_preferences();
        let mut routes = self.routes.take()?;
        let mut exchange = self.examine(&routes, input);
        routes.forced = None;
        self.looked_up = exchange.query.take();
        self.routes = Some(routes);
        let intent = match exchange.intent {
            Intent::Primary(reason) => {
                self.count_route(reason);
                return None;
            }
            Intent::Read if exchange.is_asked_for => Reason::HintReplica,
            Intent::Read => Reason::Read,
            Intent::ReadOnlyTransaction => Reason::ReadOnlyTransaction,
        };
        match self.find_replica() {
            Found::Lease(lease, place) => {
                self.count_route(intent);
                self.put_on_trial(&exchange);
                Some(self.begin_on(lease, place, gather))
            }
            Found::Busy(pool, place) => {
                self.count_route(intent);
                self.put_on_trial(&exchange);
                self.enter_queue();
                pool.enqueue_client(&self.entry.waiter);
                if let Some(routes) = &mut self.routes {
                    routes.queue = Some((pool, place));
                }
                Some(false)
            }
            Found::Patience => {
                self.enter(Phase::Waiting);
                Some(false)
            }
            Found::Primary(reason) => {
                self.count_route(reason);
                if let Some(routes) = &mut self.routes {
                    routes.patience = None;
                    routes.avoid = 0;
                }
                None
            }
        }
    }

    pub(super) fn count_route(&self, reason: Reason) {
        self.shared.routes.count(reason);
    }

    /// A connection to a replica that has what the session's reads must see.
    fn find_replica(&mut self) -> Found {
        let Some(routes) = self.routes.as_deref() else {
            return Found::Primary(Reason::NoReplica);
        };
        let configured = self.effective.routing.consistency;
        let consistency = routes.consistency().and_then(Result::ok);
        let zone = routes.cluster.zone();
        let mut request = Request {
            consistency: consistency.unwrap_or(configured),
            own: routes.own,
            all: routes.cluster.written(),
            zone: zone.as_ref().as_deref(),
            now: self.now,
            avoid: routes.avoid,
        };
        let topology = routes.cluster.topology();
        let mut busy = None;
        let mut any = false;
        loop {
            let draw = |below| rand::random_range(0..below);
            let place = match route::choose(&request, &topology, draw) {
                Choice::Replica(place) => place,
                Choice::Primary(_) if busy.is_some() => break,
                Choice::Primary(_) if any => return Found::Primary(Reason::NoConnection),
                Choice::Primary(Reason::Behind) => return self.wait_to_see(&request),
                Choice::Primary(reason) => return Found::Primary(reason),
            };
            any = true;
            request.avoid |= 1 << place;
            let node = &topology.nodes[place].node;
            let pool = self
                .shared
                .pools
                .replica(&self.pool, &node.name, &node.server);
            if let Some(lease) = pool.try_checkout() {
                if is_attested(&request, &topology, place, &lease) {
                    return Found::Lease(lease, place);
                }
                lease.checkin();
                routes.cluster.want(routes.cluster.now());
            } else if pool.is_saturated() {
                busy.get_or_insert((pool, place));
            } else if !pool.is_resting() {
                pool.warm_up();
            }
        }
        match busy {
            Some((pool, place)) => Found::Busy(pool, place),
            None => Found::Primary(Reason::NoConnection),
        }
    }

    /// A connection to a replica for a transaction that is taken there, if one is at hand.
    pub(super) fn find_replica_now(&mut self) -> Option<(Lease, usize)> {
        self.renew_preferences();
        match self.find_replica() {
            Found::Lease(lease, place) => Some((lease, place)),
            Found::Busy(..) | Found::Patience | Found::Primary(_) => {
                if let Some(routes) = &mut self.routes {
                    routes.patience = None;
                }
                None
            }
        }
    }

    /// No replica has what a read must see: it waits for one, if it may, or goes to the primary.
    fn wait_to_see(&mut self, request: &Request<'_>) -> Found {
        let Some(routes) = self.routes.as_deref() else {
            return Found::Primary(Reason::Behind);
        };
        let tick = match request.consistency {
            Consistency::Session | Consistency::Cluster => request.tick(),
            Consistency::Bounded(_) | Consistency::Eventual => routes.cluster.now(),
        };
        routes.cluster.want(tick);
        let Some(limit) = self.effective.routing.replica_wait else {
            return Found::Primary(Reason::Behind);
        };
        let until = routes.patience.unwrap_or(self.now + limit);
        let ends = self.now >= until;
        if let Some(routes) = &mut self.routes {
            routes.patience = Some(until).filter(|_| !ends);
        }
        if ends {
            Found::Primary(Reason::Behind)
        } else {
            Found::Patience
        }
    }

    /// Whether the session waits for a replica to catch up.
    pub(super) fn is_patient(&self) -> bool {
        let routes = self.routes.as_ref();
        routes.is_some_and(|routes| routes.patience.is_some() && routes.queue.is_none())
    }

    /// Makes a connection to the replica in `place` this session's. False if an answer must be awaited first.
    pub(super) fn begin_on(&mut self, lease: Lease, place: usize, gather: &mut Gather) -> bool {
        if let Some(routes) = &mut self.routes {
            routes.queue = None;
            if let Some(node) = routes.cluster.nodes.get(place) {
                routes.reading = Some(Reading::new(node, self.now));
            }
            routes.in_exchange = true;
        }
        self.begin(lease, gather)
    }

    /// Takes the connection to a replica that was waited for, unless it is too young to be trusted with the read.
    pub(super) fn take_granted(&mut self, lease: Lease, gather: &mut Gather) {
        let place = self
            .routes
            .as_ref()
            .and_then(|routes| routes.queue.as_ref());
        let Some(place) = place.map(|(_, place)| *place) else {
            self.begin(lease, gather);
            return;
        };
        if self.is_trusted(place, &lease) {
            self.begin_on(lease, place, gather);
        } else {
            lease.checkin();
            self.ask_again(place);
        }
    }

    fn is_trusted(&self, place: usize, lease: &Lease) -> bool {
        let Some(routes) = &self.routes else {
            return false;
        };
        let consistency = routes.consistency().and_then(Result::ok);
        let request = Request {
            consistency: consistency.unwrap_or(self.effective.routing.consistency),
            own: routes.own,
            all: routes.cluster.written(),
            zone: None,
            now: self.now,
            avoid: 0,
        };
        is_attested(&request, &routes.cluster.topology(), place, lease)
    }

    /// The exchange in front is looked at anew, without the server in `place`.
    pub(super) fn ask_again(&mut self, place: usize) {
        if let Some(routes) = &mut self.routes {
            routes.queue = None;
            routes.trial = None;
            routes.avoid |= u32::try_from(place)
                .ok()
                .and_then(|place| 1_u64.checked_shl(place))
                .unwrap_or(0);
        }
        // Whichever server it waits for next, it is one wait.
        self.note_waiting_on();
        self.enter(Phase::Idle);
    }

    /// Whether the next frame may go to the replica that the session is on.
    pub(super) fn may_follow_on_replica(&self) -> bool {
        let Some(routes) = &self.routes else {
            return true;
        };
        routes.reading.is_none()
            || routes.in_exchange
            || (self.in_transaction
                && routes.trial.is_none()
                && self
                    .lease
                    .as_ref()
                    .is_some_and(|lease| lease.expect.is_at_rest()))
    }

    /// The session gives its replica's connection back in good order. True if it kept the connection for state that it
    /// has left there: then the connection is closed, and the state is gone.
    pub(super) fn leave_replica(&mut self) -> bool {
        let Some(routes) = &mut self.routes else {
            return false;
        };
        let Some(reading) = routes.reading.take() else {
            return false;
        };
        reading.answered(self.now);
        routes.in_exchange = false;
        routes.avoid = 0;
        if self.pins.is_empty() {
            return false;
        }
        tracing::warn!(
            server = %reading.node.name, reasons = %self.pins,
            "a read left session state on a replica; it is dropped"
        );
        self.set_pins(crate::sql::state::PinSet::EMPTY);
        self.ended_pins = crate::sql::state::PinSet::EMPTY;
        true
    }
}

/// Whether what the replica in `place` says of itself holds for this connection to it.
fn is_attested(request: &Request<'_>, topology: &Topology, place: usize, lease: &Lease) -> bool {
    let needs_nothing = match request.consistency {
        Consistency::Eventual => true,
        Consistency::Bounded(_) => false,
        Consistency::Session | Consistency::Cluster => request.tick().0 == 0,
    };
    let attested = topology.nodes.get(place).and_then(|view| view.attested);
    needs_nothing || attested.is_some_and(|attested| attested.at > lease.opened)
}
