//! Which numbers were met before, of late: a text that is never run again is not worth keeping.
//!
//! A table of the last number met for each of [`PLACES`] remainders, of which half the bits are kept. A number that is new
//! counts as met before once in 2^31; one that was met before others of its remainder counts as new.
//!
//! Bound: 512 KiB, from the first number on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PLACES: usize = 1 << 17;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Met {
    tags: OnceLock<Box<[AtomicU32]>>,
}

impl Met {
    /// Notes `number`, which is as good as random, and says whether it was noted before.
    pub(super) fn again(&self, number: u64) -> bool {
        let make = || (0..PLACES).map(|_| AtomicU32::new(0)).collect();
        let tags = self.tags.get_or_init(make);
        let [place, tag] = [number & u64::from(u32::MAX), number >> 32]
            .map(|half| u32::try_from(half).unwrap_or(0));
        let place = &tags[place as usize % PLACES];
        // No tag is that of an empty place.
        let tag = tag | 1;
        place.load(Ordering::Relaxed) == tag || place.swap(tag, Ordering::Relaxed) == tag
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use super::*;

    #[test]
    fn what_was_met_of_late_is_known_and_nothing_else() {
        let (met, random) = (Met::default(), RandomState::new());
        let number = |index: usize| random.hash_one(index);
        let again = |indexes: std::ops::Range<usize>| {
            let met = indexes.filter(|index| met.again(number(*index)));
            met.count()
        };
        assert_eq!(again(0..PLACES), 0);
        // One in e of the places was taken by nobody else.
        let known = again(0..PLACES);
        assert!((PLACES / 4..PLACES).contains(&known), "{known}");
        assert_eq!(again(PLACES..20 * PLACES), 0);
        assert!(again(20 * PLACES - 1000..20 * PLACES) > 950);
        assert_eq!(again(0..1), 0);
    }
}
