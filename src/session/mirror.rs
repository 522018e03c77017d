//! What one backend has now, as far as pgweir has put it there or been told.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::settings::Settings;

type Entry = (Box<[u8]>, Box<[u8]>);

/// Values the server reports by `ParameterStatus`, in the order it first reported them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    entries: Vec<Entry>,
}

impl Reported {
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|(key, _)| key.as_ref() == name)
            .map(|(_, value)| value.as_ref())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self
            .entries
            .iter_mut()
            .find(|(key, _)| key.as_ref() == name)
        {
            Some((_, old)) => *old = value.into(),
            None => self.entries.push((name.into(), value.into())),
        }
    }
}

/// The state of one backend.
#[derive(Debug)]
pub struct Mirror {
    /// Settings pgweir has put there for the session that uses it or used it last.
    pub settings: Arc<Settings>,
    /// The session whose code may have set what the server does not list: custom settings of no extension. They stay
    /// for that session and are reset for any other.
    pub unknown_to: Option<u32>,
    /// What it last reported.
    pub reported: Arc<Reported>,
    /// Global statements it has, least recently used first to go.
    prepared: LruCache<u64, ()>,
    /// The client (its process ID) that ran the last statement which may have advanced a sequence here: what `currval`
    /// and `lastval` return is its.
    pub sequences_of: Option<u32>,
    /// Which statement its unnamed statement is; `None`: none or unknown.
    pub unnamed: Option<u64>,
}

impl Mirror {
    /// A fresh backend that keeps at most `max_prepared` statements (at least one).
    pub fn new(reported: Arc<Reported>, max_prepared: usize) -> Self {
        let capacity = NonZeroUsize::new(max_prepared).unwrap_or(NonZeroUsize::MIN);
        // Unbounded inside, so that the table grows with use: bounded by `make_room`.
        let mut prepared = LruCache::unbounded();
        prepared.resize(capacity);
        Self {
            settings: Arc::default(),
            unknown_to: None,
            reported,
            prepared,
            sequences_of: None,
            unnamed: None,
        }
    }

    /// Whether the backend has statement `id`.
    pub fn contains(&self, id: u64) -> bool {
        self.prepared.contains(&id)
    }

    /// Whether the backend has statement `id`; counts as a use of it.
    pub fn has(&mut self, id: u64) -> bool {
        self.prepared.get(&id).is_some()
    }

    /// The backend is being given statement `id`. Returns a statement that must be closed to make room.
    pub fn prepare(&mut self, id: u64) -> Option<u64> {
        self.prepared
            .push(id, ())
            .map(|(evicted, ())| evicted)
            .filter(|&evicted| evicted != id)
    }

    /// Statement `id` is not there after all, or was closed.
    pub fn forget(&mut self, id: u64) {
        self.prepared.pop(&id);
    }

    /// `DEALLOCATE ALL` succeeded.
    pub fn forget_all(&mut self) {
        self.prepared.clear();
        self.unnamed = None;
    }

    /// `DISCARD ALL` succeeded.
    pub fn reset(&mut self) {
        self.forget_all();
        self.settings = Arc::default();
        self.unknown_to = None;
    }

    pub fn prepared_len(&self) -> usize {
        self.prepared.len()
    }

    /// The server reported a value.
    pub fn report(&mut self, name: &[u8], value: &[u8]) {
        if self.reported.get(name) != Some(value) {
            Arc::make_mut(&mut self.reported).set(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_statement_makes_room() {
        let mut mirror = Mirror::new(Arc::default(), 2);
        assert_eq!(mirror.prepare(1), None);
        assert_eq!(mirror.prepare(2), None);
        assert!(mirror.has(1));
        assert_eq!(mirror.prepare(3), Some(2));
        assert!(mirror.has(1) && mirror.has(3) && !mirror.has(2));
        assert_eq!(mirror.prepare(3), None);
    }

    #[test]
    fn reported_values_are_shared_until_one_changes() {
        let mut reported = Reported::default();
        reported.set(b"TimeZone", b"UTC");
        let reported = Arc::new(reported);
        let mut mirror = Mirror::new(Arc::clone(&reported), 1);
        mirror.report(b"TimeZone", b"UTC");
        assert!(Arc::ptr_eq(&mirror.reported, &reported));
        mirror.report(b"TimeZone", b"CET");
        assert_eq!(mirror.reported.get(b"TimeZone"), Some(&b"CET"[..]));
        assert_eq!(reported.get(b"TimeZone"), Some(&b"UTC"[..]));
    }
}
