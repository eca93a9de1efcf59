//! JSON Web Tokens: RequestAuthentication, verified in the engine so that both mounts verify alike.
//!
//! JWS compact serialization (RFC 7515), claims (RFC 7519), with the cautions of RFC 8725: the algorithm is one of a
//! fixed few and must be that of the key; no critical extension is known; members are never given twice.

mod cache;
pub mod keys;
mod outputs;
pub(crate) mod places;
pub mod revocations;
mod rules;

use std::borrow::Cow;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

pub(crate) use cache::TokenCache;
use keys::{Algorithm, Key, KeySets};
pub(crate) use outputs::VerifiedHeaders;
use revocations::Revocations;
pub(crate) use rules::TokenRules;

use crate::decision::Reason;
use crate::document::Authentication;

/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Clocks may differ by this many seconds, as in Envoy's `jwt_authn`.
const CLOCK_SKEW: i64 = 60;

/// What tokens are trusted by: the keys that verify them, and what revokes them nevertheless.
#[derive(Clone, Copy)]
pub struct Trust<'a> {
    /// The issuers' keys.
    pub keys: &'a KeySets,
    /// The revocations in force.
    pub revocations: &'a Revocations,
}

/// A verified token.
#[derive(Debug)]
pub struct Token {
    /// `iss`.
    pub issuer: String,
    /// `sub`; empty where the token has none.
    pub subject: String,
    /// `aud`, whether it was one text or a list.
    pub audiences: Vec<String>,
    /// `azp`.
    pub presenter: Option<String>,
    /// All claims; those that are lists of words are lists.
    pub claims: Map<String, Value>,
    /// Whether the application gets the token too.
    pub forward: bool,
    /// `jti`.
    id: Option<String>,
    /// `iat`, in seconds since 1970; before all time where the token does not say.
    issued_at: i64,
    /// Headers for the application.
    pub(crate) outputs: Vec<outputs::Output>,
    expires: i64,
    not_before: i64,
}

impl Token {
    /// `issuer/subject`, as rules name it; none where the token has no subject, as in Istio.
    pub fn principal(&self) -> Option<String> {
        (!self.subject.is_empty()).then(|| format!("{}/{}", self.issuer, self.subject))
    }

    fn never_ends(&self) -> bool {
        self.expires == i64::MAX
    }

    /// When the token ceases to be taken, in milliseconds since 1970.
    pub fn ends_ms(&self) -> u64 {
        u64::try_from(self.expires.saturating_add(CLOCK_SKEW)).unwrap_or(0).saturating_mul(1000)
    }

    /// Whether a token that was verified once may still be used at `now`, seconds since 1970, by rules that may be
    /// others now. Its signature stays verified: a key that its issuer no longer shows revokes no token.
    pub(crate) fn check_again(&self, rules: &TokenRules, trust: &Trust<'_>, now: i64) -> Result<(), Reason> {
        rules.accept_again(self)?;
        self.check_revoked(trust)?;
        self.check_time(now)
    }

    pub(crate) fn check_revoked(&self, trust: &Trust<'_>) -> Result<(), Reason> {
        if trust.revocations.revoke(self) {
            return Err(Reason::TokenRevoked);
        }
        Ok(())
    }

    /// Whether the token may be used at `now`, seconds since 1970.
    fn check_time(&self, now: i64) -> Result<(), Reason> {
        if now >= self.expires.saturating_add(CLOCK_SKEW) {
            return Err(Reason::TokenExpired);
        }
        if now < self.not_before.saturating_sub(CLOCK_SKEW) {
            return Err(Reason::TokenNotYetValid);
        }
        Ok(())
    }
}

/// `path_and_query` as it may be recorded where no program says which parameters hold tokens: without `access_token`
/// (RFC 6750 section 2.3).
pub fn path_without_token(path_and_query: &[u8]) -> Cow<'_, [u8]> {
    places::without_parameter(path_and_query, "access_token").map_or(Cow::Borrowed(path_and_query), Cow::Owned)
}

/// Verifies `text` by those of `rules` that are for its issuer: one that takes it is enough, as in Istio.
///
/// # Errors
/// The reason for the refusal, of the first such rule.
pub(crate) fn verify<'a>(
    text: &[u8],
    rules: impl Iterator<Item = &'a Authentication>,
    keys: &KeySets,
    now: i64,
) -> Result<Token, Reason> {
    let jws = Jws::parse(text)?;
    let claims = object(&jws.payload)?;
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(Reason::TokenIssuer)?;
    let mut refusal = None;
    for rule in rules.filter(|rule| rule.issuer == issuer) {
        match jws.verify(&claims, rule, keys, now) {
            Ok(token) => return Ok(token),
            Err(reason) => refusal = refusal.or(Some(reason)),
        }
    }
    Err(refusal.unwrap_or(Reason::TokenIssuer))
}

