//! Keys of audit records, each of which is hashed into the next and erased: whoever takes over a process finds none by
//! which it could forge what was written before.
//!
//! A start of a process has a root key. Spool number i of it begins with a key made of root i, which is then hashed into
//! root i + 1; record n + 1 of a spool has the hash of the key of record n. `mac = SHA-256(key | link)[..16]`: its input is
//! always one block, so that nothing can be appended to it.

use std::arch::asm;

use sha2::block_api::compress256;

/// Bytes of a link of the chain, and of a root key.
pub(crate) const HASH_BYTES: usize = 32;
/// Bytes of a record's key.
const KEY_BYTES: usize = 16;
/// Bytes of a record's message authentication code.
pub const MAC_BYTES: usize = 16;

const NEXT_KEY: &[u8] = b"peltast audit key 2\0";
const FIRST_KEY: &[u8] = b"peltast audit spool 2\0";
const NEXT_ROOT: &[u8] = b"peltast audit root 2\0";

const BLOCK_BYTES: usize = 64;
/// The longest message that is one block with its padding (FIPS 180-4 section 5.1.1).
const MAX_MESSAGE_BYTES: usize = BLOCK_BYTES - 9;
/// FIPS 180-4 section 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The key of one record.
#[derive(PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// The code of a record with this key and with `link`.
    #[inline]
    pub fn mac(&self, link: &[u8; HASH_BYTES]) -> [u8; MAC_BYTES] {
        hash(&self.0, link)
    }

    /// Becomes the next record's key; the one before is erased.
    #[inline]
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
#[inline]
fn hash<const N: usize>(first: &[u8], second: &[u8]) -> [u8; N] {
    let length = first.len() + second.len();
    assert!(length <= MAX_MESSAGE_BYTES, "a message is one block");
    let mut block = [0; BLOCK_BYTES];
    block[..first.len()].copy_from_slice(first);
    block[first.len()..length].copy_from_slice(second);
    block[length] = 0x80;
    block[BLOCK_BYTES - 8..].copy_from_slice(&(length as u64 * 8).to_be_bytes());
    let mut state = INITIAL;
    compress256(&mut state, std::slice::from_ref(&block));
    erase(&mut block);
    let mut digest = [0; HASH_BYTES];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    let mut taken = [0; N];
    taken.copy_from_slice(&digest[..N]);
    erase(&mut digest);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::Hash;

    proptest! {
        #[test]
        fn it_is_sha_256(message in proptest::collection::vec(any::<u8>(), 0..=MAX_MESSAGE_BYTES), split in 0_usize..=55) {
            let (first, second) = message.split_at(split.min(message.len()));
            prop_assert_eq!(hash::<32>(first, second), Hash::of(&message).0);
        }
    }

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
