//! What there was too much of: clients that were turned away, servers that can't be reached.

use std::sync::atomic::Ordering;

use super::{Page, labels};
use crate::shared::Shared;
use crate::status::PoolStatus;

pub(super) fn put(page: &mut Page, pools: &[PoolStatus], shared: &Shared) {
    let name = "pgweir_pool_refused_clients_total";
    let help = "Requests for a server connection that were refused with 53300: at once (shed), or after waiting in vain.";
    page.family(name, "counter", help);
    for pool in pools {
        let counters = &pool.pool.counters;
        let reasons = [
            ("shed", &counters.shed),
            ("wait_timeout", &counters.wait_timeouts),
        ];
        for (reason, count) in reasons {
            let [database, user] = labels(pool);
            let labels = [database, user, ("reason", reason)];
            page.sample(name, &labels, count.load(Ordering::Relaxed));
        }
    }
    let name = "pgweir_pool_refused_requests_total";
    let help = "Requests that ended without a server connection, by SQLSTATE.";
    page.family(name, "counter", help);
    for pool in pools {
        let [database, user] = labels(pool);
        let (by_code, others) = pool.pool.counters.refused.all();
        for (code, count) in by_code {
            let labels = [database, user, ("sqlstate", code.as_str())];
            page.sample(name, &labels, count);
        }
        if others > 0 {
            page.sample(name, &[database, user, ("sqlstate", "other")], others);
        }
    }
    let name = "pgweir_pool_service_rate";
    let help = "Waiting clients that the pool serves each second, while it is overloaded.";
    page.family(name, "gauge", help);
    for pool in pools {
        if let Some(rate) = pool.pool.service_rate() {
            page.sample(name, &labels(pool), format_args!("{rate:.3}"));
        }
    }
    let name = "pgweir_server_unreachable";
    let help =
        "Whether the last attempts to connect to a server failed, so that one at a time tries it.";
    page.family(name, "gauge", help);
    for (server, is_open) in shared.pools.limits().circuits.states() {
        page.sample(name, &[("server", &server)], u8::from(is_open));
    }
}
