//! Rego: regorus's interpreter behind a check. In the sidecar tier that admits only what it answers rightly and in
//! bounds; in the check tier, whose processes can be killed, all that it can answer, with built-ins of ours on top.

mod builtins;
mod check;
mod extensions;
mod input;
mod query;
mod rewrite;
mod source;
mod syntax;
mod timer;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig, Value};

pub use check::RegoError;
pub use query::{QueryError, RegoQuery};

use crate::attribute::{Attribute, Facts};
use crate::decision::HeaderOperations;
use crate::document::{OnError, RegoPolicy, Tier};
use crate::request::Told;
use check::Findings;
use input::Plan;

/// Steps of the interpreter between two looks at the clock. Few: a statement of some four steps may double what the
/// one before made, and what is doubled ten times between two looks takes a thousand times the limit.
const STEPS_PER_CLOCK_READ: NonZeroU32 = NonZeroU32::new(4).expect("is not zero");

/// Longest text, in bytes, that is kept of why a policy failed: it goes into a record.
const MAX_DETAIL_BYTES: usize = 512;

/// A Rego policy that was admitted.
pub(crate) struct Rego {
    pub(crate) name: Arc<str>,
    pub(crate) tier: Tier,
    pub(crate) on_error: OnError,
    pub(crate) timeout_ms: u32,
    entrypoint: String,
    plan: Plan,
    /// Loaded once; each worker evaluates a clone of its own, which shares modules and data.
    template: Mutex<Engine>,
}

/// What a Rego policy answered.
pub(crate) struct Ruling {
    pub(crate) allowed: bool,
    pub(crate) status: Option<u16>,
    pub(crate) headers: HeaderOperations,
    pub(crate) body: Option<String>,
}

impl Rego {
    /// Checks and loads a policy.
    pub(crate) fn load(policy: RegoPolicy) -> Result<Self, RegoError> {
        let (mut engine, findings) = prepare(policy.tier, policy.modules, policy.data, false)?;
        let limit = Duration::from_millis(u64::from(policy.timeout_ms));
        engine.set_execution_timer_config(ExecutionTimerConfig { limit, check_interval: STEPS_PER_CLOCK_READ });
        engine.set_input(Value::new_object());
        // An entry point that is missing is an error here; one that the empty input leaves undefined is not.
        if let Err(error) = try_entrypoint(&mut engine, policy.tier, &policy.entrypoint, limit) {
            return Err(entrypoint_error(&mut engine, policy.entrypoint, error));
        }
        let mut plan = Plan::new(&findings.input).map_err(|field| RegoError::Input(field.0))?;
        if findings.volatile {
            plan.attributes = None;
        }
        Ok(Self {
            name: policy.name,
            tier: policy.tier,
            on_error: policy.on_error,
            timeout_ms: policy.timeout_ms,
            entrypoint: policy.entrypoint,
            plan,
            template: Mutex::new(engine),
        })
    }

    /// The attributes that determine the answer; none where not even they do.
    pub(crate) fn attributes(&self) -> Option<&BTreeSet<Attribute>> {
        self.plan.attributes.as_ref()
    }

    /// Whether it reads what is not known of the request.
    pub(crate) fn reads_unknown(&self, facts: &Facts<'_>) -> bool {
        match (self.attributes(), facts.request.http.map(|http| http.told)) {
            (_, None | Some(Told::All)) => false,
            (Some(attributes), _) => attributes.iter().any(|attribute| facts.lacks(attribute)),
            (None, _) => true,
        }
    }

