"""PeerAuthentication: which mode holds where, by Istio's precedence, and what cannot be enforced as it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.policies.kinds.peer_authentication import MtlsMode
from peltast.policies.problems import Problem
from peltast.policies.snapshot import load

Problems = Callable[..., list[Problem]]

WORKLOADS = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api, namespace: shop}
spec: {address: 127.0.0.1, labels: {app: api, tier: back}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 127.0.0.2, labels: {app: web, tier: front}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: 8080}, {port: 90, targetPort: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""
API, WEB = "selector: {matchLabels: {app: api}}", "selector: {matchLabels: {app: web}}"
MODES = ["STRICT", "PERMISSIVE", "DISABLE"]


def policy(name: str, spec: str, namespace: str = "shop") -> str:
    head = f"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, "
    return f"{head}namespace: {namespace}}}\nspec: {{{spec}}}\n"


def mtls(mode: str) -> str:
    return f"mtls: {{mode: {mode}}}"


def modes(*policies: str) -> dict[str, str]:
    """The mode of each port of `api` and `web`, by the port that peers connect to."""
    files = {"mesh.yaml": WORKLOADS.encode(), "policies.yaml": "---\n".join(policies).encode()}
    workloads = load(files, "cluster.local", 1).workloads.values()
    return {f"{each.name}:{port}": mode.value for each in workloads for port, mode in each.mtls.items()}


MESH = policy("mesh", mtls("PERMISSIVE"), "istio-system")
NAMESPACE = policy("namespace", mtls("DISABLE"))
WORKLOAD = policy("workload", f"{API}, {mtls('STRICT')}")


@pytest.mark.parametrize(
    ("policies", "api_80", "api_90", "web_80"),
    [
        pytest.param([], "STRICT", "STRICT", "STRICT", id="nothing is said: ours is not Istio's default"),
        pytest.param([MESH], "PERMISSIVE", "PERMISSIVE", "PERMISSIVE", id="mesh"),
        pytest.param([NAMESPACE], "DISABLE", "DISABLE", "DISABLE", id="namespace"),
        pytest.param([MESH, NAMESPACE], "DISABLE", "DISABLE", "DISABLE", id="namespace over mesh"),
        pytest.param([MESH, WORKLOAD], "STRICT", "STRICT", "PERMISSIVE", id="workload over mesh"),
        pytest.param([MESH, NAMESPACE, WORKLOAD], "STRICT", "STRICT", "DISABLE", id="workload over namespace"),
        pytest.param([WORKLOAD, NAMESPACE, MESH], "STRICT", "STRICT", "DISABLE", id="wherever they stand"),
        pytest.param(
            [policy("other", mtls("DISABLE"), "front")], "STRICT", "STRICT", "STRICT", id="another namespace's"
        ),
        pytest.param(
            [policy("other", f"{API}, {mtls('DISABLE')}", "front")], "STRICT", "STRICT", "STRICT",
            id="another namespace's, with a selector that would fit",
        ),
        pytest.param(
            [MESH, policy("a", mtls("UNSET"))], "PERMISSIVE", "PERMISSIVE", "PERMISSIVE", id="UNSET inherits"
        ),
        pytest.param([MESH, policy("a", "")], "PERMISSIVE", "PERMISSIVE", "PERMISSIVE", id="an empty spec inherits"),
        pytest.param(
            [policy("a", mtls("UNSET"), "istio-system")], "STRICT", "STRICT", "STRICT", id="nothing to inherit"
        ),
        pytest.param(
            [policy("a", f"selector: {{}}, {mtls('PERMISSIVE')}")], "PERMISSIVE", "PERMISSIVE", "PERMISSIVE",
            id="an empty selector is none",
        ),
        pytest.param(
            [policy("a", f"{API}, {mtls('STRICT')}, portLevelMtls: {{9090: {{mode: DISABLE}}}}")],
            "STRICT", "DISABLE", "STRICT", id="port over workload: the application's port",
        ),
        pytest.param(
            [NAMESPACE, policy("a", f"{API}, portLevelMtls: {{9090: {{mode: PERMISSIVE}}}}")],
            "DISABLE", "PERMISSIVE", "DISABLE", id="other ports inherit from the namespace",
        ),
        pytest.param(
            [NAMESPACE, policy("a", f"{API}, {mtls('PERMISSIVE')}, portLevelMtls: {{9090: {{mode: UNSET}}}}")],
            "PERMISSIVE", "PERMISSIVE", "DISABLE", id="an UNSET port inherits from the workload",
        ),
        pytest.param(
            [policy("a", f"{API}, portLevelMtls: {{'9090': {{mode: DISABLE}}, 8080: {{}}}}")],
            "STRICT", "DISABLE", "STRICT", id="a port in quotes, and one of which nothing is said",
        ),
    ],
)  # fmt: skip
def test_the_narrowest_that_says_something_holds(policies: list[str], api_80: str, api_90: str, web_80: str) -> None:
    assert modes(*policies) == {"api:80": api_80, "api:90": api_90, "web:80": web_80}


@given(*[st.none() | st.sampled_from([*MODES, "UNSET"])] * 4)
def test_the_last_word_of_mesh_namespace_workload_and_port_holds(
    mesh: str | None, namespace: str | None, workload: str | None, port: str | None
) -> None:
    said = [mesh, namespace, workload, port]
    given = [
        policy("mesh", mtls(mesh), "istio-system") if mesh else "",
        policy("namespace", mtls(namespace)) if namespace else "",
        policy(
            "workload",
            f"{API}, {mtls(workload or 'UNSET')}" + (f", portLevelMtls: {{9090: {{mode: {port}}}}}" if port else ""),
        ),
    ]
    found = modes(*filter(None, given))
    assert found["api:90"] == ([each for each in said if each in MODES] or ["STRICT"])[-1]
    assert found["api:80"] == ([each for each in said[:3] if each in MODES] or ["STRICT"])[-1]


@pytest.mark.parametrize(
    ("mode", "takes_mtls", "takes_plaintext"),
    [("STRICT", True, False), ("PERMISSIVE", True, True), ("DISABLE", False, True)],
)
def test_what_a_port_takes(mode: str, *, takes_mtls: bool, takes_plaintext: bool) -> None:
    text = WORKLOADS + "---\n" + policy("a", mtls(mode))
    api = load({"mesh.yaml": text.encode()}, "cluster.local", 1).workloads["shop/api"]
    assert api.mtls == {80: MtlsMode(mode), 90: MtlsMode(mode)}
    assert (api.takes_mtls(80), api.takes_plaintext(80)) == (takes_mtls, takes_plaintext)


BACK = "selector: {matchLabels: {tier: back}}"


@pytest.mark.parametrize(
    ("policies", "line", "field", "given", "allowed"),
    [
        pytest.param(
            [MESH, policy("other", mtls("STRICT"), "istio-system")], 9, "spec.selector",
            "shop/api is selected by istio-system/mesh, too", "one of its mesh", id="two of the mesh",
        ),
        pytest.param(
            [NAMESPACE, policy("other", mtls("STRICT"))], 9, "spec.selector",
            "shop/api is selected by shop/namespace, too", "one of its namespace", id="two of a namespace",
        ),
        pytest.param(
            [policy("a", f"{API}, {mtls('STRICT')}"), policy("b", f"{BACK}, {mtls('DISABLE')}")], 9, "spec.selector",
            "shop/api is selected by shop/a, too", "one that names it by labels", id="two of a workload",
        ),
        pytest.param(
            [policy("a", f"{API}, {mtls('STRICT')}", "istio-system")], 4, "spec.selector",
            "a selector is given in the namespace istio-system", "in their own namespace",
            id="a selector in the root namespace, which Istio passes over",
        ),
        pytest.param(
            [policy("a", f"{API}, portLevelMtls: {{80: {{mode: STRICT}}}}")], 4, "spec.portLevelMtls.80",
            "80 is given", "known are 8080, 9090", id="the port that peers connect to",
        ),
        pytest.param(
            [policy("a", f"{WEB}, portLevelMtls: {{9090: {{mode: STRICT}}}}")], 4, "spec.portLevelMtls.9090",
            "9090 is given", "known are 8080", id="a port of another workload",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_as_written_is_refused(
    problems_of: Problems, policies: list[str], line: int, field: str, given: str, allowed: str
) -> None:
    (problem,) = problems_of(mesh_yaml=WORKLOADS, policies_yaml="---\n".join(policies))
    assert (problem.file, problem.line, problem.field) == ("policies.yaml", line, field)
    assert given in problem.given
    assert allowed in problem.allowed


def test_several_of_one_level_are_taken_where_they_select_others(problems_of: Problems) -> None:
    text = "---\n".join([WORKLOAD, policy("web", f"{WEB}, {mtls('DISABLE')}"), NAMESPACE, MESH])
    assert problems_of(mesh_yaml=WORKLOADS, policies_yaml=text) == []


def test_ports_of_workloads_that_are_not_there_yet_are_taken(problems_of: Problems) -> None:
    later = policy("later", "selector: {matchLabels: {app: later}}, portLevelMtls: {7070: {mode: DISABLE}}")
    assert problems_of(mesh_yaml=WORKLOADS, policies_yaml=later) == []
