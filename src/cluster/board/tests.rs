//! Stories of clusters: discovery, failover, split brains, foreigners.

use super::*;
use crate::config::model;

const RULES: Rules = Rules {
    down_after: 3,
    lag_max: Some(Duration::from_secs(60)),
};

/// A board of three servers and a clock.
struct Story {
    board: Board,
    now: Instant,
    tick: u64,
}

impl Story {
    fn new() -> Self {
        let now = Instant::now();
        let nodes: Vec<_> = (0..3)
            .map(|index| {
                Arc::new(Node::new(
                    &model::Node::at(format!("db{index}"), 5432),
                    index,
                ))
            })
            .collect();
        Self {
            board: Board::new(&nodes, RULES, now),
            now,
            tick: 0,
        }
    }

    /// Like a story in which server 0 is the primary and the others follow.
    fn begun() -> Self {
        let mut story = Self::new();
        story.primary(0, 1, 100);
        story.replica(1, 1, 100);
        story.replica(2, 1, 100);
        story
    }

    fn answer(&mut self) -> Answer {
        self.tick += 1;
        self.now += Duration::from_millis(10);
        Answer {
            in_recovery: true,
            system: Some(7),
            timeline: Some(1),
            inserted: None,
            flushed: None,
            received: None,
            replayed: None,
            tick: Tick(self.tick),
            asked: self.now,
            took: Duration::from_millis(1),
        }
    }

    fn primary(&mut self, node: usize, timeline: u32, lsn: u64) -> Vec<Event> {
        let answer = Answer {
            in_recovery: false,
            timeline: Some(timeline),
            inserted: Some(Lsn(lsn)),
            flushed: Some(Lsn(lsn)),
            ..self.answer()
        };
        self.board.take(node, Finding::Answer(answer), self.now)
    }

    fn replica(&mut self, node: usize, timeline: u32, lsn: u64) -> Vec<Event> {
        let answer = Answer {
            timeline: Some(timeline),
            received: Some(Lsn(lsn)),
            replayed: Some(Lsn(lsn)),
            ..self.answer()
        };
        self.board.take(node, Finding::Answer(answer), self.now)
    }

    fn fails(&mut self, node: usize) -> Vec<Event> {
        self.board
            .take(node, Finding::Failed("gone".into()), self.now)
    }

    fn falls(&mut self, node: usize) {
        for _ in 0..RULES.down_after {
            self.fails(node);
        }
    }

    fn states(&self) -> Vec<&'static str> {
        let topology = self.board.topology();
        topology
            .nodes
            .iter()
            .map(|view| view.state.as_str())
            .collect()
    }

    fn leader(&self) -> (Option<usize>, bool) {
        let topology = self.board.topology();
        (topology.primary, topology.is_held)
    }
}

#[test]
fn the_primary_is_found_wherever_it_stands_in_the_list_and_not_before_all_were_asked() {
    let mut story = Story::new();
    story.primary(2, 1, 100);
    story.replica(0, 1, 100);
    assert_eq!(story.leader(), (None, true));
    let events = story.fails(1);
    assert!(events.contains(&Event::Primary {
        from: None,
        to: 2,
        timeline: Some(1)
    }));
    assert_eq!(story.leader(), (Some(2), false));
    assert_eq!(story.states(), ["up", "down", "up"]);
}

#[test]
fn the_first_to_answer_may_be_a_primary_of_yesterday() {
    let mut story = Story::new();
    story.primary(0, 1, 900);
    story.replica(2, 2, 100);
    story.primary(1, 2, 100);
    assert_eq!(story.leader(), (Some(1), false));
    assert_eq!(story.states(), ["fenced", "up", "up"]);
}

