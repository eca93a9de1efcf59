//! The input document of the OPA-Envoy plugin, built only as far as a policy reads it.
//!
//! <https://www.openpolicyagent.org/docs/envoy/primer#example-input>. What a policy reads is known when it is
//! loaded: constant references name single fields, a dynamic one widens to all below it.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::percent_decode;
use regorus::Value;

use super::body::BodyInput;
use crate::attribute::{Attribute, Facts};
use crate::path;
use crate::query_parameters::form_pairs;

/// A field of the input document that a request can fill.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    DestinationAddress,
    DestinationPort,
    Headers,
    Header(String),
    Host,
    Method,
    Path,
    Protocol,
    Scheme,
    SourceAddress,
    SourcePort,
    SourcePrincipal,
    ParsedPath,
    ParsedQuery,
    Body,
    RawBody,
    ParsedBody,
    TruncatedBody,
    ExtAuthz,
    Encoding,
}

const HEADERS: &[&str] = &["attributes", "request", "http", "headers"];

/// Every field by its place. Header names come on top: they have no end.
const FIELDS: &[(&[&str], Field)] = &[
    (&["attributes", "destination", "address", "socketAddress", "address"], Field::DestinationAddress),
    (&["attributes", "destination", "address", "socketAddress", "portValue"], Field::DestinationPort),
    (&["attributes", "request", "http", "body"], Field::Body),
    (HEADERS, Field::Headers),
    (&["attributes", "request", "http", "host"], Field::Host),
    (&["attributes", "request", "http", "method"], Field::Method),
    (&["attributes", "request", "http", "path"], Field::Path),
    (&["attributes", "request", "http", "protocol"], Field::Protocol),
    (&["attributes", "request", "http", "raw_body"], Field::RawBody),
    (&["attributes", "request", "http", "scheme"], Field::Scheme),
    (&["attributes", "source", "address", "socketAddress", "address"], Field::SourceAddress),
    (&["attributes", "source", "address", "socketAddress", "portValue"], Field::SourcePort),
    (&["attributes", "source", "principal"], Field::SourcePrincipal),
    (&["parsed_body"], Field::ParsedBody),
    (&["parsed_path"], Field::ParsedPath),
    (&["parsed_query"], Field::ParsedQuery),
    (&["truncated_body"], Field::TruncatedBody),
    (&["version", "encoding"], Field::Encoding),
    (&["version", "ext_authz"], Field::ExtAuthz),
];

/// What a policy reads of its input.
pub(super) struct Plan {
    root: Branch,
    /// The attributes that determine the document; none where not even they do.
    pub(super) attributes: Option<BTreeSet<Attribute>>,
    /// Whether the body is read, and whether it is to be parsed.
    pub(super) body: Option<Parses>,
}

/// What is done with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parses(pub(super) bool);

enum Branch {
    Leaf(Field),
    Object(Vec<(Value, Branch)>),
}

/// A reference to what no request here can fill.
#[derive(Debug)]
pub(super) struct NoSuchField(pub(super) String);

impl Plan {
    /// Plans the document for a policy that reads `references` of `input`.
    ///
    /// # Errors
    /// The first reference that can never be defined here: a policy must not rest on it.
    pub(super) fn new(references: &BTreeSet<Vec<String>>) -> Result<Self, NoSuchField> {
        let mut fields: BTreeMap<Vec<String>, Field> = BTreeMap::new();
        for reference in references {
            let found = resolve(reference);
            if found.is_empty() {
                return Err(NoSuchField(format!("input.{}", reference.join("."))));
            }
            fields.extend(found);
        }
        if fields.values().any(|field| *field == Field::Headers) {
            fields.retain(|_, field| !matches!(field, Field::Header(_)));
        }
        let is_body =
            |field: &&Field| matches!(field, Field::Body | Field::RawBody | Field::ParsedBody | Field::TruncatedBody);
        let parses = fields.values().any(|field| *field == Field::ParsedBody);
        let body = fields.values().find(is_body).map(|_| Parses(parses));
        let attributes = fields.values().map(determined_by).collect::<Option<Vec<_>>>();
        let leaves: Vec<(&[String], &Field)> = fields.iter().map(|(place, field)| (&place[..], field)).collect();
        Ok(Self {
            root: branch(&leaves),
            body,
            attributes: attributes.map(|lists| lists.into_iter().flatten().collect()),
        })
    }

    /// Builds the document for one request.
    pub(super) fn build(&self, facts: &Facts<'_>, body: &BodyInput<'_>) -> Value {
        build(&self.root, facts, body).unwrap_or_else(Value::new_object)
    }
}

/// The fields at, below or above `reference`.
fn resolve(reference: &[String]) -> Vec<(Vec<String>, Field)> {
    let place = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
    if reference.len() > HEADERS.len() && place(HEADERS) == reference[..HEADERS.len()] {
        let name = &reference[HEADERS.len()];
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Vec::new(); // names are in lower case in the document, so that this one is never there
        }
        return vec![(reference[..=HEADERS.len()].to_vec(), Field::Header(name.clone()))];
    }
    let touches = |names: &[&str]| names.iter().zip(reference).all(|(name, given)| name == given);
    FIELDS.iter().filter(|(names, _)| touches(names)).map(|(names, field)| (place(names), field.clone())).collect()
}

