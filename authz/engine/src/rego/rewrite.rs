//! What the interpreter would read otherwise than OPA, written so that both read the same.
//!
//! Calls that name their output as a last argument, `io.jwt.decode(token, [header, payload, _])`, are turned into
//! equations: the interpreter gives an output argument to built-ins of its own only. And what `not` is asked about is
//! taken out of it ([`negation`]).

mod negation;

use std::collections::BTreeSet;
use std::convert::Infallible;

use regorus::unstable::{Expr, ExprRef, Module, Parser};
use regorus::Source;

use super::syntax::{reference, rule_name, walk, Node};
use super::{extensions, limits};
use crate::document::Tier;

/// Passes over the source. Each takes the outermost places, and brackets are nested less deep than this.
const MAX_PASSES: usize = 16;

/// The names that are no variables in these modules: those of rules and of imports.
pub(super) fn names<M: AsRef<Module>>(modules: &[M]) -> BTreeSet<String> {
    let of = |module: &Module| {
        let rules = module.policy.iter().map(|rule| rule_name(rule.as_ref()));
        let imports = module.imports.iter().filter_map(|import| match &import.r#as {
            Some(alias) => Some(alias.text().to_owned()),
            None => reference(import.refr.as_ref())?.path.pop(),
        });
        rules.chain(imports).collect::<Vec<_>>()
    };
    modules.iter().flat_map(|module| of(module.as_ref())).collect()
}

/// `source`, of a policy with `rules` of these names, as OPA reads it; as it is where it cannot be parsed, which is told elsewhere.
pub(super) fn as_opa_reads_it(tier: Tier, file: &str, source: String, rules: &BTreeSet<String>) -> String {
    let mut source = source;
    if !source.contains("not") && !extensions::of(tier).any(|built_in| source.contains(built_in.name)) {
        return source; // which parses it once less
    }
    let mut names = 0;
    for _ in 0..MAX_PASSES {
        let edits =
            parse(file, &source).map(|module| edits(tier, &module, &source, rules, &mut names)).unwrap_or_default();
        if edits.is_empty() {
            break;
        }
        for edit in edits.into_iter().rev() {
            source.replace_range(edit.range, &edit.text);
        }
    }
    source
}

pub(super) fn parse(file: &str, source: &str) -> Option<Module> {
    let source = Source::from_contents(file.to_owned(), source.to_owned()).ok()?;
    let mut parser = Parser::new(&source).ok()?;
    parser.set_max_col(limits().max_col);
    parser.enable_rego_v1().ok()?;
    parser.parse().ok()
}

/// A piece of the source and what is put in its place.
struct Edit {
    range: std::ops::Range<usize>,
    text: String,
}

/// What is to be changed, in order, none within another.
fn edits(tier: Tier, module: &Module, source: &str, rules: &BTreeSet<String>, names: &mut usize) -> Vec<Edit> {
    let mut found = Vec::new();
    for rule in &module.policy {
        let walked: Result<(), Infallible> = walk(rule.as_ref(), &mut |node, _| {
            found.extend(equation(tier, &node, source));
            found.extend(negation::without_operands(&node, source, rules, names));
            Ok(())
        });
        let Ok(()) = walked;
    }
    found.sort_by_key(|edit| edit.range.start);
    let mut end = 0;
    found.retain(|edit| {
        let apart = edit.range.start >= end;
        end = if apart { edit.range.end } else { end };
        apart
    });
    found
}

fn equation(tier: Tier, node: &Node<'_>, source: &str) -> Option<Edit> {
    let Node::Expr(Expr::Call { span, fcn, params, .. }) = node else { return None };
    let called = reference(fcn.as_ref())?;
    let name = std::iter::once(called.root).chain(called.path).collect::<Vec<_>>().join(".");
    let arity = usize::from(extensions::find(tier, &name)?.arity);
    if params.len() != arity + 1 {
        return None;
    }
    let range = span.start as usize..span.end as usize;
    let before_output = before(params, arity, source, fcn.as_ref())?;
    let output = source.get(before_output + 1..range.end - 1)?.trim().trim_end_matches(',');
    let call = source.get(range.start..before_output)?.trim_end_matches('(');
    let text = if arity == 0 { format!("{output} = {call}()") } else { format!("{output} = {call})") };
    Some(Edit { range, text })
}

/// Where the comma, or the bracket, before the last argument is.
fn before(params: &[ExprRef], arity: usize, source: &str, function: &Expr) -> Option<usize> {
    let (from, sign) = match arity {
        0 => (function.span().end as usize, '('),
        _ => (params[arity - 1].span().end as usize, ','),
    };
    Some(from + source.get(from..)?.find(sign)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_become_equations() {
        let table = [
            ("io.jwt.decode(t, [h, p, _])", "[h, p, _] = io.jwt.decode(t)"),
            ("io.jwt.decode(\"a,b\", x)", "x = io.jwt.decode(\"a,b\")"),
            ("io.jwt.decode([\"a\", f(1)][0], x,)", "x = io.jwt.decode([\"a\", f(1)][0])"),
            ("x := [y | crypto.md5(\"a\", y)]", "x := [y | y = crypto.md5(\"a\")]"),
            ("x := crypto.md5(\"a\")", "x := crypto.md5(\"a\")"),
            ("walk(x, [p, v])", "walk(x, [p, v])"),
        ];
        for (body, wanted) in table {
            let module = |body: &str| format!("package p\nimport rego.v1\nallow if {{\n  {body}\n}}\n");
            assert_eq!(
                as_opa_reads_it(Tier::Check, "p.rego", module(body), &BTreeSet::new()),
                module(wanted),
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_no_rego_is_left_alone() {
        assert_eq!(as_opa_reads_it(Tier::Check, "p.rego", "allow := [".to_owned(), &BTreeSet::new()), "allow := [");
    }
}
