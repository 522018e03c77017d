//! What the server runs for an EXECUTE. What that does to the session is noted as if the client had sent it.
//!
//! A text that changes what names mean in its midst may execute all that it prepares. Where only the backend knows what
//! names mean, an EXECUTE is like code that can't be seen through.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::inbound::Frame;
use super::refusal::Refusal;
use super::session::{End, Session};
use super::sql_prepare::Name;
use crate::net::buffer::Gather;
use crate::shared::Prepared;
use crate::sql::classify::{PreparedAction, PreparedRef, details};
use crate::sql::known::Known;
use crate::sql::prepared::PreparedUse;
use crate::sql::reading::Rereads;

/// What a text executes.
#[derive(Debug, Default)]
pub(super) struct Executes {
    /// Of what the session has, each once.
    pub named: Vec<Name>,
    /// What it prepares.
    pub bodies: Vec<Arc<Known>>,
    /// It executes what only the backend knows.
    is_unseen: bool,
}

/// Whether a text may be sent, as far as what it executes is concerned.
#[derive(Debug)]
pub(super) enum Execution {
    Noted,
    /// It has to wait for answers.
    Awaited,
    Refused(Refusal),
}

impl Session {
    /// What a text executes that names prepared statements by `refs`, and what that executes.
    pub(super) fn executes(&self, refs: &[PreparedRef<'_>]) -> Executes {
        let is_execute = |it: &PreparedRef<'_>| it.action == PreparedAction::Execute;
        let mut executes = Executes {
            is_unseen: self.names.is_own() && refs.iter().any(is_execute),
            ..Executes::default()
        };
        self.add_executed(refs, &mut executes);
        let mut at = 0;
        while let Some(named) = executes.named.get(at).cloned() {
            at += 1;
            if named.statement.known.prepared != PreparedUse::None {
                let refs = details(named.statement.text(), self.lex_options()).prepared;
                self.add_executed(&refs, &mut executes);
            }
        }
        executes
    }

    fn add_executed(&self, refs: &[PreparedRef<'_>], executes: &mut Executes) {
        for it in refs {
            match it.action {
                PreparedAction::Execute => {
                    let named = self.names.get(it.name.as_bytes());
                    let is_new = |named: &&Name| {
                        let mut others = executes.named.iter();
                        !others.any(|it| Arc::ptr_eq(&it.statement, &named.statement))
                    };
                    let new = named.filter(is_new).cloned();
                    executes.named.extend(new);
                }
                PreparedAction::Prepare { body, .. } => {
                    let known = self.shared.known.lookup(body, self.lex_options());
                    let transaction = known.class.transaction;
                    // What can't be prepared does nothing.
                    if !transaction.begins() && !transaction.ends() {
                        executes.bodies.push(known);
                    }
                }
                PreparedAction::Deallocate => {}
            }
        }
    }

    /// Notes what the text executes that is about to be sent, by a Bind or as a query.
    pub(super) fn note_executed(
        &mut self,
        executes: &Executes,
        is_bind: bool,
        gather: &mut Gather,
    ) -> Result<Execution, End> {
        let named = executes.named.iter().map(|it| &it.statement.known);
        let all: Vec<_> = named.chain(&executes.bodies).collect();
        for known in &all {
            if let Some(refusal) = self.pin(known.pins, Some(known)) {
                return Ok(Execution::Refused(refusal));
            }
            if self.awaits_numbers(Some(known), is_bind, gather) {
                return Ok(Execution::Awaited);
            }
        }
        if executes.is_unseen && self.awaits_numbers(None, is_bind, gather) {
            return Ok(Execution::Awaited);
        }
        for known in all {
            self.note(known)?;
            self.take_numbers(Some(known));
        }
        if executes.is_unseen {
            self.rereads = Rereads::ALL;
            self.note_opaque();
            self.take_numbers(None);
        }
        Ok(Execution::Noted)
    }

    /// Sees to what a Bind of the statement `name` needs ahead of it. Breaks off if it is refused, which is done (true), or
    /// has to wait for answers.
    pub(super) fn begin_bind(
        &mut self,
        frame: Frame<'_>,
        name: &[u8],
        gather: &mut Gather,
    ) -> Result<ControlFlow<bool>, End> {
        Ok(match self.see_to_prepared(name, gather)? {
            Execution::Noted if !self.bind_awaits_numbers(name, gather) => {
                ControlFlow::Continue(())
            }
            Execution::Noted | Execution::Awaited => ControlFlow::Break(false),
            Execution::Refused(refusal) => {
                let named = self.names.get(name);
                self.bound = named.map(|named| Arc::clone(&named.statement));
                self.refuse_step(frame, refusal, gather);
                ControlFlow::Break(true)
            }
        })
    }

    /// Sees to what a Bind of the statement `name` needs if its own text names prepared statements.
    fn see_to_prepared(&mut self, name: &[u8], gather: &mut Gather) -> Result<Execution, End> {
        let named = self.names.get(name).map(|named| &named.statement);
        let names_some = |it: &Arc<Prepared>| {
            it.known.prepared != PreparedUse::None || self.may_run_by_name(it.text(), &it.known)
        };
        let Some(statement) = named.filter(|it| names_some(it)).cloned() else {
            return Ok(Execution::Noted);
        };
        if !self.step_prepared(statement.text(), &statement.known, gather) {
            return Ok(Execution::Awaited);
        }
        if statement.known.prepared == PreparedUse::None {
            return Ok(Execution::Noted);
        }
        let refs = details(statement.text(), self.lex_options()).prepared;
        let executes = self.executes(&refs);
        self.note_executed(&executes, true, gather)
    }
}
