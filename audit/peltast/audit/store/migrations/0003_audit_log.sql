-- Records by day, in one order over all spools, which a Merkle tree and every reader that follows go by.

-- The tree (RFC 9162 section 2): how many leaves it has, the roots of the perfect trees that they make up, the largest
-- first, and the hashes of the leaves that have no whole tile yet. Whoever stores records holds this row until they are
-- committed: so leaves have neither gaps nor another order than that of their commits, and a reader that has seen a leaf
-- has seen all before it.
CREATE TABLE tree (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    size bigint NOT NULL DEFAULT 0,
    frontier bytea NOT NULL DEFAULT '',
    tail bytea NOT NULL DEFAULT ''
);
INSERT INTO tree DEFAULT VALUES;

-- Hashes of the tree, 256 to a tile: a tile of level 0 has leaves, one of level n + 1 the roots of tiles of level n
-- (C2SP tlog-tiles). Whole tiles only; the hashes of later leaves are in `tree.tail`.
CREATE TABLE tiles (
    level smallint NOT NULL,
    number bigint NOT NULL,
    hashes bytea NOT NULL CHECK (octet_length(hashes) = 256 * 32),
    PRIMARY KEY (level, number)
);

-- The tree as it was signed, in the form of a C2SP signed note.
CREATE TABLE checkpoints (
    size bigint PRIMARY KEY,
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    time timestamptz NOT NULL DEFAULT now(),
    note text NOT NULL
);

