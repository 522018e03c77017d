//! Statements seen so far, by fingerprint: what they are and what was counted of them.
//!
//! Classification is done once for each distinct statement and shared by all sessions; so is the record of what was
//! counted of it, which outlives it.
//!
//! Bound: [`KNOWN_MAX`] statements of about 700 bytes, more for long ones. When there are more, those are forgotten that nobody
//! has run of late, and that no session or prepared statement holds. Beyond `FREELY` only those are kept that are met a second
//! time, so that an application whose every text is another one does not fill memory.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::attributes::Attributes;
use super::brevity::Brevity;
use super::classify::{
    Answer, Class, CopyDirection, CopyPeer, DdlVerb, Statement, StatementKind, classify,
};
use super::clock::{Clock, Put};
use super::fingerprint::{Fingerprint, FingerprintKey, Shaped};
use super::lexer::{LexOptions, Lexer, TokenKind};
use super::met::Met;
use super::normalise::normalise;
use super::prepared::PreparedUse;
use super::reading::Rereads;
use super::repeat::{self, BlockEnd, Doubt};
use super::state::{Effect, PinReason, PinSet};
use crate::meter::{Queries, Query, QueryId};

/// Distinct statements kept.
pub const KNOWN_MAX: usize = 100_000;

/// Statements that are kept when first met.
const FREELY: usize = KNOWN_MAX / 10;

/// Refusals by replicas after which a statement is not sent to them any more.
const REFUSALS_MAX: u8 = 3;

/// Bytes of a statement's text that are kept.
const TEXT_MAX: usize = 2 * 1024;

/// Statements and functions in a text that is not large.
const PARTS_MAX: usize = 32;

/// Large texts that are known beyond [`FREELY`].
const LARGE_MAX: usize = 1000;

/// Numbers and texts of [`KnownStatements::unread`] and [`KnownStatements::function_call`].
const UNREAD: u64 = 1;
const UNREAD_TEXT: &str = "<not read>";
const FUNCTION_CALL: u64 = 2;
const FUNCTION_CALL_TEXT: &str = "<function call>";

/// One statement.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts about a text"
)]
pub struct Known {
    pub fingerprint: Fingerprint,
    pub class: Class,
    /// Why a session that runs it must keep its backend: the class's reasons and those found only in definitions.
    pub pins: PinSet,
    /// It may end what pins a session: a table is dropped, a lock or cursor given up, a channel left, or all
    /// of it taken back.
    pub may_unpin: bool,
    /// It is not proved to only read: it may advance a sequence, if only by a default or a trigger.
    pub writes: bool,
    /// It makes something that is temporary if the `search_path` says so.
    pub creates: bool,
    /// It may run code that its text does not show, of a view or a trigger.
    pub runs_code: bool,
    /// Whether it may run again once the server has rolled it back.
    pub doubt: Doubt,
    /// How it may end a transaction block.
    pub block_end: Option<BlockEnd>,
    /// `LISTEN` is in it.
    pub listens: bool,
    /// It asks what the session listens on.
    pub reads_channels: bool,
    /// It needs a database that nobody is connected to: it is dropped, renamed or copied.
    pub empties_database: bool,
    /// How it names prepared statements.
    pub prepared: PreparedUse,
    /// What it may change of how later texts are read.
    pub rereads: Rereads,
    /// It may read data from the client.
    pub copies_in: bool,
    /// Nothing about it concerns the session: no effect, no transaction control, no reason to pin.
    pub is_plain: bool,
    /// It makes, changes or drops functions, or what they can hide in.
    pub changes_functions: bool,
    /// It may make or change what runs unseen: triggers, defaults, checks, views.
    pub changes_unseen: bool,
    /// What it may call without naming a function.
    pub attributes: Attributes,
    /// One read that takes no locks, calls nothing volatile and leaves nothing behind: it may share a server connection
    /// with others, if it is short.
    pub may_share: bool,
    pub brevity: Brevity,
    /// The log has been told that it pins.
    told: AtomicBool,
    /// How often a replica has refused it.
    refusals: AtomicU8,
    /// What was counted of it, with its text without literals.
    pub query: Arc<Query>,
}

