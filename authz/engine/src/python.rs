//! The Python mount: `peltast.authz._engine`. Thin: every class here is one of the engine's values, and `_engine.pyi`
//! beside the Python code tells their types.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::counters::{self, Counters};
use crate::document::Tier;
use crate::ratchet::{Key, Root};
use crate::record::{self, Field, Fields, Kind, Position, Record, RecordError, State, Type};
use crate::request::{EditRequest, HeaderList, Headers, Request, Told};
use crate::start::Start;
use crate::stored::{Fault, Suspect, Walk};
use crate::tree::{self, Frontier, Node};
use crate::{
    Answer, Body, Connection, Decider, Effect, Hash, HeaderOperations, Http, KeySets, Lifetime, Program, Question,
    Revocations, Source, Trust, Verdict,
};

mod rego;

pyo3::create_exception!(_engine, LoadError, PyValueError, "A program that cannot be loaded.");

/// policy, file, line (0 where unknown) and reason, so that Python can point at them.
fn load_error(error: &crate::LoadError) -> PyErr {
    let (policy, place, reason) = match error {
        crate::LoadError::Rego { policy, error } => (policy.to_string(), error.place(), error.reason()),
        other => (String::new(), None, other.to_string()),
    };
    let (file, line) = place.unwrap_or_default();
    LoadError::new_err((policy, file, line, reason))
}

fn refused(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pyclass(name = "Program", frozen)]
struct PyProgram(Arc<Program>);

#[pymethods]
impl PyProgram {
    #[staticmethod]
    fn load(py: Python<'_>, document: &[u8]) -> PyResult<Self> {
        let loaded = py.detach(|| Program::load(document));
        Ok(Self(Arc::new(loaded.map_err(|error| load_error(&error))?)))
    }

    #[getter]
    fn hash(&self) -> String {
        self.0.hash().hex()
    }

    #[getter]
    fn principal(&self) -> &str {
        self.0.principal()
    }

    #[getter]
    fn attributes(&self) -> Vec<String> {
        self.0.attributes().iter().map(ToString::to_string).collect()
    }

    #[getter]
    fn has_check_tier(&self) -> bool {
        self.0.rego_policies().any(|(_, tier)| tier == Tier::Check)
    }
}

#[pyclass(name = "KeySets", frozen)]
struct PyKeySets(KeySets);

#[pymethods]
impl PyKeySets {
    #[staticmethod]
    fn load(document: &[u8]) -> PyResult<Self> {
        KeySets::load(document).map(Self).map_err(refused)
    }

    #[getter]
    fn hash(&self) -> String {
        self.0.hash().hex()
    }
}

#[pyclass(name = "Revocations", frozen)]
struct PyRevocations(Revocations);

#[pymethods]
impl PyRevocations {
    #[staticmethod]
    fn load(document: &[u8]) -> PyResult<Self> {
        Revocations::load(document).map(Self).map_err(refused)
    }

    #[getter]
    fn hash(&self) -> String {
        self.0.hash().hex()
    }
}

#[pyclass(name = "Request", frozen)]
struct PyRequest {
    source_principal: Option<String>,
    source_ip: Option<std::net::IpAddr>,
    source_port: u16,
    destination_ip: Option<std::net::IpAddr>,
    destination_port: u16,
    sni: Option<String>,
    /// None where a connection is asked about, and not a request on it.
    method: Option<Vec<u8>>,
    host: Vec<u8>,
    path: Vec<u8>,
    scheme: Vec<u8>,
    protocol: Vec<u8>,
    headers: HeaderList,
    /// The body, and whether that is all of it.
    body: Vec<u8>,
    is_body_whole: bool,
    /// The headers that are known, where not all of the request is.
    told: Option<Vec<String>>,
}

