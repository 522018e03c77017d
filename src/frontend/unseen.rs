//! What a statement runs that its text does not show, as far as it may leave something in the session.

use std::sync::Arc;

use super::session::Session;
use crate::config::model::PoolMode;
use crate::pool::catalogue::Catalogue;
use crate::sql::known::Known;

/// What a session keeps for it.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is true by itself")]
pub(super) struct Unseen {
    /// Of the session's database; `None` until it is asked for.
    catalogue: Option<Arc<Catalogue>>,
    /// It is time to read it.
    is_due: bool,
    /// The transaction under way may have changed what is in it.
    changes: bool,
    /// The same may have left something.
    may_have_left: bool,
    /// By what was found in the catalogue, not because nothing is known of it yet.
    by_what_was_found: bool,
    /// The server is asked what is left because nothing is known of the catalogue, and for nothing else.
    is_guess: bool,
}

/// What a statement may leave by what it runs unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    Nothing,
    /// Something, by what was found in the catalogue.
    Found,
    /// Anything: nothing is known of the catalogue.
    Unknown,
}

impl Unseen {
    pub(super) fn may_have_left(&self) -> bool {
        self.may_have_left
    }

    /// It may have by what was found.
    pub(super) fn has_left_by_what_was_found(&self) -> bool {
        self.may_have_left && self.by_what_was_found
    }

    /// A session that has lost the answer to what it asks goes on without.
    pub(super) fn is_guess(&self) -> bool {
        self.is_guess
    }
}

impl Session {
    fn catalogue(&mut self) -> &Arc<Catalogue> {
        let (pools, pool) = (&self.shared.pools, &self.pool);
        let catalogue = &mut self.unseen.catalogue;
        catalogue.get_or_insert_with(|| pools.catalogue(pool))
    }

    /// Whether `known` may leave something by what it runs unseen.
    pub(super) fn may_leave_unseen(&mut self, known: &Known) -> bool {
        self.look_at_unseen(known) != Leaving::Nothing
    }

    fn look_at_unseen(&mut self, known: &Known) -> Leaving {
        let settings = &self.effective.pool;
        let is_asked = settings.hidden_state && settings.pool_mode != PoolMode::Session;
        if !known.runs_code || !is_asked {
            return Leaving::Nothing;
        }
        let now = self.now;
        let found = &self.catalogue().unseen;
        if found.is_quiet(now) {
            return Leaving::Nothing;
        }
        let (may_leave, until) = found.look(|leaves| leaves.by(known));
        self.unseen.is_due |= until.is_none_or(|until| now >= until);
        match until {
            _ if !may_leave => Leaving::Nothing,
            Some(_) => Leaving::Found,
            None => Leaving::Unknown,
        }
    }

    /// `known` is sent.
    pub(super) fn note_unseen(&mut self, known: &Known) {
        if known.changes_unseen {
            self.unseen.changes = true;
            self.catalogue().unseen.forget();
        }
        let leaving = self.look_at_unseen(known);
        self.unseen.may_have_left |= leaving != Leaving::Nothing;
        self.unseen.by_what_was_found |= leaving == Leaving::Found;
    }

    /// Whether something may be left on the backend, which the session gives up now without asking.
    pub(super) fn take_unseen(&mut self) -> bool {
        self.unseen.by_what_was_found = false;
        std::mem::take(&mut self.unseen.may_have_left)
    }

    /// The transaction is over, and all of it is answered: has the server asked what is left, if something may be.
    ///
    /// # Why not ahead of the answers
    /// A session whose settings are in doubt ends with its connection. Here it has its answer already.
    pub(super) fn settle_unseen(&mut self, is_lost: bool) {
        let is_found = std::mem::take(&mut self.unseen.by_what_was_found);
        self.unseen.is_guess = false;
        if self.take_unseen() {
            self.unseen.is_guess = !is_found && !self.settings.is_touched();
            if !is_lost || !self.unseen.is_guess {
                self.note_opaque();
            }
        }
        // It may have been read before the change was committed.
        if std::mem::take(&mut self.unseen.changes) {
            self.catalogue().unseen.forget();
        }
    }

    /// The backend is given up or gone, and with it the answer to what was but a guess.
    pub(super) fn forget_guess(&mut self) {
        if std::mem::take(&mut self.unseen.is_guess) {
            self.settings.give_up();
        }
    }

    /// Has the catalogue read if that is due.
    pub(super) fn look_for_unseen(&mut self) {
        if std::mem::take(&mut self.unseen.is_due) {
            let (shared, pool, now) = (Arc::clone(&self.shared), Arc::clone(&self.pool), self.now);
            let dialer = || shared.pools.dialer.load_full();
            self.catalogue().look_for_unseen(&pool, dialer, now);
        }
    }

    /// The pool has other settings: its database may be another's.
    pub(super) fn forget_catalogue(&mut self) {
        self.unseen.catalogue = None;
    }
}
