//! What one backend has now, as far as pgweir has put it there or been told.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lru::LruCache;

use super::login::Login;
use super::sequences::Numbers;
use super::settings::Settings;
use super::shape::{Awaited, Shape};
use crate::sql::LexOptions;
use crate::sql::reading::REPORTED;

type Entry = (Box<[u8]>, Box<[u8]>);

/// What the client calls itself.
const APPLICATION: &[u8] = b"application_name";

/// Values the server reports by `ParameterStatus`, in the order it first reported them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    entries: Vec<Entry>,
    /// What they say of how SQL is read, kept because every simple query asks.
    lex_options: LexOptions,
    greeting: Greeting,
    /// What they say of how constants and texts are read: names and values of [`REPORTED`], each ended by a NUL.
    reading: Arc<[u8]>,
}

/// The names and values of a [`Reported::reading`].
pub fn settings_of(reading: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut parts = reading.split(|byte| *byte == 0);
    std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
}

/// The messages that tell a new client all values, kept because every login sends them. Equal sets have equal ones.
#[derive(Clone, Debug, Default)]
struct Greeting(OnceLock<Box<[u8]>>);

impl PartialEq for Greeting {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Greeting {}

impl Reported {
    /// The messages that tell all values, as `write` puts each of them.
    pub fn greeting(&self, write: impl Fn(&mut Vec<u8>, &[u8], &[u8])) -> &[u8] {
        self.greeting.0.get_or_init(|| {
            let mut out = Vec::new();
            for (name, value) in self.iter() {
                write(&mut out, name, value);
            }
            out.into()
        })
    }

    /// How a server that reports these values reads SQL.
    pub fn lex_options(&self) -> LexOptions {
        self.lex_options
    }

    /// The values that decide what a text means.
    pub fn reading(&self) -> &Arc<[u8]> {
        &self.reading
    }

    fn put_reading(&mut self) {
        let mut reading = Vec::new();
        for name in REPORTED {
            if let Some(value) = self.get(name.as_bytes()) {
                reading.extend([name.as_bytes(), &[0], value, &[0]].concat());
            }
        }
        self.reading = reading.into();
    }

    /// Makes two sets that hold the same one set; false if they differ.
    ///
    /// # Why the lower address stays
    /// Each client meets each backend sooner or later. With an order that all agree on, the equal sets of a pool become
    /// one after a few transactions, and from then on comparing them is comparing two pointers.
    pub fn unify(a: &mut Arc<Self>, b: &mut Arc<Self>) -> bool {
        if Arc::ptr_eq(a, b) {
            return true;
        }
        if a != b {
            return false;
        }
        if Arc::as_ptr(a) < Arc::as_ptr(b) {
            *b = Arc::clone(a);
        } else {
            *a = Arc::clone(b);
        }
        true
    }

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
        self.greeting = Greeting::default();
        match self
            .entries
            .iter_mut()
            .find(|(key, _)| key.as_ref() == name)
        {
            Some((_, old)) => *old = value.into(),
            None => self.entries.push((name.into(), value.into())),
        }
        match name {
            b"standard_conforming_strings" => {
                self.lex_options.standard_conforming_strings = value != b"off";
            }
            b"client_encoding" => self.lex_options.unsafe_encoding = is_unsafe(value),
            _ => {}
        }
        if REPORTED.iter().any(|it| it.as_bytes() == name) {
            self.put_reading();
        }
    }
}

/// Whether later bytes of a character of `encoding` can be ASCII.
fn is_unsafe(encoding: &[u8]) -> bool {
    const UNSAFE: [&[u8]; 7] = [
        b"SJIS",
        b"SHIFT_JIS_2004",
        b"BIG5",
        b"GBK",
        b"UHC",
        b"JOHAB",
        b"GB18030",
    ];
    UNSAFE.contains(&encoding)
}

/// A global statement on a backend.
#[derive(Debug, Default)]
struct Given {
    shape: Arc<Shape>,
    /// The server will not run it any more: it has to be closed and parsed again.
    stale: bool,
}

/// What others may see of a backend, whoever uses it. Written where it changes, which in steady state is never.
#[derive(Debug, Default)]
pub struct Outside {
    prepared: AtomicUsize,
    application: Mutex<Option<Box<str>>>,
}

impl Outside {
    /// Statements it has prepared.
    pub fn prepared(&self) -> usize {
        self.prepared.load(Ordering::Relaxed)
    }

