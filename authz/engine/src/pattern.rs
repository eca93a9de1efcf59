//! How a rule's value is matched: exact, prefix, suffix, presence, or a block of addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// One value of a rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// Any value but the empty one: `*`.
    Present,
    Cidr(IpNet),
}

impl Pattern {
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Present => !value.is_empty(),
            Self::Cidr(block) => parse_ip(value).is_some_and(|ip| block.contains(&ip)),
        }
    }
}

/// An IPv4 address inside IPv6 (`::ffff:10.0.0.1`) is the IPv4 address, or a block could be stepped around.
fn parse_ip(value: &[u8]) -> Option<IpAddr> {
    let ip: IpAddr = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(json: &str) -> Pattern {
        serde_json::from_str(json).expect("a pattern")
    }

    #[test]
    fn matches_by_kind() {
        let table: &[(&str, &str, bool)] = &[
            (r#"{"exact":"GET"}"#, "GET", true),
            (r#"{"exact":"GET"}"#, "get", false),
            (r#"{"prefix":"/api/"}"#, "/api/x", true),
            (r#"{"prefix":"/api/"}"#, "/api", false),
            (r#"{"suffix":".txt"}"#, "/a.txt", true),
            (r#"{"suffix":".txt"}"#, "/a.txt.exe", false),
            (r#""present""#, "x", true),
            (r#""present""#, "", false),
            (r#"{"cidr":"10.0.0.0/8"}"#, "10.1.2.3", true),
            (r#"{"cidr":"10.0.0.0/8"}"#, "11.1.2.3", false),
            (r#"{"cidr":"10.0.0.0/8"}"#, "::ffff:10.1.2.3", true),
            (r#"{"cidr":"10.0.0.0/8"}"#, "10.1.2.3.4", false),
            (r#"{"cidr":"fd00::/8"}"#, "fd00::1", true),
        ];
        for (json, value, wanted) in table {
            assert_eq!(pattern(json).matches(value.as_bytes()), *wanted, "{json} on {value}");
        }
    }
}
