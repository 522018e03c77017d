//! What the probes found, put together: which server is the primary, what state each one is in, how fresh it is.
//!
//! Pure: findings and times come in, a picture and what is worth telling come out.
//!
//! # Invariants
//! - Nothing is decided before every server was asked once: the first to answer may be a primary of yesterday.
//! - A server on a timeline below the highest ever seen is no primary, whether or not another one is at hand; nor does
//!   one that was the primary stay it.
//! - Of two that claim it on one timeline, the one that is the primary already stays.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lsn::Lsn;
use super::node::Node;
use super::samples::{Sample, Samples, Tick};
use super::state::{Health, Moved, NodeState, Rules, Verdict};
use super::topology::{Attested, NodeView, Role, Topology};

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub in_recovery: bool,
    /// `None` where the server does not tell this user.
    pub system: Option<u64>,
    pub timeline: Option<u32>,
    /// Where the next record goes, page heads left out; on a primary.
    pub inserted: Option<Lsn>,
    /// How far the log is flushed, before which no replica gets it; on a primary.
    pub flushed: Option<Lsn>,
    /// On a replica.
    pub received: Option<Lsn>,
    pub replayed: Option<Lsn>,
    /// Drawn before it was asked.
    pub tick: Tick,
    pub asked: Instant,
    pub took: Duration,
}

/// What a probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Answer(Answer),
    /// No connection, no answer in time, or none that makes sense.
    Failed(Arc<str>),
    /// The server is there and lets the probe's user in no further.
    Denied(Arc<str>),
    /// The server is there and has no connection to spare.
    Full(Arc<str>),
}

/// What is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Moved {
        node: usize,
        moved: Moved,
    },
    /// The primary is another server now.
    Primary {
        from: Option<usize>,
        to: usize,
        timeline: Option<u32>,
    },
    /// The primary has gone on to a higher timeline: another server has taken its place behind the same name, or it was
    /// restored or promoted where it is.
    Renewed {
        node: usize,
        timeline: u32,
    },
    /// Nobody can be asked; the configured primary is taken for it.
    Assumed {
        node: usize,
    },
    /// The primary is on a timeline that the cluster has left: another server was promoted, whichever it is.
    Outdated {
        node: usize,
        timeline: u32,
    },
}

#[derive(Clone, Debug)]
struct Entry {
    node: Arc<Node>,
    health: Health,
    /// The last finding, and the last answer if there was one since the server's last fall.
    finding: Option<Finding>,
    answer: Option<Answer>,
    /// As of the last picture.
    lag: Option<Duration>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Board {
    entries: Vec<Entry>,
    rules: Rules,
    primary: Option<usize>,
    /// The last primary there was, and the highest timeline it was seen on.
    last: Option<(usize, Option<u32>)>,
    system: Option<u64>,
    timeline_max: u32,
    samples: Samples,
    /// The timeline that the samples are of.
    sampled: Option<u32>,
    /// How far the primary had flushed its log when it was asked last.
    flushed: Option<Lsn>,
    held_since: Option<Instant>,
}

impl Board {
    pub fn new(nodes: &[Arc<Node>], rules: Rules, now: Instant) -> Self {
        let entry = |node: &Arc<Node>| Entry {
            node: Arc::clone(node),
            health: Health::new(now),
            finding: None,
            answer: None,
            lag: None,
        };
        Self {
            entries: nodes.iter().map(entry).collect(),
            rules,
            primary: None,
            last: None,
            system: None,
            timeline_max: 0,
            samples: Samples::default(),
            sampled: None,
            flushed: None,
            held_since: Some(now),
        }
    }

