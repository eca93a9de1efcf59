//! What a decision is made about: the attributes of one connection and one HTTP request, as bytes.

use std::borrow::Cow;
use std::net::IpAddr;

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
}

/// One request on one connection.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// The request on it.
    pub http: Http<'a>,
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
