//! # Architecture
//!
//! pgweir stands between PostgreSQL's clients and its servers. A client's connection is a *session*: a task with a
//! state machine that relays frames. A server connection is a *backend*. A session has a backend for a transaction at
//! a time (a *lease*), and what a client may expect of "its" connection is kept on our side and put onto whichever
//! backend it gets. Data flows down once per statement; nothing calls back up.
//!
//! # Code map
//!
//! From the bottom up; `tests/tidy.rs` holds the table of who may import whom.
//!
//! - [`error`]: SQLSTATEs, severities, and how a module's error becomes what a client reads.
//! - [`tasks`]: named tasks, the only place that spawns.
//! - [`config`]: TOML, flags and environment in, one validated [`config::model::Config`] out; the import from PgBouncer.
//! - [`telemetry`]: the log, the counters of events.
//! - [`wire`]: the protocol without I/O: framing, messages, and [`wire::expect`], the replies a backend owes.
//! - [`meter`]: what is counted of statements: records by fingerprint, histograms.
//! - [`journal`]: the slow log and the query log, written by a thread of their own.
//! - [`traces`]: what statements waited for, for OpenTelemetry; sent by a thread of its own.
//! - [`sql`]: what a text is and does, from its tokens: classes, fingerprints, effects on the session.
//! - [`session`]: the virtual session of a client, the mirror of a backend, the plan that turns one into the other.
//! - [`retry`]: what may be run again after a failure, and how soon.
//! - [`net`]: byte streams, TLS on both sides, buffers that exist only while they hold something.
//! - [`auth`]: proofs of identity and the files behind them; no sockets.
//! - [`backend`]: one server connection: login, sending, receiving, cancelling.
//! - [`pool`]: who gets a backend, caps, waiting, opening, cleaning, closing.
//! - [`cluster`]: the servers of a cluster: who is the primary, how far the replicas are; failover.
//! - [`routing`]: where a statement runs: what is proved of it, what it must see, which replica.
//! - [`registry`]: connected clients: their cancel keys, states, and orders to them.
//! - [`shared`]: what all sessions of the process have in common.
//! - [`frontend`]: a client's connection from its first byte to its last: startup, login, the session's loop.
//! - [`status`]: one read-only picture of everything, for the console and the metrics.
//! - [`watch`]: looks at the servers from the side: what slow statements wait for.
//! - [`reload`]: taking over a changed configuration.
//! - [`admin`]: the console, the virtual database `pgweir`.
//! - [`http`]: the live page, `/metrics`, `/live`, `/ready`, and who may read what of them.
//! - [`server`]: the accept loop, and where each connection goes: session, console, replication, cancel request.
//! - [`demo`]: throw-away PostgreSQL servers, for `pgweir demo` and for the tests.
//! - [`app`]: composition root: builds the parts, waits for signals, drains.
//! - [`cli`]: the command line, and the commands that only print.
//!
//! # The life of a statement
//!
//! 1. [`frontend::session`] reads the client into a buffer of the thread. `frontend::inbound` looks at headers until
//!    there is something worth a backend: a whole batch.
//! 2. [`sql::known`] finds the text by its fingerprint, or classifies it once for all sessions.
//! 3. Its effects are noted in the session: settings it may change, reasons to pin.
//! 4. Without a backend the session waits its turn in [`pool`]; its bytes are kept meanwhile.
//! 5. [`session::plan`] compares the backend's mirror with the session's settings. The messages that make them equal,
//!    and a Parse for a prepared statement that this backend lacks, go out in the same write, ahead of the client's
//!    bytes. Each message that asks for an answer puts an entry into [`wire::expect`].
//! 6. [`backend::receive`] takes the answers. Those owed to the client are relayed as they came; those owed to pgweir are
//!    taken out, and what they say goes into mirror and session.
//! 7. At the end of a transaction that may have changed settings, or ran code that can't be seen through, the server
//!    is asked what is in force now, in the write that ended it.
//! 8. When nothing is owed and no transaction is open, the lease goes back, unless the session is pinned. A session that
//!    ends at any other point leaves its lease to [`pool::reset`], which cleans the backend or closes it.
//!
//! # Invariants
//!
//! - **Invariant**: a backend is given to a client only if it is provably at rest: nothing owed, no transaction, no
//!   COPY, no half a message, no cancel request under way.
//! - **Invariant**: every answer under way has one entry in its backend's queue, and an answer without one closes the
//!   backend.
//! - **Invariant**: a lease ends in `checkin`, in `pool::reset`, or with its connection closed; dropping one closes it.
//! - **Invariant**: payloads of rows, parameters and COPY are never decoded and never copied into other messages.
//! - **Invariant**: a side is not read while what it said before waits to be sent.
//! - **Invariant**: a cancel request reaches a server only while the statement of the client it names runs there.
//! - **Invariant**: memory held for a peer that has not logged in is bounded, and a secret is in no log, error or
//!   `Debug` output.
//! - **Invariant**: text that is not understood is taken to do its worst: it pins, and counts as no read.
//! - **Invariant**: [`wire`], [`sql`] and [`session`] do no I/O.
//! - **Invariant**: no module but `frontend` runs statements of clients; `pool` does not know what a client is.
//!
//! # Lifecycles
//!
//! One enum each, changed in one place:
//!
//! - a session's turn: `frontend::session::Phase`, by `Session::enter`; how it ended: `frontend::session::End`;
//! - a client as others see it: [`registry::ClientState`], and what it is told to do: [`registry::Order`];
//! - a transaction as the server reports it: [`wire::backend::TransactionStatus`];
//! - a COPY on a backend: [`wire::expect::Copy`]; whose an owed answer is: [`wire::expect::For`];
//! - why a session keeps its backend: [`sql::state::PinReason`]; what it leaves to clean: [`pool::reset::Residue`];
//! - a shared listener and its connection: `pool::listener::Phase`; what a session has asked it for:
//!   `frontend::listening::Asked`;
//! - a server of a cluster: [`cluster::state::NodeState`], by `Health::find`;
//! - a server connection as the console shows it: [`status::ServerState`].

pub mod admin;
pub mod app;
pub mod auth;
pub mod backend;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod error;
pub mod frontend;
pub mod http;
pub mod journal;
pub mod meter;
pub mod net;
pub mod pool;
pub mod registry;
pub mod reload;
pub mod retry;
pub mod routing;
pub mod server;
pub mod session;
pub mod shared;
pub mod sql;
pub mod status;
pub mod tasks;
pub mod telemetry;
pub mod traces;
pub mod watch;
pub mod wire;
