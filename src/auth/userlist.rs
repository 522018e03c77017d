//! PgBouncer's `userlist.txt`: lines of `"user" "password"`, quotes doubled inside, `;` or `#` comments.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;

use super::secrets::{Lookup, SecretSource, UserSecret};

/// The secrets of a userlist file, by user.
#[derive(Clone, Debug, Default)]
pub struct Userlist {
    users: HashMap<String, UserSecret>,
}

/// What is wrong with a line. Never quotes the line: it holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserlistProblem {
    pub line: usize,
    pub message: &'static str,
}

impl fmt::Display for UserlistProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.message)
    }
}

impl Userlist {
    /// Reads the whole text; all problems at once.
    pub fn parse(text: &str) -> Result<Self, Vec<UserlistProblem>> {
        let mut users = HashMap::new();
        let mut problems = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut problem = |message| {
                problems.push(UserlistProblem {
                    line: index + 1,
                    message,
                });
            };
            match parse_line(line) {
                Ok(None) => {}
                Ok(Some((user, _))) if user.is_empty() => problem("the user name is empty"),
                // PgBouncer: no password, no login.
                Ok(Some((_, password))) if password.is_empty() => {}
                Ok(Some((user, password))) => {
                    if users.insert(user, UserSecret::parse(&password)).is_some() {
                        problem("this user has a line already");
                    }
                }
                Err(message) => problem(message),
            }
        }
        if problems.is_empty() {
            Ok(Self { users })
        } else {
            Err(problems)
        }
    }

    /// Reads a file; the inner result is [`Userlist::parse`]'s.
    pub fn load(path: &Path) -> io::Result<Result<Self, Vec<UserlistProblem>>> {
        Ok(Self::parse(&std::fs::read_to_string(path)?))
    }

    pub fn get(&self, user: &str) -> Option<&UserSecret> {
        self.users.get(user)
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// In no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &UserSecret)> {
        self.users
            .iter()
            .map(|(user, secret)| (user.as_str(), secret))
    }
}

impl SecretSource for Userlist {
    fn lookup<'a>(&'a self, user: &'a str, _database: &'a str) -> Lookup<'a> {
        Box::pin(std::future::ready(Ok(self.get(user).cloned())))
    }
}

/// The user and the password of a line, or `None` for a blank line or a comment.
/// Fields after the second are ignored, as PgBouncer does.
fn parse_line(line: &str) -> Result<Option<(String, String)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with([';', '#']) {
        return Ok(None);
    }
    let (user, rest) = quoted(line)?;
    let (password, _) = quoted(rest.trim_start())?;
    Ok(Some((user, password)))
}

fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let inner = text
        .strip_prefix('"')
        .ok_or("expected two fields in double quotes")?;
    let mut value = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            value.push(c);
        } else if inner[at + 1..].starts_with('"') {
            value.push('"');
            chars.next();
        } else {
            return Ok((value, &inner[at + 1..]));
        }
    }
    Err("a double quote is not closed")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn password<'a>(list: &'a Userlist, user: &str) -> &'a str {
        match list.get(user) {
            Some(UserSecret::Plain(plain)) => plain.password().expose(),
            other => panic!("{user}: {other:?}"),
        }
    }

    #[test]
    fn quotes_comments_and_extra_fields_are_read_as_pgbouncer_does() {
        let list = Userlist::parse(
            "; comment\n# comment\n\n\"app\" \"pass word\" \"ignored\"\n  \"we\"\"ird\"\"\" \"a\"\"b\"\r\n\
             \"hash\"\t\"md56a422f785c9e20873908ce25d1736ae2\"\n\"nologin\" \"\"\n",
        )
        .unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(password(&list, "app"), "pass word");
        assert_eq!(password(&list, "we\"ird\""), "a\"b");
        assert!(matches!(list.get("hash"), Some(UserSecret::Md5(_))));
        assert!(list.get("nologin").is_none());
    }

    #[test]
    fn all_problems_are_reported_with_their_lines_and_without_secrets() {
        let problems = Userlist::parse(
            "app secret\n\"app\" \"x\"\n\"app\" \"y\"\n\"open\n\"one\"\n\"\" \"x\"\n",
        )
        .unwrap_err();
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "1: expected two fields in double quotes",
                "3: this user has a line already",
                "4: a double quote is not closed",
                "5: expected two fields in double quotes",
                "6: the user name is empty",
            ]
        );
    }

    #[tokio::test]
    async fn a_userlist_is_a_source_of_secrets() {
        let list = Userlist::parse("\"app\" \"x\"").unwrap();
        assert!(list.lookup("app", "any").await.unwrap().is_some());
        assert!(list.lookup("other", "any").await.unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_name_and_password_survive_quoting(user in "[^\r\n\0]{1,12}", word in "[^\r\n\0]{1,12}") {
            let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let list = Userlist::parse(&format!("{} {}", quote(&user), quote(&word))).unwrap();
            prop_assert_eq!(password(&list, &user), word);
        }

        #[test]
        fn garbage_never_panics(text in any::<String>()) {
            let _ = Userlist::parse(&text);
        }
    }
}
