//! Deciding: Istio's order (CUSTOM, then DENY, then ALLOW) over the attributes of one request.

use std::sync::Arc;

use regorus::Engine;

use crate::attribute::{Attribute, Facts};
use crate::cache::DecisionCache;
use crate::counters::Counters;
use crate::decision::{Decision, Effect, Lifetime, Metadata, Reason, Source};
use crate::document::{Action, Condition, OnError, Policy, Rule, Tier};
use crate::index::Policies;
use crate::notes::Notes;
use crate::pattern::Pattern;
use crate::program::Program;
use crate::rego::{BodyFault, Rego, RegoFailure, Ruling};
use crate::request::{Http, Request, Told};
use crate::shadow::Shadow;
use crate::token::{Token, TokenCache, Trust, VerifiedHeaders};
use crate::Hash;

/// Bytes of cached decisions that one worker keeps.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What one worker thread remembers between requests.
pub struct Decider {
    tokens: TokenCache,
    decisions: DecisionCache,
    evaluators: Evaluators,
    /// The key of the request at hand; kept so that a hit allocates nothing.
    key: Vec<u8>,
    counters: Counters,
    /// Whether policies of the check tier are evaluated here: true in the check service, false in a sidecar.
    evaluates_check_tier: bool,
}

/// What came of asking for a decision.
pub enum Verdict {
    /// It is decided.
    Decided(Answer),
    /// The check service must be asked.
    Ask(Question),
    /// So many bytes of the body must be read first, or all of it.
    AwaitBody(usize),
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
    unanswered: Box<Decision>,
}

