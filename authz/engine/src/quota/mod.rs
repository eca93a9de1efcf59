//! Quotas: how many requests RateLimitPolicies let through, counted in this process for all of its workers.
//!
//! A quota is asked for once a request is allowed otherwise, be that remembered or not. The request takes a token out
//! of every bucket that counts it, or out of none.

mod buckets;
mod limit;
mod rate;
mod standing;

use std::sync::Arc;

use buckets::{Buckets, Taken};
pub(crate) use limit::{Limits, RateLimitPolicy};
use standing::Nearest;
pub use standing::Standing;

use self::limit::Limit;
use crate::attribute::Facts;
use crate::decide::Answer;
use crate::decision::{Decision, Effect, HeaderOperations, Lifetime, Reason, Source};
use crate::document::OnError;
use crate::program::Program;
use crate::request::{Http, Request};
use crate::shadow::Shadow;

const NO_ROOM: &str = "there is no room for a further key";

/// The buckets of one process.
pub struct Quotas {
    buckets: Buckets,
}

/// Nanoseconds by a clock that never goes back.
pub type Clock<'a> = &'a dyn Fn() -> u64;

/// What the limits of one list say of a request.
enum Ruling<'l> {
    /// Each that counts it had a token.
    Admitted(Admitted<'l>),
    /// One has none.
    Exceeded(Nearest<'l>),
    /// One cannot count, and denies then.
    Unavailable(&'l Limit),
}

#[derive(Default)]
struct Admitted<'l> {
    /// Those out of which a token was taken, with its key and when.
    held: Vec<(&'l Limit, Vec<u8>, u64)>,
    nearest: Option<Nearest<'l>>,
    /// One that could not count, and lets requests through then.
    failed: Option<&'l Limit>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self::new()
    }
}

impl Quotas {
    /// All buckets full.
    pub fn new() -> Self {
        Self { buckets: Buckets::new() }
    }

    /// Counts a request that `answer` allows: gives the answer that it gets then, and how its client stands, where some
    /// limit counted it.
    pub fn admit(
        &self,
        program: &Program,
        request: &Request<'_>,
        answer: Answer,
        clock: Clock<'_>,
    ) -> (Answer, Option<Standing>) {
        let Some(http) = request.http.filter(|_| answer.decision.effect == Effect::Allow) else {
            return (answer, None);
        };
        let (changed, standing) = self.count(program, request, http, &answer, clock);
        match changed {
            Some(decision) => (Answer { decision: Arc::new(decision), cached: false, ..answer }, standing),
            None => (answer, standing),
        }
    }

    /// The decision in place of the one that `answer` has, where another is made.
    fn count(
        &self,
        program: &Program,
        request: &Request<'_>,
        http: Http<'_>,
        answer: &Answer,
        clock: Clock<'_>,
    ) -> (Option<Decision>, Option<Standing>) {
        let (token, allowed) = (answer.token.as_deref(), &answer.decision);
        let headers = program.verified_headers(http.headers, token);
        let request = Request { http: Some(Http { headers: &headers, ..http }), ..*request };
        let facts = program.facts(&request, token);
        match self.ask(&program.limits.enforced, &facts, clock) {
            Ruling::Exceeded(nearest) => (Some(exceeded(program, allowed, &nearest)), None),
            Ruling::Unavailable(limit) => (Some(unavailable(program, allowed, limit)), None),
            Ruling::Admitted(admitted) => {
                let trial = self.tried(&program.limits.dry_run, &facts, allowed, clock);
                let is_changed = admitted.failed.is_some() || trial.is_some();
                (is_changed.then(|| amended(allowed, admitted.failed, trial)), admitted.standing())
            }
        }
    }

    /// Takes a token of each of `limits` that counts the request; none where one lacks it.
    fn ask<'l>(&self, limits: &'l [Limit], facts: &Facts<'_>, clock: Clock<'_>) -> Ruling<'l> {
        let mut admitted = Admitted::default();
        for limit in limits.iter().filter(|limit| limit.counts(facts)) {
            let (key, now) = (limit.key(facts), clock());
            match self.buckets.take(&key, &limit.rates, now) {
                Ok(Taken::Token { nearest, left, full_in }) => {
                    admitted.near(Nearest { limit, rate: nearest, left, nanoseconds: full_in });
                    admitted.held.push((limit, key, now));
                }
                Ok(Taken::None { nearest, wait }) => {
                    self.give_back(&admitted, clock);
                    return Ruling::Exceeded(Nearest { limit, rate: nearest, left: 0, nanoseconds: wait });
                }
                Err(_) if limit.on_error == OnError::Allow => admitted.failed = Some(limit),
                Err(_) => {
                    self.give_back(&admitted, clock);
                    return Ruling::Unavailable(limit);
                }
            }
        }
        Ruling::Admitted(admitted)
    }

    fn give_back(&self, admitted: &Admitted<'_>, clock: Clock<'_>) {
        for (limit, key, taken_at) in &admitted.held {
            self.buckets.give_back(key, &limit.rates, clock().saturating_sub(*taken_at));
        }
    }

    /// What is to be recorded where limits on trial count the request.
    fn tried(&self, limits: &[Limit], facts: &Facts<'_>, decision: &Decision, clock: Clock<'_>) -> Option<Arc<Shadow>> {
        let found = match self.ask(limits, facts, clock) {
            Ruling::Admitted(admitted) if admitted.held.is_empty() => return None,
            Ruling::Admitted(_) => None,
            Ruling::Exceeded(nearest) => Some((&nearest.limit.policy, nearest.limit.index)),
            Ruling::Unavailable(limit) => Some((&limit.policy, limit.index)),
        };
        Shadow::with_limit(decision.shadow.as_deref(), found)
    }
}

