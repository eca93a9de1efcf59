//! How things ended: the end of inbound requests, our side of outbound ones, and connections that were refused.

use std::sync::Arc;

use peltast_engine::record::{Field, Fields, Kind};
use peltast_engine::recording::{Recorder, Recording, Treatment};
use peltast_engine::token::path_without_token;
use peltast_engine::Decision;

use crate::abi;
use crate::config::{hasher, newest_program};
use crate::connection::{self, Left};
use crate::envoy::LogEntry;
use crate::summary::Counted;
use crate::worker::{self, Ended, Now, Worker};

/// What records say of a connection without TLS. Istio's word for it.
pub(crate) const PLAINTEXT: &str = "none";

/// Which of Envoy's access logs this is, by the name that the configuration gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logger {
    /// Of the connection manager that takes requests from peers.
    Inbound,
    /// Of the connection manager that takes requests from the application, and how their queries are recorded: it has
    /// no filter that would tell.
    Outbound(Treatment),
    /// Of a listener that takes TLS connections from peers.
    Listener,
    /// Of the listener that takes connections without requests from peers.
    InboundConnection,
    /// Of the proxy that takes connections without requests from the application.
    OutboundConnection,
}

impl Logger {
    /// The one of this name and configuration.
    pub(crate) fn parse(name: &[u8], config: &[u8]) -> Option<Self> {
        match name {
            b"inbound" => Some(Self::Inbound),
            b"outbound" if config.is_empty() => Some(Self::Outbound(Treatment::Keep)),
            b"outbound" => Treatment::parse(config).map(Self::Outbound),
            b"listener" => Some(Self::Listener),
            b"inbound-connection" => Some(Self::InboundConnection),
            b"outbound-connection" => Some(Self::OutboundConnection),
            _ => None,
        }
    }

    /// Writes the record of `entry`, if it has one.
    pub(crate) fn log(self, entry: &LogEntry) {
        worker::with(|worker| match self {
            Self::Inbound => {
                match worker.ended.take() {
                    Some(Ended::Dropped) => {}
                    Some(Ended::Counted(counted)) => log_counted(worker, entry, &counted),
                    Some(Ended::Recorded { decision, by }) => log_end(worker, entry, Some(decision), by.as_deref()),
                    None => log_end(worker, entry, None, None),
                }
                worker.publish_counters();
            }
            Self::Outbound(query) => {
                record(worker, entry, Kind::Outbound, |fields| fill_outbound(fields, entry, query));
            }
            Self::Listener => log_refusal(worker, entry),
            Self::InboundConnection => match connection::left_for_log(entry) {
                Some(Left::Dropped) => {}
                Some(left) => {
                    let decision = if let Left::Recorded(decision) = left { Some(decision) } else { None };
                    let by = decision.and_then(|decision| worker.ended_connections.remove(&decision));
                    record(worker, entry, Kind::End, |fields| fill_connection_end(fields, entry, decision, by));
                }
                None => log_refusal(worker, entry),
            },
            Self::OutboundConnection => {
                record(worker, entry, Kind::Outbound, |fields| fill_outbound_connection(fields, entry));
            }
        });
    }
}

fn log_end(worker: &mut Worker, entry: &LogEntry, decision: Option<u64>, by: Option<&Decision>) {
    record(worker, entry, Kind::End, |fields| fill_end(fields, entry, decision, by));
}

/// A request that cannot be counted is recorded whole.
fn log_counted(worker: &mut Worker, entry: &LogEntry, counted: &Counted) {
    if !worker.count(counted, entry) {
        let decision = worker.record_counted(|| entry.worker_index(), counted);
        log_end(worker, entry, decision, None);
    }
}

fn log_refusal(worker: &mut Worker, entry: &LogEntry) {
    if let Some(failure) = entry.handshake_failure() {
        record(worker, entry, Kind::Refusal, |fields| fill_refusal(fields, entry, failure));
    }
}

