//! Requests and connections that were let through and still run. They are decided again when something new is in force, or when a
//! token or an SVID ends, and reset where they are no longer allowed.
//!
//! Each worker lists its own. Envoy wakes a worker only by way of one of its streams, and not if that stream has gone:
//! so a worker keeps a [`Scheduler`] of some stream that runs, and a thread of the process looks twice a second who
//! has something to do, and wakes them until it is done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::abi::Handle;
use crate::config::generation;
use crate::envoy::Scheduler;
use crate::worker::Now;

/// How often it is looked whether something is to be decided again.
const PERIOD: Duration = Duration::from_millis(500);

/// By what a stream's decision holds.
#[derive(Clone, Copy)]
pub(crate) struct Validity {
    /// The [`generation`] that it was decided in.
    pub(crate) generation: u64,
    /// When its token or its peer's SVID ends, in milliseconds since 1970.
    pub(crate) ends_ms: u64,
}

/// What something that runs is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A request and its response.
    Stream,
    /// A connection without requests.
    Connection,
}

/// Something that runs: Envoy's handle of it and our half.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) owner: Owner,
    pub(crate) handle: Handle,
    pub(crate) filter: Handle,
}

/// What runs on one worker.
pub(crate) struct LiveList {
    running: Vec<Live>,
    /// The one whose scheduler `bell` has.
    ringing: Option<Live>,
    bell: Arc<Bell>,
}

impl LiveList {
    pub(crate) fn new() -> Self {
        let bell = Arc::new(Bell::default());
        BELLS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&bell));
        Self { running: Vec::new(), ringing: None, bell }
    }

    /// Takes up a stream and gives its place.
    pub(crate) fn begin(&mut self, live: Live, validity: Validity) -> usize {
        if self.running.is_empty() {
            self.bell.due.set(validity);
        } else {
            self.bell.due.narrow(validity);
        }
        self.running.push(live);
        if self.ringing.is_none() {
            self.ring_by(Some(live));
        }
        self.running.len() - 1
    }

    /// Lets go of the stream at `place`; gives the one that is there now, which was at another place before.
    pub(crate) fn end(&mut self, place: usize) -> Option<Live> {
        let gone = self.running.swap_remove(place);
        if self.ringing == Some(gone) {
            self.ring_by(self.running.last().copied()); // the newest, or nearly so: it may run for longest
        }
        self.running.get(place).copied()
    }

    pub(crate) fn all(&self) -> Vec<Live> {
        self.running.clone()
    }

    pub(crate) fn has(&self, live: Live) -> bool {
        self.running.contains(&live)
    }

    /// All were decided again, as `validity` says.
    pub(crate) fn decided(&self, validity: Validity) {
        self.bell.due.set(validity);
    }

    fn ring_by(&mut self, live: Option<Live>) {
        self.ringing = live;
        let scheduler = live.map(|live| Scheduler::of(live.owner, live.handle));
        *self.bell.scheduler.lock().unwrap_or_else(PoisonError::into_inner) = scheduler;
    }
}

/// What a worker and the thread that wakes it share.
#[derive(Default)]
struct Bell {
    scheduler: Mutex<Option<Scheduler>>,
    due: Due,
}

impl Bell {
    fn ring(&self) {
        if let Some(scheduler) = &*self.scheduler.lock().unwrap_or_else(PoisonError::into_inner) {
            scheduler.look_again();
        }
    }
}

/// When a worker has something to decide again. Only the worker changes it.
struct Due {
    /// The oldest generation that some stream was decided in.
    generation: AtomicU64,
    /// When the first stream's validity ends.
    ends_ms: AtomicU64,
}

impl Default for Due {
    fn default() -> Self {
        Self { generation: AtomicU64::new(u64::MAX), ends_ms: AtomicU64::new(u64::MAX) }
    }
}

impl Due {
    fn set(&self, validity: Validity) {
        self.generation.store(validity.generation, Ordering::Relaxed);
        self.ends_ms.store(validity.ends_ms, Ordering::Relaxed);
    }

    fn narrow(&self, validity: Validity) {
        for (bound, other) in [(&self.generation, validity.generation), (&self.ends_ms, validity.ends_ms)] {
            if other < bound.load(Ordering::Relaxed) {
                bound.store(other, Ordering::Relaxed);
            }
        }
    }

    fn is_now(&self, generation: u64, now: Now) -> bool {
        self.generation.load(Ordering::Relaxed) < generation || self.ends_ms.load(Ordering::Relaxed) <= now.ms()
    }
}

/// One for each worker.
static BELLS: Mutex<Vec<Arc<Bell>>> = Mutex::new(Vec::new());

/// Has every worker look, at once, whether its streams are still allowed.
pub(crate) fn look_now() {
    static WATCH: OnceLock<Option<Thread>> = OnceLock::new();
    let watch = || thread::Builder::new().name("peltast-live".to_owned()).spawn(watch).ok();
    if let Some(thread) = WATCH.get_or_init(|| watch().map(|handle| handle.thread().clone())) {
        thread.unpark();
    }
}

fn watch() {
    loop {
        thread::park_timeout(PERIOD);
        let (generation, now) = (generation(), Now::read());
        for bell in BELLS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if bell.due.is_now(generation, now) {
                bell.ring();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_due_by_its_oldest_decision_and_its_first_end() {
        let due = Due::default();
        let valid = |generation, ends_ms| Validity { generation, ends_ms };
        let is_due = |generation, ms| due.is_now(generation, Now::at_ms(ms));
        assert!(!is_due(5, 1000), "nothing runs");
        due.set(valid(5, 2000));
        assert_eq!((is_due(5, 1999), is_due(5, 2000), is_due(6, 0)), (false, true, true));
        due.narrow(valid(4, 3000));
        assert_eq!((is_due(4, 1999), is_due(5, 1999), is_due(4, 2000)), (false, true, true));
        due.set(valid(5, u64::MAX));
        assert!(!is_due(5, 3000));
    }
}
