//! Sessions that keep their server connection.

use serde::Serialize;

use super::seconds;
use crate::http::access::Role;
use crate::status::advice::pins::remedy;
use crate::status::{ClientStatus, Snapshot};

/// Sessions shown, those pinned longest first.
const PINS_MAX: usize = 100;

/// One session.
#[derive(Debug, Serialize)]
pub(in crate::http) struct PinView<'a> {
    pid: u32,
    user: &'a str,
    database: &'a str,
    application: &'a str,
    /// None for those who may not see it.
    address: Option<&'a str>,
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

/// The first of them, and how many are left out.
pub(super) fn list(snapshot: &Snapshot, role: Role) -> (Vec<PinView<'_>>, usize) {
    let mut pins: Vec<_> = snapshot
        .clients
        .iter()
        .filter_map(|client| PinView::new(client, snapshot, role))
        .collect();
    pins.sort_by(|a, b| b.age.total_cmp(&a.age));
    let left_out = pins.len().saturating_sub(PINS_MAX);
    pins.truncate(PINS_MAX);
    (pins, left_out)
}

impl<'a> PinView<'a> {
    fn new(client: &'a ClientStatus, snapshot: &'a Snapshot, role: Role) -> Option<Self> {
        let (reasons, doing) = client.pinned?;
        let (entry, is_admin) = (&client.entry, role == Role::Admin);
        Some(Self {
            pid: entry.pid.0,
            user: &entry.user,
            database: &entry.database,
            application: &entry.application_name,
            address: is_admin.then_some(&*entry.peer),
            age: seconds(doing.since.elapsed()),
            idle: client.running.is_none(),
            id: doing.query.to_string(),
            text: is_admin.then(|| snapshot.text(doing.query)),
            reasons: reasons
                .iter()
                .map(|reason| Reason {
                    reason: reason.as_str(),
                    remedy: remedy(reason),
                })
                .collect(),
        })
    }
}
