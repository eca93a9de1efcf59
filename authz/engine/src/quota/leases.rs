//! Tokens that this process has borrowed of limits that many sidecars share. A request is decided by what is here;
//! what is missing is noted, and somebody who can ask the quota service takes the notes along ([`Leases::wants`]).
//!
//! Tokens that are out were counted when they were lent, so that all sidecars together admit no more in any time than
//! the limit does in it, and the tokens that were out when it began.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buckets::NoRoom;

const SECOND: u64 = 1_000_000_000;
/// For how long ahead tokens are borrowed, at the rate at which they are used.
const AHEAD: u64 = SECOND;
/// The shortest time by which that rate is told.
const SHORTEST: u64 = SECOND / 10;
/// A lease that ends within this time is given back: [`Leases::tick`] comes twice as often.
const ENDS_SOON: u64 = SECOND;
/// How long the quota service is not asked again after it could not be.
const PAUSE: u64 = SECOND / 2;
/// Keys of which a process knows something at a time.
const MAX_KEYS: usize = 65_536;
const SHARDS: usize = 64;
/// Keys that are asked about at once.
const MAX_WANTS: usize = 64;
/// Leases of a key that go back at once.
const MAX_RETURNED: usize = 16;

/// Called once the answer has come that a request waits for.
pub type Waker = Box<dyn FnOnce() + Send>;

/// What a limit is called towards the quota service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The policy, as `namespace/name`.
    pub policy: Arc<str>,
    /// The limit's place in it.
    pub limit: u32,
    /// What requests are counted under.
    pub key: Box<[u8]>,
}

/// What the quota service is to be asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Want {
    /// Of what.
    pub of: Shared,
    /// How many tokens are wanted.
    pub tokens: u32,
    /// Leases that go back, each with what was not used of it.
    pub returned: Vec<(String, u32)>,
    asked_at: u64,
}

/// What the quota service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lent {
    /// Tokens that may be used for so many milliseconds.
    Tokens {
        /// The lease's id.
        lease: String,
        /// How many.
        tokens: u32,
        /// Counted from before it was asked.
        valid_ms: u64,
    },
    /// None are there, for so many milliseconds.
    None(u64),
    /// Nothing: for people, why.
    Failed(String),
}

/// What came of asking for a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Used {
    /// There was one; so many are left here.
    Token(u64),
    /// There is none for so many nanoseconds.
    None(u64),
    /// Nobody can tell; the reason.
    Away(Arc<str>),
    /// The quota service is asked.
    Waiting,
}

struct Lease {
    id: String,
    tokens: u32,
    ends: u64,
}

/// What the quota service said last of a key that has no tokens.
enum Word {
    Unasked,
    /// None until then.
    Empty(u64),
    /// It could not be asked, and is not until then.
    Away(u64, Arc<str>),
}

struct Borrower {
    of: Shared,
    /// In the order of their ends.
    leases: Vec<Lease>,
    word: Word,
    /// Whether it is noted, or asked about.
    asking: bool,
    /// How many were used, or missed, since then.
    used: u64,
    since: u64,
    /// How many it had once it was last answered.
    aim: u64,
    returned: Vec<(String, u32)>,
    waiting: Vec<Waker>,
}

type Borrowers = HashMap<Box<[u8]>, Borrower, ahash::RandomState>;

