//! Decisions by the values of exactly the attributes that could have changed them.
//!
//! Full keys are compared, never only hashes. Bounded in bytes by two generations: when the young one holds half of
//! the bound, it becomes the old one and the old one is dropped; what is still asked for moves back. So eviction
//! costs nothing on a hit.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decision::{Decision, Lifetime};

/// Bytes that an entry takes beside its key and what its decision says at length: the decision and the table's share.
const ENTRY_BYTES: usize = 512;

struct Entry {
    decision: Arc<Decision>,
    /// Milliseconds on the caller's clock; none where only the program ends it.
    expires: Option<u64>,
}

impl Entry {
    /// What it takes with a key of `length` bytes.
    fn bytes(&self, length: usize) -> usize {
        length + ENTRY_BYTES + self.decision.extra_bytes()
    }
}

type Generation = HashMap<Box<[u8]>, Entry, ahash::RandomState>;

pub(crate) struct DecisionCache {
    young: Generation,
    old: Generation,
    young_bytes: usize,
    old_bytes: usize,
    bound: usize,
}

impl DecisionCache {
    pub(crate) fn new(bound: usize) -> Self {
        Self { young: Generation::default(), old: Generation::default(), young_bytes: 0, old_bytes: 0, bound }
    }

    /// The decision for `key` at `now`, in milliseconds.
    pub(crate) fn get(&mut self, key: &[u8], now: u64) -> Option<Arc<Decision>> {
        let fresh = |entry: &Entry| entry.expires.is_none_or(|expires| now < expires);
        if let Some(entry) = self.young.get(key) {
            // Not the old one's, even if this has expired: it was superseded.
            return fresh(entry).then(|| Arc::clone(&entry.decision));
        }
        let (key, entry) = self.old.remove_entry(key)?;
        self.old_bytes -= entry.bytes(key.len());
        if !fresh(&entry) {
            return None;
        }
        let decision = Arc::clone(&entry.decision);
        self.put(key, entry);
        Some(decision)
    }

    /// Remembers `decision` for `key`, for as long as the decision says.
    pub(crate) fn insert(&mut self, key: &[u8], decision: &Arc<Decision>, now: u64) {
        let expires = match decision.lifetime {
            Lifetime::Once => return,
            Lifetime::Program => None,
            Lifetime::Milliseconds(lifetime) => Some(now.saturating_add(u64::from(lifetime))),
        };
        self.put(key.into(), Entry { decision: Arc::clone(decision), expires });
    }

    /// Decisions held, and the bytes that they take.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.young.len() + self.old.len(), self.young_bytes + self.old_bytes)
    }

    fn put(&mut self, key: Box<[u8]>, entry: Entry) {
        let (length, bytes) = (key.len(), entry.bytes(key.len()));
        if self.young_bytes + bytes > self.bound / 2 {
            self.old = std::mem::take(&mut self.young);
            self.old_bytes = std::mem::take(&mut self.young_bytes);
        }
        self.young_bytes += bytes;
        if let Some(superseded) = self.young.insert(key, entry) {
            self.young_bytes -= superseded.bytes(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decision::{Effect, Reason};
    use crate::Hash;

    fn decision(lifetime: Lifetime) -> Arc<Decision> {
        let decision = Decision::without_policy(Effect::Allow, Reason::AllowRule, Hash([0; 32]));
        Arc::new(Decision { lifetime, ..decision })
    }

    #[test]
    fn lifetimes_are_kept() {
        let mut cache = DecisionCache::new(1 << 20);
        cache.insert(b"program", &decision(Lifetime::Program), 0);
        cache.insert(b"timed", &decision(Lifetime::Milliseconds(10)), 100);
        cache.insert(b"once", &decision(Lifetime::Once), 0);
        assert!(cache.get(b"program", u64::MAX).is_some());
        assert!(cache.get(b"timed", 109).is_some());
        assert!(cache.get(b"timed", 110).is_none());
        assert!(cache.get(b"once", 0).is_none());
    }

    #[test]
    fn what_was_superseded_does_not_come_back() {
        let mut cache = DecisionCache::new(2 * (ENTRY_BYTES + 1));
        cache.insert(b"a", &decision(Lifetime::Milliseconds(100)), 0);
        cache.insert(b"b", &decision(Lifetime::Program), 0); // the first is of the old generation now
        cache.insert(b"a", &decision(Lifetime::Milliseconds(10)), 0);
        assert!(cache.get(b"a", 9).is_some());
        assert!(cache.get(b"a", 10).is_none());
    }

    #[test]
    fn bytes_are_bounded_and_what_is_used_stays() {
        let mut cache = DecisionCache::new(64 * (ENTRY_BYTES + 8));
        let key = |n: u64| n.to_le_bytes();
        cache.insert(&key(0), &decision(Lifetime::Program), 0);
        for n in 1..10_000 {
            cache.insert(&key(n), &decision(Lifetime::Program), 0);
            assert!(cache.get(&key(0), 0).is_some(), "after {n}");
        }
        let (entries, bytes) = cache.size();
        assert!(entries <= 64);
        assert_eq!(bytes, entries * (ENTRY_BYTES + 8));
        assert!(cache.get(&key(1), 0).is_none());
    }

    proptest! {
        /// Whatever is put and asked when: what is found is what was put last, and not too old.
        #[test]
        fn what_is_found_is_what_was_put_last_and_lives(
            steps in proptest::collection::vec((0..6u64, prop::option::of(0..200u32), 0..100u64), 1..200),
        ) {
            let mut cache = DecisionCache::new(8 * (ENTRY_BYTES + 8));
            let mut put: HashMap<u64, (Arc<Decision>, u64)> = HashMap::new();
            let mut now = 0;
            for (key, lifetime, passed) in steps {
                now += passed;
                if let Some(lifetime) = lifetime {
                    let decision = decision(Lifetime::Milliseconds(lifetime));
                    cache.insert(&key.to_le_bytes(), &decision, now);
                    put.insert(key, (decision, now + u64::from(lifetime)));
                } else if let Some(found) = cache.get(&key.to_le_bytes(), now) {
                    let (last, expires) = &put[&key];
                    prop_assert!(Arc::ptr_eq(&found, last) && now < *expires);
                }
            }
        }
    }
}
