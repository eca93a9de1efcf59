//! Annotations of Rego: YAML in comments that begin `# METADATA`.
//!
//! <https://www.openpolicyagent.org/docs/policy-language#annotations>. A decision is explained by those of the rule that
//! answers, or of its package.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::RegoError;
use crate::notes::MAX_NOTE_BYTES;

/// Scopes in which the rule that answers is annotated, the nearest first.
const SCOPES: &[&str] = &["document", "rule", "package"];

/// The annotations of `entrypoint` as one line of JSON, for the policy `name`; none where there are none.
///
/// # Errors
/// Annotations that are no YAML, with their place.
pub(super) fn of_entrypoint(
    name: &str,
    entrypoint: &str,
    modules: &BTreeMap<String, String>,
) -> Result<Option<String>, RegoError> {
    let (package, rule) = entrypoint.rsplit_once('.').unwrap_or_default();
    let mut found: Vec<(String, Map<String, Value>)> = Vec::new();
    for (file, source) in modules {
        for block in blocks(source) {
            let annotations = parse(file, &block)?;
            let (default, is_meant) = match block.subject.strip_prefix("package ") {
                Some(subject) => ("package", format!("data.{}", subject.trim()) == package),
                None => ("rule", is_rule(block.subject, rule) && package_of(source) == package),
            };
            let scope = annotations.get("scope").and_then(Value::as_str).unwrap_or(default).to_owned();
            if is_meant {
                found.push((scope, annotations));
            }
        }
    }
    let best = SCOPES.iter().find_map(|scope| only(found.iter().filter(|(other, _)| other == scope)));
    Ok(best.map(|(_, annotations)| line(name, annotations)))
}

/// Which of several rules answered is not known: then none of them explains it.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

/// As much of the annotations as a note holds.
fn line(policy: &str, annotations: &Map<String, Value>) -> String {
    let with = |members: &[&str]| {
        let chosen = annotations.iter().filter(|(name, _)| members.is_empty() || members.contains(&name.as_str()));
        let mut object: Map<String, Value> = chosen.map(|(name, value)| (name.clone(), value.clone())).collect();
        object.insert("policy".to_owned(), policy.into());
        Value::from(object).to_string()
    };
    let candidates: [&[&str]; 3] = [&[], &["title"], &["policy"]];
    candidates.iter().map(|members| with(members)).find(|line| line.len() <= MAX_NOTE_BYTES / 2).unwrap_or_default()
}

/// A block of annotations and the line that it stands before.
struct Block<'s> {
    yaml: String,
    /// Line of its first comment, from 1.
    line: u32,
    subject: &'s str,
}

fn blocks(source: &str) -> Vec<Block<'_>> {
    let mut lines = source.lines().enumerate().peekable();
    let mut blocks = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line.trim_start().strip_prefix('#').map(str::trim) != Some("METADATA") {
            continue;
        }
        let mut yaml = String::new();
        while let Some(comment) = lines.peek().and_then(|(_, line)| line.trim_start().strip_prefix('#')) {
            yaml.push_str(comment);
            yaml.push('\n');
            lines.next();
        }
        let subject = lines.clone().map(|(_, line)| line.trim()).find(|line| !line.is_empty()).unwrap_or_default();
        blocks.push(Block { yaml, line: number as u32 + 1, subject });
    }
    blocks
}

fn parse(file: &str, block: &Block<'_>) -> Result<Map<String, Value>, RegoError> {
    yaml_serde::from_str(&block.yaml).map_err(|error| RegoError::NotAdmitted {
        file: file.to_owned(),
        line: block.line,
        reason: format!("the annotations are no object of YAML: {error}"),
    })
}

fn package_of(source: &str) -> String {
    let line = source.lines().find_map(|line| line.trim().strip_prefix("package "));
    format!("data.{}", line.unwrap_or_default().split('#').next().unwrap_or_default().trim())
}

fn is_rule(line: &str, name: &str) -> bool {
    let line = line.strip_prefix("default ").unwrap_or(line);
    let rest = line.strip_prefix(name);
    rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn annotations(source: &str) -> Option<String> {
        let modules = BTreeMap::from([("p.rego".to_owned(), source.to_owned())]);
        of_entrypoint("a/r", "data.p.allow", &modules).expect("annotations")
    }

    #[test]
    fn the_nearest_annotations_explain() {
        let rule = "# METADATA\n# title: rule\nallow := true\n";
        let package = "# METADATA\n# title: all\n# custom:\n#   owner: [ada]\npackage p\n";
        let document = "# METADATA\n# scope: document\n# title: document\nallow if input.a\n";
        let all = r#"{"custom":{"owner":["ada"]},"policy":"a/r","title":"all"}"#;
        let table = [
            ("package p\nallow := true\n".to_owned(), None),
            (format!("package p\n{rule}"), Some(r#"{"policy":"a/r","title":"rule"}"#)),
            (format!("{package}allow := true\n"), Some(all)),
            (format!("{package}{rule}{rule}"), Some(all)),
            (format!("{package}{rule}{document}"), Some(r#"{"policy":"a/r","scope":"document","title":"document"}"#)),
            ("package p\n# METADATA\n# title: other\nallowed := 1\n".to_owned(), None),
            (format!("package q\n{rule}"), None),
        ];
        for (source, wanted) in table {
            assert_eq!(annotations(&source).as_deref(), wanted, "{source}");
        }
    }

    #[test]
    fn long_annotations_are_left_out_down_to_the_title() {
        let long = "x".repeat(MAX_NOTE_BYTES);
        let described = annotations(&format!("# METADATA\n# title: short\n# description: {long}\npackage p\n"));
        assert_eq!(described.as_deref(), Some(r#"{"policy":"a/r","title":"short"}"#));
        let titled = annotations(&format!("# METADATA\n# title: {long}\npackage p\n"));
        assert_eq!(titled.as_deref(), Some(r#"{"policy":"a/r"}"#));
    }

    #[test]
    fn annotations_that_are_no_yaml_are_refused_with_their_place() {
        let modules =
            BTreeMap::from([("p.rego".to_owned(), "package p\n\n# METADATA\n# - [\nallow := true\n".to_owned())]);
        let error = of_entrypoint("a/r", "data.p.allow", &modules).expect_err("refused");
        assert_eq!(error.place(), Some(("p.rego".to_owned(), 3)));
    }

    proptest! {
        #[test]
        fn any_comments_are_annotations_or_refused(yaml in "(#[ a-z:\\[\\]{}&*-]{0,12}\n){0,6}") {
            let modules = BTreeMap::from([("p.rego".to_owned(), format!("# METADATA\n{yaml}package p\n"))]);
            let _ = of_entrypoint("a/r", "data.p.allow", &modules);
        }
    }
}
