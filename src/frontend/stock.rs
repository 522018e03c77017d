//! What a session holds only while something is under way, taken from a stock of the thread's and given back: an idle
//! client has none of it, and a busy one allocates nothing for a statement.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::metering::Running;
use super::rerun::{FirstWrite, Rerun};
use super::session::{Phase, Session};

/// Boxes of each kind that are kept on each thread: some statements are under way, of however many clients.
const BOXES_MAX: usize = 256;

/// Queues kept on each thread, and the longest that is kept.
const QUEUES_MAX: usize = 16;
const QUEUE_LEN_MAX: usize = 64;

thread_local! {
    #[allow(clippy::vec_box, reason = "it is the boxes that are kept")]
    static RERUNS: RefCell<Vec<Box<Rerun>>> = const { RefCell::new(Vec::new()) };
    #[allow(clippy::vec_box, reason = "it is the boxes that are kept")]
    static FRONTS: RefCell<Vec<Box<Option<Running>>>> = const { RefCell::new(Vec::new()) };
    static QUEUES: RefCell<Vec<VecDeque<Running>>> = const { RefCell::new(Vec::new()) };
}

/// One that is as new.
pub(super) fn rerun() -> Box<Rerun> {
    RERUNS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// An empty queue.
pub(super) fn queue() -> VecDeque<Running> {
    QUEUES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives back a queue that is empty.
pub(super) fn give_queue(queue: VecDeque<Running>) {
    if queue.is_empty() && (1..=QUEUE_LEN_MAX).contains(&queue.capacity()) {
        give(&QUEUES, queue, QUEUES_MAX);
    }
}

fn give<T>(stock: &'static std::thread::LocalKey<RefCell<Vec<T>>>, item: T, most: usize) {
    stock.with_borrow_mut(|stock| {
        if stock.len() < most {
            stock.push(item);
        }
    });
}

/// The statement that is being answered.
#[derive(Debug, Default)]
pub(super) struct Front(Option<Box<Option<Running>>>);

impl Front {
    pub(super) fn get(&self) -> Option<&Running> {
        self.0.as_deref()?.as_ref()
    }

    pub(super) fn get_mut(&mut self) -> Option<&mut Running> {
        self.0.as_deref_mut()?.as_mut()
    }

    pub(super) fn put(&mut self, running: Running) {
        let stocked = || FRONTS.with_borrow_mut(Vec::pop).unwrap_or_default();
        **self.0.get_or_insert_with(stocked) = Some(running);
    }

    pub(super) fn take(&mut self) -> Option<Running> {
        let mut place = self.0.take()?;
        let running = place.take();
        give(&FRONTS, place, BOXES_MAX);
        running
    }
}

impl Rerun {
    /// Makes it as new if nothing is under way or to be remembered; false if something is.
    fn renew(&mut self) -> bool {
        let Self {
            journal,
            failed,
            runs,
            terminated,
            since,
            until,
            first_write,
            settle,
            overrun,
            original,
            replay,
            refuses,
            refuses_outside,
            queued_since,
            queue_counted,
        } = self;
        // They say something of `refuses` and of `queued_since`, and nothing by themselves.
        (*refuses_outside, *queue_counted) = (false, None);
        journal.is_new()
            && failed.is_none()
            && (*runs, *terminated) == (0, 0)
            && since.is_none()
            && until.is_none()
            && *first_write == FirstWrite::None
            && settle.is_none()
            && original.is_none()
            && replay.is_none()
            && refuses.is_none()
            && queued_since.is_none()
            && overrun.rest()
    }
}

impl Session {
    /// Gives back what an idle session has no use for.
    pub(super) fn shed(&mut self) {
        if self.phase == Phase::Idle
            && self.lease.is_none()
            && self.inbox.is_empty()
            && self.rerun.as_mut().is_some_and(|rerun| rerun.renew())
            && let Some(rerun) = self.rerun.take()
        {
            give(&RERUNS, rerun, BOXES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_remembered_is_not_given_back() {
        let mut rerun = rerun();
        assert!(rerun.renew());
        rerun.journal.use_unnamed();
        assert!(!rerun.renew());
        let _ = rerun.journal.rest();
        assert!(rerun.renew());
        rerun.journal.record(b"seen");
        assert!(!rerun.renew());
        let _ = rerun.journal.rest();
        rerun.runs = 1;
        assert!(!rerun.renew());
    }
}
