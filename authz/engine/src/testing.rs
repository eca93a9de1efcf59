//! What the unit tests build programs and requests with.

use std::sync::{Arc, OnceLock};

use serde_json::{json, Value};

use crate::document::Authentication;
use crate::{
    Answer, Body, Connection, Decider, HeaderList, Http, KeySets, Program, Request, Revocations, Told, Trust, Verdict,
};

/// A moment, in milliseconds since 1970.
pub(crate) const NOW: u64 = 1_700_000_000_000;

/// A program's document in the making.
pub(crate) struct Document(Value);

impl Document {
    pub(crate) fn new() -> Self {
        let workload = json!({"principal": "spiffe://td/ns/shop/sa/api", "ports": {"15006": 8080}});
        Self(json!({"schema": 1, "workload": workload, "authentication": [], "rego": [], "policies": []}))
    }

    pub(crate) fn normalizing(mut self, mode: &str) -> Self {
        self.0["workload"]["path_normalization"] = mode.into();
        self
    }

    pub(crate) fn trusting(mut self, proxies: usize) -> Self {
        self.0["workload"]["trusted_proxies"] = proxies.into();
        self
    }

    /// Adds a policy with one rule under `when`.
    pub(crate) fn policy(self, action: &str, when: Value) -> Self {
        self.rule(action, json!({"from": [], "to": [], "when": when}))
    }

    /// Adds a policy of `rule`.
    pub(crate) fn rule(mut self, action: &str, rule: Value) -> Self {
        self.push("policies", json!({"name": format!("shop/{action}"), "action": action, "rules": [rule]}));
        self
    }

    /// Adds a policy as it stands in a document.
    pub(crate) fn with_policy(mut self, policy: Value) -> Self {
        self.push("policies", policy);
        self
    }

    /// Adds a RegoPolicy, and a CUSTOM policy that asks it about every request.
    pub(crate) fn custom(mut self, tier: &str, on_error: &str, module: &str) -> Self {
        let name = format!("shop/rego-{}", self.0["rego"].as_array().map_or(0, Vec::len));
        let rules = json!([{"from": [], "to": [], "when": []}]);
        self.push("policies", json!({"name": "shop/CUSTOM", "action": "CUSTOM", "provider": name, "rules": rules}));
        self.push(
            "rego",
            json!({
                "name": name, "modules": {"p.rego": module}, "data": {}, "entrypoint": "data.p.allow", "tier": tier,
                "on_error": on_error, "timeout_ms": 1000,
            }),
        );
        self
    }

    /// Says more of the last RegoPolicy.
    pub(crate) fn rego(mut self, member: &str, value: Value) -> Self {
        let last = self.0["rego"].as_array_mut().and_then(|rego| rego.last_mut()).expect("a RegoPolicy");
        last[member] = value;
        self
    }

    /// Adds a RateLimitPolicy as it stands in a document.
    pub(crate) fn limited(mut self, policy: Value) -> Self {
        if self.0.get("rate_limits").is_none() {
            self.0["rate_limits"] = json!([]);
        }
        self.push("rate_limits", policy);
        self
    }

    /// Refuses requests without a token, by all rules that there are until now.
    pub(crate) fn requiring_a_token(mut self) -> Self {
        self.0["authentication"]
            .as_array_mut()
            .expect("rules")
            .iter_mut()
            .for_each(|rule| rule["require"] = true.into());
        self
    }

    /// Accepts tokens of `issuer`, by the keys of the same name.
    pub(crate) fn issuer(mut self, issuer: &str) -> Self {
        self.push("authentication", rule_document(issuer));
        self
    }

    fn push(&mut self, list: &str, item: Value) {
        self.0[list].as_array_mut().expect("a list").push(item);
    }

    pub(crate) fn load(&self) -> Arc<Program> {
        Arc::new(self.try_load().expect("a program"))
    }

    pub(crate) fn try_load(&self) -> Result<Program, String> {
        Program::load(self.0.to_string().as_bytes()).map_err(|error| error.to_string())
    }
}

