-- catalog.sql: what the extension installs, as the catalogs see it.
BEGIN;
SELECT plan(22);

CREATE TEMP VIEW routine AS
  SELECT p.*, p.oid::regprocedure::text AS signature, n.nspname
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'kavach';
CREATE TEMP VIEW relation AS
  SELECT c.* FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'kavach';

-- The verbs, their arguments and their order: later issues add at the end only.
SELECT is(pg_get_function_arguments(oid), arguments, proname)
  FROM (VALUES
    ('kavach_authorize', 'agent_id text, action text, resource text, tokens_cost bigint DEFAULT NULL::bigint, arguments jsonb DEFAULT NULL::jsonb, ip inet DEFAULT NULL::inet, request_id text DEFAULT NULL::text, metadata jsonb DEFAULT NULL::jsonb, min_tokens bigint DEFAULT NULL::bigint, OUT allowed boolean, OUT code text, OUT reason text, OUT audit_id uuid, OUT policy_id text, OUT tokens_granted bigint, OUT tokens_remaining bigint, OUT calls_remaining bigint, OUT retry_at timestamp with time zone'),
    ('kavach_record_usage', 'agent_id text, tokens_cost bigint, audit_id uuid DEFAULT NULL::uuid, request_id text DEFAULT NULL::text, metadata jsonb DEFAULT NULL::jsonb, OUT usage_id uuid, OUT tokens_charged bigint, OUT code text, OUT policy_id text, OUT tokens_remaining bigint, OUT calls_remaining bigint'),
    ('kavach_check_budget', 'agent_id text, tokens_cost bigint DEFAULT NULL::bigint, OUT allowed boolean, OUT code text, OUT reason text, OUT policy_id text, OUT tokens_remaining bigint, OUT calls_remaining bigint, OUT retry_at timestamp with time zone'),
    ('kavach_create_agent', 'agent_id text DEFAULT NULL::text, user_id text DEFAULT NULL::text, tenant_id text DEFAULT NULL::text, name text DEFAULT NULL::text, permissions jsonb DEFAULT ''[]''::jsonb, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, metadata jsonb DEFAULT ''{}''::jsonb'),
    ('kavach_create_policy', 'agent_id text DEFAULT NULL::text, user_id text DEFAULT NULL::text, tenant_id text DEFAULT NULL::text, each text DEFAULT NULL::text, all_agents boolean DEFAULT false, limits jsonb DEFAULT NULL::jsonb, action text DEFAULT ''block''::text')
  ) AS t (name, arguments) LEFT JOIN routine ON proname = name;
SELECT results_eq(
  $$SELECT proname::text COLLATE "default" FROM routine WHERE proname LIKE 'kavach\_%' ORDER BY proname::text COLLATE "C"$$,
  $$VALUES ('kavach_adjust'), ('kavach_authorize'), ('kavach_billing_report'), ('kavach_check_budget'), ('kavach_cost_by_agent'), ('kavach_cost_by_day'),
           ('kavach_cost_by_user'), ('kavach_create_agent'), ('kavach_create_policy'), ('kavach_drop_policy'), ('kavach_export'), ('kavach_export_json'),
           ('kavach_grant_permission'), ('kavach_grant_role'), ('kavach_query_audit'), ('kavach_record_usage'), ('kavach_reload_counters'), ('kavach_reset_policy'),
           ('kavach_restore_agent'), ('kavach_revoke_agent'), ('kavach_revoke_permission'), ('kavach_update_agent'), ('kavach_update_policy')$$,
  'the verbs');
SELECT results_eq(
  $$SELECT relname::text COLLATE "default" FROM relation WHERE relkind IN ('r', 'p', 'v') ORDER BY relname::text COLLATE "C"$$,
  $$VALUES ('agent'), ('audit_log'), ('budget_baseline'), ('budget_limit'), ('budget_policy'), ('budget_status'), ('counter_stats'), ('counters'), ('ledger'), ('permission'),
           ('unsettled'), ('usage_by_agent'), ('usage_by_day'), ('usage_by_user')$$,
  'the nouns');

CREATE FUNCTION pg_temp.none(query text, what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
  EXECUTE format('SELECT string_agg(x::text, E''\n'') FROM (%s) AS t (x)', query) INTO found;
  RETURN is(found, NULL, what);
END $$;
SELECT pg_temp.none($$SELECT relname FROM relation WHERE relnamespace <> 'kavach'::regnamespace$$, 'every relation is in schema kavach');
SELECT pg_temp.none($$SELECT signature FROM routine WHERE obj_description(oid, 'pg_proc') IS NULL$$, 'every function has a comment');
SELECT pg_temp.none($$SELECT relname FROM relation WHERE relkind IN ('r', 'p', 'v', 'S') AND obj_description(oid, 'pg_class') IS NULL$$, 'every table and view too');
SELECT pg_temp.none($$SELECT relname || '.' || attname FROM relation r JOIN pg_attribute a ON attrelid = r.oid
                       WHERE relkind IN ('r', 'p', 'v') AND attnum > 0 AND NOT attisdropped AND col_description(r.oid, attnum) IS NULL$$, 'and every column');
SELECT isnt(obj_description('kavach'::regnamespace, 'pg_namespace'), NULL, 'and the schema');
-- The install script is read in the database's encoding, whichever that is.
SELECT pg_temp.none($$SELECT signature FROM routine WHERE concat(prosrc, obj_description(oid, 'pg_proc')) ~ '[^[:ascii:]]'
                       UNION ALL SELECT relname FROM relation r, generate_series(0, 40) AS n
                                  WHERE CASE n WHEN 0 THEN obj_description(r.oid, 'pg_class') ELSE col_description(r.oid, n) END ~ '[^[:ascii:]]'$$, 'it is all ASCII');
SELECT pg_temp.none($$SELECT signature FROM routine WHERE prorettype = 'void'::regtype$$, 'no function returns void');
SELECT pg_temp.none($$SELECT proname FROM routine GROUP BY proname, nspname HAVING count(*) > 1$$, 'none is overloaded');
SELECT pg_temp.none($$SELECT signature FROM routine, LATERAL aclexplode(coalesce(proacl, acldefault('f', proowner))) a WHERE a.grantee = 0$$, 'PUBLIC can execute none');
SELECT pg_temp.none($$SELECT relname FROM relation, LATERAL aclexplode(relacl) a WHERE a.grantee = 0$$, 'nor touch a relation');
SELECT pg_temp.none($$SELECT nspname FROM pg_namespace, LATERAL aclexplode(nspacl) a WHERE nspname = 'kavach' AND a.grantee = 0$$, 'nor look into the schema');
SELECT pg_temp.none($$SELECT signature FROM routine WHERE prosecdef AND NOT coalesce(proconfig::text, '') ~ 'search_path=.*pg_catalog'$$, 'SECURITY DEFINER comes with a pinned search_path');
SELECT pg_temp.none($$SELECT signature FROM routine WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'sql') AND prosqlbody IS NULL
                         AND coalesce(proconfig::text, '') !~ 'search_path'$$, 'an SQL function is parsed at creation or has a pinned search_path');
SELECT pg_temp.none($$SELECT relname FROM relation WHERE relkind = 'r' AND NOT oid = ANY (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'kavach')$$,
                    'every member table is dumped with its rows');
SELECT pg_temp.none($$SELECT relname FROM relation WHERE relkind = 'S' AND NOT oid = ANY (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'kavach')$$,
                    'and every sequence with its value');

SELECT * FROM finish();
ROLLBACK;
