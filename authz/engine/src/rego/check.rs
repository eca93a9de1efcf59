//! What a Rego policy must be to run in a sidecar: answered in bounded time and memory, as OPA would answer. The check
//! tier bounds time and memory by the process: there only what would not be evaluated as it is written is refused.
//!
//! Checked on the syntax tree before anything is evaluated. The interpreter reads its timer between steps, never
//! inside a built-in, overflows the stack on recursion, and parses nested literals in exponential time: what its
//! limits do not bound must be refused here.

mod shape;

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Expr, ExprRef, Module, Rule, RuleHead};

use super::builtins::{admit, Refusal};
use super::extensions;
use super::syntax::{join, package, reference, rule_name, variables, walk, Node, Reference};
use crate::document::Tier;

/// Deepest nesting of expressions, such as the terms of a long sum.
const MAX_EXPRESSION_DEPTH: usize = 64;
/// Longest chain of rules that use each other: each one takes a piece of the worker's stack.
const MAX_RULE_CHAIN: usize = 48;

/// Why a Rego policy is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum RegoError {
    /// The interpreter cannot read it; its message names file, line and column.
    #[error("{0}")]
    Syntax(String),
    /// What it says is outside the sidecar tier.
    #[error("{file}:{line}: {reason}")]
    NotAdmitted {
        /// File of the module.
        file: String,
        /// Line in it, from 1.
        line: u32,
        /// What is refused, and what is allowed.
        reason: String,
    },
    /// It reads what no request here can hold.
    #[error(
        "{0} is not available here: the input holds attributes.request.http, attributes.source, \
             attributes.destination, parsed_path, parsed_query, parsed_body, truncated_body and version"
    )]
    Input(String),
    /// Its rule is missing.
    #[error("the entry point {0} is not a rule of these modules")]
    Entrypoint(String),
    /// Its data does not fit its packages.
    #[error("data: {0}")]
    Data(String),
    /// What it reads bodies of gRPC by cannot be read.
    #[error("descriptors: {0}")]
    Descriptors(String),
}

impl RegoError {
    /// File and line (from 1) of what is wrong, where it is in a module.
    pub fn place(&self) -> Option<(String, u32)> {
        match self {
            Self::NotAdmitted { file, line, .. } => Some((file.clone(), *line)),
            Self::Syntax(message) => place_in(message),
            Self::Input(_) | Self::Entrypoint(_) | Self::Data(_) | Self::Descriptors(_) => None,
        }
    }

    /// What is wrong, without its place.
    pub fn reason(&self) -> String {
        match self {
            Self::NotAdmitted { reason, .. } => reason.clone(),
            Self::Syntax(message) => {
                let last = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
                last.trim().trim_start_matches("error: ").to_owned()
            }
            other => other.to_string(),
        }
    }
}

/// The place in an interpreter's message, which begins `--> FILE:LINE:COLUMN`.
fn place_in(message: &str) -> Option<(String, u32)> {
    let place = message.lines().find_map(|line| line.trim().strip_prefix("--> "))?;
    let (place, _column) = place.rsplit_once(':')?;
    let (file, line) = place.rsplit_once(':')?;
    Some((file.to_owned(), line.parse().ok()?))
}

/// What the check learns of a policy.
pub(super) struct Findings {
    /// Every constant path that is read below `input`.
    pub(super) input: BTreeSet<Vec<String>>,
    /// Every constant path that is read below `data`. What a variable chooses is below one of them.
    pub(super) data: BTreeSet<Vec<String>>,
    /// The path of every rule, from `data.` on.
    pub(super) rules: Vec<String>,
    /// Whether something else than its input determines what it answers.
    pub(super) volatile: bool,
}

