//! Buffers that are held only while they hold something.
//!
//! An idle connection owns no buffer: reads go through one thread-local buffer, writes leave at once, and only what
//! the peer did not take is kept, in a [`Outbox`] whose storage comes from a small thread-local stock.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Stream;

/// Size of the thread-local read buffer, and of the largest storage kept in stock.
const BUFFER: usize = 64 * 1024;
/// Storages kept in stock on each thread.
const STOCK_MAX: usize = 64;
/// Pieces written without copying; more are joined first. Replies rarely have more than three.
const PIECES_MAX: usize = 16;

thread_local! {
    static READ: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static STOCK: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static GATHERS: RefCell<Vec<Gather>> = const { RefCell::new(Vec::new()) };
}

/// The thread's read buffer, taken for the length of one poll and given back on drop.
#[derive(Debug)]
pub struct ReadBuffer(Option<Box<[u8]>>);

impl ReadBuffer {
    pub fn take() -> Self {
        let stocked = READ.with_borrow_mut(Vec::pop);
        Self(Some(
            stocked.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()),
        ))
    }

    /// Reads once. `Ok(0)` is the end of the stream.
    pub fn poll_fill(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill_some(BUFFER, stream, cx)
    }

    /// The same with no more than `most` bytes.
    pub fn poll_fill_some(
        &mut self,
        most: usize,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let buffer = self.0.as_deref_mut().unwrap_or_default();
        let most = most.min(buffer.len());
        let mut buf = ReadBuf::new(&mut buffer[..most]);
        ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.0.as_deref().unwrap_or_default()[..len]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            READ.with_borrow_mut(|stock| {
                if stock.len() < 4 {
                    stock.push(buffer);
                }
            });
        }
    }
}

/// An empty vector with storage from the stock, if there is one.
pub fn take_storage() -> Vec<u8> {
    STOCK.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives storage back; large ones are freed instead.
pub fn give_storage(mut storage: Vec<u8>) {
    if storage.capacity() == 0 || storage.capacity() > BUFFER {
        return;
    }
    storage.clear();
    STOCK.with_borrow_mut(|stock| {
        if stock.len() < STOCK_MAX {
            stock.push(storage);
        }
    });
}

/// Bytes that wait for something: for their frame to be complete, for a backend, for the peer to take them.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    start: usize,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = take_storage();
        } else if self.start > BUFFER {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes `count` bytes off the front; storage goes back when nothing is left.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            self.start = 0;
            give_storage(std::mem::take(&mut self.bytes));
        }
    }

    /// Takes the bytes out, to be put back with what was not used of them.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// What a peer has not taken yet.
