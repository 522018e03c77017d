//! What a session has left on its backend besides settings, as far as the server can tell.
//!
//! Asked for after a transaction that ran code whose text says nothing: a function, a procedure.
//!
//! # Why every such transaction
//! What a function does can't be told from its call, and what it leaves would be the next client's. The question goes
//! out in the same write as the end of the transaction, so the client doesn't wait for it.
//!
//! # Why pgweir's own statements are counted
//! A function may run DEALLOCATE, which no message tells of, and the statements that other sessions share would be gone.
//! Their number tells that something is missing; asking for their names each time would cost more than preparing them
//! again in the rare case.

use super::settings::Row;
use crate::sql::state::{PinReason, PinSet};

/// Rows of a [`PinReason`]'s word in this form; no setting has a name with a space in it.
const PREFIX: &[u8] = b"pin ";

/// What [`QUESTION`] settles: if the server doesn't name one of these, the session has left nothing of its kind.
pub fn settled() -> PinSet {
    let mut settled = PinSet::EMPTY;
    for reason in [
        PinReason::TempTable,
        PinReason::Listen,
        PinReason::SqlPrepare,
        PinReason::HoldCursor,
        PinReason::AdvisoryLock,
    ] {
        settled.insert(reason);
    }
    settled
}

/// Rows to be added to a question of names and values, behind its SELECT. Whatever is in a schema depends on it (`pg_depend`);
/// that is read only where the backend has a temporary one.
pub const QUESTION: &str = "'pin asked', NULL UNION ALL SELECT 'pin temp_table', NULL WHERE CASE WHEN pg_catalog.pg_my_temp_schema() <> 0 THEN \
     EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
     AND refobjid = pg_catalog.pg_my_temp_schema()) END \
     UNION ALL SELECT 'pin listen', NULL WHERE EXISTS (SELECT FROM pg_catalog.pg_listening_channels()) \
     UNION ALL SELECT CASE WHEN pg_catalog.left(name, 7) = 'pgweir_' THEN 'pin prepared' ELSE 'pin sql_prepare' END, \
     pg_catalog.count(*)::pg_catalog.text FROM pg_catalog.pg_prepared_statements \
     WHERE from_sql OR pg_catalog.left(name, 7) = 'pgweir_' GROUP BY 1 \
     UNION ALL SELECT 'pin hold_cursor', NULL WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) \
     UNION ALL SELECT 'pin advisory_lock', NULL WHERE EXISTS (SELECT FROM pg_catalog.pg_locks \
     WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())";

/// The answer to [`QUESTION`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    pub pins: PinSet,
    /// How many statements the backend has under global names.
    pub prepared: usize,
    /// How many that SQL has prepared under others.
    pub own: usize,
}

/// Takes the answers to [`QUESTION`] out of `rows`; `None` if it was not asked.
pub fn take(rows: &mut Vec<Row>) -> Option<Leftovers> {
    let mut asked = false;
    let mut left = Leftovers::default();
    rows.retain(|(name, value)| {
        let Some(word) = name.strip_prefix(PREFIX) else {
            return true;
        };
        if word == b"asked" {
            asked = true;
            return false;
        }
        let count = value.as_deref().and_then(|v| std::str::from_utf8(v).ok());
        // A number that can't be read is like one that doesn't fit.
        let count = count.and_then(|c| c.parse().ok()).unwrap_or(usize::MAX);
        if word == b"prepared" {
            left.prepared = count;
            return false;
        }
        if word == PinReason::SqlPrepare.as_str().as_bytes() {
            left.own = count;
        }
        let reason = PinReason::ALL
            .into_iter()
            .find(|reason| reason.as_str().as_bytes() == word);
        left.pins.insert(reason.unwrap_or(PinReason::OpaqueState));
        false
    });
    asked.then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_settings() {
        let mut rows = vec![
            (b"work_mem".to_vec(), Some(b"1".to_vec())),
            (b"pin asked".to_vec(), None),
            (b"pin listen".to_vec(), None),
            (b"pin temp_table".to_vec(), None),
            (b"pin prepared".to_vec(), Some(b"12".to_vec())),
            (b"pin sql_prepare".to_vec(), Some(b"3".to_vec())),
        ];
        let left = take(&mut rows).unwrap();
        assert_eq!(left.pins.to_string(), "temp_table,sql_prepare,listen");
        assert_eq!((left.prepared, left.own), (12, 3));
        assert_eq!(rows.len(), 1);
        assert!(take(&mut rows).is_none());
    }

    #[test]
    fn every_word_asked_for_is_a_reason() {
        let words = QUESTION
            .split('\'')
            .filter_map(|part| part.strip_prefix("pin "))
            .filter(|word| !matches!(*word, "asked" | "prepared"));
        let known = |word| PinReason::ALL.iter().any(|reason| reason.as_str() == word);
        assert!(words.clone().count() == 5 && words.clone().all(known));
        let settled = PinReason::ALL
            .iter()
            .filter(|reason| settled().contains(**reason));
        assert!(
            settled
                .map(|reason| reason.as_str())
                .all(|word| words.clone().any(|asked| asked == word))
        );
    }
}
