//! Requests that ended without a server connection, by SQLSTATE.
//!
//! Bound: `CODES_MAX` of them; a server that refuses logins can give any.

use std::sync::{Mutex, PoisonError};

use crate::error::SqlState;

/// SQLSTATEs told apart.
const CODES_MAX: usize = 32;

/// See the module. Totals are since the pool was made.
#[derive(Debug, Default)]
pub struct Refused {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_code: Vec<(SqlState, u64)>,
    /// Those whose code found no room.
    others: u64,
}

impl Refused {
    /// A client was told `code` in place of an answer.
    pub fn count(&self, code: SqlState) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = counts.by_code.iter_mut().find(|(known, _)| *known == code) {
            *count += 1;
        } else if counts.by_code.len() < CODES_MAX {
            counts.by_code.push((code, 1));
        } else {
            counts.others += 1;
        }
    }

    /// Each code with its count, and the count of all others.
    pub fn all(&self) -> (Vec<(SqlState, u64)>, u64) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        (counts.by_code.clone(), counts.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_beyond_the_bound_count_together() {
        let refused = Refused::default();
        for number in 0..40 {
            refused.count(SqlState(
                *format!("X{number:04}").as_bytes().first_chunk().unwrap(),
            ));
        }
        refused.count(SqlState(*b"X0000"));
        let (by_code, others) = refused.all();
        assert_eq!((by_code.len(), by_code[0].1, others), (CODES_MAX, 2, 8));
    }
}
