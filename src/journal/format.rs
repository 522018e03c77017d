//! Entries as lines: text for eyes, JSON for machines. No line holds a constant of a statement.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::Entry;
use crate::error::SqlState;
use crate::meter::Incident;
use crate::telemetry::clock::rfc3339;

/// To the microsecond: what is beyond is noise.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// One JSON object.
pub(super) fn json(entry: &Entry) -> String {
    match entry {
        Entry::Slow(incident) => fields("slow", incident),
        Entry::Query(incident) => fields("query", incident),
        Entry::Plan { query, text, plan } => {
            let mut fields = Map::new();
            fields.insert("time".into(), json!(rfc3339(SystemTime::now())));
            fields.insert("event".into(), json!("plan"));
            fields.insert("queryid".into(), json!(query.to_string()));
            fields.insert("query".into(), json!(&**text));
            fields.insert("plan".into(), json!(&**plan));
            fields
        }
    }
    .into_iter()
    .collect::<Value>()
    .to_string()
}

fn fields(event: &str, incident: &Incident) -> Map<String, Value> {
    let client = &incident.client;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    put("time", json!(rfc3339(incident.at)));
    put("event", json!(event));
    put("user", json!(&*client.user));
    put("database", json!(&*client.database));
    put("application_name", json!(&*client.application));
    put("client", json!(client.peer.to_string()));
    put("pid", json!(client.pid));
    put("node", json!(&*incident.node));
    put("queryid", json!(incident.query.to_string()));
    put("query", json!(&*incident.text));
    put("total_ms", json!(millis(incident.total())));
    put("queue_ms", json!(millis(incident.queued)));
    put("server_ms", json!(millis(incident.server)));
    put("client_ms", json!(millis(incident.blocked)));
    put("rows", json!(incident.rows));
    put("bytes_sent", json!(incident.sent));
    if let Some(error) = incident.error {
        put("sqlstate", json!(error.as_str()));
    }
    if let Some(trace) = incident.trace {
        put("trace_id", json!(trace.to_string()));
    }
    fields
}

/// `key=value` pairs behind time and event.
pub(super) fn text(entry: &Entry) -> String {
    let (event, incident) = match entry {
        Entry::Slow(incident) => ("slow", incident),
        Entry::Query(incident) => ("query", incident),
        Entry::Plan { query, plan, .. } => {
            let at = rfc3339(SystemTime::now());
            return format!("{at} plan queryid={query} plan={plan:?}");
        }
    };
    let client = &incident.client;
    let mut line = format!("{} {event}", rfc3339(incident.at));
    // Writing to a string can't fail.
    let _ = write!(
        line,
        " total={:.3}ms queue={:.3}ms server={:.3}ms client={:.3}ms rows={} bytes={} user={:?} database={:?} \
         application={:?} from={} pid={} node={} queryid={}",
        millis(incident.total()),
        millis(incident.queued),
        millis(incident.server),
        millis(incident.blocked),
        incident.rows,
        incident.sent,
        client.user,
        client.database,
        client.application,
        client.peer,
        client.pid,
        incident.node,
        incident.query,
    );
    if let Some(error) = incident.error {
        let _ = write!(line, " sqlstate={}", error.as_str());
    }
    if let Some(trace) = incident.trace {
        let _ = write!(line, " trace_id={trace}");
    }
    let _ = write!(line, " query={:?}", incident.text);
    line
}

/// Into pgweir's own log.
pub(super) fn tell(entry: &Entry) {
    let (what, incident) = match entry {
        Entry::Slow(incident) => ("slow statement", incident),
        Entry::Query(incident) => ("statement", incident),
        Entry::Plan { query, plan, .. } => {
            tracing::info!(queryid = %query, %plan, "plan of a slow statement");
            return;
        }
    };
    let client = &incident.client;
    tracing::info!(
        total_ms = millis(incident.total()),
        queue_ms = millis(incident.queued),
        server_ms = millis(incident.server),
        client_ms = millis(incident.blocked),
        rows = incident.rows,
        bytes_sent = incident.sent,
        // As strings they stand in quotes in a text, so that no name reads as another field.
        user = &*client.user,
        database = &*client.database,
        application_name = &*client.application,
        client = %client.peer,
        pid = client.pid,
        node = %incident.node,
        queryid = %incident.query,
        sqlstate = incident.error.as_ref().map(SqlState::as_str),
        trace_id = incident.trace.map(|trace| trace.to_string()),
        query = %incident.text,
        "{what}"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::meter::{Address, Client, QueryId, TraceId};

    fn entry() -> Entry {
        Entry::Slow(Arc::new(Incident {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_599_123),
            client: Client {
                pid: 7,
                user: "bob".into(),
                database: "my \"db\"".into(),
                application: "web\nx".into(),
                peer: Address::Tcp(([127, 0, 0, 1], 5000).into()),
            },
            query: QueryId(255),
            text: "SELECT $1".into(),
            node: "primary".into(),
            queued: Duration::from_micros(1500),
            server: Duration::from_millis(20),
            blocked: Duration::from_millis(3),
            rows: 1,
            sent: 60,
            error: Some(SqlState::QUERY_CANCELED),
            trace: Some(TraceId(1)),
        }))
    }

    #[test]
    fn text_is_one_line_of_pairs() {
        assert_eq!(
            text(&entry()),
            "2025-12-31T23:59:59.123Z slow total=24.500ms queue=1.500ms server=20.000ms client=3.000ms rows=1 bytes=60 \
             user=\"bob\" database=\"my \\\"db\\\"\" application=\"web\\nx\" from=127.0.0.1:5000 pid=7 node=primary \
             queryid=00000000000000ff sqlstate=57014 trace_id=00000000000000000000000000000001 query=\"SELECT $1\""
        );
    }

    #[test]
    fn json_is_one_object() {
        let line = json(&entry());
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(value["event"], "slow");
        assert_eq!(value["total_ms"], 24.5);
        assert_eq!(value["database"], "my \"db\"");
        assert_eq!(value["sqlstate"], "57014");
        assert_eq!(value["queryid"], "00000000000000ff");
        let plan = Entry::Plan {
            query: QueryId(1),
            text: "SELECT $1".into(),
            plan: "Result\n  Cost".into(),
        };
        assert!(json(&plan).contains("\"plan\":\"Result\\n  Cost\""));
        assert!(!text(&plan).contains('\n'));
    }
}
