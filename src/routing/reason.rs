//! Why a statement went where it went. The words are metric labels and rows of `SHOW ROUTES`.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// To a replica: it is proved to only read.
    Read,
    /// To a replica: its transaction is read only.
    ReadOnlyTransaction,
    /// To a replica: the application says so.
    HintReplica,
    /// To the primary, from here on. It is not proved to only read.
    Write,
    /// It opens a transaction that may write.
    Transaction,
    /// It calls a function that may write.
    Function,
    /// It calls a function that nothing is known of.
    UnknownFunction,
    /// Its answer depends on the server that is asked.
    ServerState,
    Copy,
    /// It makes or drops a prepared statement, which is left to the primary.
    Prepare,
    /// Its exchange is not there as a whole, goes on without a Sync, or is too large to be kept.
    Exchange,
    /// A replica can't run serializable transactions.
    Serializable,
    /// The session keeps its server connection, or its pool is in session mode.
    SessionState,
    /// The application says so.
    HintPrimary,
    /// Reads are not sent to replicas: `routing.reads`.
    Configured,
    /// `pgweir.consistency` has a value that means nothing.
    Consistency,
    /// A replica has refused this statement before.
    Refused,
    /// It failed on a replica and is run again.
    Again,
    /// No replica serves.
    NoReplica,
    /// No replica has caught up with what it must see.
    Behind,
    /// No connection to a replica is at hand; one is being opened.
    NoConnection,
    /// There is no primary at the moment: it waits for one. Counted besides the reason it goes to the primary for.
    Held,
}

impl Reason {
    pub const ALL: [Self; 22] = [
        Self::Read,
        Self::ReadOnlyTransaction,
        Self::HintReplica,
        Self::Write,
        Self::Transaction,
        Self::Function,
        Self::UnknownFunction,
        Self::ServerState,
        Self::Copy,
        Self::Prepare,
        Self::Exchange,
        Self::Serializable,
        Self::SessionState,
        Self::HintPrimary,
        Self::Configured,
        Self::Consistency,
        Self::Refused,
        Self::Again,
        Self::NoReplica,
        Self::Behind,
        Self::NoConnection,
        Self::Held,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadOnlyTransaction => "read_only_transaction",
            Self::HintReplica => "hint_replica",
            Self::Write => "write",
            Self::Transaction => "transaction",
            Self::Function => "function",
            Self::UnknownFunction => "unknown_function",
            Self::ServerState => "server_state",
            Self::Copy => "copy",
            Self::Prepare => "prepare",
            Self::Exchange => "exchange",
            Self::Serializable => "serializable",
            Self::SessionState => "session_state",
            Self::HintPrimary => "hint_primary",
            Self::Configured => "configured",
            Self::Consistency => "consistency",
            Self::Refused => "refused",
            Self::Again => "again",
            Self::NoReplica => "no_replica",
            Self::Behind => "behind",
            Self::NoConnection => "no_connection",
            Self::Held => "held",
        }
    }

    /// Whether it is one of those that send a statement to a replica.
    pub fn is_replica(self) -> bool {
        matches!(
            self,
            Self::Read | Self::ReadOnlyTransaction | Self::HintReplica
        )
    }

    /// For `SHOW ROUTES`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Read => "proved to only read",
            Self::ReadOnlyTransaction => "in a read-only transaction",
            Self::HintReplica => "asked for by a comment",
            Self::Write => "not proved to only read",
            Self::Transaction => "opens a transaction that may write",
            Self::Function => "calls a function that may write",
            Self::UnknownFunction => "calls a function that nothing is known of",
            Self::ServerState => "the answer depends on the server",
            Self::Copy => "COPY",
            Self::Prepare => "makes or drops a prepared statement",
            Self::Exchange => "not whole, without a Sync, or too large",
            Self::Serializable => "serializable",
            Self::SessionState => "the session keeps its server connection",
            Self::HintPrimary => "asked for by a comment",
            Self::Configured => "routing.reads = primary",
            Self::Consistency => "pgweir.consistency is not valid",
            Self::Refused => "a replica has refused the statement before",
            Self::Again => "failed on a replica and was run again",
            Self::NoReplica => "no replica serves",
            Self::Behind => "no replica has what must be seen",
            Self::NoConnection => "no connection to a replica was at hand",
            Self::Held => "there was no primary: it waited for one",
        }
    }
}

/// How often each decision was made.
#[derive(Debug, Default)]
pub struct Decisions([AtomicU64; Reason::ALL.len()]);

impl Decisions {
    pub fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every reason with its count.
    pub fn all(&self) -> impl Iterator<Item = (Reason, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Reason::ALL.into_iter().zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_in_their_own_order_and_differ() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        let mut words: Vec<_> = Reason::ALL.map(Reason::as_str).to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
