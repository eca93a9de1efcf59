//! The buckets of one process, shared by all of its workers: sharded, each shard behind a lock that is held for as long
//! as a look-up takes. Bounded in bytes; a bucket that is full again is as good as none and gives way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rate::Rate;

/// Bytes that the buckets of a process take at most.
const MAX_BYTES: usize = 32 * 1024 * 1024;
const SHARDS: usize = 64;
/// Bytes that a bucket takes beside its key and its arrival times.
const ENTRY_BYTES: usize = 96;
/// How long a shard that found no room does not look for some again, in nanoseconds.
const SWEEP_AFTER: u64 = 100_000_000;

/// There is no room for a further bucket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// What came of asking a key's buckets for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// There was one in each bucket.
    Token {
        /// The bucket that has the fewest left.
        nearest: usize,
        /// How many it has left.
        left: u64,
        /// When it is full again, in nanoseconds from now.
        full_in: u64,
    },
    /// Some bucket was empty.
    None {
        /// The one that is empty for longest.
        nearest: usize,
        /// For how long, in nanoseconds.
        wait: u64,
    },
}

type Arrivals = Box<[u64]>;

#[derive(Default)]
struct Shard {
    arrivals: HashMap<Box<[u8]>, Arrivals, ahash::RandomState>,
    bytes: usize,
    /// When it was last swept for want of room.
    swept: Option<u64>,
}

pub(crate) struct Buckets {
    shards: Box<[Mutex<Shard>]>,
    hasher: ahash::RandomState,
    max_bytes: usize,
}

impl Buckets {
    pub(crate) fn new() -> Self {
        Self::bounded(MAX_BYTES)
    }

    fn bounded(max_bytes: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: ahash::RandomState::new(), max_bytes: max_bytes / SHARDS }
    }

    /// Takes a token out of each bucket of `key`, one for each of `rates`, or none at all, at `now` (nanoseconds).
    ///
    /// # Errors
    /// See [`NoRoom`].
    pub(crate) fn take(&self, key: &[u8], rates: &[Rate], now: u64) -> Result<Taken, NoRoom> {
        let mut shard = self.shard(key);
        if let Some(arrivals) = shard.arrivals.get_mut(key) {
            return Ok(take_of(arrivals, rates, now));
        }
        shard.make_room(entry_bytes(key, rates.len()), self.max_bytes, now)?;
        let mut arrivals: Arrivals = vec![0; rates.len()].into();
        let taken = take_of(&mut arrivals, rates, now);
        shard.arrivals.insert(key.into(), arrivals);
        Ok(taken)
    }

    /// Puts a token back into each bucket of `key` that was taken `elapsed` nanoseconds ago.
    pub(crate) fn give_back(&self, key: &[u8], rates: &[Rate], elapsed: u64) {
        if let Some(arrivals) = self.shard(key).arrivals.get_mut(key) {
            arrivals.iter_mut().zip(rates).for_each(|(arrival, rate)| *arrival = rate.give_back(*arrival, elapsed));
        }
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        let place = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Sees that there is room for `bytes` more.
    fn make_room(&mut self, bytes: usize, max_bytes: usize, now: u64) -> Result<(), NoRoom> {
        if self.bytes + bytes > max_bytes {
            if self.swept.is_some_and(|swept| now < swept + SWEEP_AFTER) {
                return Err(NoRoom);
            }
            self.swept = Some(now);
            self.arrivals.retain(|_, arrivals| arrivals.iter().any(|arrival| *arrival > now));
            self.bytes = self.arrivals.iter().map(|(key, arrivals)| entry_bytes(key, arrivals.len())).sum();
        }
        if self.bytes + bytes > max_bytes {
            return Err(NoRoom);
        }
        self.bytes += bytes;
        Ok(())
    }
}

fn entry_bytes(key: &[u8], buckets: usize) -> usize {
    ENTRY_BYTES + key.len() + buckets * size_of::<u64>()
}

