//! How much the spools below one folder hold: what keeps them within their bound.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::spool::make_folder;

/// Bytes written and acknowledged, in memory shared between the writers and whoever ships.
pub struct Usage {
    counters: *mut [AtomicU64; 2],
    bound: u64,
}

// SAFETY: the mapping lives until drop, and is only touched through atomics.
unsafe impl Send for Usage {}
// SAFETY: as above.
unsafe impl Sync for Usage {}

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
        // SAFETY: a new shared mapping of 16 bytes of a file that has them.
        let counters = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                16,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if counters == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { counters: counters.cast(), bound })
    }

    fn counters(&self) -> &[AtomicU64; 2] {
        // SAFETY: mapped in `open`, page-aligned, unmapped in `drop`.
        unsafe { &*self.counters }
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

impl Drop for Usage {
    fn drop(&mut self) {
        // SAFETY: mapped in `open` with this length.
        unsafe { libc::munmap(self.counters.cast(), 16) };
    }
}