#[test]
fn a_promoted_replica_takes_over_and_the_old_primary_is_fenced() {
    let mut story = Story::begun();
    let events = story.primary(1, 2, 120);
    assert!(events.contains(&Event::Primary {
        from: Some(0),
        to: 1,
        timeline: Some(2)
    }));
    // It may not have been told yet that it is not the primary any more.
    assert_eq!(story.states(), ["fenced", "up", "up"]);
    story.primary(0, 1, 500);
    assert_eq!(story.leader(), (Some(1), false));
    // Nor is it used when the new one is away.
    story.falls(1);
    story.primary(0, 1, 600);
    assert_eq!(story.leader(), (Some(1), true));
    assert_eq!(story.states(), ["fenced", "down", "up"]);
}

/// The promoted server itself can't be asked; a replica that follows it tells of it.
#[test]
fn a_primary_on_a_timeline_that_the_cluster_has_left_is_none() {
    let mut story = Story::begun();
    let events = story.replica(2, 2, 120);
    let outdated = Event::Outdated {
        node: 0,
        timeline: 1,
    };
    assert!(events.contains(&outdated));
    assert_eq!(story.leader(), (None, true));
    assert_eq!(story.states(), ["fenced", "up", "up"]);
    assert!(!story.primary(0, 1, 200).contains(&outdated));
    assert_eq!(story.leader(), (None, true));
    // The same where it was down meanwhile, and though it has no connection to spare for being asked.
    let mut story = Story::begun();
    story.falls(0);
    story.replica(2, 2, 120);
    story.primary(0, 1, 200);
    assert_eq!(story.leader(), (None, true));
    let mut story = Story::begun();
    let full = Finding::Full("too many clients".into());
    story.board.take(0, full, story.now);
    story.replica(2, 2, 120);
    assert_eq!(story.leader(), (None, true));
    // The promoted one, or the same one on the new timeline, is the primary.
    story.primary(1, 2, 130);
    assert_eq!(story.leader(), (Some(1), false));
    let mut story = Story::begun();
    story.replica(2, 2, 120);
    let events = story.primary(0, 2, 130);
    assert!(events.contains(&Event::Renewed {
        node: 0,
        timeline: 2
    }));
    assert_eq!(story.leader(), (Some(0), false));
}

#[test]
fn statements_wait_while_the_primary_is_down_and_go_on_when_it_is_back() {
    let mut story = Story::begun();
    story.fails(0);
    story.fails(0);
    assert_eq!(story.leader(), (Some(0), false));
    story.fails(0);
    assert_eq!(story.leader(), (Some(0), true));
    assert!(story.board.topology().held_since.is_some());
    story.primary(0, 1, 100);
    assert_eq!(story.leader(), (Some(0), false));
    assert!(story.board.topology().held_since.is_none());
}

#[test]
fn a_demoted_primary_is_none() {
    let mut story = Story::begun();
    story.replica(0, 1, 100);
    assert_eq!(story.leader(), (None, true));
    story.primary(2, 2, 110);
    assert_eq!(story.leader(), (Some(2), false));
    story.replica(0, 2, 110);
    assert_eq!(story.states()[2], "up");
}

#[test]
fn a_primary_that_was_seen_demoted_first_is_followed_by_another_all_the_same() {
    let mut story = Story::begun();
    story.replica(0, 1, 100);
    let events = story.primary(2, 2, 110);
    assert!(events.contains(&Event::Primary {
        from: Some(0),
        to: 2,
        timeline: Some(2)
    }));
    // The same one again is no failover, unless it went on to another timeline meanwhile.
    story.replica(2, 2, 120);
    assert_eq!(story.leader(), (None, true));
    let events = story.primary(2, 2, 120);
    assert!(events.contains(&Event::Primary {
        from: None,
        to: 2,
        timeline: Some(2)
    }));
    story.replica(2, 2, 120);
    let events = story.primary(2, 3, 130);
    assert!(events.contains(&Event::Renewed {
        node: 2,
        timeline: 3
    }));
    assert_eq!(story.leader(), (Some(2), false));
}

