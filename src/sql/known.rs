//! Statements seen so far, by fingerprint: what they are and what was counted of them.
//!
//! Classification is done once for each distinct statement and shared by all sessions; so are the counters.
//!
//! Bound: [`KNOWN_MAX`] statements. When it is full, statements that no session or prepared statement holds are
//! forgotten, oldest counters included.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashTable;

use super::classify::{Class, CopyDirection, CopyPeer, StatementKind, classify};
use super::lexer::LexOptions;
use super::state::Effect;

/// Distinct statements kept.
pub const KNOWN_MAX: usize = 10_000;

/// One statement.
#[derive(Debug)]
pub struct Known {
    pub class: Class,
    /// It may read data from the client.
    pub copies_in: bool,
    /// Nothing about it concerns the session: no effect, no transaction control, no reason to pin.
    pub is_plain: bool,
    text: Box<[u8]>,
    hash: u64,
    calls: AtomicU64,
    errors: AtomicU64,
    rows: AtomicU64,
    micros: AtomicU64,
}

impl Known {
    fn new(text: &[u8], hash: u64, options: LexOptions) -> Self {
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
        let is_plain = class.pins.is_empty()
            && !copies_in
            && !transaction.begins()
            && !transaction.ends()
            && class.effects().all(|effect| !concerns_session(effect));
        Self {
            class,
            copies_in,
            is_plain,
            text: text.into(),
            hash,
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            micros: AtomicU64::new(0),
        }
    }

    /// An execution ended with an error.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A command returned or changed `rows`.
    pub fn returned(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// An execution ended, `took` after it was sent.
    pub fn took(&self, took: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

fn concerns_session(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Setting { local: false, .. }
            | Effect::ResetSetting(_)
            | Effect::ResetAll
            | Effect::SettingsUnknown
    )
}

/// See the module.
#[derive(Debug, Default)]
pub struct KnownStatements {
    table: Mutex<HashTable<Arc<Known>>>,
    hasher: foldhash::fast::RandomState,
}

impl KnownStatements {
    /// What is known of `text`.
    pub fn lookup(&self, text: &[u8], options: LexOptions) -> Arc<Known> {
        let hash = self.hasher.hash_one(text);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.find(hash, |known| known.text.as_ref() == text) {
            return Arc::clone(known);
        }
        let known = Arc::new(Known::new(text, hash, options));
        if table.len() >= KNOWN_MAX {
            table.retain(|known| Arc::strong_count(known) > 1);
        }
        if table.len() < KNOWN_MAX {
            table.insert_unique(hash, Arc::clone(&known), |known| known.hash);
        }
        known
    }
}
