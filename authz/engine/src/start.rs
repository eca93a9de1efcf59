//! What a process that writes spools is given by its agent when it is started: keys, and the agent's signed statement
//! about them.
//!
//! `magic (8) | root key (32) | hash key (32) | statement`, in `ROOT/start`. The file is read once and unlinked: from then
//! on the root key is in this process's memory only, and sealed in the statement to the collector.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::head::Head;
use crate::ratchet::{erase, Key, Root};
use crate::sha256::HASH_BYTES;

const MAGIC: &[u8; 8] = b"PLTSTRT1";
/// Longest start. A statement has a chain of certificates and the heads of some spools.
const MAX_BYTES: u64 = 256 * 1024;

/// What a process was given, and what it has begun since.
pub struct Start {
    roots: Mutex<Roots>,
    hash_key: [u8; HASH_BYTES],
    statement: Box<[u8]>,
    heads: Mutex<Vec<Arc<Head>>>,
}

struct Roots {
    root: Root,
    /// Number of the next spool.
    next: u64,
}

impl Start {
    /// Takes the start that is for the next process with spools below `root`: nobody else can take it again.
    ///
    /// # Errors
    /// There is none, or it is none.
    pub fn take(root: &Path) -> io::Result<Self> {
        let path = root.join("start");
        let mut contents = Vec::with_capacity(MAX_BYTES as usize + 1); // no copy stays behind in memory that was outgrown
        let file = File::open(&path)?;
        fs::remove_file(&path)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut contents)?;
        let start = Self::parse(&contents);
        erase(&mut contents);
        start.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the start is none of this version"))
    }

    /// Reads a start; none where it is none.
    pub fn parse(contents: &[u8]) -> Option<Self> {
        let rest = contents.strip_prefix(MAGIC).filter(|_| contents.len() as u64 <= MAX_BYTES)?;
        let (root, rest) = rest.split_first_chunk()?;
        let (hash_key, statement) = rest.split_first_chunk()?;
        Some(Self {
            roots: Mutex::new(Roots { root: Root::new(*root), next: 0 }),
            hash_key: *hash_key,
            statement: statement.into(),
            heads: Mutex::default(),
        })
    }

    /// The key that values are hashed with which records must not show.
    pub fn hash_key(&self) -> &[u8; HASH_BYTES] {
        &self.hash_key
    }

    /// The agent's statement, as it goes into every genesis record.
    pub(crate) fn statement(&self) -> &[u8] {
        &self.statement
    }

    /// The number of the next spool and its first key.
    pub(crate) fn next_spool(&self) -> (u64, Key) {
        let mut roots = lock(&self.roots);
        let index = roots.next;
        roots.next += 1;
        (index, roots.root.next_spool())
    }

    /// Where all spools of the process stand: for each its id (16), last sequence (8) and last link (32).
    pub fn heads(&self) -> Vec<u8> {
        lock(&self.heads).iter().flat_map(|head| head.read()).collect()
    }

    pub(crate) fn begun(&self, head: Arc<Head>) {
        lock(&self.heads).push(head);
    }

    pub(crate) fn closed(&self, head: &Arc<Head>) {
        lock(&self.heads).retain(|each| !Arc::ptr_eq(each, head));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_start_is_taken_once() {
        let root = tempfile::tempdir().expect("a folder");
        let contents = [&MAGIC[..], &[1; 32], &[2; 32], b"statement"].concat();
        fs::write(root.path().join("start"), contents).expect("written");
        let start = Start::take(root.path()).expect("a start");
        assert_eq!((start.statement(), start.hash_key()), (&b"statement"[..], &[2; 32]));
        assert_eq!(Start::take(root.path()).err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn every_spool_has_a_key_of_its_own() {
        let start = Start::parse(&[&MAGIC[..], &[1; 32], &[2; 32]].concat()).expect("a start");
        let ((first, a), (second, b)) = (start.next_spool(), start.next_spool());
        assert_eq!((first, second), (0, 1));
        assert!(a != b);
    }

    #[test]
    fn a_start_that_is_too_long_is_none() {
        let mut contents = [&MAGIC[..], &[1; 64]].concat();
        contents.resize(MAX_BYTES as usize, 0);
        assert!(Start::parse(&contents).is_some());
        contents.push(0);
        assert!(Start::parse(&contents).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_start_or_not(contents in proptest::collection::vec(any::<u8>(), 0..128), good: bool) {
            let contents = if good { [&MAGIC[..], &contents].concat() } else { contents };
            prop_assert_eq!(Start::parse(&contents).is_some(), contents.starts_with(MAGIC) && contents.len() >= 72);
        }
    }
}
