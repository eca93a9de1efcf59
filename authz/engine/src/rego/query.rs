//! Any query of a policy, in either tier: what conformance with OPA is measured by, with `prepare` as policies have it.

use std::collections::{BTreeMap, BTreeSet};

use regorus::{Engine, Value};

use super::{check, prepare, rewrite, source, RegoError};
use crate::document::Tier;

/// What makes a module of a query, so that it is checked like one.
const HEAD: &str = "package peltast.query\n\nimport rego.v1\n\nanswer if {\n";
const TAIL: &str = "\n}\n";

/// Modules and data that are asked queries.
pub struct RegoQuery {
    engine: Engine,
    /// None for the interpreter by itself.
    tier: Option<Tier>,
    names: BTreeSet<String>,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The query, or what it needs, is not admitted.
    #[error(transparent)]
    Refused(#[from] RegoError),
    /// Evaluation failed, in the interpreter's words.
    #[error("{0}")]
    Failed(String),
}

impl RegoQuery {
    /// Loads modules by file name, with data; without a tier as the interpreter takes them. Failures of built-ins are
    /// failures of the query where they are `strict`.
    ///
    /// # Errors
    /// As a policy of `tier` is refused.
    pub fn load(
        tier: Option<Tier>,
        modules: BTreeMap<String, String>,
        data: serde_json::Value,
        strict: bool,
    ) -> Result<Self, RegoError> {
        let mut engine = match tier {
            Some(tier) => prepare(tier, modules, data, strict)?.0,
            None => bare(modules, data)?,
        };
        engine.set_strict_builtin_errors(strict);
        let names = rewrite::names(engine.get_modules());
        Ok(Self { engine, tier, names })
    }

    /// The value of a term, for an input that JSON cannot write.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn term(&self, term: &str) -> Result<Value, QueryError> {
        let mut engine = self.engine.clone();
        let results = engine.eval_query(term.to_owned(), false).map_err(failed)?;
        let value = results.result.last().and_then(|result| result.expressions.last());
        value
            .map(|expression| expression.value.clone())
            .ok_or_else(|| QueryError::Failed("the term is undefined".to_owned()))
    }

    /// The bindings of every answer to `query`, as JSON.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn evaluate(&self, query: &str, input: Option<Value>) -> Result<String, QueryError> {
        let mut module = format!("{HEAD}{query}{TAIL}");
        if let Some(tier) = self.tier {
            module = rewrite::as_opa_reads_it(tier, "query", module, &self.names);
            self.check(tier, &module)?;
        }
        let query = &module[HEAD.len()..module.len() - TAIL.len()];
        let mut engine = self.engine.clone();
        if let Some(input) = input {
            engine.set_input(input);
        }
        let results = engine.eval_query(query.to_owned(), false).map_err(failed)?;
        let holds = |value: &Value| !matches!(value, Value::Bool(false) | Value::Undefined);
        let answers = results.result.into_iter();
        let holding = answers.filter(|answer| answer.expressions.iter().all(|expression| holds(&expression.value)));
        let bindings: Vec<Value> = holding.map(|answer| answer.bindings).collect();
        Value::from(bindings).to_json_str().map_err(failed)
    }

    fn check(&self, tier: Tier, module: &str) -> Result<(), RegoError> {
        source::check_source("query", module)?;
        let mut engine = self.engine.clone();
        let added = engine.add_policy("query".to_owned(), module.to_owned());
        added.map_err(|error| RegoError::Syntax(error.to_string()))?;
        check::check_query(tier, engine.get_modules())
    }
}

fn bare(modules: BTreeMap<String, String>, data: serde_json::Value) -> Result<Engine, RegoError> {
    let mut engine = Engine::new();
    for (file, source) in modules {
        engine.add_policy(file, source).map_err(|error| RegoError::Syntax(error.to_string()))?;
    }
    engine.add_data(data.into()).map_err(|error| RegoError::Data(error.to_string()))?;
    Ok(engine)
}

fn failed(error: anyhow::Error) -> QueryError {
    QueryError::Failed(error.to_string())
}
