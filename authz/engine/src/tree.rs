//! The Merkle tree over all records of a store (RFC 9162, section 2.1), kept as the roots of the perfect trees that it
//! is made of: that is all that appending needs.

use ring::digest::{Context, SHA256};

use crate::Hash;

/// Bytes of a node's hash.
pub const NODE_BYTES: usize = 32;

/// Hash of a leaf or of an inner node.
pub type Node = [u8; NODE_BYTES];

const LEAF: u8 = 0;
const INNER: u8 = 1;

/// The hash of the leaf that stands for a record: its place in its spool, its link (which tells of its body and of all
/// before it), and whose spool it is.
pub fn leaf(spool: &[u8], sequence: u64, link: &[u8], owner: &[u8]) -> Node {
    digest(&[&[LEAF], spool, &sequence.to_be_bytes(), link, owner])
}

/// The hash of the node above two.
pub fn inner(left: &Node, right: &Node) -> Node {
    digest(&[&[INNER], left, right])
}

fn digest(parts: &[&[u8]]) -> Node {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; NODE_BYTES];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// A tree that grows at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the perfect trees, the largest first: one for each bit of `size` that is set.
    roots: Vec<Node>,
}

impl Frontier {
    /// The tree of `size` leaves with these roots, one after the other; none where there are more or fewer of them
    /// than such a tree has.
    pub fn new(size: u64, roots: &[u8]) -> Option<Self> {
        let (roots, rest) = roots.as_chunks::<NODE_BYTES>();
        (rest.is_empty() && roots.len() == size.count_ones() as usize).then(|| Self { size, roots: roots.to_vec() })
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: Node) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            let left = self.roots.pop().expect("there is a root for each bit that is set");
            node = inner(&left, &node);
        }
        self.roots.push(node);
        self.size += 1;
    }

    /// The hash of the whole tree.
    pub fn root(&self) -> Node {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return Hash::of(b"").0 };
        roots.fold(*last, |right, left| inner(left, &right))
    }

    /// What [`Frontier::new`] takes.
    pub fn bytes(&self) -> Vec<u8> {
        self.roots.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 9162, section 2.1.1, word for word.
    fn tree_hash(leaves: &[Node]) -> Node {
        match leaves {
            [] => Hash::of(b"").0,
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                inner(&tree_hash(left), &tree_hash(right))
            }
        }
    }

    proptest! {
        #[test]
        fn a_tree_that_grew_is_the_tree_of_its_leaves(leaves in proptest::collection::vec(any::<Node>(), 0..70)) {
            let mut grown = Frontier::default();
            for (size, leaf) in leaves.iter().enumerate() {
                prop_assert_eq!(grown.root(), tree_hash(&leaves[..size]));
                prop_assert_eq!(Frontier::new(size as u64, &grown.bytes()), Some(grown.clone()));
                grown.push(*leaf);
            }
        }
    }

    #[test]
    fn roots_that_are_not_those_of_the_size_are_refused() {
        for (size, bytes) in [(0, 32), (1, 0), (1, 31), (3, 32), (2, 64)] {
            assert_eq!(Frontier::new(size, &vec![0; bytes]), None, "{size} leaves, {bytes} bytes");
        }
    }
}