impl Known {
    fn new(fingerprint: Fingerprint, text: &[u8], options: LexOptions, query: Arc<Query>) -> Self {
        let class = classify(text, options);
        let copies_in = class
            .statements
            .iter()
            .any(|statement| match &statement.kind {
                StatementKind::Copy { direction, peer } => {
                    *direction == CopyDirection::From && *peer == CopyPeer::Client
                }
                StatementKind::Unknown => true,
                _ => false,
            });
        let transaction = class.transaction;
        let doubt = repeat::doubt(text, options, &class);
        let class_unpins = class.statements.iter().any(may_unpin);
        let class_reads = class.is_proved_read() || transaction.is_alone();
        let mut pins = class.pins;
        if defines(&class) && mentions_sequence_state(text, options) {
            pins.insert(PinReason::SequenceState);
        }
        let prepared = PreparedUse::of(text, options, &class);
        if prepared == PreparedUse::Renamed {
            // Carried, where it is a simple query.
            pins.remove(PinReason::SqlPrepare);
        }
        // Settings and rights of a database change while it is in use.
        let moves = || mentions(text, options, &[b"rename", b"tablespace"]);
        let mut statements = class.statements.iter();
        let empties_database = statements.any(|it| empties_database(it, moves));
        let is_plain = pins.is_empty()
            && !empties_database
            && !copies_in
            && !transaction.begins()
            && !transaction.ends()
            && class.effects().all(|effect| !concerns_session(effect));
        let has_into = || mentions(text, options, &[b"into"]);
        let creates = !class_reads && class.statements.iter().any(|it| creates(it, has_into));
        let may_share = is_plain
            && !class_unpins
            && !class.needs_text
            && matches!(class.only(), Some(StatementKind::Select))
            && class.is_proved_read()
            && class.answer == Answer::Nothing;
        let statements = || class.statements.iter();
        let changes_unseen = statements().any(|it| changes_unseen(it, text, options));
        let changes_functions = statements().any(changes_functions);
        let listens = class.effects().any(|it| matches!(it, Effect::Listen(_)));
        Self {
            fingerprint,
            may_share,
            brevity: Brevity::default(),
            pins,
            may_unpin: class_unpins,
            writes: !class_reads,
            creates,
            runs_code: runs_code(&class),
            doubt,
            block_end: repeat::block_end(&class),
            prepared,
            rereads: Rereads::of(&class),
            listens,
            empties_database,
            reads_channels: mentions_channels(text, options),
            copies_in,
            changes_functions,
            changes_unseen,
            attributes: Attributes::of(text, options),
            told: AtomicBool::new(false),
            refusals: AtomicU8::new(0),
            class,
            is_plain,
            query,
        }
    }

    /// A replica refused it: as a write, which it will always be, or because replicas can't do what it asks for, which
    /// may change.
    pub fn refused(&self, as_write: bool) {
        let count = if as_write { REFUSALS_MAX } else { 1 };
        let next = |count_before: u8| Some(count_before.saturating_add(count));
        let _ = self
            .refusals
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// It takes much more memory than most.
    fn is_large(&self) -> bool {
        self.class.statements.len() + self.class.functions.len() > PARTS_MAX
    }

    /// Whether replicas refuse it.
    pub fn is_refused(&self) -> bool {
        self.refusals.load(Ordering::Relaxed) >= REFUSALS_MAX
    }

    /// Whether this is the first time that it pins a session, for the log.
    pub fn pins_first_time(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

fn changes_functions(statement: &Statement) -> bool {
    const OBJECTS: [&str; 12] = [
        "function",
        "procedure",
        "routine",
        "aggregate",
        "extension",
        "schema",
        "view",
        "rule",
        "policy",
        "operator",
        "cast",
        "domain",
    ];
    matches!(&statement.kind, StatementKind::Ddl { object, .. } if OBJECTS.contains(object))
}

fn changes_unseen(statement: &Statement, text: &[u8], options: LexOptions) -> bool {
    let StatementKind::Ddl { object, .. } = &statement.kind else {
        return false;
    };
    let is_temporary = || {
        let mut effects = statement.effects.iter();
        effects.any(|it| matches!(it, Effect::TempTable { .. }))
    };
    match *object {
        // Of an event trigger and a foreign table, the first word.
        "trigger" | "event" | "index" | "materialized view" => true,
        "table" | "foreign" => {
            !is_temporary() && mentions(text, options, &[b"default", b"check", b"generated"])
        }
        _ => changes_functions(statement),
    }
}

/// Whether `statement`, of a text that `moves` something or does not, needs a database that nobody is connected to.
fn empties_database(statement: &Statement, moves: impl Fn() -> bool) -> bool {
    match &statement.kind {
        StatementKind::Ddl {
            verb,
            object: "database",
            ..
        } => *verb != DdlVerb::Alter || moves(),
        _ => false,
    }
}

fn may_unpin(statement: &Statement) -> bool {
    matches!(
        statement.kind,
        StatementKind::Ddl {
            verb: DdlVerb::Drop,
            ..
        } | StatementKind::Rollback { .. }
            | StatementKind::RollbackTo(_)
    ) || statement.effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::DeallocateSql(_)
                | Effect::Unlisten(_)
                | Effect::CloseCursor(_)
                | Effect::AdvisoryUnlock
                | Effect::DiscardTemp
        )
    })
}