/// A token taken apart, its signature not yet checked.
struct Jws<'t> {
    algorithm: Algorithm,
    key_id: Option<String>,
    payload: Vec<u8>,
    /// Header and payload as they are written.
    signed: &'t [u8],
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    fn parse(text: &'t [u8]) -> Result<Self, Reason> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenTooLarge);
        }
        let mut parts = text.split(|&byte| byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Reason::TokenMalformed);
        };
        let header_members = object(&base64url(header)?)?;
        if header_members.contains_key("crit") {
            return Err(Reason::TokenCritical);
        }
        Ok(Self {
            algorithm: algorithm(&header_members)?,
            key_id: text_member(&header_members, "kid")?,
            payload: base64url(payload)?,
            signed: &text[..header.len() + 1 + payload.len()],
            signature: base64url(signature)?,
        })
    }

    fn verify(
        &self,
        claims: &Map<String, Value>,
        rule: &Authentication,
        keys: &KeySets,
        now: i64,
    ) -> Result<Token, Reason> {
        self.check_signature(keys.get(&rule.keys).ok_or(Reason::TokenKeysUnavailable)?)?;
        let token = self.read_claims(claims, rule)?;
        token.check_time(now)?;
        Ok(token)
    }

    /// A token that names its key is checked by that key alone; one that names none by every key of the set.
    fn check_signature(&self, keys: &[Key]) -> Result<(), Reason> {
        let named = |key: &&Key| self.key_id.is_none() || key.id == self.key_id;
        let mut candidates = keys.iter().filter(named).peekable();
        if candidates.peek().is_none() {
            return Err(Reason::TokenKey);
        }
        if candidates.any(|key| key.verifies(self.algorithm, self.signed, &self.signature)) {
            return Ok(());
        }
        Err(Reason::TokenSignature)
    }

    fn read_claims(&self, claims: &Map<String, Value>, rule: &Authentication) -> Result<Token, Reason> {
        let audiences = audiences(claims)?;
        rule.check_audiences(&audiences)?;
        let issued_at = seconds(claims, "iat")?;
        let expires = match seconds(claims, "exp")? {
            None if rule.allow_missing_expiry => i64::MAX,
            expires => expires.ok_or(Reason::TokenWithoutExpiry)?,
        };
        Ok(Token {
            issuer: rule.issuer.clone(),
            subject: text_member(claims, "sub")?.unwrap_or_default(),
            audiences,
            presenter: text_member(claims, "azp")?,
            expires,
            not_before: seconds(claims, "nbf")?.max(issued_at).unwrap_or(i64::MIN),
            issued_at: issued_at.unwrap_or(i64::MIN),
            id: text_member(claims, "jti")?,
            forward: rule.forward_original_token,
            outputs: outputs::outputs(rule, &self.payload_text(), claims),
            claims: with_words(claims, rule),
        })
    }

    /// The payload as it is written.
    fn payload_text(&self) -> Cow<'_, str> {
        let payload = self.signed.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
        String::from_utf8_lossy(payload)
    }
}

fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, Reason> {
    header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse).ok_or(Reason::TokenAlgorithm)
}

fn base64url(text: &[u8]) -> Result<Vec<u8>, Reason> {
    BASE64URL_NOPAD.decode(text).map_err(|_| Reason::TokenMalformed)
}

fn object(json: &[u8]) -> Result<Map<String, Value>, Reason> {
    match crate::strict_json::parse(json) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(Reason::TokenMalformed),
    }
}

/// `claims` with those that `rule` says are words, and Istio's own, as lists.
fn with_words(claims: &Map<String, Value>, rule: &Authentication) -> Map<String, Value> {
    let mut claims = claims.clone();
    let named = rule.space_delimited_claims.iter().map(String::as_str);
    for name in named.chain(["scope", "permission"]) {
        if let Some(Value::String(text)) = claims.get(name) {
            let words = text.split_ascii_whitespace().map(Value::from).collect();
            claims.insert(name.to_owned(), Value::Array(words));
        }
    }
    claims
}

impl Authentication {
    fn check_audiences(&self, audiences: &[String]) -> Result<(), Reason> {
        if self.audiences.is_empty() || audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Ok(());
        }
        Err(Reason::TokenAudience)
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Reason> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(Reason::TokenMalformed);
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(value) => Ok(vec![text(value)?]),
    }
}

fn text_member(members: &Map<String, Value>, name: &str) -> Result<Option<String>, Reason> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Reason::TokenMalformed),
    }
}

/// A NumericDate (RFC 7519 section 2), which may have a fraction.
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, Reason> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_i64().or(number.as_f64().map(|float| float as i64))),
        Some(_) => Err(Reason::TokenMalformed),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
