//! The questions behind `retry.settle_commit` (see `settle`), their answers, and what a session keeps for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Report, SqlState};
use crate::retry::outcome::Word;
use crate::session::mirror::Incarnation;
use crate::session::statements::Unsettled;
use crate::sql::classify::StatementKind as Kind;
use crate::sql::known::Known;
use crate::wire::backend::{self as b, TransactionStatus};
use crate::wire::expect::{Expect, For, Owed, Request};

/// How old the last checkpoint may be that is compared: one made in the meantime leaves more unknown.
pub(super) const WHICH_AGE: Duration = Duration::from_secs(10);

/// On a standby the last function fails.
pub(super) const WHICH: &str = "SELECT system_identifier, checkpoint_lsn, \
    pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) \
    FROM pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint()";

/// Under its old name `pg_xact_status` is on all servers; so is `pg_current_xact_id_if_assigned`.
pub(super) const ID: &str = "SELECT pg_catalog.txid_current_if_assigned()";

/// What the server says of an id that it has not given out.
const IN_THE_FUTURE: SqlState = SqlState(*b"22023");

/// Hexadecimal digits of the timeline at the front of a WAL file's name.
const TIMELINE: usize = 8;

/// The question under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Which,
    Id,
    Outcome,
}

/// The COMMIT among what was sent of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Commit {
    #[default]
    None,
    /// It is the last statement, and nothing but a COMMIT.
    Last,
    /// There is something behind it, or another end of the transaction.
    Other,
}

/// What a session knows of its transaction.
#[derive(Debug, Default)]
pub(super) struct Settle {
    pub(super) asked: Option<Question>,
    pub(super) rows: Vec<Vec<Option<Vec<u8>>>>,
    pub(super) refused: Option<SqlState>,
    /// Something was sent since the last answer that may have written.
    pub(super) is_due: bool,
    /// The transaction's id.
    pub(super) xact: Option<u64>,
    pub(super) commit: Commit,
    /// The client has its `CommandComplete`.
    pub(super) has_tag: bool,
    /// Cancel requests that the backend had had when it became this session's.
    pub(super) cancels: u32,
    /// What the backend has told of its server, to be kept with it.
    pub(super) which: Option<(Instant, Option<Incarnation>)>,
    /// What is to be settled once the connection is closed.
    pub(super) prepared: Option<Box<Settling>>,
    pub(super) under_way: Option<Box<Settling>>,
}

/// A COMMIT that is being settled.
#[derive(Debug)]
pub(super) struct Settling {
    /// The transaction's id, and the server that had it; `None` if it is known to have committed.
    pub(super) xact: Option<(u64, Incarnation)>,
    pub(super) has_tag: bool,
    /// What is still to be answered, in order.
    pub(super) rest: Vec<Owed>,
    /// The session's state was lost with its connection.
    pub(super) ends_session: bool,
    /// Statements that the exchange with the COMMIT prepares.
    pub(super) names: Vec<Unsettled<Arc<Known>>>,
    pub(super) since: Instant,
    pub(super) asked: u32,
}

impl Settle {
    /// From the columns of [`ID`].
    pub(super) fn take_id(&mut self) {
        self.xact = match self.row(0)[..] {
            [Some(id)] => std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()),
            _ => None,
        };
        // Without one it is asked again behind the next statement that may write.
        self.is_due = false;
        self.asked = None;
    }

    pub(super) fn forget_transaction(&mut self) {
        self.is_due = false;
        self.xact = None;
        self.commit = Commit::None;
        self.has_tag = false;
    }

    pub(super) fn ask(&mut self, question: Question) {
        self.asked = Some(question);
        self.rows.clear();
        self.refused = None;
    }

    fn row(&self, place: usize) -> Vec<Option<&[u8]>> {
        let row = self.rows.get(place).into_iter().flatten();
        row.map(|value| value.as_deref()).collect()
    }

    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        let [Some(system), Some(checkpoint), Some(file)] = self.row(0)[..] else {
            return None;
        };
        Some(Incarnation {
            system: system.into(),
            checkpoint: checkpoint.into(),
            timeline: file.get(..TIMELINE)?.into(),
        })
    }

    /// The server would not answer, for a reason that may pass.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some_and(|code| code != IN_THE_FUTURE)
    }

    pub(super) fn word(&self) -> Word {
        match self.row(1)[..] {
            [Some(b"committed")] => Word::Committed,
            [Some(b"aborted")] => Word::Aborted,
            [Some(b"in progress")] => Word::InProgress,
            [] if self.refused == Some(IN_THE_FUTURE) => Word::Future,
            _ => Word::None,
        }
    }
}

