-- export.sql: exports print the ledger, the same under every setting, and stream it.
BEGIN;
SELECT plan(39);
SET LOCAL timezone = 'UTC';
\ir workload.psql

SELECT is(string_agg(name, ' ' ORDER BY n), (SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'kavach.audit_log'::regclass AND attnum > 0),
          'export has the ledger''s columns under their names')
  FROM (SELECT * FROM kavach_export() LIMIT 1) AS e, LATERAL json_object_keys(row_to_json(e)) WITH ORDINALITY AS k (name, n);
SELECT is((SELECT count(*) FROM kavach_export()), (SELECT count(*) FROM kavach.audit_log), 'and a row for each of its rows');
SELECT is(count(*), 0::bigint, 'ts is ISO 8601 UTC text') FROM kavach_export() WHERE ts::text !~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$';
SELECT is(count(*), 0::bigint, 'that means the row''s very instant')
  FROM kavach_export() e JOIN kavach.audit_log l USING (id) WHERE e.ts::timestamptz IS DISTINCT FROM l.ts;
SELECT is(pg_typeof(tokens_cost)::text, 'bigint', 'numbers are numbers') FROM kavach_export() LIMIT 1;
SELECT results_eq($$SELECT count(*), min(ts) >= '2026-02-01T', max(ts) < '2026-03-01T' FROM kavach_export('2026-02-01Z', '2026-03-01Z')$$,
                  $$SELECT count(*), true, true FROM kavach.audit_log WHERE ts >= '2026-02-01Z' AND ts < '2026-03-01Z'$$, 'since and until cut a month');
SELECT ts AS edge, rank() OVER (ORDER BY ts) - 1 AS before FROM kavach.audit_log ORDER BY ts OFFSET 100 LIMIT 1 \gset
SELECT is((SELECT count(*) FROM kavach_export(until => :'edge')), :before::bigint, 'until is exclusive');
SELECT is((SELECT count(*) FROM kavach_export_json(until => :'edge')), :before::bigint, 'for JSON too');
SELECT is((SELECT count(*) FROM kavach_export(:'edge')) + :before, (SELECT count(*) FROM kavach.audit_log), 'since is inclusive');

-- JSON: an object a row, its numbers numbers, its objects objects.
SELECT is(count(*), 0::bigint, 'the JSON export says the same')
  FROM kavach_export() e FULL JOIN kavach_export_json() AS j ON (j ->> 'id')::uuid = e.id
 WHERE jsonb_strip_nulls(to_jsonb(e)) IS DISTINCT FROM jsonb_strip_nulls(j);
SELECT is(jsonb_typeof(j -> 'tokens_cost') || ' ' || jsonb_typeof(j -> 'arguments') || ' ' || jsonb_typeof(j -> 'ts'), 'number object string', 'with JSON''s own types')
  FROM kavach_export_json() AS j WHERE j ->> 'kind' = 'authorize' AND (j ->> 'tokens_cost') <> '0' LIMIT 1;

-- The same text under any TimeZone, DateStyle, IntervalStyle and extra_float_digits.
SELECT md5(string_agg(e::text, E'\n' ORDER BY id)) AS csv, md5((SELECT string_agg(j::text, E'\n' ORDER BY j ->> 'id') FROM kavach_export_json() AS j)) AS json FROM kavach_export() AS e \gset
SELECT is(md5(string_agg(e::text, E'\n' ORDER BY id)), :'csv', 'export under ' || style || ', ' || zone)
  FROM (VALUES ('German, DMY', 'America/New_York'), ('SQL, MDY', 'Asia/Kathmandu'), ('Postgres, DMY', 'Pacific/Auckland')) AS t (style, zone),
       LATERAL (SELECT set_config('datestyle', style, true), set_config('timezone', zone, true)) AS s, kavach_export() AS e
 WHERE s IS NOT NULL GROUP BY style, zone;
