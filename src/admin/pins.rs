//! `SHOW PINS`: who keeps a server connection, which one, why, through which statement, and since when.

use tokio::time::Instant;

use super::queries::Seen;
use super::rows::{server_pointer, time_of};
use super::table::{Column, Row, float8, int4, text};
use crate::status::pins::PinStatus;

pub(super) const PINS: [Column; 12] = [
    int4("pid"),
    text("user"),
    text("database"),
    text("application_name"),
    text("addr"),
    int4("server_pid"),
    text("reasons"),
    text("since"),
    float8("pinned_time"),
    text("queryid"),
    text("query"),
    text("link"),
];

impl Seen<'_> {
    /// Sessions that keep their server connection.
    pub(super) fn pins(self) -> Vec<Row> {
        let pins = self.snapshot.pins.iter();
        pins.map(|pin| self.pin(pin)).collect()
    }

    fn pin(self, status: &PinStatus) -> Row {
        let pin = &status.pin;
        let [id, text] = self.query(pin.query);
        let entry = status.entry.as_ref();
        let now = Instant::now();
        vec![
            u64::from(pin.client).into(),
            (&*status.user).into(),
            (&*status.database).into(),
            entry.map(|entry| entry.application().to_string()).into(),
            entry.map(|entry| entry.peer.to_string()).into(),
            u64::from(pin.backend).into(),
            pin.reasons.to_string().into(),
            time_of(pin.since).into(),
            now.saturating_duration_since(pin.since).into(),
            id,
            text,
            status
                .server
                .map_or_else(String::new, server_pointer)
                .into(),
        ]
    }
}
