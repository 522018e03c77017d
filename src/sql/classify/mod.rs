//! What a text is and does, proved or doubted: kinds of statement, transaction control, session effects, reads.
//!
//! `classify` is a pure function of the text's tokens. It never guesses in the dangerous direction: what it does not
//! recognise carries [`Effect::Unparsable`] and the pin [`PinReason::Unclassifiable`], and is no read. (If the server
//! then answers with a syntax error, nothing of that text was executed, since it parses a whole text before it runs any
//! of it.) A class holds no constant of the text, so it may be kept under the text's fingerprint, except where
//! `needs_text` says that a constant decided something.
//!
//! What it cannot see, and callers must not take from it:
//! - what functions, triggers, rules, views, user-defined operators, casts and types do. Functions are listed, with what
//!   is known by name; `table.name` may be a call of a function `name(table)`; the rest is left to the server's
//!   answer (a write on a replica is refused with 25006);
//! - a constant that is special to its type (`timestamp 'now'`).
//!
//! # Why
//!
//! A scanner and not a parser: the statements that matter are told apart by their first words, and inside a query only
//! the few keywords that begin a clause are needed; both are exact in PostgreSQL's grammar because those words are
//! reserved. It takes 0.4 µs for a statement of 60 bytes, 2 µs for one of 270, 8 ms for an INSERT of 1 MB, and runs once
//! per fingerprint.
//!
//! Tried on the 35,241 different texts of PostgreSQL 15's regression suite, replayed on what the suite leaves behind: one
//! the server parses was left in doubt (written for `standard_conforming_strings` off, read with it on). 14,750 were
//! proved to read; 10,580 of them ran in a read-only transaction, the others failed before for want of an object or the
//! like; none was refused as a write, and none changed settings, advisory locks, prepared statements, cursors, channels
//! or temporary tables.

mod body;
mod calls;
mod copy;
mod cursor;
mod ddl;
mod details;
mod findings;
mod kind;
mod opaque;
mod scope;
mod session;
mod set;
mod statement;
mod transaction;

use std::fmt;

use super::functions::{Behaviour, FunctionName};
use super::lexer::LexOptions;
use super::state::{Effect, PinReason, PinSet};
use super::tables::Tables;

pub use details::{AssignedValue, Assignment, Details, PreparedAction, PreparedRef, details};
pub use kind::{
    CopyDirection, CopyPeer, DdlVerb, DiscardTarget, Isolation, StatementKind, TransactionModes,
};

/// Whether a text only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Not proved.
    No,
    /// If every function that is not known by name only reads.
    IfFunctions,
    /// Proved.
    Proved,
}

/// What a read's answer depends on besides data, settings and parameters. The later ones include the earlier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    #[default]
    Nothing,
    /// Clocks, random numbers.
    Volatile,
    /// The server, or the server connection, that is asked: only the one a direct connection would ask will do.
    Node,
}

/// What a text does to the transaction it runs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionEffect(u8);

impl TransactionEffect {
    const BEGINS: u8 = 1;
    const ENDS: u8 = 2;
    const CHAINS: u8 = 4;
    const SAVEPOINTS: u8 = 8;
    const ALONE: u8 = 16;

    fn add(&mut self, flags: u8) {
        self.0 |= flags;
    }

    fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// `BEGIN` or `START TRANSACTION` is in it.
    pub fn begins(self) -> bool {
        self.has(Self::BEGINS)
    }

    /// `COMMIT`, `ROLLBACK`, `PREPARE TRANSACTION` or a spelling of one is in it.
    pub fn ends(self) -> bool {
        self.has(Self::ENDS)
    }

    /// A new transaction follows the one that ends: `AND CHAIN`.
    pub fn chains(self) -> bool {
        self.has(Self::CHAINS)
    }

    /// `SAVEPOINT`, `RELEASE` or `ROLLBACK TO` is in it.
    pub fn savepoints(self) -> bool {
        self.has(Self::SAVEPOINTS)
    }

    /// The text is one statement of transaction control and nothing else.
    pub fn is_alone(self) -> bool {
        self.has(Self::ALONE)
    }
}

/// One statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub kind: StatementKind,
    /// What it does to the session, in order, each once.
    pub effects: Vec<Effect>,
}