#[pymethods]
impl PyRequest {
    #[new]
    #[pyo3(signature = (*, method=None, host=String::new(), path=String::new(), scheme=String::new(),
                        protocol=String::new(), headers=Vec::new(), source_principal=None, source_ip=None,
                        source_port=0, destination_ip=None, destination_port=0, sni=None, body=Vec::new(), is_body_whole=true, told=None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of a Python class
    fn new(
        method: Option<String>,
        host: String,
        path: String,
        scheme: String,
        protocol: String,
        headers: Vec<(String, String)>,
        source_principal: Option<String>,
        source_ip: Option<&str>,
        source_port: u16,
        destination_ip: Option<&str>,
        destination_port: u16,
        sni: Option<String>,
        body: Vec<u8>,
        is_body_whole: bool,
        told: Option<Vec<String>>,
    ) -> PyResult<Self> {
        let ip = |text: Option<&str>| text.map(|text| text.parse().map_err(refused)).transpose();
        let header = |(name, value): (String, String)| (name.to_ascii_lowercase().into_bytes(), value.into_bytes());
        Ok(Self {
            source_principal,
            source_ip: ip(source_ip)?,
            source_port,
            destination_ip: ip(destination_ip)?,
            destination_port,
            sni,
            method: method.map(String::into_bytes),
            host: host.into_bytes(),
            path: path.into_bytes(),
            scheme: scheme.into_bytes(),
            protocol: protocol.into_bytes(),
            headers: HeaderList(headers.into_iter().map(header).collect()),
            body,
            is_body_whole,
            told: told.map(|names| names.iter().map(|name| name.to_ascii_lowercase()).collect()),
        })
    }
}

impl PyRequest {
    fn with<R>(&self, use_request: impl FnOnce(&Request<'_>) -> R) -> R {
        use_request(&Request {
            connection: Connection {
                source_principal: self.source_principal.as_deref(),
                source_ip: self.source_ip,
                source_port: self.source_port,
                destination_ip: self.destination_ip,
                destination_port: self.destination_port,
                sni: self.sni.as_deref(),
            },
            http: self.method.as_deref().map(|method| Http {
                method,
                host: &self.host,
                path: &self.path,
                scheme: &self.scheme,
                protocol: &self.protocol,
                headers: &self.headers,
                // What is not told is not read: no policy takes it for the body.
                body: self.told.is_none().then_some(Body { bytes: &self.body, is_whole: self.is_body_whole }),
                told: self.told.as_deref().map_or(Told::All, Told::Headers),
            }),
        })
    }
}

/// A request as the application would get it, and what made it so.
struct EditedRequest {
    headers: HeaderList,
    path: Vec<u8>,
    operations: HeaderOperations,
}

impl EditedRequest {
    fn of(request: &PyRequest, program: &Program) -> Self {
        let path = program.path_normalization().apply(&request.path).into_owned();
        Self { headers: request.headers.clone(), path, operations: HeaderOperations::default() }
    }
}

impl EditRequest for EditedRequest {
    fn headers(&self) -> &dyn Headers {
        &self.headers
    }

    fn path(&self) -> &[u8] {
        &self.path
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        let mut operation = HeaderOperations::default();
        if value.is_empty() {
            operation.request_remove.push(name.to_owned());
        } else {
            operation.request_set.push((name.to_owned(), String::from_utf8_lossy(value).into_owned()));
        }
        self.operations = std::mem::take(&mut self.operations).then(operation);
        if name == ":path" {
            self.path = value.to_vec();
        } else {
            self.headers.0.retain(|(header, _)| header != name.as_bytes());
            self.headers.0.push((name.as_bytes().to_vec(), value.to_vec()));
        }
    }
}

#[pyclass(name = "Decision", frozen, get_all)]
struct PyDecision {
    allowed: bool,
    status: u16,
    policy: Option<String>,
    rule: Option<u32>,
    reason: &'static str,
    decided_by: &'static str,
    program: String,
    token_principal: Option<String>,
    /// All that is done to the request.
    request_headers_to_set: Vec<(String, String)>,
    request_headers_to_remove: Vec<String>,
    /// What policies do to it: a sidecar does by itself what the token does.
    policy_headers_to_set: Vec<(String, String)>,
    policy_headers_to_remove: Vec<String>,
    response_headers_to_add: Vec<(String, String)>,
    query_parameters_to_set: Vec<(String, String)>,
    query_parameters_to_remove: Vec<String>,
    /// Names as which the request has these parameters, where it escapes them otherwise.
    query_parameters_respelled: Vec<String>,
    /// As JSON; empty where there is none.
    dynamic_metadata: String,
    prints: String,
    annotations: String,
    body: Option<String>,
    cacheable: bool,
    detail: Option<String>,
    shadow: Py<PyDict>,
}

impl PyDecision {
    fn of(py: Python<'_>, answer: Answer, program: &Program, request: &PyRequest) -> PyResult<Self> {
        let decision = Arc::unwrap_or_clone(answer.decision);
        let token = answer.token.as_deref();
        let mut edited = EditedRequest::of(request, program);
        program.edit(token, &mut edited);
        let headers = edited.operations.then(decision.headers.clone());
        let notes = decision.notes.as_deref().cloned().unwrap_or_default();
        let shadow = decision.shadow.as_ref().map_or(Ok(Vec::new()), |shadow| shadow.fields()).map_err(refused)?;
        Ok(Self {
            allowed: decision.effect == Effect::Allow,
            status: decision.status,
            policy: decision.policy.as_deref().map(str::to_owned),
            rule: decision.rule,
            reason: decision.reason.as_str(),
            decided_by: match decision.source {
                Source::FailedOpen => "failed-open",
                _ if answer.cached => "cache",
                _ => "engine",
            },
            program: decision.program.hex(),
            token_principal: token.and_then(crate::token::Token::principal),
            request_headers_to_set: headers.request_set,
            request_headers_to_remove: headers.request_remove,
            policy_headers_to_set: decision.headers.request_set,
            policy_headers_to_remove: decision.headers.request_remove,
            response_headers_to_add: decision.headers.response_add,
            query_parameters_respelled: decision.query.other_spellings(&request.path),
            query_parameters_to_set: decision.query.set,
            query_parameters_to_remove: decision.query.remove,
            dynamic_metadata: decision.metadata.map_or_else(String::new, |metadata| {
                serde_json::Value::Object(Arc::unwrap_or_clone(metadata)).to_string()
            }),
            prints: notes.prints,
            annotations: notes.annotations,
            body: decision.body,
            cacheable: decision.lifetime != Lifetime::Once,
            detail: decision.detail,
            shadow: texts(py, &shadow)?,
        })
    }
}

#[pyclass(name = "Decider")]
struct PyDecider(Decider);

#[pymethods]
impl PyDecider {
    #[new]
    fn new() -> Self {
        Self(Decider::for_check_service())
    }

