//! Statements prepared by SQL, and those of the protocol where SQL names them.
//!
//! A simple query that prepares, executes or deallocates is sent with global names in place of the client's, and what it
//! needs goes ahead of it in the same write; so such statements move from backend to backend like those of the protocol.
//! Where a name can't be replaced, the backend is given the statement under the client's own name (see `own_names`).
//!
//! # Why a Sync in between
//! What is sent ahead is an exchange of its own: a server of version 18 keeps the transaction of an exchange open behind a
//! simple query, says so in its `ReadyForQuery`, and fails at the next statement (XX000). If what is sent ahead fails,
//! because a table is gone, the client gets that error, and of the query, which then fails as well, only
//! `ReadyForQuery` ([`For::Answered`]). Inside an exchange of the client's that no Sync has ended, the Sync stands behind
//! the query, because it would commit what the query is to be one transaction with.
//!
//! # What is left
//! The server's log and `pg_stat_activity` show global names. An error of a prepared statement's own text, raised when it
//! is analysed anew, has its place in that text, which is longer by the length of the name.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashSet;

use super::executing::Execution;
use super::inbound::Frame;
use super::reviving::without_commit;
use super::session::{End, Session};
use crate::net::buffer::Gather;
use crate::pool::Lease;
use crate::session::renaming::{Edits, Renaming};
use crate::session::shape::Description;
use crate::session::statements::{DISOWNED, Named, SERVER_NAME_PREFIX};
use crate::shared::Prepared;
use crate::sql::classify::{PreparedAction, PreparedRef, details};
use crate::sql::known::Known;
use crate::sql::prepared::PreparedUse;
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

/// Statement and portal by which pgweir runs SQL of its own inside an exchange.
pub(super) const OWN: &[u8] = b"pgweir own";

/// The statement that is deallocated in place of one that other sessions use too.
pub(super) const GONE: &[u8] = b"pgweir gone";

pub(super) type Name = Named<Arc<Known>>;

/// What a session notes of prepared statements for the exchange under way.
#[derive(Debug, Default)]
pub(super) struct Underway {
    /// Names of the client's that the backend has until the exchange ends, and is to have no longer. All of them, be it
    /// that some did not come to be.
    ///
    /// Boxed: few sessions lend any.
    pub lent: Option<Box<HashSet<Box<[u8]>>>>,
    /// The query under way stands in an exchange that the client has not ended.
    in_exchange: bool,
    /// The failed transaction was ended ahead of the query that is to be sent, which ends it.
    pub is_revived: bool,
    /// The query under way is all that is, and what pgweir does not understand.
    pub is_doubtful: bool,
    /// What was replaced in the text of the query under way.
    pub edits: Option<Box<Edits>>,
    /// Descriptions that pgweir gives itself, in that order.
    #[allow(
        clippy::box_collection,
        reason = "few sessions are given any, and each would hold three words more"
    )]
    pub descriptions: Option<Box<VecDeque<Arc<Description>>>>,
    /// The statement that was parsed anew in this exchange because its shape was in doubt; 0 for none.
    pub reparsed: u64,
}

impl Underway {
    /// The description that pgweir gives next.
    pub(super) fn next_description(&mut self) -> Option<Arc<Description>> {
        self.descriptions.as_mut()?.pop_front()
    }
}

/// A query as it is sent.
#[derive(Debug)]
struct Rewritten {
    text: Vec<u8>,
    edits: Edits,
    owed: Owed,
    /// The name that the query changes, and into what.
    change: Option<(Box<[u8]>, Option<Name>)>,
    /// What it needs was sent ahead, and a Sync belongs to that.
    ahead: bool,
}

