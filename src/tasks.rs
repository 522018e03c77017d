//! Named tasks that end at shutdown.
//!
//! `tokio::spawn` is banned elsewhere (`clippy.toml`): a task without a name cannot be found in a trace, and one
//! that ignores shutdown keeps the process alive.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument;

/// Spawns `future` under `name`. The runtime drops it at the end of the process; work that must finish first is
/// awaited by whoever holds the returned handle.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that spawns"
)]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::debug_span!("task", name)))
}
