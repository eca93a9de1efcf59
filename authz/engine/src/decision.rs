//! A decision is a value: what was decided, by which policy and rule, why, and what follows from it.

use std::sync::Arc;

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
    /// The token is not a JWS with JSON objects in it.
    TokenMalformed = "token_malformed",
    /// The token is over 16 KB.
    TokenTooLarge = "token_too_large",
    /// The token's algorithm is not one that is verified.
    TokenAlgorithm = "token_algorithm",
    /// The token has a critical extension.
    TokenCritical = "token_critical_extension",
    /// No RequestAuthentication names the token's issuer.
    TokenIssuer = "token_issuer",
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
    /// The token is not valid yet.
    TokenNotYetValid = "token_not_yet_valid",
    /// The peer's certificate does not have exactly one URI SAN.
    PeerUriSans = "peer_uri_sans",
    /// The peer's SVID has expired since the handshake.
    PeerExpired = "peer_expired",
    /// The connection is plaintext, which its port takes no longer.
    Plaintext = "plaintext",
    /// No program or key sets have arrived yet.
    NotReady = "not_ready",
    /// The audit spool is full, or cannot be written.
    SpoolUnavailable = "spool_unavailable",
    /// The module failed while deciding; the request is denied and Envoy lives on.
    InternalError = "internal_error",
}

impl Reason {
    /// HTTP status of a denial for this reason: 401 asks for (another) token, 503 for patience.
    pub fn status(self) -> u16 {
        match self {
            Self::TokenMalformed
            | Self::TokenTooLarge
            | Self::TokenAlgorithm
            | Self::TokenCritical
            | Self::TokenIssuer
            | Self::TokenKey
            | Self::TokenSignature
            | Self::TokenAudience
            | Self::TokenWithoutExpiry
            | Self::TokenExpired
            | Self::TokenNotYetValid => 401,
            Self::NotReady | Self::SpoolUnavailable => 503,
            Self::InternalError => 500,
            _ => 403,
        }
    }
}

/// What a policy wants done to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// Set on the request before it goes on.
    pub request_set: Vec<(String, String)>,
    /// Removed from the request before it goes on.
    pub request_remove: Vec<String>,
    /// Added to the response.
    pub response_add: Vec<(String, String)>,
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
    /// Body of the response that a denied request gets.
    pub body: Option<String>,
    /// How long it may be remembered.
    pub lifetime: Lifetime,
    /// For people: what failed, where something did.
    pub detail: Option<String>,
}

impl Decision {
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
            body: None,
            lifetime: Lifetime::Program,
            detail: None,
        }
    }

    /// The same decision, attributed to rule `rule` of `policy`.
    pub fn by(mut self, policy: &Arc<str>, rule: u32) -> Self {
        self.policy = Some(Arc::clone(policy));
        self.rule = Some(rule);
        self
    }
}