impl Question {
    /// The decision where the check service gave none: as `onError` of the policies that ask it says, and as all
    /// others say, which an unanswered question must not silence.
    pub fn unanswered(&self, detail: String) -> Decision {
        let decision = Decision::clone(&self.unanswered);
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
            counters: Counters::default(),
            evaluates_check_tier,
        }
    }

    /// Decides `request` by `program` at `now`, milliseconds since 1970.
    pub fn decide(&mut self, program: &Arc<Program>, trust: &Trust<'_>, request: &Request<'_>, now: u64) -> Verdict {
        let token = self.authenticate(program, trust, request, now);
        self.authorize(program, request, token, now)
    }

    /// Decides once more about a request that was let through with `token` and still runs: by the `program` and
    /// `trust` of `now`, which may be others.
    pub fn decide_again(
        &mut self,
        program: &Arc<Program>,
        trust: &Trust<'_>,
        request: &Request<'_>,
        token: Option<&Arc<Token>>,
        now: u64,
    ) -> Verdict {
        let token = match token {
            Some(_) if program.authentication.is_empty() => Ok(None),
            // Taken as it was verified: its text may be gone from the request by now.
            Some(token) => {
                let checked = token.check_again(&program.authentication, trust, (now / 1000) as i64);
                checked.map(|()| Some(Arc::clone(token)))
            }
            None => self.authenticate(program, trust, request, now),
        };
        self.authorize(program, request, token, now)
    }

    fn authorize(
        &mut self,
        program: &Arc<Program>,
        request: &Request<'_>,
        token: Result<Option<Arc<Token>>, Reason>,
        now: u64,
    ) -> Verdict {
        let token = match token {
            Ok(token) => token,
            Err(reason) => {
                let decision = Arc::new(Decision::unauthenticated(reason, &program.principal, program.hash));
                return Verdict::Decided(Answer { decision, cached: false, token: None });
            }
        };
        let (verified, as_forwarded);
        let request = match request.http {
            Some(http) if !program.authentication.reserved().is_empty() => {
                verified = VerifiedHeaders::new(http.headers, &program.authentication, token.as_deref());
                as_forwarded = Request { http: Some(Http { headers: &verified, ..http }), ..*request };
                &as_forwarded
            }
            _ => request,
        };
        let facts = program.facts(request, token.as_deref());
        write_key(program, &facts, &mut self.key);
        if let Some(decision) = self.decisions.get(&self.key, now) {
            self.counters.hits += 1;
            return Verdict::Decided(Answer { decision, cached: true, token });
        }
        self.counters.misses += 1;
        match self.evaluate(program, &facts) {
            Outcome::Decided(decision) => {
                let decision = Arc::new(decision);
                match decision.lifetime {
                    Lifetime::Once => self.count_uncacheable(&decision),
                    _ => self.decisions.insert(&self.key, &decision, now),
                }
                Verdict::Decided(Answer { decision, cached: false, token })
            }
            Outcome::AwaitBody(limit) => Verdict::AwaitBody(limit),
            Outcome::Ask { rego, unanswered } => Verdict::Ask(Question {
                key: rego.attributes().map(|_| self.key.as_slice().into()),
                timeout_ms: rego.timeout_ms,
                token,
                unanswered: Box::new(unanswered),
            }),
        }
    }

    /// Remembers the answer to `question`, if it may be, for as long as the answer says.
    pub fn remember(&mut self, question: &Question, decision: &Arc<Decision>, now: u64) {
        match (&question.key, decision.lifetime) {
            (Some(key), Lifetime::Milliseconds(_)) => self.decisions.insert(key, decision, now),
            _ => self.count_uncacheable(decision),
        }
    }

    /// What was remembered and what was not.
    pub fn counters(&self) -> Counters {
        let (entries, bytes) = self.decisions.size();
        let (entries, bytes, tokens) = (entries as u64, bytes as u64, self.tokens.len() as u64);
        Counters { entries, bytes, tokens, ..self.counters.clone() }
    }

    fn count_uncacheable(&mut self, decision: &Decision) {
        let counters = &mut self.counters;
        let counter = match (decision.reason, decision.source) {
            (Reason::RegoFailed | Reason::CheckUnreachable, _) | (_, Source::FailedOpen) => {
                &mut counters.uncacheable_failure
            }
            (_, Source::Check) => &mut counters.uncacheable_answer,
            (_, Source::Engine) => &mut counters.uncacheable_input,
        };
        *counter += 1;
    }

    fn authenticate(
        &mut self,
        program: &Program,
        trust: &Trust<'_>,
        request: &Request<'_>,
        now: u64,
    ) -> Result<Option<Arc<Token>>, Reason> {
        if program.authentication.is_empty() {
            return Ok(None);
        }
        let rules = &program.authentication;
        if request.http.is_some_and(|http| !rules.are_told(http.told)) {
            return Err(Reason::AttributeUnknown);
        }
        let found = request.http.map_or(Ok(None), |http| rules.find(http.headers, http.path))?;
        match found {
            Some(found) => {
                let token = self.tokens.get(&found, program, trust.keys, (now / 1000) as i64)?;
                token.check_revoked(trust)?;
                Ok(Some(token))
            }
            None if rules.required() => Err(Reason::TokenRequired),
            None => Ok(None),
        }
    }

    fn evaluate<'p>(&mut self, program: &'p Arc<Program>, facts: &Facts<'_>) -> Outcome<'p> {
        let mut state = State::new();
        let shadow = Shadow::of(program, facts);
        let mut asked = None;
        for custom in &program.custom {
            let Some(rule) = custom.policy.matching(facts) else { continue };
            let rego = &program.rego[custom.provider];
            if rego.awaits_body(facts) {
                return Outcome::AwaitBody(program.body_limit());
            }
            let notes = &mut state.notes;
            let ruling = if rego.reads_unknown(facts) {
                Err(Failure::Unknown)
            } else if rego.tier == Tier::Check && !self.evaluates_check_tier {
                asked = asked.or(Some(rego));
                Err(Failure::Unanswered)
            } else {
                let evaluator = self.evaluators.get(program, custom.provider);
                rego.evaluate(evaluator, facts, notes).map_err(Failure::from)
            };
            if let Some(denied) = state.apply(rego, ruling, program, (&custom.policy.name, rule)) {
                let notes = state.noted();
                return Outcome::of(program, Decision { shadow, notes, ..denied }, asked);
            }
        }
        let notes = state.noted();
        let decision = state.conclude(program, by_rules(program, facts));
        Outcome::of(program, Decision { shadow, notes, ..decision }, asked)
    }
}

