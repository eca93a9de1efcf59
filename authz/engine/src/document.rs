//! The canonical intermediate form: what Python lowers the resource kinds to, and what travels and is hashed.
//!
//! JSON with sorted keys and no white space, schema [`SCHEMA`]. Python has checked what it says against the kinds;
//! here only its shape is checked, and whatever is not known is refused, so that an old engine never half-reads a new
//! program.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::attribute::Attribute;
use crate::path::Normalization;
use crate::pattern::Pattern;
use crate::quota::RateLimitPolicy;
use crate::recording::Recording;
use crate::token::places::Place;

/// The schema that this engine reads.
pub const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) schema: u32,
    pub(crate) workload: Workload,
    pub(crate) authentication: Vec<Authentication>,
    /// What records say, where that is not the default.
    #[serde(default)]
    pub(crate) recording: Option<Recording>,
    pub(crate) rego: Vec<RegoPolicy>,
    pub(crate) policies: Vec<Policy>,
    #[serde(default)]
    pub(crate) rate_limits: Vec<RateLimitPolicy>,
    #[serde(default)]
    pub(crate) spool: SpoolSettings,
}

/// What the sidecar of a workload does with audit records before they are shipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolSettings {
    /// Whether requests are let through without a record where there is no room; else they are denied.
    pub drop_when_full: bool,
    sync_interval_ms: Option<NonZeroU64>,
}

impl SpoolSettings {
    /// How often records are brought to the disk; none where that is left to the kernel.
    pub fn sync_interval(&self) -> Option<Duration> {
        self.sync_interval_ms.map(|milliseconds| Duration::from_millis(milliseconds.get()))
    }
}

/// The workload that the program is for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    /// Its SPIFFE ID.
    pub(crate) principal: String,
    /// Port of the application behind each port that peers connect to.
    pub(crate) ports: BTreeMap<u16, u16>,
    #[serde(default)]
    pub(crate) path_normalization: Normalization,
    /// Proxies before the peer that are trusted to tell in `x-forwarded-for` whom they got a request from.
    #[serde(default)]
    pub(crate) trusted_proxies: usize,
    /// Whether whoever is denied learns the name of the policy that denied.
    #[serde(default)]
    pub(crate) tells_policy: bool,
    /// Those of the ports that peers connect to which take plaintext.
    #[serde(default)]
    pub(crate) plaintext: BTreeSet<u16>,
}

/// One `jwtRules` entry of a RequestAuthentication.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authentication {
    pub(crate) issuer: String,
    /// Accepted audiences; any where empty.
    pub(crate) audiences: Vec<String>,
    /// Name of the key set that verifies this issuer's tokens.
    pub(crate) keys: String,
    /// Where tokens are looked for.
    pub(crate) places: Vec<Place>,
    pub(crate) forward_original_token: bool,
    /// Header for the token's second part, in lower case.
    #[serde(deserialize_with = "given")]
    pub(crate) output_payload_to_header: Option<Box<str>>,
    pub(crate) output_claim_to_headers: Vec<ClaimHeader>,
    /// Claims that are lists of words with spaces between them.
    pub(crate) space_delimited_claims: Vec<String>,
    /// Whether tokens without `exp` are taken.
    pub(crate) allow_missing_expiry: bool,
    /// Whether every request needs a token by a rule that says so.
    pub(crate) require: bool,
}

/// A claim, nested by dots, and the header that it is copied to, in lower case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClaimHeader {
    pub(crate) header: Box<str>,
    pub(crate) claim: Box<str>,
}

/// A member that must be there, perhaps as null.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<str>>, D::Error> {
    Option::deserialize(deserializer)
}

/// Where a Rego policy is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// In the sidecar.
    Sidecar,
    /// In the check service.
    Check,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Check => "check",
        })
    }
}

