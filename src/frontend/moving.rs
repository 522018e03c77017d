//! Taking an open transaction to another server, before it has done anything that could not be done there.
//!
//! `BEGIN READ ONLY` is followed by something that a replica can't do, such as an advisory lock: the transaction goes on
//! on the primary. `BEGIN` is followed by `SET TRANSACTION READ ONLY`: it goes on on a replica. The client notices
//! nothing: the transaction is rolled back where it was and begun anew, with the same modes, where it goes. What ends it and goes
//! on is for the primary as a whole, even if the transaction has read what only holds together where it was.

use super::session::{Phase, Session};
use crate::net::buffer::Gather;
use crate::pool::reset::{self, Residue};
use crate::routing::proof::within;
use crate::routing::reason::Reason;
use crate::sql::classify::{Isolation, StatementKind, TransactionModes};
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend;

/// Where a transaction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Primary(Reason),
    Replica,
}

/// The statement that begins a transaction with these modes.
fn begin_text(modes: TransactionModes) -> String {
    let mut text = String::from("BEGIN");
    if let Some(isolation) = modes.isolation {
        text.push_str(match isolation {
            Isolation::ReadUncommitted => " ISOLATION LEVEL READ UNCOMMITTED",
            Isolation::ReadCommitted => " ISOLATION LEVEL READ COMMITTED",
            Isolation::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => " ISOLATION LEVEL SERIALIZABLE",
        });
    }
    match modes.read_only {
        Some(true) => text.push_str(" READ ONLY"),
        Some(false) => text.push_str(" READ WRITE"),
        None => {}
    }
    match modes.deferrable {
        Some(true) => text.push_str(" DEFERRABLE"),
        Some(false) => text.push_str(" NOT DEFERRABLE"),
        None => {}
    }
    text
}

impl Session {
    /// Takes the open transaction elsewhere if what is in front of `input` belongs there. False if a backend or its
    /// answer has to be waited for.
    pub(super) fn goes_on(&mut self, input: &[u8], gather: &mut Gather) -> bool {
        let Some(to) = self.where_to(input) else {
            if let Some(routes) = &mut self.routes {
                routes.in_exchange = true;
            }
            return true;
        };
        let modes = self
            .routes
            .as_ref()
            .and_then(|routes| routes.opened)
            .map(|opened| opened.modes)
            .unwrap_or_default();
        match to {
            To::Replica => {
                let Some((lease, place)) = self.find_replica_now() else {
                    return true;
                };
                self.count_route(Reason::ReadOnlyTransaction);
                self.leave_transaction(modes);
                self.begin_on(lease, place, gather)
            }
            To::Primary(reason) => {
                self.count_route(reason);
                self.leave_transaction(modes);
                self.check_out_primary(gather)
            }
        }
    }

    /// Whether the session may have to take its transaction elsewhere: a quick look.
    pub(super) fn may_move(&self) -> bool {
        let (Some(routes), Some(lease)) = (&self.routes, &self.lease) else {
            return false;
        };
        let is_fresh = routes.opened.is_some_and(|opened| !opened.has_run);
        let has_failed = lease.status == TransactionStatus::Failed && routes.reading.is_some();
        (routes.reading.is_some() || is_fresh)
            && !self.is_replaying()
            && !routes.in_exchange
            && self.in_transaction
            && (lease.status == TransactionStatus::InTransaction || has_failed)
            && lease.expect.is_at_rest()
    }

    fn where_to(&self, input: &[u8]) -> Option<To> {
        let routes = self.routes.as_deref()?;
        let has_failed = self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.status == TransactionStatus::Failed);
        if has_failed || !routes.is_movable() || self.is_replaying() {
            return self.ends_elsewhere(input, has_failed);
        }
        let texts = self.texts_whole(input);
        if routes.reading.is_some() {
            let Some(texts) = texts else {
                return Some(To::Primary(Reason::Exchange));
            };
            let reason = texts.iter().find_map(|(known, hint)| {
                if known.is_refused() {
                    return Some(Reason::Refused);
                }
                within(&known.class, *hint, |function| {
                    routes.calls(function, &self.pool, self.now)
                })
            });
            return reason.map(To::Primary);
        }
        let [(known, _)] = &texts?[..] else {
            return None;
        };
        match known.class.only() {
            Some(StatementKind::SetTransaction(modes))
                if modes.read_only == Some(true)
                    && !modes.snapshot
                    && modes.isolation != Some(Isolation::Serializable) =>
            {
                let opened = routes.opened?.modes;
                let is_serializable = if let Some(isolation) = modes.isolation.or(opened.isolation)
                {
                    isolation == Isolation::Serializable
                } else {
                    let defaults = routes.defaults(&self.pool, self.now);
                    defaults.serializable.unwrap_or(true)
                };
                let is_wanted = self.effective.routing.reads
                    == crate::config::model::Reads::Replicas
                    && self.pins.is_empty()
                    && routes.consistency() != Some(Err(()));
                (is_wanted && !is_serializable).then_some(To::Replica)
            }
            _ => None,
        }
    }

    /// The primary, if what is in front of `input` ends a replica's transaction and goes on: what follows belongs there.
    fn ends_elsewhere(&self, input: &[u8], has_failed: bool) -> Option<To> {
        let routes = self.routes.as_deref()?;
        if routes.reading.is_none() || !routes.can_end_elsewhere() || self.is_replaying() {
            return None;
        }
        let texts = self.texts_whole(input)?;
        let mut statements = texts.iter().flat_map(|(known, _)| &known.class.statements);
        let ends = match statements.next()?.kind {
            // That of a failed transaction has another answer.
            StatementKind::Commit { chain: false } => !has_failed,
            StatementKind::Rollback { chain: false } => true,
            _ => false,
        };
        (ends && statements.next().is_some()).then_some(To::Primary(Reason::Transaction))
    }

    /// Gives up the backend with its transaction, which is rolled back there; the next one begins it again.
    fn leave_transaction(&mut self, modes: TransactionModes) {
        self.entry.clear_running();
        self.rest_rerun();
        if let Some(routes) = &mut self.routes {
            routes.reading = None;
            routes.trial = None;
            routes.reopen = Some(modes);
        }
        if let Some(lease) = self.lease.take() {
            let dialer = self.shared.pools.dialer.load();
            let limit = self.effective.timeouts.cancel_wait_timeout;
            reset::give_back(lease, Residue::None, &dialer, limit);
        }
        self.enter(Phase::Idle);
    }

    /// Begins the transaction that was taken here, ahead of the client's bytes. An error ends the session: what the
    /// client sends was not meant to run outside of it.
    pub(super) fn reopen(&mut self, gather: &mut Gather) {
        let modes = self.routes.as_mut().and_then(|routes| routes.reopen.take());
        let (Some(modes), Some(lease)) = (modes, &mut self.lease) else {
            return;
        };
        gather.own(|out| frontend::put_query(out, begin_text(modes).as_bytes()));
        lease.expect.push(Owed::new(Request::Query, For::Plan));
        lease.mirror.unnamed = None;
        self.entry.set_running_soon();
        self.in_transaction = true;
    }
}
