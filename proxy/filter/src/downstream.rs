//! Who is at the other end of a connection, and where: read from Envoy once, for all requests on the connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use peltast_engine::{Connection, Program, Reason};

use crate::abi;
use crate::envoy::Stream;
use crate::network;

/// The key under which the filter chain's `set_filter_state` leaves `URI_SANS|EXPIRY|SERIAL` after the TLS handshake,
/// or [`PLAINTEXT`] where the chain does without one.
const FILTER_STATE_KEY: &str = "peltast.dev.peer";

/// What no certificate can make of the former: it has no `|`.
const PLAINTEXT: &str = "plaintext";

/// Connections of one worker that are remembered at a time. Beyond that all are read anew.
const MAX_REMEMBERED: usize = 4096;

/// What the peer's certificate says.
pub(crate) struct Peer {
    /// Its URI SANs: one SPIFFE ID, if the peer is accepted.
    pub(crate) principal: Box<str>,
    /// Its serial number.
    pub(crate) serial: Box<str>,
    /// When it expires, in milliseconds since 1970; or why it is no SVID.
    expires: Result<u64, Reason>,
}

impl Peer {
    fn parse(state: &str) -> Option<Self> {
        let mut parts = state.split('|');
        let (principal, expiry, serial) = (parts.next()?, parts.next()?, parts.next()?);
        let expires = match expiry.parse::<u64>() {
            _ if parts.next().is_some() => return None,
            _ if !principal.starts_with("spiffe://") || principal.contains(',') => Err(Reason::PeerUriSans),
            Ok(seconds) => Ok(seconds.saturating_mul(1000)),
            Err(_) => Err(Reason::PeerExpired),
        };
        Some(Self { principal: principal.into(), serial: serial.into(), expires })
    }
}

/// What does not change while a connection lives.
pub(crate) struct Downstream {
    /// The peer; none where there is no certificate.
    pub(crate) peer: Option<Peer>,
    /// Whether the filter chain took it without TLS. Where there is no peer either, there is nobody to talk to.
    pub(crate) plaintext: bool,
    /// Where it connects from, as Envoy writes it.
    pub(crate) source_address: Option<Box<[u8]>>,
    /// Where it connected to.
    pub(crate) destination: Option<SocketAddr>,
    source: Option<SocketAddr>,
    server_name: Option<Box<str>>,
    /// `HTTP/1.1`, `HTTP/2`, …: of all its requests, as long as the listener takes none of HTTP/1.0. Empty where it
    /// carries none.
    pub(crate) protocol: Box<[u8]>,
}

impl Downstream {
    fn read(stream: &Stream) -> Self {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let address = |bytes| {
            let address: SocketAddr = text(bytes)?.parse().ok()?;
            Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
        };
        let source = stream.attribute(abi::ATTRIBUTE_SOURCE_ADDRESS);
        let server_name = stream.attribute(abi::ATTRIBUTE_SERVER_NAME).and_then(text);
        let state = stream.filter_state(FILTER_STATE_KEY).and_then(text);
        Self {
            peer: state.and_then(Peer::parse),
            plaintext: state == Some(PLAINTEXT),
            source_address: source.map(Box::from),
            source: source.and_then(address),
            destination: stream.attribute(abi::ATTRIBUTE_DESTINATION_ADDRESS).and_then(address),
            server_name: server_name.filter(|name| !name.is_empty()).map(Box::from),
            protocol: stream.attribute(abi::ATTRIBUTE_REQUEST_PROTOCOL).unwrap_or_default().into(),
        }
    }

    /// The same, of a connection that carries no requests.
    pub(crate) fn of(connection: &network::Connection) -> Self {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let source = connection.source();
        let state = connection.filter_state(FILTER_STATE_KEY).and_then(text);
        Self {
            peer: state.and_then(Peer::parse),
            plaintext: state == Some(PLAINTEXT),
            source_address: source.map(|address| address.to_string().into_bytes().into()),
            source,
            destination: connection.destination(),
            server_name: connection.server_name().and_then(text).map(Box::from),
            protocol: Box::default(),
        }
    }

    /// Whether the peer is one to talk to at `now`, milliseconds since 1970, by `program`.
    ///
    /// # Errors
    /// What Envoy's SPIFFE validator lets pass and the standard does not: not exactly one URI SAN (X.509-SVID section
    /// 2), or an SVID that expired while its connection lived on. And plaintext, where the connection is older than the
    /// program that takes none on its port.
    pub(crate) fn check(&self, program: &Program, now: u64) -> Result<(), Reason> {
        match &self.peer {
            Some(peer) if now < peer.expires? => Ok(()),
            Some(_) => Err(Reason::PeerExpired),
            None if !self.plaintext => Err(Reason::PeerUriSans),
            None if self.destination.is_some_and(|address| program.takes_plaintext(address.port())) => Ok(()),
            None => Err(Reason::Plaintext),
        }
    }

    /// When the peer is no longer one to talk to, in milliseconds since 1970. Plaintext has no end by time.
    pub(crate) fn ends_ms(&self) -> u64 {
        self.peer.as_ref().map_or(u64::MAX, |peer| peer.expires.unwrap_or(0))
    }

