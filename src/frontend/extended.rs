//! The extended protocol: a session's statement names onto global ones.
//!
//! # Why a client's own Parse always reaches the server
//! A statement the backend already has could be answered here, but the server might say something else: a table may
//! be gone, a type replaced. So it is closed and parsed again; sharing saves the Parse that the *other* backends
//! would need.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::inbound::Frame;
use super::listening::Gate;
use super::refusal::Refusal;
use super::session::{End, Session};
use super::stale::Agreement;
use crate::error::{Report, SqlState};
use crate::net::buffer::Gather;
use crate::session::shape::Shape;
use crate::session::statements::{DISOWNED, NAMES_MAX, Named, SERVER_NAME_PREFIX};
use crate::shared::Prepared;
use crate::sql::prepared::PreparedUse;
use crate::sql::reading::Rereads;
use crate::sql::state::PinReason;
use crate::wire::expect::{For, Owed, Request, UNNAMED};
use crate::wire::frame::{FrameError, HEADER};
use crate::wire::frontend::{self as f, Bind, Parse, Target};

fn violation(error: FrameError) -> End {
    End::Fatal(Box::new(Report::fatal(
        SqlState::PROTOCOL_VIOLATION,
        error.to_string(),
    )))
}

fn renames(request: Request, to: For, statement: u64) -> Owed {
    Owed {
        request,
        to,
        statement,
        renames: true,
    }
}

/// What is owed for a message that uses `statement` under its global name.
fn uses(request: Request, statement: Option<&Arc<Prepared>>) -> Owed {
    Owed {
        statement: statement.map_or(0, |statement| statement.id),
        ..Owed::new(request, For::Client)
    }
}

impl Session {
    /// Whether what `frame` is turned into depends on whether an earlier exchange succeeds. After an error there the
    /// server skips what changes names and statements, but not what follows in the next exchange.
    pub(super) fn must_wait(&self, frame: Frame<'_>) -> bool {
        let Some(lease) = &self.lease else {
            return false;
        };
        // What the server skips it does not answer.
        if lease.expect.skips_the_next() {
            return false;
        }
        let names_one = matches!(frame.tag, f::PARSE | f::BIND | f::DESCRIBE | f::CLOSE);
        let forgets = self.deallocates || self.discards;
        if forgets && names_one && !lease.expect.awaits_more() {
            return true;
        }
        let is_changing = lease.expect.is_changing();
        if lease.expect.is_empty() || !names_one {
            return false;
        }
        let name = match frame.tag {
            f::PARSE => Parse::read(frame.payload).ok().map(|parse| parse.name),
            f::BIND => Bind::read(frame.payload).map(|bind| bind.statement),
            f::DESCRIBE => match Target::read(frame.tag, frame.payload) {
                Ok(Target::Statement(name)) => Some(name),
                _ => None,
            },
            _ => None,
        };
        let Some(name) = name else {
            return false;
        };
        if name.is_empty() {
            // A Parse depends on nothing; the others on one that may have failed, unless it is of the same exchange.
            return frame.tag != f::PARSE
                && (self.names.is_uncertain(b"")
                    || (is_changing && !self.names.is_changed_now(b"")));
        }
        if self.names.is_uncertain(name) {
            return true;
        }
        let has = |id| {
            lease.mirror.contains(id)
                && !lease
                    .expect
                    .iter()
                    .any(|owed| owed.changes() && owed.statement == id)
        };
        let statement = self.names.get(name).map(|named| named.statement.id);
        // In a failed transaction the server parses nothing: whether it is one must be known.
        let waits_to_parse = |id| !lease.mirror.runs(id) && lease.expect.has_earlier();
        if frame.tag == f::PARSE {
            return is_changing;
        }
        statement.is_some_and(|id| (is_changing && !has(id)) || waits_to_parse(id))
    }

