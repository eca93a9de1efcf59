//! `not` as OPA reads it: what a negated expression is made of must be defined, and only what it says of that is negated.
//!
//! To OPA, `not startswith(input.name, "a")` is `x = input.name; not startswith(x, "a")`: without a name the rule does
//! not hold. The interpreter takes the whole for undefined and its negation for true, so that a policy lets in who
//! leaves out what it asks for.

use std::collections::BTreeSet;
use std::ops::Range;

use regorus::unstable::{BoolOp, Expr, ExprRef, Literal, Span};

use super::Edit;
use crate::rego::source::ends_with_if;
use crate::rego::syntax::Node;

/// What the names begin with that the operands get.
const PREFIX: &str = "__operand_";

/// The statement of a `not` with what it is asked about in front of it; none where nothing is to be taken out.
pub(super) fn without_operands(
    node: &Node<'_>,
    source: &str,
    rules: &BTreeSet<String>,
    names: &mut usize,
) -> Option<Edit> {
    let Node::Not(expression, statement) = node else { return None };
    let Literal::NotExpr { span: negated, .. } = &statement.literal else { return None };
    let mut operands = Vec::new();
    push_operands(expression, &mut operands);
    // A variable has a value; a rule, which looks like one, may have none.
    operands.retain(|operand| !matches!(operand, Expr::Var { span, .. } if !rules.contains(span.text())));
    if operands.is_empty() {
        return None;
    }
    let range = place(&statement.span, source);
    let modifiers = source.get(place(negated, source).end..range.end)?;
    let mut ranges: Vec<_> = operands.into_iter().map(|operand| place_of(operand, source)).collect();
    ranges.sort_by_key(|range| range.start);
    let (mut before, mut rest, mut at) = (String::new(), String::new(), range.start);
    for operand in ranges {
        *names += 1;
        let name = format!("{PREFIX}{names}");
        before.push_str(&format!("{name} = {}{modifiers}; ", source.get(operand.clone())?));
        rest.push_str(source.get(at..operand.start)?);
        rest.push_str(&name);
        at = operand.end;
    }
    rest.push_str(source.get(at..range.end)?);
    let text = if ends_with_if(&source[..range.start]) { format!("{{ {before}{rest} }}") } else { before + &rest };
    Some(Edit { range, text })
}

/// Where an expression is. An object of several members begins with the last of them, to the parser.
fn place_of(expression: &Expr, source: &str) -> Range<usize> {
    let range = place(expression.span(), source);
    let Expr::Object { fields, .. } = expression else { return range };
    let [(_, first, _), _, ..] = &fields[..] else { return range };
    let before = source.get(..place_of(first, source).start).unwrap_or_default();
    before.rfind('{').map_or(range.clone(), |start| start..range.end)
}

/// Where something is. What begins or ends with a string lacks its quotation mark there, to the parser.
fn place(span: &Span, source: &str) -> Range<usize> {
    const QUOTES: [char; 2] = ['"', '`'];
    let (start, end) = (span.start as usize, span.end as usize);
    let is_late = source.get(..start).is_some_and(|before| before.ends_with(QUOTES));
    let is_cut = source.get(end..).is_some_and(|rest| rest.starts_with(QUOTES));
    start - usize::from(is_late)..end + usize::from(is_cut)
}

/// The parts of a negated expression that OPA evaluates before it.
fn push_operands<'m>(expression: &'m Expr, operands: &mut Vec<&'m Expr>) {
    match expression {
        Expr::BoolExpr { op: BoolOp::Eq, lhs, rhs, .. } | Expr::AssignExpr { lhs, rhs, .. } => {
            push_side(lhs, operands);
            push_side(rhs, operands);
        }
        Expr::BoolExpr { lhs, rhs, .. } | Expr::BinExpr { lhs, rhs, .. } | Expr::ArithExpr { lhs, rhs, .. } => {
            push([lhs, rhs], operands);
        }
        Expr::Call { params, .. } => push(params, operands),
        Expr::Array { items, .. } => push(items, operands),
        Expr::Membership { key, value, collection, .. } => push(key.iter().chain([value, collection]), operands),
        Expr::RefDot { .. } | Expr::RefBrack { .. } => push_indices(expression, operands),
        _ => {}
    }
}

/// A side of an equation may be undefined, where it is a reference.
fn push_side<'m>(side: &'m ExprRef, operands: &mut Vec<&'m Expr>) {
    match side.as_ref() {
        Expr::Var { .. } => {}
        Expr::RefDot { .. } | Expr::RefBrack { .. } => push_indices(side.as_ref(), operands),
        _ => push([side], operands),
    }
}

fn push_indices<'m>(mut reference: &'m Expr, operands: &mut Vec<&'m Expr>) {
    while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = reference {
        if let Expr::RefBrack { index, .. } = reference {
            push([index], operands);
        }
        reference = refr.as_ref();
    }
    if !matches!(reference, Expr::Var { .. }) && is_operand(reference) {
        operands.push(reference);
    }
}

fn push<'m>(parts: impl IntoIterator<Item = &'m ExprRef>, operands: &mut Vec<&'m Expr>) {
    operands.extend(parts.into_iter().map(AsRef::as_ref).filter(|part| is_operand(part)));
}