/// What becomes of a request whose policy failed to answer.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnError {
    Deny,
    Allow,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegoPolicy {
    pub(crate) name: Arc<str>,
    /// Rego source by file name.
    pub(crate) modules: BTreeMap<String, String>,
    pub(crate) data: Value,
    /// The rule that answers, from `data.` on.
    pub(crate) entrypoint: String,
    pub(crate) tier: Tier,
    pub(crate) on_error: OnError,
    pub(crate) timeout_ms: u32,
    #[serde(default)]
    pub(crate) body: BodySettings,
}

/// How a Rego policy reads the bodies of requests, if it does.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BodySettings {
    /// Bytes that it reads at most.
    pub(crate) limit: usize,
    /// Whether it reads so much of a longer body; else such a request is denied.
    pub(crate) partial: bool,
    /// A FileDescriptorSet by which messages of gRPC are read, in base64.
    pub(crate) descriptors: Option<String>,
}

impl Default for BodySettings {
    fn default() -> Self {
        Self { limit: 64 * 1024, partial: false, descriptors: None }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Action {
    Allow,
    Deny,
    Custom,
    Audit,
}

/// One AuthorizationPolicy that applies to the workload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) name: Arc<str>,
    pub(crate) action: Action,
    /// Of `CUSTOM`: the name of its Rego policy.
    #[serde(default)]
    pub(crate) provider: Option<Arc<str>>,
    /// Whether it is on trial only (`istio.io/dry-run`): of `ALLOW` and `DENY`.
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// The ports that peers connect to for which it is; all where none are given.
    #[serde(default)]
    pub(crate) service_ports: Vec<u16>,
    pub(crate) rules: Vec<Rule>,
}

/// Matches when some alternative of `from`, some alternative of `to`, and every condition of `when` match; an empty
/// list does not restrict.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) from: Vec<Vec<Condition>>,
    pub(crate) to: Vec<Vec<Condition>>,
    pub(crate) when: Vec<Condition>,
}

/// Matches when some value of the attribute matches some pattern of `any` (if there are any), and none of `none`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Condition {
    pub(crate) attribute: Attribute,
    pub(crate) any: Vec<Pattern>,
    pub(crate) none: Vec<Pattern>,
}

impl Rule {
    pub(crate) fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{LoadError, Program};

    fn sound() -> Value {
        json!({
            "schema": 1,
            "workload": {
                "principal": "spiffe://td/ns/a/sa/b", "ports": {"15006": 8080}, "path_normalization": "BASE",
                "trusted_proxies": 1, "tells_policy": true,
            },
            "authentication": [{
                "issuer": "https://i", "audiences": ["api"], "keys": "k", "places": [{"cookie": "c"}],
                "forward_original_token": false, "output_payload_to_header": "x-p",
                "output_claim_to_headers": [{"header": "x-sub", "claim": "sub"}],
                "space_delimited_claims": ["roles"], "allow_missing_expiry": false, "require": true,
            }],
            "recording": {
                "query": "redact", "token_subject": "hash", "source_address": "keep", "allowed": "summary",
                "headers": [{"name": "x-a", "as": "keep"}], "claims": [{"path": ["a", "b"], "as": "hash"}],
            },
            "rego": [{
                "name": "a/r", "modules": {"p.rego": "package p\nallow := true\n"}, "data": {"roles": {"ada": ["x"]}},
                "entrypoint": "data.p.allow", "tier": "sidecar", "on_error": "deny", "timeout_ms": 1000,
                "body": {"limit": 10, "partial": true},
            }],
            "policies": [
                {"name": "a/c", "action": "CUSTOM", "provider": "a/r", "dry_run": false, "rules": []},
                {"name": "a/d", "action": "DENY", "service_ports": [15006], "rules": [{"from": [], "to": [], "when": [
                    {"attribute": "source.ip", "any": [{"cidr": "10.0.0.0/8"}], "none": ["present"]},
                ]}]},
            ],
            "rate_limits": [{
                "name": "a/l", "dry_run": false, "on_error": "deny", "scope": "global", "service_ports": [15006], "limits": [{
                    "rules": [], "by": ["source.principal"], "templates": ["/a/{*}"],
                    "rates": [{"name": "l", "requests": 1, "period_ms": 1000, "burst": 1}],
                }],
            }],
        })
    }

