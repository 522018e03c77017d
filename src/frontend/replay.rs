//! Replaying a transaction on another connection, up to where it had failed.
//!
//! The journal holds what the client has sent since BEGIN and a hash of what it has seen. The exchanges are sent again,
//! one at a time, and their answers are kept from the client as long as they are what it has seen before: by number of
//! bytes and hash. Then the transaction goes on as if nothing had happened. If they differ, the client gets the error
//! that its transaction had failed with, in a failed transaction, as it would have at first.
//!
//! # Invariants
//! - No exchange is sent before the one ahead of it has been answered as the client has seen it: a COMMIT above all.
//! - What was replayed and differed is rolled back.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;

use super::inbound::Frame;
use super::refusal::Refusal;
use super::session::{End, Phase, Session};
use crate::error::{Report, SqlState};
use crate::net::buffer::{Gather, Mark, give_storage, take_storage};
use crate::retry::journal::Digest;
use crate::routing::reason::Reason;
use crate::session::statements::Named;
use crate::sql::known::Known;
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{For, Owed, Request};
use crate::wire::frame;
use crate::wire::frontend as f;

/// A statement's name and what it stands for.
type Name = (Box<[u8]>, Named<Arc<Known>>);

/// What the transaction had failed with.
#[derive(Debug)]
pub(super) enum Original {
    /// The server's error; the client's session goes on.
    Error(Vec<u8>),
    /// The server's last words.
    Fatal(Vec<u8>),
    /// The connection was lost.
    Lost,
}

/// A transaction that runs again, until it is where it was.
#[derive(Debug)]
pub(super) struct Replay {
    /// Bytes of answers that the client has seen, and their hash.
    seen: u64,
    digest: Digest,
    /// Bytes of the exchanges that were answered to their end; what is behind them was under way.
    answered: usize,
    /// Bytes of all that was sent.
    sent: usize,
    /// Part of an answer was seen whose end was still to come.
    has_seen_part: bool,
    original: Original,
    /// Statements that these exchanges had prepared: the client has them whatever becomes of the transaction.
    names: Vec<Name>,
    /// What came is not what the client has seen.
    differs: bool,
}

impl Session {
    fn replay(&self) -> Option<&Replay> {
        self.rerun.as_ref()?.replay.as_deref()
    }

    /// A transaction is run again and not where it was yet.
    pub(super) fn is_replaying(&self) -> bool {
        self.replay().is_some()
    }

    /// Whether what the client sees is recorded, so that the transaction can be replayed. `status` is the backend's.
    pub(super) fn records(&self, status: TransactionStatus) -> bool {
        let is_open = self.in_transaction || status != TransactionStatus::Idle;
        self.effective.retry.replay
            && is_open
            && !self.is_on_replica()
            && !self.keeps_backend()
            && self.kept().is_some_and(|kept| !kept.is_empty())
    }

    /// What comes next waits until what was replayed before has been answered as the client has seen it: within an
    /// exchange that is what the client had not sent when it failed.
    pub(super) fn awaits_replay(&self, gather: &mut Gather) -> bool {
        let (Some(replay), Some(lease)) = (self.replay(), &self.lease) else {
            return false;
        };
        if !lease.expect.is_open() {
            return !lease.expect.is_at_rest();
        }
        let is_sent = self.kept().is_none_or(|kept| kept.len() >= replay.sent);
        if is_sent && !self.held_up {
            gather.own(|out| out.extend_from_slice(&f::FLUSH_FRAME));
        }
        is_sent
    }

