//! Getting a backend, making it this session's, giving it back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::reply;
use super::session::{End, Phase, Session};
use crate::config::model::PoolMode;
use crate::error::{SqlState, UserFacing};
use crate::net::buffer::Gather;
use crate::pool::Lease;
use crate::pool::reset::{self, Residue};
use crate::pool::waiter::CheckoutError;
use crate::routing::reason::Reason;
use crate::session::login;
use crate::session::mirror::Mirror;
use crate::session::plan::{self, Pace};
use crate::session::settings::Row;
use crate::sql::reading::Rereads;
use crate::sql::state::PinSet;
use crate::wire::backend::TransactionStatus;
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frontend;

/// Marks the question about the session's state among pgweir's own statements.
pub(super) const QUESTION: u64 = u64::MAX;

impl Session {
    /// Gets a backend for the statement in front, or queues for one. True if there is one now and the client's bytes
    /// may follow.
    pub(super) fn check_out(&mut self, input: &[u8], gather: &mut Gather) -> bool {
        self.refresh();
        match self.check_out_for_read(input, gather) {
            Some(got) => got,
            None => self.check_out_primary(gather),
        }
    }

    /// The same on the primary.
    pub(super) fn check_out_primary(&mut self, gather: &mut Gather) -> bool {
        let lease = self.take_aside().or_else(|| self.pool.try_checkout());
        if let Some(lease) = lease {
            self.begin(lease, gather)
        } else {
            self.enter_queue();
            if self.pool.is_headless() {
                self.count_route(Reason::Held);
            } else {
                self.note_asked();
            }
            self.pool.enqueue_client(&self.entry.waiter);
            false
        }
    }

    /// Begins to wait for a backend, or goes on with it in another queue.
    pub(super) fn enter_queue(&mut self) {
        self.enter(Phase::Waiting);
        let before = self
            .rerun
            .as_mut()
            .and_then(|rerun| rerun.queued_since.take());
        self.notified_waiting &= before.is_some();
        self.since = before.unwrap_or(self.now);
    }

    /// What has been waited and counted is part of one wait, whichever queue comes next.
    pub(super) fn note_waiting_on(&mut self) {
        let (since, now) = (self.since, self.now);
        let rerun = self.rerun_mut();
        (rerun.queued_since, rerun.queue_counted) = (Some(since), Some(now));
    }

    /// Goes on with what is in the inbox, the first of which may have to wait in another queue.
    pub(super) fn go_on_waiting(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let gone_on = self.process_inbox(cx);
        if let Some(rerun) = &mut self.rerun {
            rerun.queued_since = None;
        }
        gone_on
    }

    /// Takes the backend that was waited for.
    pub(super) fn poll_granted(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.phase != Phase::Waiting {
            return Ok(false);
        }
        let Poll::Ready(outcome) = self.entry.waiter.poll(cx) else {
            return Ok(false);
        };
        let waited = self.count_wait();
        match outcome {
            Ok(lease) => {
                self.metering.waited(waited);
                let mut gather = Gather::take();
                self.take_granted(lease, &mut gather);
                self.send_to_server(cx, &mut gather, &[]);
                gather.give();
            }
            Err(error) if self.goes_elsewhere(&error) => self.metering.waited(waited),
            Err(_) if self.is_settling() => return Err(self.unsettled()),
            Err(_) if self.is_replaying() => {
                self.stop_waiting();
                self.end_pause();
                self.fall_back(false, cx)?;
            }
            Err(error) => {
                // A client whose waiting was ended from outside still has its place in the queue.
                self.stop_waiting();
                self.end_pause();
                if self.lease.is_none() {
                    self.enter(Phase::Idle);
                }
                self.metering.waited(waited);
                self.refuse(&error.report(), cx)?;
            }
        }
        self.go_on_waiting(cx)?;
        Ok(true)
    }

