use proptest::prelude::*;
use serde_json::json;

use super::testing::{Claims, Signer, ISSUER};
use super::*;
use crate::testing::NOW;

const SECONDS: i64 = (NOW / 1000) as i64;

fn rule(issuer: &str, audiences: &[&str]) -> Authentication {
    let audiences = audiences.iter().map(|&audience| audience.to_owned()).collect();
    Authentication { audiences, ..crate::testing::rule(issuer) }
}

fn check(signer: &Signer, token: &str, audiences: &[&str]) -> Result<Token, Reason> {
    verify(token.as_bytes(), [rule(ISSUER, audiences)].iter(), &signer.key_sets(), SECONDS)
}

/// RFC 7515, appendices A.2 and A.3: tokens that nobody here signed.
#[test]
fn the_examples_of_the_standard_are_verified() {
    const PAYLOAD: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = json!({"kty": "RSA", "e": "AQAB", "n": concat!(
        "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pC",
        "gNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg6",
        "65xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRW",
        "yuXpoQ")});
    let p256 = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let rs256 = concat!(
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t",
        "1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12j",
        "zDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQ",
        "Ge77Rw");
    let es256 = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let (rs_header, es_header) = ("eyJhbGciOiJSUzI1NiJ9", "eyJhbGciOiJFUzI1NiJ9");
    let table = [
        ("RS256", &rsa, rs_header, rs256, Ok("joe")),
        ("ES256", &p256, es_header, es256, Ok("joe")),
        ("RS256 said of a P-256 key", &p256, rs_header, es256, Err(Reason::TokenSignature)),
        ("ES256 said of an RSA key", &rsa, es_header, rs256, Err(Reason::TokenSignature)),
        ("another's signature", &rsa, rs_header, es256, Err(Reason::TokenSignature)),
    ];
    for (what, key, header, signature, wanted) in table {
        let keys = KeySets::load(json!({"joe": {"keys": [key]}}).to_string().as_bytes()).expect(what);
        let token = format!("{header}.{PAYLOAD}.{signature}");
        let got = verify(token.as_bytes(), [rule("joe", &[])].iter(), &keys, 1_300_819_379);
        assert_eq!(got.as_ref().map(|token| token.issuer.as_str()).map_err(|reason| *reason), wanted, "{what}");
    }
}

#[test]
fn claims_are_checked() {
    let ada = || Claims::of("ada");
    let table = [
        ("sound", ada(), Ok(())),
        ("another issuer", ada().member("iss", "https://other"), Err(Reason::TokenIssuer)),
        ("an issuer that is no text", ada().member("iss", 1), Err(Reason::TokenIssuer)),
        ("no issuer", ada().without("iss"), Err(Reason::TokenIssuer)),
        ("no subject", ada().without("sub"), Ok(())),
        ("a subject that is no text", ada().member("sub", 1), Err(Reason::TokenMalformed)),
        ("no expiry", ada().without("exp"), Err(Reason::TokenWithoutExpiry)),
        ("an expiry that is text", ada().member("exp", "1"), Err(Reason::TokenMalformed)),
        ("no more than the skew late", ada().member("exp", SECONDS - 59), Ok(())),
        ("expired", ada().member("exp", SECONDS - 60), Err(Reason::TokenExpired)),
        ("expired, with a fraction", ada().member("exp", (SECONDS - 60) as f64 + 0.5), Err(Reason::TokenExpired)),
        ("an expiry without end", ada().member("exp", 1e300), Ok(())),
        ("an expiry before all time", ada().member("exp", -1e300), Err(Reason::TokenExpired)),
        ("not before, within the skew", ada().member("nbf", SECONDS + 60), Ok(())),
        ("not valid yet", ada().member("nbf", SECONDS + 61), Err(Reason::TokenNotYetValid)),
        ("issued in the future", ada().member("iat", SECONDS + 61), Err(Reason::TokenNotYetValid)),
        (
            "an early nbf hides no late iat",
            ada().member("nbf", 1).member("iat", SECONDS + 61),
            Err(Reason::TokenNotYetValid),
        ),
        ("an audience that is no text", ada().member("aud", json!(["api", 1])), Err(Reason::TokenMalformed)),
    ];
    let signer = Signer::new();
    for (what, claims, wanted) in table {
        assert_eq!(check(&signer, &signer.sign(&claims), &[]).map(drop), wanted, "{what}");
    }
}

#[test]
fn audiences_are_checked_where_the_rule_names_some() {
    let table = [
        ("one of a list", json!(["x", "api"]), &["api"][..], Ok(())),
        ("a text", json!("api"), &["other", "api"], Ok(())),
        ("another", json!("web"), &["api"], Err(Reason::TokenAudience)),
        ("a prefix", json!("api2"), &["api"], Err(Reason::TokenAudience)),
        ("an empty list", json!([]), &["api"], Err(Reason::TokenAudience)),
        ("none asked", json!("web"), &[], Ok(())),
    ];
    let signer = Signer::new();
    for (what, audience, accepted, wanted) in table {
        let token = signer.sign(&Claims::of("ada").member("aud", audience));
        assert_eq!(check(&signer, &token, accepted).map(drop), wanted, "{what}");
    }
    assert_eq!(check(&signer, &signer.sign(&Claims::of("ada")), &["api"]).map(drop), Err(Reason::TokenAudience));
}

