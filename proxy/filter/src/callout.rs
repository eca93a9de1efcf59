//! Asking the check service: a CheckRequest out, a CheckResponse back (`envoy.service.auth.v3`), over HTTP.
//!
//! The answer's messages are declared here with the few fields that are used; protobuf passes over the rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use peltast_engine::check_request::{
    Address, AttributeContext, CheckRequest, HeaderMap, HeaderValue as RawHeader, HttpRequest, Peer, RequestAttributes,
    SocketAddress, TlsSession, TRUNCATED_KEY,
};
use peltast_engine::record::Type;
use peltast_engine::{
    Attribute, Decision, Effect, Hash, HeaderOperations, Http, Lifetime, Notes, Program, QueryOperations, Reason,
    Request, Shadow, Source, MAX_NOTE_BYTES,
};
use prost::Message;
use prost_types::{value::Kind, Struct};

use crate::metadata::from_struct;

/// The key of our own part in a CheckResponse's dynamic metadata.
const METADATA_KEY: &str = "peltast.dev";

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    denied: Option<DeniedResponse>,
    #[prost(message, optional, tag = "3")]
    ok: Option<OkResponse>,
    #[prost(message, optional, tag = "4")]
    dynamic_metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct DeniedResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    body: String,
}

#[derive(Clone, PartialEq, Message)]
struct OkResponse {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    response_headers_to_add: Vec<HeaderValueOption>,
    #[prost(message, repeated, tag = "7")]
    query_parameters_to_set: Vec<QueryParameter>,
    #[prost(string, repeated, tag = "8")]
    query_parameters_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderValue>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// The CheckRequest for `request`, which is for `destination`.
pub(crate) fn check_request(request: &Request<'_>, destination: &str) -> Vec<u8> {
    let connection = &request.connection;
    let address = |ip: Option<std::net::IpAddr>, port: u16| {
        let socket_address =
            SocketAddress { address: ip.map_or_else(String::new, |ip| ip.to_string()), port_value: u32::from(port) };
        Some(Address { socket_address: Some(socket_address) })
    };
    let cut = request.http.and_then(|http| http.body).is_some_and(|body| !body.is_whole);
    let attributes = AttributeContext {
        source: Some(Peer {
            address: address(connection.source_ip, connection.source_port),
            principal: connection.source_principal.unwrap_or_default().to_owned(),
        }),
        destination: Some(Peer {
            address: address(connection.destination_ip, connection.destination_port),
            principal: destination.to_owned(),
        }),
        request: request.http.map(|http| RequestAttributes { http: Some(http_request(&http)) }),
        context_extensions: if cut {
            HashMap::from([(TRUNCATED_KEY.to_owned(), String::new())])
        } else {
            HashMap::new()
        },
        tls_session: connection.sni.map(|sni| TlsSession { sni: sni.to_owned() }),
    };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

fn http_request(http: &Http<'_>) -> HttpRequest {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut headers: Vec<RawHeader> = Vec::new();
    http.headers.visit(&mut |name, value| {
        headers.push(RawHeader { key: text(name), raw_value: value.to_vec(), ..RawHeader::default() });
    });
    HttpRequest {
        method: text(http.method),
        header_map: Some(HeaderMap { headers }),
        path: text(http.path),
        host: text(http.host),
        scheme: text(http.scheme),
        protocol: text(http.protocol),
        raw_body: http.body.map_or_else(Vec::new, |body| body.bytes.to_vec()),
        ..HttpRequest::default()
    }
}

/// The decision that the check service's `body` holds, for a request that was asked about by `program`.
///
/// # Errors
/// For people: why it holds none.
pub(crate) fn decision(body: &[u8], program: &Program) -> Result<Decision, String> {
    let response = CheckResponse::decode(body).map_err(|error| format!("the check service's answer: {error}"))?;
    let mut metadata = response.dynamic_metadata.unwrap_or_default();
    let own = Own::read(&mut metadata)?;
    let reason = own.text("reason").and_then(Reason::parse).ok_or("the check service's answer has no known reason")?;
    let allowed = response.status.is_some_and(|status| status.code == 0);
    let mut decision = Decision {
        effect: if allowed { Effect::Allow } else { Effect::Deny },
        status: 200,
        policy: own.text("policy").map(Into::into),
        rule: own.number("rule"),
        reason,
        source: if own.text("source") == Some("failed-open") { Source::FailedOpen } else { Source::Check },
        program: own.text("program").and_then(Hash::parse).ok_or("the check service's answer names no program")?,
        headers: HeaderOperations::default(),
        query: QueryOperations::default(),
        metadata: (!metadata.fields.is_empty()).then(|| Arc::new(from_struct(metadata))),
        body: None,
        lifetime: own.lifetime(program),
        detail: own.text("detail").map(str::to_owned),
        tells_policy: program.tells_policy(),
        shadow: own.shadow(),
        notes: own.notes(),
    };
    if allowed {
        let ok = response.ok.unwrap_or_default();
        decision.headers = HeaderOperations {
            request_set: pairs(ok.headers),
            request_remove: ok.headers_to_remove,
            response_add: pairs(ok.response_headers_to_add),
        };
        let set = ok.query_parameters_to_set.into_iter().map(|parameter| (parameter.key, parameter.value)).collect();
        decision.query = QueryOperations { set, remove: ok.query_parameters_to_remove };
    } else {
        let denied = response.denied.unwrap_or_default();
        let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
        decision.status = status.filter(|status| (200..=599).contains(status)).unwrap_or(reason.status());
        decision.headers = HeaderOperations { response_add: pairs(denied.headers), ..HeaderOperations::default() };
        decision.body = Some(denied.body).filter(|body| !body.is_empty());
    }
    Ok(decision)
}

/// Our own part of an answer.
struct Own(BTreeMap<String, Kind>);

impl Own {
    /// Takes it out of `metadata`: the rest is the policy's.
    fn read(metadata: &mut Struct) -> Result<Self, &'static str> {
        match metadata.fields.remove(METADATA_KEY).and_then(|value| value.kind) {
            Some(Kind::StructValue(own)) => Ok(Self::of(own)),
            _ => Err("the check service's answer says nothing of how it came about"),
        }
    }

    fn of(own: Struct) -> Self {
        Self(own.fields.into_iter().filter_map(|(key, value)| Some((key, value.kind?))).collect())
    }

    fn shadow(&self) -> Option<Arc<Shadow>> {
        let Some(Kind::StructValue(shadow)) = self.0.get("shadow") else { return None };
        let shadow = Self::of(shadow.clone());
        Shadow::encode(|fields| {
            for field in Shadow::FIELDS {
                match field.value_type() {
                    Type::Number => shadow.number(field.name()).map(|value| fields.number(field, u64::from(value))),
                    _ => shadow.text(field.name()).map(|value| fields.bytes(field, value.as_bytes())),
                };
            }
        })
    }

    fn notes(&self) -> Option<Arc<Notes>> {
        let note = |key| {
            let text = self.text(key).unwrap_or_default();
            text[..text.floor_char_boundary(MAX_NOTE_BYTES)].to_owned()
        };
        let notes = Notes { prints: note("prints"), annotations: note("annotations") };
        (!notes.is_empty()).then(|| Arc::new(notes))
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(Kind::StringValue(text)) => Some(text),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<u32> {
        match self.0.get(key) {
            Some(Kind::NumberValue(number)) => Some(*number as u32),
            _ => None,
        }
    }

    /// An answer is remembered if it says for how long, came of the same program, and rests on nothing that our keys
    /// leave out.
    fn lifetime(&self, program: &Program) -> Lifetime {
        let same_program = self.text("program").and_then(Hash::parse) == Some(program.hash());
        let referenced = match self.0.get("referenced") {
            Some(Kind::ListValue(list)) => list.values.as_slice(),
            _ => return Lifetime::Once,
        };
        let in_key = referenced.iter().all(|value| match &value.kind {
            Some(Kind::StringValue(name)) => {
                name.parse::<Attribute>().is_ok_and(|attribute| program.attributes().contains(&attribute))
            }
            _ => false,
        });
        match self.number("ttl_ms") {
            Some(ttl) if ttl > 0 && same_program && in_key => Lifetime::Milliseconds(ttl),
            _ => Lifetime::Once,
        }
    }
}

fn pairs(options: Vec<HeaderValueOption>) -> Vec<(String, String)> {
    options.into_iter().filter_map(|option| option.header).map(|header| (header.key, header.value)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use peltast_engine::record::Field;
    use peltast_engine::{Body, Connection, HeaderList, Told};
    use prost_types::{ListValue, Value};

    fn program() -> Program {
        let when = r#"{"attribute":"request.path","any":["present"],"none":[]}"#;
        let document = format!(
            r#"{{"schema":1,"workload":{{"principal":"spiffe://td/api","ports":{{}}}},"authentication":[],"rego":[],
                "policies":[{{"name":"a/b","action":"DENY","rules":[{{"from":[],"to":[],"when":[{when}]}}]}}]}}"#
        );
        Program::load(document.as_bytes()).expect("a program")
    }

    fn text(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn number(number: f64) -> Value {
        Value { kind: Some(Kind::NumberValue(number)) }
    }

    fn list(items: &[&str]) -> Value {
        Value { kind: Some(Kind::ListValue(ListValue { values: items.iter().map(|item| text(item)).collect() })) }
    }

    fn structure(fields: &[(&str, Value)]) -> Struct {
        Struct { fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect() }
    }

    fn structure_of(fields: &[(&str, Value)]) -> Value {
        Value { kind: Some(Kind::StructValue(structure(fields))) }
    }

    /// An answer with the fields that ours has, one of them replaced or added.
    fn answer(program: &Program, code: i32, change: Option<(&str, Value)>) -> CheckResponse {
        let mut own = vec![
            ("reason", text("rego_allowed")),
            ("program", text(&program.hash().hex())),
            ("policy", text("a/b")),
            ("rule", number(2.0)),
            ("ttl_ms", number(500.0)),
            ("referenced", list(&["request.path"])),
        ];
        own.extend(change);
        let own = Value { kind: Some(Kind::StructValue(structure(&own))) };
        let dynamic_metadata = Some(structure(&[(METADATA_KEY, own)]));
        CheckResponse { status: Some(Status { code }), denied: None, ok: None, dynamic_metadata }
    }

    fn header(key: &str, value: &str) -> HeaderValueOption {
        HeaderValueOption { header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned() }) }
    }

