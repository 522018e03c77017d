//! What a statement does to the session it runs in, and why that may tie a client to its server connection.
//!
//! Only vocabulary: `classify` fills it in, the session module acts on it.

use std::fmt;

use super::name::Name;

/// One thing a statement does to, or takes from, its session. Names only: values are in the text
/// (`classify::details`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// `SET`, `set_config('…', …, true | false)` and the statements that are spelled otherwise but set a setting.
    Setting {
        name: Name,
        /// Until the end of the transaction only.
        local: bool,
    },
    /// `RESET name`, `SET name TO DEFAULT`.
    ResetSetting(Name),
    ResetAll,
    /// Some setting is changed, which one can't be told from the text.
    SettingsUnknown,
    DiscardAll,
    DiscardTemp,
    DiscardPlans,
    DiscardSequences,
    /// SQL `PREPARE`.
    PrepareSql(Name),
    /// SQL `EXECUTE`, which also finds statements prepared by the protocol.
    ExecuteSql(Name),
    /// `DEALLOCATE name`, or `ALL` if `None`.
    DeallocateSql(Option<Name>),
    Listen(Name),
    /// `UNLISTEN channel`, or `*` if `None`.
    Unlisten(Option<Name>),
    Notify,
    /// A temporary table, view, sequence or function, or anything else in `pg_temp`.
    TempTable {
        /// `ON COMMIT DROP`: gone at the end of the transaction.
        on_commit_drop: bool,
    },
    /// `DECLARE … WITH HOLD`.
    HoldCursor(Name),
    /// `CLOSE name`, or `ALL` if `None`.
    CloseCursor(Option<Name>),
    AdvisoryLockSession,
    AdvisoryUnlock,
    Load,
    /// `nextval`, `setval`: what a later `currval` or `lastval` will read. No pin of its own, since any INSERT may do
    /// the same unseen; a session that is known to read it must be pinned from here on.
    SequenceAdvanced,
    /// `currval`, `lastval`.
    SequenceRead,
    SetSeed,
    /// Large-object descriptors; they end with the transaction.
    LargeObjectFd,
    /// A function known to leave something in the session that has no effect of its own here.
    SessionState,
    /// `DO`, `CALL`, or a function that is not built in: what it does can't be told from the text.
    OpaqueCode,
    /// The text, or part of it, could not be understood.
    Unparsable,
}

impl Effect {
    /// Why a session with this effect must keep its server connection, unless the effect can be carried.
    pub fn pin_reason(&self) -> Option<PinReason> {
        match self {
            Self::SettingsUnknown => Some(PinReason::SettingsUnknown),
            Self::PrepareSql(_) => Some(PinReason::SqlPrepare),
            Self::Listen(_) => Some(PinReason::Listen),
            Self::TempTable {
                on_commit_drop: false,
            } => Some(PinReason::TempTable),
            Self::HoldCursor(_) => Some(PinReason::HoldCursor),
            Self::AdvisoryLockSession => Some(PinReason::AdvisoryLock),
            Self::Load => Some(PinReason::Load),
            Self::SequenceRead => Some(PinReason::SequenceState),
            Self::SetSeed => Some(PinReason::SetSeed),
            Self::SessionState => Some(PinReason::OpaqueState),
            Self::Unparsable => Some(PinReason::Unclassifiable),
            Self::Setting { .. }
            | Self::ResetSetting(_)
            | Self::ResetAll
            | Self::DiscardAll
            | Self::DiscardTemp
            | Self::DiscardPlans
            | Self::DiscardSequences
            | Self::ExecuteSql(_)
            | Self::DeallocateSql(_)
            | Self::Unlisten(_)
            | Self::Notify
            | Self::TempTable {
                on_commit_drop: true,
            }
            | Self::CloseCursor(_)
            | Self::AdvisoryUnlock
            | Self::SequenceAdvanced
            | Self::LargeObjectFd
            | Self::OpaqueCode => None,
        }
    }
}

impl fmt::Display for Effect {
    /// Short text for logs and golden tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { name, local: true } => write!(f, "set local {name}"),
            Self::Setting { name, local: false } => write!(f, "set {name}"),
            Self::ResetSetting(name) => write!(f, "reset {name}"),
            Self::ResetAll => f.write_str("reset all"),
            Self::SettingsUnknown => f.write_str("settings unknown"),
            Self::DiscardAll => f.write_str("discard all"),
            Self::DiscardTemp => f.write_str("discard temp"),
            Self::DiscardPlans => f.write_str("discard plans"),
            Self::DiscardSequences => f.write_str("discard sequences"),
            Self::PrepareSql(name) => write!(f, "prepare {name}"),
            Self::ExecuteSql(name) => write!(f, "execute {name}"),
            Self::DeallocateSql(Some(name)) => write!(f, "deallocate {name}"),
            Self::DeallocateSql(None) => f.write_str("deallocate all"),
            Self::Listen(name) => write!(f, "listen {name}"),
            Self::Unlisten(Some(name)) => write!(f, "unlisten {name}"),
            Self::Unlisten(None) => f.write_str("unlisten all"),
            Self::Notify => f.write_str("notify"),
            Self::TempTable {
                on_commit_drop: false,
            } => f.write_str("temp"),
            Self::TempTable {
                on_commit_drop: true,
            } => f.write_str("temp on commit drop"),
            Self::HoldCursor(name) => write!(f, "hold {name}"),
            Self::CloseCursor(Some(name)) => write!(f, "close {name}"),
            Self::CloseCursor(None) => f.write_str("close all"),
            Self::AdvisoryLockSession => f.write_str("advisory lock"),
            Self::AdvisoryUnlock => f.write_str("advisory unlock"),
            Self::Load => f.write_str("load"),
            Self::SequenceAdvanced => f.write_str("sequence advanced"),
            Self::SequenceRead => f.write_str("sequence read"),
            Self::SetSeed => f.write_str("setseed"),
            Self::LargeObjectFd => f.write_str("large object"),
            Self::SessionState => f.write_str("session state"),
            Self::OpaqueCode => f.write_str("opaque code"),
            Self::Unparsable => f.write_str("unparsable"),
        }
    }
}

