//! Exchanges on replicas that can still be run elsewhere: nothing of their answers has been shown to the client.
//!
//! What a replica answers is held back until its first row, or until the end where an exchange has several statements.
//! If it fails before, the exchange is run on the primary, or on another replica where it was the replica's own end that
//! it failed for. The client notices nothing but the time.

use std::sync::Arc;
use std::task::Context;

use super::exchange::Exchange;
use super::routes::{Failed, Routes, Trial};
use super::session::{End, Phase, Session};
use crate::error::SqlState;
use crate::net::buffer::Gather;
use crate::routing::reason::Reason;
use crate::routing::route::runs_elsewhere;
use crate::wire::expect::{For, Owed};

/// What of a replica's answer is held back until its exchange is over, if that has several statements.
const HELD_MAX: usize = 16 * 1024;

impl Session {
    /// The exchange in front is sent to a replica.
    pub(super) fn put_on_trial(&mut self, exchange: &Exchange) {
        let told = Arc::clone(&self.told);
        if let Some(routes) = &mut self.routes {
            routes.patience = None;
            routes.trial = Some(Trial {
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
        if !self.is_on_trial() && self.failed_trial().is_none() {
            // What was sent is not kept: there is no running it elsewhere.
            self.end_trial();
            return false;
        }
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
            self.note_seen();
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

    /// Holds back an answer that pgweir gives itself, where it belongs to an exchange that may run elsewhere.
    pub(super) fn holds_local_back(&mut self, answer: &[u8]) -> bool {
        if self.is_replaying() && !self.will_rerun() {
            self.compare_local(answer);
            return true;
        }
        let trial = self.routes.as_mut().and_then(|routes| {
            let is_reading = routes.reading.is_some();
            routes.trial.as_mut().filter(|_| is_reading)
        });
        match trial {
            Some(trial) => {
                if trial.failed.is_none() {
                    trial.held.extend_from_slice(answer);
                }
                true
            }
            None => self.will_rerun(),
        }
    }

    /// How the exchange on trial failed.
    pub(super) fn failed_trial(&self) -> Option<Failed> {
        self.routes.as_ref()?.trial.as_ref()?.failed
    }

    /// Whether the client has seen nothing of an exchange on a replica, so that it can be run elsewhere.
    pub(super) fn is_on_trial(&self) -> bool {
        let is_on_trial = |routes: &Routes| routes.trial.is_some() && routes.reading.is_some();
        self.routes.as_deref().is_some_and(is_on_trial)
            && (self.rerun.is_none() || self.kept().is_some())
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
        if let Some(failed) = failed.filter(|failed| !failed.is_spoilt) {
            self.remember_refusal(failed.code);
        }
        self.unsend();
        // Without an error the connection itself was lost.
        self.part_with_backend(failed.is_none_or(|failed| failed.is_spoilt));
        self.enter(Phase::Idle);
        self.process_inbox(cx)
    }

    /// A statement that replicas refuse is not sent to them again.
    fn remember_refusal(&self, code: SqlState) {
        let as_write = code == SqlState::READ_ONLY_SQL_TRANSACTION;
        if !as_write && code != SqlState::FEATURE_NOT_SUPPORTED {
            return;
        }
        let texts = self.kept().and_then(|exchange| self.texts_whole(exchange));
        for (known, _) in texts.unwrap_or_default() {
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