    /// The transaction that has failed will run again; notes what the client has seen of it.
    pub(super) fn begin_replay(&mut self) {
        let names = &self.names;
        let Some(rerun) = &mut self.rerun else {
            return;
        };
        let original = rerun.original.take();
        if rerun.replay.is_some() {
            return;
        }
        let journal = &rerun.journal;
        let answered = journal.answered();
        let prepared = journal.names().iter().filter(|(at, _)| *at < answered);
        let prepared =
            prepared.filter_map(|(_, name)| Some((name.clone(), names.get(name)?.clone())));
        rerun.replay = Some(Box::new(Replay {
            seen: journal.seen(),
            digest: journal.digest(),
            answered,
            sent: journal.bytes().len(),
            has_seen_part: journal.has_seen_part(),
            original: original.unwrap_or(Original::Lost),
            names: prepared.collect(),
            differs: false,
        }));
        if let Some(routes) = &mut self.routes {
            routes.forced = Some(Reason::Again);
        }
    }

    /// Compares what was gathered since `start` with what the client has seen; the client gets what is behind that.
    pub(super) fn compare_seen(&mut self, gather: &mut Gather, start: Mark, input: &[u8]) {
        let mut new = take_storage();
        gather.each_since(&start, input, |bytes| new.extend_from_slice(bytes));
        gather.truncate(start);
        let Some(rerun) = &mut self.rerun else {
            return;
        };
        let Some(replay) = &mut rerun.replay else {
            return;
        };
        let due = replay.seen.saturating_sub(rerun.journal.seen());
        let due = usize::try_from(due).unwrap_or(usize::MAX).min(new.len());
        let (old, rest) = new.split_at(due);
        rerun.journal.record(old);
        let is_there = rerun.journal.seen() == replay.seen;
        replay.differs |= is_there && rerun.journal.digest() != replay.digest;
        if is_there && !replay.differs {
            rerun.replay = None;
            self.pool.retries.replayed.fetch_add(1, Relaxed);
            rerun.journal.settle_seen();
            if !rest.is_empty() {
                rerun.journal.record(rest);
                gather.own(|out| out.extend_from_slice(rest));
            }
        }
        give_storage(new);
    }

    /// Compares an answer that pgweir gives itself; the client gets it if it has not seen it.
    pub(super) fn compare_local(&mut self, answer: &[u8]) {
        let mut gather = Gather::take();
        gather.own(|out| out.extend_from_slice(answer));
        self.compare_seen(&mut gather, Mark::default(), &[]);
        let mut rest = take_storage();
        gather.move_to(&mut rest, &[]);
        gather.give();
        self.outbox.push(&rest);
        give_storage(rest);
    }

    /// Whether the replay has shown that the transaction does not go as it did. `at_rest`: everything that was sent is
    /// answered.
    pub(super) fn replay_differs(&self, at_rest: bool) -> bool {
        let (Some(replay), Some(kept)) = (self.replay(), self.kept()) else {
            return self.is_replaying();
        };
        // All that the client has seen something of is answered, and that was less than it has seen.
        let is_short = match kept.len().cmp(&replay.answered) {
            Ordering::Less => false,
            Ordering::Equal => !replay.has_seen_part,
            Ordering::Greater => true,
        };
        replay.differs || (at_rest && is_short)
    }

    /// Gives the replay up: the client gets the error that its transaction had failed with.
    pub(super) fn fall_back(&mut self, is_lost: bool, cx: &mut Context<'_>) -> Result<(), End> {
        let replay = self.rerun.as_mut().and_then(|rerun| rerun.replay.take());
        let Some(replay) = replay else {
            return Ok(());
        };
        self.pool.retries.differed.fetch_add(1, Relaxed);
        if self.kept().is_none() {
            // What was under way is not here any more.
            let report = fatal_of(&replay.original);
            return Err(End::Fatal(Box::new(report)));
        }
        tracing::debug!(
            "a transaction that ran again was answered otherwise; its client is told of the failure"
        );
        let Replay {
            answered,
            original,
            names,
            ..
        } = *replay;
        self.unsend();
        for (name, named) in names {
            self.names.change(&name, Some(named));
            self.names.confirm();
        }
        self.part_with_backend(is_lost);
        self.forget_runs();
        self.metering.rests();
        self.inbox.consume(answered);
        if let Some(routes) = &mut self.routes {
            routes.in_exchange = false;
            routes.opened = None;
            routes.forced = Some(Reason::Again);
        }
        match original {
            Original::Error(error) if !self.inbox.is_empty() => {
                self.rerun_mut().refuses = Some(error);
                self.enter(Phase::Idle);
                self.process_inbox(cx)
            }
            Original::Error(error) | Original::Fatal(error) => {
                self.outbox.push(&framed(&error));
                Err(End::ServerGone)
            }
            Original::Lost => Err(End::Fatal(Box::new(fatal_of(&Original::Lost)))),
        }
    }

