//! A file's bytes as memory that is shared with whoever else maps the file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;

/// Gives `file` room for its first `length` bytes: a page that could not be written when its turn came would be the end
/// of the process.
///
/// # Errors
/// There is no room.
pub(crate) fn reserve(file: &File, length: usize) -> io::Result<()> {
    // SAFETY: a descriptor that is open.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length as libc::off_t) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The first bytes of a file.
pub(crate) struct Mapped {
    memory: *mut u8,
    length: usize,
}

// SAFETY: the mapping is this value's alone, and lives until drop.
unsafe impl Send for Mapped {}
// SAFETY: what is shared is only touched through atomics; anything else takes `&mut self`.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `length` bytes of `file`, which must have them.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn of(file: &File, length: usize) -> io::Result<Self> {
        let (access, sharing) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, access, sharing, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { memory: memory.cast(), length })
    }

    /// The first `N` words.
    pub(crate) fn words<const N: usize>(&self) -> &[AtomicU64; N] {
        assert!(N * 8 <= self.length, "words are within the mapping");
        // SAFETY: within the mapping, which begins on a page; words are only touched as atomics.
        unsafe { &*self.memory.cast() }
    }

    /// Writes `bytes` at `offset`, within the mapping.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.length && bytes.len() <= self.length - offset, "bytes go within the mapping");
        // SAFETY: as was just seen, and nobody else writes here.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(offset), bytes.len()) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` with this length.
        unsafe { libc::munmap(self.memory.cast(), self.length) };
    }
}
