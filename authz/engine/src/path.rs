//! Path normalization, before any policy looks at a path.
//!
//! Both mounts must see one path: in the sidecar Envoy has already normalized, by the same mode; in Python nobody has.
//! [`Normalization::apply`] therefore takes exactly Envoy 1.40's steps, and takes them until nothing changes, so that
//! normalizing what Envoy normalized gives the same as normalizing once. Envoy alone is not idempotent: `/a/%2e;/b`
//! becomes `/a/.;/b`, and only a second pass sees the dot segment. And a path of nothing but slashes is `/` here where
//! slashes are merged, and `//` in Envoy: a rule for `/` would miss it.
//!
//! <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization-NormalizationType>
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto>

use std::borrow::Cow;

use serde::Deserialize;

/// What is normalized: Istio's modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Normalization {
    /// Nothing.
    None,
    /// RFC 3986, and backslashes are slashes.
    Base,
    /// And runs of slashes are one.
    #[default]
    MergeSlashes,
    /// And slashes and backslashes are unescaped first.
    DecodeAndMergeSlashes,
}

/// Passes after which a path that still changes is taken as it is. Each further pass needs another level of encoding
/// (`%%32e` is `%2e` after one, and a dot after two), and two are the most that was ever needed. A path nested deeper
/// is decided about, and forwarded, as it then stands.
const MAX_PASSES: usize = 8;

/// The part of `path_and_query` before the query.
pub fn without_query(path_and_query: &[u8]) -> &[u8] {
    split(path_and_query).0
}

/// The query of `path_and_query`, without its `?`; empty where there is none.
pub fn query(path_and_query: &[u8]) -> &[u8] {
    let rest = split(path_and_query).1;
    rest.strip_prefix(b"?").unwrap_or_default()
}

impl Normalization {
    /// `path_and_query` with its path normalized; the query is kept to the byte.
    ///
    /// What does not begin with a slash (`*` of `OPTIONS *`) is no path and is returned unchanged.
    pub fn apply(self, path_and_query: &[u8]) -> Cow<'_, [u8]> {
        if !path_and_query.starts_with(b"/") || is_normal(path_and_query) || self == Self::None {
            return Cow::Borrowed(path_and_query);
        }
        let (path, rest) = split(path_and_query);
        let mut normal = path.to_vec();
        for _ in 0..MAX_PASSES {
            let next = self.pass(&normal);
            if next == normal {
                break;
            }
            normal = next;
        }
        normal.extend_from_slice(rest);
        Cow::Owned(normal)
    }

    /// Envoy's steps, once and in Envoy's order.
    fn pass(self, path: &[u8]) -> Vec<u8> {
        let base = |path: &[u8]| canonicalize(&strip_dot_parameters(path));
        match self {
            Self::None => path.to_vec(),
            Self::Base => base(path),
            Self::MergeSlashes => merge_slashes(&base(path)),
            Self::DecodeAndMergeSlashes => merge_slashes(&base(&unescape_slashes(path))),
        }
    }
}

fn split(path_and_query: &[u8]) -> (&[u8], &[u8]) {
    let end = path_and_query.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(path_and_query.len());
    path_and_query.split_at(end)
}

/// Whether no step of any mode could change the path: the common case, told in one look at each byte.
fn is_normal(path_and_query: &[u8]) -> bool {
    let mut stops = STOPS;
    for &byte in path_and_query {
        let class = CLASSES[usize::from(byte)];
        if class & stops != 0 {
            return matches!(byte, b'?' | b'#');
        }
        stops = STOPS | (class & SLASH) << 1;
    }
    true
}

/// A byte that some step may change wherever it stands, or that ends the path.
const STOPS: u8 = 1;
const SLASH: u8 = 2;
/// A byte that may not follow a slash.
const NOT_AFTER_SLASH: u8 = SLASH << 1;

/// What each byte is. A table, because every byte of every path is looked up.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'/' => SLASH | NOT_AFTER_SLASH,
            b'.' => NOT_AFTER_SLASH,
            b'?' | b'#' | b'%' | b'\\' => STOPS,
            other if must_escape(other) => STOPS,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

/// `%2f` is a slash and `%5c` a backslash.
fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        let (byte, length) = match unescape(&path[at..]) {
            slash @ (b'/' | b'\\', _) => slash,
            _ => (path[at], 1),
        };
        out.push(byte);
        at += length;
    }
    out
}

/// `/..;x=1/` is `/../` to servers that cut path parameters, so it is to Envoy.
fn strip_dot_parameters(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for (index, segment) in path.split(|&b| b == b'/').enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        let bare = segment.split(|&b| b == b';').next().unwrap_or_default();
        out.extend_from_slice(if matches!(bare, b"." | b"..") { bare } else { segment });
    }
    out
}

