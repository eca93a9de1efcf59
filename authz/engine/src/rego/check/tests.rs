use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::attribute::Attribute;
use crate::document::{BodySettings, OnError, RegoPolicy, Tier};
use crate::rego::source::{MAX_BRACKETS, MAX_MODULE_BYTES};
use crate::rego::{data_read, Rego};

fn load(modules: &[&str]) -> Result<Rego, RegoError> {
    load_within(1000, modules)
}

fn load_within(timeout_ms: u32, modules: &[&str]) -> Result<Rego, RegoError> {
    load_in(Tier::Sidecar, timeout_ms, modules)
}

fn load_in(tier: Tier, timeout_ms: u32, modules: &[&str]) -> Result<Rego, RegoError> {
    let modules = modules.iter().enumerate().map(|(index, source)| (format!("{index}.rego"), (*source).to_owned()));
    Rego::load(RegoPolicy {
        name: "a/r".into(),
        modules: modules.collect::<BTreeMap<_, _>>(),
        data: json!({"roles": {"ada": ["admin"]}}),
        entrypoint: "data.p.allow".to_owned(),
        tier,
        on_error: OnError::Deny,
        timeout_ms,
        body: BodySettings::default(),
    })
}

/// Why a module with this body of `allow` is refused; nothing where it is not.
fn refusal(body: &str) -> String {
    let module = format!("package p\nimport rego.v1\nallow if {{\n{body}\n}}\nhelper(x) := x\nvalue := 1\n");
    load(&[&module]).err().map_or_else(String::new, |error| error.to_string())
}

/// Each rule of admission, with what it takes and the next thing that it does not.
#[test]
fn bodies_are_admitted_and_refused() {
    let brackets = |depth: usize| format!("x := {}1{}\nx", "[".repeat(depth), "]".repeat(depth));
    let sum = |terms: usize| format!("{} > 0", vec!["1"; terms].join("+"));
    let line = |text: &str| text.to_owned();
    let table = [
        ("built-in", line("startswith(\"ab\", \"a\")"), ""),
        ("built-in outside the tier", line("http.send({})"), "http.send is outside the sidecar tier"),
        ("built-in of the interpreter, outside", line("numbers.range(1, 2)"), "numbers.range is outside"),
        ("walk", line("walk(input, [p, v])"), "walk is outside"),
        ("print", line("print(1, input.parsed_path)"), ""),
        ("unknown", line("startwith(\"ab\", \"a\")"), "did you mean startswith?"),
        ("function", line("helper(true)"), ""),
        ("a call of a value", line("value(1)"), "data.p.value is called, and is not a function"),
        ("a call of the input", line("input.parsed_path(1)"), "is called, and is not a function"),
        ("format", line("sprintf(\"%s %d %v %%\", [1, 2, 3]) != \"\""), ""),
        ("format with a width", line("sprintf(\"%9d\", [1]) != \"\""), "its format must be a literal"),
        ("format from a variable", line("f := \"%s\"\nsprintf(f, [1]) != \"\""), "its format must be a literal"),
        ("concat", line("concat(\",\", [\"a\"]) == \"a\""), ""),
        ("concat from a variable", line("d := \",\"\nconcat(d, [\"a\"]) == \"a\""), "its delimiter must be a literal"),
        ("pattern", line("regex.match(`^/a[0-9]+\\.txt$`, \"/a1.txt\")"), ""),
        ("pattern with a class", line("regex.match(`\\d`, \"1\")"), "its pattern must be a literal"),
        ("pattern with a flag", line("regex.match(`(?i)a`, \"1\")"), "its pattern must be a literal"),
        ("pattern from the input", line("regex.match(input.parsed_path[0], \"1\")"), "its pattern must be a literal"),
        ("with", line("value == 2 with data.p.value as 2"), "`with` replaces"),
        ("brackets, most", brackets(MAX_BRACKETS - 1), ""),
        ("brackets, one more", brackets(MAX_BRACKETS), "brackets are nested 13 deep"),
        ("brackets in text", line("\"((((((((((((((\" != `[[[[[[[[[[[[[[`"), ""),
        ("a long sum", sum(MAX_EXPRESSION_DEPTH - 4), ""),
        ("a longer sum", sum(MAX_EXPRESSION_DEPTH + 4), "expressions are nested"),
        ("input", line("input.attributes.request.http.method == \"GET\""), ""),
        ("header", line("input.attributes.request.http.headers[\"x-a\"] == \"1\""), ""),
        (
            "header in capitals",
            line("input.attributes.request.http.headers[\"X-A\"] == \"1\""),
            "headers.X-A is not available",
        ),
        ("body", line("input.parsed_body.a == 1"), ""),
        ("input of others", line("input.user == \"ada\""), "input.user is not available"),
        ("data", line("data.roles.ada[_] == \"admin\""), ""),
        ("recursion", line("data.p.allow"), "recursion is not allowed"),
        ("recursion by a dynamic reference", line("some name\ndata.p[name] == 1"), "recursion is not allowed"),
        ("every and some", line("every x in [1, 2] { x > 0 }\nsome y in [1]\ny == 1"), ""),
        ("a comprehension", line("count([x | some x in [1, 2]; x > 1]) == 1"), ""),
        ("within a comprehension", line("count([x | x := http.send({})]) == 1"), "http.send is outside"),
        ("within every", line("every x in [1] { http.send(x) }"), "http.send is outside"),
        ("within not", line("not http.send({})"), "http.send is outside"),
        ("within an index", line("data.roles[http.send({})]"), "http.send is outside"),
        ("within an argument", line("helper(http.send({}))"), "http.send is outside"),
        ("within an object", line("{\"a\": [http.send({})]} != {}"), "http.send is outside"),
    ];
    for (what, body, wanted) in table {
        let got = refusal(&body);
        assert_eq!(got.is_empty(), wanted.is_empty(), "{what}: {got}");
        assert!(got.contains(wanted), "{what}: {got}");
    }
}

