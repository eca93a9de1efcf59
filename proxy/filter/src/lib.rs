//! The engine, mounted in Envoy.
//!
//! Three roles, told by the name that the configuration gives: an HTTP filter `program` decides requests, an HTTP
//! filter `keys` carries key sets, and access loggers `inbound`, `outbound` and `listener` write how things ended.
//! Program and keys come each by its own ECDS resource, so that refreshing keys leaves cached decisions alone.
//!
//! [`entry`] is what Envoy calls; everything behind it is safe Rust. Nothing is shared between worker threads but the
//! program, the key sets and the spool's byte count.

mod abi;
mod access_log;
mod callout;
mod config;
mod denial;
mod downstream;
mod entry;
mod envoy;
#[cfg(feature = "panic-for-tests")]
mod panic_for_tests;

mod stream;
mod worker;
