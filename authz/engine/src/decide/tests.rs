use serde_json::{json, Value};

use super::*;
use crate::testing::{condition, no_keys, revocations, trusting, Document, Sample, NOW};
use crate::token::testing::{Claims, Signer, ISSUER};
use crate::KeySets;

const ALLOWS: &str = "package p\nallow := true\n";
const DENIES: &str = "package p\nallow := false\n";
/// Defined for the empty input, with which every policy is tried when it is loaded.
const FAILS: &str = "package p\nallow := x if { input.parsed_path[0] == \"\"; x := \"neither\" }\n";

fn anything() -> Value {
    json!([])
}

fn nothing() -> Value {
    json!([condition("request.method", json!([{"exact": "NONE"}]), json!([]))])
}

fn decide(program: &Arc<Program>, sample: &Sample) -> Decision {
    let answer = sample.decided_by(&mut Decider::for_check_service(), program, &no_keys());
    Decision::clone(&answer.decision)
}

fn ask(program: &Arc<Program>, sample: &Sample) -> Question {
    let mut decider = Decider::for_sidecar();
    match sample.with(|request| decider.decide(program, &trusting(&no_keys()), request, NOW)) {
        Verdict::Ask(question) => question,
        Verdict::Decided(_) | Verdict::AwaitBody(_) => panic!("no question is asked"),
    }
}

/// Whether a rule with this one condition matches, which a DENY and an ALLOW policy must agree on.
fn matches(condition: &Value, sample: &Sample) -> bool {
    let decision = |action| decide(&Document::new().policy(action, json!([condition])).load(), sample);
    let (deny, allow) = (decision("DENY"), decision("ALLOW"));
    assert_eq!(deny.effect == Effect::Deny, allow.effect == Effect::Allow, "{condition}");
    deny.effect == Effect::Deny
}

#[test]
fn custom_comes_before_deny_and_deny_before_allow() {
    let document = Document::new;
    let table = [
        ("none", document(), Reason::NoAllowPolicy),
        ("allow", document().policy("ALLOW", anything()), Reason::AllowRule),
        ("no allow", document().policy("ALLOW", nothing()), Reason::NoAllowRule),
        ("deny", document().policy("DENY", anything()), Reason::DenyRule),
        ("deny, not matching", document().policy("DENY", nothing()), Reason::NoAllowPolicy),
        ("allow and deny", document().policy("ALLOW", anything()).policy("DENY", anything()), Reason::DenyRule),
        ("no allow, deny", document().policy("ALLOW", nothing()).policy("DENY", anything()), Reason::DenyRule),
        ("custom", document().custom("sidecar", "deny", ALLOWS), Reason::RegoAllowed),
        ("custom denies", document().custom("sidecar", "deny", DENIES), Reason::RegoDenied),
        (
            "custom denies, allow",
            document().custom("sidecar", "deny", DENIES).policy("ALLOW", anything()),
            Reason::RegoDenied,
        ),
        (
            "custom denies, deny",
            document().custom("sidecar", "deny", DENIES).policy("DENY", anything()),
            Reason::RegoDenied,
        ),
        ("custom, deny", document().custom("sidecar", "deny", ALLOWS).policy("DENY", anything()), Reason::DenyRule),
        ("custom, allow", document().custom("sidecar", "deny", ALLOWS).policy("ALLOW", anything()), Reason::AllowRule),
        (
            "custom, no allow",
            document().custom("sidecar", "deny", ALLOWS).policy("ALLOW", nothing()),
            Reason::NoAllowRule,
        ),
        (
            "two customs, the second denies",
            document().custom("sidecar", "deny", ALLOWS).custom("sidecar", "deny", DENIES),
            Reason::RegoDenied,
        ),
        ("custom fails", document().custom("sidecar", "deny", FAILS), Reason::RegoFailed),
        (
            "custom fails open, deny",
            document().custom("sidecar", "allow", FAILS).policy("DENY", anything()),
            Reason::DenyRule,
        ),
        (
            "custom fails open, no allow",
            document().custom("sidecar", "allow", FAILS).policy("ALLOW", nothing()),
            Reason::NoAllowRule,
        ),
    ];
    let allowing = [Reason::NoAllowPolicy, Reason::AllowRule, Reason::RegoAllowed];
    for (what, document, reason) in table {
        let decision = decide(&document.load(), &Sample::default());
        assert_eq!(decision.reason, reason, "{what}");
        assert_eq!(decision.effect == Effect::Allow, allowing.contains(&reason), "{what}");
    }
}

