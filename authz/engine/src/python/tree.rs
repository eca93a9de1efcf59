//! The tree over stored records, and the walk that verifies them, for Python.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::records::{spool_key, PyRecord};
use super::refused;
use crate::stored::{Fault, Suspect, Walk};
use crate::tree::{self, Frontier, Node};

/// The hash of the tree's leaf for a record.
#[pyfunction]
pub(super) fn leaf_hash<'py>(
    py: Python<'py>,
    spool: &[u8],
    sequence: u64,
    link: &[u8],
    owner: &str,
) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &tree::leaf(spool, sequence, link, owner.as_bytes()))
}

/// The hashes of the tree's leaves for `records`, one after the other.
#[pyfunction]
pub(super) fn leaf_hashes<'py>(
    py: Python<'py>,
    spool: &[u8],
    owner: &str,
    records: Vec<PyRef<'py, PyRecord>>,
) -> Bound<'py, PyBytes> {
    let leaf = |record: &PyRef<'py, PyRecord>| {
        tree::leaf(spool, record.sequence, record.link.bind(py).as_bytes(), owner.as_bytes())
    };
    PyBytes::new(py, &records.iter().map(leaf).collect::<Vec<_>>().concat())
}

/// The tree of `size` leaves with these roots of perfect trees after `leaves` were appended: its own such roots.
#[pyfunction]
pub(super) fn grow_tree<'py>(
    py: Python<'py>,
    size: u64,
    frontier: &[u8],
    leaves: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let mut tree = frontier_of(size, frontier)?;
    let (leaves, rest) = leaves.as_chunks::<{ tree::NODE_BYTES }>();
    if !rest.is_empty() {
        return Err(refused("a leaf's hash is cut short"));
    }
    py.detach(|| leaves.iter().for_each(|leaf| tree.push(*leaf)));
    Ok(PyBytes::new(py, &tree.bytes()))
}

/// The hash of the tree of `size` leaves with these roots of perfect trees.
#[pyfunction]
pub(super) fn tree_root<'py>(py: Python<'py>, size: u64, frontier: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &frontier_of(size, frontier)?.root()))
}

fn frontier_of(size: u64, frontier: &[u8]) -> PyResult<Frontier> {
    Frontier::new(size, frontier).ok_or_else(|| refused(format!("a tree of {size} leaves has another frontier")))
}

#[pyclass(name = "Walk")]
pub(super) struct PyWalk(Walk);

/// What is wrong with a row: leaf, spool, sequence, `sequence`, `link`, `code` or `columns`, and the record that was due.
type Suspected = (i64, Py<PyBytes>, i64, &'static str, Option<i64>);

#[pymethods]
impl PyWalk {
    #[new]
    fn new(columns: Vec<String>) -> PyResult<Self> {
        Ok(Self(Walk::new(&columns).map_err(refused)?))
    }

    fn own(&mut self, spool: Vec<u8>, owner: String) {
        self.0.own(spool, owner.into_bytes());
    }

    fn miss(&mut self, spool: Vec<u8>, since: u64, until: u64, link: [u8; 32]) {
        self.0.miss(spool, since, until, link);
    }

    /// Says by which root key of which start the spool was begun, and as which one: its codes are compared from now on.
    fn authenticate(&mut self, py: Python<'_>, spool: Vec<u8>, root: [u8; 32], start_index: u64) {
        let key = py.detach(|| spool_key(root, start_index));
        self.0.authenticate(spool, key);
    }

    /// Goes over rows: the numbers of their leaves, the leaves' hashes one after the other, and what is wrong.
    fn rows(&mut self, py: Python<'_>, copied: &[u8]) -> PyResult<(Vec<i64>, Py<PyBytes>, Vec<Suspected>)> {
        let (leaves, suspects) = py.detach(|| self.0.rows(copied)).map_err(refused)?;
        let (numbers, hashes): (Vec<i64>, Vec<Node>) = leaves.into_iter().unzip();
        let suspects = suspects.iter().map(|suspect| suspected(py, suspect)).collect();
        Ok((numbers, PyBytes::new(py, &hashes.concat()).unbind(), suspects))
    }

    /// Sequence and link of the last record of `spool`.
    fn end<'py>(&self, py: Python<'py>, spool: &[u8]) -> (u64, Bound<'py, PyBytes>) {
        let (sequence, link) = self.0.end(spool);
        (sequence, PyBytes::new(py, &link))
    }

    fn spools<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.0.spools().map(|spool| PyBytes::new(py, spool)).collect()
    }
}

fn suspected(py: Python<'_>, suspect: &Suspect) -> Suspected {
    let (fault, due) = match suspect.fault {
        Fault::Sequence { due } => ("sequence", Some(due as i64)),
        Fault::Link => ("link", None),
        Fault::Code => ("code", None),
        Fault::Columns => ("columns", None),
    };
    (suspect.leaf, PyBytes::new(py, &suspect.spool).unbind(), suspect.sequence as i64, fault, due)
}