impl Session {
    /// Whether the answers to the client's own messages are in: what names mean, and whether a transaction has failed,
    /// is known.
    pub(super) fn is_answered(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| {
            let mut owed = lease.expect.iter();
            // Behind nothing of the server's, pgweir's own answers are certain.
            let own = |to| {
                matches!(
                    to,
                    For::Plan | For::Probe | For::Xact | For::Evict | For::Local
                )
            };
            owed.all(|owed| own(owed.to))
        })
    }

    /// Sends a simple query that names prepared statements. False if it has to wait for answers.
    pub(super) fn query_prepared(
        &mut self,
        frame: Frame<'_>,
        text: &[u8],
        known: &Arc<Known>,
        gather: &mut Gather,
    ) -> Result<bool, End> {
        if !self.is_answered() {
            self.held_up = true;
            gather.own(|out| out.extend_from_slice(&f::FLUSH_FRAME));
            return Ok(false);
        }
        self.prepared.in_exchange = self.lease.as_ref().is_some_and(|it| it.expect.is_open());
        let refs = details(text, self.lex_options()).prepared;
        let mut executes = self.executes(&refs);
        let names_more = |it: &Name| it.statement.known.prepared != PreparedUse::None;
        // What is executed may itself list, execute or change what is prepared.
        let inner = executes.named.iter().find(|it| names_more(it)).cloned();
        let is_renamed = matches!(known.prepared, PreparedUse::Renamed | PreparedUse::None)
            && inner.is_none()
            && !self.has_own_names();
        let outer = inner.as_ref().map_or(known, |inner| &inner.statement.known);
        if !is_renamed && let Some(refusal) = self.keep_names(outer) {
            self.refuse_query(frame, Some(Arc::clone(known)), refusal, gather);
            return Ok(true);
        }
        if is_renamed {
            executes.bodies.clear();
        }
        match self.note_executed(&executes, false, gather)? {
            Execution::Noted => {}
            Execution::Awaited => return Ok(false),
            Execution::Refused(refusal) => {
                self.refuse_query(frame, Some(Arc::clone(known)), refusal, gather);
                return Ok(true);
            }
        }
        self.note(known)?;
        self.take_numbers(Some(known));
        self.start(Arc::clone(known));
        let mut lends = self.lend_names(text, known, gather);
        for named in &executes.named {
            lends |= self.lend_names(named.statement.text(), &named.statement.known, gather);
        }
        let mut renaming = Renaming::new(text, self.told.get(b"client_encoding") == Some(b"UTF8"));
        if std::mem::take(&mut self.prepared.is_revived)
            && let Some((range, instead)) = without_commit(known, text, self.lex_options())
        {
            renaming.replace(range, instead);
        }
        let mut rewritten = if is_renamed {
            self.rename(text, renaming, &refs, gather)
        } else {
            let ahead = self.use_own_names(outer, &refs, gather);
            Rewritten::plain(renaming, ahead)
        };
        rewritten.ahead |= lends;
        self.send_rewritten(rewritten, gather);
        self.unlist(gather);
        self.probe(gather);
        Ok(true)
    }

    fn send_rewritten(&mut self, rewritten: Rewritten, gather: &mut Gather) {
        let Rewritten {
            text,
            edits,
            owed,
            change,
            ahead,
        } = rewritten;
        if let Some((name, named)) = change {
            self.names.change(&name, named);
        }
        self.prepared.edits = Some(Box::new(edits)).filter(|edits| !edits.is_empty());
        if ahead && !self.prepared.in_exchange {
            self.end_own_exchange(gather);
        }
        self.owe(owed);
        self.names.forget_unnamed();
        if let Some(lease) = &mut self.lease {
            lease.mirror.unnamed = None;
        }
        gather.own(|out| f::put_query(out, &text));
        if ahead && self.prepared.in_exchange {
            self.end_own_exchange(gather);
        }
    }

    fn end_own_exchange(&mut self, gather: &mut Gather) {
        gather.own(|out| out.extend_from_slice(&f::SYNC_FRAME));
        self.owe(Owed::new(Request::Sync, For::Reparse));
    }

    /// Puts global names in place of the client's.
    fn rename(
        &mut self,
        text: &[u8],
        mut renaming: Renaming<'_>,
        refs: &[PreparedRef<'_>],
        gather: &mut Gather,
    ) -> Rewritten {
        // Whatever the text names.
        if self.has_failed() {
            return Rewritten::plain(renaming, false);
        }
        let mut rewritten = Rewritten::plain(Renaming::new(b"", false), false);
        for reference in refs {
            let name = reference.name.as_bytes();
            let named = self.names.get(name).cloned();
            let range = reference.range.clone();
            match (reference.action, named) {
                (action, Some(named)) if self.is_own(&named) => {
                    if action == PreparedAction::Deallocate {
                        rewritten.owed.renames = true;
                        rewritten.change = Some((name.into(), None));
                    }
                }
                (PreparedAction::Deallocate, Some(_)) => {
                    self.make_gone(gather);
                    rewritten.ahead = true;
                    rewritten.owed.renames = true;
                    rewritten.change = Some((name.into(), None));
                    renaming.replace(range, &quoted(GONE));
                }
                // Of a PREPARE of a name that is taken the server says so, when it has found nothing else to say.
                (_, Some(named)) => {
                    rewritten.ahead |= self.ensure_ahead(&named.statement, gather);
                    renaming.replace(range, &named.statement.name);
                }
                (PreparedAction::Prepare { body, .. }, None) => {
                    let statement = self.intern_sql(text, reference, body);
                    rewritten.owed.renames = true;
                    let mut named = Named::new(Arc::clone(&statement), Arc::default());
                    if self.keeps_backend() {
                        self.clear_own(name, gather);
                        self.leave_names();
                        rewritten.ahead = true;
                        named.own_on = self.lease.as_ref().map_or(0, |lease| lease.id);
                    } else {
                        rewritten.ahead |= self.make_room(statement.id, gather);
                        rewritten.owed.statement = statement.id;
                        renaming.replace(range, &statement.name);
                    }
                    named.spelled = Some(text[reference.range.clone()].into());
                    rewritten.change = Some((name.into(), Some(named)));
                }
                // Nobody knows another session's statements by guessing.
                (_, None) if name.starts_with(SERVER_NAME_PREFIX) => {
                    renaming.replace(range, &quoted(&[name, DISOWNED].concat()));
                }
                (_, None) => {}
            }
        }
        (rewritten.text, rewritten.edits) = renaming.finish();
        rewritten
    }

    /// Whether the server refuses or skips whatever comes. In the midst of an exchange that it has not refused so far it
    /// may have ended the failed transaction.
    pub(super) fn has_failed(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            let is_failed = lease.status == TransactionStatus::Failed;
            lease.expect.skips_the_next() || (is_failed && !lease.expect.is_open())
        })
    }

    /// Does for a text of the extended protocol that names prepared statements what it needs ahead of it. False if it
    /// has to wait for answers.
    pub(super) fn step_prepared(
        &mut self,
        text: &[u8],
        known: &Known,
        gather: &mut Gather,
    ) -> bool {
        let skips = |lease: &Lease| lease.expect.skips_the_next();
        if !self.is_answered() && !self.lease.as_ref().is_some_and(skips) {
            self.held_up = true;
            gather.own(|out| out.extend_from_slice(&f::FLUSH_FRAME));
            return false;
        }
        let refs = details(text, self.lex_options()).prepared;
        self.lend_names(text, known, gather);
        self.use_own_names(known, &refs, gather);
        true
    }

    fn intern_sql(
        &mut self,
        text: &[u8],
        reference: &PreparedRef<'_>,
        body: &[u8],
    ) -> Arc<Prepared> {
        let (start, end) = (reference.range.start, reference.range.end);
        let nameless = [&text[..start], &text[end..]].concat();
        let (known, options) = (&self.shared.known, self.lex_options());
        let meaning = self.meaning(body);
        self.shared
            .statements
            .intern(&nameless, Some(start), meaning, || {
                known.lookup(body, options)
            })
    }

    /// Makes sure that the backend has `statement`. True if something was sent.
    fn ensure_ahead(&mut self, statement: &Arc<Prepared>, gather: &mut Gather) -> bool {
        let has = self
            .lease
            .as_mut()
            .is_some_and(|lease| lease.mirror.shape(statement.id).is_some());
        if !has {
            self.give_statement(statement, None, For::Reparse, gather);
        }
        !has
    }

    /// Sends what takes another session's statement out of the way of a PREPARE. True if something was sent.
    fn make_room(&mut self, id: u64, gather: &mut Gather) -> bool {
        let Some(lease) = &mut self.lease else {
            return false;
        };
        let in_the_way = lease.mirror.prepare(id, Arc::default());
        if let Some(id) = in_the_way {
            self.evict(id, gather);
        }
        in_the_way.is_some()
    }

    /// Sends what makes `DEALLOCATE` of [`GONE`] succeed.
    fn make_gone(&mut self, gather: &mut Gather) {
        gather.own(|out| {
            f::put_statement_target(out, f::CLOSE, GONE);
            f::put_parse(out, GONE, b"\0\0\0");
        });
        self.owe(Owed::new(Request::Close, For::Evict));
        self.owe(Owed::new(Request::Parse, For::Reparse));
    }

    /// Runs `text` inside an exchange; `statement` is the global statement it prepares, `OWN_NAME` or 0.
    pub(super) fn run_own(&mut self, text: &[u8], statement: u64, to: For, gather: &mut Gather) {
        let body = [text, b"\0\0\0"].concat();
        gather.own(|out| {
            f::put_statement_target(out, f::CLOSE, OWN);
            f::put_parse(out, OWN, &body);
            f::put_bind_head(out, OWN, OWN, 6);
            out.extend_from_slice(&[0; 6]);
            f::put_execute(out, OWN);
            f::put_portal_close(out, OWN);
            f::put_statement_target(out, f::CLOSE, OWN);
        });
        self.owe(Owed::new(Request::Close, For::Evict));
        self.owe(Owed::new(Request::Parse, to));
        self.owe(Owed::new(Request::Bind, to));
        self.owe(Owed {
            statement,
            ..Owed::new(Request::Execute, to)
        });
        self.owe(Owed::new(Request::Close, For::Evict));
        self.owe(Owed::new(Request::Close, For::Evict));
    }

    /// An error of a rewritten query, with its place in the client's text; `None` for others.
    pub(super) fn place_error(&self, owed: Owed, payload: &[u8]) -> Option<Vec<u8>> {
        let prepares = owed.request == Request::Execute && owed.to == For::Reparse;
        let edits = if prepares && owed.statement != 0 {
            &self.edits_of(owed.statement)?
        } else if owed.request == Request::Query && owed.to == For::Client {
            self.prepared.edits.as_deref()?
        } else {
            return None;
        };
        let place = b::error_field(payload, b'P')?;
        let number = std::str::from_utf8(place).ok()?.parse().ok()?;
        let at = place.as_ptr().addr() - payload.as_ptr().addr();
        let original = edits.original(number).to_string();
        let behind = &payload[at + place.len()..];
        Some([&payload[..at], original.as_bytes(), behind].concat())
    }

    /// What is replaced in the text of a PREPARE that is run under a global name.
    fn edits_of(&self, statement: u64) -> Option<Edits> {
        let mut all = self.names.iter().map(|(_, named)| named);
        let named = all.find(|named| named.statement.id == statement)?;
        let (spelled, at) = (named.spelled.as_deref()?, named.statement.name_at?);
        let text = named.statement.prepare_text(spelled)?;
        let is_utf8 = self.told.get(b"client_encoding") == Some(b"UTF8");
        let mut renaming = Renaming::new(&text, is_utf8);
        renaming.replace(at..at + spelled.len(), &named.statement.name);
        Some(renaming.finish().1)
    }
}

impl Rewritten {
    fn plain(renaming: Renaming<'_>, ahead: bool) -> Self {
        let (text, edits) = renaming.finish();
        Self {
            text,
            edits,
            owed: Owed::new(Request::Query, For::Client),
            change: None,
            ahead,
        }
    }
}

/// An identifier that means exactly `name`.
pub(super) fn quoted(name: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for &byte in name {
        if byte == b'"' {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'"');
    out
}
