//! `CREATE`, `ALTER` and `DROP`: what is temporary, which queries run, and where statements with semicolons inside end.

use super::body::{Body, is_temp_schema};
use super::kind::{DdlVerb, StatementKind};
use super::statement::Classifier;
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::TokenKind as T;
use crate::sql::state::Effect;

impl Classifier<'_> {
    pub(super) fn create(&mut self) -> StatementKind {
        self.cursor.advance();
        self.cursor.eat_all(&[K::Or, K::Replace]);
        let mut temp = self.temporary();
        while self.cursor.cur().is_any(&[
            K::Unlogged,
            K::Recursive,
            K::Unique,
            K::Constraint,
            K::Trusted,
            K::Procedural,
            K::Default,
        ]) {
            self.cursor.advance();
        }
        let object = self.object();
        let mut on_commit_drop = false;
        match object {
            Some(K::Table | K::Materialized) => {
                let (in_temp, drop) = self.create_table();
                temp |= in_temp;
                on_commit_drop = drop;
            }
            Some(K::Function | K::Procedure) => temp |= self.create_routine(),
            Some(_) => temp |= self.create_other(object == Some(K::Rule)),
            None => return self.unknown().0,
        }
        if temp {
            self.out.effect(Effect::TempTable { on_commit_drop });
        }
        StatementKind::Ddl {
            verb: DdlVerb::Create,
            object: word(object),
            temp,
        }
    }

    pub(super) fn alter_or_drop(&mut self, word_: K) -> StatementKind {
        self.cursor.advance();
        let object = self.object();
        if object.is_none() {
            return self.unknown().0;
        }
        if object == Some(K::Table) {
            self.cursor.eat_all(&[K::If, K::Exists]);
            if word_ == K::Drop {
                self.table_list();
            } else {
                self.cursor.eat(K::Only);
                self.created_table();
            }
        }
        StatementKind::Ddl {
            verb: if word_ == K::Drop {
                DdlVerb::Drop
            } else {
                DdlVerb::Alter
            },
            object: word(object),
            temp: false,
        }
    }

    /// Steps over `[LOCAL | GLOBAL] TEMP[ORARY]`; whether it was there.
    fn temporary(&mut self) -> bool {
        if self.cursor.cur().is_any(&[K::Local, K::Global]) {
            self.cursor.advance();
        }
        self.cursor.eat(K::Temp) || self.cursor.eat(K::Temporary)
    }

    /// Steps over the first word of the kind of object.
    fn object(&mut self) -> Option<K> {
        let object = self.cursor.cur().word?;
        self.cursor.advance();
        if object == K::Materialized {
            self.cursor.eat(K::View);
        }
        Some(object)
    }

    /// The table behind `CREATE TABLE` or `ALTER TABLE`; whether it is in the temporary schema.
    fn created_table(&mut self) -> bool {
        let temp = is_temp_schema(&self.cursor.name(self.cursor.cur()))
            && self.cursor.next().kind == T::Dot;
        let mut ahead = self.cursor.clone();
        if let Some((schema, name)) = ahead.eat_qualified() {
            self.cursor = ahead;
            self.out.tables.push(crate::sql::tables::TableName {
                schema,
                name,
                access: crate::sql::tables::TableAccess::Write,
            });
        }
        temp
    }

    /// `CREATE TABLE` and `CREATE MATERIALIZED VIEW`, whose query runs; whether it is temporary by its name, and
    /// whether ON COMMIT DROP was said.
    fn create_table(&mut self) -> (bool, bool) {
        self.cursor.eat_all(&[K::If, K::Not, K::Exists]);
        let temp = self.created_table();
        let mut on_commit_drop = false;
        let mut depth = 0usize;
        while !self.cursor.at(T::End) {
            let tok = self.cursor.cur();
            match tok.kind {
                T::Semicolon if depth == 0 => break,
                T::Semicolon | T::Error => self.out.uncertain = true,
                T::LeftParen => depth += 1,
                T::RightParen => depth = self.closed(depth),
                T::Ident if depth == 0 && tok.is(K::As) => {
                    self.cursor.advance();
                    if self.cursor.eat(K::Execute) {
                        self.execute();
                    } else {
                        Body::scan(&mut self.cursor, &mut self.out);
                    }
                    break;
                }
                T::Ident if depth == 0 && tok.is(K::Commit) => {
                    on_commit_drop |= self.cursor.next().is(K::Drop);
                }
                _ => {}
            }
            self.cursor.advance();
        }
        self.out.uncertain |= depth != 0;
        (temp, on_commit_drop)
    }

    fn closed(&mut self, depth: usize) -> usize {
        self.out.uncertain |= depth == 0;
        depth.saturating_sub(1)
    }

    /// Anything else that is created. The actions of a RULE are parted by semicolons in parentheses; the elements of a
    /// SCHEMA may be temporary. Whether anything temporary was found.
    fn create_other(&mut self, rule: bool) -> bool {
        let mut temp = false;
        let mut depth = 0usize;
        while !self.cursor.at(T::End) {
            let tok = self.cursor.cur();
            match tok.kind {
                T::Semicolon if depth == 0 => break,
                T::Semicolon if rule => {}
                T::Semicolon | T::Error => self.out.uncertain = true,
                T::LeftParen => depth += 1,
                T::RightParen => depth = self.closed(depth),
                T::Ident if tok.is_any(&[K::Temp, K::Temporary]) => {
                    temp |= self.cursor.prev().is_any(&[K::Create, K::Local, K::Global]);
                }
                kind if kind.is_name() => temp |= self.at_temp_schema(),
                _ => {}
            }
            self.cursor.advance();
        }
        self.out.uncertain |= depth != 0;
        temp
    }

    fn at_temp_schema(&self) -> bool {
        self.cursor.next().kind == T::Dot && is_temp_schema(&self.cursor.name(self.cursor.cur()))
    }

    /// A function or procedure: `BEGIN ATOMIC … END` has semicolons inside, and CASE … END too. Whether it is temporary.
    fn create_routine(&mut self) -> bool {
        let temp = self.at_temp_schema();
        let mut depth = 0usize;
        while !self.cursor.at(T::End) {
            match self.cursor.cur().kind {
                T::Semicolon if depth == 0 => break,
                T::Semicolon | T::Error => self.out.uncertain = true,
                T::LeftParen => depth += 1,
                T::RightParen => depth = self.closed(depth),
                T::Ident if depth == 0 && self.cursor.eat_all(&[K::Begin, K::Atomic]) => {
                    self.atomic_body();
                    break;
                }
                _ => {}
            }
            self.cursor.advance();
        }
        self.out.uncertain |= depth != 0;
        temp
    }

    /// From behind BEGIN ATOMIC to behind its END, which stands at the beginning of a statement. Any other END must
    /// close a CASE; where one does not, it may be a label, and the place where the body ends is not known.
    fn atomic_body(&mut self) {
        let mut cases = 0usize;
        loop {
            let tok = self.cursor.cur();
            let before = self.cursor.prev();
            // Behind AS or a dot they are labels and columns.
            let label = before.is(K::As) || before.kind == T::Dot;
            match tok.word {
                Some(K::Case) if !label => cases += 1,
                Some(K::End) if !label && cases > 0 => cases -= 1,
                Some(K::End) if before.kind == T::Semicolon || before.is(K::Atomic) => {
                    self.cursor.advance();
                    self.out.uncertain |= !self.cursor.at_end();
                    return;
                }
                Some(K::End) if !label => self.out.uncertain = true,
                _ if tok.kind == T::End => {
                    self.out.uncertain = true;
                    return;
                }
                _ => self.out.uncertain |= tok.kind == T::Error,
            }
            self.cursor.advance();
        }
    }
}

fn word(object: Option<K>) -> &'static str {
    match object {
        Some(K::Materialized) => "materialized view",
        Some(object) => object.word(),
        None => "",
    }
}
