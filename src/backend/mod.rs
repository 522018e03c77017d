//! Connections to PostgreSQL servers.

pub mod login;
