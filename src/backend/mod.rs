//! Server connections: logging in, sending and receiving, cancelling. Knows nothing of clients and pools.

pub mod cancel;
pub mod connect;
pub mod connection;
pub mod login;
pub mod query;
pub mod receive;
