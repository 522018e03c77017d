//! Preparing a statement anew means what it meant when the client prepared it.
//!
//! The server reads a text's constants when it analyses it: `'2020-01-01'::timestamptz` by the time zone, dates by
//! `DateStyle`, backslashes and characters by two more settings. A session that has changed one of them since gets its
//! old value for as long as the Parse takes. It is set for the transaction only, so that nothing that was set in there is
//! lost.

use super::session::Session;
use crate::net::buffer::Gather;
use crate::session::mirror::settings_of;
use crate::session::settings::put_literal;
use crate::shared::Prepared;
use crate::wire::expect::For;

impl Session {
    /// Sends what makes the backend read as it did for `statement`, if it does not; true if something was sent.
    pub(super) fn read_as(&mut self, statement: &Prepared, gather: &mut Gather) -> bool {
        if *statement.reading == **self.told.reading() {
            return false;
        }
        let wanted = settings_of(&statement.reading);
        let changed =
            wanted.filter(|&(name, value)| self.told.get(name).is_some_and(|told| told != value));
        let text = set_text(changed);
        if let Some(text) = &text {
            self.run_own(text, 0, For::Reparse, gather);
        }
        text.is_some()
    }

    /// The opposite.
    pub(super) fn read_as_told(&mut self, statement: &Prepared, gather: &mut Gather) {
        let read = settings_of(&statement.reading);
        let changed = read.filter_map(|(name, value)| {
            let told = self.told.get(name)?;
            (told != value).then_some((name, told))
        });
        if let Some(text) = set_text(changed) {
            self.run_own(&text, 0, For::Reparse, gather);
        }
    }
}

/// A statement that gives `settings` these values until the transaction ends; `None` if there are none.
fn set_text<'a>(settings: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    for (name, value) in settings {
        let lead = if text.is_empty() { "SELECT " } else { ", " };
        text.extend_from_slice(lead.as_bytes());
        text.extend_from_slice(b"pg_catalog.set_config(");
        put_literal(&mut text, name);
        text.push(b',');
        put_literal(&mut text, value);
        text.extend_from_slice(b",true)");
    }
    (!text.is_empty()).then_some(text)
}
