//! What is counted of statements: records by fingerprint, histograms of times, names of those who ran them.
//!
//! Pure: no sockets, no clock of its own while statements run. A session says what an execution came to
//! ([`Execution`]), in relaxed additions to a [`Query`] it already holds; what is shown are copies ([`QuerySample`]).
//!
//! # Keys
//! One record for each fingerprint, whoever runs it and wherever. Users, databases, applications and nodes are kept as
//! sets of names beside it.
//!
//! # Why
//! `pg_stat_statements` keys by user and database as well, because it stores what each role may see. Here the question
//! is which statement costs what; with one database and user for each tenant its answer would be torn into as many
//! pieces as there are tenants, and the bound on records would be spent on one statement.
//!
//! # Invariants
//! - Nothing counted is lost: a record that makes room adds what it holds to the record of all others, and one that
//!   is still in use then does so again when it is let go of.
//! - Memory is bounded by the records kept ([`Queries::set_max`]) and by the statements known; an execution allocates
//!   nothing, but for the first in its octave of time.

mod activity;
mod counts;
mod exports;
mod fitting;
mod histogram;
mod like;
mod limits;
mod names;
mod queries;
mod query;
mod recent;
mod rules;
mod sample;

pub use activity::{Activity, Doing};
pub use exports::Exports;
pub use fitting::{SessionBits, Whose};
pub use histogram::{Distribution, Histogram};
pub use like::like;
pub use limits::{Limits, Override};
pub use names::{NameId, NameSet, Names};
pub use queries::{Queries, QueriesSample};
pub use query::{Execution, Origin, Query};
pub use recent::{Address, Blocker, Client, Incident, KEPT, Recent, RecentSample, Wait, Waits};
pub use rules::{Rules, Verdict};
pub use sample::{Exemplar, QueryId, QuerySample, Times, TraceId};
