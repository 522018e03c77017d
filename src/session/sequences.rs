//! What `currval` and `lastval` return: whose numbers a backend holds, and which applications read them.
//!
//! # Why
//! The server keeps the last number of each sequence for the connection that took it, and tells nobody which those are.
//! Any INSERT may take one, by a default or a trigger, and even a SELECT, from a view. So a backend remembers who ran
//! anything on it that may run code, and numbers are read only where that was nobody but the reader; elsewhere the
//! backend forgets them first (`DISCARD SEQUENCES`, believed when it is answered) and the server says that there are
//! none. Nobody reads another's number; what can go wrong is that a session does not find its own.
//!
//! For that not to happen it must keep its backend from the first number on, before it has said that it will read it.
//! What tells is the application: one that was seen to read numbers, or to miss them, has its sessions pinned by their
//! writes, each for a moment: then the backend is set aside for the session until somebody else needs it. A session that
//! has read itself is pinned for good. A session that writes [`PATIENCE`] times without reading, and an application that
//! writes [`FADE`] times, count as not reading any more.
//!
//! An application that nobody knows is on probation until it has written [`PROBATION`] times without reading: what a
//! backend holds of others is forgotten ahead of a write, so that a number is found in the transaction that took it, and a
//! session that names a sequence gets the same backend again while nobody else needs it. The same goes, without end and
//! inside transactions only, for an application that was seen to call code behind a number it had taken: the code may
//! read it.
//!
//! # What is left
//! An application whose first reading comes in a later transaction than the write, with others in between, or after its
//! probation, is told once that `currval` is not yet defined; so is one that was taken for one that does not read any
//! more, and one that waits for a while before it reads when all connections are needed. A trigger or a default that
//! reads `currval` without having taken a number in the same statement does it unseen.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

/// Statements that may take numbers before an application counts as one that doesn't read them.
pub const PROBATION: u32 = 200;

/// The same before one that was seen to read doesn't count as one that does any more, unless it is seen again.
pub const FADE: u32 = 10_000;

/// The same of a session of such an application.
pub const PATIENCE: u32 = 20;

/// Applications kept apart; all further ones count as one.
const APPLICATIONS_MAX: usize = 4_096;

/// Whose numbers a backend may have. A session is known by a number that no other ever has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Who ran code here last.
    last: Option<u64>,
    /// Others have before, since all was forgotten.
    mixed: bool,
}

impl Numbers {
    /// `session` may take a number.
    pub fn advance(&mut self, session: u64) {
        self.mixed |= self.last.is_some_and(|last| last != session);
        self.last = Some(session);
    }

    /// Several sessions may take numbers.
    pub fn mix(&mut self) {
        self.mixed = true;
    }

    /// `session` has the backend forget all, which is not answered yet.
    pub fn begin_forgetting(&mut self, session: u64) {
        self.last = Some(session);
        self.mixed = true;
    }

    /// The backend has forgotten all. What the session that has it sent behind that may have run already.
    pub fn forget(&mut self) {
        self.mixed = false;
    }

    /// Whether it is sure that none of them are of `session`.
    pub fn are_not_of(self, session: u64) -> bool {
        self.last != Some(session) && !self.mixed
    }

    /// Whether they are nobody's but those of `session`.
    pub fn are_of(self, session: u64) -> bool {
        self.last == Some(session) && !self.mixed
    }

    /// Whether `session` was the last to take any.
    pub fn are_last_of(self, session: u64) -> bool {
        self.last == Some(session)
    }

    /// Whether `session`, which has taken numbers as `taken` says, must not read here: on the backend with the number
    /// `backend`.
    pub fn are_foreign(self, session: u64, taken: Taken, backend: u64) -> bool {
        let none = self.last.is_none() && !self.mixed;
        let own = self.are_of(session) && (taken == Taken::On(backend) || taken == Taken::Nowhere);
        !none && !own
    }
}

