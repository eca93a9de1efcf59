//! Deciding: Istio's order (CUSTOM, then DENY, then ALLOW) over the attributes of one request.

use std::sync::Arc;

use regorus::Engine;

use crate::attribute::{Attribute, Facts};
use crate::cache::DecisionCache;
use crate::decision::{Decision, Effect, Lifetime, Reason, Source};
use crate::document::{Condition, OnError, Rule, Tier};
use crate::pattern::Pattern;
use crate::program::Program;
use crate::rego::{Rego, Ruling};
use crate::request::Request;
use crate::token::{bearer, Token, TokenCache};
use crate::{path, Hash, KeySets};

/// Bytes of cached decisions that one worker keeps.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What one worker thread remembers between requests.
pub struct Decider {
    tokens: TokenCache,
    decisions: DecisionCache,
    evaluators: Evaluators,
    /// The key of the request at hand; kept so that a hit allocates nothing.
    key: Vec<u8>,
    /// Whether policies of the check tier are evaluated here: true in the check service, false in a sidecar.
    evaluates_check_tier: bool,
}

/// What came of asking for a decision.
pub enum Verdict {
    /// It is decided.
    Decided(Answer),
    /// The check service must be asked.
    Ask(Question),
}

/// A decision about one request.
pub struct Answer {
    /// The decision, perhaps shared with other requests.
    pub decision: Arc<Decision>,
    /// Whether it was remembered.
    pub cached: bool,
    /// The request's verified token.
    pub token: Option<Arc<Token>>,
}

/// A decision that only the check service can make.
pub struct Question {
    /// What an answer is remembered by; none where no attributes determine it.
    pub key: Option<Box<[u8]>>,
    /// How long to wait for an answer, in milliseconds.
    pub timeout_ms: u32,
    /// The request's verified token.
    pub token: Option<Arc<Token>>,
    unanswered: Decision,
}

impl Question {
    /// The decision where the check service gave none: as `onError` of the policies that ask it says, and as all
    /// others say, which an unanswered question must not silence.
    pub fn unanswered(&self, detail: String) -> Decision {
        let decision = self.unanswered.clone();
        Decision { detail: decision.detail.or(Some(detail)), ..decision }
    }
}

impl Decider {
    /// For a sidecar: policies of the check tier become questions.
    pub fn for_sidecar() -> Self {
        Self::new(false)
    }

    /// For the check service and for tools: every policy is evaluated here.
    pub fn for_check_service() -> Self {
        Self::new(true)
    }

    fn new(evaluates_check_tier: bool) -> Self {
        Self {
            tokens: TokenCache::default(),
            decisions: DecisionCache::new(CACHE_BYTES),
            evaluators: Evaluators::default(),
            key: Vec::new(),
            evaluates_check_tier,
        }
    }

    /// Decides `request` by `program` at `now`, milliseconds since 1970.
    pub fn decide(&mut self, program: &Arc<Program>, keys: &KeySets, request: &Request<'_>, now: u64) -> Verdict {
        let token = match self.authenticate(program, keys, request, now) {
            Ok(token) => token,
            Err(reason) => {
                let decision = Arc::new(Decision::without_policy(Effect::Deny, reason, program.hash));
                return Verdict::Decided(Answer { decision, cached: false, token: None });
            }
        };
        let facts = Facts {
            request,
            path: path::normalize(request.http.path),
            token: token.as_deref(),
            destination_port: program.application_port(request.connection.destination_port),
        };
        write_key(program, &facts, &mut self.key);
        if let Some(decision) = self.decisions.get(&self.key, now) {
            return Verdict::Decided(Answer { decision, cached: true, token });
        }
        match self.evaluate(program, &facts) {
            Outcome::Decided(decision) => {
                let decision = Arc::new(decision);
                self.decisions.insert(&self.key, &decision, now);
                Verdict::Decided(Answer { decision, cached: false, token })
            }
            Outcome::Ask { rego, unanswered } => Verdict::Ask(Question {
                key: rego.attributes().map(|_| self.key.as_slice().into()),
                timeout_ms: rego.timeout_ms,
                token,
                unanswered,
            }),
        }
    }

    /// Remembers what the check service answered to a question with `key`, for as long as the answer says.
    pub fn remember(&mut self, key: &[u8], decision: &Arc<Decision>, now: u64) {
        self.decisions.insert(key, decision, now);
    }

