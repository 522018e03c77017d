//! How far the primary's log was at known times: what a replica must have replayed to have seen what was written
//! before.
//!
//! A sample is the primary's answer to "where is your log?", with the *tick* that was drawn before the question was
//! sent. Whoever has read the acknowledgement of a write draws the current tick after it: a sample with a later tick
//! was asked for after the write had been acknowledged, so its position is at or past the write's end. No clock
//! decides about that, and nothing is asked on a statement's own time.
//!
//! # Invariants
//! - Samples are of one primary on one timeline; whoever keeps them begins anew when that changes.
//! - Later samples have later ticks and positions that are not smaller.
//!
//! Bound: `SAMPLES_MAX`; the oldest is forgotten first, which only makes a far lagging replica look older still.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::lsn::Lsn;

/// With one sample every 20 ms, 80 seconds.
const SAMPLES_MAX: usize = 4096;

/// The order of events that no clock tells: see the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

/// The primary's log at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Drawn before the question was sent.
    pub tick: Tick,
    /// When the question was sent.
    pub asked: Instant,
    pub lsn: Lsn,
}

/// Everything acknowledged before this is on the replica it is said of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    pub tick: Tick,
    pub at: Instant,
}

/// A sample, and since when the log is known to be that long.
#[derive(Clone, Copy, Debug)]
struct Kept {
    sample: Sample,
    since: Instant,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    samples: VecDeque<Kept>,
}