    /// Counts the time for which the client has stood in a queue, however that ends.
    pub(super) fn count_wait(&self) -> Duration {
        let counted = self.rerun.as_ref().and_then(|rerun| rerun.queue_counted);
        let from = counted.map_or(self.since, |counted| counted.max(self.since));
        let waited = self.now.duration_since(from);
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        let counters = &self.pool.counters;
        counters.wait_micros.fetch_add(micros, Ordering::Relaxed);
        waited
    }

    /// Has the session ask anew where it waited for a replica in vain; `error` says why. False if it did not wait for
    /// one, or was told to stop waiting.
    fn goes_elsewhere(&mut self, error: &CheckoutError) -> bool {
        let queue = self
            .routes
            .as_ref()
            .and_then(|routes| routes.queue.as_ref());
        match queue {
            Some((pool, place)) if !matches!(error, CheckoutError::Canceled) => {
                pool.withdraw(&self.entry.waiter);
                let place = *place;
                self.ask_again(place);
                true
            }
            _ => false,
        }
    }

    /// Leaves the queue; what was waited for is not run.
    pub(super) fn stop_waiting(&mut self) {
        self.queue().withdraw(&self.entry.waiter);
        if let Some(routes) = &mut self.routes {
            routes.queue = None;
            routes.trial = None;
            routes.patience = None;
            routes.reopen = None;
            routes.avoid = 0;
        }
        self.in_transaction = false;
    }

    /// Makes `lease` this session's: adds the messages that bring it to the session's settings. False if their answer
    /// must be awaited.
    pub(super) fn begin(&mut self, lease: Lease, gather: &mut Gather) -> bool {
        self.rest_rerun();
        self.in_transaction = false;
        self.forget_own_cancel();
        self.ended_pins = PinSet::EMPTY;
        self.sequences.begin();
        self.transaction_since = self.now;
        match &lease.pool().key.node {
            None => self.metering.runs_on_primary(),
            Some(node) => self
                .metering
                .runs_on(node, &self.shared.known.queries.names),
        }
        self.note_lease_of_replay(&lease);
        lease.identity.used(self.now);
        self.lease = Some(lease);
        self.pool
            .counters
            .assignments
            .fetch_add(1, Ordering::Relaxed);
        if self.ask_first(gather) {
            self.enter(Phase::Planning);
            return false;
        }
        self.prepare(gather)
    }

    /// Brings the backend to the session's settings; see [`Self::begin`].
    pub(super) fn prepare(&mut self, gather: &mut Gather) -> bool {
        let awaited = self.plan(gather) == Pace::Awaited;
        if !awaited {
            self.planning.succeeded();
        }
        self.reopen(gather);
        self.open_to_fail(gather);
        if self.in_transaction {
            // The journal would begin in its midst.
            self.give_up_rerun();
        }
        self.enter(if awaited {
            Phase::Planning
        } else {
            Phase::Active
        });
        !awaited
    }

    /// Adds the messages that bring the backend, at rest and outside a transaction, to the session's settings.
    pub(super) fn plan(&mut self, gather: &mut Gather) -> Pace {
        let Some(lease) = &mut self.lease else {
            return Pace::None;
        };
        let want = self.settings.current();
        let is_foreign = |session| session != self.entry.pid.0;
        let how = plan::How {
            order: self.planning.order,
            is_foreign: lease.mirror.unknown_to.is_some_and(is_foreign),
            connect_query: self.effective.pool.connect_query.as_deref(),
        };
        if !plan::is_due(&lease.mirror, want, how) {
            reply::tell_changes(&mut self.told, &mut lease.mirror.reported, &mut self.outbox);
            let identity = Arc::clone(&lease.identity);
            if self.entry.set_running(Arc::clone(&identity)) {
                self.cancel_late(&identity);
            }
            return Pace::None;
        }
        let mut text = Vec::new();
        let pace = plan::onto(&mut lease.mirror, want, how, &mut text);
        gather.own(|out| frontend::put_query(out, &text));
        lease.expect.push(Owed::new(Request::Query, For::Plan));
        // A cancel request that hit the plan would have the client's statement run with other settings.
        self.entry.set_running_soon();
        pace
    }

