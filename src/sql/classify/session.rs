//! Statements whose point is the session: prepared statements, channels, cursors, DISCARD, LOAD, and code of the
//! user's own.

use super::body::Body;
use super::details::{PreparedAction, PreparedRef};
use super::findings::Findings;
use super::kind::{DiscardTarget, StatementKind};
use super::opaque;
use super::statement::Classifier;
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::TokenKind as T;
use crate::sql::name::Name;
use crate::sql::state::Effect;

impl<'a> Classifier<'a> {
    /// A statement that begins with one of this module's words.
    pub(super) fn session(&mut self, word: K) -> StatementKind {
        self.cursor.advance();
        match word {
            K::Prepare => self.prepare(),
            K::Execute => self.execute(),
            K::Deallocate => self.deallocate(),
            K::Discard => self.discard(),
            K::Close => self.close(),
            K::Load => {
                self.out.effect(Effect::Load);
                StatementKind::Load
            }
            K::Do => self.anonymous_block(),
            K::Call => {
                Body::scan(&mut self.cursor, &mut self.out);
                self.out.effect(Effect::OpaqueCode);
                StatementKind::Call
            }
            _ => self.channel(word),
        }
    }

    fn prepare(&mut self) -> StatementKind {
        if self.cursor.cur().is(K::Transaction) && self.cursor.next().kind.is_constant() {
            return StatementKind::PrepareTransaction;
        }
        let Some((name, range)) = self.statement_name() else {
            return self.unknown().0;
        };
        let types_start = self.cursor.cur().start;
        let mut types_end = types_start;
        if self.cursor.at(T::LeftParen) {
            Body::scan_parens(&mut self.cursor, &mut Findings::default());
            // The parenthesis is behind the current token; `prev` may have been masked, its place is kept.
            types_end = self.cursor.prev().end;
        }
        if !self.cursor.eat(K::As) {
            return self.unknown().0;
        }
        let start = self.cursor.cur().start;
        // Nothing of it runs now.
        let mut inner = Findings::default();
        Body::scan(&mut self.cursor, &mut inner);
        self.out.uncertain |= inner.uncertain;
        let text = self.cursor.text();
        let action = PreparedAction::Prepare {
            types: text.get(types_start..types_end).unwrap_or_default(),
            body: text.get(start..self.cursor.prev().end).unwrap_or_default(),
        };
        self.refer(name.clone(), range, action);
        self.out.effect(Effect::PrepareSql(name));
        StatementKind::Prepare
    }

    /// `EXECUTE name (…)`, the current token being the name.
    pub(super) fn execute(&mut self) -> StatementKind {
        let Some((name, range)) = self.statement_name() else {
            return self.unknown().0;
        };
        self.refer(name.clone(), range, PreparedAction::Execute);
        self.out.effect(Effect::ExecuteSql(name));
        Body::scan(&mut self.cursor, &mut self.out);
        StatementKind::Execute
    }

    fn deallocate(&mut self) -> StatementKind {
        if self.cursor.next().kind.is_name() {
            self.cursor.eat(K::Prepare);
        }
        if self.cursor.eat(K::All) {
            self.out.effect(Effect::DeallocateSql(None));
        } else if let Some((name, range)) = self.statement_name() {
            self.refer(name.clone(), range, PreparedAction::Deallocate);
            self.out.effect(Effect::DeallocateSql(Some(name)));
        } else {
            return self.unknown().0;
        }
        StatementKind::Deallocate
    }

    fn statement_name(&mut self) -> Option<(Name, std::ops::Range<usize>)> {
        let tok = self.cursor.cur();
        Some((self.cursor.eat_name()?, tok.start..tok.end))
    }

    fn refer(&mut self, name: Name, range: std::ops::Range<usize>, action: PreparedAction<'a>) {
        self.prepared.push(PreparedRef {
            name,
            range,
            action,
        });
    }

    fn discard(&mut self) -> StatementKind {
        let (effect, target) = match self.cursor.cur().word {
            Some(K::All) => (Effect::DiscardAll, DiscardTarget::All),
            Some(K::Plans) => (Effect::DiscardPlans, DiscardTarget::Plans),
            Some(K::Sequences) => (Effect::DiscardSequences, DiscardTarget::Sequences),
            Some(K::Temp | K::Temporary) => (Effect::DiscardTemp, DiscardTarget::Temp),
            _ => return self.unknown().0,
        };
        self.out.effect(effect);
        StatementKind::Discard(target)
    }

    fn close(&mut self) -> StatementKind {
        let name = if self.cursor.eat(K::All) {
            None
        } else {
            match self.cursor.eat_name() {
                Some(name) => Some(name),
                None => return self.unknown().0,
            }
        };
        self.out.effect(Effect::CloseCursor(name));
        StatementKind::Close
    }

    /// LISTEN, UNLISTEN, NOTIFY.
    fn channel(&mut self, word: K) -> StatementKind {
        if word == K::Unlisten && self.cursor.bytes(self.cursor.cur()) == b"*" {
            self.out.effect(Effect::Unlisten(None));
            return StatementKind::Unlisten;
        }
        let Some(channel) = self.cursor.eat_name() else {
            return self.unknown().0;
        };
        let (effect, kind) = match word {
            K::Listen => (Effect::Listen(channel), StatementKind::Listen),
            K::Unlisten => (Effect::Unlisten(Some(channel)), StatementKind::Unlisten),
            _ => (Effect::Notify, StatementKind::Notify),
        };
        self.out.effect(effect);
        kind
    }

    fn anonymous_block(&mut self) -> StatementKind {
        self.out.effect(Effect::OpaqueCode);
        self.out.needs_text = true;
        while !self.cursor.at_end() {
            let tok = self.cursor.cur();
            if tok.kind.is_string() {
                opaque::scan(self.cursor.bytes(tok), &mut self.out);
            }
            self.out.uncertain |= tok.kind == T::Error;
            self.cursor.advance();
        }
        StatementKind::Do
    }
}