    /// What the client's transaction had failed with, if that was to be undone and can't be.
    pub(super) fn original_error(&self) -> Option<Report> {
        let rerun = self.rerun.as_ref()?;
        if let Some(replay) = rerun.replay.as_deref() {
            return Some(fatal_of(&replay.original));
        }
        rerun.refuses.as_deref().map(fatal)
    }

    /// The statement in front is to fail as its transaction had.
    pub(super) fn is_to_fail(&self) -> bool {
        self.rerun
            .as_ref()
            .is_some_and(|rerun| rerun.refuses.is_some())
    }

    /// Opens a transaction block for the statement in front to fail in.
    pub(super) fn open_to_fail(&mut self, gather: &mut Gather) {
        if !self.is_to_fail() {
            return;
        }
        let Some(lease) = &mut self.lease else {
            return;
        };
        gather.own(|out| f::put_query(out, b"BEGIN"));
        lease.expect.push(Owed::new(Request::Query, For::Plan));
        lease.mirror.unnamed = None;
        self.entry.set_running_soon();
        self.in_transaction = true;
    }

    /// Has the server fail in place of `frame`, with the words of the error that its transaction had failed with. False
    /// if nothing is to fail.
    pub(super) fn fails_as_before(
        &mut self,
        frame: Frame<'_>,
        gather: &mut Gather,
    ) -> Result<bool, End> {
        let error = self.rerun.as_mut().and_then(|rerun| rerun.refuses.take());
        let Some(error) = error else {
            return Ok(false);
        };
        let report = report_of(&error);
        match frame.tag {
            f::QUERY => {
                let known = f::query_text(frame.payload).ok().map(|text| {
                    let options = self.lex_options();
                    self.shared.known.lookup(text, options)
                });
                self.refuse_query(frame, known, Refusal::AsBefore(Box::new(report)), gather);
            }
            f::PARSE | f::BIND | f::DESCRIBE | f::EXECUTE | f::CLOSE => {
                self.refuse_step(frame, Refusal::AsBefore(Box::new(report)), gather);
            }
            _ => return Err(End::Fatal(Box::new(fatal(&error)))),
        }
        Ok(true)
    }
}

/// The end of a session with the server's error.
fn fatal(error: &[u8]) -> Report {
    let report = report_of(error);
    Report::fatal(report.code, report.message)
}

fn fatal_of(original: &Original) -> Report {
    match original {
        Original::Error(error) | Original::Fatal(error) => fatal(error),
        Original::Lost => Report::fatal(
            SqlState::CONNECTION_FAILURE,
            "server closed the connection unexpectedly",
        ),
    }
}

fn framed(error: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, b::ERROR_RESPONSE, |out| {
        out.extend_from_slice(error);
    });
    out
}

/// The server's error in the form of pgweir's own.
fn report_of(error: &[u8]) -> Report {
    let text = |field| {
        let value = b::error_field(error, field)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let code = b::sqlstate(error).unwrap_or(SqlState::INTERNAL_ERROR);
    let mut report = Report::error(code, text(b'M').unwrap_or_default());
    if let Some(detail) = text(b'D') {
        report = report.detail(detail);
    }
    if let Some(hint) = text(b'H') {
        report = report.hint(hint);
    }
    report
}
