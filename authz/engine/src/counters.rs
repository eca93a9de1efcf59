//! What a worker's caches did, and a file in which others can see it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::mapped::{reserve, Mapped};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What one worker's caches did since it began, and hold now.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Their names, in the order of [`Counters::values`].
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            fn values(&self) -> [u64; COUNT] {
                [$(self.$name,)*]
            }
        }

        const COUNT: usize = [$(stringify!($name),)*].len();
    };
}

counters! {
    /// Decisions that were remembered.
    hits,
    /// Decisions that were not, and were made.
    misses,
    /// Made and not remembered: a Rego policy reads what no attributes determine.
    uncacheable_input,
    /// Made and not remembered: a Rego policy failed, or the check service could not be asked.
    uncacheable_failure,
    /// Made and not remembered: the check service's answer does not say for how long it holds.
    uncacheable_answer,
    /// Decisions held.
    entries,
    /// Bytes that they take.
    bytes,
    /// Verified tokens held.
    tokens,
}

/// Workers that a file has places for; those beyond share the last.
const WORKERS: usize = 64;
const WORDS: usize = WORKERS * COUNT;

/// Every worker's counters, in a file of their own.
pub struct CounterFile(Mapped);

impl CounterFile {
    /// Makes the file at `path` anew, with nothing counted.
    ///
    /// # Errors
    /// It cannot be made or mapped.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        reserve(&file, WORDS * 8)?;
        Mapped::of(&file, WORDS * 8).map(Self)
    }

    /// Shows what `worker` counted.
    pub fn publish(&self, worker: u32, counters: &Counters) {
        let place = (worker as usize).min(WORKERS - 1) * COUNT;
        let words: &[_; WORDS] = self.0.words();
        for (word, value) in words[place..].iter().zip(counters.values()) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }
}

/// The values of every worker that counted anything, by its index, out of a file's bytes.
pub fn read(bytes: &[u8]) -> Vec<(usize, Vec<u64>)> {
    let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().unwrap_or_default());
    let workers = bytes.chunks_exact(COUNT * 8).map(|worker| worker.chunks_exact(8).map(word).collect::<Vec<_>>());
    workers.take(WORKERS).enumerate().filter(|(_, values)| values.iter().any(|value| *value > 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read_worker_by_worker() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache");
        let file = CounterFile::create(&path).expect("a file");
        let read_file = || read(&std::fs::read(&path).expect("read"));
        assert_eq!(read_file(), []);
        file.publish(1, &Counters { hits: 3, tokens: 7, ..Counters::default() });
        file.publish(1, &Counters { hits: 4, tokens: 7, ..Counters::default() });
        file.publish(1000, &Counters { misses: 1, ..Counters::default() });
        assert_eq!(read_file(), [(1, vec![4, 0, 0, 0, 0, 0, 0, 7]), (63, vec![0, 1, 0, 0, 0, 0, 0, 0])]);
        CounterFile::create(&path).expect("a file");
        assert_eq!(read_file(), []);
    }

    #[test]
    fn any_bytes_can_be_read() {
        for length in [0, 1, COUNT * 8 - 1, COUNT * 8, WORDS * 8 + 100] {
            assert!(read(&vec![0xff; length]).len() <= WORKERS);
        }
    }
}