/// The cautions of RFC 8725.
#[test]
fn headers_choose_neither_algorithm_nor_key() {
    let signer = Signer::new();
    let payload = Claims::of("ada").0.to_string();
    let table = [
        ("by key id", r#"{"alg":"ES256","kid":"k"}"#, Ok(())),
        ("by every key", r#"{"alg":"ES256"}"#, Ok(())),
        ("a key of its own", r#"{"alg":"ES256","jwk":{"kty":"EC"},"jku":"https://evil","x5c":["x"]}"#, Ok(())),
        ("none", r#"{"alg":"none"}"#, Err(Reason::TokenAlgorithm)),
        ("HS256", r#"{"alg":"HS256","kid":"k"}"#, Err(Reason::TokenAlgorithm)),
        ("RS256 by a P-256 key", r#"{"alg":"RS256","kid":"k"}"#, Err(Reason::TokenSignature)),
        ("in lower case", r#"{"alg":"es256"}"#, Err(Reason::TokenAlgorithm)),
        ("no algorithm", r#"{"kid":"k"}"#, Err(Reason::TokenAlgorithm)),
        ("a list of algorithms", r#"{"alg":["ES256"]}"#, Err(Reason::TokenAlgorithm)),
        ("an unknown key id", r#"{"alg":"ES256","kid":"other"}"#, Err(Reason::TokenKey)),
        ("an empty key id", r#"{"alg":"ES256","kid":""}"#, Err(Reason::TokenKey)),
        ("a key id that is no text", r#"{"alg":"ES256","kid":1}"#, Err(Reason::TokenMalformed)),
        ("a critical extension", r#"{"alg":"ES256","crit":["b64"],"b64":false}"#, Err(Reason::TokenCritical)),
        ("the algorithm twice", r#"{"alg":"none","alg":"ES256"}"#, Err(Reason::TokenMalformed)),
        ("no object", r#"["ES256"]"#, Err(Reason::TokenMalformed)),
    ];
    for (what, header, wanted) in table {
        assert_eq!(check(&signer, &signer.sign_text(header, &payload), &[]).map(drop), wanted, "{what}");
    }
}

#[test]
fn other_texts_are_refused() {
    let signer = Signer::new();
    let token = signer.sign(&Claims::of("ada"));
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts[..] else { unreachable!() };
    let twice = format!(r#"{{"iss":"{ISSUER}","sub":"ada","sub":"eve","exp":9999999999}}"#);
    let table = [
        ("empty", String::new(), Reason::TokenMalformed),
        ("two parts", format!("{header}.{payload}"), Reason::TokenMalformed),
        ("four parts", format!("{token}.{signature}"), Reason::TokenMalformed),
        ("no signature", format!("{header}.{payload}."), Reason::TokenSignature),
        ("a padded part", format!("{header}.{payload}.{signature}=="), Reason::TokenMalformed),
        ("a blank", format!(" {token}"), Reason::TokenMalformed),
        ("two tokens", format!("{token},{token}"), Reason::TokenMalformed),
        ("a claim twice", signer.sign_text(r#"{"alg":"ES256"}"#, &twice), Reason::TokenMalformed),
        ("no claims", signer.sign_text(r#"{"alg":"ES256"}"#, "true"), Reason::TokenMalformed),
        ("too long", format!("{token}{}", "A".repeat(MAX_TOKEN_BYTES)), Reason::TokenTooLarge),
        ("another's", Signer::new().sign(&Claims::of("ada")), Reason::TokenSignature),
    ];
    for (what, text, reason) in table {
        assert_eq!(check(&signer, &text, &[]).map(drop), Err(reason), "{what}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_token_or_refused(text in proptest::collection::vec(any::<u8>(), 0..256)) {
        let keys = KeySets::load(b"{}").expect("key sets");
        prop_assert!(verify(&text, [rule(ISSUER, &[])].iter(), &keys, SECONDS).is_err());
    }

    #[test]
    fn any_header_and_payload_are_read_or_refused(header in any::<Vec<u8>>(), payload in any::<Vec<u8>>()) {
        let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let text = format!("{}.{}.", part(&header), part(&payload));
        let keys = KeySets::load(b"{}").expect("key sets");
        prop_assert!(verify(text.as_bytes(), [rule(ISSUER, &[])].iter(), &keys, SECONDS).is_err());
    }

    #[test]
    fn any_change_to_a_token_is_found(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let signer = Signer::new();
        let mut token = signer.sign(&Claims::of("ada")).into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != byte);
        token[at] = byte;
        prop_assert!(verify(&token, [rule(ISSUER, &[])].iter(), &signer.key_sets(), SECONDS).is_err());
    }
}
