//! A backend that does not take the session's settings.
//!
//! # Why another one is tried, once
//! Some settings depend on what a backend has been through: `temp_buffers` can't be changed where a temporary table was
//! made, a library that was loaded brings rules for names with its prefix, what was set under another role may not be
//! taken off. Nothing of the client's was sent, so it is lost with nothing that the backend is closed. What a second
//! one refuses as well, such as a role that was dropped, ends the session: what follows must not run without it.

use std::task::Context;

use super::session::{End, Phase, Session};
use crate::error::SqlState;
use crate::routing::reason::Reason;
use crate::session::plan::Order;
use crate::wire::backend as b;

/// What the session's plans have met with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planning {
    /// How they are written.
    pub order: Order,
    /// The last one failed.
    has_failed: bool,
}

impl Planning {
    pub(super) fn succeeded(&mut self) {
        self.has_failed = false;
    }
}

impl Session {
    /// The server has refused a plan with `error`: whether another backend is tried.
    pub(super) fn plans_again(&mut self, error: &[u8]) -> bool {
        let code = b::sqlstate(error);
        let is_beginning = self.phase == Phase::Planning && !self.in_transaction && !self.timed_out;
        if self.planning.has_failed
            || !is_beginning
            || self.keeps_backend()
            || self.is_replaying()
            || self.is_settling()
            || self.is_to_fail()
        {
            return false;
        }
        self.planning.has_failed = true;
        if code == Some(SqlState::INSUFFICIENT_PRIVILEGE) {
            self.planning.order = match self.planning.order {
                Order::SettingsFirst => Order::IdentityFirst,
                Order::IdentityFirst => Order::SettingsFirst,
            };
        }
        let reason = b::error_field(error, b'M').unwrap_or_default();
        tracing::info!(
            pool = %self.pool.key,
            reason = %String::from_utf8_lossy(reason),
            "a server connection did not take a session's settings and is closed; another one is tried",
        );
        true
    }

    /// Gives up the backend whose plan has failed; what the client has sent waits for another one.
    pub(super) fn plan_elsewhere(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.unsend();
        self.part_with_backend(true);
        if let Some(routes) = &mut self.routes {
            routes.in_exchange = false;
            routes.opened = None;
            // Another replica may lack the same, such as a role that was just made.
            if routes.reading.take().is_some() {
                routes.trial = None;
                routes.forced = Some(Reason::Again);
            }
        }
        self.enter(Phase::Idle);
        self.process_inbox(cx)
    }
}
