//! SQL text without a parser: tokens, fingerprints, and what a statement is and does.
//!
//! Pure functions of bytes; no I/O, no state, no panic on any input, and work linear in the length of the text. The
//! text is never changed: what a client sent is what the server gets.

pub mod attributes;
pub mod brevity;
pub mod classify;
mod clock;
pub mod fingerprint;
pub mod functions;
pub mod hints;
mod keywords;
pub mod known;
pub mod lexer;
mod met;
pub mod name;
pub mod normalise;
pub mod prepared;
pub mod reading;
pub mod repeat;
mod shape;
mod skim;
pub mod state;
pub mod tables;
pub mod unseen;

pub use classify::{Class, StatementKind, classify, details};
pub use fingerprint::{Fingerprint, FingerprintKey, StableId, stable_id};
pub use lexer::LexOptions;
pub use name::Name;
pub use normalise::normalise;
pub use state::{Effect, PinReason, PinSet};
