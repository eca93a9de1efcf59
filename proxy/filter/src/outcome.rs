//! What the record of a decision tells, of a request and of a connection alike.

use peltast_engine::record::{Field, Fields};
use peltast_engine::{Answer, Decision, Effect, Program, Source, Token};

use crate::access_log::PLAINTEXT;
use crate::config::{hasher, Trusted};
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
        self.fill_caller(fields);
        fields.optional(Field::SourceSerial, downstream.peer.as_ref().map(|peer| peer.serial.as_bytes()));
        match (program.recording(), &downstream.source_address) {
            (Some(recording), Some(address)) => recording.recorder(hasher()).source_address(fields, address),
            (_, address) => fields.optional(Field::SourceAddress, address.as_ref()),
        }
        self.fill_called(fields, program);
    }

    /// Who calls.
    pub(crate) fn fill_caller(&self, fields: &mut Fields<'_>) {
        let downstream = self.downstream;
        fields.optional(Field::SourcePrincipal, downstream.peer.as_ref().map(|peer| peer.principal.as_bytes()));
        fields.optional(Field::ConnectionSecurityPolicy, downstream.plaintext.then_some(PLAINTEXT));
    }

    /// Who is called, by whose `program`.
    pub(crate) fn fill_called(&self, fields: &mut Fields<'_>, program: &Program) {
        fields.bytes(Field::DestinationPrincipal, program.principal().as_bytes());
        if let Some(address) = self.downstream.destination {
            fields.number(Field::DestinationPort, u64::from(program.application_port(address.port())));
        }
    }

    /// Which policy decided, and which rule of it.
    pub(crate) fn fill_rule(&self, fields: &mut Fields<'_>) {
        fields.optional(Field::Policy, self.decision.policy.as_deref());
        if let Some(rule) = self.decision.rule {
            fields.number(Field::Rule, u64::from(rule));
        }
    }

    /// What was decided, by whom and why.
    pub(crate) fn fill_decision(&self, fields: &mut Fields<'_>) {
        let decision = self.decision;
        fields.bytes(Field::Effect, if decision.effect == Effect::Allow { b"allow" } else { b"deny" });
        self.fill_rule(fields);
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
