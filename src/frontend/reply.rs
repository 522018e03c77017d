//! What pgweir itself says to a client.

use std::sync::Arc;

use crate::error::{Report, SqlState};
use crate::net::buffer::{Outbox, give_storage, take_storage};
use crate::session::mirror::Reported;
use crate::wire::backend::{self, TransactionStatus};

fn put(outbox: &mut Outbox, write: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = take_storage();
    write(&mut bytes);
    outbox.push(&bytes);
    give_storage(bytes);
}

/// An error, warning or notice.
pub(super) fn report(outbox: &mut Outbox, report: &Report) {
    put(outbox, |out| backend::put_report(out, report));
}

/// `ReadyForQuery` outside a transaction.
pub(super) fn ready(outbox: &mut Outbox) {
    put(outbox, |out| {
        backend::put_ready_for_query(out, TransactionStatus::Idle);
    });
}

/// The end of a session whose statement was not to run with other settings than its own; `error` is the server's.
pub(super) fn not_restored(error: &[u8]) -> Report {
    let reason = backend::error_field(error, b'M').unwrap_or_default();
    let reason = String::from_utf8_lossy(reason);
    let message = "could not prepare the server connection for the session";
    Report::fatal(SqlState::CONNECTION_FAILURE, message)
        .detail(format!("The server said: {reason}"))
}

/// Tells the client which reported values differ from those it knows.
pub(super) fn tell_changes(told: &mut Arc<Reported>, now: &mut Arc<Reported>, outbox: &mut Outbox) {
    if !Reported::unify(told, now) {
        put(outbox, |out| put_changes(told, now, out));
    }
}

/// As [`tell_changes`], into a buffer.
pub(super) fn put_changes(told: &mut Arc<Reported>, now: &Arc<Reported>, out: &mut Vec<u8>) {
    if Arc::ptr_eq(told, now) {
        return;
    }
    for (name, value) in now
        .iter()
        .filter(|(name, value)| told.get(name) != Some(*value))
    {
        backend::put_parameter_status(out, name, value);
    }
    *told = Arc::clone(now);
}

/// PostgreSQL's own words for a statement that was cancelled.
pub(super) fn canceled() -> Report {
    Report::error(
        SqlState::QUERY_CANCELED,
        "canceling statement due to user request",
    )
}

/// PostgreSQL's own words for a shutdown.
pub(super) fn shutdown() -> Report {
    Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
}
