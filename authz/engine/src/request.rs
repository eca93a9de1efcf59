//! What a decision is made about: the attributes of one connection and, unless it carries other than HTTP, of one
//! request on it, as bytes.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

/// What is known of the connection that a request came on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection<'a> {
    /// SPIFFE ID of the peer, of the form `spiffe://…`; none where the peer showed no certificate.
    pub source_principal: Option<&'a str>,
    /// Address of the peer.
    pub source_ip: Option<IpAddr>,
    /// Port of the peer.
    pub source_port: u16,
    /// Address that the peer connected to.
    pub destination_ip: Option<IpAddr>,
    /// Port that the peer connected to.
    pub destination_port: u16,
    /// Server name that the peer asked for in the TLS handshake.
    pub sni: Option<&'a str>,
}

impl<'a> Connection<'a> {
    /// The peer's SPIFFE ID. Another name that a foreign proxy read from a certificate is none: no rule may match it.
    pub fn spiffe_id(&self) -> Option<&'a str> {
        self.source_principal.filter(|id| id.starts_with("spiffe://"))
    }
}

/// The HTTP part of a request.
#[derive(Clone, Copy)]
pub struct Http<'a> {
    /// Method, as sent.
    pub method: &'a [u8],
    /// `:authority` or `Host`.
    pub host: &'a [u8],
    /// Path with its query. Normalized by the engine; a mount need not.
    pub path: &'a [u8],
    /// `http` or `https`.
    pub scheme: &'a [u8],
    /// `HTTP/1.1`, `HTTP/2`, …
    pub protocol: &'a [u8],
    /// All other headers.
    pub headers: &'a dyn Headers,
    /// Its body, or what was read of it; none where that was not.
    pub body: Option<Body<'a>>,
    /// What is known of it.
    pub told: Told<'a>,
}

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    /// The bytes that were read.
    pub bytes: &'a [u8],
    /// Whether there are no more.
    pub is_whole: bool,
}

impl Body<'static> {
    /// That of a request which has none.
    pub const EMPTY: Self = Self { bytes: b"", is_whole: true };
}

/// What of a request is known to the mount. What is not is *unknown*: not the same as absent.
#[derive(Clone, Copy, Debug, Default)]
pub enum Told<'a> {
    /// All of it, and of its connection.
    #[default]
    All,
    /// Its method, host and path, and these headers (in lower case): all that a proxy tells that asks by plain HTTP.
    Headers(&'a [String]),
}

impl Told<'_> {
    /// Whether the header `name` (lower case) is known, be it there or not.
    pub fn tells_header(self, name: &str) -> bool {
        let is_told = |names: &[String]| names.iter().any(|told| told == name);
        match self {
            Self::All => true,
            Self::Headers(names) => matches!(name, ":method" | ":path" | ":authority" | "host") || is_told(names),
        }
    }
}

impl Http<'static> {
    /// Nothing at all.
    pub(crate) const EMPTY: Self = Self {
        method: b"",
        host: b"",
        path: b"",
        scheme: b"",
        protocol: b"",
        headers: &HeaderList(Vec::new()),
        body: None,
        told: Told::All,
    };
}

/// One request on one connection, or a connection that carries other than HTTP.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// The request on it; none where the connection itself is decided about.
    pub http: Option<Http<'a>>,
}

impl Request<'_> {
    /// Address of the client behind the last `proxies` proxies: each of them appends to `x-forwarded-for` whom it got
    /// the request from, so that many addresses from the right are true, whatever stands left of them. Where there is
    /// no such address, as in Envoy, the peer's own.
    ///
    /// <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_conn_man/headers#x-forwarded-for>
    pub fn remote_ip(&self, proxies: usize) -> Option<IpAddr> {
        let forwarded = || {
            let header = self.http?.headers.get("x-forwarded-for")?;
            let address = header.rsplit(|&byte| byte == b',').nth(proxies.checked_sub(1)?)?;
            parse_address(std::str::from_utf8(address).ok()?.trim_matches([' ', '\t']))
        };
        forwarded().or(self.connection.source_ip)
    }
}

/// An address, perhaps with a port, as some load balancers write.
fn parse_address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    text.parse().or_else(|_| with_port()).ok()
}

/// Where headers are read from: Envoy's own map in the sidecar, a list elsewhere.
pub trait Headers {
    /// The value of the header `name` (lower case). Several values are joined with commas (RFC 9110 section 5.3),
    /// cookies with semicolons.
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// Calls `visit` with each value of the header `name` (lower case) until it answers true; tells whether it did.
    fn any(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool;

    /// Calls `visit` with the name and value of every header; pseudo-headers may be among them.
    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8]));
}

/// A request on its way to the application.
pub trait EditRequest {
    /// Its headers.
    fn headers(&self) -> &dyn Headers;

    /// Its path with its query.
    fn path(&self) -> &[u8];

    /// Replaces all values of a header (`:path` is one), or removes it where `value` is empty.
    fn set(&mut self, name: &str, value: &[u8]);
}

/// What stands between several values of the header `name` (lower case) when they are joined.
pub fn separator(name: &str) -> &'static [u8] {
    if name == "cookie" {
        b"; " // RFC 9113 section 8.2.3
    } else {
        b","
    }
}

/// Headers in a list; names are in lower case.
#[derive(Clone, Debug, Default)]
pub struct HeaderList(pub Vec<(Vec<u8>, Vec<u8>)>);

impl Headers for HeaderList {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut values = self.0.iter().filter(|(key, _)| key == name.as_bytes()).map(|(_, value)| value);
        let first = values.next()?;
        let rest: Vec<&Vec<u8>> = values.collect();
        if rest.is_empty() {
            return Some(Cow::Borrowed(first));
        }
        let mut joined = first.clone();
        for value in rest {
            joined.extend_from_slice(separator(name));
            joined.extend_from_slice(value);
        }
        Some(Cow::Owned(joined))
    }

    fn any(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|(key, value)| key == name.as_bytes() && visit(value))
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        for (name, value) in &self.0 {
            visit(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Sample;

    /// Envoy's table for `use_remote_address`, and what a client may try.
    #[test]
    fn the_client_is_found_behind_the_trusted_proxies() {
        let peer = "10.0.0.1";
        let table: &[(&[&str], usize, &str)] = &[
            (&[], 0, peer),
            (&[], 1, peer),
            (&["203.0.113.1"], 0, peer),
            (&["203.0.113.1"], 1, "203.0.113.1"),
            (&["203.0.113.1"], 2, peer),
            (&["6.6.6.6, 203.0.113.1"], 1, "203.0.113.1"),
            (&["6.6.6.6,203.0.113.1 ,\t198.51.100.7"], 2, "203.0.113.1"),
            (&["6.6.6.6", "203.0.113.1"], 1, "203.0.113.1"),
            (&["203.0.113.1, 198.51.100.7"], 3, peer),
            (&["203.0.113.1:4711"], 1, "203.0.113.1"),
            (&["2001:db8::1"], 1, "2001:db8::1"),
            (&["[2001:db8::1]:4711"], 1, "2001:db8::1"),
            (&["6.6.6.6, unknown"], 1, peer),
            (&["6.6.6.6, "], 1, peer),
            (&["6.6.6.6,"], 1, peer),
            (&["203.0.113.1"], usize::MAX, peer),
        ];
        for (headers, proxies, wanted) in table {
            let headers: Vec<_> = headers.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let found = Sample::headers(&headers).with(|request| request.remote_ip(*proxies));
            assert_eq!(found, Some(wanted.parse().expect("an address")), "{headers:?} behind {proxies}");
        }
    }
}
