//! All rules for the tokens of one workload's requests, ready to look for them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::outputs::is_reserved;
use super::places::{without_parameter, Place};
use super::Token;
use crate::decision::Reason;
use crate::document::Authentication;
use crate::request::{EditRequest, Headers, Told};

/// The rules, by the places where each looks.
pub(crate) struct TokenRules {
    rules: Vec<Authentication>,
    places: Vec<Place>,
    /// Headers that only verified tokens may set.
    reserved: Vec<Box<str>>,
    required: bool,
}

/// A token's text and the place, by its number, where it stands.
pub(crate) struct Found<'r> {
    pub(crate) place: usize,
    pub(crate) text: Cow<'r, [u8]>,
}

impl TokenRules {
    pub(crate) fn new(rules: Vec<Authentication>) -> Self {
        let mut places: Vec<Place> = Vec::new();
        for place in rules.iter().flat_map(|rule| &rule.places) {
            if !places.contains(place) {
                places.push(place.clone());
            }
        }
        let reserved: BTreeSet<Box<str>> = rules.iter().flat_map(output_headers).cloned().collect();
        let required = rules.iter().any(|rule| rule.require);
        Self { rules, places, reserved: reserved.into_iter().collect(), required }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether all is known where tokens stand, and of the headers that only tokens may set.
    pub(crate) fn are_told(&self, told: Told<'_>) -> bool {
        let is_told = |place: &Place| match place {
            Place::Header { name, .. } => told.tells_header(name),
            Place::Parameter(_) => true,
            Place::Cookie(_) => told.tells_header("cookie"),
        };
        self.places.iter().all(is_told) && self.reserved.iter().all(|name| told.tells_header(name))
    }

    /// Whether a request without a token is refused.
    pub(crate) fn required(&self) -> bool {
        self.required
    }

    /// Headers that only verified tokens may set.
    pub(crate) fn reserved(&self) -> &[Box<str>] {
        &self.reserved
    }

    /// The rules for tokens at the place with the number `place`. Where some rules require a token, a token by
    /// another rule would not be one that they require.
    pub(super) fn at(&self, place: usize) -> impl Iterator<Item = &Authentication> {
        let counts = |rule: &&Authentication| !self.required || rule.require;
        self.rules.iter().filter(move |rule| rule.places.contains(&self.places[place])).filter(counts)
    }

    /// The request's token; none where no place holds one.
    ///
    /// # Errors
    /// Places hold different tokens: which one the application would read is not known (RFC 6750 section 2).
    pub(crate) fn find<'r>(&self, headers: &'r dyn Headers, path: &'r [u8]) -> Result<Option<Found<'r>>, Reason> {
        let (mut found, mut several): (Option<Found<'r>>, bool) = (None, false);
        for (place, here) in self.places.iter().enumerate() {
            here.visit(headers, path, &mut |text| match &found {
                None => found = Some(Found { place, text }),
                Some(first) => several |= first.text != text,
            });
        }
        if several {
            return Err(Reason::TokenSeveral);
        }
        Ok(found)
    }

    /// Whether some rule would still take `token`, which was verified by an earlier one.
    pub(super) fn accept_again(&self, token: &Token) -> Result<(), Reason> {
        let mut refusal = Reason::TokenIssuer;
        for rule in self.rules.iter().filter(|rule| rule.issuer == token.issuer && (!self.required || rule.require)) {
            match rule.check_audiences(&token.audiences) {
                Ok(()) if token.never_ends() && !rule.allow_missing_expiry => refusal = Reason::TokenWithoutExpiry,
                Ok(()) => return Ok(()),
                Err(reason) => refusal = reason,
            }
        }
        Err(refusal)
    }

    /// Readies a request with `token` for the application: the token is taken off wherever it stands unless its rule
    /// forwards it, and the headers that only tokens may set are as this one sets them.
    pub(crate) fn edit(&self, token: Option<&Token>, request: &mut impl EditRequest) {
        if self.rules.is_empty() {
            return;
        }
        let claimed = self.claimed_by_caller(request.headers());
        if token.is_some_and(|token| !token.forward) {
            // Headers come last: after a change all headers are read from Envoy anew, and it is there that tokens stand.
            let others = self.places.iter().filter(|place| !place.is_header());
            for place in others.chain(self.places.iter().filter(|place| place.is_header())) {
                if let Some(edit) = place.strip(request.headers(), request.path()) {
                    request.set(edit.name, &edit.value);
                }
            }
        }
        for name in claimed {
            request.set(&name, b"");
        }
        for (name, value) in token.into_iter().flat_map(|token| &token.outputs) {
            request.set(name, value.as_bytes());
        }
    }

    /// The headers of a request that only tokens may set.
    fn claimed_by_caller(&self, headers: &dyn Headers) -> BTreeSet<String> {
        let mut claimed = BTreeSet::new();
        if !self.reserved.is_empty() {
            headers.visit(&mut |name, _| {
                if is_reserved(&self.reserved, name) {
                    claimed.insert(String::from_utf8_lossy(name).into_owned());
                }
            });
        }
        claimed
    }

    /// `path_and_query` as it may be written down: without tokens.
    pub(crate) fn without_tokens<'p>(&self, path_and_query: &'p [u8]) -> Cow<'p, [u8]> {
        let mut left = Cow::Borrowed(path_and_query);
        for place in &self.places {
            if let Place::Parameter(name) = place {
                left = without_parameter(&left, name).map_or(left, Cow::Owned);
            }
        }
        left
    }
}

/// The headers that a rule's tokens set.
fn output_headers(rule: &Authentication) -> impl Iterator<Item = &Box<str>> {
    rule.output_payload_to_header.iter().chain(rule.output_claim_to_headers.iter().map(|output| &output.header))
}
