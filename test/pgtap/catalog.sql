-- catalog.sql: what the extension installs, as the catalogs see it.
BEGIN;
SELECT plan(17);
SET LOCAL lc_messages = 'C';

\ir ../lint/rules.sql

-- The verbs, their arguments and their order: later issues add at the end only.
SELECT is(pg_get_function_arguments(oid), arguments, proname)
  FROM (VALUES
    ('kavach_authorize', 'agent_id text, action text, resource text, tokens_cost bigint DEFAULT NULL::bigint, arguments jsonb DEFAULT NULL::jsonb, ip inet DEFAULT NULL::inet, request_id text DEFAULT NULL::text, metadata jsonb DEFAULT NULL::jsonb, min_tokens bigint DEFAULT NULL::bigint, OUT allowed boolean, OUT code text, OUT reason text, OUT audit_id uuid, OUT policy_id text, OUT tokens_granted bigint, OUT tokens_remaining bigint, OUT calls_remaining bigint, OUT retry_at timestamp with time zone, OUT action text, OUT http_status integer'),
    ('kavach_record_usage', 'agent_id text, tokens_cost bigint, audit_id uuid DEFAULT NULL::uuid, request_id text DEFAULT NULL::text, metadata jsonb DEFAULT NULL::jsonb, OUT usage_id uuid, OUT tokens_charged bigint, OUT code text, OUT policy_id text, OUT tokens_remaining bigint, OUT calls_remaining bigint'),
    ('kavach_check_budget', 'agent_id text, tokens_cost bigint DEFAULT NULL::bigint, action text DEFAULT NULL::text, resource text DEFAULT NULL::text, arguments jsonb DEFAULT NULL::jsonb, ip inet DEFAULT NULL::inet, min_tokens bigint DEFAULT NULL::bigint, OUT allowed boolean, OUT code text, OUT reason text, OUT policy_id text, OUT tokens_remaining bigint, OUT calls_remaining bigint, OUT retry_at timestamp with time zone, OUT action text, OUT http_status integer'),
    ('kavach_create_agent', 'agent_id text DEFAULT NULL::text, user_id text DEFAULT NULL::text, tenant_id text DEFAULT NULL::text, name text DEFAULT NULL::text, permissions jsonb DEFAULT NULL::jsonb, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, metadata jsonb DEFAULT ''{}''::jsonb, replace boolean DEFAULT false'),
    ('kavach_create_policy', 'agent_id text DEFAULT NULL::text, user_id text DEFAULT NULL::text, tenant_id text DEFAULT NULL::text, each text DEFAULT NULL::text, all_agents boolean DEFAULT false, limits jsonb DEFAULT NULL::jsonb, action text DEFAULT ''block''::text, policy_id text DEFAULT NULL::text, replace boolean DEFAULT false')
  ) AS t (name, arguments) LEFT JOIN member_function ON proname = name;
SELECT results_eq(
  $$SELECT proname::text COLLATE "default" FROM member_function WHERE proname LIKE 'kavach\_%' ORDER BY proname::text COLLATE "C"$$,
  $$VALUES ('kavach_adjust'), ('kavach_archive_month'), ('kavach_attach_month'), ('kavach_authorize'), ('kavach_billing_report'), ('kavach_check_budget'), ('kavach_cost_by_agent'), ('kavach_cost_by_day'),
           ('kavach_cost_by_user'), ('kavach_create_agent'), ('kavach_create_months'), ('kavach_create_policy'), ('kavach_drop_agent'), ('kavach_drop_month'), ('kavach_drop_policy'), ('kavach_export'), ('kavach_export_json'),
           ('kavach_grant_permission'), ('kavach_grant_role'), ('kavach_query_audit'), ('kavach_record_usage'), ('kavach_reload_counters'), ('kavach_reset_policy'),
           ('kavach_restore_agent'), ('kavach_revoke_agent'), ('kavach_revoke_permission'), ('kavach_revoke_role'),
           ('kavach_unsettled'), ('kavach_update_agent'), ('kavach_update_permission'), ('kavach_update_policy'), ('kavach_usage_report')$$,
  'the verbs');
SELECT results_eq(
  $$SELECT relname::text COLLATE "default" FROM member_relation WHERE relkind IN ('r', 'p', 'v') ORDER BY relname::text COLLATE "C"$$,
  $$VALUES ('agent'), ('agents'), ('audit_log'), ('batch'), ('batch_status'), ('budget_baseline'), ('budget_limit'), ('budget_policy'), ('budget_status'), ('cache_stats'), ('counter_stats'), ('counters'), ('dropped_month'), ('ledger'), ('open_authorization'),
           ('permission'), ('permissions'), ('policies'), ('tail'), ('unsettled'), ('usage'), ('usage_by_agent'), ('usage_by_day'), ('usage_by_user'), ('usage_daily'), ('usage_entry'), ('usage_monthly'),
           ('usage_part'), ('usage_scope'), ('usage_total'), ('worker_status')$$,
  'the nouns');

