//! The vocabulary of rules: what an attribute is called, and what its values are in a request.
//!
//! The names are Istio's (<https://istio.io/latest/docs/reference/config/security/conditions/>). The same text names
//! an attribute in a program's document, in a check service's list of referenced attributes, and in the docs.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};
use serde_json::Value;

use crate::path;
use crate::request::{Http, Request, Told};
use crate::token::Token;

/// Something that a rule may look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// SPIFFE ID of the peer without its `spiffe://`, as Istio writes principals.
    SourcePrincipal,
    /// Namespace in the peer's SPIFFE ID.
    SourceNamespace,
    /// Namespace and service account in the peer's SPIFFE ID, as `namespace/service-account`.
    SourceServiceAccount,
    /// Address of the peer.
    SourceIp,
    /// Address of the client behind trusted proxies.
    RemoteIp,
    /// Port of the peer.
    SourcePort,
    /// Address that the peer connected to.
    DestinationIp,
    /// Port of the application that the request is for.
    DestinationPort,
    /// Port that the peer connected to. No rule names it: policies for a service are for its ports.
    ServicePort,
    /// Server name of the TLS handshake.
    ConnectionSni,
    /// Method.
    RequestMethod,
    /// Authority. Rules match it without regard to case, as Istio's do.
    RequestHost,
    /// Normalized path without its query.
    RequestPath,
    /// The query, without its `?`.
    RequestQuery,
    /// `http` or `https`.
    RequestScheme,
    /// `HTTP/1.1`, `HTTP/2`, …
    RequestProtocol,
    /// A header, by its name in lower case.
    RequestHeader(Box<str>),
    /// Issuer and subject of the token, as `issuer/subject`.
    TokenPrincipal,
    /// Every audience of the token.
    TokenAudiences,
    /// The token's `azp`.
    TokenPresenter,
    /// A claim of the token, by its path; of a list, each element is a value.
    TokenClaim(Box<[Box<str>]>),
}

/// Names without an argument.
const PLAIN: &[(&str, Attribute)] = &[
    ("source.principal", Attribute::SourcePrincipal),
    ("source.namespace", Attribute::SourceNamespace),
    ("source.serviceAccount", Attribute::SourceServiceAccount),
    ("source.ip", Attribute::SourceIp),
    ("source.port", Attribute::SourcePort),
    ("remote.ip", Attribute::RemoteIp),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::DestinationPort),
    ("destination.servicePort", Attribute::ServicePort),
    ("connection.sni", Attribute::ConnectionSni),
    ("request.method", Attribute::RequestMethod),
    ("request.host", Attribute::RequestHost),
    ("request.path", Attribute::RequestPath),
    ("request.query", Attribute::RequestQuery),
    ("request.scheme", Attribute::RequestScheme),
    ("request.protocol", Attribute::RequestProtocol),
    ("request.auth.principal", Attribute::TokenPrincipal),
    ("request.auth.audiences", Attribute::TokenAudiences),
    ("request.auth.presenter", Attribute::TokenPresenter),
];

/// A name that no attribute has.
#[derive(Debug, thiserror::Error)]
#[error("no attribute is called {0:?}")]
pub struct UnknownAttribute(String);

impl FromStr for Attribute {
    type Err = UnknownAttribute;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, attribute)) = PLAIN.iter().find(|(name, _)| *name == text) {
            return Ok(attribute.clone());
        }
        let unknown = || UnknownAttribute(text.to_owned());
        if let Some(rest) = text.strip_prefix("request.headers") {
            return match &brackets(rest).ok_or_else(unknown)?[..] {
                [name] => Ok(Self::RequestHeader(name.to_ascii_lowercase().into())),
                _ => Err(unknown()),
            };
        }
        let claims = text.strip_prefix("request.auth.claims").and_then(brackets).ok_or_else(unknown)?;
        Ok(Self::TokenClaim(claims.into_iter().map(Box::from).collect()))
    }
}

/// `[a][b]` as its parts; none where the text is of another form.
fn brackets(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let parts: Vec<&str> = inner.split("][").collect();
    parts.iter().all(|part| !part.is_empty() && !part.contains(['[', ']'])).then_some(parts)
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestHeader(name) => write!(f, "request.headers[{name}]"),
            Self::TokenClaim(path) => write!(f, "request.auth.claims[{}]", path.join("][")),
            plain => f.write_str(PLAIN.iter().find(|(_, a)| a == plain).map_or("", |(name, _)| name)),
        }
    }
}

