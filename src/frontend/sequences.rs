//! `currval` and `lastval`: nobody is told another client's number, and an application that reads its own keeps the
//! backend that has it (see `session::sequences`).

use std::sync::Arc;
use std::time::Duration;

use super::session::{Phase, Session};
use crate::backend::connection::Backend;
use crate::config::model::{OnSessionState, PoolMode};
use crate::net::buffer::Gather;
use crate::session::sequences::{self, Habit, Taken};
use crate::sql::known::Known;
use crate::sql::state::PinReason;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

/// How long a session on probation keeps its backend while its client says nothing.
pub(super) const PROBATION_IDLE: Duration = Duration::from_secs(2);

const FORGET: &[u8] = b"DISCARD SEQUENCES";

/// What a session notes of sequences.
#[derive(Debug, Default)]
struct Noted {
    taken: Taken,
    /// What is known of the application, once it has written.
    habit: Option<Arc<Habit>>,
    /// The session is pinned only because nobody knows yet whether its application reads.
    on_probation: bool,
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

    fn is_on_probation(&self) -> bool {
        self.0.as_ref().is_some_and(|noted| noted.on_probation)
    }

    /// Ends the probation; false if there was none.
    fn end_probation(&mut self) -> bool {
        let noted = self.0.as_mut();
        noted.is_some_and(|noted| std::mem::take(&mut noted.on_probation))
    }

    /// The application has another name.
    pub(super) fn rename(&mut self) {
        if let Some(noted) = &mut self.0 {
            noted.habit = None;
        }
    }

    /// `DISCARD ALL` succeeded, or the backend is gone.
    pub(super) fn forget(&mut self) {
        if let Some(noted) = &mut self.0 {
            noted.taken = Taken::Nowhere;
        }
    }
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

    /// Whether the backend's numbers have to be forgotten before a statement that is `known`, and whether that is so can
    /// only be told once the answers to what was sent are in.
    pub(super) fn waits_for_numbers(&mut self, known: &Known) -> bool {
        let matters = self.reads_numbers(known) || (known.takes_numbers && self.begins_to_keep());
        matters && self.has_foreign_numbers() && !self.is_answered()
    }

    /// The same of what is bound to.
    pub(super) fn bind_waits_for_numbers(&mut self, statement: &[u8]) -> bool {
        let known = self.names.get(statement).map(|it| &it.statement.known);
        let known = known
            .filter(|it| it.takes_numbers || self.reads_numbers(it))
            .cloned();
        known.is_some_and(|known| self.waits_for_numbers(&known))
    }

    fn reads_numbers(&self, known: &Known) -> bool {
        known.pins.contains(PinReason::SequenceState)
    }

    fn has_foreign_numbers(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            let (client, taken) = (self.entry.pid.0, self.sequences.taken());
            lease.mirror.numbers.are_foreign(client, taken, lease.id)
        })
    }

    /// Whether the session is to keep its backend from its first write on, and does not yet.
    fn begins_to_keep(&mut self) -> bool {
        let pool = &self.effective.pool;
        if self.pins.contains(PinReason::SequenceState)
            || pool.pool_mode != PoolMode::Transaction
            || pool.on_session_state == OnSessionState::Reject
        {
            return false;
        }
        let is_single = self.routes.is_none();
        let habit = self.habit();
        habit.reads() || (is_single && habit.is_on_probation())
    }

    /// A statement is about to be sent that may take numbers or read them.
    pub(super) fn guard_sequences(&mut self, known: &Known, gather: &mut Gather) {
        let reads = self.reads_numbers(known);
        if !reads && !known.takes_numbers {
            return;
        }
        if reads {
            self.habit().learn();
            self.sequences.end_probation();
            self.forget_foreign(gather);
        } else if self.begins_to_keep() && self.keep_numbers(known) {
            self.forget_foreign(gather);
        }
        if known.takes_numbers {
            self.habit().count();
            self.take_numbers();
        }
    }

    /// A statement is about to be sent that may take numbers and read them, and nothing else is known of it.
    pub(super) fn guard_unread(&mut self, gather: &mut Gather) {
        if self.is_answered() {
            self.forget_foreign(gather);
        }
        self.take_numbers();
    }

    fn take_numbers(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.mirror.numbers.advance(self.entry.pid.0);
            self.sequences.noted().taken.advance(lease.id);
        }
    }

    /// Pins the session for the numbers that it may take and read. False if it can't be: then it does without.
    fn keep_numbers(&mut self, known: &Known) -> bool {
        let pins = PinReason::SequenceState.into();
        if self.habit().reads() {
            return self.pin(pins, Some(known)).is_none();
        }
        if !self.pins.is_empty() {
            return true;
        }
        // Half of the pool is for those that are known not to need it.
        let max = &self.effective.pool;
        let limit = max.max_pinned.of(max.max_size).min(max.max_size / 2);
        if !self.list_pin(pins, Some(known), limit) {
            return false;
        }
        self.sequences.noted().on_probation = true;
        self.set_pins(pins);
        true
    }

    /// Has the backend forget numbers that are not the session's, or not all of it.
    fn forget_foreign(&mut self, gather: &mut Gather) {
        let (client, failed) = (self.entry.pid.0, self.has_failed());
        let Some(lease) = self.lease.as_mut().filter(|_| !failed) else {
            return;
        };
        let backend = lease.id;
        let (numbers, taken) = (&mut lease.mirror.numbers, &mut self.sequences.noted().taken);
        if !sequences::begin(numbers, taken, client, backend) {
            return;
        }
        let is_open = self.lease.as_ref().is_some_and(|it| it.expect.is_open());
        if is_open {
            self.run_own(FORGET, 0, For::Reparse, gather);
        } else {
            gather.own(|out| f::put_query(out, FORGET));
            self.owe(Owed::new(Request::Query, For::Evict));
        }
        if let Some(lease) = self.lease.as_mut().filter(|_| !is_open) {
            lease.mirror.unnamed = None;
        }
    }

    /// Whether the session keeps its backend for nothing but its application's probation.
    pub(super) fn is_on_probation(&self) -> bool {
        self.sequences.is_on_probation()
    }

    /// The probation of the session's application is over, or the session has kept its backend for long enough.
    pub(super) fn end_probation(&mut self, is_over: bool) {
        if !self.is_on_probation() || !(is_over || !self.habit().is_on_probation()) {
            return;
        }
        self.sequences.end_probation();
        if !self.habit().reads() {
            self.set_pins(self.pins.without(PinReason::SequenceState.into()));
        }
    }

    /// Whether the session waits for its client and keeps `backend`, in which nothing is under way, for nothing but its
    /// application's probation.
    pub(super) fn may_lose(&self, backend: &Backend) -> bool {
        self.is_on_probation() && !self.in_transaction && backend.expect.is_at_rest()
    }

    /// Does without a backend that is lost and was kept for the probation only. False if it was not.
    pub(super) fn does_without(&mut self) -> bool {
        if !self
            .lease
            .as_ref()
            .is_some_and(|lease| self.may_lose(lease))
        {
            return false;
        }
        self.end_probation(true);
        self.sequences.forget();
        if !self.pins.is_empty() {
            return false;
        }
        self.drop_backend();
        self.bound = None;
        self.names.forget_retired();
        self.enter(Phase::Idle);
        true
    }

    /// The session is about to be pinned for something that is there: it is not on probation any more.
    pub(super) fn drop_probation(&mut self) {
        if self.sequences.end_probation() {
            self.set_pins(self.pins.without(PinReason::SequenceState.into()));
        }
    }
}
