//! Queries: functions called, tables named, and whether rows are written or locked, in one pass without recursion.
//!
//! It does not parse expressions. It knows where PostgreSQL's grammar puts a keyword and reads anything else as a name;
//! where a keyword could be either, it takes the reading that promises less.

use super::cursor::{Cursor, Tok};
use super::findings::{Findings, MAX_FUNCTIONS};
use super::scope::{BEFORE_OPERAND, FROM, QUERY, Scope, USING, WITH};
use super::{Answer, calls};
use crate::sql::functions::{Behaviour, FunctionName};
use crate::sql::keywords::{Category, Keyword as K};
use crate::sql::lexer::TokenKind as T;
use crate::sql::name::Name;
use crate::sql::state::Effect;
use crate::sql::tables::{TableAccess, TableName};

/// More common table expressions than this are not told from tables.
const MAX_CTES: usize = 64;

/// Nor are the arguments of more calls of `set_config` looked at: nested ones are looked at again each time.
const MAX_SET_CONFIGS: usize = 32;

/// The verb of a query: what it is as a whole, behind its WITH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Select,
    Values,
    Table,
    Insert,
    Update,
    Delete,
    Merge,
}

pub(super) struct Body<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    out: &'c mut Findings,
    scope: Scope,
    /// The next name is a table.
    expect: Option<TableAccess>,
    ctes: Vec<Name>,
    verb: Option<Verb>,
    /// Where calls were spelled that need no second look.
    called: Vec<(usize, usize)>,
    /// Calls of `set_config` whose arguments were looked at.
    set_configs: usize,
    /// End of the token that named the last table: an alias with column names may follow.
    table_end: usize,
}

impl<'c, 'a> Body<'c, 'a> {
    /// Scans from the current token to the end of the statement.
    pub(super) fn scan(cursor: &'c mut Cursor<'a>, out: &'c mut Findings) -> Option<Verb> {
        Self::new(cursor, out).run(false)
    }

    /// Scans from an opening parenthesis, the current token, to behind its partner.
    pub(super) fn scan_parens(cursor: &'c mut Cursor<'a>, out: &'c mut Findings) {
        Self::new(cursor, out).run(true);
    }

    fn new(cursor: &'c mut Cursor<'a>, out: &'c mut Findings) -> Self {
        Self {
            cursor,
            out,
            scope: Scope::new(),
            expect: None,
            ctes: Vec::new(),
            verb: None,
            called: Vec::new(),
            set_configs: 0,
            table_end: usize::MAX,
        }
    }

    fn run(mut self, only_parens: bool) -> Option<Verb> {
        // Whatever stands before a query (AS, FOR, an option list) says nothing about its first word.
        self.cursor.forget_prev();
        let begin = self.cursor.cur().start;
        loop {
            let tok = self.cursor.cur();
            match tok.kind {
                T::End => break,
                T::Semicolon if self.scope.depth() == 0 => break,
                T::Semicolon | T::Error => self.out.uncertain = true,
                T::LeftParen | T::LeftBracket => self.open(),
                T::RightParen | T::RightBracket => {
                    self.close();
                    if only_parens && self.scope.depth() == 0 {
                        break;
                    }
                    continue;
                }
                T::Comma => self.comma(),
                T::Typecast => {
                    self.type_name();
                    continue;
                }
                T::Dot if self.cursor.next().kind.is_name() => self.cursor.advance(),
                T::Ident => match tok.word {
                    Some(word) => self.keyword(word, tok.start == begin),
                    None => self.name(),
                },
                T::QuotedIdent | T::UnicodeIdent => self.name(),
                _ => self.expect = None,
            }
            self.cursor.advance();
        }
        if self.scope.is_broken() || self.scope.depth() != 0 {
            self.out.uncertain = true;
            self.out.tables.set_incomplete();
        }
        self.verb
    }

    fn open(&mut self) {
        let flags = match self.expect {
            // A parenthesised join, or a subquery.
            Some(_) if self.cursor.at(T::LeftParen) => QUERY | FROM,
            _ => 0,
        };
        if flags == 0 {
            self.expect = None;
        }
        if self.verb.is_none()
            && self.scope.depth() == 0
            && self.cursor.prev().kind == T::RightParen
        {
            // `WITH … (…) (SELECT …)`: only a SELECT can stand in parentheses.
            self.verb = Some(Verb::Select);
            self.scope.clear(WITH);
        }
        let prev = self.cursor.prev();
        let distinct_on = prev.is(K::On) && self.cursor.prev2().is(K::Distinct);
        self.scope.open(if distinct_on || prev.is(K::Operator) {
            BEFORE_OPERAND
        } else {
            flags
        });
    }

    fn close(&mut self) {
        self.expect = None;
        let inside = self.scope.close();
        self.cursor.advance();
        if inside & BEFORE_OPERAND != 0 {
            self.cursor.forget_prev();
        }
    }

