//! How much larger than its making a value may be.
//!
//! Values share what they are made of. Sixty statements like `y := [x, x]` are evaluated in no time and make a value
//! that is compared in none that anyone has; as many like `y := [x]` make one that is deeper than the stack. Neither
//! the interpreter's timer nor any limit of memory sees it. So the policy is evaluated once in the abstract: of a value
//! only how deep it is nested is known, and how often each level repeats what is below it.

use std::collections::BTreeMap;

use regorus::unstable::{AssignOp, BinOp, Expr, Literal, Module, Query, Rule, RuleHead};

use super::{reference, RegoError, RuleTable, Scope};
use crate::document::Tier;
use crate::rego::syntax::walk_literal;

/// Most levels that a policy may build on top of what it is given.
const MAX_LEVELS: usize = 32;
/// Most repetitions of all levels together, as a power of two.
const MAX_REPEATS: u32 = 6;
/// Those of a level that a loop repeats: as many as there was time for, and so too many.
const LOOP_REPEATS: u8 = MAX_REPEATS as u8 + 1;
/// Expressions that are looked at; a function counts for each way in which it is called.
const MAX_EXPRESSIONS: usize = 1_000_000;

/// What is known of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    /// For each level, from the outside, how often it repeats what is below it, as a power of two. There is none for
    /// what is given: input, data and what built-ins make of it hold every part once.
    levels: Vec<u8>,
    origin: Origin,
}

/// Whether a value that stands in a loop is another one each time. The later, the less is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// It is made where it stands.
    #[default]
    Made,
    /// It has a name within the loop.
    Named,
    /// It was there before.
    Shared,
}

impl Shape {
    fn joined(mut self, other: &Self) -> Self {
        let longest = self.levels.len().max(other.levels.len());
        self.levels.resize(longest, 0);
        self.levels.iter_mut().zip(&other.levels).for_each(|(level, other)| *level = (*level).max(*other));
        self.origin = self.origin.max(other.origin);
        self
    }

    /// What is `steps` levels below the outermost.
    fn below(mut self, steps: usize) -> Self {
        self.levels.drain(..steps.min(self.levels.len()));
        self
    }

    fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = if self.levels.is_empty() { Origin::Made } else { origin };
        self
    }

    /// What another level around this makes of it.
    fn within(mut self, repeats: u8) -> Self {
        self.levels.insert(0, repeats);
        self
    }

    fn exceeds(&self) -> bool {
        self.levels.len() > MAX_LEVELS || self.levels.iter().copied().map(u32::from).sum::<u32>() > MAX_REPEATS
    }
}

/// The names of one body.
#[derive(Default)]
struct Frame {
    names: BTreeMap<String, Shape>,
    loops: usize,
}

struct Analysis<'m> {
    scopes: Vec<Scope<'m>>,
    /// Rules by their paths as in [`RuleTable`], each definition with its scope.
    rules: BTreeMap<String, Vec<(usize, &'m Rule)>>,
    functions: &'m BTreeMap<String, String>,
    known: BTreeMap<(String, Vec<Shape>), Shape>,
    /// The bodies around what is looked at, and the scope that they are in.
    frames: Vec<Frame>,
    scope: usize,
    left: usize,
}

/// Refuses policies whose values may be larger than what they cost. They must not be recursive.
pub(super) fn check_shapes<'m, M: AsRef<Module>>(modules: &'m [M], rules: &'m RuleTable) -> Result<(), RegoError> {
    let mut analysis = Analysis {
        scopes: Vec::new(),
        rules: BTreeMap::new(),
        functions: &rules.functions,
        known: BTreeMap::new(),
        frames: Vec::new(),
        scope: 0,
        left: MAX_EXPRESSIONS,
    };
    for (index, module) in modules.iter().enumerate() {
        let scope = Scope::new(Tier::Sidecar, module.as_ref(), rules)?;
        for rule in &module.as_ref().policy {
            analysis.rules.entry(scope.rule_path(rule.as_ref())).or_default().push((index, rule.as_ref()));
        }
        analysis.scopes.push(scope);
    }
    let names: Vec<String> = analysis.rules.keys().cloned().collect();
    names.iter().try_for_each(|name| analysis.rule(name, &[]).map(drop))
}

impl<'m> Analysis<'m> {
    /// What a rule is, or a function of such arguments; of a function without them, what it is of arguments as given.
    fn rule(&mut self, name: &str, arguments: &[Shape]) -> Result<Shape, RegoError> {
        let key = (name.to_owned(), arguments.to_vec());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let frames = std::mem::take(&mut self.frames);
        let around = self.scope;
        let mut shape = Shape::default();
        for (scope, rule) in self.rules.get(name).cloned().unwrap_or_default() {
            self.scope = scope;
            shape = shape.joined(&self.definition(rule, arguments)?);
        }
        (self.frames, self.scope) = (frames, around);
        self.known.insert(key, shape.clone());
        Ok(shape)
    }