    /// Goes on with what was known of servers that are listed otherwise now.
    pub fn inherit(&mut self, before: &Self) {
        let same =
            |own: &Entry, theirs: &Entry| own.node.server.is_same_server(&theirs.node.server);
        let mut shares = false;
        for entry in &mut self.entries {
            if let Some(known) = before.entries.iter().find(|theirs| same(entry, theirs)) {
                shares = true;
                if known.health.is_drained() {
                    entry.health.drain(true);
                }
            }
        }
        let is_other =
            self.system.is_some() && before.system.is_some_and(|it| self.system != Some(it));
        if !shares || is_other {
            return;
        }
        self.system = self.system.or(before.system);
        self.timeline_max = self.timeline_max.max(before.timeline_max);
        if let Some((last, timeline)) = before.last
            && let Some(theirs) = before.entries.get(last)
            && let Some(place) = self.entries.iter().position(|own| same(own, theirs))
            && self.last.is_none_or(|(_, known)| timeline > known)
        {
            self.last = Some((place, timeline));
        }
    }

    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Takes a server out of service or lets it back; false for the primary, which can't be.
    pub fn drain(&mut self, node: usize, drained: bool) -> bool {
        if drained && self.primary == Some(node) {
            return false;
        }
        if let Some(entry) = self.entries.get_mut(node) {
            entry.health.drain(drained);
        }
        true
    }

    pub fn newest_sample(&self) -> Option<Sample> {
        self.samples.newest()
    }

    /// Takes in what a probe of server `node` came to.
    pub fn take(&mut self, node: usize, finding: Finding, now: Instant) -> Vec<Event> {
        let Some(entry) = self.entries.get_mut(node) else {
            return Vec::new();
        };
        if let Finding::Answer(answer) = &finding {
            entry.answer = Some(answer.clone());
        }
        entry.finding = Some(finding);
        let mut events = Vec::new();
        if self.entries.iter().all(|entry| entry.finding.is_some()) {
            self.know_system();
            self.raise_timeline();
            self.elect(&mut events);
            self.sample();
            self.judge(node, now, &mut events);
        }
        let is_held = self.is_held();
        self.held_since = is_held.then(|| self.held_since.unwrap_or(now));
        events
    }

    /// The cluster is the one that the first of the listed servers belongs to; while that does not tell, the one that
    /// most of those belong to which do. Where as many belong to another one, none is known.
    fn know_system(&mut self) {
        if self.system.is_some() {
            return;
        }
        let told = |entry: &Entry| entry.answer.as_ref()?.system;
        self.system = self.entries.first().and_then(told).or_else(|| {
            let all: Vec<u64> = self.entries.iter().filter_map(told).collect();
            let votes = |system: u64| all.iter().filter(|it| **it == system).count();
            let most = *all.iter().max_by_key(|it| votes(**it))?;
            let is_sure = |it: &u64| *it == most || votes(*it) < votes(most);
            all.iter().all(is_sure).then_some(most)
        });
    }

    /// Where it is not known which cluster it is, whoever tells one may be of another.
    fn is_foreign(&self, answer: &Answer) -> bool {
        answer.system.is_some_and(|own| self.system != Some(own))
    }

    /// The timeline that the server is on, for all that is known, if that is one the cluster has left.
    fn outdated(&self, place: usize) -> Option<u32> {
        let answer = self.entries.get(place)?.answer.as_ref()?;
        let timeline = answer.timeline.filter(|_| !self.is_foreign(answer))?;
        (timeline < self.timeline_max).then_some(timeline)
    }

    fn raise_timeline(&mut self) {
        let own = |entry: &Entry| {
            let answer = entry.answer.as_ref()?;
            answer.timeline.filter(|_| !self.is_foreign(answer))
        };
        let highest = self.entries.iter().filter_map(own).max().unwrap_or(0);
        self.timeline_max = self.timeline_max.max(highest);
    }

    /// Whether a server takes writes, for all that is known, and belongs here.
    fn claims(&self, entry: &Entry) -> bool {
        let is_down = entry.health.state() == NodeState::Down
            && !matches!(entry.finding, Some(Finding::Answer(_)));
        entry.answer.as_ref().is_some_and(|answer| {
            !is_down
                && !answer.in_recovery
                && !self.is_foreign(answer)
                && answer.timeline.unwrap_or(self.timeline_max) >= self.timeline_max
        })
    }

