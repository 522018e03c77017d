//! What the shared listener has for a session: when it is passed on, and how (see [`super::listening`]).

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::listening::{Asked, Held};
use super::reply;
use super::session::{End, Phase, Session};
use crate::error::{Report, Severity, SqlState};
use crate::net::buffer::Outbox;
use crate::pool::listener::{Answer, EAR_BYTES_MAX, Item};
use crate::session::channels::{Channels, PENDING_MAX};
use crate::wire::frame;
use crate::wire::limits::OUTBOX_MAX;

/// How long the client's messages wait for an answer. A statement, which holds its backend, goes on as if nothing could
/// listen for it; a client with another encoding stays with its listener.
const LIMIT: Duration = Duration::from_secs(5);

/// So many times what a move has taken in vain passes until the next one.
const STAY: u32 = 15;

impl Session {
    /// When the client's messages have waited for long enough.
    pub(super) fn does_without_listener_at(&self) -> Option<Instant> {
        match self.listening.as_ref()?.asked {
            Asked::ForStatement(since) | Asked::ForMove(since) => Some(since + LIMIT),
            _ => None,
        }
    }

    /// They wait no more.
    pub(super) fn do_without_listener(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        match &mut self.listening {
            Some(listening) if matches!(listening.asked, Asked::ForMove(_)) => {
                self.hear(Answer::Unavailable, 0);
            }
            Some(listening) => {
                let wanted = listening.asked_for.clone();
                listening.forget_asked();
                listening.asked = Asked::Answered(Answer::Unavailable);
                listening.asked_for = wanted;
            }
            None => {}
        }
        self.process_inbox(cx)
    }

    /// Takes what the shared listener has for the session and passes it on if it is time.
    pub(super) fn poll_listening(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let is_amid_message = self.is_amid_message();
        let Some(listening) = self.listening.as_deref_mut() else {
            return Ok(false);
        };
        // What the server says goes on in the next turn.
        if is_amid_message {
            return Ok(false);
        }
        if listening.channels.is_overfull() || listening.portals.len() > PENDING_MAX {
            return Err(too_many_statements());
        }
        let has_news = listening
            .hearing
            .as_ref()
            .is_some_and(|it| it.ear.has_news());
        let mut moved = false;
        if has_news {
            let hearing = listening.hearing.as_ref();
            if hearing.is_some_and(|it| it.ear.has_overflowed()) {
                return Err(too_slow());
            }
            if let Some((answer, before)) = listening.take_answer() {
                moved = true;
                self.hear(answer, before);
            }
        }
        moved |= self.pass_notifications(cx)?;
        if moved {
            self.process_inbox(cx)?;
        }
        if self.listening.as_ref().is_some_and(|it| it.is_over()) {
            self.listening = None;
        }
        Ok(moved)
    }

    /// `before` notifications came before the answer.
    fn hear(&mut self, answer: Answer, before: usize) {
        let is_outside = self.is_outside();
        let Some(listening) = self.listening.as_deref_mut() else {
            return;
        };
        match std::mem::take(&mut listening.asked) {
            Asked::ForStatement(_) => {
                let subscribes = listening.asked_for.subscribes;
                listening.asked = Asked::Answered(answer);
                if let Some(hearing) = &listening.hearing {
                    if is_outside && before > 0 {
                        listening.asked = Asked::Passing(answer, before);
                    } else if subscribes && !is_outside {
                        // A text that ended one transaction and listened in the next has subscribed before.
                        let committed = &listening.channels;
                        let keeps = |channel: &[u8]| committed.listens_on(channel);
                        hearing.ear.drop_first(before, keeps);
                    }
                }
                if subscribes && answer == Answer::Done {
                    let channels = &listening.asked_for.channels;
                    listening.on_backend.extend(channels.iter().cloned());
                    listening.subscribed.extend(channels.iter().cloned());
                }
            }
            Asked::ForReady => {
                let due = listening.leave_gone(before);
                listening.held = Some(Held::Passing(due));
            }
            Asked::ForMove(_) if answer == Answer::Done => {
                listening.former = None;
                reply::report(&mut self.outbox, &missed());
            }
            // It is tried again when the client is ready, at some later time.
            Asked::ForMove(since) => {
                listening.hearing = listening.former.take();
                let took = self.now.saturating_duration_since(since);
                listening.stays_until = Some(self.now + took * STAY);
            }
            Asked::Nothing | Asked::Answered(_) | Asked::Passing(..) => {}
        }
    }

