//! Requests that were allowed and have no records of their own: each worker counts its own, by who asked whom for what,
//! and a thread of the process writes the counts when their minute is over.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peltast_engine::record::{self, Field, Fields, Kind};
use peltast_engine::spool::Spool;
use peltast_engine::Program;

use crate::abi::BytesInfo;
use crate::outcome::Outcome;
use crate::worker::Now;

const MINUTE_NS: u64 = 60_000_000_000;

/// Keys that a worker counts by at a time. With that many the counts are due at once, and new ones are begun.
const MAX_KEYS: usize = 1000;

/// Longest method that is counted by. The caller chooses it, and a key may be kept for a minute.
const MAX_METHOD_BYTES: usize = 32;

/// A request that was let through and is to be counted once it is over.
pub(crate) struct Counted {
    /// What it is counted by, as fields of a record; the status is not known yet.
    key: Box<[u8]>,
    /// The decision's record, should it be needed after all: as fields.
    pub(crate) decision: Box<[u8]>,
    pub(crate) came: Now,
}

impl Counted {
    /// A request of `method` whose record `decision` would be; none where it must have that record.
    pub(crate) fn new(
        outcome: &Outcome<'_>,
        program: &Program,
        method: &[u8],
        came: Now,
        decision: impl FnOnce(&mut Fields<'_>),
    ) -> Option<Box<Self>> {
        if method.len() > MAX_METHOD_BYTES || !CAN_BE_WRITTEN.load(Ordering::Relaxed) {
            return None;
        }
        let key = record::encode(|fields| {
            outcome.fill_caller(fields);
            outcome.fill_called(fields, program);
            fields.bytes(Field::Method, method);
            outcome.fill_rule(fields);
        });
        Some(Box::new(Self { key, decision: record::encode(decision), came }))
    }

    fn key_with(&self, status: u32) -> Vec<u8> {
        let class = record::encode(|fields| fields.number(Field::Status, u64::from(status / 100 * 100)));
        [&*self.key, &*class].concat()
    }
}

/// Who asked whom for what, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// As fields of a record.
    key: Box<[u8]>,
    counts: Counts,
}

impl Summary {
    fn fill(&self, fields: &mut Fields<'_>) {
        let counts = &self.counts;
        fields.encoded(&self.key);
        fields.number(Field::Count, counts.count);
        fields.number(Field::SinceNs, counts.since_ns);
        fields.number(Field::UntilNs, counts.until_ns);
        fields.number(Field::BytesReceived, counts.received);
        fields.number(Field::BytesSent, counts.sent);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    count: u64,
    /// When the first of them came.
    since_ns: u64,
    /// When the last of them came.
    until_ns: u64,
    received: u64,
    sent: u64,
}

impl Counts {
    fn of(came: Now) -> Self {
        Self { count: 0, since_ns: came.ns(), until_ns: came.ns(), received: 0, sent: 0 }
    }

    fn add(&mut self, came: Now, bytes: BytesInfo) {
        self.count += 1;
        self.since_ns = self.since_ns.min(came.ns());
        self.until_ns = self.until_ns.max(came.ns());
        self.received += bytes.received;
        self.sent += bytes.sent;
    }
}

/// What one worker has counted.
#[derive(Default)]
pub(crate) struct Summaries {
    /// The minute that `counts` are of, from 1970.
    minute: u64,
    counts: HashMap<Box<[u8]>, Counts, ahash::RandomState>,
    /// What is to be written.
    due: Vec<Summary>,
}

impl Summaries {
    /// Those of a new worker, which are written from now on.
    pub(crate) fn register() -> Arc<Mutex<Self>> {
        let summaries = Arc::default();
        lock(&ALL).push(Arc::clone(&summaries));
        summaries
    }

