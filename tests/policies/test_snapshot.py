from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.policies.kinds.authorization import AuthorizationPolicySpec
from peltast.policies.problems import Problem
from peltast.policies.snapshot import Snapshot, load

Problems = Callable[..., list[Problem]]


def entry(name: str, address: str, labels: str = "{app: a}", namespace: str = "shop") -> str:
    head = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{address: {address}, labels: {labels}}}\n"


def service(name: str, ports: str = "[{port: 80, targetPort: 8080}]", selector: str = "{app: a}") -> str:
    head = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n"
    return f"{head}spec: {{selector: {selector}, ports: {ports}}}\n"


def registration(name: str, workload: str, egress: str = "[]", namespace: str = "shop") -> str:
    head = "apiVersion: peltast.dev/v1\nkind: WorkloadRegistration\n"
    spec = f"spec: {{workload: {workload}, command: [run], egress: {egress}}}\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}}}\n{spec}"


def rego(name: str, files: str, more: str = "") -> str:
    head = f"apiVersion: peltast.dev/v1\nkind: RegoPolicy\nmetadata: {{name: {name}, namespace: shop}}\n"
    return f"{head}spec: {{entrypoint: data.a.b, files: {files}{more}}}\n"


def custom(provider: str) -> str:
    head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: c, namespace: shop}\n"
    return f"{head}spec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]}}\n"


def policy(name: str, namespace: str = "shop", spec: str = "{}") -> str:
    head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
    return f"{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"


def mesh_config(name: str, spec: str = "{}") -> str:
    head = "apiVersion: peltast.dev/v1\nkind: MeshConfig\n"
    return f"{head}metadata: {{name: {name}, namespace: istio-system}}\nspec: {spec}\n"


def join(*documents: str) -> str:
    return "---\n".join(documents)


def snapshot(number: int = 1, trust_domain: str = "cluster.local", **files: str) -> Snapshot:
    return load({f"{name}.yaml": text.encode() for name, text in files.items()}, trust_domain, number)


# Cross references -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "field", "given", "allowed"),
    [
        pytest.param(
            join(policy("a"), policy("a")), 8, "metadata.name", "AuthorizationPolicy shop/a is given twice",
            "the first is in a.yaml:1", id="twice",
        ),
        pytest.param(
            custom("x"), 4, "spec.provider.name", "'x' is given", "a RegoPolicy is expected; known are none",
            id="no provider",
        ),
        pytest.param(
            custom("c"), 4, "spec.provider.name", "'c' is given", "known are none", id="a provider of another kind",
        ),
        pytest.param(
            policy("a", spec="{targetRefs: [{kind: Service, name: s}]}"), 4, "spec.targetRefs[0].name", "'s' is given",
            "a Service is expected; known are none", id="a policy for no service",
        ),
        pytest.param(
            join(policy("a", "front", "{targetRef: {kind: Service, name: s}}"), service("s")), 4,
            "spec.targetRef.name", "'s' is given", "known are shop/s", id="a policy for another namespace's service",
        ),
        pytest.param(
            join(policy("a", "front", "{targetRef: {kind: Service, name: s, namespace: shop}}"), service("s")), 4,
            "spec.targetRef.namespace", "'shop' is given", "the policy's namespace, front", id="across namespaces",
        ),
        pytest.param(
            join(mesh_config("a"), mesh_config("b")), 7, "kind", "a second MeshConfig is given",
            "a mesh has one; the first is in a.yaml:1", id="two MeshConfigs",
        ),
        pytest.param(rego("a", "[x.rego]"), 4, "spec.files[0]", "'x.rego' is given", "no file x.rego", id="no file"),
        pytest.param(
            registration("r", "w"), 4, "spec.workload", "'w' is given", "a WorkloadEntry is expected", id="no workload"
        ),
        pytest.param(
            join(entry("w", "1.1.1.1"), registration("q", "w"), registration("r", "w")), 14, "spec.workload",
            "shop/w is given", "shop/q registers it already", id="registered twice",
        ),
        pytest.param(
            join(entry("w", "1.1.1.1"), registration("r", "w", "[{service: s, port: 1}]")), 9, "spec.egress[0].service",
            "'s' is given", "a Service is expected; known are none", id="egress to nothing",
        ),
        pytest.param(
            join(entry("v", "1.1.1.1"), entry("w", "1.1.1.1")), 4, "spec.address", "1.1.1.1 is given twice",
            "each has its own address", id="address twice",
        ),
        pytest.param(
            join(entry("v", "'::1'"), entry("w", "'0::1'")), 4, "spec.address", "is given twice",
            "each has its own address", id="address twice, written in two ways",
        ),
        pytest.param(
            join(entry("w", "1.1.1.1"), service("s"), service("t")), 4, "spec.address",
            "port 80 of 1.1.1.1 is wanted twice", "a port of their own", id="port of two services",
        ),
        pytest.param(
            join(entry("w", "1.1.1.1"), service("s", "[{port: 80, targetPort: 80}]")), 4, "spec.address",
            "port 80 of 1.1.1.1 is wanted twice", "a port of their own", id="the application's port",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    problems_of: Problems, text: str, line: int, field: str, given: str, allowed: str
) -> None:
    problem = problems_of(a_yaml=text)[0]
    assert (problem.file, problem.line, problem.field) == ("a.yaml", line, field)
    assert given in problem.given
    assert allowed in problem.allowed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "the file holds no JSON object"),
        ('{"b": [{"a": 1, "a": 1}]}', "'a' is given twice"),
        ("{", "Expecting property name"),
        ('{"known": 1}', "data.known is given twice"),
        ('{"a": NaN}', "not JSON compliant"),
        ('{"a": 1e999}', "not JSON compliant"),
        (r'{"a": "\ud800"}', "surrogate"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
    ],
    ids=[
        "list",
        "twice",
        "not JSON",
        "given in the spec too",
        "NaN",
        "beyond numbers",
        "half a character",
        "deep",
        "digits",
    ],
)
def test_a_data_file_that_is_no_json_object_is_refused(problems_of: Problems, content: str, says: str) -> None:
    text = rego("a", "[d.json]", ", module: 'package a', data: {known: 1}")
    (problem,) = problems_of(a_yaml=text, d_json=content)
    assert (problem.file, problem.line, problem.field) == ("a.yaml", 4, "spec.files[0]")
    assert says in problem.given


