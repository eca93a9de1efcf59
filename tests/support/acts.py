"""Where acts come on record."""

from __future__ import annotations

from peltast.identity.acts import Act


class Record(list[Act]):
    """What was recorded; `full` when there is no room."""

    full = False

    def report(self, act: Act) -> None:
        if self.full:
            raise OSError("the spool is full")
        self.append(act)