CREATE FUNCTION pg_temp.none(query text, what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
  EXECUTE format('SELECT string_agg(x::text, E''\n'') FROM (%s) AS t (x)', query) INTO found;
  RETURN is(found, NULL, what);
END $$;
-- The install script is read in the database's encoding, whichever that is.
SELECT pg_temp.none($$SELECT object FROM member_function WHERE concat(prosrc, obj_description(oid, 'pg_proc')) ~ '[^[:ascii:]]'
                       UNION ALL SELECT object FROM member_relation r, generate_series(0, 40) AS n
                                  WHERE CASE n WHEN 0 THEN obj_description(r.oid, 'pg_class') ELSE col_description(r.oid, n) END ~ '[^[:ascii:]]'$$, 'it is all ASCII');
SELECT pg_temp.none($$SELECT object FROM member_function WHERE prorettype = 'void'::regtype$$, 'no function returns void');
SELECT pg_temp.none($$SELECT proname FROM member_function GROUP BY proname, pronamespace HAVING count(*) > 1$$, 'none is overloaded');
SELECT pg_temp.none($$SELECT object FROM member_relation WHERE relkind = 'r' AND NOT oid = ANY (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'kavach')$$,
                    'every member table is dumped with its rows');
SELECT pg_temp.none($$SELECT object FROM member_relation WHERE relkind = 'S' AND NOT oid = ANY (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'kavach')$$,
                    'and every sequence with its value');

-- A month's partition is no member, and made as one.
SELECT is(code, 'agent_not_found', 'a month begins') FROM kavach_authorize('agt_nobody', 'run', 'x');
SELECT pg_temp.none($$SELECT inhrelid::regclass || '.' || attname FROM pg_inherits JOIN pg_attribute ON attrelid = inhrelid
                       WHERE inhparent = 'kavach.audit_log'::regclass AND attnum > 0 AND NOT attisdropped AND col_description(inhrelid, attnum) IS NULL$$,
                    'its columns have comments');
SELECT pg_temp.none($$SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass AND obj_description(inhrelid, 'pg_class') IS NULL$$,
                    'and so has it');

-- make lint has the same rules, and the faults that follow show that they can find something.
SELECT pg_temp.none('SELECT rule || object FROM finding', 'no function is PUBLIC''s, none has an open search_path, nothing is without a comment, and so on: test/lint/rules.sql');
CREATE SCHEMA other;
CREATE FUNCTION other.eq(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;
CREATE OPERATOR other.= (LEFTARG = text, RIGHTARG = text, FUNCTION = other.eq);
CREATE FUNCTION public.kavach_body(text) RETURNS boolean LANGUAGE sql RETURN $1 OPERATOR(other.=) 'x';
CREATE FUNCTION public.kavach_frozen() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN public.kavach_body('x'); END $$;
CREATE FUNCTION pg_catalog.kavach_lost() RETURNS boolean LANGUAGE sql RETURN true;
COMMENT ON FUNCTION kavach_body(text) IS 'x';
COMMENT ON FUNCTION kavach_frozen() IS 'x';
COMMENT ON FUNCTION kavach_lost() IS 'x';
SET LOCAL kavach.allow_alter = on;
ALTER EXTENSION kavach ADD FUNCTION public.kavach_body(text);
ALTER EXTENSION kavach ADD FUNCTION public.kavach_frozen();
ALTER EXTENSION kavach ADD FUNCTION pg_catalog.kavach_lost();
REVOKE ALL ON FUNCTION public.kavach_body(text), public.kavach_frozen(), pg_catalog.kavach_lost() FROM PUBLIC;
ALTER FUNCTION kavach_create_agent(text, text, text, text, jsonb, timestamptz, jsonb, boolean) SET search_path = pg_catalog;
ALTER FUNCTION kavach.check_object(jsonb, text) RESET search_path;
ALTER FUNCTION kavach_authorize(text, text, text, bigint, jsonb, inet, text, jsonb, bigint) SECURITY DEFINER;
GRANT EXECUTE ON FUNCTION kavach_check_budget(text, bigint, text, text, jsonb, inet, bigint) TO PUBLIC;
GRANT USAGE ON SCHEMA kavach TO PUBLIC;
GRANT SELECT (agent_id) ON kavach.ledger TO PUBLIC;
COMMENT ON SCHEMA kavach IS NULL;
COMMENT ON VIEW kavach.unsettled IS NULL;
COMMENT ON SEQUENCE kavach.permission_permission_id_seq IS NULL;
COMMENT ON FUNCTION kavach.check_action(text) IS NULL;
COMMENT ON COLUMN kavach.counters.pins IS NULL;
COMMENT ON TRIGGER append_only ON kavach.audit_log IS NULL;
COMMENT ON EVENT TRIGGER kavach_guard_ledger IS NULL;
SELECT results_eq(
  $$SELECT rule || ': ' || regexp_replace(object, '\([^)]*\)', '', 'g') FROM finding ORDER BY (rule || ': ' || object) COLLATE "C"$$,
  $$VALUES ('a body with the name of the extension''s schema: function kavach_frozen'),
           ('a function that PUBLIC can execute: function kavach_check_budget'),
           ('a function without a pinned search_path: function kavach.check_object'),
           ('a function without a pinned search_path: function kavach_authorize'),
           ('a function without a pinned search_path: function kavach_create_agent'),
           ('a relation or schema that PUBLIC has a right on: schema kavach'),
           ('a relation or schema that PUBLIC has a right on: view kavach.ledger'),
           ('an object in the wrong schema: function kavach_lost'),
           ('an object without a comment: column pins of view kavach.counters'),
           ('an object without a comment: event trigger kavach_guard_ledger'),
           ('an object without a comment: function kavach.check_action'),
           ('an object without a comment: schema kavach'),
           ('an object without a comment: sequence kavach.permission_permission_id_seq'),
           ('an object without a comment: trigger append_only on table kavach.audit_log'),
           ('an object without a comment: view kavach.unsettled'),
           ('something of somebody else''s is used: function kavach_body uses operator other.=')$$,
  'a planted fault is found by its rule');

SELECT * FROM finish();
ROLLBACK;
