//! The last quarter of an hour, second by second: what the charts of the live page are drawn from.
//!
//! One task takes a [`Reading`] of each pool every second, whether anybody watches or not; what lies between two
//! readings becomes a [`Point`]. A reading touches counters only, never clients or statements.
//!
//! Bound: [`POINTS`] points for the whole and for each of [`POOLS_MAX`] pools, made when a pool appears; further pools
//! only count in the whole. That is 40 kB each, 1.3 MB in all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::stats::Totals;
use crate::meter::Distribution;
use crate::pool::Pools;
use crate::pool::pool::Pool;

/// Points kept.
pub const POINTS: usize = 900;

/// Time from one point to the next.
pub const STEP: Duration = Duration::from_secs(1);

/// Pools with points of their own.
pub const POOLS_MAX: usize = 32;

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// A second.
    pub statements: f32,
    /// A second.
    pub transactions: f32,
    /// Statements that ended with an error, a second.
    pub errors: f32,
    /// How long the statements that ended took, in seconds; none if none did.
    pub latency: Option<Quantiles>,
    /// Mean wait for a server connection of those that were given one, in seconds.
    pub wait: f32,
    /// Clients in the queue, at the end of the second.
    pub waiting: u32,
    /// Server connections not idle, at the end of the second.
    pub in_use: u32,
}

/// Of times, in seconds, within 0.4 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantiles {
    pub p50: f32,
    pub p95: f32,
    pub p99: f32,
}

impl Quantiles {
    /// None of nothing.
    pub fn of(times: &Distribution) -> Option<Self> {
        let quantile = |q| times.quantile(q).as_secs_f32();
        (times.count() > 0).then(|| Self {
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        })
    }
}

/// A pool's counters, or what was counted between two readings of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub totals: Totals,
    pub errors: u64,
    pub latency: Distribution,
}

impl Counted {
    fn plus(&self, other: &Self) -> Self {
        Self {
            totals: self.totals.plus(&other.totals),
            errors: self.errors + other.errors,
            latency: self.latency.plus(&other.latency),
        }
    }

    fn minus(&self, other: &Self) -> Self {
        Self {
            totals: self.totals.minus(&other.totals),
            errors: self.errors.saturating_sub(other.errors),
            latency: self.latency.minus(&other.latency),
        }
    }
}

/// A pool at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub counted: Counted,
    pub waiting: usize,
    pub in_use: usize,
}

impl Reading {
    /// Of `pool`, now.
    pub fn of(pool: &Pool) -> Self {
        Self {
            counted: Counted {
                totals: Totals::of(&pool.counters),
                errors: pool.counters.errors.load(Ordering::Relaxed),
                latency: pool.counters.latency.sample(),
            },
            waiting: pool.waiting(),
            in_use: pool
                .open()
                .saturating_sub(pool.idle())
                .saturating_sub(pool.opening()),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            counted: self.counted.plus(&other.counted),
            waiting: self.waiting + other.waiting,
            in_use: self.in_use + other.in_use,
        }
    }
}

/// Database and user of a pool.
pub type Key = (Arc<str>, Arc<str>);

type Ring = VecDeque<Point>;

#[derive(Debug, Default)]
struct Track {
    last: Counted,
    /// None beyond [`POOLS_MAX`].
    points: Option<Ring>,
    /// Seconds since the pool went.
    gone: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Timeline {
    at: Instant,
    /// Points so far, those forgotten included.
    count: u64,
    whole: Ring,
    pools: BTreeMap<Key, Track>,
}

impl Timeline {
    /// Begins at `at`.
    pub fn new(at: Instant) -> Self {
        Self {
            at,
            count: 0,
            whole: Ring::with_capacity(POINTS),
            pools: BTreeMap::new(),
        }
    }

    /// Takes a reading of every pool.
    pub fn sample(&mut self, pools: &Pools) {
        let mut readings: BTreeMap<Key, Reading> = BTreeMap::new();
        for pool in pools.all() {
            let key = (Arc::clone(&pool.key.database), Arc::clone(&pool.key.user));
            let sum = readings.entry(key).or_default();
            *sum = sum.plus(&Reading::of(&pool));
        }
        self.record(readings, Instant::now());
    }

