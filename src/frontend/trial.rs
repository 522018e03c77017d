//! Exchanges on replicas that can still be run elsewhere: nothing of their answers has been shown to the client.
//!
//! What a replica answers is held back until its first row, or until the end where an exchange has several statements.
//! If it fails before, the exchange is run on the primary, or on another replica where it was the replica's own end that
//! it failed for. The client notices nothing but the time.

use std::sync::Arc;
use std::task::Context;

use super::exchange::Exchange;
use super::kept::Kept;
use super::routes::{Failed, Trial};
use super::session::{End, Phase, Session};
use crate::error::SqlState;
use crate::net::buffer::{Gather, Held};
use crate::pool::reset::{self, Residue};
use crate::routing::reason::Reason;
use crate::routing::route::runs_elsewhere;
use crate::wire::expect::{For, Owed};

/// What of a replica's answer is held back until its exchange is over, if that has several statements.
const HELD_MAX: usize = 16 * 1024;

impl Session {
    /// The exchange at the front of `input` is sent to a replica.
    pub(super) fn put_on_trial(&mut self, exchange: &Exchange, input: &[u8]) {
        let told = Arc::clone(&self.told);
        if let Some(routes) = &mut self.routes {
            routes.patience = None;
            routes.trial = Some(Trial {
                kept: Kept::of(&input[..exchange.len]),
                held: Vec::new(),
                told,
                ends_at_row: !exchange.has_several,
                failed: None,
            });
        }
    }

    /// Takes in an error of a replica. True if the client does not get it, because the exchange is run elsewhere.
    pub(super) fn fails_on_trial(
        &mut self,
        owed: Owed,
        code: Option<SqlState>,
        is_fatal: bool,
    ) -> bool {
        let Some(routes) = &mut self.routes else {
            return false;
        };
        let node = routes.reading.as_ref().map(|reading| &reading.node);
        let (Some(trial), Some(node)) = (&mut routes.trial, node) else {
            return false;
        };
        if trial.failed.is_some() {
            return true;
        }
        let code = code.unwrap_or(SqlState::INTERNAL_ERROR);
        let is_plan = owed.to == For::Plan;
        if !is_plan && !is_fatal && !runs_elsewhere(code) {
            return false;
        }
        if is_fatal {
            routes.cluster.suspect(&node.server);
        }
        trial.failed = Some(Failed {
            code,
            is_spoilt: is_plan,
        });
        self.metering.abandon();
        true
    }

    /// The replica has answered with a row, or with the end of a statement.
    pub(super) fn passes_trial(&mut self, is_row: bool) {
        if let Some(routes) = &mut self.routes
            && routes
                .trial
                .as_ref()
                .is_some_and(|trial| trial.failed.is_none() && (trial.ends_at_row || !is_row))
        {
            self.end_trial();
        }
    }

    /// The client gets what was held back; there is no running it elsewhere any more.
    fn end_trial(&mut self) {
        if let Some(routes) = &mut self.routes
            && let Some(trial) = routes.trial.take()
        {
            routes.avoid = 0;
            self.outbox.push(&trial.held);
        }
    }

    /// Holds back what was gathered for the client, while an exchange is on trial. True if it was.
    pub(super) fn holds_back(&mut self, gather: &mut Gather, input: &[u8]) -> bool {
        let Some(routes) = &mut self.routes else {
            return false;
        };
        let Some(trial) = &mut routes.trial else {
            return false;
        };
        if routes.reading.is_none() {
            return false;
        }
        gather.move_to(&mut trial.held, input);
        if trial.failed.is_some() {
            trial.held.clear();
        } else if trial.held.len() > HELD_MAX {
            self.end_trial();
        }
        true
    }

    /// How the exchange on trial failed.
    pub(super) fn failed_trial(&self) -> Option<Failed> {
        self.routes.as_ref()?.trial.as_ref()?.failed
    }

    /// Whether the client has seen nothing of an exchange on a replica, so that it can be run elsewhere.
    pub(super) fn is_on_trial(&self) -> bool {
        self.routes
            .as_ref()
            .is_some_and(|routes| routes.trial.is_some() && routes.reading.is_some())
    }

    /// Runs the exchange on trial elsewhere: what failed for what the replica lacks on the primary, what was lost with
    /// its replica on another one.
    pub(super) fn run_elsewhere(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(routes) = &mut self.routes else {
            return Ok(());
        };
        let (Some(trial), Some(reading)) = (routes.trial.take(), routes.reading.take()) else {
            return Ok(());
        };
        let node = Arc::clone(&reading.node);
        drop(reading);
        node.load
            .failed
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        routes.in_exchange = false;
        routes.opened = None;
        let failed = trial.failed;
        if failed.is_none_or(|failed| is_passing(failed.code)) {
            let bit = u32::try_from(node.index).ok();
            routes.avoid |= bit.and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or(0);
        } else {
            routes.forced = Some(Reason::Again);
        }
        tracing::debug!(
            server = %node.name,
            code = failed.as_ref().map_or("", |failed| failed.code.as_str()),
            "a read failed on a replica and is run elsewhere"
        );
        self.told = trial.told;
        // Without an error the connection itself was lost.
        self.part_with_replica(failed.is_none_or(|failed| failed.is_spoilt));
        if let Some(failed) = failed.filter(|failed| !failed.is_spoilt) {
            self.remember_refusal(failed.code, trial.kept.bytes());
        }
        let mut inbox = Held::default();
        inbox.push(trial.kept.bytes());
        inbox.push(self.inbox.bytes());
        self.inbox = inbox;
        self.enter(Phase::Idle);
        self.process_inbox(cx)
    }

    /// Gives the replica's connection back and forgets what was under way on it.
    fn part_with_replica(&mut self, is_spoilt: bool) {
        self.entry.clear_running();
        self.metering.abandon();
        while !self.names.is_settled() {
            self.names.undo();
        }
        self.refusals.clear();
        self.prepared = super::sql_prepare::Underway::default();
        self.probe = super::session::ProbeAnswer::default();
        self.bound = None;
        self.held_up = false;
        self.in_transaction = false;
        self.copies_in = false;
        self.timed_out = false;
        let Some(lease) = self.lease.take() else {
            return;
        };
        if is_spoilt || lease.identity.is_lost() {
            return;
        }
        let dialer = self.shared.pools.dialer.load();
        let limit = self.effective.timeouts.cancel_wait_timeout;
        reset::give_back(lease, Residue::None, &dialer, limit);
    }

    /// A statement that replicas refuse is not sent to them again.
    fn remember_refusal(&mut self, code: SqlState, exchange: &[u8]) {
        let as_write = code == SqlState::READ_ONLY_SQL_TRANSACTION;
        if !as_write && code != SqlState::FEATURE_NOT_SUPPORTED {
            return;
        }
        for (known, _) in self.texts_whole(exchange).unwrap_or_default() {
            known.refused(as_write);
            if as_write {
                tracing::info!(
                    statement = %known.query.text,
                    "a replica refused a statement as a write; it goes to the primary from now on"
                );
            }
        }
    }
}

/// Whether another replica would do better.
fn is_passing(code: SqlState) -> bool {
    matches!(&code.0[..2], b"08" | b"40" | b"53" | b"57" | b"58" | b"XX")
}
