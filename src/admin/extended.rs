//! The names of the extended protocol: prepared statements and portals of one console client.
//!
//! Bound: [`NAMES_MAX`] of each. Portals end at Sync, as each Sync ends a transaction here.

use std::collections::HashMap;

use super::parse::{self, Command};
use super::show::Show;
use super::table::{Column, Formats, Row};
use crate::error::{Report, SqlState};
use crate::wire::frame::{FrameError, take_cstr};
use crate::wire::frontend::{Bind, Parse, Target};

/// Statements, and portals, one client may keep.
pub const NAMES_MAX: usize = 1_000;

const INVALID_CURSOR_NAME: SqlState = SqlState(*b"34000");
const DUPLICATE_PREPARED_STATEMENT: SqlState = SqlState(*b"42P05");

/// A bound statement. `rows` is filled by the first Execute and handed out by it and those that follow.
#[derive(Clone, Debug, Default)]
pub struct Portal {
    /// `None` is the empty query.
    pub command: Option<Command>,
    pub formats: Formats,
    pub rows: Option<std::vec::IntoIter<Row>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Names {
    statements: HashMap<Vec<u8>, Option<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
}

/// Why a message of the extended protocol is not followed.
#[derive(Debug)]
pub enum Refused {
    /// Everything up to the next Sync is skipped.
    Error(Report),
    /// The client's framing can't be believed any more.
    Frame(FrameError),
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<Report> for Refused {
    fn from(report: Report) -> Self {
        Self::Error(report)
    }
}

/// The table `command` answers with.
pub fn columns(command: Option<&Command>) -> &'static [Column] {
    match command {
        Some(Command::Show(show) | Command::Refined(show, _)) => Show::columns(*show),
        _ => &[],
    }
}

fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(name))
}

fn no_statement(name: &[u8]) -> Report {
    Report::error(
        SqlState::INVALID_SQL_STATEMENT_NAME,
        format!("prepared statement {} does not exist", quoted(name)),
    )
}

fn no_portal(name: &[u8]) -> Report {
    Report::error(
        INVALID_CURSOR_NAME,
        format!("portal {} does not exist", quoted(name)),
    )
}

fn too_many(what: &str) -> Report {
    Report::error(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        format!("too many {what}: the console keeps at most {NAMES_MAX}"),
    )
}

/// Reads a text; the messages are PostgreSQL's.
pub fn commands(text: &[u8]) -> Result<Vec<Command>, Report> {
    let text = std::str::from_utf8(text).map_err(|_| {
        Report::error(
            SqlState(*b"22021"),
            "invalid byte sequence for encoding \"UTF8\"",
        )
    })?;
    parse::parse(text).map_err(|error| error.report())
}

impl Names {
    /// A Parse message.
    pub fn parse(&mut self, payload: &[u8]) -> Result<(), Refused> {
        let parse = Parse::read(payload)?;
        let mut commands = commands(parse.text)?;
        if commands.len() > 1 {
            return Err(Report::error(
                SqlState::SYNTAX_ERROR,
                "cannot insert multiple commands into a prepared statement",
            )
            .into());
        }
        if !parse.name.is_empty() {
            if self.statements.contains_key(parse.name) {
                return Err(Report::error(
                    DUPLICATE_PREPARED_STATEMENT,
                    format!("prepared statement {} already exists", quoted(parse.name)),
                )
                .into());
            }
            if self.statements.len() >= NAMES_MAX {
                return Err(too_many("prepared statements").into());
            }
        }
        self.statements.insert(parse.name.to_vec(), commands.pop());
        Ok(())
    }

    /// A Bind message.
    pub fn bind(&mut self, payload: &[u8]) -> Result<(), Refused> {
        let malformed = FrameError::Malformed('B');
        let bind = Bind::read(payload).ok_or(malformed)?;
        let command = self
            .statements
            .get(bind.statement)
            .ok_or_else(|| no_statement(bind.statement))?
            .clone();
        let mut rest = &payload[bind.head..];
        take_codes(&mut rest).ok_or(malformed)?;
        let parameters = take_parameters(&mut rest).ok_or(malformed)?;
        let codes = take_codes(&mut rest).ok_or(malformed)?;
        if !rest.is_empty() {
            return Err(malformed.into());
        }
        if parameters > 0 {
            return Err(Report::error(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {parameters} parameters, but prepared statement {} requires 0",
                    quoted(bind.statement)
                ),
            )
            .into());
        }
        let formats = Formats::new(codes, columns(command.as_ref()).len()).ok_or_else(|| {
            Report::error(
                SqlState::PROTOCOL_VIOLATION,
                "bind message has invalid result formats",
            )
        })?;
        if self.portals.len() >= NAMES_MAX && !self.portals.contains_key(bind.portal) {
            return Err(too_many("portals").into());
        }
        let portal = Portal {
            command,
            formats,
            rows: None,
        };
        self.portals.insert(bind.portal.to_vec(), portal);
        Ok(())
    }

    /// What a statement is; the outer `None` is the empty query.
    pub fn statement(&self, name: &[u8]) -> Result<Option<&Command>, Report> {
        let found = self
            .statements
            .get(name)
            .ok_or_else(|| no_statement(name))?;
        Ok(found.as_ref())
    }

    pub fn portal(&self, name: &[u8]) -> Result<&Portal, Report> {
        self.portals.get(name).ok_or_else(|| no_portal(name))
    }

    pub fn portal_mut(&mut self, name: &[u8]) -> Result<&mut Portal, Report> {
        self.portals.get_mut(name).ok_or_else(|| no_portal(name))
    }

    /// A Close message; what does not exist is closed too.
    pub fn close(&mut self, target: Target<'_>) {
        match target {
            Target::Statement(name) => {
                self.statements.remove(name);
            }
            Target::Portal(name) => {
                self.portals.remove(name);
            }
        }
    }

    /// A Sync message.
    pub fn sync(&mut self) {
        self.portals.clear();
    }
}

