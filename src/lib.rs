//! pgweir.

pub mod admin;
pub mod app;
pub mod auth;
pub mod backend;
pub mod cli;
pub mod config;
pub mod demo;
pub mod error;
pub mod frontend;
pub mod http;
pub mod net;
pub mod pool;
pub mod registry;
pub mod reload;
pub mod server;
pub mod session;
pub mod shared;
pub mod sql;
pub mod status;
pub mod tasks;
pub mod telemetry;
pub mod wire;
