//! Keys of audit records, each of which is hashed into the next and erased: whoever takes over a process finds none by
//! which it could forge what was written before.
//!
//! A start of a process has a root key. Spool number i of it begins with a key made of root i, which is then hashed into
//! root i + 1; record n + 1 of a spool has the hash of the key of record n. `mac = SHA-256(key | link)[..16]`: its input is
//! always one block, so that nothing can be appended to it.

use std::arch::asm;

use crate::sha256::{sha256, HASH_BYTES};

/// Bytes of a record's key.
const KEY_BYTES: usize = 16;
/// Bytes of a record's message authentication code.
pub const MAC_BYTES: usize = 16;

const NEXT_KEY: &[u8] = b"peltast audit key 2\0";
const FIRST_KEY: &[u8] = b"peltast audit spool 2\0";
const NEXT_ROOT: &[u8] = b"peltast audit root 2\0";

/// The longest message that is one block with its padding (FIPS 180-4 section 5.1.1).
const MAX_MESSAGE_BYTES: usize = 55;

/// The key of one record.
#[derive(PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// The code of a record with this key and with `link`.
    pub fn mac(&self, link: &[u8; HASH_BYTES]) -> [u8; MAC_BYTES] {
        hash(&self.0, link)
    }

    /// Becomes the next record's key; the one before is erased.
    pub fn advance(&mut self) {
        let next = hash(NEXT_KEY, &self.0);
        self.0 = next;
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

/// The root key of a start, after some spools were begun.
pub struct Root([u8; HASH_BYTES]);

impl Root {
    /// The root that a start begins with.
    pub fn new(root: [u8; HASH_BYTES]) -> Self {
        Self(root)
    }

    /// The first key of the next spool. The root that it was made of is erased.
    pub fn next_spool(&mut self) -> Key {
        let key = Key(hash(FIRST_KEY, &self.0));
        self.0 = hash(NEXT_ROOT, &self.0);
        key
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

/// Overwrites a key, and no compiler may leave it out.
pub(crate) fn erase(secret: &mut [u8]) {
    secret.fill(0);
    // SAFETY: no instruction at all; to the compiler it may read what was just written.
    unsafe { asm!("/* {0} */", in(reg) secret.as_ptr(), options(nostack, preserves_flags)) };
}

/// The first `N` bytes of the SHA-256 of `first` and `second`, which together are a message of one block.
fn hash<const N: usize>(first: &[u8], second: &[u8]) -> [u8; N] {
    assert!(first.len() + second.len() <= MAX_MESSAGE_BYTES, "a message is one block");
    let (mut digest, mut taken) = (sha256(first, second), [0; N]);
    taken.copy_from_slice(&digest[..N]);
    erase(&mut digest);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    #[test]
    fn keys_are_made_as_the_documentation_says() {
        let root = [7; 32];
        let mut roots = Root::new(root);
        let first = Hash::of(&[&b"peltast audit spool 2\0"[..], &root].concat()).0;
        let mut key = roots.next_spool();
        assert_eq!(key.0, first[..16]);
        key.advance();
        assert_eq!(key.0, Hash::of(&[&b"peltast audit key 2\0"[..], &first[..16]].concat()).0[..16]);
        assert_eq!(key.mac(&[1; 32]), Hash::of(&[&key.0[..], &[1; 32]].concat()).0[..16]);
        assert_eq!(roots.0, Hash::of(&[&b"peltast audit root 2\0"[..], &root].concat()).0);
    }

    #[test]
    fn what_was_erased_is_zero() {
        let mut secret = [9; 16];
        erase(&mut secret);
        assert_eq!(secret, [0; 16]);
    }
}
