//! Keys that tokens are verified and signed with: PEM certificates and public keys, and JWKs (RFC 7517).

use std::sync::LazyLock;

use data_encoding::{Encoding, BASE64URL_NOPAD, BASE64_MIME_PERMISSIVE};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::Fault;

/// Base64url as Go decodes it: bits that are left over are passed over.
pub(super) static BASE64URL_LENIENT: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = BASE64URL_NOPAD.specification();
    specification.check_trailing_bits = false;
    specification.encoding().unwrap_or(BASE64URL_NOPAD)
});

/// Algorithms of RFC 7518 section 3.1 and RFC 8037 that OPA knows. ES512 is not verified: ring has no P-521.
pub(super) const ALGORITHMS: &[&str] = &[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "EdDSA",
];

/// A key with what its set says of it.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithm: Option<String>,
    material: Material,
}

enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    Ec {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

impl Key {
    /// A secret, for `HS…`.
    pub(super) fn secret(secret: &str) -> Self {
        Self { id: None, algorithm: None, material: Material::Secret(secret.as_bytes().to_vec()) }
    }

    /// Whether this key verifies `signature` over `message` by `algorithm`.
    pub(super) fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa { n, e } => rsa_verification(algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Material::Ec { curve, point } => {
                let verification: &dyn signature::VerificationAlgorithm = match (algorithm, curve) {
                    ("ES256", Curve::P256) => &signature::ECDSA_P256_SHA256_FIXED,
                    ("ES384", Curve::P384) => &signature::ECDSA_P384_SHA384_FIXED,
                    _ => return false,
                };
                UnparsedPublicKey::new(verification, point).verify(message, signature).is_ok()
            }
            Material::Ed25519(point) => {
                algorithm == "EdDSA"
                    && UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signature).is_ok()
            }
            Material::Secret(secret) => hmac_algorithm(algorithm)
                .is_some_and(|algorithm| hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()),
        }
    }
}

fn rsa_verification(algorithm: &str) -> Option<&'static signature::RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn hmac_algorithm(algorithm: &str) -> Option<hmac::Algorithm> {
    Some(match algorithm {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => return None,
    })
}

/// The keys in a PEM certificate or public key, a JWK or a JWKS.
pub(super) fn parse(text: &str) -> Result<Vec<Key>, Fault> {
    match pem(text)? {
        Some((label, der)) if label == "CERTIFICATE" => {
            let (_, certificate) = X509Certificate::from_der(&der)
                .map_err(|error| format!("failed to parse a PEM certificate: {error}"))?;
            Ok(vec![public(certificate.public_key())?])
        }
        Some((label, der)) if label == "PUBLIC KEY" => {
            let (_, key) = SubjectPublicKeyInfo::from_der(&der)
                .map_err(|error| format!("failed to parse a PEM public key: {error}"))?;
            Ok(vec![public(&key)?])
        }
        Some(_) => Err("failed to extract a Key from the PEM certificate".into()),
        None => parse_jwks(text),
    }
}

/// The label and the contents of the one PEM block (RFC 7468) that `text` is; none where it is no PEM.
fn pem(text: &str) -> Result<Option<(String, Vec<u8>)>, Fault> {
    let Some((_, rest)) = text.split_once("-----BEGIN ") else { return Ok(None) };
    let Some((label, rest)) = rest.split_once("-----") else { return Ok(None) };
    let Some((body, rest)) = rest.split_once(&format!("-----END {label}-----")) else { return Ok(None) };
    if !rest.trim_start_matches(['\r', '\n']).is_empty() {
        return Err("extra data after a PEM certificate block".into());
    }
    let der = BASE64_MIME_PERMISSIVE.decode(body.trim().as_bytes()).map_err(|error| format!("bad PEM: {error}"))?;
    Ok(Some((label.to_owned(), der)))
}

fn public(key: &SubjectPublicKeyInfo<'_>) -> Result<Key, Fault> {
    const ED25519: &str = "1.3.101.112";
    let point = key.subject_public_key.data.to_vec();
    let material = match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => Material::Rsa { n: without_zeros(rsa.modulus), e: without_zeros(rsa.exponent) },
        Ok(PublicKey::EC(_)) if point.len() == 65 => Material::Ec { curve: Curve::P256, point },
        Ok(PublicKey::EC(_)) if point.len() == 97 => Material::Ec { curve: Curve::P384, point },
        _ if key.algorithm.algorithm.to_id_string() == ED25519 => Material::Ed25519(point),
        _ => return Err("the key is of a kind that is not supported".into()),
    };
    Ok(Key { id: None, algorithm: None, material })
}

fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|&byte| byte == 0).collect()
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