/// Whether `statement`, of a text that is not proved to only read, makes a table or the like.
fn creates(statement: &Statement, has_into: impl Fn() -> bool) -> bool {
    match &statement.kind {
        StatementKind::Ddl { verb, .. } => *verb == DdlVerb::Create,
        StatementKind::Select => has_into(),
        StatementKind::Explain { .. } => true,
        _ => false,
    }
}

fn runs_code(class: &Class) -> bool {
    use StatementKind as K;
    let names_nothing =
        class.is_proved_read() && class.tables.is_complete() && class.tables.list().is_empty();
    let is_harmless = |statement: &Statement| {
        statement.kind.is_transaction_control()
            || matches!(
                statement.kind,
                K::SetTransaction(_)
                    | K::SetSessionCharacteristics(_)
                    | K::Set
                    | K::SetLocal
                    | K::Reset
                    | K::Show(_)
                    | K::Discard(_)
                    | K::Prepare
                    | K::Deallocate
                    | K::Listen
                    | K::Unlisten
                    | K::Notify
            )
    };
    !names_nothing && !class.statements.iter().all(is_harmless)
}

fn defines(class: &Class) -> bool {
    class
        .statements
        .iter()
        .any(|statement| matches!(statement.kind, StatementKind::Ddl { .. }))
}

/// A default or a trigger that reads `currval` runs unseen later; its author is most likely its first user.
fn mentions_sequence_state(text: &[u8], options: LexOptions) -> bool {
    mentions(text, options, &[b"currval", b"lastval"])
}

fn mentions_channels(text: &[u8], options: LexOptions) -> bool {
    const FUNCTION: &[u8] = b"pg_listening_channels";
    // Most texts are done with here.
    memchr::memchr2_iter(b'l', b'L', text).any(|at| {
        let start = at.checked_sub(3);
        let word = start.and_then(|start| text.get(start..start + FUNCTION.len()));
        word.is_some_and(|word| word.eq_ignore_ascii_case(FUNCTION))
    }) && mentions(text, options, &[FUNCTION])
}

/// Whether one of these words stands in `text` by itself.
fn mentions(text: &[u8], options: LexOptions, words: &[&[u8]]) -> bool {
    Lexer::new(text, options).any(|token| {
        token.kind == TokenKind::Ident
            && words
                .iter()
                .any(|word| text[token.range()].eq_ignore_ascii_case(word))
    })
}

fn concerns_session(effect: &Effect) -> bool {
    // Where tables are made that stay is decided by a local `search_path` as well.
    let sets_path = matches!(effect, Effect::Setting { name, .. } if *name == "search_path");
    sets_path
        || matches!(
            effect,
            Effect::Setting { local: false, .. }
                | Effect::DeallocateSql(_)
                | Effect::ResetSetting(_)
                | Effect::ResetAll
                | Effect::DiscardAll
                | Effect::SettingsUnknown
                | Effect::OpaqueCode
        )
}

