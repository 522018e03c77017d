//! Letting a client into the console, and seeing it out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::command::Role;
use super::dialogue::{Dialogue, End};
use super::refine::Refinement;
use super::rows::{PGBOUNCER_VERSION, View};
use super::show::Show;
use super::table::Row;
use crate::config::model::AuthMethod;
use crate::error::{Report, SqlState};
use crate::meter::Address;
use crate::net::stream::Stream;
use crate::registry::{ClientState, NewClient, Registered, Replication};
use crate::reload::Reloader;
use crate::shared::Shared;
use crate::status::Snapshot;
use crate::status::stats::History;
use crate::wire::backend::{self, TransactionStatus};
use crate::wire::startup::StartupMessage;

/// How long the last words to a client may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the console acts on.
#[derive(Debug)]
pub struct Console {
    pub shared: Arc<Shared>,
    pub reloader: Arc<Reloader>,
    history: Arc<History>,
}

impl Console {
    pub fn new(shared: Arc<Shared>, reloader: Arc<Reloader>) -> Self {
        Self {
            shared,
            reloader,
            history: Arc::default(),
        }
    }

    /// Ends the periods that averages are of; runs until dropped.
    pub async fn keep_stats(self: Arc<Self>) {
        self.history.keep(&self.shared.pools).await;
    }

    /// Serves an authenticated console client until it leaves.
    pub async fn serve(
        &self,
        mut stream: Stream,
        message: &StartupMessage,
        address: Option<IpAddr>,
    ) {
        // The login has checked that both are UTF-8.
        let user = String::from_utf8_lossy(&message.user);
        let database = String::from_utf8_lossy(&message.database);
        let Some(role) = self.role(&user, address) else {
            let refusal = Report::fatal(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied for database \"{database}\""),
            )
            .detail(format!("User \"{user}\" is not a user of the console."))
            .hint("Name it in general.admin_users or general.stats_users.");
            part(&mut stream, &refusal).await;
            return;
        };
        let entry = self.shared.registry.register(NewClient {
            key_len: message.cancel_key_len(),
            user: (*user).into(),
            database: (*database).into(),
            peer: stream.peer_addr().map_or(Address::Unix, Address::Tcp),
            tls: stream.tls_description(),
            application_name: message.application_name(),
            replication: Replication::None,
            local: stream.local_addr().map(Arc::new),
        });
        entry.set_state(ClientState::Idle);
        let mut out = Vec::new();
        greet(&mut out, &entry);
        let mut dialogue = Dialogue::new(self, role, entry, stream, out);
        let Err(end) = Box::pin(dialogue.run()).await;
        if let End::Fatal(report) = end {
            part(dialogue.stream(), &report).await;
        }
    }

    /// What the user may do, if it may come in.
    fn role(&self, user: &str, address: Option<IpAddr>) -> Option<Role> {
        let config = self.shared.config.load();
        let general = &config.general;
        let is_near = address.is_none_or(|address| address.is_loopback());
        let is_listed = |users: &[String]| users.iter().any(|listed| listed == user);
        if is_listed(&general.admin_users) || (config.auth.method == AuthMethod::Trust && is_near) {
            Some(Role::Admin)
        } else if is_listed(&general.stats_users) {
            Some(Role::Stats)
        } else {
            None
        }
    }

    /// The rows of a table, now, those that are asked for: made on a thread of its own, since a snapshot of everything
    /// takes milliseconds that sessions on this one would wait for. None if that failed, which the log has more on.
    pub(super) async fn rows(
        &self,
        show: Show,
        role: Role,
        refinement: Refinement,
    ) -> Option<Vec<Row>> {
        let (shared, history) = (Arc::clone(&self.shared), Arc::clone(&self.history));
        let made = tokio::task::spawn_blocking(move || {
            let snapshot = Snapshot::of(&shared);
            let stats = history.stats(&shared.pools);
            let view = View {
                snapshot: &snapshot,
                stats: &stats,
                role,
            };
            refinement.apply(view.rows(show))
        });
        made.await.ok()
    }
}

/// Says why, and closes.
async fn part(stream: &mut Stream, report: &Report) {
    let mut out = Vec::new();
    backend::put_report(&mut out, report);
    let farewell = async {
        stream.write_all(&out).await?;
        stream.shutdown().await
    };
    // A client that is gone already can't be told.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}

fn greet(out: &mut Vec<u8>, entry: &Registered) {
    backend::put_authentication_ok(out);
    let version = format!("{PGBOUNCER_VERSION}/pgweir {}", env!("CARGO_PKG_VERSION"));
    let parameters = [
        ("server_version", version.as_str()),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("integer_datetimes", "on"),
        ("is_superuser", "on"),
        ("application_name", &entry.application_name),
    ];
    for (name, value) in parameters {
        backend::put_parameter_status(out, name.as_bytes(), value.as_bytes());
    }
    backend::put_backend_key_data(out, entry.pid.0, entry.key());
    backend::put_ready_for_query(out, TransactionStatus::Idle);
}
