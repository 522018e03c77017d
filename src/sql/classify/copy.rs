//! `COPY`.

use super::body::Body;
use super::kind::{CopyDirection, CopyPeer, StatementKind};
use super::statement::Classifier;
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::TokenKind as T;
use crate::sql::tables::{TableAccess, TableName};

impl Classifier<'_> {
    /// A read only if rows go to the client: a file or a program is a side effect.
    pub(super) fn copy(&mut self) -> (StatementKind, bool) {
        self.cursor.advance();
        if self.cursor.cur().is(K::Binary) {
            self.cursor.advance();
        }
        let mut table = None;
        if self.cursor.at(T::LeftParen) {
            Body::scan_parens(&mut self.cursor, &mut self.out);
        } else {
            table = self.cursor.eat_qualified();
            if table.is_none() {
                return self.unknown();
            }
            while !self.cursor.at_end() && !self.cursor.cur().is_any(&[K::From, K::To]) {
                self.cursor.advance();
            }
        }
        let direction = if self.cursor.eat(K::To) {
            CopyDirection::To
        } else if self.cursor.eat(K::From) {
            CopyDirection::From
        } else {
            return self.unknown();
        };
        let access = match direction {
            CopyDirection::To => TableAccess::Read,
            CopyDirection::From => TableAccess::Write,
        };
        if let Some((schema, name)) = table {
            self.out.tables.push(TableName {
                schema,
                name,
                access,
            });
        }
        let peer = if self.cursor.cur().is_any(&[K::Stdin, K::Stdout]) {
            CopyPeer::Client
        } else if self.cursor.cur().is(K::Program) {
            CopyPeer::Program
        } else if self.cursor.cur().kind.is_constant() {
            CopyPeer::File
        } else {
            return self.unknown();
        };
        let reads = direction == CopyDirection::To && peer == CopyPeer::Client;
        (StatementKind::Copy { direction, peer }, reads)
    }
}