/// Checks all modules of one policy together.
pub(super) fn check_modules<M: AsRef<Module>>(tier: Tier, modules: &[M]) -> Result<Findings, RegoError> {
    let rules = RuleTable::new(modules);
    let (findings, uses) = inspect(tier, modules, &rules)?;
    check_chains(&uses, &rules)?;
    if tier == Tier::Sidecar {
        shape::check_shapes(modules, &rules)?;
    }
    Ok(findings)
}

/// The rules that each rule uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn inspect<M: AsRef<Module>>(tier: Tier, modules: &[M], rules: &RuleTable) -> Result<(Findings, Uses), RegoError> {
    let mut findings = Findings {
        input: BTreeSet::new(),
        data: BTreeSet::new(),
        rules: rules.places.keys().cloned().collect(),
        volatile: false,
    };
    let mut uses = Uses::new();
    for module in modules {
        let scope = Scope::new(tier, module.as_ref(), rules)?;
        for rule in &module.as_ref().policy {
            let uses = uses.entry(scope.rule_path(rule.as_ref())).or_default();
            scope.check_head(rule.as_ref())?;
            walk(rule.as_ref(), &mut |node, depth| scope.check(node, depth, uses, &mut findings, rule.as_ref()))?;
        }
    }
    Ok((findings, uses))
}

/// Checks the last of these modules, which asks a query of the others: it may read all of them.
pub(super) fn check_query<M: AsRef<Module>>(tier: Tier, modules: &[M]) -> Result<(), RegoError> {
    inspect(tier, modules, &RuleTable::new(modules)).map(drop)
}

/// Refuses data where a rule is: OPA does, and here the two would be mixed.
pub(super) fn check_data(data: &serde_json::Value, rules: &[String]) -> Result<(), RegoError> {
    for rule in rules {
        let mut at = Some(data);
        for name in rule.split('.').skip(1) {
            match at {
                Some(serde_json::Value::Object(members)) => at = members.get(name),
                _ => break,
            }
        }
        if at.is_some() {
            return Err(RegoError::Data(format!("it holds {rule}, which is a rule of the modules")));
        }
    }
    Ok(())
}

/// The rules of the policy.
struct RuleTable {
    /// Every rule by its path from `data.` on, up to the first name after its package, with its place.
    places: BTreeMap<String, (String, u32)>,
    /// Functions by their whole path, with the path that they have in `places`. Nothing else is called: where the
    /// interpreter finds no function by a name it takes the built-in, which then nobody admitted.
    functions: BTreeMap<String, String>,
}

impl RuleTable {
    fn new<M: AsRef<Module>>(modules: &[M]) -> Self {
        let mut table = Self { places: BTreeMap::new(), functions: BTreeMap::new() };
        for module in modules {
            let package = package(module.as_ref());
            for rule in &module.as_ref().policy {
                let name = join(&package, [&rule_name(rule.as_ref())]);
                table.places.entry(name.clone()).or_insert_with(|| place(rule.as_ref()));
                if let Some(Reference { root, path, dynamic: false }) = function_name(rule.as_ref()) {
                    table.functions.insert(join(&package, std::iter::once(&root).chain(&path)), name);
                }
            }
        }
        table
    }

    /// The rules that a reference to `path` may read: those at, below and above it.
    fn read_by<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a String> {
        self.places.keys().filter(move |rule| is_prefix(rule, path) || is_prefix(path, rule))
    }
}

fn is_prefix(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn function_name(rule: &Rule) -> Option<Reference> {
    match rule {
        Rule::Spec { head: RuleHead::Func { refr, .. }, .. } => reference(refr.as_ref()),
        Rule::Default { refr, args, .. } if !args.is_empty() => reference(refr.as_ref()),
        _ => None,
    }
}

/// A variable that stands in `arguments` more than once.
fn given_twice(arguments: &[ExprRef]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    variables(arguments).into_iter().find(|name| *name != "_" && !seen.insert(*name))
}

fn place(rule: &Rule) -> (String, u32) {
    let span = rule.span();
    (span.source.get_path().clone(), span.line)
}

/// How names are read in one module.
struct Scope<'r> {
    tier: Tier,
    package: String,
    /// Paths that imports gave other names to.
    imports: BTreeMap<String, Vec<String>>,
    rules: &'r RuleTable,
}