/// Where a session may have taken numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Taken {
    #[default]
    Nowhere,
    /// On the backend with this number, if it has any of them, and nowhere else since the oldest it has.
    On(u64),
    /// On several: each may have older ones than others have.
    Apart,
}

impl Taken {
    /// One may be taken on the backend with the number `backend`, which so far `is_new` to the session: it has none.
    pub fn advance(&mut self, backend: u64, is_new: bool) {
        *self = match *self {
            Self::On(before) if before == backend => Self::On(backend),
            Self::Nowhere => Self::On(backend),
            Self::On(_) | Self::Apart if is_new => Self::On(backend),
            Self::On(_) | Self::Apart => Self::Apart,
        };
    }
}

/// What is known of an application: whether it reads, and how often it has written since that could be told last.
#[derive(Debug, Default)]
pub struct Habit {
    /// Up to [`PROBATION`] while nobody knows; above it, what is left of [`FADE`].
    writes: AtomicU32,
    /// It calls code behind numbers of the same transaction.
    calls: AtomicBool,
    /// Its code reads, which its statements don't tell.
    is_hidden: AtomicBool,
    /// Of several applications: what one does says nothing of the others.
    is_shared: bool,
}

impl Habit {
    pub fn reads(&self) -> bool {
        self.writes.load(Ordering::Relaxed) > PROBATION
    }

    /// It has not written often enough to tell.
    pub fn is_on_probation(&self) -> bool {
        self.writes.load(Ordering::Relaxed) < PROBATION
    }

    pub fn calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed)
    }

    /// It has written once more.
    pub fn count(&self) {
        let next = |writes: u32| match writes {
            PROBATION => None,
            ..PROBATION => Some(writes + 1),
            _ => Some(writes - 1),
        };
        let _ = self
            .writes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// It was seen to read.
    pub fn learn(&self) {
        if !self.is_shared {
            self.writes.store(PROBATION + FADE, Ordering::Relaxed);
        }
    }

    /// Code of its was seen to read.
    pub fn learn_hidden(&self) {
        self.learn();
        self.is_hidden.store(true, Ordering::Relaxed);
    }

    pub fn is_hidden(&self) -> bool {
        self.is_hidden.load(Ordering::Relaxed)
    }

    /// It was seen to call code that may read what it has taken just before.
    pub fn learn_calls(&self) {
        if !self.is_shared {
            self.calls.store(true, Ordering::Relaxed);
        }
    }
}

/// All applications. One is known by database, user and name.
#[derive(Debug)]
pub struct Applications {
    habits: Mutex<HashMap<Box<[u8]>, Arc<Habit>>>,
    /// Of those past the bound: not on probation, and nothing is learnt of them.
    others: Arc<Habit>,
}

impl Default for Applications {
    fn default() -> Self {
        Self {
            habits: Mutex::default(),
            others: Arc::new(Habit {
                writes: AtomicU32::new(PROBATION),
                is_shared: true,
                ..Habit::default()
            }),
        }
    }
}

impl Applications {
    pub fn habit(&self, database: &str, user: &str, application: &[u8]) -> Arc<Habit> {
        let name = family(application);
        let key = [database.as_bytes(), &[0], user.as_bytes(), &[0], &name].concat();
        let mut habits = self.habits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(habit) = habits.get(key.as_slice()) {
            return Arc::clone(habit);
        }
        if habits.len() >= APPLICATIONS_MAX {
            return Arc::clone(&self.others);
        }
        let habit = Arc::default();
        habits.insert(key.into_boxed_slice(), Arc::clone(&habit));
        habit
    }
}