impl Attribute {
    /// Whether it is a connection's. All others are of HTTP requests, and no connection without them has a value.
    fn is_of_connections(&self) -> bool {
        matches!(
            self,
            Self::SourcePrincipal
                | Self::SourceNamespace
                | Self::SourceServiceAccount
                | Self::SourceIp
                | Self::RemoteIp
                | Self::SourcePort
                | Self::DestinationIp
                | Self::DestinationPort
                | Self::ServicePort
                | Self::ConnectionSni
        )
    }

    /// Whether its values are known. Those of a token are wherever a decision is come to: see [`crate::Decider`].
    fn is_told(&self, told: Told<'_>) -> bool {
        match (told, self) {
            (Told::All, _) => true,
            (_, Self::RequestHeader(name)) => told.tells_header(name),
            (_, Self::RequestScheme | Self::RequestProtocol) => false,
            _ => !self.is_of_connections(),
        }
    }
}

impl<'de> Deserialize<'de> for Attribute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A request as rules see it: its path normalized, its token verified.
pub struct Facts<'a> {
    /// The request.
    pub request: &'a Request<'a>,
    /// The normalized path with its query.
    pub path: Cow<'a, [u8]>,
    /// The verified token, where the request carries one.
    pub token: Option<&'a Token>,
    /// Port of the application behind the port that the peer connected to.
    pub destination_port: u16,
    /// Proxies before the peer whose word in `x-forwarded-for` is taken.
    pub trusted_proxies: usize,
}

impl<'a> Facts<'a> {
    /// Whether `attribute` is of HTTP requests, and this is a connection without them; or it is unknown.
    pub fn lacks(&self, attribute: &Attribute) -> bool {
        match self.request.http {
            None => !attribute.is_of_connections(),
            Some(http) => !attribute.is_told(http.told),
        }
    }

    /// The HTTP part; empty where there is none.
    pub(crate) fn http(&self) -> &Http<'a> {
        self.request.http.as_ref().unwrap_or(&Http::EMPTY)
    }

    /// Calls `visit` with each value of `attribute` until it answers true; tells whether it did.
    pub fn any(&self, attribute: &Attribute, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if self.lacks(attribute) {
            return false;
        }
        let connection = &self.request.connection;
        let http = self.http();
        let principal = connection.spiffe_id().and_then(|id| id.strip_prefix("spiffe://"));
        let mut text = |value: Option<&str>| value.is_some_and(|value| visit(value.as_bytes()));
        match attribute {
            Attribute::SourcePrincipal => text(principal),
            Attribute::SourceNamespace => text(principal.and_then(namespace)),
            Attribute::SourceServiceAccount => text(principal.and_then(service_account).as_deref()),
            Attribute::SourceIp => text(connection.source_ip.map(|ip| ip.to_string()).as_deref()),
            Attribute::RemoteIp => {
                text(self.request.remote_ip(self.trusted_proxies).map(|ip| ip.to_string()).as_deref())
            }
            Attribute::SourcePort => text(Some(&connection.source_port.to_string())),
            Attribute::DestinationIp => text(connection.destination_ip.map(|ip| ip.to_string()).as_deref()),
            Attribute::DestinationPort => text(Some(&self.destination_port.to_string())),
            Attribute::ServicePort => text(Some(&connection.destination_port.to_string())),
            Attribute::ConnectionSni => text(connection.sni),
            Attribute::RequestMethod => visit(http.method),
            Attribute::RequestHost => visit(http.host),
            Attribute::RequestPath => visit(path::without_query(&self.path)),
            Attribute::RequestQuery => visit(path::query(&self.path)),
            Attribute::RequestScheme => visit(http.scheme),
            Attribute::RequestProtocol => visit(http.protocol),
            Attribute::RequestHeader(name) => match self.pseudo_header(name) {
                Some(value) => !value.is_empty() && visit(value),
                None => http.headers.any(name, visit),
            },
            Attribute::TokenPrincipal => text(self.token.and_then(Token::principal).as_deref()),
            Attribute::TokenAudiences => {
                self.token.is_some_and(|token| token.audiences.iter().any(|audience| visit(audience.as_bytes())))
            }
            Attribute::TokenPresenter => text(self.token.and_then(|token| token.presenter.as_deref())),
            Attribute::TokenClaim(path) => {
                let value = self.token.and_then(|token| claim(token, path));
                value.is_some_and(|value| any_scalar(value, visit))
            }
        }
    }

    /// The value of a header or pseudo-header; several are joined with commas.
    pub fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match self.pseudo_header(name) {
            Some(value) => Some(Cow::Borrowed(value)).filter(|value| !value.is_empty()),
            None => self.http().headers.get(name),
        }
    }

    /// What every mount must read of the request's own parts and never of the list of headers: Envoy has them among
    /// its headers (and takes `host` for `:authority`), Python has not.
    fn pseudo_header(&self, name: &str) -> Option<&[u8]> {
        let http = self.http();
        match name {
            ":method" => Some(http.method),
            ":path" => Some(&self.path),
            ":authority" | "host" => Some(http.host),
            ":scheme" => Some(http.scheme),
            _ => None,
        }
    }

    /// Appends the values of `attribute` to a cache key, so that other values give another key.
    pub fn write_key(&self, attribute: &Attribute, key: &mut Vec<u8>) {
        let mut write = |value: &[u8]| {
            key.extend_from_slice(&(value.len() as u32).to_le_bytes());
            key.extend_from_slice(value);
            false
        };
        match (attribute, self.token) {
            // Apart, because rules look at them apart: `a/b` and `c` are not `a` and `b/c`.
            (Attribute::TokenPrincipal, Some(token)) => {
                write(token.issuer.as_bytes());
                write(token.subject.as_bytes());
            }
            _ => drop(self.any(attribute, &mut write)),
        }
        key.extend_from_slice(&u32::MAX.to_le_bytes());
    }
}