/// The WHATWG URL canonicalization of a path: backslashes are slashes, dot segments are resolved (also as `%2e`),
/// unreserved characters are unescaped, characters that a path cannot hold are escaped.
fn canonicalize(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        if out.ends_with(b"/") {
            if let Some((dots, length)) = dot_segment(&path[at..]) {
                if dots == 2 {
                    out.pop();
                    let parent = out.iter().rposition(|&b| b == b'/').unwrap_or(0);
                    out.truncate(parent);
                    out.push(b'/');
                }
                at += length;
                continue;
            }
        }
        let (byte, length) = unescape(&path[at..]);
        match byte {
            b'\\' if length == 1 => out.push(b'/'),
            _ if length == 1 && must_escape(byte) => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ if length == 3 && !is_unreserved(byte) => out.extend_from_slice(&path[at..at + length]),
            _ => out.push(byte),
        }
        at += length;
    }
    out
}

/// The dots of a dot segment at the start of `rest` and its length with the slash that ends it.
fn dot_segment(rest: &[u8]) -> Option<(usize, usize)> {
    let (mut dots, mut length) = (0, 0);
    while dots < 2 && length < rest.len() {
        let (byte, step) = unescape(&rest[length..]);
        if byte != b'.' {
            break;
        }
        dots += 1;
        length += step;
    }
    match rest.get(length) {
        _ if dots == 0 => None,
        None => Some((dots, length)),
        Some(b'/' | b'\\') => Some((dots, length + 1)),
        Some(_) => None,
    }
}

