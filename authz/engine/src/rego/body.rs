//! The body of a request as a policy reads it, parsed as the OPA-Envoy plugin does: JSON, forms, and gRPC by
//! descriptors.
//!
//! <https://www.openpolicyagent.org/docs/envoy/primer#example-input>. Other than there, a body that is not what its
//! content type says is the caller's fault and denies, whatever the policy says of failures.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use percent_encoding::percent_decode;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use regorus::Value;

use super::multipart;
use crate::attribute::Facts;
use crate::document::BodySettings;
use crate::path;
use crate::query_parameters::form_pairs;
use crate::request::Body;
use crate::strict_json;

/// A flag and a length stand before each message of gRPC.
const GRPC_PREFIX_BYTES: usize = 5;

/// How one policy reads bodies.
pub(super) struct BodyReader {
    limit: usize,
    takes_part: bool,
    descriptors: Option<DescriptorPool>,
}

/// Why a policy is not asked about a body: the caller's fault in either case.
#[derive(Debug)]
pub(crate) enum BodyFault {
    /// It is longer than the policy reads; for people: by how much.
    TooLarge(String),
    /// It is not what its content type says; for people: how so.
    Malformed(String),
}

/// What of a body the input document is built from.
pub(super) struct BodyInput<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) is_truncated: bool,
    pub(super) parsed: Value,
}

impl BodyInput<'_> {
    pub(super) const NONE: Self = BodyInput { bytes: b"", is_truncated: false, parsed: Value::Null };
}

impl BodyReader {
    /// # Errors
    /// For people: what is wrong with the descriptors.
    pub(super) fn new(settings: BodySettings) -> Result<Self, String> {
        let decode = |text: String| {
            let bytes = BASE64.decode(text.as_bytes()).map_err(|error| error.to_string())?;
            DescriptorPool::decode(&bytes[..]).map_err(|error| error.to_string())
        };
        let descriptors = settings.descriptors.map(decode).transpose()?;
        Ok(Self { limit: settings.limit, takes_part: settings.partial, descriptors })
    }

    /// How many bytes it reads at most.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Reads `body`, parsed where `parses`.
    pub(super) fn read<'b>(&self, body: Body<'b>, parses: bool, facts: &Facts<'_>) -> Result<BodyInput<'b>, BodyFault> {
        let is_truncated = !body.is_whole || body.bytes.len() > self.limit;
        if is_truncated && !self.takes_part {
            return Err(BodyFault::TooLarge(format!("the body has more than {} bytes", self.limit)));
        }
        let bytes = &body.bytes[..body.bytes.len().min(self.limit)];
        let content_type = facts.header("content-type");
        let content_type = content_type.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let mut input = BodyInput { bytes, is_truncated, parsed: Value::Null };
        if !parses || bytes.is_empty() {
            return Ok(input);
        }
        match Form::of(&content_type) {
            Form::Grpc => (input.parsed, input.is_truncated) = self.read_grpc(bytes, &facts.path)?,
            _ if is_truncated => {}
            form => input.parsed = form.parse(bytes, &content_type).map_err(BodyFault::Malformed)?,
        }
        Ok(input)
    }

    /// The first message of a gRPC call, and whether it is cut off. None that is compressed, and none of a method that
    /// no descriptor names.
    fn read_grpc(&self, bytes: &[u8], path_and_query: &[u8]) -> Result<(Value, bool), BodyFault> {
        let message = match first_message(bytes) {
            Message::Cut => return Ok((Value::Null, true)),
            Message::Compressed => return Ok((Value::Null, false)),
            Message::Whole(message) => message,
        };
        let Some(descriptor) = self.called(path_and_query) else { return Ok((Value::Null, false)) };
        let malformed =
            |error: String| BodyFault::Malformed(format!("the body is no {}: {error}", descriptor.full_name()));
        let decoded =
            DynamicMessage::decode(descriptor.clone(), message).map_err(|error| malformed(error.to_string()))?;
        let json = decoded.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new());
        Ok((json.map_err(|error| malformed(error.to_string()))?.into(), false))
    }

    /// What the method that a path names takes; a stream of messages is not one.
    fn called(&self, path_and_query: &[u8]) -> Option<MessageDescriptor> {
        let path = percent_decode(path::without_query(path_and_query)).decode_utf8().ok()?;
        let (service, method) = path.trim_start_matches('/').split_once('/')?;
        let service = self.descriptors.as_ref()?.get_service_by_name(service)?;
        let method = service.methods().find(|each| each.name() == method)?;
        (!method.is_client_streaming()).then(|| method.input())
    }
}

