//! Records and their chain for Python.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::refused;
use crate::ratchet::{Key, Root};
use crate::record::{self, Kind, Position, Record, RecordError, State, Type};

#[pyclass(name = "Record", frozen, get_all)]
pub(super) struct PyRecord {
    schema: u16,
    kind: Option<&'static str>,
    pub(super) sequence: u64,
    time_ns: u64,
    body: Py<PyBytes>,
    pub(super) link: Py<PyBytes>,
    mac: Option<Py<PyBytes>>,
    fields: Py<PyDict>,
    redacted: Vec<&'static str>,
    hashed: Vec<&'static str>,
}

impl PyRecord {
    fn of(py: Python<'_>, record: &record::Record<'_>) -> PyResult<Self> {
        let fields = PyDict::new(py);
        let (mut redacted, mut hashed) = (Vec::new(), Vec::new());
        for (field, state, value) in record.states().map_err(refused)? {
            match state {
                State::Present => {}
                State::Hashed => hashed.push(field.name()),
                State::Redacted => {
                    redacted.push(field.name());
                    continue;
                }
            }
            match field.value_type() {
                Type::Number => fields.set_item(field.name(), record::number(value))?,
                Type::Text | Type::Bytes => fields.set_item(field.name(), PyBytes::new(py, value))?,
            }
        }
        Ok(Self {
            schema: record.schema(),
            kind: record.kind().map(Kind::name),
            sequence: record.sequence(),
            time_ns: record.time_ns(),
            body: PyBytes::new(py, record.body).unbind(),
            link: PyBytes::new(py, &record.link).unbind(),
            mac: record.mac.map(|mac| PyBytes::new(py, &mac).unbind()),
            fields: fields.unbind(),
            redacted,
            hashed,
        })
    }
}

/// Sequence of the first and of the last whole record in `frames`, and the bytes that whole records take; none where
/// there is no whole record yet.
#[pyfunction]
pub(super) fn scan_frames(frames: &[u8]) -> PyResult<Option<(u64, u64, usize)>> {
    let (mut length, mut sequences) = (0, None);
    while let Some((record, frame)) = record::read_frame(&frames[length..]).map_err(refused)? {
        let first = sequences.map_or(record.sequence(), |(first, _)| first);
        sequences = Some((first, record.sequence()));
        length += frame;
    }
    Ok(sequences.map(|(first, last)| (first, last, length)))
}

/// The bytes that the records up to and including `sequence` take at the start of `frames`, and sequence and link of
/// the last of them; none where the first is a later one, or is none.
#[pyfunction]
pub(super) fn skip_frames<'py>(
    py: Python<'py>,
    frames: &[u8],
    sequence: u64,
) -> Option<(usize, u64, Bound<'py, PyBytes>)> {
    let (mut length, mut last) = (0, None);
    while let Ok(Some((record, frame))) = record::read_frame(&frames[length..]) {
        if record.sequence() > sequence {
            break;
        }
        length += frame;
        last = Some(record);
    }
    last.map(|record| (length, record.sequence(), PyBytes::new(py, &record.link)))
}

/// The bytes of `frames` that continue a chain from (`sequence`, `link`), and where it then stands; and why what follows
/// them does not, where that is not only that it is not all there.
#[pyfunction]
pub(super) fn follow_frames(
    py: Python<'_>,
    sequence: u64,
    link: [u8; 32],
    frames: &[u8],
) -> (usize, u64, Py<PyBytes>, Option<String>) {
    let (mut position, mut length, mut problem) = (Position { sequence, link }, 0, None);
    py.detach(|| loop {
        match position.follow(&frames[length..]) {
            Ok(Some((_, frame))) => length += frame,
            Ok(None) => break,
            Err(error) => break problem = Some(error.to_string()),
        }
    });
    (length, position.sequence, PyBytes::new(py, &position.link).unbind(), problem)
}

/// The first key of the spool number `start_index` of a start with this root key.
pub(super) fn spool_key(root: [u8; 32], start_index: u64) -> Key {
    let mut root = Root::new(root);
    (0..start_index).for_each(|_| drop(root.next_spool()));
    root.next_spool()
}

/// The key of a spool's next record, for whoever verifies.
#[pyclass(name = "RecordKey")]
pub(super) struct PyRecordKey {
    key: Key,
    sequence: u64,
}

#[pymethods]
impl PyRecordKey {
    /// The first key of the spool number `start_index` of a start with this root key.
    #[new]
    fn new(py: Python<'_>, root: [u8; 32], start_index: u64) -> Self {
        Self { key: py.detach(|| spool_key(root, start_index)), sequence: 0 }
    }

    /// The record that was authenticated last, or passed over.
    #[getter]
    fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Passes over all records up to and including `sequence`.
    fn pass_over(&mut self, py: Python<'_>, sequence: u64) -> PyResult<()> {
        if sequence < self.sequence {
            return Err(refused(format!("the key of record {sequence} was erased")));
        }
        py.detach(|| (self.sequence..sequence).for_each(|_| self.key.advance()));
        self.sequence = sequence;
        Ok(())
    }
}

/// The records of `frames`, which continue a chain from (`sequence`, `link`); and where the chain then stands. With the
/// `key` of the first of them their codes are checked too, and it becomes that of the record after the last.
#[pyfunction]
#[pyo3(signature = (sequence, link, frames, key=None))]
pub(super) fn verify_frames(
    py: Python<'_>,
    sequence: u64,
    link: [u8; 32],
    frames: &[u8],
    key: Option<&mut PyRecordKey>,
) -> PyResult<(Vec<PyRecord>, u64, Py<PyBytes>)> {
    let verified: Result<(Vec<Record<'_>>, Position), RecordError> = py.detach(|| {
        let (records, position) = record::verify(Position { sequence, link }, frames)?;
        if let Some(known) = key {
            record::authenticate(&mut known.key, &records)?;
            known.sequence = position.sequence;
        }
        Ok((records, position))
    });
    let (records, position) = verified.map_err(refused)?;
    let records = records.iter().map(|record| PyRecord::of(py, record)).collect::<PyResult<_>>()?;
    Ok((records, position.sequence, PyBytes::new(py, &position.link).unbind()))
}

/// The record with `body`.
#[pyfunction]
pub(super) fn read_record(py: Python<'_>, body: &[u8], link: [u8; 32]) -> PyResult<PyRecord> {
    if body.len() < record::BODY_HEADER_BYTES {
        return Err(refused("a record's body is cut short"));
    }
    PyRecord::of(py, &record::Record { body, link, mac: None })
}

/// The link that the next record gets after one with `link`, given its body.
#[pyfunction]
pub(super) fn next_link<'py>(py: Python<'py>, link: [u8; 32], body: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &record::next_link(&link, body))
}

#[pyfunction]
pub(super) fn first_link(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &record::first_link())
}