impl<'r> Scope<'r> {
    fn new(tier: Tier, module: &Module, rules: &'r RuleTable) -> Result<Self, RegoError> {
        let mut imports = BTreeMap::new();
        for import in &module.imports {
            let refuse = |reason: String| {
                let file = import.span.source.get_path().clone();
                RegoError::NotAdmitted { file, line: import.span.line, reason }
            };
            let Some(Reference { root, path, dynamic: false }) = reference(import.refr.as_ref()) else {
                return Err(refuse("an import must be a constant path".to_owned()));
            };
            match (root.as_str(), path.first().map(String::as_str)) {
                ("future", Some("keywords")) if path.get(1).is_some_and(|keyword| keyword == "not") => {
                    return Err(refuse("import future.keywords.not is not known here".to_owned()));
                }
                ("rego", Some("v1")) | ("future", Some("keywords")) => continue,
                ("input" | "data", _) => {}
                _ => {
                    return Err(refuse(format!(
                        "import {} is not known here; rego.v1, input and data are",
                        join(&root, &path)
                    )))
                }
            }
            let alias = import.r#as.as_ref().map(|alias| alias.text().to_owned());
            let name = alias.or_else(|| path.last().cloned()).unwrap_or_else(|| root.clone());
            imports.insert(name, std::iter::once(root).chain(path).collect());
        }
        Ok(Self { tier, package: package(module), imports, rules })
    }

    fn rule_path(&self, rule: &Rule) -> String {
        join(&self.package, [&rule_name(rule)])
    }