#[test]
fn modules_are_admitted_and_refused_together() {
    let chain = |length: usize| {
        let rules = (1..length).map(|n| format!("r{n} := r{}\n", n - 1));
        format!("package p\nr0 := true\n{}allow := r{}\n", rules.collect::<String>(), length - 1)
    };
    let (long, longer) = (chain(MAX_RULE_CHAIN - 1), chain(MAX_RULE_CHAIN));
    let large = format!("package p\nallow := true\n{}", "# comment\n".repeat(MAX_MODULE_BYTES / 10));
    let table: &[(&str, &[&str], &str)] = &[
        ("an import", &["package p\nimport data.lib\nallow if lib.f(true)\n", "package lib\nf(x) := x\n"], ""),
        ("an alias", &["package p\nimport data.lib as l\nallow if l.f(true)\n", "package lib\nf(x) := x\n"], ""),
        ("the next Rego", &["package p\nimport rego.v2\nallow := true\n"], "import rego.v2 is not known"),
        ("a function with dots", &["package p\na.b(x) := x\nallow if a.b(true)\n"], ""),
        ("recursion through functions", &["package p\nallow if f(1)\nf(x) := g(x)\ng(x) := f(x)\n"], "recursion"),
        (
            "recursion through packages",
            &["package p\nallow if data.q.a\n", "package q\na if data.p.allow\n"],
            "recursion",
        ),
        ("a chain, longest", &[&long], ""),
        ("a chain, longer", &[&longer], "more than 48 rules"),
        ("a large module", &[&large], "at most 262144 are allowed"),
        ("no entry point", &["package q\nallow := true\n"], "the entry point data.p.allow is not a rule"),
        ("no Rego", &["allow := true\n"], "0.rego"),
        ("old Rego", &["package p\nallow { true }\n"], "0.rego"),
    ];
    for (what, modules, wanted) in table {
        let got = load(modules).err().map_or_else(String::new, |error| error.to_string());
        assert_eq!(got.is_empty(), wanted.is_empty(), "{what}: {got}");
        assert!(got.contains(wanted), "{what}: {got}");
    }
}