/// The namespace of `trust-domain/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
fn namespace(principal: &str) -> Option<&str> {
    let mut parts = principal.split('/').skip(1);
    match (parts.next(), parts.next(), parts.next()) {
        (Some("ns"), Some(namespace), Some("sa")) => Some(namespace),
        _ => None,
    }
}

/// The namespace and service account of `trust-domain/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
fn service_account(principal: &str) -> Option<String> {
    let mut parts = principal.split('/').skip(1);
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some(format!("{namespace}/{account}")),
        _ => None,
    }
}

pub(crate) fn claim<'t>(token: &'t Token, path: &[Box<str>]) -> Option<&'t Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(token.claims.get(&**first)?, |value, name| value.get(&**name))
}

/// The scalars of a claim as text: itself, or each element of a list; an object has none.
fn any_scalar(value: &Value, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    match value {
        Value::String(text) => visit(text.as_bytes()),
        Value::Bool(_) | Value::Number(_) => visit(value.to_string().as_bytes()),
        Value::Array(items) => items.iter().any(|item| !item.is_array() && any_scalar(item, visit)),
        Value::Null | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        let names =
            ["source.principal", "destination.port", "request.headers[x-tenant]", "request.auth.claims[a][b.c]"];
        for name in names {
            assert_eq!(name.parse::<Attribute>().expect(name).to_string(), name);
        }
    }

    /// The control plane refuses by these names what cannot be told of a connection (`connections.py`).
    #[test]
    fn attributes_of_requests_are_those_that_are_called_so() {
        let more = ["request.headers[x]", "request.auth.claims[x]"].map(|name| name.parse().expect(name));
        for attribute in PLAIN.iter().map(|(_, attribute)| attribute).chain(&more) {
            assert_eq!(!attribute.is_of_connections(), attribute.to_string().starts_with("request."), "{attribute}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in
            ["", "source", "request.headers", "request.headers[]", "request.headers[a][b]", "request.auth.claims[a"]
        {
            assert!(name.parse::<Attribute>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_namespace_is_read_from_istios_form_only() {
        assert_eq!(namespace("cluster.local/ns/shop/sa/web"), Some("shop"));
        assert_eq!(namespace("cluster.local/shop/web"), None);
    }

    #[test]
    fn a_service_account_is_read_from_istios_form_only() {
        assert_eq!(service_account("cluster.local/ns/shop/sa/web").as_deref(), Some("shop/web"));
        for other in ["cluster.local/ns/shop/sa", "cluster.local/ns/shop/sa/web/x", "cluster.local/x/shop/sa/web"] {
            assert_eq!(service_account(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read_as_it_is_written_or_refused(
            head in prop::sample::select(vec!["request.headers", "request.auth.claims", "source.ip", ""]),
            arguments in r"[\[\]a-cA\.é]{0,12}",
        ) {
            if let Ok(attribute) = format!("{head}{arguments}").parse::<Attribute>() {
                prop_assert_eq!(attribute.to_string().parse::<Attribute>().expect("its own name"), attribute);
            }
        }

        #[test]
        fn any_principal_is_of_istios_form_or_has_no_parts(principal in r"[a/]{0,6}(/ns/|/sa/|a){0,6}") {
            let namespace = namespace(&principal);
            let in_namespace = |account: String| account.split_once('/').map(|(first, _)| first) == namespace;
            prop_assert!(service_account(&principal).is_none_or(in_namespace));
        }
    }
}
