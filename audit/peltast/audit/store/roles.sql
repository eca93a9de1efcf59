-- Least privilege: the collector inserts and advances its cursors, auditors read, by namespace. Run after every
-- migration, as the owner of the database.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['peltast_collector', 'peltast_auditor', 'peltast_exporter'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role_name);
        END IF;
    END LOOP;
    -- COPY is not for tables with row-level security. What the collector may read is settled by its columns.
    -- Exports are of everything.
    FOREACH role_name IN ARRAY ARRAY['peltast_collector', 'peltast_exporter'] LOOP
        IF NOT (SELECT rolbypassrls FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('ALTER ROLE %I BYPASSRLS', role_name);
        END IF;
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO peltast_collector, peltast_auditor, peltast_exporter',
        current_database());
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO peltast_collector, peltast_auditor, peltast_exporter;

GRANT INSERT ON records, quarantine, tiles, checkpoints, starts, gaps TO peltast_collector;
GRANT SELECT (spool, sequence, leaf, time, kind, decision_sequence, link) ON records TO peltast_collector;
GRANT SELECT (spool, since, until, link) ON dropped_records TO peltast_collector;
GRANT SELECT ON tree, tiles, checkpoints, starts, gaps TO peltast_collector;
GRANT UPDATE (size, frontier, tail) ON tree TO peltast_collector;
GRANT SELECT, INSERT ON spools TO peltast_collector;
GRANT UPDATE (sequence, link, last_seen, start, start_index, closed) ON spools TO peltast_collector;
GRANT EXECUTE ON FUNCTION ensure_partitions TO peltast_collector;

GRANT SELECT ON records, requests, counted_requests, spools, quarantine, tree, tiles, checkpoints, starts, gaps, legal_holds,
    dropped_partitions, dropped_records, auditors
TO peltast_auditor;

-- Exports read every record, and move nothing but their own places.
GRANT SELECT ON records, tree TO peltast_exporter;
GRANT SELECT, INSERT ON exports TO peltast_exporter;
GRANT UPDATE (leaf, updated) ON exports TO peltast_exporter;

ALTER ROLE peltast_auditor SET default_transaction_read_only = on;

-- Large objects belong to no table: whoever may connect may make them, unless a superuser has taken that away.
DO $$
DECLARE
    function regprocedure;
BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        FOR function IN
            SELECT oid FROM pg_proc
            WHERE pronamespace = 'pg_catalog'::regnamespace
                AND proname ~ '^(lo_(create|creat|from_bytea|open|put|truncate|truncate64|unlink|import|export)|lowrite)$'
        LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
        END LOOP;
    END IF;
END $$;

-- An auditor sees what was written in namespaces given to them. What is of no namespace (the control plane's acts) is
-- for those who see all. The subqueries do not depend on the row: they are run once a query.
DO $$
DECLARE
    policy record;
    of_owner CONSTANT text := 'substring(owner from ''^spiffe://[^/]+/ns/([^/]+)/'')';
    by_namespace CONSTANT text :=
        '(SELECT EXISTS (SELECT FROM auditors WHERE role = current_user AND auditors.namespace = ''*'')) '
        'OR %s = ANY (ARRAY(SELECT auditors.namespace FROM auditors WHERE role = current_user))';
BEGIN
    FOR policy IN SELECT * FROM (VALUES
        ('records', format(by_namespace, 'namespace')),
        ('spools', format(by_namespace, of_owner)),
        ('starts', format(by_namespace, of_owner)),
        ('quarantine', format(by_namespace, of_owner)),
        ('auditors', 'role = current_user')
    ) AS policies (tablename, seen)
    WHERE NOT EXISTS (SELECT FROM pg_policies p WHERE p.schemaname = 'public' AND p.tablename = policies.tablename)
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', policy.tablename);
        EXECUTE format(
            'CREATE POLICY seen ON %I FOR SELECT TO peltast_auditor USING (current_user = ''peltast_auditor'' OR %s)',
            policy.tablename, policy.seen);
    END LOOP;
END $$;
