//! The canonical intermediate form: what Python lowers the resource kinds to, and what travels and is hashed.
//!
//! JSON with sorted keys and no white space, schema [`SCHEMA`]. Python has checked what it says against the kinds;
//! here only its shape is checked, and whatever is not known is refused, so that an old engine never half-reads a new
//! program.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::attribute::Attribute;
use crate::pattern::Pattern;

/// The schema that this engine reads.
pub const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) schema: u32,
    pub(crate) workload: Workload,
    pub(crate) authentication: Vec<Authentication>,
    pub(crate) rego: Vec<RegoPolicy>,
    pub(crate) policies: Vec<Policy>,
}

/// The workload that the program is for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    /// Its SPIFFE ID.
    pub(crate) principal: String,
    /// Port of the application behind each port that peers connect to.
    pub(crate) ports: BTreeMap<u16, u16>,
}

/// One `jwtRules` entry of a RequestAuthentication.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Authentication {
    pub(crate) issuer: String,
    /// Accepted audiences; any where empty.
    pub(crate) audiences: Vec<String>,
    pub(crate) forward_original_token: bool,
    /// Name of the key set that verifies this issuer's tokens.
    pub(crate) keys: String,
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
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Action {
    Allow,
    Deny,
    Custom,
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
