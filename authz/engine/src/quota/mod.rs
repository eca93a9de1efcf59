//! Quotas: how many requests RateLimitPolicies let through.
//!
//! A quota is asked for once a request is allowed otherwise, be that remembered or not. The request takes a token out
//! of every bucket that counts it, or out of none. A limit's tokens are in this process, for all of its workers; or they
//! are borrowed of what many sidecars share.

mod buckets;
mod leases;
mod limit;
mod rate;
mod standing;

use std::sync::Arc;

use buckets::{Buckets, NoRoom, Taken};
use leases::{Leases, Used};
pub use leases::{Lent, Shared, Waker, Want};
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

/// The buckets and leases of one process.
pub struct Quotas {
    buckets: Buckets,
    /// None in tools, which count for themselves what sidecars share.
    leases: Option<Leases>,
}

/// Where a request is that is counted.
pub trait Mount {
    /// Nanoseconds by a clock that never goes back.
    fn now(&self) -> u64;

    /// Who wakes it once tokens have come that it waits for; none where it does not wait.
    fn waker(&self) -> Option<Waker>;
}

/// What becomes of a request that was allowed.
pub enum Admission {
    /// It gets this answer; and how its client stands, where some limit counted it.
    Decided(Answer, Option<Standing>),
    /// Tokens are asked for, and it will be woken: then this answer is to be counted again.
    Waiting(Answer),
}

