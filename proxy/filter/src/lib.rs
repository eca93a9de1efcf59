//! The engine, mounted in Envoy.
//!
//! Roles are told by the name that the configuration gives: an HTTP filter `program` decides requests, a network filter
//! `program` decides connections, HTTP filters `keys` and `revocations` carry what tokens are trusted by, and access
//! loggers write how things ended. Each comes by an ECDS resource of its own, so that refreshing keys leaves cached
//! decisions alone.
//!
//! [`entry`] and [`network_entry`] are what Envoy calls; everything behind them is safe Rust. Nothing is shared between
//! worker threads but the program, what tokens are trusted by, and the spool's byte count.

mod abi;
mod access_log;
mod again;
mod body;
mod borrow;
mod callout;
mod config;
mod connection;
mod denial;
mod downstream;
mod entry;
mod envoy;
mod live;
mod metadata;
mod network;
mod network_entry;
mod outcome;
#[cfg(feature = "panic-for-tests")]
mod panic_for_tests;
mod process;
mod quota;
mod received;
mod stream;
mod summary;
mod worker;
