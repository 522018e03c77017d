//! The latest errors and slow statements, and what waits for locks now.

use std::sync::Arc;

use serde::Serialize;

use super::{exact_milliseconds, seconds};
use crate::error::SqlState;
use crate::http::access::Role;
use crate::meter::{Client, Incident, Wait};
use crate::status::Snapshot;
use crate::status::advice::errors;

/// Entries shown of each.
const SHOWN_MAX: usize = 50;

/// Whose it was.
#[derive(Debug, Serialize)]
struct ClientView<'a> {
    pid: u32,
    user: &'a str,
    database: &'a str,
    application: &'a str,
    /// None for those who may not see it.
    address: Option<String>,
}

impl<'a> ClientView<'a> {
    fn new(client: &'a Client, role: Role) -> Self {
        Self {
            pid: client.pid,
            user: &client.user,
            database: &client.database,
            application: &client.application,
            address: (role == Role::Admin).then(|| client.peer.to_string()),
        }
    }
}

/// A statement that failed or was slow.
#[derive(Debug, Serialize)]
pub(in crate::http) struct IncidentView<'a> {
    /// To the microsecond: it tells the statements of one client apart.
    time: f64,
    client: ClientView<'a>,
    id: String,
    text: Option<&'a str>,
    node: &'a str,
    total: f64,
    queued: f64,
    server: f64,
    /// Waiting for the client to take the answer.
    blocked: f64,
    rows: u64,
    sqlstate: Option<&'a str>,
    condition: Option<&'static str>,
    remedy: Option<&'static str>,
}

/// The latest of them, latest first.
pub(super) fn list(incidents: &[Arc<Incident>], role: Role) -> Vec<IncidentView<'_>> {
    let shown = incidents.iter().take(SHOWN_MAX);
    shown
        .map(|incident| IncidentView::new(incident, role))
        .collect()
}

impl<'a> IncidentView<'a> {
    fn new(incident: &'a Incident, role: Role) -> Self {
        let sqlstate = incident.error.as_ref().map(SqlState::as_str);
        let about = sqlstate.and_then(errors::about);
        Self {
            time: exact_milliseconds(incident.at),
            client: ClientView::new(&incident.client, role),
            id: incident.query.to_string(),
            text: (role == Role::Admin).then_some(&*incident.text),
            node: &incident.node,
            total: seconds(incident.total()),
            queued: seconds(incident.queued),
            server: seconds(incident.server),
            blocked: seconds(incident.blocked),
            rows: incident.rows,
            sqlstate,
            condition: about.map(|(name, _)| name),
            remedy: about.map(|(_, action)| action),
        }
    }
}

/// A statement that waits for a lock.
#[derive(Debug, Serialize)]
pub(in crate::http) struct WaitView<'a> {
    client: ClientView<'a>,
    id: String,
    text: Option<&'a str>,
    running: f64,
    event: String,
    mode: &'a str,
    relation: &'a str,
    blockers: Vec<BlockerView<'a>>,
}

#[derive(Debug, Serialize)]
struct BlockerView<'a> {
    /// Process id of its backend.
    backend: u32,
    state: &'a str,
    client: Option<ClientView<'a>>,
    id: Option<String>,
}

/// What waits for locks.
pub(super) fn waits(snapshot: &Snapshot, role: Role) -> Vec<WaitView<'_>> {
    let waits = snapshot.recent.waits.waits.iter();
    let blocked = waits.filter(|wait| !wait.blockers.is_empty());
    blocked
        .take(SHOWN_MAX)
        .map(|wait| WaitView::new(wait, snapshot, role))
        .collect()
}

impl<'a> WaitView<'a> {
    fn new(wait: &'a Wait, snapshot: &'a Snapshot, role: Role) -> Self {
        let blockers = wait.blockers.iter().map(|blocker| BlockerView {
            backend: blocker.backend,
            state: &blocker.state,
            client: blocker
                .client
                .as_ref()
                .map(|(client, _)| ClientView::new(client, role)),
            id: blocker.client.as_ref().map(|(_, query)| query.to_string()),
        });
        Self {
            client: ClientView::new(&wait.client, role),
            id: wait.query.to_string(),
            text: (role == Role::Admin).then(|| snapshot.text(wait.query)),
            running: seconds(wait.running),
            event: format!("{} {}", wait.event_type, wait.event),
            mode: &wait.lock_mode,
            relation: &wait.relation,
            blockers: blockers.collect(),
        }
    }
}
