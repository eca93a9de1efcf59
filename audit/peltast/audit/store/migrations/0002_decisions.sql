ALTER TABLE records
    -- How the caller's connection was secured: `none` is plaintext; mutual TLS is not written.
    ADD connection_security_policy text,
    -- The hash of the revocations in force.
    ADD revocations bytea,
    -- What policies that are not enforced said of a request: those on trial (dry-run), and those of AUDIT.
    ADD dry_run_deny text,
    ADD dry_run_deny_policy text,
    ADD dry_run_deny_rule bigint,
    ADD dry_run_allow text,
    ADD dry_run_allow_policy text,
    ADD dry_run_allow_rule bigint,
    ADD audit_rules text;

-- One row an inbound request, and one a connection that was refused before any. A decision whose end is missing is
-- interrupted: its sidecar died, or the request still runs. `ended_…` is the later decision that ended what this one let
-- through.
CREATE OR REPLACE VIEW requests AS
SELECT
    first.spool, first.sequence, first.received, first.time, first.owner, first.kind,
    first.source_principal, first.source_address, first.source_serial,
    coalesce(first.destination_principal, first.owner) AS destination_principal, first.destination_port,
    first.token_issuer, first.token_subject, first.method, first.host, first.path, first.request_id,
    coalesce(first.effect, 'deny') AS effect,
    coalesce(ended.status, first.status) AS status,
    first.policy, first.rule, coalesce(first.reason, first.end_details) AS reason, first.decided_by, first.detail,
    first.program, first.keys,
    coalesce(ended.bytes_received, first.bytes_received) AS bytes_received,
    coalesce(ended.bytes_sent, first.bytes_sent) AS bytes_sent,
    coalesce(ended.duration_ns, first.duration_ns) AS duration_ns,
    coalesce(ended.flags, first.flags) AS flags,
    first.kind = 'decision' AND ended.sequence IS NULL AS interrupted,
    first.connection_security_policy, first.revocations,
    first.dry_run_deny, first.dry_run_deny_policy, first.dry_run_deny_rule,
    first.dry_run_allow, first.dry_run_allow_policy, first.dry_run_allow_rule,
    first.audit_rules,
    ended.reason AS ended_reason, ended.policy AS ended_policy, ended.rule AS ended_rule
FROM records first
LEFT JOIN records ended
    ON first.kind = 'decision' AND ended.kind = 'end' AND ended.spool = first.spool
    AND ended.decision_sequence = first.sequence
WHERE first.kind IN ('decision', 'refusal') OR (first.kind = 'end' AND first.decision_sequence IS NULL);
