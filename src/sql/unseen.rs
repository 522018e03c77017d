//! What the source of a function shows of what it may leave behind in a session, where something runs it that no text names:
//! a trigger, a view.
//!
//! Words decide. A source that runs SQL put together at run time (`EXECUTE`), or is in a language that is not read here, may
//! leave anything. What the functions do that it calls is up to the caller, who gets their names among all others.
//!
//! Bound: a source longer than [`SOURCE_MAX`] is not read.

use std::collections::{HashMap, HashSet};

use super::classify::StatementKind;
use super::functions::{Behaviour, FunctionName};
use super::known::Known;
use super::lexer::{LexOptions, Lexer, Token, TokenKind as T};
use super::name::Name;

/// Bytes of a source that is read.
pub const SOURCE_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Source {
    /// A setting, a lock, a temporary table and the like may stay when its transaction is over.
    pub leaves: bool,
    /// It may fire triggers.
    pub changes_data: bool,
    /// Every name in it.
    pub names: HashSet<Box<[u8]>>,
}

impl Source {
    /// Of a source that can't be read.
    pub fn unreadable() -> Self {
        Self {
            leaves: true,
            changes_data: true,
            names: HashSet::new(),
        }
    }

    /// What `text`, in the procedural language `language`, shows.
    pub fn read(language: &[u8], text: &[u8]) -> Self {
        if !matches!(language, b"plpgsql" | b"sql") || text.len() > SOURCE_MAX {
            return Self::unreadable();
        }
        let tokens = Lexer::new(text, LexOptions::default()).filter(|it| !it.kind.is_trivia());
        let code = Code {
            text,
            tokens: tokens.collect(),
        };
        let mut source = Self::default();
        for (at, token) in code.tokens.iter().enumerate() {
            match token.kind {
                // What is not terminated, and names whose escape character is said behind them.
                T::Error | T::UnicodeIdent => return Self::unreadable(),
                kind if kind.is_name() => source.note(&code, at),
                _ => {}
            }
        }
        source
    }

    /// Adds what another function of the same name shows.
    pub fn add(&mut self, other: Self) {
        self.leaves |= other.leaves;
        self.changes_data |= other.changes_data;
        self.names.extend(other.names);
    }

    fn note(&mut self, code: &Code<'_>, at: usize) {
        let token = code.tokens[at];
        let name = Name::of_token(token.kind, &code.text[token.range()], b'\\');
        self.leaves |= code.calls_what_leaves(at, &name);
        if token.kind == T::Ident {
            self.leaves |= code.leaves(at, name.as_bytes());
            self.changes_data |= CHANGES.contains(&name.as_bytes());
        }
        self.names.insert(name.as_bytes().into());
    }
}

const CHANGES: [&[u8]; 11] = [
    b"insert",
    b"update",
    b"delete",
    b"merge",
    b"truncate",
    b"copy",
    b"create",
    b"alter",
    b"drop",
    b"refresh",
    b"import",
];

/// A source as its tokens, without white space and comments.
struct Code<'a> {
    text: &'a [u8],
    tokens: Vec<Token>,
}

impl Code<'_> {
    /// Whether one of `words` stands at `at`.
    fn is_any(&self, at: Option<usize>, words: &[&str]) -> bool {
        let token = at.and_then(|at| self.tokens.get(at));
        token.is_some_and(|token| {
            let bytes = &self.text[token.range()];
            let is = |word: &&str| bytes.eq_ignore_ascii_case(word.as_bytes());
            token.kind == T::Ident && words.iter().any(is)
        })
    }

    /// Whether a statement may begin at `at`. (No word but SET begins a statement in one place and a clause in others.)
    fn begins(&self, at: usize) -> bool {
        let Some(before) = at.checked_sub(1) else {
            return true;
        };
        let token = self.tokens[before];
        let is_label = token.kind == T::Operator && self.text[token.range()].ends_with(b">>");
        token.kind == T::Semicolon
            || is_label
            || self.is_any(Some(before), &["begin", "then", "else", "loop"])
    }

    /// Whether the keyword `word` at `at` belongs to something that leaves state in the session.
    fn leaves(&self, at: usize, word: &[u8]) -> bool {
        let before = at.checked_sub(1);
        match word {
            b"execute" => true,
            b"temp" | b"temporary" => {
                self.is_any(before, &["create", "local", "global", "into", "replace"])
            }
            b"hold" => self.is_any(before, &["with"]),
            b"set" => {
                let ends = ["local", "constraints", "transaction"];
                self.begins(at) && !self.is_any(Some(at + 1), &ends)
            }
            b"reset" | b"load" | b"do" | b"listen" | b"unlisten" | b"prepare" | b"deallocate"
            | b"discard" => self.begins(at),
            _ => false,
        }
    }

    /// Whether the name at `at` is one of a function that leaves state in the session, or of the temporary schema.
    fn calls_what_leaves(&self, at: usize, name: &Name) -> bool {
        match FunctionName::new(None, name.clone()).behaviour {
            Behaviour::SetConfig => !self.sets_locally(at),
            Behaviour::SetSeed
            | Behaviour::AdvisoryLock
            | Behaviour::AdvisoryUnlock
            | Behaviour::SessionState
            | Behaviour::RunsSql => true,
            _ => name.as_bytes().starts_with(b"pg_temp"),
        }
    }

    /// Whether the call of `set_config` at `at` ends with `, true)`: what it sets ends with the transaction.
    fn sets_locally(&self, at: usize) -> bool {
        let mut depth = 0_usize;
        for (index, token) in self.tokens.iter().enumerate().skip(at + 1) {
            match token.kind {
                T::LeftParen => depth += 1,
                T::RightParen if depth == 1 => {
                    let comma = self.tokens.get(index - 2).map(|it| it.kind);
                    return comma == Some(T::Comma) && self.is_any(Some(index - 1), &["true"]);
                }
                T::RightParen if depth > 0 => depth -= 1,
                _ if depth == 0 => return false,
                _ => {}
            }
        }
        false
    }
}