fn rule_document(issuer: &str) -> Value {
    let bearer = json!([{"header": {"name": "authorization", "prefix": "Bearer "}}, {"parameter": "access_token"}]);
    json!({
        "issuer": issuer, "audiences": [], "keys": issuer, "places": bearer, "forward_original_token": false,
        "output_payload_to_header": null, "output_claim_to_headers": [], "space_delimited_claims": [],
        "allow_missing_expiry": false, "require": false,
    })
}

/// A rule for the tokens of `issuer`, by the keys of the same name.
pub(crate) fn rule(issuer: &str) -> Authentication {
    serde_json::from_value(rule_document(issuer)).expect("a rule")
}

/// A condition on `attribute`.
pub(crate) fn condition(attribute: &str, any: Value, none: Value) -> Value {
    json!({"attribute": attribute, "any": any, "none": none})
}

/// A request; what is not told is of a plain GET.
pub(crate) struct Sample {
    pub(crate) principal: Option<&'static str>,
    pub(crate) ip: Option<&'static str>,
    pub(crate) port: u16,
    pub(crate) sni: Option<&'static str>,
    pub(crate) method: &'static str,
    pub(crate) host: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) is_http: bool,
    /// What was read of the body, and whether that is all.
    pub(crate) body: Option<(Vec<u8>, bool)>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            principal: Some("spiffe://td/ns/front/sa/web"),
            ip: Some("10.0.0.1"),
            port: 15006,
            sni: None,
            method: "GET",
            host: "api.shop",
            path: "/".to_owned(),
            headers: Vec::new(),
            is_http: true,
            body: None,
        }
    }
}

impl Sample {
    /// A connection without requests.
    pub(crate) fn connection() -> Self {
        Self { is_http: false, ..Self::default() }
    }

    pub(crate) fn path(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    pub(crate) fn headers(headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { headers, ..Self::default() }
    }

    pub(crate) fn bearer(token: &str) -> Self {
        Self::headers(&[("authorization", &format!("Bearer {token}"))])
    }

    pub(crate) fn with<R>(&self, use_request: impl FnOnce(&Request<'_>) -> R) -> R {
        let pair = |(name, value): &(&str, String)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let headers = HeaderList(self.headers.iter().map(pair).collect());
        use_request(&Request {
            connection: Connection {
                source_principal: self.principal,
                source_ip: self.ip.map(|ip| ip.parse().expect("an address")),
                source_port: 40000,
                destination_ip: None,
                destination_port: self.port,
                sni: self.sni,
            },
            http: self.is_http.then_some(Http {
                method: self.method.as_bytes(),
                host: self.host.as_bytes(),
                path: self.path.as_bytes(),
                scheme: b"https",
                protocol: b"HTTP/1.1",
                headers: &headers,
                body: self.body.as_ref().map(|(bytes, is_whole)| Body { bytes, is_whole: *is_whole }),
                told: Told::All,
            }),
        })
    }

    /// What `decider` answers at [`NOW`].
    pub(crate) fn decided_by(&self, decider: &mut Decider, program: &Arc<Program>, keys: &KeySets) -> Answer {
        match self.with(|request| decider.decide(program, &trusting(keys), request, NOW)) {
            Verdict::Decided(answer) => answer,
            Verdict::Ask(_) | Verdict::AwaitBody(_) => panic!("it is not decided"),
        }
    }
}

/// Trust in `keys`, where nothing is revoked.
pub(crate) fn trusting(keys: &KeySets) -> Trust<'_> {
    static NONE: OnceLock<Revocations> = OnceLock::new();
    let revocations = NONE.get_or_init(|| revocations(json!([])));
    Trust { keys, revocations }
}

pub(crate) fn revocations(list: Value) -> Revocations {
    Revocations::load(json!({"schema": 1, "revocations": list}).to_string().as_bytes()).expect("revocations")
}

/// No key sets at all.
pub(crate) fn no_keys() -> KeySets {
    KeySets::load(b"{}").expect("key sets")
}