#[test]
fn what_failed_open_says_so_and_is_not_remembered() {
    let program = Document::new().custom("sidecar", "allow", FAILS).policy("ALLOW", anything()).load();
    let decision = decide(&program, &Sample::default());
    assert_eq!((decision.effect, decision.source), (Effect::Allow, Source::FailedOpen));
    assert_eq!(decision.lifetime, Lifetime::Once);
    assert!(decision.detail.is_some());
}

#[test]
fn an_unanswered_question_silences_no_other_policy() {
    let document = |on_error| Document::new().custom("check", on_error, ALLOWS);
    let open = || document("allow");
    let table = [
        ("deny", document("deny"), Effect::Deny, Reason::CheckUnreachable),
        ("open", open(), Effect::Allow, Reason::CheckUnreachable),
        ("open, denied by rule", open().policy("DENY", anything()), Effect::Deny, Reason::DenyRule),
        ("open, not denied by rule", open().policy("DENY", nothing()), Effect::Allow, Reason::CheckUnreachable),
        ("open, allowed by rule", open().policy("ALLOW", anything()), Effect::Allow, Reason::AllowRule),
        ("open, not allowed by rule", open().policy("ALLOW", nothing()), Effect::Deny, Reason::NoAllowRule),
        ("open, denied by Rego here", open().custom("sidecar", "deny", DENIES), Effect::Deny, Reason::RegoDenied),
        ("open, another closed", open().custom("check", "deny", ALLOWS), Effect::Deny, Reason::CheckUnreachable),
    ];
    for (what, document, effect, reason) in table {
        let decision = ask(&document.load(), &Sample::default()).unanswered("no answer".to_owned());
        assert_eq!((decision.effect, decision.reason), (effect, reason), "{what}");
        assert_eq!(decision.source == Source::FailedOpen, effect == Effect::Allow, "{what}");
        assert_eq!((decision.lifetime, decision.detail.as_deref()), (Lifetime::Once, Some("no answer")), "{what}");
    }
}

#[test]
fn nobody_is_asked_where_rego_here_has_denied() {
    let program = Document::new().custom("sidecar", "deny", DENIES).custom("check", "deny", ALLOWS).load();
    let answer = Sample::default().decided_by(&mut Decider::for_sidecar(), &program, &no_keys());
    assert_eq!(answer.decision.reason, Reason::RegoDenied);
}

#[test]
fn a_rule_matches_by_any_source_any_operation_and_every_condition() {
    let method = |value: &str| json!([condition("request.method", json!([{"exact": value}]), json!([]))]);
    let (yes, no) = (method("GET"), method("PUT"));
    let table = [
        ("empty", json!([]), json!([]), json!([]), true),
        ("one source of two", json!([no, yes]), json!([]), json!([]), true),
        ("no source", json!([no, no]), json!([]), json!([]), false),
        ("an operation", json!([yes]), json!([no, yes]), json!([]), true),
        ("no operation", json!([yes]), json!([no]), json!([]), false),
        ("all conditions", json!([]), json!([]), json!([yes[0], yes[0]]), true),
        ("one condition does not", json!([yes]), json!([yes]), json!([yes[0], no[0]]), false),
        ("within a source, all", json!([[yes[0], no[0]]]), json!([]), json!([]), false),
    ];
    for (what, from, to, when, wanted) in table {
        let rule: Rule = serde_json::from_value(json!({"from": from, "to": to, "when": when})).expect(what);
        let program = Document::new().load();
        let matched = Sample::default().with(|request| rule.matches(&program.facts(request, None)));
        assert_eq!(matched, wanted, "{what}");
    }
}

