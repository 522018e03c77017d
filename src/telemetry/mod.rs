//! Logging and metrics: set up once, used by all.

pub mod clock;
pub mod metrics;
pub mod tracing;
