//! What a session has been sent by its shared listener and has not passed on.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pool::Pool;

/// Bytes of notifications kept for one session, each with [`ITEM_BYTES`]; a session that leaves more lying is ended.
/// PostgreSQL keeps up to 8 GB for all, and then refuses NOTIFY to everybody.
pub const EAR_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What keeping one of them takes beyond its own bytes: its places, twice where a queue has just grown, the counts of its
/// `Arc`, and what the allocator adds to three allocations.
pub const ITEM_BYTES: usize =
    2 * size_of::<Item>() + size_of::<Notification>() + 2 * size_of::<usize>() + 3 * 16;

/// A notification as the server sent it.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification {
    pub channel: Box<[u8]>,
    /// The whole message.
    pub frame: Box<[u8]>,
}

/// Something for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Notification(Arc<Notification>),
    /// There may have been others that nobody heard.
    Missed,
    /// What stands before it was committed before the client's transaction began.
    Begun,
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Notification(one) => ITEM_BYTES + one.channel.len() + one.frame.len(),
            Self::Missed | Self::Begun => ITEM_BYTES,
        }
    }
}

/// What came of what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// There is no connection to listen on.
    Unavailable,
}

/// Which question an answer is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket(u64);

#[derive(Debug, Default)]
struct Heard {
    items: VecDeque<Item>,
    bytes: usize,
    /// Of the question asked last.
    asked: Ticket,
    /// With the number of items that stood before it.
    answer: Option<(Answer, usize)>,
    overflowed: bool,
}

impl Heard {
    /// See [`Ear::drop_first`] and [`Ear::end_transaction`].
    fn sift(&mut self, count: usize, ends: bool, keeps: impl Fn(&[u8]) -> bool) -> usize {
        let count = count.min(self.items.len());
        let begun = self
            .items
            .iter()
            .take(count)
            .rposition(|it| *it == Item::Begun);
        let (mut at, mut dropped) = (0, 0);
        let before = self.items.len();
        self.items.retain(|item| {
            let is_older = begun.is_some_and(|begun| at < begun);
            let is_asked = at < count;
            at += 1;
            let is_kept = match item {
                Item::Notification(one) => !is_asked || is_older || keeps(&one.channel),
                Item::Missed => true,
                Item::Begun => !is_asked || !ends,
            };
            dropped += if is_kept { 0 } else { item.len() };
            is_kept
        });
        self.bytes -= dropped;
        count - (before - self.items.len())
    }

    fn push(&mut self, item: Item) {
        // To be told once is enough.
        if self.overflowed || (item == Item::Missed && self.items.back() == Some(&item)) {
            return;
        }
        self.bytes += item.len();
        self.items.push_back(item);
        if self.bytes > EAR_BYTES_MAX {
            self.overflowed = true;
            self.items = VecDeque::new();
        }
    }
}

/// See the module.
pub struct Ear {
    pub(super) id: u64,
    /// Whose session it is.
    pub(super) pool: Arc<Pool>,
    heard: Mutex<Heard>,
    has_news: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Ear {
    pub(super) fn new(id: u64, pool: &Arc<Pool>, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            id,
            pool: Arc::clone(pool),
            heard: Mutex::default(),
            has_news: AtomicBool::new(false),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.lock());
        self.has_news.store(true, Ordering::Release);
        (self.wake)();
    }

    pub(super) fn push(&self, item: Item) {
        self.tell(|heard| heard.push(item));
    }

    /// Something is asked: what was asked before is not answered any more.
    pub(super) fn ask(&self) -> Ticket {
        let mut heard = self.lock();
        heard.answer = None;
        heard.asked = Ticket(heard.asked.0 + 1);
        heard.asked
    }

    /// What was asked last is not answered any more.
    pub fn forget_asked(&self) {
        self.ask();
    }

    /// Whether the answer to this question is still awaited.
    pub(super) fn awaits(&self, ticket: Ticket) -> bool {
        self.lock().asked == ticket
    }

    pub(super) fn answer(&self, ticket: Ticket, answer: Answer) {
        self.tell(|heard| {
            if heard.asked == ticket {
                heard.answer = Some((answer, heard.items.len()));
            }
        });
    }

    /// What was asked last, if anything, is answered by nobody else.
    pub(super) fn give_up(&self) {
        self.tell(|heard| heard.answer = Some((Answer::Unavailable, heard.items.len())));
    }

    /// Whether something came since the last look.
    pub fn has_news(&self) -> bool {
        self.has_news.swap(false, Ordering::Acquire)
    }

    /// The answer to what was asked last, and how many items stand before it if none was taken since.
    pub fn take_answer(&self) -> Option<(Answer, usize)> {
        self.lock().answer.take()
    }

    /// What is here was committed before the client's transaction began.
    pub(super) fn mark(&self) {
        self.lock().push(Item::Begun);
    }

    /// Drops, of the first `count` items, the notifications of channels that `keeps` does not want, except for what was
    /// committed before the client's transaction began.
    pub fn drop_first(&self, count: usize, keeps: impl Fn(&[u8]) -> bool) {
        self.lock().sift(count, false, keeps);
    }

    /// The same at the end of that transaction. Tells how many of the items are left.
    pub fn end_transaction(&self, count: usize, keeps: impl Fn(&[u8]) -> bool) -> usize {
        self.lock().sift(count, true, keeps)
    }

    /// More came than is kept: what the session has heard is not whole any more.
    pub fn has_overflowed(&self) -> bool {
        self.lock().overflowed
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes up to `count` of the oldest items, and of them only the first one beyond `max` bytes.
    pub fn take(&self, count: usize, max: usize) -> Vec<Item> {
        let mut heard = self.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < count
            && bytes <= max
            && let Some(item) = heard.items.pop_front()
        {
            bytes += item.len();
            taken.push(item);
        }
        heard.bytes -= bytes;
        if heard.items.is_empty() {
            heard.items = VecDeque::new();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_counts_with_what_it_takes_to_keep_it() {
        let mut heard = Heard::default();
        let mut count = 0;
        while !heard.overflowed {
            count += 1;
            heard.push(Item::Notification(Arc::new(Notification {
                channel: Box::from(&b"a"[..]),
                frame: Box::default(),
            })));
        }
        assert!(count * ITEM_BYTES <= EAR_BYTES_MAX + ITEM_BYTES, "{count}");
        assert!(heard.items.is_empty());
    }

    #[test]
    fn what_is_older_than_a_transaction_is_kept_whatever_that_leaves() {
        let note = |channel: &[u8]| {
            Item::Notification(Arc::new(Notification {
                channel: channel.into(),
                frame: Box::default(),
            }))
        };
        let mut heard = Heard::default();
        for item in [note(b"a"), Item::Begun, note(b"a"), note(b"b"), note(b"a")] {
            heard.push(item);
        }
        // The last one is none of those asked for.
        assert_eq!(heard.sift(4, true, |channel| channel == b"b"), 2);
        assert_eq!(heard.items, [note(b"a"), note(b"b"), note(b"a")]);
        assert_eq!(
            heard.bytes,
            heard.items.iter().map(Item::len).sum::<usize>()
        );
    }

    #[test]
    fn that_something_was_missed_is_told_once_in_a_row() {
        let mut heard = Heard::default();
        for _ in 0..3 {
            heard.push(Item::Missed);
        }
        assert_eq!(heard.items.len(), 1);
    }
}
