//! Waiting for conditions. The one place where tests sleep.

use std::time::Duration;

use tokio::time::Instant;

/// Longest wait for anything in a test; generous, because it is only reached by failures.
pub const LIMIT: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Blocks until `condition` holds; panics with `what` after [`LIMIT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Blocks until `find` finds something and returns it.
pub fn wait_for<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {LIMIT:?} in vain for {what}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Like [`wait_until`] for a condition that is itself asynchronous.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "waited {LIMIT:?} in vain for {what}"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The result of `future`, or a panic with `what` after [`LIMIT`].
pub async fn within_limit<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(LIMIT, future).await;
    result.unwrap_or_else(|_| panic!("waited {LIMIT:?} in vain for {what}"))
}
