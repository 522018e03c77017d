//! Named tasks that end at shutdown.
//!
//! `tokio::spawn` is banned elsewhere (`clippy.toml`): a task without a name cannot be found in a trace, and one
//! that ignores shutdown keeps the process alive.

use std::future::Future;

use tokio::task::JoinHandle;

/// Spawns `future`. The runtime drops it at the end of the process; work that must finish first is awaited by whoever
/// holds the returned handle.
///
/// The name is told once, in the log at level `trace`: a span around every poll would be paid for by every statement.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that spawns"
)]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let handle = tokio::spawn(future);
    tracing::trace!(name, id = %handle.id(), "task");
    handle
}