#[test]
fn a_primary_on_a_higher_timeline_is_another_one_though_its_name_is_the_same() {
    let mut story = Story::begun();
    let events = story.primary(0, 2, 120);
    assert_eq!(
        events,
        [Event::Renewed {
            node: 0,
            timeline: 2
        }]
    );
    assert!(story.primary(0, 2, 130).is_empty());
    // What was sampled of the old timeline says nothing of the new one.
    story.replica(1, 2, 110);
    assert!(story.board.topology().nodes[1].attested.is_none());
    story.replica(1, 2, 130);
    assert!(story.board.topology().nodes[1].attested.is_some());
}

#[test]
fn a_server_that_is_full_is_taken_to_be_alive() {
    let mut story = Story::begun();
    for _ in 0..10 {
        for node in 0..2 {
            let full = Finding::Full("too many clients".into());
            story.board.take(node, full, story.now);
        }
    }
    assert_eq!(story.leader(), (Some(0), false));
    assert_eq!(story.states(), ["up", "up", "up"]);
}

#[test]
fn of_two_on_one_timeline_the_one_that_is_the_primary_stays() {
    let mut story = Story::begun();
    story.primary(2, 1, 999);
    assert_eq!(story.leader(), (Some(0), false));
    assert_eq!(story.states(), ["up", "up", "fenced"]);
    story.falls(0);
    story.primary(2, 1, 999);
    assert_eq!(story.leader(), (Some(2), false));
}

#[test]
fn a_replica_of_another_cluster_is_refused() {
    let mut story = Story::begun();
    let answer = Answer {
        system: Some(8),
        timeline: Some(9),
        replayed: Some(Lsn(u64::MAX)),
        ..story.answer()
    };
    story.board.take(1, Finding::Answer(answer), story.now);
    assert_eq!(story.states(), ["up", "refused", "up"]);
    let topology = story.board.topology();
    assert!(topology.nodes[1].attested.is_none());
    story.primary(0, 1, 200);
    assert_eq!(story.leader(), (Some(0), false));
}

#[test]
fn where_nobody_can_be_asked_the_configured_primary_is_taken() {
    let mut story = Story::new();
    for node in 0..3 {
        story
            .board
            .take(node, Finding::Denied("no password".into()), story.now);
    }
    assert_eq!(story.leader(), (Some(0), false));
    assert_eq!(story.states(), ["up", "down", "down"]);
    // Somebody who says that it is the primary is believed more than the list.
    story.primary(1, 1, 1);
    assert_eq!(story.leader(), (Some(1), false));
}

#[test]
fn freshness_is_of_the_primarys_timeline_only() {
    let mut story = Story::begun();
    story.primary(0, 1, 200);
    story.replica(1, 1, 300);
    let tick = |story: &Story, node: usize| {
        let attested = story.board.topology().nodes[node].attested;
        attested.map(|attested| attested.fresh.tick.0)
    };
    assert_eq!(tick(&story, 1), Some(4));
    assert_eq!(tick(&story, 2), Some(1));
    assert_eq!(story.board.topology().nodes[2].lag_bytes, Some(100));
    // After a promotion nothing is known of those still on the old timeline, however far they are.
    story.primary(2, 2, 150);
    story.replica(1, 1, 900);
    assert_eq!(tick(&story, 1), None);
    story.replica(1, 2, 150);
    assert_eq!(tick(&story, 1), Some(6));
}

#[test]
fn a_replica_that_does_not_replay_begins_to_lag() {
    let mut story = Story::begun();
    for lsn in 0..70 {
        story.now += Duration::from_secs(1);
        story.primary(0, 1, 200 + lsn);
        story.replica(1, 1, 100);
    }
    assert_eq!(story.states(), ["up", "lagging", "up"]);
    let lag = story.board.topology().nodes[1].lag.unwrap();
    assert!(lag > Duration::from_secs(60), "{lag:?}");
}

#[test]
fn a_replica_lags_though_nothing_more_is_written() {
    let mut story = Story::begun();
    for _ in 0..70 {
        story.now += Duration::from_secs(1);
        story.primary(0, 1, 200);
        story.replica(1, 1, 100);
    }
    assert_eq!(story.states(), ["up", "lagging", "up"]);
    story.replica(1, 1, 200);
    assert_eq!(story.states(), ["up", "up", "up"]);
}

