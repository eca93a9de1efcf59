//! A decision is a value: what was decided, by which policy and rule, why, and what follows from it.

use std::sync::Arc;

use crate::notes::Notes;
use crate::query_parameters::QueryOperations;
use crate::shadow::Shadow;
use crate::Hash;

/// Allowed or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request goes on.
    Allow,
    /// The request is answered by the sidecar.
    Deny,
}

/// Where a decision was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this process.
    Engine,
    /// By the check service.
    Check,
    /// Nowhere: a policy that says `onError: allow` could not be asked.
    FailedOpen,
}

/// How long a decision may be remembered for requests with the same attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the program: the attributes determine it.
    Program,
    /// This many milliseconds.
    Milliseconds(u32),
    /// Not at all.
    Once,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Why a request was allowed or denied. The text is part of the audit record and never changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// The text that records carry.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The reason that a record's text names.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A rule of an ALLOW policy matched.
    AllowRule = "allow_rule",
    /// No ALLOW policy selects the workload, and nothing denied.
    NoAllowPolicy = "no_allow_policy",
    /// A Rego policy allowed, and no ALLOW policy selects the workload.
    RegoAllowed = "rego_allowed",
    /// A rule of a DENY policy matched.
    DenyRule = "deny_rule",
    /// ALLOW policies select the workload, and no rule of them matched.
    NoAllowRule = "no_allow_rule",
    /// A Rego policy denied.
    RegoDenied = "rego_denied",
    /// A Rego policy failed, ran out of time, or answered in no known form.
    RegoFailed = "rego_failed",
    /// The check service could not be asked in time.
    CheckUnreachable = "check_unreachable",
    /// A policy reads what the proxy that asks does not tell.
    AttributeUnknown = "attribute_unknown",
    /// The body is longer than a policy reads.
    BodyTooLarge = "body_too_large",
    /// The body is not what its content type says, and a policy reads it.
    BodyMalformed = "body_malformed",
    /// The token is not a JWS with JSON objects in it.
    TokenMalformed = "token_malformed",
    /// The token is over 16 KB.
    TokenTooLarge = "token_too_large",
    /// The token's algorithm is not one that is verified.
    TokenAlgorithm = "token_algorithm",
    /// The token has a critical extension.
    TokenCritical = "token_critical_extension",
    /// The request has no token, and one is required.
    TokenRequired = "token_required",
    /// The request has different tokens in several places.
    TokenSeveral = "token_several",
    /// No RequestAuthentication names the token's issuer, for the place where the token stands.
    TokenIssuer = "token_issuer",
    /// No keys of the token's issuer could be fetched, or the last ones are too old.
    TokenKeysUnavailable = "token_keys_unavailable",
    /// The issuer has no key by the token's key id.
    TokenKey = "token_key",
    /// The signature is not the key's.
    TokenSignature = "token_signature",
    /// No audience of the token is accepted.
    TokenAudience = "token_audience",
    /// The token does not say when it expires.
    TokenWithoutExpiry = "token_without_expiry",
    /// The token has expired.
    TokenExpired = "token_expired",
    /// The token was revoked.
    TokenRevoked = "token_revoked",
    /// The token is not valid yet.
    TokenNotYetValid = "token_not_yet_valid",
    /// The peer's certificate does not have exactly one URI SAN.
    PeerUriSans = "peer_uri_sans",
    /// The peer's SVID has expired since the handshake.
    PeerExpired = "peer_expired",
    /// The connection is plaintext, which its port takes no longer.
    Plaintext = "plaintext",
    /// A RateLimitPolicy lets no more requests of its kind through for now.
    RateLimited = "rate_limited",
    /// A RateLimitPolicy cannot count the request.
    RateLimitUnavailable = "rate_limit_unavailable",
    /// No program or key sets have arrived yet.
    NotReady = "not_ready",
    /// The audit spool is full, or cannot be written.
    SpoolUnavailable = "spool_unavailable",
    /// The module failed while deciding; the request is denied and Envoy lives on.
    InternalError = "internal_error",
}

