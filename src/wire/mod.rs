//! The frontend/backend protocol without I/O: framing, the few messages the relay looks into, replies owed.
//!
//! Nothing here decodes row data or statement parameters: frames are forwarded as they came. What is parsed is
//! borrowed from the buffer and checked against the frame's own length, never past it.
//! (PostgreSQL documentation, chapter "Frontend/Backend Protocol".)

pub mod backend;
pub mod expect;
pub mod frame;
pub mod frontend;
pub mod limits;
pub mod startup;
pub mod walsender;
