//! Names of users, databases, applications and nodes, as numbers that fit an atomic.
//!
//! Bound: [`NAMES_MAX`] names in a table and [`SET_MAX`] in a set; what is beyond either is `…`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Different names kept.
const NAMES_MAX: usize = 4096;

/// Longest part of a name that is kept: PostgreSQL's own bound on identifiers.
const NAME_LEN_MAX: usize = 63;

/// Names of one set.
pub(super) const SET_MAX: usize = 8;

/// Stands for the names that found no room.
pub(super) const MORE: &str = "…";

/// A name's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameId(u16);

impl NameId {
    /// No name.
    pub const NONE: Self = Self(0);
    const MORE: Self = Self(1);
}

/// The part of a name that is kept.
fn kept(name: &str) -> &str {
    let mut end = name.len().min(NAME_LEN_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Every name by its number.
#[derive(Debug, Default)]
pub struct Names {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    ids: HashMap<Arc<str>, NameId, foldhash::quality::RandomState>,
    /// From the number 2 on.
    names: Vec<Arc<str>>,
}

impl Names {
    /// The number of `name`; none for the empty one.
    pub fn id(&self, name: &str) -> NameId {
        let name = kept(name);
        if name.is_empty() {
            return NameId::NONE;
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = table.ids.get(name) {
            return *id;
        }
        match u16::try_from(table.names.len() + 2) {
            Ok(next) if table.names.len() < NAMES_MAX => {
                let (id, name) = (NameId(next), Arc::<str>::from(name));
                table.names.push(Arc::clone(&name));
                table.ids.insert(name, id);
                id
            }
            _ => NameId::MORE,
        }
    }

    /// The name with this number; empty for none.
    pub fn name(&self, id: NameId) -> Arc<str> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match id {
            NameId::NONE => Arc::default(),
            id => usize::from(id.0)
                .checked_sub(2)
                .and_then(|place| table.names.get(place).cloned())
                .unwrap_or_else(|| MORE.into()),
        }
    }

    /// The name with this number, or as much of `whole` as would be kept where it found no room.
    pub(super) fn name_or(&self, id: NameId, whole: impl FnOnce() -> Arc<str>) -> Arc<str> {
        if id != NameId::MORE {
            return self.name(id);
        }
        let whole = whole();
        match kept(&whole) {
            part if part.len() < whole.len() => part.into(),
            _ => whole,
        }
    }

    /// The names of a set, in order, `…` last if there were more.
    pub fn of(&self, set: &NameSet) -> Vec<Arc<str>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<NameId> = set.ids().collect();
        let mut names: Vec<_> = ids
            .iter()
            .filter_map(|id| table.names.get(usize::from(id.0).checked_sub(2)?))
            .cloned()
            .collect();
        names.sort();
        if ids.contains(&NameId::MORE) {
            names.push(MORE.into());
        }
        names
    }
}

/// A few names.
#[derive(Debug, Default)]
pub struct NameSet {
    slots: [AtomicU16; SET_MAX + 1],
}

impl NameSet {
    /// Adds a name; one that is there costs a look at the slots before it.
    pub fn add(&self, id: NameId) {
        if id == NameId::NONE {
            return;
        }
        let (more, own) = match self.slots.split_last() {
            Some(split) if id != NameId::MORE => split,
            _ => return self.slots[SET_MAX].store(NameId::MORE.0, Ordering::Relaxed),
        };
        for slot in own {
            let mut there = slot.load(Ordering::Relaxed);
            if there == 0 {
                let put = slot.compare_exchange(0, id.0, Ordering::Relaxed, Ordering::Relaxed);
                there = put.map_or_else(|other| other, |_| id.0);
            }
            if there == id.0 {
                return;
            }
        }
        more.store(NameId::MORE.0, Ordering::Relaxed);
    }

    fn ids(&self) -> impl Iterator<Item = NameId> {
        let ids = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        ids.filter(|id| *id != 0).map(NameId)
    }

    pub(super) fn add_all(&self, other: &Self) {
        other.ids().for_each(|id| self.add(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_its_names_once_and_says_that_there_were_more() {
        let (names, set) = (Names::default(), NameSet::default());
        set.add(names.id(""));
        assert!(names.of(&set).is_empty());
        for name in ["b", "a", "b"] {
            set.add(names.id(name));
        }
        assert_eq!(names.of(&set), ["a".into(), "b".into()]);
        for number in 0..20 {
            set.add(names.id(&format!("x{number}")));
        }
        let all = names.of(&set);
        assert_eq!((all.len(), &*all[SET_MAX]), (SET_MAX + 1, MORE));
        let copy = NameSet::default();
        copy.add_all(&set);
        assert_eq!(names.of(&copy), all);
    }

    #[test]
    fn names_without_number_are_more() {
        let (names, set) = (Names::default(), NameSet::default());
        for number in 0..NAMES_MAX {
            names.id(&number.to_string());
        }
        set.add(names.id("one too many"));
        assert_eq!(names.of(&set), [MORE.into()]);
        let whole = |name: &str| names.name_or(names.id(name), || name.into());
        assert_eq!(&*whole("one too many"), "one too many");
        assert_eq!(whole(&"é".repeat(100)).len(), 62);
        assert_eq!(&*whole("7"), "7");
        let long = "é".repeat(100);
        assert_eq!(Names::default().id(&long), NameId(2));
    }
}
