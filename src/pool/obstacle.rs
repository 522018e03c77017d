//! What stands between the waiting clients of a pool and a connection.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::limits::Cap;
use super::open::OpenError;
use super::pool::Pool;

/// See the module.
#[derive(Clone, Debug)]
pub enum Obstacle {
    /// `PAUSE` or `KILL`.
    Paused,
    NoPrimary,
    /// The last attempt to open a connection failed.
    OpenFailed(Arc<OpenError>),
    /// A limit shared with other pools.
    Cap(Cap),
    /// All connections the pool may have are in use.
    Size,
}

impl Pool {
    /// What clients that wait now wait for.
    pub fn obstacle(&self) -> Obstacle {
        if self.orders.paused.load(Ordering::Relaxed) {
            return Obstacle::Paused;
        }
        if self.is_headless() {
            return Obstacle::NoPrimary;
        }
        if let Some(error) = self.with_gate(|gate| gate.last_error.clone()) {
            return Obstacle::OpenFailed(error);
        }
        let blocked = self
            .blocked_by
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        blocked.map_or(Obstacle::Size, Obstacle::Cap)
    }

    /// The same in words, for the DETAIL of a timeout.
    pub fn why_waiting(&self) -> String {
        let (open, waiting) = (self.open(), self.waiting());
        let why = match self.obstacle() {
            Obstacle::Paused => return "paused by PAUSE or KILL".to_owned(),
            Obstacle::NoPrimary => return "there is no primary".to_owned(),
            Obstacle::OpenFailed(error) => {
                return format!("the last attempt to open a server connection failed: {error}");
            }
            Obstacle::Cap(cap) => format!(
                "{} is reached; {open} connections here, {waiting} clients waiting",
                cap.setting()
            ),
            Obstacle::Size => format!(
                "{open} of {} connections in use, {waiting} clients waiting",
                self.effective.load().pool.max_size
            ),
        };
        match self.pins.summary() {
            Some(pins) => format!("{why}; {pins}"),
            None => why,
        }
    }
}
