//! What runs a lane: it leases a connection while there are riders, sends, receives, and gives it back.

mod patience;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::Lane;
use super::answers::{Answers, Brought, Flight};
use super::seat::{Outcome, Request};
use crate::backend::cancel;
use crate::backend::connect::Dialer;
use crate::backend::receive;
use crate::net::buffer::{Gather, ReadBuffer};
use crate::pool::lease::Lease;
use crate::pool::pool::Pool;
use crate::pool::pools::Pools;
use crate::pool::reset::{self, Residue};
use crate::pool::waiter::Waiter;
use crate::session::mirror::{Mirror, Reported};
use crate::session::plan;
use crate::session::settings::same;
use crate::tasks;
use crate::wire::expect::{For, Owed, Request as Asked};
use crate::wire::frontend;

/// Requests sent and not answered. More in flight make no server faster, and each is one that a slow one delays.
const DEPTH: usize = 32;

/// How long a lane keeps its connection while others wait for one.
pub(super) const TENURE: Duration = Duration::from_millis(5);

/// Turns taken in one poll before other tasks get theirs.
const TURNS_MAX: usize = 8;

/// Runs `lane` for as long as its pool exists.
pub(super) fn run(
    lane: Arc<Lane>,
    pool: &Arc<Pool>,
    pools: &Arc<Pools>,
) -> impl Future<Output = ()> + use<> {
    let mut runner = Runner::new(lane, pool, pools);
    poll_fn(move |cx| runner.poll(cx))
}