#[derive(Debug, Default)]
pub struct Outbox {
    held: Held,
    /// TLS has records of its own that are not on the wire yet.
    unflushed: bool,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.unflushed
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.held.push(bytes);
    }

    /// Sends what is held. Ready when nothing is left.
    pub fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut *stream).poll_write(cx, self.held.bytes()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.consume(sent);
            self.unflushed = stream.is_tls();
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the pieces of `gather` at once as far as the peer takes them and holds the rest.
    pub fn send(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        gather: &mut Gather,
        input: &[u8],
    ) -> io::Result<()> {
        if gather.pieces.is_empty() {
            return Ok(());
        }
        let mut sent = 0;
        if self.held.is_empty() {
            sent = match gather.poll_write(stream, cx, input) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            self.unflushed |= stream.is_tls();
        }
        for piece in &gather.pieces {
            let bytes = gather.bytes(piece, input);
            let skip = sent.min(bytes.len());
            sent -= skip;
            self.held.push(&bytes[skip..]);
        }
        gather.clear();
        if self.unflushed && self.held.is_empty() {
            // Pending is not lost: `unflushed` stays and the next poll goes on.
            if let Poll::Ready(done) = self.poll_send(stream, cx) {
                done?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Input(Range<usize>),
    Own(Range<usize>),
}

/// One write in the making: ranges of the input buffer and bytes of pgweir's own, in order.
#[derive(Debug, Default)]
pub struct Gather {
    pieces: Vec<Piece>,
    own: Vec<u8>,
}

/// How far a [`Gather`] had come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pieces: usize,
    last: Option<Piece>,
    own: usize,
}

impl Gather {
    /// How far it has come.
    pub fn mark(&self) -> Mark {
        Mark {
            pieces: self.pieces.len(),
            last: self.pieces.last().cloned(),
            own: self.own.len(),
        }
    }

    /// Shows what was added since `mark`, in order.
    pub fn each_since(&self, mark: &Mark, input: &[u8], show: impl FnMut(&[u8])) {
        self.each_between(mark, &self.mark(), input, show);
    }

    /// Shows what was added between two marks, in order.
    pub fn each_between(&self, from: &Mark, to: &Mark, input: &[u8], mut show: impl FnMut(&[u8])) {
        // The piece that was last may have grown.
        let shown = from
            .last
            .as_ref()
            .map_or(0, |was| self.bytes(was, input).len());
        for place in from.pieces.saturating_sub(1)..to.pieces {
            let is_last = place + 1 == to.pieces;
            let piece = if is_last {
                to.last.as_ref()
            } else {
                self.pieces.get(place)
            };
            let skip = if place + 1 == from.pieces { shown } else { 0 };
            if let Some(piece) = piece {
                show(&self.bytes(piece, input)[skip..]);
            }
        }
    }

    /// Takes back what was added since `mark`.
    pub fn truncate(&mut self, mark: Mark) {
        self.pieces.truncate(mark.pieces);
        if let (Some(last), Some(was)) = (self.pieces.last_mut(), mark.last) {
            *last = was;
        }
        self.own.truncate(mark.own);
    }

    /// An empty one with storage from the thread's stock.
    pub fn take() -> Self {
        GATHERS.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Gives the storage back.
    pub fn give(mut self) {
        self.clear();
        GATHERS.with_borrow_mut(|stock| {
            if stock.len() < 4 {
                stock.push(self);
            }
        });
    }

    /// Adds a range of the input; adjacent ranges become one.
    pub fn input(&mut self, range: Range<usize>) {
        match self.pieces.last_mut() {
            _ if range.is_empty() => {}
            Some(Piece::Input(last)) if last.end == range.start => last.end = range.end,
            _ => self.pieces.push(Piece::Input(range)),
        }
    }

    /// Adds bytes that `write` appends.
    pub fn own<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let start = self.own.len();
        let result = write(&mut self.own);
        let end = self.own.len();
        match self.pieces.last_mut() {
            _ if start == end => {}
            Some(Piece::Own(last)) if last.end == start => last.end = end,
            _ => self.pieces.push(Piece::Own(start..end)),
        }
        result
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Moves what was gathered to the end of `out`.
    pub fn move_to(&mut self, out: &mut Vec<u8>, input: &[u8]) {
        for piece in &self.pieces {
            out.extend_from_slice(self.bytes(piece, input));
        }
        self.clear();
    }

    fn bytes<'a>(&'a self, piece: &Piece, input: &'a [u8]) -> &'a [u8] {
        match piece {
            Piece::Input(range) => &input[range.clone()],
            Piece::Own(range) => &self.own[range.clone()],
        }
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.own.clear();
        if self.own.capacity() > BUFFER {
            self.own = Vec::new();
        }
    }

    fn poll_write(
        &self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        input: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let [piece] = self.pieces.as_slice() {
            return Pin::new(stream).poll_write(cx, self.bytes(piece, input));
        }
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let count = self.pieces.len().min(PIECES_MAX);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(self.bytes(piece, input));
        }
        Pin::new(stream).poll_write_vectored(cx, &slices[..count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_keep_their_order_and_give_their_storage_back() {
        let mut held = Held::default();
        held.push(b"abc");
        held.consume(1);
        held.push(b"d");
        assert_eq!(held.bytes(), b"bcd");
        held.consume(3);
        assert!(held.is_empty() && held.bytes.capacity() == 0);
    }

    #[test]
    fn what_came_behind_a_mark_is_taken_back() {
        let mut gather = Gather::default();
        let start = gather.mark();
        gather.input(0..3);
        gather.own(|own| own.push(b'x'));
        let mark = gather.mark();
        gather.own(|own| own.push(b'y'));
        gather.input(3..5);
        assert_ne!(gather.mark(), mark);
        let since = |mark: &Mark| {
            let mut shown = Vec::new();
            gather.each_since(mark, b"abcde", |bytes| shown.extend_from_slice(bytes));
            shown
        };
        assert_eq!(since(&start), b"abcxyde");
        assert_eq!(since(&mark), b"yde");
        assert_eq!(since(&gather.mark()), b"");
        let end = gather.mark();
        gather.input(5..7);
        let mut shown = Vec::new();
        gather.each_between(&mark, &end, b"abcdefg", |bytes| {
            shown.extend_from_slice(bytes);
        });
        assert_eq!(shown, b"yde");
        gather.each_between(&end, &gather.mark(), b"abcdefg", |bytes| {
            shown.extend_from_slice(bytes);
        });
        assert_eq!(shown, b"ydefg");
        gather.truncate(mark.clone());
        assert_eq!(gather.mark(), mark);
        let mut out = Vec::new();
        gather.move_to(&mut out, b"abcde");
        assert_eq!(out, b"abcx");
        gather.input(0..1);
        gather.truncate(start);
        assert!(gather.is_empty());
    }

    #[test]
    fn adjacent_pieces_join() {
        let mut gather = Gather::default();
        gather.input(0..3);
        gather.input(3..5);
        gather.own(|own| own.extend_from_slice(b"x"));
        gather.own(|own| own.extend_from_slice(b"y"));
        gather.input(7..8);
        assert_eq!(gather.pieces.len(), 3);
        let all: Vec<u8> = gather
            .pieces
            .iter()
            .flat_map(|piece| gather.bytes(piece, b"abcdefgh").to_vec())
            .collect();
        assert_eq!(all, b"abcdexyh");
    }
}
