//! What records say of a request, where an AuditPolicy asks for other than the default: what is left out, what a keyed
//! hash stands for, and which headers and claims are written.

use std::borrow::Cow;
use std::net::SocketAddr;

use data_encoding::HEXLOWER;
use ring::hmac;
use serde::de::{self, Deserialize, Deserializer};
use serde_json::Value;

use crate::attribute;
use crate::decision::{Decision, Effect, Source};
use crate::path;
use crate::record::{Field, Fields};
use crate::request::Headers;
use crate::token::Token;

/// Longest value of a header or claim that is kept, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// How a value is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// As it is.
    #[default]
    Keep,
    /// That there is one.
    Redact,
    /// By a hash that is the same for the same value in the whole mesh.
    Hash,
}

impl Treatment {
    /// The treatment of this name.
    pub fn parse(name: &[u8]) -> Option<Self> {
        match name {
            b"keep" => Some(Self::Keep),
            b"redact" => Some(Self::Redact),
            b"hash" => Some(Self::Hash),
            _ => None,
        }
    }
}

/// HMAC-SHA-256 (RFC 2104) under the mesh's key: who has no key cannot try values against hashes.
pub struct Hasher(hmac::Key);

impl Hasher {
    /// A hasher by `key`.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn hex(&self, value: &[u8]) -> String {
        HEXLOWER.encode(hmac::sign(&self.0, value).as_ref())
    }
}

/// How much is recorded of requests that are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Allowed {
    /// Each.
    #[default]
    Full,
    /// How many.
    Summary,
}

/// What records of one workload's requests say.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recording {
    query: Treatment,
    token_subject: Treatment,
    source_address: Treatment,
    headers: Vec<ChosenHeader>,
    claims: Vec<ChosenClaim>,
    allowed: Allowed,
}

/// A header, by its name in lower case.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ChosenHeader {
    name: Box<str>,
    #[serde(rename = "as")]
    treatment: Treatment,
}

/// A claim, by the names that lead to it.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ChosenClaim {
    #[serde(deserialize_with = "claim_path")]
    path: Box<[Box<str>]>,
    #[serde(rename = "as")]
    treatment: Treatment,
}

fn claim_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<[Box<str>]>, D::Error> {
    let path = Box::<[Box<str>]>::deserialize(deserializer)?;
    if path.is_empty() {
        return Err(de::Error::custom("no claim is named"));
    }
    Ok(path)
}

impl ChosenClaim {
    fn name(&self) -> Cow<'_, str> {
        match &*self.path {
            [name] => Cow::Borrowed(name),
            path => Cow::Owned(format!("claims[{}]", path.join("]["))),
        }
    }
}

impl Recording {
    /// That of a sidecar which has not been told yet: nothing is written that any could leave out.
    pub fn unknown() -> Self {
        let source_address = Treatment::Redact;
        Self { query: Treatment::Redact, token_subject: Treatment::Redact, source_address, ..Self::default() }
    }

    /// That of what a workload's application asks of others, of which only the query is left out or not.
    pub fn of_query(query: Treatment) -> Self {
        Self { query, ..Self::default() }
    }

    /// Whether some value is hashed.
    pub fn hashes(&self) -> bool {
        self.treatments().any(|one| one == Treatment::Hash)
    }

    /// Whether some value is not written as it is.
    pub fn hides(&self) -> bool {
        self.treatments().any(|one| one != Treatment::Keep)
    }

    fn treatments(&self) -> impl Iterator<Item = Treatment> + '_ {
        let chosen = self.headers.iter().map(|header| header.treatment);
        let chosen = chosen.chain(self.claims.iter().map(|claim| claim.treatment));
        chosen.chain([self.query, self.token_subject, self.source_address])
    }

    /// Whether a request of this decision has no records of its own and is counted.
    pub fn counts(&self, decision: &Decision) -> bool {
        self.allowed == Allowed::Summary
            && decision.effect == Effect::Allow
            && decision.source != Source::FailedOpen
            && !decision.shadow.as_ref().is_some_and(|shadow| shadow.stands_out())
    }

    /// Writes fields as this says, hashes by `hasher`; without one, what is to be hashed is left out.
    pub fn recorder<'a>(&'a self, hasher: Option<&'a Hasher>) -> Recorder<'a> {
        Recorder { recording: self, hasher }
    }
}

/// Writes the fields of records that a [`Recording`] is about.
#[derive(Clone, Copy)]
pub struct Recorder<'a> {
    recording: &'a Recording,
    hasher: Option<&'a Hasher>,
}