impl Samples {
    /// Adds a sample. One that came late (an answer overtaken by a later one) says nothing new.
    pub fn push(&mut self, sample: Sample) {
        if self
            .newest()
            .is_some_and(|newest| newest.tick >= sample.tick)
        {
            return;
        }
        let mut since = sample.asked;
        // A later question with an answer that is not larger says more: after a crash the log is shorter.
        while let Some(newest) = self.samples.back()
            && newest.sample.lsn >= sample.lsn
        {
            since = newest.since;
            self.samples.pop_back();
        }
        if self.samples.len() >= SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Kept { sample, since });
    }

    pub fn newest(&self) -> Option<Sample> {
        self.samples.back().map(|kept| kept.sample)
    }

    /// How many samples a replica covers that has replayed up to `replayed`.
    fn covered(&self, replayed: Lsn) -> usize {
        self.samples
            .partition_point(|kept| kept.sample.lsn <= replayed)
    }

    /// Another primary, another timeline.
    pub fn clear(&mut self) {
        self.samples.clear();
    }

    /// What a replica that has replayed up to `replayed` has seen for certain.
    pub fn fresh(&self, replayed: Lsn) -> Option<Fresh> {
        let last = self.covered(replayed).checked_sub(1)?;
        let Kept { sample, .. } = self.samples.get(last)?;
        Some(Fresh {
            tick: sample.tick,
            at: sample.asked,
        })
    }

    /// Since when something is in the primary's log that a replica at `replayed` has not; `None` if nothing is known to
    /// be.
    pub fn behind_since(&self, replayed: Lsn) -> Option<Instant> {
        let first = self.covered(replayed);
        Some(self.samples.get(first)?.since)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn sample(start: Instant, tick: u64, lsn: u64) -> Sample {
        Sample {
            tick: Tick(tick),
            asked: start + Duration::from_secs(tick),
            lsn: Lsn(lsn),
        }
    }

    #[test]
    fn a_replica_is_as_fresh_as_the_newest_sample_it_covers() {
        let start = Instant::now();
        let mut samples = Samples::default();
        assert_eq!(samples.fresh(Lsn(100)), None);
        for (tick, lsn) in [(1, 10), (2, 20), (3, 20), (4, 30)] {
            samples.push(sample(start, tick, lsn));
        }
        let tick = |lsn| samples.fresh(Lsn(lsn)).map(|fresh| fresh.tick.0);
        assert_eq!(tick(9), None);
        assert_eq!(tick(10), Some(1));
        assert_eq!(tick(29), Some(3));
        assert_eq!(tick(99), Some(4));
        // From the first sample that it lacks, however long the log has been that long since.
        assert_eq!(
            samples.behind_since(Lsn(10)),
            Some(start + Duration::from_secs(2))
        );
        assert_eq!(samples.behind_since(Lsn(30)), None);
    }

    #[test]
    fn a_log_that_became_shorter_asks_for_less() {
        let start = Instant::now();
        let mut samples = Samples::default();
        samples.push(sample(start, 1, 10));
        samples.push(sample(start, 2, 50));
        samples.push(sample(start, 3, 40));
        assert_eq!(samples.fresh(Lsn(45)).unwrap().tick, Tick(3));
        samples.push(sample(start, 2, 60));
        assert_eq!(samples.newest().unwrap().lsn, Lsn(40));
    }

    /// What happens in the model: time passes only between the steps of different actors.
    #[derive(Clone, Debug)]
    enum Step {
        /// A commit on the primary; its session reads the acknowledgement later.
        Write {
            session: usize,
        },
        /// The session reads the acknowledgement of its last write.
        Acknowledge {
            session: usize,
        },
        Ask,
        /// The primary looks at its log for the oldest open question.
        Look,
        /// The answer is taken in.
        Answer,
        /// The replica replays so many of the records it lacks.
        Replay {
            records: u64,
        },
        /// The replica is asked; the answer is taken in some steps later.
        AskReplica,
        AnswerReplica,
        /// The session reads, from the replica if it may.
        Read {
            session: usize,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let session = 0..3usize;
        prop_oneof![
            session.clone().prop_map(|session| Step::Write { session }),
            session
                .clone()
                .prop_map(|session| Step::Acknowledge { session }),
            Just(Step::Ask),
            Just(Step::Look),
            Just(Step::Answer),
            (0..4u64).prop_map(|records| Step::Replay { records }),
            Just(Step::AskReplica),
            Just(Step::AnswerReplica),
            session.prop_map(|session| Step::Read { session }),
        ]
    }

    /// A primary, a replica and three sessions. The log is a count of records.
    #[derive(Default)]
    struct Model {
        samples: Samples,
        clock: u64,
        /// The primary's log and how far the replica has replayed it.
        log: u64,
        replayed: u64,
        /// The question of the primary under way: its tick, and the answer once it was looked up.
        question: Option<(Tick, Option<u64>)>,
        replica_answer: Option<u64>,
        fresh: Option<Fresh>,
        /// Per session: its last write not yet acknowledged, its last acknowledged one, the tick it must see.
        sessions: [(u64, u64, Tick); 3],
        anyones: (u64, Tick),
    }

    impl Model {
        fn take(&mut self, step: &Step, start: Instant) {
            match *step {
                Step::Write { session } => {
                    self.log += 1;
                    self.sessions[session].0 = self.log;
                }
                Step::Acknowledge { session } => {
                    let (written, acknowledged, needs) = &mut self.sessions[session];
                    *acknowledged = *written;
                    *needs = Tick(self.clock + 1);
                    self.anyones.0 = self.anyones.0.max(*acknowledged);
                    self.anyones.1 = self.anyones.1.max(*needs);
                }
                Step::Ask if self.question.is_none() => {
                    self.clock += 1;
                    self.question = Some((Tick(self.clock), None));
                }
                Step::Look => {
                    if let Some((_, answer @ None)) = &mut self.question {
                        *answer = Some(self.log);
                    }
                }
                Step::Answer => {
                    if let Some((tick, Some(lsn))) = self.question {
                        self.samples.push(sample(start, tick.0, lsn));
                        self.question = None;
                    }
                }
                Step::Replay { records } => {
                    self.replayed = (self.replayed + records).min(self.log);
                }
                Step::AskReplica => self.replica_answer = Some(self.replayed),
                Step::AnswerReplica => {
                    if let Some(replayed) = self.replica_answer.take() {
                        self.fresh = self.samples.fresh(Lsn(replayed));
                    }
                }
                Step::Read { session } => self.read(session),
                Step::Ask => {}
            }
        }

        fn read(&self, session: usize) {
            let Some(fresh) = self.fresh else {
                return;
            };
            let (_, acknowledged, needs) = self.sessions[session];
            if fresh.tick >= needs {
                assert!(self.replayed >= acknowledged, "missed its own write");
            }
            if fresh.tick >= self.anyones.1 {
                assert!(self.replayed >= self.anyones.0, "missed another's write");
            }
        }
    }

    proptest! {
        #[test]
        fn no_session_misses_what_was_acknowledged(steps in proptest::collection::vec(step(), 0..200)) {
            let start = Instant::now();
            let mut model = Model::default();
            for step in &steps {
                model.take(step, start);
            }
        }
    }
}