    fn definition(&mut self, rule: &'m Rule, arguments: &[Shape]) -> Result<Shape, RegoError> {
        let Rule::Spec { head, bodies, .. } = rule else {
            let Rule::Default { value, .. } = rule else { return Ok(Shape::default()) };
            return self.expression(value.as_ref());
        };
        let (place, value) = match head {
            RuleHead::Compr { refr, assign, .. } | RuleHead::Func { refr, assign, .. } => {
                (refr, assign.as_ref().map(|assign| &assign.value))
            }
            RuleHead::Set { refr, key, .. } => (refr, key.as_ref()),
        };
        let mut shape = Shape::default();
        let no_body = bodies.is_empty().then_some((None, value));
        let several =
            bodies.iter().map(|body| (Some(body.query.as_ref()), body.assign.as_ref().map(|own| &own.value).or(value)));
        for (query, value) in no_body.into_iter().chain(several) {
            self.frames.push(Frame::default());
            if let RuleHead::Func { args, .. } = head {
                for (pattern, argument) in args.iter().zip(arguments) {
                    self.bind(pattern.as_ref(), argument);
                }
            }
            query.map_or(Ok(()), |query| self.query(query))?;
            let mut one = value.map_or(Ok(Shape::default()), |value| self.expression(value.as_ref()))?;
            for _ in 0..levels_of_head(head, place.as_ref()) {
                one = if is_loop_head(head, place.as_ref()) { self.looped(one) } else { one.within(0) };
            }
            shape = shape.joined(&admitted(one, rule.span())?);
            self.frames.pop();
        }
        Ok(shape)
    }

    /// Goes over the statements of a body until no more is learnt: they may stand in any order.
    fn query(&mut self, query: &'m Query) -> Result<(), RegoError> {
        query.stmts.iter().for_each(|statement| self.declare(&statement.literal));
        self.frame().loops = query.stmts.iter().map(|statement| self.loops(&statement.literal)).sum();
        loop {
            let before = self.frame().names.clone();
            for statement in &query.stmts {
                self.statement(&statement.literal)?;
            }
            if self.frame().names == before {
                return Ok(());
            }
        }
    }

    /// Names what a statement gives values to, so that it is known what must be looked for.
    fn declare(&mut self, literal: &'m Literal) {
        match literal {
            Literal::SomeIn { key, value, .. } => {
                key.iter().chain([value]).for_each(|name| self.bind(name.as_ref(), &Shape::default()));
            }
            Literal::Expr { expr, .. } => {
                let Expr::AssignExpr { lhs, rhs, .. } = expr.as_ref() else { return };
                [lhs, rhs].into_iter().for_each(|side| self.bind(side.as_ref(), &Shape::default()));
            }
            _ => {}
        }
    }

    fn statement(&mut self, literal: &'m Literal) -> Result<(), RegoError> {
        match literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn { key, value, collection, .. } => {
                let element = self.expression(collection.as_ref())?.below(1);
                let element = self.taken(element);
                key.iter().for_each(|key| self.bind(key.as_ref(), &element));
                self.bind(value.as_ref(), &element);
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => drop(self.expression(expr.as_ref())?),
            Literal::Every { key, value, domain, query, .. } => {
                let element = self.expression(domain.as_ref())?.below(1).with_origin(Origin::Shared);
                self.frames.push(Frame::default());
                key.iter().chain([value]).for_each(|name| self.name(name.text(), &element));
                self.query(query.as_ref())?;
                self.frames.pop();
            }
        }
        Ok(())
    }

