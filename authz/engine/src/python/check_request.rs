//! A CheckRequest as a request that is decided about.

use prost::Message;
use pyo3::PyResult;

use super::{refused, PyRequest};
use crate::check_request::{AttributeContext, CheckRequest, HttpRequest, Peer, SocketAddress, TRUNCATED_KEY};
use crate::request::HeaderList;

/// The context extension that names the headers that are known, where nothing else is but method, host and path.
const TOLD_KEY: &str = "peltast.dev/told";
/// The header by which Envoy says that there is more of the body.
const PARTIAL: &[u8] = b"x-envoy-auth-partial-body";

impl PyRequest {
    /// The request that `question` is about; a connection, where it has no HTTP part.
    pub(super) fn of_check(question: &[u8]) -> PyResult<Self> {
        let attributes = CheckRequest::decode(question).map_err(refused)?.attributes.unwrap_or_default();
        let AttributeContext { source, destination, request, context_extensions, tls_session } = attributes;
        let (source, source_address) = parts(source);
        let (destination, destination_address) = parts(destination);
        let http = request.unwrap_or_default().http;
        let is_http = http.is_some();
        let http = http.unwrap_or_default();
        let headers = headers(&http);
        let body = if http.raw_body.is_empty() { http.body.into_bytes() } else { http.raw_body };
        let is_body_whole = !context_extensions.contains_key(TRUNCATED_KEY) && is_whole(&body, &headers);
        Ok(Self {
            source_principal: given(source),
            source_ip: ip(&source_address)?,
            source_port: port(&source_address)?,
            destination_ip: ip(&destination_address)?,
            destination_port: port(&destination_address)?,
            sni: given(tls_session.unwrap_or_default().sni),
            method: is_http.then(|| http.method.into_bytes()),
            host: http.host.into_bytes(),
            path: http.path.into_bytes(),
            scheme: http.scheme.into_bytes(),
            protocol: http.protocol.into_bytes(),
            headers,
            body,
            is_body_whole,
            told: context_extensions.get(TOLD_KEY).map(|names| names.split(',').map(str::to_owned).collect()),
            destination_principal: destination,
            destination_address: destination_address.address,
        })
    }
}

fn parts(peer: Option<Peer>) -> (String, SocketAddress) {
    let Peer { address, principal } = peer.unwrap_or_default();
    (principal, address.and_then(|address| address.socket_address).unwrap_or_default())
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn ip(given: &SocketAddress) -> PyResult<Option<std::net::IpAddr>> {
    let refuse = |_| refused(format!("the address {:?} is given; an IP address is expected", given.address));
    Some(&given.address).filter(|text| !text.is_empty()).map(|text| text.parse().map_err(refuse)).transpose()
}

fn port(given: &SocketAddress) -> PyResult<u16> {
    let port = given.port_value;
    port.try_into().map_err(|_| refused(format!("port {port} is given; 0 to 65535 is expected")))
}

/// All headers. Pseudo-headers are left out: they are attributes of their own.
fn headers(http: &HttpRequest) -> HeaderList {
    let joined = http.headers.iter().map(|(name, value)| (name, value.as_bytes()));
    let listed = http.header_map.iter().flat_map(|map| &map.headers).map(|one| {
        let value = if one.value.is_empty() { &one.raw_value[..] } else { one.value.as_bytes() };
        (&one.key, value)
    });
    let own = joined.chain(listed).filter(|(name, _)| !name.starts_with(':'));
    HeaderList(own.map(|(name, value)| (name.to_ascii_lowercase().into_bytes(), value.to_vec())).collect())
}

/// Whether `body` is all of it: also not where Envoy was not told to send any.
fn is_whole(body: &[u8], headers: &HeaderList) -> bool {
    let last = |name: &[u8]| headers.0.iter().rfind(|(header, _)| header == name).map(|(_, value)| &value[..]);
    let length = last(b"content-length").filter(|text| !text.is_empty() && text.iter().all(u8::is_ascii_digit));
    // What is no number has too many digits.
    let number = |text| std::str::from_utf8(text).ok()?.parse::<usize>().ok();
    let is_cut = length.is_some_and(|text| number(text).is_none_or(|length| length > body.len()));
    !is_cut && last(PARTIAL) != Some(b"true")
}
