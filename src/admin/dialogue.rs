//! The dialogue with one console client: both query protocols, one message at a time.
//!
//! # Invariants
//! - A message is at most 64 KiB; what is not a message of the protocol ends the connection with 08P01.
//! - Whatever the client waits for, it is heard: a cancel request, Terminate, a shutdown end the waiting.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::command::{self, Condition, Context, Outcome, Role};
use super::console::Console;
use super::extended::{self, Names, Refused, columns};
use super::parse::Command;
use super::table::{self, Formats, Row};
use crate::error::{Report, SqlState};
use crate::net::stream::Stream;
use crate::registry::{ClientEntry, Registered};
use crate::telemetry::metrics;
use crate::wire::backend::{self, TransactionStatus};
use crate::wire::frame::{FrameError, Header, put, put_cstr};
use crate::wire::frontend::{self, Target};

/// Largest message of a console client.
const MESSAGE_MAX: usize = 64 * 1024;

/// Bytes of answers that are gathered before they are sent without being asked for.
const GATHERED_MAX: usize = 64 * 1024;

/// How often a condition that is waited for is looked at.
const CONDITION_POLL: Duration = Duration::from_millis(10);

/// How a dialogue ended.
#[derive(Debug)]
pub(super) enum End {
    Gone,
    Fatal(Report),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        Self::Fatal(Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            error.to_string(),
        ))
    }
}

/// Resolves when the operator wants the client gone. Cancel safe.
async fn ordered(entry: &ClientEntry) -> End {
    entry.ordered().await;
    End::Fatal(Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    ))
}

/// Reads what is there; cancel safe.
async fn fill(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), End> {
    match stream.read_buf(input).await? {
        0 => Err(End::Gone),
        _ => Ok(()),
    }
}

/// See the module.
pub(super) struct Dialogue<'a> {
    console: &'a Console,
    role: Role,
    entry: Registered,
    stream: Stream,
    input: Vec<u8>,
    out: Vec<u8>,
    names: Names,
    /// After an error in an extended exchange: everything up to the next Sync is dropped.
    skipping: bool,
}

impl<'a> Dialogue<'a> {
    /// `out` is what the client is told first.
    pub(super) fn new(
        console: &'a Console,
        role: Role,
        entry: Registered,
        stream: Stream,
        out: Vec<u8>,
    ) -> Self {
        Self {
            console,
            role,
            entry,
            stream,
            input: Vec::new(),
            out,
            names: Names::default(),
            skipping: false,
        }
    }

    pub(super) fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Answers until the client leaves or is cut off.
    pub(super) async fn run(&mut self) -> Result<Infallible, End> {
        self.flush().await?;
        loop {
            let (tag, payload) = self.next().await?;
            self.answer(tag, &payload).await?;
            if self.out.len() > GATHERED_MAX {
                self.flush().await?;
            }
        }
    }

