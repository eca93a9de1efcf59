//! Key sets: the JWKS of every issuer, read once, with what is weak or not for signing left out.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

use crate::Hash;

/// RSA keys below this many bits are refused (RFC 7518 section 3.3).
const MIN_RSA_BITS: usize = 2048;

/// Keys that a set may have.
const MAX_KEYS: usize = 100;

/// ring verifies by no larger ones.
const MAX_RSA_BITS: usize = 8192;

/// The signature algorithms that are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// By its name in RFC 7518 section 3.1 and RFC 8037 section 3.1. ES512 is not among them: ring has no P-521.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    /// How an RSA key verifies; none where it does not.
    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::EdDsa => return None,
        })
    }
}

/// A curve, which goes with one algorithm.
#[derive(Clone, Copy)]
enum Curve {
    P256,
    P384,
    Ed25519,
}

impl Curve {
    /// The curve of a key of type `kty` (RFC 7518 section 6.2.1.1, RFC 8037 section 2).
    fn parse(kty: &str, crv: &str) -> Option<Self> {
        match (kty, crv) {
            ("EC", "P-256") => Some(Self::P256),
            ("EC", "P-384") => Some(Self::P384),
            ("OKP", "Ed25519") => Some(Self::Ed25519),
            _ => None,
        }
    }

    fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::Ed25519 => Algorithm::EdDsa,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::P384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::Ed25519 => &signature::ED25519,
        }
    }

    /// Bytes of a coordinate.
    fn size(self) -> usize {
        match self {
            Self::P256 | Self::Ed25519 => 32,
            Self::P384 => 48,
        }
    }
}

/// One public key that may verify tokens.
pub(super) struct Key {
    pub(super) id: Option<String>,
    /// The only algorithm that it is for, where its set says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Point(Curve, Vec<u8>),
}

impl Key {
    /// Whether this key verifies `signature` over `message` by `algorithm`. A key answers only to algorithms of its
    /// own kind, and only to the one that its set names, so that no token can choose how a key is read.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if self.algorithm.is_some_and(|only| only != algorithm) {
            return false;
        }
        match &self.material {
            Material::Rsa { n, e } => algorithm.rsa().is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Material::Point(curve, point) => {
                curve.algorithm() == algorithm
                    && UnparsedPublicKey::new(curve.verification(), point).verify(message, signature).is_ok()
            }
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
    /// A token that names no key would be checked by too many.
    #[error("key set {set:?}: {count} keys are given, at most {MAX_KEYS} are expected")]
    TooManyKeys {
        /// Name of the key set.
        set: String,
        /// How many keys it has.
        count: usize,
    },
    /// Nothing in a set could verify a token.
    #[error("key set {set:?} has no RSA, P-256, P-384 or Ed25519 key for signatures")]
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

    /// The keys of the set `name`; none where there is no such set (yet).
    pub(super) fn get(&self, name: &str) -> Option<&[Key]> {
        self.sets.get(name).map(Vec::as_slice)
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
    if jwks.keys.len() > MAX_KEYS {
        return Err(KeySetsError::TooManyKeys { set: name.to_owned(), count: jwks.keys.len() });
    }
    let mut keys: Vec<Key> = Vec::new();
    for (index, jwk) in jwks.keys.iter().enumerate() {
        let bad = |reason| KeySetsError::BadKey { set: name.to_owned(), index, reason };
        let Some((algorithm, material)) = read_key(jwk).map_err(bad)? else { continue };
        if jwk.kid.is_some() && keys.iter().any(|key| key.id == jwk.kid) {
            return Err(KeySetsError::DuplicateId { set: name.to_owned(), kid: jwk.kid.clone().unwrap_or_default() });
        }
        keys.push(Key { id: jwk.kid.clone(), algorithm, material });
    }
    if keys.is_empty() {
        return Err(KeySetsError::NoUsableKey { set: name.to_owned() });
    }
    Ok(keys)
}

/// The key with the only algorithm that it is for; none where it verifies nothing that is known here.
fn read_key(jwk: &Jwk) -> Result<Option<(Option<Algorithm>, Material)>, &'static str> {
    let algorithm = match jwk.alg.as_deref().map(Algorithm::parse) {
        Some(None) => return Ok(None),
        Some(known) => known,
        None => None,
    };
    let curve = Curve::parse(&jwk.kty, jwk.crv.as_deref().unwrap_or_default());
    let is_for = |curve: &Curve| algorithm.is_none_or(|only| only == curve.algorithm());
    let material = match (jwk.kty.as_str(), curve.filter(is_for)) {
        _ if !jwk.is_for_signatures() => return Ok(None),
        ("RSA", _) if algorithm.is_none_or(|only| only.rsa().is_some()) => read_rsa(jwk)?,
        (_, Some(curve)) => read_point(jwk, curve)?,
        _ => return Ok(None),
    };
    Ok(Some((algorithm, material)))
}

