//! The slow log and the query log: lines about statements, written by a thread of their own.
//!
//! Sessions hand entries over through a bounded queue and never wait: what finds no room is dropped and counted, and so
//! is what can't be written, because a disk is full or a reader of the log stalls.
//!
//! # Why a thread
//! Writing to a file or to standard error blocks, and nothing that blocks may share a thread with sessions.

mod file;
mod format;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::file::Target;
use crate::config::model::{LogFormat, QueryLog, SlowLog};
use crate::meter::{Incident, QueryId};

/// Entries that wait to be written.
const QUEUE_MAX: usize = 10_000;

/// How long the thread waits for an entry before it looks whether its files are still where they were.
const IDLE: Duration = Duration::from_secs(1);

/// One entry.
#[derive(Clone, Debug)]
pub enum Entry {
    Slow(Arc<Incident>),
    Query(Arc<Incident>),
    /// How the server would run a slow statement.
    Plan {
        query: QueryId,
        text: Arc<str>,
        plan: Arc<str>,
    },
}

impl Entry {
    fn log(&self) -> Log {
        match self {
            Self::Slow(_) | Self::Plan { .. } => Log::Slow,
            Self::Query(_) => Log::Query,
        }
    }
}

/// Which of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    Slow,
    Query,
}

impl Log {
    pub const ALL: [Self; 2] = [Self::Slow, Self::Query];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Query => "query",
        }
    }
}

/// What became of a log's entries.
#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Settings {
    slow: SlowLog,
    query: QueryLog,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    queue: OnceLock<SyncSender<Entry>>,
    settings: ArcSwap<Settings>,
    counts: [Counts; 2],
}

impl Journal {
    pub fn new(slow: &SlowLog, query: &QueryLog) -> Arc<Self> {
        Arc::new(Self {
            queue: OnceLock::new(),
            settings: ArcSwap::from_pointee(Settings {
                slow: slow.clone(),
                query: query.clone(),
            }),
            counts: Default::default(),
        })
    }

    /// Takes over changed settings.
    pub fn set(&self, slow: &SlowLog, query: &QueryLog) {
        self.settings.store(Arc::new(Settings {
            slow: slow.clone(),
            query: query.clone(),
        }));
    }

    /// Hands over an entry; the first starts the thread.
    pub fn put(self: &Arc<Self>, entry: Entry) {
        let log = entry.log();
        let queue = self.queue.get_or_init(|| self.start());
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(entry) {
            self.dropped(log);
        }
    }

    /// Entries written so far.
    pub fn written_count(&self, log: Log) -> u64 {
        self.counts[log as usize].written.load(Ordering::Relaxed)
    }

    /// Entries that were not written: there was no room for them in the queue, or on the disk.
    pub fn dropped_count(&self, log: Log) -> u64 {
        self.counts[log as usize].dropped.load(Ordering::Relaxed)
    }

    fn dropped(&self, log: Log) {
        self.counts[log as usize]
            .dropped
            .fetch_add(1, Ordering::Relaxed);
    }

    fn start(self: &Arc<Self>) -> SyncSender<Entry> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let journal = Arc::clone(self);
        let thread = std::thread::Builder::new().name("journal".to_owned());
        if let Err(error) = thread.spawn(move || journal.write_all(&receiver)) {
            // Then every entry finds the queue closed and is counted as dropped.
            tracing::error!(%error, "could not start the thread that writes the slow log and the query log");
        }
        sender
    }

    fn write_all(&self, receiver: &Receiver<Entry>) {
        let mut targets = [Target::default(), Target::default()];
        loop {
            let entry = match receiver.recv_timeout(IDLE) {
                Ok(entry) => entry,
                Err(RecvTimeoutError::Timeout) => {
                    targets.iter_mut().for_each(Target::rest);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let log = entry.log();
            let settings = self.settings.load();
            let (path, format) = match log {
                Log::Slow => (&settings.slow.file, settings.slow.format),
                Log::Query => (&settings.query.file, settings.query.format),
            };
            let written = if let Some(path) = path {
                let line = match format {
                    LogFormat::Text => format::text(&entry),
                    LogFormat::Json => format::json(&entry),
                };
                targets[log as usize].write(path, &line)
            } else {
                format::tell(&entry);
                true
            };
            if written {
                self.counts[log as usize]
                    .written
                    .fetch_add(1, Ordering::Relaxed);
            } else {
                self.dropped(log);
            }
        }
    }
}
