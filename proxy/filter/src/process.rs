//! The spool of the process itself, and the thread that writes it: that the process lives and where its spools stand,
//! what workers have counted, what was let through without a record, and that all of them are closed. The thread also brings records to the disk,
//! where an AuditPolicy wants that: it waits for disks, and nobody waits for it. And it looks which borrowed tokens are to
//! go back.

use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use peltast_engine::record::{Field, Kind};
use peltast_engine::spool::{self, Spool};

use crate::borrow;
use crate::config::{spool_root, sync_interval, SpoolRoot};
use crate::envoy::warn;
use crate::quota::{self, quotas};
use crate::summary;
use crate::worker::Now;

/// How often the process says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often it is looked whether there is something to do.
const PERIOD: Duration = Duration::from_millis(500);

/// What the process writes for itself.
struct Process {
    spool: State,
    counts: summary::Writer,
}

/// The process's spool.
enum State {
    /// Not begun, or it could not be.
    None,
    Open(Spool),
    /// The process ends.
    Closed,
}

impl State {
    fn open(&mut self) -> Option<&mut Spool> {
        match self {
            Self::Open(spool) => Some(spool),
            Self::None | Self::Closed => None,
        }
    }
}

static PROCESS: Mutex<Process> = Mutex::new(Process { spool: State::None, counts: summary::Writer::new() });

/// Starts the thread, the first time.
pub(crate) fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // SAFETY: a function of ours, in a module that is never unloaded.
        unsafe { libc::atexit(close) };
        if let Err(error) = thread::Builder::new().name("peltast-spool".to_owned()).spawn(run) {
            warn(&format!("peltast: no heartbeats: {error}"));
        }
    });
}

/// Envoy ends, in order: so does the spool.
extern "C" fn close() {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let Process { spool, counts } = &mut *process;
    if let Some(spool) = spool.open() {
        tell(counts.write_all(spool, Now::read()), "count");
    }
    process.spool = State::Closed;
}

fn run() {
    let Ok(root) = spool_root() else { return }; // every request is denied, and told why
    let (mut beat, mut synced) = (Instant::now(), Instant::now());
    loop {
        let due = beat.elapsed() >= HEARTBEAT;
        if due {
            beat = Instant::now();
        }
        tell(write(root, due), "record");
        quotas().tick(quota::now());
        borrow::ring();
        let interval = sync_interval();
        if interval.is_some_and(|interval| synced.elapsed() >= interval) {
            synced = Instant::now();
            tell(spool::sync(&root.folder), "sync");
        }
        thread::sleep(interval.map_or(PERIOD, |interval| interval.min(PERIOD)));
    }
}

/// Writes what there is to tell.
fn write(root: &SpoolRoot, heartbeat: bool) -> io::Result<()> {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let Process { spool, counts } = &mut *process;
    if matches!(spool, State::None) && root.usage.has_room() {
        *spool = State::Open(open(root)?);
    }
    counts.write_due(spool.open(), Now::read())?;
    let Some(spool) = spool.open() else { return Ok(()) };
    if heartbeat {
        spool.heartbeat(Now::read().ns())?;
    }
    if root.usage.has_room() {
        tell_dropped(root, spool)?;
    }
    Ok(())
}

fn tell_dropped(root: &SpoolRoot, spool: &mut Spool) -> io::Result<()> {
    root.usage.tell_dropped(|dropped| {
        let written = spool.append(Kind::Dropped, Now::read().ns(), |fields| {
            fields.number(Field::Count, dropped.count);
            fields.number(Field::SinceNs, dropped.since_ns);
            fields.number(Field::UntilNs, dropped.until_ns);
        });
        written.map(|_| ())
    })
}

fn open(root: &SpoolRoot) -> io::Result<Spool> {
    Spool::create(&root.folder, None, Arc::clone(&root.start), Arc::clone(&root.usage), Now::read().ns())
}

fn tell(result: io::Result<()>, what: &str) {
    if let Err(error) = result {
        warn(&format!("peltast: audit {what} of the process failed: {error}"));
    }
}
