//! LISTEN without a server connection of one's own: what a session listens on is heard by the listener that all sessions
//! of its database share (see [`crate::pool::listener`]).
//!
//! `LISTEN` and `UNLISTEN` run on the backend as the client sent them, so that the server has the last word on them, and
//! the backend is told to forget in the write that ends the transaction. [`Channels`] follows what the transaction
//! leaves.
//!
//! # Invariants
//! - The shared listener listens on a channel before the server is sent what may commit the `LISTEN`: a notification that is
//!   committed later reaches the client. What it hears before the question is answered is not kept.
//! - The client gets notifications only where the server could send them: ahead of a `ReadyForQuery` outside a
//!   transaction, and while it is idle.
//! - That `ReadyForQuery` is held until every notification committed before it is there, the session's own included.
//! - What was committed before a transaction began that stops listening is the client's: the listener is asked at its
//!   beginning, and nobody waits for that. (Not before an exchange without `BEGIN` that does so behind other statements.)
//! - What the backend itself says of a carried channel is dropped: the shared listener says it, too.
//! - Whether a `LISTEN` is carried is decided once, before it is sent, and holds until its transaction ends.
//! - While the session listens, an exchange is sent only once the one before is answered: each statement's outcome is
//!   known, and what stands behind a `ReadyForQuery` that is held waits with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::inbound::Frame;
use super::session::Session;
use crate::config::model::PoolMode;
use crate::net::buffer::Gather;
use crate::pool::Lease;
use crate::pool::listener::{Answer, Ask, Hearing};
use crate::session::channels::{CHANNELS_MAX, Channels};
use crate::session::statements::Named;
use crate::sql::known::Known;
use crate::sql::name::Name;
use crate::sql::state::{Effect, PinReason, PinSet};
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{Copy, For, Request};
use crate::wire::frontend as f;

/// What the shared listener was asked for. One thing at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Asked {
    #[default]
    Nothing,
    /// A statement waits for the answer, since then.
    ForStatement(Instant),
    /// The same, behind this many items that the client gets first.
    Passing(Answer, usize),
    /// The statement in front, if it is still the one that was asked for, may be sent.
    Answered(Answer),
    /// A `ReadyForQuery` waits for the answer.
    ForReady,
    /// The client's encoding has changed, and with it the listener; the client's messages wait, since then.
    ForMove(Instant),
}

/// What the listener must have done before a statement is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What the statement may have the session listen on.
    pub channels: BTreeSet<Name>,
    /// It may commit that: they must be heard.
    pub subscribes: bool,
}

/// A `ReadyForQuery` that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Until the listener has answered.
    Asking,
    /// Until these notifications are passed on.
    Passing(usize),
}

/// What a session that listens has more than others.
#[derive(Debug, Default)]
pub(super) struct Listening {
    pub(super) channels: Channels,
    pub(super) hearing: Option<Hearing>,
    /// The one before, of another encoding, until this one listens.
    pub(super) former: Option<Hearing>,
    /// What the shared listener hears for the session.
    pub(super) subscribed: BTreeSet<Name>,
    /// What the backend may listen on that it shall forget.
    pub(super) on_backend: BTreeSet<Name>,
    /// What the listener was asked for the statement in front.
    pub(super) asked_for: Wanted,
    /// It has been told to.
    pub(super) is_leaving: bool,
    pub(super) asked: Asked,
    /// No other listener is asked for before: that was in vain.
    pub(super) stays_until: Option<Instant>,
    pub(super) held: Option<Held>,
    /// What the statement under way is, and which of its statements is next to complete.
    pub(super) under_way: Option<(Followed, usize)>,
    /// Portals of statements that concern channels or transactions.
    pub(super) portals: Vec<(Box<[u8]>, Followed)>,
}

/// A statement whose outcome counts.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    known: Arc<Known>,
    /// What it listens on is to be heard by the shared listener; the session is not pinned for it.
    carried: bool,
}

/// Whether a statement may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// With these of its reasons to pin.
    Open(PinSet),
    /// The listener will wake the session, or the server's answers will.
    Shut,
}

pub(super) fn listens(known: &Known) -> impl Iterator<Item = &Name> {
    known.class.effects().filter_map(|effect| match effect {
        Effect::Listen(name) => Some(name),
        _ => None,
    })
}

/// Whether the server takes `name` for a channel, as it is and in any encoding that the session may have. The client may
/// change its encoding before the backend is told to forget: with other bytes that would be another channel.
fn is_channel(name: &Name) -> bool {
    let bytes = name.as_bytes();
    bytes.is_ascii() && !bytes.is_empty() && !bytes.contains(&0)
}

/// Whether `known` may have the session listen on less.
fn leaves(known: &Known) -> bool {
    known
        .class
        .effects()
        .any(|effect| matches!(effect, Effect::Unlisten(_) | Effect::DiscardAll))
}

/// Whether the outcome of `known` must be followed.
fn concerns(known: &Known) -> bool {
    let transaction = known.class.transaction;
    known.listens
        || leaves(known)
        || transaction.begins()
        || transaction.ends()
        || transaction.savepoints()
}