    /// An evaluator for one worker.
    pub(crate) fn evaluator(&self) -> Engine {
        self.template.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Evaluates the policy for one request.
    ///
    /// # Errors
    /// For people: why there is no answer. A connection without requests gets none: what a policy leaves undefined for
    /// lack of a request, it may mean to allow.
    pub(crate) fn evaluate(&self, evaluator: &mut Engine, facts: &Facts<'_>) -> Result<Ruling, String> {
        if facts.request.http.is_none() {
            return Err("the connection carries no HTTP request, and Rego policies are asked about those".to_owned());
        }
        evaluator.set_input(self.plan.build(facts));
        let limit = Duration::from_millis(u64::from(self.timeout_ms));
        let evaluated = catch_unwind(AssertUnwindSafe(|| timer::evaluate(evaluator, &self.entrypoint, limit)));
        let result = evaluated.unwrap_or_else(|_| {
            *evaluator = self.evaluator(); // the other may be in any state
            Err("a built-in of the interpreter panicked".to_owned())
        });
        result.and_then(|result| read_result(&result)).map_err(shortened)
    }
}

/// Reads modules and data into an interpreter, checked as `tier` asks.
fn prepare(
    tier: Tier,
    modules: BTreeMap<String, String>,
    data: serde_json::Value,
    strict: bool,
) -> Result<(Engine, Findings), RegoError> {
    let (mut engine, findings) = read_modules(tier, modules, strict)?;
    check::check_data(&data, &findings.rules)?;
    engine.add_data(data.into()).map_err(|error| RegoError::Data(error.to_string()))?;
    Ok((engine, findings))
}

/// The paths below `data` that modules read, and those of their rules, where no data may be.
///
/// # Errors
/// The modules are refused. Nothing is evaluated.
pub fn data_read(tier: Tier, modules: BTreeMap<String, String>) -> Result<BTreeSet<Vec<String>>, RegoError> {
    let findings = read_modules(tier, modules, false)?.1;
    let rules = findings.rules.iter().map(|rule| rule.split('.').skip(1).map(str::to_owned).collect());
    Ok(findings.data.into_iter().chain(rules).collect())
}

fn read_modules(tier: Tier, modules: BTreeMap<String, String>, strict: bool) -> Result<(Engine, Findings), RegoError> {
    let mut engine = Engine::new();
    engine.set_policy_length_config(limits());
    extensions::register(&mut engine, tier, strict);
    for (file, source) in &modules {
        source::check_source(file, source)?;
    }
    let parsed: Vec<_> =
        modules.iter().filter_map(|(file, source)| rewrite::parse(file, source)).map(Box::new).collect();
    let names = rewrite::names(&parsed);
    for (file, source) in modules {
        let source = rewrite::as_opa_reads_it(tier, &file, source, &names);
        engine.add_policy(file, source).map_err(|error| RegoError::Syntax(error.to_string()))?;
    }
    let findings = check::check_modules(tier, engine.get_modules())?;
    Ok((engine, findings))
}

/// A line may be as long as its module: keys and tokens are long.
fn limits() -> PolicyLengthConfig {
    let max_col = NonZeroU32::new(source::MAX_MODULE_BYTES as u32).unwrap_or(NonZeroU32::MAX);
    PolicyLengthConfig { max_col, ..PolicyLengthConfig::default() }
}

/// Finds an entry point that is missing or cannot be compiled. A policy of the check tier is not evaluated: sidecars
/// load it, too, and nothing bounds what it takes.
fn try_entrypoint(engine: &mut Engine, tier: Tier, entrypoint: &str, limit: Duration) -> Result<(), String> {
    match tier {
        Tier::Sidecar => timer::evaluate(engine, entrypoint, limit).map(drop),
        Tier::Check => {
            let compiled = engine.clone().compile_with_entrypoint(&entrypoint.into());
            compiled.map(drop).map_err(|error| error.to_string())
        }
    }
}

fn entrypoint_error(engine: &mut Engine, entrypoint: String, error: String) -> RegoError {
    let packages = engine.get_packages().unwrap_or_default();
    let declared = packages.iter().any(|package| {
        let name = entrypoint.strip_prefix(&format!("{package}.")).unwrap_or_default();
        let defines = |path: &str| engine.has_declared_rule_rooted_at(path, name).unwrap_or(false);
        let paths: Vec<String> =
            engine.get_policies().unwrap_or_default().iter().map(|source| source.get_path().clone()).collect();
        !name.is_empty() && paths.iter().any(|path| defines(path))
    });
    if declared {
        RegoError::Syntax(error)
    } else {
        RegoError::Entrypoint(entrypoint)
    }
}

fn shortened(mut detail: String) -> String {
    detail.truncate(detail.floor_char_boundary(MAX_DETAIL_BYTES));
    detail
}

/// A value for people: what it is made of may be too much to be written.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Set(_) => "a set".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    }
}