def test_a_module_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Exception, match="can't decode") as caught:
        load({"a.yaml": rego("a", "[x.rego]").encode(), "x.rego": b"\xff"}, "cluster.local", 1)
    assert type(caught.value).__name__ == "InvalidConfiguration"


def test_files_of_a_rego_policy_are_looked_for_beside_it() -> None:
    files = {"sub/a.yaml": rego("a", "[x.rego]").encode(), "sub/x.rego": b"package a", "x.rego": b"package wrong"}
    assert load(files, "cluster.local", 1).rego["shop/a"].modules == {"sub/x.rego": "package a"}


@pytest.mark.parametrize("name", ["../x.rego", "/x.rego", "sub/../../x.rego"])
def test_files_of_a_rego_policy_are_not_looked_for_elsewhere(problems_of: Problems, name: str) -> None:
    (problem,) = problems_of(a_yaml=rego("a", f"[{name}]"), x_rego="package a")
    assert "there is no file" in problem.allowed


def test_a_provider_may_be_named_with_its_namespace(problems_of: Problems) -> None:
    text = join(custom("shop/a"), rego("a", "[x.rego]"))
    assert problems_of(a_yaml=text, x_rego="package a") == []


def test_names_are_unique_within_kind_and_namespace_only(problems_of: Problems) -> None:
    text = join(policy("a"), policy("a", "front"), service("a"), entry("a", "1.1.1.1"))
    assert problems_of(a_yaml=text) == []


# Workloads ------------------------------------------------------------------------------------------------------------


def test_a_workload_has_its_identity_its_ports_and_its_routes() -> None:
    text = join(
        entry("w", "1.1.1.1", "{app: w}"),
        entry("v", "1.1.1.2", "{app: a}"),
        service("s", "[{port: 80, targetPort: 8080}, {port: 90, targetPort: 9090}]"),
        registration("r", "w", "[{service: s, port: 7000}]"),
    )
    workloads = snapshot(a=text).workloads
    assert workloads["shop/w"].principal == "spiffe://cluster.local/ns/shop/sa/default"
    assert [port.port for port in workloads["shop/v"].ports] == [80, 90]
    assert workloads["shop/w"].ports == ()
    (route,) = workloads["shop/w"].routes
    assert (route.host, route.port, route.destination_port) == ("s.shop.svc.cluster.local", 7000, 80)
    assert [endpoint.name for endpoint in route.endpoints] == ["v"]


