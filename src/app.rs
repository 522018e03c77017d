//! Composition root: builds the parts and runs them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;

use crate::config::model::Config;
use crate::frontend::shared::Shared;
use crate::net::tls::ServerTlsContext;
use crate::pool::{Pools, steward};
use crate::session::statements::Global;
use crate::sql::known::KnownStatements;
use crate::{server, tasks};

/// Serves until stopped.
pub async fn serve(config: Config) -> std::io::Result<()> {
    let pools = Pools::new(Arc::new(ServerTlsContext));
    tasks::spawn("steward", steward::run(Arc::clone(&pools)));
    let listener = TcpListener::bind(&config.general.listen[0]).await?;
    let shared = Arc::new(Shared {
        config: ArcSwap::from_pointee(config),
        pools,
        registry: Arc::default(),
        statements: Global::default(),
        known: KnownStatements::default(),
    });
    server::accept(listener, shared).await;
    Ok(())
}
