//! What policies do to the parameters of a query.
//!
//! As Envoy's ext_authz does, values go into the path as they are written: a policy escapes them itself. Other than
//! there, a parameter is meant however its name is escaped, since the application unescapes it.

use percent_encoding::percent_decode;

use crate::path;

/// What a policy wants done to the query: parameters are set, then removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryOperations {
    /// Parameters in the place of all with the same name; one may be set to several values.
    pub set: Vec<(String, String)>,
    /// Names of parameters that are removed.
    pub remove: Vec<String>,
}

impl QueryOperations {
    /// These operations and then `later`, as one.
    pub fn then(mut self, later: Self) -> Self {
        let is_set = |name: &str| later.set.iter().any(|(set, _)| is_same(set, name));
        self.set.retain(|(name, _)| !is_set(name));
        self.remove.retain(|name| !is_set(name));
        self.set.extend(later.set);
        self.remove.extend(later.remove);
        self
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// `path_and_query` with its query changed; none where there is nothing to do.
    pub fn apply(&self, path_and_query: &[u8]) -> Option<Vec<u8>> {
        if self.is_empty() {
            return None;
        }
        let removed = |name: &str| self.remove.iter().any(|each| is_same(each, name));
        let kept = pairs(path_and_query).filter(|(name, _)| !self.names(name)).map(|(_, pair)| pair.to_vec());
        let set = self.set.iter().filter(|(name, _)| !removed(name)).map(|(name, value)| format!("{name}={value}"));
        let query: Vec<Vec<u8>> = kept.chain(set.map(String::into_bytes)).collect();
        let mut changed = path::without_query(path_and_query).to_vec();
        if !query.is_empty() {
            changed.push(b'?');
            changed.extend(query.join(&b'&'));
        }
        Some(changed)
    }

    /// The names as which `path_and_query` has the parameters that are set or removed, where they are written otherwise
    /// than here: who compares names as they are written must remove those, too.
    pub fn other_spellings(&self, path_and_query: &[u8]) -> Vec<String> {
        let written = |pair: &[u8]| String::from_utf8_lossy(name_of(pair)).into_owned();
        let given = |name: &String| self.set.iter().map(|(name, _)| name).chain(&self.remove).any(|each| each == name);
        let meant = pairs(path_and_query).filter(|(name, _)| self.names(name));
        meant.map(|(_, pair)| written(pair)).filter(|name| !given(name)).collect()
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        let set: usize = self.set.iter().map(|(name, value)| name.len() + value.len()).sum();
        set + self.remove.iter().map(String::len).sum::<usize>()
    }

    fn names(&self, name: &str) -> bool {
        self.set.iter().map(|(name, _)| name).chain(&self.remove).any(|each| is_same(each, name))
    }
}

/// The parameters of a query, by their names unescaped.
fn pairs(path_and_query: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let query = path::query(path_and_query).split(|&byte| byte == b'&');
    query.filter(|pair| !pair.is_empty()).map(|pair| (form_decode(name_of(pair)), pair))
}

fn name_of(pair: &[u8]) -> &[u8] {
    pair.split(|&byte| byte == b'=').next().unwrap_or_default()
}

fn is_same(one: &str, other: &str) -> bool {
    form_decode(one.as_bytes()) == form_decode(other.as_bytes())
}

/// The pairs of `application/x-www-form-urlencoded`, unescaped.
pub(crate) fn form_pairs(text: &[u8]) -> impl Iterator<Item = (String, String)> + '_ {
    text.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        let mut halves = pair.splitn(2, |&byte| byte == b'=').map(form_decode);
        (halves.next().unwrap_or_default(), halves.next().unwrap_or_default())
    })
}

fn form_decode(text: &[u8]) -> String {
    let spaced: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    percent_decode(&spaced).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operations(set: &[(&str, &str)], remove: &[&str]) -> QueryOperations {
        QueryOperations {
            set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            remove: remove.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn parameters_are_set_and_removed_however_they_are_escaped() {
        type Given<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: &[(Given, &str)] = &[
            (("/a?x=1&y=2", &[], &["x"]), "/a?y=2"),
            (("/a?x=1", &[], &["x"]), "/a"),
            (("/a?%78=1&x&X=3", &[], &["x"]), "/a?X=3"),
            (("/a?a+b=1", &[], &["a%20b"]), "/a"),
            (("/a?x=1&y=2", &[("x", "3")], &[]), "/a?y=2&x=3"),
            (("/a", &[("x", "3"), ("x", "4")], &[]), "/a?x=3&x=4"),
            (("/a?", &[("x", "%26")], &[]), "/a?x=%26"),
            (("/a?x=1", &[("x", "2")], &["x"]), "/a"),
            (("/a?&&x=1&", &[], &["y"]), "/a?x=1"),
        ];
        for ((path, set, remove), wanted) in table {
            let changed = operations(set, remove).apply(path.as_bytes()).expect("a change");
            assert_eq!(String::from_utf8_lossy(&changed), *wanted, "{path} {set:?} {remove:?}");
        }
        assert_eq!(QueryOperations::default().apply(b"/a?x"), None);
    }

    #[test]
    fn operations_one_after_the_other_are_one() {
        let (first, later) =
            (operations(&[("a", "1"), ("b", "1")], &["c"]), operations(&[("%61", "2"), ("c", "2")], &["b"]));
        let one = first.clone().then(later.clone());
        for path in ["/", "/?a&b&c", "/?c=1&d=2"] {
            let apply = |operations: &QueryOperations, path: &[u8]| operations.apply(path).expect("a change");
            let after = apply(&later, &apply(&first, path.as_bytes()));
            assert_eq!(apply(&one, path.as_bytes()), after, "{path}");
        }
    }

    #[test]
    fn other_spellings_are_those_of_the_path() {
        let given = operations(&[("a b", "1")], &["x"]);
        assert_eq!(given.other_spellings(b"/?x=1&%78=2&a+b=3&y=%78"), ["%78", "a+b"]);
    }

    proptest! {
        #[test]
        fn any_query_has_a_value_for_each_of_its_pairs(query in any::<Vec<u8>>()) {
            let pairs = query.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()).count();
            prop_assert_eq!(form_pairs(&query).count(), pairs);
        }

        #[test]
        fn what_is_removed_is_gone(query in "[a-c%61&=+x]{0,20}", name in "[a-c]") {
            let changed = operations(&[], &[&name]).apply(format!("/p?{query}").as_bytes()).expect("a change");
            prop_assert!(pairs(&changed).all(|(left, _)| left != name));
        }
    }
}
