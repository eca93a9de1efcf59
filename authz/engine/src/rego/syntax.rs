//! Walking a parsed Rego module without recursion: what is walked may be hostile, and a stack is finite.

use regorus::unstable::{Expr, ExprRef, Literal, LiteralStmt, Module, Query, Rule, RuleAssign, RuleHead};

/// Something that a rule is made of.
pub(super) enum Node<'m> {
    Expr(&'m Expr),
    /// What is behind a `not`, with its statement.
    Not(&'m Expr, &'m LiteralStmt),
    /// A `with` modifier.
    With,
}

/// Calls `visit` with every node of `rule` and how deep it is nested, from the outside in.
///
/// # Errors
/// The first error of `visit`, which ends the walk.
pub(super) fn walk<'m, E>(rule: &'m Rule, visit: &mut dyn FnMut(Node<'m>, usize) -> Result<(), E>) -> Result<(), E> {
    let mut pending = Pending { expressions: Vec::new(), queries: Vec::new() };
    push_rule(rule, &mut pending);
    loop {
        if let Some((expression, depth)) = pending.expressions.pop() {
            visit(Node::Expr(expression), depth)?;
            push_children(expression, depth + 1, &mut pending);
        } else if let Some((query, depth)) = pending.queries.pop() {
            for statement in &query.stmts {
                for modifier in &statement.with_mods {
                    visit(Node::With, depth)?;
                    pending.push(&modifier.r#as, depth);
                }
                if let Literal::NotExpr { expr, .. } = &statement.literal {
                    visit(Node::Not(expr.as_ref(), statement), depth)?;
                }
                push_literal(&statement.literal, depth, &mut pending);
            }
        } else {
            return Ok(());
        }
    }
}

/// Calls `visit` with every expression of one statement, but not of the bodies within it.
pub(super) fn walk_literal<'m>(literal: &'m Literal, visit: &mut dyn FnMut(&'m Expr)) {
    let mut pending = Pending { expressions: Vec::new(), queries: Vec::new() };
    push_literal(literal, 0, &mut pending);
    while let Some((expression, depth)) = pending.expressions.pop() {
        visit(expression);
        push_children(expression, depth, &mut pending);
    }
}

struct Pending<'m> {
    expressions: Vec<(&'m Expr, usize)>,
    queries: Vec<(&'m Query, usize)>,
}

impl<'m> Pending<'m> {
    fn push(&mut self, expression: &'m ExprRef, depth: usize) {
        self.expressions.push((expression.as_ref(), depth));
    }

    fn assign(&mut self, assign: Option<&'m RuleAssign>) {
        if let Some(assign) = assign {
            self.push(&assign.value, 0);
        }
    }

    /// The indices of a rule's head are expressions; its name is not a reference.
    fn head(&mut self, mut reference: &'m Expr) {
        while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = reference {
            if let Expr::RefBrack { index, .. } = reference {
                self.push(index, 0);
            }
            reference = refr.as_ref();
        }
    }
}

fn push_rule<'m>(rule: &'m Rule, pending: &mut Pending<'m>) {
    match rule {
        Rule::Default { value, .. } => pending.push(value, 0),
        Rule::Spec { head, bodies, .. } => {
            match head {
                RuleHead::Compr { refr, assign, .. } => {
                    pending.head(refr.as_ref());
                    pending.assign(assign.as_ref());
                }
                RuleHead::Set { refr, key, .. } => {
                    pending.head(refr.as_ref());
                    key.iter().for_each(|key| pending.push(key, 0));
                }
                RuleHead::Func { refr, args, assign, .. } => {
                    pending.head(refr.as_ref());
                    args.iter().for_each(|arg| pending.push(arg, 0));
                    pending.assign(assign.as_ref());
                }
            }
            for body in bodies {
                pending.assign(body.assign.as_ref());
                pending.queries.push((body.query.as_ref(), 0));
            }
        }
    }
}

fn push_literal<'m>(literal: &'m Literal, depth: usize, pending: &mut Pending<'m>) {
    match literal {
        Literal::SomeVars { .. } => {}
        Literal::SomeIn { key, value, collection, .. } => {
            key.iter().for_each(|key| pending.push(key, depth));
            pending.push(value, depth);
            pending.push(collection, depth);
        }
        Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => pending.push(expr, depth),
        Literal::Every { domain, query, .. } => {
            pending.push(domain, depth);
            pending.queries.push((query.as_ref(), depth + 1));
        }
    }
}

