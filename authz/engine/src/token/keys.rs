//! Key sets: the JWKS of every issuer, read once, with what is weak or not for signing left out.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use crate::Hash;

/// RSA keys below this many bits are refused (RFC 7518 section 3.3).
const MIN_RSA_BITS: usize = 2048;

/// The signature algorithms that are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Es256,
}

impl Algorithm {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            _ => None,
        }
    }
}

/// One public key that may verify tokens.
pub(super) struct Key {
    pub(super) id: Option<String>,
    material: Material,
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256 { point: Vec<u8> },
}

impl Key {
    /// Whether this key verifies `signature` over `message` by `algorithm`. A key answers only to the algorithm of
    /// its own kind, so that no token can choose how a key is read.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm) {
            (Material::Rsa { n, e }, Algorithm::Rs256) => RsaPublicKeyComponents { n, e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            (Material::P256 { point }, Algorithm::Es256) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// Why key sets cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KeySetsError {
    /// Not JSON of the expected shape.
    #[error("key sets: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A key that would verify tokens but may not.
    #[error("key set {set:?}, key {index}: {reason}")]
    BadKey {
        /// Name of the key set.
        set: String,
        /// Place of the key in its set, from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two keys of one set share an id.
    #[error("key set {set:?}: two keys have the id {kid:?}")]
    DuplicateId {
        /// Name of the key set.
        set: String,
        /// The id.
        kid: String,
    },
    /// Nothing in a set could verify a token.
    #[error("key set {set:?} has no RSA or P-256 key for signatures")]
    NoUsableKey {
        /// Name of the key set.
        set: String,
    },
}

/// The key sets of one workload, by name. Immutable; new keys are a new value with another hash.
pub struct KeySets {
    hash: Hash,
    sets: BTreeMap<String, Vec<Key>>,
}

impl Default for KeySets {
    /// None at all: of an empty document.
    fn default() -> Self {
        Self { hash: Hash::of(b"{}"), sets: BTreeMap::new() }
    }
}

impl KeySets {
    /// Loads `{"NAME": JWKS, …}` (JWKS by RFC 7517 section 5).
    ///
    /// Keys of another kind, or for encryption, are left out: a JWKS may hold them.
    ///
    /// # Errors
    /// See [`KeySetsError`].
    pub fn load(bytes: &[u8]) -> Result<Self, KeySetsError> {
        let documents: BTreeMap<String, Jwks> = serde_json::from_slice(bytes)?;
        let sets = documents.into_iter().map(|(name, jwks)| Ok((name.clone(), read_set(&name, jwks)?)));
        Ok(Self { hash: Hash::of(bytes), sets: sets.collect::<Result<_, KeySetsError>>()? })
    }

    /// Hash of the bytes that the sets were loaded from.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    pub(super) fn get(&self, name: &str) -> &[Key] {
        self.sets.get(name).map_or(&[], Vec::as_slice)
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn is_for_signatures(&self) -> bool {
        let usage = self.usage.as_deref().is_none_or(|usage| usage == "sig");
        usage && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"))
    }
}

fn read_set(name: &str, jwks: Jwks) -> Result<Vec<Key>, KeySetsError> {
    let mut keys: Vec<Key> = Vec::new();
    for (index, jwk) in jwks.keys.iter().enumerate() {
        let bad = |reason| KeySetsError::BadKey { set: name.to_owned(), index, reason };
        let Some(material) = read_key(jwk).map_err(bad)? else { continue };
        if jwk.kid.is_some() && keys.iter().any(|key| key.id == jwk.kid) {
            return Err(KeySetsError::DuplicateId { set: name.to_owned(), kid: jwk.kid.clone().unwrap_or_default() });
        }
        keys.push(Key { id: jwk.kid.clone(), material });
    }
    if keys.is_empty() {
        return Err(KeySetsError::NoUsableKey { set: name.to_owned() });
    }
    Ok(keys)
}

fn read_key(jwk: &Jwk) -> Result<Option<Material>, &'static str> {
    let algorithm = jwk.alg.as_deref();
    match jwk.kty.as_str() {
        _ if !jwk.is_for_signatures() => Ok(None),
        "RSA" if algorithm.is_none_or(|alg| alg == "RS256") => read_rsa(jwk).map(Some),
        "EC" if jwk.crv.as_deref() == Some("P-256") && algorithm.is_none_or(|alg| alg == "ES256") => {
            read_p256(jwk).map(Some)
        }
        _ => Ok(None),
    }
}

fn read_rsa(jwk: &Jwk) -> Result<Material, &'static str> {
    let n = number(jwk.n.as_deref(), "n is not base64url without padding")?;
    let e = number(jwk.e.as_deref(), "e is not base64url without padding")?;
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if bits < MIN_RSA_BITS {
        return Err("an RSA key must have at least 2048 bits");
    }
    Ok(Material::Rsa { n, e })
}

