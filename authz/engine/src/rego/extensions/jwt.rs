//! `io.jwt.*`: JSON Web Tokens (RFC 7519) in JWS compact serialization (RFC 7515).

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use regorus::Value;

use super::keys::{self, Key, ALGORITHMS};
use super::{Answer, Arguments, BuiltIn, Fault};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn { name: "io.jwt.decode", arity: 1, call: |given| decode(given.string(0)?, 0) },
    BuiltIn { name: "io.jwt.decode_verify", arity: 2, call: decode_verify },
    BuiltIn { name: "io.jwt.encode_sign", arity: 3, call: encode_sign },
    BuiltIn { name: "io.jwt.encode_sign_raw", arity: 3, call: encode_sign_raw },
    BuiltIn { name: "io.jwt.verify_rs256", arity: 2, call: |given| verify(given, "RS256") },
    BuiltIn { name: "io.jwt.verify_rs384", arity: 2, call: |given| verify(given, "RS384") },
    BuiltIn { name: "io.jwt.verify_rs512", arity: 2, call: |given| verify(given, "RS512") },
    BuiltIn { name: "io.jwt.verify_ps256", arity: 2, call: |given| verify(given, "PS256") },
    BuiltIn { name: "io.jwt.verify_ps384", arity: 2, call: |given| verify(given, "PS384") },
    BuiltIn { name: "io.jwt.verify_ps512", arity: 2, call: |given| verify(given, "PS512") },
    BuiltIn { name: "io.jwt.verify_es256", arity: 2, call: |given| verify(given, "ES256") },
    BuiltIn { name: "io.jwt.verify_es384", arity: 2, call: |given| verify(given, "ES384") },
    BuiltIn { name: "io.jwt.verify_eddsa", arity: 2, call: |given| verify(given, "EdDSA") },
    BuiltIn { name: "io.jwt.verify_hs256", arity: 2, call: |given| verify_secret(given, "HS256") },
    BuiltIn { name: "io.jwt.verify_hs384", arity: 2, call: |given| verify_secret(given, "HS384") },
    BuiltIn { name: "io.jwt.verify_hs512", arity: 2, call: |given| verify_secret(given, "HS512") },
];

/// Tokens within tokens that are followed.
const MAX_NESTING: usize = 8;

/// The three parts of a token, as they are written.
struct Token<'t> {
    header: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Token<'t> {
    fn parse(text: &'t str) -> Result<Self, Fault> {
        if !text.contains('.') {
            return Err("encoded JWT had no period separators".into());
        }
        match text.split('.').collect::<Vec<_>>()[..] {
            [header, payload, signature] => Ok(Self { header, payload, signature }),
            ref parts => Err(format!("encoded JWT must have 3 sections, found {}", parts.len()).into()),
        }
    }

    /// What the signature is over.
    fn signed(&self) -> String {
        format!("{}.{}", self.header, self.payload)
    }

    fn header(&self) -> Result<Value, Fault> {
        let header = object(&unencoded(self.header, "header")?).map_err(|error| format!("bad JWT header: {error}"))?;
        if header["enc"] != Value::Undefined {
            return Err("JWT is a JWE object, which is not supported".into());
        }
        Ok(header)
    }

    fn payload(&self) -> Result<String, Fault> {
        Ok(String::from_utf8_lossy(&unencoded(self.payload, "payload")?).into_owned())
    }

    fn signature(&self) -> Result<Vec<u8>, Fault> {
        unencoded(self.signature, "signature")
    }
}

fn unencoded(part: &str, name: &str) -> Result<Vec<u8>, Fault> {
    let bytes = keys::BASE64URL_LENIENT.decode(part.trim_end_matches('=').as_bytes());
    bytes.map_err(|error| format!("JWT {name} had invalid encoding: {error}").into())
}

fn object(json: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(json).map_err(|error| format!("invalid JSON: {error}"))?;
    // By way of serde's values: the interpreter's own reader does not take `1.5e+09`.
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value @ serde_json::Value::Object(_)) => Ok(value.into()),
        Ok(_) => Err("decoded JSON type was not an Object".to_owned()),
        Err(error) => Err(format!("invalid JSON: {error}")),
    }
}

fn decode(text: &str, nesting: usize) -> Answer {
    let token = Token::parse(text)?;
    let header = token.header()?;
    let payload = token.payload()?;
    if header["cty"] == Value::from("JWT") {
        if nesting == MAX_NESTING {
            return Err("tokens are nested too deep".into());
        }
        return decode(payload.trim_matches(['"', '\'']), nesting + 1);
    }
    let payload = object(payload.as_bytes())?;
    Ok(vec![header, payload, HEXLOWER.encode(&token.signature()?).into()].into())
}

