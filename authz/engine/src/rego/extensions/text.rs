//! Texts, where the interpreter's own built-ins take more than the size of what they are given, or write more.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use regorus::unstable::{Expr, ExprRef, Span, BUILTINS};
use regorus::Value;

use super::{Answer, Arguments, BuiltIn, Fault};
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

/// The interpreter's own, of values that are not too large to be written.
fn sprintf(given: &Arguments<'_>) -> Answer {
    static CALL: LazyLock<Option<(Span, Vec<ExprRef>)>> = LazyLock::new(any_call);
    let mut left = MAX_BYTES.saturating_sub(given.string(0)?.len());
    for value in given.array(1)? {
        left = left.checked_sub(written(value, left)).ok_or_else(too_long)?;
    }
    let (Some((span, parameters)), Some((own, _))) = (&*CALL, BUILTINS.get("sprintf")) else {
        return Err("there is no such built-in".into());
    };
    Ok(own(span, parameters, given.0, true)?)
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
