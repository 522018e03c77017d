//! Byte streams: TCP, Unix sockets, TLS over either; knows nothing of PostgreSQL's messages beyond `SSLRequest`.

pub mod buffer;
pub mod stream;
