//! Splits a text into statements and sends each to the code that knows its kind.

use super::body::{Body, Verb};
use super::cursor::Cursor;
use super::details::{PreparedRef, RawAssignment};
use super::findings::Findings;
use super::kind::StatementKind;
use super::{Answer, Class, Reads, Statement, TransactionEffect};
use crate::sql::keywords::Keyword as K;
use crate::sql::lexer::{LexOptions, TokenKind as T};
use crate::sql::name::Name;
use crate::sql::state::Effect;
use crate::sql::tables::{TableAccess, TableName};

/// Statements behind this many are not looked at.
const MAX_STATEMENTS: usize = 4096;
/// Functions of a whole text.
const MAX_FUNCTIONS: usize = 256;

pub(super) struct Classifier<'a> {
    pub(super) cursor: Cursor<'a>,
    /// Of the current statement.
    pub(super) out: Findings,
    pub(super) prepared: Vec<PreparedRef<'a>>,
    assignments: Vec<RawAssignment>,
    class: Class,
}

impl<'a> Classifier<'a> {
    pub(super) fn new(text: &'a [u8], options: LexOptions) -> Self {
        Self {
            cursor: Cursor::new(text, options),
            out: Findings::default(),
            prepared: Vec::new(),
            assignments: Vec::new(),
            class: Class::empty(),
        }
    }

    pub(super) fn run(mut self) -> (Class, Vec<RawAssignment>, Vec<PreparedRef<'a>>) {
        let mut reads = Reads::Proved;
        loop {
            while self.cursor.at(T::Semicolon) {
                self.cursor.advance();
            }
            if self.cursor.at(T::End) {
                break;
            }
            let (kind, only_reads) = if self.class.statements.len() < MAX_STATEMENTS {
                let found = self.dispatch();
                self.rest();
                found
            } else {
                self.out.uncertain = true;
                (StatementKind::Unknown, false)
            };
            let unknown = kind == StatementKind::Unknown;
            reads = weaker(reads, self.finish(kind, only_reads));
            if unknown && self.class.is_unclassifiable() {
                // The server refuses the whole text; nothing behind this can change the verdict.
                break;
            }
        }
        self.class.reads = match self.class.statements.as_slice() {
            [] => Reads::No,
            _ => reads,
        };
        if let [statement] = self.class.statements.as_slice()
            && statement.kind.is_transaction_control()
        {
            self.class.transaction.add(TransactionEffect::ALONE);
        }
        (self.class, self.assignments, self.prepared)
    }

    /// Takes the findings of a statement into the class.
    fn finish(&mut self, kind: StatementKind, only_reads: bool) -> Reads {
        let mut out = std::mem::take(&mut self.out);
        if out.tables.any_node_local() {
            out.depends_on(Answer::Node);
        }
        if out.uncertain || self.class.functions.len() + out.functions.len() > MAX_FUNCTIONS {
            out.uncertain = true;
            out.effects.push(Effect::Unparsable);
        }
        let touches_session = out
            .effects
            .iter()
            .any(|effect| *effect != Effect::OpaqueCode);
        let reads = if !only_reads || out.writes || out.uncertain || touches_session {
            Reads::No
        } else if out.effects.is_empty() {
            Reads::Proved
        } else {
            Reads::IfFunctions
        };
        let class = &mut self.class;
        class.transaction.add(super::transaction::effect(&kind));
        class.answer = class.answer.max(out.answer);
        class.needs_text |= out.needs_text;
        class.tables.append(out.tables);
        for reason in out.effects.iter().filter_map(Effect::pin_reason) {
            class.pins.insert(reason);
        }
        for function in out.functions {
            if class.functions.len() < MAX_FUNCTIONS && !class.functions.contains(&function) {
                class.functions.push(function);
            }
        }
        self.assignments.append(&mut out.assignments);
        class.statements.push(Statement {
            kind,
            effects: out.effects,
        });
        reads
    }

