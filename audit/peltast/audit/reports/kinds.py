"""Every kind of report, by name."""

from __future__ import annotations

from peltast.audit.reports.access import ACCESS
from peltast.audit.reports.configuration import CONFIGURATION
from peltast.audit.reports.controls import CONTROLS
from peltast.audit.reports.denials import DENIALS
from peltast.audit.reports.identities import IDENTITIES
from peltast.audit.reports.matrix import MATRIX
from peltast.audit.reports.plaintext import PLAINTEXT
from peltast.audit.reports.unused import UNUSED

__all__ = ["KINDS"]

KINDS = {kind.name: kind for kind in (ACCESS, DENIALS, UNUSED, IDENTITIES, CONFIGURATION, PLAINTEXT, MATRIX, CONTROLS)}
