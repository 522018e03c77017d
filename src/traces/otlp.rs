//! Statements as an OTLP `ExportTraceServiceRequest` in its JSON encoding. Attributes are those of OpenTelemetry's
//! semantic conventions for databases.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Traced;

/// `SpanKind`.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const CLIENT: u8 = 3;

/// `StatusCode`.
const ERROR: u8 = 2;

/// The body of a request.
pub(super) fn request(service_name: &str, batch: &[Traced]) -> String {
    let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
    json!({
        "resourceSpans": [{
            "resource": {"attributes": [text("service.name", service_name)]},
            "scopeSpans": [{
                "scope": {"name": "pgweir", "version": env!("CARGO_PKG_VERSION")},
                "spans": spans,
            }],
        }],
    })
    .to_string()
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// Numbers of 64 bits are strings in JSON's mapping of protobuf.
fn number(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn nanos(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos().to_string()
}

fn span_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}

/// The first word of a statement.
fn operation(text: &str) -> String {
    let word = text.split(|c: char| !c.is_ascii_alphabetic()).next();
    word.unwrap_or_default().to_ascii_uppercase()
}

fn spans(traced: &Traced) -> Vec<Value> {
    let begun = |before: Duration| traced.ended.checked_sub(before).unwrap_or(traced.ended);
    let (sent, granted) = (begun(traced.server), begun(traced.server + traced.checkout));
    let received = begun(traced.server + traced.checkout + traced.queued);
    let id = span_id();
    let operation = operation(&traced.text);
    let mut statement = span(
        traced,
        (id, traced.parent),
        (&format!("{operation} {}", traced.database), SERVER),
        (received, traced.ended),
    );
    let mut attributes = vec![
        text("db.system.name", "postgresql"),
        text("db.namespace", &traced.database),
        text("db.operation.name", &operation),
        text("db.query.text", &traced.text),
        number("db.response.returned_rows", traced.rows),
        text("pgweir.user", &traced.user),
        text("pgweir.node", &traced.node),
        text("pgweir.queryid", &traced.query.to_string()),
    ];
    if let Some(code) = traced.error {
        attributes.push(text("db.response.status_code", code.as_str()));
        attributes.push(text("error.type", code.as_str()));
        statement["status"] = json!({"code": ERROR});
    }
    statement["attributes"] = Value::Array(attributes);
    let child = |name: &str, kind: u8, from: SystemTime, to: SystemTime| {
        span(traced, (span_id(), Some(id)), (name, kind), (from, to))
    };
    let mut spans = vec![statement];
    if !traced.queued.is_zero() {
        spans.push(child("queue", INTERNAL, received, granted));
    }
    if !traced.checkout.is_zero() {
        spans.push(child("checkout", INTERNAL, granted, sent));
    }
    let mut server = child("server", CLIENT, sent, traced.ended);
    let first = sent.checked_add(traced.first).unwrap_or(traced.ended);
    server["events"] = json!([{"timeUnixNano": nanos(first), "name": "first byte"}]);
    spans.push(server);
    spans
}

fn span(
    traced: &Traced,
    (id, parent): (u64, Option<u64>),
    (name, kind): (&str, u8),
    (from, to): (SystemTime, SystemTime),
) -> Value {
    let mut span = json!({
        "traceId": traced.trace.to_string(),
        "spanId": format!("{id:016x}"),
        "name": name.trim_start(),
        "kind": kind,
        "startTimeUnixNano": nanos(from),
        "endTimeUnixNano": nanos(to),
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = json!(format!("{parent:016x}"));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SqlState;
    use crate::meter::{QueryId, TraceId};

    #[test]
    fn a_statement_is_a_span_with_what_it_waited_for_below() {
        let millis = Duration::from_millis;
        let traced = Traced {
            trace: TraceId(10),
            parent: Some(11),
            ended: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
            queued: millis(5),
            checkout: millis(1),
            server: millis(20),
            first: millis(15),
            user: "bob".into(),
            database: "app".into(),
            node: "primary".into(),
            query: QueryId(255),
            text: "select $1".into(),
            rows: 1,
            error: Some(SqlState::QUERY_CANCELED),
        };
        let body: Value = serde_json::from_str(&request("weir", &[traced])).unwrap();
        let resource = &body["resourceSpans"][0];
        let name = &resource["resource"]["attributes"][0]["value"]["stringValue"];
        assert_eq!(name, "weir");
        let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
        let names: Vec<_> = spans
            .iter()
            .map(|span| span["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["SELECT app", "queue", "checkout", "server"]);
        let statement = &spans[0];
        assert_eq!(statement["traceId"], "0000000000000000000000000000000a");
        assert_eq!(statement["parentSpanId"], "000000000000000b");
        assert_eq!(statement["startTimeUnixNano"], "99974000000");
        assert_eq!(statement["endTimeUnixNano"], "100000000000");
        assert_eq!(statement["status"]["code"], 2);
        for child in &spans[1..] {
            assert_eq!(child["parentSpanId"], statement["spanId"]);
            assert_eq!(child["traceId"], statement["traceId"]);
        }
        assert_eq!(spans[2]["startTimeUnixNano"], "99979000000");
        assert_eq!(spans[3]["events"][0]["timeUnixNano"], "99995000000");
    }
}
