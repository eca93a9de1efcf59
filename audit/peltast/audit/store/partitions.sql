-- A partition of `records` for each day (UTC). Run after every migration. Names are written out in full: what runs with
-- its owner's rights must not find somebody else's.

-- Whether a partition was made. Rows of that day that lie in the default partition move to it.
CREATE OR REPLACE FUNCTION public.make_partition(day date) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text := 'records_' || to_char(day, 'YYYYMMDD');
    since timestamptz := day::timestamp AT TIME ZONE 'UTC';
    until timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    columns text := (
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'public.records'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
BEGIN
    IF to_regclass('public.' || partition) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Attached and not made in place: that would keep out whoever stores records in other days meanwhile.
    LOCK TABLE ONLY public.records IN SHARE UPDATE EXCLUSIVE MODE;
    LOCK TABLE public.records_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.records INCLUDING ALL)', partition);
    EXECUTE format(
        'WITH moved AS (DELETE FROM public.records_default WHERE time >= $1 AND time < $2 RETURNING *) '
        'INSERT INTO public.%I (%s) SELECT %2$s FROM moved', partition, columns) USING since, until;
    EXECUTE format(
        'ALTER TABLE public.records ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', partition, since, until);
    RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION public.make_partition FROM PUBLIC;

-- Partitions for the next seven days, and for the two before today, whose records may still come. How many were made.
CREATE OR REPLACE FUNCTION public.ensure_partitions() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('public.records partitions'));
    RETURN (
        SELECT count(*) FILTER (WHERE public.make_partition((now() AT TIME ZONE 'UTC')::date + ahead))
        FROM generate_series(-2, 7) AS ahead);
END $$;
REVOKE EXECUTE ON FUNCTION public.ensure_partitions FROM PUBLIC;
