//! Connections from clients.

pub mod authenticate;