impl Listening {
    /// Whether the backend may listen on something for the session.
    pub(super) fn touches_backend(&self) -> bool {
        !self.on_backend.is_empty() || self.channels.is_pending() || self.under_way.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.channels.is_empty()
            && self.held.is_none()
            && self.asked == Asked::Nothing
            && !self.touches_backend()
            && self.portals.is_empty()
            && self.hearing.as_ref().is_none_or(|it| it.ear.is_empty())
    }

    pub(super) fn take_answer(&mut self) -> Option<(Answer, usize)> {
        self.hearing.as_ref()?.ear.take_answer()
    }

    /// A transaction has ended: hears no more what the session does not listen on any more. Of the first `count` items,
    /// tells how many are the client's.
    pub(super) fn leave_gone(&mut self, count: usize) -> usize {
        let (Some(hearing), channels) = (&self.hearing, &self.channels) else {
            return 0;
        };
        let gone = self.subscribed.difference(channels.committed());
        hearing.leave(gone);
        self.subscribed
            .retain(|name| channels.committed().contains(name));
        let is_heard = |channel: &[u8]| channels.listens_on(channel);
        hearing.ear.end_transaction(count, is_heard)
    }

    /// What was asked for a statement is wanted no more.
    pub(super) fn forget_asked(&mut self) {
        if matches!(self.asked, Asked::ForMove(_)) || self.held.is_some() {
            return;
        }
        self.asked = Asked::Nothing;
        let wanted = std::mem::take(&mut self.asked_for);
        if let Some(hearing) = &self.hearing {
            hearing.ear.forget_asked();
            hearing.leave(wanted.channels.difference(&self.subscribed));
        }
    }
}

impl Session {
    /// Whether the client's messages wait for the shared listener.
    pub(super) fn awaits_listener(&self) -> bool {
        self.listening.as_ref().is_some_and(|listening| {
            listening.held.is_some()
                || matches!(
                    listening.asked,
                    Asked::ForStatement(_)
                        | Asked::ForMove(_)
                        | Asked::ForReady
                        | Asked::Passing(..)
                )
        })
    }

    /// Whether what comes next must wait for the answer to the exchange sent last.
    pub(super) fn sends_one_by_one(&self) -> bool {
        self.listening.is_some()
            && self.lease.as_ref().is_some_and(|lease| {
                let last = lease.expect.iter().last();
                lease.expect.copy() != Copy::In
                    && last.is_some_and(|owed| {
                        matches!(
                            owed.request,
                            Request::Query | Request::Sync | Request::FunctionCall
                        ) && matches!(owed.to, For::Client | For::Refusal | For::Answered)
                    })
            })
    }

    /// Whether `known` may listen without a backend of its own.
    fn may_carry(&self, known: &Known) -> bool {
        let pool = &self.effective.pool;
        let carried = self
            .listening
            .as_ref()
            .map_or(0, |listening| listening.channels.prospective().len());
        pool.shared_listener
            && pool.pool_mode != PoolMode::Session
            && !self.is_on_replica()
            // Its backend listens already: what comes from two connections comes in no certain order.
            && !self.pins.contains(PinReason::Listen)
            && !known.class.is_unclassifiable()
            && listens(known).all(is_channel)
            && carried + listens(known).count() <= CHANNELS_MAX
    }

    /// A statement is about to be sent, by a simple query or, with `portal`, by a Bind.
    pub(super) fn gate(&mut self, known: &Arc<Known>, portal: Option<&[u8]>) -> Gate {
        let mut pins = known.pins;
        if self.listening.is_none() && !known.listens {
            return Gate::Open(pins);
        }
        let carries = known.listens && self.may_carry(known);
        if self.listening.is_none() && !carries {
            return Gate::Open(pins);
        }
        if self
            .lease
            .as_ref()
            .is_some_and(|it| it.expect.has_earlier())
        {
            self.held_up = true;
            return Gate::Shut;
        }
        self.listening.get_or_insert_default();
        let transaction = known.class.transaction;
        let commits = portal.is_none()
            && (transaction.ends() || !(self.in_transaction || transaction.begins()));
        let leaves = leaves(known) && self.is_outside();
        let Some(answer) = self.ask_before(carries.then_some(known), commits, leaves) else {
            return Gate::Shut;
        };
        let followed = Followed {
            known: Arc::clone(known),
            carried: carries && answer == Answer::Done,
        };
        if followed.carried {
            pins.remove(PinReason::Listen);
        }
        if transaction.begins() && self.is_outside() {
            self.mark_beginning();
        }
        let Some(listening) = &mut self.listening else {
            return Gate::Open(pins);
        };
        match portal {
            None => listening.under_way = Some((followed, 0)),
            Some(portal) => {
                listening.portals.retain(|(other, _)| **other != *portal);
                if concerns(known) {
                    listening.portals.push((portal.into(), followed));
                }
            }
        }
        Gate::Open(pins)
    }

