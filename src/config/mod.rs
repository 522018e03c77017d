//! Configuration: the file, flags and environment in, one validated [`model::Config`] out.
//!
//! Data flows one way: [`document`] (a tree that knows where each value came from) → [`decode`] (types) → [`raw`] (the
//! table of keys) → [`validate`] (what must hold between them) → [`model`]. Only the last leaves this module.
//!
//! Invariants: nothing is printed here; every problem of a file is reported in one go; no problem, warning or change
//! shows a secret; a [`model::Config`] that was returned needs no further check.

mod decode;
mod diff;
mod document;
pub mod import;
mod load;
pub mod model;
mod problem;
mod raw;
pub mod reference;
mod server_url;
mod units;
mod validate;
mod validate_servers;

pub use diff::{Change, diff};
pub use document::Overrides;
pub use load::{Loaded, environment, load};
pub use problem::{Place, Problem, Problems};
pub use raw::Effect;
