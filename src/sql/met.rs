//! Which numbers were met before, of late and roughly: a text that is never run again is not worth keeping.
//!
//! A bitmap with a bit for each number, cleared when it fills up: of numbers that are new, at most one in eight counts as met
//! before; one that was met before so many others are forgotten counts as new.
//!
//! Bound: 128 KiB.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const BITS: usize = 1 << 20;
const WORDS: usize = BITS / u64::BITS as usize;
/// Bits that may be set.
const SET_MAX: usize = BITS / 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Met {
    words: Box<[AtomicU64]>,
    set: AtomicUsize,
}

impl Default for Met {
    fn default() -> Self {
        Self {
            words: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            set: AtomicUsize::new(0),
        }
    }
}

impl Met {
    /// Notes `number`, which is as good as random, and says whether it was noted before.
    pub(super) fn again(&self, number: u64) -> bool {
        let place = usize::try_from(number >> 6).unwrap_or(0) % WORDS;
        let bit = 1 << (number % u64::from(u64::BITS));
        let before = self.words[place].fetch_or(bit, Ordering::Relaxed);
        if before & bit != 0 {
            return true;
        }
        if self.set.fetch_add(1, Ordering::Relaxed) + 1 >= SET_MAX {
            self.set.store(0, Ordering::Relaxed);
            for word in &self.words {
                word.store(0, Ordering::Relaxed);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn a_number_is_met_again_unless_too_many_were_met_since() {
        let (met, random) = (Met::default(), RandomState::new());
        let number = |index: usize| random.hash_one(index);
        assert!(!met.again(number(0)));
        assert!(met.again(number(0)));
        let mistaken = (1..SET_MAX).filter(|index| met.again(number(*index)));
        assert!(mistaken.count() < SET_MAX / 8);
        assert!(met.again(number(0)) && met.again(number(1)));
        for index in SET_MAX..SET_MAX + SET_MAX / 4 {
            met.again(number(index));
        }
        let remembered = (1..SET_MAX).filter(|index| met.again(number(*index)));
        assert!(remembered.count() < SET_MAX / 2);
    }
}
