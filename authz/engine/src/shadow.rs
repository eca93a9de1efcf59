//! What policies that are not enforced say of a request: those on trial (`istio.io/dry-run`), and those of AUDIT.
//!
//! As in Istio, the DENY and the ALLOW policies on trial are two sets, and each decides for itself, as if there were
//! nothing else (<https://istio.io/latest/docs/tasks/security/authorization/authz-dry-run/>).

use std::sync::Arc;

use crate::attribute::Facts;
use crate::decide::{first_match, matches};
use crate::program::Program;
use crate::record::{self, Field, Fields, RecordError};

/// Rules of AUDIT policies that are named for one request.
const MAX_AUDIT_RULES: usize = 100;

/// Kept as fields of a record: encoded once, for all requests that the decision is remembered for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shadow(Box<[u8]>);

impl Shadow {
    /// The fields that a shadow may have.
    pub const FIELDS: [Field; 7] = [
        Field::DryRunDeny,
        Field::DryRunDenyPolicy,
        Field::DryRunDenyRule,
        Field::DryRunAllow,
        Field::DryRunAllowPolicy,
        Field::DryRunAllowRule,
        Field::AuditRules,
    ];

    /// A shadow of the fields that `fill` writes; none where it writes nothing.
    pub fn encode(fill: impl FnOnce(&mut Fields<'_>)) -> Option<Arc<Self>> {
        let fields = record::encode(fill);
        (!fields.is_empty()).then(|| Arc::new(Self(fields)))
    }

    /// What the policies of `program` that are not enforced say; none where there are none.
    pub(crate) fn of(program: &Program, facts: &Facts<'_>) -> Option<Arc<Self>> {
        let tried = &program.dry_run;
        Self::encode(|fields| {
            if tried.deny.iter().any(|policy| policy.applies(facts)) {
                let found = first_match(&tried.deny, facts);
                fields.bytes(Field::DryRunDeny, if found.is_some() { b"deny" } else { b"allow" });
                write_rule(fields, (Field::DryRunDenyPolicy, Field::DryRunDenyRule), found);
            }
            if tried.allow.iter().any(|policy| policy.applies(facts)) {
                let found = first_match(&tried.allow, facts);
                fields.bytes(Field::DryRunAllow, if found.is_some() { b"allow" } else { b"deny" });
                write_rule(fields, (Field::DryRunAllowPolicy, Field::DryRunAllowRule), found);
            }
            fields.optional(Field::AuditRules, audit_rules(program, facts));
        })
    }

    /// What `before` says, and what RateLimitPolicies on trial say, which deny as DENY policies on trial do: the one of
    /// `found`, or none. One that is on record to deny already is not replaced.
    pub(crate) fn with_limit(before: Option<&Self>, found: Option<(&Arc<str>, u32)>) -> Option<Arc<Self>> {
        const DENY: [Field; 3] = [Field::DryRunDeny, Field::DryRunDenyPolicy, Field::DryRunDenyRule];
        let said = before.map_or(Ok(Vec::new()), Self::fields).unwrap_or_default();
        let denies = said.contains(&(Field::DryRunDeny, b"deny"));
        Self::encode(|fields| {
            if !denies {
                fields.bytes(Field::DryRunDeny, if found.is_some() { b"deny" } else { b"allow" });
                write_rule(fields, (Field::DryRunDenyPolicy, Field::DryRunDenyRule), found);
            }
            said.iter().filter(|(field, _)| denies || !DENY.contains(field)).for_each(|(field, value)| {
                fields.bytes(*field, value);
            });
        })
    }

    /// Writes it to a record.
    pub fn write(&self, fields: &mut Fields<'_>) {
        fields.encoded(&self.0);
    }

    /// Its fields, with values as in a record.
    ///
    /// # Errors
    /// As [`record::Record::fields`]; never for what [`Self::encode`] made.
    pub fn fields(&self) -> Result<Vec<(Field, &[u8])>, RecordError> {
        record::read_fields(&self.0)
    }

    /// Whether an AUDIT policy matched, or policies on trial would have denied.
    pub fn stands_out(&self) -> bool {
        let says = |(field, value): &(Field, &[u8])| match field {
            Field::DryRunDeny | Field::DryRunAllow => *value == b"deny",
            field => *field == Field::AuditRules,
        };
        self.fields().is_ok_and(|fields| fields.iter().any(says))
    }

    /// How many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.len()
    }
}

fn write_rule(fields: &mut Fields<'_>, (policy, rule): (Field, Field), found: Option<(&Arc<str>, u32)>) {
    if let Some((name, index)) = found {
        fields.bytes(policy, name.as_bytes());
        fields.number(rule, u64::from(index));
    }
}

