//! Sessions that keep their server connection.

use serde::Serialize;

use super::seconds;
use crate::http::access::Role;
use crate::status::Snapshot;
use crate::status::advice::pins::remedy;
use crate::status::pins::PinStatus;

/// Sessions shown, those pinned longest first.
const PINS_MAX: usize = 100;

/// One session.
#[derive(Debug, Serialize)]
pub(in crate::http) struct PinView<'a> {
    pid: u32,
    user: &'a str,
    database: &'a str,
    application: String,
    /// None for those who may not see it.
    address: Option<String>,
    age: f64,
    /// Nothing runs on its connection at the moment.
    idle: bool,
    id: String,
    text: Option<&'a str>,
    reasons: Vec<Reason>,
}

/// Why, and what to change.
#[derive(Debug, Serialize)]
struct Reason {
    reason: &'static str,
    remedy: &'static str,
}

/// Those pinned longest first, and how many are left out.
pub(super) fn list(snapshot: &Snapshot, role: Role) -> (Vec<PinView<'_>>, usize) {
    let shown = snapshot.pins.iter().take(PINS_MAX);
    let pins = shown.map(|pin| PinView::new(pin, snapshot, role)).collect();
    (pins, snapshot.pins.len().saturating_sub(PINS_MAX))
}

impl<'a> PinView<'a> {
    fn new(status: &'a PinStatus, snapshot: &'a Snapshot, role: Role) -> Self {
        let (pin, is_admin) = (&status.pin, role == Role::Admin);
        let entry = status.entry.as_deref();
        Self {
            pid: pin.client,
            user: &status.user,
            database: &status.database,
            application: entry.map_or_else(String::new, |entry| entry.application().to_string()),
            address: entry
                .filter(|_| is_admin)
                .map(|entry| entry.peer.to_string()),
            age: seconds(pin.since.elapsed()),
            idle: entry.is_none_or(|entry| entry.activity.running().is_none()),
            id: pin.query.to_string(),
            text: is_admin.then(|| snapshot.text(pin.query)),
            reasons: pin
                .reasons
                .iter()
                .map(|reason| Reason {
                    reason: reason.as_str(),
                    remedy: remedy(reason),
                })
                .collect(),
        }
    }
}