    /// Counts a request that ended `now`; false where there is no room for it, because nobody takes what is due.
    pub(crate) fn count(&mut self, counted: &Counted, status: u32, bytes: BytesInfo, now: Now) -> bool {
        self.begin_minute(now);
        let key = counted.key_with(status);
        if let Some(counts) = self.counts.get_mut(&*key) {
            counts.add(counted.came, bytes);
            return true;
        }
        if self.due.len() + self.counts.len() >= 2 * MAX_KEYS {
            return false;
        }
        if self.counts.len() >= MAX_KEYS {
            self.end_minute();
        }
        self.counts.entry(key.into()).or_insert_with(|| Counts::of(counted.came)).add(counted.came, bytes);
        true
    }

    /// Takes what is to be written `now`.
    pub(crate) fn flush(&mut self, now: Now) -> Vec<Summary> {
        self.begin_minute(now);
        std::mem::take(&mut self.due)
    }

    /// A clock that was set back begins another minute, too.
    fn begin_minute(&mut self, now: Now) {
        let minute = now.ns() / MINUTE_NS;
        if minute != self.minute {
            self.end_minute();
            self.minute = minute;
        }
    }

    fn end_minute(&mut self) {
        self.due.extend(self.counts.drain().map(|(key, counts)| Summary { key, counts }));
    }
}

/// One for each worker.
static ALL: Mutex<Vec<Arc<Mutex<Summaries>>>> = Mutex::new(Vec::new());

/// Whether the last counts could be written. Where they could not, requests are recorded whole, or denied.
static CAN_BE_WRITTEN: AtomicBool = AtomicBool::new(true);

/// Writes what workers have counted.
pub(crate) struct Writer {
    /// What could not be written yet.
    left: Vec<Summary>,
}

impl Writer {
    pub(crate) const fn new() -> Self {
        Self { left: Vec::new() }
    }

    /// Writes to `spool`, if there is one, what is due `now`, and what was left when it was tried last.
    ///
    /// # Errors
    /// Something is left again.
    pub(crate) fn write_due(&mut self, spool: Option<&mut Spool>, now: Now) -> io::Result<()> {
        for summaries in lock(&ALL).iter() {
            self.left.append(&mut lock(summaries).flush(now));
        }
        let written = self.write(spool, now);
        CAN_BE_WRITTEN.store(written.is_ok(), Ordering::Relaxed);
        written
    }

    /// Writes everything to `spool`, which is to be closed: what minutes that are not over have counted, too.
    ///
    /// # Errors
    /// Something is left.
    pub(crate) fn write_all(&mut self, spool: &mut Spool, now: Now) -> io::Result<()> {
        lock(&ALL).iter().for_each(|summaries| lock(summaries).end_minute());
        self.write_due(Some(spool), now)
    }