/// See the module.
#[derive(Debug)]
pub struct KnownStatements {
    /// By fingerprint; what a quick look at a text finds is a way there.
    table: Mutex<Clock<Known>>,
    /// How many of them are large.
    large: AtomicUsize,
    /// Which fingerprints were met.
    met: Met,
    key: FingerprintKey,
    /// What was counted of statements.
    pub queries: Queries,
    unread: Arc<Known>,
    function_call: Arc<Known>,
}

impl Default for KnownStatements {
    fn default() -> Self {
        Self::with_room_for(KNOWN_MAX)
    }
}

impl KnownStatements {
    fn with_room_for(max: usize) -> Self {
        let (queries, options) = (Queries::default(), LexOptions::default());
        let key = FingerprintKey::random();
        let fingerprint = key.fingerprint(b"", options);
        let without_text = |id: u64, text: &str| {
            let record = queries.record(QueryId(id), || text.into());
            Arc::new(Known::new(fingerprint, b"", options, record))
        };
        Self {
            unread: without_text(UNREAD, UNREAD_TEXT),
            function_call: without_text(FUNCTION_CALL, FUNCTION_CALL_TEXT),
            table: Mutex::new(Clock::new(max)),
            large: AtomicUsize::new(0),
            met: Met::default(),
            key,
            queries,
        }
    }

    /// What is known of `text`.
    pub fn lookup(&self, text: &[u8], options: LexOptions) -> Arc<Known> {
        let skim = self.key.skim(text, options);
        if let Some(known) = skim.and_then(|skim| self.lock().by_way(skim)) {
            return known;
        }
        let shaped = self.key.shaped(text, options);
        let number = shaped.fingerprint.as_u64();
        let found = self.lock().get(number);
        let known = match found {
            // Its constants decide, so the shape's class is another text's.
            Some(known) if known.class.needs_text => {
                let query = Arc::clone(&known.query);
                return Arc::new(Known::new(shaped.fingerprint, text, options, query));
            }
            Some(known) => known,
            None => self.read(text, options, &shaped),
        };
        if let Some(skim) = skim.filter(|_| !known.class.needs_text) {
            self.lock().lead(skim, number);
        }
        known
    }

    /// Takes up a text of a shape that was not seen before. Others go on meanwhile; of two that read the same, the
    /// first counts.
    fn read(&self, text: &[u8], options: LexOptions, shaped: &Shaped) -> Arc<Known> {
        let id = QueryId(shaped.stable_id(text, options).as_u64());
        let query = self
            .queries
            .record(id, || normalise(text, options, TEXT_MAX).into());
        let known = Arc::new(Known::new(shaped.fingerprint, text, options, query));
        let number = known.fingerprint.as_u64();
        let mut table = self.lock();
        match table.get(number) {
            Some(first) if !first.class.needs_text => first,
            Some(_) => known,
            None if table.len() >= FREELY && !self.is_worth_keeping(&known) => known,
            None => {
                let put = table.put(number, Arc::clone(&known));
                self.count_large(&known, &put);
                drop(table);
                // Not under the lock: it takes a while.
                drop(put);
                known
            }
        }
    }

    /// It was met before, and does not take the memory of many.
    fn is_worth_keeping(&self, known: &Known) -> bool {
        let has_room = !known.is_large() || self.large.load(Ordering::Relaxed) < LARGE_MAX;
        self.met.again(known.fingerprint.as_u64()) && has_room
    }

