//! What is known about functions by name: which are safe in a read, which touch the session.
//!
//! Only names: overloads, `search_path` and a user's own function of the same name are invisible here, so a caller with
//! a catalogue asks it first and takes these tables for what the catalogue calls built in.

mod effects;
mod safe;

use std::fmt;

use super::name::Name;
use effects::{ACTS_ON_SERVER, EFFECTS};
use safe::SAFE;

/// What calling a function amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Behaviour {
    /// Not built in, or not known: the catalogue has to say.
    Unknown,
    /// Immutable or stable, and without side effects.
    Safe,
    /// A read whose answer differs from call to call: clocks and random numbers.
    Volatile,
    /// A read whose answer depends on the server or the server connection asked.
    Node,
    /// Writes, locks or signals.
    Writes,
    /// Runs SQL given as text, or what views and policies hide: anything may happen.
    RunsSql,
    LargeObject,
    Notify,
    SetConfig,
    SequenceAdvance,
    SequenceRead,
    SetSeed,
    /// Takes an advisory lock that outlives the transaction.
    AdvisoryLock,
    AdvisoryUnlock,
    /// Leaves something else in the session.
    SessionState,
}

/// A function as a statement calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionName {
    pub schema: Option<Name>,
    pub name: Name,
    pub behaviour: Behaviour,
}

impl FunctionName {
    pub(crate) fn new(schema: Option<Name>, name: Name) -> Self {
        let behaviour = behaviour(schema.as_ref(), &name);
        Self {
            schema,
            name,
            behaviour,
        }
    }

    /// Whether it is known to lock, signal or change the server it runs on, also one in recovery, which refuses the other
    /// functions that write.
    pub fn acts_on_server(&self) -> bool {
        let acts = |name| ACTS_ON_SERVER.binary_search(&name).is_ok();
        self.behaviour == Behaviour::Writes && self.name.as_str().is_some_and(acts)
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        write!(f, "{}", self.name)
    }
}

fn behaviour(schema: Option<&Name>, name: &Name) -> Behaviour {
    let Some(name) = name.as_str() else {
        return Behaviour::Unknown;
    };
    // Functions of extensions live in any schema. dblink keeps named connections in the session, set_limit
    // (pg_trgm) changes a setting.
    if name.starts_with("dblink") || name == "set_limit" {
        return Behaviour::SessionState;
    }
    if schema.is_some_and(|schema| *schema != "pg_catalog") {
        return Behaviour::Unknown;
    }
    if SAFE.binary_search(&name).is_ok() {
        return Behaviour::Safe;
    }
    if name.starts_with("pg_stat_get_") {
        return Behaviour::Node;
    }
    EFFECTS
        .iter()
        .find(|(_, names)| names.binary_search(&name).is_ok())
        .map_or(Behaviour::Unknown, |&(behaviour, _)| behaviour)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Behaviour {
        behaviour(None, &Name::from(name))
    }

    #[test]
    fn tables_are_sorted_and_disjoint() {
        assert!(SAFE.windows(2).all(|pair| pair[0] < pair[1]));
        let mut all: Vec<&str> = SAFE.to_vec();
        for (_, names) in EFFECTS {
            assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
            all.extend(*names);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn behaviours_are_found_by_name() {
        assert_eq!(of("lower"), Behaviour::Safe);
        assert_eq!(of("count"), Behaviour::Safe);
        assert_eq!(of("now"), Behaviour::Volatile);
        assert_eq!(of("pg_is_in_recovery"), Behaviour::Node);
        assert_eq!(of("pg_stat_get_activity"), Behaviour::Node);
        assert_eq!(of("nextval"), Behaviour::SequenceAdvance);
        assert_eq!(of("pg_try_advisory_lock"), Behaviour::AdvisoryLock);
        assert_eq!(of("pg_advisory_xact_lock"), Behaviour::Writes);
        assert_eq!(of("txid_current"), Behaviour::Writes);
        assert_eq!(of("query_to_xml"), Behaviour::RunsSql);
        assert_eq!(of("dblink_exec"), Behaviour::SessionState);
        assert_eq!(of("my_function"), Behaviour::Unknown);
    }

    #[test]
    fn what_acts_on_the_server_is_known_to_write() {
        assert!(ACTS_ON_SERVER.windows(2).all(|pair| pair[0] < pair[1]));
        for name in ACTS_ON_SERVER {
            let function = FunctionName::new(None, Name::from(*name));
            assert!(function.acts_on_server(), "{name}");
        }
        let own = FunctionName::new(Some("public".into()), Name::from("pg_promote"));
        assert!(!own.acts_on_server());
    }

    #[test]
    fn only_pg_catalog_is_built_in() {
        let name = Name::from("lower");
        assert_eq!(
            behaviour(Some(&"pg_catalog".into()), &name),
            Behaviour::Safe
        );
        assert_eq!(behaviour(Some(&"public".into()), &name), Behaviour::Unknown);
    }
}
