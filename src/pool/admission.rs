//! Who is let in to wait, and which pool gives way to which under a shared cap.
//!
//! # Shedding
//! A pool that has all the connections it may have, and that could not serve one more client within
//! `query_wait_timeout`, says so at once (see [`super::pace`]). A queue longer than `pool.max_waiting` is not joined
//! either.
//!
//! # Fairness
//! Under a cap that pools share, each pool whose clients wait is due a share of the connections by its weight
//! (`priority` of its user). A pool that has more than its share gives way to one that has less, however long its own
//! clients have waited, and does not take its idle connections as soon as they are; between equals the connection goes round, each keeping it for [`YIELD_AFTER`] at least.
//!
//! # Why not first come first served over all pools
//! That gives each pool a share by the length of its queue: a user with a thousand clients would make every other user
//! wait behind them.

use std::cmp::Ordering as Order;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::{Cap, Starved};
use super::open::OpenError;
use super::pace::Look;
use super::pool::Pool;
use super::waiter::{CheckoutError, Waiter};

/// How long a client of another pool waits under a shared cap before a busy pool gives way. Below it, connections
/// would be closed and opened for every transaction of two busy pools.
const YIELD_AFTER: Duration = Duration::from_millis(100);

/// Which share of a cap a pool has, by its weight: less comes first.
pub(super) fn by_share(a: (usize, usize), b: (usize, usize)) -> Order {
    let (a_open, a_weight) = a;
    let (b_open, b_weight) = b;
    a_open
        .saturating_mul(b_weight)
        .cmp(&b_open.saturating_mul(a_weight))
}

impl Pool {
    /// Queues a client's `waiter`, or tells it at once that it would wait in vain.
    pub fn enqueue_client(self: &Arc<Self>, waiter: &Arc<Waiter>) {
        match self.refuses_to_queue() {
            None => self.enqueue(waiter),
            Some(error) => {
                if !matches!(error, CheckoutError::Unreachable(_)) {
                    self.counters.shed.fetch_add(1, Ordering::Relaxed);
                }
                waiter.start();
                waiter.fail(error);
            }
        }
    }

    fn refuses_to_queue(&self) -> Option<CheckoutError> {
        let effective = self.effective.load();
        let ahead = self.waiting();
        if let Some(most) = effective.pool.max_waiting
            && ahead >= most
        {
            return Some(CheckoutError::QueueFull {
                most,
                pool: self.key.to_string(),
                why: self.why_waiting(),
            });
        }
        if effective.overload.fail_fast
            && let Some(error) = self.given_up()
        {
            return Some(CheckoutError::Unreachable(error));
        }
        if !effective.pool.shed || !self.is_full() {
            return None;
        }
        let limit = effective.timeouts.query_wait_timeout?;
        let pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = pace.wait(ahead).filter(|wait| *wait > limit)?;
        Some(CheckoutError::Shed {
            limit,
            wait,
            ahead,
            rate: pace.rate().unwrap_or_default(),
            pool: self.key.to_string(),
        })
    }

    /// Why the pool's server is not even tried at the moment, if it is not and no connection to it is left.
    fn given_up(&self) -> Option<Arc<OpenError>> {
        if self.open() > self.opening() {
            return None;
        }
        let server = self.effective.load().primary.address();
        self.limits.circuits.rests(&server)
    }

    /// Whether the pool's server can't be reached.
    pub(super) fn is_cut_off(&self) -> bool {
        let server = self.effective.load().primary.address();
        self.limits.circuits.unreachable(&server).is_some()
    }

    /// Tells all waiting clients that the server can't be reached, where they are not to wait for it.
    pub(super) fn fail_fast(&self) {
        if !self.effective.load().overload.fail_fast {
            return;
        }
        if let Some(error) = self.given_up() {
            self.fail_waiting(|| CheckoutError::Unreachable(Arc::clone(&error)));
        }
    }