    /// False if it has to wait for answers.
    pub(super) fn parse(&mut self, frame: Frame<'_>, gather: &mut Gather) -> Result<bool, End> {
        if frame.missing > 0 {
            self.parse_unread(frame, gather);
            return Ok(true);
        }
        let parse = Parse::read(frame.payload).map_err(violation)?;
        self.trace(parse.text);
        if self.names.len() >= NAMES_MAX {
            let report = Report::fatal(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                format!("too many prepared statements on one connection (limit {NAMES_MAX})"),
            );
            return Err(End::Fatal(Box::new(report)));
        }
        let (known, options) = (&self.shared.known, self.lex_options());
        let meaning = self.meaning(parse.text);
        let statement = self
            .shared
            .statements
            .intern(parse.body, None, meaning, || {
                known.lookup(parse.text, options)
            });
        if statement.known.prepared != PreparedUse::None {
            if let Some(refusal) = self.keep_names(&statement.known) {
                self.refuse_step(frame, refusal, gather);
                return Ok(true);
            }
            if !self.step_prepared(parse.text, &statement.known, gather) {
                return Ok(false);
            }
        }
        if self.parse_awaits_numbers(&statement.known, gather) {
            return Ok(false);
        }
        let counters = &self.pool.counters;
        counters.parses_client.fetch_add(1, Ordering::Relaxed);
        let mut named = Named::new(Arc::clone(&statement), Arc::default());
        if parse.name.is_empty() {
            self.owe(renames(Request::Parse, For::Client, UNNAMED));
            if let Some(lease) = &mut self.lease {
                lease.mirror.unnamed = Some(statement.id);
            }
            gather.input(frame.range());
        } else if let Some(taken) = self.names.get(parse.name).cloned()
            && !self.is_own(&taken)
        {
            self.parse_again(frame, parse, gather);
            return Ok(true);
        } else if self.names.get(parse.name).is_some() || self.has_own_names() {
            // The backend may have the name, too.
            named.own_on = self.lease.as_ref().map_or(0, |lease| lease.id);
            self.owe(renames(Request::Parse, For::Client, 0));
            gather.input(frame.range());
        } else {
            named.shape = self.give_statement(&statement, None, For::Client, gather);
        }
        self.note_parsed(parse.name);
        self.names.change(parse.name, Some(named));
        Ok(true)
    }

    /// A text too large to be read goes to the server under the client's own name, and stays there.
    fn parse_unread(&mut self, frame: Frame<'_>, gather: &mut Gather) {
        let pins = PinReason::Unclassifiable.into();
        if let Some(refusal) = self.pin(pins, None) {
            return self.refuse_step(frame, refusal, gather);
        }
        let mut owed = Owed::new(Request::Parse, For::Client);
        if frame.payload.first() == Some(&0) {
            owed.statement = UNNAMED;
            self.names.forget_unnamed();
            if let Some(lease) = &mut self.lease {
                lease.mirror.unnamed = Some(UNNAMED);
            }
        }
        self.owe(owed);
        gather.input(frame.range());
    }

    /// The name is taken, which the server says only of a text it could parse. It is given nothing under a global name:
    /// if code of the session has deallocated the statement there, that name would get another meaning.
    fn parse_again(&mut self, frame: Frame<'_>, parse: Parse<'_>, gather: &mut Gather) {
        gather.own(|out| f::put_parse(out, b"", parse.body));
        self.owe(Owed::new(Request::Parse, For::Reparse));
        if let Some(lease) = &mut self.lease {
            lease.mirror.unnamed = None;
        }
        self.refuse_step(frame, Refusal::NameTaken(parse.name.into()), gather);
    }

    /// Closes a statement under its global name.
    pub(super) fn evict(&mut self, id: u64, gather: &mut Gather) {
        let name = [SERVER_NAME_PREFIX, id.to_string().as_bytes()].concat();
        gather.own(|out| f::put_statement_target(out, f::CLOSE, &name));
        self.owe(Owed {
            statement: id,
            ..Owed::new(Request::Close, For::Evict)
        });
    }

    /// Sends a Parse of `statement` under its global name, making room first. Returns what the server will tell of it:
    /// what the client was told before, as a rule.
    pub(super) fn give_statement(
        &mut self,
        statement: &Arc<Prepared>,
        told: Option<&Shape>,
        to: For,
        gather: &mut Gather,
    ) -> Arc<Shape> {
        let shape = Arc::default();
        let Some(lease) = &mut self.lease else {
            return shape;
        };
        let before = lease.mirror.shape(statement.id).cloned();
        let like = told.or(before.as_deref());
        lease.mirror.awaited_shapes.push(Arc::clone(&shape), like);
        if let Some(id) = lease.mirror.prepare(statement.id, Arc::clone(&shape)) {
            self.evict(id, gather);
        }
        let read_again = self.read_as(statement, For::Reparse, gather);
        if let Some(text) = statement.prepare_text(&statement.name) {
            self.run_own(&text, statement.id, For::Reparse, gather);
        } else {
            gather.own(|out| f::put_parse(out, &statement.name, &statement.body));
            self.owe(Owed {
                renames: to == For::Client,
                ..renames(Request::Parse, to, statement.id)
            });
        }
        gather.own(|out| f::put_statement_target(out, f::DESCRIBE, &statement.name));
        self.owe(Owed::new(Request::DescribeStatement, For::Shape));
        self.read_again(read_again, gather);
        self.pool
            .counters
            .parses_server
            .fetch_add(1, Ordering::Relaxed);
        shape
    }

