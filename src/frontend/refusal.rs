//! Statements that pgweir refuses: the server is made to fail in their place.
//!
//! # Why not answer here
//! What stands before a refused statement may still be under way, and what stands behind it belongs to the same exchange
//! or transaction. A message that the server is sure to refuse fails in the right place, has the server skip what it
//! must, and leaves the transaction failed, as the server's own error would. Only its words are replaced. So a
//! transaction can't be committed without the statement that was refused.

use std::sync::Arc;

use super::inbound::Frame;
use super::session::Session;
use crate::error::{Report, SqlState};
use crate::net::buffer::Gather;
use crate::pool::Pool;
use crate::sql::known::Known;
use crate::sql::state::{PinReason, PinSet};
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend as f;

/// Fails when it is analysed, whatever the session's settings; in a failed transaction the server says 25P02 before it
/// comes to that, as it would of the statement this one stands for.
const FAILING: &[u8] = b"SELECT 'a statement refused by pgweir'::pg_catalog.int4";

/// What the server says of [`FAILING`].
const FAILURE: SqlState = SqlState(*b"22P02");

/// The failing statement is parsed under this name, which it never gets.
const NAME: &[u8] = b"pgweir refused";

/// Why a statement is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `on_session_state = "reject"`.
    SessionState(PinSet),
    /// What would bind the session to a replica, in a read-only transaction that can't be taken elsewhere any more.
    OnReplica(PinSet),
    /// What acts on a server rather than on its data, there too: which is called so.
    ActsOnReplica(Box<str>),
    /// What ends the transaction and goes on, there too.
    GoesOnOnReplica,
    /// `pg_listening_channels` in a transaction: what the backend would tell is not what the session listens on.
    ListeningChannels,
    /// `max_pinned`.
    TooManyPins { limit: usize },
    /// A Parse under the name of another statement of the session.
    NameTaken(Box<[u8]>),
    /// A transaction that was run again did not go as before: it fails with the error it had failed with.
    AsBefore(Box<Report>),
    /// DDL has changed what a prepared statement returns: see `stale`.
    Stale,
    /// A Bind with another number of parameters than its statement has, in a failed transaction, where the statement
    /// can't be given to a backend that lacks it.
    Miscounted {
        formats: u16,
        given: u16,
        expected: u16,
        name: Box<[u8]>,
    },
}

impl Refusal {
    fn report(&self, pool: &Pool) -> Report {
        match self {
            Self::TooManyPins { limit } => {
                let held = pool.pins.summary().unwrap_or_default();
                Report::error(
                    SqlState::TOO_MANY_CONNECTIONS,
                    "too many sessions keep their server connection",
                )
                .detail(format!("Pool {}: {held}, and {limit} may be.", pool.key))
                .hint(
                    "Raise pgweir's pool.max_pinned or pool.max_size, set timeouts.pin_idle_timeout, or use a pool with \
                     pool_mode = \"session\". SHOW PINS tells who they are.",
                )
            }
            Self::AsBefore(report) => (**report).clone(),
            Self::NameTaken(name) => Report::error(
                SqlState::DUPLICATE_PREPARED_STATEMENT,
                format!(
                    "prepared statement \"{}\" already exists",
                    String::from_utf8_lossy(name)
                ),
            ),
            Self::ListeningChannels => listening_channels(),
            // PostgreSQL's own words.
            Self::Stale => Report::error(
                SqlState::FEATURE_NOT_SUPPORTED,
                "cached plan must not change result type",
            ),
            Self::Miscounted { formats, given, .. } if *formats > 1 && formats != given => {
                let message =
                    format!("bind message has {formats} parameter formats but {given} parameters");
                Report::error(SqlState::PROTOCOL_VIOLATION, message)
            }
            Self::Miscounted {
                given,
                expected,
                name,
                ..
            } => Report::error(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {given} parameters, but prepared statement \"{}\" requires {expected}",
                    String::from_utf8_lossy(name)
                ),
            ),
            Self::OnReplica(pins) => {
                let kinds: Vec<&str> = pins.iter().map(PinReason::describe).collect();
                on_replica(&format!(
                    "session state is not supported on a replica: {}",
                    kinds.join(", ")
                ))
            }
            Self::ActsOnReplica(name) => {
                on_replica(&format!("{name}() is not supported on a replica"))
            }
            Self::GoesOnOnReplica => on_replica(
                "a string that ends a transaction and goes on is not supported on a replica",
            ),
            Self::SessionState(pins) => {
                let kinds: Vec<&str> = pins.iter().map(PinReason::describe).collect();
                Report::error(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    format!("session state is not supported here: {}", kinds.join(", ")),
                )
                .detail("Server connections are shared, and this would bind one to the session.")
                .hint(
                    "Set pgweir's pool.on_session_state = \"pin\", or use a pool with pool_mode = \"session\".",
                )
            }
        }
    }
}

