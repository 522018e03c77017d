//! How far the open transaction of a session has gone, as far as it matters for taking it to another server.

use super::routes::Routes;
use super::session::Session;
use crate::sql::classify::{Isolation, Reads, Statement, StatementKind, TransactionModes};
use crate::sql::known::Known;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub modes: TransactionModes,
    /// It has run something.
    pub has_run: bool,
    /// It has run only reads, which leave nothing behind but perhaps a portal.
    pub only_reads: bool,
    /// A cursor or another portal may be open.
    pub has_portal: bool,
}

impl Routes {
    /// A statement is sent: follows the transaction it is in.
    pub(super) fn follow(&mut self, known: &Known) {
        let class = &known.class;
        match (class.only(), &mut self.opened) {
            (Some(StatementKind::Begin(modes)), opened @ None) => {
                *opened = Some(Opened {
                    modes: *modes,
                    has_run: false,
                    only_reads: true,
                    has_portal: false,
                });
            }
            (Some(StatementKind::SetTransaction(modes)), Some(opened)) if !opened.has_run => {
                opened.modes = merged(opened.modes, *modes);
            }
            (_, Some(opened)) => {
                opened.has_run = true;
                opened.only_reads &= class.reads != Reads::No;
                let declares = |it: &Statement| matches!(it.kind, StatementKind::Declare { .. });
                opened.has_portal |= class.statements.iter().any(declares);
            }
            (_, None) => {}
        }
    }

    /// The same of one that nothing is known of.
    pub(super) fn follow_unknown(&mut self) {
        if let Some(opened) = &mut self.opened {
            opened.has_run = true;
            opened.only_reads = false;
        }
    }

    /// Whether the open transaction can be taken to another server: it has run nothing, or only reads each of which
    /// sees what is there when it begins, and is done with them.
    pub(super) fn is_movable(&self) -> bool {
        self.opened.is_some_and(|opened| {
            let is_read_committed = matches!(
                opened.modes.isolation,
                Some(Isolation::ReadCommitted | Isolation::ReadUncommitted)
            );
            let leaves_nothing = opened.only_reads && !opened.has_portal;
            !opened.modes.snapshot && (!opened.has_run || (leaves_nothing && is_read_committed))
        })
    }

    /// Whether the open transaction can be taken to another server to be ended there: what it has read needs no more to
    /// hold together.
    pub(super) fn can_end_elsewhere(&self) -> bool {
        self.opened
            .is_some_and(|opened| opened.only_reads && !opened.modes.snapshot)
    }
}

impl Session {
    /// The client keeps a portal beyond the exchange, for all that is known.
    pub(super) fn note_portal(&mut self) {
        if let Some(opened) = self
            .routes
            .as_deref_mut()
            .and_then(|routes| routes.opened.as_mut())
        {
            opened.has_portal = true;
        }
    }
}

/// Later modes over earlier ones.
fn merged(before: TransactionModes, after: TransactionModes) -> TransactionModes {
    TransactionModes {
        read_only: after.read_only.or(before.read_only),
        isolation: after.isolation.or(before.isolation),
        deferrable: after.deferrable.or(before.deferrable),
        snapshot: after.snapshot || before.snapshot,
    }
}
