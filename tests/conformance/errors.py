"""Which kind of error a message of the interpreter or of our built-ins tells of.

The kinds are OPA's: <https://github.com/open-policy-agent/opa/blob/main/v1/topdown/errors.go>.
"""

from __future__ import annotations

import re

CODES = {"eval_conflict_error": "conflict", "eval_type_error": "type", "eval_builtin_error": "built-in"}
"""OPA's codes, which our built-ins have in their messages, too."""

OTHER = "other"
"""What a message tells of that nobody listed."""

# The interpreter has no codes. What is not listed is none of these kinds: an error that nobody looked at is no success.
_WORDS = {
    "conflict": (
        r"(complete )?rules (must|should) not produce multiple outputs",
        r"functions? (must not produce|produced) multiple outputs",
        r"rule conflicts with rule",
        r"value for key .* generated multiple times",
    ),
    "type": (
        r"`[\w.]+` (expects|requires) ",
        r"initial vertices must be array/set",
        r"item at index \d+ is not an object",
        r"marshaling option must be one of ",
    ),
    "built-in": (
        r"could not convert numeric value of `ns` to int64",
        r"could not deserialize yaml",
        r"could not parse number",
        r"decode failure",
        r"divide by zero",
        r"invalid semver",
        r"modulo by zero",
        r"modulo on floating-point number",
        r"negative offset",
        r"spaces not allowed in resource strings",
        r"step must be a positive integer",
        r"time outside of valid range",
    ),
}


def kind_of(error: str) -> str:
    """`conflict`, `type`, `built-in` or `other`. Only what is said counts, and not the source that is shown with it."""
    message = re.split(r"^error: ", error, flags=re.MULTILINE)[-1]
    for code, kind in CODES.items():
        if message.startswith(f"{code}: "):
            return kind
    for kind, patterns in _WORDS.items():
        if any(re.match(pattern, message) for pattern in patterns):
            return kind
    return OTHER
