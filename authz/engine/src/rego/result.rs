//! What a Rego policy answers: the result of the OPA-Envoy plugin.
//!
//! <https://www.openpolicyagent.org/docs/envoy/primer#output-document>

use regorus::Value;

use crate::decision::{HeaderOperations, Metadata};
use crate::query_parameters::QueryOperations;

/// Longest dynamic metadata, in bytes of JSON.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Where a check service says how its answer came about.
const OWN_METADATA: &str = "peltast.dev";

/// What a Rego policy answered.
#[derive(Default)]
pub(crate) struct Ruling {
    pub(crate) allowed: bool,
    pub(crate) status: Option<u16>,
    pub(crate) headers: HeaderOperations,
    pub(crate) query: QueryOperations,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) body: Option<String>,
}

/// A value for people: what it is made of may be too much to be written.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Set(_) => "a set".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    }
}

/// Reads a result as the OPA-Envoy plugin does: a boolean, or an object with `allowed`; undefined denies.
pub(super) fn read_result(result: &Value) -> Result<Ruling, String> {
    let plain = |allowed| Ruling { allowed, ..Ruling::default() };
    match result {
        Value::Undefined => Ok(plain(false)),
        Value::Bool(allowed) => Ok(plain(*allowed)),
        Value::Object(_) => read_object(result),
        other => Err(format!("the result is {}; a boolean or an object with `allowed` is expected", shown(other))),
    }
}

fn read_object(result: &Value) -> Result<Ruling, String> {
    let allowed = *result["allowed"].as_bool().map_err(|_| "`allowed` must be a boolean".to_owned())?;
    let mut operations =
        HeaderOperations { response_add: headers(&result["response_headers_to_add"])?, ..HeaderOperations::default() };
    // `headers` go to whoever comes next: the application where the request is allowed, the client where it is not.
    if allowed {
        operations.request_set = headers(&result["headers"])?;
        operations.request_remove = header_names(&result["request_headers_to_remove"])?;
    } else {
        operations.response_add.extend(headers(&result["headers"])?);
    }
    let body = match &result["body"] {
        Value::Undefined => None,
        body => Some(body.as_string().map_err(|_| "`body` must be a string".to_owned())?.to_string()),
    };
    let query = if allowed { query_operations(result)? } else { QueryOperations::default() };
    let metadata = metadata(&result["dynamic_metadata"])?;
    Ok(Ruling { allowed, status: status(&result["http_status"])?, headers: operations, query, metadata, body })
}

fn query_operations(result: &Value) -> Result<QueryOperations, String> {
    let pairs = match &result["query_parameters_to_set"] {
        Value::Undefined => Vec::new(),
        Value::Object(members) => {
            let lists = members.iter().map(|(name, value)| match value {
                Value::Array(_) => Ok((name, strings(value)?)),
                value => Ok((name, vec![text(value)?])),
            });
            let lists = lists.collect::<Result<Vec<(&Value, Vec<String>)>, String>>()?;
            let named = |(name, values): (&Value, Vec<String>)| {
                let name = parameter(text(name)?, b"=")?;
                values.into_iter().map(|value| Ok((name.clone(), parameter(value, b"")?))).collect()
            };
            lists.into_iter().map(named).collect::<Result<Vec<Vec<_>>, String>>()?.concat()
        }
        other => {
            return Err(format!("`query_parameters_to_set` is {}; an object of strings is expected", shown(other)))
        }
    };
    let remove = strings(&result["query_parameters_to_remove"])?.into_iter().map(|name| parameter(name, b"="));
    Ok(QueryOperations { set: pairs, remove: remove.collect::<Result<_, _>>()? })
}

/// What may stand in a query as it is: visible ASCII without what ends a parameter, nor `without`.
fn parameter(text: String, without: &[u8]) -> Result<String, String> {
    let may_stand = |byte: u8| byte.is_ascii_graphic() && !b"&#".contains(&byte) && !without.contains(&byte);
    if (text.is_empty() && !without.is_empty()) || !text.bytes().all(may_stand) {
        return Err(format!("{text:?} cannot stand in a query; urlquery.encode escapes it"));
    }
    Ok(text)
}

/// An object of JSON.
fn metadata(value: &Value) -> Result<Option<Metadata>, String> {
    if *value == Value::Undefined {
        return Ok(None);
    }
    let json = value.to_json_str().map_err(|error| format!("`dynamic_metadata`: {error}"))?;
    if json.len() > MAX_METADATA_BYTES {
        return Err(format!("`dynamic_metadata` has {} bytes; at most {MAX_METADATA_BYTES} are allowed", json.len()));
    }
    let metadata: Metadata = serde_json::from_str(&json)
        .map_err(|_| format!("`dynamic_metadata` is {}; an object is expected", shown(value)))?;
    if metadata.contains_key(OWN_METADATA) {
        return Err(format!("`dynamic_metadata` has {OWN_METADATA:?}, which is not for policies"));
    }
    Ok(Some(metadata))
}

fn status(value: &Value) -> Result<Option<u16>, String> {
    match value {
        Value::Undefined => Ok(None),
        value => match value.as_u16() {
            Ok(status @ 200..=599) => Ok(Some(status)),
            _ => Err(format!("`http_status` is {}; 200 to 599 is expected", shown(value))),
        },
    }
}

/// `{name: value}` or `{name: [value, …]}`, or a list of such objects.
fn headers(value: &Value) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    match value {
        Value::Undefined => {}
        Value::Array(items) => {
            for item in items.iter() {
                pairs.extend(headers(item)?);
            }
        }
        Value::Object(members) => {
            for (name, value) in members.iter() {
                let name = header_name(text(name)?)?;
                match value {
                    Value::Array(_) => pairs.extend(strings(value)?.into_iter().map(|value| (name.clone(), value))),
                    value => pairs.push((name, text(value)?)),
                }
            }
        }
        other => return Err(format!("headers are {}; an object of strings is expected", shown(other))),
    }
    Ok(pairs)
}

fn strings(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Undefined => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(text).collect(),
        other => Err(format!("{} is given where a list of strings is expected", shown(other))),
    }
}

fn header_names(value: &Value) -> Result<Vec<String>, String> {
    strings(value)?.into_iter().map(header_name).collect()
}

/// A header that a policy may touch: a token (RFC 9110 section 5.6.2), which `:path` and its like are not, and none
/// that says where a request ends or whom it is for. Other policies decided by those, and Envoy cannot do without.
fn header_name(name: String) -> Result<String, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = name.to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is not the name of a header"));
    }
    if matches!(&*name, "host" | "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te") {
        return Err(format!("the header {name} is not for policies to change"));
    }
    Ok(name)
}

/// A string that may stand in a header: no control characters, which would end it early.
fn text(value: &Value) -> Result<String, String> {
    let text = value.as_string().map_err(|_| format!("{} is given where a string is expected", shown(value)))?;
    if text.chars().any(|character| character.is_control()) {
        return Err("a header holds a control character".to_owned());
    }
    Ok(text.to_string())
}
