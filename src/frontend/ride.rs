//! Riding on a lane: a short read that runs behind those of other clients (see [`crate::pool::lane`]).
//!
//! The session keeps the bytes of the exchange in its inbox until the ride has ended, so that it can run them the
//! ordinary way if the lane sends it elsewhere.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::deadline::{Limit, earlier};
use super::session::{End, Phase, Session};
use crate::config::model::PoolMode;
use crate::error::SqlState;
use crate::pool::lane::seat::{Outcome, Request, Seat};
use crate::pool::lane::{Boarding, Short};
use crate::shared::Prepared;
use crate::sql::known::Known;
use crate::wire::frame::{HEADER, Header};
use crate::wire::frontend::{self as f, Bind, Target};
use crate::wire::limits::{OUTBOX_MAX, SMALL_MESSAGE_MAX};

/// A ride under way.
#[derive(Debug)]
pub(super) struct Riding {
    seat: Arc<Seat>,
    /// Bytes of the exchange, in front of the inbox.
    len: usize,
    /// Bytes of the answer so far.
    sent: usize,
    _short: Short,
}

/// One statement with all that belongs to it.
struct Exchange<'a> {
    request: Request,
    known: Arc<Known>,
    /// The messages, a Bind without its head.
    rest: &'a [u8],
    /// The statement to bind, and how many of the bytes belong to the Bind.
    bind: Option<(Arc<Prepared>, usize)>,
    received: usize,
}

impl Session {
    /// Lets `input` ride if it is one short read and others are under way. What is sent behind it waits in the inbox.
    pub(super) fn ride(&mut self, input: &[u8]) -> bool {
        self.looked_up = None;
        if self.lease.is_some() || self.phase != Phase::Idle || !self.may_ride() {
            return false;
        }
        let Some(exchange) = self.one_exchange(input) else {
            return false;
        };
        // A lane may send it elsewhere once it has run.
        let may_share = exchange.known.may_share && exchange.known.brevity.is_proved();
        let rides = may_share && !self.may_leave_unseen(&exchange.known);
        if may_share {
            self.look_for_unseen();
        }
        if !rides || self.is_never_again(&exchange.known) {
            self.looked_up = Some(exchange.known);
            return false;
        }
        self.short = None;
        let (short, is_busy) = self.pool.lanes.begin_short();
        if is_busy && self.board(&exchange) {
            self.limit_statement(&exchange.known, true);
            self.enter(Phase::Riding);
            self.riding = Some(Riding {
                seat: Arc::clone(self.entry.seat.get_or_init(Arc::default)),
                len: input.len(),
                sent: 0,
                _short: short,
            });
            if self.shared.tracer.is_on()
                && let Request::Query = exchange.request
                && let Ok(text) = f::query_text(&exchange.rest[HEADER..])
            {
                self.trace(text);
            }
            self.start_ride(exchange.known, exchange.received);
            return true;
        }
        self.short = Some(short);
        self.looked_up = Some(exchange.known);
        false
    }

    /// Nothing about the session is such that its next statement must run on its own.
    fn may_ride(&mut self) -> bool {
        let goes_alone = std::mem::take(&mut self.goes_alone);
        !goes_alone
            && !self.is_to_fail()
            && !self.is_replaying()
            && !self.skipping
            && self.dropping == 0
            && self.pins.is_empty()
            && self.listening.is_none()
            // Where there are replicas, they take the reads.
            && self.routes.is_none()
            && self.effective.pool.lanes > 0
            && !self.reads_from_replicas()
            && self.effective.pool.pool_mode != PoolMode::Session
            && self.outbox.is_empty()
            && self.names.is_settled()
            && !self.settings.is_touched()
    }

