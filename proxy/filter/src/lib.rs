//! The engine, mounted in Envoy.
//!
//! Three roles, told by the name that the configuration gives: an HTTP filter `program` decides requests, HTTP filters
//! `keys` and `revocations` carry what tokens are trusted by, and access loggers `inbound`, `outbound` and `listener`
//! write how things ended. Each of the three comes by an ECDS resource of its own, so that refreshing keys leaves
//! cached decisions alone.
//!
//! [`entry`] is what Envoy calls; everything behind it is safe Rust. Nothing is shared between worker threads but the
//! program, what tokens are trusted by, and the spool's byte count.

mod abi;
mod access_log;
mod callout;
mod config;
mod denial;
mod downstream;
mod entry;
mod envoy;
mod live;
#[cfg(feature = "panic-for-tests")]
mod panic_for_tests;
mod received;
mod stream;
mod worker;