/// The members of a header that say how it is verified, checked to be of their types.
struct Header {
    algorithm: String,
    id: Option<String>,
    content: Option<String>,
    /// Whether it holds a member that must be understood and is not.
    critical_unknown: bool,
}

impl Header {
    fn read(header: &Value) -> Result<Self, Fault> {
        const KNOWN: &[&str] = &["alg", "kid", "typ", "cty", "crit"];
        let text = |name: &'static str| match &header[name] {
            Value::Undefined => Ok(None),
            Value::String(text) => Ok(Some(text.to_string())),
            _ => Err(Fault::from(format!("{name}: must be a string"))),
        };
        text("typ")?;
        let critical = critical(&header["crit"])?;
        let members = header.as_object()?;
        let unknown = |name: &str| !KNOWN.contains(&name) && critical.contains(name);
        let critical_unknown = members.keys().any(|name| name.as_string().is_ok_and(|name| unknown(name)));
        let (algorithm, id, content) = (text("alg")?.unwrap_or_default(), text("kid")?, text("cty")?);
        Ok(Self { algorithm, id: id.filter(|id| !id.is_empty()), content, critical_unknown })
    }

    /// RFC 7515 sections 4.1.1 and 4.1.11.
    fn is_valid(&self) -> bool {
        !self.algorithm.is_empty() && !self.critical_unknown
    }
}

fn critical(value: &Value) -> Result<BTreeSet<String>, Fault> {
    if *value == Value::Undefined {
        return Ok(BTreeSet::new());
    }
    let names = value.as_array().map_err(|_| Fault::from("crit: must be a list"))?;
    let names: BTreeSet<String> = names.iter().filter_map(|name| Some(name.as_string().ok()?.to_string())).collect();
    if names.is_empty() {
        return Err("crit: must be a nonempty list".into());
    }
    Ok(names)
}

fn verify(given: &Arguments<'_>, algorithm: &str) -> Answer {
    let token = Token::parse(given.string(0)?)?;
    let keys = keys::parse(given.string(1)?)?;
    let signature = token.signature()?;
    let header = Header::read(&token.header()?)?;
    Ok(verified(&keys, &header, algorithm, token.signed().as_bytes(), &signature).into())
}

/// By the key that the header names, or else by any that is for the header's algorithm.
fn verified(keys: &[Key], header: &Header, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
    let named = keys.iter().find(|key| header.id.is_some() && key.id == header.id);
    if let Some(key) = named {
        return key.verifies(algorithm, signed, signature);
    }
    let suits = |key: &&Key| key.algorithm.as_ref().is_none_or(|only| *only == header.algorithm);
    keys.iter().filter(suits).any(|key| key.verifies(algorithm, signed, signature))
}

fn verify_secret(given: &Arguments<'_>, algorithm: &str) -> Answer {
    let (token, secret) = (Token::parse(given.string(0)?)?, Key::secret(given.string(1)?));
    Ok(secret.verifies(algorithm, token.signed().as_bytes(), &token.signature()?).into())
}

/// What a token must be.
struct Constraints {
    keys: Vec<Key>,
    algorithm: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    time_ns: f64,
}

impl Constraints {
    fn read(given: &Arguments<'_>) -> Result<Self, Fault> {
        let (mut certificates, mut secret, mut time) = (None, None, None);
        let mut constraints =
            Self { keys: Vec::new(), algorithm: None, issuer: None, audience: None, time_ns: now_ns() };
        for (name, value) in given.members(1)? {
            let name = name.as_string().map(AsRef::as_ref).unwrap_or_default();
            let text = || match value.as_string() {
                Ok(text) => Ok(Some(text.to_string()).filter(|text| !text.is_empty())),
                Err(_) => Err(Fault::from(format!("{name} constraint: must be a string"))),
            };
            match name {
                "cert" => certificates = Some(keys::parse(&text()?.unwrap_or_default())?),
                "secret" => secret = text()?,
                "alg" => constraints.algorithm = text()?,
                "iss" => constraints.issuer = text()?,
                "aud" => constraints.audience = text()?,
                "time" => time = Some(time_constraint(value)?),
                _ => return Err(format!("unknown token validation constraint: {name}").into()),
            }
        }
        constraints.keys = match (certificates, secret) {
            (Some(_), Some(_)) => return Err("duplicate key constraints".into()),
            (None, None) => return Err("no key constraint".into()),
            (Some(keys), None) => keys,
            (None, Some(secret)) => vec![Key::secret(&secret)],
        };
        constraints.time_ns = time.unwrap_or(constraints.time_ns);
        Ok(constraints)
    }

