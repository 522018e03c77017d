//! What the client's statements do to its session, noted as they are sent.

use super::session::{End, Session};
use crate::config::model::PoolMode;
use crate::error::{Report, SqlState};
use crate::pool::Lease;
use crate::sql::classify::StatementKind;
use crate::sql::known::Known;
use crate::sql::state::Effect;

impl Session {
    /// Code is about to be sent that can't be seen through.
    pub(super) fn note_opaque(&mut self) {
        if self.effective.pool.pool_mode != PoolMode::Session {
            self.settings.touch_opaque();
            if let Some(lease) = &mut self.lease {
                lease.mirror.unknown_to = Some(self.entry.pid.0);
            }
        }
    }

    /// Notes what a statement that is about to be sent does to the session.
    pub(super) fn note(&mut self, known: &Known) -> Result<(), End> {
        if !self.pins.is_empty() && known.may_unpin {
            self.settings.ask_leftovers();
        }
        if known.creates && self.settings.may_create_in_temp() {
            self.settings.ask_leftovers();
        }
        self.rereads.add(known.rereads);
        let transaction = known.class.transaction;
        if transaction.ends() || transaction.savepoints() {
            self.rereads.may_be_taken_back();
        }
        self.note_unseen(known);
        if known.is_plain {
            return Ok(());
        }
        if known.empties_database {
            self.shared.pools.vacate(&known.query.text);
        }
        let class = &known.class;
        self.copies_in |= known.copies_in;
        if transaction.begins() || transaction.ends() {
            // A string that does both is settled by what the server reports.
            self.in_transaction = transaction.begins() || transaction.chains();
        }
        if self.in_transaction && self.effective.pool.pool_mode == PoolMode::Statement {
            let report = Report::fatal(
                SqlState::FEATURE_NOT_SUPPORTED,
                "transaction blocks are not allowed in statement pooling mode",
            )
            .hint("Use pool_mode = \"transaction\".");
            return Err(End::Fatal(Box::new(report)));
        }
        for statement in &class.statements {
            let sets = matches!(statement.kind, StatementKind::Set | StatementKind::SetLocal);
            statement
                .effects
                .iter()
                .for_each(|effect| self.note_effect(effect, sets));
        }
        Ok(())
    }

    /// `sets`: it is that of a SET.
    fn note_effect(&mut self, effect: &Effect, sets: bool) {
        if let Effect::Setting { name, .. } = effect
            && !sets
            && *name == "search_path"
        {
            self.settings.take_unseen_path();
        }
        match effect {
            Effect::Setting { name, local: false } if sets => self.settings.assign(name.as_bytes()),
            Effect::Setting { name, local: false } => self.settings.touch(name.as_bytes()),
            Effect::ResetSetting(_) | Effect::ResetAll => self.note_reset(effect),
            Effect::DeallocateSql(name) => {
                self.deallocates = true;
                // The name may be one that pgweir has given.
                if name.is_some() {
                    self.settings.ask_leftovers();
                }
            }
            Effect::DiscardAll => {
                self.discards = true;
                self.settings.discard_all();
                // Servers before November 2024 leave nobody's role, be another one that of the login.
                let is_none = |lease: &Lease| lease.mirror.login_role.as_deref() == Some(b"none");
                if !self.lease.as_ref().is_some_and(is_none) {
                    self.settings.touch(b"role");
                }
            }
            Effect::SettingsUnknown => self.settings.touch_anything(),
            Effect::OpaqueCode => self.note_opaque(),
            _ => {}
        }
    }

    /// Notes what a statement that is about to be sent, or run by code that is, resets: that is the server's own then,
    /// not what the client started with, nor what `connect_query` has set.
    pub(super) fn note_reset(&mut self, effect: &Effect) {
        match effect {
            Effect::ResetAll => self.settings.reset_all(),
            Effect::ResetSetting(name) => self.settings.reset(name.as_bytes()),
            _ => return,
        }
        if let Some(lease) = &mut self.lease {
            lease.mirror.is_bare = true;
        }
    }
}