    /// Puts startup values back that were reset, inside an exchange.
    pub(super) fn restore(&mut self, to: For, gather: &mut Gather) {
        for text in self.settings.restore_texts() {
            self.run_own(&text, 0, to, gather);
        }
    }

    /// Adds the question what the transaction that ends here has set, if it may have set anything.
    pub(super) fn probe(&mut self, gather: &mut Gather) {
        // A question asked now would be read as the data of a COPY.
        if self.copies_in {
            return;
        }
        self.leave_channels(gather);
        if !self.settings.is_touched() {
            return;
        }
        if self.settings.restores() {
            // Not by a simple query, which would end an unnamed portal that the client may go on with.
            self.restore(For::Probe, gather);
            self.settings.restored();
            gather.own(|out| out.extend_from_slice(&frontend::SYNC_FRAME));
            self.owe(Owed::new(Request::Sync, For::Probe));
        }
        if self.in_transaction {
            return;
        }
        let Some(lease) = &mut self.lease else {
            return;
        };
        let Some(probe) = self.settings.probe(lease.mirror.login_role.is_some()) else {
            return;
        };
        gather.own(|out| frontend::put_query(out, &probe.text));
        lease.expect.push(Owed {
            statement: QUESTION,
            ..Owed::new(Request::Query, For::Probe)
        });
        lease.mirror.unnamed = None;
    }

    /// What was learnt is what the backend has. As a rule that is what the session has, and the two share it.
    pub(super) fn reflect(&self, mirror: &mut Mirror, learnt: &[Row]) {
        if let Some(role) = login::role(learnt) {
            mirror.login_role = Some(role.into_owned().into());
        }
        let login = mirror.login(&self.effective.login_user);
        let next = mirror.settings.with(learnt, login);
        let current = self.settings.current();
        mirror.settings = if next == **current {
            Arc::clone(current)
        } else {
            Arc::new(next)
        };
    }

    /// Everything that was sent is answered.
    fn end_exchange_under_way(&mut self, is_in_transaction: bool) {
        self.in_transaction = is_in_transaction;
        self.entry
            .prepared
            .store(self.names.len(), Ordering::Relaxed);
        self.copies_in = false;
        self.discards = false;
        self.deallocates = false;
        self.timed_out = false;
    }