fn read_rsa(jwk: &Jwk) -> Result<Material, &'static str> {
    let n = number(jwk.n.as_deref(), "n is not base64url without padding")?;
    let e = number(jwk.e.as_deref(), "e is not base64url without padding")?;
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    match bits {
        0..MIN_RSA_BITS => Err("an RSA key must have at least 2048 bits"),
        MIN_RSA_BITS..=MAX_RSA_BITS => Ok(Material::Rsa { n, e }),
        _ => Err("an RSA key may have at most 8192 bits"),
    }
}

fn read_point(jwk: &Jwk, curve: Curve) -> Result<Material, &'static str> {
    let (mut point, coordinates) = match curve {
        Curve::Ed25519 => (Vec::new(), &[&jwk.x][..]),
        Curve::P256 | Curve::P384 => (vec![4], &[&jwk.x, &jwk.y][..]), // uncompressed (SEC 1 section 2.3.3)
    };
    for coordinate in coordinates {
        let bytes = decode(coordinate.as_deref()).ok_or("x or y is not base64url without padding")?;
        if bytes.len() != curve.size() {
            return Err("x and y have 32 bytes, or 48 on P-384");
        }
        point.extend(bytes);
    }
    Ok(Material::Point(curve, point))
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
        Ok(sets.get("s").expect("the set").len())
    }

    fn with(mut key: Value, name: &str, value: Value) -> Value {
        key[name] = value;
        key
    }

    #[test]
    fn keys_that_may_not_verify_are_refused_or_left_out() {
        let good = || Signer::new().jwk();
        let rsa = |bytes: usize| json!({"kty": "RSA", "e": "AQAB", "n": BASE64URL_NOPAD.encode(&vec![0xff; bytes])});
        let point = |kty: &str, crv: &str, size: usize| {
            let coordinate = BASE64URL_NOPAD.encode(&vec![1; size]);
            json!({"kty": kty, "crv": crv, "x": coordinate, "y": coordinate})
        };
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
            ("a long RSA key", one(rsa(1025)), Err("at most 8192 bits")),
            ("an RSA key for one algorithm", one(with(rsa(256), "alg", json!("PS384"))), Ok(1)),
            ("an RSA key for another kind of algorithm", json!([with(rsa(256), "alg", json!("ES256")), good()]), Ok(1)),
            ("P-384", one(point("EC", "P-384", 48)), Ok(1)),
            ("P-384 with short coordinates", one(point("EC", "P-384", 32)), Err("48 on P-384")),
            ("Ed25519", one(point("OKP", "Ed25519", 32)), Ok(1)),
            ("a long Ed25519 key", one(point("OKP", "Ed25519", 33)), Err("32 bytes")),
            ("P-521", json!([point("EC", "P-521", 66), good()]), Ok(1)),
            ("Ed448", json!([point("OKP", "Ed448", 57), good()]), Ok(1)),
            ("a curve of another type", json!([point("EC", "Ed25519", 32), good()]), Ok(1)),
            ("a short coordinate", one(with(good(), "x", json!("AAAA"))), Err("32 bytes")),
            ("no coordinate", one(with(good(), "y", Value::Null)), Err("base64url")),
            ("100 keys", Value::Array(vec![with(good(), "kid", Value::Null); 100]), Ok(100)),
            ("101 keys", Value::Array(vec![with(good(), "kid", Value::Null); 101]), Err("at most 100")),
            ("no keys", json!([]), Err("no RSA, P-256, P-384 or Ed25519 key")),
            ("a key that is none", json!([1]), Err("invalid type")),
        ];
        let unfit = [
            ("use", json!("enc")),
            ("key_ops", json!(["sign"])),
            ("alg", json!("RS256")),
            ("crv", json!("secp256k1")),
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
        assert!(KeySets::load(b"{}").expect("key sets").get("s").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_key_sets_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = KeySets::load(&bytes);
        }
    }
}