SELECT is(md5(string_agg(j::text, E'\n' ORDER BY j ->> 'id')), :'json', 'export_json too') FROM kavach_export_json() AS j;
SET LOCAL datestyle = 'ISO, MDY';
SET LOCAL timezone = 'UTC';

-- Streamed: the planner sees through the functions, so nothing is gathered before the first row is out, and other
-- months' partitions are not looked at.
CREATE FUNCTION pg_temp.plan_of(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; whole text := '';
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP whole := whole || line || E'\n'; END LOOP;
  RETURN whole;
END $$;
SELECT doesnt_match(pg_temp.plan_of(query), 'Function Scan on (?!no_rows)', query || ' is inlined')
  FROM (VALUES ('SELECT * FROM kavach_export()'), ('SELECT * FROM kavach_export_json()'), ('SELECT * FROM kavach_query_audit()'),
               ($$SELECT * FROM kavach_cost_by_agent('2026-02-01Z', '2026-03-01Z')$$), ('SELECT * FROM kavach_cost_by_user(NULL, NULL)'),
               ('SELECT * FROM kavach_cost_by_day(NULL, NULL, NULL)'), ('SELECT * FROM kavach_billing_report(2026, 2)')) AS t (query);
SELECT doesnt_match(pg_temp.plan_of(query), 'audit_log_2026_0[13]', query || ' reads its month alone')
  FROM (VALUES ($$SELECT * FROM kavach_export('2026-02-01Z', '2026-03-01Z')$$), ($$SELECT * FROM kavach_export_json('2026-02-01Z', '2026-03-01Z')$$),
               ($$SELECT * FROM kavach_cost_by_agent('2026-02-01Z', '2026-03-01Z')$$), ($$SELECT * FROM kavach_cost_by_user('2026-02-01Z', '2026-03-01Z')$$),
               ($$SELECT * FROM kavach_cost_by_day('agt_1', '2026-02-01Z', '2026-03-01Z')$$), ('SELECT * FROM kavach_billing_report(2026, 2)'),
               ($$SELECT * FROM kavach_query_audit(since => '2026-02-01Z', until => '2026-03-01Z')$$)) AS t (query);
PREPARE month_of (timestamptz, timestamptz) AS SELECT * FROM kavach_export($1, $2);
SET LOCAL plan_cache_mode = force_generic_plan;
SELECT matches(pg_temp.plan_of($$EXECUTE month_of('2026-02-01Z', '2026-03-01Z')$$), 'Subplans Removed: 2|^(?!.*audit_log_2026_0[13])', 'bound as parameters too');
PREPARE cost_of (timestamptz, timestamptz) AS SELECT * FROM kavach_cost_by_agent($1, $2);
SELECT matches(pg_temp.plan_of($$EXECUTE cost_of('2026-02-01Z', '2026-03-01Z')$$), 'Subplans Removed: 2|^(?!.*audit_log_2026_0[13])', 'a report as well');

-- Reports are parallel safe.
SET LOCAL parallel_setup_cost = 0;
SET LOCAL parallel_tuple_cost = 0;
SET LOCAL min_parallel_table_scan_size = 0;
SET LOCAL enable_indexscan = off;
SET LOCAL enable_bitmapscan = off;
SELECT matches(pg_temp.plan_of(query), 'Gather', query || ' is read in parallel')
  FROM (VALUES ('SELECT * FROM kavach_cost_by_agent(NULL, NULL)'), ('SELECT * FROM kavach_cost_by_user(NULL, NULL)'), ('SELECT * FROM kavach_cost_by_day(NULL, NULL, NULL)'),
               ('SELECT * FROM kavach_billing_report(2026, 2)'), ('SELECT * FROM kavach.usage_by_agent'), ('SELECT * FROM kavach.usage_by_user'),
               ('SELECT * FROM kavach.usage_by_day'), ('SELECT sum(calls), sum(tokens_cost) FROM kavach.usage')) AS t (query);

SELECT * FROM finish();
ROLLBACK;