-- A start of a process that writes spools, as its agent states and signs it; `start` is the statement's SHA-256.
CREATE TABLE starts (
    start bytea PRIMARY KEY CHECK (octet_length(start) = 32),
    owner text NOT NULL,
    previous bytea,
    statement bytea NOT NULL,
    received timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE spools
    ADD start bytea,
    ADD start_index bigint,
    ADD closed boolean NOT NULL DEFAULT false;
-- A spool's keys are its own: what another was begun with cannot begin a second one.
CREATE UNIQUE INDEX spools_start ON spools (start, start_index);

-- Records that never came, and why: the spool went on at `until` + 1, after a record with this link. Without a link it did
-- not go on: the record `since` is torn, and how many stood behind it nobody can tell.
CREATE TABLE gaps (
    spool bytea NOT NULL,
    since bigint NOT NULL,
    until bigint NOT NULL,
    link bytea CHECK (octet_length(link) = 32),
    reason text NOT NULL,
    noticed timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (spool, since)
);

-- Where exports have got to: every record before `leaf` was delivered.
CREATE TABLE exports (
    name text PRIMARY KEY,
    leaf bigint NOT NULL DEFAULT 0,
    updated timestamptz NOT NULL DEFAULT now()
);

-- Days that are kept although their time is over.
CREATE TABLE legal_holds (
    name text PRIMARY KEY,
    since date NOT NULL,
    until date NOT NULL CHECK (until >= since),
    reason text NOT NULL,
    created timestamptz NOT NULL DEFAULT now()
);

-- Days that were dropped when their time was over, and by whom. Their leaves' hashes stay in `tiles`.
CREATE TABLE dropped_partitions (
    day date NOT NULL,
    dropped timestamptz NOT NULL DEFAULT now(),
    dropped_by name NOT NULL DEFAULT session_user,
    records bigint NOT NULL,
    first_leaf bigint,
    last_leaf bigint,
    PRIMARY KEY (day, dropped)
);

-- What was dropped of each spool, a row for each run of its records. Verifying goes on behind `until` with `link`, the
-- link there, which the tree's leaf `leaf` proves.
CREATE TABLE dropped_records (
    spool bytea NOT NULL,
    since bigint NOT NULL,
    until bigint NOT NULL CHECK (until >= since),
    leaf bigint NOT NULL,
    link bytea NOT NULL,
    PRIMARY KEY (spool, since)
);

-- The namespaces that an auditor may see; '*' is all.
CREATE TABLE auditors (
    role name NOT NULL,
    namespace text NOT NULL,
    PRIMARY KEY (role, namespace)
);

DROP VIEW requests;
ALTER TABLE records RENAME TO records_before;
DROP INDEX records_time, records_received, records_end;
ALTER TABLE records_before RENAME CONSTRAINT records_pkey TO records_before_pkey;

-- `leaf` is the record's place in the tree, from 0. `time` is what the writer's clock said; what lies outside the days
-- that have a partition (a clock that is far off) goes to `records_default`.
CREATE TABLE records (
    spool bytea NOT NULL,
    sequence bigint NOT NULL,
    leaf bigint NOT NULL,
    owner text NOT NULL,
    namespace text GENERATED ALWAYS AS (substring(owner from '^spiffe://[^/]+/ns/([^/]+)/')) STORED,
    schema smallint NOT NULL,
    kind text,
    time timestamptz NOT NULL,
    time_ns numeric(20) NOT NULL,
    body bytea NOT NULL,
    link bytea NOT NULL,
    mac bytea,
    -- Fields that were left out, and those of which only a keyed hash was written.
    redacted text[],
    hashed text[],

    spool_id bytea,
    worker bigint,
    process_id bigint,
    start bytea,
    start_index bigint,
    heads bytea,
    count bigint,
    since_ns bigint,
    until_ns bigint,
    source_principal text,
    source_address text,
    source_serial text,
    destination_principal text,
    destination_port bigint,
    token_issuer text,
    token_subject text,
    connection_security_policy text,
    method text,
    host text,
    path text,
    query text,
    request_headers text,
    claims text,
    request_id text,
    traceparent text,
    effect text,
    status bigint,
    policy text,
    rule bigint,
    reason text,
    decided_by text,
    detail text,
    program bytea,
    keys bytea,
    revocations bytea,
    decision_sequence bigint,
    flags bigint,
    end_details text,
    bytes_received bigint,
    bytes_sent bigint,
    duration_ns bigint,
    actor text,
    action text,
    object text,
    dry_run_deny text,
    dry_run_deny_policy text,
    dry_run_deny_rule bigint,
    dry_run_allow text,
    dry_run_allow_policy text,
    dry_run_allow_rule bigint,
    audit_rules text,

    PRIMARY KEY (spool, sequence, time)
) PARTITION BY RANGE (time);

CREATE INDEX records_time ON records (time);
CREATE INDEX records_leaf ON records (leaf);
CREATE INDEX records_source ON records (source_principal, time) WHERE source_principal IS NOT NULL;
CREATE INDEX records_end ON records (spool, decision_sequence) WHERE kind = 'end' AND decision_sequence IS NOT NULL;

CREATE TABLE records_default PARTITION OF records DEFAULT;

INSERT INTO records (
    spool, sequence, leaf, owner, schema, kind, time, time_ns, body, link, spool_id, worker, process_id,
    source_principal, source_address, source_serial, destination_principal, destination_port, token_issuer,
    token_subject, connection_security_policy, method, host, path, request_id, traceparent, effect, status, policy, rule,
    reason, decided_by, detail, program, keys, revocations, decision_sequence, flags, end_details, bytes_received,
    bytes_sent, duration_ns, actor, action, object, dry_run_deny, dry_run_deny_policy, dry_run_deny_rule, dry_run_allow,
    dry_run_allow_policy, dry_run_allow_rule, audit_rules)
SELECT
    spool, sequence, row_number() OVER (ORDER BY received) - 1, owner, schema, kind, time, time_ns, body, link,
    spool_id, worker, process_id,
    -- As the collector cuts what is too long for the index (`audit/peltast/audit/columns.py`).
    CASE WHEN octet_length(source_principal) > 2048 THEN left(source_principal, 512) || '…' ELSE source_principal END,
    source_address, source_serial, destination_principal, destination_port, token_issuer, token_subject,
    connection_security_policy, method, host, path, request_id, traceparent, effect, status, policy, rule, reason,
    decided_by, detail, program, keys, revocations, decision_sequence, flags, end_details, bytes_received, bytes_sent,
    duration_ns, actor, action, object, dry_run_deny, dry_run_deny_policy, dry_run_deny_rule, dry_run_allow,
    dry_run_allow_policy, dry_run_allow_rule, audit_rules
FROM records_before;
DROP TABLE records_before;

-- The tree over what was there before, as the collector grows it (`audit/peltast/audit/collector/leaves.py`).
CREATE FUNCTION pg_temp.perfect_root(hashes bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE half int := octet_length(hashes) / 2;
BEGIN
    IF half = 16 THEN
        RETURN hashes;
    END IF;
    RETURN sha256('\x01' || pg_temp.perfect_root(substr(hashes, 1, half)) || pg_temp.perfect_root(substr(hashes, half + 1)));
END $$;

DO $$
DECLARE
    stored record;
    hash bytea;
    here int;
    number int;
    tails bytea[] := ARRAY['\x'::bytea, '\x', '\x', '\x'];
    grown bytea := '';
BEGIN
    FOR stored IN SELECT spool, sequence, link, owner FROM records ORDER BY leaf LOOP
        hash := sha256('\x00' || stored.spool || int8send(stored.sequence) || stored.link
            || convert_to(stored.owner, 'UTF8'));
        here := 0;
        LOOP
            tails[here + 1] := tails[here + 1] || hash;
            EXIT WHEN octet_length(tails[here + 1]) < 256 * 32;
            INSERT INTO tiles SELECT here, count(*), tails[here + 1] FROM tiles WHERE level = here;
            hash := pg_temp.perfect_root(tails[here + 1]);
            tails[here + 1] := '';
            here := here + 1;
        END LOOP;
    END LOOP;
    FOR level IN REVERSE 3..0 LOOP
        number := octet_length(tails[level + 1]) / 32;
        FOR bit IN REVERSE 7..0 LOOP
            IF number & (1 << bit) <> 0 THEN
                grown := grown || pg_temp.perfect_root(
                    substr(tails[level + 1], (number >> (bit + 1) << (bit + 1)) * 32 + 1, (1 << bit) * 32));
            END IF;
        END LOOP;
    END LOOP;
    UPDATE tree SET size = (SELECT count(*) FROM records), frontier = grown, tail = tails[1];
END $$;

-- One row an inbound request, and one a connection that was refused before any. A decision whose end is missing is
-- interrupted: its sidecar died, or the request still runs. `ended_…` is the later decision that ended what this one let
-- through. An end is written after its decision, by a clock that may have been set back meanwhile, by an hour at most.
CREATE VIEW requests WITH (security_invoker = true) AS
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
    ended.reason AS ended_reason, ended.policy AS ended_policy, ended.rule AS ended_rule
FROM records first
LEFT JOIN records ended
    ON first.kind = 'decision' AND ended.kind = 'end' AND ended.spool = first.spool
    AND ended.decision_sequence = first.sequence AND ended.time >= first.time - interval '1 hour'
WHERE first.kind IN ('decision', 'refusal') OR (first.kind = 'end' AND first.decision_sequence IS NULL);

-- What `requests` has, without ends, and what summaries count: `number` is how many requests a row stands for. Reports
-- count by it.
CREATE VIEW counted_requests WITH (security_invoker = true) AS
SELECT
    spool, sequence, leaf, time, owner, namespace, kind,
    CASE kind WHEN 'summary' THEN coalesce(count, 0) ELSE 1 END AS number,
    source_principal, source_address, coalesce(destination_principal, owner) AS destination_principal, destination_port,
    token_issuer, token_subject, connection_security_policy, method, host, path,
    coalesce(effect, CASE kind WHEN 'summary' THEN 'allow' ELSE 'deny' END) AS effect,
    status, policy, rule, coalesce(reason, end_details) AS reason, decided_by,
    dry_run_deny_policy, dry_run_deny_rule, dry_run_allow_policy, dry_run_allow_rule, audit_rules
FROM records
WHERE kind IN ('decision', 'refusal', 'summary') OR (kind = 'end' AND decision_sequence IS NULL);