    fn comma(&mut self) {
        self.expect = None;
        if self.scope.has(WITH) {
            self.cte();
        } else if self.scope.has(FROM) {
            self.expect = Some(TableAccess::Read);
        }
    }

    /// `::type` with its modifiers: nothing in front of the parenthesis is a function.
    fn type_name(&mut self) {
        self.cursor.advance();
        if self.cursor.cur().kind.is_name() {
            self.cursor.chain();
            self.cursor.advance();
        }
        self.expect = None;
    }

    /// Notes the name of a common table expression that follows the current token.
    fn cte(&mut self) {
        let tok = self.cursor.next();
        if tok.is_column_id() {
            if self.ctes.len() < MAX_CTES {
                self.ctes.push(self.cursor.name(tok));
            }
            self.cursor.advance();
        }
    }

    fn keyword(&mut self, word: K, first: bool) {
        match word {
            K::Select => self.begins(Verb::Select),
            K::Values if self.cursor.next().kind == T::LeftParen => self.begins(Verb::Values),
            K::Table => {
                self.begins(Verb::Table);
                self.expect = Some(TableAccess::Read);
            }
            K::With => self.with(),
            K::From => self.from(),
            K::Join if self.scope.has(FROM) => self.expect = Some(TableAccess::Read),
            K::Using if self.scope.has(USING) && !self.scope.has(FROM) => {
                self.scope.set(FROM);
                self.expect = Some(TableAccess::Read);
            }
            K::Only | K::Lateral => {}
            K::Into => self.into(),
            K::Where
            | K::Group
            | K::Having
            | K::Window
            | K::Order
            | K::Limit
            | K::Offset
            | K::Fetch
            | K::Union
            | K::Intersect
            | K::Except
            | K::Returning => {
                self.scope.clear(FROM);
                self.expect = None;
            }
            K::For => self.locking(),
            K::As => self.label(),
            K::Tablesample => self.tablesample(),
            K::Insert | K::Update | K::Delete | K::Merge if self.is_verb(word, first) => {
                self.modifies(word);
            }
            K::CurrentDate
            | K::CurrentTime
            | K::CurrentTimestamp
            | K::Localtime
            | K::Localtimestamp => self.out.depends_on(Answer::Volatile),
            _ => self.name(),
        }
    }

    /// A query begins at this depth, behind its WITH if it has one.
    fn begins(&mut self, verb: Verb) {
        if self.scope.depth() == 0 && self.verb.is_none() {
            self.verb = Some(verb);
        }
        self.scope.clear(FROM | WITH);
        self.scope.set(QUERY);
        self.expect = None;
    }

    fn with(&mut self) {
        let (next, next2) = (self.cursor.next(), self.cursor.next2());
        let ordinality = next.is(K::Ordinality) && self.scope.has(FROM);
        let named = next2.is(K::As) || next2.kind == T::LeftParen;
        let recursive = next.is(K::Recursive) && !named;
        if !next.is_column_id() || ordinality || !(named || recursive) {
            return;
        }
        self.scope.set(WITH);
        self.expect = None;
        if recursive {
            self.cursor.advance();
        }
        self.cte();
    }

    fn from(&mut self) {
        self.expect = None;
        if self.scope.has(QUERY) && !self.cursor.prev().is(K::Distinct) {
            self.scope.set(FROM);
            self.expect = Some(TableAccess::Read);
        }
    }

    /// `SELECT … INTO`; that of INSERT and MERGE is stepped over with its verb.
    fn into(&mut self) {
        self.out.writes = true;
        self.scope.clear(FROM);
        self.expect = Some(TableAccess::Write);
        if self.cursor.next().is_any(&[K::Local, K::Global])
            && self.cursor.next2().is_any(&[K::Temp, K::Temporary])
        {
            self.cursor.advance();
        }
        let (next, next2) = (self.cursor.next(), self.cursor.next2());
        if next.is_any(&[K::Temp, K::Temporary, K::Unlogged])
            && (next2.is_column_id() || next2.is(K::Table))
        {
            if !next.is(K::Unlogged) {
                self.out.effect(Effect::TempTable {
                    on_commit_drop: false,
                });
            }
            self.cursor.advance();
        }
        if self.cursor.next().is(K::Table) {
            self.cursor.advance();
        }
        if is_temp_schema(&self.cursor.name(self.cursor.next()))
            && self.cursor.next2().kind == T::Dot
        {
            self.out.effect(Effect::TempTable {
                on_commit_drop: false,
            });
        }
    }

    /// `FOR UPDATE` and its weaker kin. Elsewhere FOR belongs to `substring` and the like.
    fn locking(&mut self) {
        if self
            .cursor
            .next()
            .is_any(&[K::Update, K::Share, K::No, K::Key])
        {
            self.out.writes = true;
            self.scope.clear(FROM);
        }
        self.expect = None;
    }

