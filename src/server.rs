//! Accepting connections and seeing each to its end: session, console or cancel request.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::backend::cancel;
use crate::error::UserFacing;
use crate::frontend::shared::Shared;
use crate::frontend::startup::{self, Arrival, HandshakeError};
use crate::net::stream::Stream;
use crate::registry;
use crate::tasks;
use crate::wire::backend::put_report;

/// Accepts until the listener is dropped.
pub async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                let _ = tcp.set_nodelay(true);
                tasks::spawn("client", serve(Stream::Tcp(tcp), Arc::clone(&shared)));
            }
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: Stream, shared: Arc<Shared>) {
    // Boxed, and gone before the session starts: an idle client's task holds the session only.
    let session = Box::pin(log_in(stream, shared)).await;
    if let Some(session) = session {
        tasks::spawn("session", session.run());
    }
}

async fn log_in(stream: Stream, shared: Arc<Shared>) -> Option<crate::frontend::session::Session> {
    let outcome = match startup::arrive(stream).await {
        Ok(Arrival::Cancel { pid, key }) => {
            cancel_client(&shared, pid, &key).await;
            return None;
        }
        Ok(Arrival::Startup(stream, message)) => startup::admit(stream, message, shared).await,
        Err(refused) => Err(refused),
    };
    match outcome {
        Ok(session) => Some(session),
        Err((mut stream, error)) => {
            refuse(&mut stream, &error).await;
            None
        }
    }
}

async fn refuse(stream: &mut Stream, error: &HandshakeError) {
    if let HandshakeError::Io(_) = error {
        return;
    }
    let mut out = Vec::new();
    put_report(&mut out, &error.report());
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown().await;
}

/// Passes a cancel request on, or ends the client's waiting.
async fn cancel_client(shared: &Arc<Shared>, pid: i32, key: &[u8]) {
    let Some(entry) = shared.registry.find(pid, key) else {
        return;
    };
    if registry::cancel_queued(&entry) {
        return;
    }
    if let Some((identity, _held)) = entry.hold_for_cancel() {
        let tls = shared.pools.server_tls.load_full();
        let limit = std::time::Duration::from_secs(10);
        if let Err(error) = cancel::cancel(identity, tls, limit).await {
            tracing::warn!(%error, "a cancel request was not delivered");
        }
    }
}