/// The name and the row limit of an Execute message; 0 is no limit.
pub fn execute(payload: &[u8]) -> Result<(&[u8], usize), FrameError> {
    let malformed = FrameError::Malformed('E');
    let mut rest = payload;
    let name = take_cstr(&mut rest).ok_or(malformed)?;
    let limit: [u8; 4] = rest.try_into().map_err(|_| malformed)?;
    // PostgreSQL takes a negative limit for none.
    Ok((
        name,
        usize::try_from(i32::from_be_bytes(limit)).unwrap_or(0),
    ))
}

fn take_count(rest: &mut &[u8]) -> Option<u16> {
    let (count, tail) = rest.split_first_chunk::<2>()?;
    *rest = tail;
    Some(u16::from_be_bytes(*count))
}

fn take_codes(rest: &mut &[u8]) -> Option<Vec<i16>> {
    let count = take_count(rest)?;
    (0..count)
        .map(|_| take_count(rest).map(u16::cast_signed))
        .collect()
}

/// Passes over the parameters and counts them.
fn take_parameters(rest: &mut &[u8]) -> Option<u16> {
    let count = take_count(rest)?;
    for _ in 0..count {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        *rest = tail.get(length..)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names_with(text: &str) -> Names {
        let mut names = Names::default();
        let payload = [b"s\0", text.as_bytes(), b"\0\0\0"].concat();
        names.parse(&payload).unwrap();
        names
    }

    fn code(refused: &Refused) -> &str {
        match refused {
            Refused::Error(report) => report.code.as_str(),
            Refused::Frame(_) => "frame",
        }
    }

    #[test]
    fn a_statement_is_bound_described_and_gone_after_close() {
        let mut names = names_with("SHOW VERSION");
        names.bind(b"p\0s\0\0\0\0\0\0\x01\0\x01").unwrap();
        let portal = names.portal(b"p").unwrap();
        assert_eq!(columns(portal.command.as_ref()).len(), 1);
        names.sync();
        assert_eq!(names.portal(b"p").unwrap_err().code.as_str(), "34000");
        names.close(Target::Statement(b"s"));
        assert_eq!(names.statement(b"s").unwrap_err().code.as_str(), "26000");
    }

    #[test]
    fn parameters_doubles_and_several_commands_are_refused() {
        let mut names = names_with("KILL");
        let refused = names.bind(b"\0s\0\0\0\0\x01\0\0\0\x01x\0\0").unwrap_err();
        assert_eq!(code(&refused), "08P01");
        assert_eq!(code(&names.parse(b"s\0KILL\0\0\0").unwrap_err()), "42P05");
        assert_eq!(
            code(&names.parse(b"\0KILL;KILL\0\0\0").unwrap_err()),
            "42601"
        );
        assert_eq!(
            code(&names.bind(b"\0x\0\0\0\0\0\0\0").unwrap_err()),
            "26000"
        );
        assert_eq!(code(&names.bind(b"\0s\0\0\0\0\0").unwrap_err()), "frame");
    }

    #[test]
    fn an_execute_has_a_name_and_a_limit() {
        assert_eq!(execute(b"p\0\0\0\0\x05"), Ok((&b"p"[..], 5)));
        assert!(execute(b"p\0\0\0").is_err());
    }

    proptest! {
        #[test]
        fn no_bind_or_execute_makes_it_panic(payload in proptest::collection::vec(0_u8..4, 0..40)) {
            let mut names = Names::default();
            let _ = names.parse(b"\0SHOW POOLS\0\0\0");
            let _ = names.bind(&payload);
            let _ = execute(&payload);
        }
    }
}