pub(crate) struct Leases {
    shards: Box<[Mutex<Borrowers>]>,
    hasher: ahash::RandomState,
    noted: Mutex<Vec<Box<[u8]>>>,
    has_notes: AtomicBool,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: ahash::RandomState::new(),
            noted: Mutex::default(),
            has_notes: AtomicBool::new(false),
        }
    }

    /// Uses a token of what `of` names. Where one is to be waited for, `waker` tells whom to wake.
    ///
    /// # Errors
    /// There is no room for a further key.
    pub(crate) fn use_one(
        &self,
        key: &[u8],
        of: impl FnOnce() -> Shared,
        now: u64,
        waker: &dyn Fn() -> Option<Waker>,
    ) -> Result<Used, NoRoom> {
        let mut shard = self.shard(key);
        if !shard.contains_key(key) {
            if shard.len() >= MAX_KEYS / SHARDS {
                return Err(NoRoom);
            }
            shard.insert(key.into(), Borrower::new(of(), now));
        }
        let Some(borrower) = shard.get_mut(key) else { return Err(NoRoom) };
        let used = borrower.use_one(now);
        if used == Used::Waiting {
            borrower.waiting.extend(waker());
        }
        if borrower.is_to_ask(now) {
            borrower.asking = true;
            self.note(key);
        }
        Ok(used)
    }

    /// Puts a token back that was used a moment ago.
    pub(crate) fn give_back(&self, key: &[u8], now: u64) {
        if let Some(lease) =
            self.shard(key).get_mut(key).and_then(|borrower| borrower.leases.iter_mut().find(|lease| now < lease.ends))
        {
            lease.tokens += 1;
        }
    }

    /// Whether there is something to ask the quota service.
    pub(crate) fn has_wants(&self) -> bool {
        self.has_notes.load(Ordering::Acquire)
    }

    /// What to ask it now, of some keys. Each is to be answered by [`Self::receive`].
    pub(crate) fn wants(&self, now: u64) -> Vec<Want> {
        let keys: Vec<Box<[u8]>> = {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            let number = noted.len().min(MAX_WANTS);
            let keys = noted.drain(..number).collect();
            self.has_notes.store(!noted.is_empty(), Ordering::Release);
            keys
        };
        keys.iter().filter_map(|key| Some(self.shard(key).get_mut(key)?.want(now))).collect()
    }

    /// Takes the answer to `want`, and wakes those that wait for it.
    pub(crate) fn receive(&self, want: Want, lent: Lent, now: u64) {
        let waiting = match self.shard(&want.of.key).get_mut(&want.of.key) {
            Some(borrower) => borrower.receive(want.asked_at, lent, now),
            None => Vec::new(),
        };
        waiting.into_iter().for_each(|wake| wake());
    }

    /// Gives back what ends soon, notes what will be used again, and forgets what is used no more.
    pub(crate) fn tick(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, borrower| !borrower.is_idle(now));
            for (key, borrower) in shard.iter_mut() {
                borrower.give_up(now);
                if !borrower.asking && (!borrower.returned.is_empty() || borrower.is_to_ask(now)) {
                    borrower.asking = true;
                    self.note(key);
                }
            }
        }
    }

    fn note(&self, key: &[u8]) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.push(key.into());
        self.has_notes.store(true, Ordering::Release);
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Borrowers> {
        let place = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Borrower {
    fn new(of: Shared, now: u64) -> Self {
        Self {
            of,
            leases: Vec::new(),
            word: Word::Unasked,
            asking: false,
            used: 0,
            since: now,
            aim: 0,
            returned: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn use_one(&mut self, now: u64) -> Used {
        self.used += 1;
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.tokens > 0 && now < lease.ends) {
            lease.tokens -= 1;
            return Used::Token(self.left(now));
        }
        match &self.word {
            Word::Empty(until) if now < *until => Used::None(until - now),
            Word::Away(until, why) if now < *until => Used::Away(Arc::clone(why)),
            _ => Used::Waiting,
        }
    }

    fn left(&self, now: u64) -> u64 {
        self.leases.iter().filter(|lease| now < lease.ends).map(|lease| u64::from(lease.tokens)).sum()
    }

    /// Whether the quota service is to be asked for more: ahead of need, once half of what it had is used.
    fn is_to_ask(&self, now: u64) -> bool {
        let is_silent = match self.word {
            Word::Empty(until) | Word::Away(until, _) => now < until,
            Word::Unasked => false,
        };
        !self.asking && !is_silent && self.used > 0 && 2 * self.left(now) <= self.aim
    }

    /// As many as would be used in the time ahead, at the rate at which they were used.
    fn want(&mut self, now: u64) -> Want {
        let elapsed = (now - self.since).max(SHORTEST);
        let demand = (u128::from(self.used) * u128::from(AHEAD)).div_ceil(u128::from(elapsed)) as u64;
        let tokens = demand.saturating_sub(self.left(now)).min(u64::from(u32::MAX)) as u32;
        (self.used, self.since) = (0, now);
        let returned = self.returned.drain(..self.returned.len().min(MAX_RETURNED)).collect();
        Want { of: self.of.clone(), tokens, returned, asked_at: now }
    }

    fn receive(&mut self, asked_at: u64, lent: Lent, now: u64) -> Vec<Waker> {
        self.asking = false;
        match lent {
            Lent::Tokens { lease, tokens, valid_ms } => {
                self.word = Word::Unasked;
                self.leases.push(Lease { id: lease, tokens, ends: asked_at + valid_ms * (SECOND / 1000) });
            }
            Lent::None(ms) => self.word = Word::Empty(now + ms * (SECOND / 1000)),
            Lent::Failed(why) => self.word = Word::Away(now + PAUSE, why.into()),
        }
        self.aim = self.left(now);
        std::mem::take(&mut self.waiting)
    }

    /// Uses no more what ends soon: what is left of it goes back.
    fn give_up(&mut self, now: u64) {
        let returned = &mut self.returned;
        self.leases.retain(|lease| {
            let lasts = lease.ends > now + ENDS_SOON;
            if !lasts && lease.ends > now && lease.tokens > 0 {
                returned.push((lease.id.clone(), lease.tokens));
            }
            lasts
        });
    }

    fn is_idle(&self, now: u64) -> bool {
        let is_silent = match self.word {
            Word::Empty(until) | Word::Away(until, _) => now < until,
            Word::Unasked => false,
        };
        !self.asking
            && !is_silent
            && self.leases.is_empty()
            && self.returned.is_empty()
            && self.waiting.is_empty()
            && self.since + AHEAD < now
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const MS: u64 = SECOND / 1000;
    const START: u64 = 5 * SECOND;

    fn of(key: &[u8]) -> Shared {
        Shared { policy: "a/b".into(), limit: 0, key: key.into() }
    }

    fn use_one(leases: &Leases, now: u64) -> Used {
        leases.use_one(b"k", || of(b"k"), now, &|| None).expect("room")
    }

    /// The one thing to ask.
    fn want(leases: &Leases, now: u64) -> Want {
        let mut wants = leases.wants(now);
        assert_eq!(wants.len(), 1);
        wants.remove(0)
    }

    fn tokens(tokens: u32) -> Lent {
        Lent::Tokens { lease: format!("of {tokens}"), tokens, valid_ms: 2000 }
    }

    #[test]
    fn the_first_waits_and_is_woken_and_later_ones_find_tokens_borrowed_ahead() {
        let (leases, woken) = (Leases::new(), Arc::new(AtomicUsize::new(0)));
        let waker = || {
            let woken = Arc::clone(&woken);
            Some(Box::new(move || {
                woken.fetch_add(1, Ordering::Relaxed);
            }) as Waker)
        };
        for _ in 0..3 {
            let used = leases.use_one(b"k", || of(b"k"), START, &waker).expect("room");
            assert_eq!(used, Used::Waiting);
        }
        let first = want(&leases, START + MS);
        assert_eq!((first.tokens, &first.returned[..]), (30, &[][..]), "three in a tenth of a second");
        assert!(!leases.has_wants() && leases.wants(START + MS).is_empty(), "it is asked once");
        leases.receive(first, tokens(8), START + 2 * MS);
        assert_eq!(woken.load(Ordering::Relaxed), 3);
        for left in [7, 6, 5] {
            assert_eq!(use_one(&leases, START + 3 * MS), Used::Token(left));
            assert!(!leases.has_wants());
        }
        assert_eq!(use_one(&leases, START + 3 * MS), Used::Token(4));
        assert!(leases.has_wants(), "half of it is used");
    }

    #[test]
    fn what_the_service_says_holds_for_its_time() {
        let leases = Leases::new();
        assert_eq!(use_one(&leases, START), Used::Waiting);
        leases.receive(want(&leases, START), Lent::None(300), START);
        assert_eq!(use_one(&leases, START + 100 * MS), Used::None(200 * MS));
        assert!(!leases.has_wants(), "it is not asked meanwhile");
        assert_eq!(use_one(&leases, START + 300 * MS), Used::Waiting);
        let failed = Lent::Failed("away".to_owned());
        leases.receive(want(&leases, START + 300 * MS), failed, START + 400 * MS);
        assert_eq!(use_one(&leases, START + 899 * MS), Used::Away("away".into()));
        assert_eq!(use_one(&leases, START + 900 * MS), Used::Waiting);
        leases.receive(want(&leases, START + 900 * MS), tokens(1), START + 901 * MS);
        assert_eq!(use_one(&leases, START + 901 * MS), Used::Token(0));
    }

    #[test]
    fn a_lease_is_good_from_before_it_was_asked_and_goes_back_before_its_end() {
        let leases = Leases::new();
        use_one(&leases, START);
        let first = want(&leases, START);
        leases.receive(first, tokens(5), START + 900 * MS);
        assert_eq!(use_one(&leases, START + 901 * MS), Used::Token(4));
        leases.tick(START + 950 * MS);
        assert!(!leases.has_wants());
        leases.tick(START + 1000 * MS);
        let back = want(&leases, START + 1000 * MS);
        assert_eq!(back.returned, [("of 5".to_owned(), 4)]);
        assert_eq!(back.tokens, 1, "it was used in this time");
        leases.receive(back, Lent::None(0), START + 1001 * MS);
        assert_eq!(use_one(&leases, START + 1002 * MS), Used::Waiting, "what went back is not used");
    }

    #[test]
    fn a_key_that_nobody_uses_is_forgotten_and_keys_are_bounded() {
        let leases = Leases::new();
        let ask = |number: u64, now| {
            let key = number.to_le_bytes();
            leases.use_one(&key, || of(&key), now, &|| None)
        };
        let answer_all = |now| {
            while leases.has_wants() {
                leases.wants(now).into_iter().for_each(|want| leases.receive(want, Lent::None(0), now));
            }
        };
        let many = 4 * MAX_KEYS as u64;
        let held = (0..many).filter(|number| ask(*number, START).is_ok()).count();
        assert_eq!(held, MAX_KEYS, "each shard is full");
        answer_all(START);
        leases.tick(START + 3 * SECOND);
        assert!((0..1000).all(|number| ask(number, START + 3 * SECOND).is_ok()));
    }

    proptest! {
        /// Of any history with a lender that gives what it likes: what was used is at most what was lent and did not go
        /// back, and nothing is used after its lease's end.
        #[test]
        fn no_token_is_used_twice_or_too_late(
            steps in prop::collection::vec((0u64..400, 0u8..5, 1u32..20), 1..200),
        ) {
            let leases = Leases::new();
            let (mut now, mut asked) = (START, Vec::new());
            let (mut lent, mut used, mut back, mut ends) = (0u64, 0u64, 0u64, 0u64);
            for (passed, step, number) in steps {
                now += passed * MS;
                match step {
                    0 | 1 => (0..number).for_each(|_| {
                        if let Used::Token(_) = use_one(&leases, now) {
                            assert!(now < ends, "some lease is good");
                            used += 1;
                        }
                    }),
                    2 => asked.extend(leases.wants(now)),
                    3 => asked.drain(..).for_each(|want: Want| {
                        back += want.returned.iter().map(|(_, unused)| u64::from(*unused)).sum::<u64>();
                        let answer = if number % 5 == 0 { Lent::None(u64::from(number)) } else { tokens(number) };
                        if let Lent::Tokens { tokens, .. } = answer {
                            lent += u64::from(tokens);
                            ends = ends.max(want.asked_at + 2 * SECOND);
                        }
                        leases.receive(want, answer, now);
                    }),
                    _ => leases.tick(now),
                }
                prop_assert!(used + back <= lent, "{used} used and {back} back of {lent}");
            }
        }
    }
}
