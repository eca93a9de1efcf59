//! A program: the policies that apply to one workload, loaded and ready to be decided by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::attribute::Attribute;
use crate::document::{Action, Authentication, Document, Policy, Rule, Tier, SCHEMA};
use crate::index::Policies;
use crate::rego::{Rego, RegoError};
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
}

/// The compiled policies of one workload. Immutable, shared by all workers.
pub struct Program {
    pub(crate) hash: Hash,
    pub(crate) principal: String,
    pub(crate) authentication: Vec<Authentication>,
    pub(crate) custom: Vec<Custom>,
    pub(crate) deny: Policies,
    pub(crate) allow: Policies,
    pub(crate) rego: Vec<Rego>,
    /// Every attribute that a decision may rest on, in the order of cache keys.
    pub(crate) attributes: Vec<Attribute>,
    ports: BTreeMap<u16, u16>,
}

/// A CUSTOM policy with the place of its Rego policy in [`Program::rego`].
pub(crate) struct Custom {
    pub(crate) name: Arc<str>,
    pub(crate) rules: Vec<Rule>,
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
        let (mut custom, mut deny, mut allow) = (Vec::new(), Vec::new(), Vec::new());
        for policy in document.policies {
            match policy.action {
                Action::Allow => allow.push(policy),
                Action::Deny => deny.push(policy),
                Action::Custom => custom.push(link(policy, &rego)?),
            }
        }
        Ok(Self {
            hash,
            principal: document.workload.principal,
            authentication: document.authentication,
            custom,
            deny: Policies::new(deny),
            allow: Policies::new(allow),
            rego,
            attributes,
            ports: document.workload.ports,
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
    Ok(Custom { name: policy.name, rules: policy.rules, provider })
}

/// A Rego policy whose input no attributes determine adds none: its decisions are never cached.
fn attributes(policies: &[Policy], rego: &[Rego]) -> Vec<Attribute> {
    let conditions = policies.iter().flat_map(|policy| &policy.rules).flat_map(Rule::conditions);
    let mut all: BTreeSet<Attribute> = conditions.map(|condition| condition.attribute.clone()).collect();
    all.extend(rego.iter().filter_map(Rego::attributes).flatten().cloned());
    all.into_iter().collect()
}
