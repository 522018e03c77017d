//! Making a connection clean again, or closing it.
//!
//! A client may leave at any point: mid-query, mid-COPY, in the middle of a message, in a transaction. What can be
//! ended in an orderly way is (cancel, drain, `CopyFail`, ROLLBACK, DISCARD ALL); what can't is closed. Either way the
//! connection goes to nobody before it is proved clean.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::backend::cancel;
use crate::backend::connect::Dialer;
use crate::backend::connection::Backend;
use crate::backend::query;
use crate::backend::receive::{self, Discard};
use crate::session::sequences::Numbers;
use crate::tasks;
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{Copy, For, Owed, Request};
use crate::wire::frontend;

use super::lease::Lease;

/// Whether the session left more behind than settings and prepared statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residue {
    None,
    /// The pool's mode gives a client its own session: everything is discarded.
    SessionState,
    /// The session was pinned by temporary tables, advisory locks, LISTEN, loaded libraries …
    ///
    /// # Why the connection is closed
    /// `DISCARD ALL` leaves traces that another client could see: the temporary schema, loaded libraries, the caches
    /// of extensions, the seed of `random()`. Closing it costs what the client's own connection would have cost.
    Pinned,
}

/// How long a cancel request has to end a statement before another follows.
///
/// # Why
/// A backend that has not begun the statement when the signal comes, because it had not read it yet, ignores it.
const CANCEL_AGAIN: Duration = Duration::from_millis(500);

/// Gives a lease back: at once if the connection is clean, else by a task that cleans it within `limit`.
pub fn give_back(mut lease: Lease, residue: Residue, dialer: &Arc<Dialer>, limit: Duration) {
    if residue == Residue::None && !lease.identity.is_being_cancelled() && lease.is_clean() {
        lease.checkin();
        return;
    }
    if residue == Residue::Pinned && lease.expect.is_at_rest() {
        drop(lease);
        return;
    }
    let cleaning = lease.pool().limits.cleaning();
    // A half-sent message can't be ended, and COPY BOTH ends only with the connection.
    if lease.unsent_of_frame > 0 || lease.expect.copy() == Copy::Both {
        let dialer = Arc::clone(dialer);
        tasks::spawn("cancel and close", async move {
            let _ = cancel::cancel(Arc::clone(&lease.identity), dialer, limit).await;
            drop(lease);
            drop(cleaning);
        });
        return;
    }
    let dialer = Arc::clone(dialer);
    if residue == Residue::Pinned {
        tasks::spawn("end and close", async move {
            let _ = tokio::time::timeout(limit, end(&mut lease, &dialer, limit)).await;
            drop(lease);
            drop(cleaning);
        });
        return;
    }
    tasks::spawn("clean server connection", async move {
        let cleaned = tokio::time::timeout(limit, clean(lease, residue, dialer, limit)).await;
        match cleaned {
            Ok(Ok(lease)) => lease.checkin(),
            Ok(Err(error)) => {
                tracing::debug!(%error, "closed a server connection that could not be cleaned");
            }
            Err(_) => tracing::debug!(
                "closed a server connection that was not clean within cancel_wait_timeout"
            ),
        }
        drop(cleaning);
    });
}

/// Ends what is under way.
async fn end(lease: &mut Lease, dialer: &Arc<Dialer>, limit: Duration) -> io::Result<()> {
    let mut is_cancelled = false;
    if !lease.expect.is_at_rest() && lease.expect.copy() != Copy::In {
        is_cancelled = !lease.expect.awaits_more();
        if lease.expect.is_open() {
            roll_back_exchange(lease);
        }
    }
    drain(lease, is_cancelled, dialer, limit).await
}

async fn clean(
    mut lease: Lease,
    residue: Residue,
    dialer: Arc<Dialer>,
    limit: Duration,
) -> io::Result<Lease> {
    end(&mut lease, &dialer, limit).await?;
    lease.identity.cancels_done().await;
    if lease.status != TransactionStatus::Idle {
        query::on_backend(&mut lease, b"ROLLBACK")
            .await
            .map_err(io::Error::other)?;
    }
    if residue == Residue::SessionState {
        // What connect_query has set would be gone.
        if lease.pool().effective.load().pool.connect_query.is_some() {
            return Err(io::Error::other("connect_query would have to run again"));
        }
        query::on_backend(&mut lease, b"DISCARD ALL")
            .await
            .map_err(io::Error::other)?;
        lease.mirror.reset();
        lease.mirror.numbers = Numbers::default();
        take_login_role(&mut lease).await?;
    }
    if lease.is_clean() {
        Ok(lease)
    } else {
        Err(io::Error::other("not clean after ROLLBACK"))
    }
}

