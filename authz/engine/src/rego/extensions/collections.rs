//! `array.*`, `strings.*`, numbers and operators by their names, as far as the interpreter lacks them or errs.

use std::cmp::Ordering;

use regorus::Value;

use super::{Answer, Arguments, BuiltIn, Fault};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn { name: "array.flatten", arity: 1, call: flatten },
    BuiltIn { name: "json.is_valid", arity: 1, call: json_is_valid },
    BuiltIn { name: "numbers.range", arity: 2, call: range },
    BuiltIn { name: "to_number", arity: 1, call: to_number },
    BuiltIn {
        name: "strings.count",
        arity: 2,
        call: |given| Ok(given.string(0)?.matches(given.string(1)?).count().into()),
    },
    BuiltIn { name: "strings.replace_n", arity: 2, call: replace_n },
    BuiltIn { name: "strings.split_n", arity: 3, call: split_n },
    BuiltIn { name: "eq", arity: 2, call: |given| compared(given, Ordering::is_eq) },
    BuiltIn { name: "equal", arity: 2, call: |given| compared(given, Ordering::is_eq) },
    BuiltIn { name: "neq", arity: 2, call: |given| compared(given, Ordering::is_ne) },
    BuiltIn { name: "lt", arity: 2, call: |given| compared(given, Ordering::is_lt) },
    BuiltIn { name: "lte", arity: 2, call: |given| compared(given, Ordering::is_le) },
    BuiltIn { name: "gt", arity: 2, call: |given| compared(given, Ordering::is_gt) },
    BuiltIn { name: "gte", arity: 2, call: |given| compared(given, Ordering::is_ge) },
];

fn compared(given: &Arguments<'_>, holds: fn(Ordering) -> bool) -> Answer {
    Ok(holds(given.value(0).cmp(given.value(1))).into())
}

/// Numbers that a range may have: the interpreter's own ends the process where there is no room for them.
const MAX_RANGE: i128 = 1_000_000;

fn range(given: &Arguments<'_>) -> Answer {
    let integer = |at: usize| given.value(at).as_i128().map_err(|_| Fault::Type(at + 1, "integer"));
    let (from, to) = (integer(0)?, integer(1)?);
    if to.saturating_sub(from).saturating_abs() >= MAX_RANGE {
        return Err(Fault::Limit(format!("a range may have {MAX_RANGE} numbers")));
    }
    let numbers: Vec<Value> =
        if from <= to { (from..=to).map(Value::from).collect() } else { (to..=from).rev().map(Value::from).collect() };
    Ok(numbers.into())
}

fn json_is_valid(given: &Arguments<'_>) -> Answer {
    Ok(given.string(0).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()).into())
}

fn to_number(given: &Arguments<'_>) -> Answer {
    match given.value(0) {
        Value::Null => Ok(0.into()),
        Value::Bool(value) => Ok(i32::from(*value).into()),
        number @ Value::Number(_) => Ok(number.clone()),
        Value::String(text) => match Value::from_json_str(text) {
            Ok(number @ Value::Number(_)) => Ok(number),
            _ if is_no_number(text) => Err(Fault::Type(1, "a valid number")),
            _ => Err("invalid syntax".into()),
        },
        _ => Err(Fault::Type(1, "one of {null, boolean, number, string}")),
    }
}

/// What Go's `strconv.ParseFloat` takes and JSON does not hold.
fn is_no_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text).to_ascii_lowercase();
    matches!(&*unsigned, "nan" | "inf" | "infinity")
}

/// Arrays in an array, one level of them, in the place of what they hold.
fn flatten(given: &Arguments<'_>) -> Answer {
    let mut flat = Vec::new();
    for item in given.array(0)? {
        match item {
            Value::Array(nested) => flat.extend(nested.iter().cloned()),
            item => flat.push(item.clone()),
        }
    }
    Ok(flat.into())
}

/// The first `n` parts of a text, or the last `-n`.
fn split_n(given: &Arguments<'_>) -> Answer {
    let (text, delimiter) = (given.string(0)?, given.string(1)?);
    let n = given.value(2).as_i64().map_err(|_| Fault::Type(3, "number"))?;
    let parts: Vec<Value> = match delimiter {
        "" => text.chars().map(|character| character.to_string().into()).collect(),
        delimiter => text.split(delimiter).map(Value::from).collect(),
    };
    let kept = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX).min(parts.len());
    Ok(if n < 0 { parts[parts.len() - kept..].to_vec() } else { parts[..kept].to_vec() }.into())
}

/// Replaces at each place the first of the patterns that is there, in their order; what was put in is not read again.
fn replace_n(given: &Arguments<'_>) -> Answer {
    let mut patterns: Vec<(&str, &str)> = Vec::new();
    for (old, new) in given.members(0)? {
        let text = |value: &'_ Value| value.as_string().is_ok();
        if !text(old) || !text(new) {
            return Err(Fault::Type(1, "object[string: string]"));
        }
        patterns.push((old.as_string()?, new.as_string()?));
    }
    patterns.sort_unstable();
    let mut rest = given.string(1)?;
    let (mut out, mut was_empty) = (String::new(), false);
    loop {
        // The empty pattern is at every place, once.
        let found = patterns.iter().find(|(old, _)| rest.starts_with(old) && !(was_empty && old.is_empty()));
        if let Some((old, new)) = found {
            out.push_str(new);
            rest = &rest[old.len()..];
            was_empty = old.is_empty();
        } else {
            let Some(character) = rest.chars().next() else { break };
            out.push(character);
            rest = &rest[character.len_utf8()..];
            was_empty = false;
        }
    }
    Ok(out.into())
}