    /// `input` as one statement: a simple query, or Bind, Execute and Sync of a prepared one, and nothing behind it.
    fn one_exchange<'a>(&self, input: &'a [u8]) -> Option<Exchange<'a>> {
        let (first, behind) = take_frame(input)?;
        match first.tag {
            f::QUERY if behind.is_empty() => {
                let text = f::query_text(first.payload).ok()?;
                Some(Exchange {
                    request: Request::Query,
                    known: self.shared.known.lookup(text, self.lex_options()),
                    rest: input,
                    bind: None,
                    received: input.len(),
                })
            }
            f::BIND => {
                let bind = Bind::read(first.payload)?;
                let describes = bound_once(bind, behind)?;
                let named = self.names.get(bind.statement)?;
                let head = HEADER + bind.head;
                Some(Exchange {
                    request: Request::Prepared {
                        id: named.statement.id,
                        shape: Arc::clone(&named.shape),
                        describes,
                    },
                    known: Arc::clone(&named.statement.known),
                    rest: &input[head..],
                    bind: Some((
                        Arc::clone(&named.statement),
                        first.payload.len() - bind.head,
                    )),
                    received: input.len() - f::SYNC_FRAME.len(),
                })
            }
            _ => None,
        }
    }

    fn board(&self, exchange: &Exchange<'_>) -> bool {
        let boarding = Boarding {
            seat: self.entry.seat.get_or_init(Arc::default),
            settings: self.settings.current(),
            told: &self.told,
            pools: &self.shared.pools,
            request: exchange.request.clone(),
        };
        self.pool.board(boarding, |out| {
            if let Some((statement, rest_len)) = &exchange.bind {
                f::put_bind_head(out, b"", &statement.name, *rest_len);
            }
            out.extend_from_slice(exchange.rest);
        })
    }

    /// Passes on what the lane has brought. True if something moved.
    pub(super) fn poll_ride(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.outbox.len() >= OUTBOX_MAX {
            return Ok(false);
        }
        let Some(riding) = &mut self.riding else {
            return Ok(false);
        };
        let Riding { seat, sent, .. } = riding;
        let (outbox, before) = (&mut self.outbox, *sent);
        let outcome = seat.poll(cx, |bytes| {
            outbox.push(bytes);
            *sent += bytes.len();
        });
        let brought = *sent - before;
        let moved = brought > 0;
        if moved {
            self.metering.relayed(brought);
            self.metering.answered(self.now);
        }
        if let Poll::Ready(outcome) = outcome {
            self.end_ride(outcome, cx)?;
            return Ok(true);
        }
        if moved && let Poll::Ready(sent) = self.outbox.poll_send(&mut self.stream, cx) {
            sent?;
        }
        Ok(moved)
    }

    fn end_ride(&mut self, outcome: Outcome, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(riding) = self.riding.take() else {
            return Ok(());
        };
        match outcome {
            Outcome::Answered(answered) => {
                if let Poll::Ready(sent) = self.outbox.poll_send(&mut self.stream, cx) {
                    sent?;
                }
                self.end_ride_answered(&answered);
                self.inbox.consume(riding.len);
                self.timed_out = false;
                self.forget_runs();
                self.pool.lanes.counters.count_answered();
                self.enter(Phase::Idle);
            }
            Outcome::Elsewhere { was_slow } => {
                if riding.seat.sent().is_none() {
                    // It goes on waiting.
                    let waited = self.count_wait();
                    self.metering.waited(waited);
                    self.note_waiting_on();
                    self.notified_waiting = false;
                }
                self.forget_ride(was_slow);
                self.pool.lanes.counters.count_elsewhere();
                self.goes_alone = true;
                self.enter(Phase::Idle);
            }
            Outcome::Canceled => {
                let report = self.cancelled_ride();
                self.end_ride_failed(report.code);
                self.enter(Phase::Idle);
                self.turn_down(&report, cx)?;
            }
            // It is a read, and the client has seen nothing of its answer.
            Outcome::Broken if riding.sent == 0 && self.runs_after_ride() => {
                self.metering.abandon();
                self.entry.activity.rests();
                self.goes_alone = true;
                self.enter(Phase::Idle);
            }
            Outcome::Broken => {
                // Where the answer was cut nobody knows.
                self.torn = true;
                self.end_ride_failed(SqlState::CONNECTION_FAILURE);
                return Err(End::ServerGone);
            }
        }
        self.go_on_waiting(cx)
    }

    /// When the statement that rides is over its time: in the lane's queue that of all who wait, and from when it was
    /// sent on its own.
    pub(super) fn ride_deadline(&self) -> Option<(Instant, Limit)> {
        let limit = self.query_limit().filter(|limit| !limit.is_zero());
        let sent = self.riding.as_ref().and_then(|riding| riding.seat.sent());
        if let Some(sent) = sent {
            return limit.map(|limit| (sent + limit, Limit::Query));
        }
        let wait = self.effective.timeouts.query_wait_timeout;
        let wait = wait.map(|wait| (self.since + wait, Limit::RideWait));
        // The lane tells nobody that it has sent: it is never late to look once in every such time.
        let look = limit.map(|limit| {
            let waited = self.now.duration_since(self.since).as_nanos() % limit.as_nanos();
            let passed = Duration::from_nanos(u64::try_from(waited).unwrap_or(0));
            (self.now + limit.saturating_sub(passed), Limit::RideLook)
        });
        earlier(wait, look)
    }

    /// The statement has waited in the lane's queue for as long as it may: it leaves it, with its time used up.
    pub(super) fn leave_lane_unsent(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let riding = self.riding.as_ref();
        if riding.is_some_and(|riding| riding.seat.withdraw_unsent()) {
            return self.end_ride(Outcome::Elsewhere { was_slow: false }, cx);
        }
        Ok(())
    }

    /// Has the statement end that rides.
    pub(super) fn cancel_ride(&self) {
        if let Some(riding) = &self.riding {
            riding.seat.cancel();
        }
    }

    /// Leaves the lane; what it would still bring is dropped.
    pub(super) fn leave_lane(&mut self) {
        if let Some(riding) = self.riding.take() {
            self.torn |= riding.sent > 0;
            riding.seat.withdraw();
        }
    }
}

