//! Traces: what a statement waited for, as spans for OpenTelemetry.
//!
//! A statement whose text carries a sqlcommenter `traceparent` continues its caller's trace, if that is sampled; of
//! the others one in `traces.sample` begins a trace of its own. Each is one span with children `queue`, `checkout` and
//! `server`, made when it has ended.
//!
//! Sessions hand statements over through a bounded queue and never wait; what finds no room, and what a collector does
//! not take, is dropped and counted. Off, a statement costs one look at a flag.
//!
//! # Why not the opentelemetry crates
//! Exporter, SDK and protobuf definitions bring some forty crates and an HTTP client of their own for one kind of
//! request. OTLP's JSON encoding over HTTP/1.1 is part of its specification, every collector takes it, and `serde_json`
//! is here already.

pub mod context;
mod otlp;
mod post;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

pub use self::context::TraceParent;
use crate::config::model::Traces;
use crate::error::SqlState;
use crate::meter::{QueryId, TraceId};

/// Statements that wait to be sent.
const QUEUE_MAX: usize = 4096;
/// Statements of one request.
const BATCH_MAX: usize = 512;
/// How long statements are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// The pause after a request that failed doubles from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// A statement that has ended.
#[derive(Clone, Debug)]
pub struct Traced {
    pub trace: TraceId,
    /// The caller's span.
    pub parent: Option<u64>,
    pub ended: SystemTime,
    /// Waiting for a server connection.
    pub queued: Duration,
    /// Bringing it to the session's settings.
    pub checkout: Duration,
    /// From sending to the last answer.
    pub server: Duration,
    /// From sending to the first answer.
    pub first: Duration,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub node: Arc<str>,
    pub query: QueryId,
    pub text: Arc<str>,
    pub rows: u64,
    pub error: Option<SqlState>,
}

/// See the module.
#[derive(Debug)]
pub struct Tracer {
    is_on: AtomicBool,
    settings: ArcSwap<Traces>,
    queue: OnceLock<SyncSender<Traced>>,
    /// Statements seen that continue no trace.
    roots: AtomicU64,
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Tracer {
    pub fn new(settings: &Traces) -> Arc<Self> {
        Arc::new(Self {
            is_on: AtomicBool::new(settings.endpoint.is_some()),
            settings: ArcSwap::from_pointee(settings.clone()),
            queue: OnceLock::new(),
            roots: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    /// Takes over changed settings.
    pub fn set(&self, settings: &Traces) {
        self.settings.store(Arc::new(settings.clone()));
        self.is_on
            .store(settings.endpoint.is_some(), Ordering::Relaxed);
    }

    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The trace that a statement with this text is part of, if any.
    pub fn trace_of(&self, text: &[u8]) -> Option<TraceParent> {
        match context::traceparent(text) {
            Some(parent) => parent.is_sampled.then_some(parent),
            None => self.begin(),
        }
    }

    /// A trace of its own for one statement in so many.
    pub fn begin(&self) -> Option<TraceParent> {
        let every = self.settings.load().sample as u64;
        if every == 0 {
            return None;
        }
        let turn = self.roots.fetch_add(1, Ordering::Relaxed);
        turn.is_multiple_of(every).then(|| TraceParent {
            trace: TraceId(rand::random()),
            parent: None,
            is_sampled: true,
        })
    }

    /// Hands over a statement; the first starts the thread that sends.
    pub fn put(self: &Arc<Self>, traced: Traced) {
        let queue = self.queue.get_or_init(|| self.start());
        if queue.try_send(traced).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Statements that a collector has taken.
    pub fn exported_count(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Statements that found no room in the queue, or that no collector took.
    pub fn dropped_count(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn start(self: &Arc<Self>) -> SyncSender<Traced> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let tracer = Arc::clone(self);
        let thread = std::thread::Builder::new().name("traces".to_owned());
        if let Err(error) = thread.spawn(move || tracer.send_all(&receiver)) {
            // Then every statement finds the queue closed and is counted as dropped.
            tracing::error!(%error, "could not start the thread that sends traces");
        }
        sender
    }

    fn send_all(&self, receiver: &Receiver<Traced>) {
        let mut pause = PAUSES[0];
        while let Ok(first) = receiver.recv() {
            let batch = gather(first, receiver);
            let settings = self.settings.load_full();
            let count = batch.len() as u64;
            let Some(endpoint) = &settings.endpoint else {
                self.dropped.fetch_add(count, Ordering::Relaxed);
                continue;
            };
            let body = otlp::request(&settings.service_name, &batch);
            match post::post(endpoint, &body) {
                Ok(()) => {
                    self.exported.fetch_add(count, Ordering::Relaxed);
                    pause = PAUSES[0];
                }
                Err(error) => {
                    self.dropped.fetch_add(count, Ordering::Relaxed);
                    tracing::warn!(%endpoint, %error, "could not send traces; they are dropped");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES[1]);
                }
            }
        }
    }
}

fn gather(first: Traced, receiver: &Receiver<Traced>) -> Vec<Traced> {
    let until = tokio::time::Instant::now() + GATHER;
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        match receiver.recv_timeout(left) {
            Ok(traced) => batch.push(traced),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    batch
}
