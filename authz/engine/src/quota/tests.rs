use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{json, Value};

use super::*;
use crate::record::{number, Type};
use crate::testing::{condition, no_keys, Document, Sample};
use crate::Decider;

const SECOND: u64 = 1_000_000_000;

thread_local! {
    static TIME: Cell<u64> = const { Cell::new(SECOND) };
}

/// A request that waits for nothing.
struct Here;

impl Mount for Here {
    fn now(&self) -> u64 {
        TIME.get()
    }

    fn waker(&self) -> Option<Waker> {
        None
    }
}

fn quotas() -> Quotas {
    TIME.set(SECOND);
    Quotas::for_tools()
}

fn rate(requests: u64) -> Value {
    json!({"name": "r", "requests": requests, "period_ms": 60_000, "burst": requests})
}

fn limit(by: &[&str], requests: u64) -> Value {
    json!({"rules": [], "by": by, "rates": [rate(requests)]})
}

fn policy(limits: Value) -> Value {
    json!({"name": "shop/p", "on_error": "deny", "limits": limits})
}

fn with(mut policy: Value, name: &str, value: Value) -> Value {
    policy[name] = value;
    policy
}

fn admit(quotas: &Quotas, program: &Arc<Program>, sample: &Sample) -> (Answer, Option<Standing>) {
    let answer = sample.decided_by(&mut Decider::for_sidecar(), program, &no_keys());
    match sample.with(|request| quotas.admit(program, request, answer, &Here)) {
        Admission::Decided(answer, standing) => (answer, standing),
        Admission::Waiting(_) => panic!("it waits"),
    }
}

fn status(quotas: &Quotas, program: &Arc<Program>, sample: &Sample) -> u16 {
    admit(quotas, program, sample).0.decision.status
}

/// How many of ten requests are admitted.
fn admitted(quotas: &Quotas, program: &Arc<Program>, sample: &Sample) -> usize {
    (0..10).filter(|_| status(quotas, program, sample) == 200).count()
}

fn shadow(decision: &Decision) -> Vec<String> {
    let fields = decision.shadow.as_ref().map_or(Vec::new(), |shadow| shadow.fields().expect("fields"));
    let text = |(field, value): &(crate::record::Field, &[u8])| match field.value_type() {
        Type::Number => format!("{}={}", field.name(), number(value)),
        _ => format!("{}={}", field.name(), String::from_utf8_lossy(value)),
    };
    fields.iter().map(text).collect()
}

#[test]
fn what_was_allowed_is_denied_once_there_are_too_many() {
    let (quotas, program) = (quotas(), Document::new().limited(policy(json!([limit(&[], 2)]))).load());
    let sample = Sample::default();
    let (_, standing) = admit(&quotas, &program, &sample);
    let told = standing.expect("it was counted");
    assert_eq!((&*told.policy, &*told.limit), ("\"r\";q=2;w=60", "\"r\";r=1;t=30"));
    let (_, standing) = admit(&quotas, &program, &sample);
    assert_eq!(&*standing.expect("it was counted").limit, "\"r\";r=0;t=60");
    let (answer, standing) = admit(&quotas, &program, &sample);
    assert_eq!(standing, None);
    let denied = &answer.decision;
    assert_eq!((denied.effect, denied.status, denied.reason), (Effect::Deny, 429, Reason::RateLimited));
    assert_eq!((denied.policy.as_deref(), denied.rule), (Some("shop/p"), Some(0)));
    let headers: Vec<(&str, &str)> =
        denied.headers.response_add.iter().map(|(name, value)| (&**name, &**value)).collect();
    let wanted = [("retry-after", "30"), ("ratelimit-policy", "\"r\";q=2;w=60"), ("ratelimit", "\"r\";r=0;t=30")];
    assert_eq!(headers, wanted);
    TIME.set(31 * SECOND);
    assert_eq!(status(&quotas, &program, &sample), 200, "who waits is admitted");
}