#[test]
fn what_the_primary_has_not_flushed_no_replica_lags_behind() {
    let mut story = Story::begun();
    for _ in 0..70 {
        story.now += Duration::from_secs(1);
        let answer = Answer {
            in_recovery: false,
            inserted: Some(Lsn(200)),
            flushed: Some(Lsn(100)),
            ..story.answer()
        };
        story.board.take(0, Finding::Answer(answer), story.now);
        story.replica(1, 1, 100);
    }
    assert_eq!(story.states(), ["up", "up", "up"]);
    assert_eq!(story.board.topology().nodes[1].lag, Some(Duration::ZERO));
}

#[test]
fn the_primary_is_not_drained() {
    let mut story = Story::begun();
    assert!(!story.board.drain(0, true));
    assert!(story.board.drain(1, true));
    story.replica(1, 1, 100);
    assert_eq!(story.states(), ["up", "draining", "up"]);
}

impl Story {
    /// An answer of a server of cluster `system`.
    fn tells(&mut self, node: usize, system: u64, in_recovery: bool) {
        let answer = Answer {
            in_recovery,
            system: Some(system),
            ..self.answer()
        };
        self.board.take(node, Finding::Answer(answer), self.now);
    }

    /// A board of the servers in these places of the old one's list, in this order.
    fn relisted(&self, places: &[usize]) -> Self {
        let nodes: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(index, place)| {
                let server = model::Node {
                    weight: Some(3),
                    ..model::Node::at(format!("db{place}"), 5432)
                };
                Arc::new(Node::new(&server, index))
            })
            .collect();
        let mut board = Board::new(&nodes, RULES, self.now);
        board.inherit(&self.board);
        Self {
            board,
            now: self.now,
            tick: self.tick,
        }
    }
}

#[test]
fn a_list_that_was_changed_goes_on_with_what_is_known_of_its_servers() {
    let mut before = Story::begun();
    before.board.drain(1, true);
    before.primary(2, 2, 120);
    let mut story = before.relisted(&[0, 1, 3]);
    // The new primary is not listed any more: the old one takes its place all the same not.
    story.primary(0, 1, 200);
    story.replica(1, 1, 100);
    story.fails(2);
    assert_eq!(story.leader(), (None, true));
    assert_eq!(story.states(), ["fenced", "draining", "down"]);
    story.tells(0, 8, false);
    assert_eq!(story.states()[0], "refused");
    // A failover during the change is one.
    let mut story = before.relisted(&[2, 1]);
    story.replica(0, 2, 120);
    let events = story.primary(1, 3, 120);
    assert!(events.contains(&Event::Primary {
        from: Some(0),
        to: 1,
        timeline: Some(3)
    }));
    // Other servers are others.
    let mut story = before.relisted(&[4, 5]);
    story.tells(0, 8, false);
    story.tells(1, 8, true);
    assert_eq!(story.leader(), (Some(0), false));
}

#[test]
fn while_the_first_server_does_not_tell_its_cluster_most_of_the_others_do() {
    let nodes = |story: &mut Story, systems: &[u64]| {
        story.fails(0);
        for (place, system) in systems.iter().enumerate() {
            // The stranger takes writes.
            story.tells(place + 1, *system, *system == 7);
        }
    };
    let mut story = Story::new().relisted(&[0, 1, 2, 3]);
    nodes(&mut story, &[8, 7, 7]);
    assert_eq!(story.leader(), (None, true));
    assert_eq!(story.states(), ["down", "refused", "up", "up"]);
    // As many of one as of the other: nobody is given anything until the first one tells.
    let mut story = Story::new();
    nodes(&mut story, &[8, 7]);
    assert_eq!(story.leader(), (None, true));
    assert_eq!(story.states(), ["down", "refused", "refused"]);
    story.tells(0, 7, false);
    story.tells(2, 7, true);
    assert_eq!(story.leader(), (Some(0), false));
    assert_eq!(story.states(), ["up", "refused", "probing_back"]);
}