/// The interpreter takes a built-in wherever it finds no function: none may hide behind a name that is something else.
#[test]
fn no_built_in_is_called_by_another_name() {
    let range = "numbers.range(1, 2) != []";
    let table: &[(&str, &[&str])] = &[
        (
            "an alias",
            &[&format!("package p\nimport data.lib as numbers\nallow if {range}\n"), "package lib\nrange := 1\n"],
        ),
        ("an alias of input", &[&format!("package p\nimport input.parsed_query as numbers\nallow if {range}\n")]),
        ("a value", &["package p\nsprintf := 1\nallow if sprintf(\"%9d\", [1]) != \"\"\n"]),
        ("a set", &["package p\nwalk contains 1\nallow if walk(input, [p, v])\n"]),
        ("a function below", &["package p\nwalk.x(a) := a\nallow if walk(input, [p, v])\n"]),
        ("another package's function", &["package p\nallow if walk(input, [p, v])\n", "package q\nwalk(a, b) := a\n"]),
    ];
    for (what, modules) in table {
        assert!(matches!(load(modules), Err(RegoError::NotAdmitted { .. })), "{what}");
    }
}

#[test]
fn the_place_of_a_refusal_is_told() {
    let error = load(&["package p\nallow if {\n  true\n  http.send({})\n}\n"]).err().expect("refused");
    assert_eq!(error.place(), Some(("0.rego".to_owned(), 4)));
    let error = load(&["package p\nallow := [1,\n"]).err().expect("refused");
    assert_eq!(error.place().map(|(file, _)| file), Some("0.rego".to_owned()));
}

#[test]
fn what_determines_an_answer_is_known() {
    let http = "input.attributes.request.http";
    let table: &[(&str, Option<&[&str]>)] = &[
        ("true", Some(&[])),
        ("input.attributes.source.principal", Some(&["source.principal"])),
        ("input.attributes.request.http.path", Some(&["request.headers[:path]"])),
        ("input.parsed_path[0]", Some(&["request.path"])),
        ("input.attributes.request.http.headers[\"x-a\"]", Some(&["request.headers[x-a]"])),
        ("input.attributes.request.http.headers.cookie", Some(&["request.headers[cookie]"])),
        ("input.attributes.source.address", Some(&["source.ip", "source.port"])),
        ("input.attributes.request.http.headers[name]", None),
        ("input.attributes.request", None),
        ("input", None),
        ("input[name]", None),
    ];
    for (expression, wanted) in table {
        let module = format!("package p\nname := \"x\"\nallow if {{ x := {expression}; x }}\n");
        let rego = load(&[&module]).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let wanted = wanted.map(|names| names.iter().map(|name| name.parse::<Attribute>().expect(name)).collect());
        assert_eq!(rego.attributes().cloned(), wanted, "{expression}");
    }
    for (import, name) in [("input.attributes.request.http", "http"), (http, "http as h")] {
        let alias = name.rsplit(' ').next().expect("a name");
        let suffix = name.strip_prefix("http").expect("http");
        let rego =
            load(&[&format!("package p\nimport {import}{suffix}\nallow if {alias}.method == \"GET\"\n")]).expect(name);
        assert_eq!(rego.attributes().map(BTreeSet::len), Some(1), "{name}");
    }
}

#[test]
fn doubling_ends_at_the_time_limit() {
    let doublings: String = (1..40).map(|n| format!("x{n} := array.concat(x{0}, x{0})\n", n - 1)).collect();
    let module = format!("package p\nallow if {{\nx0 := [1]\n{doublings}count(x39) > 0\n}}\n");
    assert!(load_within(5, &[&module]).err().expect("refused").to_string().contains("time limit"));
}