/// The attributes whose values determine `field`; none where every request has another.
fn determined_by(field: &Field) -> Option<Vec<Attribute>> {
    Some(match field {
        // A key as long as a body would fill the cache with what is hardly asked twice.
        Field::Headers | Field::Body | Field::RawBody | Field::ParsedBody | Field::TruncatedBody => return None,
        Field::Header(name) => vec![Attribute::RequestHeader(name.as_str().into())],
        Field::DestinationAddress => vec![Attribute::DestinationIp],
        Field::DestinationPort => vec![Attribute::DestinationPort],
        Field::Host => vec![Attribute::RequestHost],
        Field::Method => vec![Attribute::RequestMethod],
        // Whole: path and query apart do not tell `/a?` from `/a`.
        Field::Path => vec![Attribute::RequestHeader(":path".into())],
        Field::ParsedPath => vec![Attribute::RequestPath],
        Field::ParsedQuery => vec![Attribute::RequestQuery],
        Field::Protocol => vec![Attribute::RequestProtocol],
        Field::Scheme => vec![Attribute::RequestScheme],
        Field::SourceAddress => vec![Attribute::SourceIp],
        Field::SourcePort => vec![Attribute::SourcePort],
        Field::SourcePrincipal => vec![Attribute::SourcePrincipal],
        Field::ExtAuthz | Field::Encoding => vec![],
    })
}

fn branch(leaves: &[(&[String], &Field)]) -> Branch {
    if let [([], field)] = leaves {
        return Branch::Leaf((*field).clone());
    }
    let mut children: BTreeMap<&str, Vec<(&[String], &Field)>> = BTreeMap::new();
    for (place, field) in leaves {
        if let Some((first, rest)) = place.split_first() {
            children.entry(first).or_default().push((rest, field));
        }
    }
    Branch::Object(children.into_iter().map(|(name, below)| (Value::from(name), branch(&below))).collect())
}

fn build(branch: &Branch, facts: &Facts<'_>, body: &BodyInput<'_>) -> Option<Value> {
    match branch {
        Branch::Leaf(field) => value(field, facts, body),
        Branch::Object(children) => {
            let members = children.iter().filter_map(|(name, child)| Some((name.clone(), build(child, facts, body)?)));
            Some(Value::from(members.collect::<BTreeMap<_, _>>()))
        }
    }
}

fn value(field: &Field, facts: &Facts<'_>, body: &BodyInput<'_>) -> Option<Value> {
    let connection = &facts.request.connection;
    let http = facts.http();
    Some(match field {
        Field::DestinationAddress => Value::from(connection.destination_ip?.to_string()),
        Field::DestinationPort => Value::from(u64::from(facts.destination_port)),
        Field::Headers => all_headers(facts),
        Field::Header(name) => text(&facts.header(name)?),
        Field::Host => text(http.host),
        Field::Method => text(http.method),
        Field::Path => text(&facts.path),
        Field::Protocol => text(http.protocol),
        Field::Scheme => text(http.scheme),
        Field::SourceAddress => Value::from(connection.source_ip?.to_string()),
        Field::SourcePort => Value::from(u64::from(connection.source_port)),
        Field::SourcePrincipal => Value::from(connection.spiffe_id()?),
        Field::ParsedPath => parsed_path(&facts.path),
        Field::ParsedQuery => parsed_query(path::query(&facts.path)),
        Field::Body => text(body.bytes),
        Field::RawBody => Value::from(data_encoding::BASE64.encode(body.bytes)),
        Field::ParsedBody => body.parsed.clone(),
        Field::TruncatedBody => Value::from(body.is_truncated),
        Field::ExtAuthz => Value::from("v3"),
        Field::Encoding => Value::from("protojson"),
    })
}

fn text(bytes: &[u8]) -> Value {
    Value::from(String::from_utf8_lossy(bytes).as_ref())
}

fn all_headers(facts: &Facts<'_>) -> Value {
    let mut headers: BTreeMap<Value, Value> = BTreeMap::new();
    let mut add = |name: &str| {
        if let Some(joined) = facts.header(name) {
            headers.insert(Value::from(name), text(&joined));
        }
    };
    [":authority", ":method", ":path", ":scheme"].into_iter().for_each(&mut add);
    facts.http().headers.visit(&mut |name, _| add(&String::from_utf8_lossy(name)));
    Value::from(headers)
}

/// The segments of the path, unescaped; the path `/` has one, the empty one.
fn parsed_path(path_and_query: &[u8]) -> Value {
    let unescaped: Vec<u8> = percent_decode(path::without_query(path_and_query)).collect();
    let start = unescaped.iter().take_while(|&&byte| byte == b'/').count();
    Value::from(unescaped[start..].split(|&byte| byte == b'/').map(text).collect::<Vec<_>>())
}

/// Every parameter of the query with the list of its values.
fn parsed_query(query: &[u8]) -> Value {
    let mut parameters: BTreeMap<Value, Vec<Value>> = BTreeMap::new();
    for (name, value) in form_pairs(query) {
        parameters.entry(Value::from(name)).or_default().push(Value::from(value));
    }
    Value::from(parameters.into_iter().map(|(name, values)| (name, Value::from(values))).collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_path_has_its_segments(path in any::<Vec<u8>>()) {
            let unescaped: Vec<u8> = percent_decode(path::without_query(&path)).collect();
            let behind = unescaped.iter().skip_while(|&&byte| byte == b'/');
            let segments = behind.filter(|&&byte| byte == b'/').count() + 1;
            prop_assert_eq!(parsed_path(&path).as_array().expect("a list").len(), segments);
        }

        #[test]
        fn any_query_has_a_value_for_each_of_its_pairs(query in any::<Vec<u8>>()) {
            let pairs = query.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()).count();
            let parsed = parsed_query(&query);
            let lists = parsed.as_object().expect("an object").values();
            let values: usize = lists.map(|list| list.as_array().map_or(0, |list| list.len())).sum();
            prop_assert_eq!(values, pairs);
        }
    }
}