    fn authenticate(
        &mut self,
        program: &Program,
        keys: &KeySets,
        request: &Request<'_>,
        now: u64,
    ) -> Result<Option<Arc<Token>>, Reason> {
        if program.authentication.is_empty() {
            return Ok(None);
        }
        let Some(header) = request.http.headers.get("authorization") else { return Ok(None) };
        let Some(text) = bearer(&header) else { return Ok(None) };
        let rules = (program.hash, &program.authentication[..]);
        self.tokens.get(text, rules, keys, (now / 1000) as i64).map(Some)
    }

    fn evaluate<'p>(&mut self, program: &'p Arc<Program>, facts: &Facts<'_>) -> Outcome<'p> {
        let mut state = State { lifetime: Lifetime::Program, failed_open: false, allowed: None };
        let mut asked = None;
        for custom in &program.custom {
            let Some(rule) = matching(&custom.rules, facts) else { continue };
            let rego = &program.rego[custom.provider];
            let ruling = if rego.tier == Tier::Check && !self.evaluates_check_tier {
                asked = asked.or(Some(rego));
                Err(Failure::Unanswered)
            } else {
                let evaluator = self.evaluators.get(program, custom.provider);
                rego.evaluate(evaluator, facts).map_err(Failure::Rego)
            };
            if let Some(denied) = state.apply(rego, ruling, program, (&custom.name, rule)) {
                return Outcome::of(denied, asked);
            }
        }
        Outcome::of(state.conclude(program, by_rules(program, facts)), asked)
    }
}

/// The program's hash, then the values of every attribute that it may rest a decision on.
fn write_key(program: &Program, facts: &Facts<'_>, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&program.hash.0);
    for attribute in &program.attributes {
        facts.write_key(attribute, key);
    }
}

enum Outcome<'p> {
    Decided(Decision),
    /// `rego` must be asked; `unanswered` holds where it cannot be.
    Ask {
        rego: &'p Rego,
        unanswered: Decision,
    },
}

impl<'p> Outcome<'p> {
    fn of(decision: Decision, asked: Option<&'p Rego>) -> Self {
        match asked {
            Some(rego) => Self::Ask { rego, unanswered: decision },
            None => Self::Decided(decision),
        }
    }
}

/// Why a Rego policy gave no ruling.
enum Failure {
    /// It failed; for people: how.
    Rego(String),
    /// Only the check service can say.
    Unanswered,
}

/// What the Rego policies of one request have said so far.
struct State {
    lifetime: Lifetime,
    failed_open: bool,
    allowed: Option<Decision>,
}

impl State {
    /// Takes in what `rego` answered; gives a decision where that ends the matter.
    fn apply(
        &mut self,
        rego: &Rego,
        ruling: Result<Ruling, Failure>,
        program: &Program,
        (policy, rule): (&Arc<str>, u32),
    ) -> Option<Decision> {
        if rego.attributes().is_none() {
            self.lifetime = Lifetime::Once;
        }
        let decided = |effect, reason| Decision::without_policy(effect, reason, program.hash).by(policy, rule);
        match ruling {
            Ok(Ruling { allowed: true, headers, .. }) => {
                let mut decision = decided(Effect::Allow, Reason::RegoAllowed);
                decision.headers = headers;
                self.merge(decision);
                None
            }
            Ok(Ruling { allowed: false, status, headers, body }) => {
                let decision = decided(Effect::Deny, Reason::RegoDenied);
                let status = status.unwrap_or(decision.status);
                Some(Decision { status, headers, body, lifetime: self.lifetime, ..decision })
            }
            Err(failure) => {
                self.lifetime = Lifetime::Once;
                let (reason, detail) = match failure {
                    Failure::Rego(detail) => (Reason::RegoFailed, Some(detail)),
                    Failure::Unanswered => (Reason::CheckUnreachable, None),
                };
                if rego.on_error == OnError::Allow {
                    self.failed_open = true;
                    self.merge(Decision { detail, ..decided(Effect::Allow, reason) });
                    return None;
                }
                Some(Decision { detail, lifetime: Lifetime::Once, ..decided(Effect::Deny, reason) })
            }
        }
    }