#[test]
fn the_check_tier_takes_what_can_be_evaluated() {
    let table = [
        ("numbers.range(1, 2) != []", ""),
        ("io.jwt.decode(\"a.b.c\", [_, payload, _])\npayload.admin", ""),
        ("value == 2 with data.p.value as 2", ""),
        ("sprintf(\"%9d\", [1]) != \"\"", ""),
        ("http.send({})", "http.send is outside the check tier"),
        ("startwith(\"ab\", \"a\")", "did you mean startswith?"),
        ("not { false }", "`not {…}` is not known here"),
        ("data.p.allow", "recursion is not allowed"),
        ("input.user == \"ada\"", "input.user is not available"),
    ];
    for (body, wanted) in table {
        let module = format!("package p\nallow if {{\n{body}\n}}\nvalue := 1\n");
        let got = load_in(Tier::Check, 1000, &[&module]).err().map_or_else(String::new, |error| error.to_string());
        assert_eq!(got.is_empty(), wanted.is_empty(), "{body}: {got}");
        assert!(got.contains(wanted), "{body}: {got}");
    }
}

#[test]
fn a_policy_of_the_check_tier_is_not_evaluated_when_it_is_loaded() {
    let endless =
        "package p\nallow if count([1 | some x in numbers.range(1, 999999); some y in numbers.range(1, x)]) > 0";
    let start = std::time::Instant::now();
    assert!(load_in(Tier::Check, 60_000, &[endless]).is_ok());
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
    let error = load_in(Tier::Check, 1000, &["package p\nother := 1\n"]).err().expect("refused");
    assert!(error.to_string().contains("the entry point data.p.allow is not a rule"), "{error}");
}

#[test]
fn what_changes_by_itself_is_not_cached() {
    let load = |body: &str| load_in(Tier::Check, 1000, &[&format!("package p\nallow if {body}\n")]).expect("admitted");
    assert!(load("time.now_ns() > 0").attributes().is_none());
    assert!(load("io.jwt.decode_verify(\"a.b.c\", {})[0]").attributes().is_none());
    assert!(load("crypto.sha256(\"a\") != \"\"").attributes().is_some());
}

#[test]
fn what_the_interpreter_answers_wrongly_is_not_admitted_in_sidecars() {
    let table: &[(&str, &str)] = &[
        ("package p\nallow if \"a\", \"a\" in {\"a\"}\n", "is answered wrongly for sets"),
        ("package p\nallow if not { false }\n", "`not {…}`"),
        ("package p\nimport future.keywords.not\nallow if not data.p.b\nb := false\n", "future.keywords.not"),
        ("package p\nr[x].y contains 1 if some x in [\"a\"]\nallow := true\n", "must have a constant name"),
        ("package p\nsame(a, a) if a != 1\nallow if same(1, 2)\n", "a names two arguments"),
        ("package p\nsame(a, [{\"b\": a}]) if a != 1\nallow := true\n", "a names two arguments"),
        ("package p\nsame(_, _) if false\nallow if not same(1, 2)\n", ""),
    ];
    for (module, wanted) in table {
        let got = load(&[module]).err().map_or_else(String::new, |error| error.to_string());
        assert_eq!(got.is_empty(), wanted.is_empty(), "{module}: {got}");
        assert!(got.contains(wanted), "{module}: {got}");
    }
}

#[test]
fn what_is_read_of_data_is_known() {
    let table: &[(&str, &[&str])] = &[
        ("data.users.ada", &["users.ada"]),
        ("data.users[input.parsed_path[0]].role", &["users"]),
        ("data.list[0].name", &["list"]),
        ("some x in data.users; data.roles[x]", &["users", "roles"]),
        ("every x in data.users { x }", &["users"]),
        ("count({x | x := data.users[_]}) > 0", &["users"]),
        ("lib.users[1]", &["lib.users"]),
        ("renamed.ada", &["users.ada"]),
        ("f(data.users)", &["users"]),
        ("input.parsed_path", &[]),
    ];
    for (body, wanted) in table {
        let head = "package p\nimport data.lib\nimport data.users as renamed\nf(x) := x\nallow if {\n";
        let modules = BTreeMap::from([("a.rego".to_owned(), format!("{head}{body}\n}}\n"))]);
        let read = data_read(Tier::Check, modules).unwrap_or_else(|error| panic!("{body}: {error}"));
        let wanted = wanted.iter().map(|path| path.split('.').map(str::to_owned));
        let mut wanted: BTreeSet<Vec<String>> = wanted.map(Iterator::collect).collect();
        wanted.extend([vec!["p".to_owned(), "allow".to_owned()], vec!["p".to_owned(), "f".to_owned()]]);
        assert_eq!(read, wanted, "{body}");
    }
}

