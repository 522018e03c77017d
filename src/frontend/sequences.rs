//! `currval` and `lastval`: nobody is told another client's number, and an application that reads its own finds it (see
//! `session::sequences`).
//!
//! # Where a backend is made to forget
//! `DISCARD SEQUENCES` is a query: it takes a transaction's snapshot, and what must have a transaction to itself can't
//! stand behind it in one. So outside a transaction block it goes ahead of the exchange, unless the statement is one that
//! has a plan. Its failure ends the session there, and a cancel request that comes meanwhile is kept for the client's
//! statement. Inside an exchange it is part of it: if it is skipped, so is what stands behind.
//!
//! # What is left
//! Inside a transaction nothing is forgotten ahead of a text that begins with `LOCK` or `SET TRANSACTION`.

use std::sync::Arc;
use std::time::Duration;

use super::session::Session;
use crate::error::SqlState;
use crate::net::buffer::Gather;
use crate::pool::Lease;
use crate::session::sequences::{Habit, PATIENCE, Taken};
use crate::sql::classify::StatementKind as Kind;
use crate::sql::known::Known;
use crate::sql::state::{Effect, PinReason};
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{Copy, For, Owed, Request};
use crate::wire::frontend as f;

const FORGET: &[u8] = b"DISCARD SEQUENCES";

/// What the server says that has no number to tell.
const NO_NUMBER: SqlState = SqlState(*b"55000");

/// How long an idle session is pinned that may read what it has taken, but has not read yet.
const HABIT_PIN: Duration = Duration::from_millis(200);

/// How long a backend is set aside for a session that names sequences, and for one of an application that reads.
const ASIDE: Duration = Duration::from_secs(2);
const ASIDE_OF_READERS: Duration = Duration::from_secs(60);

/// A `DISCARD SEQUENCES` that is not answered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Forgetting {
    #[default]
    None,
    /// Ahead of the exchange.
    Ahead,
    /// In the exchange under way.
    Within,
    /// In one before: it may have been skipped there.
    Before,
}

/// What a session notes of sequences.
#[derive(Debug, Default)]
struct Noted {
    taken: Taken,
    /// What is known of the application, once it has written.
    habit: Option<Arc<Habit>>,
    /// Counts while something is owed.
    forgetting: Forgetting,
    /// Writes since the session may have read.
    unread: u32,
    /// It has named a sequence.
    by_name: bool,
    /// It is pinned for what its application does.
    by_habit: bool,
    /// A backend was set aside for it.
    has_aside: bool,
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

    /// The application has another name.
    pub(super) fn rename(&mut self) {
        if let Some(noted) = &mut self.0 {
            noted.habit = None;
        }
    }

    /// The exchange under way ends with what is sent now.
    pub(super) fn next_exchange(&mut self) {
        if let Some(noted) = &mut self.0
            && noted.forgetting == Forgetting::Within
        {
            noted.forgetting = Forgetting::Before;
        }
    }

    /// The session has another backend.
    pub(super) fn begin(&mut self) {
        if let Some(noted) = &mut self.0 {
            noted.forgetting = Forgetting::None;
        }
    }
}

fn reads(known: &Known) -> bool {
    known.pins.contains(PinReason::SequenceState)
}

fn takes(known: &Known) -> bool {
    known.writes && known.runs_code
}

fn is_opaque(known: &Known) -> bool {
    !known.is_plain && known.class.effects().any(|it| *it == Effect::OpaqueCode)
}

