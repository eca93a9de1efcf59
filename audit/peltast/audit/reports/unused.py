"""Policies and rules never used: what a configuration has, against what decided in a range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime

from peltast.audit.reports.make import Body, Kind, Reader
from peltast.audit.reports.report import Cell, Column, Table, Type
from peltast.policies.kinds.authorization import Action, AuthorizationPolicySpec
from peltast.policies.kinds.resource import Resource

__all__ = ["UNUSED"]

_POLICIES = (
    Column("policy"),
    Column("rule", Type.NUMBER),
    Column("action"),
    Column("on_trial"),
    Column("workloads", Type.NUMBER),
    Column("used", Type.NUMBER),
    Column("last_used", Type.TIME),
    Column("finding"),
)

_GONE = (Column("policy"), Column("rule", Type.NUMBER), Column("used", Type.NUMBER), Column("last_used", Type.TIME))

# A decision names the rule that decided, the rules on trial and the AUDIT rules that matched; an end, the rule that
# ended what ran.
_QUERY = r"""
WITH uses AS (
    SELECT policy, rule, number, time FROM counted_requests WHERE time >= $1 AND time < $2
    UNION ALL
    SELECT dry_run_deny_policy, dry_run_deny_rule, number, time FROM counted_requests WHERE time >= $1 AND time < $2
    UNION ALL
    SELECT dry_run_allow_policy, dry_run_allow_rule, number, time FROM counted_requests WHERE time >= $1 AND time < $2
    UNION ALL
    SELECT substring(audited FROM '^(.*)\[[0-9]+\]$'), substring(audited FROM '\[([0-9]{1,9})\]$')::bigint,
           number, time
    FROM counted_requests, unnest(string_to_array(audit_rules, ' ')) AS audited
    WHERE time >= $1 AND time < $2
    UNION ALL
    SELECT policy, rule, 1, time
    FROM records
    WHERE time >= $1 AND time < $2 AND kind = 'end' AND decision_sequence IS NOT NULL
)
SELECT policy, rule, sum(number)::bigint, max(time)
FROM uses
WHERE policy IS NOT NULL
GROUP BY 1, 2
"""

_NOTE = (
    "The AuthorizationPolicies of the configuration {version} are compared with the rules that records name. The first "
    "rule that matches is the one that is named: a rule behind it may match too, and is not needed. Where a request "
    "was let through by an ALLOW policy, the CUSTOM policies that agreed are not named."
)

Uses = Mapping[tuple[str, int | None], tuple[int, datetime]]


async def _body(reader: Reader) -> Body:
    snapshot = reader.revision.snapshot
    uses: Uses = {(policy, rule): (used, last) for policy, rule, used, last in await reader.rows(_QUERY)}
    selected = Counter(
        resource.full_name
        for workload in snapshot.workloads.values()
        for resource in snapshot.applying_to(workload, AuthorizationPolicySpec)
    )
    policies = snapshot.of_kind(AuthorizationPolicySpec)
    rows = [row for each in policies for row in _rows(each, selected[each.full_name], uses)]
    known = {(row[0], row[1]) for row in rows}
    gone = ((*key, *use) for key, use in uses.items() if key not in known)
    tables = (
        Table.of("policies", "Every rule of the configuration", _POLICIES, rows),
        Table.of("gone", "Rules on record that the configuration does not have", _GONE, gone),
    )
    return Body(tables, notes=(_NOTE.format(version=snapshot.version),))


def _rows(resource: Resource[AuthorizationPolicySpec], workloads: int, uses: Uses) -> Iterator[tuple[Cell, ...]]:
    """A row for each rule of a policy for so many workloads; one without a rule where it has none."""
    trial = "yes" if resource.dry_run else None
    for rule in range(len(resource.spec.rules)) or [None]:
        used, last = uses.get((resource.full_name, rule), (0, None))
        finding = _finding(resource.spec.action, workloads, used, rule)
        yield resource.full_name, rule, resource.spec.action.value, trial, workloads, used, last, finding


def _finding(action: Action, workloads: int, used: int, rule: int | None) -> str | None:
    if used:
        return None
    if not workloads:
        return "never used: selects no workload"
    if rule is None:
        return "has no rules: it closes its workloads"
    return "not named on record" if action is Action.CUSTOM else "never used"


UNUSED = Kind(
    "unused", "Policies never used", "policies and rules of a configuration that decided nothing", _body, compares=True
)
