"""What a sidecar is configured with, against files in `tests/golden/xds`.

After a change that is meant, `PELTAST_WRITE_GOLDEN=1 pytest tests/proxy/test_compile.py` writes them anew. Such a run
fails wherever it wrote something else than was there: read the difference, then run without the variable.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from peltast.authz.revision import Revision
from peltast.proxy.sidecar.binary import find_envoy, install_module
from peltast.proxy.sidecar.bootstrap import bootstrap
from peltast.proxy.xds.compile import QUOTA_CLUSTER, Surroundings
from peltast.proxy.xds.module import deflated
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, Resource, Resources

GOLDEN = Path(__file__).parent.parent / "golden" / "xds"
WRITE_VARIABLE = "PELTAST_WRITE_GOLDEN"

WORKLOADS = ["storefront", "ledger-1", "database", "reports"]

Compiled = Callable[..., Resources]
Json = dict[str, Any]


def readable(resource: Resource) -> Json:
    """The resource as plain values; documents for our module as text and not in Base64."""
    value: Json = json.loads(json_format.MessageToJson(resource.body, preserving_proto_field_name=True))
    for config in [each["filter_config"] for each in nodes(value) if "filter_config" in each]:
        config["value"] = zlib.decompress(base64.b64decode(config["value"])).decode()
    return value


def plain(resources: Mapping[str, Resource]) -> dict[str, Json]:
    return {name: readable(each) for name, each in resources.items()}


def nodes(value: Any) -> Iterator[Json]:
    """Every object in `value`."""
    if isinstance(value, dict):
        yield value
        for member in value.values():
            yield from nodes(member)
    elif isinstance(value, list):
        for member in value:
            yield from nodes(member)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_resources_are_as_in_the_golden_file(compiled: Compiled, workload: str) -> None:
    resources = {type_url: plain(named) for type_url, named in compiled(f"bookshop/{workload}").items()}
    assert_is_golden(workload, resources)


def assert_is_golden(name: str, resources: Mapping[str, Mapping[str, Json]]) -> None:
    text = yaml.safe_dump(resources, width=120)
    file = GOLDEN / f"{name}.yaml"
    golden = file.read_text() if file.exists() else ""
    if os.environ.get(WRITE_VARIABLE) and text != golden:
        file.write_text(text)
        pytest.fail(f"{file} was written anew: read what changed, and run without {WRITE_VARIABLE}")
    assert text == golden, f"see the head of {Path(__file__).name} for how to write {file.name} anew"


def peer_authentication(mode: str, name: str = "a", namespace: str = "bookshop", more: str = "") -> str:
    head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
    spec = f"{{mtls: {{mode: {mode}}}{more}}}"
    return f"---\n{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"


LEDGER = ", selector: {matchLabels: {app: ledger}}"
FIRST_SHARD = ", selector: {matchLabels: {shard: first}}"
PEER_AUTHENTICATION = [
    ("ledger-1", "permissive", peer_authentication("PERMISSIVE")),
    ("ledger-1", "disable", peer_authentication("DISABLE")),
    (
        "ledger-1",
        "precedence",
        peer_authentication("DISABLE", namespace="istio-system")
        + peer_authentication("STRICT", more=LEDGER + ", portLevelMtls: {9090: {mode: PERMISSIVE}}"),
    ),
    ("storefront", "calls-permissive", peer_authentication("PERMISSIVE", more=LEDGER)),
    ("storefront", "calls-disable", peer_authentication("DISABLE", more=LEDGER)),
    ("storefront", "calls-one-disable", peer_authentication("DISABLE", more=FIRST_SHARD)),
]


@pytest.mark.parametrize(("workload", "name", "policies"), PEER_AUTHENTICATION)
def test_what_a_peer_authentication_changes_is_as_in_the_golden_file(
    compiled: Compiled, workload: str, name: str, policies: str
) -> None:
    before, after = compiled(f"bookshop/{workload}"), compiled(f"bookshop/{workload}", more=policies)
    assert {type_url: set(named) for type_url, named in before.items()} == {t: set(named) for t, named in after.items()}
    changed = {
        type_url: {each: readable(resource) for each, resource in named.items() if resource != before[type_url][each]}
        for type_url, named in after.items()
    }
    assert_is_golden(f"{workload}.{name}", changed)


def test_every_golden_file_is_compared() -> None:
    compared = set(WORKLOADS) | {f"{workload}.{name}" for workload, name, _ in PEER_AUTHENTICATION}
    assert {file.stem for file in GOLDEN.glob("*")} == compared


@pytest.mark.parametrize(
    ("workload", "scope", "borrows"),
    [("ledger-1", "global", True), ("ledger-1", "local", False), ("storefront", "global", False)],
)
def test_whose_limits_are_counted_for_all_sidecars_can_borrow(
    compiled: Compiled, surroundings: Surroundings, workload: str, scope: str, *, borrows: bool
) -> None:
    head = "---\napiVersion: peltast.dev/v1\nkind: RateLimitPolicy\nmetadata: {name: a, namespace: bookshop}\n"
    limits = "limits: [{rules: [{to: [{operation: {ports: ['9090']}}]}], rates: [{requests: 1, per: 1s}]}]"
    policy = f"{head}spec: {{selector: {{matchLabels: {{app: ledger}}}}, scope: {scope}, {limits}}}\n"
    before, after = compiled(f"bookshop/{workload}")[CLUSTER], compiled(f"bookshop/{workload}", more=policy)[CLUSTER]
    assert after.keys() - before.keys() == ({QUOTA_CLUSTER} if borrows else set())
    if borrows:
        cluster = readable(after[QUOTA_CLUSTER])
        (endpoint,) = (each["socket_address"] for each in nodes(cluster) if "socket_address" in each)
        assert (endpoint["address"], endpoint["port_value"]) == surroundings.quota_address
        assert any("http2_protocol_options" in each for each in nodes(cluster))
        assert any(each.get("exact") == surroundings.control_principal for each in nodes(cluster))


@pytest.mark.parametrize("workload", ["bookshop/storefront", "bookshop/ledger-1", "bookshop/ledger-2"])
def test_compiling_is_pure(compiled: Compiled, workload: str) -> None:
    first, second = compiled(workload), compiled(workload)
    assert first == second
    assert all(name == each.name for named in first.values() for name, each in named.items())


def test_versions_differ_where_the_content_does(compiled: Compiled) -> None:
    one, other = compiled("bookshop/ledger-1"), compiled("bookshop/ledger-1", module="peltast_filter_4567")
    same = {name for name in one[CLUSTER] if one[CLUSTER][name].version == other[CLUSTER][name].version}
    assert same == set(one[CLUSTER]), "clusters do not name the module"
    for type_url in (LISTENER, EXTENSION_CONFIG):
        for name, each in one[type_url].items():
            assert each.version != other[type_url][name].version


def test_all_tls_is_version_1_3_of_mutual_trust_by_sds(compiled: Compiled) -> None:
    contexts = [
        each["common_tls_context"]
        for workload in ("bookshop/storefront", "bookshop/ledger-1")
        for named in compiled(workload).values()
        for each in nodes(plain(named))
        if "common_tls_context" in each
    ]
    assert len(contexts) == 5, "two inbound listeners, the ledger of the storefront, and two check services"
    for context in contexts:
        limits = context["tls_params"]
        assert limits["tls_minimum_protocol_version"] == limits["tls_maximum_protocol_version"] == "TLSv1_3"
        assert [each["name"] for each in context["tls_certificate_sds_secret_configs"]] == ["default"]
        assert context["combined_validation_context"]["validation_context_sds_secret_config"]["name"] == "ALL"


@pytest.mark.parametrize(
    ("cluster", "principals"),
    [
        pytest.param(
            "outbound|9443||ledger.bookshop.svc.cluster.local",
            ["spiffe://mesh.example/ns/bookshop/sa/ledger", "spiffe://mesh.example/ns/bookshop/sa/ledger-spare"],
            id="another service: each of its workloads' identities",
        ),
        pytest.param("peltast-check", ["spiffe://mesh.example/peltast/control"], id="the check service"),
    ],
)
def test_whoever_is_called_must_have_its_spiffe_id(compiled: Compiled, cluster: str, principals: list[str]) -> None:
    found = readable(compiled("bookshop/storefront")[CLUSTER][cluster])
    [matchers] = [each for each in nodes(found) if "match_typed_subject_alt_names" in each]
    assert matchers["match_typed_subject_alt_names"] == [
        {"san_type": "URI", "matcher": {"exact": principal}} for principal in principals
    ]


def test_no_peer_is_taken_without_a_certificate_or_by_a_resumed_session(compiled: Compiled) -> None:
    inbound = readable(compiled("bookshop/ledger-1")[LISTENER]["inbound_9443"])
    [context] = [each for each in nodes(inbound) if "require_client_certificate" in each]
    assert context["require_client_certificate"] is True
    assert context["disable_stateless_session_resumption"] is True
    assert context["disable_stateful_session_resumption"] is True


def test_every_listener_is_alone_on_its_port_normalizes_paths_and_logs(compiled: Compiled) -> None:
    listeners = plain(compiled("bookshop/storefront")[LISTENER])
    assert listeners.keys() == {"inbound_8443", "outbound_15001"}
    for listener in listeners.values():
        assert listener["enable_reuse_port"] is False
        [manager] = [each for each in nodes(listener) if "stat_prefix" in each]
        assert manager["normalize_path"] is True
        assert manager["merge_slashes"] is True
        assert manager["path_with_escaped_slashes_action"] == "KEEP_UNCHANGED"
    logs = {
        name: {each["logger_name"] for each in nodes(value) if "logger_name" in each}
        for name, value in listeners.items()
    }
    assert logs == {"inbound_8443": {"listener", "inbound"}, "outbound_15001": {"outbound"}}


@pytest.mark.parametrize(
    ("mode", "normalizes", "merges", "escaped_slashes"),
    [
        ("NONE", False, False, "KEEP_UNCHANGED"),
        ("BASE", True, False, "KEEP_UNCHANGED"),
        ("MERGE_SLASHES", True, True, "KEEP_UNCHANGED"),
        ("DECODE_AND_MERGE_SLASHES", True, True, "UNESCAPE_AND_FORWARD"),
    ],
)
def test_envoy_normalizes_paths_in_the_meshs_mode(
    compiled: Compiled, mode: str, escaped_slashes: str, *, normalizes: bool, merges: bool
) -> None:
    spec = f"{{pathNormalization: {{normalization: {mode}}}}}"
    settings = f"apiVersion: peltast.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {spec}\n"
    for listener in plain(compiled("bookshop/storefront", more=settings)[LISTENER]).values():
        [manager] = [each for each in nodes(listener) if "stat_prefix" in each]
        assert manager["normalize_path"] is normalizes
        assert manager.get("merge_slashes", False) is merges
        assert manager["path_with_escaped_slashes_action"] == escaped_slashes


def test_requests_fail_closed_until_program_keys_and_revocations_have_come(compiled: Compiled) -> None:
    resources = compiled("bookshop/ledger-1")
    inbound = readable(resources[LISTENER]["inbound_9443"])
    [filters] = [each["http_filters"] for each in nodes(inbound) if "http_filters" in each]
    assert [each["name"] for each in filters] == ["keys", "revocations", "program", "envoy.filters.http.router"]
    for each in filters[:3]:
        assert each["config_discovery"].keys() == {"config_source", "type_urls"}, "no default, no warming skipped"
    assert resources[EXTENSION_CONFIG].keys() == {"keys", "revocations", "program"}


def test_the_program_that_is_sent_is_the_workloads_own(compiled: Compiled, revision: Revision) -> None:
    sent = readable(compiled("bookshop/ledger-2")[EXTENSION_CONFIG]["program"])
    assert sent["typed_config"]["filter_config"]["value"] == revision.programs["bookshop/ledger-2"].decode()
    assert "spiffe://mesh.example/ns/bookshop/sa/ledger-spare" in sent["typed_config"]["filter_config"]["value"]


def test_the_program_of_connections_is_that_of_requests(compiled: Compiled, revision: Revision) -> None:
    sent = readable(compiled("bookshop/database")[EXTENSION_CONFIG]["connection-program"])
    config = sent["typed_config"]["value"]
    assert config["filter_config"]["value"] == revision.programs["bookshop/database"].decode()
    assert config["dynamic_module_config"]["do_not_close"] is True


def test_a_connection_is_stopped_before_the_filter_that_connects_to_the_application(compiled: Compiled) -> None:
    inbound = readable(compiled("bookshop/database")[LISTENER]["inbound_15432"])
    [chain] = inbound["filter_chains"]
    names = ["envoy.filters.network.set_filter_state", "connection-program", "envoy.filters.network.tcp_proxy"]
    assert [each["name"] for each in chain["filters"]] == names
    assert chain["filters"][1]["config_discovery"].keys() == {"config_source", "type_urls"}, "no default"
    [context] = [each for each in nodes(inbound) if "require_client_certificate" in each]
    assert context["require_client_certificate"] is True
    assert {each["logger_name"] for each in nodes(inbound) if "logger_name" in each} == {"inbound-connection"}


# Envoy itself ---------------------------------------------------------------------------------------------------------


def static_config(resources: Resources, folder: Path) -> Json:
    """The sidecar's own bootstrap, with its resources in it."""
    config: Json = json.loads(bootstrap("bookshop/storefront", folder / "agent.sock", folder / "admin.sock"))
    plain_resources = {
        type_url: [
            json.loads(json_format.MessageToJson(each.body, preserving_proto_field_name=True))
            for each in named.values()
        ]
        for type_url, named in resources.items()
    }
    for each in [*plain_resources[CLUSTER], *plain_resources[LISTENER]]:
        del each["@type"]
    config["static_resources"]["clusters"] += plain_resources[CLUSTER]
    config["static_resources"]["listeners"] = plain_resources[LISTENER]
    return config


