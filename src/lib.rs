//! pgweir.

pub mod auth;
pub mod config;
pub mod error;
pub mod net;
pub mod session;
pub mod sql;
pub mod tasks;
pub mod wire;
