//! A client's place in a lane: its request on the way in, its answer on the way out.
//!
//! Each session that rides has one [`Seat`], used again for every statement. The lane knows it by a [`Ticket`], which is
//! good for one ride, up to its end: whatever the lane does with an old ticket has no effect, so a session may leave at
//! any time, and be sent away.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::Lane;
use crate::error::SqlState;
use crate::net::buffer::{give_storage, take_storage};
use crate::session::mirror::Reported;
use crate::session::settings::Settings;
use crate::session::shape::Shape;

/// Bytes of an answer that is still growing from which on it is passed on in pieces. Up to there a client that reads
/// slowly delays nobody.
const STREAM_AT: usize = 256 * 1024;

/// Bytes of an answer that wait for its client; the lane is not read meanwhile. One read may exceed it by its size.
const FULL_AT: usize = STREAM_AT + 64 * 1024;

/// What is sent.
#[derive(Clone, Debug)]
pub enum Request {
    /// A simple query.
    Query,
    /// Bind, Execute and Sync of global statement `id`, which the client knows by `shape`.
    Prepared {
        id: u64,
        shape: Arc<Shape>,
        /// A Describe of the portal stands behind the Bind.
        describes: bool,
    },
}

/// What an answer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// When the statement was written to the server.
    pub sent: Instant,
    pub rows: u64,
    pub was_long: bool,
    /// It ended so, after rows that were handed over already.
    pub error: Option<SqlState>,
}

/// How a ride ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer was handed over.
    Answered(Answered),
    /// Nothing of an answer was handed over: the statement, a read, has to be run the ordinary way.
    Elsewhere {
        /// It kept others waiting.
        was_slow: bool,
    },
    /// The server connection was lost amid the answer.
    Broken,
    /// A cancel request came first.
    Canceled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Away,
    Queued,
    Sent,
    /// Parts of the answer are handed over before its end.
    Streaming,
    Ended(Outcome),
}

#[derive(Debug, Default)]
struct Ride {
    stage: Stage,
    /// Which ride it is.
    number: u64,
    /// When it was sent; it stays there after the ride.
    sent: Option<Instant>,
    request: Option<Request>,
    frames: Vec<u8>,
    told: Option<Arc<Reported>>,
    settings: Option<Arc<Settings>>,
    answer: Vec<u8>,
    waker: Option<Waker>,
    lane: Weak<Lane>,
    /// A cancel request came while the answer was handed over.
    is_cancel_wanted: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Seat {
    ride: Mutex<Ride>,
}

/// One ride of a seat, as the lane knows it.
#[derive(Debug)]
pub struct Ticket {
    seat: Arc<Seat>,
    number: u64,
}

/// What came of handing bytes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// The rider is gone.
    Nobody,
    Kept,
    Streaming,
}

