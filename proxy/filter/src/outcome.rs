//! What the record of a decision tells, of a request and of a connection alike.

use peltast_engine::record::{Field, Fields};
use peltast_engine::{Answer, Decision, Effect, Program, Source, Token};

use crate::access_log::PLAINTEXT;
use crate::config::Trusted;
use crate::downstream::Downstream;

/// A decision, and whom it is about.
pub(crate) struct Outcome<'a> {
    pub(crate) decision: &'a Decision,
    pub(crate) decided_by: &'static str,
    pub(crate) downstream: &'a Downstream,
    pub(crate) token: Option<&'a Token>,
    pub(crate) trusted: Option<&'a Trusted>,
}

impl Outcome<'_> {
    /// Who talks to whom. `program` is the destination's.
    pub(crate) fn fill_parties(&self, fields: &mut Fields<'_>, program: &Program) {
        let downstream = self.downstream;
        fields.optional(Field::SourcePrincipal, downstream.peer.as_ref().map(|peer| peer.principal.as_bytes()));
        fields.optional(Field::SourceSerial, downstream.peer.as_ref().map(|peer| peer.serial.as_bytes()));
        fields.optional(Field::SourceAddress, downstream.source_address.as_ref());
        fields.optional(Field::ConnectionSecurityPolicy, downstream.plaintext.then_some(PLAINTEXT));
        fields.bytes(Field::DestinationPrincipal, program.principal().as_bytes());
        if let Some(address) = downstream.destination {
            fields.number(Field::DestinationPort, u64::from(program.application_port(address.port())));
        }
    }

    /// What was decided, by whom and why.
    pub(crate) fn fill_decision(&self, fields: &mut Fields<'_>) {
        let decision = self.decision;
        fields.bytes(Field::Effect, if decision.effect == Effect::Allow { b"allow" } else { b"deny" });
        fields.optional(Field::Policy, decision.policy.as_deref());
        if let Some(rule) = decision.rule {
            fields.number(Field::Rule, u64::from(rule));
        }
        fields.bytes(Field::Reason, decision.reason.as_str().as_bytes());
        fields.bytes(Field::DecidedBy, self.decided_by.as_bytes());
        fields.optional(Field::Detail, decision.detail.as_deref());
        if let Some(shadow) = &decision.shadow {
            shadow.write(fields);
        }
        fields.bytes(Field::Program, &decision.program.0);
        if let Some(trusted) = self.trusted {
            fields.bytes(Field::Keys, &trusted.keys.hash().0);
            fields.bytes(Field::Revocations, &trusted.revocations.hash().0);
        }
    }
}

/// Where an answer came from, as records name it.
pub(crate) fn decided_by(answer: &Answer) -> &'static str {
    match (answer.cached, answer.decision.source) {
        (true, _) => "cache",
        (false, Source::Engine) => "engine",
        (false, Source::Check) => "check",
        (false, Source::FailedOpen) => "failed-open",
    }
}
