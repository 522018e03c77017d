//! A client's connection, from its first byte to its last.
//!
//! [`startup`] takes a connection to the point where it may run statements; [`session`] is the loop that runs them:
//! `inbound` reads what the client sends and forwards it, `outbound` takes what the server answers, `checkout` gets and
//! gives back the backend in between, `metering` counts. One poll does it all, in that order; nothing calls back up.

mod account;
mod asking;
pub mod authenticate;
mod checkout;
mod deadline;
mod ending;
mod exchange;
mod executing;
mod extended;
pub mod failover;
mod failure;
mod hearing;
mod inbound;
mod leaving;
mod listening;
mod locals;
pub mod login;
mod metering;
mod moving;
mod noting;
mod opened;
mod outbound;
mod overrun;
mod own_names;
mod pinning;
mod planning;
mod prepare;
mod questions;
mod read_as;
mod reading;
mod refusal;
mod replay;
pub mod replication;
mod reply;
mod rerun;
mod reviving;
mod ride;
mod routes;
mod sequences;
pub mod session;
mod settle;
mod sql_prepare;
mod stale;
pub mod startup;
mod stock;
mod trial;
mod unseen;
