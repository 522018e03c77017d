//! Statements that DDL has changed since the client was told what they return.
//!
//! PostgreSQL refuses such a statement at Bind, for as long as it is not parsed again (0A000). Through pgweir the backend
//! may have parsed it before or after that DDL, for this session or for another. What counts is what *this* client was
//! told: if the backend's statement has another shape it is parsed anew, and if that doesn't bring the shape back either,
//! the client gets PostgreSQL's error. A client that asks for a description in the same exchange is told the new one
//! instead, and goes on.
//!
//! # Why the answer is awaited
//! Behind a Bind there is an Execute, whose effects could not be taken back. It costs one round trip where a backend
//! gets a statement it lacked, for clients that remember descriptions (JDBC, asyncpg); those that ask each time (libpq)
//! don't wait.

use std::sync::Arc;

use super::inbound::Frame;
use super::refusal::Refusal;
use super::session::Session;
use crate::net::buffer::Gather;
use crate::session::shape::{Description, Shape};
use crate::session::statements::Named;
use crate::sql::classify::StatementKind;
use crate::sql::known::Known;
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frame::Header;
use crate::wire::frontend::{self as f, Bind, Target};
use crate::wire::limits::WHOLE_FRAME_MAX;

/// Whether a statement may run on the backend for a client that was told of it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreement {
    Yes,
    /// The server was asked.
    Awaited,
    /// It would return something else.
    No,
}

/// Whether a statement's result may change under DDL. What a utility statement returns depends on what it is about: it is
/// made anew at each execution, without complaint.
fn has_fixed_result(known: &Known) -> bool {
    use StatementKind as K;
    matches!(
        known.class.only(),
        Some(K::Select | K::Values | K::Table | K::Insert | K::Update | K::Delete | K::Merge)
    )
}

/// Whether the exchange goes on with an Execute.
fn executes(mut behind: &[u8]) -> bool {
    while let Ok(Some(header)) = Header::peek(behind, WHOLE_FRAME_MAX) {
        match header.tag {
            f::EXECUTE => return true,
            f::SYNC | f::QUERY | f::FUNCTION_CALL => return false,
            _ => {}
        }
        let Some(rest) = behind.get(header.len..) else {
            break;
        };
        behind = rest;
    }
    false
}

/// Whether the client asks for the description of `portal` before it executes anything.
fn describes(mut behind: &[u8], portal: &[u8]) -> bool {
    while let Ok(Some(header)) = Header::peek(behind, WHOLE_FRAME_MAX) {
        let Some((frame, rest)) = behind.split_at_checked(header.len) else {
            return false;
        };
        match header.tag {
            f::DESCRIBE => {
                let target = Target::read(header.tag, &frame[crate::wire::frame::HEADER..]);
                if target == Ok(Target::Portal(portal)) {
                    return true;
                }
            }
            f::PARSE | f::BIND | f::CLOSE => {}
            _ => return false,
        }
        behind = rest;
    }
    false
}

impl Session {
    /// Whether `bind` may go to the backend as far as the shape of its statement is concerned.
    pub(super) fn agree(
        &mut self,
        bind: Bind<'_>,
        named: &Named<Arc<Known>>,
        behind: &[u8],
        gather: &mut Gather,
    ) -> Agreement {
        let Some(lease) = &mut self.lease else {
            return Agreement::Yes;
        };
        let given = lease.mirror.shape(named.statement.id);
        if given.is_some_and(|given| Arc::ptr_eq(given, &named.shape)) {
            return Agreement::Yes;
        }
        let given = given.cloned();
        if lease.expect.skips_the_next() {
            return Agreement::Yes;
        }
        let is_told = named.shape.is_known() || lease.mirror.awaited_shapes.contains(&named.shape);
        let given = if let Some(given) = given {
            given
        } else {
            self.prepared.reparsed = named.statement.id;
            self.give_statement(&named.statement, Some(&named.shape), For::Reparse, gather)
        };
        if !is_told || !has_fixed_result(&named.statement.known) || describes(behind, bind.portal) {
            self.names.tell(bind.statement, &given);
            return Agreement::Yes;
        }
        self.compare(bind, named, &given, gather)
    }

    fn compare(
        &mut self,
        bind: Bind<'_>,
        named: &Named<Arc<Known>>,
        given: &Arc<Shape>,
        gather: &mut Gather,
    ) -> Agreement {
        let agrees = named.shape.agrees(given);
        if agrees == Some(true) {
            self.names.tell(bind.statement, given);
            return Agreement::Yes;
        }
        let is_awaited = self.lease.as_ref().is_some_and(|lease| {
            let awaited = &lease.mirror.awaited_shapes;
            awaited.contains(given) || awaited.contains(&named.shape)
        });
        if !is_awaited {
            if self.prepared.reparsed == named.statement.id {
                return Agreement::No;
            }
            // The backend's may be the older one.
            self.prepared.reparsed = named.statement.id;
            self.give_statement(&named.statement, Some(&named.shape), For::Reparse, gather);
        }
        self.held_up = true;
        gather.own(|out| out.extend_from_slice(&f::FLUSH_FRAME));
        Agreement::Awaited
    }

    /// Whether pgweir answers the Describe of a statement that the backend lacks from what it was told elsewhere. In a
    /// transaction, or ahead of one in the same exchange, a Parse would take a snapshot, which Describe does not, and a
    /// failed one refuses it.
    pub(super) fn describe_alone(&mut self, named: &Named<Arc<Known>>, behind: &[u8]) -> bool {
        let Some(lease) = &mut self.lease else {
            return false;
        };
        if lease.mirror.runs(named.statement.id) || lease.expect.skips_the_next() {
            return false;
        }
        let in_transaction = lease.status != TransactionStatus::Idle || self.in_transaction;
        if !in_transaction && !executes(behind) {
            return false;
        }
        let is_refused = |description: &&Arc<Description>| {
            description.returns_rows && lease.status == TransactionStatus::Failed
        };
        let described = named.shape.description();
        let described = described.filter(|it| it.messages.is_some() && !is_refused(it));
        let Some(description) = described else {
            return false;
        };
        let descriptions = self.prepared.descriptions.get_or_insert_default();
        descriptions.push_back(Arc::clone(description));
        self.owe(Owed::new(Request::DescribeStatement, For::Local));
        true
    }

    /// What the server would say of a Bind with another number of parameters than its statement has, which it checks
    /// before it says that the transaction has failed.
    pub(super) fn miscounts(
        &self,
        frame: Frame<'_>,
        bind: Bind<'_>,
        named: &Named<Arc<Known>>,
    ) -> Option<Refusal> {
        let lease = self.lease.as_ref()?;
        if lease.status != TransactionStatus::Failed || lease.mirror.runs(named.statement.id) {
            return None;
        }
        let expected = named.shape.description()?.parameters;
        let (formats, given) = f::parameter_counts(frame.payload.get(bind.head..)?)?;
        let fits = (formats < 2 || formats == given) && given == expected;
        (!fits).then(|| Refusal::Miscounted {
            formats,
            given,
            expected,
            name: bind.statement.into(),
        })
    }
}