    fn elect(&mut self, events: &mut Vec<Event>) {
        let claims = |place: &usize| {
            self.entries
                .get(*place)
                .is_some_and(|entry| self.claims(entry))
        };
        let incumbent = self.primary.filter(claims);
        let elected = incumbent.or_else(|| (0..self.entries.len()).find(claims));
        if let Some(to) = elected {
            self.follow(to, events);
            return;
        }
        match self.primary {
            // Demoted: whoever is next, it is not this one.
            Some(place) if self.is_demoted(place) => self.primary = None,
            Some(node) => {
                if let Some(timeline) = self.outdated(node) {
                    self.primary = None;
                    events.push(Event::Outdated { node, timeline });
                }
            }
            None if self.is_assumed() => {
                self.primary = Some(0);
                self.last = Some((0, None));
                events.push(Event::Assumed { node: 0 });
            }
            None => {}
        }
    }

    /// Server `to` is the primary.
    fn follow(&mut self, to: usize, events: &mut Vec<Event>) {
        let timeline = self.entries[to].answer.as_ref().and_then(|a| a.timeline);
        let is_same = self.primary.replace(to) == Some(to);
        let before = self.last.replace((to, timeline));
        match before {
            Some((last, seen)) if last == to => {
                self.last = Some((to, timeline.max(seen)));
                if let (Some(timeline), Some(seen)) = (timeline, seen)
                    && timeline > seen
                {
                    self.samples.clear();
                    let node = to;
                    events.push(Event::Renewed { node, timeline });
                    return;
                }
            }
            Some((last, _)) => {
                self.samples.clear();
                let from = Some(last);
                events.push(Event::Primary { from, to, timeline });
                return;
            }
            None => {}
        }
        if !is_same {
            self.samples.clear();
            let from = None;
            events.push(Event::Primary { from, to, timeline });
        }
    }

    fn is_demoted(&self, place: usize) -> bool {
        let finding = &self.entries[place].finding;
        matches!(finding, Some(Finding::Answer(answer)) if answer.in_recovery || self.is_foreign(answer))
    }

    /// The configured primary is there and can't be asked, and nobody else takes writes.
    fn is_assumed(&self) -> bool {
        let first = self.entries.first();
        first.is_some_and(|entry| matches!(entry.finding, Some(Finding::Denied(_))))
            && self.outdated(0).is_none()
    }

    /// What the primary said last is a sample, unless it is one already.
    fn sample(&mut self) {
        let primary = self.primary.and_then(|place| self.entries.get(place));
        let Some(Finding::Answer(answer)) = primary.and_then(|entry| entry.finding.as_ref()) else {
            return;
        };
        if self.sampled != answer.timeline {
            self.samples.clear();
            self.sampled = answer.timeline;
        }
        self.flushed = answer.flushed;
        if let (Some(lsn), Some(_)) = (answer.inserted, answer.timeline) {
            self.samples.push(Sample {
                tick: answer.tick,
                asked: answer.asked,
                lsn,
            });
        }
    }

    /// Moves the server's state on, and those of servers whose claim the election has decided about.
    fn judge(&mut self, node: usize, now: Instant, events: &mut Vec<Event>) {
        let decides = |event: &Event| {
            matches!(
                event,
                Event::Primary { .. } | Event::Renewed { .. } | Event::Outdated { .. }
            )
        };
        let decided = events.iter().any(decides);
        for place in 0..self.entries.len() {
            let is_first = self.entries[place].health.state() == NodeState::Unprobed;
            if place != node && !is_first && !decided {
                continue;
            }
            let verdict = self.verdict(place, now);
            // What failed is counted once for each probe.
            if verdict == Verdict::Failed && place != node && !is_first {
                continue;
            }
            let entry = &mut self.entries[place];
            entry.lag = match verdict {
                Verdict::Replica { lag } => Some(lag),
                Verdict::Full => entry.lag,
                _ => None,
            };
            if let Some(moved) = entry.health.find(verdict, self.rules, now) {
                if moved.to == NodeState::Down {
                    entry.answer = None;
                }
                events.push(Event::Moved { node: place, moved });
            }
        }
    }