struct Whole<'a> {
    tag: u8,
    payload: &'a [u8],
}

/// The frame in front, if it is whole, and what stands behind it.
fn take_frame(input: &[u8]) -> Option<(Whole<'_>, &[u8])> {
    let header = Header::peek(input, SMALL_MESSAGE_MAX).ok()??;
    let (frame, behind) = input.split_at_checked(header.len)?;
    let whole = Whole {
        tag: header.tag,
        payload: &frame[HEADER..],
    };
    Some((whole, behind))
}

/// Whether behind a Bind of a named statement to the unnamed portal comes its one Execute, for all rows, and the Sync;
/// `Some(true)` with a Describe of the portal before.
fn bound_once(bind: Bind<'_>, behind: &[u8]) -> Option<bool> {
    if !bind.portal.is_empty() || bind.statement.is_empty() {
        return None;
    }
    let (mut frame, mut behind) = take_frame(behind)?;
    let describes = frame.tag == f::DESCRIBE;
    if describes {
        if Target::read(frame.tag, frame.payload).ok()? != Target::Portal(b"") {
            return None;
        }
        (frame, behind) = take_frame(behind)?;
    }
    let runs_all = frame.tag == f::EXECUTE && frame.payload == [0; 5];
    (runs_all && behind == f::SYNC_FRAME).then_some(describes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(portal: &[u8], statement: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        f::put_bind_head(&mut out, portal, statement, 6);
        out.extend_from_slice(&[0; 6]);
        out
    }

    fn judge(input: &[u8]) -> Option<bool> {
        let (frame, behind) = take_frame(input)?;
        bound_once(Bind::read(frame.payload)?, behind)
    }

    #[test]
    fn one_bind_one_execute_and_its_sync_are_one_statement() {
        let mut execute = Vec::new();
        f::put_execute(&mut execute, b"");
        let describe = b"D\0\0\0\x06P\0";
        let sync = f::SYNC_FRAME;
        let of = |parts: &[&[u8]]| judge(&parts.concat());
        assert_eq!(of(&[&bind(b"", b"s"), &execute, &sync]), Some(false));
        assert_eq!(
            of(&[&bind(b"", b"s"), describe, &execute, &sync]),
            Some(true)
        );
        assert_eq!(of(&[&bind(b"", b""), &execute, &sync]), None);
        assert_eq!(of(&[&bind(b"p", b"s"), &execute, &sync]), None);
        assert_eq!(of(&[&bind(b"", b"s"), &execute, &execute, &sync]), None);
        assert_eq!(of(&[&bind(b"", b"s"), &execute, &sync, &sync]), None);
        assert_eq!(
            of(&[&bind(b"", b"s"), b"D\0\0\0\x06Ss\0", &execute, &sync]),
            None
        );
        let limited = b"E\0\0\0\x09\0\0\0\0\x05";
        assert_eq!(of(&[&bind(b"", b"s"), limited, &sync]), None);
        let all = [bind(b"", b"s"), execute, sync.to_vec()].concat();
        for cut in 0..all.len() {
            assert_eq!(judge(&all[..cut]), None, "cut at {cut}");
        }
    }
}
