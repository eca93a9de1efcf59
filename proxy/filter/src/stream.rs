//! One inbound request on its way: decided, recorded, and then let through or answered.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use peltast_engine::path;
use peltast_engine::record::{Field, Fields, Kind};
use peltast_engine::{
    Answer, Decision, Effect, Hash, Http, KeySets, Lifetime, Program, Question, Reason, Request, Source, Verdict,
};

use crate::abi;
use crate::access_log::PLAINTEXT;
use crate::callout;
use crate::config::keys;
use crate::downstream::Downstream;
use crate::envoy::Stream;
use crate::worker::{self, Ended, Now, Worker};

/// The cluster by which the check service is reached.
const CHECK_CLUSTER: &str = "peltast-check";

/// What is remembered of one stream.
pub(crate) struct StreamState {
    program: Arc<Program>,
    /// Sequence of the decision record, once it is written.
    recorded: Option<u64>,
    response_headers: Vec<(String, String)>,
    /// Boxed: few streams ask.
    question: Option<Box<Asked>>,
}

struct Asked {
    question: Question,
    /// Whether this stream asks for all that wait for the same answer.
    leads: bool,
}

/// What is to be done with a stream once nothing of ours is borrowed any more: Envoy may run other hooks of the same
/// stream inside doing it.
pub(crate) enum Next {
    /// The request goes on.
    Continue,
    /// It waits for an answer.
    Wait,
    /// It is answered here.
    Deny(Arc<Decision>),
    /// It is answered here, and not even the denial could be put together.
    Abort,
}

/// What becomes of a stream for now.
enum Step {
    /// It is decided and recorded.
    Concluded(Answer),
    /// It waits for the check service or for another stream's answer.
    Waiting,
}

/// What a record tells of a decision beside the request.
struct Outcome<'a> {
    decision: &'a Decision,
    decided_by: &'static str,
    downstream: &'a Downstream,
    issuer_and_subject: Option<(&'a str, &'a str)>,
    keys: Option<Hash>,
}

impl StreamState {
    pub(crate) fn new(program: Arc<Program>) -> Self {
        Self { program, recorded: None, response_headers: Vec::new(), question: None }
    }

    /// Decides the request whose headers have come.
    pub(crate) fn on_request_headers(&mut self, stream: &mut Stream) -> Next {
        let step = self.decide(stream, true);
        self.next(stream, step)
    }

    /// Adds what the decision adds to the response.
    pub(crate) fn on_response_headers(&mut self, stream: &mut Stream) {
        for (name, value) in self.response_headers.drain(..) {
            stream.add_response_header(&name, &value);
        }
    }

    /// Takes the check service's answer.
    pub(crate) fn on_callout_done(&mut self, stream: &mut Stream, answer: Result<Vec<u8>, String>) -> Next {
        let Some(asked) = self.question.take() else { return Next::Wait };
        let decision = answer.and_then(|body| callout::decision(&body, &self.program));
        let decision = Arc::new(decision.unwrap_or_else(|detail| asked.question.unanswered(detail)));
        let answer = self.finish(stream, asked, decision);
        self.carry_out(stream, &answer)
    }

    /// Another stream's answer has come, or its stream has gone: decides again.
    pub(crate) fn on_scheduled(&mut self, stream: &mut Stream) -> Next {
        self.question = None;
        let step = self.decide(stream, false);
        self.next(stream, step)
    }

    /// Leaves word for the access logger, and does not leave others waiting.
    pub(crate) fn on_complete(&mut self) {
        worker::with(|worker| {
            worker.ended = self.recorded.map(|decision| Ended { decision });
            if let Some(Asked { question: Question { key: Some(key), .. }, leads: true }) =
                self.question.take().map(|asked| *asked)
            {
                worker.wake_waiting(&key);
            }
        });
    }

    /// Denies a request whose decision panicked. What the panic left half-done is forgotten.
    pub(crate) fn on_panic(&mut self, stream: &mut Stream) -> Next {
        worker::with(Worker::recover);
        let downstream = downstream(stream);
        let answer = self.refuse(stream, Reason::InternalError, &downstream, Now::read());
        self.carry_out(stream, &answer)
    }

    fn next(&mut self, stream: &mut Stream, step: Step) -> Next {
        match step {
            Step::Concluded(answer) => self.carry_out(stream, &answer),
            Step::Waiting => Next::Wait,
        }
    }

