//! How a denied request is answered.

use peltast_engine::Decision;

use crate::envoy::Stream;

/// Answers a request for which `decision` is a denial: as its policy says, else with a problem document (RFC 9457),
/// whose `request_id` leads to the record. It does not say which policy denied.
pub(crate) fn deny(stream: Stream, decision: &Decision) {
    let mut headers: Vec<(&str, &str)> = Vec::new();
    if decision.status == 401 {
        headers.push(("www-authenticate", "Bearer error=\"invalid_token\"")); // RFC 6750 section 3
    }
    headers.extend(decision.headers.response_add.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let details = decision.reason.as_str();
    if let Some(body) = &decision.body {
        return stream.respond(decision.status, &headers, body, details);
    }
    headers.push(("content-type", "application/problem+json"));
    let body = problem(decision.status, stream.header("x-request-id"));
    stream.respond(decision.status, &headers, &body, details);
}

fn problem(status: u16, request_id: Option<&[u8]>) -> String {
    let title = match status {
        401 => "Unauthorized",
        403 => "Forbidden",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Denied",
    };
    let request_id = request_id.map(String::from_utf8_lossy);
    let document = serde_json::json!({ "title": title, "status": status, "request_id": request_id });
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
            let document: serde_json::Value = serde_json::from_str(&problem(403, *request_id)).expect("JSON");
            assert_eq!((&document["title"], &document["status"]), (&"Forbidden".into(), &403.into()));
            assert_eq!(&document["request_id"], wanted);
        }
    }

    proptest! {
        #[test]
        fn a_problem_is_json_whatever_bytes_name_the_request(status in any::<u16>(), id in any::<Vec<u8>>()) {
            let document: serde_json::Value = serde_json::from_str(&problem(status, Some(&id))).expect("JSON");
            prop_assert_eq!(&document["request_id"], &serde_json::json!(String::from_utf8_lossy(&id)));
        }
    }
}
