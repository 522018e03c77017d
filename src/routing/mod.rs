//! Where a statement runs: what is proved of it, what its session must see, what the servers are. Pure.
//!
//! [`proof`] says what an exchange is, [`route`] which server it goes to, [`reason`] why. Nothing here sends anything.
//!
//! # Invariants
//! - What is not proved to only read goes to the primary.
//! - A replica is chosen only if it is known to have what the read must see.

pub mod proof;
pub mod reason;
pub mod route;
