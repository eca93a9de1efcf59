//! SHA-256 of the few short messages that every audit record takes: its link, its code, its key.
//!
//! One function for all of them, and nothing but it around the block function: code that is fetched anew for each request
//! costs more than what it does.

use sha2::block_api::compress256;

use crate::ratchet::erase;

/// Bytes of a hash.
pub(crate) const HASH_BYTES: usize = 32;
const BLOCK_BYTES: usize = 64;
/// Of the length, which ends the last block (FIPS 180-4 section 5.1.1).
const LENGTH_BYTES: usize = 8;
/// FIPS 180-4 section 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The hash of `first`, which must be shorter than a block, followed by `second`. What was copied of them is erased.
///
/// # Panics
/// `first` is no shorter than a block.
#[inline(never)]
pub(crate) fn sha256(first: &[u8], second: &[u8]) -> [u8; HASH_BYTES] {
    let (mut state, mut block) = (INITIAL, [0; BLOCK_BYTES]);
    let (start, rest) = second.split_at(second.len().min(BLOCK_BYTES - first.len()));
    let mut filled = first.len() + start.len();
    block[..first.len()].copy_from_slice(first);
    block[first.len()..filled].copy_from_slice(start);
    if filled == BLOCK_BYTES {
        compress256(&mut state, std::slice::from_ref(&block));
        let (whole, rest) = rest.as_chunks();
        compress256(&mut state, whole);
        filled = rest.len();
        block[..filled].copy_from_slice(rest);
        block[filled..].fill(0);
    }
    block[filled] = 0x80;
    if filled + 1 + LENGTH_BYTES > BLOCK_BYTES {
        compress256(&mut state, std::slice::from_ref(&block));
        block.fill(0);
    }
    let bits = (first.len() + second.len()) as u64 * 8;
    block[BLOCK_BYTES - LENGTH_BYTES..].copy_from_slice(&bits.to_be_bytes());
    compress256(&mut state, std::slice::from_ref(&block));
    erase(&mut block);
    let mut hash = [0; HASH_BYTES];
    for (bytes, word) in hash.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use crate::Hash;

    #[test]
    fn it_is_sha_256_at_every_length() {
        let message: Vec<u8> = (0..=255).cycle().take(400).collect();
        for length in 0..message.len() {
            for split in [0, 1, 16, 32, 55, 63].into_iter().filter(|split| *split <= length) {
                let (first, second) = message[..length].split_at(split);
                assert_eq!(sha256(first, second), Hash::of(&message[..length]).0, "{split} of {length} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_sha_256(message in proptest::collection::vec(any::<u8>(), 0..2000), split in 0..BLOCK_BYTES) {
            let (first, second) = message.split_at(split.min(message.len()));
            prop_assert_eq!(sha256(first, second), Hash::of(&message).0);
        }
    }
}
