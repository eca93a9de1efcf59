//! One inbound request on its way: decided, recorded, and then let through or answered.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use peltast_engine::path::Normalization;
use peltast_engine::quota::{Admission, Standing};
use peltast_engine::record::{Field, Fields, Kind};
use peltast_engine::recording::{Recorder, Recording};
use peltast_engine::{
    Answer, Decision, Effect, Headers, Http, Program, QueryOperations, Question, Reason, Request, Token, Told, Verdict,
};

use crate::body::RequestBody;
use crate::borrow;
use crate::callout;
use crate::config::{can_hash, generation, hasher, trusted, Trusted, Workload};
use crate::downstream::Downstream;
use crate::envoy::Stream;
use crate::live::Validity;
use crate::metadata::to_struct;
use crate::outcome::{decided_by, Outcome};
use crate::quota::{quotas, OfStream};
use crate::received::{Changed, Edited, Received};
use crate::summary::Counted;
use crate::worker::{self, Ended, Now, Worker};

/// The cluster by which the check service is reached.
const CHECK_CLUSTER: &str = "peltast-check";
/// Where access logs and other filters look for what an authorization filter says.
const METADATA_NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// What is remembered of one stream.
pub(crate) struct StreamState {
    workload: &'static Workload,
    program: Arc<Program>,
    /// When `program` was the newest; see [`generation`].
    generation: u64,
    /// Sequence of the decision record, once it is written.
    recorded: Option<u64>,
    /// Instead of that record, where the request is only counted. Boxed: few programs count.
    counted: Option<Box<Counted>>,
    /// Whether it was let through without one, for want of room.
    dropped: bool,
    response_headers: Vec<(String, String)>,
    /// Boxed: most streams are counted by no limit.
    counting: Option<Box<Counting>>,
    /// Boxed: few streams ask.
    question: Option<Box<Asked>>,
    /// When its peer's SVID ends, in milliseconds since 1970.
    peer_ends_ms: u64,
    /// When the token ends that its decision rests on.
    token_ends_ms: u64,
    /// The token that it was let through with.
    token: Option<Arc<Token>>,
    changed: Changed,
    body: RequestBody,
    /// Where the worker lists it, once it was let through.
    pub(crate) place: Option<usize>,
    /// Why it was ended after it was let through.
    ended_by: Option<Arc<Decision>>,
}

/// How far a request has come that limits count.
enum Counting {
    /// This decision waits for tokens.
    Waits(Answer),
    /// It was let through; the client is told how it stands.
    Done(Standing),
}

struct Asked {
    question: Question,
    /// Whether this stream asks for all that wait for the same answer.
    leads: bool,
    /// Envoy's number of the callout; none where another stream asks.
    callout: Option<u64>,
}

/// What is to be done with a stream once nothing of ours is borrowed any more: Envoy may run other hooks of the same
/// stream inside doing it.
pub(crate) enum Next {
    /// The request goes on.
    Continue,
    /// It waits for an answer.
    Wait,
    /// It waits for its own body.
    Read,
    /// It is answered here.
    Deny(Arc<Decision>),
    /// It is answered here, and not even the denial could be put together.
    Abort,
    /// It runs, and is ended.
    Reset(Reason),
}

/// What becomes of a stream for now.
enum Step {
    /// It is decided and recorded.
    Concluded(Answer),
    /// It waits for the check service, for another stream's answer, or for tokens.
    Waiting,
    /// So many bytes of its body must come first.
    Reading(usize),
}

impl StreamState {
    pub(crate) fn new(workload: &'static Workload) -> Self {
        let generation = generation(); // before the program: what comes in between is looked at again
        Self {
            workload,
            program: workload.program(),
            generation,
            recorded: None,
            counted: None,
            dropped: false,
            response_headers: Vec::new(),
            counting: None,
            question: None,
            peer_ends_ms: 0,
            token_ends_ms: u64::MAX,
            token: None,
            changed: Changed::default(),
            body: RequestBody::Unread,
            place: None,
            ended_by: None,
        }
    }

