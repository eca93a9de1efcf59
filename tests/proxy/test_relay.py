from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from peltast.proxy.agent import last_good
from peltast.proxy.agent.relay import RelayState
from peltast.proxy.xds.delta import Acknowledgement, DeltaSession
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, Resource
from peltast.proxy.xds.store import Store

MakeResource = Callable[..., Resource]


class Sidecar:
    """The relay's state, between a control plane and an Envoy that the test plays."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.restart()

    def restart(self) -> None:
        self.store = Store()
        self.state = RelayState(self.store, self.file)

    def holds(self, type_url: str = CLUSTER) -> dict[str, str]:
        return {name: each.version for name, each in self.store.resources.get(type_url, {}).items()}

    def from_control_plane(
        self, nonce: str, *resources: Resource, removed: tuple[str, ...] = (), type_url: str = CLUSTER
    ) -> DeltaDiscoveryRequest | None:
        messages = [ResourceMessage(name=each.name, version=each.version, resource=each.body) for each in resources]
        return self.state.on_response(
            DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, resources=messages, removed_resources=removed)
        )

    def from_envoy(
        self, *resources: Resource, error: str | None = None, type_url: str = CLUSTER
    ) -> list[tuple[str, str | None]]:
        """What the control plane is told: nonces with errors."""
        versions = {each.name: each.version for each in resources}
        answers = self.state.on_acknowledgement(Acknowledgement(type_url, versions, error))
        return [told(answer) for answer in answers]


def told(answer: DeltaDiscoveryRequest | None) -> tuple[str, str | None]:
    assert answer is not None
    return answer.response_nonce, answer.error_detail.message if answer.HasField("error_detail") else None


@pytest.fixture
def node(tmp_path: Path) -> Sidecar:
    return Sidecar(tmp_path / "last-good.pb")


def subscriptions(node: Sidecar) -> dict[str, dict[str, str]]:
    requests = node.state.subscriptions(Node(id="bookshop/catalog"))
    assert all(request.node.id == "bookshop/catalog" for request in requests)
    assert all(list(request.resource_names_subscribe) == ["*"] for request in requests)
    return {request.type_url: dict(request.initial_resource_versions) for request in requests}


def test_a_new_node_asks_for_everything(node: Sidecar) -> None:
    assert subscriptions(node) == {CLUSTER: {}, EXTENSION_CONFIG: {}, LISTENER: {}}


def test_what_the_control_plane_sends_is_stored_and_not_yet_acknowledged(
    node: Sidecar, make_resource: MakeResource
) -> None:
    a = make_resource("a")
    assert node.from_control_plane("1", a) is None
    assert node.store.resources == {CLUSTER: {"a": a}}


def test_resources_of_other_names_and_types_stay(node: Sidecar, make_resource: MakeResource) -> None:
    a, b, listener = make_resource("a"), make_resource("b"), make_resource("l", type_url=LISTENER)
    node.from_control_plane("1", a)
    node.from_control_plane("2", listener, type_url=LISTENER)
    node.from_control_plane("3", b)
    assert (node.holds(), node.holds(LISTENER)) == (
        {"a": a.version, "b": b.version},
        {"l": listener.version},
    )


def test_what_envoy_accepts_is_acknowledged_with_the_control_planes_nonce(
    node: Sidecar, make_resource: MakeResource
) -> None:
    a, b = make_resource("a"), make_resource("b")
    node.from_control_plane("7", a)
    node.from_control_plane("8", b)
    assert node.from_envoy(b) == [("8", None)]
    assert node.from_envoy(a) == [("7", None)]


def test_a_response_of_two_resources_is_acknowledged_when_both_are_accepted(
    node: Sidecar, make_resource: MakeResource
) -> None:
    a, b = make_resource("a"), make_resource("b")
    node.from_control_plane("7", a, b)
    assert node.from_envoy(a) == []
    assert node.from_envoy(b) == [("7", None)]


def test_a_response_of_two_resources_is_refused_when_one_is(node: Sidecar, make_resource: MakeResource) -> None:
    a, b = make_resource("a"), make_resource("b")
    node.from_control_plane("7", a, b)
    assert node.from_envoy(a, error="bad a") == [("7", "bad a")]
    assert node.from_envoy(b) == [], "a nonce is answered once"


def test_an_acknowledgement_of_another_type_answers_nothing(node: Sidecar, make_resource: MakeResource) -> None:
    a = make_resource("a")
    node.from_control_plane("7", a)
    assert node.from_envoy(a, type_url=LISTENER) == []


def test_what_envoy_refuses_for_the_first_time_is_taken_away(node: Sidecar, make_resource: MakeResource) -> None:
    a, bad = make_resource("a"), make_resource("bad")
    node.from_control_plane("1", a)
    node.from_control_plane("2", bad)
    node.from_envoy(a)
    assert node.from_envoy(bad, error="no") == [("2", "no")]
    assert node.holds() == {"a": a.version}


def test_what_envoy_refuses_is_taken_back_to_what_it_last_accepted(node: Sidecar, make_resource: MakeResource) -> None:
    good, bad = make_resource("a"), make_resource("a", "bad")
    node.from_control_plane("1", good)
    node.from_envoy(good)
    node.from_control_plane("2", bad)
    assert node.holds() == {"a": bad.version}
    assert node.from_envoy(bad, error="no") == [("2", "no")]
    assert node.holds() == {"a": good.version}


def test_a_late_refusal_does_not_take_back_a_newer_version(node: Sidecar, make_resource: MakeResource) -> None:
    old, new = make_resource("a"), make_resource("a", "new")
    node.from_control_plane("1", old)
    node.from_control_plane("2", new)
    assert node.from_envoy(old, error="no") == [("1", "no")]
    assert node.holds() == {"a": new.version}
    assert node.from_envoy(new) == [("2", None)]


def test_a_removal_is_acknowledged_at_once(node: Sidecar, make_resource: MakeResource) -> None:
    a, b = make_resource("a"), make_resource("b")
    node.from_control_plane("1", a, b)
    assert told(node.from_control_plane("2", removed=("a", "never there"))) == ("2", None)
    assert node.holds() == {"b": b.version}


@pytest.mark.parametrize("envoy_spoke", [pytest.param(True, id="Envoy spoke"), pytest.param(False, id="Envoy did not")])
def test_what_was_removed_does_not_come_back_with_a_restart(
    node: Sidecar, make_resource: MakeResource, *, envoy_spoke: bool
) -> None:
    a, b = make_resource("a"), make_resource("b")
    node.from_control_plane("1", a, b)
    node.from_envoy(a, b)
    node.from_control_plane("2", removed=("a",))
    if envoy_spoke:
        node.from_envoy()
    node.restart()
    assert node.holds() == {"b": b.version}


def test_what_envoy_accepted_survives_a_restart_and_nothing_else_does(
    node: Sidecar, make_resource: MakeResource
) -> None:
    good, unspoken = make_resource("a"), make_resource("b")
    listener = make_resource("l", type_url=LISTENER)
    node.from_control_plane("1", good)
    node.from_control_plane("2", unspoken)
    node.from_control_plane("3", listener, type_url=LISTENER)
    node.from_envoy(good)
    node.from_envoy(listener, type_url=LISTENER)
    node.restart()
    assert node.store.resources == {CLUSTER: {"a": good}, LISTENER: {"l": listener}}
    assert subscriptions(node) == {
        CLUSTER: {"a": good.version},
        LISTENER: {"l": listener.version},
        EXTENSION_CONFIG: {},
    }


def test_a_restart_after_a_refusal_starts_with_the_last_good(node: Sidecar, make_resource: MakeResource) -> None:
    good, bad = make_resource("a"), make_resource("a", "bad")
    node.from_control_plane("1", good)
    node.from_envoy(good)
    node.from_control_plane("2", bad)
    node.restart()
    assert node.holds() == {"a": good.version}


def test_a_new_stream_forgets_the_nonces_of_the_one_before(node: Sidecar, make_resource: MakeResource) -> None:
    a = make_resource("a")
    node.from_control_plane("1", a)
    subscriptions(node)
    assert node.from_envoy(a) == []


def test_what_envoy_has_not_spoken_on_is_asked_for_again_by_a_new_stream(
    node: Sidecar, make_resource: MakeResource
) -> None:
    """Else the control plane would never learn what Envoy says of it."""
    good, unspoken, first = make_resource("a"), make_resource("a", "new"), make_resource("b")
    node.from_control_plane("1", good)
    node.from_envoy(good)
    node.from_control_plane("2", unspoken)
    node.from_control_plane("3", first)
    control_plane = DeltaSession()
    for request in node.state.subscriptions(Node()):
        control_plane.on_request(request)
    responses = list(control_plane.responses({CLUSTER: {"a": unspoken, "b": first}}))
    assert [each.name for response in responses for each in response.resources] == ["a", "b"]
    assert [node.state.on_response(response) for response in responses] == [None, None]
    assert node.from_envoy(unspoken, error="no") == [(responses[0].nonce, "no")]
    assert node.from_envoy(first) == [(responses[1].nonce, None)]


def test_what_envoy_has_not_spoken_on_is_removed_where_it_is_gone_by_then(
    node: Sidecar, make_resource: MakeResource
) -> None:
    node.from_control_plane("1", make_resource("a"))
    control_plane = DeltaSession()
    for request in node.state.subscriptions(Node()):
        control_plane.on_request(request)
    [removal] = control_plane.responses({})
    node.state.on_response(removal)
    assert node.holds() == {}


def test_a_return_to_what_envoy_has_is_acknowledged_at_once(node: Sidecar, make_resource: MakeResource) -> None:
    """Envoy is sent nothing then, so it would never speak."""
    good, bad = make_resource("a"), make_resource("a", "bad")
    node.from_control_plane("1", good)
    node.from_envoy(good)
    node.from_control_plane("2", bad)
    node.from_envoy(bad, error="no")
    assert told(node.from_control_plane("3", good)) == ("3", None)
    assert node.holds() == {"a": good.version}


def test_a_version_that_envoy_was_never_sent_is_not_answered_for_when_it_comes_again(
    node: Sidecar, make_resource: MakeResource
) -> None:
    """Envoy skips versions that were replaced before it was sent them."""
    skipped, taken = make_resource("a"), make_resource("a", "taken")
    node.from_control_plane("1", skipped)
    node.from_control_plane("2", taken)
    assert node.from_envoy(taken) == [("2", None)]
    node.from_control_plane("3", skipped)
    assert node.from_envoy(skipped) == [("3", None)]


def test_a_version_that_comes_twice_is_answered_for_twice(node: Sidecar, make_resource: MakeResource) -> None:
    """Of the versions that it was never sent, Envoy need not speak: it may have seen only the last."""
    old, new = make_resource("a"), make_resource("a", "new")
    for nonce, version in (("1", old), ("2", new), ("3", old)):
        node.from_control_plane(nonce, version)
    assert node.from_envoy(old) == [("1", None), ("3", None)]


def test_the_file_of_the_last_good_is_its_owners_only(node: Sidecar, make_resource: MakeResource) -> None:
    a = make_resource("a")
    node.from_control_plane("1", a)
    node.from_envoy(a)
    assert stat.S_IMODE(node.file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe garbage", id="garbage"),
        pytest.param(b"\x12\x80\x80\x80\x80\x10", id="cut short"),
        pytest.param(b"\x0a\x02\xff\xff", id="bad UTF-8"),
    ],
)
def test_a_file_that_is_of_no_use_is_nothing(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "last-good.pb"
    if content is not None:
        file.write_bytes(content)
    assert last_good.load(file) == {}


def test_what_was_saved_is_loaded(tmp_path: Path, make_resource: MakeResource) -> None:
    file = tmp_path / "last-good.pb"
    resources = {
        CLUSTER: {"a": make_resource("a"), "b": make_resource("b", "c")},
        LISTENER: {"a": make_resource("a", type_url=LISTENER)},
    }
    last_good.save(file, resources)
    assert last_good.load(file) == resources


def test_replacing_one_resource_leaves_the_given_ones_as_they_were(make_resource: MakeResource) -> None:
    a, changed = make_resource("a"), make_resource("a", "changed")
    before = {CLUSTER: {"a": a}}
    assert last_good.with_resource(before, CLUSTER, "a", changed) == {CLUSTER: {"a": changed}}
    assert last_good.with_resource(before, CLUSTER, "a", None) == {CLUSTER: {}}
    assert before == {CLUSTER: {"a": a}}
