//! pgweir.

pub mod auth;
pub mod config;
pub mod demo;
pub mod error;
pub mod net;
pub mod sql;
pub mod tasks;
pub mod wire;
