from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from peltast.proxy.xds.delta import Acknowledgement, DeltaSession
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, SECRET, Resource, Resources

MakeResource = Callable[..., Resource]


def request(
    *subscribe: str,
    type_url: str = CLUSTER,
    unsubscribe: tuple[str, ...] = (),
    has: Mapping[str, str] | None = None,
    nonce: str = "",
    error: str | None = None,
) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(
        type_url=type_url,
        resource_names_subscribe=subscribe,
        resource_names_unsubscribe=unsubscribe,
        initial_resource_versions=has or {},
        response_nonce=nonce,
        error_detail=None if error is None else Status(message=error),
    )


def clusters(*resources: Resource) -> Resources:
    return {CLUSTER: {each.name: each for each in resources}}


def sent(session: DeltaSession, resources: Resources) -> list[str]:
    """The names that the session sends, removed ones with a minus."""
    names: list[str] = []
    for response in session.responses(resources):
        names += [each.name for each in response.resources] + [f"-{name}" for name in response.removed_resources]
    return names


@pytest.mark.parametrize(
    ("subscribe", "expected"),
    [
        pytest.param((), ["a", "b"], id="nothing named is everything"),
        pytest.param(("*",), ["a", "b"], id="wildcard by name"),
        pytest.param(("b",), ["b"], id="one name"),
        pytest.param(("a", "b"), ["a", "b"], id="two names"),
        pytest.param(("missing",), [], id="a name that does not exist"),
        pytest.param(("*", "a"), ["a", "b"], id="wildcard and a name"),
    ],
)
def test_a_first_request_gets_what_it_asks_for(
    make_resource: MakeResource, subscribe: tuple[str, ...], expected: list[str]
) -> None:
    session = DeltaSession()
    assert session.on_request(request(*subscribe)) is None
    assert sent(session, clusters(make_resource("a"), make_resource("b"))) == expected


def test_what_was_not_asked_for_is_not_sent(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request(type_url=LISTENER))
    assert sent(session, clusters(make_resource("a"))) == []