fn push_children<'m>(expression: &'m Expr, depth: usize, pending: &mut Pending<'m>) {
    match expression {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. } => {}
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().for_each(|item| pending.push(item, depth)),
        Expr::Object { fields, .. } => {
            for (_, key, value) in fields {
                pending.push(key, depth);
                pending.push(value, depth);
            }
        }
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
            pending.push(term, depth);
            pending.queries.push((query.as_ref(), depth));
        }
        Expr::ObjectCompr { key, value, query, .. } => {
            pending.push(key, depth);
            pending.push(value, depth);
            pending.queries.push((query.as_ref(), depth));
        }
        Expr::Call { fcn, params, .. } => {
            // The function's name is no reference to a value; `check.rs` resolves it.
            let _ = fcn;
            params.iter().for_each(|param| pending.push(param, depth));
        }
        Expr::UnaryExpr { expr, .. } => pending.push(expr, depth),
        Expr::RefDot { .. } | Expr::RefBrack { .. } => push_reference(expression, depth, pending),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => {
            pending.push(lhs, depth);
            pending.push(rhs, depth);
        }
        Expr::Membership { key, value, collection, .. } => {
            key.iter().for_each(|key| pending.push(key, depth));
            pending.push(value, depth);
            pending.push(collection, depth);
        }
    }
}

/// Every variable of `expressions`, as often as it is there.
pub(super) fn variables(expressions: &[ExprRef]) -> Vec<&str> {
    let mut pending = Pending { expressions: Vec::new(), queries: Vec::new() };
    expressions.iter().for_each(|expression| pending.push(expression, 0));
    let mut found = Vec::new();
    while let Some((expression, depth)) = pending.expressions.pop() {
        if let Expr::Var { span, .. } = expression {
            found.push(span.text());
        }
        push_children(expression, depth, &mut pending);
    }
    found
}

/// A reference is visited once, whole: of its parts only the indices and a root that is not a name remain.
fn push_reference<'m>(mut reference: &'m Expr, depth: usize, pending: &mut Pending<'m>) {
    while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = reference {
        if let Expr::RefBrack { index, .. } = reference {
            pending.push(index, depth);
        }
        reference = refr.as_ref();
    }
    if !matches!(reference, Expr::Var { .. }) {
        pending.expressions.push((reference, depth));
    }
}

/// A reference as its root name and the constant names after it.
pub(super) struct Reference {
    pub(super) root: String,
    pub(super) path: Vec<String>,
    /// Whether an index that is not constant cut the path short.
    pub(super) dynamic: bool,
}

/// Reads `expression` as a reference; none where it is something else.
pub(super) fn reference(expression: &Expr) -> Option<Reference> {
    let mut parts: Vec<Option<String>> = Vec::new();
    let mut at = expression;
    let root = loop {
        match at {
            Expr::Var { span, .. } => break span.text().to_owned(),
            Expr::RefDot { refr, field, .. } => {
                parts.push(Some(field.0.text().to_owned()));
                at = refr.as_ref();
            }
            Expr::RefBrack { refr, index, .. } => {
                parts.push(string(index.as_ref()));
                at = refr.as_ref();
            }
            _ => return None,
        }
    };
    let total = parts.len();
    let path: Vec<String> = parts.into_iter().rev().map_while(|part| part).collect();
    Some(Reference { root, dynamic: path.len() < total, path })
}

/// The value of a string literal.
pub(super) fn string(expression: &Expr) -> Option<String> {
    match expression {
        Expr::String { value, .. } | Expr::RawString { value, .. } => {
            value.as_string().ok().map(|text| text.as_ref().to_owned())
        }
        _ => None,
    }
}

/// The package of `module` from `data.` on.
pub(super) fn package(module: &Module) -> String {
    let path = reference(module.package.refr.as_ref());
    path.map_or_else(String::new, |path| join("data", std::iter::once(&path.root).chain(&path.path)))
}

/// The first name of a rule's head.
pub(super) fn rule_name(rule: &Rule) -> String {
    let head = match rule {
        Rule::Default { refr, .. } => refr,
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. } | RuleHead::Func { refr, .. } => refr,
        },
    };
    reference(head.as_ref()).map_or_else(String::new, |head| head.root)
}

/// `head` and `rest` with dots between them.
pub(super) fn join<'a>(head: &str, rest: impl IntoIterator<Item = &'a String>) -> String {
    rest.into_iter().fold(head.to_owned(), |joined, part| joined + "." + part)
}
