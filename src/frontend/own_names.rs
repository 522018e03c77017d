//! Statements under the client's own names: given to the backend where a name can't be replaced, and taken back.
//!
//! - A text that prepares and does other things besides changes what names mean in its midst: the backend has the client's
//!   names from then on, and is kept ([`PinReason::SqlPrepare`]).
//! - A session that is pinned anyway prepares under its own names: they are there as on a connection of its own, with
//!   their counts, and for code that executes them by name.
//! - A text that reads `pg_prepared_statements` finds the session's statements and no others, for as long as its exchange
//!   takes.
//! - So does code that can't be seen through (`SELECT f('EXECUTE q (1)')`) what its text tells it to execute.
//!
//! Outside a transaction each statement is lent in an exchange of its own, so that one whose table is gone is missing and
//! fails nothing else.
//!
//! # Invariant
//! What a backend that is not kept was lent is in [`Underway::lent`](super::sql_prepare::Underway) until the messages that
//! take it back are written; a session that gives its backend back before has it discarded everything. So has one that
//! got any while it was kept, whatever it was kept for: that is among the pins that have ended.
//!
//! # What is left
//! Code that deallocates the client's statements takes away only what it was lent. Code finds no statement whose name it
//! has from elsewhere than its caller's text. Inside a transaction a listed statement whose table
//! is gone fails the list.

use super::refusal::Refusal;
use super::session::Session;
use super::sql_prepare::{GONE, Name, OWN};
use crate::backend::connection::Backend;
use crate::net::buffer::Gather;
use crate::pool::Lease;
use crate::session::statements::SERVER_NAME_PREFIX;
use crate::sql::classify::{PreparedAction, PreparedRef};
use crate::sql::known::Known;
use crate::sql::prepared::{PreparedUse, executed_in};
use crate::sql::state::{Effect, PinReason};
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, OWN_NAME, Owed, Request};
use crate::wire::frontend as f;

/// Names with what they stand for.
type Missing = Vec<(Box<[u8]>, Name)>;

impl Session {
    /// Whether the backend is kept for the client's own names.
    pub(super) fn has_own_names(&self) -> bool {
        self.names.is_own() || self.pins.contains(PinReason::SqlPrepare)
    }

    /// The backend is to have the client's own names, for this text or, unless it only lists them, for good: notes that,
    /// or tells why it may not be.
    pub(super) fn keep_names(&mut self, known: &Known) -> Option<Refusal> {
        let pins = PinReason::SqlPrepare.into();
        if known.prepared == PreparedUse::Listed {
            self.rejects(pins)
        } else {
            self.pin(pins, Some(known))
        }
    }

    /// Whether the backend has `named` under the client's own name.
    pub(super) fn is_own(&self, named: &Name) -> bool {
        let backend = self.lease.as_ref().map(|lease| lease.id);
        backend == Some(named.own_on)
    }

    /// Whether `backend` has statements under the client's own names, or may have.
    pub(super) fn has_own_on(&self, backend: &Backend) -> bool {
        let is_own = |named: &Name| named.own_on == backend.id;
        self.prepared.lent.is_some() || self.names.iter().any(|(_, named)| is_own(named))
    }

    /// Whether code that `text` calls may execute, by name, what the client has prepared.
    pub(super) fn may_run_by_name(&self, text: &[u8], known: &Known) -> bool {
        !self.names.is_empty()
            && !known.copies_in
            && known.class.effects().any(|it| *it == Effect::OpaqueCode)
            && executed_in(text).any(|name| self.names.get(&name).is_some())
    }

    /// Lends the backend what code in `text` is told to execute. True if `text` depends on the success of what was sent.
    pub(super) fn lend_names(&mut self, text: &[u8], known: &Known, gather: &mut Gather) -> bool {
        if self.has_failed() || !self.may_run_by_name(text, known) {
            return false;
        }
        let alone = self.may_lend_alone();
        // If it fails, a COMMIT would roll back.
        if !alone && known.class.transaction.ends() {
            return false;
        }
        let names = executed_in(text).filter_map(|name| {
            let named = self.names.get(&name)?;
            (!self.is_own(named)).then(|| (name.into(), named.clone()))
        });
        let missing: Missing = names.collect();
        for (_, named) in &missing {
            self.note_resets(&named.statement.known);
        }
        self.lend(missing, alone, gather)
    }

    /// Code may run a statement that is `known`.
    fn note_resets(&mut self, known: &Known) {
        known
            .class
            .effects()
            .for_each(|effect| self.note_reset(effect));
    }

    /// Whether what is sent now is an exchange of its own, outside a transaction.
    fn may_lend_alone(&self) -> bool {
        self.is_answered()
            && self.lease.as_ref().is_some_and(|lease| {
                !lease.expect.is_open() && lease.status == TransactionStatus::Idle
            })
    }

    /// What the client sends next is an exchange of its own, which does not depend on what was sent.
    fn end_lending(&mut self, gather: &mut Gather) {
        gather.own(|out| out.extend_from_slice(&f::SYNC_FRAME));
        self.owe(Owed::new(Request::Sync, For::Evict));
    }

    /// Lends the backend `missing`, but for what it was lent in this exchange, be it that it did not come to be; `alone`:
    /// each by itself. True if what follows depends on its success.
    fn lend(&mut self, mut missing: Missing, alone: bool, gather: &mut Gather) -> bool {
        if missing.is_empty() {
            return false;
        }
        let lent = self.prepared.lent.get_or_insert_default();
        missing.retain(|(name, _)| lent.insert(name.clone()));
        self.give_all(&missing, alone, gather)
    }