    /// Whether the client is where the server would send it notifications.
    fn is_idle_for_client(&self) -> bool {
        let is_at_rest = match &self.lease {
            None => self.phase == Phase::Idle,
            Some(lease) => self.phase == Phase::Active && lease.is_clean() && !self.in_transaction,
        };
        is_at_rest && !self.skipping && self.dropping == 0
    }

    fn pass_notifications(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let is_idle = self.is_idle_for_client();
        let Some(listening) = self.listening.as_deref_mut() else {
            return Ok(false);
        };
        let Some(hearing) = &listening.hearing else {
            return Ok(false);
        };
        let mut due = match (listening.held, listening.asked) {
            (Some(Held::Passing(due)), _) | (None, Asked::Passing(_, due)) => due,
            (None, Asked::Nothing) if is_idle => hearing.ear.len(),
            _ => return Ok(false),
        };
        if self.outbox.len() >= OUTBOX_MAX || (due == 0 && listening.held.is_none()) {
            return Ok(false);
        }
        let room = OUTBOX_MAX - self.outbox.len();
        let items = hearing.ear.take(due, room);
        due -= items.len();
        // Before a `ReadyForQuery` they are those chosen at the end of the transaction.
        let channels = listening.held.is_none().then_some(&listening.channels);
        let encoding = self.told.get(b"client_encoding").unwrap_or_default();
        let is_foreign = hearing.encoding() != encoding;
        pass(channels, items, is_foreign, &mut self.outbox);
        if let Asked::Passing(answer, _) = listening.asked {
            listening.asked = match due {
                0 => Asked::Answered(answer),
                _ => Asked::Passing(answer, due),
            };
        }
        if listening.held.is_some() {
            listening.held = Some(Held::Passing(due));
            if due == 0 {
                listening.held = None;
                // From here on the client is the one who is awaited.
                self.since = self.now;
                reply::ready(&mut self.outbox);
            }
        }
        if due == 0 {
            self.follow_encoding();
        }
        if let Poll::Ready(sent) = self.outbox.poll_send(&mut self.stream, cx) {
            sent?;
        }
        Ok(true)
    }

    /// What was sent is taken back, to be sent again; true if the backend may listen on something.
    pub(super) fn take_back_listening(&mut self) -> bool {
        let Some(listening) = &mut self.listening else {
            return false;
        };
        let touches = listening.touches_backend();
        listening.under_way = None;
        listening.is_leaving = false;
        listening.held = None;
        listening.portals = Vec::new();
        listening.channels.take_back();
        listening.forget_asked();
        touches
    }

    /// The backend is another session's from here on, or gone.
    pub(super) fn part_with_channels(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.on_backend.clear();
        }
    }
}

/// Sends the client what is for it: all, or what `channels` listen on. What is in a foreign encoding it can't read.
fn pass(channels: Option<&Channels>, items: Vec<Item>, is_foreign: bool, outbox: &mut Outbox) {
    let is_heard = |channel: &[u8]| channels.is_none_or(|it| it.listens_on(channel));
    // Behind the sender's process id.
    let is_ascii = |frame: &[u8]| frame.get(frame::HEADER + 4..).is_some_and(<[u8]>::is_ascii);
    for item in items {
        match item {
            Item::Notification(heard) if !is_heard(&heard.channel) => {}
            Item::Notification(heard) if !is_foreign || is_ascii(&heard.frame) => {
                outbox.push(&heard.frame);
            }
            Item::Begun => {}
            Item::Notification(_) | Item::Missed => reply::report(outbox, &missed()),
        }
    }
}

fn missed() -> Report {
    Report::new(
        Severity::Notice,
        SqlState::SUCCESSFUL_COMPLETION,
        "notifications may have been missed",
    )
    .detail("The server connection that listens for this session was replaced.")
}

fn too_slow() -> End {
    let report = Report::fatal(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "terminating connection because it does not take its notifications",
    )
    .detail(format!(
        "More than {EAR_BYTES_MAX} bytes of notifications waited for this client."
    ))
    .hint("Read from the connection while it listens, and keep its transactions short.");
    End::Fatal(Box::new(report))
}

fn too_many_statements() -> End {
    let report = Report::fatal(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "too many LISTEN, UNLISTEN and SAVEPOINT in one transaction",
    )
    .detail(format!("The limit is {PENDING_MAX}."));
    End::Fatal(Box::new(report))
}
