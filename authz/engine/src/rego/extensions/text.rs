//! Texts, where the interpreter's own built-ins take more than the size of what they are given, or write more.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use regorus::unstable::{Expr, ExprRef, Span, BUILTINS};
use regorus::Value;

use super::{Answer, Arguments, BuiltIn, Fault};
use crate::rego::builtins::has_plain_verbs;
use crate::rego::{rewrite, syntax};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn { name: "concat", arity: 2, call: concat },
    BuiltIn { name: "sprintf", arity: 2, call: sprintf },
    BuiltIn {
        name: "strings.any_prefix_match",
        arity: 2,
        call: |given| any_match(given, |text, length| text.get(..length)),
    },
    BuiltIn {
        name: "strings.any_suffix_match",
        arity: 2,
        call: |given| any_match(given, |text, length| text.get(text.len() - length..)),
    },
    BuiltIn { name: "trim", arity: 2, call: |given| trimmed(given, true, true) },
    BuiltIn { name: "trim_left", arity: 2, call: |given| trimmed(given, true, false) },
    BuiltIn { name: "trim_right", arity: 2, call: |given| trimmed(given, false, true) },
];

/// Longest text, in bytes, that is made of others: they may be one text, many times.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most comparisons of one call.
const MAX_COMPARISONS: usize = 4_000_000;

fn too_long() -> Fault {
    Fault::Limit(format!("a text may have {MAX_BYTES} bytes"))
}

fn concat(given: &Arguments<'_>) -> Answer {
    let delimiter = given.string(0)?;
    let parts = texts(given.value(1), 2, "one of {set, array}")?;
    let length = parts.iter().fold(0_usize, |length, part| length.saturating_add(part.len() + delimiter.len()));
    if length > MAX_BYTES {
        return Err(too_long());
    }
    Ok(parts.join(delimiter).into())
}

/// The texts of an array or a set.
fn texts<'v>(value: &'v Value, at: usize, wanted: &'static str) -> Result<Vec<&'v str>, Fault> {
    let text = |item: &'v Value| match item {
        Value::String(text) => Ok(text.as_ref()),
        _ => Err(Fault::Type(at, "array of strings")),
    };
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        Value::Set(items) => items.iter().map(text).collect(),
        _ => Err(Fault::Type(at, wanted)),
    }
}

fn sprintf(given: &Arguments<'_>) -> Answer {
    let format = given.string(0)?;
    let arguments: Vec<&Value> = given.array(1)?.collect();
    let mut left = MAX_BYTES.saturating_sub(format.len());
    for argument in &arguments {
        left = left.checked_sub(written(argument, left)).ok_or_else(too_long)?;
    }
    if has_plain_verbs(format) {
        Ok(formatted(format, &arguments)?.into())
    } else {
        interpreters_sprintf(given.0)
    }
}

/// As Go's `fmt` writes it, with its complaints in the text.
fn formatted(format: &str, arguments: &[&Value]) -> Result<String, Fault> {
    let (mut out, mut rest, mut arguments) = (String::new(), format, arguments.iter());
    while let Some((text, after)) = rest.split_once('%') {
        out.push_str(text);
        let mut after = after.chars();
        let verb = after.next().unwrap_or('%');
        rest = after.as_str();
        match arguments.as_slice().first() {
            _ if verb == '%' => {
                out.push('%');
                continue;
            }
            None => out.push_str(&format!("%!{verb}(MISSING)")),
            Some(argument) if fits(verb, argument) => out.push_str(&shown(argument)?),
            Some(argument) => out.push_str(&format!("%!{verb}({})", typed(argument)?)),
        }
        arguments.next();
    }
    out.push_str(rest);
    let extra = arguments.map(|argument| typed(argument)).collect::<Result<Vec<_>, _>>()?;
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

/// Whether `verb` is for such a value: all but numbers are texts here.
fn fits(verb: char, value: &Value) -> bool {
    match (verb, value) {
        ('d', Value::Number(number)) => number.is_integer(),
        ('s', Value::Number(number)) => number.is_integer() && number.as_i64().is_none(),
        ('d', _) => false,
        _ => true,
    }
}

fn typed(value: &Value) -> Result<String, Fault> {
    let name = match value {
        Value::Number(number) if !number.is_integer() => "float64",
        Value::Number(number) if number.as_i64().is_none() => "*big.Int",
        Value::Number(_) => "int64",
        _ => "string",
    };
    Ok(format!("{name}={}", shown(value)?))
}

fn shown(value: &Value) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text.to_string()),
        Value::Number(number) if !number.is_integer() => Ok(number.as_f64().map(float).unwrap_or_default()),
        other => Ok(interpreters_sprintf(&["%v".into(), vec![other.clone()].into()])?.as_string()?.to_string()),
    }
}

