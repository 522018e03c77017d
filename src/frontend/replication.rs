//! Replication connections: a server connection of their own, relayed byte for byte in both directions.
//!
//! Such a connection speaks another command language and streams without end; there is nothing to pool. Its login is
//! the pool's, its startup parameters are the client's.

use std::sync::Arc;

use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::startup::{Admitted, HandshakeError};
use crate::net::stream::Stream;
use crate::pool::open;
use crate::wire::backend;

/// Serves the client until either end closes.
pub async fn serve(client: Admitted) -> Result<(), (Option<Stream>, HandshakeError)> {
    let Admitted {
        stream: mut client,
        message,
        place,
        shared,
        ..
    } = client;
    let pool = place.pool();
    let mut effective = pool.effective.load().as_ref().clone();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let replication = message.replication.as_deref().unwrap_or_default();
    effective.startup = vec![("replication".to_owned(), text(replication))];
    effective.startup.extend(
        message
            .parameters
            .iter()
            .map(|(name, value)| (text(name), text(value))),
    );
    effective.pool.connect_query = None;
    let slot = match pool.reserve(&effective.pool) {
        Ok(slot) => slot,
        Err(cap) => return Err((Some(client), HandshakeError::NoConnection(cap.setting()))),
    };
    let dialer = shared.pools.dialer.load_full();
    let opened = match open::open(&effective, &pool.credentials(), &dialer, 0).await {
        Ok(opened) => opened,
        Err(error) => return Err((Some(client), HandshakeError::Open(Arc::new(error)))),
    };
    let mut greeting = Vec::new();
    backend::put_authentication_ok(&mut greeting);
    for (name, value) in &opened.logged_in.parameters {
        backend::put_parameter_status(&mut greeting, name, value);
    }
    // The server's own key: a cancel request for it is answered by nobody, as the connection is not in the registry.
    backend::put_backend_key_data(&mut greeting, opened.logged_in.pid, &[0; 4]);
    backend::put_ready_for_query(&mut greeting, backend::TransactionStatus::Idle);
    if let Err(error) = client.write_all(&greeting).await {
        return Err((None, error.into()));
    }
    let mut server = opened.backend.stream;
    // Either end's failure ends both; there is nobody left to tell.
    let _ = copy_bidirectional(&mut client, &mut server).await;
    drop(slot);
    Ok(())
}
