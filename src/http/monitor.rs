//! Who looks at the clock for the page: takes a reading each second, and sends readers what there is to see.
//!
//! What costs more than reading counters is only done while somebody reads, and once for all who do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::body::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::access::Role;
use super::api::Question;
use super::aside;
use super::events::{Events, Feed, places};
use super::reply::{self, Reply};
use super::view::Now;
use super::view::history::History;
use super::view::queries::{OneQuery, Queries};
use crate::shared::Shared;
use crate::status::Snapshot;
use crate::status::timeline::{self, Timeline};
use crate::status::trends::{self, Trends};

/// Seconds from one list of statements to the next: it is the largest part, and the one read slowest.
const QUERIES_EVERY: u64 = 5;

/// See the module.
#[derive(Debug)]
pub(super) struct Monitor {
    shared: Arc<Shared>,
    timeline: Mutex<Timeline>,
    trends: Mutex<Trends>,
    admins: Feed,
    stats: Feed,
    places: Arc<Semaphore>,
}

impl Monitor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            timeline: Mutex::new(Timeline::new(Instant::now())),
            trends: Mutex::default(),
            admins: Feed::new(),
            stats: Feed::new(),
            places: places(),
        }
    }

    /// Takes readings until dropped.
    pub(super) async fn run(self: Arc<Self>) {
        let mut ticks = interval_at(Instant::now() + timeline::STEP, timeline::STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut next_trends = Instant::now() + trends::STEP;
        for second in 0_u64.. {
            let now = ticks.tick().await;
            let with_trends = now >= next_trends;
            if with_trends {
                next_trends += trends::STEP;
            }
            let monitor = Arc::clone(&self);
            // What went wrong is in the log; the next second is another one.
            aside(move || monitor.take_reading(second, with_trends)).await;
        }
    }

    fn take_reading(&self, second: u64, with_trends: bool) {
        self.timeline().sample(&self.shared.pools);
        if with_trends {
            let queries = self.shared.known.queries.sample();
            self.trends().record(&queries.queries);
        }
        let with_queries = second.is_multiple_of(QUERIES_EVERY);
        for role in [Role::Stats, Role::Admin] {
            if self.feed(role).has_readers() {
                self.feed(role).send(self.frame(role, with_queries));
            }
        }
    }

    fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trends(&self) -> MutexGuard<'_, Trends> {
        self.trends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, role: Role) -> &Feed {
        match role {
            Role::Stats => &self.stats,
            Role::Admin => &self.admins,
        }
    }

    fn now<'a>(&self, snapshot: &'a Snapshot, role: Role) -> Now<'a> {
        let (timeline, trends) = (self.timeline(), self.trends());
        Now::new(&self.shared, snapshot, (&timeline, &trends), role)
    }

    /// What a reader is sent: the events of this second.
    fn frame(&self, role: Role, with_queries: bool) -> Bytes {
        let snapshot = Snapshot::of(&self.shared);
        let mut frame = Vec::new();
        let now = self.now(&snapshot, role);
        put_event(&mut frame, "now", &now);
        if with_queries {
            let queries = Queries::new(&snapshot, &self.trends(), role, "");
            put_event(&mut frame, "queries", &queries);
        }
        frame.into()
    }

    /// A reader of all that is to come; none if there are too many.
    pub(super) fn follow(&self, role: Role) -> Option<Events> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let shared = Arc::clone(&self.shared);
        let access = shared.config.load().http.clone();
        let is_valid = move || shared.config.load().http == access;
        Some(
            self.feed(role)
                .read(self.frame(role, true), permit, is_valid),
        )
    }

    pub(super) fn answer(&self, question: &Question, role: Role) -> Reply {
        if let Question::History(of) = question {
            let history = History::new(&self.timeline(), of.as_ref());
            return history.map_or_else(reply::not_found, |history| reply::json(&history));
        }
        let snapshot = Snapshot::of(&self.shared);
        let now = || self.now(&snapshot, role);
        match question {
            Question::Now | Question::History(_) => reply::json(&now()),
            Question::Pools => reply::json(&now().pools),
            Question::Nodes => reply::json(&now().nodes),
            Question::Pins => reply::json(&now().pins),
            Question::Waits => reply::json(&now().waits),
            Question::Errors => reply::json(&now().errors),
            Question::Slow => reply::json(&now().slow),
            Question::Advice => reply::json(&now().advice),
            Question::Queries(search) => {
                let queries = Queries::new(&snapshot, &self.trends(), role, search);
                reply::json(&queries)
            }
            Question::Query(id) => match OneQuery::new(&snapshot, &self.trends(), role, *id) {
                Some(query) => reply::json(&query),
                None => reply::not_found(),
            },
        }
    }
}

/// JSON has no line breaks but in strings, where they are escaped, so that an event's data is one line.
fn put_event(frame: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    frame.extend_from_slice(b"event: ");
    frame.extend_from_slice(name.as_bytes());
    frame.extend_from_slice(b"\ndata: ");
    // Writing to a vector can't fail, and nothing here has keys that are no strings.
    let _ = serde_json::to_writer(&mut *frame, data);
    frame.extend_from_slice(b"\n\n");
}
