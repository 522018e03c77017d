//! Byte streams: TCP, Unix sockets, TLS over either.
//!
//! Knows nothing of PostgreSQL's messages beyond `SSLRequest` and how a message is framed.

pub mod buffer;
pub mod certificate;
pub mod connect;
pub mod departure;
pub mod descriptors;
pub mod frame;
pub mod https;
pub mod stream;
pub mod tls;
mod verify;