/// Whether no more of a body need be waited for than `received`: of gRPC the first message is read, and others may
/// only come once it is answered.
pub fn is_enough(content_type: &[u8], received: &[u8]) -> bool {
    matches!(Form::of(&String::from_utf8_lossy(content_type)), Form::Grpc)
        && !matches!(first_message(received), Message::Cut)
}

enum Message<'b> {
    Whole(&'b [u8]),
    Compressed,
    Cut,
}

/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn first_message(bytes: &[u8]) -> Message<'_> {
    let Some((&[flag, a, b, c, d], rest)) = bytes.split_first_chunk::<GRPC_PREFIX_BYTES>() else { return Message::Cut };
    match rest.get(..u32::from_be_bytes([a, b, c, d]) as usize) {
        _ if flag != 0 => Message::Compressed,
        Some(message) => Message::Whole(message),
        None => Message::Cut,
    }
}

/// What a body is, by its content type.
enum Form {
    Json,
    Grpc,
    UrlEncoded,
    Multipart,
    Other,
}

impl Form {
    fn of(content_type: &str) -> Self {
        let content_type = content_type.to_ascii_lowercase();
        let forms = [
            ("application/json", Self::Json),
            ("application/grpc", Self::Grpc),
            ("application/x-www-form-urlencoded", Self::UrlEncoded),
            ("multipart/form-data", Self::Multipart),
        ];
        let is = |(name, _): &(&str, Self)| content_type.contains(name);
        forms.into_iter().find(is).map_or(Self::Other, |(_, form)| form)
    }

    /// # Errors
    /// For people: why it is none.
    fn parse(&self, bytes: &[u8], content_type: &str) -> Result<Value, String> {
        match self {
            Self::Json => json(bytes),
            Self::UrlEncoded => Ok(lists(form_pairs(bytes).map(|(name, value)| (name, Value::from(value))))),
            Self::Multipart => {
                let parts = multipart::parts(bytes, content_type)?;
                let values = parts.into_iter().map(|part| {
                    let is_json = matches!(Self::of(&part.content_type), Self::Json);
                    let text = || Value::from(String::from_utf8_lossy(part.content).as_ref());
                    Ok((part.name, if is_json { json(part.content)? } else { text() }))
                });
                Ok(lists(values.collect::<Result<Vec<_>, String>>()?))
            }
            Self::Grpc | Self::Other => Ok(Value::Null),
        }
    }
}

/// JSON without duplicate members: the application might take the other one.
fn json(bytes: &[u8]) -> Result<Value, String> {
    // Without the parser's words, which may quote the body: they go into a record.
    let malformed =
        |error: serde_json::Error| format!("line {}, column {} of the body is no JSON", error.line(), error.column());
    strict_json::parse(bytes).map(Value::from).map_err(malformed)
}