#[test]
fn what_is_denied_anyway_takes_no_token() {
    let denying =
        || Document::new().policy("DENY", json!([condition("request.method", json!([{"exact": "PUT"}]), json!([]))]));
    let (quotas, program) = (quotas(), denying().limited(policy(json!([limit(&[], 2)]))).load());
    assert_eq!(status(&quotas, &program, &Sample { method: "PUT", ..Sample::default() }), 403);
    assert_eq!(admitted(&quotas, &program, &Sample::default()), 2);
}

#[test]
fn requests_with_other_values_have_buckets_of_their_own() {
    let own = |by: &str, one: &Sample, other: &Sample| {
        let (quotas, program) = (quotas(), Document::new().limited(policy(json!([limit(&[by], 3)]))).load());
        assert_eq!(admitted(&quotas, &program, one), 3, "{by}");
        admitted(&quotas, &program, other)
    };
    let sample = Sample::default;
    let table = [
        ("source.principal", Sample { principal: Some("spiffe://td/ns/front/sa/other"), ..sample() }, 3),
        ("source.namespace", Sample { principal: Some("spiffe://td/ns/front/sa/other"), ..sample() }, 0),
        ("source.namespace", Sample { principal: Some("spiffe://td/ns/back/sa/web"), ..sample() }, 3),
        ("source.ip", Sample { ip: Some("10.0.0.2"), ..sample() }, 3),
        ("request.method", Sample { method: "PUT", ..sample() }, 3),
        ("request.host", Sample { host: "API.shop", ..sample() }, 0),
        ("request.host", Sample { host: "web.shop", ..sample() }, 3),
        ("request.path", Sample::path("/a"), 3),
        ("request.path", Sample::path("//?q"), 0),
        ("request.headers[x-tenant]", Sample::headers(&[("x-tenant", "a")]), 3),
        ("request.headers[x-tenant]", Sample::headers(&[("x-other", "a")]), 0),
        ("request.headers[x-tenant]", Sample::headers(&[("x-tenant", "")]), 3),
    ];
    for (by, other, wanted) in table {
        assert_eq!(own(by, &sample(), &other), wanted, "{by}");
    }
}

#[test]
fn paths_of_one_template_share_a_bucket() {
    let limit = with(limit(&[], 2), "templates", json!(["/books/{*}", "/orders/{**}"]));
    let (quotas, program) = (quotas(), Document::new().limited(policy(json!([limit]))).load());
    let table = [("/books/1", 2), ("/books/2?x=/orders/", 0), ("/orders/1/2", 2), ("/", 2), ("/else", 0)];
    for (path, wanted) in table {
        assert_eq!(admitted(&quotas, &program, &Sample::path(path)), wanted, "{path}");
    }
}

#[test]
fn a_limit_counts_what_matches_one_of_its_rules_at_its_ports() {
    let rule = |method: &str| {
        let when = condition("request.method", json!([{"exact": method}]), json!([]));
        json!({"from": [], "to": [], "when": [when]})
    };
    let limit = with(limit(&[], 2), "rules", json!([rule("PUT"), rule("POST")]));
    let document = |port: u16| Document::new().limited(with(policy(json!([limit])), "service_ports", json!([port])));
    let sample = |method| Sample { method, ..Sample::default() };
    let (quotas, program) = (quotas(), document(15006).load());
    assert_eq!(admit(&quotas, &program, &sample("GET")).1, None, "it is not counted");
    assert_eq!(admitted(&quotas, &program, &sample("PUT")), 2);
    assert_eq!(admitted(&quotas, &program, &sample("POST")), 0);
    assert_eq!(admitted(&quotas, &program, &sample("GET")), 10);
    assert_eq!(admitted(&quotas, &document(1).load(), &sample("PUT")), 10);
}

#[test]
fn one_empty_bucket_takes_nothing_from_the_others() {
    let (wide, narrow) = (limit(&[], 6), limit(&["request.path"], 2));
    let (quotas, program) = (quotas(), Document::new().limited(policy(json!([wide, narrow]))).load());
    for (path, wanted) in [("/a", 2), ("/b", 2), ("/c", 2), ("/d", 0)] {
        assert_eq!(admitted(&quotas, &program, &Sample::path(path)), wanted, "{path}");
    }
    let (answer, _) = admit(&quotas, &program, &Sample::path("/d"));
    assert_eq!(answer.decision.rule, Some(0), "the first that is exceeded is named");
}