    /// `may_wait` is false for a stream that has waited for another's answer and not found it: it asks for itself.
    fn decide(&mut self, stream: &Stream, may_wait: bool) -> Step {
        let now = Now::read();
        let downstream = downstream(stream);
        if !worker::with(|worker| worker.has_room()) {
            return Step::Concluded(self.refuse(stream, Reason::SpoolUnavailable, &downstream, now));
        }
        if let Err(reason) = downstream.check(&self.program, now.ms()) {
            return Step::Concluded(self.refuse(stream, reason, &downstream, now));
        }
        let Some(keys) = keys() else {
            return Step::Concluded(self.refuse(stream, Reason::NotReady, &downstream, now));
        };
        let request = request(stream, &downstream);
        let verdict = worker::with(|worker| {
            #[cfg(feature = "panic-for-tests")]
            crate::panic_for_tests::panic_if_asked(stream);
            worker.decider.decide(&self.program, &keys, &request, now.ms())
        });
        match verdict {
            Verdict::Decided(answer) => Step::Concluded(self.record(stream, answer, &downstream, &keys, now)),
            Verdict::Ask(question) => self.ask(stream, question, &request, may_wait),
        }
    }

    fn ask(&mut self, stream: &Stream, question: Question, request: &Request<'_>, may_wait: bool) -> Step {
        let waits = worker::with(|worker| match &question.key {
            Some(key) if may_wait => match worker.waiting.get_mut(key) {
                Some(waiting) => {
                    waiting.push(stream.scheduler());
                    true
                }
                None => {
                    worker.waiting.insert(key.clone(), Vec::new());
                    false
                }
            },
            _ => false,
        });
        let timeout_ms = question.timeout_ms;
        self.question = Some(Box::new(Asked { leads: may_wait && !waits, question }));
        if waits {
            return Step::Waiting;
        }
        let body = callout::check_request(request, self.program.principal());
        let headers = [
            (":method", "POST"),
            (":path", "/check"),
            ("host", "control.peltast.internal"),
            ("content-type", "application/x-protobuf"),
        ];
        match stream.call_out(CHECK_CLUSTER, &headers, &body, timeout_ms) {
            Ok(()) => Step::Waiting,
            Err(number) => self.unsent(stream, number),
        }
    }

    fn unsent(&mut self, stream: &Stream, number: u32) -> Step {
        let Some(asked) = self.question.take() else { return Step::Waiting };
        let decision = asked.question.unanswered(format!("the check service was not asked: Envoy's result {number}"));
        Step::Concluded(self.finish(stream, asked, Arc::new(decision)))
    }

    /// Ends the wait of this stream, and of those that wait for the same answer.
    fn finish(&mut self, stream: &Stream, asked: Box<Asked>, decision: Arc<Decision>) -> Answer {
        if let (Some(key), Lifetime::Milliseconds(_)) = (&asked.question.key, decision.lifetime) {
            worker::with(|worker| worker.decider.remember(key, &decision, Now::read().ms()));
        }
        if let (Some(key), true) = (&asked.question.key, asked.leads) {
            worker::with(|worker| worker.wake_waiting(key));
        }
        self.conclude(stream, decision, asked.question)
    }

    /// Records a decision that did not come of the engine at once.
    fn conclude(&mut self, stream: &Stream, decision: Arc<Decision>, question: Question) -> Answer {
        let now = Now::read();
        let answer = Answer { decision, cached: false, token: question.token };
        let downstream = downstream(stream);
        match (downstream.check(&self.program, now.ms()), keys()) {
            (Ok(()), Some(keys)) => self.record(stream, answer, &downstream, &keys, now),
            (Err(reason), _) => self.refuse(stream, reason, &downstream, now),
            (_, None) => self.refuse(stream, Reason::NotReady, &downstream, now),
        }
    }

    /// Writes the decision record. A decision that cannot be recorded is a denial.
    fn record(&mut self, stream: &Stream, answer: Answer, downstream: &Downstream, keys: &KeySets, now: Now) -> Answer {
        let token = answer.token.as_deref();
        let outcome = Outcome {
            decision: &answer.decision,
            decided_by: match (answer.cached, answer.decision.source) {
                (true, _) => "cache",
                (false, Source::Engine) => "engine",
                (false, Source::Check) => "check",
                (false, Source::FailedOpen) => "failed-open",
            },
            downstream,
            issuer_and_subject: token.map(|token| (token.issuer.as_str(), token.subject.as_str())),
            keys: Some(keys.hash()),
        };
        self.recorded = self.write(stream, &outcome, now);
        if self.recorded.is_some() {
            return answer;
        }
        let decision = Decision::without_policy(Effect::Deny, Reason::SpoolUnavailable, self.program.hash());
        Answer { decision: Arc::new(decision), cached: false, token: None }
    }