/// Every name with the list of its values.
fn lists(pairs: impl IntoIterator<Item = (String, Value)>) -> Value {
    let mut lists: BTreeMap<Value, Vec<Value>> = BTreeMap::new();
    for (name, value) in pairs {
        lists.entry(Value::from(name)).or_default().push(value);
    }
    Value::from(lists.into_iter().map(|(name, values)| (name, Value::from(values))).collect::<BTreeMap<_, _>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{no_keys, Document, Sample};
    use crate::{Decider, Effect};

    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded";
    const MULTIPART: &str = "multipart/form-data; boundary=b";

    /// What a policy says of a body, by reason, that allows where `condition` holds.
    fn reason(
        condition: &str,
        body: serde_json::Value,
        content_type: &str,
        bytes: &[u8],
        is_whole: bool,
    ) -> &'static str {
        let module = format!("package p\nimport rego.v1\nallow if {{\n{condition}\n}}\n");
        let program = Document::new().custom("sidecar", "allow", &module).rego("body", body).load();
        let sample =
            Sample { body: Some((bytes.to_vec(), is_whole)), ..Sample::headers(&[("content-type", content_type)]) };
        let decision = sample.decided_by(&mut Decider::for_sidecar(), &program, &no_keys()).decision;
        assert_eq!(decision.effect == Effect::Allow, decision.status == 200);
        decision.reason.as_str()
    }

    #[test]
    fn bodies_are_read_as_their_content_types_say() {
        let part =
            b"--b\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b\r\ncontent-disposition: form-data; \
                     name=a\r\ncontent-type: application/json\r\n\r\n{\"x\": 2}\r\n--b--\r\n";
        let table: &[(&str, &str, &[u8], &str)] = &[
            ("input.parsed_body.a.b == 1", JSON, br#"{"a": {"b": 1}}"#, "rego_allowed"),
            ("input.parsed_body[_] == 2", "application/json; charset=utf-8", b"[1, 2]", "rego_allowed"),
            ("input.parsed_body == null", JSON, b"", "rego_allowed"),
            ("input.parsed_body == null", "text/plain", b"{}", "rego_allowed"),
            ("input.parsed_body", JSON, b"{", "body_malformed"),
            ("input.parsed_body", JSON, br#"{"a": 1, "a": 2}"#, "body_malformed"),
            ("input.parsed_body.a == [\"1\", \"&\"]", FORM, b"a=1&b=2&a=%26", "rego_allowed"),
            ("input.parsed_body == {\"a\": [\"1\", {\"x\": 2}]}", MULTIPART, part, "rego_allowed"),
            ("input.parsed_body", MULTIPART, b"--b\r\nno", "body_malformed"),
            ("input.parsed_body == {}", "multipart/form-data", b"--b--\r\n", "rego_allowed"),
            ("input.attributes.request.http.body == \"abc\"", "text/plain", b"abc", "rego_allowed"),
            ("input.attributes.request.http.raw_body == \"AP8=\"", "text/plain", b"\x00\xff", "rego_allowed"),
            ("input.attributes.request.http.body == \"{\"", JSON, b"{", "rego_allowed"),
            ("input.truncated_body == false", JSON, b"{}", "rego_allowed"),
        ];
        for (condition, content_type, bytes, wanted) in table {
            assert_eq!(reason(condition, serde_json::json!({}), content_type, bytes, true), *wanted, "{condition}");
        }
    }

    #[test]
    fn a_body_is_read_up_to_the_limit_and_the_policy_says_what_of_longer_ones() {
        let truncated = "input.truncated_body; input.parsed_body == null";
        let table = [
            (10, true, &b"{\"a\": 123}"[..], true, "rego_denied"),
            (9, true, b"{\"a\": 123}", true, "rego_allowed"),
            (9, false, b"{\"a\": 123}", true, "body_too_large"),
            (10, true, b"{\"a\": 123}", false, "rego_allowed"),
            (10, false, b"{\"a\": 123}", false, "body_too_large"),
        ];
        for (limit, partial, bytes, is_whole, wanted) in table {
            let body = serde_json::json!({"limit": limit, "partial": partial});
            assert_eq!(reason(truncated, body, JSON, bytes, is_whole), wanted, "{limit} {partial} {is_whole}");
        }
    }

    #[test]
    fn a_message_of_grpc_is_enough_to_decide() {
        let frame = |flag: u8, length: u32, message: &[u8]| [&[flag], &length.to_be_bytes()[..], message].concat();
        let table = [
            ("application/grpc", frame(0, 3, b"abc"), true),
            ("application/grpc+proto", frame(0, 3, b"abcdef"), true),
            ("application/grpc", frame(0, 3, b"ab"), false),
            ("application/grpc", frame(1, 3, b"ab"), true),
            ("application/grpc", b"\0\0\0".to_vec(), false),
            ("application/json", frame(0, 3, b"abc"), false),
        ];
        for (content_type, received, wanted) in table {
            assert_eq!(is_enough(content_type.as_bytes(), &received), wanted, "{content_type} {received:?}");
        }
    }

    proptest! {
        #[test]
        fn any_body_has_a_reading_or_a_fault(bytes: Vec<u8>, content_type in prop::sample::select(vec![
            JSON, FORM, MULTIPART, "application/grpc", "text/plain",
        ])) {
            let form = Form::of(content_type);
            let _ = form.parse(&bytes, content_type);
            let _ = is_enough(content_type.as_bytes(), &bytes);
        }
    }
}
