//! Configuration: the file, flags and environment in, one validated [`model::Config`] out.
//!
//! Data flows one way: `document` (a tree that knows where each value came from) → `raw` (the table of keys, read with
//! the types of `decode` and `types`) → `validate` (what must hold between them) → [`model`]. Only the last leaves
//! this module.
//!
//! Invariants: nothing is printed here; every problem of a file is reported in one go; no problem, warning or change
//! shows a secret; a [`model::Config`] that was returned needs no further check.

mod decode;
mod diff;
mod document;
mod files;
pub mod import;
mod load;
pub mod model;
mod problem;
mod raw;
mod raw_limits;
mod raw_seeing;
mod read;
pub mod reference;
mod server_url;
mod show;
mod types;
mod units;
mod validate;
mod validate_auth;
mod validate_http;
mod validate_limits;
mod validate_seeing;
mod validate_servers;

pub use diff::{Change, diff};
pub use document::Overrides;
pub use load::{Loaded, environment, load};
pub use problem::{Place, Problem, Problems};
pub use raw::Effect;
pub use show::{Setting, show};