    /// Reads one statement; gives its kind and whether that kind only reads.
    pub(super) fn dispatch(&mut self) -> (StatementKind, bool) {
        let Some(word) = self.cursor.cur().word else {
            return if self.cursor.at(T::LeftParen) {
                self.query()
            } else {
                self.unknown()
            };
        };
        let kind = match word {
            K::Select
            | K::Values
            | K::Table
            | K::With
            | K::Insert
            | K::Update
            | K::Delete
            | K::Merge => return self.query(),
            K::Explain => return self.explain(),
            K::Copy => return self.copy(),
            K::Show => return self.show(),
            K::Declare => return self.declare(),
            K::Begin
            | K::Start
            | K::Commit
            | K::End
            | K::Rollback
            | K::Abort
            | K::Savepoint
            | K::Release => self.transaction(word),
            K::Set => self.set(),
            K::Reset => self.reset(),
            K::Create => self.create(),
            K::Alter | K::Drop => self.alter_or_drop(word),
            K::Truncate | K::Lock => self.table_command(word),
            K::Prepare
            | K::Execute
            | K::Deallocate
            | K::Discard
            | K::Listen
            | K::Unlisten
            | K::Notify
            | K::Close
            | K::Load
            | K::Do
            | K::Call => self.session(word),
            _ => match plain(word) {
                Some(kind) => kind,
                None => return self.unknown(),
            },
        };
        (kind, false)
    }

    pub(super) fn unknown(&mut self) -> (StatementKind, bool) {
        self.out.uncertain = true;
        (StatementKind::Unknown, false)
    }

    /// A query, or a statement that changes rows.
    fn query(&mut self) -> (StatementKind, bool) {
        let parenthesised = self.cursor.at(T::LeftParen);
        let modifies = self
            .cursor
            .cur()
            .is_any(&[K::Insert, K::Update, K::Delete, K::Merge]);
        match Body::scan(&mut self.cursor, &mut self.out) {
            Some(Verb::Select | Verb::Values | Verb::Table) if modifies => self.unknown(),
            Some(Verb::Select) => (StatementKind::Select, true),
            Some(Verb::Values) => (StatementKind::Values, true),
            Some(Verb::Table) => (StatementKind::Table, true),
            Some(Verb::Insert) => (StatementKind::Insert, false),
            Some(Verb::Update) => (StatementKind::Update, false),
            Some(Verb::Delete) => (StatementKind::Delete, false),
            Some(Verb::Merge) => (StatementKind::Merge, false),
            // Only a SELECT can stand in parentheses.
            None if parenthesised => (StatementKind::Select, true),
            None => self.unknown(),
        }
    }

    fn explain(&mut self) -> (StatementKind, bool) {
        self.cursor.advance();
        let mut analyze = false;
        let mut needs_text = false;
        let options = self.cursor.at(T::LeftParen)
            && !self
                .cursor
                .next()
                .is_any(&[K::Select, K::Values, K::With, K::Table])
            && self.cursor.next().kind != T::LeftParen;
        if options {
            (analyze, needs_text) = self.explain_options();
        } else {
            if self.cursor.cur().is_any(&[K::Analyze, K::Analyse]) {
                analyze = true;
                self.cursor.advance();
            }
            self.cursor.eat(K::Verbose);
        }
        if self.cursor.cur().is(K::Explain) {
            return self.unknown();
        }
        let (inner, reads) = self.dispatch();
        if !analyze {
            self.out.not_executed();
        }
        self.out.needs_text |= needs_text;
        self.out.depends_on(Answer::Volatile);
        let inner = Box::new(inner);
        (StatementKind::Explain { analyze, inner }, reads)
    }

    /// Steps over `(option [value], …)`; whether ANALYZE is on, and whether a constant said so. An option that is no plain
    /// word may be a spelling of it (`"analyze"`).
    fn explain_options(&mut self) -> (bool, bool) {
        let mut analyze = false;
        let mut by_constant = false;
        let mut begins = true;
        while !self.cursor.at(T::RightParen) && !self.cursor.at_end() {
            self.cursor.advance();
            let option = self.cursor.cur();
            let is_option = std::mem::replace(&mut begins, option.kind == T::Comma);
            if !is_option || (option.kind == T::Ident && !option.is_any(&[K::Analyze, K::Analyse]))
            {
                continue;
            }
            let value = self.cursor.next();
            let text = self.cursor.bytes(value);
            if value.kind.is_constant() {
                by_constant = true;
                analyze |= !matches!(text, b"0" | b"'off'" | b"'false'");
            } else {
                analyze |= !value.is_any(&[K::False, K::Off]);
            }
        }
        self.cursor.advance();
        (analyze, by_constant)
    }