#[test]
fn what_is_absent_matches_no_value_and_every_negation() {
    let absent = Sample { principal: None, ip: None, ..Sample::default() };
    let attributes = [
        "source.principal",
        "source.namespace",
        "source.ip",
        "connection.sni",
        "request.headers[x-tenant]",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[groups]",
        "request.auth.claims[scope]",
        "request.auth.claims[a][b]",
    ];
    for attribute in attributes {
        for pattern in [json!("present"), json!({"prefix": "x"}), json!({"cidr": "0.0.0.0/0"})] {
            assert!(!matches(&condition(attribute, json!([pattern]), json!([])), &absent), "{attribute} {pattern}");
            assert!(matches(&condition(attribute, json!([]), json!([pattern])), &absent), "not {attribute} {pattern}");
        }
    }
}

#[test]
fn headers_are_matched_value_by_value_and_are_present_without_one() {
    let exact = |text: &str| json!({"exact": text});
    let one = |value: &'static str| Sample::headers(&[("x-role", value)]);
    let two = |first, second| Sample::headers(&[("x-role", first), ("x-role", second)]);
    let table = [
        ("one", one("admin"), exact("admin"), true),
        ("the second", two("user", "admin"), exact("admin"), true),
        ("the first", two("admin", "user"), exact("admin"), true),
        ("not both joined", two("user", "admin"), exact("user,admin"), false),
        ("of another name", Sample::headers(&[("x-roles", "admin")]), exact("admin"), false),
        ("a value in capitals", one("ADMIN"), exact("admin"), false),
        ("present", one("x"), json!("present"), true),
        ("present and empty", one(""), json!("present"), true),
        ("empty has no prefix", one(""), json!({"prefix": "a"}), false),
    ];
    for (what, sample, pattern, wanted) in table {
        let role = |any, none| condition("request.headers[x-role]", any, none);
        assert_eq!(matches(&role(json!([pattern]), json!([])), &sample), wanted, "{what}");
        assert_eq!(matches(&role(json!([]), json!([pattern])), &sample), !wanted, "not {what}");
    }
}

#[test]
fn attributes_are_read_as_istio_reads_them() {
    let sample = || Sample { sni: Some("api.shop.svc"), host: "API.Shop:80", ..Sample::path("/a/./b/..;x/c?q=1") };
    let table = [
        ("source.principal", "td/ns/front/sa/web"),
        ("source.namespace", "front"),
        ("source.ip", "10.0.0.1"),
        ("source.port", "40000"),
        ("destination.port", "8080"),
        ("connection.sni", "api.shop.svc"),
        ("request.method", "GET"),
        ("request.host", "api.shop:80"),
        ("request.path", "/a/c"),
        ("request.query", "q=1"),
        ("request.scheme", "https"),
        ("request.protocol", "HTTP/1.1"),
        ("request.headers[:path]", "/a/c?q=1"),
        ("request.headers[host]", "API.Shop:80"),
    ];
    for (attribute, value) in table {
        assert!(matches(&condition(attribute, json!([{"exact": value}]), json!([])), &sample()), "{attribute}");
    }
}

#[test]
fn a_name_that_is_no_spiffe_id_is_no_principal() {
    let sample = Sample { principal: Some("td/ns/front/sa/web"), ..Sample::default() };
    for attribute in ["source.principal", "source.namespace"] {
        assert!(!matches(&condition(attribute, json!(["present"]), json!([])), &sample), "{attribute}");
    }
}

