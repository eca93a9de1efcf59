//! Spools of records for Python.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use super::refused;
use crate::record::{Field, Fields, Kind};
use crate::start::Start;

#[pyclass(name = "SpoolUsage", frozen)]
pub(super) struct PySpoolUsage(Arc<crate::usage::Usage>);

#[pymethods]
impl PySpoolUsage {
    #[new]
    fn new(root: PathBuf, bound: u64) -> PyResult<Self> {
        Ok(Self(Arc::new(crate::usage::Usage::open(&root, bound)?)))
    }

    fn reset(&self, held: u64) {
        self.0.reset(held);
    }

    fn acknowledge(&self, shipped: u64) {
        self.0.acknowledge(shipped);
    }

    #[getter]
    fn held(&self) -> u64 {
        self.0.held()
    }
}

/// What a process that writes spools was given when it was started.
#[pyclass(name = "SpoolStart", frozen)]
pub(super) struct PySpoolStart(Arc<Start>);

#[pymethods]
impl PySpoolStart {
    /// Out of the bytes of a start file.
    #[new]
    fn new(contents: &[u8]) -> PyResult<Self> {
        let start = Start::parse(contents).ok_or_else(|| refused("the start is none of this version"))?;
        Ok(Self(Arc::new(start)))
    }
}

#[pyclass(name = "SpoolWriter")]
pub(super) struct PySpoolWriter(Option<crate::spool::Spool>);

#[derive(FromPyObject)]
enum FieldValue {
    Number(u64),
    Text(String),
    Bytes(Vec<u8>),
}

#[pymethods]
impl PySpoolWriter {
    #[new]
    fn new(root: PathBuf, usage: &PySpoolUsage, start: &PySpoolStart, time_ns: u64) -> PyResult<Self> {
        let (start, usage) = (Arc::clone(&start.0), Arc::clone(&usage.0));
        Ok(Self(Some(crate::spool::Spool::create(&root, None, start, usage, time_ns)?)))
    }

    /// Ends the spool with a record that says so.
    fn close(&mut self) {
        self.0 = None;
    }

    /// Writes where all spools of the process stand.
    fn heartbeat(&mut self, time_ns: u64) -> PyResult<u64> {
        Ok(self.open()?.heartbeat(time_ns)?)
    }

    /// Writes a record and gives its sequence.
    fn append(&mut self, kind: &str, time_ns: u64, fields: HashMap<String, FieldValue>) -> PyResult<u64> {
        let kind = Kind::parse(kind).ok_or_else(|| refused(format!("no record is of kind {kind:?}")))?;
        let mut named = Vec::new();
        for (name, value) in &fields {
            named.push((Field::parse(name).ok_or_else(|| refused(format!("no field is called {name:?}")))?, value));
        }
        named.sort_by_key(|(field, _)| *field as u8);
        let fill = |out: &mut Fields<'_>| named.iter().for_each(|(field, value)| write(out, *field, value));
        Ok(self.open()?.append(kind, time_ns, fill)?)
    }
}

impl PySpoolWriter {
    fn open(&mut self) -> PyResult<&mut crate::spool::Spool> {
        self.0.as_mut().ok_or_else(|| refused("the spool is closed"))
    }
}

fn write(fields: &mut Fields<'_>, field: Field, value: &FieldValue) {
    match value {
        FieldValue::Number(number) => fields.number(field, *number),
        FieldValue::Text(text) => fields.bytes(field, text.as_bytes()),
        FieldValue::Bytes(bytes) => fields.bytes(field, bytes),
    }
}
