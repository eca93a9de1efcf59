-- Least privilege: the collector inserts and advances its cursors, auditors read. Run after every migration.
DO $$
DECLARE role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['peltast_collector', 'peltast_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role_name);
        END IF;
    END LOOP;
END $$;

GRANT INSERT ON records, quarantine, tiles, checkpoints, starts, gaps TO peltast_collector;
GRANT SELECT (spool, sequence, leaf, time, kind, decision_sequence, link) ON records TO peltast_collector;
GRANT SELECT ON tree, tiles, checkpoints, starts, gaps TO peltast_collector;
GRANT UPDATE (size, frontier, tail) ON tree TO peltast_collector;
GRANT SELECT, INSERT ON spools TO peltast_collector;
GRANT UPDATE (sequence, link, last_seen, start, start_index, closed) ON spools TO peltast_collector;

GRANT SELECT ON records, requests, spools, quarantine, tree, tiles, checkpoints, starts, gaps, legal_holds,
    dropped_partitions, dropped_records
TO peltast_auditor;