/// Two requests that some rule could tell apart never share a decision; two that none could do.
#[test]
fn a_decision_is_shared_by_those_that_no_policy_tells_apart() {
    let rego = |expression: &str| format!("package p\nallow if {expression} == \"x\"\n");
    let on = |attribute: &str| {
        Document::new().policy("DENY", json!([condition(attribute, json!([{"exact": "x"}]), json!([]))]))
    };
    let header = |values: &[&str]| {
        let headers = values.iter().map(|value| ("x-a", (*value).to_owned())).collect();
        Sample { headers, ..Sample::default() }
    };
    let path = Sample::path;
    let table = [
        ("path", on("request.path"), path("/a"), path("/b"), false),
        ("paths that normalize alike", on("request.path"), path("/a"), path("/x/../a"), true),
        ("query, which no rule reads", on("request.path"), path("/a?1"), path("/a?2"), true),
        ("method", on("request.method"), path("/"), Sample { method: "PUT", ..path("/") }, false),
        ("method, which no rule reads", on("request.path"), path("/"), Sample { method: "PUT", ..path("/") }, true),
        ("host", on("request.host"), path("/"), Sample { host: "x", ..path("/") }, false),
        ("principal", on("source.principal"), path("/"), Sample { principal: None, ..path("/") }, false),
        (
            "no SPIFFE ID",
            on("source.principal"),
            Sample { principal: Some("spiffe://a/b"), ..path("/") },
            Sample { principal: Some("a/b"), ..path("/") },
            false,
        ),
        ("port", on("destination.port"), path("/"), Sample { port: 1, ..path("/") }, false),
        ("ports of one application", on("destination.port"), path("/"), Sample { port: 8080, ..path("/") }, true),
        ("header, absent or empty", on("request.headers[x-a]"), header(&[]), header(&[""]), false),
        ("header, one value or two", on("request.headers[x-a]"), header(&["a,b"]), header(&["a", "b"]), false),
        ("header, order", on("request.headers[x-a]"), header(&["a", "b"]), header(&["b", "a"]), false),
        ("header, another split", on("request.headers[x-a]"), header(&["ab", "c"]), header(&["a", "bc"]), false),
        ("other header", on("request.headers[x-b]"), header(&["a"]), header(&["b"]), true),
        (
            "Rego, path with an empty query",
            Document::new().custom("sidecar", "deny", &rego("input.attributes.request.http.path")),
            path("/a"),
            path("/a?"),
            false,
        ),
        (
            "Rego, path with a fragment",
            Document::new().custom("sidecar", "deny", &rego("input.attributes.request.http.path")),
            path("/a"),
            path("/a#b"),
            false,
        ),
        (
            "Rego, query",
            Document::new().custom("sidecar", "deny", &rego("input.parsed_query.q[0]")),
            path("/?q=1"),
            path("/?q=2"),
            false,
        ),
        (
            "Rego, one header of two",
            Document::new().custom("sidecar", "deny", &rego("input.attributes.request.http.headers[\"x-b\"]")),
            header(&["a"]),
            header(&["b"]),
            true,
        ),
        (
            "Rego, all headers",
            Document::new().custom(
                "sidecar",
                "deny",
                "package p\nallow if some h in input.attributes.request.http.headers\n",
            ),
            header(&["a"]),
            header(&["a"]),
            false,
        ),
    ];
    for (what, document, first, second, shared) in table {
        let (program, keys, mut decider) = (document.load(), no_keys(), Decider::for_check_service());
        assert!(!first.decided_by(&mut decider, &program, &keys).cached, "{what}");
        assert_eq!(second.decided_by(&mut decider, &program, &keys).cached, shared, "{what}");
    }
}

#[test]
fn another_program_begins_anew() {
    let (keys, mut decider) = (no_keys(), Decider::for_sidecar());
    let (open, closed) = (Document::new().load(), Document::new().policy("DENY", anything()).load());
    for (program, effect) in [(&open, Effect::Allow), (&closed, Effect::Deny), (&open, Effect::Allow)] {
        assert_eq!(Sample::default().decided_by(&mut decider, program, &keys).decision.effect, effect);
    }
}

#[test]
fn a_remembered_answer_ends_when_it_says() {
    let program = Document::new().custom("check", "deny", ALLOWS).load();
    let (keys, mut decider) = (no_keys(), Decider::for_sidecar());
    let question = ask(&program, &Sample::default());
    let answer = Decision::without_policy(Effect::Allow, Reason::RegoAllowed, program.hash());
    decider.remember(&question, &Arc::new(Decision { lifetime: Lifetime::Milliseconds(1000), ..answer }), NOW);
    for (now, remembered) in [(NOW, true), (NOW + 999, true), (NOW + 1000, false)] {
        let verdict = Sample::default().with(|request| decider.decide(&program, &trusting(&keys), request, now));
        assert_eq!(matches!(verdict, Verdict::Decided(Answer { cached: true, .. })), remembered, "{}", now - NOW);
    }
}

