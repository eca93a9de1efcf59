//! `regex.*` and `glob.match`: patterns as Go's `regexp` (RE2) and gobwas/glob read them.

use ::regex::{Regex, RegexBuilder};
use regorus::Value;

use super::{Answer, Arguments, BuiltIn, Fault};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn { name: "glob.match", arity: 3, call: glob_match },
    BuiltIn {
        name: "regex.is_valid",
        arity: 1,
        call: |given| Ok(given.string(0).is_ok_and(|text| compile(text).is_ok()).into()),
    },
    BuiltIn {
        name: "regex.match",
        arity: 2,
        call: |given| Ok(compile(given.string(0)?)?.is_match(given.string(1)?).into()),
    },
    BuiltIn { name: "regex.split", arity: 2, call: split },
];

/// Bytes that a compiled pattern may take.
const MAX_COMPILED_BYTES: usize = 16 * 1024 * 1024;

fn compile(pattern: &str) -> Result<Regex, Fault> {
    let mut builder = RegexBuilder::new(&for_rust(pattern));
    let built = builder.size_limit(MAX_COMPILED_BYTES).dfa_size_limit(MAX_COMPILED_BYTES).build();
    built.map_err(|error| match error {
        ::regex::Error::CompiledTooBig(most) => Fault::Limit(format!("a compiled pattern may have {most} bytes")),
        _ => format!("error parsing regexp: `{pattern}`").into(),
    })
}

/// Go's pattern in Rust's words: classes such as `\d` hold ASCII in Go, and have no operators such as `&&`.
fn for_rust(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(character) = rest.next() {
        match character {
            '\\' => match rest.next() {
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str(r"[\t\n\x0C\r ]"),
                Some('S') => out.push_str(r"[^\t\n\x0C\r ]"),
                Some('b') if !in_class => out.push_str(r"(?-u:\b)"),
                escaped => {
                    out.push('\\');
                    out.extend(escaped);
                }
            },
            '[' if in_class && rest.peek() == Some(&':') => out.push('['),
            '[' if in_class => out.push_str(r"\["),
            '[' => {
                in_class = true;
                out.push('[');
                out.extend(rest.next_if_eq(&'^'));
                if rest.next_if_eq(&']').is_some() {
                    out.push_str(r"\]");
                }
            }
            ':' if in_class
                && rest.peek() == Some(&']')
                && out.rfind("[:").is_some_and(|at| !out[at..].contains(']')) =>
            {
                out.push(':');
                out.extend(rest.next());
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => out.extend(['\\', character]),
            other => out.push(other),
        }
    }
    out
}

fn split(given: &Arguments<'_>) -> Answer {
    let (pattern, text) = (compile(given.string(0)?)?, given.string(1)?);
    Ok(pattern.split(text).map(Value::from).collect::<Vec<_>>().into())
}

fn glob_match(given: &Arguments<'_>) -> Answer {
    let (pattern, text) = (given.string(0)?, given.string(2)?);
    let separators = match given.value(1) {
        Value::Null => String::new(),
        Value::Array(items) if items.is_empty() => ".".to_owned(),
        Value::Array(items) => {
            let texts = items.iter().map(|item| item.as_string().map(AsRef::as_ref).unwrap_or_default());
            texts.collect()
        }
        _ => return Err(Fault::Type(2, "one of {null, array}")),
    };
    Ok(compile_glob(pattern, &separators)?.is_match(text).into())
}

fn compile_glob(pattern: &str, separators: &str) -> Result<Regex, Fault> {
    let separators: String = separators.chars().map(|character| ::regex::escape(&character.to_string())).collect();
    let one = if separators.is_empty() { "(?s:.)".to_owned() } else { format!("[^{separators}]") };
    let mut out = "^".to_owned();
    let mut rest = pattern.chars().peekable();
    let mut alternatives = 0;
    while let Some(character) = rest.next() {
        match character {
            '*' if rest.next_if_eq(&'*').is_some() => out.push_str("(?s:.*)"),
            '*' => out.push_str(&format!("{one}*")),
            '?' => out.push_str(&one),
            '[' => {
                out.push('[');
                if rest.next_if_eq(&'!').is_some() {
                    out.push('^');
                }
                for inside in rest.by_ref() {
                    match inside {
                        '[' | '&' | '~' | '^' => out.extend(['\\', inside]),
                        _ => out.push(inside),
                    }
                    if inside == ']' {
                        break;
                    }
                }
            }
            '{' => {
                alternatives += 1;
                out.push_str("(?:");
            }
            '}' if alternatives > 0 => {
                alternatives -= 1;
                out.push(')');
            }
            ',' if alternatives > 0 => out.push('|'),
            '\\' => out.extend(rest.next().map(|escaped| ::regex::escape(&escaped.to_string()))),
            other => out.push_str(&::regex::escape(&other.to_string())),
        }
    }
    out.push('$');
    Regex::new(&out).map_err(|_| format!("{pattern} is no glob pattern").into())
}
