//! What a verified token tells the application in headers, which nobody else may set.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{Token, TokenRules};
use crate::document::{Authentication, ClaimHeader};
use crate::request::Headers;

/// A header by its name in lower case, with its value.
pub(crate) type Output = (Box<str>, String);

/// The headers that `rule` makes of a token with `claims`, whose second part is `payload`.
pub(super) fn outputs(rule: &Authentication, payload: &str, claims: &Map<String, Value>) -> Vec<Output> {
    let whole = rule.output_payload_to_header.iter().map(|name| (name.clone(), payload.to_owned()));
    let single = rule.output_claim_to_headers.iter().filter_map(|ClaimHeader { header, claim }| {
        let text = find(claims, claim).and_then(text)?;
        is_field_value(&text).then(|| (header.clone(), text))
    });
    whole.chain(single).collect()
}

/// The claim that is called `name`, nested by dots.
fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    let mut names = name.split('.');
    let first = claims.get(names.next()?)?;
    names.try_fold(first, |value, name| value.get(name))
}

/// Texts, whole numbers and booleans are copied, as in Istio; other claims are not.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) => Some(value.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// Whether an application reads the header's value as it was written (RFC 9110 section 5.5). A claim that holds line
/// breaks, or white space that is trimmed on the way, would be read as another.
fn is_field_value(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_ascii_control()) && text.trim_matches(' ').len() == text.len()
}

/// A request's headers as the application will get them: those that only tokens may set are as the token sets them,
/// whatever the caller sent.
pub(crate) struct VerifiedHeaders<'a> {
    headers: &'a dyn Headers,
    /// The headers that only tokens may set.
    reserved: &'a [Box<str>],
    outputs: &'a [Output],
}

/// Whether the header `name` is one of `reserved`. To many applications (CGI, WSGI) `_` and `-` are the same there.
pub(super) fn is_reserved(reserved: &[Box<str>], name: &[u8]) -> bool {
    let same = |a: u8, b: u8| a == b || matches!((a, b), (b'-', b'_') | (b'_', b'-'));
    reserved.iter().any(|own| own.len() == name.len() && own.bytes().zip(name).all(|(a, &b)| same(a, b)))
}

impl<'a> VerifiedHeaders<'a> {
    pub(crate) fn new(headers: &'a dyn Headers, rules: &'a TokenRules, token: Option<&'a Token>) -> Self {
        Self { headers, reserved: rules.reserved(), outputs: token.map_or(&[], |token| &token.outputs) }
    }

    fn is_reserved(&self, name: &[u8]) -> bool {
        is_reserved(self.reserved, name)
    }

    fn output(&self, name: &str) -> Option<&[u8]> {
        self.outputs.iter().find(|(output, _)| **output == *name).map(|(_, value)| value.as_bytes())
    }
}

impl Headers for VerifiedHeaders<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        if self.is_reserved(name.as_bytes()) {
            return self.output(name).map(Cow::Borrowed);
        }
        self.headers.get(name)
    }

    fn any(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if self.is_reserved(name.as_bytes()) {
            return self.output(name).is_some_and(visit);
        }
        self.headers.any(name, visit)
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.headers.visit(&mut |name, value| {
            if !self.is_reserved(name) {
                visit(name, value);
            }
        });
        self.outputs.iter().for_each(|(name, value)| visit(name.as_bytes(), value.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::rule;
    use crate::HeaderList;

    #[test]
    fn claims_become_headers_if_they_can_be_written_as_they_are() {
        let claims = json!({
            "sub": "ada", "realm": {"tier": {"name": "gold"}, "level": 3}, "active": true, "zero": 0, "rate": 1.5,
            "groups": ["a"], "null": null, "empty": "", "break": "a\r\nx-admin: 1", "tab": "a\tb", "blank": " a",
            "a.b": "dotted", "name": "Ada Ω",
        });
        let claims = claims.as_object().expect("an object");
        let table = [
            ("sub", Some("ada")),
            ("realm.tier.name", Some("gold")),
            ("realm.level", Some("3")),
            ("active", Some("true")),
            ("zero", Some("0")),
            ("name", Some("Ada Ω")),
            ("rate", None),
            ("realm", None),
            ("realm.tier", None),
            ("groups", None),
            ("groups.0", None),
            ("null", None),
            ("empty", None),
            ("absent", None),
            ("sub.x", None),
            ("a.b", None),
            ("break", None),
            ("tab", None),
            ("blank", None),
        ];
        for (claim, wanted) in table {
            let header = ClaimHeader { header: "x-claim".into(), claim: claim.into() };
            let rule = Authentication { output_claim_to_headers: vec![header], ..rule("i") };
            let made = outputs(&rule, "", claims);
            assert_eq!(made.first().map(|(_, value)| value.as_str()), wanted, "{claim}");
        }
        let rule = Authentication { output_payload_to_header: Some("x-payload".into()), ..rule("i") };
        assert_eq!(outputs(&rule, "e30", claims), [("x-payload".into(), "e30".to_owned())]);
    }

    #[test]
    fn what_callers_send_in_reserved_headers_is_not_there() {
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let sent = HeaderList(vec![pair("x-user", "eve"), pair("x_user", "mallory"), pair("x-other", "1")]);
        let reserved = ["x-tier".into(), "x-user".into()];
        for (outputs, wanted) in [(vec![], None), (vec![("x-user".into(), "ada".to_owned())], Some("ada"))] {
            let headers = VerifiedHeaders { headers: &sent, reserved: &reserved, outputs: &outputs };
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            assert_eq!(headers.get("x-user").map(|value| text(&value)).as_deref(), wanted);
            let (mut values, mut all) = (Vec::new(), Vec::new());
            headers.any("x-user", &mut |value| {
                values.push(text(value));
                false
            });
            headers.visit(&mut |name, value| all.push((text(name), text(value))));
            assert_eq!(values, Vec::from_iter(wanted));
            let mut every = vec![("x-other".to_owned(), "1".to_owned())];
            every.extend(wanted.map(|value| ("x-user".to_owned(), value.to_owned())));
            assert_eq!(all, every);
            assert_eq!(headers.get("x-other").map(|value| text(&value)).as_deref(), Some("1"));
        }
    }
}
