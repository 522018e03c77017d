//! Taking messages from a server: the one place where answers meet the queue of what is owed.
//!
//! Frames are not copied: the receiver is told which ranges of the input are for the client. Only the few messages
//! that change state are looked into, and those are waited for whole; everything else passes as it comes in.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use thiserror::Error;

use super::connection::{Backend, Passing};
use crate::error::SqlState;
use crate::net::buffer::ReadBuffer;
use crate::wire::backend as b;
use crate::wire::expect::{For, OWN_NAME, Owed, Received, Request, UNNAMED, Unexpected};
use crate::wire::frame::{FrameError, HEADER, Header};
use crate::wire::limits::WHOLE_FRAME_MAX;

/// PostgreSQL's own bound on a message (`PQ_LARGE_MESSAGE_LIMIT` is 1 GiB - 1; lengths are signed 32-bit).
const SERVER_FRAME_MAX: usize = i32::MAX as usize;

/// Why a server connection can't be used any more.
#[derive(Debug, Error)]
pub enum ReceiveError {
    #[error("server closed the connection unexpectedly")]
    Closed,
    /// Given up here: see `Identity::lose`.
    #[error("the server is out of service")]
    Lost,
    #[error("could not read from the server: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Unexpected(#[from] Unexpected),
}

impl From<ReceiveError> for io::Error {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Io(error) => error,
            ReceiveError::Closed | ReceiveError::Lost => io::ErrorKind::UnexpectedEof.into(),
            ReceiveError::Frame(_) | ReceiveError::Unexpected(_) => {
                Self::new(io::ErrorKind::InvalidData, error)
            }
        }
    }
}

/// Who hears of what the server said.
pub trait Receiver {
    /// These bytes of the input are for the client.
    fn relay(&mut self, range: Range<usize>);
    /// It is the turn of an answer that pgweir gives itself.
    fn local(&mut self, owed: Request);
    /// A message that changes state, whole (up to [`WHOLE_FRAME_MAX`]). `received` tells whom it is for. False keeps
    /// it from the client.
    fn message(&mut self, backend: &Backend, received: Received, tag: u8, payload: &[u8]) -> bool;
    /// The server skipped this after an error.
    fn skipped(&mut self, owed: Owed);
    /// A row for the client begins.
    fn row(&mut self) {}
}

/// Hears nothing: for connections being cleaned.
#[derive(Debug)]
pub struct Discard;

impl Receiver for Discard {
    fn relay(&mut self, _: Range<usize>) {}
    fn local(&mut self, _: Request) {}
    fn message(&mut self, _: &Backend, _: Received, _: u8, _: &[u8]) -> bool {
        false
    }
    fn skipped(&mut self, _: Owed) {}
}

/// Whether a message is looked into.
fn is_state(tag: u8) -> bool {
    !matches!(
        tag,
        b::DATA_ROW | b::COPY_DATA | b::ROW_DESCRIPTION | b::PARAMETER_DESCRIPTION
    )
}

/// Reads once from the server and takes in what came. Ready with the number of bytes read.
pub fn poll_receive(
    backend: &mut Backend,
    cx: &mut Context<'_>,
    receiver: &mut impl Receiver,
) -> Poll<Result<usize, ReceiveError>> {
    let mut buffer = ReadBuffer::take();
    let count = ready!(buffer.poll_fill(&mut backend.stream, cx))?;
    if count == 0 {
        return Poll::Ready(Err(ReceiveError::Closed));
    }
    take_in(backend, buffer.bytes(count), |backend, input| {
        receive(backend, input, receiver)
    })?;
    Poll::Ready(Ok(count))
}

/// Runs `step` over `new` bytes preceded by those held back earlier, and holds back what it did not consume.
pub fn take_in<E>(
    backend: &mut Backend,
    new: &[u8],
    step: impl FnOnce(&mut Backend, &[u8]) -> Result<usize, E>,
) -> Result<(), E> {
    if backend.inbox.is_empty() {
        let used = step(backend, new)?;
        backend.inbox.push(&new[used..]);
    } else {
        let mut held = backend.inbox.take();
        held.push(new);
        let used = step(backend, held.bytes())?;
        held.consume(used);
        backend.inbox = held;
    }
    Ok(())
}

/// Takes in `input`; returns how many bytes were used. The rest is the beginning of a message that is waited for.
pub fn receive(
    backend: &mut Backend,
    input: &[u8],
    receiver: &mut impl Receiver,
) -> Result<usize, ReceiveError> {
    let mut at = pass(backend, input, 0, receiver);
    take_locals(backend, receiver);
    while let Some(header) = Header::peek(&input[at..], SERVER_FRAME_MAX)? {
        let end = at + header.len;
        let have = end.min(input.len());
        let is_state = is_state(header.tag) || is_own(backend);
        if have < end && is_state && header.len <= WHOLE_FRAME_MAX {
            break;
        }
        let payload = &input[at + HEADER..have];
        if header.tag == b::READY_FOR_QUERY && backend.expect.is_skipping() {
            skip(backend, receiver);
        }
        let received = match backend.expect.receive(header.tag) {
            // A server that ends the connection says so unasked.
            Err(_) if header.tag == b::ERROR_RESPONSE && b::is_fatal(payload) => Received {
                owed: Owed::new(Request::Sync, For::Client),
                done: false,
            },
            received => received?,
        };
        let mut to_client = match received.owed.to {
            For::Answered => header.tag == b::READY_FOR_QUERY,
            to => matches!(to, For::Client | For::Refusal),
        };
        if header.tag == b::DATA_ROW && to_client {
            receiver.row();
        }
        if is_state {
            to_client |= header.tag == b::ERROR_RESPONSE
                && (matches!(received.owed.to, For::Reparse | For::Shape) || b::is_fatal(payload));
            note(backend, received.owed, header.tag, payload);
            to_client &= receiver.message(backend, received, header.tag, payload);
            if received.owed.renames && names_statement(received, header.tag) {
                backend.expect.settle_front();
            }
        }
        backend.passing = Passing {
            remaining: end - at,
            to_client,
        };
        at = pass(backend, input, at, receiver);
        if header.tag == b::ERROR_RESPONSE {
            skip(backend, receiver);
        }
        take_locals(backend, receiver);
    }
    Ok(at)
}

