//! The virtual session of a client and the mirror of what a backend has now: pure state, no I/O.
//!
//! A client keeps its session while backends come and go. What it has set is in [`settings::Tracker`], its prepared
//! statements in [`statements::Names`]; what a backend has is in [`mirror::Mirror`]; [`plan`] computes the messages
//! that turn one into the other.

pub mod channels;
pub mod leftovers;
pub mod literal;
pub mod login;
pub mod mirror;
pub mod plan;
pub mod renaming;
pub mod sequences;
pub mod settings;
pub mod shape;
pub mod statements;
