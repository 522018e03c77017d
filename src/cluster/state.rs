//! What state a server is in, and the one place that changes it.
//!
//! # Why a replica that comes back has to wait
//! A server that comes and goes costs more than it serves: each of its ends fails reads that are then run elsewhere.
//! So it serves again only after it has answered for a while, and for longer each time it falls soon after. A primary
//! does not wait: without it nothing is served at all.

use std::time::Duration;

use tokio::time::Instant;

/// How long a replica must have answered before it serves again, the first time.
const HOLD_BACK_FIRST: Duration = Duration::from_secs(1);
const HOLD_BACK_MAX: Duration = Duration::from_secs(60);
/// A server that was up for this long has not come and gone.
const CALM: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Nothing is known yet.
    Unprobed,
    Up,
    /// A replica too far behind to serve.
    Lagging,
    Down,
    /// A replica that answers again, but not for long enough.
    ProbingBack,
    /// Taken out of service from the console.
    Draining,
    /// It claims to be the primary, and another one is.
    Fenced,
    /// It belongs to another cluster.
    Refused,
}

impl NodeState {
    pub const ALL: [Self; 8] = [
        Self::Unprobed,
        Self::Up,
        Self::Lagging,
        Self::Down,
        Self::ProbingBack,
        Self::Draining,
        Self::Fenced,
        Self::Refused,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unprobed => "unprobed",
            Self::Up => "up",
            Self::Lagging => "lagging",
            Self::Down => "down",
            Self::ProbingBack => "probing_back",
            Self::Draining => "draining",
            Self::Fenced => "fenced",
            Self::Refused => "refused",
        }
    }
}

/// What a probe found, as far as the state depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No answer.
    Failed,
    /// It is there and has no connection to spare for being asked.
    Full,
    /// The cluster's primary.
    Primary,
    /// A server that takes writes and is not the primary.
    Stale,
    Replica {
        lag: Duration,
    },
    Foreign,
}

/// Limits of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub down_after: usize,
    pub lag_max: Option<Duration>,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub from: NodeState,
    pub to: NodeState,
}

/// One server's state and what decides about the next.
#[derive(Clone, Debug)]
pub struct Health {
    state: NodeState,
    since: Instant,
    /// Probes that failed in a row.
    failures: usize,
    /// Falls that came soon after each other.
    falls: u32,
    drained: bool,
}

impl Health {
    pub fn new(now: Instant) -> Self {
        Self {
            state: NodeState::Unprobed,
            since: now,
            failures: 0,
            falls: 0,
            drained: false,
        }
    }

    pub fn state(&self) -> NodeState {
        self.state
    }

