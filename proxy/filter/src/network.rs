//! Envoy's side of a connection, as a safe value.

use std::net::{IpAddr, SocketAddr};

use crate::abi::{self, Buffer, Handle};
use crate::envoy::found;

/// A connection, inside one of its network filter's hooks. What it returns by reference is Envoy's, and valid until the
/// hook returns.
pub(crate) struct Connection(Handle);

impl Connection {
    /// # Safety
    /// `handle` must be the connection that Envoy gave to the hook at hand.
    pub(crate) unsafe fn new(handle: Handle) -> Self {
        Self(handle)
    }

    pub(crate) fn is_tls(&self) -> bool {
        // SAFETY: inside a hook of this connection, as everywhere below.
        unsafe { abi::envoy_dynamic_module_callback_network_filter_is_ssl(self.0) }
    }

    /// Where the peer connects from.
    pub(crate) fn source(&self) -> Option<SocketAddr> {
        // SAFETY: see `is_tls`.
        address(|address, port| unsafe {
            abi::envoy_dynamic_module_callback_network_filter_get_remote_address(self.0, address, port)
        })
    }

    /// Where it connected to.
    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        // SAFETY: see `is_tls`.
        address(|address, port| unsafe {
            abi::envoy_dynamic_module_callback_network_filter_get_local_address(self.0, address, port)
        })
    }

    /// The server name that the peer asked for.
    pub(crate) fn server_name(&self) -> Option<&[u8]> {
        // SAFETY: see `is_tls`; the name is the connection's.
        let name = unsafe {
            found(|name| abi::envoy_dynamic_module_callback_network_filter_get_requested_server_name(self.0, name))
                .map(|name| name.bytes())
        };
        name.filter(|name| !name.is_empty())
    }

    /// An object of the connection's filter state.
    pub(crate) fn filter_state(&self, key: &str) -> Option<&[u8]> {
        let key = Buffer::of(key.as_bytes());
        // SAFETY: see `is_tls`; the object is the connection's.
        unsafe {
            found(|value| abi::envoy_dynamic_module_callback_network_get_filter_state_bytes(self.0, key, value))
                .map(|value| value.bytes())
        }
    }

    /// Leaves text in the connection's dynamic metadata, where access loggers find it. (They do not see filter state.)
    pub(crate) fn set_metadata(&self, namespace: &str, key: &str, value: &str) {
        let [namespace, key, value] = [namespace, key, value].map(|text| Buffer::of(text.as_bytes()));
        // SAFETY: see `is_tls`; Envoy copies.
        unsafe {
            abi::envoy_dynamic_module_callback_network_set_dynamic_metadata_string(self.0, namespace, key, value);
        }
    }

    pub(crate) fn worker_index(&self) -> u32 {
        // SAFETY: see `is_tls`.
        unsafe { abi::envoy_dynamic_module_callback_network_filter_get_worker_index(self.0) }
    }

    /// Lets a stopped connection go on; later filters, and hooks of ours, run inside this call: nothing of ours may be
    /// borrowed.
    pub(crate) fn continue_reading(self) {
        // SAFETY: see `is_tls`.
        unsafe { abi::envoy_dynamic_module_callback_network_filter_continue_reading(self.0) };
    }

    /// Closes the connection at once. Hooks of ours run inside this call, as in [`Self::continue_reading`].
    pub(crate) fn close(self, details: &str) {
        let (kind, details) = (abi::CLOSE_NO_FLUSH, Buffer::of(details.as_bytes()));
        // SAFETY: see `is_tls`; Envoy copies.
        unsafe { abi::envoy_dynamic_module_callback_network_filter_close_with_details(self.0, kind, details) };
    }
}

fn address(get: impl FnOnce(*mut Buffer, *mut u32) -> bool) -> Option<SocketAddr> {
    let mut port = 0;
    let text = found(|value| get(value, &mut port))?;
    // SAFETY: the bytes are Envoy's until the hook returns.
    let ip: IpAddr = std::str::from_utf8(unsafe { text.bytes() }).ok()?.parse().ok()?;
    Some(SocketAddr::new(ip.to_canonical(), u16::try_from(port).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_that_envoy_gives_whole() {
        let table = [
            ("10.0.0.1", 80, true, Some("10.0.0.1:80")),
            ("::1", 80, true, Some("[::1]:80")),
            ("::ffff:10.0.0.1", 80, true, Some("10.0.0.1:80")),
            ("10.0.0.1", 80, false, None),
            ("10.0.0.1", 65536, true, None),
            ("/run/socket", 0, true, None),
            ("", 0, true, None),
        ];
        for (text, port, is_there, wanted) in table {
            let got = address(|value, at| {
                // SAFETY: both are the caller's own.
                unsafe { (*value, *at) = (Buffer::of(text.as_bytes()), port) };
                is_there
            });
            assert_eq!(got, wanted.map(|address| address.parse().expect("an address")), "{text}");
        }
    }
}
