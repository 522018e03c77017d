//! Pauses between runs: exponential, with full jitter.
//!
//! # Why
//! Two transactions that collided collide again if both come back after the same pause. A pause anywhere between
//! nothing and a bound that doubles spreads them out with the least waiting in total, and its mean is half the bound.

use std::time::Duration;

use rand::Rng;

/// The pause before run number `attempt`, counted from 1 for the first rerun.
pub fn pause(attempt: u32, base: Duration, longest: Duration, random: &mut impl Rng) -> Duration {
    let doublings = attempt.saturating_sub(1).min(20);
    let bound = base.saturating_mul(1 << doublings).min(longest);
    bound.mul_f64(random.random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn pauses_fill_a_range_that_doubles_up_to_the_longest() {
        let mut random = StdRng::seed_from_u64(6);
        let base = Duration::from_millis(4);
        let longest = Duration::from_millis(100);
        for (attempt, bound) in [(1, 4), (2, 8), (5, 64), (6, 100), (4000, 100)] {
            let bound = Duration::from_millis(bound);
            let pauses: Vec<Duration> = (0..1000)
                .map(|_| pause(attempt, base, longest, &mut random))
                .collect();
            assert!(pauses.iter().all(|pause| *pause < bound));
            assert!(pauses.iter().any(|pause| *pause > bound.mul_f64(0.9)));
            assert!(pauses.iter().any(|pause| *pause < bound.mul_f64(0.1)));
        }
    }

    #[test]
    fn no_base_is_no_pause() {
        let mut random = StdRng::seed_from_u64(6);
        let none = pause(9, Duration::ZERO, Duration::from_secs(1), &mut random);
        assert_eq!(none, Duration::ZERO);
    }
}
