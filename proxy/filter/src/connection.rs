//! One inbound connection that carries no HTTP: decided once its handshake is over, recorded, and only then let through
//! to the filter that connects to the application.

use std::sync::Arc;

use peltast_engine::record::Kind;
use peltast_engine::{Answer, Decision, Effect, KeySets, Program, Reason, Request, Revocations, Trust, Verdict};

use crate::config::{can_hash, generation, Workload};
use crate::downstream::Downstream;
use crate::envoy::LogEntry;
use crate::live::Validity;
use crate::network::Connection;
use crate::outcome::{decided_by, Outcome};
use crate::worker::{self, Now, Worker};

/// The namespace of what is left for the access logger.
const METADATA: &str = "peltast.dev";
/// The sequence of the decision's record, or [`DROPPED`].
const DECISION: &str = "decision";
const DROPPED: &str = "dropped";
/// Which side ended the connection.
const CLOSED: &str = "closed";

/// What is remembered of one connection.
pub(crate) struct ConnectionState {
    workload: &'static Workload,
    program: Arc<Program>,
    /// When `program` was the newest; see [`generation`].
    generation: u64,
    allowed: bool,
    /// Sequence of the decision record, once it is written.
    recorded: Option<u64>,
    /// Where the worker lists it, once it was let through.
    pub(crate) place: Option<usize>,
    /// Who ended it, or its own direction of it, first.
    ended: Option<Side>,
}

/// A side of a connection, as it is seen from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The peer.
    Remote,
    /// The application, or Envoy.
    Local,
}

impl Side {
    /// As records name an end by it.
    fn close(self) -> &'static str {
        match self {
            Self::Remote => "remote_close",
            Self::Local => "local_close",
        }
    }
}

/// What is to be done with a connection once nothing of ours is borrowed any more: Envoy may run other hooks of the same
/// connection inside doing it.
pub(crate) enum Next {
    /// It waits, with its bytes.
    Wait,
    /// It goes on.
    Continue,
    /// It is closed.
    Close(Reason),
}

impl ConnectionState {
    pub(crate) fn new(workload: &'static Workload) -> Self {
        let generation = generation(); // before the program: what comes in between is looked at again
        Self {
            workload,
            program: workload.program(),
            generation,
            allowed: false,
            recorded: None,
            place: None,
            ended: None,
        }
    }

    /// Waits for the handshake, which shows who the peer is; where there will be none, decides.
    pub(crate) fn on_new_connection(&mut self, connection: &Connection) -> Next {
        if connection.is_tls() {
            return Next::Wait;
        }
        self.decide(connection)
    }

    /// Whether bytes of the peer may go on.
    pub(crate) fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// No more bytes come from `side`. With both directions open the close of the whole says nothing of who began.
    pub(crate) fn on_end(&mut self, side: Side) {
        self.ended.get_or_insert(side);
    }

    /// `side` closed the connection: leaves word of who began.
    pub(crate) fn on_close(&mut self, connection: &Connection, side: Side) {
        let began = *self.ended.get_or_insert(side);
        connection.set_metadata(METADATA, CLOSED, began.close());
    }

    /// Decides the connection, whose peer is known, and records the decision.
    pub(crate) fn decide(&mut self, connection: &Connection) -> Next {
        let now = Now::read();
        let downstream = Downstream::of(connection);
        if !worker::with(|worker| worker.may_decide(&self.program)) {
            return self.refuse(connection, Reason::SpoolUnavailable, &downstream, now);
        }
        match downstream.check(&self.program, now.ms()) {
            Ok(()) if !can_hash(&self.program) => self.refuse(connection, Reason::NotReady, &downstream, now),
            Ok(()) => {
                let answer = self.ask_policies(&downstream, now);
                self.conclude(connection, &answer, &downstream, now)
            }
            Err(reason) => self.refuse(connection, reason, &downstream, now),
        }
    }

    /// Decides a connection that runs again, by what holds now; gives by what it may run on.
    ///
    /// # Errors
    /// Why it may not.
    pub(crate) fn decide_again(&mut self, connection: &Connection) -> Result<Validity, Reason> {
        self.generation = generation();
        self.program = self.workload.program();
        let (now, downstream) = (Now::read(), Downstream::of(connection));
        let decision = match downstream.check(&self.program, now.ms()) {
            Ok(()) => self.ask_policies(&downstream, now).decision,
            Err(reason) => Arc::new(Decision::without_policy(Effect::Deny, reason, self.program.hash())),
        };
        if decision.effect == Effect::Allow {
            return Ok(self.validity(connection));
        }
        let reason = decision.reason;
        if let Some(recorded) = self.recorded {
            worker::with(|worker| worker.ended_connections.insert(recorded, decision));
        }
        Err(reason)
    }

    /// By what the connection may run on.
    pub(crate) fn validity(&self, connection: &Connection) -> Validity {
        Validity { generation: self.generation, ends_ms: Downstream::of(connection).ends_ms() }
    }

    /// Denies a connection whose decision panicked. What the panic left half-done is forgotten.
    pub(crate) fn on_panic(&mut self, connection: &Connection) -> Next {
        worker::with(Worker::recover);
        if self.place.is_some() {
            return Next::Close(Reason::InternalError);
        }
        self.refuse(connection, Reason::InternalError, &Downstream::of(connection), Now::read())
    }

