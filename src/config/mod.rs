//! Configuration: the file, flags and environment in, one validated [`model::Config`] out.

pub mod model;