    /// Since when it is in its state.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn failures(&self) -> usize {
        self.failures
    }

    /// Takes the server out of service, or lets it back. It moves at the next probe.
    pub fn drain(&mut self, drained: bool) {
        self.drained = drained;
    }

    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Takes in what a probe found. The only place where the state changes.
    pub fn find(&mut self, verdict: Verdict, rules: Rules, now: Instant) -> Option<Moved> {
        let next = self.next(verdict, rules, now);
        self.failures = if verdict == Verdict::Failed {
            self.failures + 1
        } else {
            0
        };
        if next == self.state {
            return None;
        }
        if next == NodeState::Down {
            let was_calm = now.duration_since(self.since) >= CALM;
            self.falls = if was_calm { 1 } else { self.falls + 1 };
        }
        let from = std::mem::replace(&mut self.state, next);
        self.since = now;
        Some(Moved { from, to: next })
    }

    fn next(&self, verdict: Verdict, rules: Rules, now: Instant) -> NodeState {
        use NodeState as S;
        match (verdict, self.state) {
            (Verdict::Failed, S::Unprobed | S::ProbingBack) => S::Down,
            (Verdict::Full, S::Unprobed | S::ProbingBack | S::Down) => S::Down,
            (Verdict::Full, state) => state,
            (Verdict::Failed, _) if self.failures + 1 >= rules.down_after => S::Down,
            (Verdict::Failed, state) => state,
            (Verdict::Foreign, _) => S::Refused,
            (Verdict::Stale, _) => S::Fenced,
            (Verdict::Primary, _) => S::Up,
            (Verdict::Replica { .. }, _) if self.drained => S::Draining,
            (Verdict::Replica { .. }, S::Down | S::Fenced | S::Refused) => S::ProbingBack,
            (Verdict::Replica { .. }, S::ProbingBack)
                if now.duration_since(self.since) < self.hold_back() =>
            {
                S::ProbingBack
            }
            (Verdict::Replica { lag }, state) => match rules.lag_max {
                Some(max) if lag > max => S::Lagging,
                // One at the edge does not come and go.
                Some(max) if state == S::Lagging && lag > max / 2 => S::Lagging,
                _ => S::Up,
            },
        }
    }

    fn hold_back(&self) -> Duration {
        let doublings = self.falls.saturating_sub(1).min(10);
        (HOLD_BACK_FIRST * 2_u32.pow(doublings)).min(HOLD_BACK_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        down_after: 3,
        lag_max: Some(Duration::from_secs(10)),
    };

    const FINE: Verdict = Verdict::Replica {
        lag: Duration::ZERO,
    };

    struct Story {
        health: Health,
        now: Instant,
    }

    impl Story {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                health: Health::new(now),
                now,
            }
        }

        fn after(&mut self, millis: u64, verdict: Verdict) -> NodeState {
            self.now += Duration::from_millis(millis);
            self.health.find(verdict, RULES, self.now);
            self.health.state()
        }
    }

    #[test]
    fn a_replica_falls_after_some_failures_and_comes_back_after_a_while() {
        use NodeState as S;
        let mut story = Story::new();
        assert_eq!(story.after(0, FINE), S::Up);
        assert_eq!(story.after(1, Verdict::Failed), S::Up);
        assert_eq!(story.after(1, Verdict::Failed), S::Up);
        assert_eq!(story.after(1, Verdict::Failed), S::Down);
        assert_eq!(story.after(1, FINE), S::ProbingBack);
        assert_eq!(story.after(900, FINE), S::ProbingBack);
        assert_eq!(story.after(100, FINE), S::Up);
    }

    #[test]
    fn a_replica_that_comes_and_goes_waits_longer_each_time() {
        let mut story = Story::new();
        story.after(0, FINE);
        let mut waits = Vec::new();
        for _ in 0..9 {
            for _ in 0..3 {
                story.after(1, Verdict::Failed);
            }
            let mut wait = 0;
            while story.after(500, FINE) != NodeState::Up {
                wait += 500;
            }
            waits.push(wait);
        }
        assert_eq!(
            waits,
            [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000]
        );
        story.after(700_000, FINE);
        for _ in 0..3 {
            story.after(1, Verdict::Failed);
        }
        story.after(0, FINE);
        assert_eq!(story.after(1000, FINE), NodeState::Up);
    }

    #[test]
    fn a_server_without_a_connection_to_spare_stays_what_it_is() {
        let mut story = Story::new();
        assert_eq!(story.after(0, Verdict::Full), NodeState::Down);
        assert_eq!(story.after(1, Verdict::Primary), NodeState::Up);
        for _ in 0..10 {
            assert_eq!(story.after(1, Verdict::Full), NodeState::Up);
        }
        // It answers, which is no failure.
        story.after(1, Verdict::Failed);
        story.after(1, Verdict::Failed);
        story.after(1, Verdict::Full);
        assert_eq!(story.after(1, Verdict::Failed), NodeState::Up);
    }

    #[test]
    fn a_primary_comes_back_at_once() {
        let mut story = Story::new();
        assert_eq!(story.after(0, Verdict::Failed), NodeState::Down);
        assert_eq!(story.after(1, Verdict::Primary), NodeState::Up);
    }

    #[test]
    fn lag_is_left_only_well_below_the_limit() {
        let lag = |seconds| Verdict::Replica {
            lag: Duration::from_secs(seconds),
        };
        let mut story = Story::new();
        assert_eq!(story.after(0, lag(10)), NodeState::Up);
        assert_eq!(story.after(1, lag(11)), NodeState::Lagging);
        assert_eq!(story.after(1, lag(6)), NodeState::Lagging);
        assert_eq!(story.after(1, lag(5)), NodeState::Up);
    }

    #[test]
    fn drained_fenced_and_foreign_servers_serve_nobody() {
        let mut story = Story::new();
        story.after(0, FINE);
        story.health.drain(true);
        assert_eq!(story.after(1, FINE), NodeState::Draining);
        story.health.drain(false);
        assert_eq!(story.after(1, FINE), NodeState::Up);
        assert_eq!(story.after(1, Verdict::Stale), NodeState::Fenced);
        assert_eq!(story.after(1, FINE), NodeState::ProbingBack);
        assert_eq!(story.after(1, Verdict::Foreign), NodeState::Refused);
        assert_eq!(story.after(1, Verdict::Primary), NodeState::Up);
    }
}