/// Whether a text may write, in a way that has taken the transaction's snapshot already.
pub(super) fn may_write(known: &Known) -> bool {
    let takes_snapshot = |kind: &Kind| {
        !matches!(
            kind,
            Kind::Begin(_)
                | Kind::Commit { .. }
                | Kind::Rollback { .. }
                | Kind::Savepoint(_)
                | Kind::Release(_)
                | Kind::RollbackTo(_)
                | Kind::SetConstraints
                | Kind::SetTransaction(_)
                | Kind::SetSessionCharacteristics(_)
                | Kind::Set
                | Kind::SetLocal
                | Kind::Reset
                | Kind::Show(_)
                | Kind::Listen
                | Kind::Unlisten
                | Kind::Notify
                | Kind::Lock
        )
    };
    let mut statements = known.class.statements.iter();
    known.writes && statements.any(|statement| takes_snapshot(&statement.kind))
}

/// What of the answer to a plain COMMIT, which is the last thing that was sent, is still to come; `None` if that can't be
/// told, or is more than that.
pub(super) fn rest_of_commit(expect: &Expect, has_tag: bool) -> Option<Vec<Owed>> {
    // An exchange whose Sync was not sent is not over for the client.
    let own = |to| matches!(to, For::Probe | For::Evict | For::Reparse | For::Xact);
    let rest: Vec<Owed> = expect
        .iter()
        .filter(|owed| !own(owed.to))
        .copied()
        .collect();
    let count = |request| rest.iter().filter(|owed| owed.request == request).count();
    let (last, before) = rest.split_last()?;
    let is_known = match last.request {
        Request::Query => before.is_empty(),
        Request::Sync => {
            let is_step = |owed: &Owed| {
                matches!(
                    owed.request,
                    Request::Parse | Request::Bind | Request::DescribePortal | Request::Execute
                )
            };
            before.iter().all(is_step)
                && count(Request::Parse) <= 1
                && count(Request::Bind) <= 1
                && count(Request::Execute) == usize::from(!has_tag)
        }
        _ => false,
    };
    let is_clients = rest.iter().all(|owed| owed.to == For::Client);
    (is_known && is_clients).then_some(rest)
}

/// The answers to `rest` of a COMMIT that succeeded; its `CommandComplete` was seen if it `has_tag`.
pub(super) fn put_rest(rest: &[Owed], has_tag: bool, out: &mut Vec<u8>) {
    for owed in rest {
        match owed.request {
            Request::Parse => out.extend_from_slice(&b::PARSE_COMPLETE_FRAME),
            Request::Bind => out.extend_from_slice(&b::BIND_COMPLETE_FRAME),
            Request::DescribePortal => out.extend_from_slice(&b::NO_DATA_FRAME),
            Request::Execute | Request::Query if !has_tag => {
                b::put_command_complete(out, b"COMMIT");
            }
            _ => {}
        }
    }
    b::put_ready_for_query(out, TransactionStatus::Idle);
}

/// The client's transaction was rolled back in place of its COMMIT.
pub(super) fn rolled_back() -> Report {
    Report::error(
        SqlState::SERIALIZATION_FAILURE,
        "the connection to the server was lost during COMMIT, and the transaction was rolled back",
    )
    .detail("The server that is primary now does not have it.")
    .hint("The transaction might succeed if retried.")
}
