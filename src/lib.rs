//! pgweir.

pub mod auth;
pub mod backend;
pub mod config;
pub mod error;
pub mod frontend;
pub mod net;
pub mod session;
pub mod sql;
pub mod tasks;
pub mod wire;
