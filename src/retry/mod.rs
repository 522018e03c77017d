//! What may be run again after a failure, and how soon: decisions without I/O.
//!
//! `frontend` asks and acts; `docs/retries.md` says what an application can rely on and observe.

pub mod backoff;
pub mod budget;
pub mod course;
pub mod journal;
pub mod policy;