/// The name without what tells one process of an application from another: words with a digit in them are alike.
fn family(application: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(application.len());
    for word in application.split_inclusive(|byte| !byte.is_ascii_alphanumeric()) {
        if word.iter().any(u8::is_ascii_digit) {
            name.push(b'#');
            name.extend(word.last().filter(|byte| !byte.is_ascii_alphanumeric()));
        } else {
            name.extend_from_slice(word);
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn processes_of_an_application_are_one() {
        let family = |name: &str| String::from_utf8(family(name.as_bytes())).unwrap();
        assert_eq!(family("worker-17"), "worker-#");
        assert_eq!(family("worker-9 (eu1)"), "worker-# (#)");
        assert_eq!(family("psql"), "psql");
        assert_eq!(family(""), "");
        let all = Applications::default();
        let one = all.habit("d", "u", b"worker-1");
        assert!(Arc::ptr_eq(&one, &all.habit("d", "u", b"worker-2")));
        assert!(!Arc::ptr_eq(&one, &all.habit("d", "v", b"worker-1")));
        one.learn();
        assert!(all.habit("d", "u", b"worker-3").reads());
    }

    #[test]
    fn a_trial_ends_with_the_last_write_or_with_a_reading() {
        let habit = Habit::default();
        for _ in 0..PROBATION {
            assert!(habit.is_on_probation());
            habit.count();
        }
        assert!(!habit.is_on_probation() && !habit.reads());
        habit.count();
        assert!(!habit.reads());
        habit.learn();
        habit.count();
        assert!(habit.reads() && !habit.is_on_probation());
    }

    #[test]
    fn who_is_not_seen_to_read_for_long_does_not() {
        let habit = Habit::default();
        habit.learn();
        for _ in 0..FADE {
            assert!(habit.reads());
            habit.count();
        }
        assert!(!habit.reads() && !habit.is_on_probation());
        habit.learn();
        assert!(habit.reads());
    }

    #[test]
    fn applications_past_the_bound_are_one() {
        let all = Applications::default();
        let letters = |n: usize| -> Vec<u8> {
            let letter = |power: u32| b'a' + u8::try_from(n / 26_usize.pow(power) % 26).unwrap();
            (0..4).map(letter).collect()
        };
        for n in 0..APPLICATIONS_MAX {
            all.habit("d", "u", &letters(n));
        }
        let (a, b) = (all.habit("d", "u", b"x y"), all.habit("d", "u", b"z"));
        a.learn();
        a.learn_calls();
        a.count();
        assert!(Arc::ptr_eq(&a, &b) && !a.is_on_probation() && !a.reads() && !a.calls());
    }

    proptest! {
        /// Two sessions on two backends: what is read is what the reader took last, there and nowhere else, and all that
        /// the backend has, whether or not what was to forget did.
        #[test]
        fn nobody_reads_what_is_not_its_own(
            steps in prop::collection::vec((0..2_u64, 1..3_u64, 0..5_u8), 0..40)
        ) {
            let mut taken = [Taken::Nowhere; 2];
            let mut numbers = [Numbers::default(); 3];
            // What the servers have of two sequences: who took the last number of each, and when.
            let mut server = [[None; 2]; 3];
            let mut last = [[None; 2]; 2];
            for (time, (session, backend, step)) in steps.into_iter().enumerate() {
                let place = usize::try_from(backend).unwrap();
                let own = usize::try_from(session).unwrap();
                match step {
                    0 if !numbers[place].are_foreign(session, taken[own], backend) => {
                        for (seen, expected) in server[place].iter().zip(&last[own]) {
                            prop_assert!(seen.is_none() || seen == expected);
                        }
                    }
                    0 | 1 => {
                        numbers[place].begin_forgetting(session);
                        taken[own] = Taken::On(backend);
                        // It may fail.
                        if step == 0 {
                            server[place] = [None; 2];
                            numbers[place].forget();
                        }
                    }
                    _ => {
                        taken[own].advance(backend, numbers[place].are_not_of(session));
                        numbers[place].advance(session);
                        let sequence = usize::from(step % 2);
                        server[place][sequence] = Some((session, time));
                        last[own][sequence] = server[place][sequence];
                    }
                }
            }
        }
    }
}
