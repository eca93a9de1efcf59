//! A program: the policies that apply to one workload, loaded and ready to be decided by.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::attribute::{Attribute, Facts};
use crate::document::{Action, Document, Policy, Rule, SpoolSettings, Tier, SCHEMA};
use crate::index::Policies;
use crate::path::Normalization;
use crate::quota::Limits;
use crate::recording::Recording;
use crate::rego::{Rego, RegoError};
use crate::request::{EditRequest, Headers, Request};
use crate::token::{Token, TokenRules, VerifiedHeaders};
use crate::Hash;

/// Why a program cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The document is not of a shape that this engine knows.
    #[error("program: {0}")]
    Document(#[from] serde_json::Error),
    /// The document is of another schema.
    #[error("program: schema {0} is given, this engine reads schema {SCHEMA}")]
    Schema(u32),
    /// A Rego policy is not admitted.
    #[error("RegoPolicy {policy}: {error}")]
    Rego {
        /// The policy, as `namespace/name`.
        policy: Arc<str>,
        /// What is wrong with it.
        error: RegoError,
    },
    /// A policy names a provider that the document does not hold.
    #[error("AuthorizationPolicy {policy}: there is no provider {provider:?}")]
    Provider {
        /// The policy, as `namespace/name`.
        policy: Arc<str>,
        /// The provider that it names.
        provider: String,
    },
    /// A policy is on trial whose action has no decision of its own.
    #[error("AuthorizationPolicy {0}: policies of its action cannot be tried")]
    DryRun(Arc<str>),
    /// A RateLimitPolicy has a rate that cannot be counted.
    #[error("{0}")]
    RateLimit(String),
}

/// The compiled policies of one workload. Immutable, shared by all workers.
pub struct Program {
    pub(crate) hash: Hash,
    pub(crate) principal: String,
    pub(crate) authentication: TokenRules,
    pub(crate) custom: Vec<Custom>,
    pub(crate) enforced: RuleSets,
    /// Those that are on trial.
    pub(crate) dry_run: RuleSets,
    pub(crate) audit: Policies,
    pub(crate) rego: Vec<Rego>,
    pub(crate) limits: Limits,
    /// Every attribute that a decision may rest on, in the order of cache keys.
    pub(crate) attributes: Vec<Attribute>,
    ports: BTreeMap<u16, u16>,
    path_normalization: Normalization,
    trusted_proxies: usize,
    tells_policy: bool,
    plaintext: BTreeSet<u16>,
    recording: Option<Recording>,
    spool: SpoolSettings,
}

/// The policies that decide by rules alone.
pub(crate) struct RuleSets {
    pub(crate) deny: Policies,
    pub(crate) allow: Policies,
}

/// A CUSTOM policy with the place of its Rego policy in [`Program::rego`].
pub(crate) struct Custom {
    pub(crate) policy: Policy,
    pub(crate) provider: usize,
}

impl Program {
    /// Loads a program from its canonical document.
    ///
    /// Parsing Rego takes time that a hostile author chooses; the control plane calls this in a worker that it can
    /// kill, before it sends the same document to any sidecar.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(document: &[u8]) -> Result<Self, LoadError> {
        let hash = Hash::of(document);
        let document: Document = serde_json::from_slice(document)?;
        if document.schema != SCHEMA {
            return Err(LoadError::Schema(document.schema));
        }
        let mut rego = Vec::new();
        for policy in document.rego {
            let name = Arc::clone(&policy.name);
            rego.push(Rego::load(policy).map_err(|error| LoadError::Rego { policy: name, error })?);
        }
        let attributes = attributes(&document.policies, &rego);
        let (mut custom, mut audit) = (Vec::new(), Vec::new());
        let (mut deny, mut allow, mut tried_deny, mut tried_allow) = <(Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
        for policy in document.policies {
            match policy.action {
                Action::Allow if policy.dry_run => tried_allow.push(policy),
                Action::Deny if policy.dry_run => tried_deny.push(policy),
                Action::Allow => allow.push(policy),
                Action::Deny => deny.push(policy),
                Action::Custom | Action::Audit if policy.dry_run => return Err(LoadError::DryRun(policy.name)),
                Action::Custom => custom.push(link(policy, &rego)?),
                Action::Audit => audit.push(policy),
            }
        }
        Ok(Self {
            hash,
            principal: document.workload.principal,
            authentication: TokenRules::new(document.authentication),
            custom,
            enforced: RuleSets { deny: Policies::new(deny), allow: Policies::new(allow) },
            dry_run: RuleSets { deny: Policies::new(tried_deny), allow: Policies::new(tried_allow) },
            audit: Policies::new(audit),
            rego,
            limits: Limits::new(document.rate_limits).map_err(LoadError::RateLimit)?,
            attributes,
            ports: document.workload.ports,
            path_normalization: document.workload.path_normalization,
            trusted_proxies: document.workload.trusted_proxies,
            tells_policy: document.workload.tells_policy,
            plaintext: document.workload.plaintext,
            recording: document.recording,
            spool: document.spool,
        })
    }

