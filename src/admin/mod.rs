//! The console: the virtual database `pgweir` (alias `pgbouncer`), which psql and drivers talk to.
//!
//! [`console`] lets clients in and `dialogue` answers them; [`parse`] is the language, [`show`] the tables, [`command`] the orders; [`extended`] keeps
//! what the extended protocol names. Nothing here touches a statement of a client.
//!
//! # Why
//! Columns are those of PgBouncer 1.25, in its order and types, so that its dashboards and exporters work unchanged.
//! Where an older exporter asks for a column PgBouncer has renamed since, that name is appended as a last column.

pub mod command;
pub mod console;
mod dialogue;
pub mod extended;
mod nodes;
pub mod parse;
mod pins;
mod queries;
pub mod refine;
mod retries;
pub mod rows;
pub mod show;
pub mod table;