/// What the limits of one list say of a request.
enum Ruling<'l> {
    /// Each that counts it had a token.
    Admitted(Admitted<'l>),
    /// One has none.
    Exceeded(Nearest<'l>),
    /// One cannot count, and denies then.
    Unavailable(&'l Limit, Arc<str>),
    /// One does not know yet.
    Waiting,
}

#[derive(Default)]
struct Admitted<'l> {
    /// Those out of which a token was taken, with its key and when.
    held: Vec<(&'l Limit, Vec<u8>, u64)>,
    nearest: Option<Nearest<'l>>,
    /// One that could not count and lets requests through then, and why.
    failed: Option<(&'l Limit, Arc<str>)>,
}

/// Why a limit neither gives nor refuses a token.
enum Missing {
    Unavailable(Arc<str>),
    Waiting,
}

impl From<NoRoom> for Missing {
    fn from(_: NoRoom) -> Self {
        Self::Unavailable(NO_ROOM.into())
    }
}

/// Of limits on trial: nobody waits for them.
struct Trial<'m>(&'m dyn Mount);

impl Mount for Trial<'_> {
    fn now(&self) -> u64 {
        self.0.now()
    }

    fn waker(&self) -> Option<Waker> {
        None
    }
}

impl Quotas {
    /// For a sidecar: what many share is borrowed. All buckets are full.
    pub fn for_sidecar() -> Self {
        Self { buckets: Buckets::new(), leases: Some(Leases::new()) }
    }

    /// For tools: everything is counted here.
    pub fn for_tools() -> Self {
        Self { buckets: Buckets::new(), leases: None }
    }

    /// Counts a request that `answer` allows.
    pub fn admit(&self, program: &Program, request: &Request<'_>, answer: Answer, mount: &dyn Mount) -> Admission {
        let Some(http) = request.http.filter(|_| answer.decision.effect == Effect::Allow) else {
            return Admission::Decided(answer, None);
        };
        let Some((changed, standing)) = self.count(program, request, http, &answer, mount) else {
            return Admission::Waiting(answer);
        };
        let answer = match changed {
            Some(decision) => Answer { decision: Arc::new(decision), cached: false, ..answer },
            None => answer,
        };
        Admission::Decided(answer, standing)
    }

    /// Whether there is something to ask the quota service.
    pub fn has_wants(&self) -> bool {
        self.leases.as_ref().is_some_and(Leases::has_wants)
    }

    /// What to ask the quota service at `now`. Each is to be answered by [`Self::receive`], whatever comes of it.
    pub fn wants(&self, now: u64) -> Vec<Want> {
        self.leases.as_ref().map_or(Vec::new(), |leases| leases.wants(now))
    }

    /// Takes the answer to `want`, and wakes those that wait for it.
    pub fn receive(&self, want: Want, lent: Lent, now: u64) {
        if let Some(leases) = &self.leases {
            leases.receive(want, lent, now);
        }
    }

    /// Looks twice a second what is to go back to the quota service, or to be asked for ahead of need.
    pub fn tick(&self, now: u64) {
        if let Some(leases) = &self.leases {
            leases.tick(now);
        }
    }

    /// The decision in place of the one that `answer` has, where another is made; none where tokens are waited for.
    fn count(
        &self,
        program: &Program,
        request: &Request<'_>,
        http: Http<'_>,
        answer: &Answer,
        mount: &dyn Mount,
    ) -> Option<(Option<Decision>, Option<Standing>)> {
        let (token, allowed) = (answer.token.as_deref(), &answer.decision);
        let headers = program.verified_headers(http.headers, token);
        let request = Request { http: Some(Http { headers: &headers, ..http }), ..*request };
        let facts = program.facts(&request, token);
        Some(match self.ask(&program.limits.enforced, &facts, mount) {
            Ruling::Waiting => return None,
            Ruling::Exceeded(nearest) => (Some(exceeded(program, allowed, &nearest)), None),
            Ruling::Unavailable(limit, why) => (Some(unavailable(program, allowed, limit, &why)), None),
            Ruling::Admitted(admitted) => {
                let trial = self.tried(&program.limits.dry_run, &facts, allowed, &Trial(mount));
                let (is_changed, standing) = (admitted.failed.is_some() || trial.is_some(), admitted.standing());
                (is_changed.then(|| amended(allowed, admitted.failed, trial)), standing)
            }
        })
    }

    /// Takes a token of each of `limits` that counts the request; none where one lacks it.
    fn ask<'l>(&self, limits: &'l [Limit], facts: &Facts<'_>, mount: &dyn Mount) -> Ruling<'l> {
        let mut admitted = Admitted::default();
        for limit in limits.iter().filter(|limit| limit.counts(facts)) {
            let (key, now) = (limit.key(facts), mount.now());
            let missed = match self.take(limit, &key, now, mount) {
                Ok(Taken::Token { nearest, left, full_in }) => {
                    admitted.near(Nearest { limit, rate: nearest, left, nanoseconds: full_in });
                    admitted.held.push((limit, key, now));
                    continue;
                }
                Ok(Taken::None { nearest, wait }) => {
                    Ruling::Exceeded(Nearest { limit, rate: nearest, left: 0, nanoseconds: wait })
                }
                Err(Missing::Waiting) => Ruling::Waiting,
                Err(Missing::Unavailable(why)) if limit.on_error == OnError::Allow => {
                    admitted.failed = Some((limit, why));
                    continue;
                }
                Err(Missing::Unavailable(why)) => Ruling::Unavailable(limit, why),
            };
            self.give_back(&admitted, mount);
            return missed;
        }
        Ruling::Admitted(admitted)
    }

    fn take(&self, limit: &Limit, key: &[u8], now: u64, mount: &dyn Mount) -> Result<Taken, Missing> {
        let Some(leases) = self.leases.as_ref().filter(|_| limit.is_shared) else {
            return Ok(self.buckets.take(key, &limit.rates, now)?);
        };
        match leases.use_one(key, || limit.shared(key), now, &|| mount.waker())? {
            Used::Token(left) => Ok(Taken::Token { nearest: 0, left, full_in: 0 }),
            Used::None(wait) => Ok(Taken::None { nearest: 0, wait }),
            Used::Away(why) => Err(Missing::Unavailable(why)),
            Used::Waiting => Err(Missing::Waiting),
        }
    }

    fn give_back(&self, admitted: &Admitted<'_>, mount: &dyn Mount) {
        for (limit, key, taken_at) in &admitted.held {
            let now = mount.now();
            match self.leases.as_ref().filter(|_| limit.is_shared) {
                Some(leases) => leases.give_back(key, now),
                None => self.buckets.give_back(key, &limit.rates, now.saturating_sub(*taken_at)),
            }
        }
    }

    /// What is to be recorded where limits on trial count the request.
    fn tried(
        &self,
        limits: &[Limit],
        facts: &Facts<'_>,
        decision: &Decision,
        mount: &dyn Mount,
    ) -> Option<Arc<Shadow>> {
        let found = match self.ask(limits, facts, mount) {
            Ruling::Admitted(admitted) if admitted.held.is_empty() => return None,
            Ruling::Admitted(_) | Ruling::Waiting => None,
            Ruling::Exceeded(nearest) => Some((&nearest.limit.policy, nearest.limit.index)),
            Ruling::Unavailable(limit, _) => Some((&limit.policy, limit.index)),
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
fn unavailable(program: &Program, allowed: &Decision, limit: &Limit, why: &str) -> Decision {
    let detail = Some(why.to_owned());
    Decision { detail, ..denied(program, allowed, limit, Reason::RateLimitUnavailable) }
}

fn denied(program: &Program, allowed: &Decision, limit: &Limit, reason: Reason) -> Decision {
    let (shadow, notes) = (allowed.shadow.clone(), allowed.notes.clone());
    let (lifetime, tells_policy) = (Lifetime::Once, program.tells_policy());
    let decision = Decision::without_policy(Effect::Deny, reason, program.hash()).by(&limit.policy, limit.index);
    Decision { lifetime, tells_policy, shadow, notes, ..decision }
}

/// `allowed`, with what is to be recorded of limits that could not count and of those on trial.
fn amended(allowed: &Decision, failed: Option<(&Limit, Arc<str>)>, trial: Option<Arc<Shadow>>) -> Decision {
    let mut decision = allowed.clone();
    if let Some((limit, why)) = failed {
        decision.source = Source::FailedOpen;
        decision.detail = Some(format!("RateLimitPolicy {}[{}]: {why}", limit.policy, limit.index));
    }
    decision.shadow = trial.or(decision.shadow);
    decision
}

#[cfg(test)]
mod tests;