#[test]
fn a_question_has_no_key_where_nothing_determines_the_answer() {
    let module = "package p\nallow if some h in input.attributes.request.http.headers\n";
    assert!(ask(&Document::new().custom("check", "deny", module).load(), &Sample::default()).key.is_none());
}

/// The decision stays cached; whose token has expired does not get at it.
#[test]
fn no_cached_decision_outlives_the_token_or_its_key() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let program = Document::new()
        .issuer(ISSUER)
        .policy("ALLOW", json!([condition("request.auth.principal", json!(["present"]), json!([]))]))
        .load();
    let seconds = (NOW / 1000) as i64;
    let sample = Sample::bearer(&signer.sign(&Claims::of("ada").member("exp", seconds + 10)));
    let mut decider = Decider::for_sidecar();
    let mut reason = |keys: &KeySets, after: u64| match sample
        .with(|request| decider.decide(&program, &trusting(keys), request, NOW + after * 1000))
    {
        Verdict::Decided(answer) => (answer.decision.reason, answer.cached),
        Verdict::Ask(_) | Verdict::AwaitBody(_) => panic!("it is not decided"),
    };
    let (keys, others) = (signer.key_sets(), stranger.key_sets());
    assert_eq!(reason(&keys, 0), (Reason::AllowRule, false));
    assert_eq!(reason(&keys, 69), (Reason::AllowRule, true));
    assert_eq!(reason(&keys, 70), (Reason::TokenExpired, false));
    assert_eq!(reason(&others, 0), (Reason::TokenSignature, false));
    assert_eq!(reason(&keys, 1), (Reason::AllowRule, true));
}

#[test]
fn tokens_are_told_apart_by_issuer_and_subject() {
    let signer = Signer::new();
    let document = || Document::new().issuer("i").issuer("i/a");
    let keys = signer.key_sets_for(&["i", "i/a"]);
    let token = |issuer: &str, subject: &str| Sample::bearer(&signer.sign(&Claims::of(subject).member("iss", issuer)));
    let program = document()
        .policy("ALLOW", json!([condition("request.auth.principal", json!([{"exact": "i/a/b"}]), json!([]))]))
        .load();
    let mut decider = Decider::for_sidecar();
    let table = [("i/a", "b", Reason::AllowRule), ("i", "a/b", Reason::NoAllowRule), ("i", "a", Reason::NoAllowRule)];
    for (issuer, subject, reason) in table {
        let answer = token(issuer, subject).decided_by(&mut decider, &program, &keys);
        assert_eq!((answer.decision.reason, answer.cached), (reason, false), "{issuer} and {subject}");
    }
}

#[test]
fn claims_are_matched_by_their_scalars() {
    let signer = Signer::new();
    let keys = signer.key_sets();
    let claims = Claims::of("ada")
        .member("groups", json!(["a", "b c"]))
        .member("scope", "read write")
        .member("title", "read write")
        .member("level", 3)
        .member("deep", json!({"role": "admin"}));
    let table = [
        ("groups", "a", true),
        ("groups", "b", false),
        ("scope", "write", true),
        ("scope", "read write", false),
        ("title", "write", false),
        ("title", "read write", true),
        ("level", "3", true),
        ("deep", "admin", false),
        ("deep][role", "admin", true),
        ("missing", "a", false),
    ];
    for (claim, value, wanted) in table {
        let condition = condition(&format!("request.auth.claims[{claim}]"), json!([{"exact": value}]), json!([]));
        let program = Document::new().issuer(ISSUER).policy("DENY", json!([condition])).load();
        let answer = Sample::bearer(&signer.sign(&claims)).decided_by(&mut Decider::for_sidecar(), &program, &keys);
        assert_eq!(answer.decision.reason == Reason::DenyRule, wanted, "{claim} {value}");
    }
}

