//! Server connections: who may have one, how they are opened, kept, cleaned and closed.
//!
//! A [`pool::Pool`] holds the connections of one (user, database) to one server in a deadpool pool. Clients check a connection out
//! as a [`lease::Lease`] or wait in the pool's queue; the [`steward`] opens and closes connections in the background
//! within the [`limits`] shared by all pools.
//!
//! # Invariants
//! - A connection is in exactly one place: idle in its deadpool pool or set aside, in one lease, or being opened or
//!   cleaned.
//! - Every connection holds one [`limits::Slot`]; dropping the connection, wherever that happens, gives it back.
//! - No lock of this module is held while deadpool is called or a connection is dropped.

mod admission;
mod aside;
pub mod auth_query;
pub mod catalogue;
pub mod circuit;
mod closing;
pub mod effective;
mod forgotten;
pub mod hidden;
pub mod lane;
pub mod lease;
pub mod limits;
pub mod listener;
pub mod live;
pub mod manager;
pub mod obstacle;
pub mod open;
pub mod orders;
mod pace;
pub mod passthrough;
pub mod pins;
#[allow(
    clippy::module_inception,
    reason = "the type the module is named after"
)]
pub mod pool;
pub mod pools;
pub mod refused;
pub mod replica;
pub mod reset;
pub mod retries;
pub mod startups;
pub mod steward;
pub mod targets;
pub mod unseen;
pub mod waiter;

pub use lease::Lease;
pub use pool::{ClientPlace, Pool, PoolKey};
pub use pools::Pools;