    /// After the server has answered: goes on, asks what is still to be known, or gives the backend back.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        if !lease.expect.awaits_more() || lease.passing.remaining > 0 || lease.unsent_of_frame > 0 {
            return Ok(());
        }
        let is_at_rest = lease.expect.is_at_rest();
        let is_in_transaction = lease.status != TransactionStatus::Idle;
        let lease_is_lost = lease.identity.is_lost();
        self.note_heard();
        if self.is_settling() {
            return self.take_outcome(false, cx);
        }
        if !self.will_rerun() && self.replay_is_over() {
            return self.fall_back(false, cx);
        }
        if !is_at_rest {
            // The rest of an extended exchange, and above all its Sync, is the client's to send.
            self.since = self.now;
            return Ok(());
        }
        if self.failed_trial().is_some() {
            return self.run_elsewhere(cx);
        }
        if self.will_rerun() {
            return self.rerun_at_rest(cx);
        }
        self.end_exchange_under_way(is_in_transaction);
        if self.phase == Phase::Planning && self.takes_which() {
            return self.begin_behind_which(cx);
        }
        if self.phase == Phase::Planning {
            self.metering.planned(self.now.duration_since(self.since));
            self.planning.succeeded();
            // The client's bytes are still to be written.
            self.forget_written();
            self.enter(Phase::Active);
            return self.process_inbox(cx);
        }
        self.rereads.are_told();
        if self.in_transaction {
            // From here on the client is the one who is awaited.
            self.since = self.now;
            self.rest_rerun_inside();
            self.ask_id(cx);
            return Ok(());
        }
        self.transaction_since = self.now;
        self.rereads = Rereads::default();
        self.rest_rerun();
        self.metering.rests();
        self.note_rest();
        if lease_is_lost {
            self.left_with_backend();
        }
        self.settle_unseen(lease_is_lost);
        if self.settings.is_touched() || self.has_channels_to_leave() {
            if self.has_own_cancel() {
                // Its signal may hit whatever is sent before it is over.
                return Ok(());
            }
            let mut gather = Gather::take();
            // What was lent would be told as the client's.
            self.unlist(&mut gather);
            self.probe(&mut gather);
            self.send_to_server(cx, &mut gather, &[]);
            gather.give();
            return Ok(());
        }
        self.release();
        self.process_inbox(cx)
    }

    /// Gives the backend back, unless the session keeps it.
    pub(super) fn release(&mut self) {
        debug_assert!(!self.is_replaying(), "a transaction is replayed to its end");
        if self.leave_replica() {
            self.lease = None;
        }
        let keeps = !self.pins.is_empty() || self.effective.pool.pool_mode == PoolMode::Session;
        if keeps {
            self.short = None;
            self.since = self.now;
            self.prepared.lent = None;
            return;
        }
        self.entry.clear_running();
        let mut residue = self.pin_residue();
        if self.leaves_own(residue != Residue::None) && residue == Residue::None {
            residue = Residue::SessionState;
        }
        self.ended_pins = PinSet::EMPTY;
        // One that is lost is closed.
        let lease = self.lease.take();
        if let Some(lease) = lease.filter(|lease| !lease.identity.is_lost()) {
            let dialer = self.shared.pools.dialer.load();
            let limit = self.effective.timeouts.cancel_wait_timeout;
            let is_ready = !lease.identity.is_being_cancelled() && lease.is_clean();
            let is_clean = residue == Residue::None && is_ready;
            if is_clean && let Some(limit) = self.finds_numbers_again(&lease) {
                lease.set_aside(self.entry.serial(), limit);
            } else {
                reset::give_back(lease, residue, &dialer, limit);
            }
        }
        self.bound = None;
        self.short = None;
        self.names.forget_retired();
        self.forget_guess();
        self.look_for_unseen();
        self.enter(Phase::Idle);
    }

    /// Sends what was gathered to the backend, holding back what it does not take.
    pub(super) fn send_to_server(
        &mut self,
        cx: &mut Context<'_>,
        gather: &mut Gather,
        input: &[u8],
    ) {
        let Some(lease) = &mut self.lease else {
            return;
        };
        let backend = &mut **lease;
        if gather.is_empty() {
            return;
        }
        // Of TLS a part may be gone that is a request by itself.
        let may_be_refused = backend.outbox.is_empty() && !backend.stream.is_tls();
        // A failed write is not reported here: the server may have said why before it closed, and reading tells.
        let sent = backend.outbox.send(&mut backend.stream, cx, gather, input);
        self.note_written(sent.is_ok() || !may_be_refused);
    }

    /// Goes on without a backend that is lost, and nothing of the session with it.
    pub(super) fn release_lost(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.left_with_backend();
        self.forget_guess();
        self.release();
        self.process_inbox(cx)
    }

    /// The server has answered a question of pgweir's with an error.
    pub(super) fn fail_probe(&mut self, code: Option<SqlState>) {
        let probe = self.probe.get_or_insert_default();
        probe.failed = true;
        // A cancel request that the client meant for its own statement may have come late.
        probe.refused = code != Some(SqlState::QUERY_CANCELED);
    }

    pub(super) fn drop_backend(&mut self) {
        self.note_torn();
        self.entry.clear_running();
        self.lease = None;
    }
}