/// Functions by name, and how they are run.
#[derive(Debug, Default)]
pub struct Sources {
    by_name: HashMap<Box<[u8]>, (Source, Vec<u8>)>,
}

impl Sources {
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Adds a function that is run in these `ways`, a letter each: `w` when data is written, `d` with DDL, `r` when data is
    /// read, `a` if it is written as a column.
    pub fn add(&mut self, name: &[u8], ways: &[u8], source: Source) {
        let (known, known_ways) = self.by_name.entry(name.into()).or_default();
        known.add(source);
        known_ways.extend(ways);
    }

    /// The names in the sources that are not in `asked`.
    pub fn names_but(&self, asked: &HashSet<Box<[u8]>>) -> Vec<Box<[u8]>> {
        let names = self.by_name.values().flat_map(|(source, _)| &source.names);
        let new: HashSet<_> = names.filter(|name| !asked.contains(*name)).collect();
        new.into_iter().cloned().collect()
    }

    /// What a function does, those that call it do.
    fn spread(&mut self) {
        loop {
            let with = |does: fn(&Source) -> bool| -> HashSet<Box<[u8]>> {
                let those = self.by_name.iter().filter(|(_, (source, _))| does(source));
                those.map(|(name, _)| name.clone()).collect()
            };
            let (leaving, changing) = (with(|it| it.leaves), with(|it| it.changes_data));
            let mut changed = false;
            for (source, _) in self.by_name.values_mut() {
                let leaves = source.leaves || !source.names.is_disjoint(&leaving);
                let changes = source.changes_data || !source.names.is_disjoint(&changing);
                changed |= leaves != source.leaves || changes != source.changes_data;
                (source.leaves, source.changes_data) = (leaves, changes);
            }
            if !changed {
                return;
            }
        }
    }