/// Answers that pgweir gives itself stand between whole messages.
fn take_locals(backend: &mut Backend, receiver: &mut impl Receiver) {
    while backend.passing.remaining == 0
        && let Some(request) = backend.expect.take_local()
    {
        receiver.local(request);
    }
}

/// Rows of pgweir's own questions are collected whole.
fn is_own(backend: &Backend) -> bool {
    backend
        .expect
        .front()
        .is_some_and(|owed| matches!(owed.to, For::Probe | For::Xact | For::Shape))
}

/// Moves past the frame under way, as far as the input goes.
fn pass(backend: &mut Backend, input: &[u8], at: usize, receiver: &mut impl Receiver) -> usize {
    let count = backend.passing.remaining.min(input.len() - at);
    if count > 0 {
        backend.passing.remaining -= count;
        if backend.passing.to_client {
            receiver.relay(at..at + count);
        }
    }
    at + count
}

/// What a message says of the backend itself.
fn note(backend: &mut Backend, owed: Owed, tag: u8, payload: &[u8]) {
    // It may come behind the last answer, in the same read, where nobody waits for more.
    backend.is_ended |= tag == b::ERROR_RESPONSE && b::is_fatal(payload);
    match tag {
        b::PARAMETER_DESCRIPTION | b::ROW_DESCRIPTION | b::NO_DATA if owed.to == For::Shape => {
            backend.mirror.awaited_shapes.receive(tag, payload);
        }
        b::ERROR_RESPONSE if is_stale(owed, payload) => backend.mirror.spoil(owed.statement),
        b::ERROR_RESPONSE
            if owed.request == Request::Query && owed.renames && owed.statement != 0 =>
        {
            backend.mirror.forget(owed.statement);
        }
        b::READY_FOR_QUERY => {
            if let Some(status) = payload
                .first()
                .and_then(|&byte| b::TransactionStatus::from_byte(byte))
            {
                backend.status = status;
            }
        }
        b::PARAMETER_STATUS => {
            if let Some((name, value)) = b::parameter_status(payload) {
                backend.mirror.report(name, value);
            }
        }
        b::COMMAND_COMPLETE => match payload {
            b"DISCARD ALL\0" => {
                backend.mirror.reset();
                remember_pipelined(backend);
            }
            b"DISCARD SEQUENCES\0" => backend.mirror.numbers.forget(),
            b"DEALLOCATE ALL\0" => {
                backend.mirror.forget_all();
                remember_pipelined(backend);
            }
            _ => {}
        },
        _ => {}
    }
}

/// Whether an answer to a client's PREPARE or DEALLOCATE tells whether it has changed a name, though it is not the last.
pub fn names_statement(received: Received, tag: u8) -> bool {
    received.owed.request == Request::Query
        && matches!(tag, b::COMMAND_COMPLETE | b::ERROR_RESPONSE)
}

/// Whether the server refuses to run a statement because of what DDL has done since it was parsed: its result would be
/// another one (0A000; the message may be in any language), or a type of its parameters is gone (XX000).
pub fn is_stale(owed: Owed, payload: &[u8]) -> bool {
    const RESULT_TYPE_CHECK: &[u8] = b"RevalidateCachedQuery";
    let uses = matches!(owed.request, Request::Bind | Request::DescribeStatement);
    if !uses || owed.statement == 0 {
        return false;
    }
    match b::sqlstate(payload) {
        Some(SqlState::FEATURE_NOT_SUPPORTED) => {
            b::error_field(payload, b'R') == Some(RESULT_TYPE_CHECK)
        }
        Some(SqlState::INTERNAL_ERROR) => owed.request == Request::Bind,
        _ => false,
    }
}

/// After all statements were forgotten: those whose Parse was sent behind will be there.
fn remember_pipelined(backend: &mut Backend) {
    let parsed = backend.expect.iter().filter(|owed| {
        owed.request == Request::Parse && !matches!(owed.statement, 0 | UNNAMED | OWN_NAME)
    });
    for owed in parsed {
        backend.mirror.prepare(owed.statement, Arc::default());
    }
}

/// After an error: what the server skips did not happen. The mirror's changes are undone last to first.
fn skip(backend: &mut Backend, receiver: &mut impl Receiver) {
    let mut skipped = Vec::new();
    backend.expect.skip_to_sync(|owed| skipped.push(owed));
    for owed in skipped.iter().rev() {
        match owed.request {
            Request::Parse if owed.statement == UNNAMED => backend.mirror.unnamed = None,
            Request::DescribeStatement if owed.to == For::Shape => {
                backend.mirror.awaited_shapes.skip();
            }
            Request::Parse if owed.statement != 0 => backend.mirror.forget(owed.statement),
            Request::Query | Request::Execute if owed.changes() && owed.to != For::Probe => {
                backend.mirror.forget(owed.statement);
            }
            // It was to make room and is still there. The next use of the room closes another one.
            Request::Close if owed.to == For::Evict && owed.statement != 0 => {
                backend.mirror.prepare(owed.statement, Arc::default());
            }
            _ => {}
        }
    }
    for owed in skipped {
        receiver.skipped(owed);
    }
}

#[cfg(test)]
mod tests;
