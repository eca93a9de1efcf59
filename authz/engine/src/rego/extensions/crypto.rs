//! `crypto.*`: digests and keyed digests.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use regorus::Value;
use ring::digest;

use super::{Answer, Arguments, BuiltIn};

pub(super) const BUILT_INS: &[BuiltIn] = &[
    BuiltIn { name: "crypto.md5", arity: 1, call: |given| Ok(hex(&Md5::digest(given.string(0)?))) },
    BuiltIn { name: "crypto.sha1", arity: 1, call: |given| hash(given, &digest::SHA1_FOR_LEGACY_USE_ONLY) },
    BuiltIn { name: "crypto.sha256", arity: 1, call: |given| hash(given, &digest::SHA256) },
    BuiltIn { name: "crypto.hmac.md5", arity: 2, call: hmac_md5 },
    BuiltIn {
        name: "crypto.hmac.sha1",
        arity: 2,
        call: |given| hmac(given, ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
    },
    BuiltIn { name: "crypto.hmac.sha256", arity: 2, call: |given| hmac(given, ring::hmac::HMAC_SHA256) },
    BuiltIn { name: "crypto.hmac.sha512", arity: 2, call: |given| hmac(given, ring::hmac::HMAC_SHA512) },
    BuiltIn { name: "crypto.hmac.equal", arity: 2, call: equal },
];

fn hex(bytes: &[u8]) -> Value {
    HEXLOWER.encode(bytes).into()
}

fn hash(given: &Arguments<'_>, algorithm: &'static digest::Algorithm) -> Answer {
    Ok(hex(digest::digest(algorithm, given.string(0)?.as_bytes()).as_ref()))
}

fn hmac(given: &Arguments<'_>, algorithm: ring::hmac::Algorithm) -> Answer {
    let (message, key) = (given.string(0)?, given.string(1)?);
    Ok(hex(ring::hmac::sign(&ring::hmac::Key::new(algorithm, key.as_bytes()), message.as_bytes()).as_ref()))
}

fn hmac_md5(given: &Arguments<'_>) -> Answer {
    let (message, key) = (given.string(0)?, given.string(1)?);
    let mut mac = Hmac::<Md5>::new_from_slice(key.as_bytes())?;
    mac.update(message.as_bytes());
    Ok(hex(&mac.finalize().into_bytes()))
}

/// In a time that does not tell where the two differ.
fn equal(given: &Arguments<'_>) -> Answer {
    let (left, right) = (given.string(0)?.as_bytes(), given.string(1)?.as_bytes());
    let differences = left.iter().zip(right).fold(0, |differences, (left, right)| differences | (left ^ right));
    Ok((left.len() == right.len() && differences == 0).into())
}
