//! The end of a session: what the client is told, and what becomes of its backend.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::ready;
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::reply;
use super::session::{End, Phase, Session};
use crate::config::model::PoolMode;
use crate::pool::Lease;
use crate::pool::reset::{self, Residue};
use crate::wire::expect::For;

/// How long the last words to a client may take.
const FAREWELL: Duration = Duration::from_secs(1);

impl Session {
    fn log_end(&self, end: &End) {
        if !self.shared.config.load().log.log_disconnections {
            return;
        }
        let reason = match end {
            End::ClientGone => "client closed the connection",
            End::Fatal(report) => report.message.as_ref(),
            End::ServerGone => "the server ended the session",
        };
        let entry = &self.entry;
        let (user, database) = (&*entry.user, &*entry.database);
        let seconds = entry.connected().elapsed().as_secs();
        tracing::info!(
            user,
            database,
            client = %entry.peer,
            seconds,
            reason,
            "client disconnected"
        );
    }

    /// Gives the backend back. False if the client is to be told nothing more.
    pub(super) fn leave(&mut self, end: End) -> bool {
        self.entry.clear_running();
        // What was not answered may have been done. Who looks for it is to see it.
        self.note_acknowledged();
        let end = match end {
            End::Fatal(report) => End::Fatal(Box::new(self.with_outcome(*report))),
            end => end,
        };
        self.abandon_statement(&end);
        if self.phase == Phase::Waiting {
            self.queue().withdraw(&self.entry.waiter);
        }
        self.note_torn();
        self.leave_lane();
        self.log_end(&end);
        self.pinned = None;
        self.leave_aside();
        if let Some(lease) = self.lease.take() {
            self.part_with(lease, &end);
        }
        match end {
            End::ClientGone => return false,
            End::Fatal(report) => {
                if self.shared.config.load().log.log_pooler_errors {
                    let (user, database) = (&*self.entry.user, &*self.entry.database);
                    tracing::warn!(
                        user,
                        database,
                        code = report.code.as_str(),
                        "closing a client: {}",
                        report.message
                    );
                }
                if !self.torn {
                    reply::report(&mut self.outbox, &report);
                }
            }
            End::ServerGone => {}
        }
        true
    }

    /// Lets the client take its last words, and closes.
    pub(super) async fn part(mut self) {
        let farewell = poll_fn(|cx| {
            ready!(self.outbox.poll_send(&mut self.stream, cx))?;
            Pin::new(&mut self.stream).poll_shutdown(cx)
        });
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// Notes whether the session parts with its backend amid a message to the client.
    pub(super) fn note_torn(&mut self) {
        self.torn |= self.is_amid_message();
    }

    /// The client was sent the beginning of a message whose end is still to come from the server.
    pub(super) fn is_amid_message(&self) -> bool {
        let passing = self.lease.as_ref().map(|lease| &lease.passing);
        passing.is_some_and(|passing| passing.remaining > 0 && passing.to_client)
    }

    fn part_with(&self, lease: Lease, end: &End) {
        if matches!(end, End::ServerGone) {
            return;
        }
        let residue = if self.effective.pool.pool_mode == PoolMode::Session {
            Residue::SessionState
        } else if self.pin_residue() != Residue::None {
            self.pin_residue()
        } else if self.settings.is_touched()
            || self.unseen.may_have_left()
            || lease.expect.owes(For::Plan)
            || self.has_own_on(&lease)
            || self
                .listening
                .as_ref()
                .is_some_and(|it| it.touches_backend())
        {
            // Settings a statement under way may have changed are not in the mirror yet; those of a plan under way are.
            Residue::SessionState
        } else {
            Residue::None
        };
        let dialer = self.shared.pools.dialer.load();
        reset::give_back(
            lease,
            residue,
            &dialer,
            self.effective.timeouts.cancel_wait_timeout,
        );
    }
}