    /// Its `application_name`, as the server last reported it.
    pub fn application(&self) -> Option<Box<str>> {
        let application = self.application.lock();
        application.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn call(&self, application: &[u8]) {
        let name = String::from_utf8_lossy(application).into();
        *self
            .application
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(name);
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
    /// Something was reset that `connect_query` may have set, if there is one.
    pub is_bare: bool,
    /// The role it began with, once it was asked ([`Self::login`]).
    pub login_role: Option<Box<[u8]>>,
    /// What it last reported.
    pub reported: Arc<Reported>,
    /// Global statements it has, least recently used first to go.
    prepared: LruCache<u64, Given>,
    /// Shapes of statements it was given that it has not told yet.
    pub awaited_shapes: Awaited,
    /// What `currval` and `lastval` would return.
    pub numbers: Numbers,
    /// Which statement its unnamed statement is; `None`: none or unknown.
    pub unnamed: Option<u64>,
    outside: Arc<Outside>,
}

/// A server as it tells of itself. A crash makes it another one: recovery ends with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// The identifier of its database cluster.
    pub system: Box<[u8]>,
    /// In eight hexadecimal digits.
    pub timeline: Box<[u8]>,
    /// Where its last checkpoint is.
    pub checkpoint: Box<[u8]>,
}

impl Mirror {
    /// Whom a backend that has logged in as `user` is.
    pub fn login<'a>(&'a self, user: &'a str) -> Login<'a> {
        Login {
            user: user.as_bytes(),
            role: self.login_role.as_deref(),
        }
    }

    /// A fresh backend that keeps at most `max_prepared` statements (at least one).
    pub fn new(reported: Arc<Reported>, max_prepared: usize) -> Self {
        let capacity = NonZeroUsize::new(max_prepared).unwrap_or(NonZeroUsize::MIN);
        // Unbounded inside, so that the table grows with use: bounded by `make_room`.
        let mut prepared = LruCache::unbounded();
        prepared.resize(capacity);
        let outside = Outside::default();
        if let Some(application) = reported.get(APPLICATION) {
            outside.call(application);
        }
        Self {
            settings: Settings::none(),
            unknown_to: None,
            is_bare: false,
            login_role: None,
            reported,
            prepared,
            awaited_shapes: Awaited::default(),
            numbers: Numbers::default(),
            unnamed: None,
            outside: Arc::new(outside),
        }
    }

    /// What others may see of it.
    pub fn outside(&self) -> &Arc<Outside> {
        &self.outside
    }

    fn count_prepared(&self) {
        let prepared = self.prepared.len();
        self.outside.prepared.store(prepared, Ordering::Relaxed);
    }

    /// Whether the backend has statement `id`.
    pub fn contains(&self, id: u64) -> bool {
        self.prepared.contains(&id)
    }

    /// Whether the backend has statement `id` and would run it.
    pub fn runs(&self, id: u64) -> bool {
        self.prepared.peek(&id).is_some_and(|given| !given.stale)
    }

    /// The shape of statement `id` if the backend has it and would run it; counts as a use of it.
    pub fn shape(&mut self, id: u64) -> Option<&Arc<Shape>> {
        self.prepared
            .get(&id)
            .filter(|given| !given.stale)
            .map(|given| &given.shape)
    }

    /// The backend is being given statement `id`. Returns a statement that must be closed first: the one it had by that
    /// name, or another to make room.
    pub fn prepare(&mut self, id: u64, shape: Arc<Shape>) -> Option<u64> {
        let given = Given {
            shape,
            stale: false,
        };
        let evicted = self.prepared.push(id, given);
        self.count_prepared();
        evicted.map(|(evicted, _)| evicted)
    }

    /// The server said that statement `id` can't be run any more.
    pub fn spoil(&mut self, id: u64) {
        if let Some(given) = self.prepared.peek_mut(&id) {
            given.stale = true;
        }
    }

    /// Takes off the statement that was not used for longest, to be closed.
    pub fn take_oldest(&mut self) -> Option<u64> {
        let oldest = self.prepared.pop_lru();
        self.count_prepared();
        oldest.map(|(id, _)| id)
    }

    /// The server was asked how many of the statements it has, with nothing under way. If one is missing, nobody knows
    /// which: all are closed and parsed again when they are next used. True if all of them are gone.
    pub fn recount(&mut self, prepared: usize) -> bool {
        let had = self.prepared.len();
        if prepared == 0 {
            self.prepared.clear();
        } else if prepared != had {
            for (_, given) in &mut self.prepared {
                given.stale = true;
            }
        }
        self.count_prepared();
        prepared == 0 && had > 0
    }

    /// Statement `id` is not there after all, or was closed.
    pub fn forget(&mut self, id: u64) {
        self.prepared.pop(&id);
        self.count_prepared();
    }

    /// `DEALLOCATE ALL` succeeded.
    pub fn forget_all(&mut self) {
        self.prepared.clear();
        self.count_prepared();
        self.unnamed = None;
    }

    /// `DISCARD ALL` succeeded.
    pub fn reset(&mut self) {
        self.forget_all();
        self.settings = Settings::none();
        self.unknown_to = None;
        self.is_bare = true;
        self.numbers.forget();
    }

    pub fn prepared_len(&self) -> usize {
        self.prepared.len()
    }

