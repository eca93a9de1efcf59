//! Rego: regorus's interpreter behind a check. In the sidecar tier that admits only what it answers rightly and in
//! bounds; in the check tier, whose processes can be killed, all that it can answer, with built-ins of ours on top.

mod annotations;
mod body;
mod builtins;
mod check;
mod extensions;
mod input;
mod multipart;
mod query;
mod result;
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

pub use body::is_enough;
pub(crate) use body::BodyFault;
pub use check::RegoError;
pub use query::{QueryError, RegoQuery};
pub(crate) use result::Ruling;

use crate::attribute::{Attribute, Facts};
use crate::document::{OnError, RegoPolicy, Tier};
use crate::notes::Notes;
use crate::request::{Http, Told};
use body::{BodyInput, BodyReader};
use check::Findings;
use input::Plan;
use result::read_result;

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
    body: BodyReader,
    /// How it is annotated, noted down with each of its answers.
    annotations: Notes,
    /// Loaded once; each worker evaluates a clone of its own, which shares modules and data.
    template: Mutex<Engine>,
}

/// Why a Rego policy gave no ruling.
pub(crate) enum RegoFailure {
    /// The body is not one that it can be asked about.
    Body(BodyFault),
    /// It failed; for people: how.
    Failed(String),
}

impl Rego {
    /// Checks and loads a policy.
    pub(crate) fn load(policy: RegoPolicy) -> Result<Self, RegoError> {
        let annotations = annotations::of_entrypoint(&policy.name, &policy.entrypoint, &policy.modules)?;
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
        let body = BodyReader::new(policy.body).map_err(RegoError::Descriptors)?;
        Ok(Self {
            name: policy.name,
            tier: policy.tier,
            on_error: policy.on_error,
            timeout_ms: policy.timeout_ms,
            entrypoint: policy.entrypoint,
            plan,
            body,
            annotations: Notes { annotations: annotations.unwrap_or_default(), ..Notes::default() },
            template: Mutex::new(engine),
        })
    }

    /// The attributes that determine the answer; none where not even they do.
    pub(crate) fn attributes(&self) -> Option<&BTreeSet<Attribute>> {
        self.plan.attributes.as_ref()
    }

    /// How many bytes of a request's body it reads at most; none where it reads no bodies.
    pub(crate) fn body_limit(&self) -> Option<usize> {
        self.plan.body.map(|_| self.body.limit())
    }

    /// Whether it reads the body of a request of which nothing was read yet.
    pub(crate) fn awaits_body(&self, facts: &Facts<'_>) -> bool {
        let is_unread = |http: &Http<'_>| http.body.is_none() && matches!(http.told, Told::All);
        self.plan.body.is_some() && facts.request.http.as_ref().is_some_and(is_unread)
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
    /// lack of a request, it may mean to allow. What there is to note is noted in either case.
    pub(crate) fn evaluate(
        &self,
        evaluator: &mut Engine,
        facts: &Facts<'_>,
        notes: &mut Notes,
    ) -> Result<Ruling, RegoFailure> {
        let body = self.read_body(facts).map_err(RegoFailure::Body)?;
        let answer = self.answer(evaluator, facts, &body);
        evaluator.take_prints().unwrap_or_default().iter().for_each(|message| notes.print(message, facts));
        notes.add(&self.annotations);
        answer.map_err(|detail| RegoFailure::Failed(shortened(detail)))
    }

    fn read_body<'f>(&self, facts: &'f Facts<'_>) -> Result<BodyInput<'f>, BodyFault> {
        match (self.plan.body, facts.http().body) {
            (Some(parses), Some(body)) => self.body.read(body, parses.0, facts),
            _ => Ok(BodyInput::NONE),
        }
    }

    fn answer(&self, evaluator: &mut Engine, facts: &Facts<'_>, body: &BodyInput<'_>) -> Result<Ruling, String> {
        if facts.request.http.is_none() {
            return Err("the connection carries no HTTP request, and Rego policies are asked about those".to_owned());
        }
        evaluator.set_input(self.plan.build(facts, body));
        let limit = Duration::from_millis(u64::from(self.timeout_ms));
        let evaluated = catch_unwind(AssertUnwindSafe(|| timer::evaluate(evaluator, &self.entrypoint, limit)));
        let result = evaluated.unwrap_or_else(|_| {
            *evaluator = self.evaluator(); // the other may be in any state
            Err("a built-in of the interpreter panicked".to_owned())
        });
        result.and_then(|result| read_result(&result))
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
    engine.set_gather_prints(true); // or they go to the process's standard error
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
