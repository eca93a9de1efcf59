//! JSON Web Tokens: RequestAuthentication, verified in the engine so that both mounts verify alike.
//!
//! JWS compact serialization (RFC 7515), claims (RFC 7519), with the cautions of RFC 8725: the algorithm is one of a
//! fixed few and must be that of the key; no critical extension is known; members are never given twice.

mod cache;
pub mod keys;
pub mod revocations;
mod strict_json;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

pub(crate) use cache::TokenCache;
use keys::{Algorithm, Key, KeySets};
use revocations::Revocations;

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
    /// All claims.
    pub claims: Map<String, Value>,
    /// Whether the application gets the token too.
    pub forward: bool,
    /// `jti`.
    id: Option<String>,
    /// `iat`, in seconds since 1970; before all time where the token does not say.
    issued_at: i64,
    expires: i64,
    not_before: i64,
}

impl Token {
    /// `issuer/subject`, as rules name it; none where the token has no subject, as in Istio.
    pub fn principal(&self) -> Option<String> {
        (!self.subject.is_empty()).then(|| format!("{}/{}", self.issuer, self.subject))
    }

    /// When the token ceases to be taken, in milliseconds since 1970.
    pub fn ends_ms(&self) -> u64 {
        u64::try_from(self.expires.saturating_add(CLOCK_SKEW)).unwrap_or(0).saturating_mul(1000)
    }

    /// Whether a token that was verified once may still be used at `now`, seconds since 1970, by rules that may be
    /// others now. Its signature stays verified: a key that its issuer no longer shows revokes no token.
    pub(crate) fn check_again(&self, rules: &[Authentication], trust: &Trust<'_>, now: i64) -> Result<(), Reason> {
        let rule = rules.iter().find(|rule| rule.issuer == self.issuer).ok_or(Reason::TokenIssuer)?;
        rule.check_audiences(&self.audiences)?;
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

/// The token of the `Authorization` headers, joined; none where they carry something else.
///
/// The scheme's case does not matter (RFC 9110 section 11.1), and a token that stands behind another scheme is given
/// back with all before it, which verifies as no token: an application may read what we passed over.
pub(crate) fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let mut schemes = authorization.split(|&byte| byte == b',').map(<[u8]>::trim_ascii_start);
    if !schemes.any(|part| strip_scheme(part).is_some()) {
        return None;
    }
    Some(strip_scheme(authorization).unwrap_or(authorization))
}

fn strip_scheme(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = credentials.split_at_checked(b"bearer".len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && matches!(rest.first(), Some(b' ' | b'\t'));
    is_bearer.then(|| rest.strip_prefix(b" ").unwrap_or(rest))
}

/// Verifies `text` by the rule of its issuer.
///
/// # Errors
/// The reason for the refusal.
pub(crate) fn verify(text: &[u8], rules: &[Authentication], keys: &KeySets, now: i64) -> Result<Token, Reason> {
    let jws = Jws::parse(text)?;
    let claims = object(&jws.payload)?;
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(Reason::TokenIssuer)?;
    let rule = rules.iter().find(|rule| rule.issuer == issuer).ok_or(Reason::TokenIssuer)?;
    jws.check_signature(keys.get(&rule.keys))?;
    let token = read_claims(claims, rule)?;
    token.check_time(now)?;
    Ok(token)
}

/// A token taken apart, its signature not yet checked.
struct Jws<'t> {
    algorithm: Algorithm,
    key_id: Option<String>,
    payload: Vec<u8>,
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
}

fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, Reason> {
    header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse).ok_or(Reason::TokenAlgorithm)
}

fn base64url(text: &[u8]) -> Result<Vec<u8>, Reason> {
    BASE64URL_NOPAD.decode(text).map_err(|_| Reason::TokenMalformed)
}

fn object(json: &[u8]) -> Result<Map<String, Value>, Reason> {
    match strict_json::parse(json) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(Reason::TokenMalformed),
    }
}

fn read_claims(claims: Map<String, Value>, rule: &Authentication) -> Result<Token, Reason> {
    let audiences = audiences(&claims)?;
    rule.check_audiences(&audiences)?;
    let issued_at = seconds(&claims, "iat")?;
    Ok(Token {
        issuer: rule.issuer.clone(),
        subject: text_member(&claims, "sub")?.unwrap_or_default(),
        audiences,
        presenter: text_member(&claims, "azp")?,
        expires: seconds(&claims, "exp")?.ok_or(Reason::TokenWithoutExpiry)?,
        not_before: seconds(&claims, "nbf")?.max(issued_at).unwrap_or(i64::MIN),
        issued_at: issued_at.unwrap_or(i64::MIN),
        id: text_member(&claims, "jti")?,
        forward: rule.forward_original_token,
        claims,
    })
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