fn read_p256(jwk: &Jwk) -> Result<Material, &'static str> {
    let mut point = vec![4]; // uncompressed (SEC 1 section 2.3.3)
    for coordinate in [&jwk.x, &jwk.y] {
        let bytes = decode(coordinate.as_deref()).ok_or("x or y is not base64url without padding")?;
        if bytes.len() != 32 {
            return Err("x and y of a P-256 key have 32 bytes");
        }
        point.extend(bytes);
    }
    Ok(Material::P256 { point })
}

fn number(text: Option<&str>, error: &'static str) -> Result<Vec<u8>, &'static str> {
    let bytes = decode(text).ok_or(error)?;
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count(); // ring takes no leading zeros
    Ok(bytes[zeros..].to_vec())
}

fn decode(text: Option<&str>) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text?.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{json, Value};

    use super::*;
    use crate::token::testing::Signer;

    fn load(keys: &Value) -> Result<usize, String> {
        let sets =
            KeySets::load(json!({"s": {"keys": keys}}).to_string().as_bytes()).map_err(|error| error.to_string())?;
        Ok(sets.get("s").len())
    }

    fn with(mut key: Value, name: &str, value: Value) -> Value {
        key[name] = value;
        key
    }

    #[test]
    fn keys_that_may_not_verify_are_refused_or_left_out() {
        let good = || Signer::new().jwk();
        let rsa = |bytes: usize| json!({"kty": "RSA", "e": "AQAB", "n": BASE64URL_NOPAD.encode(&vec![0xff; bytes])});
        let one = |key| json!([key]);
        let mut table = vec![
            ("sound", one(good()), Ok(1)),
            (
                "two keys without ids",
                json!([with(good(), "kid", Value::Null), with(good(), "kid", Value::Null)]),
                Ok(2),
            ),
            ("the same id twice", json!([good(), good()]), Err("two keys have the id \"k\"")),
            ("RSA", one(rsa(256)), Ok(1)),
            ("a short RSA key", one(rsa(255)), Err("at least 2048 bits")),
            ("a modulus with padding", one(with(rsa(256), "n", json!("AA=="))), Err("base64url")),
            ("a short coordinate", one(with(good(), "x", json!("AAAA"))), Err("32 bytes")),
            ("no coordinate", one(with(good(), "y", Value::Null)), Err("base64url")),
            ("no keys", json!([]), Err("no RSA or P-256 key")),
            ("a key that is none", json!([1]), Err("invalid type")),
        ];
        let unfit = [
            ("use", json!("enc")),
            ("key_ops", json!(["sign"])),
            ("alg", json!("RS256")),
            ("crv", json!("P-384")),
            ("kty", json!("oct")),
        ];
        table.extend(unfit.iter().map(|(name, value)| {
            let left_out = json!([with(with(good(), "kid", json!("other")), name, value.clone()), good()]);
            (*name, left_out, Ok(1))
        }));
        for (what, keys, wanted) in table {
            match (load(&keys), wanted) {
                (Ok(count), wanted) => assert_eq!(Ok(count), wanted, "{what}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{what}: {error}"),
                (Err(error), Ok(_)) => panic!("{what}: {error}"),
            }
        }
    }

    #[test]
    fn a_key_set_that_is_not_there_has_no_keys() {
        assert!(KeySets::load(b"{}").expect("key sets").get("s").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_key_sets_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = KeySets::load(&bytes);
        }
    }
}
