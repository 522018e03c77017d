//! Cancel requests to a server.
//!
//! # Invariant
//! The backend is held back from other clients while a request is under way ([`Identity::cancelling`]): the server
//! sends its signal before it closes the cancel connection, and a backend that is not in a statement when the signal
//! arrives ignores it before it reads the next one. So once the connection is closed the signal can't hit anybody
//! else.
//!
//! [`Identity::cancelling`]: super::connection::Identity::cancelling

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::Dialer;
use super::connection::Identity;
use crate::net::connect::ConnectError;
use crate::wire::startup::put_cancel_request;

/// Why a cancel request was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    #[error("could not connect for a cancel request: {0}")]
    Connect(#[from] ConnectError),
    #[error("could not send a cancel request: {0}")]
    Io(#[from] io::Error),
    #[error("a cancel request took longer than cancel_wait_timeout")]
    Timeout,
}

/// Asks the server to cancel what `backend` runs and waits until the server has passed it on. The backend is held
/// back from the call on, not only once the future is polled: until then it could have gone to somebody else. Not
/// cancel safe: spawn it, so that the hold lasts until the server has closed the connection.
pub fn cancel(
    backend: Arc<Identity>,
    dialer: Arc<Dialer>,
    timeout: Duration,
) -> impl Future<Output = Result<(), CancelError>> + Send + 'static {
    let held = backend.cancelling();
    async move {
        let sent = tokio::time::timeout(timeout, send(&backend, &dialer)).await;
        drop(held);
        sent.unwrap_or(Err(CancelError::Timeout))
    }
}

async fn send(backend: &Identity, dialer: &Dialer) -> Result<(), CancelError> {
    let mut stream = dialer.connect(&backend.node, backend.encryption).await?;
    let mut packet = Vec::with_capacity(16);
    put_cancel_request(&mut packet, backend.pid, &backend.cancel_key);
    stream.write_all(&packet).await?;
    stream.flush().await?;
    // The server answers by closing. Anything else it says is of no interest; a reset is as good.
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(count) if count > 0) {}
    Ok(())
}
