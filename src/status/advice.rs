//! What to do about what is seen: pure functions from what was measured to a sentence and a setting.
//!
//! A piece of advice says what was measured, with its numbers, and what to change. It never quotes a statement, so
//! that it can be shown to everybody who may look.
//!
//! # Why
//! Rules rather than scores: whoever reads an advice can check it against the numbers beside it, and a rule that is
//! wrong for somebody is one test away from being right.

pub mod errors;
pub mod nodes;
pub mod pins;
pub mod pools;
pub mod statements;

use std::sync::Arc;
use std::time::Duration;

use crate::meter::QueryId;

/// Pieces given at once.
pub const ADVICE_MAX: usize = 30;

/// How soon something should be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Clients fail, or soon will.
    Now,
    /// Clients are slower than they need be.
    Soon,
    /// Worth a look.
    Hint,
}

impl Urgency {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Soon => "soon",
            Self::Hint => "hint",
        }
    }
}

/// What an advice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Process,
    Pool { database: Arc<str>, user: Arc<str> },
    Statement(QueryId),
    Server(Arc<str>),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    pub urgency: Urgency,
    pub subject: Subject,
    /// What was measured.
    pub what: String,
    /// What to do about it.
    pub action: String,
    /// The setting to change, dotted, if it is one of pgweir's.
    pub setting: Option<String>,
}

/// Everything that rules look at.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub clients: usize,
    pub clients_max: usize,
    pub pools: Vec<pools::Pool>,
    pub statements: Vec<statements::Statement>,
    pub waits: Vec<statements::LockWait>,
    pub pins: Vec<pins::Pin>,
    pub clusters: Vec<nodes::Cluster>,
    pub nodes: Vec<nodes::Node>,
}

/// The most urgent first; at most [`ADVICE_MAX`].
pub fn advise(evidence: &Evidence) -> Vec<Advice> {
    let mut all = Vec::new();
    all.extend(clients(evidence.clients, evidence.clients_max));
    all.extend(evidence.clusters.iter().filter_map(nodes::on_cluster));
    all.extend(evidence.nodes.iter().filter_map(nodes::on_node));
    all.extend(evidence.pools.iter().filter_map(pools::on_pool));
    all.extend(statements::on_locks(&evidence.waits));
    all.extend(pins::on_pins(&evidence.pins));
    all.extend(statements::on_statements(&evidence.statements));
    // Stable: within an urgency they stay in the order of the rules.
    all.sort_by_key(|advice| advice.urgency);
    all.truncate(ADVICE_MAX);
    all
}

/// Clients beyond `general.max_client_conn` are turned away.
fn clients(count: usize, max: usize) -> Option<Advice> {
    if count * 10 < max * 9 {
        return None;
    }
    Some(Advice {
        urgency: if count >= max {
            Urgency::Now
        } else {
            Urgency::Soon
        },
        subject: Subject::Process,
        what: format!("{count} of {max} client connections are taken; further ones are refused (53300)."),
        action: "Raise the limit: an idle client costs a few kilobytes. If the number grows without end, an \
                 application opens connections and does not close them."
            .to_owned(),
        setting: Some("general.max_client_conn".to_owned()),
    })
}

/// `1 client`, `2 clients`.
fn plural(count: usize, word: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {word}{s}")
}

/// A time as people say it, with its unit.
fn spoken(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.001 => format!("{:.0} µs", seconds * 1e6),
        ..0.01 => format!("{:.1} ms", seconds * 1e3),
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..60.0 => format!("{seconds:.1} s"),
        ..3600.0 => format!("{:.0} min", (seconds / 60.0).floor()),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests;
