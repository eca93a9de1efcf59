//! How much the spools below one folder hold: what keeps them within their bound.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mapped::Mapped;
use crate::spool::make_folder;

/// Bytes written and acknowledged, in memory shared between the writers and whoever ships.
pub struct Usage {
    memory: Mapped,
    bound: u64,
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
        if file.metadata()?.len() < 16 {
            file.set_len(16)?;
        }
        Ok(Self { memory: Mapped::of(&file, 16)?, bound })
    }

    fn counters(&self) -> &[AtomicU64; 2] {
        self.memory.words()
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

    pub(crate) fn wrote(&self, bytes: u64) {
        self.counters()[0].fetch_add(bytes, Ordering::Relaxed);
    }
}