/// The program's hash, then the values of every attribute that it may rest a decision on.
fn write_key(program: &Program, facts: &Facts<'_>, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&program.hash.0);
    for attribute in &program.attributes {
        facts.write_key(attribute, key);
    }
    // Rules take a connection, and what is unknown, otherwise than a request that lacks the same values.
    match facts.request.http.map(|http| http.told) {
        None => key.push(0),
        Some(Told::All) => {}
        Some(Told::Headers(names)) => {
            key.push(1);
            names.iter().for_each(|name| key.extend_from_slice(format!("{name},").as_bytes()));
        }
    }
}

enum Outcome<'p> {
    Decided(Decision),
    AwaitBody(usize),
    /// `rego` must be asked; `unanswered` holds where it cannot be.
    Ask {
        rego: &'p Rego,
        unanswered: Decision,
    },
}

impl<'p> Outcome<'p> {
    fn of(program: &Program, decision: Decision, asked: Option<&'p Rego>) -> Self {
        let decision = Decision { tells_policy: program.tells_policy(), ..decision };
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
    /// It reads what is not known of the request.
    Unknown,
    /// It cannot be asked about the body.
    Body(BodyFault),
    /// Only the check service can say.
    Unanswered,
}

impl From<RegoFailure> for Failure {
    fn from(failure: RegoFailure) -> Self {
        match failure {
            RegoFailure::Body(fault) => Self::Body(fault),
            RegoFailure::Failed(detail) => Self::Rego(detail),
        }
    }
}

/// What the Rego policies of one request have said so far.
struct State {
    lifetime: Lifetime,
    failed_open: bool,
    allowed: Option<Decision>,
    notes: Notes,
}

impl State {
    fn new() -> Self {
        Self { lifetime: Lifetime::Program, failed_open: false, allowed: None, notes: Notes::default() }
    }