fn take_of(arrivals: &mut [u64], rates: &[Rate], now: u64) -> Taken {
    let each = || arrivals.iter().zip(rates).enumerate();
    let longest = each().map(|(index, (arrival, rate))| (rate.wait(*arrival, now), index)).max();
    if let Some((wait @ 1.., nearest)) = longest {
        return Taken::None { nearest, wait };
    }
    let fewest = each().map(|(index, (arrival, rate))| (rate.available(*arrival, now), index)).min();
    arrivals.iter_mut().zip(rates).for_each(|(arrival, rate)| *arrival = rate.take(*arrival, now));
    let (available, nearest) = fewest.unwrap_or((1, 0));
    let full_in = arrivals.get(nearest).map_or(0, |arrival| arrival.saturating_sub(now));
    Taken::Token { nearest, left: available - 1, full_in }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u64, period: u64, burst: u64) -> Rate {
        Rate::new(requests, period, burst).expect("a rate")
    }

    fn is_token(taken: &Result<Taken, NoRoom>) -> bool {
        matches!(taken, Ok(Taken::Token { .. }))
    }

    #[test]
    fn the_nearest_bucket_is_told_and_none_is_taken_from_where_one_is_empty() {
        let (buckets, rates) = (Buckets::new(), [rate(5, SECOND, 5), rate(2, 60 * SECOND, 2)]);
        let token = |left, full_in| Ok(Taken::Token { nearest: 1, left, full_in });
        assert_eq!(buckets.take(b"a", &rates, SECOND), token(1, 30 * SECOND));
        assert_eq!(buckets.take(b"a", &rates, SECOND), token(0, 60 * SECOND));
        let none = Ok(Taken::None { nearest: 1, wait: 30 * SECOND });
        (0..9).for_each(|_| assert_eq!(buckets.take(b"a", &rates, SECOND), none));
        assert_eq!(buckets.take(b"b", &rates, SECOND), token(1, 30 * SECOND), "another key has its own");
    }

    #[test]
    fn what_was_given_back_can_be_taken_again() {
        let (buckets, rates) = (Buckets::new(), [rate(1, SECOND, 1)]);
        assert!(is_token(&buckets.take(b"a", &rates, 1)));
        buckets.give_back(b"a", &rates, 0);
        assert!(is_token(&buckets.take(b"a", &rates, 1)));
        assert!(!is_token(&buckets.take(b"a", &rates, 1)));
    }

    /// All workers ask for one key at one moment: exactly the burst is admitted.
    #[test]
    fn a_hot_key_admits_exactly_what_it_has() {
        let (buckets, rates) = (Buckets::new(), [rate(1000, 3600 * SECOND, 1000)]);
        let admitted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mine = (0..5000).filter(|_| is_token(&buckets.take(b"hot", &rates, SECOND))).count();
                    admitted.fetch_add(mine as u64, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(admitted.into_inner(), 1000);
    }

    #[test]
    fn buckets_are_bounded_and_only_full_ones_give_way() {
        let (buckets, rates) = (Buckets::bounded(64 * 1024), [rate(1, SECOND, 1)]);
        let key = |n: u64| n.to_le_bytes();
        let taken: Vec<bool> = (0..2000).map(|n| is_token(&buckets.take(&key(n), &rates, 1))).collect();
        let held = taken.iter().filter(|taken| **taken).count();
        assert!((300..=64 * 1024 / ENTRY_BYTES).contains(&held), "{held}");
        for n in (0..2000).filter(|n| taken[*n as usize]) {
            assert!(!is_token(&buckets.take(&key(n), &rates, 1)), "{n} is not forgotten");
        }
        assert!((2000..4000).all(|n| buckets.take(&key(n), &rates, 1) == Err(NoRoom)), "and no other is let in");
        let later = 2 * SECOND;
        assert!((4000..4050).all(|n| is_token(&buckets.take(&key(n), &rates, later))), "all are full again");
    }
}