/// How much a value may be made of others, with the next thing that is too much.
#[test]
fn values_are_admitted_while_they_can_be_compared() {
    let steps = |count: usize, first: &str, step: &str| {
        let steps = (1..=count).map(|n| format!("x{n} := {}\n", step.replace('X', &format!("x{}", n - 1))));
        format!("x0 := {first}\n{}count(x{count}) > 0", steps.collect::<String>())
    };
    let rows = "rows := [{\"id\": r, \"all\": data.roles} | some r in data.roles.ada]\n";
    let body = |text: &str| format!("{rows}{text}\n");
    let too_large = "it may be too large to be compared";
    let table = [
        ("doubled, most", steps(6, "[1]", "[X, X]"), ""),
        ("doubled, once more", steps(7, "[1]", "[X, X]"), too_large),
        ("doubled in objects", steps(7, "[1]", "{\"a\": X, \"b\": X}"), too_large),
        ("doubled in any order", steps(7, "[1]", "[X, X]").split('\n').rev().collect::<Vec<_>>().join("\n"), too_large),
        ("doubled by parts", steps(7, "[1]", "[[X, X]][0]"), too_large),
        ("doubled by an equation", steps(7, "[1]", "[X, X]").replace(" := ", " = "), too_large),
        ("joined", steps(8, "[[1]]", "array.concat(X, X)"), too_large),
        ("texts joined", steps(12, "[\"a\"]", "array.concat(X, X)"), ""),
        ("nested, most", steps(31, "[1]", "[X]"), ""),
        ("nested, once more", steps(32, "[1]", "[X]"), too_large),
        ("taken out again", steps(200, "[1]", "[X][0]"), ""),
        ("repeated by a loop", body("[rows | some r in data.roles.ada] != []"), too_large),
        ("repeated by another name", body("[y | some r in data.roles.ada; y := rows] != []"), too_large),
        ("repeated by two loops", body("[r | some r in rows; some q in rows] != []"), too_large),
        ("filtered", body("a := [r | some r in rows]\nb := [r | some r in a; r.id]\n[r | some r in b] != []"), ""),
        ("filtered by index", body("[r | r := rows[_]; r.id] != []"), ""),
        ("grouped", body("{k: [r | some r in rows; r.id == k] | some k in data.roles.ada} != {}"), ""),
        ("mapped", body("[{\"row\": r, \"id\": r.id} | some r in rows] != []"), ""),
        ("a table", format!("[{}] != []", vec!["[[1], [2]]"; 300].join(",")), ""),
    ];
    for (what, body, wanted) in table {
        let got = refusal(&body);
        assert_eq!(got.is_empty(), wanted.is_empty(), "{what}: {got}\n{body}");
        assert!(got.contains(wanted), "{what}: {got}");
    }
}

#[test]
fn values_of_rules_and_functions_count_too() {
    let rules = |count: usize, step: &str| {
        let rules = (1..=count).map(|n| step.replace('N', &n.to_string()).replace('M', &(n - 1).to_string()));
        format!("package p\nx0 := [1]\n{}allow if count(x{count}) > 0\n", rules.collect::<String>())
    };
    for step in [
        "xN := [xM, xM]\n",
        "xN := [data.p.xM, data.p.xM]\n",
        "xN := fN(xM)\nfN(y) := [y, y]\n",
        "xN := y if { y := {\"a\": xM, \"b\": xM} }\n",
        "xN contains y if { y := [xM, xM] }\n",
        "xN := 1 if { false } else := [xM, xM]\n",
        "xN[\"k\"] := [xM, xM]\n",
    ] {
        let refused = |count| load(&[&rules(count, step)]).err().map_or_else(String::new, |error| error.to_string());
        assert_eq!(refused(2), "", "{step}");
        assert!(refused(7).contains("too large to be compared"), "{step}: {}", refused(7));
    }
}
