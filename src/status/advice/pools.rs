//! Pools in which clients wait.

use std::sync::Arc;
use std::time::Duration;

use super::{Advice, Subject, Urgency, plural, spoken};

/// Seconds of the last minute in which clients must have waited before a queue is more than a moment's.
const WAITED_MIN: usize = 10;

/// What stands in the way of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    Paused,
    /// A failover is under way.
    NoPrimary,
    OpenFailed(String),
    /// A cap shared with other pools, by its key below `[pool]`.
    Cap(&'static str),
    Size,
}

/// A pool, as far as advice depends on it.
#[derive(Clone, Debug)]
pub struct Pool {
    pub database: Arc<str>,
    pub user: Arc<str>,
    pub max_size: usize,
    /// The key that `max_size` comes from, dotted.
    pub size_key: String,
    /// The key of its longest wait, dotted, and what it says.
    pub wait_limit: Option<Duration>,
    pub waiting: usize,
    pub longest_wait: Duration,
    /// Seconds of the last minute in which clients waited.
    pub waited: usize,
    pub in_use: usize,
    /// Connections held by transactions in which nothing runs.
    pub idle_in_transaction: usize,
    /// Connections that sessions keep outside transactions.
    pub pinned: usize,
    pub obstacle: Obstacle,
}

/// What to do about a pool's queue.
pub fn on_pool(pool: &Pool) -> Option<Advice> {
    if pool.waiting == 0 && pool.waited < WAITED_MIN {
        return None;
    }
    let is_moment = pool.waited < WAITED_MIN && pool.longest_wait < Duration::from_secs(1);
    let (action, setting) = match &pool.obstacle {
        Obstacle::Paused => (resume(pool), None),
        // The cluster's own advice says it.
        Obstacle::NoPrimary => return None,
        Obstacle::OpenFailed(error) => (
            format!(
                "No server connection can be opened: {error}. See that the server is up, has connections left \
                 (max_connections), and lets this user in."
            ),
            None,
        ),
        _ if is_moment => return None,
        Obstacle::Cap(cap) => (
            format!(
                "The cap pool.{cap}, shared with other pools, is reached: raise it, or give others less."
            ),
            Some(format!("pool.{cap}")),
        ),
        Obstacle::Size => held_up(pool),
    };
    Some(Advice {
        urgency: urgency(pool),
        subject: Subject::Pool {
            database: Arc::clone(&pool.database),
            user: Arc::clone(&pool.user),
        },
        what: queue(pool),
        action,
        setting,
    })
}

fn urgency(pool: &Pool) -> Urgency {
    let is_failing = matches!(pool.obstacle, Obstacle::OpenFailed(_));
    let near_limit = pool
        .wait_limit
        .is_some_and(|limit| pool.longest_wait * 2 >= limit);
    if pool.waiting > 0 && (is_failing || near_limit) {
        Urgency::Now
    } else {
        Urgency::Soon
    }
}

fn queue(pool: &Pool) -> String {
    let now = if pool.waiting > 0 {
        format!(
            "{} in the queue, the first for {}",
            plural(pool.waiting, "client"),
            spoken(pool.longest_wait)
        )
    } else {
        "Nobody in the queue now".to_owned()
    };
    format!(
        "{now}; clients waited in {} of the last 60 seconds. {} of {} connections in use.",
        pool.waited, pool.in_use, pool.max_size
    )
}

fn resume(pool: &Pool) -> String {
    format!(
        "It is paused: RESUME {} in the console lets them go on.",
        pool.database
    )
}

/// All connections are in use: by whom decides what helps.
fn held_up(pool: &Pool) -> (String, Option<String>) {
    if pool.pinned * 2 >= pool.max_size {
        let action = format!(
            "{} of {} connections belong to pinned sessions: change the statements listed under Pins, so that others \
             can use these connections too.",
            pool.pinned, pool.max_size
        );
        return (action, None);
    }
    if pool.idle_in_transaction * 2 >= pool.max_size {
        let action = format!(
            "{} of {} connections are held by transactions in which nothing runs: the application does something else \
             between BEGIN and COMMIT. Move that out, or end such transactions.",
            pool.idle_in_transaction, pool.max_size
        );
        return (action, Some("timeouts.idle_transaction_timeout".to_owned()));
    }
    let action = format!(
        "The pool is too small for what its clients do: raise {} (now {}) as far as the server's CPUs and \
         max_connections allow, or make the statements that take the most time faster.",
        pool.size_key, pool.max_size
    );
    (action, Some(pool.size_key.clone()))
}