    /// Hash of the document.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// SPIFFE ID of the workload that the program is for.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// Every attribute that a decision may rest on.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// Port of the application behind the port that a peer connected to.
    pub fn application_port(&self, port: u16) -> u16 {
        self.ports.get(&port).copied().unwrap_or(port)
    }

    /// How paths are normalized before rules see them, and before the application does.
    pub fn path_normalization(&self) -> Normalization {
        self.path_normalization
    }

    /// Whether whoever is denied learns the name of the policy that denied.
    pub fn tells_policy(&self) -> bool {
        self.tells_policy
    }

    /// What records say, where an AuditPolicy asks for other than the default.
    pub fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// What is done with audit records before they are shipped.
    pub fn spool(&self) -> &SpoolSettings {
        &self.spool
    }

    /// `request`, with its verified `token`, as rules see it.
    pub(crate) fn facts<'a>(&self, request: &'a Request<'a>, token: Option<&'a Token>) -> Facts<'a> {
        Facts {
            request,
            path: self.path_normalization.apply(request.http.map_or(b"", |http| http.path)),
            token,
            destination_port: self.application_port(request.connection.destination_port),
            trusted_proxies: self.trusted_proxies,
        }
    }

    /// Readies a request with this verified token, or without one, for the application, before policies' own
    /// operations: takes tokens off that are not to be forwarded, and sets the headers that only tokens may set.
    pub fn edit(&self, token: Option<&Token>, request: &mut impl EditRequest) {
        self.authentication.edit(token, request);
    }

    /// The headers of a request with this verified token, or without one, as the application will get them: those that
    /// only tokens may set are not what the caller sent.
    pub fn verified_headers<'a>(&'a self, headers: &'a dyn Headers, token: Option<&'a Token>) -> impl Headers + 'a {
        VerifiedHeaders::new(headers, &self.authentication, token)
    }

    /// `path_and_query` as it may be recorded: without tokens in its query.
    pub fn path_without_tokens<'p>(&self, path_and_query: &'p [u8]) -> Cow<'p, [u8]> {
        self.authentication.without_tokens(path_and_query)
    }

    /// Whether a peer may connect to `port` without TLS (PeerAuthentication).
    pub fn takes_plaintext(&self, port: u16) -> bool {
        self.plaintext.contains(&port)
    }

    /// How many bytes of a body its policies read at most.
    pub(crate) fn body_limit(&self) -> usize {
        self.rego.iter().filter_map(Rego::body_limit).max().unwrap_or_default()
    }

    /// Whether requests that are allowed are to be counted: see [`crate::quota::Quotas`].
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// The Rego policies and where each is evaluated.
    pub fn rego_policies(&self) -> impl Iterator<Item = (&str, Tier)> {
        self.rego.iter().map(|rego| (&*rego.name, rego.tier))
    }
}

fn link(policy: Policy, rego: &[Rego]) -> Result<Custom, LoadError> {
    let place = rego.iter().position(|rego| Some(&rego.name) == policy.provider.as_ref());
    let Some(provider) = place else {
        let provider = policy.provider.as_deref().unwrap_or_default().to_owned();
        return Err(LoadError::Provider { policy: policy.name, provider });
    };
    Ok(Custom { policy, provider })
}

/// A Rego policy whose input no attributes determine adds none: its decisions are never cached.
fn attributes(policies: &[Policy], rego: &[Rego]) -> Vec<Attribute> {
    let conditions = policies.iter().flat_map(|policy| &policy.rules).flat_map(Rule::conditions);
    let mut all: BTreeSet<Attribute> = conditions.map(|condition| condition.attribute.clone()).collect();
    all.extend(rego.iter().filter_map(Rego::attributes).flatten().cloned());
    if policies.iter().any(|policy| !policy.service_ports.is_empty()) {
        all.insert(Attribute::ServicePort);
    }
    all.into_iter().collect()
}