    /// Decides the request whose headers have come.
    pub(crate) fn on_request_headers(&mut self, stream: &mut Stream, end_of_stream: bool) -> Next {
        if end_of_stream {
            self.body = RequestBody::Absent;
        }
        let step = self.decide(stream, true);
        match step {
            // What comes after an upgrade is no body.
            Step::Reading(_) if stream.header("upgrade").is_some() => {
                self.body = RequestBody::Absent;
                let step = self.decide(stream, true);
                self.next(stream, step)
            }
            Step::Reading(limit) => {
                self.body = RequestBody::hold(limit);
                Next::Read
            }
            step => self.next(stream, step),
        }
    }

    /// What is done with the body.
    pub(crate) fn body(&mut self) -> &mut RequestBody {
        &mut self.body
    }

    /// Decides the request once enough of its body has come.
    pub(crate) fn on_request_body(&mut self, stream: &mut Stream, is_last: bool) -> Next {
        let Some(held) = self.body.reading() else { return Next::Wait };
        let content_type = stream.header("content-type").unwrap_or_default();
        if !held.take(&stream.received_body(), content_type, is_last) {
            return Next::Read;
        }
        let step = self.decide(stream, true);
        self.next(stream, step)
    }

    /// Adds what the decision adds to the response.
    pub(crate) fn on_response_headers(&mut self, stream: &mut Stream) {
        for (name, value) in self.response_headers.drain(..) {
            stream.add_response_header(&name, &value);
        }
        if let Some(Counting::Done(standing)) = self.counting.take().map(|counting| *counting) {
            stream.add_response_header(Standing::POLICY, &standing.policy);
            stream.add_response_header(Standing::LIMIT, &standing.limit);
        }
    }

    /// Takes the check service's answer.
    pub(crate) fn on_callout_done(
        &mut self,
        stream: &mut Stream,
        callout: u64,
        answer: Result<Vec<u8>, String>,
    ) -> Next {
        // What was asked before another program came is answered too late.
        let Some(asked) = self.question.take_if(|asked| asked.callout == Some(callout)) else { return Next::Wait };
        let decision = answer.and_then(|body| callout::decision(&body, &self.program));
        let decision = Arc::new(decision.unwrap_or_else(|detail| asked.question.unanswered(detail)));
        asked.settle(&decision);
        if self.place.is_some() {
            return self.uphold(stream, decision);
        }
        let step = self.conclude(stream, Answer { decision, cached: false, token: asked.question.token });
        self.next(stream, step)
    }

    /// Tokens have come, and it is counted again. Or another stream's answer has come, or its stream has gone: decides
    /// again.
    pub(crate) fn on_scheduled(&mut self, stream: &mut Stream) -> Next {
        self.question = None;
        if self.place.is_some() {
            return self.decide_again(stream, false);
        }
        let step = match self.counting.take().map(|counting| *counting) {
            Some(Counting::Waits(answer)) if self.generation == generation() => self.conclude(stream, answer),
            _ => {
                self.renew();
                self.decide(stream, false)
            }
        };
        self.next(stream, step)
    }

    /// Leaves word for the access logger, and does not leave others waiting.
    pub(crate) fn on_complete(&mut self) {
        let recorded = self.recorded.map(|decision| Ended::Recorded { decision, by: self.ended_by.take() });
        let counted = || self.counted.take().map(Ended::Counted);
        let ended = recorded.or_else(counted).or(self.dropped.then_some(Ended::Dropped));
        worker::with(|worker| worker.ended = ended);
        self.give_up_asking();
    }

    /// Denies a request whose decision panicked. What the panic left half-done is forgotten.
    pub(crate) fn on_panic(&mut self, stream: &mut Stream) -> Next {
        worker::with(Worker::recover);
        if self.place.is_some() {
            return self.end(stream, Reason::InternalError);
        }
        let downstream = downstream(stream);
        let answer = self.refuse(stream, Reason::InternalError, &downstream, Now::read());
        self.carry_out(stream, &answer)
    }

