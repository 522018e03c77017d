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
}

/// What the session's settings mean for a transaction that says nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    pub read_only: bool,
    pub serializable: bool,
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
        if self.defaults.serializable && !self.in_transaction {
            return Some(Reason::Serializable);
        }
        if text.refused {
            return Some(Reason::Refused);
        }
        read(class, text.hint == Some(RouteHint::Replica), calls)
    }

    fn begin(&mut self, modes: TransactionModes) -> Option<Reason> {
        let read_only = modes.read_only.unwrap_or(self.defaults.read_only);
        let serializable = match modes.isolation {
            Some(isolation) => isolation == Isolation::Serializable,
            None => self.defaults.serializable,
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
mod tests {
    use super::*;
    use crate::sql::LexOptions;
    use crate::sql::classify::classify;
    use crate::sql::functions::Behaviour;
    use crate::sql::hints::route_hint;

    /// Functions beginning with `reads_` read, those with `writes_` write, PostgreSQL's own are known by name.
    fn calls(function: &FunctionName) -> Calls {
        let name = function.name.as_str().unwrap();
        if name.starts_with("reads_") {
            Calls::Reads
        } else if name.starts_with("writes_") {
            Calls::Writes
        } else if function.behaviour == Behaviour::Unknown {
            Calls::Unknown
        } else {
            Calls::Reads
        }
    }

    fn of(texts: &[&str], defaults: Defaults) -> Intent {
        let mut proof = Proof::new(defaults);
        for text in texts {
            let options = LexOptions::default();
            let class = classify(text.as_bytes(), options);
            let hint = route_hint(text.as_bytes(), options);
            let text = Text {
                class: &class,
                hint,
                refused: false,
            };
            proof.add(text, calls);
        }
        proof.intent()
    }

    fn intent(texts: &[&str]) -> Intent {
        of(texts, Defaults::default())
    }

    #[test]
    fn only_proved_reads_are_reads() {
        use Intent::{Primary, Read};
        let rows: [(&[&str], Intent); 24] = [
            (&["SELECT 1"], Read),
            (&["SELECT 1", "SELECT now()"], Read),
            (&["SELECT 1; TABLE t"], Read),
            (&["EXPLAIN ANALYZE SELECT 1"], Read),
            (&["SELECT reads_a(1), lower(b) FROM t"], Read),
            (&["SELECT 1; DELETE FROM t"], Primary(Reason::Write)),
            (&["SELECT 1", "DELETE FROM t"], Primary(Reason::Write)),
            (&["EXPLAIN ANALYZE DELETE FROM t"], Primary(Reason::Write)),
            (&["SELECT a FROM t FOR UPDATE"], Primary(Reason::Write)),
            (&["SELECT a FROM t FOR KEY SHARE"], Primary(Reason::Write)),
            (
                &["WITH d AS (DELETE FROM t RETURNING 1) TABLE d"],
                Primary(Reason::Write),
            ),
            (&["SELECT 1 INTO t"], Primary(Reason::Write)),
            (&["SELECT nextval('s')"], Primary(Reason::Write)),
            (&["SELECT pg_advisory_lock(1)"], Primary(Reason::Write)),
            (
                &["SELECT pg_try_advisory_xact_lock(1)"],
                Primary(Reason::Write),
            ),
            (&["SELECT pg_notify('a', 'b')"], Primary(Reason::Write)),
            (&["SELECT writes_a()"], Primary(Reason::Function)),
            (&["SELECT f(1)"], Primary(Reason::UnknownFunction)),
            (&["SELECT f(1), writes_a()"], Primary(Reason::Function)),
            (
                &["SELECT pg_is_in_recovery()"],
                Primary(Reason::ServerState),
            ),
            (&["SHOW work_mem"], Primary(Reason::ServerState)),
            (&["COPY t TO STDOUT"], Primary(Reason::Copy)),
            (&["SELEC 1"], Primary(Reason::Write)),
            (&[";"], Primary(Reason::Write)),
        ];
        for (texts, expected) in rows {
            assert_eq!(intent(texts), expected, "{texts:?}");
        }
    }

    #[test]
    fn read_only_transactions_are_known_by_their_beginning() {
        use Intent::{Primary, Read, ReadOnlyTransaction};
        let rows: [(&[&str], Intent); 11] = [
            (&["BEGIN READ ONLY"], ReadOnlyTransaction),
            (
                &["START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"],
                ReadOnlyTransaction,
            ),
            (&["BEGIN READ ONLY", "SELECT 1"], ReadOnlyTransaction),
            (&["BEGIN READ ONLY", "SELECT 1", "COMMIT"], Read),
            (
                &["BEGIN READ ONLY", "SELECT f()"],
                Primary(Reason::UnknownFunction),
            ),
            (
                &["BEGIN READ ONLY", "COMMIT", "SELECT 1"],
                Primary(Reason::Transaction),
            ),
            (&["BEGIN"], Primary(Reason::Transaction)),
            (&["BEGIN READ WRITE"], Primary(Reason::Transaction)),
            (&["BEGIN READ ONLY; SELECT 1"], Primary(Reason::Write)),
            (
                &["BEGIN READ ONLY ISOLATION LEVEL SERIALIZABLE"],
                Primary(Reason::Serializable),
            ),
            (
                &["SELECT 1", "BEGIN READ ONLY"],
                Primary(Reason::Transaction),
            ),
        ];
        for (texts, expected) in rows {
            assert_eq!(intent(texts), expected, "{texts:?}");
        }
    }

    #[test]
    fn settings_of_the_session_count_where_a_transaction_says_nothing() {
        let read_only = Defaults {
            read_only: true,
            serializable: false,
        };
        assert_eq!(of(&["BEGIN"], read_only), Intent::ReadOnlyTransaction);
        assert_eq!(
            of(&["BEGIN READ WRITE"], read_only),
            Intent::Primary(Reason::Transaction)
        );
        let serializable = Defaults {
            read_only: true,
            serializable: true,
        };
        let primary = Intent::Primary(Reason::Serializable);
        assert_eq!(of(&["SELECT 1"], serializable), primary);
        assert_eq!(of(&["BEGIN"], serializable), primary);
        assert_eq!(
            of(&["BEGIN ISOLATION LEVEL READ COMMITTED"], serializable),
            Intent::ReadOnlyTransaction
        );
    }

    #[test]
    fn a_read_only_transaction_stays_on_its_replica_for_what_can_run_there() {
        let reason = |text: &str| {
            let options = LexOptions::default();
            let class = classify(text.as_bytes(), options);
            within(&class, route_hint(text.as_bytes(), options), calls)
        };
        for text in [
            "SELECT 1",
            "COMMIT",
            "ROLLBACK AND CHAIN",
            "SAVEPOINT s",
            "ROLLBACK TO s",
            "SET LOCAL statement_timeout = 1",
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SHOW work_mem",
            "FETCH 1 FROM c",
            "DECLARE c CURSOR FOR SELECT 1",
            "COPY (SELECT 1) TO STDOUT",
        ] {
            assert_eq!(reason(text), None, "{text}");
        }
        for (text, expected) in [
            ("SET TRANSACTION READ WRITE", Reason::Write),
            ("SET transaction_read_only = off", Reason::Transaction),
            (
                "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                Reason::Write,
            ),
            ("SET TRANSACTION SNAPSHOT 'x'", Reason::Write),
            ("SELECT pg_advisory_xact_lock(1)", Reason::Write),
            ("SELECT f()", Reason::UnknownFunction),
            ("SELECT pg_export_snapshot()", Reason::Write),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Reason::Write),
            ("COMMIT; DELETE FROM t", Reason::Write),
            ("LISTEN a", Reason::Write),
            ("/* pgweir: primary */ SELECT 1", Reason::HintPrimary),
        ] {
            assert_eq!(reason(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn hints_send_reads_either_way_and_writes_nowhere_else() {
        assert_eq!(
            intent(&["SELECT 1", "/* pgweir: primary */ SELECT 1"]),
            Intent::Primary(Reason::HintPrimary)
        );
        assert_eq!(intent(&["/* pgweir: replica */ SELECT f()"]), Intent::Read);
        assert_eq!(
            intent(&["/* pgweir: replica */ SELECT nextval('s')"]),
            Intent::Primary(Reason::Write)
        );
        assert_eq!(
            intent(&["/* pgweir: primary */ BEGIN READ ONLY"]),
            Intent::Primary(Reason::HintPrimary)
        );
    }
}
