//! How long a lane waits for what, and what it does then.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::Runner;
use crate::pool::lane::answers::Flight;
use crate::pool::lane::seat::Outcome;
use crate::pool::pool::Pool;

/// How long the request in front may take before those behind it leave.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long those behind an answer that is being handed over wait for its client, where they are run again. What they
/// asked for may have been run when they leave, so it is longer.
const STREAM_PATIENCE: Duration = Duration::from_millis(250);

/// How long a lane waits for a connection before its riders wait for themselves, with their own limits and notices.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

impl Runner {
    /// Acts when the request in front, or a connection, was waited for too long.
    pub(super) fn poll_patience(&mut self, pool: &Arc<Pool>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience(pool) else {
            return Poll::Pending;
        };
        let at = self.since + patience;
        // A timer that rings early is set anew then, instead of for every request.
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.is_elapsed() || sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        ready!(sleep.as_mut().poll(cx));
        self.now = Instant::now();
        if self.now >= at {
            self.lose_patience(pool);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// How long may be waited for what is waited for.
    fn patience(&self, pool: &Pool) -> Option<Duration> {
        if self.is_waiting {
            return Some(QUEUE_PATIENCE);
        }
        let front = self.flights.front();
        if !self.is_planning && !front?.streams && !front?.was_slow {
            return Some(PATIENCE);
        }
        let effective = pool.effective.load();
        let cancel_wait = effective.timeouts.cancel_wait_timeout;
        if self.is_planning || !front?.streams {
            return Some(cancel_wait);
        }
        // It goes at its client's pace, who has limits of its own. Those behind have not.
        let is_waited_for = self.behind().any(|flight| flight.ticket.is_good());
        // Without another run their connections end.
        is_waited_for.then_some(if effective.retry.statements {
            STREAM_PATIENCE
        } else {
            cancel_wait
        })
    }

    /// What is sent behind the request in front.
    fn behind(&self) -> impl Iterator<Item = &Flight> {
        self.flights.iter().skip(1)
    }

    fn lose_patience(&mut self, pool: &Arc<Pool>) {
        if self.is_waiting {
            self.is_waiting = false;
            pool.withdraw(&self.waiter);
            self.lane.turn_away();
            return;
        }
        match self.flights.front_mut() {
            // Their answers, when they come, are dropped.
            Some(front) if front.streams => {
                for flight in self.behind() {
                    flight.ticket.end(Outcome::Broken);
                }
            }
            Some(front) if !front.was_slow => {
                front.was_slow = true;
                self.since = self.now;
                self.cancel();
            }
            // Neither a cancel request nor time has helped.
            _ => {
                self.lose(Outcome::Broken);
            }
        }
    }
}