    #[test]
    fn every_value_of_a_header_is_sent_by_itself_and_to_the_byte() {
        let headers = HeaderList(vec![
            (b"x-a".to_vec(), b"".to_vec()),
            (b"x-a".to_vec(), b"1,2".to_vec()),
            (b"x-b".to_vec(), b"\xff".to_vec()),
        ]);
        let request = Request {
            connection: Connection {
                source_principal: Some("spiffe://td/web"),
                source_ip: Some("10.0.0.1".parse().expect("an address")),
                source_port: 4000,
                destination_port: 15006,
                sni: Some("api"),
                ..Connection::default()
            },
            http: Some(Http {
                method: b"GET",
                host: b"h",
                path: b"/a?b",
                scheme: b"https",
                protocol: b"HTTP/2",
                headers: &headers,
                body: Some(Body { bytes: b"\0b", is_whole: false }),
                told: Told::All,
            }),
        };
        let sent = CheckRequest::decode(&check_request(&request, "spiffe://td/api")[..]).expect("a CheckRequest");
        let attributes = sent.attributes.expect("attributes");
        let (source, destination) = (attributes.source.expect("source"), attributes.destination.expect("destination"));
        assert_eq!((&*source.principal, &*destination.principal), ("spiffe://td/web", "spiffe://td/api"));
        let address = |endpoint: Peer| endpoint.address.and_then(|address| address.socket_address).expect("address");
        assert_eq!(address(source), SocketAddress { address: "10.0.0.1".to_owned(), port_value: 4000 });
        assert_eq!(address(destination), SocketAddress { address: String::new(), port_value: 15006 });
        assert!(attributes.context_extensions.contains_key(TRUNCATED_KEY));
        assert_eq!(attributes.tls_session.expect("TLS").sni, "api");
        let http = attributes.request.and_then(|request| request.http).expect("HTTP");
        assert_eq!((&*http.method, &*http.host, &*http.path, &*http.protocol), ("GET", "h", "/a?b", "HTTP/2"));
        assert_eq!(http.raw_body, b"\0b");
        let sent: Vec<_> =
            http.header_map.expect("headers").headers.into_iter().map(|one| (one.key, one.raw_value)).collect();
        let given: Vec<_> =
            headers.0.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.clone())).collect();
        assert_eq!(sent, given);
    }

    #[test]
    fn an_answer_is_a_decision() {
        let program = program();
        let ok = OkResponse {
            headers: vec![header("x-user", "ada"), HeaderValueOption { header: None }],
            headers_to_remove: vec!["x-secret".to_owned()],
            response_headers_to_add: vec![header("x-by", "peltast")],
            query_parameters_to_set: vec![QueryParameter { key: "a".to_owned(), value: "1".to_owned() }],
            query_parameters_to_remove: vec!["b".to_owned()],
        };
        let allowed = CheckResponse { ok: Some(ok), ..answer(&program, 0, None) };
        let allowed = decision(&allowed.encode_to_vec(), &program).expect("a decision");
        assert_eq!((allowed.effect, allowed.status, allowed.reason), (Effect::Allow, 200, Reason::RegoAllowed));
        assert_eq!((allowed.policy.as_deref(), allowed.rule, allowed.source), (Some("a/b"), Some(2), Source::Check));
        assert_eq!(allowed.lifetime, Lifetime::Milliseconds(500));
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(allowed.query, QueryOperations { set: pair("a", "1"), remove: vec!["b".to_owned()] });
        assert_eq!(
            allowed.headers,
            HeaderOperations {
                request_set: pair("x-user", "ada"),
                request_remove: vec!["x-secret".to_owned()],
                response_add: pair("x-by", "peltast"),
            }
        );

        let denied = DeniedResponse {
            status: Some(Status { code: 418 }),
            headers: vec![header("a", "b")],
            body: "no".to_owned(),
        };
        let denied =
            CheckResponse { denied: Some(denied), ..answer(&program, 7, Some(("reason", text("rego_denied")))) };
        let denied = decision(&denied.encode_to_vec(), &program).expect("a decision");
        assert_eq!((denied.effect, denied.status, denied.body.as_deref()), (Effect::Deny, 418, Some("no")));
        assert_eq!(denied.headers, HeaderOperations { response_add: pair("a", "b"), ..HeaderOperations::default() });
    }

    #[test]
    fn only_an_explicit_ok_allows() {
        let program = program();
        let table = [(Some(0), Effect::Allow), (Some(7), Effect::Deny), (Some(-1), Effect::Deny), (None, Effect::Deny)];
        for (code, effect) in table {
            let response = CheckResponse { status: code.map(|code| Status { code }), ..answer(&program, 0, None) };
            assert_eq!(decision(&response.encode_to_vec(), &program).expect("a decision").effect, effect, "{code:?}");
        }
        for (code, status) in [(99, 403), (100, 403), (200, 200), (599, 599), (600, 403), (-1, 403)] {
            let denied = DeniedResponse { status: Some(Status { code }), ..DeniedResponse::default() };
            let response =
                CheckResponse { denied: Some(denied), ..answer(&program, 7, Some(("reason", text("rego_denied")))) };
            assert_eq!(decision(&response.encode_to_vec(), &program).expect("a decision").status, status, "{code}");
        }
    }

    #[test]
    fn an_answer_is_remembered_only_where_our_key_tells_all() {
        let program = program();
        let table = [
            ("as it is", None, Lifetime::Milliseconds(500)),
            ("no time", Some(("ttl_ms", number(0.0))), Lifetime::Once),
            ("a negative time", Some(("ttl_ms", number(-5.0))), Lifetime::Once),
            ("no number", Some(("ttl_ms", number(f64::NAN))), Lifetime::Once),
            ("a text", Some(("ttl_ms", text("500"))), Lifetime::Once),
            ("another program", Some(("program", text(&"0".repeat(64)))), Lifetime::Once),
            ("nothing read", Some(("referenced", list(&[]))), Lifetime::Milliseconds(500)),
            (
                "an attribute outside the key",
                Some(("referenced", list(&["request.path", "request.method"]))),
                Lifetime::Once,
            ),
            ("an unknown attribute", Some(("referenced", list(&["request.colour"]))), Lifetime::Once),
            ("no list", Some(("referenced", text("request.path"))), Lifetime::Once),
        ];
        for (what, change, lifetime) in table {
            let response = answer(&program, 0, change).encode_to_vec();
            assert_eq!(decision(&response, &program).expect(what).lifetime, lifetime, "{what}");
        }
    }

    #[test]
    fn other_answers_are_refused() {
        let program = program();
        let without = CheckResponse { dynamic_metadata: None, ..answer(&program, 0, None) };
        let table = [
            ("empty", Vec::new()),
            ("not protobuf", b"access granted".to_vec()),
            ("no word of ours", without.encode_to_vec()),
            ("an unknown reason", answer(&program, 0, Some(("reason", text("because")))).encode_to_vec()),
            ("no program", answer(&program, 0, Some(("program", text("")))).encode_to_vec()),
            ("cut short", {
                let whole = answer(&program, 0, None).encode_to_vec();
                whole[..whole.len() - 1].to_vec()
            }),
        ];
        for (what, body) in table {
            assert!(decision(&body, &program).is_err(), "{what}");
        }
    }

    #[test]
    fn an_answer_carries_what_policies_that_are_not_enforced_said() {
        let program = program();
        let said = [
            ("dry_run_deny", text("deny")),
            ("dry_run_deny_policy", text("a/tried")),
            ("dry_run_deny_rule", number(3.0)),
            ("dry_run_allow", number(1.0)),
            ("dry_run_allow_rule", text("1")),
            ("effect", text("allow")),
        ];
        let shadow = Value { kind: Some(Kind::StructValue(structure(&said))) };
        let response = answer(&program, 0, Some(("shadow", shadow)));
        let shadow = decision(&response.encode_to_vec(), &program).expect("a decision").shadow.expect("a shadow");
        let wanted: [(Field, &[u8]); 3] = [
            (Field::DryRunDeny, b"deny"),
            (Field::DryRunDenyPolicy, b"a/tried"),
            (Field::DryRunDenyRule, &3u64.to_le_bytes()),
        ];
        assert_eq!(shadow.fields().expect("fields"), wanted, "and nothing of another name or type");
    }

    #[test]
    fn an_answer_carries_what_policies_say_beside_it() {
        let program = program();
        let mut response = answer(&program, 0, Some(("prints", text("é".repeat(MAX_NOTE_BYTES).as_str()))));
        let metadata = response.dynamic_metadata.as_mut().expect("metadata");
        metadata.fields.insert("tier".to_owned(), structure_of(&[("name", text("gold"))]));
        let decision = decision(&response.encode_to_vec(), &program).expect("a decision");
        assert_eq!(decision.notes.expect("notes").prints.len(), MAX_NOTE_BYTES);
        let metadata = decision.metadata.expect("metadata");
        assert_eq!(serde_json::Value::from((*metadata).clone()), serde_json::json!({"tier": {"name": "gold"}}));
    }

    #[test]
    fn what_failed_open_at_the_check_service_says_so() {
        let program = program();
        let response = answer(&program, 0, Some(("source", text("failed-open"))));
        assert_eq!(decision(&response.encode_to_vec(), &program).expect("a decision").source, Source::FailedOpen);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(body in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(decision(&body, &program()).is_err());
        }

        #[test]
        fn any_damage_is_survived(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let program = program();
            let mut body = answer(&program, 0, None).encode_to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = decision(&body, &program);
        }
    }
}