/// Gives a connection its login's role back, which DISCARD ALL leaves at `none` on servers before November 2024.
async fn take_login_role(lease: &mut Lease) -> io::Result<()> {
    if lease.mirror.login_role.as_deref() == Some(b"none") {
        return Ok(());
    }
    let rows = query::on_backend(lease, b"SELECT pg_catalog.set_config('role', NULL, false)")
        .await
        .map_err(io::Error::other)?;
    let role = rows.into_iter().flatten().next().flatten();
    // Another name is in whatever encoding the login has: the next question asks for its bytes.
    lease.mirror.login_role = role.filter(|role| role.is_ascii()).map(Into::into);
    Ok(())
}

/// Ends a COPY FROM STDIN, whose data nobody sends any more. A cancel request doesn't: the server waits for the data.
fn fail_copy(backend: &mut Backend) {
    let mut fail = Vec::new();
    frontend::put_copy_fail(&mut fail, b"client disconnected");
    let request = backend.expect.front().map(|owed| owed.request);
    backend.outbox.push(&fail);
    backend
        .expect
        .push(Owed::new(Request::CopyEnd, For::Client));
    // In an extended exchange only a Sync ends the error, and the server ignores those sent before.
    if request == Some(Request::Execute) {
        sync(backend);
    }
}

/// Ends an extended exchange whose Sync the client did not send. A Sync alone would commit what the client, who is
/// gone, did not ask to be committed; a simple ROLLBACK would be skipped if the server skips.
fn roll_back_exchange(backend: &mut Backend) {
    let mut batch = Vec::new();
    frontend::put_parse(&mut batch, b"", b"ROLLBACK\0\0\0");
    frontend::put_bind_head(&mut batch, b"", b"", 6);
    batch.extend_from_slice(&[0; 6]);
    frontend::put_execute(&mut batch, b"");
    backend.outbox.push(&batch);
    backend.mirror.unnamed = None;
    for request in [Request::Parse, Request::Bind, Request::Execute] {
        backend.expect.push(Owed::new(request, For::Client));
    }
    sync(backend);
}

/// Asks for the end of an extended exchange.
fn sync(backend: &mut Backend) {
    backend.outbox.push(&frontend::SYNC_FRAME);
    backend.expect.push(Owed::new(Request::Sync, For::Client));
}

/// Reads and drops what the server still owes; what runs is cancelled if `is_cancelled`, as often as it takes.
async fn drain(
    lease: &mut Lease,
    is_cancelled: bool,
    dialer: &Arc<Dialer>,
    limit: Duration,
) -> io::Result<()> {
    loop {
        if is_cancelled && !lease.identity.is_being_cancelled() {
            tasks::spawn(
                "cancel for a client that left",
                cancel::cancel(Arc::clone(&lease.identity), Arc::clone(dialer), limit),
            );
        }
        let drained = poll_fn(|cx| poll_drain(lease, cx));
        match tokio::time::timeout(CANCEL_AGAIN, drained).await {
            Ok(drained) => return drained,
            Err(_) if !is_cancelled => {}
            Err(_) => tracing::debug!("a statement goes on after a cancel request"),
        }
    }
}

/// Reads and drops what the server still owes.
fn poll_drain(lease: &mut Lease, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let backend = &mut **lease;
    while !backend.is_at_rest() {
        if backend.expect.copy() == Copy::In {
            fail_copy(backend);
        }
        if !backend.outbox.is_empty()
            && let Poll::Ready(sent) = backend.outbox.poll_send(&mut backend.stream, cx)
        {
            sent?;
        }
        ready!(receive::poll_receive(backend, cx, &mut Discard))?;
    }
    Poll::Ready(Ok(()))
}