    async fn next(&mut self) -> Result<(u8, Vec<u8>), End> {
        loop {
            if let Some(header) = Header::peek(&self.input, MESSAGE_MAX)?
                && self.input.len() >= header.len
            {
                let frame: Vec<u8> = self.input.drain(..header.len).collect();
                return Ok((header.tag, frame[5..].to_vec()));
            }
            tokio::select! {
                end = ordered(&self.entry) => return Err(end),
                filled = fill(&mut self.stream, &mut self.input) => filled?,
            }
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        tokio::select! {
            end = ordered(&self.entry) => Err(end),
            written = self.stream.write_all(&self.out) => {
                written?;
                self.stream.flush().await?;
                self.out.clear();
                Ok(())
            }
        }
    }

    async fn answer(&mut self, tag: u8, payload: &[u8]) -> Result<(), End> {
        match tag {
            frontend::QUERY => {
                self.skipping = false;
                self.query(frontend::query_text(payload)?).await?;
                self.ready().await
            }
            frontend::SYNC => {
                self.skipping = false;
                self.names.sync();
                self.ready().await
            }
            frontend::TERMINATE => Err(End::Gone),
            frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE
                if self.skipping =>
            {
                Ok(())
            }
            frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE => match self.extended(tag, payload).await? {
                Ok(()) => Ok(()),
                Err(Refused::Frame(error)) => Err(error.into()),
                Err(Refused::Error(report)) => {
                    self.skipping = true;
                    backend::put_report(&mut self.out, &report);
                    Ok(())
                }
            },
            frontend::FLUSH => self.flush().await,
            frontend::FUNCTION_CALL => {
                let refusal = "function calls are not supported by the console";
                let report = Report::error(SqlState::FEATURE_NOT_SUPPORTED, refusal);
                backend::put_report(&mut self.out, &report);
                self.ready().await
            }
            // As in PostgreSQL, what is left of a COPY that is over is ignored.
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => Ok(()),
            _ => Err(End::Fatal(Report::fatal(
                SqlState::PROTOCOL_VIOLATION,
                format!("invalid frontend message type {tag}"),
            ))),
        }
    }

    async fn ready(&mut self) -> Result<(), End> {
        backend::put_ready_for_query(&mut self.out, TransactionStatus::Idle);
        self.flush().await
    }

    /// A simple query: all of it is read before any of it is run, and the first error ends it.
    async fn query(&mut self, text: &[u8]) -> Result<(), End> {
        let commands = match extended::commands(text) {
            Ok(commands) => commands,
            Err(report) => {
                metrics::console_statement(false);
                backend::put_report(&mut self.out, &report);
                return Ok(());
            }
        };
        if commands.is_empty() {
            put(&mut self.out, backend::EMPTY_QUERY_RESPONSE, |_| {});
        }
        for command in commands {
            let mut portal = extended::Portal {
                command: Some(command),
                ..extended::Portal::default()
            };
            let columns = columns(portal.command.as_ref());
            let done = self.execute(&mut portal, 0, Some(columns)).await?;
            if let Err(report) = done {
                backend::put_report(&mut self.out, &report);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn extended(&mut self, tag: u8, payload: &[u8]) -> Result<Result<(), Refused>, End> {
        Ok(match tag {
            frontend::EXECUTE => {
                let (name, limit) = extended::execute(payload)?;
                let mut portal = match self.names.portal_mut(name) {
                    Ok(portal) => std::mem::take(portal),
                    Err(report) => return Ok(Err(report.into())),
                };
                let done = self.execute(&mut portal, limit, None).await?;
                if let Ok(place) = self.names.portal_mut(name) {
                    *place = portal;
                }
                done.map_err(Refused::from)
            }
            frontend::PARSE => self.names.parse(payload).map(|()| {
                self.out.extend_from_slice(&backend::PARSE_COMPLETE_FRAME);
            }),
            frontend::BIND => self
                .names
                .bind(payload)
                .map(|()| put(&mut self.out, backend::BIND_COMPLETE, |_| {})),
            frontend::DESCRIBE => {
                let target = Target::read(tag, payload)?;
                self.describe(target)?.map_err(Refused::from)
            }
            _ => {
                self.names.close(Target::read(tag, payload)?);
                self.out.extend_from_slice(&backend::CLOSE_COMPLETE_FRAME);
                Ok(())
            }
        })
    }

    fn describe(&mut self, target: Target<'_>) -> io::Result<Result<(), Report>> {
        let (command, formats) = match target {
            Target::Statement(name) => match self.names.statement(name) {
                Ok(command) => (command, Formats::default()),
                Err(report) => return Ok(Err(report)),
            },
            Target::Portal(name) => match self.names.portal(name) {
                Ok(portal) => (portal.command.as_ref(), portal.formats.clone()),
                Err(report) => return Ok(Err(report)),
            },
        };
        if matches!(target, Target::Statement(_)) {
            put(&mut self.out, backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(&[0; 2]);
            });
        }
        let columns = columns(command);
        if columns.is_empty() {
            put(&mut self.out, backend::NO_DATA, |_| {});
        } else {
            table::put_columns(&mut self.out, columns, &formats)?;
        }
        Ok(Ok(()))
    }

    /// Runs what a portal holds, or goes on with its rows; at most `limit` of them unless that is 0. A simple query
    /// gives the columns to describe first.
    async fn execute(
        &mut self,
        portal: &mut extended::Portal,
        limit: usize,
        describe: Option<&[table::Column]>,
    ) -> Result<Result<(), Report>, End> {
        let Some(command) = portal.command.clone() else {
            put(&mut self.out, backend::EMPTY_QUERY_RESPONSE, |_| {});
            return Ok(Ok(()));
        };
        if portal.rows.is_none() {
            let outcome = self.outcome(&command).await?;
            metrics::console_statement(outcome.is_ok());
            match outcome {
                Err(report) => return Ok(Err(report)),
                Ok(Answer::Tag(tag)) => {
                    self.complete(tag);
                    return Ok(Ok(()));
                }
                Ok(Answer::Rows(rows)) => portal.rows = Some(rows.into_iter()),
            }
            if let Some(columns) = describe {
                table::put_columns(&mut self.out, columns, &portal.formats)?;
            }
        }
        let columns = columns(Some(&command));
        let mut sent = 0;
        if let Some(rows) = &mut portal.rows {
            while limit == 0 || sent < limit {
                let Some(row) = rows.next() else { break };
                table::put_row(&mut self.out, columns, &portal.formats, &row)?;
                sent += 1;
            }
            if limit > 0 && sent == limit {
                put(&mut self.out, backend::PORTAL_SUSPENDED, |_| {});
                return Ok(Ok(()));
            }
        }
        self.complete("SHOW");
        Ok(Ok(()))
    }

    fn complete(&mut self, tag: &str) {
        put(&mut self.out, backend::COMMAND_COMPLETE, |out| {
            put_cstr(out, tag.as_bytes());
        });
    }

    async fn outcome(&mut self, command: &Command) -> Result<Result<Answer, Report>, End> {
        let context = Context {
            shared: &self.console.shared,
            reloader: &self.console.reloader,
            role: self.role,
        };
        let outcome = match command::run(&context, command) {
            Ok(outcome) => outcome,
            Err(report) => return Ok(Err(report)),
        };
        Ok(match outcome {
            Outcome::Table(show, refinement) => {
                let rows = self.console.rows(show, self.role, refinement).await;
                rows.map(Answer::Rows).ok_or_else(|| {
                    Report::error(SqlState::INTERNAL_ERROR, "could not make the table")
                })
            }
            Outcome::Done { tag, notice } => {
                if let Some(notice) = notice {
                    backend::put_report(&mut self.out, &notice);
                }
                Ok(Answer::Tag(tag))
            }
            Outcome::Wait { tag, condition } => {
                let met = self.wait(&condition).await?;
                met.map(|()| Answer::Tag(tag))
            }
        })
    }

    /// Waits until `condition` is met. A cancel request, or a RESUME by another console, ends the waiting with 57014.
    async fn wait(&mut self, condition: &Condition) -> Result<Result<(), Report>, End> {
        self.flush().await?;
        let shared = &self.console.shared;
        self.entry.waiter.start();
        let waited = loop {
            let room = self.input.len() < MESSAGE_MAX;
            if condition.is_void(shared) {
                break Ok(Err(Report::error(
                    SqlState::QUERY_CANCELED,
                    "canceling PAUSE because of RESUME",
                )));
            }
            if condition.is_met(shared) {
                break Ok(Ok(()));
            }
            tokio::select! {
                end = ordered(&self.entry) => break Err(end),
                filled = fill(&mut self.stream, &mut self.input), if room => match filled {
                    Ok(()) => {}
                    Err(end) => break Err(end),
                },
                _ = poll_fn(|cx| self.entry.waiter.poll(cx)) => {
                    condition.abandon(shared);
                    break Ok(Err(Report::error(
                        SqlState::QUERY_CANCELED,
                        "canceling statement due to user request",
                    )));
                }
                () = tokio::time::sleep(CONDITION_POLL) => {}
            }
        };
        self.entry.waiter.withdraw();
        waited
    }
}

/// What a statement is answered with.
enum Answer {
    Tag(&'static str),
    Rows(Vec<Row>),
}
