//! Loading: the file, the overrides and the environment in, a [`Config`] or every problem out.

use std::path::Path;

use super::decode::{Finding, Reader};
use super::document::{self, Origin, Overrides, Table};
use super::files::unreadable;
use super::model::Config;
use super::problem::{Place, Problem, Problems};
use super::read;
use super::validate::validate;

/// A configuration that is valid, and what is doubtful about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Problem>,
}

/// Reads and checks the configuration. `overrides` win over the file; `env` fills in `${VAR}`.
pub fn load(
    file: Option<&Path>,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let source = match file {
        Some(path) => Source::read(path)?,
        None => Source::default(),
    };
    let mut root = source.parse()?;
    let mut reader = Reader::new(
        env,
        source.path.and_then(Path::parent).map(Path::to_path_buf),
    );
    for (at, key, message) in overrides.apply(&mut root) {
        reader.problem(Some(&at), &key, message);
    }
    let raw = read::read(root, &mut reader);
    let config = validate(&raw, &mut reader);
    if reader.problems.is_empty() {
        let warnings = reader
            .warnings
            .into_iter()
            .map(|finding| source.place(finding));
        Ok(Loaded {
            config,
            warnings: warnings.collect(),
        })
    } else {
        let problems = reader
            .problems
            .into_iter()
            .map(|finding| source.place(finding));
        Err(Problems::new(problems.collect()))
    }
}

/// The environment of this process, for [`load`].
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The file's text, to turn offsets into lines and columns.
#[derive(Default)]
struct Source<'a> {
    path: Option<&'a Path>,
    text: String,
}

impl<'a> Source<'a> {
    fn read(path: &'a Path) -> Result<Self, Problems> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self {
                path: Some(path),
                text,
            }),
            Err(error) => Err(Problems::new(vec![Problem {
                place: Place::Nowhere,
                key: String::new(),
                message: unreadable(path, &error),
            }])),
        }
    }

    /// The tree, or what is wrong with the grammar; then nothing else is checked, as half a file would only bring
    /// problems that are none.
    fn parse(&self) -> Result<Table, Problems> {
        let misplaced = |error: document::SyntaxError| Problem {
            place: self.position(error.at),
            key: String::new(),
            message: error.message,
        };
        document::parse(&self.text)
            .map_err(|errors| Problems::new(errors.into_iter().map(misplaced).collect()))
    }

    fn place(&self, finding: Finding) -> Problem {
        let place = match &finding.at {
            Some(Origin::File(at)) => self.position(*at),
            Some(Origin::Given(source)) => Place::Source(source.to_string()),
            None => self.path.map_or(Place::Nowhere, |path| {
                Place::Source(path.display().to_string())
            }),
        };
        Problem {
            place,
            key: finding.key,
            message: finding.message,
        }
    }

    fn position(&self, at: usize) -> Place {
        let Some(path) = self.path else {
            return Place::Nowhere;
        };
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            path: path.to_path_buf(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

#[cfg(test)]
mod tests;