    /// Steps over the label or type behind AS, which may be spelled like anything. Not over the query of a common table
    /// expression or a `CREATE … AS`.
    fn label(&mut self) {
        self.expect = None;
        if self.cursor.next().is(K::Not) && self.cursor.next2().is(K::Materialized) {
            self.cursor.skip(2);
        } else if self.cursor.next().kind.is_name() {
            self.cursor.advance();
            self.cursor.chain();
        }
    }

    fn tablesample(&mut self) {
        let method = self.cursor.next();
        let built_in = [&b"system"[..], b"bernoulli"]
            .iter()
            .any(|name| self.cursor.bytes(method).eq_ignore_ascii_case(name));
        if built_in {
            self.cursor.advance();
            self.out.depends_on(Answer::Volatile);
        }
    }

    /// Whether INSERT, UPDATE, DELETE or MERGE is one here, and not a column or alias of that name.
    fn is_verb(&self, word: K, first: bool) -> bool {
        let next = self.cursor.next();
        let shape = match word {
            K::Insert | K::Merge => next.is(K::Into),
            K::Delete => next.is(K::From),
            _ => next.is(K::Only) || next.is_column_id(),
        };
        shape && (first || self.cursor.prev().kind == T::LeftParen || self.scope.has(WITH))
    }

    fn modifies(&mut self, word: K) {
        let verb = match word {
            K::Insert => Verb::Insert,
            K::Merge => Verb::Merge,
            K::Delete => Verb::Delete,
            _ => Verb::Update,
        };
        self.begins(verb);
        self.out.writes = true;
        if matches!(verb, Verb::Delete | Verb::Merge) {
            self.scope.set(USING);
        }
        self.expect = Some(TableAccess::Write);
        if verb != Verb::Update {
            self.cursor.advance();
        }
    }

    /// A name: a function if called, a table if one is due, else a column and of no interest.
    fn name(&mut self) {
        let (before, before2) = (self.cursor.prev(), self.cursor.prev2());
        let first = self.cursor.cur();
        let schema = self.cursor.chain();
        let expected = self.expect.take();
        let category = first.word.map(K::category);
        // Reserved words can't begin a name.
        if category == Some(Category::R) {
            return;
        }
        let called = self.cursor.next().kind == T::LeftParen;
        if called && !self.is_alias(before, expected) {
            let single = schema.is_none();
            let syntax = single
                && (category == Some(Category::C)
                    || calls::is_syntax(self.cursor, first, before, before2, self.out.writes));
            if !syntax {
                self.call(first, schema);
            }
        } else if let Some(access) = expected {
            let keyword = category == Some(Category::T)
                || (first.is(K::Rows) && self.cursor.next().is(K::From));
            if keyword {
                self.expect = expected;
            } else {
                self.table(schema, access);
            }
        }
    }

    /// Whether the names of columns, not arguments, are in the parentheses behind the current name: it is a table that
    /// is written to, or an alias behind `before` in FROM.
    fn is_alias(&self, before: Tok, expected: Option<TableAccess>) -> bool {
        let behind_item = self.table_end == before.end
            || before.kind == T::RightParen
            || (before.kind.is_name() && before.word.is_none());
        expected == Some(TableAccess::Write) || (self.scope.has(FROM) && behind_item)
    }

    /// Notes the table whose name ends with the current token.
    fn table(&mut self, schema: Option<Tok>, access: TableAccess) {
        let last = self.cursor.cur();
        self.table_end = last.end;
        if !self.out.tables.is_complete() {
            return;
        }
        let name = self.cursor.name(last);
        if schema.is_some() || !self.ctes.contains(&name) {
            self.out.tables.push(TableName {
                schema: schema.map(|tok| self.cursor.name(tok)),
                name,
                access,
            });
        }
    }

    /// A call: the current token ends the function's name, the next is its parenthesis.
    fn call(&mut self, first: Tok, schema: Option<Tok>) {
        let last = self.cursor.cur();
        let text = self.cursor.text();
        let spelled = text.get(first.start..last.end).unwrap_or_default();
        let seen = |&(start, end): &(usize, usize)| text.get(start..end) == Some(spelled);
        if self.called.iter().any(seen) {
            return;
        }
        if self.out.functions.len() >= MAX_FUNCTIONS {
            self.out.uncertain = true;
            return;
        }
        let function = FunctionName::new(
            schema.map(|tok| self.cursor.name(tok)),
            self.cursor.name(last),
        );
        if function.behaviour == Behaviour::SetConfig && self.set_configs < MAX_SET_CONFIGS {
            self.set_configs += 1;
            calls::set_config(self.cursor, self.out);
        } else {
            self.called.push((first.start, last.end));
            self.out.uncertain |= function.behaviour == Behaviour::SetConfig;
        }
        self.out.call(function);
    }
}

/// `pg_temp`, or a backend's own `pg_temp_3`.
pub(super) fn is_temp_schema(name: &Name) -> bool {
    name.as_bytes().starts_with(b"pg_temp")
}