impl Recorder<'_> {
    /// Writes the path, and its query as a field of its own unless it is kept.
    pub fn path(&self, fields: &mut Fields<'_>, path_and_query: &[u8]) {
        if self.recording.query == Treatment::Keep {
            return fields.bytes(Field::Path, path_and_query);
        }
        fields.bytes(Field::Path, path::without_query(path_and_query));
        self.value(fields, Field::Query, self.recording.query, path::query(path_and_query));
    }

    /// Writes where the caller is. What is hashed is the address without its port, which is another one each time.
    pub fn source_address(&self, fields: &mut Fields<'_>, address: &[u8]) {
        let treatment = self.recording.source_address;
        let host = std::str::from_utf8(address).ok().and_then(|text| text.parse::<SocketAddr>().ok());
        match host.filter(|_| treatment == Treatment::Hash) {
            Some(host) => self.value(fields, Field::SourceAddress, treatment, host.ip().to_string().as_bytes()),
            None => self.value(fields, Field::SourceAddress, treatment, address),
        }
    }

    /// Writes whom a token is about, and the chosen claims of it.
    pub fn token(&self, fields: &mut Fields<'_>, token: &Token) {
        self.value(fields, Field::TokenSubject, self.recording.token_subject, token.subject.as_bytes());
        let mut lines = Vec::new();
        for claim in &self.recording.claims {
            if let Some(value) = attribute::claim(token, &claim.path).and_then(claim_text) {
                self.line(&mut lines, &claim.name(), claim.treatment, value.as_bytes());
            }
        }
        write_lines(fields, Field::Claims, &lines);
    }

    /// Writes the chosen headers.
    pub fn headers(&self, fields: &mut Fields<'_>, headers: &dyn Headers) {
        let mut lines = Vec::new();
        for header in &self.recording.headers {
            if let Some(value) = headers.get(&header.name) {
                self.line(&mut lines, &header.name, header.treatment, &value);
            }
        }
        write_lines(fields, Field::RequestHeaders, &lines);
    }

    /// What has no value is not there.
    fn value(&self, fields: &mut Fields<'_>, field: Field, treatment: Treatment, value: &[u8]) {
        match (treatment, self.hasher) {
            _ if value.is_empty() => {}
            (Treatment::Keep, _) => fields.bytes(field, value),
            (Treatment::Hash, Some(hasher)) => fields.hashed(field, hasher.hex(value).as_bytes()),
            (Treatment::Redact | Treatment::Hash, _) => fields.redacted(field),
        }
    }

    fn line(&self, lines: &mut Vec<u8>, name: &str, treatment: Treatment, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        if !lines.is_empty() {
            lines.push(b'\n');
        }
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b": ");
        match (treatment, self.hasher) {
            (Treatment::Keep, _) => lines.extend_from_slice(&one_line(value)),
            (Treatment::Hash, Some(hasher)) => {
                lines.extend_from_slice(b"hmac-sha256:");
                lines.extend_from_slice(hasher.hex(value).as_bytes());
            }
            (Treatment::Redact | Treatment::Hash, _) => lines.extend_from_slice(b"redacted"),
        }
    }
}

fn write_lines(fields: &mut Fields<'_>, field: Field, lines: &[u8]) {
    fields.optional(field, (!lines.is_empty()).then_some(lines));
}

/// A claim as text: text as it is, all else as JSON.
fn claim_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(Cow::Borrowed(text)),
        other => Some(Cow::Owned(other.to_string())),
    }
}