    /// The interpreter loses some values of sets whose place has a variable in it, and lets a function whose arguments
    /// have one name be called with different ones.
    fn check_head(&self, rule: &Rule) -> Result<(), RegoError> {
        let Rule::Spec { head, .. } = rule else { return Ok(()) };
        let (span, reason) = match head {
            RuleHead::Set { refr, span, .. }
                if self.tier == Tier::Sidecar && reference(refr.as_ref()).is_none_or(|head| head.dynamic) =>
            {
                (span, "a rule with `contains` must have a constant name in the sidecar tier".to_owned())
            }
            RuleHead::Func { span, args, .. } => match given_twice(args) {
                Some(name) => (span, format!("{name} names two arguments; name them apart and compare them with ==")),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        Err(RegoError::NotAdmitted { file: span.source.get_path().clone(), line: span.line, reason })
    }

    fn check(
        &self,
        node: Node<'_>,
        depth: usize,
        uses: &mut BTreeSet<String>,
        findings: &mut Findings,
        rule: &Rule,
    ) -> Result<(), RegoError> {
        let refuse = |expression: Option<&Expr>, reason: String| {
            let span = expression.map_or_else(|| rule.span(), Expr::span);
            Err(RegoError::NotAdmitted { file: span.source.get_path().clone(), line: span.line, reason })
        };
        let expression = match node {
            Node::Expr(expression) => expression,
            Node::Not(negated @ (Expr::Set { .. } | Expr::SetCompr { .. } | Expr::Object { .. }), _) => {
                return refuse(Some(negated), "`not {…}` is not known here: name what is in the braces".to_owned());
            }
            Node::Not(..) => return Ok(()),
            Node::With if self.tier == Tier::Check => return Ok(()),
            Node::With => {
                return refuse(None, "`with` replaces what a decision rests on; it is for tests only".to_owned());
            }
        };
        if depth > MAX_EXPRESSION_DEPTH {
            return refuse(Some(expression), format!("expressions are nested more than {MAX_EXPRESSION_DEPTH} deep"));
        }
        match expression {
            Expr::Call { fcn, params, .. } => {
                let Some(path) = self.absolute(fcn.as_ref()) else {
                    return refuse(Some(expression), "a function must be called by its name".to_owned());
                };
                let name = path.join(".");
                if let Some(rule) = self.rules.functions.get(&name) {
                    uses.insert(rule.clone());
                    return Ok(());
                }
                if path.first().is_some_and(|root| root == "data" || root == "input") {
                    return refuse(Some(expression), format!("{name} is called, and is not a function"));
                }
                findings.volatile |= extensions::is_volatile(&name);
                admit(self.tier, &name, params)
                    .or_else(|refusal| refuse(Some(expression), explain(self.tier, &name, &refusal)))
            }
            Expr::Membership { key: Some(_), .. } if self.tier == Tier::Sidecar => refuse(
                Some(expression),
                "`key, value in …` is answered wrongly for sets; name the value only".to_owned(),
            ),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                self.note(expression, uses, findings);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn note(&self, expression: &Expr, uses: &mut BTreeSet<String>, findings: &mut Findings) {
        let Some(path) = self.absolute(expression) else { return };
        match path.split_first() {
            Some((root, rest)) if root == "input" => drop(findings.input.insert(rest.to_vec())),
            Some((root, rest)) if root == "data" => {
                findings.data.insert(rest.to_vec());
                uses.extend(self.rules.read_by(&join(root, rest)).cloned());
            }
            _ => {}
        }
    }

    /// The reference with imports and names of the package's own rules resolved.
    fn absolute(&self, expression: &Expr) -> Option<Vec<String>> {
        let Reference { root, path, .. } = reference(expression)?;
        let own = join(&self.package, [&root]);
        let mut absolute = match self.imports.get(&root) {
            Some(imported) => imported.clone(),
            None if self.rules.places.contains_key(&own) => own.split('.').map(str::to_owned).collect(),
            None => vec![root],
        };
        absolute.extend(path);
        Some(absolute)
    }
}

fn explain(tier: Tier, name: &str, refusal: &Refusal) -> String {
    match refusal {
        Refusal::OutsideTier => format!("the built-in {name} is outside the {tier} tier"),
        Refusal::Unknown(Some(near)) => format!("there is no function or built-in {name}; did you mean {near}?"),
        Refusal::Unknown(None) => format!("there is no function or built-in {name}"),
        Refusal::Arguments(rule) => format!("{name} is not admitted like this: {rule}"),
    }
}

/// Refuses rules that use themselves, however indirectly, and chains that are too long.
fn check_chains(uses: &BTreeMap<String, BTreeSet<String>>, rules: &RuleTable) -> Result<(), RegoError> {
    let refuse = |rule: &str, reason: String| {
        let (file, line) = rules.places.get(rule).cloned().unwrap_or_default();
        Err(RegoError::NotAdmitted { file, line, reason })
    };
    let mut lengths: BTreeMap<&str, usize> = BTreeMap::new();
    // Depth first with a stack of our own: a rule's length is known once those of all rules that it uses are.
    for start in uses.keys() {
        let mut stack: Vec<&str> = vec![start];
        let mut open: BTreeSet<&str> = BTreeSet::new();
        while let Some(&rule) = stack.last() {
            let used = uses.get(rule).into_iter().flatten().map(String::as_str);
            if !lengths.contains_key(rule) && open.insert(rule) {
                for next in used {
                    if open.contains(next) {
                        return refuse(rule, format!("{rule} uses itself by way of {next}; recursion is not allowed"));
                    }
                    stack.push(next);
                }
                continue;
            }
            stack.pop();
            open.remove(rule);
            let length = 1 + used.filter_map(|next| lengths.get(next)).max().copied().unwrap_or(0);
            if length > MAX_RULE_CHAIN {
                return refuse(rule, format!("more than {MAX_RULE_CHAIN} rules use each other in a chain"));
            }
            lengths.insert(rule, length);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