    /// Decides a request that runs again, by what holds now. `may_wait` as in [`Self::decide`].
    pub(crate) fn decide_again(&mut self, stream: &Stream, may_wait: bool) -> Next {
        self.renew();
        self.give_up_asking();
        let now = Now::read();
        let downstream = downstream(stream);
        self.peer_ends_ms = downstream.ends_ms();
        if let Err(reason) = downstream.check(&self.program, now.ms()) {
            return self.end(stream, reason);
        }
        let Some(trusted) = self.trusted() else { return self.end(stream, Reason::NotReady) };
        let received = Received { stream, changed: &self.changed };
        let mut request = request(stream, &received, &downstream, &self.body);
        if let (Some(http), Some(path)) = (&mut request.http, self.changed.path()) {
            http.path = path;
        }
        let verdict = worker::with(|worker| {
            let (trust, token) = (trusted.as_trust(), self.token.as_ref());
            worker.decider.decide_again(&self.program, &trust, &request, token, now.ms())
        });
        match verdict {
            // A policy that came later reads what has gone on already.
            Verdict::AwaitBody(_) => self.end(stream, Reason::AttributeUnknown),
            Verdict::Decided(answer) => {
                self.token_ends_ms = ends_ms(answer.token.as_ref());
                self.token = answer.token.or(self.token.take()); // its text may be gone, and it counts again later
                self.uphold(stream, answer.decision)
            }
            Verdict::Ask(question) => {
                self.token_ends_ms = ends_ms(question.token.as_ref());
                match ask(stream, question, &request, &self.program, may_wait) {
                    Ok(asked) => {
                        self.question = Some(asked);
                        Next::Wait
                    }
                    Err((_, decision)) => self.uphold(stream, decision),
                }
            }
        }
    }

    /// By what the stream may run on.
    pub(crate) fn validity(&self) -> Validity {
        Validity { generation: self.generation, ends_ms: self.token_ends_ms.min(self.peer_ends_ms) }
    }

    fn renew(&mut self) {
        self.generation = generation();
        self.program = self.workload.program();
    }

    /// What tokens are trusted by; none where that, or what records are written with, is missing.
    fn trusted(&self) -> Option<Arc<Trusted>> {
        trusted().filter(|_| can_hash(&self.program))
    }

    fn uphold(&mut self, stream: &Stream, decision: Arc<Decision>) -> Next {
        if decision.effect == Effect::Allow {
            return Next::Wait;
        }
        if let (Some(counted), None) = (&self.counted, self.recorded) {
            // Its end says why it ended, and refers to this.
            self.recorded = worker::with(|worker| worker.record_counted(|| stream.worker_index(), counted));
        }
        let reason = decision.reason;
        self.ended_by = Some(decision);
        Next::Reset(reason)
    }

    fn end(&mut self, stream: &Stream, reason: Reason) -> Next {
        self.uphold(stream, Arc::new(Decision::without_policy(Effect::Deny, reason, self.program.hash())))
    }

    fn next(&mut self, stream: &mut Stream, step: Step) -> Next {
        match step {
            Step::Concluded(answer) => self.carry_out(stream, &answer),
            Step::Waiting => Next::Wait,
            // Another program has come while this waited, and Envoy does not give the body of what is stopped.
            Step::Reading(_) => {
                let answer = self.refuse(stream, Reason::AttributeUnknown, &downstream(stream), Now::read());
                self.carry_out(stream, &answer)
            }
        }
    }