    /// The same for a Bind of `named` to `portal`.
    pub(super) fn gate_bind(&mut self, named: Option<&Named<Arc<Known>>>, portal: &[u8]) -> Gate {
        named.map_or(Gate::Open(PinSet::EMPTY), |named| {
            self.gate(&named.statement.known, Some(portal))
        })
    }

    /// Whether the client is in no transaction, be it that of an exchange under way.
    pub(super) fn is_outside(&self) -> bool {
        let has_begun = |lease: &Lease| lease.expect.is_open() && self.bound.is_some();
        !self.in_transaction && !self.lease.as_ref().is_some_and(has_begun)
    }

    /// Whether `frame` of an extended exchange has to wait: for the answer to an Execute whose outcome counts, or for the
    /// shared listener. In the first case the server is asked for it.
    pub(super) fn gate_step(&mut self, frame: Frame<'_>, gather: &mut Gather) -> bool {
        if self.listening.is_none() || !matches!(frame.tag, f::EXECUTE | f::SYNC) {
            // A query behind it without a Sync would be credited with what completes it.
            let is_tracked = |it: &Listening| it.under_way.is_some() || frame.tag == f::QUERY;
            let waits = self.listening.as_deref().is_some_and(is_tracked) && self.owes_execute();
            if waits {
                self.hold_up(gather);
            }
            return waits;
        }
        let bound = (frame.tag == f::EXECUTE)
            .then(|| self.bound_to(frame.payload))
            .flatten();
        let is_tracked = self
            .listening
            .as_deref()
            .is_some_and(|it| it.under_way.is_some());
        if (bound.is_some() || is_tracked) && self.owes_execute() {
            self.hold_up(gather);
            return true;
        }
        let commits = match &bound {
            Some(bound) => bound.known.class.transaction.ends(),
            None => frame.tag == f::SYNC && !self.in_transaction,
        };
        let asks = commits
            && self
                .listening
                .as_deref()
                .is_some_and(|it| it.channels.is_pending());
        if asks && self.ask_before(None, true, false).is_none() {
            return true;
        }
        if let (Some(bound), Some(listening)) = (bound, &mut self.listening) {
            listening.under_way = Some((bound, 0));
        }
        false
    }

    /// What the portal of an Execute was bound to, if that counts.
    fn bound_to(&self, payload: &[u8]) -> Option<Followed> {
        let portal = payload.split(|&byte| byte == 0).next()?;
        let portals = &self.listening.as_ref()?.portals;
        let (_, bound) = portals.iter().find(|(name, _)| **name == *portal)?;
        Some(bound.clone())
    }

    /// Whether the answer to an Execute is to come before the Sync. A server that skips what it is sent gives none.
    fn owes_execute(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            !lease.expect.is_skipping()
                && lease.expect.iter().any(|owed| {
                    owed.request == Request::Execute
                        && matches!(owed.to, For::Client | For::Refusal)
                })
        })
    }
}

/// What the server says.
impl Session {
    /// The client's statement, or one of them, is completed.
    pub(super) fn completed(&mut self, request: Request, payload: &[u8]) {
        let Some(listening) = &mut self.listening else {
            return;
        };
        let Some((followed, next)) = &mut listening.under_way else {
            return;
        };
        let tag = payload.strip_suffix(&[0]).unwrap_or(payload);
        if let Some(statement) = followed.known.class.statements.get(*next) {
            listening
                .channels
                .complete(statement, followed.carried, tag);
        }
        *next += 1;
        if request == Request::Execute {
            listening.under_way = None;
        }
    }

    /// The client's statement has failed, or is skipped.
    pub(super) fn not_completed(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.channels.fail();
            listening.under_way = None;
        }
    }

    /// Whether a notification that the backend sends is the shared listener's to pass on.
    pub(super) fn hears_elsewhere(&self, payload: &[u8]) -> bool {
        let Some(listening) = &self.listening else {
            return false;
        };
        b::notification_channel(payload).is_some_and(|channel| {
            let is_it = |name: &Name| name.as_bytes() == channel;
            listening.subscribed.iter().any(is_it)
        })
    }

    /// The client's exchange is answered. True if its `ReadyForQuery` is held.
    pub(super) fn is_ready(&mut self, status: TransactionStatus) -> bool {
        let Some(listening) = self.listening.as_deref_mut() else {
            return false;
        };
        listening.under_way = None;
        listening.channels.ready(status);
        if status != TransactionStatus::Idle {
            return false;
        }
        listening.portals = Vec::new();
        let committed = listening.channels.committed();
        let own = !committed.is_subset(&listening.subscribed);
        // What could not be carried is the backend's, which the session keeps.
        listening.channels.keep_only(&listening.subscribed);
        if !listening.subscribed.is_empty()
            && let Some(hearing) = &listening.hearing
        {
            listening.held = Some(Held::Asking);
            listening.asked = Asked::ForReady;
            hearing.ask(Ask::Fence);
        }
        let is_held = listening.held.is_some();
        if own {
            self.set_pins(self.pins.union(PinReason::Listen.into()));
        }
        is_held
    }
}