    /// Which texts may run what leaves something.
    pub fn judge(mut self) -> Leaves {
        self.spread();
        let any = |way: u8, does: &dyn Fn(&Source) -> bool| {
            let mut all = self.by_name.values();
            all.any(|(source, ways)| ways.contains(&way) && does(source))
        };
        let leaves = |source: &Source| source.leaves;
        let writes = any(b'w', &leaves);
        // What is run unseen may itself fire what leaves something.
        let fires = |source: &Source| source.leaves || (writes && source.changes_data);
        let attributes = self
            .by_name
            .iter()
            .filter(|(_, (source, ways))| ways.contains(&b'a') && fires(source));
        Leaves {
            reads: any(b'r', &fires),
            writes,
            defines: any(b'd', &leaves),
            attributes: attributes.map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// Which texts may run what leaves something.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    /// All.
    reads: bool,
    /// Those that may write.
    writes: bool,
    /// Those that define something.
    defines: bool,
    /// Those that have one of these as a column.
    attributes: Vec<Box<[u8]>>,
}

impl Leaves {
    /// What nobody can tell of a database whose functions are too many.
    pub fn anything() -> Self {
        Self {
            reads: true,
            ..Self::default()
        }
    }

    /// Whether no text may.
    pub fn is_nothing(&self) -> bool {
        !(self.reads || self.writes || self.defines) && self.attributes.is_empty()
    }

    /// Whether `known` may run it.
    pub fn by(&self, known: &Known) -> bool {
        let defines = |known: &Known| {
            let mut statements = known.class.statements.iter();
            statements.any(|it| matches!(it.kind, StatementKind::Ddl { .. }))
        };
        self.reads
            || (self.writes && known.writes)
            || (self.defines && known.writes && defines(known))
            || self
                .attributes
                .iter()
                .any(|name| known.attributes.may_have(name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::known::KnownStatements;
    use super::*;

    fn of(text: &str) -> Source {
        Source::read(b"plpgsql", text.as_bytes())
    }

    #[test]
    fn what_ordinary_triggers_do_leaves_nothing() {
        for text in [
            "BEGIN NEW.changed := now(); RETURN NEW; END",
            "begin insert into audit select old.*, current_setting('app.user', true); return null; end",
            "BEGIN UPDATE t SET temp = 1 -- set it\n, hold = 2 WHERE id = NEW.id; RETURN NULL; END",
            "BEGIN INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2; RETURN NULL; END",
            "BEGIN PERFORM set_config('app.user', coalesce(NEW.a, f(1)), true); SET LOCAL work_mem = '1MB'; RETURN NEW; END",
            "BEGIN PERFORM pg_advisory_xact_lock(1), pg_notify('a', 'SET x = 1'); RETURN NEW; END",
            "/* ; SET a = 1 */ BEGIN RAISE NOTICE 'pg_advisory_lock'; END",
        ] {
            assert!(!of(text).leaves, "{text}");
        }
    }

    #[test]
    fn what_stays_in_the_session_is_seen() {
        for text in [
            "BEGIN PERFORM set_config('app.x', NEW.a, false); RETURN NEW; END",
            "BEGIN PERFORM set_config('app.x', NEW.a, NOT true); RETURN NEW; END",
            "BEGIN PERFORM set_config('a', 'b', is_local => true or false); RETURN NEW; END",
            "BEGIN PERFORM PG_CATALOG.\"pg_advisory_lock\"(1); RETURN NEW; END",
            "BEGIN -- so\nSET work_mem = '1MB'; RETURN NEW; END",
            "BEGIN IF a THEN RESET ALL; END IF; <<x>> SET a = 1; END",
            "SET a = 1",
            "BEGIN CREATE TEMP TABLE IF NOT EXISTS x (a int); RETURN NEW; END",
            "BEGIN CREATE TABLE pg_temp.x (a int); RETURN NEW; END",
            "BEGIN SELECT 1 INTO TEMPORARY x; END",
            "BEGIN LISTEN a; END",
            "BEGIN EXECUTE format('INSERT INTO %I VALUES (1)', TG_ARGV[0]); RETURN NEW; END",
            "BEGIN DO 'BEGIN END'; END",
            "BEGIN PERFORM dblink_connect('a', 'b'), 1; END",
            "BEGIN PERFORM 'not terminated; END",
        ] {
            assert!(of(text).leaves, "{text}");
        }
        assert!(Source::read(b"plperl", b"1").leaves);
    }

    #[test]
    fn names_are_told_as_the_server_folds_them() {
        let source = of("BEGIN PERFORM App.Touch(1), \"App\".\"Touch\"(2); DELETE FROM t; END");
        for name in ["app", "touch", "App", "Touch"] {
            assert!(source.names.contains(name.as_bytes()), "{name}");
        }
        assert!(source.changes_data && !source.leaves);
        assert!(!of("BEGIN RETURN NEW; END").changes_data);
    }

    fn judged(functions: &[(&str, &str, &str)]) -> Leaves {
        let mut sources = Sources::default();
        for (name, ways, text) in functions {
            sources.add(name.as_bytes(), ways.as_bytes(), of(text));
        }
        sources.judge()
    }

    #[test]
    fn what_is_called_by_what_runs_unseen_counts() {
        let all = KnownStatements::default();
        let known = |text: &str| all.lookup(text.as_bytes(), LexOptions::default());
        let lock = ("lock", "", "BEGIN PERFORM pg_advisory_lock(1); END");
        let by = |functions: &[(&str, &str, &str)], text: &str| judged(functions).by(&known(text));
        let touch = ("touch", "w", "BEGIN PERFORM middle(); RETURN NEW; END");
        let middle = ("middle", "", "BEGIN PERFORM app.lock(); END");
        for (functions, writing, defining, reading) in [
            (
                &[("touch", "w", "BEGIN RETURN NEW; END"), lock][..],
                false,
                false,
                false,
            ),
            (&[touch, middle, lock], true, true, false),
            (
                &[("watch", "d", "BEGIN PERFORM lock(); END"), lock],
                false,
                true,
                false,
            ),
            (&[("seen", "r", "SELECT lock()"), lock], true, true, true),
            (
                &[
                    touch,
                    middle,
                    lock,
                    ("log", "r", "INSERT INTO t VALUES (1)"),
                ],
                true,
                true,
                true,
            ),
        ] {
            assert_eq!(
                by(functions, "UPDATE t SET a = 1"),
                writing,
                "{functions:?}"
            );
            assert_eq!(
                by(functions, "CREATE TABLE t (a int)"),
                defining,
                "{functions:?}"
            );
            assert_eq!(by(functions, "SELECT a FROM t"), reading, "{functions:?}");
        }
        let column = [("lock", "a", "SELECT pg_advisory_lock(1)")];
        assert!(by(&column, "SELECT t.lock FROM t"));
        assert!(!by(&column, "SELECT t.clock FROM t"));
    }
}