    /// A denial that no policy made. It is recorded if it can be.
    fn refuse(&mut self, stream: &Stream, reason: Reason, downstream: &Downstream, now: Now) -> Answer {
        let decision = Decision::without_policy(Effect::Deny, reason, self.program.hash());
        let outcome =
            Outcome { decision: &decision, decided_by: "engine", downstream, issuer_and_subject: None, keys: None };
        self.recorded = self.write(stream, &outcome, now);
        Answer { decision: Arc::new(decision), cached: false, token: None }
    }

    fn write(&self, stream: &Stream, outcome: &Outcome<'_>, now: Now) -> Option<u64> {
        let index = || stream.worker_index();
        worker::with(|worker| worker.record(index, Kind::Decision, now, |fields| self.fill(fields, stream, outcome)))
    }

    fn fill(&self, fields: &mut Fields<'_>, stream: &Stream, outcome: &Outcome<'_>) {
        let decision = outcome.decision;
        let downstream = outcome.downstream;
        fields.optional(Field::SourcePrincipal, downstream.peer.as_ref().map(|peer| peer.principal.as_bytes()));
        fields.optional(Field::SourceSerial, downstream.peer.as_ref().map(|peer| peer.serial.as_bytes()));
        fields.optional(Field::SourceAddress, downstream.source_address.as_ref());
        fields.optional(Field::ConnectionSecurityPolicy, downstream.plaintext.then_some(PLAINTEXT));
        fields.bytes(Field::DestinationPrincipal, self.program.principal().as_bytes());
        if let Some(address) = downstream.destination {
            fields.number(Field::DestinationPort, u64::from(self.program.application_port(address.port())));
        }
        fields.optional(Field::TokenIssuer, outcome.issuer_and_subject.map(|(issuer, _)| issuer));
        fields.optional(Field::TokenSubject, outcome.issuer_and_subject.map(|(_, subject)| subject));
        fields.optional(Field::Method, stream.header(":method"));
        fields.optional(Field::Host, stream.header(":authority"));
        fields.optional(Field::Path, stream.header(":path"));
        fields.optional(Field::RequestId, stream.header("x-request-id"));
        fields.optional(Field::TraceParent, stream.header("traceparent"));
        fields.bytes(Field::Effect, if decision.effect == Effect::Allow { b"allow" } else { b"deny" });
        fields.number(Field::Status, u64::from(decision.status));
        fields.optional(Field::Policy, decision.policy.as_deref());
        if let Some(rule) = decision.rule {
            fields.number(Field::Rule, u64::from(rule));
        }
        fields.bytes(Field::Reason, decision.reason.as_str().as_bytes());
        fields.bytes(Field::DecidedBy, outcome.decided_by.as_bytes());
        fields.optional(Field::Detail, decision.detail.as_deref());
        fields.bytes(Field::Program, &decision.program.0);
        fields.optional(Field::Keys, outcome.keys.map(|keys| keys.0));
    }

    /// Readies a decided request for the application, or says that it is to be answered here.
    fn carry_out(&mut self, stream: &mut Stream, answer: &Answer) -> Next {
        let decision = &answer.decision;
        if decision.effect == Effect::Deny {
            return Next::Deny(Arc::clone(decision));
        }
        forward_decided_path(stream);
        if answer.token.as_ref().is_some_and(|token| !token.forward) {
            stream.set_request_header("authorization", b"");
        }
        for name in &decision.headers.request_remove {
            stream.set_request_header(name, b"");
        }
        for (name, value) in &decision.headers.request_set {
            stream.set_request_header(name, value.as_bytes());
        }
        self.response_headers.clone_from(&decision.headers.response_add);
        Next::Continue
    }
}

/// The application gets the path that was decided about. Envoy normalizes once, the engine until nothing changes
/// (see [`path`]): of `/public/%2e%2e;/admin` Envoy alone would forward `/public/..;/admin`.
fn forward_decided_path(stream: &mut Stream) {
    let given = stream.header(":path").unwrap_or_default();
    let decided = match path::normalize(given) {
        Cow::Owned(decided) if decided != given => decided,
        _ => return,
    };
    stream.set_request_header(":path", &decided);
}

fn downstream(stream: &Stream) -> Rc<Downstream> {
    worker::with(|worker| worker.connections.of(stream))
}

fn request<'a>(stream: &'a Stream, downstream: &'a Downstream) -> Request<'a> {
    Request {
        connection: downstream.connection(),
        http: Http {
            method: stream.header(":method").unwrap_or_default(),
            host: stream.header(":authority").unwrap_or_default(),
            path: stream.header(":path").unwrap_or_default(),
            scheme: stream.header(":scheme").unwrap_or_default(),
            protocol: stream.attribute(abi::ATTRIBUTE_REQUEST_PROTOCOL).unwrap_or_default(),
            headers: stream,
        },
    }
}
