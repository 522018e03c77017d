//! PgBouncer's file formats: the ini with `%include`, connection strings, and the userlist.
//!
//! As PgBouncer reads them: a comment is a whole line, a value runs to the end of its line, and a name that is not
//! plain is in double quotes.

use std::path::{Path, PathBuf};

use super::ImportError;

/// Includes inside includes; a file that includes itself ends here.
const DEEPEST_INCLUDE: usize = 10;

/// One `name = value` line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) section: String,
    pub(super) name: String,
    pub(super) value: String,
    pub(super) file: PathBuf,
    pub(super) at: usize,
}

pub(super) fn read(path: &Path) -> Result<Vec<Line>, ImportError> {
    let mut lines = Vec::new();
    let mut section = String::new();
    read_into(path, 0, &mut section, &mut lines)?;
    Ok(lines)
}

fn read_into(
    path: &Path,
    depth: usize,
    section: &mut String,
    lines: &mut Vec<Line>,
) -> Result<(), ImportError> {
    let text = read_text(path)?;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong = |message| ImportError::Syntax {
            file: path.to_path_buf(),
            line: at + 1,
            message,
        };
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(included) = line.strip_prefix("%include") {
            if depth == DEEPEST_INCLUDE {
                return Err(wrong("%include is nested too deep"));
            }
            let included = resolve(path, Path::new(included.trim()));
            read_into(&included, depth + 1, section, lines)?;
        } else if let Some(rest) = line.strip_prefix('[') {
            let (name, _) = rest
                .split_once(']')
                .ok_or_else(|| wrong("expected ] after a section's name"))?;
            section.clear();
            section.push_str(name.trim());
        } else {
            let (name, rest) = split_name(line).ok_or_else(|| wrong("expected NAME = VALUE"))?;
            let value = rest
                .trim_start()
                .strip_prefix('=')
                .ok_or_else(|| wrong("expected NAME = VALUE"))?;
            if section.is_empty() {
                return Err(wrong("a setting stands before the first [section]"));
            }
            lines.push(Line {
                section: section.clone(),
                name,
                value: value.trim().to_owned(),
                file: path.to_path_buf(),
                at: at + 1,
            });
        }
    }
    Ok(())
}

pub(super) fn read_text(path: &Path) -> Result<String, ImportError> {
    let bytes = std::fs::read(path).map_err(|error| ImportError::Read {
        file: path.to_path_buf(),
        error: error.kind(),
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A path of the file `from`, which may be relative to that file's folder or to the working directory.
pub(super) fn resolve(from: &Path, path: &Path) -> PathBuf {
    let beside = from.parent().unwrap_or(Path::new("")).join(path);
    if path.is_relative() && beside.exists() {
        std::path::absolute(&beside).unwrap_or(beside)
    } else {
        path.to_path_buf()
    }
}

/// The name at the start of a line, unquoted, and what follows it.
fn split_name(line: &str) -> Option<(String, &str)> {
    if let Some(rest) = line.strip_prefix('"') {
        return unquote(rest, '"');
    }
    let plain = |c: char| c.is_alphanumeric() || "_.-*".contains(c);
    let end = line.find(|c| !plain(c)).unwrap_or(line.len());
    (end > 0).then(|| (line[..end].to_owned(), &line[end..]))
}

/// Reads up to the closing `quote`, which stands for itself when doubled; also gives what follows it.
fn unquote(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once(quote)?;
        out.push_str(before);
        match after.strip_prefix(quote) {
            Some(more) => {
                out.push(quote);
                rest = more;
            }
            None => return Some((out, after)),
        }
    }
}

/// The pairs of a connection string: `host=db1 password='it''s'`. `None` if it is none.
pub(super) fn connection_string(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let after = after.trim_start();
        let (value, after) = if let Some(quoted) = after.strip_prefix('\'') {
            unquote(quoted, '\'')?
        } else {
            let end = after.find(char::is_whitespace).unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        if value.is_empty() {
            return None;
        }
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Some(pairs)
}

/// The users of a userlist with their secrets: lines of `"user" "secret"`.
pub(super) fn userlist(text: &str) -> Vec<(String, String)> {
    let entry = |line: &str| {
        let (user, rest) = unquote(line.trim().strip_prefix('"')?, '"')?;
        let (secret, _) = unquote(rest.trim_start().strip_prefix('"')?, '"')?;
        Some((user, secret))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ini_is_read_as_pgbouncer_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("pgbouncer.ini");
        std::fs::write(
            &main,
            "; comment\n[databases]\n* = host=h ; no comment\n\"my \"\"db\" = host=x\n%include more.ini\n\n\
             [pgbouncer]\n  listen_port=6432  \nauth_file =\n",
        )
        .unwrap();
        std::fs::write(folder.path().join("more.ini"), "# more\nother = dbname=o\n").unwrap();
        let lines: Vec<(String, String, String)> = read(&main)
            .unwrap()
            .into_iter()
            .map(|line| (line.section, line.name, line.value))
            .collect();
        let expected = [
            ("databases", "*", "host=h ; no comment"),
            ("databases", "my \"db", "host=x"),
            ("databases", "other", "dbname=o"),
            ("pgbouncer", "listen_port", "6432"),
            ("pgbouncer", "auth_file", ""),
        ];
        let expected =
            expected.map(|(section, name, value)| (section.into(), name.into(), value.into()));
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_broken_ini_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.ini");
        let rows = [
            ("[databases\n", "x.ini:1: expected ] after a section's name"),
            ("[pgbouncer]\nnonsense\n", "x.ini:2: expected NAME = VALUE"),
            ("[pgbouncer]\n= 5\n", "x.ini:2: expected NAME = VALUE"),
            (
                "a = 5\n",
                "x.ini:1: a setting stands before the first [section]",
            ),
            ("%include x.ini\n", "x.ini:1: %include is nested too deep"),
            (
                "%include /does/not/exist\n",
                "can't read /does/not/exist: entity not found",
            ),
        ];
        for (text, expected) in rows {
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn connection_strings_are_split_at_spaces_outside_quotes() {
        let pairs = |text| {
            let pairs = connection_string(text)?;
            Some(
                pairs
                    .into_iter()
                    .map(|(k, v)| format!("{k}:{v}"))
                    .collect::<Vec<_>>()
                    .join("|"),
            )
        };
        assert_eq!(pairs(""), Some(String::new()));
        assert_eq!(
            pairs("host=h  port = 5 password='it''s = me' x=y"),
            Some("host:h|port:5|password:it's = me|x:y".to_owned())
        );
        for wrong in [
            "host",
            "=x",
            "host=",
            "a b=c",
            "password='open",
            "password=''",
        ] {
            assert_eq!(pairs(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_userlist_gives_users_and_secrets() {
        let text = "; comment\n\"app\" \"it\"\"s\"\n\"other\" \"md5abc\" more\nbroken\n\"half\n";
        assert_eq!(
            userlist(text),
            [
                ("app".into(), "it\"s".into()),
                ("other".into(), "md5abc".into())
            ]
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = connection_string(&text);
            let _ = userlist(&text);
            let _ = split_name(&text);
        }
    }
}
