//! `uri.*`: references as Go's `net/url` reads them (RFC 3986).

use percent_encoding::percent_decode_str;
use regorus::Value;
use std::collections::BTreeMap;

use super::{Answer, Arguments, BuiltIn, Fault};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn { name: "uri.is_valid", arity: 1, call: is_valid },
    BuiltIn { name: "uri.parse", arity: 1, call: |given| Ok(Uri::parse(given.string(0)?)?.into()) },
];

fn is_valid(given: &Arguments<'_>) -> Answer {
    Ok(given.string(0).is_ok_and(|text| !text.is_empty() && Uri::parse(text).is_ok()).into())
}

#[derive(Default)]
struct Uri {
    scheme: String,
    hostname: String,
    port: String,
    path: String,
    raw_path: String,
    raw_query: String,
    fragment: String,
}

impl From<Uri> for Value {
    fn from(uri: Uri) -> Self {
        let members = [
            ("scheme", uri.scheme),
            ("hostname", uri.hostname),
            ("port", uri.port),
            ("path", uri.path),
            ("raw_path", uri.raw_path),
            ("raw_query", uri.raw_query),
            ("fragment", uri.fragment),
        ];
        let given = members.into_iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| (Value::from(name), Value::from(value))).collect::<BTreeMap<_, _>>().into()
    }
}

impl Uri {
    fn parse(text: &str) -> Result<Self, Fault> {
        let failed = |reason: String| Fault::from(format!("parse \"{text}\": {reason}"));
        if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
            return Err(failed("net/url: invalid control character in URL".to_owned()));
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let mut uri = Self { fragment: unescape(fragment, false).map_err(failed)?, ..Self::default() };
        let (scheme, rest) = split_scheme(rest).map_err(failed)?;
        uri.scheme = scheme.to_ascii_lowercase();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        query.clone_into(&mut uri.raw_query);
        if !rest.starts_with('/') {
            if !uri.scheme.is_empty() {
                return Ok(uri); // opaque, such as mailto:
            }
            if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return Err(failed("first path segment in URL cannot contain colon".to_owned()));
            }
        }
        let path = match rest.strip_prefix("//") {
            Some(authority) if !rest.starts_with("///") || !uri.scheme.is_empty() => {
                let end = authority.find('/').unwrap_or(authority.len());
                uri.authority(&authority[..end]).map_err(failed)?;
                &authority[end..]
            }
            _ => rest,
        };
        uri.path = unescape(path, false).map_err(failed)?;
        let is_default = escaped(&uri.path) == path || uri.path == path;
        uri.raw_path = if is_default { uri.path.clone() } else { path.to_owned() };
        Ok(uri)
    }

    fn authority(&mut self, authority: &str) -> Result<(), String> {
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let is_user = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
        if !user.bytes().all(is_user) {
            return Err("net/url: invalid userinfo".to_owned());
        }
        unescape(user, false)?;
        if host.starts_with('[') {
            let end = host.rfind(']').ok_or("missing ']' in host")?;
            self.port(&host[end + 1..])?;
            let (address, zone) = host[1..end].split_once("%25").unwrap_or((&host[1..end], ""));
            let zone = unescape(zone, false)?;
            let address = unescape(address, true)?;
            self.hostname = if zone.is_empty() { address } else { format!("{address}%{zone}") };
            return Ok(());
        }
        let (name, port) = match host.find(':') {
            Some(first) => host.split_at(host.rfind(':').unwrap_or(first)),
            None => (host, ""),
        };
        self.port(port)?;
        self.hostname = unescape(name, true)?;
        Ok(())
    }

    /// Of `:80`, or of nothing.
    fn port(&mut self, text: &str) -> Result<(), String> {
        match text.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.clone_into(&mut self.port),
            None if text.is_empty() => {}
            _ => return Err(format!("invalid port \"{text}\" after host")),
        }
        Ok(())
    }
}

fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, character) in text.char_indices() {
        match character {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            ':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// Unescapes percent signs. In a host only bytes beyond ASCII may be escaped, and some characters not stand at all.
fn unescape(text: &str, in_host: bool) -> Result<String, String> {
    for (at, _) in text.match_indices('%') {
        let escape: String = text[at..].chars().take(3).collect();
        let is_hex = escape.len() == 3 && escape[1..].bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex || (in_host && escape.as_bytes()[1] < b'8') {
            return Err(format!("invalid URL escape \"{escape}\""));
        }
    }
    let is_bad = |character: char| character.is_ascii() && !is_host_character(character);
    if let Some(bad) = text.chars().find(|&character| in_host && character != '%' && is_bad(character)) {
        return Err(format!("invalid character \"{bad}\" in host name"));
    }
    Ok(percent_decode_str(text).decode_utf8_lossy().into_owned())
}

fn is_host_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"".contains(character)
}

/// As Go escapes a path by default.
fn escaped(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte);
    path.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