    fn load(document: &Value) -> Result<Program, LoadError> {
        Program::load(document.to_string().as_bytes())
    }

    #[test]
    fn a_sound_document_is_loaded() {
        let program = load(&sound()).expect("a program");
        assert_eq!((program.principal(), program.application_port(15006)), ("spiffe://td/ns/a/sa/b", 8080));
        let attribute = |name: &str| name.parse::<Attribute>().expect("an attribute");
        assert_eq!(program.attributes(), [attribute("source.ip"), attribute("destination.servicePort")]);
        assert_eq!(program.rego_policies().collect::<Vec<_>>(), [("a/r", Tier::Sidecar)]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let when = "/policies/1/rules/0/when/0";
        let table = [
            ("/schema", json!(2), "schema 2"),
            ("/schema", json!("1"), "invalid type"),
            ("/workload/ports", json!({"70000": 1}), "70000"),
            ("/workload/ports", json!({"1": 70000}), "70000"),
            ("/workload/ports", json!([]), "invalid type"),
            ("/workload/path_normalization", json!("SOME"), "unknown variant"),
            ("/workload/trusted_proxies", json!(-1), "invalid value"),
            ("/workload/tells_policy", json!("yes"), "invalid type"),
            ("/policies/1/service_ports", json!([65536]), "65536"),
            ("/authentication/0", json!({}), "missing field"),
            ("/authentication/0/forward_original_token", json!("no"), "invalid type"),
            ("/authentication/0/places/0", json!({"body": "c"}), "unknown variant"),
            ("/authentication/0/places/0", json!({"header": {"name": "x"}}), "missing field"),
            (
                "/authentication/0/places/0",
                json!({"header": {"name": "x", "prefix": "", "colour": 1}}),
                "unknown field",
            ),
            ("/authentication/0/output_claim_to_headers/0", json!({"header": "x"}), "missing field"),
            ("/rego/0/tier", json!("moon"), "unknown variant"),
            ("/rego/0/on_error", json!("ALLOW"), "unknown variant"),
            ("/rego/0/timeout_ms", json!(-1), "invalid value"),
            ("/rego/0/body", json!({"limit": -1}), "invalid value"),
            ("/rego/0/body", json!({"colour": 1}), "unknown field"),
            ("/rego/0/body", json!({"descriptors": "?"}), "descriptors"),
            ("/rego/0/body", json!({"descriptors": "AAAA"}), "descriptors"),
            ("/rego/0/modules", json!({"p.rego": 1}), "invalid type"),
            ("/rego/0/modules", json!({"p.rego": "package"}), "a/r"),
            ("/rego/0/data", json!({"p": {"allow": false}}), "data.p.allow, which is a rule"),
            ("/rego/0/data", json!({"p": 1}), "data.p.allow, which is a rule"),
            ("/rego/0/data", json!([]), "data"),
            ("/rego/0/entrypoint", json!("data.p.missing"), "entry point"),
            ("/rego/0/entrypoint", json!(""), "entry point"),
            ("/recording/query", json!("drop"), "unknown variant"),
            ("/recording/allowed", json!("none"), "unknown variant"),
            ("/recording/headers/0", json!({"name": "x"}), "missing field"),
            ("/recording/headers/0/as", json!(1), "expected"),
            ("/recording/claims/0/path", json!([]), "no claim"),
            ("/recording/claims/0/path", json!("a"), "invalid type"),
            ("/rate_limits/0/on_error", json!("open"), "unknown variant"),
            ("/rate_limits/0/scope", json!("mesh"), "unknown variant"),
            ("/rate_limits/0/limits/0/by/0", json!("source.colour"), "no attribute"),
            ("/rate_limits/0/limits/0/templates/0", json!("a"), "no path template"),
            ("/rate_limits/0/limits/0/rates/0/requests", json!(-1), "invalid value"),
            ("/rate_limits/0/limits/0/rates/0/burst", json!(0), "cannot be counted"),
            ("/policies/0/action", json!("LOG"), "unknown variant"),
            ("/policies/0/dry_run", json!(true), "cannot be tried"),
            ("/policies/0/dry_run", json!("true"), "invalid type"),
            ("/policies/0/provider", json!("a/other"), "no provider"),
            ("/policies/0/provider", Value::Null, "no provider"),
            (when, json!({}), "missing field"),
            ("/policies/1/rules/0/when/0/attribute", json!("source.colour"), "no attribute"),
            ("/policies/1/rules/0/when/0/any/0", json!("absent"), "unknown variant"),
            ("/policies/1/rules/0/when/0/any/0", json!({"exact": "a", "prefix": "b"}), "expected"),
            ("/policies/1/rules/0/when/0/any/0", json!({"exact": 1}), "invalid type"),
            ("/policies/1/rules/0/when/0/any/0", json!({"cidr": "10.0.0.0/33"}), "invalid"),
            ("/policies/1/rules/0/when/0/any/0", json!({"regex": ".*"}), "unknown variant"),
            ("/policies/1/rules/0/from", json!([[1]]), "invalid type"),
        ];
        for (place, value, part) in table {
            let mut document = sound();
            *document.pointer_mut(place).expect(place) = value.clone();
            let error = load(&document).err().unwrap_or_else(|| panic!("{place} takes {value}")).to_string();
            assert!(error.contains(part), "{place} {value}: {error}");
        }
    }

    #[test]
    fn members_are_neither_missing_nor_more() {
        let optional = [
            "body",
            "dry_run",
            "service_ports",
            "path_normalization",
            "trusted_proxies",
            "tells_policy",
            "recording",
            "rate_limits",
            "templates",
            "scope",
        ];
        let objects = [
            "",
            "/workload",
            "/recording/headers/0",
            "/recording/claims/0",
            "/authentication/0",
            "/rego/0",
            "/policies/0",
            "/policies/1/rules/0",
            "/rate_limits/0",
            "/rate_limits/0/limits/0",
            "/rate_limits/0/limits/0/rates/0",
        ];
        for place in objects {
            let mut document = sound();
            let object = document.pointer_mut(place).and_then(Value::as_object_mut).expect(place);
            object.insert("colour".to_owned(), json!(1));
            assert!(load(&document).is_err(), "{place} with another member");
            let names: Vec<String> =
                sound().pointer(place).and_then(Value::as_object).expect(place).keys().cloned().collect();
            for name in names.iter().filter(|name| !optional.contains(&name.as_str())) {
                let mut document = sound();
                document.pointer_mut(place).and_then(Value::as_object_mut).expect(place).remove(name);
                assert!(load(&document).is_err(), "{place} without {name}");
            }
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
        for bytes in ["", "null", "[]", "{}", "\u{feff}{}", "{\"schema\":1,\"schema\":1}", &deep] {
            assert!(Program::load(bytes.as_bytes()).is_err(), "{bytes}");
        }
        assert!(Program::load(b"\xff").is_err());
        assert!(Program::load(format!("{} ", sound()).as_bytes()).is_ok(), "white space behind is JSON");
        assert!(Program::load(format!("{}x", sound()).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(Program::load(&bytes).is_err());
        }

        #[test]
        fn any_damage_is_survived(at in any::<prop::sample::Index>(), byte in any::<u8>(), keep in any::<bool>()) {
            let mut document = sound().to_string().into_bytes();
            let at = at.index(document.len());
            document[at] = byte;
            document.truncate(if keep { document.len() } else { at });
            let _ = Program::load(&document);
        }
    }
}
