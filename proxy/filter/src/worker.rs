//! What one of Envoy's worker threads holds: its decider, its spool, and who waits for which answer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use peltast_engine::record::{Fields, Kind};
use peltast_engine::spool::Spool;
use peltast_engine::{Decider, Decision, Effect, Program};

use crate::config::spool_root;
use crate::downstream::Connections;
use crate::envoy::{warn, LogEntry, Scheduler};
use crate::live::LiveList;
use crate::summary::{Counted, Summaries};

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new());
}

/// Runs `work` with this thread's worker. Nothing in `work` may make Envoy call us again.
pub(crate) fn with<R>(work: impl FnOnce(&mut Worker) -> R) -> R {
    WORKER.with_borrow_mut(work)
}

/// A moment, by the wall clock.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    nanoseconds: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: it fills the structure; this clock is always there.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
        Self { nanoseconds: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 }
    }

    #[cfg(test)]
    pub(crate) fn at_ms(milliseconds: u64) -> Self {
        Self { nanoseconds: milliseconds * 1_000_000 }
    }

    /// Nanoseconds since 1970.
    pub(crate) fn ns(self) -> u64 {
        self.nanoseconds
    }

    /// Milliseconds since 1970.
    pub(crate) fn ms(self) -> u64 {
        self.nanoseconds / 1_000_000
    }
}

/// How a stream came to its end, left by the stream for the access logger that Envoy calls next.
pub(crate) enum Ended {
    /// Its decision is on record.
    Recorded {
        /// Sequence of that record.
        decision: u64,
        /// The later decision that ended it, where one did.
        by: Option<Arc<Decision>>,
    },
    /// It has no records of its own.
    Counted(Box<Counted>),
    /// It was let through without a record while there was no room, and that is counted.
    Dropped,
}

pub(crate) struct Worker {
    pub(crate) decider: Decider,
    pub(crate) connections: Connections,
    /// What was let through and runs.
    pub(crate) live: LiveList,
    /// Streams that wait for the answer to a question that another stream asked, by the question's key.
    pub(crate) waiting: HashMap<Box<[u8]>, Vec<Scheduler>, ahash::RandomState>,
    pub(crate) ended: Option<Ended>,
    /// Why connections were ended by a later decision, by the sequence of the one that let them through.
    pub(crate) ended_connections: HashMap<u64, Arc<Decision>>,
    summaries: Arc<Mutex<Summaries>>,
    spool: Option<Spool>,
    /// Envoy's number of this worker, once something was recorded or counted.
    index: Option<u32>,
}

impl Worker {
    fn new() -> Self {
        Self {
            decider: Decider::for_sidecar(),
            connections: Connections::default(),
            live: LiveList::new(),
            waiting: HashMap::default(),
            ended: None,
            ended_connections: HashMap::new(),
            summaries: Summaries::register(),
            spool: None,
            index: None,
        }
    }

    /// Forgets what a panic may have left half-done. The spool is kept: its chain only ever advances whole records.
    pub(crate) fn recover(&mut self) {
        self.decider = Decider::for_sidecar();
        self.connections = Connections::default();
        for scheduler in self.waiting.drain().flat_map(|(_, waiting)| waiting) {
            scheduler.wake();
        }
    }

    /// Whether the spool takes another record.
    pub(crate) fn has_room(&self) -> bool {
        spool_root().is_ok_and(|root| root.usage.has_room())
    }

    /// Whether a request for `program` may be decided: it can be recorded, or need not be where the spool is full.
    pub(crate) fn may_decide(&self, program: &Program) -> bool {
        self.has_room() || (program.spool().drop_when_full && spool_root().is_ok())
    }

    /// Whether this decision is to be dropped at once: the reserve is for the ends of what was let in before.
    pub(crate) fn leaves_reserve(&self, program: &Program, decision: &Decision) -> bool {
        program.spool().drop_when_full && decision.effect == Effect::Allow && !self.has_room()
    }

    /// Counts a request with this decision as let through without a record, if `program` says so; tells whether it does.
    pub(crate) fn drop_record(&self, program: &Program, decision: &Decision, now: Now) -> bool {
        let drops = program.spool().drop_when_full && decision.effect == Effect::Allow;
        drops && spool_root().map(|root| root.usage.drop_one(now.ns())).is_ok()
    }

    /// Writes a record and gives its sequence; none where it could not be written, which Envoy's log then tells.
    pub(crate) fn record(
        &mut self,
        worker_index: impl FnOnce() -> u32,
        kind: Kind,
        now: Now,
        fill: impl FnOnce(&mut Fields<'_>),
    ) -> Option<u64> {
        let written = match &mut self.spool {
            Some(spool) => spool.append(kind, now.ns(), fill),
            none => {
                let index = *self.index.insert(worker_index());
                open(index, now).and_then(|spool| none.insert(spool).append(kind, now.ns(), fill))
            }
        };
        written.map_err(|error| warn(&format!("peltast: audit record not written: {error}"))).ok()
    }

    /// Writes the decision of a request that was to be counted.
    pub(crate) fn record_counted(&mut self, worker_index: impl FnOnce() -> u32, counted: &Counted) -> Option<u64> {
        self.record(worker_index, Kind::Decision, counted.came, |fields| fields.encoded(&counted.decision))
    }

    /// Counts a request that is over; false where there is no room for it.
    pub(crate) fn count(&mut self, counted: &Counted, entry: &LogEntry) -> bool {
        self.index.get_or_insert_with(|| entry.worker_index());
        let mut summaries = self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        summaries.count(counted, entry.status(), entry.bytes(), Now::read())
    }

    /// Shows what the caches did until now.
    pub(crate) fn publish_counters(&self) {
        if let (Some(index), Ok(root)) = (self.index, spool_root()) {
            root.caches.publish(index, &self.decider.counters());
        }
    }

    /// Waits for the answer to the question with `key`, if somebody asks it already; else notes that it is asked now.
    pub(crate) fn wait_for(&mut self, key: Option<&[u8]>, scheduler: impl FnOnce() -> Scheduler) -> bool {
        let Some(key) = key else { return false };
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.push(scheduler());
            return true;
        }
        self.waiting.insert(key.into(), Vec::new());
        false
    }

    /// Wakes everyone who waits for an answer to the question with `key`.
    pub(crate) fn wake_waiting(&mut self, key: &[u8]) {
        for scheduler in self.waiting.remove(key).into_iter().flatten() {
            scheduler.wake();
        }
    }
}

fn open(worker_index: u32, now: Now) -> std::io::Result<Spool> {
    let root = spool_root().map_err(std::io::Error::other)?;
    Spool::create(&root.folder, Some(worker_index), Arc::clone(&root.start), Arc::clone(&root.usage), now.ns())
}
