//! How a rule's value is matched: exact, prefix, suffix, presence, path template, or a block of addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::template::Template;

/// One value of a rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// Any value but the empty one: `*`.
    Present,
    Template(Template),
    #[serde(deserialize_with = "block")]
    Cidr(IpNet),
}

impl Pattern {
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Present => !value.is_empty(),
            Self::Template(template) => template.matches(value),
            Self::Cidr(block) => parse_ip(value).is_some_and(|ip| block.contains(&ip)),
        }
    }
}

impl Pattern {
    /// Whether a token of `issuer` for `subject` is meant. As in Istio, the two are matched apart, divided at the
    /// pattern's last slash, so that a subject with a slash in it cannot pass for one of another issuer.
    pub(crate) fn matches_token(&self, issuer: &str, subject: &str) -> bool {
        if issuer.is_empty() || subject.is_empty() {
            return false;
        }
        match self {
            Self::Exact(text) => text.rsplit_once('/').is_some_and(|(i, s)| issuer == i && subject == s),
            Self::Prefix(text) => match text.rsplit_once('/') {
                Some((i, s)) => issuer == i && subject.starts_with(s),
                None => issuer.starts_with(&**text),
            },
            Self::Suffix(text) => match text.rsplit_once('/') {
                Some((i, s)) => issuer.ends_with(i) && subject == s,
                None => subject.ends_with(&**text),
            },
            Self::Present => true,
            Self::Template(_) | Self::Cidr(_) => false,
        }
    }
}

/// A block of IPv4 addresses written as IPv6 is read as the former, like the addresses that it is matched with.
fn block<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    const MAPPED_BITS: u8 = 96;
    let block = IpNet::deserialize(deserializer)?;
    match (block.network().to_canonical(), block.prefix_len().checked_sub(MAPPED_BITS)) {
        (network @ IpAddr::V4(_), Some(length)) if matches!(block, IpNet::V6(_)) => {
            IpNet::new(network, length).map_err(D::Error::custom)
        }
        _ => Ok(block),
    }
}

/// An IPv4 address inside IPv6 (`::ffff:10.0.0.1`) is the IPv4 address, or a block could be stepped around.
fn parse_ip(value: &[u8]) -> Option<IpAddr> {
    let ip: IpAddr = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            (r#"{"cidr":"10.1.2.3/8"}"#, "10.9.9.9", true),
            (r#"{"cidr":"10.1.2.3/32"}"#, "10.1.2.4", false),
            (r#"{"cidr":"::ffff:10.0.0.0/104"}"#, "10.1.2.3", true),
            (r#"{"cidr":"::ffff:10.0.0.0/104"}"#, "11.1.2.3", false),
            (r#"{"cidr":"::/0"}"#, "10.1.2.3", false),
            (r#"{"cidr":"fd00::/8"}"#, "fd00::1", true),
        ];
        for (json, value, wanted) in table {
            assert_eq!(pattern(json).matches(value.as_bytes()), *wanted, "{json} on {value}");
        }
    }

    /// Istio's `requestPrincipals`, by `generator.go` of its pilot.
    #[test]
    fn tokens_are_matched_by_issuer_and_subject_apart() {
        let table: &[(&str, &str, &str, bool)] = &[
            (r#"{"exact":"https://a/ada"}"#, "https://a", "ada", true),
            (r#"{"exact":"https://a/b/c"}"#, "https://a/b", "c", true),
            (r#"{"exact":"https://a/b/c"}"#, "https://a", "b/c", false),
            (r#"{"exact":"ada"}"#, "", "ada", false),
            (r#"{"prefix":"https://a/"}"#, "https://a", "x/y", true),
            (r#"{"prefix":"https://a/"}"#, "https://a/b", "c", false),
            (r#"{"prefix":"https://a/a"}"#, "https://a", "ada", true),
            (r#"{"prefix":"issuer-"}"#, "issuer-1", "ada", true),
            (r#"{"suffix":"/ada"}"#, "https://a", "ada", true),
            (r#"{"suffix":"/ada"}"#, "https://a", "x/ada", false),
            (r#"{"suffix":"a/ada"}"#, "https://a", "ada", true),
            (r#"{"suffix":"b/ada"}"#, "https://a", "ada", false),
            (r#"{"suffix":"da"}"#, "https://a", "ada", true),
            (r#""present""#, "https://a", "ada", true),
            (r#""present""#, "https://a", "", false),
            (r#"{"prefix":"https://a/"}"#, "https://a", "", false),
        ];
        for (json, issuer, subject, wanted) in table {
            assert_eq!(pattern(json).matches_token(issuer, subject), *wanted, "{json} on {issuer} and {subject}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_matched_or_not(
            pattern in prop_oneof![
                any::<String>().prop_map(Pattern::Exact),
                any::<String>().prop_map(Pattern::Prefix),
                any::<String>().prop_map(Pattern::Suffix),
                Just(Pattern::Present),
                Just(pattern(r#"{"template":"/{*}/{**}/b"}"#)),
                Just(pattern(r#"{"cidr":"10.0.0.0/8"}"#)),
            ],
            value in any::<Vec<u8>>(),
            issuer in any::<String>(),
            subject in any::<String>(),
        ) {
            let at_an_end = match &pattern {
                Pattern::Exact(text) | Pattern::Prefix(text) => value.starts_with(text.as_bytes()),
                Pattern::Suffix(text) => value.ends_with(text.as_bytes()),
                _ => !value.is_empty(),
            };
            prop_assert!(at_an_end || !pattern.matches(&value));
            prop_assert!(!subject.is_empty() || !pattern.matches_token(&issuer, &subject));
        }

        #[test]
        fn any_text_is_a_block_or_refused(text in r#"[0-9a-f.:/]{0,24}"#) {
            let _ = serde_json::from_value::<Pattern>(serde_json::json!({ "cidr": text }));
        }
    }
}
