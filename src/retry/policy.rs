//! What is done about a failure: the table of `docs/retries.md`, as a function.
//!
//! # Invariants
//! - A statement that may have changed something is run again only if it is proved that the server has undone it or
//!   never had it.
//! - What a client has been told stays true: a statement of whose answer it has seen something is not run again outside
//!   a replay, which compares what was seen.
//!
//! # Why
//! A transaction of which COMMIT was not sent can't have happened, whatever became of the connection: the server rolls
//! back what is not committed. And a session that is told to end (57P01) says so instead of an answer: PostgreSQL
//! commits before it puts `CommandComplete` into its buffer, holds off such interrupts while it commits, and a backend
//! that commits while it waits for a synchronous standby closes without that error. So outside a COMMIT the error in
//! place of an answer proves that nothing was committed.

pub use crate::sql::repeat::Doubt;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The connection was found dead before anything of the request was sent.
    Stale,
    /// 40001: the server rolled back.
    Serialization,
    /// 40P01: the server rolled back.
    Deadlock,
    /// 57P01 in place of the answer: the server ended the session.
    Terminated,
    /// The connection broke while an answer was awaited.
    Lost,
}

impl Failure {
    pub const ALL: [Self; 5] = [
        Self::Stale,
        Self::Serialization,
        Self::Deadlock,
        Self::Terminated,
        Self::Lost,
    ];

    /// The word of the table and of the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Serialization => "serialization",
            Self::Deadlock => "deadlock",
            Self::Terminated => "terminated",
            Self::Lost => "lost",
        }
    }
}

/// Where the session was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Outside a transaction block: what fails was its own transaction.
    Outside,
    /// In a transaction block whose end was not sent.
    Inside,
    /// The end of the transaction block was sent.
    Ending,
}

impl Place {
    pub const ALL: [Self; 3] = [Self::Outside, Self::Inside, Self::Ending];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Inside => "inside",
            Self::Ending => "ending",
        }
    }
}

/// What the client has been sent of the answer that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Nothing,
    /// Whole messages.
    Part,
    /// A message was cut.
    Cut,
}

impl Seen {
    pub const ALL: [Self; 3] = [Self::Nothing, Self::Part, Self::Cut];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Part => "part",
            Self::Cut => "cut",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The request runs again; with `retry.statements` off it fails.
    Again,
    /// The transaction runs again from its beginning; with `retry.replay` off it fails.
    Replay,
    /// The server is asked what became of the transaction; with `retry.settle_commit` off its outcome is unknown.
    Settle,
    /// The client is told that the outcome is unknown.
    Unknown,
    /// The client is told what happened.
    Fail,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Again => "again",
            Self::Replay => "replay",
            Self::Settle => "settle",
            Self::Unknown => "unknown",
            Self::Fail => "fail",
        }
    }
}

/// The table.
pub fn verdict(failure: Failure, place: Place, seen: Seen, doubt: Doubt) -> Verdict {
    use Failure as F;
    if seen == Seen::Cut {
        return cut(failure, place, doubt);
    }
    match (failure, place) {
        // It was never sent: whatever it is, it did not happen.
        (F::Stale, Place::Outside) => Verdict::Again,
        (F::Serialization | F::Deadlock | F::Terminated, Place::Outside) => match (seen, doubt) {
            (Seen::Nothing, Doubt::Read | Doubt::Write) => Verdict::Again,
            _ => Verdict::Fail,
        },
        (F::Lost, Place::Outside) => match (seen, doubt) {
            (Seen::Nothing, Doubt::Read) => Verdict::Again,
            (_, Doubt::Read) => Verdict::Fail,
            (_, Doubt::Write | Doubt::Unrepeatable) => Verdict::Unknown,
        },
        (F::Lost | F::Terminated, Place::Ending) => Verdict::Settle,
        (_, Place::Inside) | (F::Stale | F::Serialization | F::Deadlock, Place::Ending) => {
            match doubt {
                Doubt::Read | Doubt::Write => Verdict::Replay,
                Doubt::Unrepeatable => Verdict::Fail,
            }
        }
    }
}

/// Half a message can't be taken back nor continued; all that is left is to say the truth of the outcome.
fn cut(failure: Failure, place: Place, doubt: Doubt) -> Verdict {
    match (failure, place, doubt) {
        (Failure::Lost, Place::Outside, Doubt::Write | Doubt::Unrepeatable)
        | (Failure::Lost | Failure::Terminated, Place::Ending, _) => Verdict::Unknown,
        _ => Verdict::Fail,
    }
}

#[cfg(test)]
mod tests;