fn record(worker: &mut Worker, entry: &LogEntry, kind: Kind, fill: impl FnOnce(&mut Fields<'_>)) {
    // What cannot be written is told in Envoy's log; there is nothing left to deny.
    let _ = worker.record(|| entry.worker_index(), kind, Now::read(), fill);
}

/// The end of a request with a decision names the decision and says no more of the request, but why it was ended if a
/// later decision did that; the end of one without (malformed, or before any program) says what is known of it.
fn fill_end(fields: &mut Fields<'_>, entry: &LogEntry, decision: Option<u64>, by: Option<&Decision>) {
    match decision {
        Some(sequence) => {
            fields.number(Field::DecisionSequence, sequence);
            if let Some(by) = by {
                fill_ended_by(fields, by);
            }
        }
        None => as_told(|recorder| {
            fill_source(fields, entry, recorder);
            fields.optional(Field::ConnectionSecurityPolicy, (!entry.is_tls()).then_some(PLAINTEXT));
            fill_request(fields, entry, recorder);
        }),
    }
    fill_result(fields, entry);
}

/// Fills in what never came to a filter as the newest program says; before the first, without all that any may leave
/// out.
fn as_told(fill: impl FnOnce(&Recorder<'_>)) {
    let (program, unknown, everything) = (newest_program(), Recording::unknown(), Recording::default());
    let recording = program.as_ref().map_or(&unknown, |program| program.recording().unwrap_or(&everything));
    fill(&recording.recorder(hasher()));
}

fn fill_source(fields: &mut Fields<'_>, entry: &LogEntry, recorder: &Recorder<'_>) {
    fields.optional(Field::SourcePrincipal, entry.peer_uri_sans());
    if let Some(address) = entry.attribute(abi::ATTRIBUTE_SOURCE_ADDRESS) {
        recorder.source_address(fields, address);
    }
}

fn fill_ended_by(fields: &mut Fields<'_>, decision: &Decision) {
    fields.bytes(Field::Effect, b"deny");
    fields.optional(Field::Policy, decision.policy.as_deref());
    if let Some(rule) = decision.rule {
        fields.number(Field::Rule, u64::from(rule));
    }
    fields.bytes(Field::Reason, decision.reason.as_str().as_bytes());
    fields.optional(Field::Detail, decision.detail.as_deref());
    fields.bytes(Field::Program, &decision.program.0);
}

fn fill_outbound(fields: &mut Fields<'_>, entry: &LogEntry, query: Treatment) {
    fields.optional(Field::DestinationPrincipal, entry.upstream_uri_sans());
    fill_request(fields, entry, &Recording::of_query(query).recorder(hasher()));
    fill_result(fields, entry);
    fields.optional(Field::Detail, entry.upstream_failure());
}

/// The end of a connection without requests. One whose decision could not be recorded says who it was.
fn fill_connection_end(fields: &mut Fields<'_>, entry: &LogEntry, decision: Option<u64>, by: Option<Arc<Decision>>) {
    match decision {
        Some(sequence) => fields.number(Field::DecisionSequence, sequence),
        None => as_told(|recorder| fill_source(fields, entry, recorder)),
    }
    if let Some(by) = by {
        fill_ended_by(fields, &by);
    }
    fields.optional(Field::EndDetails, connection::why_ended(entry));
    fill_traffic(fields, entry);
}

fn fill_outbound_connection(fields: &mut Fields<'_>, entry: &LogEntry) {
    fields.optional(Field::DestinationPrincipal, entry.upstream_uri_sans());
    fields.optional(Field::EndDetails, entry.termination_details());
    fill_traffic(fields, entry);
    fields.optional(Field::Detail, entry.upstream_failure());
}

fn fill_refusal(fields: &mut Fields<'_>, entry: &LogEntry, failure: &[u8]) {
    as_told(|recorder| fill_source(fields, entry, recorder));
    fields.optional(Field::SourceSerial, entry.peer_serial());
    fields.bytes(Field::Effect, b"deny");
    fields.bytes(Field::Reason, refusal_reason(failure).as_bytes());
    fields.bytes(Field::Detail, failure);
}

fn fill_request(fields: &mut Fields<'_>, entry: &LogEntry, recorder: &Recorder<'_>) {
    fields.optional(Field::Method, entry.request_header(":method"));
    fields.optional(Field::Host, entry.request_header(":authority"));
    if let Some(path) = entry.request_header(":path") {
        recorder.path(fields, &path_without_token(path));
    }
    fields.optional(Field::RequestId, entry.request_header("x-request-id"));
    fields.optional(Field::TraceParent, entry.request_header("traceparent"));
}

fn fill_result(fields: &mut Fields<'_>, entry: &LogEntry) {
    fields.number(Field::Status, u64::from(entry.status()));
    fields.optional(Field::EndDetails, entry.details());
    fill_traffic(fields, entry);
}

fn fill_traffic(fields: &mut Fields<'_>, entry: &LogEntry) {
    let bytes = entry.bytes();
    fields.number(Field::Flags, entry.flags());
    fields.number(Field::BytesReceived, bytes.received);
    fields.number(Field::BytesSent, bytes.sent);
    fields.number(Field::DurationNs, entry.duration_ns());
}

/// BoringSSL's words for the refusals that have a name of ours.
fn refusal_reason(failure: &[u8]) -> &'static str {
    let says = |word: &str| failure.windows(word.len()).any(|window| window == word.as_bytes());
    match () {
        () if says("HTTP_REQUEST") || says("WRONG_VERSION_NUMBER") => "plaintext",
        () if says("PEER_DID_NOT_RETURN_A_CERTIFICATE") => "no_certificate",
        () if says("CERTIFICATE_VERIFY_FAILED") => "certificate_refused",
        () => "handshake_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_named() {
        let table = [
            ("TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end", "plaintext"),
            ("TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED", "certificate_refused"),
            ("TLS_error:|268435648:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE", "no_certificate"),
            ("TLS_error:|268435703:SSL routines:OPENSSL_internal:NO_SHARED_CIPHER", "handshake_failed"),
        ];
        for (failure, reason) in table {
            assert_eq!(refusal_reason(failure.as_bytes()), reason);
        }
    }
}
