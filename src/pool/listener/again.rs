//! A shared listener whose task panics goes on in another task: its sessions would wait for ever.

use std::sync::Arc;
use std::time::Duration;

use super::{Listener, task};
use crate::pool::Pools;
use crate::tasks;

/// Pause after a panic.
const PAUSE: Duration = Duration::from_secs(1);

struct Again {
    pools: Arc<Pools>,
    listener: Arc<Listener>,
}

/// Serves `listener` in a task of its own, after a `pause` if a task before it has panicked.
pub(super) fn start(pools: Arc<Pools>, listener: Arc<Listener>, pause: Option<Duration>) {
    let again = Again { pools, listener };
    tasks::spawn("listener", async move {
        let again = again;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let (pools, listener) = (Arc::clone(&again.pools), Arc::clone(&again.listener));
        task::run(pools, listener, pause.is_some()).await;
    });
}

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.listener.give_up();
            let (pools, listener) = (Arc::clone(&self.pools), Arc::clone(&self.listener));
            start(pools, listener, Some(PAUSE));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::sync::Notify;

    use super::*;
    use crate::backend::connect::Dialer;
    use crate::config::{Overrides, load};
    use crate::pool::listener::{Answer, Ask, Hearing, Key};

    #[tokio::test]
    async fn who_waits_is_answered_when_the_task_panics_and_by_the_next_one() {
        let mut overrides = Overrides::new();
        // Nobody listens there.
        overrides.set("--primary", "cluster.primary", "postgres://127.0.0.1:1");
        let config = load(None, &overrides, &|_| None).unwrap().config;
        let pools = Pools::new(Arc::new(Dialer::plain()));
        let pool = pools.get(&config, "app", "bob").unwrap();
        let listener = Arc::new(Listener::new(Key {
            database: "app".into(),
            encoding: b"UTF8".as_slice().into(),
        }));
        let woken = Arc::new(Notify::new());
        let wake = Arc::clone(&woken);
        let ear = listener
            .lock()
            .add(&pool, Box::new(move || wake.notify_one()));
        let hearing = Hearing {
            listener: Arc::clone(&listener),
            ear,
        };
        hearing.ask(Ask::Subscribe(BTreeSet::new()));
        let again = Again {
            pools: Arc::clone(&pools),
            listener,
        };
        let task = tasks::spawn("panics", async move {
            let again = again;
            let _lock = again.listener.lock();
            panic!("as a listener would");
        });
        assert!(task.await.unwrap_err().is_panic());
        for _ in 0..2 {
            let limit = Duration::from_secs(20);
            tokio::time::timeout(limit, woken.notified()).await.unwrap();
            let answer = hearing.ear.take_answer();
            assert_eq!(answer, Some((Answer::Unavailable, 0)));
            hearing.ask(Ask::Subscribe(BTreeSet::new()));
        }
    }
}
