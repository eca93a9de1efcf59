//! OPA's built-ins that the interpreter lacks or answers otherwise, for the check tier. One file a family.
//!
//! <https://www.openpolicyagent.org/docs/policy-reference#built-in-functions>

mod collections;
mod crypto;
mod jwt;
mod keys;
mod net;
mod regex;
mod text;
mod uri;

use regorus::{Engine, Value};

use crate::document::Tier;

/// A built-in of ours.
pub(super) struct BuiltIn {
    pub(super) name: &'static str,
    /// Arguments, without the one that its result may be given to.
    pub(super) arity: u8,
    call: fn(&Arguments<'_>) -> Answer,
}

type Answer = Result<Value, Fault>;

/// Why a built-in has no answer. A rule is undefined then, or, where errors are strict, the query fails.
enum Fault {
    /// An argument is of another type: number of the argument from 1, what is expected.
    Type(usize, &'static str),
    /// An argument has no meaning.
    Failed(String),
    /// It would take more than there may be. No call that fails so is undefined: its `not` would hold.
    Limit(String),
}

impl<T: std::fmt::Display> From<T> for Fault {
    fn from(reason: T) -> Self {
        Self::Failed(reason.to_string())
    }
}

/// What a built-in was called with: as many values as its arity, none of them undefined.
struct Arguments<'v>(&'v [Value]);

impl Arguments<'_> {
    fn value(&self, at: usize) -> &Value {
        &self.0[at]
    }

    fn string(&self, at: usize) -> Result<&str, Fault> {
        self.value(at).as_string().map(AsRef::as_ref).map_err(|_| Fault::Type(at + 1, "string"))
    }

    fn array(&self, at: usize) -> Result<impl Iterator<Item = &Value>, Fault> {
        self.value(at).as_array().map(|items| items.iter()).map_err(|_| Fault::Type(at + 1, "array"))
    }

    fn members(&self, at: usize) -> Result<impl Iterator<Item = (&Value, &Value)>, Fault> {
        self.value(at).as_object().map(|object| object.iter()).map_err(|_| Fault::Type(at + 1, "object"))
    }
}

const FAMILIES: &[&[BuiltIn]] = &[
    collections::BUILT_INS,
    crypto::BUILT_INS,
    jwt::BUILT_INS,
    net::BUILT_INS,
    regex::BUILT_INS,
    text::BUILT_INS,
    uri::BUILT_INS,
];

/// Those that replace the interpreter's where it is wrong, or without bounds, in what the sidecar tier admits.
const IN_SIDECAR: &[&str] = &[
    "concat",
    "sprintf",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "to_number",
    "trim",
    "trim_left",
    "trim_right",
];

/// Built-ins whose answer their arguments do not determine: a policy that calls one is decided anew each time.
const VOLATILE: &[&str] = &[
    "io.jwt.decode_verify",
    "io.jwt.encode_sign",
    "io.jwt.encode_sign_raw",
    "rand.intn",
    "time.now_ns",
    "uuid.rfc4122",
];

/// Whether the built-in called `name` may answer otherwise when it is called again.
pub(super) fn is_volatile(name: &str) -> bool {
    VOLATILE.contains(&name)
}

/// The built-ins of ours that `tier` has.
pub(super) fn of(tier: Tier) -> impl Iterator<Item = &'static BuiltIn> {
    let has = move |built_in: &&BuiltIn| tier == Tier::Check || IN_SIDECAR.contains(&built_in.name);
    FAMILIES.iter().copied().flatten().filter(has)
}

/// The built-in of `tier` called `name`, where it is ours.
pub(super) fn find(tier: Tier, name: &str) -> Option<&'static BuiltIn> {
    of(tier).find(|built_in| built_in.name == name)
}

/// Gives `engine` those of `tier`. Where errors are not `strict`, a call that fails is undefined, as OPA has it.
pub(super) fn register(engine: &mut Engine, tier: Tier, strict: bool) {
    for built_in in of(tier) {
        let call = move |arguments: Vec<Value>| match (built_in.call)(&Arguments(&arguments)) {
            Ok(value) => Ok(value),
            Err(Fault::Limit(reason)) => Err(anyhow::anyhow!("{}: {reason}", built_in.name)),
            Err(_) if !strict => Ok(Value::Undefined),
            Err(fault) => Err(anyhow::Error::msg(describe(built_in.name, &fault, &arguments))),
        };
        let added = engine.add_extension(built_in.name.to_owned(), built_in.arity, Box::new(call));
        debug_assert!(added.is_ok(), "{} is listed once", built_in.name);
    }
}

/// A failure in OPA's words, with its code in front.
fn describe(name: &str, fault: &Fault, arguments: &[Value]) -> String {
    match fault {
        Fault::Failed(reason) | Fault::Limit(reason) => format!("eval_builtin_error: {name}: {reason}"),
        Fault::Type(at, wanted) => {
            let given = arguments.get(at - 1).map_or("nothing", type_name);
            format!("eval_type_error: {name}: operand {at} must be {wanted} but got {given}")
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Set(_) => "set",
        Value::Object(_) => "object",
        Value::Undefined => "undefined",
    }
}
