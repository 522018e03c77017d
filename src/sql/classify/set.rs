//! `SET` and `RESET` in all their spellings.

use super::details::{RawAssignment, RawValue};
use super::kind::StatementKind;
use super::statement::Classifier;
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::TokenKind as T;
use crate::sql::name::Name;
use crate::sql::state::Effect;

impl Classifier<'_> {
    pub(super) fn set(&mut self) -> StatementKind {
        self.cursor.advance();
        if self.cursor.cur().is(K::Constraints) && !self.assignment_follows() {
            return StatementKind::SetConstraints;
        }
        let local = self.scope();
        let start = self.cursor.cur().start;
        let kind = if local {
            StatementKind::SetLocal
        } else {
            StatementKind::Set
        };
        if self.assignment_follows() {
            return self.generic_set(kind, local, start);
        }
        let name = if self.cursor.eat(K::Transaction) {
            let mut modes = self.transaction_modes();
            modes.snapshot = self.cursor.eat(K::Snapshot);
            return StatementKind::SetTransaction(modes);
        } else if self
            .cursor
            .eat_all(&[K::Session, K::Characteristics, K::As, K::Transaction])
        {
            return self.session_characteristics(start);
        } else if self.cursor.eat_all(&[K::Session, K::Authorization]) {
            "session_authorization"
        } else if self.cursor.eat(K::Role) {
            "role"
        } else if self.cursor.eat_all(&[K::Time, K::Zone]) {
            "timezone"
        } else if self.cursor.eat(K::Names) {
            "client_encoding"
        } else if self.cursor.eat(K::Schema) {
            "search_path"
        } else if self.cursor.eat_all(&[K::Xml, K::Option]) {
            "xmloption"
        } else {
            return self.unknown().0;
        };
        // LOCAL is a value only of TIME ZONE; nothing at all one only of NAMES.
        let default = self.cursor.cur().is_any(&[K::Default, K::Local]) || self.cursor.at_end();
        self.assign(Name::from(name), local, default, start);
        kind
    }

    /// Whether the current token is the name, or the first part of the name, of a setting spelled out.
    fn assignment_follows(&self) -> bool {
        let next = self.cursor.next();
        self.cursor.cur().kind.is_name()
            && (next.kind == T::Dot
                || next.is_any(&[K::To, K::From])
                || self.cursor.bytes(next) == b"=")
    }

    /// Steps over LOCAL or SESSION; whether it was LOCAL.
    fn scope(&mut self) -> bool {
        let tok = self.cursor.cur();
        let next = self.cursor.next();
        let belongs = next.is(K::Authorization)
            || (next.is(K::Characteristics) && self.cursor.next2().is(K::As));
        if !tok.is_any(&[K::Local, K::Session])
            || self.assignment_follows()
            || (tok.is(K::Session) && belongs)
        {
            return false;
        }
        self.cursor.advance();
        tok.is(K::Local)
    }

    /// `name.name` of a setting.
    pub(super) fn setting_name(&mut self) -> Option<Name> {
        let mut name = self.cursor.eat_name()?.as_bytes().to_vec();
        while self.cursor.at(T::Dot) {
            self.cursor.advance();
            name.push(b'.');
            name.extend_from_slice(self.cursor.eat_name()?.as_bytes());
        }
        Some(Name::setting(&name))
    }

    fn generic_set(&mut self, kind: StatementKind, local: bool, start: usize) -> StatementKind {
        let Some(name) = self.setting_name() else {
            return self.unknown().0;
        };
        if self.cursor.eat_all(&[K::From, K::Current]) {
            let effect = Effect::Setting {
                name: name.clone(),
                local,
            };
            self.out.effect(effect);
            self.remember(name, local, RawValue::FromCurrent, start);
            return kind;
        }
        self.cursor.advance();
        let default = self.cursor.cur().is(K::Default);
        self.assign(name, local, default, start);
        kind
    }

    /// Notes that `name` is set to what follows, the statement's own text from `start` on.
    fn assign(&mut self, name: Name, local: bool, default: bool, start: usize) {
        if name == "seed" {
            self.out.effect(Effect::SetSeed);
            return;
        }
        // These last as long as the transaction, whatever the spelling.
        let local = local
            || name == "transaction_isolation"
            || name == "transaction_read_only"
            || name == "transaction_deferrable";
        if default && !local {
            self.out.effect(Effect::ResetSetting(name));
            return;
        }
        let search_path = name == "search_path";
        while !self.cursor.at_end() && !self.cursor.at(T::Error) {
            self.out.needs_text |= search_path && self.cursor.cur().kind.is_constant();
            self.cursor.advance();
        }
        let effect = Effect::Setting {
            name: name.clone(),
            local,
        };
        self.out.effect(effect);
        let value = if default {
            RawValue::Default
        } else {
            RawValue::Statement
        };
        let assignment = self.remember(name, local, value, start);
        if search_path && assignment {
            self.out.effect(Effect::TempTable {
                on_commit_drop: false,
            });
        }
    }

    /// Keeps an assignment for `details`; whether its value names the temporary schema.
    fn remember(&mut self, name: Name, local: bool, value: RawValue, start: usize) -> bool {
        let assignment = RawAssignment {
            name,
            local,
            value,
            range: start..self.cursor.prev().end,
        };
        let temp = assignment.names_temp_schema(self.cursor.text());
        self.out.assignments.push(assignment);
        temp
    }

    fn session_characteristics(&mut self, start: usize) -> StatementKind {
        let modes = self.transaction_modes();
        let named = [
            (modes.isolation.is_some(), "default_transaction_isolation"),
            (modes.read_only.is_some(), "default_transaction_read_only"),
            (modes.deferrable.is_some(), "default_transaction_deferrable"),
        ];
        for (_, name) in named.into_iter().filter(|(named, _)| *named) {
            self.out.effect(Effect::Setting {
                name: name.into(),
                local: false,
            });
            self.remember(name.into(), false, RawValue::Statement, start);
        }
        StatementKind::SetSessionCharacteristics(modes)
    }

    pub(super) fn reset(&mut self) -> StatementKind {
        self.cursor.advance();
        let name = if self.cursor.eat(K::All) {
            self.out.effect(Effect::ResetAll);
            return StatementKind::Reset;
        } else if self.cursor.eat_all(&[K::Time, K::Zone]) {
            Some("timezone".into())
        } else if self.cursor.eat_all(&[K::Session, K::Authorization]) {
            Some("session_authorization".into())
        } else if self
            .cursor
            .eat_all(&[K::Transaction, K::Isolation, K::Level])
        {
            Some("transaction_isolation".into())
        } else {
            self.setting_name()
        };
        match name {
            Some(name) => {
                self.out.effect(Effect::ResetSetting(name));
                StatementKind::Reset
            }
            None => self.unknown().0,
        }
    }
}