    /// Whether it has all the connections that it may have: then nothing but its pace decides how long clients wait.
    fn is_full(&self) -> bool {
        let pool = self.effective.load();
        let most = pool.pool.max_size + pool.pool.reserve_size;
        let has_all = self.open() >= most + self.opening();
        let is_blocked = || {
            let cap = self.blocked_by.lock();
            cap.unwrap_or_else(PoisonError::into_inner).is_some()
        };
        !self.is_held() && (has_all || is_blocked())
    }

    /// Measures how fast waiting clients are served.
    pub(super) fn look_at_pace(&self, now: Instant) {
        let effective = self.effective.load();
        let Some(limit) = effective.timeouts.query_wait_timeout else {
            return;
        };
        let look = Look {
            now,
            is_full: self.waiting() > 0 && self.is_full(),
            served: self.served.load(Ordering::Relaxed),
            limit,
        };
        self.pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .look(look);
    }

    /// Waiting clients that are served each second; `None` if that is not known, as when the pool is not overloaded.
    pub fn service_rate(&self) -> Option<f64> {
        self.pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .rate()
    }

    /// What the pool has, and what it weighs.
    pub(super) fn share(&self) -> (usize, usize) {
        (self.open(), self.effective.load().weight)
    }

    /// When a connection was last opened for it.
    pub(super) fn opened_last(&self) -> Option<Instant> {
        *self
            .opened_last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_opening(&self) {
        *self
            .opened_last
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The pool for those that decide who gives way; `since` is when the first of its clients began to wait.
    pub(super) fn starved_by(&self, cap: Cap, since: Instant) -> Starved {
        Starved {
            key: self.key.clone(),
            server: self.effective.load().primary.address(),
            cap,
            since,
            share: self.share(),
        }
    }

    /// Whether a connection given back is closed to make room for another pool under a cap shared with this one. See the
    /// module.
    pub(super) fn must_yield(&self) -> bool {
        self.should_yield() && self.limits.gives_up()
    }

    /// Whether one of its connections, given back now, would be.
    pub(super) fn should_yield(&self) -> bool {
        self.limits.is_starved(|starved| {
            starved.since.elapsed() > YIELD_AFTER
                && starved.key != self.key
                && self.counts_with(starved)
                && self.gives_way_to(starved)
        })
    }

    /// Whether its connections count under the cap that keeps `starved` from opening one.
    fn counts_with(&self, starved: &Starved) -> bool {
        let server = || self.effective.load().primary.address();
        let own = (&self.key, server);
        starved
            .cap
            .is_shared_by((&starved.key, || starved.server.clone()), own)
    }

    /// Whether an idle connection of this pool may be closed to make room for one of `needy`: at once if this pool is not
    /// left with the smaller share, else once it was idle for a while. Between two statements of a client it is idle too.
    pub(super) fn may_lose_idle(&self, released: Instant, needy: &Self) -> bool {
        let (open, weight) = needy.share();
        by_share(self.share(), (open + 1, weight)) != Order::Less
            || released.elapsed() >= YIELD_AFTER
    }

    fn gives_way_to(&self, starved: &Starved) -> bool {
        let (open, weight) = starved.share;
        // Once it has one more, it is not to have more than is left here.
        match by_share(self.share(), (open + 1, weight)) {
            Order::Greater => true,
            // Between two statements of its only client nobody waits here either.
            Order::Equal if self.waiting() == 0 => true,
            Order::Equal => self
                .opened_last()
                .is_none_or(|at| at.elapsed() > YIELD_AFTER),
            // Whom it keeps with none at all has a turn, as long as by weight.
            Order::Less => {
                let turn = YIELD_AFTER.as_secs_f64() * ratio(self.share().1, weight);
                let is_over = |at: Instant| at.elapsed().as_secs_f64() > turn;
                open == 0 && self.opened_last().is_none_or(is_over)
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "weights are small")]
fn ratio(a: usize, b: usize) -> f64 {
    a as f64 / b.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::effective::Effective;
    use super::super::limits::{Limits, Slot};
    use super::super::pool::{PoolKey, tests};
    use super::*;
    use crate::config::model::Node;
    use crate::config::{Overrides, load};

    /// A pool of `user` on a server of this name.
    fn pool(limits: &Arc<Limits>, user: &str, host: &str) -> Arc<Pool> {
        let mut overrides = Overrides::new();
        overrides.set("--primary", "cluster.primary", "postgres://127.0.0.1:1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let mut effective = Effective::of(&config, "app", user).unwrap();
        effective.primary = Node::at(host, 5432);
        let key = PoolKey {
            database: "app".into(),
            user: user.into(),
            node: None,
        };
        Pool::new(key, effective, Arc::clone(limits))
    }

    fn opens(pool: &Pool, count: usize) -> Vec<Slot> {
        let slots = (0..count).map(|_| pool.reserve(&tests::settings()).unwrap());
        slots.collect()
    }

    /// Says that clients of `pool` have waited for long, under `cap`.
    fn starves(limits: &Limits, pool: &Pool, cap: Cap) {
        let since = Instant::now() - YIELD_AFTER * 2;
        limits.set_starved(vec![pool.starved_by(cap, since)]);
    }

    #[tokio::test]
    async fn who_has_less_than_its_share_keeps_what_it_has_between_two_statements() {
        let limits = Arc::new(Limits::default());
        let (greedy, modest) = (
            pool(&limits, "greedy", "db1"),
            pool(&limits, "modest", "db1"),
        );
        let _open = (opens(&greedy, 3), opens(&modest, 1));
        starves(&limits, &greedy, Cap::Total);
        assert!(!modest.should_yield());
        starves(&limits, &modest, Cap::Total);
        assert!(greedy.should_yield());
        // With as much as the other is to have it gives way, as nobody waits here.
        let _more = opens(&modest, 3);
        starves(&limits, &greedy, Cap::Total);
        assert!(modest.should_yield());
    }

    #[tokio::test]
    async fn who_has_nothing_has_a_turn_whatever_the_other_weighs() {
        let limits = Arc::new(Limits::default());
        let heavy = pool(&limits, "heavy", "db1");
        let light = pool(&limits, "light", "db1");
        let mut effective = Effective::clone(&heavy.effective.load());
        effective.weight *= 3;
        heavy.effective.store(Arc::new(effective));
        let _open = opens(&heavy, 1);
        let opened =
            |ago: Duration| *heavy.opened_last.lock().unwrap() = Some(Instant::now() - ago);
        starves(&limits, &light, Cap::Total);
        opened(YIELD_AFTER * 2);
        assert!(!heavy.should_yield());
        opened(YIELD_AFTER * 4);
        assert!(heavy.should_yield());
        // One that has something waits for its share.
        let _one = opens(&light, 1);
        starves(&limits, &light, Cap::Total);
        assert!(!heavy.should_yield());
    }

    #[tokio::test]
    async fn nobody_gives_way_under_the_cap_of_another_server() {
        let limits = Arc::new(Limits::default());
        let needy = pool(&limits, "needy", "db1");
        let (here, there) = (pool(&limits, "here", "db1"), pool(&limits, "there", "db2"));
        let _open = (opens(&here, 2), opens(&there, 2));
        starves(&limits, &needy, Cap::Node);
        assert!(!there.must_yield());
        assert!(here.must_yield());
        // One is enough for now.
        assert!(!here.must_yield());
    }

    #[test]
    fn a_share_is_what_a_pool_has_by_what_it_weighs() {
        assert_eq!(by_share((4, 100), (2, 100)), Order::Greater);
        assert_eq!(by_share((4, 200), (2, 100)), Order::Equal);
        assert_eq!(by_share((0, 1), (1, 1000)), Order::Less);
    }
}
