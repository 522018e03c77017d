//! Which servers there are, what each of them is at the moment, and which one is the primary.
//!
//! One probe a server asks it what it is ([`probe`]); the [`board`] makes of all answers one picture, the [`topology`],
//! which sessions read without a lock; [`clusters`] starts and ends the probes and points the pools at the primary.
//! Nothing here knows a statement or a client.
//!
//! # Invariants
//! - At most one server of a cluster is its primary; of two that claim it, the one on the higher timeline.
//! - A server whose system identifier is another cluster's is given nothing.
//! - What a replica is known to have replayed is compared with samples of the primary's own timeline only.
//! - The decisions ([`state`], [`samples`], [`board`]) do no I/O and read no clock.

pub mod board;
pub mod clusters;
pub mod lsn;
pub mod node;
pub mod probe;
pub mod samples;
pub mod state;
mod telling;
pub mod topology;

pub use clusters::{Cluster, Clusters};
