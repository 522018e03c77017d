//! Answers that pgweir gives in the server's place, where they are due.

use std::task::{Context, Poll};

use super::session::{End, Session};
use crate::net::buffer::{give_storage, take_storage};
use crate::wire::backend as b;
use crate::wire::expect::Request;

impl Session {
    /// Puts the answers in place that pgweir gives itself and that are due at once.
    pub(super) fn emit_locals(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut emitted = false;
        while let Some(request) = self.due_local() {
            let mut answer = take_storage();
            self.put_local(request, &mut answer);
            if !self.holds_local_back(&answer) {
                self.outbox.push(&answer);
                emitted = true;
            }
            give_storage(answer);
        }
        if emitted {
            self.note_seen();
        }
        if emitted && let Poll::Ready(sent) = self.outbox.poll_send(&mut self.stream, cx) {
            sent?;
        }
        Ok(())
    }

    /// The answer that pgweir gives itself next, if its turn has come.
    fn due_local(&mut self) -> Option<Request> {
        let lease = self.lease.as_mut()?;
        if lease.passing.remaining > 0 {
            return None;
        }
        lease.expect.take_local()
    }

    /// An answer in the server's place.
    pub(super) fn put_local(&mut self, request: Request, out: &mut Vec<u8>) {
        if request == Request::DescribeStatement {
            let description = self.prepared.next_description();
            let messages = description.as_ref().and_then(|it| it.messages.as_deref());
            out.extend_from_slice(messages.unwrap_or_default());
        } else {
            debug_assert_eq!(request, Request::Close, "nothing else is answered here");
            self.names.confirm();
            self.give_up_rerun();
            out.extend_from_slice(&b::CLOSE_COMPLETE_FRAME);
        }
    }
}
