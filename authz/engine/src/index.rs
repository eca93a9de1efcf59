//! Which policies may match a request, told without asking every one of them.
//!
//! Nearly every rule asks somewhere for one of a few texts: a principal, a path, a prefix of one. A request that has
//! none of them cannot match. So each policy is filed under such texts, the rarest that it has, and a request is
//! asked for by its own values. What is filed under nothing is always a candidate.

use std::collections::HashMap;

use crate::attribute::{Attribute, Facts};
use crate::document::{Condition, Policy, Rule};
use crate::pattern::Pattern;

/// Policies in the order in which they are asked.
#[derive(Default)]
pub(crate) struct Policies {
    all: Vec<Policy>,
    /// Places of those that are filed under no text.
    unfiled: Vec<u32>,
    shelves: Vec<(Attribute, Shelf)>,
}

/// The policies that are filed under texts of one attribute, by their places.
#[derive(Default)]
struct Shelf {
    exact: HashMap<Box<[u8]>, Vec<u32>, ahash::RandomState>,
    prefix: HashMap<Box<[u8]>, Vec<u32>, ahash::RandomState>,
    /// Every length of a prefix.
    lengths: Vec<usize>,
}

impl Policies {
    /// Files `all`.
    pub(crate) fn new(all: Vec<Policy>) -> Self {
        let counts = Counts::of(&all);
        let mut policies = Self::default();
        for (place, policy) in all.iter().enumerate() {
            match counts.texts_of(policy) {
                Some(texts) => texts.into_iter().for_each(|text| policies.file(text, place as u32)),
                None => policies.unfiled.push(place as u32),
            }
        }
        Self { all, ..policies }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.all.iter()
    }

    /// Those that may match, in their order.
    pub(crate) fn candidates(&self, facts: &Facts<'_>) -> impl Iterator<Item = &Policy> {
        let mut places = self.unfiled.clone();
        for (attribute, shelf) in &self.shelves {
            if facts.lacks(attribute) {
                // What a connection cannot have, a DENY takes for met.
                places.extend(shelf.all());
            }
            facts.any(attribute, &mut |value| {
                if *attribute == Attribute::RequestHost {
                    shelf.find(&value.to_ascii_lowercase(), &mut places);
                } else {
                    shelf.find(value, &mut places);
                }
                false
            });
        }
        places.sort_unstable();
        places.dedup();
        places.into_iter().map(|place| &self.all[place as usize])
    }

    fn file(&mut self, text: Text<'_>, place: u32) {
        let known = self.shelves.iter().position(|(attribute, _)| attribute == text.attribute);
        let index = known.unwrap_or_else(|| {
            self.shelves.push((text.attribute.clone(), Shelf::default()));
            self.shelves.len() - 1
        });
        self.shelves[index].1.file(text, place);
    }
}

impl Shelf {
    fn file(&mut self, text: Text<'_>, place: u32) {
        let bytes = text.text.as_bytes();
        if text.is_prefix && !self.lengths.contains(&bytes.len()) {
            self.lengths.push(bytes.len());
        }
        let texts = if text.is_prefix { &mut self.prefix } else { &mut self.exact };
        texts.entry(bytes.into()).or_default().push(place);
    }

    fn all(&self) -> impl Iterator<Item = u32> + '_ {
        self.exact.values().chain(self.prefix.values()).flatten().copied()
    }

    fn find(&self, value: &[u8], places: &mut Vec<u32>) {
        let prefixes = self.lengths.iter().filter_map(|&length| self.prefix.get(value.get(..length)?));
        self.exact.get(value).into_iter().chain(prefixes).for_each(|found| places.extend(found));
    }
}

/// A text that some value of an attribute must be, or begin with.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Text<'p> {
    attribute: &'p Attribute,
    is_prefix: bool,
    text: &'p str,
}

impl<'p> Text<'p> {
    /// The texts of which a request must have one for `condition` to match; none where it can match without.
    fn all_of(condition: &'p Condition) -> Option<Vec<Self>> {
        let text = |pattern: &'p Pattern| {
            let (is_prefix, text) = match pattern {
                Pattern::Exact(text) => (false, &**text),
                Pattern::Prefix(text) => (true, &**text),
                Pattern::Template(template) => (true, template.start()),
                Pattern::Suffix(_) | Pattern::Present | Pattern::Cidr(_) => return None,
            };
            (!text.is_empty()).then_some(Self { attribute: &condition.attribute, is_prefix, text })
        };
        (!condition.any.is_empty()).then(|| condition.any.iter().map(text).collect())?
    }
}

/// How often each text is asked for.
struct Counts<'p>(HashMap<Text<'p>, u32, ahash::RandomState>);

impl<'p> Counts<'p> {
    fn of(policies: &'p [Policy]) -> Self {
        let mut counts = Self(HashMap::default());
        let conditions = policies.iter().flat_map(|policy| &policy.rules).flat_map(Rule::conditions);
        for text in conditions.filter_map(Text::all_of).flatten() {
            *counts.0.entry(text).or_default() += 1;
        }
        counts
    }