#[test]
fn a_token_without_a_subject_is_no_request_principal() {
    let signer = Signer::new();
    let program = Document::new()
        .issuer(ISSUER)
        .policy("DENY", json!([condition("request.auth.principal", json!([]), json!(["present"]))]))
        .load();
    for (claims, reason) in
        [(Claims::of("ada"), Reason::NoAllowPolicy), (Claims::of("ada").without("sub"), Reason::DenyRule)]
    {
        let answer =
            Sample::bearer(&signer.sign(&claims)).decided_by(&mut Decider::for_sidecar(), &program, &signer.key_sets());
        assert_eq!(answer.decision.reason, reason);
    }
}

/// The text of a token that was not forwarded is gone by then: it is taken as it was verified.
#[test]
fn a_running_request_is_decided_again_by_what_holds_then() {
    let bearers = || json!([condition("request.auth.principal", json!(["present"]), json!([]))]);
    let accepting = || Document::new().issuer(ISSUER).policy("ALLOW", bearers());
    let (signer, mut decider) = (Signer::new(), Decider::for_sidecar());
    let (keys, revoked) = (signer.key_sets(), revocations(json!([{"issuer": ISSUER, "id": "1"}])));
    let sample = Sample::bearer(&signer.sign(&Claims::of("ada").member("jti", "1")));
    let token = sample.decided_by(&mut decider, &accepting().load(), &keys).token;
    let (others, open) = (no_keys(), || trusting(&keys));
    let closed = || Trust { keys: &keys, revocations: &revoked };
    let table = [
        ("the same", accepting(), open(), 0, Reason::AllowRule),
        ("other keys", accepting(), trusting(&others), 0, Reason::AllowRule),
        ("a denial", accepting().policy("DENY", anything()), open(), 0, Reason::DenyRule),
        (
            "another issuer",
            Document::new().issuer("https://other").policy("ALLOW", bearers()),
            open(),
            0,
            Reason::TokenIssuer,
        ),
        ("no issuer", Document::new().policy("ALLOW", bearers()), open(), 0, Reason::NoAllowRule),
        ("revoked", accepting(), closed(), 0, Reason::TokenRevoked),
        ("before its end", accepting(), open(), 3659, Reason::AllowRule),
        ("at its end", accepting(), open(), 3660, Reason::TokenExpired),
    ];
    for (what, document, trust, seconds, wanted) in table {
        let now = NOW + seconds * 1000;
        let verdict = Sample::default()
            .with(|request| decider.decide_again(&document.load(), &trust, request, token.as_ref(), now));
        match verdict {
            Verdict::Decided(answer) => assert_eq!(answer.decision.reason, wanted, "{what}"),
            Verdict::Ask(_) | Verdict::AwaitBody(_) => panic!("{what}: it is not decided"),
        }
    }
    assert_eq!(token.expect("a token").ends_ms(), NOW + 3660 * 1000);
}

/// Also one that was taken, and whose decision is remembered.
#[test]
fn a_revoked_token_is_refused() {
    let program = Document::new().issuer(ISSUER).load();
    let (signer, mut decider) = (Signer::new(), Decider::for_sidecar());
    let (keys, revoked) = (signer.key_sets(), revocations(json!([{"issuer": ISSUER, "issued_before": NOW / 1000}])));
    let sample = Sample::bearer(&signer.sign(&Claims::of("ada")));
    assert_eq!(sample.decided_by(&mut decider, &program, &keys).decision.effect, Effect::Allow);
    let trust = Trust { keys: &keys, revocations: &revoked };
    match sample.with(|request| decider.decide(&program, &trust, request, NOW)) {
        Verdict::Decided(answer) => assert_eq!(answer.decision.reason, Reason::TokenRevoked),
        Verdict::Ask(_) | Verdict::AwaitBody(_) => panic!("it is not decided"),
    }
}