#[test]
fn the_nearest_of_all_limits_is_told() {
    let limits = json!([limit(&[], 9), with(limit(&[], 9), "rates", json!([rate(8), rate(3)]))]);
    let (quotas, program) = (quotas(), Document::new().limited(policy(limits)).load());
    let (_, standing) = admit(&quotas, &program, &Sample::default());
    let told = standing.expect("it was counted");
    assert_eq!(&*told.policy, "\"r\";q=9;w=60, \"r\";q=8;w=60, \"r\";q=3;w=60");
    assert_eq!(&*told.limit, "\"r\";r=2;t=20");
}

#[test]
fn buckets_outlive_a_program_and_not_a_changed_limit() {
    let load = |requests, mode| Document::new().normalizing(mode).limited(policy(json!([limit(&[], requests)]))).load();
    let quotas = quotas();
    assert_eq!(admitted(&quotas, &load(3, "BASE"), &Sample::default()), 3);
    assert_eq!(admitted(&quotas, &load(3, "NONE"), &Sample::default()), 0);
    assert_eq!(admitted(&quotas, &load(4, "BASE"), &Sample::default()), 4);
}

#[test]
fn a_long_key_is_counted_as_any_other() {
    let limit = limit(&["request.headers[x]"], 3);
    let (quotas, program) = (quotas(), Document::new().limited(policy(json!([limit]))).load());
    let sample = |last: &str| Sample::headers(&[("x", &("x".repeat(5000) + last))]);
    assert_eq!(admitted(&quotas, &program, &sample("a")), 3);
    assert_eq!(admitted(&quotas, &program, &sample("b")), 3);
    assert_eq!(admitted(&quotas, &program, &sample("a")), 0);
}

#[test]
fn a_policy_on_trial_denies_nothing_and_is_recorded() {
    let tried = with(with(policy(json!([limit(&[], 1)])), "dry_run", json!(true)), "name", json!("shop/tried"));
    let dry_run_deny = |method: &str| {
        let when = condition("request.method", json!([{"exact": method}]), json!([]));
        json!({"name": "shop/deny", "action": "DENY", "dry_run": true, "rules": [{"from": [], "to": [], "when": [when]}]})
    };
    let document = Document::new().with_policy(dry_run_deny("PUT")).limited(tried);
    let (quotas, program) = (quotas(), document.load());
    let told = |method| {
        let (answer, standing) = admit(&quotas, &program, &Sample { method, ..Sample::default() });
        assert_eq!((answer.decision.effect, standing), (Effect::Allow, None));
        shadow(&answer.decision)
    };
    assert_eq!(told("GET"), ["dry_run_deny=allow"]);
    assert_eq!(told("GET"), ["dry_run_deny=deny", "dry_run_deny_policy=shop/tried", "dry_run_deny_rule=0"]);
    assert_eq!(told("PUT"), ["dry_run_deny=deny", "dry_run_deny_policy=shop/deny", "dry_run_deny_rule=0"]);
}

/// More keys than there is room for.
#[test]
fn what_cannot_be_counted_is_as_on_error_says() {
    let fill = |on_error: &str| {
        let by_path = with(policy(json!([limit(&["request.path"], 1)])), "on_error", json!(on_error));
        let (quotas, program) = (quotas(), Document::new().limited(by_path).load());
        let mut paths = (0..1_000_000).map(|number| Sample::path(&format!("/{}{number}", "x".repeat(150))));
        let found = paths.find_map(|sample| {
            let (answer, _) = admit(&quotas, &program, &sample);
            answer.decision.detail.is_some().then_some(answer.decision)
        });
        found.expect("no room")
    };
    let denied = fill("deny");
    assert_eq!((denied.status, denied.reason), (503, Reason::RateLimitUnavailable));
    let open = fill("allow");
    assert_eq!((open.effect, open.source), (Effect::Allow, Source::FailedOpen));
    assert_eq!(open.detail.as_deref(), Some("RateLimitPolicy shop/p[0]: there is no room for a further key"));
}

