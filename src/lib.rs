//! pgweir.

pub mod auth;
pub mod cli;
pub mod config;
pub mod error;
pub mod net;
pub mod sql;
pub mod tasks;
pub mod wire;