/// `value` as it stands in a line: backslashes doubled, control characters as `\xNN`; of a long one the beginning, and
/// how long it was.
fn one_line(value: &[u8]) -> Vec<u8> {
    let mut end = value.len().min(MAX_VALUE_BYTES);
    while end < value.len() && value[end] & 0xC0 == 0x80 && end + 3 > MAX_VALUE_BYTES {
        end -= 1; // not inside a character of UTF-8
    }
    let mut line = Vec::with_capacity(end);
    for &byte in &value[..end] {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            0..0x20 | 0x7F => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            byte => line.push(byte),
        }
    }
    if end < value.len() {
        line.extend_from_slice(format!("… ({} bytes)", value.len()).as_bytes());
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ratchet::Root;
    use crate::record::{self, read_frame, Kind, Position, State};
    use crate::request::HeaderList;
    use crate::shadow::Shadow;
    use crate::token::testing::{token, ISSUER};
    use crate::{Hash, Reason};

    const KEY: [u8; 32] = [7; 32];

    fn recording(document: Value) -> Recording {
        serde_json::from_value(document).expect("a recording")
    }

    /// What is written, a text for each field: `name=value`, `name redacted`, `name hashed HASH`.
    fn written(recording: &Recording, key: bool, fill: impl FnOnce(&Recorder<'_>, &mut Fields<'_>)) -> Vec<String> {
        let hasher = key.then(|| Hasher::new(&KEY));
        let mut frame = Vec::new();
        let key = Root::new([7; 32]).next_spool();
        Position::default()
            .write(&key, &mut frame, Kind::Decision, 1, |fields| fill(&recording.recorder(hasher.as_ref()), fields));
        let (record, _) = read_frame(&frame).expect("a frame").expect("whole");
        let text = |(field, state, value): (Field, State, &[u8])| {
            let (name, value) = (field.name(), String::from_utf8_lossy(value).into_owned());
            match state {
                State::Present => format!("{name}={value}"),
                State::Redacted => format!("{name} redacted{value}"),
                State::Hashed => format!("{name} hashed {value}"),
            }
        };
        record.states().expect("fields").into_iter().map(text).collect()
    }

    fn hash(value: &str) -> String {
        Hasher::new(&KEY).hex(value.as_bytes())
    }

    /// RFC 4231 section 4.2 has another length of key: this is Python's `hmac.new(bytes([7] * 32), b"a=1", "sha256")`.
    #[test]
    fn a_hash_is_hmac_sha256() {
        assert_eq!(hash("a=1"), "ed0cd4621bb808c8430fdeb3d948b882bf405441c1c8e68a87d5b44c4d60bb21");
    }

    #[test]
    fn a_query_is_kept_in_the_path_or_left_out_or_hashed_beside_it() {
        let a = format!("query hashed {}", hash("a=1?b"));
        let table: [(&str, bool, &str, &[&str]); 8] = [
            ("keep", false, "/p?a=1?b", &["path=/p?a=1?b"]),
            ("redact", true, "/p?a=1?b", &["path=/p", "query redacted"]),
            ("hash", true, "/p?a=1?b", &["path=/p", &a]),
            ("hash", false, "/p?a=1?b", &["path=/p", "query redacted"]),
            ("hash", true, "/p", &["path=/p"]),
            ("redact", true, "/p?", &["path=/p"]),
            ("redact", true, "?a", &["path=", "query redacted"]),
            ("redact", true, "", &["path="]),
        ];
        for (treatment, key, path, wanted) in table {
            let recording = recording(json!({"query": treatment}));
            let found = written(&recording, key, |recorder, fields| recorder.path(fields, path.as_bytes()));
            assert_eq!(found, wanted, "{treatment} {path}");
        }
    }

    #[test]
    fn an_address_is_hashed_without_its_port() {
        let table = [
            ("keep", "10.0.0.1:5", "source_address=10.0.0.1:5".to_owned()),
            ("redact", "10.0.0.1:5", "source_address redacted".to_owned()),
            ("hash", "10.0.0.1:5", format!("source_address hashed {}", hash("10.0.0.1"))),
            ("hash", "[::1]:6", format!("source_address hashed {}", hash("::1"))),
            ("hash", "/a/pipe", format!("source_address hashed {}", hash("/a/pipe"))),
        ];
        for (treatment, address, wanted) in table {
            let recording = recording(json!({"source_address": treatment}));
            let found =
                written(&recording, true, |recorder, fields| recorder.source_address(fields, address.as_bytes()));
            assert_eq!(found, [wanted]);
        }
    }

    #[test]
    fn chosen_headers_have_a_line_each() {
        let chosen = json!([
            {"name": "x-a", "as": "keep"}, {"name": "x-none", "as": "keep"}, {"name": "x-empty", "as": "hash"},
            {"name": "x-b", "as": "redact"}, {"name": "x-c", "as": "hash"},
        ]);
        let headers = [("x-c", "3"), ("x-a", "1"), ("x-empty", ""), ("x-b", "secret"), ("x-a", "2"), ("x-d", "4")];
        let header = |(name, value): (&str, &str)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let headers = HeaderList(headers.into_iter().map(header).collect());
        let recording = recording(json!({"headers": chosen}));
        let found = |key| written(&recording, key, |recorder, fields| recorder.headers(fields, &headers));
        let wanted = format!("request_headers=x-a: 1,2\nx-b: redacted\nx-c: hmac-sha256:{}", hash("3"));
        assert_eq!(found(true), [wanted]);
        assert_eq!(found(false), ["request_headers=x-a: 1,2\nx-b: redacted\nx-c: redacted"], "never in clear");
    }

    #[test]
    fn chosen_claims_have_a_line_each() {
        let claims = json!({
            "iss": ISSUER, "sub": "ada", "n": 7, "null": null, "scope": ["a", "b"], "o": {"in": {"er": "x"}}, "text": "a\nb: c\\",
            "secret": "s",
        });
        let token = token(&claims);
        let claim = |path: &[&str], treatment: &str| json!({"path": path, "as": treatment});
        let recording = recording(json!({"token_subject": "hash", "claims": [
            claim(&["n"], "keep"), claim(&["null"], "keep"), claim(&["gone"], "keep"), claim(&["scope"], "keep"),
            claim(&["o", "in", "er"], "keep"), claim(&["o"], "hash"), claim(&["text"], "keep"),
            claim(&["secret"], "redact"),
        ]}));
        let found = written(&recording, true, |recorder, fields| recorder.token(fields, &token));
        let lines = format!(
            "claims=n: 7\nscope: [\"a\",\"b\"]\nclaims[o][in][er]: x\no: hmac-sha256:{}\ntext: a\\x0ab: c\\\\\n\
             secret: redacted",
            hash("{\"in\":{\"er\":\"x\"}}"),
        );
        assert_eq!(found, [format!("token_subject hashed {}", hash("ada")), lines]);
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let table = [
            ("x".repeat(1024), "x".repeat(1024)),
            ("x".repeat(1025), format!("{}… (1025 bytes)", "x".repeat(1024))),
            (format!("{}é", "x".repeat(1023)), format!("{}… (1025 bytes)", "x".repeat(1023))),
            (format!("{}€€", "x".repeat(1022)), format!("{}… (1028 bytes)", "x".repeat(1022))),
        ];
        for (value, wanted) in table {
            assert_eq!(String::from_utf8(one_line(value.as_bytes())).expect("text"), wanted);
        }
    }

    #[test]
    fn what_is_counted_was_allowed_and_stands_not_out() {
        let allow = Decision::without_policy(Effect::Allow, Reason::NoAllowPolicy, Hash([0; 32]));
        let with = |field, value: &[u8]| Decision {
            shadow: Shadow::encode(|fields| fields.bytes(field, value)),
            ..allow.clone()
        };
        let table = [
            (allow.clone(), true),
            (Decision { effect: Effect::Deny, ..allow.clone() }, false),
            (Decision { source: Source::Check, ..allow.clone() }, true),
            (Decision { source: Source::FailedOpen, ..allow.clone() }, false),
            (with(Field::DryRunDeny, b"allow"), true),
            (with(Field::DryRunDeny, b"deny"), false),
            (with(Field::DryRunAllow, b"deny"), false),
            (with(Field::AuditRules, b"a/b[0]"), false),
        ];
        for (decision, counted) in table {
            assert_eq!(recording(json!({"allowed": "summary"})).counts(&decision), counted, "{decision:?}");
            assert!(!recording(json!({})).counts(&decision), "each is recorded by default");
        }
    }

    #[test]
    fn a_recording_that_hashes_is_told_from_one_that_does_not() {
        let table = [
            (json!({}), false),
            (json!({"query": "redact", "headers": [{"name": "a", "as": "keep"}]}), false),
            (json!({"query": "hash"}), true),
            (json!({"token_subject": "hash"}), true),
            (json!({"source_address": "hash"}), true),
            (json!({"headers": [{"name": "a", "as": "keep"}, {"name": "b", "as": "hash"}]}), true),
            (json!({"claims": [{"path": ["a"], "as": "hash"}]}), true),
        ];
        for (document, hashes) in table {
            assert_eq!(recording(document.clone()).hashes(), hashes, "{document}");
        }
        assert!(!Recording::unknown().hashes());
    }

    proptest! {
        #[test]
        fn a_value_stays_in_its_line_and_is_bounded(value in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let line = one_line(&value);
            prop_assert!(line.iter().all(|byte| !byte.is_ascii_control()));
            prop_assert!(line.len() <= 4 * MAX_VALUE_BYTES + 32);
        }

        #[test]
        fn a_query_that_is_not_kept_is_nowhere(secret in "[a-z]{12}", key: bool, path in "(/[A-Z]{0,3}){1,3}") {
            for treatment in ["redact", "hash"] {
                let recording = recording(json!({"query": treatment}));
                let hasher = key.then(|| Hasher::new(&KEY));
                let given = format!("{path}?k={secret}");
                let fields = record::encode(|fields| {
                    recording.recorder(hasher.as_ref()).path(fields, given.as_bytes());
                });
                prop_assert!(!fields.windows(12).any(|window| window == secret.as_bytes()));
            }
        }
    }
}
