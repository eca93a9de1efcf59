//! `RegoQuery` for Python.

use std::collections::BTreeMap;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use regorus::Value;

use super::{load_error, refused};
use crate::document::Tier;
use crate::RegoQuery;

pyo3::create_exception!(_engine, QueryError, PyValueError, "A query that is not admitted, or whose evaluation failed.");

pyo3::create_exception!(_engine, QueryRefused, QueryError, "A query, or modules, that the tier does not admit.");

fn query_error(error: impl Into<crate::QueryError>) -> PyErr {
    match error.into() {
        refused @ crate::QueryError::Refused(_) => QueryRefused::new_err(refused.to_string()),
        failed @ crate::QueryError::Failed(_) => QueryError::new_err(failed.to_string()),
    }
}

fn tier(name: &str) -> PyResult<Tier> {
    match name {
        "sidecar" => Ok(Tier::Sidecar),
        "check" => Ok(Tier::Check),
        other => Err(refused(format!("there is no tier {other:?}; sidecar and check are"))),
    }
}

/// The paths below `data` at which modules, by file name, can tell what data is there.
#[pyfunction]
pub(super) fn data_read(tier: &str, modules: BTreeMap<String, String>) -> PyResult<Vec<Vec<String>>> {
    let read = crate::data_read(self::tier(tier)?, modules);
    let read = read.map_err(|error| load_error(&crate::LoadError::Rego { policy: "".into(), error }))?;
    Ok(read.into_iter().collect())
}

#[pyclass(name = "RegoQuery", frozen)]
pub(super) struct PyRegoQuery(RegoQuery);

#[pymethods]
impl PyRegoQuery {
    /// Modules by file name, data as JSON. Without a tier the interpreter by itself.
    #[staticmethod]
    #[pyo3(signature = (tier, modules, data="{}", *, strict=false))]
    fn load(tier: Option<&str>, modules: BTreeMap<String, String>, data: &str, strict: bool) -> PyResult<Self> {
        let tier = tier.map(self::tier).transpose()?;
        let data = serde_json::from_str(data).map_err(refused)?;
        RegoQuery::load(tier, modules, data, strict).map(Self).map_err(query_error)
    }

    /// The bindings of every answer, as JSON. The input is JSON, or a term of Rego.
    #[pyo3(signature = (query, *, input=None, input_term=None))]
    fn evaluate(&self, py: Python<'_>, query: &str, input: Option<&str>, input_term: Option<&str>) -> PyResult<String> {
        let input = match (input, input_term) {
            (_, Some(term)) => Some(self.0.term(term).map_err(query_error)?),
            (Some(json), None) => Some(Value::from_json_str(json).map_err(refused)?),
            (None, None) => None,
        };
        py.detach(|| self.0.evaluate(query, input)).map_err(query_error)
    }
}
