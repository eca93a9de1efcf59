//! JSON as RFC 8725 wants it read: an object that names a member twice is refused, at any depth.
//!
//! Two parsers that each take another of the two values are how a token means one thing to us and another to the
//! application behind us.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses `text`.
///
/// # Errors
/// Malformed JSON, a duplicate member, or nesting deeper than `serde_json`'s 128.
pub(crate) fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(text).map(|strict| strict.0)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate members")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!("member {name:?} is given twice")));
            }
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn duplicate_members_are_refused_at_any_depth() {
        let table = [
            (r#"{"a":1,"b":[{"a":1},{"a":1}]}"#, true),
            (r#"{"a":1,"a":1}"#, false),
            (r#"[{"a":{"b":1,"b":2}}]"#, false),
            (r#"{"a":1,"\u0061":2}"#, false),
            (r#"{"a":1}x"#, false),
            ("NaN", false),
            ("1e999", false),
        ];
        for (text, wanted) in table {
            assert_eq!(parse(text.as_bytes()).is_ok(), wanted, "{text}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_what_serde_parses(text in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(value) = parse(&text) {
                prop_assert_eq!(value, serde_json::from_slice::<Value>(&text).expect("JSON"));
            }
        }

        #[test]
        fn texts_like_json_are_parsed_or_refused(text in r#"[\[\]{}",:a0-9.eE+\\u-]{0,64}"#) {
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert_eq!(value, serde_json::from_str::<Value>(&text).expect("JSON"));
            }
        }
    }
}