    /// How many policies one finds by the commonest of `texts`.
    fn commonest(&self, texts: &[Text<'p>]) -> u32 {
        texts.iter().map(|text| self.0.get(text).copied().unwrap_or_default()).max().unwrap_or_default()
    }

    /// Texts of which a request must have one for `policy` to match; none where it can match without.
    fn texts_of(&self, policy: &'p Policy) -> Option<Vec<Text<'p>>> {
        let each: Option<Vec<_>> = policy.rules.iter().map(|rule| self.texts_of_rule(rule)).collect();
        each.map(|texts| texts.into_iter().flatten().collect())
    }

    fn texts_of_rule(&self, rule: &'p Rule) -> Option<Vec<Text<'p>>> {
        let some = |alternatives: &'p [Vec<Condition>]| {
            let each: Option<Vec<_>> =
                alternatives.iter().map(|all| self.rarest(all.iter().map(Text::all_of))).collect();
            each.filter(|texts| !texts.is_empty()).map(|texts| texts.concat())
        };
        let parts = [some(&rule.from), some(&rule.to), self.rarest(rule.when.iter().map(Text::all_of))];
        self.rarest(parts.into_iter())
    }

    fn rarest(&self, choices: impl Iterator<Item = Option<Vec<Text<'p>>>>) -> Option<Vec<Text<'p>>> {
        choices.flatten().min_by_key(|texts| self.commonest(texts))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use serde_json::{json, Value};

    use super::*;
    use crate::testing::{condition, Sample};

    fn policies(rules: &[Value]) -> Vec<Policy> {
        let policy = |(place, rules)| json!({"name": format!("shop/{place}"), "action": "ALLOW", "rules": rules});
        let all: Vec<Value> = rules.iter().enumerate().map(policy).collect();
        serde_json::from_value(Value::from(all)).expect("policies")
    }

    fn candidates(policies: &Policies, sample: &Sample) -> Vec<String> {
        sample.with(|request| {
            let path = Cow::Borrowed(request.http.map_or(&b""[..], |http| http.path));
            let facts = Facts { request, path, token: None, destination_port: 8080, trusted_proxies: 0 };
            policies.candidates(&facts).map(|policy| policy.name.to_string()).collect()
        })
    }

    fn matching(policies: &[Policy], sample: &Sample) -> Vec<String> {
        sample.with(|request| {
            let path = Cow::Borrowed(request.http.map_or(&b""[..], |http| http.path));
            let facts = Facts { request, path, token: None, destination_port: 8080, trusted_proxies: 0 };
            let matches = |policy: &&Policy| policy.rules.iter().any(|rule| rule.matches(&facts));
            policies.iter().filter(matches).map(|policy| policy.name.to_string()).collect()
        })
    }

    #[test]
    fn policies_are_filed_under_the_rarest_of_their_texts() {
        let rule = |path: &str| {
            let method = condition("request.method", json!([{"exact": "GET"}]), json!([]));
            json!([{"from": [], "to": [[method, condition("request.path", json!([{"prefix": path}]), json!([]))]], "when": []}])
        };
        let anything = json!([{"from": [], "to": [], "when": []}]);
        let filed = Policies::new(policies(&[rule("/b"), rule("/a/"), anything, rule("/a"), json!([])]));
        assert_eq!(candidates(&filed, &Sample::path("/a/x")), ["shop/1", "shop/2", "shop/3"]);
        assert_eq!(candidates(&filed, &Sample::path("/")), ["shop/2"]);
    }

    /// A DENY takes for met what a connection cannot have.
    #[test]
    fn what_is_filed_under_requests_is_a_candidate_for_connections() {
        let rule = |path: &str| json!([{"from": [], "to": [[condition("request.path", json!([{"exact": path}]), json!([]))]], "when": []}]);
        let filed = Policies::new(policies(&[rule("/a"), rule("/b")]));
        assert_eq!(candidates(&filed, &Sample::connection()), ["shop/0", "shop/1"]);
    }

    fn pattern() -> impl Strategy<Value = Value> {
        let text = || prop::sample::select(vec!["/", "/a", "/a/b", "/ab", "GET", "a", "ab", "A"]);
        prop_oneof![
            4 => text().prop_map(|text| json!({"exact": text})),
            4 => text().prop_map(|text| json!({"prefix": text})),
            1 => text().prop_map(|text| json!({"suffix": text})),
            1 => Just(json!({"prefix": ""})),
            1 => Just(json!({"template": "/{*}/b"})),
            1 => Just(json!({"template": "/a/{**}"})),
            1 => Just(json!("present")),
        ]
    }

    fn conditions() -> impl Strategy<Value = Value> {
        let attribute =
            prop::sample::select(vec!["request.path", "request.method", "request.headers[x]", "request.host"]);
        let patterns = || prop::collection::vec(pattern(), 0..3);
        let one = (attribute, patterns(), patterns())
            .prop_map(|(attribute, any, none)| condition(attribute, json!(any), json!(none)));
        prop::collection::vec(one, 0..3).prop_map(Value::from)
    }

    fn rule() -> impl Strategy<Value = Value> {
        let alternatives = || prop::collection::vec(conditions(), 0..3);
        (alternatives(), alternatives(), conditions())
            .prop_map(|(from, to, when)| json!({"from": from, "to": to, "when": when}))
    }

    proptest! {
        /// All that match are candidates, and all candidates come in order.
        #[test]
        fn nothing_that_matches_is_left_out(
            rules in prop::collection::vec(prop::collection::vec(rule(), 0..3).prop_map(Value::from), 0..8),
            path in prop::sample::select(vec!["/", "/a", "/a/b", "/ab", "/a/"]),
            host in prop::sample::select(vec!["a", "AB", "b"]),
            values in prop::collection::vec(prop::sample::select(vec!["a", "ab", "b", ""]), 0..3),
        ) {
            let headers = values.into_iter().map(|value| ("x", value.to_owned())).collect();
            let sample = Sample { host, headers, ..Sample::path(path) };
            let found = candidates(&Policies::new(policies(&rules)), &sample);
            prop_assert!(found.is_sorted());
            for name in matching(&policies(&rules), &sample) {
                prop_assert!(found.contains(&name), "{name} of {rules:?}");
            }
        }
    }
}