impl Reason {
    /// HTTP status of a denial for this reason: 401 asks for (another) token, 429 and 503 for patience.
    pub fn status(self) -> u16 {
        match self {
            Self::TokenMalformed
            | Self::TokenTooLarge
            | Self::TokenAlgorithm
            | Self::TokenCritical
            | Self::TokenRequired
            | Self::TokenSeveral
            | Self::TokenIssuer
            | Self::TokenKeysUnavailable
            | Self::TokenKey
            | Self::TokenSignature
            | Self::TokenAudience
            | Self::TokenWithoutExpiry
            | Self::TokenExpired
            | Self::TokenRevoked
            | Self::TokenNotYetValid => 401,
            Self::BodyMalformed => 400,
            Self::BodyTooLarge => 413,
            Self::RateLimited => 429,
            Self::NotReady | Self::SpoolUnavailable | Self::RateLimitUnavailable => 503,
            Self::InternalError => 500,
            _ => 403,
        }
    }
}

/// What a policy wants done to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// Set on the request before it goes on. A name that is there more than once has several values.
    pub request_set: Vec<(String, String)>,
    /// Removed from the request before it goes on.
    pub request_remove: Vec<String>,
    /// Added to the response.
    pub response_add: Vec<(String, String)>,
}

const WWW_AUTHENTICATE: &str = "www-authenticate";

/// The challenge of RFC 6750 section 3; it has an error code only where a token was given.
fn challenge(realm: &str, given: bool) -> String {
    let error = if given { ", error=\"invalid_token\"" } else { "" };
    format!("Bearer realm=\"{realm}\"{error}")
}

/// One decision.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Allowed or denied.
    pub effect: Effect,
    /// Status of the response that a denied request gets; 200 where it is allowed.
    pub status: u16,
    /// The policy that decided, as `namespace/name`.
    pub policy: Option<Arc<str>>,
    /// The rule of that policy, from 0.
    pub rule: Option<u32>,
    /// Why.
    pub reason: Reason,
    /// Where it was decided.
    pub source: Source,
    /// The program that decided.
    pub program: Hash,
    /// What the policy wants done to headers.
    pub headers: HeaderOperations,
    /// What the policy wants done to the query.
    pub query: QueryOperations,
    /// What the policy says to other filters and to access logs.
    pub metadata: Option<Arc<Metadata>>,
    /// Body of the response that a denied request gets.
    pub body: Option<String>,
    /// How long it may be remembered.
    pub lifetime: Lifetime,
    /// For people: what failed, where something did.
    pub detail: Option<String>,
    /// Whether whoever is denied learns the policy's name.
    pub tells_policy: bool,
    /// What policies that are not enforced say, where there are any.
    pub shadow: Option<Arc<Shadow>>,
    /// What Rego policies say for people, where they do.
    pub notes: Option<Arc<Notes>>,
}

/// Dynamic metadata: an object of JSON.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

impl HeaderOperations {
    /// These operations and then `later`, as one that may be done in any order: what is set at last is not removed.
    pub fn then(mut self, later: Self) -> Self {
        let touched = |name: &str| sets(&later.request_set, name) || contains(&later.request_remove, name);
        self.request_set.retain(|(name, _)| !touched(name));
        self.request_remove.retain(|name| !touched(name));
        self.request_remove.extend(later.request_remove.iter().filter(|name| !sets(&later.request_set, name)).cloned());
        self.request_set.extend(later.request_set);
        self.response_add.extend(later.response_add);
        self
    }
}

/// About as many bytes as these values take in memory.
fn json_bytes<'v>(values: impl Iterator<Item = &'v serde_json::Value>) -> usize {
    values.map(|value| size_of_val(value) + value.to_string().len()).sum()
}

fn sets(headers: &[(String, String)], name: &str) -> bool {
    headers.iter().any(|(set, _)| set.eq_ignore_ascii_case(name))
}

fn contains(names: &[String], name: &str) -> bool {
    names.iter().any(|one| one.eq_ignore_ascii_case(name))
}

impl Decision {
    /// Bytes that it takes beside its own size, of what has no bound that is small.
    pub(crate) fn extra_bytes(&self) -> usize {
        let pairs =
            |pairs: &[(String, String)]| pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let headers = pairs(&self.headers.request_set) + pairs(&self.headers.response_add);
        let metadata = self.metadata.as_ref().map_or(0, |metadata| json_bytes(metadata.values()));
        let notes = self.notes.as_ref().map_or(0, |notes| notes.bytes());
        let shadow = self.shadow.as_ref().map_or(0, |shadow| shadow.bytes());
        let body = self.body.as_ref().map_or(0, String::len);
        headers + metadata + notes + shadow + body + self.query.bytes()
    }

