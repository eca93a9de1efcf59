-- Where each spool stands. A spool belongs to the SPIFFE ID that first shipped it.
CREATE TABLE spools (
    spool bytea PRIMARY KEY CHECK (octet_length(spool) = 16),
    owner text NOT NULL,
    sequence bigint NOT NULL,
    link bytea NOT NULL CHECK (octet_length(link) = 32),
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now()
);

-- One row a record. `body` is the record to the byte, and what the chain is over; the columns are read from it, with
-- what Postgres text refuses (NUL, bad UTF-8) written as \xNN.
CREATE TABLE records (
    spool bytea NOT NULL,
    sequence bigint NOT NULL,
    owner text NOT NULL,
    schema smallint NOT NULL,
    kind text,
    time timestamptz NOT NULL,
    time_ns numeric(20) NOT NULL,
    body bytea NOT NULL,
    link bytea NOT NULL,
    received bigint GENERATED ALWAYS AS IDENTITY,

    spool_id bytea,
    worker bigint,
    process_id bigint,
    source_principal text,
    source_address text,
    source_serial text,
    destination_principal text,
    destination_port bigint,
    token_issuer text,
    token_subject text,
    method text,
    host text,
    path text,
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
    decision_sequence bigint,
    flags bigint,
    end_details text,
    bytes_received bigint,
    bytes_sent bigint,
    duration_ns bigint,
    actor text,
    action text,
    object text,

    PRIMARY KEY (spool, sequence)
);

CREATE INDEX records_time ON records (time);
CREATE INDEX records_received ON records (received);
CREATE UNIQUE INDEX records_end ON records (spool, decision_sequence) WHERE kind = 'end' AND decision_sequence IS NOT NULL;

-- What a spool sent that does not continue its chain.
CREATE TABLE quarantine (
    spool bytea NOT NULL,
    owner text NOT NULL,
    reason text NOT NULL,
    frames bytea NOT NULL,
    frames_hash bytea NOT NULL,
    received timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (spool, frames_hash)
);

-- One row an inbound request, and one a connection that was refused before any. A decision whose end is missing is
-- interrupted: its sidecar died, or the request still runs.
CREATE VIEW requests AS
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
    first.kind = 'decision' AND ended.sequence IS NULL AS interrupted
FROM records first
LEFT JOIN records ended
    ON first.kind = 'decision' AND ended.kind = 'end' AND ended.spool = first.spool
    AND ended.decision_sequence = first.sequence
WHERE first.kind IN ('decision', 'refusal') OR (first.kind = 'end' AND first.decision_sequence IS NULL);
