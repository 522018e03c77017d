//! Whether a statement has been short of late.
//!
//! Only such statements share a server connection with others that wait behind them. A statement that was thought short
//! and was not has to be short twice as often the next time.
//!
//! # Why one slow execution is not the end
//! On a busy machine every statement is slow now and then, and that is when sharing helps most.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Points that prove a statement short at first: it gets one for each short execution.
const ENOUGH: u32 = 16;
/// Points that a slow execution costs.
const SLOW: u32 = 4;
/// Doublings of [`ENOUGH`].
const STRIKES_MAX: u32 = 12;
/// What is short: sent and answered within this time …
const TIME_MAX: Duration = Duration::from_millis(10);
/// … with at most so many rows …
const ROWS_MAX: u64 = 64;
/// … and bytes: a client that takes its answer late keeps others waiting for them.
const BYTES_MAX: u64 = 16 * 1024;
/// What can't be blamed on the machine any more.
const LONG: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug, Default)]
pub struct Brevity {
    points: AtomicU32,
    strikes: AtomicU32,
}

impl Brevity {
    /// It was short often enough.
    pub fn is_proved(&self) -> bool {
        self.points.load(Ordering::Relaxed) >= ENOUGH << self.strikes.load(Ordering::Relaxed)
    }

    /// One execution ended well. Executions that end at once may count as one.
    pub fn saw(&self, took: Duration, rows: u64, bytes: u64) {
        if took > LONG || rows > ROWS_MAX || bytes > BYTES_MAX {
            self.points.store(0, Ordering::Relaxed);
        } else if took > TIME_MAX {
            let points = self.points.load(Ordering::Relaxed);
            self.points
                .store(points.saturating_sub(SLOW), Ordering::Relaxed);
        } else if !self.is_proved() {
            self.points.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It was taken for short and kept others waiting.
    pub fn disappointed(&self) {
        self.points.store(0, Ordering::Relaxed);
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
            brevity.saw(Duration::from_millis(1), 1, 100);
        }
    }

    #[test]
    fn brevity_is_proved_by_short_executions() {
        let brevity = Brevity::default();
        short(&brevity, ENOUGH - 1);
        assert!(!brevity.is_proved());
        short(&brevity, 1);
        assert!(brevity.is_proved());
        brevity.saw(TIME_MAX * 2, 1, 100);
        assert!(!brevity.is_proved());
        short(&brevity, SLOW);
        assert!(brevity.is_proved());
        for (took, rows, bytes) in [
            (LONG * 2, 1, 100),
            (Duration::ZERO, ROWS_MAX + 1, 100),
            (Duration::ZERO, 1, BYTES_MAX + 1),
        ] {
            brevity.saw(took, rows, bytes);
            short(&brevity, ENOUGH - 1);
            assert!(!brevity.is_proved());
            short(&brevity, 1);
            assert!(brevity.is_proved());
        }
    }

    #[test]
    fn what_is_slow_more_often_than_not_is_never_proved_short() {
        let brevity = Brevity::default();
        for _ in 0..100 {
            short(&brevity, SLOW);
            brevity.saw(TIME_MAX * 2, 1, 100);
            assert!(!brevity.is_proved());
        }
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
