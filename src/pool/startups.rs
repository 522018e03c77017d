//! Startup settings the server has accepted, with what they made it report.
//!
//! Bound: `STARTUPS_MAX` sets for each pool; when it is full the table starts anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::session::mirror::Reported;
use crate::session::settings::Settings;

const STARTUPS_MAX: usize = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Startups {
    known: Mutex<HashMap<Arc<Settings>, Arc<Reported>>>,
}

impl Startups {
    /// The shared set equal to `settings`, and what it makes a backend report.
    pub fn get(&self, settings: &Arc<Settings>) -> Option<(Arc<Settings>, Arc<Reported>)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get_key_value(settings)
            .map(|(settings, reported)| (Arc::clone(settings), Arc::clone(reported)))
    }

    pub fn put(&self, settings: Arc<Settings>, reported: Arc<Reported>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= STARTUPS_MAX {
            known.clear();
        }
        known.insert(settings, reported);
    }

    /// The server may see things differently now.
    pub fn clear(&self) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