    /// `may_wait` is false for a stream that has waited for another's answer and not found it: it asks for itself.
    fn decide(&mut self, stream: &Stream, may_wait: bool) -> Step {
        let now = Now::read();
        let downstream = downstream(stream);
        self.peer_ends_ms = downstream.ends_ms();
        if !worker::with(|worker| worker.may_decide(&self.program)) {
            return Step::Concluded(self.refuse(stream, Reason::SpoolUnavailable, &downstream, now));
        }
        if let Err(reason) = downstream.check(&self.program, now.ms()) {
            return Step::Concluded(self.refuse(stream, reason, &downstream, now));
        }
        let Some(trusted) = self.trusted() else {
            return Step::Concluded(self.refuse(stream, Reason::NotReady, &downstream, now));
        };
        let request = request(stream, stream, &downstream, &self.body);
        let verdict = worker::with(|worker| {
            #[cfg(feature = "panic-for-tests")]
            crate::panic_for_tests::panic_if_asked(stream);
            worker.decider.decide(&self.program, &trusted.as_trust(), &request, now.ms())
        });
        match verdict {
            Verdict::AwaitBody(limit) => Step::Reading(limit),
            Verdict::Decided(answer) => self.count(stream, answer, &downstream, &trusted, now),
            Verdict::Ask(question) => match ask(stream, question, &request, &self.program, may_wait) {
                Ok(asked) => {
                    self.question = Some(asked);
                    Step::Waiting
                }
                Err((asked, decision)) => {
                    self.conclude(stream, Answer { decision, cached: false, token: asked.question.token })
                }
            },
        }
    }

    /// Leaves nobody waiting for an answer that this stream will not bring.
    fn give_up_asking(&mut self) {
        if let Some(asked) = self.question.take() {
            asked.wake_waiting();
        }
    }

    /// Counts and records a decision that did not come of the engine at once.
    fn conclude(&mut self, stream: &Stream, answer: Answer) -> Step {
        let now = Now::read();
        let downstream = downstream(stream);
        match (downstream.check(&self.program, now.ms()), self.trusted()) {
            (Ok(()), Some(trusted)) => self.count(stream, answer, &downstream, &trusted, now),
            (Err(reason), _) => Step::Concluded(self.refuse(stream, reason, &downstream, now)),
            (_, None) => Step::Concluded(self.refuse(stream, Reason::NotReady, &downstream, now)),
        }
    }

    /// Has the request counted by what limits there are, if it is allowed; then records its decision.
    fn count(&mut self, stream: &Stream, answer: Answer, downstream: &Downstream, trusted: &Trusted, now: Now) -> Step {
        if !self.program.has_limits() {
            return Step::Concluded(self.record(stream, answer, downstream, trusted, now));
        }
        let request = request(stream, stream, downstream, &self.body);
        let admission = quotas().admit(&self.program, &request, answer, &OfStream(stream));
        borrow::ring();
        match admission {
            Admission::Decided(answer, standing) => {
                self.counting = standing.map(|standing| Box::new(Counting::Done(standing)));
                Step::Concluded(self.record(stream, answer, downstream, trusted, now))
            }
            Admission::Waiting(answer) => {
                self.counting = Some(Box::new(Counting::Waits(answer)));
                Step::Waiting
            }
        }
    }

    /// Writes the decision record. A decision that cannot be recorded is a denial, or dropped.
    fn record(
        &mut self,
        stream: &Stream,
        answer: Answer,
        downstream: &Downstream,
        trusted: &Trusted,
        now: Now,
    ) -> Answer {
        let outcome = Outcome {
            decision: &answer.decision,
            decided_by: decided_by(&answer),
            downstream,
            token: answer.token.as_deref(),
            trusted: Some(trusted),
        };
        self.counted = self.to_be_counted(stream, &outcome, now);
        if self.counted.is_some() {
            return answer;
        }
        let drops = worker::with(|worker| worker.leaves_reserve(&self.program, &answer.decision));
        self.recorded = if drops { None } else { self.write(stream, &outcome, now) };
        if self.recorded.is_some() {
            return answer;
        }
        self.dropped = worker::with(|worker| worker.drop_record(&self.program, &answer.decision, now));
        if self.dropped {
            return answer;
        }
        let decision = Decision::without_policy(Effect::Deny, Reason::SpoolUnavailable, self.program.hash());
        Answer { decision: Arc::new(decision), cached: false, token: None }
    }

