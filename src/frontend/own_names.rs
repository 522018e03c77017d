//! Statements under the client's own names: given to the backend where a name can't be replaced, and taken back.
//!
//! - A session that is pinned prepares under its own names: they are there as on a connection of its own, with their
//!   counts, and for code that executes them by name.
//! - Code that can't be seen through may execute what the client has prepared: the backend is given it for as long as
//!   the exchange takes. Outside a transaction each statement is given by itself, so that one whose table is gone is
//!   missing and fails nothing else; inside, only what the text mentions.
//! - A text that lists statements finds the session's and no others.
//!
//! # What is left
//! Code that deallocates the client's statements takes away only what it was lent. Code run in a transaction or by the
//! extended protocol does not find a statement whose name is in a function's body alone, nor one of the protocol.

use super::refusal::Refusal;
use super::session::Session;
use super::sql_prepare::{GONE, Name, OWN};
use crate::backend::connection::Backend;
use crate::config::model::PoolMode;
use crate::net::buffer::Gather;
use crate::sql::classify::{PreparedAction, PreparedRef};
use crate::sql::known::Known;
use crate::sql::prepared::PreparedUse;
use crate::sql::state::PinReason;
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

/// A name with what it stands for.
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

    /// Whether a backend has statements under the client's own names.
    pub(super) fn has_own_on(&self, backend: &Backend) -> bool {
        self.names
            .iter()
            .any(|(_, named)| named.own_on == backend.id)
    }

    /// Whether the session prepares under its own names: it keeps its backend until that is cleaned.
    pub(super) fn prepares_own(&self) -> bool {
        let keeps = !self.pins.is_empty() || self.effective.pool.pool_mode == PoolMode::Session;
        keeps && !self.is_on_probation()
    }

    /// Whether code in the statement may execute, by name, what the client has prepared by SQL.
    pub(super) fn may_run_by_name(&self, known: &Known) -> bool {
        known.is_opaque && !known.copies_in && self.names.has_sql()
    }

    /// Lends the backend what code in `text` may execute by name. True if `text` depends on the success of what was sent.
    pub(super) fn lend_names(&mut self, text: &[u8], gather: &mut Gather) -> bool {
        let Some(lease) = &self.lease else {
            return false;
        };
        if self.has_failed() {
            return false;
        }
        let (backend, alone) = (lease.id, self.may_give_alone());
        let is_meant = |name: &[u8]| alone || mentions(text, name);
        let names = self.names.iter();
        let missing = names.filter(|(name, named)| {
            named.spelled.is_some() && named.own_on != backend && is_meant(name)
        });
        let missing: Missing = missing
            .map(|(name, named)| (name.into(), named.clone()))
            .collect();
        self.prepared.unlists |= !missing.is_empty();
        self.give_all(&missing, alone, gather)
    }

    /// Whether what is sent now is an exchange of its own, outside a transaction.
    fn may_give_alone(&self) -> bool {
        self.is_answered()
            && self.lease.as_ref().is_some_and(|lease| {
                !lease.expect.is_open() && lease.status == TransactionStatus::Idle
            })
    }

    /// What the client sends next is an exchange of its own.
    fn end_given(&mut self, gather: &mut Gather) {
        gather.own(|out| out.extend_from_slice(&f::SYNC_FRAME));
        self.owe(Owed::new(Request::Sync, For::Evict));
    }

    /// Gives the backend `missing`; `alone`: each by itself. True if what follows depends on its success.
    fn give_all(&mut self, missing: &Missing, alone: bool, gather: &mut Gather) -> bool {
        let Some(backend) = self.lease.as_ref().map(|lease| lease.id) else {
            return false;
        };
        for (name, named) in missing {
            if alone {
                self.give_own(name, named, For::Evict, gather);
                self.end_given(gather);
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
        let Some(backend) = self.lease.as_ref().map(|lease| lease.id) else {
            return false;
        };
        let lists = known.prepared == PreparedUse::Listed;
        if self.has_failed() {
            return false;
        }
        let alone = lists && self.may_give_alone();
        if lists {
            self.forget_global(gather);
            self.prepared.unlists = true;
            if alone {
                self.end_given(gather);
            }
        }
        let missing = self.missing_names(backend, refs, lists);
        let is_needed = self.give_all(&missing, alone, gather);
        let changes = |it: &PreparedRef<'_>| it.action != PreparedAction::Execute;
        if refs.iter().any(changes) {
            self.names.own_for_good();
        }
        is_needed
    }

    /// The names in `refs`, or all, that the backend does not know yet.
    fn missing_names(&self, backend: u64, refs: &[PreparedRef<'_>], all: bool) -> Missing {
        let is_missing = |named: &&Name| named.own_on != backend;
        if all {
            let missing = self.names.iter().filter(|(_, named)| is_missing(named));
            return missing
                .map(|(name, named)| (name.into(), named.clone()))
                .collect();
        }
        let missing = |it: &PreparedRef<'_>| {
            let name = it.name.as_bytes();
            let named = self.names.get(name).filter(is_missing)?;
            Some((name.into(), named.clone()))
        };
        refs.iter().filter_map(missing).collect()
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

    /// Takes back the names that the backend was given for the exchange that ends here; one that is kept keeps them.
    pub(super) fn unlist(&mut self, gather: &mut Gather) {
        if !std::mem::take(&mut self.prepared.unlists)
            || self.has_own_names()
            || self.prepares_own()
        {
            return;
        }
        let own = self.names.own_none();
        if own.is_empty() {
            return;
        }
        for name in own {
            gather.own(|out| f::put_statement_target(out, f::CLOSE, &name));
            self.owe(Owed::new(Request::Close, For::Evict));
        }
        self.end_given(gather);
    }

    /// Sends what makes sure that the backend does not have `name`.
    pub(super) fn clear_own(&mut self, name: &[u8], gather: &mut Gather) {
        gather.own(|out| f::put_statement_target(out, f::CLOSE, name));
        self.owe(Owed::new(Request::Close, For::Evict));
    }

    fn give_own(&mut self, name: &[u8], named: &Name, to: For, gather: &mut Gather) {
        let spelled = named.spelled.as_deref().unwrap_or(name);
        self.clear_own(name, gather);
        let reads_otherwise = self.read_as(&named.statement, gather);
        if let Some(text) = named.statement.prepare_text(spelled) {
            self.run_own(&text, 0, to, gather);
        } else {
            gather.own(|out| f::put_parse(out, name, &named.statement.body));
            self.owe(Owed::new(Request::Parse, to));
        }
        if reads_otherwise {
            self.read_as_told(&named.statement, gather);
        }
    }
}

/// Whether `name` is in `text`, in whatever case.
fn mentions(text: &[u8], name: &[u8]) -> bool {
    text.windows(name.len().max(1))
        .any(|part| part.eq_ignore_ascii_case(name))
}
