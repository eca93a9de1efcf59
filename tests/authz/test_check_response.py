"""What the check service's answer says beside Envoy's own fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict

from peltast.authz.check.convert import METADATA_KEY, check_response


def own_part(mesh: Any) -> dict[str, Any]:
    own: dict[str, Any] = MessageToDict(
        check_response(mesh.decide(), tuple(mesh.program.attributes), sidecar=True).dynamic_metadata
    )[METADATA_KEY]
    return own


def test_an_answer_says_what_policies_on_trial_would_have_decided(
    mesh: Callable[..., Any], policy: Callable[..., str]
) -> None:
    tried = policy({"action": "DENY", "rules": [{}, {}]}, dry_run=True)
    own = own_part(mesh(tried))
    assert own["reason"] == "no_allow_policy"
    assert own["shadow"] == {"dry_run_deny": "deny", "dry_run_deny_policy": "shop/p", "dry_run_deny_rule": 0}


def test_an_answer_says_nothing_of_a_shadow_where_there_is_none(mesh: Callable[..., Any]) -> None:
    assert "shadow" not in own_part(mesh())
