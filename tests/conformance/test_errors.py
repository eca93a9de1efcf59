"""Which kind of error a message tells of: what nobody listed is no error that a case may want."""

from __future__ import annotations

import pytest
from conformance.errors import kind_of


def shown(message: str, source: str = "p := 1") -> str:
    """A message as the interpreter shows it."""
    return f"\n--> test-0.rego:3:1\n  |\n3 | {source}\n  | ^\nerror: {message}"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (shown("eval_builtin_error: uri.parse: missing protocol scheme"), "built-in"),
        (shown("eval_type_error: array.flatten: operand 1 must be array but got number"), "type"),
        (shown("divide by zero"), "built-in"),
        (shown("decode failure\nCaused by\ninvalid length at 6"), "built-in"),
        (shown("`count` requires array/object/set/string argument. Got `5`."), "type"),
        (shown("rules must not produce multiple outputs"), "conflict"),
        (shown("use of undefined variable `conflict` is unsafe", "conflict := divide by zero"), "other"),
        ("there is no function or built-in regex.globs_match", "other"),
        ("it said eval_builtin_error: once", "other"),
    ],
)
def test_an_error_is_of_the_kind_that_its_message_says(error: str, kind: str) -> None:
    assert kind_of(error) == kind
