//! A segment of a spool: a file of frames that is written through memory, because a system call for each record would
//! cost more than all else that is done for it.
//!
//! A segment is `committed (u64, little-endian) | anchor | frames`: the first `committed` bytes of the frames are there,
//! whole; what follows them is not there yet. The anchor is where the chain stands before the first frame, sequence (u64)
//! and link (32): by it a reader goes on after a segment that was damaged. The count is written last, so that a writer that dies at any moment leaves whole
//! frames, and a reader never sees a part of one. The pages are the file's own: they survive the process at once.
//!
//! A segment that is done with is written again, as PostgreSQL does with its log: a page that is touched for the first
//! time costs more than all that is written to it, most of all in a virtual machine.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::mapped::{reserve, Mapped};
use crate::record::Position;

/// Bytes of a segment's file while it is written.
pub(crate) const SEGMENT_BYTES: usize = 4 * 1024 * 1024;

/// Bytes before the frames.
const HEADER_BYTES: usize = COUNT_BYTES + 8 + 32;
const COUNT_BYTES: usize = 8;

/// The writing end of a segment.
pub(crate) struct Segment {
    file: File,
    memory: Mapped,
    committed: usize,
}

impl Segment {
    /// Makes the file at `path`, for frames that follow `anchor`, with all the room that it will need: a page that could not be written when its turn
    /// came would be the end of the process.
    ///
    /// # Errors
    /// The file is there already, cannot be made, has no room or cannot be mapped. Then none is left.
    pub(crate) fn create(path: &Path, anchor: &Position) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        match reserve(&file, SEGMENT_BYTES).and_then(|()| Mapped::of(&file, SEGMENT_BYTES)) {
            Ok(memory) => {
                let mut segment = Self { file, memory, committed: 0 };
                segment.anchor(anchor);
                Ok(segment)
            }
            Err(error) => {
                fs::remove_file(path)?;
                Err(error)
            }
        }
    }

    /// Begins anew under the name `path`, if `spare` is this segment's file: its pages are at hand, and written to
    /// without asking the kernel.
    ///
    /// # Errors
    /// It is another file, or cannot be renamed.
    pub(crate) fn recycle(mut self, spare: &Path, path: &Path, anchor: &Position) -> io::Result<Self> {
        if fs::metadata(spare)?.ino() != self.file.metadata()?.ino() {
            return Err(io::Error::other("the file is another's"));
        }
        self.committed = 0;
        self.publish(); // before it has the name by which readers find it
        self.anchor(anchor);
        fs::rename(spare, path)?;
        Ok(self)
    }

    /// Whether a frame of `length` bytes still has room.
    pub(crate) fn fits(&self, length: usize) -> bool {
        length <= SEGMENT_BYTES - HEADER_BYTES - self.committed
    }

    /// Writes a frame, which must fit.
    pub(crate) fn append(&mut self, frame: &[u8]) {
        assert!(self.fits(frame.len()), "a frame goes where it has room");
        self.memory.write(HEADER_BYTES + self.committed, frame);
        self.committed += frame.len();
        self.publish();
    }

    fn anchor(&mut self, anchor: &Position) {
        self.memory.write(COUNT_BYTES, &anchor.sequence.to_le_bytes());
        self.memory.write(COUNT_BYTES + 8, &anchor.link);
    }

    fn publish(&mut self) {
        let [committed] = self.memory.words();
        committed.store((self.committed as u64).to_le(), Ordering::Release);
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Only room is lost where this fails.
        let _ = self.file.set_len((HEADER_BYTES + self.committed) as u64);
    }
}

/// The committed frames of a segment's bytes.
#[cfg(test)]
pub(crate) fn committed(segment: &[u8]) -> &[u8] {
    let (header, frames) = segment.split_first_chunk::<HEADER_BYTES>().expect("a segment has a header");
    &frames[..u64::from_le_bytes(*header.first_chunk().expect("a count")) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: Position = Position { sequence: 0, link: [1; 32] };
    const LATER: Position = Position { sequence: 7, link: [2; 32] };

    fn anchor(path: &Path) -> Vec<u8> {
        fs::read(path).expect("read")[COUNT_BYTES..HEADER_BYTES].to_vec()
    }

    #[test]
    fn what_is_committed_is_there_at_once_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("segment");
        let mut segment = Segment::create(&path, &ANCHOR).expect("a segment");
        let read = || fs::read(&path).expect("read");
        assert_eq!(committed(&read()), b"");
        segment.append(b"one");
        segment.append(b"two");
        assert_eq!((committed(&read()), read().len()), (&b"onetwo"[..], SEGMENT_BYTES));
        drop(segment);
        assert_eq!((committed(&read()), read().len()), (&b"onetwo"[..], HEADER_BYTES + 6));
    }

    #[test]
    fn a_segment_is_written_again_under_another_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let [spare, path] = ["spare", "segment"].map(|name| folder.path().join(name));
        let mut segment = Segment::create(&spare, &ANCHOR).expect("a segment");
        segment.append(b"what was acknowledged");
        assert_eq!(anchor(&spare), [&[0; 8][..], &[1; 32]].concat());
        let mut segment = segment.recycle(&spare, &path, &LATER).expect("a segment");
        assert!(!spare.exists());
        assert_eq!(anchor(&path), [&[7, 0, 0, 0, 0, 0, 0, 0][..], &[2; 32]].concat());
        assert_eq!(committed(&fs::read(&path).expect("read")), b"");
        segment.append(b"new");
        assert_eq!(committed(&fs::read(&path).expect("read")), b"new");
        assert!(segment.fits(SEGMENT_BYTES - HEADER_BYTES - 3));
    }

    #[test]
    fn only_its_own_file_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let [mine, other, path] = ["mine", "other", "segment"].map(|name| folder.path().join(name));
        let segment = Segment::create(&mine, &ANCHOR).expect("a segment");
        fs::write(&other, b"kept").expect("written");
        assert!(segment.recycle(&other, &path, &LATER).is_err());
        assert_eq!((fs::read(&other).expect("read"), path.exists()), (b"kept".to_vec(), false));
    }

    #[test]
    fn a_segment_holds_what_fits_to_the_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("segment");
        let mut segment = Segment::create(&path, &ANCHOR).expect("a segment");
        segment.append(&vec![7; SEGMENT_BYTES - HEADER_BYTES - 10]);
        assert!(segment.fits(10) && !segment.fits(11));
        segment.append(&[8; 10]);
        assert!(segment.fits(0) && !segment.fits(1));
        assert!(committed(&fs::read(&path).expect("read")).ends_with(&[7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]));
    }

    #[test]
    fn a_file_that_is_there_is_not_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("segment");
        fs::write(&path, b"kept").expect("written");
        assert!(Segment::create(&path, &ANCHOR).is_err());
        assert_eq!(fs::read(&path).expect("read"), b"kept");
    }
}
