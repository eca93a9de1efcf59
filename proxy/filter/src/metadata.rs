//! Dynamic metadata: an object of JSON in the engine, a `google.protobuf.Struct` in Envoy and on the wire.

use peltast_engine::Metadata;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Number;

/// The same members as a Struct.
pub(crate) fn to_struct(metadata: &Metadata) -> Struct {
    Struct { fields: metadata.iter().map(|(name, value)| (name.clone(), to_value(value))).collect() }
}

/// The same members as JSON.
pub(crate) fn from_struct(metadata: Struct) -> Metadata {
    metadata.fields.into_iter().map(|(name, value)| (name, from_value(value))).collect()
}

fn to_value(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(to_value).collect() }),
        serde_json::Value::Object(members) => Kind::StructValue(to_struct(members)),
    };
    Value { kind: Some(kind) }
}

fn from_value(value: Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(number)) => Number::from_f64(number).map_or(serde_json::Value::Null, Into::into),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_value).collect(),
        Some(Kind::StructValue(members)) => from_struct(members).into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let given = json!({"a": [1.5, true, null, "x"], "b": {"c": {}}, "d": []});
        let metadata = given.as_object().expect("an object").clone();
        assert_eq!(from_struct(to_struct(&metadata)), metadata);
    }
}
