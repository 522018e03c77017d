//! Looking at the servers from the side: what slow statements wait for ([`waits`]).
//!
//! Nothing here is on the way of a statement. A look costs one connection of its own for each server, kept while
//! there is something to look at.

pub mod side;
pub mod waits;