/// Whether a text is to find its transaction without a snapshot.
fn comes_first(known: &Known) -> bool {
    let mut kinds = known.class.statements.iter().map(|it| &it.kind);
    let first = kinds
        .find(|kind| !kind.is_transaction_control() && !matches!(kind, Kind::Set | Kind::SetLocal));
    matches!(first, Some(Kind::Lock | Kind::SetTransaction(_)))
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

    /// Whether a text that is `known` may read numbers, and the backend has others' now.
    pub(super) fn may_read_foreign(&self, known: &Known) -> bool {
        let may_read = reads(known) || is_opaque(known) || known.class.is_unclassifiable();
        may_read && self.has_foreign_numbers()
    }

    /// Whether a text, of which nothing is known if it was not read, can't be kept from reading others' numbers: it may end
    /// a failed transaction, in which the backend forgets nothing, and go on.
    pub(super) fn may_escape(&self, read: Option<(&Known, &[u8])>) -> bool {
        let may_end = |(known, text): (&Known, &[u8])| {
            let (class, does) = (&known.class, known.class.transaction);
            self.lex_options().cannot_be_sure(text)
                || (class.is_unclassifiable() && (does.ends() || does.savepoints()))
        };
        self.has_foreign_numbers() && self.does_nothing() && read.is_none_or(may_end)
    }

    /// Whether it is certain that the server does nothing of what it is sent now, unless that ends a failed transaction.
    fn does_nothing(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            let is_failed = lease.status == TransactionStatus::Failed && !lease.expect.is_open();
            lease.expect.skips_the_next() || (is_failed && lease.expect.awaits_more())
        })
    }

    fn is_in_exchange(&self) -> bool {
        self.lease.as_ref().is_some_and(|it| it.expect.is_open())
    }

    /// Has what follows wait for answers, save where the server waits for the client. True if it waits.
    pub(super) fn waits(&mut self, gather: &mut Gather) -> bool {
        let copy = self.lease.as_ref().map(|lease| lease.expect.copy());
        if copy == Some(Copy::In) {
            return false;
        }
        self.hold_up(gather);
        true
    }

    /// A statement is about to be sent, by a Bind or a whole message, of which this is `known`. What the backend has of
    /// others' numbers it is made to forget where that might be read. True if the statement must wait for answers.
    ///
    /// What it pins by itself was noted.
    pub(super) fn awaits_numbers(
        &mut self,
        known: Option<&Known>,
        is_bind: bool,
        gather: &mut Gather,
    ) -> bool {
        match known {
            Some(known) if known.class.is_unclassifiable() => {}
            Some(known) if !reads(known) => return self.guard_numbers(known, is_bind, gather),
            Some(_) => {
                self.habit().learn();
                let noted = self.sequences.noted();
                (noted.unread, noted.by_habit) = (0, false);
            }
            None => {}
        }
        if !self.keeps_backend() || !self.has_foreign_numbers() || self.does_nothing() {
            return false;
        }
        let is_answered = |lease: &Lease| lease.expect.awaits_more();
        if self.lease.as_ref().is_some_and(is_answered) {
            let within = is_bind || self.is_in_exchange();
            self.forget_numbers(within, gather);
        }
        self.waits(gather)
    }

    /// The same of what is bound to.
    pub(super) fn bind_awaits_numbers(&mut self, statement: &[u8], gather: &mut Gather) -> bool {
        let Some(named) = self.names.get(statement) else {
            // It may be one whose text was not read.
            return self.awaits_numbers(None, true, gather);
        };
        let known = &named.statement.known;
        if !known.runs_code && !reads(known) {
            return false;
        }
        let known = Arc::clone(known);
        // If it may not be pinned it is refused in a moment.
        let pins = reads(&known) || known.class.is_unclassifiable();
        let is_refused = pins && self.pin(known.pins, Some(&known)).is_some();
        !is_refused && self.awaits_numbers(Some(&known), true, gather)
    }

    /// The same of a statement that reads no numbers by itself.
    fn guard_numbers(&mut self, known: &Known, is_bind: bool, gather: &mut Gather) -> bool {
        let is_opaque = is_opaque(known);
        let forgets = takes(known) && self.begins_to_read(known, is_opaque);
        if !(forgets || is_opaque) || !self.has_foreign_numbers() || self.does_nothing() {
            return false;
        }
        let is_open = self.is_in_exchange();
        let has_company = known.class.has_plan() || self.in_transaction;
        if is_bind && is_open && !has_company && !is_opaque {
            return false;
        }
        let within = is_open || (is_bind && has_company);
        self.forget_ahead_of(known, is_opaque, within, gather)
    }

    /// The same of a text that is about to be parsed, if it can't be forgotten between that and its Bind.
    pub(super) fn parse_awaits_numbers(&mut self, known: &Known, gather: &mut Gather) -> bool {
        let is_alone = !self.in_transaction && !self.is_in_exchange() && !known.class.has_plan();
        if !is_alone || !known.runs_code || self.does_nothing() {
            return false;
        }
        let is_sure = is_opaque(known) || reads(known);
        (is_sure || (takes(known) && self.may_read(known)))
            && self.has_foreign_numbers()
            && self.forget_ahead_of(known, is_sure, false, gather)
    }

    /// Has the backend forget, unless it is about to, or nothing may stand ahead of the statement. True if that must
    /// wait for answers. `is_sure`: it must not run otherwise.
    fn forget_ahead_of(
        &mut self,
        known: &Known,
        is_sure: bool,
        within: bool,
        gather: &mut Gather,
    ) -> bool {
        let is_answered = |lease: &Lease| lease.expect.awaits_more();
        let noted = self.sequences.noted();
        if !self.lease.as_ref().is_none_or(is_answered) {
            match noted.forgetting {
                Forgetting::None => {}
                Forgetting::Before if is_sure => return self.waits(gather),
                Forgetting::Before | Forgetting::Ahead | Forgetting::Within => return false,
            }
        }
        if self.in_transaction && comes_first(known) {
            return false;
        }
        // Behind data for a COPY under way it would be taken for more.
        let copies_in = self.copies_in && !self.lease.as_ref().is_none_or(is_answered);
        if copies_in || !(within || self.is_answered()) {
            return self.waits(gather);
        }
        let own = |lease: &Lease| lease.mirror.numbers.are_last_of(self.entry.serial());
        if is_sure && self.in_transaction && self.lease.as_ref().is_some_and(own) {
            // From now on it is forgotten ahead of what takes them.
            self.habit().learn_calls();
        }
        self.forget_numbers(within, gather);
        false
    }

    /// Whether the session may read what it takes by a statement that is `known`; `is_opaque`: that may read it, too. It
    /// keeps its backend then, if it can.
    fn begins_to_read(&mut self, known: &Known, is_opaque: bool) -> bool {
        let habit = self.habit();
        habit.count();
        let (reads, may_have_read) = (habit.reads(), is_opaque && habit.is_hidden());
        let noted = self.sequences.noted();
        noted.unread = if may_have_read {
            0
        } else {
            noted.unread.saturating_add(1)
        };
        let reason = PinReason::SequenceState;
        if !reads || noted.unread > PATIENCE {
            self.end_habit_pin();
        } else if !self.pins.contains(reason) {
            // If it can't be pinned it does without.
            drop(self.pin(reason.into(), Some(known)));
            self.sequences.noted().by_habit = self.pins.contains(reason);
        }
        self.may_read(known)
    }

    fn may_read(&mut self, known: &Known) -> bool {
        let is_block = self.in_transaction || known.class.transaction.begins();
        let habit = self.habit();
        habit.reads() || habit.is_on_probation() || (is_block && habit.calls())
    }

    /// The server has said why it does not run a statement of the client's.
    pub(super) fn note_missing_number(&mut self, error: &[u8]) {
        // Whatever the language of its words.
        let routine = b::error_field(error, b'R');
        let is_missing = matches!(routine, Some(b"currval_oid" | b"lastval"));
        if is_missing && b::sqlstate(error) == Some(NO_NUMBER) {
            let is_own = self.pins.contains(PinReason::SequenceState) && self.habit_pin().is_none();
            if is_own {
                self.habit().learn();
            } else {
                self.habit().learn_hidden();
            }
            self.sequences.noted().unread = 0;
        }
    }

    /// Whether the session is pinned for what its application does, and for how long at most.
    pub(super) fn habit_pin(&self) -> Option<Duration> {
        let noted = self.sequences.0.as_ref()?;
        let is_pinned = noted.by_habit && self.pins.contains(PinReason::SequenceState);
        is_pinned.then_some(HABIT_PIN)
    }

    /// It has not read meanwhile.
    pub(super) fn end_habit_pin(&mut self) {
        if self.habit_pin().is_some() {
            // The numbers it leaves nobody else can read.
            let (mut pins, ended) = (self.pins, self.ended_pins);
            pins.remove(PinReason::SequenceState);
            self.set_pins(pins);
            self.ended_pins = ended;
            self.sequences.noted().by_habit = false;
        }
    }

    /// A statement is about to be sent that may take numbers; `None`: nothing is known of it.
    pub(super) fn take_numbers(&mut self, known: Option<&Known>) {
        let session = self.entry.serial();
        let Some(lease) = &mut self.lease else {
            return;
        };
        if known.is_some_and(|known| !known.runs_code) {
            return;
        }
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

    /// Has the backend forget all numbers, `within` the exchange that it is sent next or ahead of it.
    fn forget_numbers(&mut self, within: bool, gather: &mut Gather) {
        let session = self.entry.serial();
        let Some(lease) = &mut self.lease else {
            return;
        };
        lease.mirror.numbers.begin_forgetting(session);
        let noted = self.sequences.noted();
        noted.taken = Taken::On(lease.id);
        if within {
            noted.forgetting = Forgetting::Within;
            self.run_own(FORGET, 0, For::Reparse, gather);
        } else {
            noted.forgetting = Forgetting::Ahead;
            lease.mirror.unnamed = None;
            gather.own(|out| f::put_query(out, FORGET));
            self.owe(Owed::new(Request::Query, For::Plan));
            self.entry.set_running_soon();
        }
    }

    /// For how long the session, which gives `backend` back, is to get it again if nobody else needs it, because it may
    /// read there what it has taken.
    pub(super) fn finds_numbers_again(&mut self, backend: &Lease) -> Option<Duration> {
        let noted = self.sequences.0.as_mut()?;
        let habit = noted.habit.as_ref()?;
        // One of a replica would not be asked for.
        let is_primary = backend.pool().key.node.is_none();
        if !is_primary || !backend.mirror.numbers.are_of(self.entry.serial()) {
            return None;
        }
        let limit = if habit.reads() && noted.unread <= PATIENCE {
            Some(ASIDE_OF_READERS)
        } else {
            (noted.by_name && habit.is_on_probation()).then_some(ASIDE)
        };
        noted.has_aside = limit.is_some();
        limit
    }

    /// The backend that was set aside for the session.
    pub(super) fn take_aside(&mut self) -> Option<Lease> {
        let noted = self.sequences.0.as_mut()?;
        let has_aside = std::mem::take(&mut noted.has_aside);
        has_aside
            .then(|| self.pool.take_aside(self.entry.serial()))
            .flatten()
    }

    /// The session needs it no longer.
    pub(super) fn leave_aside(&self) {
        if self.sequences.0.as_ref().is_some_and(|it| it.has_aside) {
            self.pool.leave_aside(self.entry.serial());
        }
    }
}
