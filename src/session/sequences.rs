//! What `currval` and `lastval` return: whose numbers a backend holds, and which applications read them.
//!
//! # Why
//! The server keeps the last number of each sequence for the connection that took it, and tells nobody which those are.
//! Any INSERT may take one, by a default or a trigger. So every statement that is not proved to read counts as taking
//! numbers, and a backend remembers whose statements those were. Numbers are read only where all of them are the
//! session's own; where they are not, the backend forgets them first (`DISCARD SEQUENCES`) and the server answers that
//! there are none yet. Nobody reads another's number; what can go wrong is that a session does not find its own.
//!
//! For that not to happen it must keep its backend from the first number on, before it has said that it will read it.
//! What tells is the application: one that was once seen to read numbers has its sessions pinned from their first
//! write. One that nobody knows is on probation: its sessions keep their backends where there is room, until it has
//! written [`PROBATION`] times without reading.
//!
//! # What is left
//! An application whose first reading comes after its probation, or during it in a pool that has no room to keep backends,
//! is told once that `currval` is not yet defined, and never again. A function that reads `currval` without having taken
//! a number itself in the same call does it unseen.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

/// Statements that may take numbers before an application counts as one that doesn't read them.
pub const PROBATION: u32 = 200;

/// Applications kept apart; all further ones count as one.
const APPLICATIONS_MAX: usize = 4_096;

/// Whose numbers a backend has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    #[default]
    None,
    /// Only those of the client with this process ID.
    Of(u32),
    /// Those of several.
    Mixed,
}

impl Numbers {
    /// `client` may take a number.
    pub fn advance(&mut self, client: u32) {
        *self = match *self {
            Self::None => Self::Of(client),
            Self::Of(other) if other == client => Self::Of(client),
            Self::Of(_) | Self::Mixed => Self::Mixed,
        };
    }

    /// The backend has forgotten all.
    pub fn forget(&mut self) {
        *self = Self::None;
    }

    /// Whether the backend with the number `backend` has to forget its numbers before `client`, which has taken them as
    /// `taken` says, may read here.
    pub fn are_foreign(self, client: u32, taken: Taken, backend: u64) -> bool {
        match self {
            Self::None => false,
            Self::Of(owner) => owner != client || taken != Taken::On(backend),
            Self::Mixed => true,
        }
    }
}

/// Where a session may have taken numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Taken {
    #[default]
    Nowhere,
    /// On the backend with this number only.
    On(u64),
    /// On several: no backend has all of them, and some may have older ones than others.
    Apart,
}

impl Taken {
    pub fn advance(&mut self, backend: u64) {
        *self = match *self {
            Self::Nowhere => Self::On(backend),
            Self::On(before) if before == backend => Self::On(backend),
            Self::On(_) | Self::Apart => Self::Apart,
        };
    }
}

/// From here on `client` means to read what it takes on `backend`, and earlier numbers nowhere. True if the backend has
/// to forget those that it has.
pub fn begin(numbers: &mut Numbers, taken: &mut Taken, client: u32, backend: u64) -> bool {
    if numbers.are_foreign(client, *taken, backend) {
        numbers.forget();
        *taken = Taken::Nowhere;
        return true;
    }
    if *numbers == Numbers::None {
        *taken = Taken::Nowhere;
    }
    false
}

/// What is known of an application: how often it has written, or that it reads.
#[derive(Debug, Default)]
pub struct Habit(AtomicU32);

const READS: u32 = u32::MAX;

impl Habit {
    pub fn reads(&self) -> bool {
        self.0.load(Ordering::Relaxed) == READS
    }

    /// It has not written often enough to tell.
    pub fn is_on_probation(&self) -> bool {
        self.0.load(Ordering::Relaxed) < PROBATION
    }

    /// It has written once more.
    pub fn count(&self) {
        if self.is_on_probation() {
            let next = |writes: u32| (writes < PROBATION).then_some(writes + 1);
            let _ = self
                .0
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        }
    }

    /// It was seen to read.
    pub fn learn(&self) {
        self.0.store(READS, Ordering::Relaxed);
    }
}

/// All applications. One is known by database, user and name.
#[derive(Debug)]
pub struct Applications {
    habits: Mutex<HashMap<Box<[u8]>, Arc<Habit>>>,
    /// Of those past the bound: not on probation.
    others: Arc<Habit>,
}

impl Default for Applications {
    fn default() -> Self {
        Self {
            habits: Mutex::default(),
            others: Arc::new(Habit(AtomicU32::new(PROBATION))),
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
        assert!(Arc::ptr_eq(&a, &b) && !a.is_on_probation() && !a.reads());
    }

    proptest! {
        /// Two clients on two backends: what is read without forgetting is what the reader took last, there and nowhere
        /// else, and all that the backend has.
        #[test]
        fn nobody_reads_what_is_not_its_own(
            steps in prop::collection::vec((0..2_u32, 1..3_u64, any::<bool>()), 0..40)
        ) {
            let mut taken = [Taken::Nowhere; 2];
            let mut numbers = [Numbers::None; 3];
            // What the server has: who took numbers on a backend since it last forgot, and when.
            let mut server: [Vec<(u32, usize)>; 3] = Default::default();
            let mut last = [0_usize; 2];
            for (time, (client, backend, reads)) in steps.into_iter().enumerate() {
                let place = usize::try_from(backend).unwrap();
                let own = usize::try_from(client).unwrap();
                if reads {
                    if begin(&mut numbers[place], &mut taken[own], client, backend) {
                        server[place].clear();
                    }
                    let seen = &server[place];
                    prop_assert!(seen.iter().all(|(owner, _)| *owner == client));
                    prop_assert!(seen.last().is_none_or(|(_, at)| *at == last[own]));
                } else {
                    numbers[place].advance(client);
                    taken[own].advance(backend);
                    server[place].push((client, time));
                    last[own] = time;
                }
            }
        }
    }
}