    fn decide(
        &mut self,
        py: Python<'_>,
        program: &PyProgram,
        keys: &PyKeySets,
        revocations: &PyRevocations,
        request: &PyRequest,
        now_ms: u64,
    ) -> PyResult<PyDecision> {
        let trust = Trust { keys: &keys.0, revocations: &revocations.0 };
        match request.with(|request| self.0.decide(&program.0, &trust, request, now_ms)) {
            Verdict::Decided(answer) => PyDecision::of(py, answer, &program.0, request),
            Verdict::Ask(_) | Verdict::AwaitBody(_) => Err(refused("a check service has nobody to ask")),
        }
    }
}

/// Decides what needs no evaluation of the check tier; all else is a question.
#[pyclass(name = "LocalDecider")]
struct PyLocalDecider(Decider);

#[pymethods]
impl PyLocalDecider {
    #[new]
    fn new() -> Self {
        Self(Decider::for_sidecar())
    }

    fn decide(
        &mut self,
        py: Python<'_>,
        program: &PyProgram,
        keys: &PyKeySets,
        revocations: &PyRevocations,
        request: &PyRequest,
        now_ms: u64,
    ) -> PyResult<Py<PyAny>> {
        let trust = Trust { keys: &keys.0, revocations: &revocations.0 };
        match request.with(|request| self.0.decide(&program.0, &trust, request, now_ms)) {
            Verdict::Decided(answer) => Ok(Py::new(py, PyDecision::of(py, answer, &program.0, request)?)?.into_any()),
            Verdict::Ask(question) => Ok(Py::new(py, PyQuestion(question))?.into_any()),
            Verdict::AwaitBody(_) => Err(refused("the body is not known")),
        }
    }
}

/// What only an evaluation of the check tier can answer.
#[pyclass(name = "Question", frozen)]
struct PyQuestion(Question);

#[pymethods]
impl PyQuestion {
    #[getter]
    fn timeout_ms(&self) -> u32 {
        self.0.timeout_ms
    }

