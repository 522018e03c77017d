//! One message at a time off a stream, and not a byte more: for the dialogue before and during login.
//!
//! # Why
//!
//! Two reads a message cost two syscalls, but nothing is ever buffered here, so the relay can take the stream over
//! after `ReadyForQuery`, and nothing sent in plain text can be taken for part of what came over TLS
//! (CVE-2021-23214, CVE-2021-23222). Relaying has its own buffers.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A message: its type byte and what follows the length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Frame {
    /// The message as it came.
    pub fn to_bytes(&self) -> Vec<u8> {
        message(self.tag, &[&self.body])
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side closed the connection, between messages or inside one.
    #[error("the connection was closed")]
    Closed,
    #[error("invalid message length {length} of message type {tag:?}")]
    Length { tag: char, length: u32 },
}

/// Reads one message with a body of at most `max_body` bytes.
///
/// Not cancel safe: a message read in part is lost, and the stream with it.
pub async fn read_frame<S>(stream: &mut S, max_body: usize) -> Result<Frame, FrameError>
where
    S: AsyncRead + Unpin,
{
    let mut header = [0; 5];
    read_exact(stream, &mut header).await?;
    let [tag, length @ ..] = header;
    let length = u32::from_be_bytes(length);
    let body_length = length
        .checked_sub(4)
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| *length <= max_body)
        .ok_or(FrameError::Length {
            tag: char::from(tag),
            length,
        })?;
    let mut body = vec![0; body_length];
    read_exact(stream, &mut body).await?;
    Ok(Frame { tag, body })
}

/// The bytes of a message whose body is these parts.
pub fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(untagged(parts));
    bytes
}

/// A packet without type byte, as `StartupMessage` and `SSLRequest` are.
pub fn untagged(parts: &[&[u8]]) -> Vec<u8> {
    let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    // Only messages composed here come this way, bounded by what a client may send at startup.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

async fn read_exact<S>(stream: &mut S, into: &mut [u8]) -> Result<(), FrameError>
where
    S: AsyncRead + Unpin,
{
    match stream.read_exact(into).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FrameError::Closed),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn read(bytes: &[u8], max_body: usize) -> (Result<Frame, FrameError>, usize) {
        let mut rest = bytes;
        let frame = read_frame(&mut rest, max_body).await;
        (frame, rest.len())
    }

    #[tokio::test]
    async fn nothing_after_the_message_is_read() {
        let (frame, left) = read(b"Z\0\0\0\x05Inext", 100).await;
        assert_eq!(
            frame.unwrap(),
            Frame {
                tag: b'Z',
                body: b"I".to_vec()
            }
        );
        assert_eq!(left, 4);
    }

    #[tokio::test]
    async fn bad_lengths_are_refused_before_memory_is_taken() {
        for length in [0u32, 3, 105, u32::MAX] {
            let mut bytes = vec![b'p'];
            bytes.extend(length.to_be_bytes());
            let (frame, _) = read(&bytes, 100).await;
            assert!(
                matches!(frame, Err(FrameError::Length { .. })),
                "{length}: {frame:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_message_cut_short_is_a_closed_connection() {
        let whole = message(b'p', &[b"secret", b"\0"]);
        for cut in 0..whole.len() {
            let (frame, _) = read(&whole[..cut], 100).await;
            assert!(matches!(frame, Err(FrameError::Closed)), "{cut}: {frame:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_framed_is_read_back(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..50)) {
            let bytes = message(tag, &[&body]);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (frame, left) = runtime.block_on(read(&bytes, 50));
            let frame = frame.unwrap();
            prop_assert_eq!(left, 0);
            prop_assert_eq!(frame.to_bytes(), bytes);
            prop_assert_eq!((frame.tag, frame.body), (tag, body));
        }
    }
}
