//! What an exchange is, as far as its place depends on it: reads, a read-only transaction, or something for the primary.
//!
//! An exchange is a simple query, or extended messages up to their Sync. It goes to one server as a whole, so the first
//! statement that belongs on the primary decides.

use super::reason::Reason;
use crate::sql::classify::{
    Answer, Class, CopyDirection, CopyPeer, Isolation, Reads, Statement, StatementKind,
    TransactionModes,
};
use crate::sql::functions::FunctionName;
use crate::sql::hints::RouteHint;
use crate::sql::state::Effect;

/// What the catalogue says of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    Reads,
    Writes,
    Unknown,
}

/// One text of an exchange.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub class: &'a Class,
    pub hint: Option<RouteHint>,
    /// A replica has refused it before.
    pub refused: bool,
    /// It reads what the catalogue says may write: a view, a table with a policy.
    pub hides_write: bool,
}

/// What the session's settings mean for a transaction that says nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    pub read_only: bool,
    /// `None`: not known.
    pub serializable: Option<bool>,
}

/// What an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Proved reads outside a transaction.
    Read,
    /// It opens a read-only transaction, and what it runs in it may be run by a replica.
    ReadOnlyTransaction,
    Primary(Reason),
}

/// See the module: texts are added in the order they are executed in.
#[derive(Debug)]
pub struct Proof {
    defaults: Defaults,
    why: Option<Reason>,
    texts: usize,
    began: bool,
    in_transaction: bool,
    asks_for_replica: bool,
}

impl Proof {
    pub fn new(defaults: Defaults) -> Self {
        Self {
            defaults,
            why: None,
            texts: 0,
            began: false,
            in_transaction: false,
            asks_for_replica: false,
        }
    }

    /// Adds a text; `calls` says what functions do.
    pub fn add(&mut self, text: Text<'_>, calls: impl FnMut(&FunctionName) -> Calls) {
        self.texts += 1;
        self.asks_for_replica |= text.hint == Some(RouteHint::Replica);
        if self.why.is_none() {
            self.why = self.judge(text, calls);
        }
        if text.hint == Some(RouteHint::Primary) {
            self.why = Some(Reason::HintPrimary);
        }
    }

    /// Adds something that belongs on the primary for a reason of its own.
    pub fn refuse(&mut self, reason: Reason) {
        self.why.get_or_insert(reason);
    }

    /// Whether a text asks for a replica.
    pub fn asks_for_replica(&self) -> bool {
        self.asks_for_replica
    }

    pub fn texts(&self) -> usize {
        self.texts
    }

    pub fn intent(&self) -> Intent {
        match self.why {
            Some(why) => Intent::Primary(why),
            None if self.texts == 0 => Intent::Primary(Reason::Prepare),
            // It ends in the exchange it began in.
            None if self.began && !self.in_transaction => Intent::Read,
            None if self.began => Intent::ReadOnlyTransaction,
            None => Intent::Read,
        }
    }

    /// Why `text` belongs on the primary, if it does.
    fn judge(
        &mut self,
        text: Text<'_>,
        calls: impl FnMut(&FunctionName) -> Calls,
    ) -> Option<Reason> {
        let class = text.class;
        match class.only() {
            Some(StatementKind::Begin(modes)) => return self.begin(*modes),
            Some(
                StatementKind::Commit { chain: false } | StatementKind::Rollback { chain: false },
            ) if self.in_transaction => {
                self.in_transaction = false;
                return None;
            }
            _ => {}
        }
        if self.began && !self.in_transaction {
            return Some(Reason::Transaction);
        }
        if self.defaults.serializable == Some(true) && !self.in_transaction {
            return Some(Reason::Serializable);
        }
        if text.refused {
            return Some(Reason::Refused);
        }
        let is_asked_for = text.hint == Some(RouteHint::Replica);
        if text.hides_write && !is_asked_for {
            return Some(Reason::Function);
        }
        read(class, is_asked_for, calls)
    }

    fn begin(&mut self, modes: TransactionModes) -> Option<Reason> {
        let read_only = modes.read_only.unwrap_or(self.defaults.read_only);
        let serializable = match modes.isolation {
            Some(isolation) => isolation == Isolation::Serializable,
            // A replica that can't would fail only once the client has been told that it began.
            None => self.defaults.serializable.unwrap_or(true),
        };
        if self.began || self.texts > 1 || !read_only || modes.snapshot {
            return Some(Reason::Transaction);
        }
        if serializable {
            return Some(Reason::Serializable);
        }
        self.began = true;
        self.in_transaction = true;
        None
    }
}

/// Why a text that follows in a read-only transaction is not one for a replica, if it is not.
pub fn within(
    class: &Class,
    hint: Option<RouteHint>,
    calls: impl FnMut(&FunctionName) -> Calls,
) -> Option<Reason> {
    use StatementKind as K;
    if hint == Some(RouteHint::Primary) {
        return Some(Reason::HintPrimary);
    }
    match class.only() {
        Some(
            K::Commit { .. }
            | K::Rollback { .. }
            | K::Savepoint(_)
            | K::Release(_)
            | K::RollbackTo(_)
            | K::Fetch
            | K::Move
            | K::Close
            | K::Show(_),
        ) => None,
        Some(K::Set | K::SetLocal | K::Reset) if class.pins.is_empty() => {
            let sets_mode = |effect: &Effect| matches!(effect, Effect::Setting { name, .. } if *name == "transaction_read_only");
            class
                .effects()
                .any(sets_mode)
                .then_some(Reason::Transaction)
        }
        Some(K::SetTransaction(modes))
            if modes.read_only != Some(false)
                && modes.isolation != Some(Isolation::Serializable)
                && !modes.snapshot =>
        {
            None
        }
        Some(K::Copy {
            direction: CopyDirection::To,
            peer: CopyPeer::Client,
        }) if class.reads == Reads::Proved => None,
        _ => read(class, hint == Some(RouteHint::Replica), calls),
    }
}

/// Why a text is not one for a replica, if it is not. `is_asked_for`: the application says that it is, which is believed
/// of everything but what is sure to write.
pub fn read(
    class: &Class,
    is_asked_for: bool,
    mut calls: impl FnMut(&FunctionName) -> Calls,
) -> Option<Reason> {
    let copies = |statement: &Statement| matches!(statement.kind, StatementKind::Copy { .. });
    if class.statements.iter().any(copies) {
        return Some(Reason::Copy);
    }
    if class.reads == Reads::No || !class.pins.is_empty() || class.is_empty() {
        return Some(Reason::Write);
    }
    if is_asked_for {
        return None;
    }
    if class.answer >= Answer::Node {
        return Some(Reason::ServerState);
    }
    let mut doubt = None;
    for function in &class.functions {
        match calls(function) {
            Calls::Reads => {}
            Calls::Writes => return Some(Reason::Function),
            Calls::Unknown => doubt = Some(Reason::UnknownFunction),
        }
    }
    doubt
}

#[cfg(test)]
#[path = "proof/tests.rs"]
mod tests;
