//! Tokens made for the unit tests.

use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, KeyPair, ECDSA_P256_SHA256_FIXED_SIGNING};
use serde_json::{json, Value};

use super::{verify, Token};
use crate::testing::{rule, NOW};
use crate::KeySets;

/// The issuer of [`Claims::of`].
pub(crate) const ISSUER: &str = "https://issuer.example";

/// The claims of a token in the making.
#[derive(Clone)]
pub(crate) struct Claims(pub(crate) Value);

impl Claims {
    pub(crate) fn of(subject: &str) -> Self {
        Self(json!({"iss": ISSUER, "sub": subject, "exp": NOW / 1000 + 3600}))
    }

    pub(crate) fn member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0[name] = value.into();
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.as_object_mut().expect("an object").remove(name);
        self
    }
}

/// A verified token with these claims and an end far away.
pub(crate) fn token(claims: &Value) -> Token {
    let (signer, issuer) = (Signer::new(), claims["iss"].as_str().expect("an issuer"));
    let text = signer.sign(&Claims(claims.clone()).member("exp", NOW / 1000 + 3600));
    let rule = rule(issuer);
    verify(text.as_bytes(), [&rule].into_iter(), &signer.key_sets_for(&[issuer]), (NOW / 1000) as i64).expect("a token")
}

/// An issuer's P-256 key, with the id `k`.
pub(crate) struct Signer(EcdsaKeyPair, SystemRandom);

impl Signer {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random);
        Self(pair.expect("a key"), random)
    }

    pub(crate) fn jwk(&self) -> Value {
        let point = self.0.public_key().as_ref();
        let (x, y) = (BASE64URL_NOPAD.encode(&point[1..33]), BASE64URL_NOPAD.encode(&point[33..]));
        json!({"kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y})
    }

    pub(crate) fn key_sets(&self) -> KeySets {
        self.key_sets_for(&[ISSUER])
    }

    pub(crate) fn key_sets_for(&self, issuers: &[&str]) -> KeySets {
        let sets = issuers.iter().map(|issuer| ((*issuer).to_owned(), json!({"keys": [self.jwk()]})));
        KeySets::load(Value::Object(sets.collect()).to_string().as_bytes()).expect("key sets")
    }

    pub(crate) fn sign(&self, claims: &Claims) -> String {
        self.sign_text(r#"{"alg":"ES256","kid":"k"}"#, &claims.0.to_string())
    }

    /// A token of exactly this header and payload.
    pub(crate) fn sign_text(&self, header: &str, payload: &str) -> String {
        let signed =
            format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(payload.as_bytes()));
        let signature = self.0.sign(&self.1, signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }
}
