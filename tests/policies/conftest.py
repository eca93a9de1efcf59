from __future__ import annotations

from collections.abc import Callable

import pytest

from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.snapshot import load


@pytest.fixture(scope="session")
def problems_of() -> Callable[..., list[Problem]]:
    """Loads files and gives what is wrong with them."""

    def problems_of(**files: str) -> list[Problem]:
        contents = {name.replace("_", "."): text.encode() for name, text in files.items()}
        try:
            load(contents, "cluster.local", 1)
        except InvalidConfiguration as invalid:
            return list(invalid.problems)
        return []

    return problems_of