    /// Makes points of what happened since the last reading. One that comes late stands for all the seconds it missed.
    fn record(&mut self, readings: BTreeMap<Key, Reading>, at: Instant) {
        let elapsed = at.saturating_duration_since(self.at);
        let steps = whole_steps(elapsed);
        if steps == 0 {
            return;
        }
        self.at = at;
        self.count += steps as u64;
        for track in self.pools.values_mut() {
            track.gone += steps;
        }
        let (mut whole, mut happened) = ((0, 0), Counted::default());
        for (key, reading) in readings {
            let track = self.track(key, steps);
            track.gone = 0;
            let since = reading.counted.minus(&track.last);
            track.last = reading.counted;
            let now = (reading.waiting, reading.in_use);
            if let Some(points) = &mut track.points {
                push(points, Point::new(&since, now, elapsed), steps);
            }
            happened = happened.plus(&since);
            whole = (whole.0 + now.0, whole.1 + now.1);
        }
        push(
            &mut self.whole,
            Point::new(&happened, whole, elapsed),
            steps,
        );
        self.pools.retain(|_, track| match &mut track.points {
            Some(points) if track.gone > 0 => {
                push(points, Point::default(), steps);
                track.gone < POINTS
            }
            _ => track.gone == 0,
        });
    }

    /// The track of a pool, made if it is new. Where there is no room for its points, a pool that went makes it.
    fn track(&mut self, key: Key, steps: usize) -> &mut Track {
        if !self.pools.contains_key(&key) {
            let with_points = self
                .pools
                .iter()
                .filter(|(_, track)| track.points.is_some());
            if with_points.clone().count() >= POOLS_MAX {
                let gone = with_points.max_by_key(|(_, track)| track.gone);
                // One that is still there has missed no more than this round.
                let gone = gone.filter(|(_, track)| track.gone > steps);
                if let Some(gone) = gone.map(|(key, _)| key.clone()) {
                    self.pools.remove(&gone);
                }
            }
        }
        let with_points = self.pools.values().filter(|track| track.points.is_some());
        let has_room = with_points.count() < POOLS_MAX;
        self.pools.entry(key).or_insert_with(|| Track {
            points: has_room.then(|| Ring::with_capacity(POINTS)),
            ..Track::default()
        })
    }

    /// Number of the newest point, by which a reader sees that it missed some.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The points of the whole, oldest first.
    pub fn whole(&self) -> impl ExactSizeIterator<Item = &Point> {
        self.whole.iter()
    }

    /// The points of one pool, oldest first, up to the same second as those of the whole.
    pub fn of_pool(
        &self,
        database: &str,
        user: &str,
    ) -> Option<impl ExactSizeIterator<Item = &Point>> {
        let track = self.pools.get(&(database.into(), user.into()))?;
        track.points.as_ref().map(VecDeque::iter)
    }

    /// Mean of the last `over` points of a series.
    #[allow(clippy::cast_precision_loss, reason = "a few points")]
    pub fn recent<'a>(
        points: impl ExactSizeIterator<Item = &'a Point>,
        over: usize,
        series: fn(&Point) -> f32,
    ) -> f32 {
        let skipped = points.len().saturating_sub(over);
        let recent: Vec<f32> = points.skip(skipped).map(series).collect();
        if recent.is_empty() {
            return 0.0;
        }
        recent.iter().sum::<f32>() / recent.len() as f32
    }
}

/// How many points stand for `elapsed`: none for half a step, and never more than are kept.
fn whole_steps(elapsed: Duration) -> usize {
    let steps = (elapsed + STEP / 2).as_nanos() / STEP.as_nanos();
    usize::try_from(steps).unwrap_or(POINTS).min(POINTS)
}

fn push(points: &mut Ring, point: Point, times: usize) {
    for _ in 0..times {
        if points.len() == POINTS {
            points.pop_front();
        }
        points.push_back(point);
    }
}

