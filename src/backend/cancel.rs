//! Cancel requests to a server.
//!
//! # Invariant
//! The backend is held back from other clients while a request is under way ([`Identity::cancelling`]): the server
//! sends its signal before it closes the cancel connection, and a backend that is not in a statement when the signal
//! arrives ignores it before it reads the next one. So once the connection is closed the signal can't hit anybody
//! else. Where that is not seen, because the request took too long or broke off, the backend is in doubt and is not used
//! again.
//!
//! [`Identity::cancelling`]: super::connection::Identity::cancelling

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::connect::{Dialer, Target};
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
        let until = Instant::now() + timeout;
        let sent = tokio::time::timeout_at(until, send(&backend, &dialer, until)).await;
        drop(held);
        sent.unwrap_or(Err(CancelError::Timeout))
    }
}

async fn send(backend: &Arc<Identity>, dialer: &Dialer, until: Instant) -> Result<(), CancelError> {
    // Another server of the same name would say nothing and cancel nothing, or somebody else's statement.
    let target = Target {
        node: &backend.node,
        at: backend.peer,
        until,
    };
    let mut stream = dialer.connect(target, backend.encryption).await?;
    let mut packet = Vec::with_capacity(16);
    put_cancel_request(&mut packet, backend.pid, &backend.cancel_key);
    let doubt = backend.writing_cancel();
    stream.write_all(&packet).await?;
    stream.flush().await?;
    // The server answers by closing. Anything else it says is of no interest; a reset is as good.
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(count) if count > 0) {}
    doubt.settle();
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::model::Node;
    use crate::net::connect::Encryption;

    async fn cancelled(answers: bool) -> (Arc<Identity>, Result<(), CancelError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::at("127.0.0.1", listener.local_addr().unwrap().port());
        let identity = Arc::new(Identity::new(node, 7, vec![1; 4], Encryption::Plain));
        let dialer = Arc::new(Dialer::plain());
        let limit = if answers {
            Duration::from_secs(30)
        } else {
            Duration::from_millis(50)
        };
        let request = cancel(Arc::clone(&identity), dialer, limit);
        assert!(identity.is_being_cancelled());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut packet = [0; 16];
            stream.read_exact(&mut packet).await.unwrap();
            if !answers {
                // It has the request and does not close: its signal may come at any time.
                std::future::pending::<()>().await;
            }
        };
        let (sent, ()) = tokio::join!(request, async {
            tokio::select! {
                () = server => {}
                // With an answer the request ends by itself; without one, by its limit.
                () = identity.cancels_done(), if !answers => {}
            }
        });
        (identity, sent)
    }

    #[tokio::test]
    async fn a_backend_is_held_until_the_server_has_closed() {
        let (identity, sent) = cancelled(true).await;
        assert!(sent.is_ok());
        assert!(!identity.is_being_cancelled() && !identity.is_in_doubt());
    }

    #[tokio::test]
    async fn a_request_that_was_not_seen_through_leaves_its_backend_in_doubt() {
        let (identity, sent) = cancelled(false).await;
        assert!(matches!(sent, Err(CancelError::Timeout)));
        assert!(!identity.is_being_cancelled() && identity.is_in_doubt());
    }

    #[tokio::test]
    async fn a_request_goes_where_the_connection_does_whatever_the_name_says_now() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::at("127.0.0.1", elsewhere.local_addr().unwrap().port());
        let mut identity = Identity::new(node, 7, vec![1; 4], Encryption::Plain);
        identity.peer = listener.local_addr().ok();
        let limit = Duration::from_secs(30);
        let request = cancel(Arc::new(identity), Arc::new(Dialer::plain()), limit);
        let server = async {
            tokio::select! {
                accepted = listener.accept() => drop(accepted.unwrap()),
                _ = elsewhere.accept() => panic!("it went to the server of the name"),
            }
        };
        let _ = tokio::join!(request, server);
    }
}
