//! `currval` and `lastval`: nobody is told another client's number, and an application that reads its own keeps the
//! backend that has it (see `session::sequences`).

use std::sync::Arc;

use super::session::Session;
use crate::backend::connection::Backend;
use crate::net::buffer::Gather;
use crate::pool::Lease;
use crate::session::sequences::{Habit, Taken};
use crate::sql::known::Known;
use crate::sql::state::{Effect, PinReason};
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

const FORGET: &[u8] = b"DISCARD SEQUENCES";

/// What a session notes of sequences.
#[derive(Debug, Default)]
struct Noted {
    taken: Taken,
    /// What is known of the application, once it has written.
    habit: Option<Arc<Habit>>,
    /// It has named a sequence.
    by_name: bool,
}

/// The same. Boxed: a session that only reads notes nothing.
#[derive(Debug, Default)]
pub(super) struct Sequences(Option<Box<Noted>>);

impl Sequences {
    fn noted(&mut self) -> &mut Noted {
        self.0.get_or_insert_default()
    }

    fn taken(&self) -> Taken {
        self.0.as_ref().map_or(Taken::Nowhere, |noted| noted.taken)
    }

    fn is_by_name(&self) -> bool {
        self.0.as_ref().is_some_and(|noted| noted.by_name)
    }

    /// The application has another name.
    pub(super) fn rename(&mut self) {
        if let Some(noted) = &mut self.0 {
            noted.habit = None;
        }
    }
}

fn reads(known: &Known) -> bool {
    known.pins.contains(PinReason::SequenceState)
}

impl Session {
    fn habit(&mut self) -> &Arc<Habit> {
        let (entry, told, shared) = (&self.entry, &self.told, &self.shared);
        self.sequences.noted().habit.get_or_insert_with(|| {
            let name = told.get(b"application_name").unwrap_or_default();
            shared
                .applications
                .habit(&entry.database, &entry.user, name)
        })
    }

    fn has_foreign_numbers(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            let (session, taken) = (self.entry.serial(), self.sequences.taken());
            lease.mirror.numbers.are_foreign(session, taken, lease.id)
        })
    }

    /// Whether a statement, of which this is `known`, reads numbers and must wait until the backend has forgotten those of
    /// others: it is made to. The session keeps its backend by now.
    pub(super) fn awaits_own_numbers(
        &mut self,
        known: Option<&Known>,
        gather: &mut Gather,
    ) -> bool {
        let may_read = known.is_none_or(reads);
        if !may_read || !self.keeps_backend() || self.has_failed() || !self.has_foreign_numbers() {
            return false;
        }
        let is_answered = self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.expect.awaits_more());
        if is_answered {
            self.forget_numbers(gather);
        }
        self.hold_up(gather);
        true
    }

    /// The same of what is bound to.
    pub(super) fn bind_awaits_numbers(&mut self, statement: &[u8], gather: &mut Gather) -> bool {
        let known = self.names.get(statement).map(|it| &it.statement.known);
        let Some(known) = known.filter(|it| reads(it)).cloned() else {
            return false;
        };
        // If it may not be pinned it is refused in a moment.
        self.pin(known.pins, Some(&known)).is_none()
            && self.awaits_own_numbers(Some(&known), gather)
    }

    /// A statement is about to be sent that may take numbers or read them.
    pub(super) fn guard_sequences(&mut self, known: &Known, gather: &mut Gather) {
        if reads(known) {
            self.habit().learn();
        }
        let is_opaque = || known.class.effects().any(|it| *it == Effect::OpaqueCode);
        let takes = known.writes && known.runs_code;
        let matters = (takes && self.begins_to_read(known)) || is_opaque();
        // Behind data for a COPY it would be taken for more.
        if matters && !self.copies_in && !self.has_failed() && self.has_foreign_numbers() {
            self.forget_numbers(gather);
        }
        if known.runs_code {
            self.take_numbers(Some(known));
        }
    }

    /// Whether the session may read what it takes by a statement that is `known`: then it keeps its backend if it can.
    fn begins_to_read(&mut self, known: &Known) -> bool {
        let habit = Arc::clone(self.habit());
        habit.count();
        if habit.reads() {
            // If it can't be pinned it does without.
            drop(self.pin(PinReason::SequenceState.into(), Some(known)));
        }
        habit.reads() || habit.is_on_probation()
    }

    /// A statement is about to be sent that may take numbers; `None`: nothing is known of it.
    pub(super) fn take_numbers(&mut self, known: Option<&Known>) {
        let session = self.entry.serial();
        let Some(lease) = &mut self.lease else {
            return;
        };
        let is_new = lease.mirror.numbers.are_not_of(session);
        lease.mirror.numbers.advance(session);
        if known.is_some_and(|known| !known.writes) {
            return;
        }
        let noted = self.sequences.noted();
        noted.taken.advance(lease.id, is_new);
        noted.by_name |= known.is_some_and(|known| {
            let mut effects = known.class.effects();
            effects.any(|it| *it == Effect::SequenceAdvanced)
        });
    }

    /// Has the backend forget all numbers.
    fn forget_numbers(&mut self, gather: &mut Gather) {
        let session = self.entry.serial();
        let Some(lease) = &mut self.lease else {
            return;
        };
        lease.mirror.numbers.begin_forgetting(session);
        self.sequences.noted().taken = Taken::On(lease.id);
        if lease.expect.is_open() {
            self.run_own(FORGET, 0, For::Reparse, gather);
        } else {
            lease.mirror.unnamed = None;
            gather.own(|out| f::put_query(out, FORGET));
            self.owe(Owed::new(Request::Query, For::Evict));
        }
    }

    /// Whether the session is to get `backend` again, if nobody else needs it meanwhile, because it may read there what it
    /// has taken.
    pub(super) fn finds_numbers_again(&mut self, backend: &Backend) -> bool {
        self.sequences.is_by_name()
            && backend.mirror.numbers.are_of(self.entry.serial())
            && self.habit().is_on_probation()
    }

    /// The backend that was set aside for the session.
    pub(super) fn take_aside(&self) -> Option<Lease> {
        let serial = self.entry.serial();
        let is_by_name = self.sequences.is_by_name();
        is_by_name.then(|| self.pool.take_aside(serial)).flatten()
    }

    /// The session needs it no longer.
    pub(super) fn leave_aside(&self) {
        if self.sequences.is_by_name() {
            self.pool.leave_aside(self.entry.serial());
        }
    }
}
