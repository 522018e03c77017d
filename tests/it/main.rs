//! Integration tests: the built pgweir in front of real PostgreSQL servers and of scripted ones.
//!
//! One module per behaviour, named after it; one binary, because each would link the whole crate again. Servers come
//! from `pgweir::demo::cluster`, everything else from `tests/support`.

#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    clippy::doc_markdown,
    reason = "the protocol's message names are words here"
)]

#[path = "../support/mod.rs"]
mod support;

mod agreement;
mod bad_input;
mod bank;
mod cancelling;
mod carried;
mod chaos;
mod client_limits;
mod connection_log;
mod consistency;
mod console;
mod copying;
mod counted;
mod crossing;
mod departures;
mod differential;
mod draining;
mod drivers;
mod encryption;
mod extended;
mod failover;
mod failover_drivers;
mod failover_faults;
mod failover_inside;
mod faults;
mod http;
mod lanes;
mod lanes_scripted;
mod lanes_unread;
mod left_behind;
mod like_pgbouncer;
mod listening;
mod listening_failures;
mod listening_show;
mod listening_trouble;
mod model;
mod overload;
mod own_numbers;
mod page;
mod page_access;
mod passthrough;
mod pins;
mod pooling;
mod queries;
mod queries_at_scale;
mod read_as;
mod read_only;
mod refusals;
mod relisted;
mod reload;
mod replays;
mod replays_compared;
mod replication;
mod retries;
mod routing;
mod routing_balance;
mod same;
mod scraping;
mod sequences;
mod server_failures;
mod session_state;
mod settled;
mod shared;
mod slow_log;
mod small_print;
mod smoke;
mod sql_prepare;
mod stale;
mod startup;
mod stored_secrets;
mod support_works;
mod timeouts;
mod traces;
mod unseen;
mod whole;