impl<'l> Admitted<'l> {
    fn near(&mut self, other: Nearest<'l>) {
        if self.nearest.as_ref().is_none_or(|nearest| other.left < nearest.left) {
            self.nearest = Some(other);
        }
    }

    fn standing(&self) -> Option<Standing> {
        self.nearest.as_ref().map(|nearest| nearest.standing(self.held.iter().map(|(limit, ..)| *limit)))
    }
}

/// The denial of a request that was `allowed` and is one too many.
fn exceeded(program: &Program, allowed: &Decision, nearest: &Nearest<'_>) -> Decision {
    let standing = nearest.standing(std::iter::once(nearest.limit));
    let mut response_add = vec![("retry-after".to_owned(), nearest.seconds().to_string())];
    response_add.extend(standing.into_headers());
    let headers = HeaderOperations { response_add, ..HeaderOperations::default() };
    Decision { headers, ..denied(program, allowed, nearest.limit, Reason::RateLimited) }
}

/// The denial of a request that was `allowed` and cannot be counted.
fn unavailable(program: &Program, allowed: &Decision, limit: &Limit) -> Decision {
    let detail = Some(NO_ROOM.to_owned());
    Decision { detail, ..denied(program, allowed, limit, Reason::RateLimitUnavailable) }
}

fn denied(program: &Program, allowed: &Decision, limit: &Limit, reason: Reason) -> Decision {
    let shadow = allowed.shadow.clone();
    let (lifetime, tells_policy) = (Lifetime::Once, program.tells_policy());
    let decision = Decision::without_policy(Effect::Deny, reason, program.hash()).by(&limit.policy, limit.index);
    Decision { lifetime, tells_policy, shadow, ..decision }
}

/// `allowed`, with what is to be recorded of limits that could not count and of those on trial.
fn amended(allowed: &Decision, failed: Option<&Limit>, trial: Option<Arc<Shadow>>) -> Decision {
    let mut decision = allowed.clone();
    if let Some(limit) = failed {
        decision.source = Source::FailedOpen;
        decision.detail = Some(format!("RateLimitPolicy {}[{}]: {NO_ROOM}", limit.policy, limit.index));
    }
    decision.shadow = trial.or(decision.shadow);
    decision
}

#[cfg(test)]
mod tests;