#[test]
fn a_rate_that_cannot_be_counted_is_refused() {
    for (field, value) in [("requests", 0), ("period_ms", 0), ("burst", 0)] {
        let limit = with(limit(&[], 1), "rates", json!([with(rate(1), field, json!(value))]));
        let document = Document::new().limited(policy(json!([limit])));
        assert!(document.try_load().err().expect(field).contains("shop/p"), "{field}");
    }
}

/// A request that can be woken.
struct Waits<'c>(&'c Arc<AtomicUsize>);

impl Mount for Waits<'_> {
    fn now(&self) -> u64 {
        TIME.get()
    }

    fn waker(&self) -> Option<Waker> {
        let woken = Arc::clone(self.0);
        Some(Box::new(move || {
            woken.fetch_add(1, Ordering::Relaxed);
        }))
    }
}

fn shared(limits: Value) -> Value {
    with(policy(limits), "scope", json!("global"))
}

/// What becomes of a request of a sidecar: its status, or none where it waits.
fn ask(quotas: &Quotas, program: &Arc<Program>, woken: &Arc<AtomicUsize>) -> Option<u16> {
    let sample = Sample::default();
    let answer = sample.decided_by(&mut Decider::for_sidecar(), program, &no_keys());
    match sample.with(|request| quotas.admit(program, request, answer, &Waits(woken))) {
        Admission::Decided(answer, _) => Some(answer.decision.status),
        Admission::Waiting(answer) => {
            assert_eq!(answer.decision.effect, Effect::Allow);
            None
        }
    }
}

fn lend(quotas: &Quotas, lent: &Lent) {
    assert!(quotas.has_wants());
    for want in quotas.wants(TIME.get()) {
        assert_eq!((&*want.of.policy, want.of.limit), ("shop/p", 0));
        quotas.receive(want, lent.clone(), TIME.get());
    }
}

#[test]
fn a_request_waits_for_tokens_that_are_borrowed_and_takes_none_meanwhile() {
    TIME.set(SECOND);
    let (quotas, woken) = (Quotas::for_sidecar(), Arc::default());
    let own = with(policy(json!([limit(&[], 2)])), "name", json!("shop/a-local"));
    let program = Document::new().limited(own).limited(shared(json!([limit(&[], 100)]))).load();
    for _ in 0..5 {
        assert_eq!(ask(&quotas, &program, &woken), None);
    }
    lend(&quotas, &Lent::Tokens { lease: "l".to_owned(), tokens: 9, valid_ms: 2000 });
    assert_eq!(woken.load(Ordering::Relaxed), 5);
    let found: Vec<_> = (0..3).map(|_| ask(&quotas, &program, &woken)).collect();
    assert_eq!(found, [Some(200), Some(200), Some(429)], "those that waited took none of the local bucket");
    assert_eq!(woken.load(Ordering::Relaxed), 5);
}

#[test]
fn without_the_quota_service_it_is_as_on_error_says() {
    for (on_error, wanted) in [("deny", 503), ("allow", 200)] {
        TIME.set(SECOND);
        let (quotas, woken) = (Quotas::for_sidecar(), Arc::default());
        let policy = with(shared(json!([limit(&[], 100)])), "on_error", json!(on_error));
        let program = Document::new().limited(policy).load();
        assert_eq!(ask(&quotas, &program, &woken), None);
        lend(&quotas, &Lent::Failed("away".to_owned()));
        assert_eq!(ask(&quotas, &program, &woken), Some(wanted), "{on_error}");
    }
}

#[test]
fn a_shared_limit_on_trial_makes_nobody_wait() {
    TIME.set(SECOND);
    let (quotas, woken) = (Quotas::for_sidecar(), Arc::default());
    let program = Document::new().limited(with(shared(json!([limit(&[], 100)])), "dry_run", json!(true))).load();
    assert_eq!(ask(&quotas, &program, &woken), Some(200));
    lend(&quotas, &Lent::None(60_000));
    assert_eq!((ask(&quotas, &program, &woken), woken.load(Ordering::Relaxed)), (Some(200), 0));
}

#[test]
fn tools_count_by_themselves_what_is_shared() {
    let (quotas, program) = (quotas(), Document::new().limited(shared(json!([limit(&[], 2)]))).load());
    assert_eq!(admitted(&quotas, &program, &Sample::default()), 2);
}