def test_every_resource_comes_in_a_response_and_with_a_nonce_of_its_own(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    a, b = make_resource("a"), make_resource("b")
    responses = list(session.responses(clusters(a, b)))
    assert [[(each.name, each.version) for each in response.resources] for response in responses] == [
        [("a", a.version)],
        [("b", b.version)],
    ]
    assert [response.resources[0].resource for response in responses] == [a.body, b.body]
    assert len({response.nonce for response in responses}) == 2
    assert all(response.nonce for response in responses)


def test_what_was_sent_is_sent_again_only_when_it_changes(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    before, b = make_resource("a"), make_resource("b")
    assert sent(session, clusters(before, b)) == ["a", "b"]
    assert sent(session, clusters(before, b)) == []
    assert sent(session, clusters(make_resource("a", "changed"), b)) == ["a"]
    assert sent(session, clusters(before, b)) == ["a"]


def test_a_new_resource_is_sent_to_whoever_asked_for_it_before_it_was_there(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request("later"))
    assert sent(session, clusters(make_resource("a"))) == []
    assert sent(session, clusters(make_resource("a"), make_resource("later"))) == ["later"]


def test_what_a_reconnected_client_has_is_not_sent_again(make_resource: MakeResource) -> None:
    same, changed = make_resource("same"), make_resource("changed", "now")
    session = DeltaSession()
    session.on_request(
        request("*", has={"same": same.version, "changed": make_resource("changed").version, "gone": "1"})
    )
    assert sent(session, clusters(same, changed)) == ["changed", "-gone"]


def test_versions_that_are_said_to_be_there_count_in_the_first_request_only(make_resource: MakeResource) -> None:
    a = make_resource("a")
    session = DeltaSession()
    session.on_request(request("other"))
    session.on_request(request("a", has={"a": a.version}))
    assert sent(session, clusters(a)) == ["a"]


def test_what_is_taken_away_is_removed_once_and_sent_again_when_it_comes_back(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    a, b, c = (make_resource(name) for name in "abc")
    sent(session, clusters(a, b, c))
    responses = list(session.responses(clusters(b)))
    assert [list(response.removed_resources) for response in responses] == [["a", "c"]]
    assert sent(session, clusters(b)) == []
    assert sent(session, clusters(a, b)) == ["a"]


def test_the_removal_of_a_whole_type_is_told(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    sent(session, clusters(make_resource("a")))
    assert sent(session, {}) == ["-a"]


def test_subscribing_again_sends_again(make_resource: MakeResource) -> None:
    resources = clusters(make_resource("a"), make_resource("b"))
    session = DeltaSession()
    session.on_request(request("a", "b"))
    sent(session, resources)
    session.on_request(request("a"))
    assert sent(session, resources) == ["a"]


def test_later_names_are_added_and_left_out(make_resource: MakeResource) -> None:
    a, b = make_resource("a"), make_resource("b")
    session = DeltaSession()
    session.on_request(request("a"))
    assert sent(session, clusters(a, b)) == ["a"]
    session.on_request(request("b", unsubscribe=("a",)))
    assert sent(session, clusters(make_resource("a", "changed"), b)) == ["b"]
    assert sent(session, clusters(b)) == [], "the removal of what is not wanted any more is not told"


def test_an_unsubscribed_wildcard_leaves_the_names(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request("*", "a"))
    sent(session, clusters(make_resource("a"), make_resource("b")))
    session.on_request(request(unsubscribe=("*",)))
    changed = clusters(make_resource("a", "changed"), make_resource("b", "changed"))
    assert sent(session, changed) == ["a"]


def test_a_later_request_without_names_is_no_wildcard(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request("a"))
    session.on_request(request())
    assert sent(session, clusters(make_resource("a"), make_resource("b"))) == ["a"]


@pytest.mark.parametrize(
    ("error", "accepted"), [pytest.param(None, True, id="ACK"), pytest.param("no such filter", False, id="NACK")]
)
def test_an_acknowledgement_names_what_it_is_about(
    make_resource: MakeResource, error: str | None, *, accepted: bool
) -> None:
    a, b = make_resource("a"), make_resource("b")
    session = DeltaSession()
    session.on_request(request())
    _, second = session.responses(clusters(a, b))
    acknowledgement = session.on_request(request(nonce=second.nonce, error=error))
    assert acknowledgement == Acknowledgement(CLUSTER, {"b": b.version}, error)
    assert acknowledgement.accepted is accepted


def test_an_error_without_a_message_is_a_refusal(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    [response] = session.responses(clusters(make_resource("a")))
    acknowledgement = session.on_request(request(nonce=response.nonce, error=""))
    assert acknowledgement is not None
    assert not acknowledgement.accepted


def test_a_nonce_is_acknowledged_once_and_unknown_ones_say_nothing(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    [response] = session.responses(clusters(make_resource("a")))
    assert session.on_request(request(nonce=response.nonce)) is not None
    assert session.on_request(request(nonce=response.nonce)) is None
    assert session.on_request(request(nonce="never given")) is None


def test_a_refused_resource_is_not_sent_again_until_it_changes(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    [response] = session.responses(clusters(make_resource("a")))
    session.on_request(request(nonce=response.nonce, error="bad"))
    assert sent(session, clusters(make_resource("a"))) == []
    assert sent(session, clusters(make_resource("a", "better"))) == ["a"]


def test_a_removal_is_acknowledged_with_no_versions(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    list(session.responses(clusters(make_resource("a"))))
    [removal] = session.responses({})
    assert session.on_request(request(nonce=removal.nonce)) == Acknowledgement(CLUSTER, {}, None)


def test_what_is_referred_to_goes_before_what_refers_to_it(make_resource: MakeResource) -> None:
    types = (LISTENER, "type.googleapis.com/unknown", EXTENSION_CONFIG, CLUSTER, SECRET)
    a = make_resource("a")
    session = DeltaSession()
    for type_url in types:
        session.on_request(request(type_url=type_url))
    responses = list(session.responses({type_url: {"a": a} for type_url in types}))
    expected = [SECRET, CLUSTER, EXTENSION_CONFIG, LISTENER, "type.googleapis.com/unknown"]
    assert [response.type_url for response in responses] == expected


NAMES = st.sampled_from("abcd")
STATES = st.lists(st.dictionaries(NAMES, st.sampled_from(["1", "2", "3"])), min_size=1, max_size=8)


def applied(held: Mapping[str, str], responses: list[DeltaDiscoveryResponse]) -> dict[str, str]:
    """What a client holds after `responses`, as an xDS client reads them."""
    after = dict(held)
    for response in responses:
        after |= {each.name: each.version for each in response.resources}
        for name in response.removed_resources:
            assert name in after, "only what the client has is removed"
            del after[name]
    return after


@given(first=st.dictionaries(NAMES, st.sampled_from(["1", "2", "3"])), states=STATES)
def test_a_client_that_does_as_it_is_told_has_what_the_server_has(
    first: dict[str, str], states: list[dict[str, str]]
) -> None:
    session = DeltaSession()
    session.on_request(request("*", has=first))
    held = first
    for state in states:
        resources = {CLUSTER: {name: Resource(name, version, None) for name, version in state.items()}}  # type: ignore[arg-type]
        held = applied(held, list(session.responses(resources)))
        assert held == state


def answers(session: DeltaSession, resources: Resources, error: str | None = None) -> None:
    """Sends what is to be sent, and takes in the client's answer to each."""
    for response in list(session.responses(resources)):
        session.on_request(request(type_url=response.type_url, nonce=response.nonce, error=error))


def test_a_client_has_settled_when_it_uses_all_that_it_asked_for(make_resource: MakeResource) -> None:
    session, resources = DeltaSession(), clusters(make_resource("a"), make_resource("b"))
    assert not session.settled(resources), "it has asked for nothing"
    session.on_request(request())
    assert not session.settled(resources), "nothing is sent"
    first, second = session.responses(resources)
    session.on_request(request(nonce=first.nonce))
    assert not session.settled(resources), "one is not acknowledged"
    session.on_request(request(nonce=second.nonce))
    assert session.settled(resources)
    assert not session.settled(clusters(make_resource("a"), make_resource("b", "changed"))), "one is another now"


def test_a_client_that_refuses_has_not_settled_until_it_accepts(make_resource: MakeResource) -> None:
    session, resources = DeltaSession(), clusters(make_resource("a"))
    session.on_request(request())
    answers(session, resources, "bad")
    assert not session.settled(resources)
    good = clusters(make_resource("a", "good"))
    answers(session, good)
    assert session.settled(good)


def test_a_client_that_has_everything_already_has_settled(make_resource: MakeResource) -> None:
    session, a = DeltaSession(), make_resource("a")
    session.on_request(request(has={"a": a.version}))
    assert sent(session, clusters(a)) == []
    assert session.settled(clusters(a))


def test_a_client_that_has_not_asked_for_a_type_yet_has_not_settled(make_resource: MakeResource) -> None:
    session, resources = DeltaSession(), clusters(make_resource("a"))
    listener = make_resource("l", type_url=LISTENER)
    session.on_request(request())
    answers(session, resources)
    assert not session.settled({**resources, LISTENER: {"l": listener}})


def test_a_removal_is_settled_when_it_is_acknowledged(make_resource: MakeResource) -> None:
    session = DeltaSession()
    session.on_request(request())
    answers(session, clusters(make_resource("a")))
    [removal] = session.responses({CLUSTER: {}})
    assert not session.settled({CLUSTER: {}})
    session.on_request(request(nonce=removal.nonce))
    assert session.settled({CLUSTER: {}})
