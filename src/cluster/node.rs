//! One server as sessions use it: its address, and how busy it is. What it is at the moment is in the topology.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::model;

/// A server of a cluster; the same for as long as the cluster is configured.
#[derive(Debug)]
pub struct Node {
    /// `HOST:PORT`.
    pub name: Arc<str>,
    pub server: model::Node,
    /// Its place among the cluster's servers.
    pub index: usize,
    pub load: Load,
    /// Rings when its probe is to be made before its time.
    pub(super) wake: Notify,
}

/// After this long without an answer half of what is known of a server's latency is forgotten: one that was slow once
/// is tried again.
const HALF_LIFE: Duration = Duration::from_millis(200);

/// What balancing goes by.
#[derive(Debug)]
pub struct Load {
    /// Reads that were sent and are not answered.
    pub outstanding: AtomicUsize,
    /// How long reads take, as an average that forgets, in microseconds; 0 until there was one.
    latency: AtomicU32,
    /// When the last read was answered, in milliseconds since `born`.
    answered: AtomicU64,
    silence: Silence,
    born: Instant,
    /// Reads sent here.
    pub reads: AtomicU64,
    /// Reads that had to be run elsewhere.
    pub failed: AtomicU64,
}

/// Whether a server answers what sessions ask it: requests of any kind, on whichever role.
#[derive(Debug, Default)]
struct Silence {
    /// Sessions that wait for an answer.
    waiting: AtomicUsize,
    /// When the last answer came, and when a session began to wait while no other did, in milliseconds.
    heard: AtomicU64,
    since: AtomicU64,
}

/// A session waits for an answer of a server, until this is dropped.
#[derive(Debug)]
pub struct Asked {
    pub node: Arc<Node>,
}

impl Asked {
    pub fn new(node: &Arc<Node>, now: Instant) -> Self {
        let load = &node.load;
        if load.silence.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            load.silence.since.store(load.age(now), Ordering::Relaxed);
        }
        Self {
            node: Arc::clone(node),
        }
    }

    /// The answer is here.
    pub fn answered(self, now: Instant) {
        let load = &self.node.load;
        load.silence.heard.store(load.age(now), Ordering::Relaxed);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.node
            .load
            .silence
            .waiting
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Load {
    fn default() -> Self {
        Self {
            outstanding: AtomicUsize::new(0),
            latency: AtomicU32::new(0),
            answered: AtomicU64::new(0),
            silence: Silence::default(),
            born: Instant::now(),
            reads: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }
}

impl Load {
    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    /// A read is sent.
    pub fn sent(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// For how long sessions have waited for an answer and none has come to any of them.
    pub fn silent_for(&self, now: Instant) -> Duration {
        if self.silence.waiting.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        let heard = self.silence.heard.load(Ordering::Relaxed);
        let since = heard.max(self.silence.since.load(Ordering::Relaxed));
        Duration::from_millis(self.age(now).saturating_sub(since))
    }

    /// A read was answered. Two at the same time may lose one of them, which does not matter to an average.
    pub fn answered(&self, took: Duration, now: Instant) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let before = self.latency.load(Ordering::Relaxed);
        let next = if before == 0 {
            took
        } else {
            before - before / 8 + took / 8
        };
        self.latency.store(next.max(1), Ordering::Relaxed);
        self.answered.store(self.age(now), Ordering::Relaxed);
    }

    /// What a read would take, for all that is known at `now`.
    pub fn expected(&self, now: Instant) -> Duration {
        let silent = self
            .age(now)
            .saturating_sub(self.answered.load(Ordering::Relaxed));
        let halvings = u128::from(silent) / HALF_LIFE.as_millis();
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        let latency = self.latency.load(Ordering::Relaxed);
        Duration::from_micros(latency.checked_shr(halvings).unwrap_or(0).into())
    }

    /// How long reads take lately.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed).into())
    }
}

impl Node {
    pub fn new(server: &model::Node, index: usize) -> Self {
        Self {
            name: server.address().into(),
            server: server.clone(),
            index,
            load: Load::default(),
            wake: Notify::new(),
        }
    }

    /// Its share of the reads beside other replicas'.
    pub fn weight(&self) -> u16 {
        self.server.weight.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_silent_while_it_answers_nothing_it_was_asked() {
        let node = Arc::new(Node::new(&model::Node::at("db".to_owned(), 5432), 0));
        let start = node.load.born;
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(node.load.silent_for(at(9)), Duration::ZERO);
        let first = Asked::new(&node, at(10));
        let second = Asked::new(&node, at(12));
        assert_eq!(node.load.silent_for(at(15)).as_secs(), 5);
        first.answered(at(16));
        assert_eq!(node.load.silent_for(at(18)).as_secs(), 2);
        drop(second);
        assert_eq!(node.load.silent_for(at(20)), Duration::ZERO);
        // A new wait begins when it begins.
        let _third = Asked::new(&node, at(30));
        assert_eq!(node.load.silent_for(at(31)).as_secs(), 1);
    }

    #[test]
    fn latency_follows_what_is_measured() {
        let load = Load::default();
        let now = Instant::now();
        load.answered(Duration::from_micros(800), now);
        assert_eq!(load.latency(), Duration::from_micros(800));
        for _ in 0..100 {
            load.answered(Duration::from_micros(8), now);
        }
        assert!(
            load.latency() < Duration::from_micros(20),
            "{:?}",
            load.latency()
        );
        load.answered(Duration::from_secs(100_000), now);
        assert!(load.latency() > Duration::from_secs(500));
        assert_eq!(load.expected(now), load.latency());
        let later = now + Duration::from_secs(60);
        assert_eq!(load.expected(later), Duration::ZERO);
    }
}
