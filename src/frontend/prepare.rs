//! The values a new session starts with, as the server sees them.
//!
//! Startup parameters are tried on a backend once and remembered with what they made it report, so that the next
//! client with the same ones needs no backend to log in.
//!
//! Waiting for that backend and for its answer counts as part of the login: it ends at `client_login_timeout`.

use std::sync::Arc;

use tokio::time::Instant;

use super::startup::HandshakeError;
use crate::backend::query::{self, QueryError};
use crate::error::SqlState;
use crate::pool::effective::Effective;
use crate::pool::waiter::Waiter;
use crate::pool::{Lease, Pool};
use crate::session::mirror::Reported;
use crate::session::plan;
use crate::session::settings::{Settings, canonical_name};
use crate::wire::backend::error_field;
use crate::wire::startup::{StartupMessage, read_options};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub settings: Arc<Settings>,
    pub reported: Arc<Reported>,
}

/// The settings of a startup packet; those in `options` come first, as the server applies them. `None` if `options`
/// holds what can't be carried.
fn requested(message: &StartupMessage) -> Option<Settings> {
    let mut settings = Settings::default();
    let options = message
        .parameters
        .iter()
        .filter(|(name, _)| name == b"options");
    for (_, value) in options {
        for (name, value) in read_options(value)? {
            settings.set(&canonical_name(&name), Some(&value));
        }
    }
    for (name, value) in message
        .parameters
        .iter()
        .filter(|(name, _)| name != b"options")
    {
        settings.set(&canonical_name(name), Some(value));
    }
    Some(settings)
}

/// What is known of startup parameters before a server was asked.
#[derive(Debug)]
pub(super) enum Known {
    Prepared(Prepared),
    /// A backend has to try them.
    ToTry(Arc<Settings>),
}

/// What is known of the startup parameters of `message`.
pub(super) fn known(pool: &Pool, message: &StartupMessage) -> Result<Known, HandshakeError> {
    let Some(settings) = requested(message) else {
        return Err(HandshakeError::Parameter {
            code: SqlState::SYNTAX_ERROR,
            payload: Vec::new(),
            message: "invalid command-line argument for server process in startup options"
                .to_owned(),
        });
    };
    if settings.is_empty()
        && let Some(reported) = pool.baseline()
    {
        return Ok(Known::Prepared(Prepared {
            settings: Settings::none(),
            reported,
        }));
    }
    let settings = Arc::new(settings);
    Ok(match pool.startups.get(&settings) {
        Some((settings, reported)) => Known::Prepared(Prepared { settings, reported }),
        None => Known::ToTry(settings),
    })
}

/// Has the server accept startup parameters that are not known yet.
pub(super) async fn prepare(
    pool: &Arc<Pool>,
    settings: Arc<Settings>,
    waiter: &Arc<Waiter>,
    deadline: Instant,
) -> Result<Prepared, HandshakeError> {
    let mut lease = wait_for_lease(pool, waiter, deadline).await?;
    let effective = pool.effective.load_full();
    let repeats = plan::runs_connect_query(&lease.mirror, &settings, how(&lease, &effective));
    let Ok(mut tried) = tokio::time::timeout_at(deadline, try_on(&mut lease, &settings)).await
    else {
        return Err(unanswered());
    };
    // A `connect_query` that can't run twice is not the client's fault.
    if tried.is_err() && repeats {
        drop(lease);
        lease = wait_for_lease(pool, waiter, deadline).await?;
        let again = tokio::time::timeout_at(deadline, try_on(&mut lease, &settings)).await;
        tried = again.map_err(|_| unanswered())?;
    }
    // A refusal leaves the connection as clean as it was; anything else leaves it to be closed.
    lease.checkin();
    let reported = tried?;
    pool.startups
        .put(Arc::clone(&settings), Arc::clone(&reported));
    Ok(Prepared { settings, reported })
}

fn unanswered() -> HandshakeError {
    HandshakeError::Timeout {
        why: Some("The server did not answer to the startup parameters.".to_owned()),
    }
}

async fn wait_for_lease(
    pool: &Arc<Pool>,
    waiter: &Arc<Waiter>,
    deadline: Instant,
) -> Result<Lease, HandshakeError> {
    /// Leaves the queue if the client goes away meanwhile.
    struct Withdraw<'a>(&'a Arc<Pool>, &'a Arc<Waiter>);
    impl Drop for Withdraw<'_> {
        fn drop(&mut self) {
            self.0.withdraw(self.1);
        }
    }
    if let Some(lease) = pool.try_checkout() {
        return Ok(lease);
    }
    pool.enqueue(waiter);
    let _withdraw = Withdraw(pool, waiter);
    let limit = pool.effective.load().timeouts.query_wait_timeout;
    let until = limit.map(|limit| Instant::now() + limit);
    let granted = std::future::poll_fn(|cx| waiter.poll(cx));
    let until_first = until.map_or(deadline, |until| until.min(deadline));
    if let Ok(granted) = tokio::time::timeout_at(until_first, granted).await {
        return Ok(granted?);
    }
    // The server's own words, if it had any, say more than that the wait was in vain.
    Err(match (pool.last_refusal(), limit) {
        (Some(refusal), _) => HandshakeError::Open(refusal),
        (None, Some(limit)) if until_first < deadline => pool.wait_timeout(limit).into(),
        (None, _) => HandshakeError::Timeout {
            why: Some(format!("Pool {}: {}.", pool.key, pool.why_waiting())),
        },
    })
}

fn how<'a>(lease: &Lease, effective: &'a Effective) -> plan::How<'a> {
    plan::How {
        connect_query: effective.pool.connect_query.as_deref(),
        is_foreign: lease.mirror.unknown_to.is_some(),
        ..plan::How::default()
    }
}

/// Brings the backend to `settings`; what it then reports is what a new session is told.
async fn try_on(
    lease: &mut Lease,
    settings: &Arc<Settings>,
) -> Result<Arc<Reported>, HandshakeError> {
    let mut text = Vec::new();
    let effective = lease.pool().effective.load_full();
    let how = how(lease, &effective);
    plan::put(&lease.mirror, settings, how, &mut text);
    if !text.is_empty() {
        match query::on_backend(lease, &text).await {
            Ok(_) => plan::done(&mut lease.mirror, settings, how),
            Err(QueryError::Server {
                code,
                payload,
                message,
            }) => {
                let message = error_field(&payload, b'M')
                    .map_or(message, |m| String::from_utf8_lossy(m).into_owned());
                return Err(HandshakeError::Parameter {
                    code,
                    payload,
                    message,
                });
            }
            Err(QueryError::Receive(error)) => return Err(HandshakeError::Io(error.into())),
        }
    }
    Ok(Arc::clone(&lease.mirror.reported))
}
