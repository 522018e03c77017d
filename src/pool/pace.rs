//! How fast a pool serves the clients that wait, and so how long one more would wait.
//!
//! Pure: who looks brings the time. Times are smoothed exponentially over half of `query_wait_timeout`, within
//! [`SMOOTHED_LEAST`] and [`SMOOTHED_MOST`], so that a pool learns of a change well before it matters.
//!
//! # Why measured
//! By Little's law the wait is the number of clients ahead by the rate at which they are served. That rate could be
//! worked out as connections by mean time held, but the mean is that of the statements that have ended, which in the
//! worst moments are the short ones. Counting who is served leaves nothing out: slow statements, connections that went to
//! another pool, lanes.
//!
//! # Why at the door, and not as `CoDel` does it
//! `CoDel` drops what has waited too long, to slow a sender down whose patience it does not know. Here the patience is
//! known: `query_wait_timeout`. A client that can't be served within it is best told when it comes, when it has waited
//! for nothing yet; those in the queue are the ones who will be served next. Under a lasting overload the queue is then
//! as long as can be served in time, connections never lack work, and nobody who is let in waits longer.

use std::time::Duration;

use tokio::time::Instant;

const SMOOTHED_LEAST: Duration = Duration::from_millis(250);
const SMOOTHED_MOST: Duration = Duration::from_secs(10);

/// Looks closer together than this are one.
const LOOK_LEAST: Duration = Duration::from_millis(5);

/// Looks further apart than this say nothing of the time between them, in which nobody may have waited.
const LOOK_MOST: Duration = Duration::from_millis(200);

/// Clients that must have been served lately for the rate to be believed.
const EVIDENCE: f64 = 10.0;

/// Longer waits are not told apart.
const WAIT_MOST: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last look at a queue that was not empty: when, and how many had been served in all.
    last: Option<(Instant, u64)>,
    served: f64,
    seconds: f64,
    /// There was evidence since clients began to wait: if they are served no more, that is known too.
    is_known: bool,
}

/// What a look at a pool found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) now: Instant,
    /// Clients wait and the pool has all the connections that it may have: nothing but its pace decides.
    pub(super) is_full: bool,
    /// Waiting clients served since the process began.
    pub(super) served: u64,
    /// How long clients may wait.
    pub(super) limit: Duration,
}

impl Pace {
    /// Takes in a look.
    pub(super) fn look(&mut self, look: Look) {
        let smoothed = (look.limit / 2).clamp(SMOOTHED_LEAST, SMOOTHED_MOST);
        let Some((at, before)) = self.last else {
            self.last = look.is_full.then_some((look.now, look.served));
            return;
        };
        let passed = look.now.saturating_duration_since(at);
        // What was true of an earlier overload is not of the next.
        if passed > smoothed {
            *self = Self::default();
        }
        if !look.is_full {
            self.is_known = false;
            return;
        }
        if passed > LOOK_MOST {
            self.last = Some((look.now, look.served));
            return;
        }
        if passed < LOOK_LEAST {
            return;
        }
        let kept = (-passed.as_secs_f64() / smoothed.as_secs_f64()).exp();
        let served = u32::try_from(look.served.saturating_sub(before)).unwrap_or(u32::MAX);
        self.served = self.served * kept + f64::from(served);
        self.seconds = self.seconds * kept + passed.as_secs_f64();
        self.is_known |= self.served >= EVIDENCE;
        self.last = Some((look.now, look.served));
    }

    /// Waiting clients served each second; `None` if that is not known well enough.
    pub(super) fn rate(&self) -> Option<f64> {
        let is_known = self.is_known || self.served >= EVIDENCE;
        (is_known && self.seconds > 0.0).then(|| self.served / self.seconds)
    }

    /// How long a client waits that has `ahead` others before it; `None` if nobody can tell.
    pub(super) fn wait(&self, ahead: usize) -> Option<Duration> {
        let ahead = f64::from(u32::try_from(ahead).unwrap_or(u32::MAX)) + 1.0;
        let wait = Duration::try_from_secs_f64(ahead / self.rate()?);
        Some(wait.map_or(WAIT_MOST, |wait| wait.min(WAIT_MOST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool whose clients may wait for 2 s, and that serves `rate` a second for as long as `looks` are taken.
    struct Queue {
        pace: Pace,
        now: Instant,
        served: f64,
    }

    impl Queue {
        fn new() -> Self {
            Self {
                pace: Pace::default(),
                now: Instant::now(),
                served: 0.0,
            }
        }

        fn run(&mut self, seconds: f64, rate: f64, is_full: bool) {
            let step = 0.02;
            let mut left = seconds;
            while left > 0.0 {
                self.now += Duration::from_secs_f64(step);
                self.served += rate * step;
                left -= step;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let served = self.served as u64;
                self.pace.look(Look {
                    now: self.now,
                    is_full,
                    served,
                    limit: Duration::from_secs(2),
                });
            }
        }

        fn wait(&self, ahead: usize) -> Option<f64> {
            self.pace.wait(ahead).map(|wait| wait.as_secs_f64())
        }
    }

    #[test]
    fn the_wait_is_the_queue_by_the_rate_of_the_last_seconds() {
        let mut queue = Queue::new();
        assert_eq!(queue.wait(5), None);
        queue.run(3.0, 100.0, true);
        let wait = queue.wait(199).unwrap();
        assert!((1.9..2.1).contains(&wait), "{wait}");
        // Five times slower: learnt within the time that clients may wait.
        queue.run(2.0, 20.0, true);
        let wait = queue.wait(19).unwrap();
        assert!((0.6..1.1).contains(&wait), "{wait}");
        queue.run(4.0, 20.0, true);
        let wait = queue.wait(19).unwrap();
        assert!((0.9..1.1).contains(&wait), "{wait}");
    }

    #[test]
    fn a_pool_that_stands_still_turns_clients_away_until_nobody_waits() {
        let mut queue = Queue::new();
        queue.run(3.0, 100.0, true);
        queue.run(60.0, 0.0, true);
        assert!(queue.wait(0).unwrap() > 1000.0);
        // It goes on, and is known to within the time that clients may wait.
        queue.run(2.0, 100.0, true);
        let wait = queue.wait(99).unwrap();
        assert!((0.9..1.3).contains(&wait), "{wait}");
        queue.run(60.0, 0.0, true);
        queue.run(0.1, 0.0, false);
        assert_eq!(queue.wait(0), None);
    }

    #[test]
    fn without_evidence_nobody_is_turned_away() {
        let mut queue = Queue::new();
        // Long statements: too few ends to judge by.
        queue.run(30.0, 2.0, true);
        assert_eq!(queue.wait(1000), None);
        // The overload is over, and the next one begins with nothing known.
        queue.run(3.0, 100.0, true);
        assert!(queue.wait(0).is_some());
        queue.run(0.5, 100.0, false);
        assert!(queue.wait(0).is_some());
        queue.run(2.0, 100.0, false);
        assert_eq!(queue.wait(0), None);
    }
}
