//! What the shared listener has for a session: when it is passed on, and how (see [`super::listening`]).

use std::task::{Context, Poll};

use super::listening::{Asked, Held};
use super::reply;
use super::session::{End, Phase, Session};
use crate::error::{Report, Severity, SqlState};
use crate::net::buffer::Outbox;
use crate::pool::listener::{Answer, Ask, EAR_BYTES_MAX, Hearing, Item};
use crate::session::channels::{Channels, PENDING_MAX};
use crate::wire::limits::OUTBOX_MAX;

impl Session {
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
        if listening.channels.is_overfull() {
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
                self.take_answer(answer, before)?;
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
    fn take_answer(&mut self, answer: Answer, before: usize) -> Result<(), End> {
        let is_outside = self.is_outside();
        let Some(listening) = self.listening.as_deref_mut() else {
            return Ok(());
        };
        match std::mem::take(&mut listening.asked) {
            Asked::ForStatement => {
                let subscribes = listening.asked_for.subscribes;
                if let Some(hearing) = &listening.hearing {
                    if is_outside {
                        let items = hearing.ear.take(before, usize::MAX);
                        pass(Some(&listening.channels), items, &mut self.outbox);
                    } else if subscribes {
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
                listening.asked = Asked::Answered(answer);
            }
            Asked::ForReady => {
                let due = listening.leave_gone(before);
                listening.held = Some(Held::Passing(due));
            }
            Asked::ForMove if answer == Answer::Done => {
                reply::report(&mut self.outbox, &missed());
            }
            Asked::ForMove => return Err(nowhere_to_listen()),
            Asked::Nothing | Asked::Answered(_) => {}
        }
        Ok(())
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
        let mut due = match listening.held {
            Some(Held::Asking) => return Ok(false),
            Some(Held::Passing(due)) => due,
            None if is_idle && listening.asked == Asked::Nothing => hearing.ear.len(),
            None => return Ok(false),
        };
        if self.outbox.len() >= OUTBOX_MAX || (due == 0 && listening.held.is_none()) {
            return Ok(false);
        }
        let room = OUTBOX_MAX - self.outbox.len();
        let items = hearing.ear.take(due, room);
        due -= items.len();
        // Before a `ReadyForQuery` they are those chosen at the end of the transaction.
        let channels = listening.held.is_none().then_some(&listening.channels);
        pass(channels, items, &mut self.outbox);
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

    /// The server sends notifications in the encoding of the connection that listens.
    fn follow_encoding(&mut self) {
        let encoding = self.told.get(b"client_encoding").unwrap_or_default();
        let Some(listening) = &mut self.listening else {
            return;
        };
        let is_same = |it: &Hearing| it.encoding() == encoding;
        if listening.asked != Asked::Nothing
            || listening.subscribed.is_empty()
            || listening.hearing.as_ref().is_none_or(is_same)
        {
            return;
        }
        listening.asked = Asked::ForMove;
        listening.hearing = None;
        let channels = listening.subscribed.clone();
        self.join_listener();
        if let Some(hearing) = self.listening.as_ref().and_then(|it| it.hearing.as_ref()) {
            hearing.ask(Ask::Subscribe(channels));
        }
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

/// Sends the client what is for it: all, or what `channels` listen on.
fn pass(channels: Option<&Channels>, items: Vec<Item>, outbox: &mut Outbox) {
    let is_heard = |channel: &[u8]| channels.is_none_or(|it| it.listens_on(channel));
    for item in items {
        match item {
            Item::Notification(heard) if is_heard(&heard.channel) => {
                outbox.push(&heard.frame);
            }
            Item::Notification(_) | Item::Begun => {}
            Item::Missed => reply::report(outbox, &missed()),
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

fn nowhere_to_listen() -> End {
    let report = Report::fatal(
        SqlState::CONNECTION_FAILURE,
        "could not listen with the new client_encoding",
    );
    End::Fatal(Box::new(report))
}
