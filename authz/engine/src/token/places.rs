//! Where tokens are looked for in a request, and how they are taken off it.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use serde::Deserialize;

use crate::path;
use crate::request::Headers;

/// One place that may hold a token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Place {
    /// A header, by its name in lower case, behind a prefix.
    Header { name: Box<str>, prefix: Box<str> },
    /// A parameter of the query.
    Parameter(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

/// A header to be replaced, or to be removed where its new value is empty.
pub(crate) struct Edit<'p> {
    pub(crate) name: &'p str,
    pub(crate) value: Vec<u8>,
}

impl Place {
    pub(super) fn is_header(&self) -> bool {
        matches!(self, Self::Header { .. })
    }

    /// Calls `visit` with every token that is here.
    pub(super) fn visit<'r>(&self, headers: &'r dyn Headers, path: &'r [u8], visit: &mut dyn FnMut(Cow<'r, [u8]>)) {
        match self {
            Self::Header { name, prefix } => match headers.get(name) {
                Some(Cow::Borrowed(value)) => behind(prefix, value).map(Cow::Borrowed).into_iter().for_each(visit),
                Some(Cow::Owned(value)) => {
                    behind(prefix, &value).map(|token| Cow::Owned(token.to_vec())).into_iter().for_each(visit);
                }
                None => {}
            },
            Self::Parameter(name) => {
                let here = parameters(path::query(path)).filter(|(_, key, _)| decoded(key) == name.as_bytes());
                here.map(|(_, _, value)| decoded(value)).for_each(visit);
            }
            Self::Cookie(name) => match headers.get("cookie") {
                Some(Cow::Borrowed(value)) => cookies(value, name).map(Cow::Borrowed).for_each(visit),
                Some(Cow::Owned(value)) => {
                    cookies(&value, name).map(|token| Cow::Owned(token.to_vec())).for_each(visit)
                }
                None => {}
            },
        }
    }

    /// What takes the tokens off that are here; none where there are none. All else is kept to the byte.
    pub(super) fn strip(&self, headers: &dyn Headers, path: &[u8]) -> Option<Edit<'_>> {
        match self {
            Self::Header { name, prefix } => {
                behind(prefix, &headers.get(name)?)?;
                Some(Edit { name, value: Vec::new() })
            }
            Self::Parameter(name) => Some(Edit { name: ":path", value: without_parameter(path, name)? }),
            Self::Cookie(name) => {
                let value = headers.get("cookie")?;
                cookies(&value, name).next()?;
                let others = value.split(|&byte| byte == b';').filter(|pair| cookie(pair, name).is_none());
                let others: Vec<&[u8]> = others.map(<[u8]>::trim_ascii).collect();
                Some(Edit { name: "cookie", value: others.join(&b"; "[..]) })
            }
        }
    }
}

/// What stands behind `prefix` in a header's values, joined; none where they carry something else.
///
/// A prefix that ends in a space is an authentication scheme, whose case does not matter (RFC 9110 section 11.1). A
/// token that stands behind another value is given back with all before it, which verifies as no token: an application
/// may read what we passed over.
pub(super) fn behind<'v>(prefix: &str, value: &'v [u8]) -> Option<&'v [u8]> {
    let mut values = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii_start);
    if !values.any(|one| strip_prefix(prefix, one).is_some()) {
        return None;
    }
    Some(strip_prefix(prefix, value).unwrap_or(value))
}

fn strip_prefix<'v>(prefix: &str, value: &'v [u8]) -> Option<&'v [u8]> {
    let scheme = prefix.trim_end_matches(' ');
    let (given, rest) = value.split_at_checked(scheme.len())?;
    if !given.eq_ignore_ascii_case(scheme.as_bytes()) {
        return None;
    }
    if scheme.len() == prefix.len() {
        return Some(rest);
    }
    matches!(rest.first(), Some(b' ' | b'\t')).then(|| rest.strip_prefix(b" ").unwrap_or(rest))
}

/// `path_and_query` without the parameter `name`; none where it does not have it.
pub(crate) fn without_parameter(path_and_query: &[u8], name: &str) -> Option<Vec<u8>> {
    let is_here = |key: &[u8]| decoded(key) == name.as_bytes();
    let query = path::query(path_and_query);
    if !parameters(query).any(|(_, key, _)| is_here(key)) {
        return None;
    }
    let others: Vec<&[u8]> = parameters(query).filter(|(_, key, _)| !is_here(key)).map(|(whole, _, _)| whole).collect();
    let mut left = path::without_query(path_and_query).to_vec();
    if !others.is_empty() {
        left.push(b'?');
        left.extend_from_slice(&others.join(&b'&'));
    }
    Some(left)
}

/// The parameters of a query: each as it is written, its name, and its value.
fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8], &[u8])> {
    query.split(|&byte| byte == b'&').filter(|whole| !whole.is_empty()).map(|whole| {
        let (name, value) = split_once(whole, b'=').unwrap_or((whole, b""));
        (whole, name, value)
    })
}

fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    percent_decode(text).into()
}

/// The values of the cookies called `name`.
fn cookies<'v, 'n>(header: &'v [u8], name: &'n str) -> impl Iterator<Item = &'v [u8]> + use<'v, 'n> {
    header.split(|&byte| byte == b';').filter_map(move |pair| cookie(pair, name))
}