/// A policy for a service is for the ports of that service, and leaves others as they are.
#[test]
fn a_policy_for_some_ports_is_none_for_others() {
    let rules = json!([{"from": [], "to": [], "when": []}]);
    let on = |action: &str, rules: &Value| json!({"name": "shop/p", "action": action, "service_ports": [15006, 15007], "rules": rules});
    let table = [
        ("DENY", on("DENY", &rules), Reason::DenyRule, Reason::NoAllowPolicy),
        ("ALLOW", on("ALLOW", &rules), Reason::AllowRule, Reason::NoAllowPolicy),
        ("ALLOW nothing", on("ALLOW", &json!([])), Reason::NoAllowRule, Reason::NoAllowPolicy),
    ];
    for (what, policy, inside, outside) in table {
        let program = Document::new().with_policy(policy).load();
        let mut decider = Decider::for_sidecar();
        for (port, reason) in [(15006, inside), (15007, inside), (8080, outside)] {
            let sample = Sample { port, ..Sample::default() };
            let answer = sample.decided_by(&mut decider, &program, &no_keys());
            assert_eq!((answer.decision.reason, answer.cached), (reason, false), "{what} at {port}");
        }
    }
}

#[test]
fn a_policy_on_trial_for_some_ports_says_nothing_at_others() {
    let tried = json!({
        "name": "shop/p", "action": "ALLOW", "dry_run": true, "service_ports": [15006], "rules": [],
    });
    let program = Document::new().with_policy(tried).load();
    for (port, says) in [(15006, true), (8080, false)] {
        assert_eq!(decide(&program, &Sample { port, ..Sample::default() }).shadow.is_some(), says, "{port}");
    }
}

#[test]
fn a_client_is_told_apart_behind_trusted_proxies_only() {
    let policy = json!([condition("remote.ip", json!([{"cidr": "203.0.113.0/24"}]), json!([]))]);
    let forwarded = |value: &'static str| Sample::headers(&[("x-forwarded-for", value)]);
    for (proxies, reason) in [(0, Reason::NoAllowPolicy), (1, Reason::DenyRule), (2, Reason::NoAllowPolicy)] {
        let program = Document::new().trusting(proxies).policy("DENY", policy.clone()).load();
        let mut decider = Decider::for_sidecar();
        let mut decide = |sample: &Sample| sample.decided_by(&mut decider, &program, &no_keys()).decision.reason;
        assert_eq!(decide(&Sample::default()), Reason::NoAllowPolicy, "none, behind {proxies}");
        assert_eq!(decide(&forwarded("6.6.6.6, 203.0.113.9")), reason, "the last, behind {proxies}");
        let wanted = if proxies == 2 { Reason::DenyRule } else { Reason::NoAllowPolicy };
        assert_eq!(decide(&forwarded("203.0.113.9, 6.6.6.6")), wanted, "the last but one, behind {proxies}");
    }
}

#[test]
fn rules_and_rego_see_the_path_as_the_program_normalizes_it() {
    let policy = json!([condition("request.path", json!([{"exact": "/a/b"}]), json!([]))]);
    let rego = "package p\nallow := false if input.attributes.request.http.path == \"/a/b\"\n\
                allow := true if input.attributes.request.http.path != \"/a/b\"\n";
    let table = [
        ("NONE", [false, false, false]),
        ("BASE", [true, false, false]),
        ("MERGE_SLASHES", [true, true, false]),
        ("DECODE_AND_MERGE_SLASHES", [true, true, true]),
    ];
    for (mode, denied) in table {
        let by_rule = Document::new().normalizing(mode).policy("DENY", policy.clone()).load();
        let by_rego = Document::new().normalizing(mode).custom("sidecar", "deny", rego).load();
        for (path, denied) in ["/a/./b", "/a//b", "/a%2fb"].into_iter().zip(denied) {
            for program in [&by_rule, &by_rego] {
                let effect = if denied { Effect::Deny } else { Effect::Allow };
                assert_eq!(decide(program, &Sample::path(path)).effect, effect, "{path} in {mode}");
            }
        }
    }
}

// Connections without requests ------------------------------------------------------------------------------------------