fn on_replica(message: &str) -> Report {
    Report::error(SqlState::FEATURE_NOT_SUPPORTED, message.to_owned())
        .detail("The read-only transaction runs on a replica.")
        .hint("Put /* pgweir: primary */ into the statement that begins the transaction.")
}

fn listening_channels() -> Report {
    Report::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        "pg_listening_channels() is not supported in a transaction of a session that listens",
    )
    .detail("The channels are listened to by a connection that sessions share.")
    .hint("Call it outside a transaction, or set pgweir's pool.shared_listener = false.")
}

impl Session {
    /// Has the server fail in place of a Query or `FunctionCall`.
    pub(super) fn refuse_query(
        &mut self,
        frame: Frame<'_>,
        known: Option<Arc<Known>>,
        refusal: Refusal,
        gather: &mut Gather,
    ) {
        let known = known.unwrap_or_else(|| Arc::clone(self.shared.known.unread()));
        self.start(known);
        gather.own(|out| f::put_query(out, FAILING));
        if frame.tag == f::QUERY {
            self.names.forget_unnamed();
        }
        if let Some(lease) = &mut self.lease {
            lease.mirror.unnamed = None;
        }
        self.owe_refusal(Request::Query, frame, refusal);
    }

    /// Has the server fail in place of a Parse or Bind.
    pub(super) fn refuse_step(&mut self, frame: Frame<'_>, refusal: Refusal, gather: &mut Gather) {
        let body = [FAILING, b"\0\0\0"].concat();
        gather.own(|out| f::put_parse(out, NAME, &body));
        self.owe_refusal(Request::Parse, frame, refusal);
    }

    /// The oldest one is done with.
    pub(super) fn pop_refusal(&mut self) -> Option<Refusal> {
        let refusals = self.refusals.as_mut()?;
        let refusal = refusals.pop_front();
        if refusals.is_empty() {
            self.refusals = None;
        }
        refusal
    }

    fn owe_refusal(&mut self, request: Request, frame: Frame<'_>, refusal: Refusal) {
        self.refusals.get_or_insert_default().push_back(refusal);
        self.prepared.is_revived = false;
        self.owe(Owed::new(request, For::Refusal));
        self.dropping = frame.missing;
    }

    /// The words for an error of the server that a refusal was behind; `None` if it is another error, which says more.
    /// That of a step is taken off with the step, which the server skips.
    pub(super) fn take_refusal(&mut self, owed: Owed, code: Option<SqlState>) -> Option<Report> {
        let refusal = if owed.request == Request::Query {
            self.pop_refusal()?
        } else {
            self.refusals.as_ref()?.front()?.clone()
        };
        let is_checked_first = match refusal {
            Refusal::Miscounted { .. } => true,
            // A text that may run in a failed transaction was parsed ahead of this.
            Refusal::NameTaken(_) => code == Some(SqlState::IN_FAILED_SQL_TRANSACTION),
            _ => false,
        };
        if code != Some(FAILURE) && !is_checked_first {
            return None;
        }
        let report = refusal.report(&self.pool);
        if matches!(
            refusal,
            Refusal::SessionState(_) | Refusal::TooManyPins { .. }
        ) {
            self.log_error(&report);
        }
        Some(report)
    }

    /// A line for an error that pgweir itself gives the client, who stays.
    pub(super) fn log_error(&self, report: &Report) {
        if self.shared.config.load().log.log_pooler_errors {
            let (user, database) = (&*self.entry.user, &*self.entry.database);
            tracing::info!(
                user,
                database,
                code = report.code.as_str(),
                "refused a statement: {}",
                report.message
            );
        }
    }

    /// Drops the rest of a frame that was refused before it was there as a whole.
    pub(super) fn drop_rest(&mut self, input: &[u8]) -> usize {
        let count = self.dropping.min(input.len());
        self.dropping -= count;
        count
    }
}
