//! A bounded table of shared things found by number, in which what was used again outlives what was not.
//!
//! A clock: a hand goes round the places, passes by what somebody holds and what was used since it last came by, and puts the
//! new thing in the place of the first other one. Nothing is swept at once, so that nobody waits for that.
//!
//! Ways lead to things as well, numbers of another kind, up to `WAYS` to each; a newer one takes the place of the oldest.
//!
//! Bound: as many things as [`Clock::new`] says.
//!
//! # Why not the crate `lru`
//! It moves what is found to the front of a list: three cache lines more to fetch and write for each statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashTable;

/// Ways to one thing.
const WAYS: usize = 2;

/// Places that the hand looks at before it gives up, and the new thing is not kept.
const STEPS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Clock<T> {
    places: Vec<Place<T>>,
    numbers: HashTable<(u64, u32)>,
    ways: HashTable<(u64, u32)>,
    hand: usize,
    max: usize,
}

#[derive(Debug)]
struct Place<T> {
    number: u64,
    ways: [Option<u64>; WAYS],
    is_used: AtomicBool,
    thing: Arc<T>,
}

impl<T> Place<T> {
    fn take(&self) -> Arc<T> {
        // Written once only, so that workers do not take the line from each other.
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        Arc::clone(&self.thing)
    }
}

/// The place that `number` leads to.
fn place_of(table: &HashTable<(u64, u32)>, number: u64) -> Option<u32> {
    table
        .find(number, |(other, _)| *other == number)
        .map(|(_, place)| *place)
}

fn lead(table: &mut HashTable<(u64, u32)>, number: u64, place: u32) {
    table.insert_unique(number, (number, place), |(number, _)| *number);
}

fn forget(table: &mut HashTable<(u64, u32)>, number: u64) {
    if let Ok(entry) = table.find_entry(number, |(other, _)| *other == number) {
        entry.remove();
    }
}

impl<T> Clock<T> {
    /// One of `max` places, at most 2^32.
    pub(super) fn new(max: usize) -> Self {
        Self {
            places: Vec::new(),
            numbers: HashTable::new(),
            ways: HashTable::new(),
            hand: 0,
            max,
        }
    }

    /// How many things there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The thing that `way` leads to.
    pub(super) fn by_way(&self, way: u64) -> Option<Arc<T>> {
        let place = place_of(&self.ways, way)?;
        Some(self.places.get(place as usize)?.take())
    }

    /// The thing with this number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<T>> {
        let place = place_of(&self.numbers, number)?;
        Some(self.places.get(place as usize)?.take())
    }

    /// Lets `way` lead to the thing with this number, if there is one.
    pub(super) fn lead(&mut self, way: u64, number: u64) {
        let Some(at) = place_of(&self.numbers, number) else {
            return;
        };
        if place_of(&self.ways, way).is_some() {
            return;
        }
        if let Some(place) = self.places.get_mut(at as usize) {
            if let [.., Some(oldest)] = place.ways {
                forget(&mut self.ways, oldest);
            }
            place.ways.rotate_right(1);
            place.ways[0] = Some(way);
            lead(&mut self.ways, way, at);
        }
    }

    /// Keeps `thing`, whose number is not there yet, and gives what has made room for it.
    pub(super) fn put(&mut self, number: u64, thing: Arc<T>) -> Option<Arc<T>> {
        let new = Place {
            number,
            ways: [None; WAYS],
            is_used: AtomicBool::new(false),
            thing,
        };
        if self.places.len() < self.max {
            let at = u32::try_from(self.places.len()).ok()?;
            self.places.push(new);
            lead(&mut self.numbers, number, at);
            return None;
        }
        let at = self.free_place()?;
        let old = std::mem::replace(self.places.get_mut(at as usize)?, new);
        forget(&mut self.numbers, old.number);
        for way in old.ways.into_iter().flatten() {
            forget(&mut self.ways, way);
        }
        lead(&mut self.numbers, number, at);
        Some(old.thing)
    }

    /// A place whose thing nobody has used of late, or holds.
    fn free_place(&mut self) -> Option<u32> {
        for _ in 0..STEPS {
            let at = self.hand;
            self.hand = if at + 1 < self.places.len() {
                at + 1
            } else {
                0
            };
            let place = self.places.get(at)?;
            let was_used = place.is_used.swap(false, Ordering::Relaxed);
            if !was_used && Arc::strong_count(&place.thing) == 1 {
                return u32::try_from(at).ok();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_used_and_what_is_held_outlive_the_rest() {
        let mut clock = Clock::new(10);
        let held = Arc::new(0);
        clock.put(0, Arc::clone(&held));
        clock.put(1, Arc::new(1));
        for number in 2..1000 {
            assert!(clock.get(1).is_some(), "{number}");
            clock.put(number, Arc::new(number));
            assert!(clock.places.len() <= 10);
        }
        assert_eq!(clock.get(0).as_deref(), Some(&0));
        assert_eq!(clock.get(999).as_deref(), Some(&999));
        assert_eq!(clock.get(500), None);
    }

    #[test]
    fn where_all_is_held_nothing_new_is_kept() {
        let mut clock = Clock::new(5);
        let held: Vec<Arc<u64>> = (0..5).map(Arc::new).collect();
        for (number, thing) in (0..).zip(&held) {
            clock.put(number, Arc::clone(thing));
        }
        clock.put(5, Arc::new(5));
        assert!(clock.get(5).is_none());
        assert!((0..5).all(|number| clock.get(number).is_some()));
    }

    #[test]
    fn the_newest_ways_stay() {
        let mut clock = Clock::new(5);
        clock.put(1, Arc::new(1));
        for way in 10..20 {
            clock.lead(way, 1);
            clock.lead(way, 1);
        }
        clock.lead(77, 7);
        let found: Vec<u64> = (10..100)
            .filter(|way| clock.by_way(*way).is_some())
            .collect();
        assert_eq!(found, [18, 19]);
        assert_eq!(clock.ways.len(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u64),
        Get(u64),
        Lead(u64, u64),
        ByWay(u64),
    }

    proptest! {
        /// What is found is what was put, whichever way leads to it, and there are never more than the bound.
        #[test]
        fn nothing_is_found_under_anothers_number(steps in prop::collection::vec(prop_oneof![
            (0_u64..40).prop_map(Step::Put),
            (0_u64..40).prop_map(Step::Get),
            (0_u64..80, 0_u64..40).prop_map(|(way, number)| Step::Lead(way, number)),
            (0_u64..80).prop_map(Step::ByWay),
        ], 0..300)) {
            let mut clock = Clock::new(8);
            let mut ways: HashMap<u64, u64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Put(number) if clock.get(number).is_none() => drop(clock.put(number, Arc::new(number))),
                    Step::Put(_) => {}
                    Step::Get(number) => prop_assert!(clock.get(number).is_none_or(|thing| *thing == number)),
                    Step::Lead(way, number) => {
                        // A way leads to one thing for ever.
                        let number = *ways.entry(way).or_insert(number);
                        clock.lead(way, number);
                    }
                    Step::ByWay(way) => {
                        let found = clock.by_way(way);
                        prop_assert!(found.is_none_or(|thing| Some(&*thing) == ways.get(&way)));
                    }
                }
                prop_assert!(clock.places.len() <= 8 && clock.numbers.len() == clock.places.len());
                let led = clock.places.iter().flat_map(|place| place.ways).flatten().count();
                prop_assert_eq!(led, clock.ways.len());
            }
        }
    }
}
