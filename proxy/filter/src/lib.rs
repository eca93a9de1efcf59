//! The engine, mounted in Envoy.
//!
//! Roles are told by the name that the configuration gives: an HTTP filter `program` decides requests, a network filter
//! `program` decides connections, an HTTP filter `keys` carries key sets, and access loggers write how things ended.
//! Program and keys come each by its own ECDS resource, so that refreshing keys leaves cached decisions alone.
//!
//! [`entry`] and [`network_entry`] are what Envoy calls; everything behind them is safe Rust. Nothing is shared between worker threads but the
//! program, the key sets and the spool's byte count.

mod abi;
mod access_log;
mod callout;
mod config;
mod connection;
mod denial;
mod downstream;
mod entry;
mod envoy;
mod network;
mod network_entry;
mod outcome;
#[cfg(feature = "panic-for-tests")]
mod panic_for_tests;

mod stream;
mod worker;