    /// The server reported a value.
    pub fn report(&mut self, name: &[u8], value: &[u8]) {
        if self.reported.get(name) != Some(value) {
            Arc::make_mut(&mut self.reported).set(name, value);
            if name == APPLICATION {
                self.outside.call(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_statement_makes_room() {
        let mut mirror = Mirror::new(Arc::default(), 2);
        let shape = Arc::<Shape>::default;
        assert_eq!(mirror.prepare(1, shape()), None);
        assert_eq!(mirror.prepare(2, shape()), None);
        assert!(mirror.shape(1).is_some());
        assert_eq!(mirror.prepare(3, shape()), Some(2));
        assert!(mirror.contains(1) && mirror.contains(3) && !mirror.contains(2));
        assert_eq!(mirror.prepare(3, shape()), Some(3));
    }

    #[test]
    fn others_see_how_many_statements_it_has_and_what_it_is_called() {
        let mut mirror = Mirror::new(Arc::default(), 2);
        let outside = Arc::clone(mirror.outside());
        assert_eq!((outside.prepared(), outside.application()), (0, None));
        for id in 1..=3 {
            mirror.prepare(id, Arc::default());
        }
        mirror.report(APPLICATION, b"shop");
        assert_eq!(outside.prepared(), 2);
        assert_eq!(outside.application().as_deref(), Some("shop"));
        mirror.forget(3);
        assert_eq!(outside.prepared(), 1);
        mirror.reset();
        assert_eq!(outside.prepared(), 0);
    }

    #[test]
    fn a_stale_statement_is_there_to_be_closed_only() {
        let mut mirror = Mirror::new(Arc::default(), 2);
        mirror.prepare(1, Arc::default());
        mirror.spoil(1);
        mirror.spoil(2);
        assert!(mirror.shape(1).is_none() && mirror.contains(1));
        assert_eq!(mirror.prepare(1, Arc::default()), Some(1));
        assert!(mirror.shape(1).is_some() && !mirror.contains(2));
    }

    #[test]
    fn equal_sets_become_one_and_different_ones_stay_apart() {
        let reported = |value: &[u8]| {
            let mut reported = Reported::default();
            reported.set(b"TimeZone", value);
            Arc::new(reported)
        };
        let (mut a, mut b, mut other) = (reported(b"UTC"), reported(b"UTC"), reported(b"CET"));
        assert!(Reported::unify(&mut a, &mut b) && Arc::ptr_eq(&a, &b));
        assert!(!Reported::unify(&mut a, &mut other) && !Arc::ptr_eq(&a, &other));
        let mut c = reported(b"UTC");
        let lowest = Arc::as_ptr(&a).min(Arc::as_ptr(&c));
        assert!(Reported::unify(&mut c, &mut b) && Reported::unify(&mut a, &mut c));
        assert!([&a, &b, &c].iter().all(|set| Arc::as_ptr(set) == lowest));
    }

    #[test]
    fn what_is_reported_tells_how_sql_is_read() {
        let mut reported = Reported::default();
        assert_eq!(reported.lex_options(), LexOptions::default());
        reported.set(b"standard_conforming_strings", b"off");
        reported.set(b"client_encoding", b"SJIS");
        let options = reported.lex_options();
        assert!(!options.standard_conforming_strings && options.unsafe_encoding);
        reported.set(b"client_encoding", b"UTF8");
        assert!(!reported.lex_options().unsafe_encoding);
    }

    #[test]
    fn what_decides_meanings_is_kept_in_one_order() {
        let mut one = Reported::default();
        one.set(b"TimeZone", b"UTC");
        one.set(b"server_version", b"17");
        one.set(b"client_encoding", b"UTF8");
        let mut other = Reported::default();
        other.set(b"client_encoding", b"UTF8");
        other.set(b"TimeZone", b"UTC");
        assert_eq!(one.reading(), other.reading());
        let settings: Vec<_> = settings_of(one.reading()).collect();
        let expected: [(&[u8], &[u8]); 2] = [(b"client_encoding", b"UTF8"), (b"TimeZone", b"UTC")];
        assert_eq!(settings, expected);
        other.set(b"TimeZone", b"CET");
        assert_ne!(one.reading(), other.reading());
        assert_eq!(settings_of(b"").count(), 0);
    }

    #[test]
    fn a_missing_statement_puts_all_in_doubt() {
        let mut mirror = Mirror::new(Arc::default(), 3);
        mirror.prepare(1, Arc::default());
        mirror.prepare(2, Arc::default());
        assert!(!mirror.recount(2) && mirror.shape(1).is_some());
        assert!(!mirror.recount(1) && mirror.shape(1).is_none() && mirror.shape(2).is_none());
        assert_eq!(mirror.prepare(1, Arc::default()), Some(1));
        assert!(mirror.recount(0) && !mirror.contains(1));
        assert!(!mirror.recount(0));
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