    fn write(&mut self, spool: Option<&mut Spool>, now: Now) -> io::Result<()> {
        let Some(spool) = spool else {
            return if self.left.is_empty() { Ok(()) } else { Err(io::Error::other("the process has no spool")) };
        };
        while let Some(summary) = self.left.last() {
            spool.append(Kind::Summary, now.ns(), |fields| summary.fill(fields))?;
            self.left.pop();
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE_MS: u64 = 60_000;

    fn counted(key: &str, came_ms: u64) -> Counted {
        let key = record::encode(|fields| fields.bytes(Field::Method, key.as_bytes()));
        Counted { key, decision: Box::default(), came: Now::at_ms(came_ms) }
    }

    fn bytes(received: u64, sent: u64) -> BytesInfo {
        BytesInfo { received, sent, ..BytesInfo::default() }
    }

    /// Counts a request that comes and ends at `ms`.
    fn count(summaries: &mut Summaries, key: &str, status: u32, ms: u64) -> bool {
        summaries.count(&counted(key, ms), status, bytes(1, 2), Now::at_ms(ms))
    }

    /// Of each: the count, and when the first and the last came.
    fn flushed(summaries: &mut Summaries, ms: u64) -> Vec<(u64, u64, u64)> {
        let told = |summary: Summary| {
            let counts = summary.counts;
            (counts.count, counts.since_ns / 1_000_000, counts.until_ns / 1_000_000)
        };
        let mut all: Vec<_> = summaries.flush(Now::at_ms(ms)).into_iter().map(told).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn counts_are_due_when_their_minute_is_over_and_once() {
        let mut summaries = Summaries::default();
        for ms in [60_000, 60_500, 119_999] {
            assert!(count(&mut summaries, "GET", 200, ms));
            assert_eq!(flushed(&mut summaries, ms), []);
        }
        assert_eq!(flushed(&mut summaries, 120_000), [(3, 60_000, 119_999)]);
        assert_eq!(flushed(&mut summaries, 180_000), []);
    }

    #[test]
    fn a_minute_that_nobody_looked_at_is_not_mixed_with_the_next() {
        let mut summaries = Summaries::default();
        count(&mut summaries, "GET", 200, 1000);
        count(&mut summaries, "GET", 200, MINUTE_MS + 1000);
        assert_eq!(flushed(&mut summaries, MINUTE_MS + 2000), [(1, 1000, 1000)]);
        count(&mut summaries, "GET", 200, 500); // the clock was set back
        assert_eq!(flushed(&mut summaries, 600), [(1, MINUTE_MS + 1000, MINUTE_MS + 1000)]);
    }

    #[test]
    fn each_key_and_class_of_status_is_counted_by_itself() {
        let mut summaries = Summaries::default();
        for (key, status) in [("GET", 200), ("GET", 204), ("GET", 404), ("PUT", 200), ("GET", 0), ("GET", 503)] {
            assert!(count(&mut summaries, key, status, 1));
        }
        let mut found: Vec<_> = summaries
            .flush(Now::at_ms(MINUTE_MS))
            .into_iter()
            .map(|summary| {
                let record = record::encode(|fields| summary.fill(fields));
                (record, summary.counts)
            })
            .collect();
        found.sort_unstable_by_key(|(_, counts)| counts.count);
        assert_eq!(found.len(), 5);
        let (record, counts) = found.last().expect("one");
        assert_eq!((counts.count, counts.received, counts.sent), (2, 2, 4));
        let wanted = record::encode(|fields| {
            fields.bytes(Field::Method, b"GET");
            fields.number(Field::Status, 200);
            fields.number(Field::Count, 2);
            fields.number(Field::SinceNs, 1_000_000);
            fields.number(Field::UntilNs, 1_000_000);
            fields.number(Field::BytesReceived, 2);
            fields.number(Field::BytesSent, 4);
        });
        assert_eq!(*record, wanted);
    }

    #[test]
    fn keys_are_bounded_and_what_has_no_room_is_told() {
        let mut summaries = Summaries::default();
        for number in 0..2 * MAX_KEYS {
            assert!(count(&mut summaries, &number.to_string(), 200, 1), "{number}");
        }
        assert!(!count(&mut summaries, "one more", 200, 1));
        assert!(count(&mut summaries, "1999", 200, 1), "a key that is there has room");
        assert_eq!(summaries.flush(Now::at_ms(2)).len(), MAX_KEYS, "the first are due before their minute is over");
        assert!(count(&mut summaries, "one more", 200, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_counted_twice(
            ends in proptest::collection::vec((0_u64..300_000, 0..5_u32, 200_u32..600, any::<bool>()), 0..200),
        ) {
            let mut summaries = Summaries::default();
            let (mut wanted, mut found) = (0, 0);
            let mut take = |summaries: &mut Summaries, now| {
                found += summaries.flush(now).iter().map(|summary| summary.counts.count).sum::<u64>();
            };
            for (ms, key, status, look) in ends {
                wanted += u64::from(count(&mut summaries, &key.to_string(), status, ms));
                if look {
                    take(&mut summaries, Now::at_ms(ms));
                }
            }
            take(&mut summaries, Now::at_ms(1_000_000));
            prop_assert_eq!(found, wanted);
        }
    }
}