    fn noted(&mut self) -> Option<Arc<Notes>> {
        let notes = std::mem::take(&mut self.notes);
        (!notes.is_empty()).then(|| Arc::new(notes))
    }

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
            Ok(Ruling { allowed: true, headers, query, metadata, .. }) => {
                let metadata = metadata.map(Arc::new);
                self.merge(Decision { headers, query, metadata, ..decided(Effect::Allow, Reason::RegoAllowed) });
                None
            }
            Ok(Ruling { allowed: false, status, headers, metadata, body, .. }) => {
                let decision = decided(Effect::Deny, Reason::RegoDenied);
                let status = status.unwrap_or(decision.status);
                let (lifetime, metadata) = (self.lifetime, metadata.map(Arc::new));
                let denied = Decision { status, headers, metadata, body, lifetime, ..decision };
                Some(denied.challenged(&program.principal))
            }
            Err(failure) => {
                self.lifetime = Lifetime::Once;
                let denied = |reason, detail| {
                    Some(Decision { lifetime: Lifetime::Once, detail, ..decided(Effect::Deny, reason) })
                };
                let (reason, detail) = match failure {
                    // No failures that pass: `onError: allow` would open for every such request.
                    Failure::Unknown => return denied(Reason::AttributeUnknown, None),
                    Failure::Body(BodyFault::TooLarge(why)) => return denied(Reason::BodyTooLarge, Some(why)),
                    Failure::Body(BodyFault::Malformed(why)) => return denied(Reason::BodyMalformed, Some(why)),
                    Failure::Rego(detail) => (Reason::RegoFailed, Some(detail)),
                    Failure::Unanswered => (Reason::CheckUnreachable, None),
                };
                if rego.on_error == OnError::Allow {
                    self.failed_open = true;
                    self.merge(Decision { detail, ..decided(Effect::Allow, reason) });
                    return None;
                }
                denied(reason, detail)
            }
        }
    }

    /// Several Rego policies may allow: the last is named, what all of them want is done, one after the other.
    fn merge(&mut self, mut decision: Decision) {
        if let Some(earlier) = self.allowed.take() {
            decision.headers = earlier.headers.then(decision.headers);
            decision.query = earlier.query.then(decision.query);
            decision.metadata = both(earlier.metadata, decision.metadata);
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
                let Decision { headers, query, metadata, detail, .. } = custom;
                Decision { headers, query, metadata, detail, ..allowed }
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

/// The members of both; where they have the same, those of the later.
fn both(earlier: Option<Arc<Metadata>>, later: Option<Arc<Metadata>>) -> Option<Arc<Metadata>> {
    let (Some(earlier), Some(later)) = (&earlier, &later) else { return earlier.or(later) };
    let members = earlier.iter().chain(later.iter()).map(|(name, value)| (name.clone(), value.clone()));
    Some(Arc::new(members.collect()))
}

/// What DENY and ALLOW policies say; none where neither kind has a word in it.
fn by_rules(program: &Program, facts: &Facts<'_>) -> Option<Decision> {
    let decided = |effect, reason| Decision::without_policy(effect, reason, program.hash);
    let policies = &program.enforced;
    if let Some((policy, rule)) = first_match(&policies.deny, facts) {
        return Some(decided(Effect::Deny, Reason::DenyRule).by(policy, rule));
    }
    if let Some((policy, rule)) = first_match(&policies.allow, facts) {
        return Some(decided(Effect::Allow, Reason::AllowRule).by(policy, rule));
    }
    let closed = policies.allow.iter().any(|policy| policy.applies(facts));
    closed.then(|| decided(Effect::Deny, Reason::NoAllowRule))
}

/// The first of `policies` with a rule that matches, and that rule.
pub(crate) fn first_match<'p>(policies: &'p Policies, facts: &'p Facts<'_>) -> Option<(&'p Arc<str>, u32)> {
    matches(policies, facts).next()
}

/// Each of `policies` with a rule that matches, and the first such rule.
pub(crate) fn matches<'p>(
    policies: &'p Policies,
    facts: &'p Facts<'_>,
) -> impl Iterator<Item = (&'p Arc<str>, u32)> + use<'p> {
    policies.candidates(facts).filter_map(|policy| Some((&policy.name, policy.matching(facts)?)))
}

impl Policy {
    /// Whether it is for the port that the request came to.
    pub(crate) fn applies(&self, facts: &Facts<'_>) -> bool {
        self.service_ports.is_empty() || self.service_ports.contains(&facts.request.connection.destination_port)
    }

    /// The first of its rules that matches. None allows that asks for what a connection without requests cannot have.
    fn matching(&self, facts: &Facts<'_>) -> Option<u32> {
        let lacks = |rule: &Rule| rule.conditions().any(|condition| facts.lacks(&condition.attribute));
        let holds = |rule: &Rule| rule.matches(facts) && (self.action != Action::Allow || !lacks(rule));
        let first = || self.rules.iter().position(holds);
        self.applies(facts).then(first).flatten().map(|index| index as u32)
    }
}

impl Rule {
    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        let all = |conditions: &[Condition]| conditions.iter().all(|condition| condition.matches(facts));
        let some = |alternatives: &[Vec<Condition>]| alternatives.is_empty() || alternatives.iter().any(|one| all(one));
        some(&self.from) && some(&self.to) && all(&self.when)
    }
}

impl Condition {
    /// A condition on what a connection without requests cannot have is passed over, as in Istio: a DENY rule is not
    /// stepped around for lack of it, and [`allowing`] leaves out the rule.
    fn matches(&self, facts: &Facts<'_>) -> bool {
        if facts.lacks(&self.attribute) {
            return true;
        }
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