/// Why session state ties a client to its server connection. The words are metric labels and console output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinReason {
    TempTable,
    HoldCursor,
    AdvisoryLock,
    Load,
    SequenceState,
    SqlPrepare,
    Listen,
    SetSeed,
    SettingsUnknown,
    OpaqueState,
    Unclassifiable,
}

impl PinReason {
    pub const ALL: [Self; 11] = [
        Self::TempTable,
        Self::HoldCursor,
        Self::AdvisoryLock,
        Self::Load,
        Self::SequenceState,
        Self::SqlPrepare,
        Self::Listen,
        Self::SetSeed,
        Self::SettingsUnknown,
        Self::OpaqueState,
        Self::Unclassifiable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::TempTable => "temp_table",
            Self::HoldCursor => "hold_cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Load => "load",
            Self::SequenceState => "sequence_state",
            Self::SqlPrepare => "sql_prepare",
            Self::Listen => "listen",
            Self::SetSeed => "set_seed",
            Self::SettingsUnknown => "settings_unknown",
            Self::OpaqueState => "opaque_state",
            Self::Unclassifiable => "unclassifiable",
        }
    }

    /// What an application may do instead, for the log.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::TempTable => {
                "drop the temporary table when it is not needed, or create it with ON COMMIT DROP inside a transaction"
            }
            Self::HoldCursor => {
                "close the cursor, or use one without WITH HOLD inside a transaction"
            }
            Self::AdvisoryLock => {
                "use pg_advisory_xact_lock, or release the lock with pg_advisory_unlock"
            }
            Self::Load => "load the library by session_preload_libraries",
            Self::SequenceState => "use INSERT ... RETURNING instead of currval and lastval",
            Self::SqlPrepare => "use the driver's prepared statements",
            Self::Listen => {
                "turn on pool.shared_listener, or see the log for why nothing can listen for it"
            }
            Self::SetSeed => "compute random numbers in the application",
            Self::SettingsUnknown => "name the setting in the statement, or use SET LOCAL",
            Self::OpaqueState | Self::Unclassifiable => {
                "DISCARD ALL when its state is not needed, or a pool in session mode"
            }
        }
    }

    /// What it is, for an error's message.
    pub fn describe(self) -> &'static str {
        match self {
            Self::TempTable => "a temporary table",
            Self::HoldCursor => "a cursor WITH HOLD",
            Self::AdvisoryLock => "a session-level advisory lock",
            Self::Load => "LOAD",
            Self::SequenceState => "currval or lastval",
            Self::SqlPrepare => "PREPARE",
            Self::Listen => "LISTEN",
            Self::SetSeed => "setseed",
            Self::SettingsUnknown => "a setting whose name is not in the statement",
            Self::OpaqueState => "a function that keeps state in the session",
            Self::Unclassifiable => "a statement that pgweir does not understand",
        }
    }
}

/// A set of [`PinReason`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PinSet(u32);

impl PinSet {
    pub const EMPTY: Self = Self(0);

    pub fn insert(&mut self, reason: PinReason) {
        self.0 |= Self::from(reason).0;
    }

    pub fn remove(&mut self, reason: PinReason) {
        self.0 &= !Self::from(reason).0;
    }

    pub fn contains(self, reason: PinReason) -> bool {
        self.0 & Self::from(reason).0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether some of it is still to be seen after a DISCARD ALL: a library that is loaded, the seed of `random()`, or
    /// what nobody knows.
    pub fn outlives_discard(self) -> bool {
        [
            PinReason::Load,
            PinReason::SetSeed,
            PinReason::SettingsUnknown,
            PinReason::OpaqueState,
            PinReason::Unclassifiable,
        ]
        .into_iter()
        .any(|reason| self.contains(reason))
    }

    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        PinReason::ALL
            .into_iter()
            .filter(move |&reason| self.contains(reason))
    }
}

impl From<PinReason> for PinSet {
    fn from(reason: PinReason) -> Self {
        Self(1 << reason as u32)
    }
}

impl FromIterator<PinReason> for PinSet {
    fn from_iter<I: IntoIterator<Item = PinReason>>(reasons: I) -> Self {
        let mut set = Self::EMPTY;
        for reason in reasons {
            set.insert(reason);
        }
        set
    }
}

impl fmt::Display for PinSet {
    /// The reasons' words, separated by commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(reason.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = PinSet::EMPTY;
        assert!(set.is_empty());
        set.insert(PinReason::Load);
        set.insert(PinReason::TempTable);
        assert_eq!(set.to_string(), "temp_table,load");
        set.remove(PinReason::Load);
        assert!(!set.contains(PinReason::Load));
        assert_eq!(set, PinReason::TempTable.into());
        let all: PinSet = PinReason::ALL.into_iter().collect();
        assert_eq!(all.iter().count(), PinReason::ALL.len());
        assert_eq!(all.without(set).union(set), all);
    }

    #[test]
    fn words_are_distinct_lower_snake_case() {
        let mut words: Vec<_> = PinReason::ALL.map(PinReason::as_str).to_vec();
        assert!(
            words
                .iter()
                .all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        );
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), PinReason::ALL.len());
    }
}
