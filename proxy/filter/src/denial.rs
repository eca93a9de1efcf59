//! How a denied request is answered.

use peltast_engine::Decision;

use crate::envoy::Stream;

/// Answers a request for which `decision` is a denial: as its policy says, else with a problem document (RFC 9457),
/// whose `request_id` leads to the record. It says which policy denied only where an AuditPolicy allows it.
pub(crate) fn deny(stream: Stream, decision: &Decision) {
    let mut headers: Vec<(&str, &str)> =
        decision.headers.response_add.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if stream.header("content-type").is_some_and(|given| given.starts_with(b"application/grpc")) {
        headers.push(("grpc-status", grpc_status(decision.status))); // or Envoy says that all is well
    }
    let details = decision.reason.as_str();
    if let Some(body) = &decision.body {
        return stream.respond(decision.status, &headers, body, details);
    }
    headers.push(("content-type", "application/problem+json"));
    let policy = decision.policy.as_deref().filter(|_| decision.tells_policy);
    let body = problem(decision.status, stream.header("x-request-id"), policy);
    stream.respond(decision.status, &headers, &body, details);
}

/// The status of gRPC that a client makes of a status of HTTP
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
fn grpc_status(status: u16) -> &'static str {
    match status {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502..=504 => "14",
        _ => "2",
    }
}

fn problem(status: u16, request_id: Option<&[u8]>, policy: Option<&str>) -> String {
    let title = match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Denied",
    };
    let request_id = request_id.map(String::from_utf8_lossy);
    let mut document = serde_json::json!({ "title": title, "status": status, "request_id": request_id });
    if let Some(policy) = policy {
        document["policy"] = policy.into();
    }
    format!("{document}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_problem_is_json_whatever_the_request_is_called() {
        let table: &[(Option<&[u8]>, serde_json::Value)] = &[
            (Some(b"7c-1"), "7c-1".into()),
            (Some(b"\"}\x01\n"), "\"}\x01\n".into()),
            (Some(b"\xff"), "\u{fffd}".into()),
            (None, serde_json::Value::Null),
        ];
        for (request_id, wanted) in table {
            let document: serde_json::Value = serde_json::from_str(&problem(403, *request_id, None)).expect("JSON");
            assert_eq!((&document["title"], &document["status"]), (&"Forbidden".into(), &403.into()));
            assert_eq!(&document["request_id"], wanted);
            assert!(document.get("policy").is_none());
        }
    }

    #[test]
    fn no_denial_is_a_success_of_grpc() {
        for (status, wanted) in [(200, "2"), (401, "16"), (403, "7"), (413, "2"), (429, "14"), (503, "14")] {
            assert_eq!(grpc_status(status), wanted, "{status}");
        }
    }

    #[test]
    fn a_problem_names_the_policy_it_is_given() {
        let document: serde_json::Value = serde_json::from_str(&problem(403, None, Some("a/b"))).expect("JSON");
        assert_eq!(document["policy"], "a/b");
    }

    proptest! {
        #[test]
        fn a_problem_is_json_whatever_bytes_name_the_request(status in any::<u16>(), id in any::<Vec<u8>>()) {
            let document: serde_json::Value = serde_json::from_str(&problem(status, Some(&id), None)).expect("JSON");
            prop_assert_eq!(&document["request_id"], &serde_json::json!(String::from_utf8_lossy(&id)));
        }
    }
}
