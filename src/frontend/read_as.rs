//! Preparing a statement anew means what it meant when the client prepared it.
//!
//! The server reads a text's constants when it analyses it: `'2020-01-01'::timestamptz` by the time zone, dates by
//! `DateStyle`, backslashes and characters by two more settings. So statements are shared between sessions that read
//! alike, and a session that has changed one of those settings since gets its old value for as long as a Parse of
//! pgweir's takes. It is set for the transaction only, and what was in force is put back by the server itself, so that
//! nothing that was set in there is lost, be it known here or not.
//!
//! # What is left
//! A statement that was prepared in the same pipeline behind a SET of such a setting keeps its meaning on the backend
//! that prepared it; on another one it is read by the session's settings of that time.

use std::sync::Arc;

use super::session::Session;
use crate::net::buffer::Gather;
use crate::session::literal::{put_literal, put_text};
use crate::session::mirror::settings_of;
use crate::session::statements::Meaning;
use crate::shared::Prepared;
use crate::sql::LexOptions;
use crate::sql::classify::StatementKind;
use crate::sql::known::Known;
use crate::sql::reading::{UNREPORTED, has_constants};
use crate::wire::expect::For;

/// A statement that puts settings back; `None`: none was changed.
#[derive(Debug)]
#[must_use]
pub(super) struct ReadAgain(Option<(Vec<u8>, For)>);

/// A setting that is to have another value for a while; `None`: the server's own.
type Wanted<'a> = (&'a [u8], Option<&'a [u8]>);

impl Session {
    /// How the server reads this session's SQL.
    pub(super) fn lex_options(&self) -> LexOptions {
        LexOptions {
            in_doubt: self.rereads.lexing,
            ..self.told.lex_options()
        }
    }

    /// What `text`, if it is prepared now, means besides itself.
    pub(super) fn meaning(&self, text: &[u8]) -> Meaning<'_> {
        let has_constants = has_constants(text);
        let in_doubt = (self.rereads.reported && has_constants) || self.rereads.unreported;
        let reading = if in_doubt {
            self.shared.statements.apart()
        } else if has_constants {
            Arc::clone(self.told.reading())
        } else {
            Arc::default()
        };
        Meaning {
            settings: self.settings.current().analysis(),
            reading,
        }
    }

    /// Sends what makes the backend read as it did for `statement`, if it does not: behind the Parse,
    /// [`Self::read_again`] takes it back.
    pub(super) fn read_as(
        &mut self,
        statement: &Prepared,
        to: For,
        gather: &mut Gather,
    ) -> ReadAgain {
        let wanted = self.wanted(statement);
        // In a failed transaction the server would refuse the question, and analyses nothing.
        if wanted.is_empty() || !is_analysed(&statement.known) || self.has_failed() {
            return ReadAgain(None);
        }
        let (text, back) = set_texts(&wanted);
        self.run_own(&text, 0, to, gather);
        ReadAgain(Some((back, to)))
    }

    /// The opposite.
    pub(super) fn read_again(&mut self, ReadAgain(back): ReadAgain, gather: &mut Gather) {
        if let Some((text, to)) = back {
            self.run_own(&text, 0, to, gather);
        }
    }

    /// The settings that are or may be others than when `statement` was prepared.
    fn wanted<'a>(&self, statement: &'a Prepared) -> Vec<Wanted<'a>> {
        let (now, rereads) = (self.settings.current(), self.rereads);
        let mut wanted = Vec::new();
        if rereads.reported || statement.reading != *self.told.reading() {
            let reported = settings_of(&statement.reading)
                .filter(|&(name, value)| rereads.reported || self.told.get(name) != Some(value));
            wanted.extend(reported.map(|(name, value)| (name, Some(value))));
        }
        if rereads.unreported || statement.settings.as_deref() != now.analysis() {
            let before = statement.settings.as_deref().unwrap_or_default();
            for name in UNREPORTED.map(str::as_bytes) {
                let mut before = settings_of(before).filter(|&(other, _)| other == name);
                let value = before.next().map(|(_, value)| value);
                if rereads.unreported || now.get(name) != value {
                    wanted.push((name, value));
                }
            }
        }
        wanted
    }
}

/// Whether the server analyses a text that is `known` when it is prepared, and not when it runs.
fn is_analysed(known: &Known) -> bool {
    use StatementKind as K;
    !known.class.statements.iter().all(|statement| {
        let kind = &statement.kind;
        kind.is_transaction_control() || matches!(kind, K::SetTransaction(_) | K::Set)
    })
}

/// A statement that gives settings other values until the transaction ends, and one that gives them back those they had.
fn set_texts(wanted: &[Wanted<'_>]) -> (Vec<u8>, Vec<u8>) {
    let mut there = Vec::new();
    let mut back = Vec::new();
    for (name, value) in wanted {
        let mut kept = b"pgweir.".to_vec();
        kept.extend(name.to_ascii_lowercase());
        put_call(&mut there, &kept, |text| put_current(text, name));
        put_call(&mut there, name, |text| match value {
            Some(value) => put_text(text, value),
            None => text.extend_from_slice(b"NULL"),
        });
        put_call(&mut back, name, |text| put_current(text, &kept));
    }
    (there, back)
}

fn put_call(text: &mut Vec<u8>, name: &[u8], put_value: impl Fn(&mut Vec<u8>)) {
    let lead: &[u8] = if text.is_empty() { b"SELECT " } else { b", " };
    text.extend_from_slice(lead);
    text.extend_from_slice(b"pg_catalog.set_config(");
    put_literal(text, name);
    text.push(b',');
    put_value(text);
    text.extend_from_slice(b",true)");
}

fn put_current(text: &mut Vec<u8>, name: &[u8]) {
    text.extend_from_slice(b"pg_catalog.current_setting(");
    put_literal(text, name);
    text.push(b')');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_force_is_put_back_by_the_server() {
        let (there, back) = set_texts(&[(b"TimeZone", Some(b"UTC")), (b"xmloption", None)]);
        assert_eq!(
            String::from_utf8(there).unwrap(),
            "SELECT pg_catalog.set_config('pgweir.timezone',pg_catalog.current_setting('TimeZone'),true), \
             pg_catalog.set_config('TimeZone','UTC',true), \
             pg_catalog.set_config('pgweir.xmloption',pg_catalog.current_setting('xmloption'),true), \
             pg_catalog.set_config('xmloption',NULL,true)"
        );
        assert_eq!(
            String::from_utf8(back).unwrap(),
            "SELECT pg_catalog.set_config('TimeZone',pg_catalog.current_setting('pgweir.timezone'),true), \
             pg_catalog.set_config('xmloption',pg_catalog.current_setting('pgweir.xmloption'),true)"
        );
    }
}