def with_filters_inline(config: Json, extension_configs: Mapping[str, Resource]) -> Json:
    """Our filters as they would come by ECDS: a configuration that is only validated fetches nothing."""
    documents = {
        name: json.loads(json_format.MessageToJson(each.body, preserving_proto_field_name=True))
        for name, each in extension_configs.items()
    }
    for each in nodes(config):
        if "config_discovery" in each:
            del each["config_discovery"]
            each["typed_config"] = documents[each["name"]]["typed_config"]
    return config


def validate(config: Json, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "bootstrap.json"
    file.write_text(json.dumps(config))
    environment = {
        "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(folder),
        "PELTAST_SPOOL": str(folder / "spool"),
        "PELTAST_SPOOL_BYTES": "1000000",
    }
    command = [find_envoy().path, "--mode", "validate", "--config-path", file, "--log-level", "warning"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("inline", [pytest.param(False, id="filters by ECDS"), pytest.param(True, id="filters inline")])
@pytest.mark.parametrize(
    ("workload", "policies"),
    [
        *[(workload, "") for workload in WORKLOADS],
        *[(workload, policies) for workload, _, policies in PEER_AUTHENTICATION],
    ],
    ids=[*WORKLOADS, *[f"{workload}.{name}" for workload, name, _ in PEER_AUTHENTICATION]],
)
def test_envoy_takes_what_is_compiled(
    compiled: Compiled, tmp_path: Path, workload: str, policies: str, *, inline: bool
) -> None:
    resources = compiled(f"bookshop/{workload}", module=install_module(tmp_path), more=policies)
    config = static_config(resources, tmp_path)
    if inline:
        config = with_filters_inline(config, resources[EXTENSION_CONFIG])
    result = validate(config, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "OK" in result.stdout


@pytest.mark.parametrize("workload", ["ledger-1", "database"])
def test_envoy_refuses_a_program_that_our_module_refuses(compiled: Compiled, tmp_path: Path, workload: str) -> None:
    resources = compiled(f"bookshop/{workload}", module=install_module(tmp_path))
    config = with_filters_inline(static_config(resources, tmp_path), resources[EXTENSION_CONFIG])
    for each in nodes(config):
        if each.get("filter_name") == "program":
            each["filter_config"]["value"] = base64.b64encode(deflated(b'{"schema": 999}')).decode()
    result = validate(config, tmp_path)
    assert result.returncode != 0
    assert "program" in result.stderr


def test_a_sidecar_that_only_calls_others_is_told_how_to_record_queries(compiled: Compiled) -> None:
    """It has no program: its logger's configuration says it, and is another only where an AuditPolicy says so."""

    def told(query: str) -> Any:
        policy = "---\napiVersion: peltast.dev/v1\nkind: AuditPolicy\nmetadata: {name: a, namespace: bookshop}\n"
        text = f"{policy}spec: {{record: {{query: {query}}}}}\n" if query else ""
        resources = compiled("bookshop/storefront", more=text)[LISTENER].values()
        logs = [node for each in resources for node in nodes(readable(each)) if node.get("logger_name") == "outbound"]
        assert logs
        return [log.get("logger_config", {}).get("value") for log in logs]

    assert set(told("")) == set(told("keep")) == {None}
    assert set(told("redact")) == {"redact"}
    assert set(told("hash")) == {"hash"}