    fn expression(&mut self, expression: &'m Expr) -> Result<Shape, RegoError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            refusal(
                expression.span(),
                "these rules use each other in too many ways to be looked at for the sidecar tier",
            )
        })?;
        let shape = match expression {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => Shape::default(),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expression)?,
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.composed(items.iter().map(AsRef::as_ref))?,
            Expr::Object { fields, .. } => {
                self.composed(fields.iter().flat_map(|(_, key, value)| [key.as_ref(), value.as_ref()]))?
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.comprehension(&[term.as_ref()], query.as_ref())?
            }
            Expr::ObjectCompr { key, value, query, .. } => {
                self.comprehension(&[key.as_ref(), value.as_ref()], query.as_ref())?
            }
            Expr::Call { fcn, params, .. } => self.call(fcn.as_ref(), params.iter().map(AsRef::as_ref))?,
            Expr::UnaryExpr { expr, .. } => self.expression(expr.as_ref()).map(|_| Shape::default())?,
            Expr::BinExpr { op, lhs, rhs, .. } => {
                let (left, right) = (self.expression(lhs.as_ref())?, self.expression(rhs.as_ref())?);
                if matches!(op, BinOp::Union) {
                    united(&left, &right)
                } else {
                    left.joined(&right)
                }
            }
            Expr::ArithExpr { lhs, rhs, .. } => self.expression(lhs.as_ref())?.joined(&self.expression(rhs.as_ref())?),
            Expr::BoolExpr { lhs, rhs, .. } => {
                self.expression(lhs.as_ref())?;
                self.expression(rhs.as_ref()).map(|_| Shape::default())?
            }
            Expr::AssignExpr { op, lhs, rhs, .. } => {
                let right = self.expression(rhs.as_ref())?;
                self.bind(lhs.as_ref(), &right);
                if matches!(op, AssignOp::Eq) {
                    let left = self.expression(lhs.as_ref())?;
                    self.bind(rhs.as_ref(), &left);
                }
                Shape::default()
            }
            Expr::Membership { key, value, collection, .. } => {
                for part in key.iter().chain([value, collection]) {
                    self.expression(part.as_ref())?;
                }
                Shape::default()
            }
        };
        admitted(shape, expression.span())
    }

    /// An array, a set or an object that is written out.
    fn composed(&mut self, parts: impl Iterator<Item = &'m Expr>) -> Result<Shape, RegoError> {
        let (mut whole, mut repeated) = (Shape::default(), 0_u32);
        for part in parts {
            let part = self.expression(part)?;
            repeated += u32::from(part.origin != Origin::Made);
            whole = whole.joined(&part);
        }
        let repeats = repeated.max(1).next_power_of_two().trailing_zeros();
        Ok(whole.within(u8::try_from(repeats).unwrap_or(LOOP_REPEATS)))
    }

    fn comprehension(&mut self, terms: &[&'m Expr], query: &'m Query) -> Result<Shape, RegoError> {
        self.frames.push(Frame::default());
        self.query(query)?;
        let mut whole = Shape::default();
        for term in terms {
            whole = whole.joined(&self.expression(term)?);
        }
        let whole = self.looped(whole);
        self.frames.pop();
        Ok(whole)
    }

    /// What a loop over the innermost body makes of what it collects.
    fn looped(&mut self, shape: Shape) -> Shape {
        match shape.origin {
            Origin::Shared if self.frame().loops > 0 => shape.within(LOOP_REPEATS),
            Origin::Shared => shape.within(0),
            // Each turn makes its own, and takes the time that this takes.
            Origin::Made | Origin::Named => Shape { origin: Origin::Made, ..shape.within(0) },
        }
    }

    fn call(&mut self, function: &'m Expr, parameters: impl Iterator<Item = &'m Expr>) -> Result<Shape, RegoError> {
        let arguments = parameters.map(|parameter| self.expression(parameter)).collect::<Result<Vec<_>, _>>()?;
        let name = self.scopes[self.scope].absolute(function).unwrap_or_default().join(".");
        if let Some(rule) = self.functions.get(&name).cloned() {
            return self.rule(&rule, &arguments);
        }
        let all = || arguments.iter().fold(Shape::default(), |all, argument| all.joined(argument));
        Ok(match (name.as_str(), &arguments[..]) {
            ("array.concat" | "object.union", [left, right]) => united(left, right),
            (
                "array.reverse" | "array.slice" | "intersection" | "max" | "min" | "object.filter" | "object.get"
                | "object.keys" | "object.remove" | "sort" | "union",
                _,
            ) => all(),
            _ => Shape::default(),
        })
    }

    fn reference(&mut self, expression: &'m Expr) -> Result<Shape, RegoError> {
        let (mut root, mut steps, mut loops) = (expression, 0, 0);
        while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = root {
            if let Expr::RefBrack { index, .. } = root {
                self.expression(index.as_ref())?;
                loops += usize::from(self.is_loop(index.as_ref()));
            }
            steps += 1;
            root = refr.as_ref();
        }
        let shape = match root {
            Expr::Var { span, .. } => self.local(span.text()).below(steps).joined(&self.global(expression, steps)?),
            other => self.expression(other)?.below(steps),
        };
        Ok(if loops > 0 { self.taken(shape) } else { shape })
    }

    /// What has this name in the bodies around; one may look like another's, so all of them count.
    fn local(&mut self, name: &str) -> Shape {
        let innermost = self.frames.len().saturating_sub(1);
        let mut shape = Shape::default();
        for (at, frame) in self.frames.iter().enumerate() {
            let Some(known) = frame.names.get(name) else { continue };
            let origin = if at == innermost { known.origin.max(Origin::Named) } else { Origin::Shared };
            shape = shape.joined(&known.clone().with_origin(origin));
        }
        shape
    }

    /// What a reference of so many steps has of rules.
    fn global(&mut self, expression: &'m Expr, steps: usize) -> Result<Shape, RegoError> {
        let path = self.scopes[self.scope].absolute(expression).unwrap_or_default();
        if path.first().is_none_or(|root| root != "data") {
            return Ok(Shape::default());
        }
        let constant = reference(expression).map_or(0, |reference| reference.path.len());
        let whole = path.join(".");
        let read: Vec<String> = self.scopes[self.scope].rules.read_by(&whole).cloned().collect();
        let mut shape = Shape::default();
        for name in read {
            let depth = name.split('.').count();
            let mut rule = self.rule(&name, &[])?;
            // Of a package, its rules are a level of their own; of a rule, what is behind its name is below it.
            for _ in path.len()..depth {
                rule = rule.within(0);
            }
            shape = shape.joined(&rule.below(path.len().saturating_sub(depth) + steps - constant));
        }
        Ok(shape.with_origin(Origin::Shared))
    }

    /// What a loop takes out of a value: each part once, where it is the only loop.
    fn taken(&mut self, shape: Shape) -> Shape {
        let alone = self.frame().loops <= 1;
        shape.with_origin(if alone { Origin::Named } else { Origin::Shared })
    }

    fn bind(&mut self, pattern: &'m Expr, shape: &Shape) {
        match pattern {
            Expr::Var { span, .. } if span.text() != "_" => self.name(span.text(), shape),
            Expr::Array { items, .. } => {
                let part = shape.clone().below(1);
                items.iter().for_each(|item| self.bind(item.as_ref(), &part));
            }
            Expr::Object { fields, .. } => {
                let part = shape.clone().below(1);
                fields.iter().for_each(|(_, _, value)| self.bind(value.as_ref(), &part));
            }
            _ => {}
        }
    }

    fn name(&mut self, name: &str, shape: &Shape) {
        let frame = self.frame();
        let known = frame.names.remove(name).unwrap_or_default();
        frame.names.insert(name.to_owned(), known.joined(shape));
    }

    fn frame(&mut self) -> &mut Frame {
        if self.frames.is_empty() {
            self.frames.push(Frame::default());
        }
        let innermost = self.frames.len() - 1;
        &mut self.frames[innermost]
    }

    /// The loops that a statement is: each `some … in`, and each index that is looked for.
    fn loops(&self, literal: &'m Literal) -> usize {
        let mut loops = usize::from(matches!(literal, Literal::SomeIn { .. }));
        walk_literal(literal, &mut |expression| {
            let mut at = expression;
            while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = at {
                if let Expr::RefBrack { index, .. } = at {
                    loops += usize::from(self.is_loop(index.as_ref()));
                }
                at = refr.as_ref();
            }
        });
        loops
    }

    /// Whether an index is one that is looked for.
    fn is_loop(&self, index: &Expr) -> bool {
        let Expr::Var { span, .. } = index else { return false };
        !self.frames.iter().any(|frame| frame.names.contains_key(span.text()))
    }
}

