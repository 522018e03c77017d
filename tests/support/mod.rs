//! What the integration tests stand on: servers, pgweir itself, clients and backends that say exactly what they are
//! told to. Nothing here asserts a behaviour of pgweir.
//!
//! Everything panics on failure with what was expected and what came; every read has a time limit.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod browser;
pub mod client;
pub mod faulty_link;
pub mod http;
pub mod link;
pub mod messages;
pub mod pgweir;
pub mod scripted_backend;
pub mod tls;
pub mod wait;