/// The first byte of `rest`, unescaped, and how many bytes it took there.
fn unescape(rest: &[u8]) -> (u8, usize) {
    let digit = |b: u8| char::from(b).to_digit(16);
    if let [b'%', high, low, ..] = *rest {
        if let (Some(high), Some(low)) = (digit(high), digit(low)) {
            return ((high * 16 + low) as u8, 3);
        }
    }
    (rest[0], 1)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

const fn must_escape(byte: u8) -> bool {
    byte < 0x21 || byte > 0x7e || matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Runs of slashes become one.
fn merge_slashes(path: &[u8]) -> Vec<u8> {
    if !path.windows(2).any(|pair| pair == b"//") {
        return path.to_vec();
    }
    let segments: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|segment| !segment.is_empty()).collect();
    let mut out = vec![b'/'];
    out.extend_from_slice(&segments.join(&b'/'));
    if path.ends_with(b"/") && !segments.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};

    /// What Envoy 1.40 makes of each path in the default mode (asked of the real one; the end-to-end tests ask again).
    const ENVOY: &[(&str, &str)] = &[
        ("//a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/../a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/b/..", "/a/"),
        (r"/a\..\b", "/b"),
        (r"/a\\b", "/a/b"),
        ("/a/%2f../b", "/a/%2f../b"),
        ("/a%", "/a%"),
        ("/a%2", "/a%2"),
        ("/a%zz", "/a%zz"),
        ("/a?x=//..%2e/../", "/a?x=//..%2e/../"),
        ("/a/../..//b?q", "/b?q"),
        ("/", "/"),
        ("/a/...//", "/a/.../"),
        ("/a/%252e%252e/b", "/a/%252e%252e/b"),
        ("/a;x=1/../b", "/b"),
        ("/a/.;/b", "/a/b"),
        ("/a/..;x=1/b", "/b"),
        (r"/a/..;x\b/c", "/c"),
        ("/a/x;../b", "/a/x;../b"),
        ("/a/c//..;/b", "/a/c/b"),
        ("/a/c/..;/%2e%2e/b", "/b"),
        ("/a//../b", "/a/b"),
        (r"/a/..;\..\b", "/"),
        ("/%41%7a%2d%5f%7e%21", "/Az-_~%21"),
        (r#"/a"<>^`{|}b"#, "/a%22%3C%3E%5E%60%7B%7C%7Db"),
        ("/caf%c3%a9", "/caf%c3%a9"),
        ("*", "*"),
    ];

    #[test]
    fn matches_envoy() {
        for (given, wanted) in ENVOY {
            let got = MergeSlashes.apply(given.as_bytes());
            assert_eq!(String::from_utf8_lossy(&got), *wanted, "from {given}");
        }
    }

    /// What each mode makes of a path: NONE keeps it; then BASE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES.
    #[test]
    fn modes_differ_in_slashes() {
        let table = [
            ("/a/./b/../c", ["/a/c", "/a/c", "/a/c"]),
            (r"/a\b", ["/a/b", "/a/b", "/a/b"]),
            ("/%41", ["/A", "/A", "/A"]),
            ("/a//b", ["/a//b", "/a/b", "/a/b"]),
            ("//", ["//", "/", "/"]),
            ("///", ["///", "/", "/"]),
            ("/.//", ["//", "/", "/"]),
            ("/a%2fb", ["/a%2fb", "/a%2fb", "/a/b"]),
            ("/a%2F%5c%5Cb", ["/a%2F%5c%5Cb", "/a%2F%5c%5Cb", "/a/b"]),
            ("/a/..%2f..%2fb", ["/a/..%2f..%2fb", "/a/..%2f..%2fb", "/b"]),
            ("/a/x%2f..;y=1/b", ["/a/x%2f..;y=1/b", "/a/x%2f..;y=1/b", "/a/b"]),
            (r"/a/..;x\b/c", ["/c", "/c", "/c"]),
            ("/a/..;x%5cb/c", ["/c", "/c", "/c"]),
            ("/a/..;x%2fb/c", ["/c", "/c", "/b/c"]),
            ("/a%252fb", ["/a%252fb", "/a%252fb", "/a%252fb"]),
            ("/a?b=%2f//", ["/a?b=%2f//", "/a?b=%2f//", "/a?b=%2f//"]),
        ];
        for (given, wanted) in table {
            assert_eq!(&*None.apply(given.as_bytes()), given.as_bytes());
            for (mode, wanted) in [Base, MergeSlashes, DecodeAndMergeSlashes].into_iter().zip(wanted) {
                let got = mode.apply(given.as_bytes());
                assert_eq!(String::from_utf8_lossy(&got), wanted, "from {given} in {mode:?}");
            }
        }
    }

    #[test]
    fn a_second_pass_finds_what_the_first_uncovered() {
        assert_eq!(&*MergeSlashes.apply(b"/a/%2e%2e;/b"), b"/b");
    }

    #[test]
    fn splits_off_the_query() {
        assert_eq!((without_query(b"/a?b?c"), query(b"/a?b?c")), (&b"/a"[..], &b"b?c"[..]));
        assert_eq!((without_query(b"/a"), query(b"/a")), (&b"/a"[..], &b""[..]));
    }

    fn any_mode() -> impl Strategy<Value = Normalization> {
        prop::sample::select(vec![None, Base, MergeSlashes, DecodeAndMergeSlashes])
    }

    proptest! {
        #[test]
        fn is_idempotent(mode in any_mode(), path in r"/[a./;%2e5cf\\]{0,24}") {
            let once = mode.apply(path.as_bytes()).into_owned();
            prop_assert_eq!(&*mode.apply(&once), &once[..]);
        }

        /// What Envoy forwards after one pass is decided about as the path that was sent.
        #[test]
        fn a_pass_before_changes_nothing(mode in any_mode(), path in r"/[a./;%2e5cf\\]{0,24}") {
            let passed = mode.pass(path.as_bytes());
            prop_assert_eq!(mode.apply(&passed), mode.apply(path.as_bytes()));
        }

        #[test]
        fn leaves_no_dot_segment(
            mode in prop::sample::select(vec![Base, MergeSlashes, DecodeAndMergeSlashes]), path in r"/[a./%2e\\]{0,24}"
        ) {
            let normal = mode.apply(path.as_bytes()).into_owned();
            prop_assert!(!normal.split(|&b| b == b'/').any(|segment| matches!(segment, b"." | b"..")));
        }

        #[test]
        fn leaves_no_two_slashes(
            mode in prop::sample::select(vec![MergeSlashes, DecodeAndMergeSlashes]), path in r"/[a./;%2e5cf\\]{0,24}"
        ) {
            prop_assert!(!mode.apply(path.as_bytes()).windows(2).any(|pair| pair == b"//"));
        }

        #[test]
        fn leaves_no_escaped_slash_where_they_are_decoded(path in r"/[a/%2e5cfF\\]{0,24}") {
            let normal = DecodeAndMergeSlashes.apply(path.as_bytes()).to_ascii_lowercase();
            prop_assert!(!normal.windows(3).any(|escape| matches!(escape, b"%2f" | b"%5c")));
        }

        #[test]
        fn is_idempotent_on_any_bytes(mode in any_mode(), path in proptest::collection::vec(any::<u8>(), 0..64)) {
            let once = mode.apply(&path).into_owned();
            prop_assert_eq!(&*mode.apply(&once), &once[..]);
        }

        /// What looks normal at one look at each byte is what all steps leave alone.
        #[test]
        fn the_short_way_is_the_long_one(mode in any_mode(), path in r#"/[a./;%2e5c\\\x00\xff"]{0,16}"#) {
            if is_normal(path.as_bytes()) {
                prop_assert_eq!(mode.pass(path.as_bytes()), path.as_bytes());
            }
        }

        #[test]
        fn the_query_is_kept(mode in any_mode(), path in r"/[a./;%2e]{0,12}", query in any::<Vec<u8>>()) {
            let given = [path.as_bytes(), b"?", &query].concat();
            prop_assert!(mode.apply(&given).ends_with(&given[path.len()..]));
        }
    }
}