impl Point {
    // What a second holds is far below what an f32 holds exactly, or need not be exact.
    #[allow(clippy::cast_precision_loss, reason = "for a chart")]
    fn new(happened: &Counted, (waiting, in_use): (usize, usize), elapsed: Duration) -> Self {
        let a_second = |count: u64| count as f32 / elapsed.as_secs_f32();
        let totals = &happened.totals;
        Self {
            statements: a_second(totals.queries),
            transactions: a_second(totals.transactions),
            errors: a_second(happened.errors),
            latency: Quantiles::of(&happened.latency),
            wait: match totals.server_assignments {
                0 => 0.0,
                assignments => totals.wait_time as f32 / 1e6 / assignments as f32,
            },
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            in_use: u32::try_from(in_use).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Histogram;

    fn key(name: &str) -> Key {
        (name.into(), "u".into())
    }

    fn reading(name: &str, queries: u64) -> (Key, Reading) {
        let totals = Totals {
            queries,
            server_assignments: queries,
            wait_time: queries * 500,
            ..Totals::default()
        };
        let latency = Histogram::default();
        for _ in 0..queries {
            latency.record_duration(Duration::from_millis(8));
        }
        let reading = Reading {
            counted: Counted {
                totals,
                errors: queries / 10,
                latency: latency.sample(),
            },
            waiting: 2,
            in_use: 3,
        };
        (key(name), reading)
    }

    fn of<const N: usize>(readings: [(Key, Reading); N]) -> BTreeMap<Key, Reading> {
        readings.into()
    }

    fn statements<'a>(points: impl Iterator<Item = &'a Point>) -> Vec<f32> {
        points.map(|point| point.statements).collect()
    }

    #[test]
    fn a_point_is_what_happened_in_its_second() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start);
        timeline.record(of([reading("a", 100)]), start + STEP);
        timeline.record(of([reading("a", 130), reading("b", 5)]), start + 2 * STEP);
        assert_eq!(statements(timeline.whole()), [100.0, 35.0]);
        assert_eq!(
            statements(timeline.of_pool("a", "u").unwrap()),
            [100.0, 30.0]
        );
        assert_eq!(statements(timeline.of_pool("b", "u").unwrap()), [5.0]);
        let last = *timeline.whole().last().unwrap();
        assert_eq!((last.waiting, last.in_use), (4, 6));
        assert!((last.errors - 3.0).abs() < 1e-6, "{}", last.errors);
        let latency = last.latency.unwrap();
        assert!((latency.p50 - 0.008).abs() < 0.000_16, "{latency:?}");
        assert_eq!(Point::default().latency, None);
        assert!((last.wait - 0.0005).abs() < 1e-6, "{}", last.wait);
        assert!(timeline.of_pool("c", "u").is_none());
        let recent = Timeline::recent(timeline.whole(), 5, |point| point.statements);
        assert!((recent - 67.5).abs() < 1e-3, "{recent}");
    }

    #[test]
    fn a_late_reading_stands_for_the_seconds_it_missed() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start);
        timeline.record(of([reading("a", 10)]), start + STEP);
        timeline.record(of([reading("a", 40)]), start + 4 * STEP);
        // Too early to be one of its own: its second is not over.
        timeline.record(of([reading("a", 41)]), start + 4 * STEP + STEP / 3);
        assert_eq!(statements(timeline.whole()), [10.0, 10.0, 10.0, 10.0]);
        assert_eq!(timeline.count(), 4);
    }

    #[test]
    fn points_and_pools_are_bounded_and_pools_that_went_make_room() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start);
        let names: Vec<String> = (0..POOLS_MAX + 3).map(|n| format!("{n:03}")).collect();
        let all = || names.iter().map(|name| reading(name, 1)).collect();
        let mut at = start;
        for _ in 0..POINTS + 10 {
            at += STEP;
            timeline.record(all(), at);
        }
        assert_eq!(timeline.whole().len(), POINTS);
        assert_eq!(timeline.count(), (POINTS + 10) as u64);
        let tracked = |timeline: &Timeline, name: &str| timeline.of_pool(name, "u").is_some();
        assert!(tracked(&timeline, "000") && !tracked(&timeline, "034"));
        // One that goes is kept as long as its points are of interest, unless another needs its place.
        for _ in 0..5 {
            at += STEP;
            timeline.record(of([reading("001", 1)]), at);
        }
        assert!(tracked(&timeline, "000"));
        assert_eq!(
            *timeline.of_pool("000", "u").unwrap().last().unwrap(),
            Point::default()
        );
        timeline.record(of([reading("001", 1), reading("new", 7)]), at + STEP);
        assert!(tracked(&timeline, "new"));
        let kept = names.iter().filter(|name| tracked(&timeline, name)).count();
        assert_eq!(kept, POOLS_MAX - 1);
        timeline.record(BTreeMap::new(), at + 2 * STEP);
        timeline.record(
            BTreeMap::new(),
            at + STEP * u32::try_from(POINTS).unwrap() * 2,
        );
        timeline.record(
            BTreeMap::new(),
            at + STEP * u32::try_from(POINTS).unwrap() * 4,
        );
        assert_eq!(timeline.pools.len(), 0);
        assert_eq!(timeline.whole().len(), POINTS);
    }
}