    /// A denial that no policy made. It is recorded if it can be.
    fn refuse(&mut self, stream: &Stream, reason: Reason, downstream: &Downstream, now: Now) -> Answer {
        let decision = Decision::without_policy(Effect::Deny, reason, self.program.hash());
        let outcome = Outcome { decision: &decision, decided_by: "engine", downstream, token: None, trusted: None };
        self.recorded = self.write(stream, &outcome, now);
        Answer { decision: Arc::new(decision), cached: false, token: None }
    }

    /// Where allowed requests are counted: what of this one is to be remembered until it is over.
    fn to_be_counted(&self, stream: &Stream, outcome: &Outcome<'_>, now: Now) -> Option<Box<Counted>> {
        self.program.recording().filter(|recording| recording.counts(outcome.decision))?;
        let method = stream.header(":method").unwrap_or_default();
        Counted::new(outcome, &self.program, method, now, |fields| self.fill(fields, stream, outcome))
    }

    fn write(&self, stream: &Stream, outcome: &Outcome<'_>, now: Now) -> Option<u64> {
        let index = || stream.worker_index();
        worker::with(|worker| worker.record(index, Kind::Decision, now, |fields| self.fill(fields, stream, outcome)))
    }

    fn fill(&self, fields: &mut Fields<'_>, stream: &Stream, outcome: &Outcome<'_>) {
        outcome.fill_parties(fields, &self.program);
        fields.optional(Field::TokenIssuer, outcome.token.map(|token| &token.issuer));
        fields.optional(Field::Method, stream.header(":method"));
        fields.optional(Field::Host, stream.header(":authority"));
        let path = stream.header(":path").map(|path| self.program.path_without_tokens(path));
        match self.program.recording() {
            Some(recording) => {
                self.fill_as_told(&recording.recorder(hasher()), fields, stream, outcome, path.as_deref())
            }
            None => {
                fields.optional(Field::TokenSubject, outcome.token.map(|token| &token.subject));
                fields.optional(Field::Path, path);
            }
        }
        fields.optional(Field::RequestId, stream.header("x-request-id"));
        fields.optional(Field::TraceParent, stream.header("traceparent"));
        fields.number(Field::Status, u64::from(outcome.decision.status));
        outcome.fill_decision(fields);
        if let Some(notes) = &outcome.decision.notes {
            notes.write(fields, self.program.recording().is_some_and(Recording::hides));
        }
    }

    /// What an AuditPolicy says how to record.
    fn fill_as_told(
        &self,
        recorder: &Recorder<'_>,
        fields: &mut Fields<'_>,
        stream: &Stream,
        outcome: &Outcome<'_>,
        path: Option<&[u8]>,
    ) {
        if let Some(token) = outcome.token {
            recorder.token(fields, token);
        }
        if let Some(path) = path {
            recorder.path(fields, path);
        }
        recorder.headers(fields, &self.program.verified_headers(stream, outcome.token));
    }

    fn change_query(&mut self, stream: &mut Stream, operations: &QueryOperations) {
        if let Some(path) = operations.apply(stream.header(":path").unwrap_or_default()) {
            self.changed.set(stream, ":path", &path);
        }
    }

    /// Readies a decided request for the application, or says that it is to be answered here.
    fn carry_out(&mut self, stream: &mut Stream, answer: &Answer) -> Next {
        let decision = &answer.decision;
        if let Some(metadata) = &decision.metadata {
            stream.set_metadata(METADATA_NAMESPACE, &to_struct(metadata));
        }
        if decision.effect == Effect::Deny {
            return Next::Deny(Arc::clone(decision));
        }
        forward_decided_path(stream, self.program.path_normalization());
        self.program.edit(answer.token.as_deref(), &mut Edited { stream, changed: &mut self.changed });
        for name in &decision.headers.request_remove {
            self.changed.set(stream, name, b"");
        }
        for (index, (name, value)) in decision.headers.request_set.iter().enumerate() {
            let is_more = decision.headers.request_set[..index].iter().any(|(earlier, _)| earlier == name);
            match is_more {
                true => self.changed.add(stream, name, value),
                false => self.changed.set(stream, name, value.as_bytes()),
            }
        }
        if !decision.query.is_empty() {
            self.change_query(stream, &decision.query);
        }
        self.token_ends_ms = ends_ms(answer.token.as_ref());
        self.token.clone_from(&answer.token);
        self.response_headers.clone_from(&decision.headers.response_add);
        self.body.release();
        Next::Continue
    }
}