/// The value of `pair` if it is called `name`, without the quotes that it may be in (RFC 6265 section 4.1.1).
fn cookie<'v>(pair: &'v [u8], name: &str) -> Option<&'v [u8]> {
    let (key, value) = split_once(pair, b'=')?;
    if key.trim_ascii() != name.as_bytes() {
        return None;
    }
    let value = value.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::HeaderList;

    fn header(name: &str, prefix: &str) -> Place {
        Place::Header { name: name.into(), prefix: prefix.into() }
    }

    fn list(headers: &[(&str, &str)]) -> HeaderList {
        HeaderList(headers.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect())
    }

    fn texts(place: &Place, headers: &HeaderList, path: &str) -> Vec<String> {
        let mut found = Vec::new();
        place.visit(headers, path.as_bytes(), &mut |token| found.push(String::from_utf8_lossy(&token).into_owned()));
        found
    }

    #[test]
    fn tokens_are_found_behind_a_prefix_wherever_an_application_might() {
        let table: &[(&str, &str, Option<&str>)] = &[
            ("Bearer ", "Bearer abc", Some("abc")),
            ("Bearer ", "bearer abc", Some("abc")),
            ("Bearer ", "BEARER  abc", Some(" abc")),
            ("Bearer ", "Bearer\tabc", Some("\tabc")),
            ("Bearer ", "Basic abc", None),
            ("Bearer ", "Bearerabc", None),
            ("Bearer ", "Bearer", None),
            ("Bearer ", "", None),
            ("Bearer ", "Bearer a,Bearer b", Some("a,Bearer b")),
            ("Bearer ", "Basic a,bearer b", Some("Basic a,bearer b")),
            ("Bearer ", "Basic a, Bearer b", Some("Basic a, Bearer b")),
            ("Bearer ", "Digest a=\"1\", b=\"2\"", None),
            ("jwt=", "jwt=abc", Some("abc")),
            ("jwt=", "a, JWT=abc", Some("a, JWT=abc")),
            ("jwt=", "abc", None),
            ("", "abc", Some("abc")),
            ("", "", Some("")),
            ("", "a,b", Some("a,b")),
        ];
        for (prefix, given, wanted) in table {
            assert_eq!(behind(prefix, given.as_bytes()), wanted.map(str::as_bytes), "{prefix}{given}");
        }
    }

    #[test]
    fn parameters_and_cookies_are_found_and_taken_off() {
        let (parameter, cookie) = (Place::Parameter("at".into()), Place::Cookie("at".into()));
        let table: &[(&str, &[&str], Option<&str>)] = &[
            ("/a", &[], None),
            ("/a?at=t", &["t"], Some("/a")),
            ("/a?x=1&at=t&y=%2f", &["t"], Some("/a?x=1&y=%2f")),
            ("/a?%61t=%74", &["t"], Some("/a")),
            ("/a?at=t&at=u", &["t", "u"], Some("/a")),
            ("/a?at", &[""], Some("/a")),
            ("/a?AT=t&at2=t&b=at", &[], None),
            ("/at=t", &[], None),
            ("/a?x&&at=t", &["t"], Some("/a?x")),
        ];
        for (path, found, left) in table {
            assert_eq!(texts(&parameter, &list(&[]), path), *found, "{path}");
            let edit = parameter.strip(&list(&[]), path.as_bytes());
            assert_eq!(edit.map(|edit| String::from_utf8(edit.value).expect("text")).as_deref(), *left, "{path}");
        }
        let table: &[(&[&str], &[&str], Option<&str>)] = &[
            (&[], &[], None),
            (&["at=t"], &["t"], Some("")),
            (&["a=b; at=\"t\" ;c=d"], &["t"], Some("a=b; c=d")),
            (&["a=b", "at=t"], &["t"], Some("a=b")),
            (&["at=t; at=u"], &["t", "u"], Some("")),
            (&["AT=t; xat=t; at"], &[], None),
            (&["at=t=="], &["t=="], Some("")),
        ];
        for (lines, found, left) in table {
            let headers = list(&lines.iter().map(|line| ("cookie", *line)).collect::<Vec<_>>());
            assert_eq!(texts(&cookie, &headers, "/"), *found, "{lines:?}");
            let edit = cookie.strip(&headers, b"/");
            assert_eq!(edit.map(|edit| String::from_utf8(edit.value).expect("text")).as_deref(), *left, "{lines:?}");
        }
    }

    #[test]
    fn a_header_goes_only_where_it_holds_a_token() {
        let place = header("authorization", "Bearer ");
        for (value, goes) in [("Bearer t", true), ("Basic t", false), ("Basic t, Bearer u", true)] {
            assert_eq!(place.strip(&list(&[("authorization", value)]), b"/").is_some(), goes, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_value_holds_a_token_or_none(value in any::<Vec<u8>>(), prefix in "[a-zA-Z=]{0,3} ?") {
            prop_assert!(behind(&prefix, &value).is_none_or(|token| value.ends_with(token)));
        }

        #[test]
        fn what_was_taken_off_is_found_no_more(text in "[at=;&?%67,\" ]{0,24}") {
            let headers = list(&[("cookie", &text)]);
            for place in [Place::Parameter("at".into()), Place::Cookie("at".into())] {
                let path = format!("/{text}");
                let found = texts(&place, &headers, &path);
                let Some(edit) = place.strip(&headers, path.as_bytes()) else { prop_assert!(found.is_empty()); continue };
                let left = String::from_utf8(edit.value).expect("text");
                let (headers, path) =
                    if edit.name == ":path" { (list(&[]), left) } else { (list(&[("cookie", &left)]), String::new()) };
                prop_assert!(!found.is_empty() && texts(&place, &headers, &path).is_empty());
            }
        }
    }
}
