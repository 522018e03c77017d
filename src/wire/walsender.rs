//! The dialogue of a replication connection, as far as it tells when the connection may be ended.
//!
//! Such a connection is relayed byte for byte. What is looked at is where one of the server's messages ends, and which
//! of them begin and end a command: a client may be told something between two messages, and nothing is cut short
//! while the server streams, which goes on where it was, or waits for a command.

use super::backend as b;
use super::frame::{FrameError, HEADER, Header};

/// A message's head, and the status byte of `ReadyForQuery`.
const SEEN: usize = HEADER + 1;

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It waits for a command, outside a transaction.
    Nothing,
    /// A command is under way, or a transaction.
    Command,
    /// `START_REPLICATION`: the client can begin again where it was.
    Streaming,
}

/// See the module.
#[derive(Debug)]
pub struct Dialogue {
    doing: Doing,
    /// Beginning of a message, as far as it has come.
    seen: [u8; SEEN],
    seen_len: usize,
    /// Bytes still to come of a message whose beginning was seen.
    rest: usize,
}

impl Dialogue {
    /// After login.
    pub fn new() -> Self {
        Self {
            doing: Doing::Nothing,
            seen: [0; SEEN],
            seen_len: 0,
            rest: 0,
        }
    }

    /// The server has sent `bytes`.
    pub fn server_sent(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let count = self.rest.min(bytes.len());
                self.rest -= count;
                bytes = &bytes[count..];
                continue;
            }
            self.seen[self.seen_len] = bytes[0];
            self.seen_len += 1;
            bytes = &bytes[1..];
            self.look()?;
        }
        Ok(())
    }

    /// Looks at the beginning of a message, once enough of it is there.
    fn look(&mut self) -> Result<(), FrameError> {
        let seen = &self.seen[..self.seen_len];
        let Some(header) = Header::peek(seen, i32::MAX as usize)? else {
            return Ok(());
        };
        if header.tag == b::READY_FOR_QUERY && seen.len() < header.len.min(SEEN) {
            return Ok(());
        }
        match header.tag {
            b::COPY_BOTH_RESPONSE => self.doing = Doing::Streaming,
            b::READY_FOR_QUERY if seen.last() == Some(&b'I') => self.doing = Doing::Nothing,
            b::READY_FOR_QUERY => self.doing = Doing::Command,
            _ => {}
        }
        self.rest = header.len.saturating_sub(seen.len());
        self.seen_len = 0;
        Ok(())
    }

    /// The client has sent something.
    pub fn client_sent(&mut self) {
        if self.doing == Doing::Nothing {
            self.doing = Doing::Command;
        }
    }

    /// Whether the server's last message was sent to its end.
    pub fn is_between_messages(&self) -> bool {
        self.rest == 0 && self.seen_len == 0
    }

    /// Whether nothing would be cut short by ending here.
    pub fn may_end(&self) -> bool {
        self.doing != Doing::Command
    }
}

impl Default for Dialogue {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::put;

    fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, tag, |out| out.extend_from_slice(payload));
        out
    }

    fn after(dialogue: &mut Dialogue, tag: u8, payload: &[u8]) -> bool {
        dialogue.server_sent(&message(tag, payload)).unwrap();
        assert!(dialogue.is_between_messages());
        dialogue.may_end()
    }

    #[test]
    fn a_command_and_a_transaction_are_not_cut_short_and_streaming_is() {
        let mut dialogue = Dialogue::new();
        assert!(dialogue.may_end());
        dialogue.client_sent();
        assert!(!dialogue.may_end());
        assert!(!after(&mut dialogue, b'T', b"\0\0"));
        assert!(after(&mut dialogue, b'Z', b"I"));
        dialogue.client_sent();
        assert!(!after(&mut dialogue, b'Z', b"T"));
        assert!(after(&mut dialogue, b'Z', b"I"));
        dialogue.client_sent();
        assert!(after(&mut dialogue, b'W', b"\0\0\0"));
        dialogue.client_sent();
        assert!(after(&mut dialogue, b'd', b"w"));
    }

    #[test]
    fn a_length_that_cannot_be_is_an_error() {
        assert!(Dialogue::new().server_sent(b"Z\0\0\0\x03").is_err());
    }

    proptest! {
        #[test]
        fn messages_are_followed_however_they_are_cut(
            messages in prop::collection::vec((prop::sample::select(&b"dDZWTC"[..]), prop::collection::vec(any::<u8>(), 1..9)), 1..9),
            cuts in prop::collection::vec(1..7_usize, 1..40),
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|(tag, payload)| message(*tag, payload)).collect();
            let ends: Vec<usize> = messages
                .iter()
                .scan(0, |at, (_, payload)| {
                    *at += HEADER + payload.len();
                    Some(*at)
                })
                .collect();
            let mut whole = Dialogue::new();
            whole.server_sent(&bytes).unwrap();
            let mut pieces = Dialogue::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                pieces.server_sent(&bytes[at..end]).unwrap();
                at = end;
                prop_assert_eq!(pieces.is_between_messages(), ends.contains(&at));
                if at == bytes.len() {
                    break;
                }
            }
            prop_assert_eq!(pieces.doing, whole.doing);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Dialogue::new().server_sent(&bytes);
        }
    }
}
