//! Bounds on what a peer can make us hold.

/// Largest packet accepted before a client is authenticated (`MAX_STARTUP_PACKET_LENGTH` in PostgreSQL).
pub const STARTUP_PACKET_MAX: usize = 10_000;

/// Longest message of the kinds that carry no text or data (`PQ_SMALL_MESSAGE_LIMIT` in PostgreSQL).
pub const SMALL_MESSAGE_MAX: usize = 10_000;

/// Frames up to this size are looked at whole; of larger ones only the head is, and the rest streams through.
pub const WHOLE_FRAME_MAX: usize = 64 * 1024;

/// A statement's text is buffered for classification up to this size; a larger one streams through and pins its
/// session, because nothing can be proved about text that was not read.
pub const STATEMENT_MAX: usize = 4 * 1024 * 1024;

/// Bytes for a slow client, or for a server that does not read, that are held before the other side is not read
/// any more. One read may overshoot it by its own size.
pub const OUTBOX_MAX: usize = 64 * 1024;

/// Size of the thread-local buffers that reads go through.
pub const READ_BUFFER: usize = 64 * 1024;
