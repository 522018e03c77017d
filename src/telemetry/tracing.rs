//! The log: to stderr, as text or JSON.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::config::model::{Log, LogFormat};

/// Replaces the filter of the log in use.
type Reload = Box<dyn Fn(EnvFilter) + Send + Sync>;

static RELOAD: OnceLock<Reload> = OnceLock::new();

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sets up the log. A second call in the same process does nothing.
pub fn init(log: &Log) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log))
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => {
            let builder = builder
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false)
                .with_filter_reloading();
            let handle = builder.reload_handle();
            if builder.try_init().is_ok() {
                // It fails only for a log that is gone, which has nothing to filter.
                keep(Box::new(move |filter| drop(handle.reload(filter))));
            }
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            if builder.try_init().is_ok() {
                // As above.
                keep(Box::new(move |filter| drop(handle.reload(filter))));
            }
        }
    }
}

fn keep(reload: Reload) {
    // `init` succeeds once in a process.
    let _ = RELOAD.set(reload);
}

/// Takes over a changed level.
pub fn reload(log: &Log) {
    if let Some(reload) = RELOAD.get() {
        reload(filter(log));
    }
}
