//! The Python mount: `peltast.authz._engine`. Thin: every class here is one of the engine's values, and `_engine.pyi`
//! beside the Python code tells their types.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::counters::{self, Counters};
use crate::document::Tier;
use crate::quota::{Admission, Mount, Quotas, Standing, Waker};
use crate::record::{self, Field, Type};
use crate::request::{EditRequest, HeaderList, Headers, Request, Told};
use crate::{
    Answer, Body, Connection, Decider, Effect, Hash, HeaderOperations, Http, KeySets, Lifetime, Program, Question,
    Revocations, Shadow, Source, Trust, Verdict,
};

mod check_request;
mod records;
mod rego;
mod spool;
mod tree;

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
    /// Whom a CheckRequest says that it is for.
    #[pyo3(get)]
    destination_principal: String,
    #[pyo3(get)]
    destination_address: String,
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
            destination_principal: String::new(),
            destination_address: String::new(),
        })
    }

    #[staticmethod]
    fn from_check_request(question: &[u8]) -> PyResult<Self> {
        Self::of_check(question)
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

/// Two are equal that say the same, so that answers which carry them can be kept.
#[pyclass(name = "Decision", frozen, get_all, eq, hash)]
#[derive(PartialEq, Eq, Hash)]
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
    shadow: PyShadow,
}

/// A dictionary of what policies that are not enforced say.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PyShadow(Option<Arc<Shadow>>);

impl<'py> IntoPyObject<'py> for PyShadow {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        texts(py, &self.0.as_ref().map_or(Ok(Vec::new()), |shadow| shadow.fields()).map_err(refused)?)
    }
}

impl PyDecision {
    fn of(answer: Answer, program: &Program, request: &PyRequest) -> Self {
        let decision = Arc::unwrap_or_clone(answer.decision);
        let token = answer.token.as_deref();
        let mut edited = EditedRequest::of(request, program);
        program.edit(token, &mut edited);
        let headers = edited.operations.then(decision.headers.clone());
        let notes = decision.notes.as_deref().cloned().unwrap_or_default();
        Self {
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
            shadow: PyShadow(decision.shadow),
        }
    }
}

fn verdict(
    decider: &mut Decider,
    program: &PyProgram,
    keys: &PyKeySets,
    revocations: &PyRevocations,
    request: &PyRequest,
    now_ms: u64,
) -> Verdict {
    let trust = Trust { keys: &keys.0, revocations: &revocations.0 };
    request.with(|request| decider.decide(&program.0, &trust, request, now_ms))
}

/// A moment, in milliseconds.
struct At(u64);

impl Mount for At {
    fn now(&self) -> u64 {
        self.0.saturating_mul(1_000_000)
    }

    fn waker(&self) -> Option<Waker> {
        None
    }
}

#[pyclass(name = "Decider")]
struct PyDecider {
    decider: Decider,
    /// Of tools: as a sidecar counts. Who asks the check service counts by itself.
    quotas: Option<Quotas>,
}

#[pymethods]
impl PyDecider {
    #[new]
    #[pyo3(signature = (*, counts=false))]
    fn new(counts: bool) -> Self {
        Self { decider: Decider::for_check_service(), quotas: counts.then(Quotas::for_tools) }
    }

    fn decide(
        &mut self,
        program: &PyProgram,
        keys: &PyKeySets,
        revocations: &PyRevocations,
        request: &PyRequest,
        now_ms: u64,
    ) -> PyResult<PyDecision> {
        let Verdict::Decided(answer) = verdict(&mut self.decider, program, keys, revocations, request, now_ms) else {
            return Err(refused("a check service has nobody to ask"));
        };
        let Some(quotas) = &self.quotas else { return Ok(PyDecision::of(answer, &program.0, request)) };
        let Admission::Decided(answer, standing) =
            request.with(|request| quotas.admit(&program.0, request, answer, &At(now_ms)))
        else {
            return Err(refused("a tool has nothing to wait for"));
        };
        let mut decision = PyDecision::of(answer, &program.0, request);
        decision.response_headers_to_add.extend(standing.into_iter().flat_map(Standing::into_headers));
        Ok(decision)
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
        match verdict(&mut self.0, program, keys, revocations, request, now_ms) {
            Verdict::Decided(answer) => Ok(Py::new(py, PyDecision::of(answer, &program.0, request))?.into_any()),
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
    fn unanswered(&self, program: &PyProgram, request: &PyRequest, detail: String) -> PyDecision {
        let decision = Arc::new(self.0.unanswered(detail));
        let answer = Answer { decision, cached: false, token: self.0.token.clone() };
        PyDecision::of(answer, &program.0, request)
    }
}

/// Fields with their values as numbers and text: those that the engine itself made.
fn texts<'py>(py: Python<'py>, fields: &[(Field, &[u8])]) -> PyResult<Bound<'py, PyDict>> {
    let values = PyDict::new(py);
    for (field, value) in fields {
        match field.value_type() {
            Type::Number => values.set_item(field.name(), record::number(value))?,
            Type::Text | Type::Bytes => values.set_item(field.name(), String::from_utf8_lossy(value))?,
        }
    }
    Ok(values)
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
    use super::records::{
        first_link, follow_frames, next_link, read_record, scan_frames, skip_frames, verify_frames, PyRecord,
        PyRecordKey,
    };
    #[pymodule_export]
    use super::rego::{data_read, PyRegoQuery, QueryError, QueryRefused};
    #[pymodule_export]
    use super::spool::{PySpoolStart, PySpoolUsage, PySpoolWriter};
    #[pymodule_export]
    use super::tree::{grow_tree, leaf_hash, leaf_hashes, tree_root, PyWalk};
    #[pymodule_export]
    use super::{
        document_hash, normalize_path, read_counters, LoadError, PyDecider, PyDecision, PyKeySets, PyLocalDecider,
        PyProgram, PyQuestion, PyRequest, PyRevocations,
    };
}
