//! The one task that decides when connections are opened and closed.
//!
//! It wakes when a client queues or a connection ends, and now and then by itself; because it alone decides, no two
//! decisions race for the same cap.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use tokio::time::Instant;

use super::admission::by_share;
use super::circuit::Opening;
use super::effective::Effective;
use super::limits::{Cap, Slot};
use super::pool::Pool;
use super::pools::Pools;
use crate::tasks;

/// Connections one pool opens at the same time.
const OPENING_MAX: usize = 4;
/// How often ages are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often reserve, retry and fairness times are looked at while clients wait.
const WHILE_WAITING: Duration = Duration::from_millis(20);

/// Runs until the process ends.
pub async fn run(pools: Arc<Pools>) {
    let mut housekeeping = Instant::now() + HOUSEKEEPING;
    loop {
        let waiting = pools.limits.waiting.load(SeqCst) > 0;
        let until = if waiting {
            Instant::now() + WHILE_WAITING
        } else {
            housekeeping
        };
        let _ = tokio::time::timeout_at(until, pools.limits.changed.notified()).await;
        if Instant::now() >= housekeeping {
            housekeeping = Instant::now() + HOUSEKEEPING;
            keep_house(&pools);
        }
        open_where_needed(&pools);
        pools.listeners.look();
    }
}

/// Opens connections for waiting clients: pools with the smallest share first (see [`admission`](super::admission)).
fn open_where_needed(pools: &Arc<Pools>) {
    let (all, now) = (pools.all(), Instant::now());
    let mut needy: Vec<(bool, Instant, &Arc<Pool>)> = all
        .iter()
        .filter_map(|pool| Some((pool.is_cut_off(), pool.oldest_wait()?, pool)))
        .collect();
    // Between equals the one that has waited longest for a connection of its own. Of pools that try a server in turn, as
    // it can't be reached, one that always fails would have the smallest share for ever.
    needy.sort_by(|(cut_off_a, since_a, a), (cut_off_b, since_b, b)| {
        let by_share = || match cut_off_a {
            true => Ordering::Equal,
            false => by_share(a.share(), b.share()),
        };
        cut_off_a
            .cmp(cut_off_b)
            .then_with(by_share)
            .then_with(|| a.opened_last().cmp(&b.opened_last()))
            .then_with(|| since_a.cmp(since_b))
    });
    let mut starved = Vec::new();
    for (_, since, pool) in needy {
        pool.fail_fast();
        let blocked = open_for(pools, pool, since);
        pool.serve_from_aside();
        pool.set_blocked_by(blocked);
        if let Some(cap) = blocked {
            starved.push(pool.starved_by(cap, since));
        }
    }
    pools.limits.set_starved(starved);
    for pool in all {
        if pool.oldest_wait().is_none() {
            pool.set_blocked_by(None);
        }
        pool.look_at_pace(now);
        let demand = pool.take_demand();
        if demand > 0 {
            open_for_reads(pools, &pool, demand);
        }
    }
}

/// Opens connections to a replica for reads that nobody waits with. A cap that is reached leaves it at that.
fn open_for_reads(pools: &Arc<Pools>, pool: &Arc<Pool>, demand: usize) {
    if pool.is_held() || pool.is_resting() {
        return;
    }
    let effective = pool.effective.load();
    while pool.opening() < demand.min(OPENING_MAX) && pool.open() < effective.pool.max_size {
        let Some(opening) = begin_opening(pool, &effective) else {
            return;
        };
        let Ok(slot) = pool.reserve(&effective.pool) else {
            return;
        };
        start_opening(pools, pool, slot, opening);
    }
}

/// Opens what `pool` needs and may have; tells the shared cap that stood in the way.
fn open_for(pools: &Arc<Pools>, pool: &Arc<Pool>, since: Instant) -> Option<Cap> {
    let effective = pool.effective.load();
    // Of a server that can't be reached the circuit says when it is time.
    let rests = pool.is_resting() && !(pool.is_cut_off() && pool.failed_to_reach());
    if pool.is_held() || rests {
        return None;
    }
    let waited_long = since.elapsed() >= effective.pool.reserve_timeout;
    let reserve = if waited_long {
        effective.pool.reserve_size
    } else {
        0
    };
    let size = effective.pool.max_size + reserve;
    while pool.opening() < pool.waiting().min(OPENING_MAX) && pool.open() < size {
        let opening = begin_opening(pool, &effective)?;
        match pool.reserve(&effective.pool) {
            Ok(slot) => start_opening(pools, pool, slot, opening),
            Err(cap) => {
                drop(opening);
                let may_lose = |other: &Arc<Pool>, at| {
                    !Arc::ptr_eq(other, pool) && other.may_lose_idle(at, pool)
                };
                if !close_longest_idle(pools, pool, cap, may_lose) {
                    return Some(cap);
                }
            }
        }
    }
    None
}