    /// A decision for `reason` that no policy made.
    pub fn without_policy(effect: Effect, reason: Reason, program: Hash) -> Self {
        let status = if effect == Effect::Allow { 200 } else { reason.status() };
        Self {
            effect,
            status,
            policy: None,
            rule: None,
            reason,
            source: Source::Engine,
            program,
            headers: HeaderOperations::default(),
            query: QueryOperations::default(),
            metadata: None,
            body: None,
            lifetime: Lifetime::Program,
            detail: None,
            tells_policy: false,
            shadow: None,
            notes: None,
        }
    }

    /// The denial of a request to the workload `principal` whose token is not taken, or that lacks one.
    pub fn unauthenticated(reason: Reason, principal: &str, program: Hash) -> Self {
        let mut decision = Self::without_policy(Effect::Deny, reason, program);
        let challenge = challenge(principal, reason != Reason::TokenRequired);
        decision.headers.response_add.push((WWW_AUTHENTICATE.to_owned(), challenge));
        decision
    }

    /// The same denial, with the challenge that a 401 must have (RFC 9110 section 15.5.2) where its policy wrote none.
    pub fn challenged(mut self, principal: &str) -> Self {
        let headers = &mut self.headers.response_add;
        if self.status == 401 && !sets(headers, WWW_AUTHENTICATE) {
            headers.push((WWW_AUTHENTICATE.to_owned(), challenge(principal, false)));
        }
        self
    }

    /// The same decision, attributed to rule `rule` of `policy`.
    pub fn by(mut self, policy: &Arc<str>, rule: u32) -> Self {
        self.policy = Some(Arc::clone(policy));
        self.rule = Some(rule);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(set: &[(&str, &str)], remove: &[&str]) -> HeaderOperations {
        HeaderOperations {
            request_set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            request_remove: remove.iter().map(|name| (*name).to_owned()).collect(),
            response_add: Vec::new(),
        }
    }

    #[test]
    fn operations_one_after_the_other_are_one() {
        let table = [
            (operations(&[("a", "1")], &["b"]), operations(&[], &[]), operations(&[("a", "1")], &["b"])),
            (operations(&[("a", "1")], &[]), operations(&[("A", "2")], &[]), operations(&[("A", "2")], &[])),
            (operations(&[], &["a"]), operations(&[("a", "1")], &[]), operations(&[("a", "1")], &[])),
            (operations(&[("a", "1")], &[]), operations(&[], &["a"]), operations(&[], &["a"])),
            (operations(&[], &["a"]), operations(&[], &["A"]), operations(&[], &["A"])),
            (operations(&[], &[]), operations(&[("a", "1")], &["a"]), operations(&[("a", "1")], &[])),
        ];
        for (first, later, wanted) in table {
            assert_eq!(first.clone().then(later.clone()), wanted, "{first:?} {later:?}");
        }
    }

    #[test]
    fn a_401_asks_for_a_token_and_blames_one_only_where_one_was_given() {
        let unauthenticated = |reason| Decision::unauthenticated(reason, "spiffe://td/a", Hash([0; 32]));
        let of_a_policy = |status, headers: &[(&str, &str)]| {
            let mut denied = Decision::without_policy(Effect::Deny, Reason::RegoDenied, Hash([0; 32]));
            denied.headers.response_add = operations(headers, &[]).request_set;
            Decision { status, ..denied }.challenged("spiffe://td/a")
        };
        let plain = "Bearer realm=\"spiffe://td/a\"";
        let invalid = "Bearer realm=\"spiffe://td/a\", error=\"invalid_token\"";
        let table = [
            (unauthenticated(Reason::TokenExpired), Some(invalid)),
            (unauthenticated(Reason::TokenRequired), Some(plain)),
            (of_a_policy(401, &[]), Some(plain)),
            (of_a_policy(401, &[("WWW-Authenticate", "Basic")]), Some("Basic")),
            (of_a_policy(403, &[]), None),
        ];
        for (decision, wanted) in table {
            let headers: Vec<&str> = decision.headers.response_add.iter().map(|(_, value)| value.as_str()).collect();
            assert_eq!(headers, Vec::from_iter(wanted), "{decision:?}");
        }
    }
}