struct Runner {
    lane: Arc<Lane>,
    /// Weak, so that a lane at rest does not keep its pool.
    pool: Weak<Pool>,
    /// For the dialer, which a reload replaces.
    pools: Weak<Pools>,
    waiter: Arc<Waiter>,
    /// In the pool's queue for a connection.
    is_waiting: bool,
    lease: Option<Lease>,
    /// The connection is being brought to the riders' settings.
    is_planning: bool,
    /// The connection is not to be used again.
    is_spoilt: bool,
    flights: VecDeque<Flight>,
    /// Since when the request in front is in front, or is being answered in pieces, or the lane waits for a connection.
    since: Instant,
    leased: Instant,
    now: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Runner {
    fn new(lane: Arc<Lane>, pool: &Arc<Pool>, pools: &Arc<Pools>) -> Self {
        let now = Instant::now();
        Self {
            lane,
            pool: Arc::downgrade(pool),
            pools: Arc::downgrade(pools),
            waiter: Arc::default(),
            is_waiting: false,
            lease: None,
            is_planning: false,
            is_spoilt: false,
            flights: VecDeque::new(),
            since: now,
            leased: now,
            now,
            sleep: None,
        }
    }

    fn dialer(&self) -> Option<Arc<Dialer>> {
        Some(self.pools.upgrade()?.dialer.load_full())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_closed = self.lane.with(|queue| {
            queue.waker = Some(cx.waker().clone());
            queue.is_closed
        });
        let Some(pool) = self.pool.upgrade().filter(|_| !is_closed) else {
            return Poll::Ready(());
        };
        self.now = Instant::now();
        for _ in 0..TURNS_MAX {
            if !self.turn(&pool, cx) {
                return self.poll_patience(&pool, cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn; false if nothing moved, which means that every waker is registered.
    fn turn(&mut self, pool: &Arc<Pool>, cx: &mut Context<'_>) -> bool {
        if self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.identity.is_lost())
        {
            return self.lose(Outcome::Broken);
        }
        let mut moved = self.poll_lease(pool, cx);
        self.mind_the_front();
        moved |= self.depart(pool, cx);
        moved |= self.poll_answers(pool, cx);
        moved
    }

    fn has_riders(&self) -> bool {
        self.lane.with(|queue| !queue.waiting.is_empty())
    }

    /// Gets a connection while there are riders and gives it back when there are none. True if that changed.
    fn poll_lease(&mut self, pool: &Arc<Pool>, cx: &mut Context<'_>) -> bool {
        if self.lease.is_some() {
            return self.is_done(pool) && self.give_back();
        }
        if !self.is_waiting {
            if !self.has_riders() {
                return false;
            }
            if pool.is_held() {
                self.lane.turn_away();
                return true;
            }
            let Some(lease) = pool.try_checkout() else {
                self.is_waiting = true;
                self.since = self.now;
                pool.enqueue(&self.waiter);
                return true;
            };
            self.take(lease, pool);
            return true;
        }
        let Poll::Ready(outcome) = self.waiter.poll(cx) else {
            return false;
        };
        self.is_waiting = false;
        if let Ok(lease) = outcome {
            self.take(lease, pool);
        } else {
            // The ordinary way tells each of them why.
            pool.withdraw(&self.waiter);
            self.lane.turn_away();
        }
        true
    }

    /// Whether the connection is not needed now, or is due to those who wait for one.
    fn is_done(&self, pool: &Pool) -> bool {
        self.flights.is_empty()
            && !self.is_planning
            && (self.is_spoilt || !self.has_riders() || self.is_due(pool))
    }

    /// Whether the connection is to be given back before more is sent on it.
    fn is_due(&self, pool: &Pool) -> bool {
        let Some(lease) = &self.lease else {
            return false;
        };
        pool.is_held()
            || lease.identity.is_being_cancelled()
            || (self.now.duration_since(self.leased) > TENURE
                && (pool.waiting() > 0
                    || pool.should_yield()
                    || pool.objects.manager().is_outdated(lease, self.now)))
    }

    fn take(&mut self, mut lease: Lease, pool: &Pool) {
        pool.counters.assignments.fetch_add(1, Ordering::Relaxed);
        self.leased = self.now;
        self.is_spoilt = false;
        // Even a SELECT may take numbers of sequences, from a view.
        lease.mirror.numbers.mix();
        self.lease = Some(lease);
    }

    fn give_back(&mut self) -> bool {
        let Some(lease) = self.lease.take() else {
            return false;
        };
        if !std::mem::take(&mut self.is_spoilt)
            && let Some(dialer) = self.dialer()
        {
            let limit = lease.pool().effective.load().timeouts.cancel_wait_timeout;
            reset::give_back(lease, Residue::None, &dialer, limit);
        }
        true
    }

    /// Passes on a cancel request for an answer that is being handed over; any other ends the ride by itself.
    fn mind_the_front(&mut self) {
        if let Some(front) = self.flights.front()
            && front.streams
            && front.ticket.is_cancel_wanted()
        {
            self.cancel();
        }
    }

    /// Has the server cancel what is in front. Nobody is let in until what is under way is answered.
    fn cancel(&mut self) {
        self.shut();
        if let (Some(lease), Some(dialer)) = (&self.lease, self.dialer()) {
            let limit = lease.pool().effective.load().timeouts.cancel_wait_timeout;
            let cleaning = lease.pool().limits.cleaning();
            let request = cancel::cancel(Arc::clone(&lease.identity), dialer, limit);
            tasks::spawn("cancel", async move {
                let _ = request.await;
                drop(cleaning);
            });
        }
    }

    /// Lets nobody in until what is under way is answered, and sends those who wait elsewhere.
    fn shut(&mut self) {
        self.lane.with(|queue| queue.is_shut = true);
        self.lane.turn_away();
    }

    /// Ends whatever is not answered.
    fn end_all(&mut self, outcome: Outcome) {
        for flight in self.flights.drain(..) {
            flight.ticket.end(outcome);
            self.lane.load.fetch_sub(1, Ordering::Relaxed);
        }
        self.is_planning = false;
        self.lane.with(|queue| queue.is_shut = false);
    }

    /// Sends the requests of those who wait. True if there were any, though all of them were sent elsewhere: then the
    /// connection goes back, for somebody to prepare on it what it lacks. (Kept, it would go on lacking it, and so would all
    /// who boarded go elsewhere for ever.)
    fn depart(&mut self, pool: &Pool, cx: &mut Context<'_>) -> bool {
        let may_send = !self.is_planning
            && !self.is_spoilt
            && self.flights.len() < DEPTH
            && self.has_riders()
            && !self.is_due(pool);
        let Some(lease) = &mut self.lease else {
            return false;
        };
        let backend = &mut **lease;
        if !backend.outbox.is_empty() {
            // Failing to write is not reported here: the server may have said why, and reading tells.
            let _ = backend.outbox.poll_send(&mut backend.stream, cx);
            return false;
        }
        if !may_send {
            return false;
        }
        let mut gather = Gather::take();
        if !self.flights.is_empty() || !self.plan(pool, &mut gather) {
            self.collect(&mut gather);
        }
        if let Some(lease) = &mut self.lease {
            let backend = &mut **lease;
            let _ = backend
                .outbox
                .send(&mut backend.stream, cx, &mut gather, &[]);
        }
        gather.give();
        true
    }

    /// Adds the messages that bring the connection to the riders' settings, if it is not there. Their answer is awaited.
    fn plan(&mut self, pool: &Pool, gather: &mut Gather) -> bool {
        let Some(lease) = &mut self.lease else {
            return false;
        };
        let settings = self.lane.with(|queue| Arc::clone(&queue.settings));
        let effective = pool.effective.load();
        let how = plan::How {
            connect_query: effective.pool.connect_query.as_deref(),
            is_foreign: lease.mirror.unknown_to.is_some(),
            ..plan::How::default()
        };
        if !plan::is_due(&lease.mirror, &settings, how) {
            return false;
        }
        let mut text = Vec::new();
        plan::onto(&mut lease.mirror, &settings, how, &mut text);
        gather.own(|out| frontend::put_query(out, &text));
        lease.expect.push(Owed::new(Asked::Query, For::Plan));
        self.is_planning = true;
        self.since = self.now;
        true
    }

    /// Adds the requests that may be sent now.
    fn collect(&mut self, gather: &mut Gather) {
        let Some(lease) = &mut self.lease else {
            return;
        };
        if self.flights.is_empty() {
            self.since = self.now;
        }
        lease.identity.used(self.now);
        while self.flights.len() < DEPTH {
            let Some(ticket) = self.lane.with(|queue| queue.waiting.pop_front()) else {
                return;
            };
            let mirror = &mut lease.mirror;
            let sent = gather.own(|out| {
                ticket.send(out, self.now, |request, told, settings| {
                    same(&mirror.settings, settings) && fits(mirror, request, told)
                })
            });
            let Some(request) = sent else {
                ticket.end(Outcome::Elsewhere { was_slow: false });
                self.lane.load.fetch_sub(1, Ordering::Relaxed);
                continue;
            };
            let mut owe = |request, statement| {
                lease.expect.push(Owed {
                    statement,
                    ..Owed::new(request, For::Client)
                });
            };
            match request {
                Request::Query => {
                    owe(Asked::Query, 0);
                    lease.mirror.unnamed = None;
                }
                Request::Prepared { id, describes, .. } => {
                    owe(Asked::Bind, id);
                    if describes {
                        owe(Asked::DescribePortal, 0);
                    }
                    owe(Asked::Execute, 0);
                    owe(Asked::Sync, 0);
                }
            }
            self.flights.push_back(Flight::new(ticket, self.now));
        }
    }

    /// Reads once and hands out what came. True if something came.
    fn poll_answers(&mut self, pool: &Pool, cx: &mut Context<'_>) -> bool {
        let is_full = |flight: &Flight| flight.streams && flight.ticket.is_full();
        if self.flights.front().is_some_and(is_full) {
            return false;
        }
        let Some(lease) = &mut self.lease else {
            return false;
        };
        if lease.expect.is_at_rest() {
            return false;
        }
        let mut buffer = ReadBuffer::take();
        let Poll::Ready(read) = buffer.poll_fill(&mut lease.stream, cx) else {
            return false;
        };
        let count = read.unwrap_or(0);
        if count == 0 {
            return self.lose(Outcome::Broken);
        }
        let sent = &pool.counters.sent_bytes;
        sent.fetch_add(count as u64, Ordering::Relaxed);
        let mut brought = Brought::default();
        let flights = &mut self.flights;
        let received = receive::take_in(lease, buffer.bytes(count), |backend, input| {
            let mut answers = Answers {
                input,
                flights,
                brought: &mut brought,
                pending: 0..0,
                ends: false,
            };
            let used = receive::receive(backend, input, &mut answers);
            answers.flush();
            used
        });
        self.is_spoilt |= brought.is_odd;
        let is_at_rest = lease.expect.is_at_rest();
        self.account(&brought);
        if brought.is_over {
            // The server has said so: what it did not answer it did not do.
            return self.lose(Outcome::Elsewhere { was_slow: false });
        }
        if received.is_err() {
            return self.lose(Outcome::Broken);
        }
        if is_at_rest {
            self.is_planning = false;
        }
        true
    }

    fn account(&mut self, brought: &Brought) {
        if brought.ended > 0 {
            self.since = self.now;
            self.lane.load.fetch_sub(brought.ended, Ordering::Relaxed);
        }
        if brought.streams {
            self.since = self.now;
            self.shut();
        }
        if self.flights.is_empty() {
            self.lane.with(|queue| queue.is_shut = false);
        }
    }

    /// The connection is of no use any more.
    fn lose(&mut self, outcome: Outcome) -> bool {
        self.lease = None;
        self.end_all(outcome);
        self.lane.turn_away();
        true
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if self.is_waiting
            && let Some(pool) = self.pool.upgrade()
        {
            pool.withdraw(&self.waiter);
        }
        for flight in self.flights.drain(..) {
            flight.ticket.end(Outcome::Broken);
        }
        // Its pool is gone, or it has panicked; then whoever boards next starts another one.
        self.lane.vacate();
    }
}

/// Whether the connection would answer as the client's own: it reports what the client was told, and has the statement
/// as the client knows it.
fn fits(mirror: &mut Mirror, request: &Request, told: &mut Arc<Reported>) -> bool {
    let has = match request {
        Request::Query => true,
        Request::Prepared { id, shape, .. } => mirror
            .shape(*id)
            .is_some_and(|there| shape.agrees(there) == Some(true)),
    };
    has && Reported::unify(told, &mut mirror.reported)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};
    use crate::pool::lane::Boarding;
    use crate::pool::lane::seat::Seat;

    fn board(pools: &Arc<Pools>, pool: &Arc<Pool>) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        let boarding = Boarding {
            seat: &seat,
            settings: &Arc::default(),
            told: &Arc::default(),
            pools,
            request: Request::Query,
        };
        assert!(pool.board(boarding, |_| {}));
        seat
    }

    async fn ended(seat: &Seat) -> Outcome {
        let end = poll_fn(|cx| seat.poll(cx, |_| {}));
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, end).await.unwrap()
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_task_panics_and_the_next_one_gets_another() {
        let mut overrides = Overrides::new();
        // Nobody listens there.
        overrides.set("--primary", "cluster.primary", "postgres://127.0.0.1:1");
        overrides.set("--set", "pool.lanes", "1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config, "app", "bob").unwrap();
        let lane = pool.lanes.each[0].get_or_init(Arc::default);
        // One that nobody but this test polls.
        let mut runner = Runner::new(Arc::clone(lane), &pool, &pools);
        lane.with(|queue| queue.has_task = true);
        let sent = board(&pools, &pool);
        let held = board(&pools, &pool);
        let waits = board(&pools, &pool);
        let [first, second] = [(); 2].map(|()| lane.with(|queue| queue.waiting.pop_front()));
        runner
            .flights
            .push_back(Flight::new(first.unwrap(), Instant::now()));
        let task = tasks::spawn("panics", async move {
            let runner = runner;
            let _held = second;
            let _lock = runner.lane.queue.lock();
            panic!("as a lane would");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(ended(&sent).await, Outcome::Broken);
        assert_eq!(ended(&held).await, Outcome::Broken);
        let elsewhere = Outcome::Elsewhere { was_slow: false };
        assert_eq!(ended(&waits).await, elsewhere);
        assert_eq!(ended(&board(&pools, &pool)).await, elsewhere);
        assert_eq!(lane.load.load(Ordering::Relaxed), 0);
    }
}