/// The right to ask the pool's server for one more connection now.
fn begin_opening(pool: &Pool, effective: &Effective) -> Option<Opening> {
    let server = effective.primary.address();
    pool.limits.circuits.begin(&server, effective.overload)
}

fn start_opening(pools: &Arc<Pools>, pool: &Arc<Pool>, slot: Slot, opening: Opening) {
    pool.note_opening();
    pool.opening.fetch_add(1, SeqCst);
    let dialer = pools.dialer.load_full();
    tasks::spawn(
        "open server connection",
        Arc::clone(pool).open_one(slot, opening, dialer),
    );
}

/// Whether connections of these pools count together under `cap`.
fn count_together(cap: Cap, a: &Pool, b: &Pool) -> bool {
    let address = |pool: &Pool| pool.effective.load().primary.address();
    cap.is_shared_by((&a.key, || address(a)), (&b.key, || address(b)))
}

/// Closes the longest-idle connection that counts under `cap` with those of `needy`, of the pools that may lose one idle
/// since then; false if there is none.
pub(super) fn close_longest_idle(
    pools: &Pools,
    needy: &Arc<Pool>,
    cap: Cap,
    may_lose: impl Fn(&Arc<Pool>, Instant) -> bool,
) -> bool {
    let others = pools
        .all()
        .into_iter()
        .filter(|other| count_together(cap, needy, other));
    let oldest = others
        .filter_map(|other| {
            let mut released = None;
            other.retain_idle(|pooled| {
                let at = pooled.backend.released;
                if !may_lose(&other, at) {
                    return true;
                }
                released = Some(released.map_or(at, |oldest: Instant| oldest.min(at)));
                true
            });
            Some((released?, other))
        })
        .min_by_key(|(released, _)| *released);
    let Some((released, victim)) = oldest else {
        return false;
    };
    let mut found = false;
    victim.retain_idle(|pooled| {
        let is_it = !found && pooled.backend.released == released;
        found |= is_it;
        !is_it
    }) > 0
}

/// Closes what is too old or idle too long, and keeps `min_idle` open where there are clients.
fn keep_house(pools: &Arc<Pools>) {
    let now = Instant::now();
    for pool in pools.all() {
        let effective = pool.effective.load();
        let manager = pool.objects.manager();
        pool.look_at_aside(now);
        let mut keep_open = pool.open().saturating_sub(effective.pool.min_idle);
        let most = effective.pool.max_size + effective.pool.reserve_size;
        let mut too_many = pool.open().saturating_sub(most);
        pool.retain_idle(|pooled| {
            let backend = &pooled.backend;
            let idle_too_long = effective
                .timeouts
                .server_idle_timeout
                .is_some_and(|limit| backend.released.elapsed() >= limit);
            let may_go = (idle_too_long && keep_open > 0) || too_many > 0;
            too_many = too_many.saturating_sub(usize::from(may_go));
            keep_open = keep_open.saturating_sub(usize::from(may_go));
            !may_go && !manager.is_outdated(backend, now)
        });
        let wanted = if pool.clients.load(Relaxed) > 0 {
            effective.pool.min_idle
        } else {
            0
        };
        let may_try = pool.with_gate(|gate| gate.retry_at.is_none_or(|at| at <= Instant::now()));
        while may_try && !pool.is_held() && pool.open() < wanted && pool.opening() < OPENING_MAX {
            let Some(opening) = begin_opening(&pool, &effective) else {
                break;
            };
            let Ok(slot) = pool.reserve(&effective.pool) else {
                break;
            };
            start_opening(pools, &pool, slot, opening);
        }
    }
    pools.forget_unused();
}