    /// Makes sure the backend has `statement`, the unnamed one under the empty name; and that it has no unnamed one of
    /// somebody else's where the session has none.
    fn ensure(&mut self, name: &[u8], statement: Option<&Arc<Prepared>>, gather: &mut Gather) {
        let Some(lease) = &mut self.lease else {
            return;
        };
        match statement {
            // The client's own, whose text was not read.
            None if name.is_empty() && lease.mirror.unnamed == Some(UNNAMED) => {}
            None if name.is_empty() => {
                lease.mirror.unnamed = None;
                gather.own(|out| f::put_statement_target(out, f::CLOSE, b""));
                self.owe(Owed::new(Request::Close, For::Evict));
            }
            Some(statement) if name.is_empty() && lease.mirror.unnamed != Some(statement.id) => {
                lease.mirror.unnamed = Some(statement.id);
                let read_again = self.read_as(statement, For::Reparse, gather);
                gather.own(|out| f::put_parse(out, b"", &statement.body));
                self.owe(Owed {
                    statement: UNNAMED,
                    ..Owed::new(Request::Parse, For::Reparse)
                });
                self.read_again(read_again, gather);
            }
            Some(statement) if !name.is_empty() && lease.mirror.shape(statement.id).is_none() => {
                self.give_statement(statement, None, For::Reparse, gather);
            }
            _ => {}
        }
    }

    /// False if what the client was told of the statement has to be compared with what the backend has first.
    pub(super) fn bind(&mut self, frame: Frame<'_>, gather: &mut Gather) -> Result<bool, End> {
        let bind =
            Bind::read(frame.payload).ok_or_else(|| violation(FrameError::Malformed('B')))?;
        if let ControlFlow::Break(is_done) = self.begin_bind(frame, bind.statement, gather)? {
            return Ok(is_done);
        }
        let named = self.names.get(bind.statement).cloned();
        let Gate::Open(pins) = self.gate_bind(named.as_ref(), bind.portal) else {
            return Ok(false);
        };
        let is_own = named.as_ref().is_some_and(|named| self.is_own(named));
        let is_global = !bind.statement.is_empty() && !is_own;
        if let Some(named) = named.as_ref().filter(|_| is_global) {
            match self.agree(bind, named, frame.behind, gather) {
                Agreement::Yes => {}
                Agreement::Awaited => return Ok(false),
                Agreement::No => {
                    self.bound = Some(Arc::clone(&named.statement));
                    self.refuse_step(frame, Refusal::Stale, gather);
                    return Ok(true);
                }
            }
            if let Some(refusal) = self.miscounts(frame, bind, named) {
                self.bound = Some(Arc::clone(&named.statement));
                self.refuse_step(frame, refusal, gather);
                return Ok(true);
            }
        }
        let statement = named.map(|named| named.statement);
        self.pool.counters.binds.fetch_add(1, Ordering::Relaxed);
        self.metering.sent(frame.tag, frame.len());
        let rest = frame.start + HEADER + bind.head..frame.end;
        let rest_len = rest.len() + frame.missing;
        if let Some(statement) = &statement {
            let refusal = self.pin(pins, Some(&statement.known));
            let shown = || self.show_channels(&statement.known, true, gather);
            if let Some(refusal) = refusal.or_else(shown) {
                self.bound = Some(Arc::clone(statement));
                self.refuse_step(frame, refusal, gather);
                return Ok(true);
            }
        }
        self.note_bound(statement.as_ref())?;
        self.note_sent(statement.as_ref().map(|statement| &*statement.known));
        if !bind.portal.is_empty() {
            self.note_portal();
        }
        if bind.statement.is_empty() {
            self.note_unnamed_used();
        }
        if !is_own {
            self.ensure(bind.statement, statement.as_ref(), gather);
        }
        match &statement {
            Some(statement) if is_global => {
                gather.own(|out| f::put_bind_head(out, bind.portal, &statement.name, rest_len));
                gather.input(rest);
            }
            None if bind.statement.starts_with(SERVER_NAME_PREFIX) => {
                let name = disowned(bind.statement);
                gather.own(|out| f::put_bind_head(out, bind.portal, &name, rest_len));
                gather.input(rest);
            }
            _ => gather.input(frame.range()),
        }
        let named = statement.as_ref().filter(|_| is_global);
        self.owe(uses(Request::Bind, named));
        let known = statement.as_ref().map(|statement| &statement.known);
        self.metering.bound(bind.portal, known);
        self.bound = statement;
        Ok(true)
    }

