//! `SHOW PINS`.

use super::rows::time_of;
use super::table::{Column, Row, Value, int4, int8, text};
use crate::status::pins::PinStatus;

pub(super) const PINS: [Column; 10] = [
    // As in SHOW CLIENTS.
    int4("id"),
    text("user"),
    text("database"),
    text("application_name"),
    // As in SHOW SERVERS.
    int4("remote_pid"),
    text("reasons"),
    text("queryid"),
    text("query"),
    text("since"),
    int8("age_ms"),
];

/// The row of one session.
pub(super) fn row(status: &PinStatus) -> Row {
    let pin = &status.pin;
    let age = pin.since.elapsed().as_millis();
    let name = status
        .entry
        .as_ref()
        .map(|entry| entry.application_name.to_string());
    vec![
        u64::from(pin.client).into(),
        (&*status.user).into(),
        (&*status.database).into(),
        name.into(),
        u64::from(pin.backend).into(),
        pin.reasons.to_string().into(),
        pin.query.map(|id| format!("{id:016x}")).into(),
        (&*pin.statement).into(),
        time_of(pin.since).into(),
        Value::Number(u64::try_from(age).unwrap_or(u64::MAX)),
    ]
}