/// `namespace/name[rule]` of each AUDIT policy that matches, with spaces between them.
fn audit_rules(program: &Program, facts: &Facts<'_>) -> Option<String> {
    let matched = matches(&program.audit, facts).take(MAX_AUDIT_RULES);
    let rules: Vec<String> = matched.map(|(policy, rule)| format!("{policy}[{rule}]")).collect();
    (!rules.is_empty()).then(|| rules.join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::{json, Value};

    use crate::record::{number, Type};
    use crate::testing::{condition, no_keys, Document, Sample};
    use crate::{Decider, Effect, Program};

    fn policy(name: &str, action: &str, dry_run: bool, methods: &[&str]) -> Value {
        let rule = |method: &&str| {
            let when = condition("request.method", json!([{"exact": method}]), json!([]));
            json!({"from": [], "to": [], "when": [when]})
        };
        let rules: Vec<Value> = methods.iter().map(rule).collect();
        json!({"name": name, "action": action, "dry_run": dry_run, "rules": rules})
    }

    fn told(program: &std::sync::Arc<Program>, method: &'static str) -> (Effect, String) {
        let sample = Sample { method, ..Sample::default() };
        let mut decider = Decider::for_sidecar();
        let mut tell = || {
            let decision = sample.decided_by(&mut decider, program, &no_keys()).decision;
            let fields = decision.shadow.as_ref().map(|shadow| shadow.fields().expect("fields")).unwrap_or_default();
            let field = |(field, value): &(super::Field, &[u8])| match field.value_type() {
                Type::Number => format!("{}={}", field.name(), number(value)),
                _ => format!("{}={}", field.name(), String::from_utf8_lossy(value)),
            };
            (decision.effect, fields.iter().map(field).collect::<Vec<_>>().join(", "))
        };
        let first = tell();
        assert_eq!(tell(), first, "from memory");
        first
    }

    #[test]
    fn policies_on_trial_decide_nothing_and_say_what_they_would() {
        let document = Document::new()
            .with_policy(policy("a/enforced", "DENY", false, &["DELETE"]))
            .with_policy(policy("a/deny", "DENY", true, &["PUT", "DELETE"]))
            .with_policy(policy("a/allow", "ALLOW", true, &["GET"]));
        let table = [
            (
                "GET",
                Effect::Allow,
                "dry_run_deny=allow, dry_run_allow=allow, dry_run_allow_policy=a/allow, dry_run_allow_rule=0",
            ),
            (
                "PUT",
                Effect::Allow,
                "dry_run_deny=deny, dry_run_deny_policy=a/deny, dry_run_deny_rule=0, dry_run_allow=deny",
            ),
            (
                "DELETE",
                Effect::Deny,
                "dry_run_deny=deny, dry_run_deny_policy=a/deny, dry_run_deny_rule=1, dry_run_allow=deny",
            ),
            ("POST", Effect::Allow, "dry_run_deny=allow, dry_run_allow=deny"),
        ];
        let program = document.load();
        for (method, effect, shadow) in table {
            assert_eq!(told(&program, method), (effect, shadow.to_owned()), "{method}");
        }
    }

    #[test]
    fn every_audit_policy_that_matches_is_named_with_its_first_rule() {
        let document = Document::new()
            .with_policy(policy("a/one", "AUDIT", false, &["PUT", "GET", "GET"]))
            .with_policy(policy("a/two", "AUDIT", false, &["GET"]));
        let program = document.load();
        assert_eq!(told(&program, "GET"), (Effect::Allow, "audit_rules=a/one[1] a/two[0]".to_owned()));
        assert_eq!(told(&program, "POST"), (Effect::Allow, String::new()));
    }

    #[test]
    fn the_rules_that_are_named_are_bounded() {
        let all = (0..150).fold(Document::new(), |document, index| {
            document.with_policy(policy(&format!("a/p{index}"), "AUDIT", false, &["GET"]))
        });
        let (_, rules) = told(&all.load(), "GET");
        assert_eq!(rules.split(' ').count(), super::MAX_AUDIT_RULES);
    }

    #[test]
    fn what_rego_denies_has_its_shadow_too() {
        let document = Document::new().custom("sidecar", "deny", "package p\nallow := false\n").with_policy(policy(
            "a/deny",
            "DENY",
            true,
            &["PUT"],
        ));
        assert_eq!(told(&document.load(), "GET"), (Effect::Deny, "dry_run_deny=allow".to_owned()));
    }
}
