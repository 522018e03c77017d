//! Server-sent events: one frame a second, made once for all readers of a role.
//!
//! A reader holds the newest frame only: one that is slow misses some, and learns from their numbers that it did.
//! Frames are shared, so that a reader costs a reference. Memory: a frame for each role, the newest and what a slow
//! reader still sends of an older one, for at most [`READERS_MAX`] readers.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Readers at once.
pub(super) const READERS_MAX: usize = 32;

/// What readers of one role are sent.
#[derive(Debug)]
pub(super) struct Feed {
    newest: watch::Sender<Bytes>,
}

impl Feed {
    pub(super) fn new() -> Self {
        Self {
            newest: watch::Sender::new(Bytes::new()),
        }
    }

    pub(super) fn has_readers(&self) -> bool {
        self.newest.receiver_count() > 0
    }

    /// Replaces the newest frame.
    pub(super) fn send(&self, frame: Bytes) {
        self.newest.send_replace(frame);
    }

    /// A reader that begins with `first`; it ends once `permit` is no longer right, that is when `valid` says so.
    pub(super) fn read(
        &self,
        first: Bytes,
        permit: OwnedSemaphorePermit,
        is_valid: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Events {
        Events {
            first: Some(first),
            next: next(self.newest.subscribe()),
            is_valid: Box::new(is_valid),
            _permit: permit,
        }
    }
}

/// Places of readers.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(READERS_MAX))
}

type Next = Pin<Box<dyn Future<Output = Option<(Bytes, watch::Receiver<Bytes>)>> + Send + Sync>>;

fn next(mut receiver: watch::Receiver<Bytes>) -> Next {
    Box::pin(async move {
        receiver.changed().await.ok()?;
        let frame = receiver.borrow_and_update().clone();
        Some((frame, receiver))
    })
}

/// The endless content of a reply.
pub(super) struct Events {
    first: Option<Bytes>,
    next: Next,
    is_valid: Box<dyn Fn() -> bool + Send + Sync>,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some((frame, receiver)) = ready!(this.next.as_mut().poll(cx)) else {
            return Poll::Ready(None);
        };
        this.next = next(receiver);
        // Who may read may have changed with a reload; the browser asks again at once.
        if !(this.is_valid)() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}