/// What a text is and does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The statements that are not empty. Behind the last one understood, the text may go on: then the pin
    /// [`PinReason::Unclassifiable`] is set.
    pub statements: Vec<Statement>,
    pub transaction: TransactionEffect,
    pub reads: Reads,
    pub answer: Answer,
    /// Constants of the text decided about this class: do not keep it under the fingerprint.
    pub needs_text: bool,
    /// Every function named in what is executed, each spelling once.
    pub functions: Vec<FunctionName>,
    pub tables: Tables,
    /// Why the session must keep its server connection afterwards.
    pub pins: PinSet,
}

impl Class {
    /// The class of a text of which nothing is known.
    pub fn unclassifiable() -> Self {
        Self {
            statements: vec![Statement {
                kind: StatementKind::Unknown,
                effects: vec![Effect::Unparsable],
            }],
            pins: PinReason::Unclassifiable.into(),
            ..Self::empty()
        }
    }

    fn empty() -> Self {
        Self {
            statements: Vec::new(),
            transaction: TransactionEffect::default(),
            reads: Reads::No,
            answer: Answer::default(),
            needs_text: false,
            functions: Vec::new(),
            tables: Tables::default(),
            pins: PinSet::EMPTY,
        }
    }

    /// The kind, if the text is one statement.
    pub fn only(&self) -> Option<&StatementKind> {
        match self.statements.as_slice() {
            [statement] => Some(&statement.kind),
            _ => None,
        }
    }

    /// Nothing but white space, comments and semicolons.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// The effects of all statements, in order.
    pub fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.statements
            .iter()
            .flat_map(|statement| &statement.effects)
    }

    /// Whether the text was not understood, in whole or in part.
    pub fn is_unclassifiable(&self) -> bool {
        self.pins.contains(PinReason::Unclassifiable)
    }

    /// Functions that are not known by name.
    pub fn unknown_functions(&self) -> impl Iterator<Item = &FunctionName> {
        self.functions
            .iter()
            .filter(|function| function.behaviour == Behaviour::Unknown)
    }

    /// Whether it is one statement that has a plan.
    pub fn has_plan(&self) -> bool {
        use StatementKind as K;
        let kinds: Vec<_> = self.statements.iter().map(|one| &one.kind).collect();
        matches!(
            kinds[..],
            [K::Select | K::Values | K::Table | K::Insert | K::Update | K::Delete | K::Merge]
        )
    }

    /// Whether the text is proved to only read, without a look at the catalogue.
    pub fn is_proved_read(&self) -> bool {
        self.reads == Reads::Proved
    }

    /// Whether the text only reads, `only_reads` having the last word on every function. It is asked about built-in names
    /// too, since a user's function may have the same name.
    pub fn only_reads_if(&self, only_reads: impl Fn(&FunctionName) -> bool) -> bool {
        self.reads != Reads::No && self.functions.iter().all(only_reads)
    }

    /// Whether it is proved that any server that has the data will answer alike.
    pub fn may_run_on_replica(&self) -> bool {
        self.is_proved_read() && self.answer < Answer::Node
    }
}

/// Says what a text is and does. Linear in the length of the text, in constant space but for what it returns, which is
/// bounded.
pub fn classify(text: &[u8], options: LexOptions) -> Class {
    if options.cannot_be_sure(text) {
        return Class::unclassifiable();
    }
    statement::Classifier::new(text, options).run().0
}

impl fmt::Display for Class {
    /// One line for logs and golden tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, statement) in self.statements.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{}", statement.kind)?;
            if !statement.effects.is_empty() {
                write!(f, " {{{}}}", list(&statement.effects))?;
            }
        }
        if self.is_empty() {
            f.write_str("empty")?;
        }
        match self.reads {
            Reads::No => {}
            Reads::IfFunctions => f.write_str(" | reads if functions do")?,
            Reads::Proved => f.write_str(" | reads")?,
        }
        match self.answer {
            Answer::Nothing => {}
            Answer::Volatile => f.write_str(" | volatile")?,
            Answer::Node => f.write_str(" | node")?,
        }
        if self.needs_text {
            f.write_str(" | needs text")?;
        }
        if !self.pins.is_empty() {
            write!(f, " | pins {}", self.pins)?;
        }
        let unknown: Vec<_> = self.unknown_functions().collect();
        if !unknown.is_empty() {
            write!(f, " | calls {}", list(&unknown))?;
        }
        if !self.tables.list().is_empty() {
            write!(f, " | tables {}", list(self.tables.list()))?;
        }
        Ok(())
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests;