/// Reads a result as the OPA-Envoy plugin does: a boolean, or an object with `allowed`; undefined denies.
fn read_result(result: &Value) -> Result<Ruling, String> {
    let plain = |allowed| Ruling { allowed, status: None, headers: HeaderOperations::default(), body: None };
    match result {
        Value::Undefined => Ok(plain(false)),
        Value::Bool(allowed) => Ok(plain(*allowed)),
        Value::Object(_) => read_object(result),
        other => Err(format!("the result is {}; a boolean or an object with `allowed` is expected", shown(other))),
    }
}

fn read_object(result: &Value) -> Result<Ruling, String> {
    let allowed = *result["allowed"].as_bool().map_err(|_| "`allowed` must be a boolean".to_owned())?;
    let mut operations =
        HeaderOperations { response_add: headers(&result["response_headers_to_add"])?, ..HeaderOperations::default() };
    // `headers` go to whoever comes next: the application where the request is allowed, the client where it is not.
    if allowed {
        operations.request_set = headers(&result["headers"])?;
        operations.request_remove = header_names(&result["request_headers_to_remove"])?;
    } else {
        operations.response_add.extend(headers(&result["headers"])?);
    }
    let body = match &result["body"] {
        Value::Undefined => None,
        body => Some(body.as_string().map_err(|_| "`body` must be a string".to_owned())?.to_string()),
    };
    Ok(Ruling { allowed, status: status(&result["http_status"])?, headers: operations, body })
}

fn status(value: &Value) -> Result<Option<u16>, String> {
    match value {
        Value::Undefined => Ok(None),
        value => match value.as_u16() {
            Ok(status @ 200..=599) => Ok(Some(status)),
            _ => Err(format!("`http_status` is {}; 200 to 599 is expected", shown(value))),
        },
    }
}

/// `{name: value}` or `{name: [value, …]}`, or a list of such objects.
fn headers(value: &Value) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    match value {
        Value::Undefined => {}
        Value::Array(items) => {
            for item in items.iter() {
                pairs.extend(headers(item)?);
            }
        }
        Value::Object(members) => {
            for (name, value) in members.iter() {
                let name = header_name(text(name)?)?;
                match value {
                    Value::Array(_) => pairs.extend(strings(value)?.into_iter().map(|value| (name.clone(), value))),
                    value => pairs.push((name, text(value)?)),
                }
            }
        }
        other => return Err(format!("headers are {}; an object of strings is expected", shown(other))),
    }
    Ok(pairs)
}

fn strings(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Undefined => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(text).collect(),
        other => Err(format!("{} is given where a list of strings is expected", shown(other))),
    }
}

fn header_names(value: &Value) -> Result<Vec<String>, String> {
    strings(value)?.into_iter().map(header_name).collect()
}

/// A header that a policy may touch: a token (RFC 9110 section 5.6.2), which `:path` and its like are not, and none
/// that says where a request ends or whom it is for. Other policies decided by those, and Envoy cannot do without.
fn header_name(name: String) -> Result<String, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = name.to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is not the name of a header"));
    }
    if matches!(&*name, "host" | "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te") {
        return Err(format!("the header {name} is not for policies to change"));
    }
    Ok(name)
}

/// A string that may stand in a header: no control characters, which would end it early.
fn text(value: &Value) -> Result<String, String> {
    let text = value.as_string().map_err(|_| format!("{} is given where a string is expected", shown(value)))?;
    if text.chars().any(|character| character.is_control()) {
        return Err("a header holds a control character".to_owned());
    }
    Ok(text.to_string())
}
