//! How much the spools below one folder hold: what keeps them within their bound.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::mapped::Mapped;
use crate::spool::make_folder;

/// Words of the file: bytes written, bytes acknowledged, and what was dropped (how often, since when, until when).
const WORDS: usize = 5;

/// Bytes written and acknowledged, in memory shared between the writers and whoever ships; and how many records were
/// dropped for want of room, which outlives the process until it is told.
pub struct Usage {
    memory: Mapped,
    bound: u64,
    /// Held by whoever counts what is dropped, or tells it.
    dropping: Mutex<()>,
}

/// Requests that were let through without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// How many.
    pub count: u64,
    /// When the first came, in nanoseconds since 1970.
    pub since_ns: u64,
    /// When the last came.
    pub until_ns: u64,
}

impl Usage {
    /// Opens `root/usage`, making it where it is missing. Spools together may hold `bound` bytes.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn open(root: &Path, bound: u64) -> io::Result<Self> {
        make_folder(root)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(root.join("usage"))?;
        let length = WORDS * size_of::<u64>();
        if file.metadata()?.len() < length as u64 {
            file.set_len(length as u64)?;
        }
        Ok(Self { memory: Mapped::of(&file, length)?, bound, dropping: Mutex::new(()) })
    }

    fn words(&self) -> &[AtomicU64; WORDS] {
        self.memory.words()
    }

    fn counters(&self) -> &[AtomicU64; 2] {
        let [written_and_acknowledged @ .., _, _, _] = self.words();
        written_and_acknowledged
    }

    /// Whether another request may be let in, whose records are then written.
    pub fn has_room(&self) -> bool {
        self.held() < self.bound
    }

    /// Whether a record may be written. Above the bound there is a reserve, an eighth of it, for the ends of what was
    /// let in and for refusals; without an end to it, requests that are denied because the disk is full would fill it.
    pub(crate) fn has_reserve(&self) -> bool {
        self.held() < self.bound.saturating_add(self.bound / 8)
    }

    /// Bytes that are written and not yet acknowledged.
    pub fn held(&self) -> u64 {
        let [written, acknowledged] = self.counters();
        written.load(Ordering::Relaxed).saturating_sub(acknowledged.load(Ordering::Relaxed))
    }

    /// Begins anew with `bytes` held: for whoever ships, before any writer has started.
    pub fn reset(&self, bytes: u64) {
        let [written, acknowledged] = self.counters();
        acknowledged.store(0, Ordering::Relaxed);
        written.store(bytes, Ordering::Relaxed);
    }

    /// Notes that `bytes` were shipped and acknowledged.
    pub fn acknowledge(&self, bytes: u64) {
        self.counters()[1].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a request that is let through without a record.
    pub fn drop_one(&self, time_ns: u64) {
        let _counting = self.dropping.lock().unwrap_or_else(PoisonError::into_inner);
        let [_, _, count, since, until] = self.words();
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            since.store(time_ns, Ordering::Relaxed);
        }
        until.store(time_ns, Ordering::Relaxed);
    }

    /// Tells what was dropped since it was last told, if anything was. A process that dies in between tells it again.
    ///
    /// # Errors
    /// `tell`'s. Then it is to be told again.
    pub fn tell_dropped(&self, tell: impl FnOnce(Dropped) -> io::Result<()>) -> io::Result<()> {
        let _telling = self.dropping.lock().unwrap_or_else(PoisonError::into_inner);
        let [_, _, count, since, until] = self.words();
        let [dropped, since_ns, until_ns] = [count, since, until].map(|word| word.load(Ordering::Relaxed));
        if dropped > 0 {
            tell(Dropped { count: dropped, since_ns, until_ns })?;
            count.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(crate) fn wrote(&self, bytes: u64) {
        self.counters()[0].fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_told_once_and_by_the_next_process_too() {
        let root = tempfile::tempdir().expect("a folder");
        let open = || Usage::open(root.path(), 100).expect("usage");
        let usage = open();
        [5, 7, 9].into_iter().for_each(|time| usage.drop_one(time));
        usage.wrote(30);
        drop(usage);
        let usage = open();
        assert!(usage.tell_dropped(|_| Err(io::Error::other("no room"))).is_err());
        let mut told = Vec::new();
        let mut tell = || {
            usage.tell_dropped(|dropped| {
                told.push(dropped);
                Ok(())
            })
        };
        tell().expect("told");
        tell().expect("nothing to tell");
        usage.drop_one(20);
        tell().expect("told");
        let dropped = |count, since_ns, until_ns| Dropped { count, since_ns, until_ns };
        assert_eq!(told, [dropped(3, 5, 9), dropped(1, 20, 20)]);
        assert_eq!(usage.held(), 30);
    }
}
