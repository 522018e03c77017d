//! The signals that pgweir obeys: SIGHUP, SIGTERM and SIGINT, and PgBouncer's SIGUSR1 and SIGUSR2.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::command::Condition;
use crate::pool::orders::Scope;
use crate::reload::Reloader;
use crate::shared::Shared;
use crate::tasks;

/// How often it is looked whether a pause is complete.
const PAUSE_POLL: Duration = Duration::from_millis(50);

/// Those that come before the end. From the call of [`Signals::new`] on none of them ends the process by itself.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: Signal,
    pause: Signal,
    resume: Signal,
    stop: Stop,
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            pause: signal(SignalKind::user_defined1())?,
            resume: signal(SignalKind::user_defined2())?,
            stop: Stop {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
        })
    }

    /// Waits for a reason to stop, and does meanwhile what the other signals ask for. What is returned hears the next
    /// signal to stop.
    pub(super) async fn until_stopped(mut self, shared: &Arc<Shared>, reloader: &Reloader) -> Stop {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    if let Err(error) = reloader.reload(shared) {
                        tracing::error!("the configuration stays as it is: {error}");
                    }
                }
                _ = self.pause.recv() => pause(shared),
                _ = self.resume.recv() => {
                    tracing::info!("got SIGUSR2: RESUME");
                    shared.pools.resume(&Scope::All);
                }
                () = self.stop.received() => return self.stop,
                () = shared.stop.notified() => return self.stop,
            }
        }
    }
}

impl Stop {
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// `PAUSE` of everything, which nobody waits for.
fn pause(shared: &Arc<Shared>) {
    tracing::info!("got SIGUSR1: PAUSE");
    if shared.pools.pause(&Scope::All) {
        shared.secrets.clear();
        tasks::spawn("pause", drained(Arc::clone(shared)));
    }
}

async fn drained(shared: Arc<Shared>) {
    let condition = Condition::Drained(Scope::All);
    while !condition.is_void(&shared) {
        if condition.is_met(&shared) {
            tracing::info!("paused: no server connection is open");
            return;
        }
        tokio::time::sleep(PAUSE_POLL).await;
    }
}