    /// As the engine sees it.
    pub(crate) fn connection(&self) -> Connection<'_> {
        Connection {
            source_principal: self.peer.as_ref().map(|peer| &*peer.principal),
            source_ip: self.source.map(|address| address.ip()),
            source_port: self.source.map_or(0, |address| address.port()),
            destination_ip: self.destination.map(|address| address.ip()),
            destination_port: self.destination.map_or(0, |address| address.port()),
            sni: self.server_name.as_deref(),
        }
    }
}

/// The connections of one worker, by Envoy's number for each, which is never used again.
///
/// It holds only because the listener takes addresses from the socket (`use_remote_address`): an address that came
/// from a header would be one request's own.
#[derive(Default)]
pub(crate) struct Connections(HashMap<u64, Rc<Downstream>, ahash::RandomState>);

impl Connections {
    /// The connection of `stream`.
    pub(crate) fn of(&mut self, stream: &Stream) -> Rc<Downstream> {
        let Some(number) = stream.connection_number() else { return Rc::new(Downstream::read(stream)) };
        if let Some(known) = self.0.get(&number) {
            return Rc::clone(known);
        }
        if self.0.len() >= MAX_REMEMBERED {
            self.0.clear();
        }
        let downstream = Rc::new(Downstream::read(stream));
        self.0.insert(number, Rc::clone(&downstream));
        downstream
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    const TAKES_PLAINTEXT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);
    const TAKES_NONE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9443);

    fn program() -> Program {
        let document = r#"{"schema": 1, "authentication": [], "rego": [], "policies": [], "workload":
            {"principal": "spiffe://a/b", "ports": {"8443": 8080, "9443": 9090}, "plaintext": [8443]}}"#;
        Program::load(document.as_bytes()).expect("a program")
    }

    /// A connection to where plaintext is taken.
    fn downstream(state: &str) -> Downstream {
        let (peer, plaintext) = (Peer::parse(state), state == PLAINTEXT);
        let destination = Some(TAKES_PLAINTEXT);
        let protocol = Box::default();
        Downstream { peer, plaintext, source_address: None, destination, source: None, server_name: None, protocol }
    }

    #[test]
    fn only_one_living_spiffe_id_is_a_peer() {
        let table = [
            ("spiffe://a/ns/x/sa/y|10|01", Ok(())),
            ("spiffe://a/ns/x/sa/y|9|01", Err(Reason::PeerExpired)),
            ("spiffe://a/ns/x/sa/y|-|01", Err(Reason::PeerExpired)),
            ("spiffe://a/x,spiffe://a/y|10|01", Err(Reason::PeerUriSans)),
            ("https://a/x|10|01", Err(Reason::PeerUriSans)),
            ("plaintext|10|01", Err(Reason::PeerUriSans)),
            ("-|10|01", Err(Reason::PeerUriSans)),
            ("spiffe://a/x|10", Err(Reason::PeerUriSans)),
            ("spiffe://a/x|10|01|02", Err(Reason::PeerUriSans)),
            ("", Err(Reason::PeerUriSans)),
        ];
        for (state, wanted) in table {
            for destination in [TAKES_PLAINTEXT, TAKES_NONE] {
                let downstream = Downstream { destination: Some(destination), ..downstream(state) };
                assert_eq!(downstream.check(&program(), 9_500), wanted, "{state} to {destination}");
            }
        }
    }

    #[test]
    fn plaintext_is_taken_where_the_program_says_so_and_as_from_nobody() {
        let table = [
            (Some(TAKES_PLAINTEXT), Ok(())),
            (Some(TAKES_NONE), Err(Reason::Plaintext)),
            (Some(SocketAddr::from(([127, 0, 0, 1], 1))), Err(Reason::Plaintext)),
            (None, Err(Reason::Plaintext)),
        ];
        for (destination, wanted) in table {
            let downstream = Downstream { destination, ..downstream("plaintext") };
            assert_eq!(downstream.check(&program(), 0), wanted, "{destination:?}");
            assert_eq!(downstream.connection().source_principal, None);
        }
    }

    #[test]
    fn a_refused_peer_is_named_for_the_record() {
        let refused = downstream("spiffe://a/x,spiffe://a/y|10|01");
        assert_eq!(
            refused.peer.map(|peer| (peer.principal, peer.serial)),
            Some(("spiffe://a/x,spiffe://a/y".into(), "01".into(),))
        );
    }

    proptest! {
        #[test]
        fn any_state_is_one_spiffe_id_that_lives_or_refused(
            state in prop_oneof![any::<String>(), r"(spiffe://|,|a|/|\|){0,6}\|(9{0,24}|-)\|[0-9a-f]{0,4}(\|)?"],
            now in any::<u64>(),
        ) {
            let found = downstream(&state);
            if found.check(&program(), now).is_ok() {
                let principal = found.peer.expect("a peer").principal;
                prop_assert!(principal.starts_with("spiffe://") && !principal.contains(','));
            }
        }
    }
}