/// Whether an expression may be undefined.
fn is_operand(expression: &Expr) -> bool {
    let is_literal = matches!(
        expression,
        Expr::String { .. } | Expr::RawString { .. } | Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. }
    );
    let is_comprehension =
        matches!(expression, Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. });
    !is_literal && !is_comprehension
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::document::Tier;
    use crate::rego::rewrite::as_opa_reads_it;

    fn rewritten(body: &str) -> String {
        let (head, tail) = ("package p\nimport rego.v1\nallow if {\n  ", "\n}\n");
        let source = as_opa_reads_it(
            Tier::Sidecar,
            "p.rego",
            format!("{head}{body}{tail}"),
            &BTreeSet::from(["rule".to_owned()]),
        );
        source[head.len()..source.len() - tail.len()].replace(super::PREFIX, "$")
    }

    #[test]
    fn operands_are_taken_out() {
        let table = [
            ("not input.a", "not input.a"),
            ("not input.a == 1", "not input.a == 1"),
            ("not x == input.a.b[0]", "not x == input.a.b[0]"),
            ("not f(1)", "not f(1)"),
            ("not f(input.a)", "$1 = input.a; not f($1)"),
            ("not f(\"a\", x.y[\"b\"][0])", "$1 = x.y[\"b\"][0]; not f(\"a\", $1)"),
            ("not lower(input.a) == \"a\"", "$1 = lower(input.a); not $1 == \"a\""),
            ("not input.a > input.b.c", "$1 = input.a; $2 = input.b.c; not $1 > $2"),
            ("not input.a != 1", "$1 = input.a; not $1 != 1"),
            ("not input.a + 1 == 2", "$1 = input.a + 1; not $1 == 2"),
            ("not (input.a + 1) * 2 == 2", "$1 = (input.a + 1) * 2; not $1 == 2"),
            ("not (lower(input.a) == \"a\")", "$1 = lower(input.a); not ($1 == \"a\")"),
            ("not [input.a, 1] == [1, 1]", "$1 = [input.a, 1]; $2 = [1, 1]; not $1 == $2"),
            ("not f({\"a\": 1, \"b\": 2})", "$1 = {\"a\": 1, \"b\": 2}; not f($1)"),
            ("not f({ input.a: {}, \"b\": {1, 2}, }, 3)", "$1 = { input.a: {}, \"b\": {1, 2}, }; not f($1, 3)"),
            ("not {\"a\": 1, \"b\": 2}[input.b]", "$1 = {\"a\": 1, \"b\": 2}; $2 = input.b; not $1[$2]"),
            ("not input.a in [1, 2]", "$1 = input.a; $2 = [1, 2]; not $1 in $2"),
            ("not data.a[input.b]", "$1 = input.b; not data.a[$1]"),
            ("not data.a[input.b].c == 1", "$1 = input.b; not data.a[$1].c == 1"),
            ("not f(input.a).b", "$1 = f(input.a); not $1.b"),
            ("not f([y | y := input.a])", "not f([y | y := input.a])"),
            ("not f({\"a\": input.x})", "$1 = {\"a\": input.x}; not f($1)"),
            ("not f(1, {\"a\": 1, \"b\": input.x})", "$1 = {\"a\": 1, \"b\": input.x}; not f(1, $1)"),
            ("not f({{`a`: 1, `b`: 2}: 1, 2: 3,})", "$1 = {{`a`: 1, `b`: 2}: 1, 2: 3,}; not f($1)"),
            ("not f(\"a\" == input.x)", "$1 = \"a\" == input.x; not f($1)"),
            ("x := 1; not f(x)", "x := 1; not f(x)"),
            ("not f(rule)", "$1 = rule; not f($1)"),
            ("not rule == 1", "not rule == 1"),
            ("not data.a[rule]", "$1 = rule; not data.a[$1]"),
            ("not lower(x.y) == `b`", "$1 = lower(x.y); not $1 == `b`"),
            ("every x in xs { not f(x.a) }", "every x in xs { $1 = x.a; not f($1) }"),
            ("xs := [x | some x in ys; not f(x.a)]", "xs := [x | some x in ys; $1 = x.a; not f($1)]"),
            ("not f([x | not g(x.a)])", "not f([x | $1 = x.a; not g($1)])"),
            ("not f({[x | not g(x.a)]})", "$1 = {[x | $3 = x.a; not g($3)]}; not f($1)"),
        ];
        for (body, wanted) in table {
            assert_eq!(rewritten(body), wanted, "{body}");
        }
    }

    #[test]
    fn bodies_without_braces_get_them() {
        let rewritten = |rule: &str| {
            let head = "package p\nimport rego.v1\n";
            let source = as_opa_reads_it(Tier::Check, "p.rego", format!("{head}{rule}\n"), &BTreeSet::new());
            source[head.len()..].trim_end().replace(super::PREFIX, "$")
        };
        let table = [
            ("a if not f(input.x)", "a if { $1 = input.x; not f($1) }"),
            ("a if # why\n  not f(input.x)", "a if # why\n  { $1 = input.x; not f($1) }"),
            ("a if b else := 2 if not f(c.e)\nd := 1", "a if b else := 2 if { $1 = c.e; not f($1) }\nd := 1"),
            (
                "a if not f(input.x) with input as {}\nd := 1",
                "a if { $1 = input.x with input as {}; not f($1) with input as {} }\nd := 1",
            ),
        ];
        for (rule, wanted) in table {
            assert_eq!(rewritten(rule), wanted, "{rule}");
        }
    }
}