/// As Go's `%v` writes it: with an exponent where it would be long.
fn float(number: f64) -> String {
    let scientific = format!("{number:e}");
    match scientific.split_once('e').map(|(mantissa, exponent)| (mantissa, exponent.parse::<i32>())) {
        Some((mantissa, Ok(exponent))) if !(-4..21).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ => number.to_string(),
    }
}

fn interpreters_sprintf(arguments: &[Value]) -> Answer {
    static CALL: LazyLock<Option<(Span, Vec<ExprRef>)>> = LazyLock::new(any_call);
    let (Some((span, parameters)), Some((own, _))) = (&*CALL, BUILTINS.get("sprintf")) else {
        return Err("there is no such built-in".into());
    };
    Ok(own(span, parameters, arguments, true)?)
}

/// A call of two arguments: the interpreter's built-ins are told where they are called.
fn any_call() -> Option<(Span, Vec<ExprRef>)> {
    let module = rewrite::parse("sprintf", "package p\nx := sprintf(\"\", [])\n")?;
    let rule = module.policy.first()?;
    let mut found = None;
    let walked: Result<(), std::convert::Infallible> = syntax::walk(rule.as_ref(), &mut |node, _| {
        if let syntax::Node::Expr(Expr::Call { span, params, .. }) = node {
            found = Some((span.clone(), params.clone()));
        }
        Ok(())
    });
    walked.ok().and(found)
}

/// About how many bytes `value` has when it is written; more than `most` where it has more.
fn written(value: &Value, most: usize) -> usize {
    const SCALAR: usize = 24;
    let (mut bytes, mut pending) = (0, vec![value]);
    while let Some(value) = pending.pop() {
        bytes += match value {
            Value::String(text) => text.len() + 2,
            _ => SCALAR,
        };
        if bytes > most {
            break;
        }
        match value {
            Value::Array(items) => pending.extend(items.iter()),
            Value::Set(items) => pending.extend(items.iter()),
            Value::Object(members) => pending.extend(members.iter().flat_map(|(key, value)| [key, value])),
            _ => {}
        }
    }
    bytes
}

/// Whether any text begins, or ends, with any other: `part` takes so many bytes of one, where there is such a part.
fn any_match(given: &Arguments<'_>, part: fn(&str, usize) -> Option<&str>) -> Answer {
    let (searched, affixes) = (one_or_more(given, 0)?, one_or_more(given, 1)?);
    let mut by_length: BTreeMap<usize, HashSet<&str>> = BTreeMap::new();
    for affix in affixes {
        by_length.entry(affix.len()).or_default().insert(affix);
    }
    if searched.len().saturating_mul(by_length.len()) > MAX_COMPARISONS {
        return Err(Fault::Limit(format!("{MAX_COMPARISONS} comparisons may be made")));
    }
    let matches = |text: &&str| {
        let fitting = by_length.range(..=text.len());
        fitting.into_iter().any(|(&length, affixes)| part(text, length).is_some_and(|part| affixes.contains(part)))
    };
    Ok(searched.iter().any(matches).into())
}

fn one_or_more<'v>(given: &'v Arguments<'_>, at: usize) -> Result<Vec<&'v str>, Fault> {
    match given.value(at) {
        Value::String(text) => Ok(vec![text.as_ref()]),
        other => texts(other, at + 1, "one of {string, set, array}"),
    }
}

/// A text without those of some characters that it begins or ends with.
fn trimmed(given: &Arguments<'_>, at_start: bool, at_end: bool) -> Answer {
    let (mut text, characters) = (given.string(0)?, given.string(1)?.chars().collect::<HashSet<_>>());
    if at_start {
        text = text.trim_start_matches(|character| characters.contains(&character));
    }
    if at_end {
        text = text.trim_end_matches(|character| characters.contains(&character));
    }
    Ok(text.into())
}
