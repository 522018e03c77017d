//! Whether a statement has been short of late, every time.
//!
//! Only such statements share a server connection with others that wait behind them. A statement that was thought short
//! and was not has to be short twice as often the next time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Short executions in a row that prove a statement short at first.
const ENOUGH: u32 = 16;
/// Doublings of [`ENOUGH`].
const STRIKES_MAX: u32 = 12;
/// What is short: sent and answered within this time …
const TIME_MAX: Duration = Duration::from_millis(10);
/// … with at most so many rows.
const ROWS_MAX: u64 = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Brevity {
    streak: AtomicU32,
    strikes: AtomicU32,
}

impl Brevity {
    /// It was short often enough.
    pub fn is_proved(&self) -> bool {
        self.streak.load(Ordering::Relaxed) >= ENOUGH << self.strikes.load(Ordering::Relaxed)
    }

    /// One execution ended well.
    pub fn saw(&self, took: Duration, rows: u64) {
        if took > TIME_MAX || rows > ROWS_MAX {
            self.streak.store(0, Ordering::Relaxed);
        } else if !self.is_proved() {
            self.streak.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It was taken for short and kept others waiting.
    pub fn disappointed(&self) {
        self.streak.store(0, Ordering::Relaxed);
        let strikes = self.strikes.load(Ordering::Relaxed);
        self.strikes
            .store((strikes + 1).min(STRIKES_MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(brevity: &Brevity, times: u32) {
        for _ in 0..times {
            brevity.saw(Duration::from_millis(1), 1);
        }
    }

    #[test]
    fn brevity_is_proved_by_a_row_of_short_executions() {
        let brevity = Brevity::default();
        short(&brevity, ENOUGH - 1);
        assert!(!brevity.is_proved());
        short(&brevity, 1);
        assert!(brevity.is_proved());
        brevity.saw(TIME_MAX * 2, 1);
        assert!(!brevity.is_proved());
        short(&brevity, ENOUGH - 1);
        brevity.saw(Duration::ZERO, ROWS_MAX + 1);
        short(&brevity, 1);
        assert!(!brevity.is_proved());
    }

    #[test]
    fn who_kept_others_waiting_has_more_to_prove() {
        let brevity = Brevity::default();
        for strike in 1..=STRIKES_MAX + 3 {
            short(&brevity, ENOUGH << STRIKES_MAX);
            assert!(brevity.is_proved(), "after {strike} strikes");
            brevity.disappointed();
            short(&brevity, ENOUGH);
            assert!(!brevity.is_proved(), "after {strike} strikes");
        }
    }
}