/// A JWK as it is written (RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
pub(super) struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    k: String,
    #[serde(default)]
    d: String,
    #[serde(default)]
    p: String,
    #[serde(default)]
    q: String,
    #[serde(default)]
    dp: String,
    #[serde(default)]
    dq: String,
    #[serde(default)]
    qi: String,
}

fn parse_jwks(text: &str) -> Result<Vec<Key>, Fault> {
    let keys = read_jwks(text)?;
    let known = |key: &Jwk| key.alg.as_deref().is_none_or(|algorithm| ALGORITHMS.contains(&algorithm));
    let read: Vec<_> = keys.iter().filter(|key| known(key)).map(Jwk::public).collect();
    // A set may hold keys that are not for us; one key by itself must be.
    if read.len() > 1 {
        return Ok(read.into_iter().flatten().collect());
    }
    read.into_iter().collect()
}

fn read_jwks(text: &str) -> Result<Vec<Jwk>, Fault> {
    let failed = |error| format!("failed to parse a JWK key (set): {error}");
    let value: serde_json::Value = serde_json::from_str(text).map_err(failed)?;
    if value.get("keys").is_some() {
        Ok(serde_json::from_value::<Jwks>(value).map_err(failed)?.keys)
    } else {
        Ok(vec![serde_json::from_value(value).map_err(failed)?])
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, Fault> {
    let text = text.trim_end_matches('=');
    BASE64URL_LENIENT.decode(text.as_bytes()).map_err(|error| Fault::from(format!("a member of a JWK: {error}")))
}

impl Jwk {
    fn point(&self) -> Result<Vec<u8>, Fault> {
        Ok([vec![4], bytes(&self.x)?, bytes(&self.y)?].concat())
    }

    fn public(&self) -> Result<Key, Fault> {
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: bytes(&self.n)?, e: bytes(&self.e)? },
            ("EC", Some("P-256")) => Material::Ec { curve: Curve::P256, point: self.point()? },
            ("EC", Some("P-384")) => Material::Ec { curve: Curve::P384, point: self.point()? },
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&self.x)?),
            ("oct", _) => Material::Secret(bytes(&self.k)?),
            (kind, _) => return Err(format!("a key of type {kind} is not supported").into()),
        };
        Ok(Key { id: self.kid.clone(), algorithm: self.alg.clone(), material })
    }

    /// Signs `message` by `algorithm` with the private key.
    fn sign(&self, algorithm: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let random = SystemRandom::new();
        let wrong = || Fault::from(format!("a key of type {} does not sign {algorithm}", self.kty));
        match self.kty.as_str() {
            "oct" => {
                let key = hmac::Key::new(hmac_algorithm(algorithm).ok_or_else(wrong)?, &bytes(&self.k)?);
                Ok(hmac::sign(&key, message).as_ref().to_vec())
            }
            "RSA" => {
                let padding: &dyn signature::RsaEncoding = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_SHA256,
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => return Err(wrong()),
                };
                let pair = self.rsa()?;
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, message, &mut signed)?;
                Ok(signed)
            }
            "EC" => {
                let signing = match (algorithm, self.crv.as_deref()) {
                    ("ES256", Some("P-256")) => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
                    ("ES384", Some("P-384")) => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
                    _ => return Err(wrong()),
                };
                let pair =
                    EcdsaKeyPair::from_private_key_and_public_key(signing, &bytes(&self.d)?, &self.point()?, &random)?;
                Ok(pair.sign(&random, message)?.as_ref().to_vec())
            }
            "OKP" if algorithm == "EdDSA" => {
                let pair = Ed25519KeyPair::from_seed_and_public_key(&bytes(&self.d)?, &bytes(&self.x)?)?;
                Ok(pair.sign(message).as_ref().to_vec())
            }
            _ => Err(wrong()),
        }
    }

    fn rsa(&self) -> Result<RsaKeyPair, Fault> {
        let public_key = PublicKeyComponents { n: bytes(&self.n)?, e: bytes(&self.e)? };
        let components = KeyPairComponents {
            public_key,
            d: bytes(&self.d)?,
            p: bytes(&self.p)?,
            q: bytes(&self.q)?,
            dP: bytes(&self.dp)?,
            dQ: bytes(&self.dq)?,
            qInv: bytes(&self.qi)?,
        };
        Ok(RsaKeyPair::from_components(&components)?)
    }
}

/// Signs `message` with the first private key of a JWK or JWKS.
pub(super) fn sign(jwks: &str, algorithm: &str, message: &[u8]) -> Result<Vec<u8>, Fault> {
    let keys = read_jwks(jwks)?;
    keys.first().ok_or_else(|| Fault::from("no keys found in JWK set"))?.sign(algorithm, message)
}
