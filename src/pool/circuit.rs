//! Whether a server is asked for more connections: how many at a time, and whether at all while it can't be reached.
//!
//! Every pool has its own pauses after a failed attempt (`open`'s `Gate`), but a server that is away is away for all of
//! them, and one that comes back is met by all of them at once. So there is one `Circuit` for each server, over all
//! pools:
//! - *closed*: connections are opened, at most `window` at a time; each success adds one, up to
//!   `overload.opening_max`, a failure halves it;
//! - *open*, after `overload.breaker_after` failures in a row: none is opened until a pause is over, then one tries. A
//!   failure doubles the pause, up to `server_login_retry`; success closes the circuit with a window of one.
//!
//! Bound: one circuit for each server that a connection was wanted to.
//!
//! # Why the window begins with one after an outage
//! A server that has just started has cold caches and forks a process for each login; hundreds of logins at once make
//! every one of them slow and the first transactions slower. Growth by one for each success doubles the window with
//! each round, so an able server is at full speed after a few of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::open::{OpenError, RETRY_FIRST};
use crate::backend::login::{LoginError, ServerError};
use crate::config::model::Overload;
use crate::wire::backend;
use crate::wire::frame::HEADER;

/// What an attempt says of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It is there.
    Reached,
    /// It is there and has as many connections as it takes.
    Full,
    /// It is away, starting or stopping.
    Unreachable,
}

impl Attempt {
    pub fn of(outcome: Result<(), &OpenError>) -> Self {
        match outcome {
            Err(OpenError::Known(error)) => Self::of(Err(error)),
            Err(OpenError::Connect(_)) => Self::Unreachable,
            Err(OpenError::Timeout { was_heard, .. }) if !was_heard => Self::Unreachable,
            Err(OpenError::Login(LoginError::Io(_) | LoginError::Closed)) => Self::Unreachable,
            Err(OpenError::Login(LoginError::Server(refusal))) => match &refusal.code.0 {
                b"57P01" | b"57P02" | b"57P03" | b"08006" => Self::Unreachable,
                b"53300" if !is_of_one(refusal) => Self::Full,
                _ => Self::Reached,
            },
            Ok(()) | Err(_) => Self::Reached,
        }
    }
}

/// Whether it is a role or a database that has as many connections as it may, and not the server: the routine that says
/// so tells, in every language.
fn is_of_one(refusal: &ServerError) -> bool {
    let routine = backend::error_field(refusal.frame.get(HEADER..).unwrap_or_default(), b'R');
    matches!(
        routine,
        Some(b"InitializeSessionUserId" | b"CheckMyDatabase")
    )
}

/// One server's.
#[derive(Debug, Default)]
struct Circuit {
    opening: usize,
    /// How many may be opened at a time; `None` for as many as the setting says: there was no failure yet.
    window: Option<usize>,
    failures: usize,
    /// While it is open: when the next attempt may be, and the pause before it.
    open: Option<(Instant, Duration)>,
    last_error: Option<Arc<OpenError>>,
}

impl Circuit {
    fn may_begin(&self, settings: Overload, now: Instant) -> bool {
        match self.open {
            Some((until, _)) => self.opening == 0 && until <= now,
            None => self.opening < self.window(settings),
        }
    }

    fn window(&self, settings: Overload) -> usize {
        self.window.map_or(settings.opening_max, |window| {
            window.min(settings.opening_max)
        })
    }

