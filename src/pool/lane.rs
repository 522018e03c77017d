//! Lanes: short reads of many clients, run back to back on one server connection.
//!
//! A server that finds the next statement in its socket's buffer runs it at once; one that has to wait for it is put to
//! sleep and woken. So when clients would use several connections at a time, their statements that are known to be short
//! reads go to a *lane* instead: a task with one leased connection, which writes what has gathered in one go and hands
//! each rider its answer. Each statement keeps its own Sync, so errors stay apart.
//!
//! # Protocol
//! A session boards with the frames of one exchange in its [`seat::Seat`] and keeps its copy until the ride has ended:
//! - [`Outcome::Answered`]: the answer is complete, and the session drops its copy;
//! - [`Outcome::Elsewhere`]: nothing of an answer was handed over, and the session runs its copy the ordinary way. It
//!   keeps the lane simple: whatever is unusual (an error, a statement the connection lacks, a connection that the
//!   server ends, a slow statement in front) ends in it;
//! - [`Outcome::Canceled`], [`Outcome::Broken`]: as in the ordinary way.
//!
//! # Why a statement is not simply run again
//! What looks like a read may hide a write: a view or an operator may call a function that writes. So a statement is
//! sent elsewhere only if it was not sent here, or if the server said that it failed and so undid it. A slow one in front
//! is made to fail, by a cancel request; if that comes late, it hits one behind it, which then fails and is run again
//! itself. After a connection is lost without a word, nobody knows, and the riders are told so.
//!
//! # Invariants
//! - Only riders with equal settings, of one pool and so of one user, share a lane at a time.
//! - A cancel request may hit another rider than the one it is for, who then runs the ordinary way and does not notice;
//!   after one, nobody boards until the lane is empty, and the connection is at nobody's disposal until it is settled.
//! - Nobody waits without limit for a client that does not take its answer: once an answer is handed over in pieces nobody
//!   boards, and who is behind it leaves after a while.
//! - An answer is handed to the rider whose request is in front; what a rider who left would have got is dropped.
//! - The connection goes back to the pool whenever the lane is empty, and after `task::TENURE` if others wait for one.
//! - Bound: [`seat`] names how many bytes wait for a rider; riders are bounded by the number of clients.

mod answers;
pub mod seat;
mod task;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;

use self::seat::{Outcome, Request, Seat, Ticket};
use super::pool::Pool;
use super::pools::Pools;
use crate::session::mirror::Reported;
use crate::session::settings::{Settings, same};
use crate::tasks;

/// The most lanes a pool can have, whatever `pool.lanes` says.
pub const LANES_MAX: usize = 8;

/// The lanes of one pool.
#[derive(Debug, Default)]
pub struct Lanes {
    each: [OnceLock<Arc<Lane>>; LANES_MAX],
    /// Statements under way that are known to be short, on a lane or not.
    short: Arc<AtomicUsize>,
    pub counters: LaneCounters,
}

/// Totals for the metrics.
#[derive(Debug, Default)]
pub struct LaneCounters {
    /// Statements answered by a lane.
    pub answered: AtomicU64,
    /// Statements that left a lane to be run the ordinary way.
    pub elsewhere: AtomicU64,
}

impl LaneCounters {
    pub fn count_answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_elsewhere(&self) {
        self.elsewhere.fetch_add(1, Ordering::Relaxed);
    }
}

/// A short statement under way, until dropped.
#[derive(Debug)]
pub struct Short(Arc<AtomicUsize>);

impl Drop for Short {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One lane. See the module.
#[derive(Debug, Default)]
pub struct Lane {
    queue: Mutex<Queue>,
    /// Riders, those in flight included.
    load: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Ticket>,
    /// What all riders have set.
    settings: Arc<Settings>,
    /// A rider in front was slow or long: nobody else is let in.
    is_shut: bool,
    waker: Option<Waker>,
    /// The pool is gone.
    is_closed: bool,
    has_task: bool,
}

/// What a session needs to ride.
#[derive(Debug)]
pub struct Boarding<'a> {
    pub seat: &'a Arc<Seat>,
    pub settings: &'a Arc<Settings>,
    pub told: &'a Arc<Reported>,
    pub pools: &'a Arc<Pools>,
    pub request: Request,
}

impl Lanes {
    /// Counts a statement that is known to be short. True if another one is under way: then it should ride.
    pub fn begin_short(&self) -> (Short, bool) {
        let before = self.short.fetch_add(1, Ordering::Relaxed);
        (Short(Arc::clone(&self.short)), before > 0)
    }

    /// Has every lane look whether its connection still counts.
    pub(super) fn wake(&self) {
        for lane in self.with_lanes() {
            lane.wake();
        }
    }

    fn with_lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.each.iter().filter_map(OnceLock::get)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in self.with_lanes() {
            lane.with(|queue| queue.is_closed = true);
            lane.wake();
        }
    }
}

impl Pool {
    /// Lets a session ride on a lane for its settings: `write` appends its frames. False if there is none.
    pub fn board(
        self: &Arc<Self>,
        boarding: Boarding<'_>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let count = self.effective.load().pool.lanes.min(LANES_MAX);
        let usable = self.lanes.each[..count]
            .iter()
            .map(|lane| lane.get_or_init(Arc::default))
            .filter(|lane| lane.with(|queue| lane.is_open_for(queue, boarding.settings)))
            .min_by_key(|lane| lane.load.load(Ordering::Relaxed));
        let Some(lane) = usable else {
            return false;
        };
        let entered = lane.with(|queue| {
            // Another thread may have been faster since it was chosen.
            if !lane.is_open_for(queue, boarding.settings) {
                return None;
            }
            lane.load.fetch_add(1, Ordering::Relaxed);
            if !same(&queue.settings, boarding.settings) {
                queue.settings = Arc::clone(boarding.settings);
            }
            let session = (boarding.told, boarding.settings);
            let ticket = boarding.seat.start(lane, boarding.request, session, write);
            queue.waiting.push_back(ticket);
            let needs_task = !std::mem::replace(&mut queue.has_task, true);
            Some((queue.waker.take(), needs_task))
        });
        let Some((waker, needs_task)) = entered else {
            return false;
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if needs_task {
            let task = task::run(Arc::clone(lane), self, boarding.pools);
            tasks::spawn("lane", task);
        }
        true
    }
}

impl Lane {
    fn with<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_open_for(&self, queue: &Queue, settings: &Arc<Settings>) -> bool {
        let is_free = self.load.load(Ordering::Relaxed) == 0;
        !queue.is_shut && (is_free || same(&queue.settings, settings))
    }

    /// Has the lane look at what has changed.
    fn wake(&self) {
        if let Some(waker) = self.with(|queue| queue.waker.take()) {
            waker.wake();
        }
    }

    /// The task is gone, and with it all that was under way.
    fn vacate(&self) {
        let waiting = self.with(|queue| {
            self.load.store(0, Ordering::Relaxed);
            queue.is_shut = false;
            queue.waker = None;
            queue.has_task = false;
            std::mem::take(&mut queue.waiting)
        });
        for ticket in waiting {
            ticket.end(Outcome::Elsewhere { was_slow: false });
        }
    }

    /// Sends everybody who waits the ordinary way.
    fn turn_away(&self) {
        for ticket in self.with(|queue| std::mem::take(&mut queue.waiting)) {
            ticket.end(Outcome::Elsewhere { was_slow: false });
            self.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
