-- What Rego policies say beside their answers: what they print, and how they are annotated.
ALTER TABLE records ADD prints text, ADD annotations text;

-- As it was, with these two at its end.
CREATE OR REPLACE VIEW requests WITH (security_invoker = true) AS
SELECT
    first.spool, first.sequence, first.leaf, first.time, first.owner, first.namespace, first.kind,
    first.source_principal, first.source_address, first.source_serial,
    coalesce(first.destination_principal, first.owner) AS destination_principal, first.destination_port,
    first.token_issuer, first.token_subject, first.method, first.host, first.path, first.query,
    first.request_headers, first.claims, first.request_id, first.traceparent,
    coalesce(first.effect, 'deny') AS effect,
    coalesce(ended.status, first.status) AS status,
    first.policy, first.rule, coalesce(first.reason, first.end_details) AS reason, first.decided_by, first.detail,
    first.program, first.keys, first.revocations,
    coalesce(ended.bytes_received, first.bytes_received) AS bytes_received,
    coalesce(ended.bytes_sent, first.bytes_sent) AS bytes_sent,
    coalesce(ended.duration_ns, first.duration_ns) AS duration_ns,
    coalesce(ended.flags, first.flags) AS flags,
    first.kind = 'decision' AND ended.sequence IS NULL AS interrupted,
    first.connection_security_policy,
    first.dry_run_deny, first.dry_run_deny_policy, first.dry_run_deny_rule,
    first.dry_run_allow, first.dry_run_allow_policy, first.dry_run_allow_rule,
    first.audit_rules, first.redacted, first.hashed,
    ended.reason AS ended_reason, ended.policy AS ended_policy, ended.rule AS ended_rule,
    first.prints, first.annotations
FROM records first
LEFT JOIN records ended
    ON first.kind = 'decision' AND ended.kind = 'end' AND ended.spool = first.spool
    AND ended.decision_sequence = first.sequence AND ended.time >= first.time - interval '1 hour'
WHERE first.kind IN ('decision', 'refusal') OR (first.kind = 'end' AND first.decision_sequence IS NULL);