    /// `known` has come, under the lock, and another one gone.
    fn count_large(&self, known: &Known, put: &Put<Known>) {
        if !matches!(put, Put::NotKept) && known.is_large() {
            self.large.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(put, Put::InPlaceOf(forgotten) if forgotten.is_large()) {
            self.large.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clock<Known>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands for statements whose text was not read, such as one too long to be held.
    pub fn unread(&self) -> &Arc<Known> {
        &self.unread
    }

    /// Stands for calls of functions by a message of their own, which has no text.
    pub fn function_call(&self) -> &Arc<Known> {
        &self.function_call
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_again_is_the_same_statement_amid_many_others() {
        let all = KnownStatements::with_room_for(1000);
        let look = |text: &str| all.lookup(text.as_bytes(), LexOptions::default());
        let again = Arc::downgrade(&look("SELECT again"));
        for number in 0..5000 {
            look(&format!("SELECT a_{number}"));
            if number % 100 == 0 {
                let found = look("SELECT again");
                assert!(
                    std::ptr::eq(Arc::as_ptr(&found), again.as_ptr()),
                    "{number}"
                );
                // Found by its fingerprint, then by the way that was made.
                look("SELECT   again");
            }
        }
        assert_eq!(again.strong_count(), 1);
    }

    /// As many as are kept freely.
    fn many() -> KnownStatements {
        let all = KnownStatements::default();
        for number in 0..FREELY {
            let text = format!("SELECT a_{number}");
            all.lookup(text.as_bytes(), LexOptions::default());
        }
        assert_eq!(all.lock().len(), FREELY);
        all
    }

    #[test]
    fn where_there_are_many_only_what_is_met_again_is_kept() {
        let all = many();
        let look = |text: &str| all.lookup(text.as_bytes(), LexOptions::default());
        let texts: Vec<_> = (0..100).map(|it| format!("SELECT once_{it}")).collect();
        let kept = || {
            let kept = texts.iter().filter(|it| Arc::strong_count(&look(it)) > 1);
            kept.count()
        };
        assert_eq!(kept(), 0);
        // Two may have taken each other's place among what was met.
        assert!((95..=texts.len()).contains(&kept()));
        assert!(all.lock().len() <= FREELY + texts.len());
    }

    #[test]
    fn of_large_texts_a_bounded_number_is_kept() {
        let all = many();
        let look = |text: &str| all.lookup(text.as_bytes(), LexOptions::default());
        for number in 0..LARGE_MAX + 50 {
            let text = format!("SELECT b_{number};").repeat(PARTS_MAX + 1);
            look(&text);
            look(&text);
        }
        assert_eq!(all.large.load(Ordering::Relaxed), LARGE_MAX);
        assert_eq!(all.lock().len(), FREELY + LARGE_MAX);
    }

    #[test]
    fn a_text_that_several_read_at_once_is_one_statement() {
        let all = KnownStatements::default();
        for round in 0..50 {
            let text = format!("SELECT a_{round}, 'x' FROM t");
            let look = || all.lookup(text.as_bytes(), LexOptions::default());
            let found: Vec<Arc<Known>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(look)).collect();
                threads
                    .into_iter()
                    .filter_map(|it| it.join().ok())
                    .collect()
            });
            assert_eq!(found.len(), 4);
            assert!(found.iter().all(|known| Arc::ptr_eq(known, &found[0])));
        }
    }

    #[test]
    fn who_lists_channels_is_found_however_it_is_written() {
        let all = KnownStatements::default();
        let reads = |text: &str| {
            let known = all.lookup(text.as_bytes(), LexOptions::default());
            known.reads_channels
        };
        assert!(reads("SELECT * FROM PG_Listening_channels()"));
        assert!(reads("SELECT pg_catalog.pg_listening_channels()"));
        assert!(!reads("SELECT pg_listening_channels_of_mine()"));
        assert!(!reads("SELECT 'pg_listening_channels'"));
    }

    #[test]
    fn what_may_run_code_unseen_from_now_on_is_noticed() {
        let all = KnownStatements::default();
        let changes = |text: &str| {
            let known = all.lookup(text.as_bytes(), LexOptions::default());
            known.changes_unseen
        };
        for text in [
            "CREATE TRIGGER t BEFORE INSERT ON a EXECUTE FUNCTION f()",
            "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f()",
            "ALTER EVENT TRIGGER e ENABLE ALWAYS",
            "DROP EVENT TRIGGER e",
            "CREATE FOREIGN TABLE a (b int DEFAULT f()) SERVER s",
            "CREATE TABLE a (b int CHECK (f(b)))",
            "ALTER TABLE a ALTER b SET DEFAULT f()",
            "CREATE MATERIALIZED VIEW v AS SELECT f()",
            "CREATE OR REPLACE VIEW v AS SELECT f()",
            "CREATE INDEX ON a (f(b))",
        ] {
            assert!(changes(text), "{text}");
        }
        for text in [
            "SELECT 1",
            "CREATE TABLE a (b int)",
            "CREATE TEMP TABLE a (b int DEFAULT f())",
            "DROP TABLE a",
        ] {
            assert!(!changes(text), "{text}");
        }
    }
}