    fn show(&mut self) -> (StatementKind, bool) {
        self.cursor.advance();
        let name = if self.cursor.eat_all(&[K::Time, K::Zone]) {
            Name::from("timezone")
        } else if self.cursor.eat_all(&[K::Session, K::Authorization]) {
            Name::from("session_authorization")
        } else if self
            .cursor
            .eat_all(&[K::Transaction, K::Isolation, K::Level])
        {
            Name::from("transaction_isolation")
        } else {
            match self.setting_name() {
                Some(name) => name,
                None => return self.unknown(),
            }
        };
        self.out.depends_on(Answer::Node);
        (StatementKind::Show(name), true)
    }

    fn declare(&mut self) -> (StatementKind, bool) {
        self.cursor.advance();
        let Some(name) = self.cursor.eat_name() else {
            return self.unknown();
        };
        while !self.cursor.at_end() && !self.cursor.cur().is(K::Cursor) {
            self.cursor.advance();
        }
        self.cursor.advance();
        let hold = self.cursor.eat_all(&[K::With, K::Hold]);
        if !hold {
            self.cursor.eat_all(&[K::Without, K::Hold]);
        }
        if !self.cursor.eat(K::For) {
            return self.unknown();
        }
        if hold {
            self.out.effect(Effect::HoldCursor(name));
        }
        let (_, reads) = self.query();
        (StatementKind::Declare { hold }, reads)
    }

    /// TRUNCATE and LOCK.
    fn table_command(&mut self, word: K) -> StatementKind {
        self.cursor.advance();
        self.cursor.eat(K::Table);
        self.table_list();
        if word == K::Truncate {
            StatementKind::Truncate
        } else {
            StatementKind::Lock
        }
    }

    /// A list of tables that are changed.
    pub(super) fn table_list(&mut self) {
        loop {
            self.cursor.eat(K::Only);
            let Some((schema, name)) = self.cursor.eat_qualified() else {
                return;
            };
            self.out.tables.push(TableName {
                schema,
                name,
                access: TableAccess::Write,
            });
            if !self.cursor.at(T::Comma) {
                return;
            }
            self.cursor.advance();
        }
    }

    /// Steps over what is left of the statement.
    fn rest(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.cursor.cur().kind {
                T::End => break,
                T::Semicolon if depth == 0 => break,
                T::Semicolon | T::Error => self.out.uncertain = true,
                T::LeftParen => depth += 1,
                T::RightParen => match depth.checked_sub(1) {
                    Some(outer) => depth = outer,
                    None => self.out.uncertain = true,
                },
                _ => {}
            }
            self.cursor.advance();
        }
        self.out.uncertain |= depth != 0;
    }
}

/// Statements without a bearing on the session, known by their first word.
fn plain(word: K) -> Option<StatementKind> {
    Some(match word {
        K::Fetch => StatementKind::Fetch,
        K::Move => StatementKind::Move,
        K::Vacuum => StatementKind::Vacuum,
        K::Analyze | K::Analyse => StatementKind::Analyze,
        K::Cluster => StatementKind::Cluster,
        K::Reindex => StatementKind::Reindex,
        K::Checkpoint => StatementKind::Checkpoint,
        K::Grant => StatementKind::Grant,
        K::Revoke => StatementKind::Revoke,
        K::Comment => StatementKind::Comment,
        K::Import => StatementKind::Import,
        K::Security => StatementKind::SecurityLabel,
        K::Refresh => StatementKind::Refresh,
        K::Reassign => StatementKind::Reassign,
        _ => return None,
    })
}

fn weaker(a: Reads, b: Reads) -> Reads {
    match (a, b) {
        (Reads::No, _) | (_, Reads::No) => Reads::No,
        (Reads::IfFunctions, _) | (_, Reads::IfFunctions) => Reads::IfFunctions,
        (Reads::Proved, Reads::Proved) => Reads::Proved,
    }
}