    fn verdict(&self, place: usize, now: Instant) -> Verdict {
        let entry = &self.entries[place];
        match &entry.finding {
            Some(Finding::Denied(_)) if self.primary == Some(place) => Verdict::Primary,
            Some(Finding::Failed(_) | Finding::Denied(_)) | None => Verdict::Failed,
            Some(Finding::Full(_)) => Verdict::Full,
            Some(Finding::Answer(answer)) if self.is_foreign(answer) => Verdict::Foreign,
            Some(Finding::Answer(answer)) if answer.in_recovery => Verdict::Replica {
                lag: self.lag(answer, now),
            },
            Some(Finding::Answer(_)) if self.primary == Some(place) => Verdict::Primary,
            Some(Finding::Answer(_)) => Verdict::Stale,
        }
    }

    /// For how long something has been in the log that the replica could have replayed and has not.
    fn lag(&self, answer: &Answer, now: Instant) -> Duration {
        let lacks = |replayed: &Lsn| self.flushed.is_none_or(|flushed| *replayed < flushed);
        answer
            .replayed
            .filter(lacks)
            .and_then(|replayed| self.samples.behind_since(replayed))
            .map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    fn is_held(&self) -> bool {
        match self.primary {
            None => true,
            Some(place) => self.entries[place].health.state() != NodeState::Up,
        }
    }

    /// The picture as it is now.
    pub fn topology(&self) -> Topology {
        Topology {
            nodes: (0..self.entries.len())
                .map(|place| self.view(place))
                .collect(),
            primary: self.primary,
            is_held: self.is_held(),
            held_since: self.held_since,
        }
    }

    fn view(&self, place: usize) -> NodeView {
        let entry = &self.entries[place];
        let answer = entry.answer.as_ref();
        let role = match answer {
            None if self.primary == Some(place) => Role::Primary,
            None => Role::Unknown,
            Some(answer) if answer.in_recovery => Role::Replica,
            Some(_) => Role::Primary,
        };
        let replayed = answer.and_then(|answer| answer.replayed);
        let newest = self.samples.newest();
        let is_replica = role == Role::Replica;
        let lag_bytes = newest
            .zip(replayed)
            .filter(|_| is_replica && answer.is_some_and(|a| a.timeline == self.sampled))
            .map(|(newest, replayed)| newest.lsn.ahead_of(replayed));
        NodeView {
            node: Arc::clone(&entry.node),
            role,
            state: entry.health.state(),
            since: entry.health.since(),
            timeline: answer.and_then(|answer| answer.timeline),
            written: answer.and_then(|answer| answer.inserted.or(answer.received)),
            replayed,
            lag_bytes,
            lag: entry.lag.filter(|_| is_replica),
            attested: answer.and_then(|answer| self.attested(answer)),
            probed: answer.map(|answer| answer.asked),
            probe_took: answer.map_or(Duration::ZERO, |answer| answer.took),
            error: match &entry.finding {
                Some(Finding::Failed(error) | Finding::Denied(error) | Finding::Full(error)) => {
                    Some(Arc::clone(error))
                }
                Some(Finding::Answer(_)) | None => None,
            },
        }
    }

    fn attested(&self, answer: &Answer) -> Option<Attested> {
        let comparable = answer.in_recovery
            && answer.timeline.is_some()
            && answer.timeline == self.sampled
            && !self.is_foreign(answer);
        let fresh = self
            .samples
            .fresh(answer.replayed.filter(|_| comparable)?)?;
        Some(Attested {
            at: answer.asked,
            fresh,
        })
    }
}

#[cfg(test)]
#[path = "board/tests.rs"]
mod tests;
