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
use super::events::{Events, Feed, places};
use super::reply::{self, Reply};
use super::view::{History, Now};
use crate::shared::Shared;
use crate::status::Snapshot;
use crate::status::timeline::{STEP, Timeline};

/// See the module.
#[derive(Debug)]
pub(super) struct Monitor {
    shared: Arc<Shared>,
    timeline: Mutex<Timeline>,
    admins: Feed,
    stats: Feed,
    places: Arc<Semaphore>,
}

impl Monitor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            timeline: Mutex::new(Timeline::new(Instant::now())),
            admins: Feed::new(),
            stats: Feed::new(),
            places: places(),
        }
    }

    /// Takes readings until dropped.
    pub(super) async fn run(self: Arc<Self>) {
        let mut ticks = interval_at(Instant::now() + STEP, STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.timeline().sample(&self.shared.pools);
            for role in [Role::Stats, Role::Admin] {
                if self.feed(role).has_readers() {
                    self.feed(role).send(self.frame(role));
                }
            }
        }
    }

    fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, role: Role) -> &Feed {
        match role {
            Role::Stats => &self.stats,
            Role::Admin => &self.admins,
        }
    }

    fn with_now<R>(&self, role: Role, use_it: impl FnOnce(&Now<'_>) -> R) -> R {
        let snapshot = Snapshot::of(&self.shared);
        let timeline = self.timeline();
        use_it(&Now::new(&self.shared, &snapshot, &timeline, role))
    }

    /// What a reader is sent: the events of this second.
    fn frame(&self, role: Role) -> Bytes {
        let mut frame = Vec::new();
        self.with_now(role, |now| put_event(&mut frame, "now", now));
        frame.into()
    }

    /// A reader of all that is to come; none if there are too many.
    pub(super) fn follow(&self, role: Role) -> Option<Events> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let shared = Arc::clone(&self.shared);
        let access = shared.config.load().http.clone();
        let is_valid = move || shared.config.load().http == access;
        Some(self.feed(role).read(self.frame(role), permit, is_valid))
    }

    pub(super) fn answer(&self, question: &Question, role: Role) -> Reply {
        match question {
            Question::Now => self.with_now(role, |now| reply::json(now)),
            Question::Pools => self.with_now(role, |now| reply::json(&now.pools)),
            Question::History(of) => match History::new(&self.timeline(), of.as_ref()) {
                Some(history) => reply::json(&history),
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