    /// Several Rego policies may allow: the last is named, the headers of all are kept.
    fn merge(&mut self, mut decision: Decision) {
        if let Some(earlier) = self.allowed.take() {
            let mut headers = earlier.headers;
            headers.request_set.append(&mut decision.headers.request_set);
            headers.request_remove.append(&mut decision.headers.request_remove);
            headers.response_add.append(&mut decision.headers.response_add);
            decision.headers = headers;
            decision.detail = decision.detail.or(earlier.detail);
        }
        self.allowed = Some(decision);
    }

    /// The decision, given what DENY and ALLOW policies say.
    fn conclude(self, program: &Program, by_rules: Option<Decision>) -> Decision {
        let mut decision = match (by_rules, self.allowed) {
            (None, None) => Decision::without_policy(Effect::Allow, Reason::NoAllowPolicy, program.hash),
            (None, Some(custom)) => custom,
            (Some(allowed), Some(custom)) if allowed.effect == Effect::Allow => {
                Decision { headers: custom.headers, detail: custom.detail, ..allowed }
            }
            (Some(decision), _) => decision,
        };
        decision.lifetime = self.lifetime;
        if self.failed_open && decision.effect == Effect::Allow {
            decision.source = Source::FailedOpen;
        }
        decision
    }
}

/// What DENY and ALLOW policies say; none where neither kind has a word in it.
fn by_rules(program: &Program, facts: &Facts<'_>) -> Option<Decision> {
    let decided = |effect, reason| Decision::without_policy(effect, reason, program.hash);
    for policy in program.deny.candidates(facts) {
        if let Some(rule) = matching(&policy.rules, facts) {
            return Some(decided(Effect::Deny, Reason::DenyRule).by(&policy.name, rule));
        }
    }
    for policy in program.allow.candidates(facts) {
        if let Some(rule) = matching(&policy.rules, facts) {
            return Some(decided(Effect::Allow, Reason::AllowRule).by(&policy.name, rule));
        }
    }
    (!program.allow.is_empty()).then(|| decided(Effect::Deny, Reason::NoAllowRule))
}

/// The first of `rules` that matches.
fn matching(rules: &[Rule], facts: &Facts<'_>) -> Option<u32> {
    rules.iter().position(|rule| rule.matches(facts)).map(|index| index as u32)
}

impl Rule {
    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        let all = |conditions: &[Condition]| conditions.iter().all(|condition| condition.matches(facts));
        let some = |alternatives: &[Vec<Condition>]| alternatives.is_empty() || alternatives.iter().any(|one| all(one));
        some(&self.from) && some(&self.to) && all(&self.when)
    }
}

impl Condition {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        (self.any.is_empty() || self.finds(&self.any, facts))
            && (self.none.is_empty() || !self.finds(&self.none, facts))
    }

    /// Whether some value of the attribute matches some of `patterns`.
    fn finds(&self, patterns: &[Pattern], facts: &Facts<'_>) -> bool {
        let matches = |value: &[u8]| patterns.iter().any(|pattern| pattern.matches(value));
        match &self.attribute {
            Attribute::RequestHost => facts.any(&self.attribute, &mut |value| matches(&value.to_ascii_lowercase())),
            // A header is present without a value too: only so does a DENY on its presence hold.
            Attribute::RequestHeader(_) => {
                let present = patterns.iter().any(|pattern| matches!(pattern, Pattern::Present));
                facts.any(&self.attribute, &mut |value| present || matches(value))
            }
            Attribute::TokenPrincipal => facts.token.is_some_and(|token| {
                patterns.iter().any(|pattern| pattern.matches_token(&token.issuer, &token.subject))
            }),
            attribute => facts.any(attribute, &mut |value| matches(value)),
        }
    }
}

/// The Rego evaluators of one program; another program's are dropped.
#[derive(Default)]
struct Evaluators {
    program: Option<Hash>,
    by_provider: Vec<Option<Engine>>,
}

impl Evaluators {
    fn get(&mut self, program: &Program, provider: usize) -> &mut Engine {
        if self.program != Some(program.hash) {
            self.program = Some(program.hash);
            self.by_provider = program.rego.iter().map(|_| None).collect();
        }
        self.by_provider[provider].get_or_insert_with(|| program.rego[provider].evaluator())
    }
}

#[cfg(test)]
mod tests;