def test_a_service_selects_workloads_of_its_own_namespace_only() -> None:
    text = join(entry("w", "1.1.1.1", namespace="front"), service("s"))
    assert snapshot(a=text).workloads["front/w"].ports == ()


def test_policies_apply_in_the_order_of_their_names() -> None:
    text = join(entry("w", "1.1.1.1"), policy("b"), policy("a"), policy("c", "istio-system"), policy("d", "front"))
    made = snapshot(a=text)
    applying = made.applying_to(made.workloads["shop/w"], AuthorizationPolicySpec)
    assert [resource.full_name for resource in applying] == ["istio-system/c", "shop/a", "shop/b"]


def test_the_root_namespace_is_the_meshs() -> None:
    text = join(
        entry("w", "1.1.1.1"), policy("a", "roots"), policy("b", "istio-system"),
        mesh_config("m", "{rootNamespace: roots}"),
    )  # fmt: skip
    made = snapshot(a=text)
    applying = made.applying_to(made.workloads["shop/w"], AuthorizationPolicySpec)
    assert [resource.full_name for resource in applying] == ["roots/a"]


def test_a_policy_for_a_service_is_for_the_workloads_behind_it_at_its_ports() -> None:
    text = join(
        entry("w", "1.1.1.1", "{app: a}"), entry("v", "1.1.1.2", "{app: w}"),
        service("s", "[{port: 80, targetPort: 8080}, {port: 90, targetPort: 9090}]"),
        policy("p", spec="{targetRefs: [{kind: Service, name: s}]}"),
    )  # fmt: skip
    made = snapshot(a=text)
    applying = {
        name: [made.target_ports(resource, workload)
               for resource in made.applying_to(workload, AuthorizationPolicySpec)]
        for name, workload in made.workloads.items()
    }  # fmt: skip
    assert applying == {"shop/w": [[80, 90]], "shop/v": []}


# Versions -------------------------------------------------------------------------------------------------------------

PARTS = [policy("a"), policy("b", spec="{rules: [{}]}"), service("s"), entry("w", "1.1.1.1"), entry("v", "1.1.1.2")]


@given(st.permutations(PARTS), st.integers(min_value=0, max_value=len(PARTS)), st.integers(min_value=1))
def test_a_version_depends_on_what_is_said_and_not_on_where_or_when(parts: list[str], cut: int, number: int) -> None:
    text = join(*PARTS)
    other = {"x/a.yaml": ("# comment\n" + join(*parts[:cut])).encode(), "b.yml": join(*parts[cut:]).encode()}
    assert load(other, "cluster.local", number).version == snapshot(a=text).version


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(policy("b"), id="name"),
        pytest.param(policy("a", "front"), id="namespace"),
        pytest.param(policy("a", spec="{action: DENY, rules: [{}]}"), id="spec"),
        pytest.param(policy("a").replace("{name: a,", "{name: a, labels: {x: z},"), id="labels"),
        pytest.param(join(policy("a"), policy("b")), id="one more"),
        pytest.param("", id="one less"),
    ],
)
def test_another_configuration_has_another_version(other: str) -> None:
    assert snapshot(a=other).version != snapshot(a=policy("a")).version


def test_another_trust_domain_is_another_version() -> None:
    assert snapshot(a=policy("a"), trust_domain="x.test").version != snapshot(a=policy("a")).version


def test_another_content_of_a_rego_file_is_another_version() -> None:
    def version(module: bytes) -> str:
        return load({"a.yaml": rego("a", "[x.rego]").encode(), "x.rego": module}, "cluster.local", 1).version

    assert version(b"package a") != version(b"package a # other")
    assert version(b"package a") == version(b"package a")


def test_values_that_only_print_alike_differ() -> None:
    texts = [rego("a", "[]", f", module: m, data: {{x: {value}}}") for value in ("1", "'1'", "true", "1.5")]
    assert len({snapshot(a=text).version for text in texts}) == 4