/// What a rule asks of requests cannot be told of a connection: so more is denied and nothing more allowed.
#[test]
fn rules_about_requests_deny_connections_and_do_not_allow_them() {
    let get = condition("request.method", json!([{"exact": "GET"}]), json!([]));
    let not_get = condition("request.method", json!([]), json!([{"exact": "GET"}]));
    let no_token = condition("request.auth.principal", json!([]), json!(["present"]));
    let web = condition("source.namespace", json!([{"exact": "front"}]), json!([]));
    let others = condition("source.namespace", json!([{"exact": "back"}]), json!([]));
    let port = condition("destination.port", json!([{"exact": "8080"}]), json!([]));
    let table = [
        ("nothing asked", "ALLOW", json!([]), Effect::Allow),
        ("of the connection", "ALLOW", json!([web, port]), Effect::Allow),
        ("of another connection", "ALLOW", json!([others]), Effect::Deny),
        ("of requests", "ALLOW", json!([get]), Effect::Deny),
        ("of requests, by exclusion", "ALLOW", json!([not_get]), Effect::Deny),
        ("of tokens, by exclusion", "ALLOW", json!([no_token]), Effect::Deny),
        ("of both", "ALLOW", json!([web, not_get]), Effect::Deny),
        ("nothing asked", "DENY", json!([]), Effect::Deny),
        ("of the connection", "DENY", json!([web]), Effect::Deny),
        ("of another connection", "DENY", json!([others]), Effect::Allow),
        ("of requests", "DENY", json!([get]), Effect::Deny),
        ("of both", "DENY", json!([web, get]), Effect::Deny),
        ("of both, another's connection", "DENY", json!([others, get]), Effect::Allow),
    ];
    for (what, action, when, wanted) in table {
        let decision = decide(&Document::new().policy(action, when).load(), &Sample::connection());
        assert_eq!(decision.effect, wanted, "{action} {what}");
    }
}

#[test]
fn an_alternative_about_requests_takes_its_rule_from_connections() {
    let get = condition("request.method", json!([{"exact": "GET"}]), json!([]));
    let port = condition("destination.port", json!([{"exact": "8080"}]), json!([]));
    let rule = json!({"from": [], "to": [[get], [port]], "when": []});
    let program = Document::new().rule("ALLOW", rule).load();
    assert_eq!(decide(&program, &Sample::connection()).reason, Reason::NoAllowRule);
    assert_eq!(decide(&program, &Sample::default()).reason, Reason::AllowRule);
}

#[test]
fn a_connection_is_not_decided_as_a_request_with_the_same_values_was() {
    let no_header = condition("request.headers[x-a]", json!([]), json!(["present"]));
    let program = Document::new().policy("ALLOW", json!([no_header])).load();
    let mut decider = Decider::for_sidecar();
    for (sample, wanted) in
        [(Sample::default(), Effect::Allow), (Sample::connection(), Effect::Deny), (Sample::default(), Effect::Allow)]
    {
        assert_eq!(sample.decided_by(&mut decider, &program, &no_keys()).decision.effect, wanted);
    }
    let again = Sample::connection().decided_by(&mut decider, &program, &no_keys());
    assert_eq!((again.decision.effect, again.cached), (Effect::Deny, true));
}

#[test]
fn rego_policies_have_no_answer_for_connections() {
    for (on_error, reason) in [("deny", Effect::Deny), ("allow", Effect::Allow)] {
        let program = Document::new().custom("sidecar", on_error, ALLOWS).load();
        let decision = decide(&program, &Sample::connection());
        assert_eq!((decision.effect, decision.reason), (reason, Reason::RegoFailed));
        assert!(decision.detail.expect("a detail").contains("no HTTP request"));
    }
}

#[test]
fn connections_need_no_token_but_where_one_is_required() {
    let program = Document::new().issuer(ISSUER).load();
    assert_eq!(decide(&program, &Sample::connection()).reason, Reason::NoAllowPolicy);
    let required = Document::new().issuer(ISSUER).requiring_a_token().load();
    assert_eq!(decide(&required, &Sample::connection()).reason, Reason::TokenRequired);
}
