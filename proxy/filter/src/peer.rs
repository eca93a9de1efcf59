//! Who is at the other end: what the TLS handshake left in the connection's filter state.

use peltast_engine::Reason;

use crate::envoy::Stream;

/// The key under which the listener's `set_filter_state` leaves `URI_SANS|EXPIRY|SERIAL`.
const FILTER_STATE_KEY: &str = "peltast.dev.peer";

/// A peer whose SVID is acceptable.
#[derive(Clone, Copy)]
pub(crate) struct Peer<'a> {
    /// SPIFFE ID.
    pub(crate) principal: &'a str,
    /// Serial number of the SVID.
    pub(crate) serial: &'a str,
}

impl<'a> Peer<'a> {
    /// Reads the peer of `stream` at `now`, milliseconds since 1970.
    ///
    /// # Errors
    /// What Envoy's SPIFFE validator lets pass and the standard does not: not exactly one URI SAN (X.509-SVID section
    /// 2), or an SVID that expired while its connection lived on. The names are given too, for the record.
    pub(crate) fn of(stream: &'a Stream, now: u64) -> Result<Self, (Reason, Option<Self>)> {
        let state = stream.filter_state(FILTER_STATE_KEY).and_then(|state| std::str::from_utf8(state).ok());
        Self::read(state.ok_or((Reason::PeerUriSans, None))?, now)
    }

    fn read(state: &'a str, now: u64) -> Result<Self, (Reason, Option<Self>)> {
        let mut parts = state.split('|');
        let (Some(principal), Some(expiry), Some(serial), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err((Reason::PeerUriSans, None));
        };
        let peer = Self { principal, serial };
        if !principal.starts_with("spiffe://") || principal.contains(',') {
            return Err((Reason::PeerUriSans, Some(peer)));
        }
        match expiry.parse::<u64>() {
            Ok(seconds) if now < seconds.saturating_mul(1000) => Ok(peer),
            _ => Err((Reason::PeerExpired, Some(peer))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_living_spiffe_id_is_a_peer() {
        let table = [
            ("spiffe://a/ns/x/sa/y|10|01", Ok("spiffe://a/ns/x/sa/y")),
            ("spiffe://a/ns/x/sa/y|9|01", Err(Reason::PeerExpired)),
            ("spiffe://a/ns/x/sa/y|-|01", Err(Reason::PeerExpired)),
            ("spiffe://a/x,spiffe://a/y|10|01", Err(Reason::PeerUriSans)),
            ("https://a/x|10|01", Err(Reason::PeerUriSans)),
            ("-|10|01", Err(Reason::PeerUriSans)),
            ("spiffe://a/x|10", Err(Reason::PeerUriSans)),
            ("spiffe://a/x|10|01|02", Err(Reason::PeerUriSans)),
        ];
        for (state, wanted) in table {
            let got = Peer::read(state, 9_500).map(|peer| peer.principal).map_err(|(reason, _)| reason);
            assert_eq!(got, wanted, "{state}");
        }
    }
}