    fn give_all(&mut self, missing: &Missing, alone: bool, gather: &mut Gather) -> bool {
        let Some(backend) = self.lease.as_ref().map(|lease| lease.id) else {
            return false;
        };
        for (name, named) in missing {
            if alone {
                self.give_own(name, named, For::Evict, gather);
                self.end_lending(gather);
            } else {
                self.give_own(name, named, For::Reparse, gather);
            }
            self.names.own(name, backend);
        }
        !alone && !missing.is_empty()
    }

    /// Does for a text what it needs the client's own names for. True if something was sent that it depends on.
    pub(super) fn use_own_names(
        &mut self,
        known: &Known,
        refs: &[PreparedRef<'_>],
        gather: &mut Gather,
    ) -> bool {
        if self.has_failed() || self.lease.is_none() {
            return false;
        }
        if known.prepared == PreparedUse::Listed {
            let prepares =
                |it: &PreparedRef<'_>| matches!(it.action, PreparedAction::Prepare { .. });
            if refs.iter().any(prepares) {
                self.names.own_for_good();
            }
            let alone = self.may_lend_alone();
            self.forget_global(gather);
            if alone {
                self.end_lending(gather);
            }
            let missing = self.missing_names();
            return self.lend(missing, alone, gather);
        }
        // Nobody knows another session's statements by guessing.
        let is_guess = |it: &PreparedRef<'_>| {
            let name = it.name.as_bytes();
            name.starts_with(SERVER_NAME_PREFIX) && self.names.get(name).is_none()
        };
        let guesses = refs.iter().any(is_guess);
        if guesses {
            self.forget_global(gather);
        }
        let missing = self.missing_of(refs);
        let is_needed = self.give_all(&missing, false, gather) || guesses;
        let changes = |it: &PreparedRef<'_>| it.action != PreparedAction::Execute;
        if refs.iter().any(changes) {
            self.names.own_for_good();
        }
        is_needed
    }

    /// All that the backend does not know by its own name.
    fn missing_names(&self) -> Missing {
        let missing = self.names.iter().filter(|(_, named)| !self.is_own(named));
        missing
            .map(|(name, named)| (name.into(), named.clone()))
            .collect()
    }

    /// Those of them that are in `refs`.
    fn missing_of(&self, refs: &[PreparedRef<'_>]) -> Missing {
        let missing = refs.iter().filter_map(|it| {
            let name = it.name.as_bytes();
            let named = self.names.get(name).filter(|named| !self.is_own(named))?;
            Some((name.into(), named.clone()))
        });
        missing.collect()
    }

    /// The backend is to have the client's statements and no others.
    fn forget_global(&mut self, gather: &mut Gather) {
        while let Some(id) = self
            .lease
            .as_mut()
            .and_then(|lease| lease.mirror.take_oldest())
        {
            self.evict(id, gather);
        }
        // What pgweir ran by itself may have failed and be there still.
        for own in [OWN, GONE] {
            self.clear_own(own, gather);
        }
    }

    /// Takes back what the backend was lent for the exchange that ends here; one that is kept keeps it.
    pub(super) fn unlist(&mut self, gather: &mut Gather) {
        // The server would skip it, or read it as data.
        let skips = |lease: &Lease| lease.expect.skips_the_next();
        if self.copies_in || self.lease.as_ref().is_some_and(skips) {
            return;
        }
        let Some(lent) = self.prepared.lent.take() else {
            return;
        };
        if self.has_own_names() || self.keeps_backend() {
            self.leave_names();
            // It is not kept if the text does nothing.
            self.prepared.lent = self.prepared.is_doubtful.then_some(lent);
            return;
        }
        drop(self.names.own_none());
        for name in *lent {
            self.clear_own(&name, gather);
        }
        self.end_lending(gather);
    }

    /// The backend has statements under the client's own names for as long as it is kept: whoever gets it next is not to
    /// find them.
    pub(super) fn leave_names(&mut self) {
        self.ended_pins.insert(PinReason::SqlPrepare);
    }

    /// The backend is given back: whether it must forget what it was lent, which the client did not let be taken back.
    pub(super) fn leaves_own(&mut self, is_unpinned: bool) -> bool {
        let leaves = self.prepared.lent.take().is_some() || is_unpinned;
        if leaves {
            drop(self.names.own_none());
        }
        leaves
    }

    /// Sends what makes sure that the backend does not have `name`.
    pub(super) fn clear_own(&mut self, name: &[u8], gather: &mut Gather) {
        gather.own(|out| f::put_statement_target(out, f::CLOSE, name));
        self.owe(Owed::new(Request::Close, For::Evict));
    }

    fn give_own(&mut self, name: &[u8], named: &Name, to: For, gather: &mut Gather) {
        let spelled = named.spelled.as_deref().unwrap_or(name);
        self.clear_own(name, gather);
        let read_again = self.read_as(&named.statement, to, gather);
        if let Some(text) = named.statement.prepare_text(spelled) {
            self.run_own(&text, OWN_NAME, to, gather);
        } else {
            gather.own(|out| f::put_parse(out, name, &named.statement.body));
            self.owe(Owed {
                statement: OWN_NAME,
                ..Owed::new(Request::Parse, to)
            });
        }
        self.read_again(read_again, gather);
    }
}