    /// Registered claims (RFC 7519 section 4.1).
    fn take(&self, payload: &Value) -> Result<bool, Fault> {
        let issued = match &self.issuer {
            None => true,
            Some(issuer) => payload["iss"] == Value::from(issuer.as_str()),
        };
        Ok(issued && self.takes_audience(&payload["aud"]) && self.is_in_time(payload)?)
    }

    fn takes_audience(&self, audience: &Value) -> bool {
        let wanted = Value::from(self.audience.as_deref().unwrap_or_default());
        match audience {
            Value::Undefined => self.audience.is_none(),
            Value::Array(several) => several.contains(&wanted),
            one => *one == wanted,
        }
    }

    fn is_in_time(&self, payload: &Value) -> Result<bool, Fault> {
        let now = Value::from(self.time_ns / 1e9);
        for (name, reached) in [("exp", false), ("nbf", true)] {
            match &payload[name] {
                Value::Undefined => {}
                time @ Value::Number(_) if (now >= *time) == reached => {}
                Value::Number(_) => return Ok(false),
                _ => return Err(format!("{name} value must be a number").into()),
            }
        }
        Ok(true)
    }
}

fn now_ns() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as f64
}

/// In nanoseconds since 1970; digits beyond what a double holds do not count.
fn time_constraint(value: &Value) -> Result<f64, Fault> {
    let number = value.as_number().map_err(|_| Fault::from("token time constraint: must be a number"))?;
    match number.format_decimal().parse::<f64>()? {
        time if time < 0.0 => Err("token time constraint: must not be negative".into()),
        time => Ok(time),
    }
}

fn decode_verify(given: &Arguments<'_>) -> Answer {
    let unverified = || Ok(vec![false.into(), Value::new_object(), Value::new_object()].into());
    let constraints = Constraints::read(given)?;
    let mut text = given.string(0)?.to_owned();
    for _ in 0..=MAX_NESTING {
        let token = Token::parse(&text)?;
        let decoded = token.header()?;
        let header = Header::read(&decoded)?;
        let wrong = constraints.algorithm.as_ref().is_some_and(|only| *only != header.algorithm);
        if wrong || !header.is_valid() {
            return unverified();
        }
        let signature = token.signature()?;
        let signed = token.signed();
        if !verified(&constraints.keys, &header, &header.algorithm, signed.as_bytes(), &signature) {
            return unverified();
        }
        let payload = token.payload()?;
        if header.content.is_some_and(|content| content.eq_ignore_ascii_case("JWT")) {
            text = payload;
            continue;
        }
        let payload = object(payload.as_bytes())?;
        return match constraints.take(&payload)? {
            true => Ok(vec![true.into(), decoded, payload].into()),
            false => unverified(),
        };
    }
    Err("tokens are nested too deep".into())
}

fn encode_sign(given: &Arguments<'_>) -> Answer {
    let json = |at: usize| given.members(at).map(drop).and_then(|()| compact(given.value(at)));
    encoded(&json(0)?, &json(1)?, &json(2)?)
}

fn encode_sign_raw(given: &Arguments<'_>) -> Answer {
    encoded(given.string(0)?, given.string(1)?, given.string(2)?)
}

/// JSON as Go writes it: members in order, without white space.
fn compact(value: &Value) -> Result<String, Fault> {
    Ok(serde_json::to_string(&serde_json::from_str::<serde_json::Value>(&value.to_json_str()?)?)?)
}

fn encoded(header: &str, payload: &str, jwks: &str) -> Answer {
    let members: serde_json::Value =
        serde_json::from_str(header).map_err(|error| format!("invalid headers: {error}"))?;
    let algorithm = members["alg"].as_str().ok_or_else(|| Fault::from("missing or invalid 'alg' header"))?;
    if !ALGORITHMS.contains(&algorithm) {
        return Err(format!("unknown JWS algorithm: {algorithm}").into());
    }
    let is_token = members["typ"].as_str().is_none_or(|kind| kind == "JWT");
    if is_token && serde_json::from_str::<serde::de::IgnoredAny>(payload).is_err() {
        return Err("type is JWT but payload is not JSON".into());
    }
    let signed =
        format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(payload.as_bytes()));
    let signature = keys::sign(jwks, algorithm, signed.as_bytes())?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)).into())
}
