//! A client's place in a pool's queue.
//!
//! Each session has one [`Waiter`] for its whole life, so that waiting allocates nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::lease::Lease;
use super::open::OpenError;
use crate::error::{ErrorKind, Report, SqlState, UserFacing};

/// Why a client did not get a connection.
#[derive(Clone, Debug, Error)]
pub enum CheckoutError {
    /// The server refused the login for good.
    #[error("{0}")]
    Refused(Arc<OpenError>),
    #[error("canceling statement due to user request")]
    Canceled,
    #[error("no server connection became available within {waited:?} (query_wait_timeout)")]
    WaitTimeout {
        waited: Duration,
        pool: String,
        /// What stands in the way, for DETAIL.
        why: String,
    },
    /// It was told so before it waited.
    #[error("too many clients are waiting for a server connection")]
    Shed {
        limit: Duration,
        /// How long it would have waited.
        wait: Duration,
        ahead: usize,
        /// Clients served each second.
        rate: f64,
        pool: String,
    },
    #[error("too many clients are waiting for a server connection")]
    QueueFull {
        most: usize,
        pool: String,
        why: String,
    },
    #[error("the server can't be reached: {0}")]
    Unreachable(Arc<OpenError>),
    #[error("no primary server is available (query_wait_timeout)")]
    NoPrimary { waited: Duration },
    /// Not for clients: the server it waited for is out of service, and another one may serve it.
    #[error("the server is out of service")]
    TurnedAway,
    #[error("database does not allow connections: {0}")]
    Disabled(String),
}

impl UserFacing for CheckoutError {
    fn report(&self) -> Report {
        match self {
            Self::Refused(error) => error.report(),
            Self::Canceled => Report::error(SqlState::QUERY_CANCELED, self.to_string()),
            Self::WaitTimeout { pool, why, .. } => Report::error(
                SqlState::TOO_MANY_CONNECTIONS,
                self.to_string(),
            )
            .detail(format!("Pool {pool}: {why}."))
            .hint(
                "Raise pool.max_size, shorten transactions, or raise timeouts.query_wait_timeout.",
            ),
            Self::Shed {
                limit,
                wait,
                ahead,
                rate,
                pool,
            } => Report::error(SqlState::TOO_MANY_CONNECTIONS, self.to_string())
                .detail(format!(
                    "Pool {pool}: {ahead} clients are ahead and about {rate:.1} are served each second, so the wait \
                     would be about {:.1}s.",
                    wait.as_secs_f64()
                ))
                .hint(format!(
                    "The limit is timeouts.query_wait_timeout ({limit:?}). Raise pool.max_size, shorten transactions, \
                     or have clients wait in any case by pool.shed = false."
                )),
            Self::QueueFull { most, pool, why } => {
                Report::error(SqlState::TOO_MANY_CONNECTIONS, self.to_string())
                    .detail(format!("Pool {pool}: {why}."))
                    .hint(format!("The limit is pool.max_waiting ({most})."))
            }
            Self::Unreachable(_) => {
                Report::error(SqlState::CANNOT_CONNECT_NOW, self.to_string()).hint(
                    "pgweir tries again by itself; with overload.fail_fast = false clients wait meanwhile.",
                )
            }
            Self::NoPrimary { waited } => Report::error(
                SqlState::CANNOT_CONNECT_NOW,
                self.to_string(),
            )
            .detail(format!(
                "No server of the cluster took writes for {waited:?}."
            ))
            .hint("SHOW NODES on the console tells why. The limit is timeouts.query_wait_timeout."),
            Self::TurnedAway | Self::Disabled(_) => {
                Report::error(SqlState::CANNOT_CONNECT_NOW, self.to_string())
            }
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(error) => error.kind(),
            Self::Canceled => ErrorKind::Client,
            Self::WaitTimeout { .. } | Self::Shed { .. } | Self::QueueFull { .. } => {
                ErrorKind::Limit
            }
            Self::Unreachable(_) | Self::NoPrimary { .. } | Self::TurnedAway => ErrorKind::Server,
            Self::Disabled(_) => ErrorKind::Operator,
        }
    }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Away,
    Waiting {
        since: Instant,
        waker: Option<Waker>,
    },
    Granted(Lease),
    Failed(CheckoutError),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Waiter {
    state: Mutex<State>,
}

impl Waiter {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts to wait. Only its own session calls it, and only while away.
    pub fn start(&self) {
        self.with(|state| {
            *state = State::Waiting {
                since: Instant::now(),
                waker: None,
            }
        });
    }

    /// Since when it waits.
    pub fn since(&self) -> Option<Instant> {
        self.with(|state| match state {
            State::Waiting { since, .. } => Some(*since),
            State::Away | State::Granted(_) | State::Failed(_) => None,
        })
    }

    /// The outcome, once there is one.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Lease, CheckoutError>> {
        self.with(|state| match state {
            State::Waiting { waker, .. } => {
                if !waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(cx.waker()))
                {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Away => Poll::Pending,
            State::Granted(_) | State::Failed(_) => match std::mem::take(state) {
                State::Granted(lease) => Poll::Ready(Ok(lease)),
                State::Failed(error) => Poll::Ready(Err(error)),
                State::Away | State::Waiting { .. } => Poll::Pending,
            },
        })
    }

    fn settle(&self, outcome: State) -> Result<(), State> {
        let waker = self.with(|state| match state {
            State::Waiting { waker, .. } => {
                let waker = waker.take();
                *state = outcome;
                Ok(waker)
            }
            State::Away | State::Granted(_) | State::Failed(_) => Err(outcome),
        })?;
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Hands a connection over, or returns it if nobody waits here any more.
    pub(super) fn grant(&self, lease: Lease) -> Option<Lease> {
        match self.settle(State::Granted(lease)) {
            Err(State::Granted(lease)) => Some(lease),
            Ok(()) | Err(State::Away | State::Waiting { .. } | State::Failed(_)) => None,
        }
    }

    /// Ends the waiting with an error; nothing happens if it is over already.
    pub fn fail(&self, error: CheckoutError) -> bool {
        self.settle(State::Failed(error)).is_ok()
    }

    /// Stops waiting. A connection granted meanwhile is returned and has to be checked in.
    pub fn withdraw(&self) -> Option<Lease> {
        match self.with(std::mem::take) {
            State::Granted(lease) => Some(lease),
            State::Away | State::Waiting { .. } | State::Failed(_) => None,
        }
    }
}
