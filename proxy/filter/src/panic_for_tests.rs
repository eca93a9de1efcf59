//! A fault on demand, for the end-to-end test of what a panic does.

use crate::downstream::Downstream;
use crate::envoy::Stream;

/// Whoever sends this header makes the module panic.
const HEADER: &str = "x-peltast-panic";

/// Whoever asks for this server name makes the module panic about the connection.
const SERVER_NAME: &str = "panic.peltast.test";

/// Panics where the request says so. Called in the midst of deciding, with the worker borrowed: the worst place.
pub(crate) fn panic_if_asked(stream: &Stream) {
    assert!(stream.header(HEADER).is_none(), "the request asks for it");
}

/// The same, of a connection.
pub(crate) fn panic_if_named(downstream: &Downstream) {
    assert!(downstream.connection().sni != Some(SERVER_NAME), "the connection asks for it");
}