    /// Key sets and revocations are for tokens, which connections have none of: they are not waited for.
    fn ask_policies(&self, downstream: &Downstream, now: Now) -> Answer {
        let (keys, revocations) = (KeySets::default(), Revocations::default());
        let trust = Trust { keys: &keys, revocations: &revocations };
        let request = Request { connection: downstream.connection(), http: None };
        let verdict = worker::with(|worker| {
            #[cfg(feature = "panic-for-tests")]
            crate::panic_for_tests::panic_if_named(downstream);
            worker.decider.decide(&self.program, &trust, &request, now.ms())
        });
        match verdict {
            Verdict::Decided(answer) => answer,
            Verdict::AwaitBody(_) => {
                let decision = Decision::without_policy(Effect::Deny, Reason::InternalError, self.program.hash());
                Answer { decision: Arc::new(decision), cached: false, token: None }
                // no policy is asked for bodies here
            }
            Verdict::Ask(question) => {
                let decision = question.unanswered("the check service is asked about requests only".to_owned());
                Answer { decision: Arc::new(decision), cached: false, token: None }
            }
        }
    }

    /// A denial that no policy made.
    fn refuse(&mut self, connection: &Connection, reason: Reason, downstream: &Downstream, now: Now) -> Next {
        let decision = Arc::new(Decision::without_policy(Effect::Deny, reason, self.program.hash()));
        self.conclude(connection, &Answer { decision, cached: false, token: None }, downstream, now)
    }

    /// Records a decision, and says what becomes of the connection. One that cannot be recorded is a denial, or dropped.
    fn conclude(&mut self, connection: &Connection, answer: &Answer, downstream: &Downstream, now: Now) -> Next {
        let decision = &answer.decision;
        let outcome = Outcome { decision, decided_by: decided_by(answer), downstream, token: None, trusted: None };
        let recorded = worker::with(|worker| {
            if worker.leaves_reserve(&self.program, decision) {
                return None;
            }
            worker.record(
                || connection.worker_index(),
                Kind::Decision,
                now,
                |fields| {
                    outcome.fill_parties(fields, &self.program);
                    outcome.fill_decision(fields);
                },
            )
        });
        let dropped = recorded.is_none() && worker::with(|worker| worker.drop_record(&self.program, decision, now));
        leave_for_log(connection, if dropped { Left::Dropped } else { Left::of(recorded) });
        self.recorded = recorded;
        self.allowed = decision.effect == Effect::Allow && (recorded.is_some() || dropped);
        match decision.effect {
            Effect::Allow if self.allowed => Next::Continue,
            Effect::Allow => Next::Close(Reason::SpoolUnavailable),
            Effect::Deny => Next::Close(decision.reason),
        }
    }
}

/// What the access logger is told of the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The sequence of its record.
    Recorded(u64),
    /// It could not be written, and the connection was closed.
    Unrecorded,
    /// It was let through without one, and is counted.
    Dropped,
}

impl Left {
    fn of(recorded: Option<u64>) -> Self {
        recorded.map_or(Self::Unrecorded, Self::Recorded)
    }

    fn parse(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).unwrap_or_default();
        if text == DROPPED {
            return Self::Dropped;
        }
        Self::of(text.parse().ok())
    }
}

fn leave_for_log(connection: &Connection, left: Left) {
    let text = match left {
        Left::Recorded(sequence) => sequence.to_string(),
        Left::Unrecorded => String::new(),
        Left::Dropped => DROPPED.to_owned(),
    };
    connection.set_metadata(METADATA, DECISION, &text);
}

/// Why a connection ended: what a filter said of it, or else which side ended it.
pub(crate) fn why_ended(entry: &LogEntry) -> Option<&[u8]> {
    entry.termination_details().or_else(|| entry.metadata(METADATA, CLOSED))
}

/// What became of the decision's record; none where nothing was decided.
pub(crate) fn left_for_log(entry: &LogEntry) -> Option<Left> {
    entry.metadata(METADATA, DECISION).map(Left::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ConnectionState {
        let document = r#"{"schema":1,"workload":{"principal":"spiffe://td/a","ports":{}},"authentication":[],"rego":[],
            "policies":[]}"#;
        ConnectionState::new(Workload::take(Program::load(document.as_bytes()).expect("a program")))
    }

    #[test]
    fn whoever_ends_first_ended_it() {
        for (ends, wanted) in [
            ([Side::Remote, Side::Local], Side::Remote),
            ([Side::Local, Side::Remote], Side::Local),
            ([Side::Remote, Side::Remote], Side::Remote),
        ] {
            let mut state = state();
            assert!(!state.is_allowed(), "nothing is allowed before it is decided");
            ends.into_iter().for_each(|side| state.on_end(side));
            assert_eq!(state.ended, Some(wanted), "{ends:?}");
        }
    }

    #[test]
    fn what_is_left_is_read_as_it_is_written() {
        let none = Left::Unrecorded;
        for (text, wanted) in
            [("12", Left::Recorded(12)), ("", none), ("x", none), ("-1", none), ("dropped", Left::Dropped)]
        {
            assert_eq!(Left::parse(text.as_bytes()), wanted, "{text}");
        }
    }
}
