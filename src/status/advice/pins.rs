//! Sessions that keep their server connection, and what the application can do so that they need not.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Advice, Subject, Urgency, plural, spoken};
use crate::meter::QueryId;
use crate::sql::state::PinReason;

/// A pin that may be over in a moment is none of anybody's business.
const AGE_MIN: Duration = Duration::from_secs(5);

/// A session that keeps its connection.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    pub reason: PinReason,
    /// The statement that is the cause.
    pub query: QueryId,
    pub age: Duration,
}

/// One piece for each statement and reason.
pub fn on_pins(pins: &[Pin]) -> Vec<Advice> {
    let mut groups: BTreeMap<(QueryId, &'static str), Vec<&Pin>> = BTreeMap::new();
    for pin in pins.iter().filter(|pin| pin.age >= AGE_MIN) {
        let key = (pin.query, pin.reason.as_str());
        groups.entry(key).or_default().push(pin);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, pins)| std::cmp::Reverse(pins.len()));
    groups
        .into_iter()
        .filter_map(|((query, word), pins)| {
            let longest = pins.iter().max_by_key(|pin| pin.age)?;
            let keeps = if pins.len() == 1 {
                "keeps its"
            } else {
                "keep their"
            };
            Some(Advice {
                urgency: Urgency::Hint,
                subject: Subject::Statement(query),
                what: format!(
                    "{} {keeps} server connection because of it ({word}), for up to {}.",
                    plural(pins.len(), "session"),
                    spoken(longest.age)
                ),
                action: remedy(longest.reason).to_owned(),
                setting: None,
            })
        })
        .collect()
}

/// What to change in the application.
pub fn remedy(reason: PinReason) -> &'static str {
    match reason {
        PinReason::TempTable => {
            "Create the temporary table ON COMMIT DROP in the transaction that uses it, or drop it when it is done \
             with; for rows that outlive a transaction, an UNLOGGED table with a column for the session does as well."
        }
        PinReason::HoldCursor => {
            "Read the cursor to its end inside one transaction, without WITH HOLD, or page by key: WHERE id > … ORDER \
             BY id LIMIT …."
        }
        PinReason::AdvisoryLock => {
            "Take pg_advisory_xact_lock, which ends with the transaction, or release the lock with pg_advisory_unlock \
             as soon as it is not needed."
        }
        PinReason::Load => {
            "Let the server load the library: session_preload_libraries or shared_preload_libraries."
        }
        PinReason::SequenceState => {
            "Let the INSERT say which number it took, with RETURNING, instead of asking currval or lastval."
        }
        PinReason::SqlPrepare => {
            "Prepare through the driver's protocol-level prepared statements, which follow the client, rather than \
             with SQL's PREPARE."
        }
        PinReason::Listen => {
            "Keep listeners on a few connections of their own: each is a session of its own on the server."
        }
        PinReason::SetSeed => {
            "Draw random numbers in the application, or set the seed in the transaction that uses it."
        }
        PinReason::SettingsUnknown => {
            "Name the setting as a constant in SET or set_config, so that it can follow the client, or use SET LOCAL."
        }
        PinReason::OpaqueState => {
            "A function it calls leaves something in the session: call it in the transaction that needs it, or on a \
             connection with pool_mode session."
        }
        PinReason::Unclassifiable => {
            "Its text could not be understood, so the worst is assumed of it: send statements one by one, or use a \
             connection with pool_mode session."
        }
    }
}