    /// Notes what a statement that is bound does to the session; `None` may be one whose text was not read.
    fn note_bound(&mut self, statement: Option<&Arc<Prepared>>) -> Result<(), End> {
        if let Some(statement) = statement {
            self.note(&statement.known)?;
            self.take_numbers(Some(&statement.known));
        } else if self.pins.contains(PinReason::Unclassifiable) {
            self.rereads = Rereads::ALL;
            self.take_numbers(None);
        }
        Ok(())
    }

    pub(super) fn execute(&mut self, frame: Frame<'_>) {
        self.note_portal_end(f::portal_of(frame.payload).0);
        self.expect(Request::Execute);
        if !frame.payload.ends_with(&[0; 4]) {
            // Of so many rows; the rest may be asked for later.
            self.note_portal();
        }
        self.start_execute(frame.payload);
    }

    pub(super) fn describe(&mut self, frame: Frame<'_>, gather: &mut Gather) -> Result<(), End> {
        match Target::read(frame.tag, frame.payload).map_err(violation)? {
            Target::Portal(_) => {
                self.expect(Request::DescribePortal);
                gather.input(frame.range());
            }
            Target::Statement(name) => {
                let named = self.names.get(name).cloned();
                if named.as_ref().is_some_and(|named| self.is_own(named)) {
                    self.expect(Request::DescribeStatement);
                    gather.input(frame.range());
                    return Ok(());
                }
                if let Some(named) = named.as_ref().filter(|_| !name.is_empty())
                    && self.describe_alone(named, frame.behind)
                {
                    return Ok(());
                }
                let statement = named.map(|named| named.statement);
                if name.is_empty() {
                    self.note_unnamed_used();
                }
                self.ensure(name, statement.as_ref(), gather);
                let named = statement.as_ref().filter(|_| !name.is_empty());
                if let (Some(statement), Some(lease)) = (named, &mut self.lease)
                    && let Some(shape) = lease.mirror.shape(statement.id)
                {
                    self.names.tell(name, shape);
                }
                self.owe(uses(Request::DescribeStatement, named));
                match &statement {
                    Some(statement) if !name.is_empty() => {
                        gather
                            .own(|out| f::put_statement_target(out, f::DESCRIBE, &statement.name));
                    }
                    None if name.starts_with(SERVER_NAME_PREFIX) => {
                        gather
                            .own(|out| f::put_statement_target(out, f::DESCRIBE, &disowned(name)));
                    }
                    _ => gather.input(frame.range()),
                }
            }
        }
        Ok(())
    }

    pub(super) fn close(&mut self, frame: Frame<'_>, gather: &mut Gather) -> Result<(), End> {
        match Target::read(frame.tag, frame.payload).map_err(violation)? {
            Target::Portal(_) => {
                self.expect(Request::Close);
                gather.input(frame.range());
            }
            Target::Statement(b"") => {
                self.note_unnamed_replaced();
                self.names.change(b"", None);
                if let Some(lease) = &mut self.lease {
                    lease.mirror.unnamed = None;
                }
                self.owe(renames(Request::Close, For::Client, 0));
                gather.input(frame.range());
            }
            // The name may be one that SQL has prepared, or that was parsed twice: those are the backend's own.
            Target::Statement(name)
                if self.has_own_names()
                    || self.names.get(name).is_some_and(|named| self.is_own(named)) =>
            {
                self.names.change(name, None);
                self.owe(renames(Request::Close, For::Client, 0));
                gather.input(frame.range());
            }
            // The backend keeps the statement for whoever uses it next; the name is gone.
            Target::Statement(name) => {
                self.names.change(name, None);
                self.owe(renames(Request::Close, For::Local, 0));
            }
        }
        Ok(())
    }
}

/// A name the server knows nothing by, for a client that guesses at global ones.
fn disowned(name: &[u8]) -> Vec<u8> {
    [name, DISOWNED].concat()
}
