//! Where a spool stands, for whoever else in its process looks: written for every record, without a lock.

use std::sync::atomic::{fence, AtomicU64, Ordering};

use crate::record::Position;

const LINK_WORDS: usize = 4;
/// Bytes of what [`Head::read`] gives.
pub const HEAD_BYTES: usize = 56;

/// A spool's id, with the sequence and the link of its last record. One thread writes it.
pub(crate) struct Head {
    id: [u8; 16],
    /// Odd while it is written.
    version: AtomicU64,
    sequence: AtomicU64,
    link: [AtomicU64; LINK_WORDS],
}

impl Head {
    pub(crate) fn new(id: [u8; 16]) -> Self {
        Self { id, version: AtomicU64::new(0), sequence: AtomicU64::new(0), link: Default::default() }
    }

    /// Notes where the spool stands.
    #[inline]
    pub(crate) fn write(&self, position: &Position) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.sequence.store(position.sequence, Ordering::Relaxed);
        for (word, bytes) in self.link.iter().zip(position.link.as_chunks().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    /// `id (16) | sequence (8) | link (32)`, all of one moment.
    pub(crate) fn read(&self) -> [u8; HEAD_BYTES] {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let mut head = [0; HEAD_BYTES];
            head[..16].copy_from_slice(&self.id);
            let words = std::iter::once(&self.sequence).chain(&self.link);
            for (bytes, word) in head[16..].chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return head;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_always_of_one_moment() {
        let head = Head::new([9; 16]);
        let at = |sequence: u64| Position { sequence, link: [sequence as u8; 32] };
        head.write(&at(1));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (1..200_000).for_each(|sequence| head.write(&at(sequence))));
            let mut last = 0;
            while !writer.is_finished() {
                let read = head.read();
                let sequence = u64::from_le_bytes(*read[16..].first_chunk().expect("a number"));
                assert!(sequence >= last && read[24..].iter().all(|byte| *byte == sequence as u8), "{read:?}");
                last = sequence;
            }
        });
        assert_eq!(head.read()[..16], [9; 16]);
        assert_eq!(u64::from_le_bytes(*head.read()[16..].first_chunk().expect("a number")), 199_999);
    }
}
