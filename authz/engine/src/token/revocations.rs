//! Tokens that are no longer good, though their signature and their time are.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::Token;
use crate::Hash;

/// The schema that this engine reads.
const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    revocations: Vec<Revocation>,
}

/// One revocation: of one token, of a subject's tokens until then, or of an issuer's tokens until then.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Revocation {
    Token { issuer: String, id: String },
    Subject { issuer: String, subject: String, issued_before: i64 },
    Issuer { issuer: String, issued_before: i64 },
}

/// Why revocations cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RevocationsError {
    /// The document is not of a shape that this engine knows.
    #[error("revocations: {0}")]
    Document(#[from] serde_json::Error),
    /// The document is of another schema.
    #[error("revocations: schema {0} is given, this engine reads schema {SCHEMA}")]
    Schema(u32),
}

/// Every revocation in force. Looked at for each request with a token, whether its decision is cached or not.
#[derive(Debug)]
pub struct Revocations {
    hash: Hash,
    by_issuer: HashMap<String, OfIssuer, ahash::RandomState>,
}

#[derive(Debug)]
struct OfIssuer {
    ids: HashSet<String, ahash::RandomState>,
    /// Seconds since 1970 before which a subject's tokens must not be issued.
    subjects: HashMap<String, i64, ahash::RandomState>,
    issued_before: i64,
}

impl Default for OfIssuer {
    fn default() -> Self {
        Self { ids: HashSet::default(), subjects: HashMap::default(), issued_before: i64::MIN }
    }
}

impl Default for Revocations {
    /// None at all: of an empty document.
    fn default() -> Self {
        Self { hash: Hash::of(b""), by_issuer: HashMap::default() }
    }
}

impl Revocations {
    /// Loads revocations from their canonical document.
    ///
    /// # Errors
    /// See [`RevocationsError`].
    pub fn load(document: &[u8]) -> Result<Self, RevocationsError> {
        let hash = Hash::of(document);
        let document: Document = serde_json::from_slice(document)?;
        if document.schema != SCHEMA {
            return Err(RevocationsError::Schema(document.schema));
        }
        let mut by_issuer: HashMap<String, OfIssuer, ahash::RandomState> = HashMap::default();
        for revocation in document.revocations {
            match revocation {
                Revocation::Token { issuer, id } => drop(by_issuer.entry(issuer).or_default().ids.insert(id)),
                Revocation::Subject { issuer, subject, issued_before } => later(
                    by_issuer.entry(issuer).or_default().subjects.entry(subject).or_insert(i64::MIN),
                    issued_before,
                ),
                Revocation::Issuer { issuer, issued_before } => {
                    later(&mut by_issuer.entry(issuer).or_default().issued_before, issued_before)
                }
            }
        }
        Ok(Self { hash, by_issuer })
    }

    /// Hash of the document.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Whether `token` is revoked. One that does not say when it was issued was issued before any time.
    pub(crate) fn revoke(&self, token: &Token) -> bool {
        self.by_issuer.get(&token.issuer).is_some_and(|of_issuer| {
            let subject = of_issuer.subjects.get(&token.subject).copied().unwrap_or(i64::MIN);
            token.issued_at < of_issuer.issued_before.max(subject)
                || token.id.as_ref().is_some_and(|id| of_issuer.ids.contains(id))
        })
    }
}

fn later(time: &mut i64, other: i64) {
    *time = other.max(*time);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::revocations;
    use crate::token::testing::token;

    #[test]
    fn tokens_are_revoked_by_id_by_subject_and_by_time() {
        let by_id = json!([{"issuer": "a", "id": "1"}]);
        let by_subject = json!([{"issuer": "a", "subject": "ada", "issued_before": 100}]);
        let by_time = json!([{"issuer": "a", "issued_before": 100}]);
        let table = [
            (&by_id, json!({"iss": "a", "jti": "1"}), true),
            (&by_id, json!({"iss": "a", "jti": "2"}), false),
            (&by_id, json!({"iss": "b", "jti": "1"}), false),
            (&by_id, json!({"iss": "a"}), false),
            (&by_subject, json!({"iss": "a", "sub": "ada", "iat": 99}), true),
            (&by_subject, json!({"iss": "a", "sub": "ada", "iat": 100}), false),
            (&by_subject, json!({"iss": "a", "sub": "ada"}), true),
            (&by_subject, json!({"iss": "a", "sub": "bob", "iat": 99}), false),
            (&by_subject, json!({"iss": "b", "sub": "ada", "iat": 99}), false),
            (&by_time, json!({"iss": "a", "sub": "bob", "iat": 99}), true),
            (&by_time, json!({"iss": "a", "iat": 100}), false),
            (&by_time, json!({"iss": "a"}), true),
            (&by_time, json!({"iss": "b", "iat": 99}), false),
        ];
        for (list, claims, wanted) in table {
            assert_eq!(revocations(list.clone()).revoke(&token(&claims)), wanted, "{list} {claims}");
        }
    }

    #[test]
    fn of_two_times_the_later_holds() {
        let twice = json!([{"issuer": "a", "issued_before": 100}, {"issuer": "a", "issued_before": 50}]);
        assert!(revocations(twice).revoke(&token(&json!({"iss": "a", "iat": 99}))));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for revocation in [json!({"issuer": "a"}), json!({"id": "1"}), json!({"issuer": "a", "id": "1", "more": 1})] {
            let document = json!({"schema": 1, "revocations": [revocation]}).to_string();
            assert!(Revocations::load(document.as_bytes()).is_err(), "{document}");
        }
        let later = Revocations::load(br#"{"schema": 2, "revocations": []}"#).expect_err("a later schema");
        assert!(later.to_string().contains("schema 2"));
    }
}