    /// The decision about `request`, by `program`, where there is no answer.
    fn unanswered(
        &self,
        py: Python<'_>,
        program: &PyProgram,
        request: &PyRequest,
        detail: String,
    ) -> PyResult<PyDecision> {
        let decision = Arc::new(self.0.unanswered(detail));
        let answer = Answer { decision, cached: false, token: self.0.token.clone() };
        PyDecision::of(py, answer, &program.0, request)
    }
}

/// Fields with their values as numbers and text: those that the engine itself made.
fn texts(py: Python<'_>, fields: &[(Field, &[u8])]) -> PyResult<Py<PyDict>> {
    let values = PyDict::new(py);
    for (field, value) in fields {
        match field.value_type() {
            Type::Number => values.set_item(field.name(), record::number(value))?,
            Type::Text | Type::Bytes => values.set_item(field.name(), String::from_utf8_lossy(value))?,
        }
    }
    Ok(values.unbind())
}

#[pyclass(name = "Record", frozen, get_all)]
struct PyRecord {
    schema: u16,
    kind: Option<&'static str>,
    sequence: u64,
    time_ns: u64,
    body: Py<PyBytes>,
    link: Py<PyBytes>,
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
fn scan_frames(frames: &[u8]) -> PyResult<Option<(u64, u64, usize)>> {
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
fn skip_frames<'py>(py: Python<'py>, frames: &[u8], sequence: u64) -> Option<(usize, u64, Bound<'py, PyBytes>)> {
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
fn follow_frames(
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
fn spool_key(root: [u8; 32], start_index: u64) -> Key {
    let mut root = Root::new(root);
    (0..start_index).for_each(|_| drop(root.next_spool()));
    root.next_spool()
}

/// The key of a spool's next record, for whoever verifies.
#[pyclass(name = "RecordKey")]
struct PyRecordKey {
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
fn verify_frames(
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
fn read_record(py: Python<'_>, body: &[u8], link: [u8; 32]) -> PyResult<PyRecord> {
    if body.len() < record::BODY_HEADER_BYTES {
        return Err(refused("a record's body is cut short"));
    }
    PyRecord::of(py, &record::Record { body, link, mac: None })
}

/// The link that the next record gets after one with `link`, given its body.
#[pyfunction]
fn next_link<'py>(py: Python<'py>, link: [u8; 32], body: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &record::next_link(&link, body))
}

#[pyfunction]
fn first_link(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &record::first_link())
}

/// The hash of the tree's leaf for a record.
#[pyfunction]
fn leaf_hash<'py>(py: Python<'py>, spool: &[u8], sequence: u64, link: &[u8], owner: &str) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &tree::leaf(spool, sequence, link, owner.as_bytes()))
}

/// The hashes of the tree's leaves for `records`, one after the other.
#[pyfunction]
fn leaf_hashes<'py>(
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
fn grow_tree<'py>(py: Python<'py>, size: u64, frontier: &[u8], leaves: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
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
fn tree_root<'py>(py: Python<'py>, size: u64, frontier: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &frontier_of(size, frontier)?.root()))
}

fn frontier_of(size: u64, frontier: &[u8]) -> PyResult<Frontier> {
    Frontier::new(size, frontier).ok_or_else(|| refused(format!("a tree of {size} leaves has another frontier")))
}

#[pyclass(name = "Walk")]
struct PyWalk(Walk);

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

#[pyclass(name = "SpoolUsage", frozen)]
struct PySpoolUsage(Arc<crate::usage::Usage>);

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
struct PySpoolStart(Arc<Start>);

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
struct PySpoolWriter(Option<crate::spool::Spool>);

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

/// What each of a sidecar's workers counted, by its index, out of the bytes of its file `caches`.
#[pyfunction]
fn read_counters(contents: &[u8]) -> Vec<(usize, HashMap<&'static str, u64>)> {
    let named = |values: Vec<u64>| Counters::NAMES.iter().copied().zip(values).collect();
    counters::read(contents).into_iter().map(|(worker, values)| (worker, named(values))).collect()
}

/// SHA-256 of `document`, as programs and key sets are named by.
#[pyfunction]
fn document_hash(document: &[u8]) -> String {
    Hash::of(document).hex()
}

/// `path_and_query` with its path normalized as in every decision.
#[pyfunction]
fn normalize_path<'py>(py: Python<'py>, program: &PyProgram, path_and_query: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &program.0.path_normalization().apply(path_and_query))
}

#[pymodule]
mod _engine {
    #[pymodule_export]
    use super::rego::{PyRegoQuery, QueryError, QueryRefused};
    #[pymodule_export]
    use super::{
        document_hash, first_link, follow_frames, grow_tree, leaf_hash, leaf_hashes, next_link, normalize_path,
        read_counters, read_record, scan_frames, skip_frames, tree_root, verify_frames, LoadError, PyDecider,
        PyDecision, PyKeySets, PyLocalDecider, PyProgram, PyQuestion, PyRecord, PyRecordKey, PyRequest, PyRevocations,
        PySpoolStart, PySpoolUsage, PySpoolWriter, PyWalk,
    };
}
