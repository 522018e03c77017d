//! Statements seen so far, by fingerprint: what they are and what was counted of them.
//!
//! Classification is done once for each distinct statement and shared by all sessions; so are the counters.
//!
//! Bound: [`KNOWN_MAX`] statements. When it is full, statements that no session or prepared statement holds are
//! forgotten, oldest counters included.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashTable;

use super::classify::{
    Class, CopyDirection, CopyPeer, DdlVerb, Statement, StatementKind, classify,
};
use super::fingerprint::{Fingerprint, FingerprintKey};
use super::lexer::{LexOptions, Lexer, TokenKind};
use super::normalise::normalise;
use super::repeat::{self, Doubt};
use super::state::{Effect, PinReason, PinSet};

/// Distinct statements kept.
pub const KNOWN_MAX: usize = 10_000;

/// Bytes of a statement's text that are kept.
const TEXT_MAX: usize = 2 * 1024;

/// What was counted of one statement.
#[derive(Debug, Default)]
pub struct Counted {
    pub calls: AtomicU64,
    pub errors: AtomicU64,
    pub rows: AtomicU64,
    pub micros: AtomicU64,
}

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
    /// It may end what pins a session: a table is dropped, a lock or cursor given up, a channel left.
    pub may_unpin: bool,
    /// It is not proved to only read: it may advance a sequence, if only by a default or a trigger.
    pub writes: bool,
    /// Whether it may run again once the server has rolled it back.
    pub doubt: Doubt,
    /// It may read data from the client.
    pub copies_in: bool,
    /// Nothing about it concerns the session: no effect, no transaction control, no reason to pin.
    pub is_plain: bool,
    /// The log has been told that it pins.
    told: AtomicBool,
    /// The text without its literals.
    pub text: Arc<str>,
    pub counted: Arc<Counted>,
}

impl Known {
    fn new(
        fingerprint: Fingerprint,
        text: &[u8],
        options: LexOptions,
        like: Option<&Self>,
    ) -> Self {
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
        let is_plain = pins.is_empty()
            && !copies_in
            && !transaction.begins()
            && !transaction.ends()
            && class.effects().all(|effect| !concerns_session(effect));
        let (text, counted) = match like {
            Some(like) => (Arc::clone(&like.text), Arc::clone(&like.counted)),
            None => (normalise(text, options, TEXT_MAX).into(), Arc::default()),
        };
        Self {
            fingerprint,
            class,
            pins,
            may_unpin: class_unpins,
            writes: !class_reads,
            doubt,
            copies_in,
            told: AtomicBool::new(false),
            is_plain,
            text,
            counted,
        }
    }

    /// Whether this is the first time that it pins a session, for the log.
    pub fn pins_first_time(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// An execution ended with an error.
    pub fn failed(&self) {
        self.counted.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A command returned or changed `rows`.
    pub fn returned(&self, rows: u64) {
        self.counted.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// An execution ended, `took` after it was sent.
    pub fn took(&self, took: Duration) {
        self.counted.calls.fetch_add(1, Ordering::Relaxed);
        self.counted.micros.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

fn may_unpin(statement: &Statement) -> bool {
    matches!(
        statement.kind,
        StatementKind::Ddl {
            verb: DdlVerb::Drop,
            ..
        }
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

fn defines(class: &Class) -> bool {
    class
        .statements
        .iter()
        .any(|statement| matches!(statement.kind, StatementKind::Ddl { .. }))
}

/// A default or a trigger that reads `currval` runs unseen later; its author is most likely its first user.
fn mentions_sequence_state(text: &[u8], options: LexOptions) -> bool {
    Lexer::new(text, options).any(|token| {
        token.kind == TokenKind::Ident
            && [&b"currval"[..], b"lastval"]
                .iter()
                .any(|name| text[token.range()].eq_ignore_ascii_case(name))
    })
}

fn concerns_session(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Setting { local: false, .. }
            | Effect::DeallocateSql(None)
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
    table: Mutex<HashTable<Arc<Known>>>,
    key: FingerprintKey,
}

impl Default for KnownStatements {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            key: FingerprintKey::random(),
        }
    }
}

impl KnownStatements {
    /// What is known of `text`.
    pub fn lookup(&self, text: &[u8], options: LexOptions) -> Arc<Known> {
        let fingerprint = self.key.fingerprint(text, options);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.find(fingerprint.as_u64(), |known| {
            known.fingerprint == fingerprint
        }) {
            if known.class.needs_text {
                // Its constants decide, so the shape's class is another text's.
                return Arc::new(Known::new(fingerprint, text, options, Some(known)));
            }
            return Arc::clone(known);
        }
        let known = Arc::new(Known::new(fingerprint, text, options, None));
        if table.len() >= KNOWN_MAX {
            table.retain(|known| Arc::strong_count(known) > 1);
        }
        if table.len() < KNOWN_MAX {
            table.insert_unique(fingerprint.as_u64(), Arc::clone(&known), |known| {
                known.fingerprint.as_u64()
            });
        }
        known
    }

    /// Every statement kept.
    pub fn all(&self) -> Vec<Arc<Known>> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}