    /// An attempt has ended. `tried_again`: it began while the circuit was open.
    fn end(
        &mut self,
        attempt: Attempt,
        tried_again: bool,
        settings: Overload,
        longest: Duration,
        now: Instant,
    ) {
        match attempt {
            Attempt::Reached => {
                let grown = if self.open.take().is_some() {
                    Some(1)
                } else {
                    self.window.map(|window| window + 1)
                };
                self.window = grown.filter(|window| *window < settings.opening_max);
                self.failures = 0;
                self.last_error = None;
            }
            Attempt::Full => {
                self.open = None;
                self.failures = 0;
                self.window = Some((self.window(settings) / 2).max(1));
            }
            Attempt::Unreachable => {
                self.failures = self.failures.saturating_add(1);
                self.window = Some((self.window(settings) / 2).max(1));
                let pause = match self.open {
                    Some((_, pause)) if tried_again => (pause * 2).min(longest),
                    // It was under way when the circuit opened, and says nothing new.
                    Some(_) => return,
                    None => RETRY_FIRST,
                };
                if self.failures >= settings.breaker_after {
                    let pause = pause.max(RETRY_FIRST);
                    let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
                    self.open = Some((now + jittered, pause));
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Circuits {
    by_server: Mutex<HashMap<Arc<str>, Circuit>>,
    /// An attempt has ended.
    ended: Notify,
}

/// A connection that is being opened. Dropped without [`Opening::end`], it says nothing of its server.
#[derive(Debug)]
pub struct Opening {
    circuits: Arc<Circuits>,
    server: Arc<str>,
    settings: Overload,
    tries_again: bool,
}

impl Circuits {
    fn with<R>(&self, server: &str, change: impl FnOnce(&mut Circuit) -> R) -> R {
        let mut circuits = self
            .by_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(circuit) = circuits.get_mut(server) {
            return change(circuit);
        }
        change(circuits.entry(server.into()).or_default())
    }

    /// Begins to open a connection to `server` (`HOST:PORT`), if it may be asked for one more now.
    pub fn begin(self: &Arc<Self>, server: &str, settings: Overload) -> Option<Opening> {
        let now = Instant::now();
        let begins = self.with(server, |circuit| {
            let begins = circuit.may_begin(settings, now);
            circuit.opening += usize::from(begins);
            begins.then_some(circuit.open.is_some())
        });
        begins.map(|tries_again| Opening {
            circuits: Arc::clone(self),
            server: server.into(),
            settings,
            tries_again,
        })
    }

    /// Waits until a connection to `server` may be opened. While it can't be reached, and it is not time to look
    /// again, that is an error at once. Cancel safe.
    pub async fn turn(
        self: &Arc<Self>,
        server: &str,
        settings: Overload,
    ) -> Result<Opening, OpenError> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // From here on an end is not missed.
            ended.as_mut().enable();
            if let Some(opening) = self.begin(server, settings) {
                return Ok(opening);
            }
            if let Some(error) = self.unreachable(server) {
                return Err(OpenError::Known(error));
            }
            ended.await;
        }
    }

    /// Why `server` can't be reached, if it can't.
    pub fn unreachable(&self, server: &str) -> Option<Arc<OpenError>> {
        self.with(server, |circuit| {
            circuit.open?;
            circuit.last_error.clone()
        })
    }

    /// Why `server` is not even tried at the moment, if it is not.
    pub fn rests(&self, server: &str) -> Option<Arc<OpenError>> {
        let now = Instant::now();
        self.with(server, |circuit| {
            circuit.open.filter(|(until, _)| *until > now)?;
            circuit.last_error.clone()
        })
    }

    /// Servers that can't be reached, for the metrics.
    pub fn states(&self) -> Vec<(Arc<str>, bool)> {
        let circuits = self
            .by_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut states: Vec<_> = circuits
            .iter()
            .map(|(server, circuit)| (Arc::clone(server), circuit.open.is_some()))
            .collect();
        states.sort_unstable();
        states
    }
}

impl Opening {
    /// What came of it. `longest` is the longest pause.
    pub fn end(self, outcome: Result<(), &Arc<OpenError>>, longest: Duration) {
        let attempt = Attempt::of(outcome.map_err(|error| &**error));
        let now = Instant::now();
        let changed = self.circuits.with(&self.server, |circuit| {
            let was_open = circuit.open.is_some();
            circuit.end(attempt, self.tries_again, self.settings, longest, now);
            if let (Attempt::Unreachable, Err(error)) = (attempt, outcome) {
                circuit.last_error = Some(Arc::clone(error));
            }
            (was_open, circuit.open.is_some())
        });
        match changed {
            (false, true) => tracing::warn!(server = %self.server, "the server can't be reached"),
            (true, false) => tracing::info!(server = %self.server, "the server is reached again"),
            _ => {}
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.circuits
            .with(&self.server, |circuit| circuit.opening -= 1);
        self.circuits.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Overload = Overload {
        opening_max: 8,
        breaker_after: 3,
        fail_fast: false,
    };
    const LONGEST: Duration = Duration::from_secs(1);

    fn begin_all(circuit: &mut Circuit, now: Instant) -> usize {
        let before = circuit.opening;
        while circuit.may_begin(SETTINGS, now) {
            circuit.opening += 1;
        }
        circuit.opening - before
    }

    fn end(circuit: &mut Circuit, attempt: Attempt, now: Instant) {
        circuit.opening -= 1;
        let tried_again = circuit.open.is_some();
        circuit.end(attempt, tried_again, SETTINGS, LONGEST, now);
    }

    #[test]
    fn after_failures_one_at_a_time_tries_and_then_more_with_each_success() {
        let (mut circuit, mut now) = (Circuit::default(), Instant::now());
        assert_eq!(begin_all(&mut circuit, now), 8);
        for _ in 0..8 {
            circuit.opening -= 1;
            circuit.end(Attempt::Unreachable, false, SETTINGS, LONGEST, now);
        }
        // Those that were under way raise no pause.
        assert_eq!(circuit.open.unwrap().1, RETRY_FIRST);
        assert_eq!(begin_all(&mut circuit, now), 0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (until, pause) = circuit.open.unwrap();
            assert!(until > now && until <= now + pause);
            pauses.push(pause);
            now = until;
            assert_eq!(begin_all(&mut circuit, now), 1);
            end(&mut circuit, Attempt::Unreachable, now);
        }
        assert!(
            pauses.windows(2).all(|pair| pair[0] <= pair[1]),
            "{pauses:?}"
        );
        assert_eq!(pauses.last(), Some(&LONGEST));
        now = circuit.open.unwrap().0;
        assert_eq!(begin_all(&mut circuit, now), 1);
        end(&mut circuit, Attempt::Reached, now);
        // Each success makes room for itself and one more.
        let mut rounds = Vec::new();
        while circuit.window.is_some() {
            let count = begin_all(&mut circuit, now);
            rounds.push(count);
            (0..count).for_each(|_| end(&mut circuit, Attempt::Reached, now));
        }
        assert_eq!(rounds, [1, 2, 4]);
        assert_eq!(begin_all(&mut circuit, now), 8);
    }

    #[test]
    fn a_refusal_is_no_outage_and_a_full_server_is_asked_more_slowly() {
        let (mut circuit, now) = (Circuit::default(), Instant::now());
        for _ in 0..2 {
            circuit.opening += 1;
            end(&mut circuit, Attempt::Unreachable, now);
        }
        circuit.opening += 1;
        end(&mut circuit, Attempt::Reached, now);
        circuit.opening += 1;
        end(&mut circuit, Attempt::Unreachable, now);
        assert!(circuit.open.is_none());
        let mut circuit = Circuit::default();
        circuit.opening += 1;
        end(&mut circuit, Attempt::Full, now);
        assert_eq!(begin_all(&mut circuit, now), 4);
    }

    #[test]
    fn what_is_said_to_one_user_or_database_says_nothing_of_the_server() {
        let refused = |code: &[u8; 5], routine: &str| {
            let fields = [
                &b"SFATAL\0C"[..],
                code,
                b"\0Mno\0R",
                routine.as_bytes(),
                b"\0\0",
            ]
            .concat();
            let mut frame = Vec::new();
            crate::wire::frame::put(&mut frame, b'E', |out| out.extend_from_slice(&fields));
            let error = ServerError {
                frame,
                severity: crate::error::Severity::Fatal,
                code: crate::error::SqlState(*code),
                message: "no".to_owned(),
            };
            Attempt::of(Err(&OpenError::Login(LoginError::Server(Box::new(error)))))
        };
        assert_eq!(refused(b"53300", "InitProcess"), Attempt::Full);
        assert_eq!(refused(b"53300", ""), Attempt::Full);
        assert_eq!(
            refused(b"53300", "InitializeSessionUserId"),
            Attempt::Reached
        );
        assert_eq!(refused(b"53300", "CheckMyDatabase"), Attempt::Reached);
        assert_eq!(
            refused(b"57P03", "ProcessStartupPacket"),
            Attempt::Unreachable
        );
        for (was_heard, attempt) in [(true, Attempt::Reached), (false, Attempt::Unreachable)] {
            let limit = LONGEST;
            let error = OpenError::Timeout { limit, was_heard };
            assert_eq!(Attempt::of(Err(&error)), attempt);
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_turn_gets_it_once_one_has_ended() {
        let circuits = Arc::new(Circuits::default());
        let one = Overload {
            opening_max: 1,
            ..SETTINGS
        };
        let first = circuits.turn("db:1", one).await.unwrap();
        assert!(circuits.begin("db:1", one).is_none());
        assert!(circuits.begin("db:2", one).is_some());
        let second = circuits.turn("db:1", one);
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("there is room for one"),
            () = std::future::ready(()) => {}
        }
        first.end(Ok(()), LONGEST);
        drop(second.await.unwrap());
        let error = Arc::new(OpenError::Timeout {
            limit: LONGEST,
            was_heard: false,
        });
        for _ in 0..3 {
            let opening = circuits.turn("db:1", one).await.unwrap();
            opening.end(Err(&error), LONGEST);
        }
        assert!(circuits.unreachable("db:1").is_some());
        assert!(circuits.rests("db:1").is_some());
        assert!(circuits.turn("db:1", one).await.is_err());
        assert_eq!(
            circuits.states(),
            [("db:1".into(), true), ("db:2".into(), false)]
        );
    }
}
