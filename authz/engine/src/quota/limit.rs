//! RateLimitPolicies as a program holds them: which requests a limit counts, by what, and how many it admits.

use std::sync::Arc;

use serde::Deserialize;

use super::leases::Shared;
use super::rate::Rate;
use crate::attribute::{Attribute, Facts};
use crate::document::{OnError, Rule};
use crate::path;
use crate::template::Template;
use crate::Hash;

/// Keys that are longer are replaced by their hashes.
const MAX_KEY_BYTES: usize = 256;

/// One RateLimitPolicy that applies to the workload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimitPolicy {
    pub(crate) name: Arc<str>,
    #[serde(default)]
    pub(crate) dry_run: bool,
    pub(crate) on_error: OnError,
    #[serde(default)]
    pub(crate) scope: Scope,
    /// The ports that peers connect to for which it is; all where none are given.
    #[serde(default)]
    pub(crate) service_ports: Vec<u16>,
    pub(crate) limits: Vec<LimitDocument>,
}

/// Where requests are counted.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// In each sidecar.
    #[default]
    Local,
    /// In one place for all sidecars.
    Global,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitDocument {
    /// It counts requests that match one of them; all where there are none.
    rules: Vec<Rule>,
    by: Vec<Attribute>,
    /// The first that a request's path matches is part of its key.
    #[serde(default)]
    templates: Vec<Template>,
    rates: Vec<RateDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateDocument {
    /// What clients are told that it is called: letters, digits and `-`, `_` or `.`, as Python has checked.
    name: Box<str>,
    requests: u64,
    period_ms: u64,
    burst: u64,
}

/// The limits of a program: those that are enforced, then those on trial.
#[derive(Default)]
pub(crate) struct Limits {
    pub(crate) enforced: Vec<Limit>,
    pub(crate) dry_run: Vec<Limit>,
}

/// One limit of a policy.
pub(crate) struct Limit {
    pub(crate) policy: Arc<str>,
    /// Its place in the policy.
    pub(crate) index: u32,
    pub(crate) on_error: OnError,
    /// Whether its tokens are borrowed of what all sidecars share.
    pub(crate) is_shared: bool,
    service_ports: Vec<u16>,
    rules: Vec<Rule>,
    by: Vec<Attribute>,
    templates: Vec<Template>,
    pub(crate) rates: Vec<Rate>,
    names: Vec<Box<str>>,
    /// What `RateLimit-Policy` says of it.
    pub(crate) told: Arc<str>,
    /// What its keys begin with: another limit, or the same with other rates, counts anew.
    id: [u8; 16],
}

impl Limits {
    /// The limits of `policies`.
    ///
    /// # Errors
    /// For people: which rate is none.
    pub(crate) fn new(policies: Vec<RateLimitPolicy>) -> Result<Self, String> {
        let mut limits = Self::default();
        for policy in policies {
            let list = if policy.dry_run { &mut limits.dry_run } else { &mut limits.enforced };
            for (index, limit) in policy.limits.into_iter().enumerate() {
                let is_shared = policy.scope == Scope::Global;
                let limit = Limit::new(&policy.name, policy.on_error, &policy.service_ports, index as u32, limit)?;
                list.push(Limit { is_shared, ..limit });
            }
        }
        Ok(limits)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.enforced.is_empty() && self.dry_run.is_empty()
    }
}

impl Limit {
    fn new(
        policy: &Arc<str>,
        on_error: OnError,
        service_ports: &[u16],
        index: u32,
        limit: LimitDocument,
    ) -> Result<Self, String> {
        let rate = |rate: &RateDocument| {
            let period = rate.period_ms.checked_mul(1_000_000);
            let sound = period.and_then(|period| Rate::new(rate.requests, period, rate.burst));
            sound.ok_or_else(|| format!("RateLimitPolicy {policy}: the rate {:?} cannot be counted", rate.name))
        };
        let rates = limit.rates.iter().map(rate).collect::<Result<Vec<_>, _>>()?;
        let told: Vec<String> = limit.rates.iter().map(RateDocument::told).collect();
        let id = Hash::of(format!("{policy}[{index}] by {:?} {rates:?}", limit.by).as_bytes()).0;
        Ok(Self {
            policy: Arc::clone(policy),
            index,
            on_error,
            is_shared: false,
            service_ports: service_ports.to_vec(),
            rules: limit.rules,
            by: limit.by,
            templates: limit.templates,
            rates,
            told: told.join(", ").into(),
            names: limit.rates.iter().map(|rate| format!("{:?}", rate.name).into()).collect(),
            id: *id.first_chunk().unwrap_or(&[0; 16]),
        })
    }

    /// Whether it counts the request.
    pub(crate) fn counts(&self, facts: &Facts<'_>) -> bool {
        let port = facts.request.connection.destination_port;
        let applies = self.service_ports.is_empty() || self.service_ports.contains(&port);
        applies && (self.rules.is_empty() || self.rules.iter().any(|rule| rule.matches(facts)))
    }

    /// What the request is counted under. A value that is not there is one of its own.
    pub(crate) fn key(&self, facts: &Facts<'_>) -> Vec<u8> {
        let mut key = Vec::with_capacity(96);
        key.extend_from_slice(&self.id);
        for attribute in &self.by {
            let start = key.len();
            facts.write_key(attribute, &mut key);
            if *attribute == Attribute::RequestHost {
                key[start..].make_ascii_lowercase(); // as rules compare it
            }
        }
        if !self.templates.is_empty() {
            let path = path::without_query(&facts.path);
            let place = self.templates.iter().position(|template| template.matches(path));
            key.extend_from_slice(&place.map_or(u32::MAX, |place| place as u32).to_le_bytes());
        }
        if key.len() > MAX_KEY_BYTES {
            let hash = Hash::of(&key[self.id.len()..]);
            key.truncate(self.id.len());
            key.extend_from_slice(&hash.0);
        }
        key
    }

    /// What the quota service is to know it by.
    pub(crate) fn shared(&self, key: &[u8]) -> Shared {
        Shared { policy: Arc::clone(&self.policy), limit: self.index, key: key.into() }
    }

    /// What clients are told that its rate at `index` is called, in quotes.
    pub(crate) fn rate_name(&self, index: usize) -> &str {
        self.names.get(index).map_or("", |name| name)
    }
}

impl RateDocument {
    /// An item of `RateLimit-Policy`; a window of less than a second is not told.
    fn told(&self) -> String {
        match self.period_ms / 1000 {
            0 => format!("{:?};q={}", self.name, self.requests),
            seconds => format!("{:?};q={};w={seconds}", self.name, self.requests),
        }
    }
}
