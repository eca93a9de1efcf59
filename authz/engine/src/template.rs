//! Path templates: `{*}` stands for one segment of a path, `{**}` for any number of them.
//!
//! <https://istio.io/latest/docs/reference/config/security/authorization-policy/#Operation>. As in Envoy's
//! `uri_template`, `{**}` matches no text too, and is the last operator; other than there, a segment may hold any
//! character but a slash: one that Envoy's list forgets must not lead around a DENY.

const SEGMENT: &str = "{*}";
const REST: &str = "{**}";

/// A template, taken apart.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Template {
    /// What is to be found first, and what after each segment that may be any.
    literals: Vec<Box<str>>,
    /// What is to be found at the end, after any segments; none where the last literal ends the path.
    rest: Option<Box<str>>,
}

/// Why a text is no template.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no path template: {{*}} and {{**}} are whole segments, and {{**}} comes last of them")]
pub(crate) struct NoTemplate(String);

impl TryFrom<String> for Template {
    type Error = NoTemplate;

    fn try_from(text: String) -> Result<Self, NoTemplate> {
        let is_whole = |segment: &str| matches!(segment, SEGMENT | REST) || !segment.contains(['{', '}', '*']);
        let (front, rest) = match text.split_once(REST) {
            Some((front, rest)) => (front, Some(rest)),
            None => (&*text, None),
        };
        if !text.starts_with('/') || !text.split('/').all(is_whole) || rest.is_some_and(|rest| rest.contains('{')) {
            return Err(NoTemplate(text));
        }
        Ok(Self { literals: front.split(SEGMENT).map(Box::from).collect(), rest: rest.map(Box::from) })
    }
}

impl Template {
    /// What every path that matches begins with.
    pub(crate) fn start(&self) -> &str {
        self.literals.first().map_or("", |first| first)
    }

    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        self.match_front(path).is_some_and(|left| match &self.rest {
            Some(rest) => left.ends_with(rest.as_bytes()),
            None => left.is_empty(),
        })
    }

    /// What is left of `path` behind the literals and the segments between them.
    fn match_front<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        let (first, others) = self.literals.split_first()?;
        others.iter().try_fold(path.strip_prefix(first.as_bytes())?, |left, literal| {
            let segment = left.iter().position(|&byte| byte == b'/').unwrap_or(left.len());
            left[segment..].strip_prefix(literal.as_bytes()).filter(|_| segment > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(text: &str) -> Template {
        Template::try_from(text.to_owned()).expect(text)
    }

    #[test]
    fn segments_are_matched() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("/{*}", &["/a", "/a.b"], &["/", "/a/", "/a/b", "a"]),
            ("/a/{*}/c", &["/a/b/c", "/a/*/c"], &["/a//c", "/a/c", "/a/b/b/c", "/a/b/c/", "/a/b/cc"]),
            ("/{*}/b/{*}", &["/a/b/c"], &["/a/b", "/a/b/", "/a/b/c/d", "/a/x/c"]),
            ("/a/{**}", &["/a/", "/a/b", "/a/b/c/"], &["/a", "/ab", "/b/a/"]),
            ("/a/{**}/z", &["/a//z", "/a/b/z", "/a/b/c/z", "/a/z/z"], &["/a/z", "/a/b/zz", "/a/b/z/", "/z"]),
            ("/{*}/b/{**}/", &["/a/b//", "/a/b/c/"], &["/a/b/", "/a/c/b/"]),
            ("/{**}", &["/", "/a/b"], &[""]),
        ];
        for (text, matched, unmatched) in table {
            for path in *matched {
                assert!(template(text).matches(path.as_bytes()), "{text} on {path}");
            }
            for path in *unmatched {
                assert!(!template(text).matches(path.as_bytes()), "{text} on {path}");
            }
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in ["{*}", "/a{*}", "/{*}a", "/{**}/{*}", "/{**}/{**}", "/{*}*", "/{*}/*", "/{x}/{*}", "/{*", "/{***}"]
        {
            assert!(Template::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    /// Segment by segment, as one would tell it.
    fn reference(template: &[&str], path: &[&str]) -> bool {
        match (template, path) {
            ([], []) => true,
            (["{**}"], path) => !path.is_empty(),
            (["{**}", rest @ ..], path) => path.len() > rest.len() && path.ends_with(rest),
            (["{*}", rest @ ..], [segment, path @ ..]) => !segment.is_empty() && reference(rest, path),
            ([literal, rest @ ..], [segment, path @ ..]) => literal == segment && reference(rest, path),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_segment_by_segment(
            front in proptest::collection::vec(prop::sample::select(vec!["a", "b", "{*}"]), 0..4),
            any in any::<bool>(),
            back in proptest::collection::vec(prop::sample::select(vec!["a", "b"]), 0..3),
            path in proptest::collection::vec(prop::sample::select(vec!["a", "b", ""]), 1..7),
        ) {
            let mut parts = front;
            if any || parts.is_empty() {
                parts.push("{**}");
            }
            parts.extend(back);
            let found = template(&format!("/{}", parts.join("/"))).matches(format!("/{}", path.join("/")).as_bytes());
            prop_assert_eq!(found, reference(&parts, &path), "{:?} on {:?}", parts, path);
        }
    }
}
