//! A bounded table of shared things found by number, in which what was used again outlives what was not.
//!
//! A clock: a hand goes round the places, passes by what somebody holds and what was used since it last came by, and puts the
//! new thing in the place of the first other one. Nothing is swept at once, so that nobody waits for that.
//!
//! Ways lead to things as well: numbers of another kind, any number to each.
//!
//! Bound: as many things as [`Clock::new`] says, and [`WAYS`] ways for each of them; when there are more, all ways are forgotten,
//! which are a few bytes each.
//!
//! # Why not the crate `lru`
//! It moves what is found to the front of a list: three cache lines more to fetch and write for each statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashTable;

/// Ways for each thing that there may be.
const WAYS: usize = 2;

/// Places that the hand looks at before it gives up, and the new thing is not kept.
const STEPS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Clock<T> {
    places: Vec<Place<T>>,
    /// Which place a number is at.
    numbers: HashTable<(u64, u32)>,
    ways: HashTable<Way>,
    hand: usize,
    max: usize,
}

#[derive(Debug)]
struct Place<T> {
    number: u64,
    is_used: AtomicBool,
    thing: Arc<T>,
}

/// A way to the thing with this number, which is at that place unless it has been forgotten.
#[derive(Clone, Copy, Debug)]
struct Way {
    by: u64,
    number: u64,
    place: u32,
}

/// What became of a thing.
#[derive(Debug)]
pub(super) enum Put<T> {
    Kept,
    /// What has made room.
    InPlaceOf(Arc<T>),
    NotKept,
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
        let found = self.ways.find(way, |other| other.by == way)?;
        let place = self.places.get(found.place as usize)?;
        (place.number == found.number).then(|| place.take())
    }

    /// The thing with this number.
    pub(super) fn get(&self, number: u64) -> Option<Arc<T>> {
        let place = self.place_of(number)?;
        Some(self.places.get(place as usize)?.take())
    }

    fn place_of(&self, number: u64) -> Option<u32> {
        let found = self.numbers.find(number, |(other, _)| *other == number);
        found.map(|(_, place)| *place)
    }

    /// Lets `way` lead to the thing with this number, if there is one.
    pub(super) fn lead(&mut self, way: u64, number: u64) {
        let Some(place) = self.place_of(number) else {
            return;
        };
        let new = Way {
            by: way,
            number,
            place,
        };
        if let Some(old) = self.ways.find_mut(way, |other| other.by == way) {
            // Its thing was forgotten, and is back.
            *old = new;
            return;
        }
        if self.ways.len() >= WAYS * self.max {
            self.ways.clear();
        }
        self.ways.insert_unique(way, new, |other| other.by);
    }

    /// Keeps `thing`, whose number is not there yet, if there is room or something makes it.
    pub(super) fn put(&mut self, number: u64, thing: Arc<T>) -> Put<T> {
        let new = Place {
            number,
            is_used: AtomicBool::new(false),
            thing,
        };
        let (at, old) = if self.places.len() < self.max {
            self.places.push(new);
            (self.places.len() - 1, None)
        } else {
            let free = self.free_place();
            let Some((at, place)) = free.and_then(|at| Some((at, self.places.get_mut(at)?))) else {
                return Put::NotKept;
            };
            let old = std::mem::replace(place, new);
            let same = |(other, _): &(u64, u32)| *other == old.number;
            if let Ok(entry) = self.numbers.find_entry(old.number, same) {
                entry.remove();
            }
            (at, Some(old.thing))
        };
        // There are no more places than that.
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        self.numbers
            .insert_unique(number, (number, at), |(number, _)| *number);
        old.map_or(Put::Kept, Put::InPlaceOf)
    }

    /// A place whose thing nobody has used of late, or holds.
    fn free_place(&mut self) -> Option<usize> {
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
                return Some(at);
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
    fn there_are_no_more_ways_than_the_bound_and_all_lead_on() {
        let mut clock = Clock::new(5);
        clock.put(1, Arc::new(1));
        for way in 100..1000 {
            clock.lead(way, 1);
            assert_eq!(clock.by_way(way).as_deref(), Some(&1));
            assert!(clock.ways.len() <= 10);
        }
        clock.lead(77, 7);
        assert_eq!(clock.by_way(77), None);
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
                prop_assert!(clock.ways.len() <= 8 * WAYS);
            }
        }
    }
}