/// The application gets the path that was decided about. Envoy normalizes once, the engine until nothing changes
/// (see [`Normalization::apply`]): of `/public/%2e%2e;/admin` Envoy alone would forward `/public/..;/admin`.
fn forward_decided_path(stream: &mut Stream, normalization: Normalization) {
    let given = stream.header(":path").unwrap_or_default();
    let decided = match normalization.apply(given) {
        Cow::Owned(decided) if decided != given => decided,
        _ => return,
    };
    stream.set_request_header(":path", &decided);
}

fn ends_ms(token: Option<&Arc<Token>>) -> u64 {
    token.map_or(u64::MAX, |token| token.ends_ms())
}

fn downstream(stream: &Stream) -> Rc<Downstream> {
    worker::with(|worker| worker.connections.of(stream))
}

impl Asked {
    /// Remembers the answer, if it may be, and ends the wait of those that wait for it too.
    fn settle(&self, decision: &Arc<Decision>) {
        worker::with(|worker| worker.decider.remember(&self.question, decision, Now::read().ms()));
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        if let (Some(key), true) = (&self.question.key, self.leads) {
            worker::with(|worker| worker.wake_waiting(key));
        }
    }
}

/// Asks `question` about `request`, or waits for a stream that asks the same, if it may.
///
/// # Errors
/// It cannot be asked: with the decision that is made then.
fn ask(
    stream: &Stream,
    question: Question,
    request: &Request<'_>,
    program: &Program,
    may_wait: bool,
) -> Result<Box<Asked>, (Box<Asked>, Arc<Decision>)> {
    let waits = may_wait && worker::with(|worker| worker.wait_for(question.key.as_deref(), || stream.scheduler()));
    let timeout_ms = question.timeout_ms;
    let mut asked = Box::new(Asked { leads: may_wait && !waits, question, callout: None });
    if waits {
        return Ok(asked);
    }
    match call_out(stream, request, program, timeout_ms) {
        Ok(callout) => {
            asked.callout = Some(callout);
            Ok(asked)
        }
        Err(detail) => {
            let decision = Arc::new(asked.question.unanswered(detail));
            asked.settle(&decision);
            Err((asked, decision))
        }
    }
}

/// Sends `request` to the check service; gives Envoy's number of the callout.
///
/// # Errors
/// For people: why it cannot be asked.
fn call_out(stream: &Stream, request: &Request<'_>, program: &Program, timeout_ms: u32) -> Result<u64, String> {
    let body = callout::check_request(request, program.principal());
    let headers = [
        (":method", "POST"),
        (":path", "/check"),
        ("host", "control.peltast.internal"),
        ("content-type", "application/x-protobuf"),
    ];
    let asked = stream.call_out(CHECK_CLUSTER, &headers, &body, timeout_ms);
    asked.map_err(|number| format!("the check service was not asked: Envoy's result {number}"))
}

fn request<'a>(
    stream: &'a Stream,
    headers: &'a dyn Headers,
    downstream: &'a Downstream,
    body: &'a RequestBody,
) -> Request<'a> {
    Request {
        connection: downstream.connection(),
        http: Some(Http {
            method: stream.header(":method").unwrap_or_default(),
            host: stream.header(":authority").unwrap_or_default(),
            path: stream.header(":path").unwrap_or_default(),
            scheme: stream.header(":scheme").unwrap_or_default(),
            protocol: &downstream.protocol,
            headers,
            body: body.as_body(),
            told: Told::All,
        }),
    }
}
