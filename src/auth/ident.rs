//! `pg_ident.conf`: which system user or certificate name may log in as which database user.
//!
//! Exact names only; a regular expression or a group is a problem, never a silent mismatch.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::hba::{HbaProblem, Token, logical_lines, tokenize};

/// The maps of a file, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentMaps {
    maps: HashMap<String, Vec<Entry>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    system_user: String,
    /// `None` is the keyword `all`.
    database_user: Option<String>,
}

impl IdentMaps {
    /// Reads the whole text; all problems at once.
    pub fn parse(text: &str) -> Result<Self, Vec<HbaProblem>> {
        let mut maps: HashMap<String, Vec<Entry>> = HashMap::new();
        let mut problems = Vec::new();
        for (line, text) in logical_lines(text) {
            match tokenize(&text).and_then(parse_entry) {
                Ok(None) => {}
                Ok(Some((map, entry))) => maps.entry(map).or_default().push(entry),
                Err(message) => problems.push(HbaProblem { line, message }),
            }
        }
        if problems.is_empty() {
            Ok(Self { maps })
        } else {
            Err(problems)
        }
    }

    /// Reads a file; the inner result is [`IdentMaps::parse`]'s.
    pub fn load(path: &Path) -> io::Result<Result<Self, Vec<HbaProblem>>> {
        Ok(Self::parse(&std::fs::read_to_string(path)?))
    }

    pub fn contains(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// Whether `system_user` may log in as `database_user`. Without a map the names must be equal.
    pub fn allows(&self, map: Option<&str>, system_user: &str, database_user: &str) -> bool {
        let Some(map) = map else {
            return system_user == database_user;
        };
        self.maps.get(map).into_iter().flatten().any(|entry| {
            entry.system_user == system_user
                && entry
                    .database_user
                    .as_deref()
                    .is_none_or(|user| user == database_user)
        })
    }
}

fn parse_entry(fields: Vec<Vec<Token>>) -> Result<Option<(String, Entry)>, String> {
    if fields.is_empty() {
        return Ok(None);
    }
    let mut singles = Vec::with_capacity(3);
    for field in fields {
        match <[Token; 1]>::try_from(field) {
            Ok([token]) => singles.push(token),
            Err(_) => return Err("a list of names is not allowed in an ident map".to_owned()),
        }
    }
    let Ok([map, system, database]) = <[Token; 3]>::try_from(singles) else {
        return Err("expected map name, system user and database user".to_owned());
    };
    for token in [&system, &database] {
        if !token.quoted && token.text.starts_with('/') {
            return Err(format!(
                "regular expressions are not supported: {}",
                token.text
            ));
        }
    }
    if !database.quoted && database.text.starts_with('+') {
        return Err(format!("groups are not supported: {}", database.text));
    }
    let database_user = (!database.is_keyword("all")).then_some(database.text);
    let entry = Entry {
        system_user: system.text,
        database_user,
    };
    Ok(Some((map.text, entry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_equal_without_a_map_and_listed_with_one() {
        let maps = IdentMaps::parse(
            "# map system database\nops  alice  app\nops  alice  \"all\"\nops root all\n",
        )
        .unwrap();
        assert!(maps.allows(None, "app", "app"));
        assert!(!maps.allows(None, "alice", "app"));
        assert!(maps.allows(Some("ops"), "alice", "app"));
        assert!(maps.allows(Some("ops"), "alice", "all"));
        assert!(!maps.allows(Some("ops"), "alice", "admin"));
        assert!(maps.allows(Some("ops"), "root", "admin"));
        assert!(!maps.allows(Some("ops"), "app", "app"));
        assert!(!maps.allows(Some("none"), "app", "app"));
    }

    #[test]
    fn what_is_not_supported_is_a_problem_with_its_line() {
        let problems =
            IdentMaps::parse("m /^(.*)$ \\1\nm a +group\nm a\nm a b c\nm a,b c\n").unwrap_err();
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "1: regular expressions are not supported: /^(.*)$",
                "2: groups are not supported: +group",
                "3: expected map name, system user and database user",
                "4: expected map name, system user and database user",
                "5: a list of names is not allowed in an ident map",
            ]
        );
    }
}
