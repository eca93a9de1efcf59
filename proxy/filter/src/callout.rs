//! Asking the check service: a CheckRequest out, a CheckResponse back (`envoy.service.auth.v3`), over HTTP.
//!
//! The messages are declared here with the few fields that are used; protobuf passes over the rest.

use std::collections::BTreeMap;

use peltast_engine::{Attribute, Decision, Effect, Hash, HeaderOperations, Lifetime, Program, Reason, Request, Source};
use prost::Message;
use prost_types::{value::Kind, Struct};

use crate::peer::Peer;

/// The key of our own part in a CheckResponse's dynamic metadata.
const METADATA_KEY: &str = "peltast.dev";

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    source: Option<Endpoint>,
    #[prost(message, optional, tag = "2")]
    destination: Option<Endpoint>,
    #[prost(message, optional, tag = "4")]
    request: Option<RequestAttributes>,
    #[prost(message, optional, tag = "12")]
    tls_session: Option<TlsSession>,
}

#[derive(Clone, PartialEq, Message)]
struct Endpoint {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
    #[prost(string, tag = "4")]
    principal: String,
}

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket_address: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
struct SocketAddress {
    #[prost(string, tag = "2")]
    address: String,
    #[prost(uint32, tag = "3")]
    port_value: u32,
}

#[derive(Clone, PartialEq, Message)]
struct RequestAttributes {
    #[prost(message, optional, tag = "2")]
    http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct HttpRequest {
    #[prost(string, tag = "2")]
    method: String,
    #[prost(btree_map = "string, string", tag = "3")]
    headers: BTreeMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(string, tag = "5")]
    host: String,
    #[prost(string, tag = "6")]
    scheme: String,
    #[prost(string, tag = "10")]
    protocol: String,
}

#[derive(Clone, PartialEq, Message)]
struct TlsSession {
    #[prost(string, tag = "1")]
    sni: String,
}

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    denied: Option<DeniedResponse>,
    #[prost(message, optional, tag = "3")]
    ok: Option<OkResponse>,
    #[prost(message, optional, tag = "4")]
    dynamic_metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct DeniedResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct OkResponse {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    response_headers_to_add: Vec<HeaderValueOption>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderValue>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// The CheckRequest for `request`, which is for `destination`.
pub(crate) fn check_request(request: &Request<'_>, peer: Peer<'_>, destination: &str) -> Vec<u8> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let connection = &request.connection;
    let address = |ip: Option<std::net::IpAddr>, port: u16| {
        let socket_address =
            SocketAddress { address: ip.map_or_else(String::new, |ip| ip.to_string()), port_value: u32::from(port) };
        Some(Address { socket_address: Some(socket_address) })
    };
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    request.http.headers.visit(&mut |name, value| {
        let joined = headers.entry(text(name)).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(&text(value));
    });
    let http = HttpRequest {
        method: text(request.http.method),
        headers,
        path: text(request.http.path),
        host: text(request.http.host),
        scheme: text(request.http.scheme),
        protocol: text(request.http.protocol),
    };
    let attributes = AttributeContext {
        source: Some(Endpoint {
            address: address(connection.source_ip, connection.source_port),
            principal: peer.principal.to_owned(),
        }),
        destination: Some(Endpoint {
            address: address(connection.destination_ip, connection.destination_port),
            principal: destination.to_owned(),
        }),
        request: Some(RequestAttributes { http: Some(http) }),
        tls_session: connection.sni.map(|sni| TlsSession { sni: sni.to_owned() }),
    };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

/// The decision that the check service's `body` holds, for a request that was asked about by `program`.
///
/// # Errors
/// For people: why it holds none.
pub(crate) fn decision(body: &[u8], program: &Program) -> Result<Decision, String> {
    let response = CheckResponse::decode(body).map_err(|error| format!("the check service's answer: {error}"))?;
    let own = Own::read(response.dynamic_metadata)?;
    let reason = own.text("reason").and_then(Reason::parse).ok_or("the check service's answer has no known reason")?;
    let allowed = response.status.is_some_and(|status| status.code == 0);
    let mut decision = Decision {
        effect: if allowed { Effect::Allow } else { Effect::Deny },
        status: 200,
        policy: own.text("policy").map(Into::into),
        rule: own.number("rule"),
        reason,
        source: if own.text("source") == Some("failed-open") { Source::FailedOpen } else { Source::Check },
        program: own.text("program").and_then(Hash::parse).ok_or("the check service's answer names no program")?,
        headers: HeaderOperations::default(),
        body: None,
        lifetime: own.lifetime(program),
        detail: own.text("detail").map(str::to_owned),
    };
    if allowed {
        let ok = response.ok.unwrap_or_default();
        decision.headers = HeaderOperations {
            request_set: pairs(ok.headers),
            request_remove: ok.headers_to_remove,
            response_add: pairs(ok.response_headers_to_add),
        };
    } else {
        let denied = response.denied.unwrap_or_default();
        let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
        decision.status = status.filter(|status| (200..=599).contains(status)).unwrap_or(reason.status());
        decision.headers = HeaderOperations { response_add: pairs(denied.headers), ..HeaderOperations::default() };
        decision.body = Some(denied.body).filter(|body| !body.is_empty());
    }
    Ok(decision)
}

/// Our own part of an answer.
struct Own(BTreeMap<String, Kind>);

impl Own {
    fn read(metadata: Option<Struct>) -> Result<Self, &'static str> {
        let mut fields = metadata.unwrap_or_default().fields;
        match fields.remove(METADATA_KEY).and_then(|value| value.kind) {
            Some(Kind::StructValue(own)) => {
                Ok(Self(own.fields.into_iter().filter_map(|(key, value)| Some((key, value.kind?))).collect()))
            }
            _ => Err("the check service's answer says nothing of how it came about"),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<u32> {
        match self.0.get(key) {
            Some(Kind::NumberValue(number)) => Some(*number as u32),
            _ => None,
        }
    }

    /// An answer is remembered if it says for how long, came of the same program, and rests on nothing that our keys
    /// leave out.
    fn lifetime(&self, program: &Program) -> Lifetime {
        let same_program = self.text("program").and_then(Hash::parse) == Some(program.hash());
        let referenced = match self.0.get("referenced") {
            Some(Kind::ListValue(list)) => list.values.as_slice(),
            _ => return Lifetime::Once,
        };
        let in_key = referenced.iter().all(|value| match &value.kind {
            Some(Kind::StringValue(name)) => {
                name.parse::<Attribute>().is_ok_and(|attribute| program.attributes().contains(&attribute))
            }
            _ => false,
        });
        match self.number("ttl_ms") {
            Some(ttl) if ttl > 0 && same_program && in_key => Lifetime::Milliseconds(ttl),
            _ => Lifetime::Once,
        }
    }
}

fn pairs(options: Vec<HeaderValueOption>) -> Vec<(String, String)> {
    options.into_iter().filter_map(|option| option.header).map(|header| (header.key, header.value)).collect()
}