impl Seat {
    fn with<R>(&self, change: impl FnOnce(&mut Ride) -> R) -> R {
        change(&mut self.ride.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a ride: `write` appends the frames. Only its own session calls it, and only while away.
    pub(super) fn start(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        request: Request,
        (told, settings): (&Arc<Reported>, &Arc<Settings>),
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Ticket {
        let number = self.with(|ride| {
            ride.stage = Stage::Queued;
            ride.number += 1;
            ride.sent = None;
            ride.request = Some(request);
            ride.frames = take_storage();
            write(&mut ride.frames);
            ride.told = Some(Arc::clone(told));
            ride.settings = Some(Arc::clone(settings));
            ride.lane = Arc::downgrade(lane);
            ride.is_cancel_wanted = false;
            ride.number
        });
        Ticket {
            seat: Arc::clone(self),
            number,
        }
    }

    /// Hands what came of the answer to `take`. Ready at its end.
    pub fn poll(&self, cx: &mut Context<'_>, take: impl FnOnce(&[u8])) -> Poll<Outcome> {
        let (outcome, drained) = self.with(|ride| {
            let is_given = matches!(
                ride.stage,
                Stage::Streaming | Stage::Ended(Outcome::Answered(_) | Outcome::Broken)
            );
            let mut drained = None;
            if is_given && !ride.answer.is_empty() {
                take(&ride.answer);
                give_storage(std::mem::take(&mut ride.answer));
                drained = (ride.stage == Stage::Streaming).then(|| ride.lane.upgrade());
            }
            if let Stage::Ended(outcome) = ride.stage {
                ride.leave();
                return (Some(outcome), None);
            }
            let is_known = |waker: &Waker| waker.will_wake(cx.waker());
            if !ride.waker.as_ref().is_some_and(is_known) {
                ride.waker = Some(cx.waker().clone());
            }
            (None, drained)
        });
        if let Some(Some(lane)) = drained {
            lane.wake();
        }
        outcome.map_or(Poll::Pending, Poll::Ready)
    }

    /// When the request of this ride, or of the last one, was sent, if it was.
    pub fn sent(&self) -> Option<Instant> {
        self.with(|ride| ride.sent)
    }

    /// Leaves the lane if the request was not sent yet; false if it was, or if the ride has ended.
    pub fn withdraw_unsent(&self) -> bool {
        let left = self.with(|ride| {
            let is_queued = ride.stage == Stage::Queued;
            is_queued.then(|| {
                let lane = ride.lane.upgrade();
                ride.leave();
                lane
            })
        });
        if let Some(Some(lane)) = &left {
            lane.wake();
        }
        left.is_some()
    }

    /// Leaves the lane: the answer, if it still comes, is dropped.
    pub fn withdraw(&self) {
        let lane = self.with(|ride| {
            let lane = ride.lane.upgrade();
            ride.leave();
            lane
        });
        if let Some(lane) = lane {
            lane.wake();
        }
    }

    /// A cancel request; false if nobody rides.
    pub fn cancel(&self) -> bool {
        let (found, woken, lane) = self.with(|ride| match ride.stage {
            Stage::Queued | Stage::Sent | Stage::Ended(Outcome::Elsewhere { .. }) => {
                // What the lane does with the old ticket is without effect from here on.
                ride.number += 1;
                ride.stage = Stage::Ended(Outcome::Canceled);
                (true, ride.waker.take(), ride.lane.upgrade())
            }
            Stage::Streaming => {
                ride.is_cancel_wanted = true;
                (true, None, ride.lane.upgrade())
            }
            Stage::Away | Stage::Ended(_) => (false, None, None),
        });
        if let Some(waker) = woken {
            waker.wake();
        }
        if let Some(lane) = lane {
            lane.wake();
        }
        found
    }
}

impl Ride {
    fn leave(&mut self) {
        self.stage = Stage::Away;
        self.number += 1;
        self.request = None;
        self.told = None;
        self.settings = None;
        give_storage(std::mem::take(&mut self.frames));
        give_storage(std::mem::take(&mut self.answer));
    }
}

impl Ticket {
    fn with<R>(&self, change: impl FnOnce(&mut Ride) -> R) -> Option<R> {
        self.seat.with(|ride| {
            let is_good = ride.number == self.number && !matches!(ride.stage, Stage::Ended(_));
            is_good.then(|| change(ride))
        })
    }

    /// Whether the rider is there and waits for the end of the ride.
    pub(super) fn is_good(&self) -> bool {
        self.with(|_| ()).is_some()
    }

    pub(super) fn is_cancel_wanted(&self) -> bool {
        self.with(|ride| std::mem::take(&mut ride.is_cancel_wanted)) == Some(true)
    }

    /// Appends the frames to `out` if the rider is there and `fits` agrees; returns what they are.
    pub(super) fn send(
        &self,
        out: &mut Vec<u8>,
        now: Instant,
        fits: impl FnOnce(&Request, &mut Arc<Reported>, &Arc<Settings>) -> bool,
    ) -> Option<Request> {
        self.with(|ride| {
            let request = ride.request.take()?;
            if !fits(&request, ride.told.as_mut()?, ride.settings.as_ref()?) {
                return None;
            }
            out.extend_from_slice(&ride.frames);
            give_storage(std::mem::take(&mut ride.frames));
            ride.stage = Stage::Sent;
            ride.sent = Some(now);
            Some(request)
        })?
    }

    /// Hands over bytes of the answer.
    pub(super) fn answer(&self, bytes: &[u8]) -> Handed {
        let handed = self.with(|ride| {
            if ride.answer.capacity() == 0 {
                ride.answer = take_storage();
            }
            ride.answer.extend_from_slice(bytes);
            if ride.answer.len() >= STREAM_AT {
                ride.stage = Stage::Streaming;
            }
            match ride.stage {
                Stage::Streaming => (Handed::Streaming, ride.waker.take()),
                _ => (Handed::Kept, None),
            }
        });
        let Some((handed, woken)) = handed else {
            return Handed::Nobody;
        };
        if let Some(waker) = woken {
            waker.wake();
        }
        handed
    }

    /// Whether the client has to take some of its answer before more is read.
    pub(super) fn is_full(&self) -> bool {
        self.with(|ride| ride.answer.len() >= FULL_AT) == Some(true)
    }

    /// Ends the ride.
    pub(super) fn end(&self, outcome: Outcome) {
        let waker = self.with(|ride| {
            ride.stage = Stage::Ended(match (ride.stage, outcome) {
                (Stage::Streaming, Outcome::Elsewhere { .. }) => Outcome::Broken,
                (Stage::Streaming, Outcome::Answered(answered)) => Outcome::Answered(Answered {
                    was_long: true,
                    ..answered
                }),
                (_, outcome) => outcome,
            });
            ride.waker.take()
        });
        if let Some(Some(waker)) = waker {
            waker.wake();
        }
    }
}

impl Drop for Ticket {
    /// A lane that panics may have it in its hands.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end(Outcome::Broken);
        }
    }
}