/// Both together, as many times as they are in it.
fn united(left: &Shape, right: &Shape) -> Shape {
    let mut whole = left.clone().joined(right);
    if left.levels.len() > 1 && right.levels.len() > 1 {
        whole.levels[0] = whole.levels[0].saturating_add(1);
    }
    whole
}

/// The levels that a rule's head has around its value: those behind its name, and the set of `contains`.
fn levels_of_head(head: &RuleHead, place: &Expr) -> usize {
    let mut levels = usize::from(matches!(head, RuleHead::Set { .. }));
    if matches!(head, RuleHead::Func { .. }) {
        return levels; // which may have dots in its name
    }
    let mut at = place;
    while let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = at {
        levels += 1;
        at = refr.as_ref();
    }
    levels
}

/// Whether a rule's head collects values: in a set, or at names that its body finds.
fn is_loop_head(head: &RuleHead, place: &Expr) -> bool {
    matches!(head, RuleHead::Set { .. }) || reference(place).is_none_or(|place| place.dynamic)
}

fn admitted(shape: Shape, span: &regorus::unstable::Span) -> Result<Shape, RegoError> {
    if shape.exceeds() {
        return Err(refusal(
            span,
            "it makes a value of values that were made before, so many times or so deep that it may be too large to be compared; the check tier takes it",
        ));
    }
    Ok(shape)
}

fn refusal(span: &regorus::unstable::Span, reason: &str) -> RegoError {
    RegoError::NotAdmitted { file: span.source.get_path().clone(), line: span.line, reason: reason.to_owned() }
}
